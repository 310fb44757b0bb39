//! `basebackup_mode: "stream"`: BASE_BACKUP over the wire, repackaged as `pghoard-bb-v2` while it
//! comes.
//!
//! One thread reads the server's tar, renames its members (`pgdata/...`, `tablespaces/NAME/...`),
//! sums every file and feeds the chunk that grows; another stores the chunks that are full. Held
//! back for the main object: backup_label, pg_control, backup_manifest. Left out: pg_wal, unless
//! the backup is to stand alone, and the links in pg_tblspc, which a restore makes anew. The modes
//! that keep the server's tar as it is are in `whole.rs`.
//! A backup that began on one timeline and ended on another is refused (S-38), and so is one whose
//! files are not what the server's manifest says.
//!
//! Budget: beside the codec less than 2 MiB, whatever the size of the cluster; no copy of the data
//! between the socket's buffer and the compressor.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use machine::event::WalIn;
use machine::{BackupName, Class, Millis, Segment, SegmentSize};
use smol::future::FutureExt;

use self::held::Held;
use super::chunks::{Chunk, Packer, Uploader};
use super::main_object::{MainObject, Space};
use super::sorter::{Sorted, Sorter, Spooled, incomplete};
use crate::codec::Encoding;
use crate::failure::{Failure, Outcome};
use crate::pg::basebackup::{BaseBackup, Begin, Event, Manifest, Position};
use crate::pg::fault::SqlState;
use crate::pg::files::{BackupLabel, Origin};
use crate::pg::{Answer, Connection, Conninfo, Fault, Mode, replication};
use crate::store::Store;

mod held;
pub mod whole;

pub const FORMAT: &str = "pghoard-bb-v2";

const LABEL: &str = "pghoard_base_backup";

/// Between two reports.
const REPORT_BYTES: u64 = 16 << 20;

/// How often a wait for the server looks at the stop flag.
const GLANCE: Duration = Duration::from_millis(100);

pub struct Request<'a> {
    pub conninfo: &'a Conninfo,
    pub store: &'a dyn Store,
    /// First part of every key, without a slash at its end.
    pub prefix: &'a str,
    pub backup: &'a BackupName,
    pub encoding: &'a Encoding,
    /// Where the WAL is to be that makes it consistent.
    pub wal: WalIn,
    /// A folder of our own; made if it is not there, and removed at the end.
    pub scratch: &'a Path,
    /// This machine's name.
    pub host: &'a str,
    /// The configured path, in case the server does not tell its own.
    pub pgdata: &'a Path,
    pub patience: Patience,
    /// Up to where the site's stream has come, where no slot keeps WAL for it.
    pub slotless: Option<&'a AtomicU64>,
    pub stop: &'a AtomicBool,
    pub clock: &'a (dyn Fn() -> Millis + Sync),
}

/// What a backup in chunks needs beside.
pub struct Chunking<'a> {
    /// Plain size at which a chunk is full.
    pub chunk_size_bytes: u64,
    /// Chunks on disk at once; at least two.
    pub chunks_in_progress: usize,
    /// Where the plain tar of the main object goes.
    pub main: &'a Path,
}

/// How long each kind of silence is borne.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub connect: Duration,
    /// For the server's checkpoint: it answers nothing before.
    pub checkpoint: Duration,
    /// In the middle of the stream.
    pub stall: Duration,
    /// For one chunk that the store will not take.
    pub upload: Duration,
}

