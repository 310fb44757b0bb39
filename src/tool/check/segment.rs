//! One WAL segment through the whole way: written, finished, received, stored, fetched, verified.
//!
//! Without a daemon it is not tried: what is received belongs to its slot and its spool.

use std::fs::{self, DirBuilder};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use machine::{Class, Segment};

use super::finding::Finding;
use super::host::Host;
use super::server::Seen;
use super::site;
use crate::config::Site;
use crate::failure::{Failure, Outcome};
use crate::pg::conninfo::Conninfo;
use crate::pg::files::{WAL_HEADER_BYTES, WalHeader};
use crate::restore::Source;
use crate::restore::wal::{self, Delivery, Places, Shelf};
use crate::source;
use crate::work::Place;

/// Between two looks for the segment.
const PAUSE: Duration = Duration::from_millis(200);
const SERVER_WITHIN: Duration = Duration::from_secs(20);

const POINT: &str = "segment";

pub struct Way<'a> {
    pub host: &'a Host<'a>,
    pub site: &'a Site,
    pub shelf: &'a Place,
    pub servers: &'a [Seen],
    pub wait: Duration,
}

pub fn findings(way: &Way<'_>) -> Vec<Finding> {
    vec![finding(way)]
}

fn finding(way: &Way<'_>) -> Finding {
    if !way.host.running() {
        let cure = "start the daemon and run this once more: its last point follows one segment \
                    all the way";
        return Finding::warn(POINT, "not followed: the daemon does not run", cure);
    }
    if site::received(way.site).is_none() {
        let cure = "set \"active_backup_mode\": \"pg_receivexlog\"";
        return Finding::warn(POINT, "not followed: no WAL is received in this mode", cure);
    }
    let Some(primary) = way.servers.iter().find(|seen| !seen.sql.in_recovery) else {
        let cure = "run this once more when the primary answers";
        return Finding::warn(POINT, "not followed: no primary answers", cure);
    };
    if !primary.sql.may_switch {
        let cure = format!(
            "in the database {}: grant execute on function pg_switch_wal() to {}",
            primary.sql.database, primary.info.user
        );
        return Finding::warn(POINT, "not followed: we may not finish a segment", cure);
    }
    follow(way, primary).unwrap_or_else(|failure| {
        let cure = "see pghoard status and the daemon's log";
        Finding::failed(POINT, &failure, cure)
    })
}

fn follow(way: &Way<'_>, primary: &Seen) -> Outcome<Finding> {
    let size = primary.segment_size;
    mark(&primary.info);
    let end = source::switch_wal(&primary.info, Instant::now() + SERVER_WITHIN)?;
    // Of an idle server that could not be marked nothing was finished: the one before is as good.
    let segment = Segment::before(primary.identity.timeline, end, size);
    let name = segment.name(size);
    let places = Places {
        stores: vec![Shelf {
            prefix: way.site.prefix.clone(),
            source: Source {
                store: way.shelf.store.as_ref(),
                keys: &way.shelf.keys,
            },
        }],
        spools: Vec::new(),
        cluster: None,
    };
    let began = Instant::now();
    while !wal::exists(&places, &name)? {
        if began.elapsed() >= way.wait {
            let seconds = way.wait.as_secs();
            let message = format!("{name} is not in the store after {seconds} s");
            return Err(Failure::new(Class::Timeout, message));
        }
        std::thread::sleep(PAUSE);
    }
    let stored_ms = began.elapsed().as_millis();
    let began = Instant::now();
    match fetch(&places, &name, primary.identity.system_id) {
        Ok(()) => {
            let fetched_ms = began.elapsed().as_millis();
            let told = format!(
                "{name} was stored {stored_ms} ms after its end, fetched and verified in \
                 {fetched_ms} ms"
            );
            Ok(Finding::ok(POINT, told))
        }
        // The private key may well be elsewhere.
        Err(failure) if failure.class == Class::Config => {
            let told = format!(
                "{name} was stored {stored_ms} ms after its end; not fetched: its private key is \
                 not here"
            );
            Ok(Finding::ok(POINT, told))
        }
        Err(failure) => Err(failure.about(format!("fetching {name}"))),
    }
}

/// Something harmless to write: the first of these that we may do. Where none is, whatever was
/// written last is what travels.
fn mark(info: &Conninfo) {
    const WAYS: [&str; 2] = [
        "SELECT pg_catalog.pg_logical_emit_message(false, 'pghoard', 'check')",
        "SELECT pg_catalog.pg_create_restore_point('pghoard check')",
    ];
    let deadline = Instant::now() + SERVER_WITHIN;
    smol::block_on(async {
        let Ok(mut plain) = source::plain(info, deadline).await else {
            return;
        };
        for way in WAYS {
            if plain.simple_query(way, deadline).await.is_ok() {
                break;
            }
        }
        let _ = plain.close(deadline).await;
    });
}

/// As a recovering server would, into a folder that nobody else can enter.
fn fetch(places: &Places<'_>, name: &str, system_id: u64) -> Outcome<()> {
    let scratch = Scratch::new(name)?;
    let path = scratch.0.join(name);
    let gone = || Failure::new(Class::NotFound, "it was there and is gone again");
    if wal::fetch(places, name, &path)? != Delivery::Full {
        return Err(gone());
    }
    let header = WalHeader::parse(&head(&path)?)?;
    if header.system_id != system_id {
        let id = header.system_id;
        let message = format!("it is of cluster {id}, the server of {system_id}");
        return Err(Failure::new(Class::Corrupt, message));
    }
    Ok(())
}

fn head(path: &Path) -> Outcome<Vec<u8>> {
    let io = |e: std::io::Error| Failure::io(&e, path.display());
    let mut head = vec![0; WAL_HEADER_BYTES];
    let mut file = fs::File::open(path).map_err(io)?;
    file.read_exact(&mut head).map_err(io)?;
    Ok(head)
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Outcome<Scratch> {
        let path =
            std::env::temp_dir().join(format!("pghoard-check-{}-{name}", std::process::id()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|e| Failure::io(&e, path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _swept_by_the_system = fs::remove_dir_all(&self.0);
    }
}