impl Patience {
    pub const DEFAULT: Patience = Patience {
        connect: Duration::from_secs(60),
        checkpoint: Duration::from_secs(2 * 3600),
        stall: Duration::from_secs(600),
        upload: Duration::from_secs(3600),
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub bytes: u64,
    /// The server's estimate.
    pub total_bytes: u64,
    pub chunks_stored: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    pub start: Position,
    pub end: Position,
    pub started_at: Millis,
    pub ended_at: Millis,
    pub chunks: Vec<Chunk>,
    pub files: u64,
    pub tablespaces: Vec<Space>,
    pub version: u32,
    pub system_id: u64,
    pub segment_size: SegmentSize,
    pub from: Origin,
}

/// Takes a backup: chunks into the store, the main object's tar into a file. Blocks until then.
/// After a failure, chunks of this backup may be in the store.
pub fn take(
    request: &Request<'_>,
    chunking: &Chunking<'_>,
    report: &mut dyn FnMut(Progress),
) -> Outcome<Taken> {
    let _scratch = Scratch::make(request.scratch)?;
    let mut connection = request.wait(connect(request))??;
    let facts = request.wait(look(request, &mut connection))??;
    let (abandoned, stored) = (AtomicBool::new(false), AtomicU32::new(0));
    let uploader = Uploader {
        store: request.store,
        prefix: request.prefix,
        backup: request.backup,
        encoding: request.encoding,
        host: request.host,
        patience: request.patience.upload,
        abandoned: &abandoned,
        stop: request.stop,
        stored: &stored,
    };
    // One chunk grows and one is being stored, beside those that wait.
    let (sender, receiver) = sync_channel(chunking.chunks_in_progress.saturating_sub(2));
    let (scratch, encoding) = (request.scratch, request.encoding);
    let packer = Packer::new(scratch, encoding, chunking.chunk_size_bytes, sender)?;
    thread::scope(|scope| {
        let uploading = scope.spawn(|| uploader.run(receiver));
        let received = receive(request, &mut connection, &facts, packer, &stored, report);
        if received.is_err() {
            abandoned.store(true, Ordering::Relaxed);
        }
        let uploaded = uploading
            .join()
            .unwrap_or_else(|_| Err(Failure::new(Class::Internal, "the uploader panicked")));
        match (received, uploaded) {
            // Whoever fails first makes the other fail: an uploader that was left is no reason.
            (Err(failure), Ok(())) => Err(failure),
            (Err(failure), Err(other)) if other.class == Class::Interrupted => Err(failure),
            (_, Err(failure)) => Err(failure),
            (Ok(received), Ok(())) => conclude(request, chunking.main, &facts, received),
        }
    })
}

impl Request<'_> {
    /// Waits for the server, unless we are to stop.
    fn wait<T>(&self, future: impl Future<Output = T>) -> Outcome<T> {
        let stopped = async {
            while !self.stop.load(Ordering::Relaxed) {
                smol::Timer::after(GLANCE).await;
            }
            Err(Failure::new(
                Class::Interrupted,
                "the backup was told to stop",
            ))
        };
        smol::block_on(async { Ok(future.await) }.or(stopped))
    }
}

/// What the plain connection told, or what we take in its place.
struct Facts {
    names: BTreeMap<u32, String>,
    pgdata: PathBuf,
    zone: Option<String>,
    size: SegmentSize,
    system_id: u64,
    version: u32,
}

async fn connect(request: &Request<'_>) -> Outcome<Connection> {
    let deadline = Instant::now() + request.patience.connect;
    Ok(Connection::connect(request.conninfo, Mode::Physical, deadline).await?)
}

async fn look(request: &Request<'_>, walsender: &mut Connection) -> Outcome<Facts> {
    let deadline = Instant::now() + request.patience.connect;
    let system_id = replication::identify(walsender, deadline).await?.system_id;
    let mut facts = Facts {
        names: BTreeMap::new(),
        pgdata: request.pgdata.to_owned(),
        zone: None,
        size: replication::segment_size(walsender, deadline).await?,
        system_id,
        version: walsender.version(),
    };
    let zone = walsender
        .simple_query("SHOW log_timezone", deadline)
        .await?;
    facts.zone = zone.first().and_then(|row| row.text(0)).map(str::to_owned);
    // Else its tablespaces may not be these.
    let info = same_server(request.conninfo, walsender.server());
    if let Err(fault) = ask(&info, &mut facts, deadline).await {
        log::info!("tablespaces keep their numbers as names: {fault}");
    }
    Ok(facts)
}

/// To the one of several that a connection has reached.
fn same_server(info: &Conninfo, server: &str) -> Conninfo {
    let mut info = info.clone();
    info.hosts.retain(|host| host.to_string() == server);
    info
}

async fn ask(info: &Conninfo, facts: &mut Facts, deadline: Instant) -> Answer<()> {
    let mut plain = super::plain(info, deadline).await?;
    let sql = "SELECT oid, spcname FROM pg_catalog.pg_tablespace";
    for row in plain.simple_query(sql, deadline).await? {
        if let Some((oid, name)) = row.parse(0).zip(row.text(1)) {
            facts.names.insert(oid, name.to_owned());
        }
    }
    let rows = plain.simple_query("SHOW data_directory", deadline).await?;
    if let Some(path) = rows.first().and_then(|row| row.text(0)) {
        facts.pgdata = path.into();
    }
    plain.close(deadline).await
}

/// Everything the stream brought.
struct Received {
    begin: Begin,
    end: Position,
    label: BackupLabel,
    sorted: Sorted,
    manifest: Option<PathBuf>,
    /// By our clock, when the server had begun.
    began_at: Millis,
}

fn receive(
    request: &Request<'_>,
    connection: &mut Connection,
    facts: &Facts,
    packer: Packer<'_>,
    stored: &AtomicU32,
    report: &mut dyn FnMut(Progress),
) -> Outcome<Received> {
    let mut running = start(request, connection)?;
    let begin = running.backup.begin().clone();
    let began_at = (request.clock)();
    let spaces = spaces(&begin, &facts.names);
    let mut sorter = Sorter::new(packer, spaces, request.wal, request.scratch)?;
    let mut manifest: Option<Spooled> = None;
    let end = follow(
        request,
        &mut running,
        stored,
        report,
        &mut |event| match event {
            Event::Archive(oid) => sorter.archive(oid),
            Event::Data(data) => sorter.data(data),
            Event::ManifestBegin => {
                let path = request.scratch.join("manifest");
                manifest = Some(Spooled::begin(path, sorter.sums()?)?);
                Ok(())
            }
            Event::Manifest(data) => fed(&mut manifest, data),
            Event::End(_) => Ok(()),
        },
    )?;
    if manifest.is_none() && begin.manifest == Manifest::Expected {
        return Err(incomplete("no manifest"));
    }
    let manifest = manifest.map(Spooled::finish).transpose()?;
    let sorted = sorter.finish()?;
    let label = BackupLabel::parse(&sorted.label)?;
    judge(&begin, end, &label)?;
    Ok(Received {
        begin,
        end,
        label,
        sorted,
        manifest,
        began_at,
    })
}

/// The server's stream, and the WAL it keeps meanwhile for the site's own.
struct Running<'c, 'r> {
    backup: BaseBackup<'c>,
    held: Option<Held<'r>>,
}

fn start<'c, 'r>(
    request: &Request<'r>,
    connection: &'c mut Connection,
) -> Outcome<Running<'c, 'r>> {
    let mut held = None;
    if let Some(reached) = request.slotless {
        held = request.wait(Held::hold(request, connection.server(), reached))?;
    }
    let deadline = Instant::now() + request.patience.checkpoint;
    let starting = BaseBackup::start(connection, LABEL, request.wal, deadline);
    let backup = request.wait(starting)??;
    Ok(Running { backup, held })
}

/// All that the server sends, piece by piece, up to where the backup ends.
fn follow(
    request: &Request<'_>,
    running: &mut Running<'_, '_>,
    stored: &AtomicU32,
    report: &mut dyn FnMut(Progress),
    each: &mut dyn FnMut(Event<'_>) -> Outcome<()>,
) -> Outcome<Position> {
    let begin = running.backup.begin();
    let start = begin.start.lsn;
    let estimates = begin.tablespaces.iter().map(|t| t.size_bytes);
    let total_bytes = estimates.fold(begin.main_size_bytes, u64::saturating_add);
    let (mut bytes, mut reported) = (0_u64, 0);
    loop {
        let stall = Instant::now() + request.patience.stall;
        running.held.take_if(|held| held.is_past(start));
        let event = request.wait(running.backup.next(stall))?;
        let event = event.map_err(broken_off)?;
        if let Event::End(end) = event {
            return Ok(end);
        }
        if let Event::Data(data) = event {
            bytes = bytes.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        }
        each(event)?;
        if bytes - reported >= REPORT_BYTES {
            reported = bytes;
            report(Progress {
                bytes,
                total_bytes,
                chunks_stored: stored.load(Ordering::Relaxed),
            });
        }
    }
}

fn fed(manifest: &mut Option<Spooled>, data: &[u8]) -> Outcome<()> {
    let begun = manifest.as_mut();
    begun
        .ok_or_else(|| incomplete("a manifest without a beginning"))?
        .feed(data)
}

/// What the server finds wrong with its own state while a backup runs (its standby was promoted,
/// its primary switched full_page_writes off) is over at the next try, or is said again then.
fn broken_off(mut fault: Fault) -> Failure {
    if fault.is(SqlState::NOT_IN_PREREQUISITE_STATE) {
        fault.failure.class = Class::Interrupted;
    }
    fault.failure
}

/// A backup must end where it began: on one timeline, from the position it says.
fn judge(begin: &Begin, end: Position, label: &BackupLabel) -> Outcome<()> {
    let start = begin.start;
    if end.timeline != start.timeline {
        let message = format!(
            "the server was promoted in the middle of the backup: it began on timeline {} and \
             ended on {}",
            start.timeline, end.timeline
        );
        return Err(Failure::new(Class::Interrupted, message).hint("it is taken again"));
    }
    if (label.start, label.timeline) != (start.lsn, start.timeline) || end.lsn < start.lsn {
        let message = format!(
            "backup_label says {} on timeline {}, the server said {} on {} to {}",
            label.start, label.timeline, start.lsn, start.timeline, end.lsn
        );
        return Err(Failure::new(Class::Corrupt, message));
    }
    Ok(())
}

fn conclude(
    request: &Request<'_>,
    main: &Path,
    facts: &Facts,
    received: Received,
) -> Outcome<Taken> {
    let Received {
        begin,
        end,
        label,
        sorted,
        manifest,
        began_at,
    } = received;
    let chunks = &sorted.chunks;
    let ended_at = (request.clock)();
    let written = label_time(&label.start_time, facts.zone.as_deref());
    let started_at = written.unwrap_or(began_at);
    let at = |position: &Position| Segment::at(position.timeline, position.lsn, facts.size);
    let last = Segment::before(end.timeline, end.lsn, facts.size);
    MainObject {
        backup: request.backup,
        pgdata: &facts.pgdata,
        host: request.host,
        size: facts.size,
        start: at(&begin.start),
        end: Some(last).filter(|_| label.from == Origin::Primary),
        started_at,
        ended_at,
        spaces: &sorted.spaces,
        chunks,
        names: &sorted.names,
        control: &sorted.control,
        label: &sorted.label,
        manifest: manifest.as_deref(),
    }
    .write(main, request.scratch)?;
    Ok(Taken {
        start: begin.start,
        end,
        started_at,
        ended_at,
        chunks: sorted.chunks,
        files: sorted.files,
        from: label.from,
        tablespaces: sorted.spaces,
        version: facts.version,
        system_id: facts.system_id,
        segment_size: facts.size,
    })
}

/// The names tablespaces have in the backup. One that could lead out of its folder, or that the
/// plain connection did not tell, goes by its number.
fn spaces(begin: &Begin, names: &BTreeMap<u32, String>) -> Vec<Space> {
    let safe = |name: &&String| !matches!(name.as_str(), "" | "." | "..") && !name.contains('/');
    let spaces = begin.tablespaces.iter().map(|tablespace| Space {
        name: names
            .get(&tablespace.oid)
            .filter(safe)
            .cloned()
            .unwrap_or_else(|| tablespace.oid.to_string()),
        oid: tablespace.oid,
        path: tablespace.path.clone(),
    });
    spaces.collect()
}

/// `2026-11-22 09:27:26 UTC`: the server's log_timezone, abbreviated. Abbreviations are ambiguous,
/// so the zone itself must be known; `None` when it is not.
fn label_time(text: &str, zone: Option<&str>) -> Option<Millis> {
    let civil = text.get(..19)?.parse::<jiff::civil::DateTime>().ok()?;
    let zone = match (text.get(19..)?.trim(), zone) {
        ("UTC" | "GMT" | "Z", _) => jiff::tz::TimeZone::UTC,
        (_, Some(name)) => jiff::tz::TimeZone::get(name).ok()?,
        (_, None) => return None,
    };
    let at = civil.to_zoned(zone).ok()?.timestamp().as_millisecond();
    u64::try_from(at).ok().map(Millis)
}

/// The scratch folder of one backup; what a run before this one left in it goes first.
struct Scratch<'a>(&'a Path);

impl Scratch<'_> {
    fn make(path: &Path) -> Outcome<Scratch<'_>> {
        let _absent_is_fine = fs::remove_dir_all(path);
        fs::create_dir_all(path).map_err(|e| Failure::io(&e, path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let _swept_at_the_next_start = fs::remove_dir_all(self.0);
    }
}

#[cfg(test)]
mod tests {
    use machine::{Lsn, Timeline};

    use super::*;

    #[test]
    fn the_time_of_the_label_needs_a_known_zone() {
        let noon = Some(Millis(1_795_348_800_000));
        for (text, zone, expected) in [
            ("2026-11-22 12:00:00 UTC", None, noon),
            ("2026-11-22 12:00:00 GMT", Some("Europe/London"), noon),
            ("2026-11-22 13:00:00 CET", Some("Europe/Berlin"), noon),
            ("2026-11-22 09:00:00 -03", Some("America/Sao_Paulo"), noon),
            ("2026-11-22 13:00:00 CET", None, None),
            ("2026-11-22 13:00:00 CET", Some("Nowhere/Else"), None),
            ("yesterday", Some("UTC"), None),
        ] {
            assert_eq!(label_time(text, zone), expected, "{text} in {zone:?}");
        }
    }

    #[test]
    fn s38_a_backup_ends_on_the_timeline_it_began_on() {
        let position = |lsn, timeline| Position {
            lsn: Lsn(lsn),
            timeline: Timeline(timeline),
        };
        let begin = Begin {
            start: position(100, 1),
            tablespaces: Vec::new(),
            main_size_bytes: 0,
            manifest: Manifest::Never,
        };
        let label = |lsn, timeline| BackupLabel {
            start: Lsn(lsn),
            checkpoint: Lsn(lsn),
            timeline: Timeline(timeline),
            from: Origin::Standby,
            start_time: String::new(),
        };
        assert!(judge(&begin, position(200, 1), &label(100, 1)).is_ok());
        let promoted = judge(&begin, position(200, 2), &label(100, 1)).unwrap_err();
        assert_eq!(promoted.class, Class::Interrupted);
        for (end, label) in [
            (position(200, 1), label(101, 1)),
            (position(200, 1), label(100, 2)),
            (position(99, 1), label(100, 1)),
        ] {
            let failure = judge(&begin, end, &label).unwrap_err();
            assert_eq!(failure.class, Class::Corrupt);
        }
    }

    #[test]
    fn a_tablespace_whose_name_leads_elsewhere_goes_by_its_number() {
        let tablespace = |oid| crate::pg::basebackup::Tablespace {
            oid,
            path: "/space".into(),
            size_bytes: 0,
        };
        let begin = Begin {
            start: Position {
                lsn: Lsn(0),
                timeline: Timeline(1),
            },
            tablespaces: (1..=5).map(tablespace).collect(),
            main_size_bytes: 0,
            manifest: Manifest::Never,
        };
        let names = [(1, "fast disk"), (2, "../x"), (3, ".."), (4, "a/b")];
        let names = names.map(|(oid, name)| (oid, name.to_owned())).into();
        let found: Vec<_> = spaces(&begin, &names).into_iter().map(|s| s.name).collect();
        assert_eq!(found, ["fast disk", "2", "3", "4", "5"]);
    }
}
