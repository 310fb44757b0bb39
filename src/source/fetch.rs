//! What the store lost, from whoever still has it, into the spool: a range of WAL or a history.
//!
//! From a server by a second replication connection, without a slot and under a name of its own:
//! it reports no position at all (0/0), so the slot, the flush position that the main stream
//! reported and synchronous commits never depend on it. From `pg_wal` on this machine only what
//! that server finished: its next segment is there too. Sealing is create-exclusive, as ever.
//!
//! Budget: one connection a range, and one more a halving where a server has only its end; a
//! segment's bytes pass once.

use std::fs::{File as Disk, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use machine::event::{Origin, Range, Sought};
use machine::projection::marks::Hole;
use machine::task::Means;
use machine::{Class, Event, File, Lsn, Segment, SegmentSize, Timeline};
use nix::fcntl::OFlag;

use crate::failure::{Failure, Outcome};
use crate::pg::connection::{Connection, Mode};
use crate::pg::conninfo::Conninfo;
use crate::pg::fault::{Fault, SqlState};
use crate::pg::files::{History, WAL_HEADER_BYTES, WalHeader};
use crate::pg::replication::{self, Reply, Start, Status, Wal, WalStream};
use crate::source::receive::Marks;
use crate::spool::{Partial, Sealed, Spool};

pub struct Fetch<'a> {
    pub means: Means,
    pub hole: Hole,
    pub size: SegmentSize,
    pub system_id: Option<u64>,
    pub spool: &'a Spool,
    pub entries: &'a AtomicU64,
    pub marks: &'a Marks,
}

/// Connecting, and every answer that is not the stream itself.
const ANSWER: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(200);
/// A server that sends no WAL for so long is given up, whatever else it says: a standby may lag.
const SILENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 128 << 10;
/// A history is a line a failover.
const HISTORY_BYTES_MAX: u64 = 1 << 20;

impl Fetch<'_> {
    /// Spools what `pg_wal` below this data directory has of the hole. What cannot be read there
    /// is not there.
    pub fn from_directory(&self, pgdata: &Path, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
        let folder = pgdata.join("pg_wal");
        match &self.hole {
            Hole::Wal(range) => {
                for number in range.first..=range.last {
                    let segment = Segment::new(range.timeline, number);
                    let outcome = match self.copy(&folder, segment, emit) {
                        Ok(()) => Sought::Fetched,
                        Err(failure) => absent(failure)?,
                    };
                    let (first, last) = (number, number);
                    let one = Range {
                        first,
                        last,
                        ..*range
                    };
                    emit(self.sought(one, outcome));
                }
                Ok(())
            }
            Hole::History(timeline) => {
                let path = folder.join(timeline.history_name());
                let read = open(&path).and_then(|file| {
                    let mut content = Vec::new();
                    let bounded = file.take(HISTORY_BYTES_MAX).read_to_end(&mut content);
                    bounded.map_err(|e| Failure::io(&e, path.display()))?;
                    History::parse(*timeline, &content).map(|_| content)
                });
                match read {
                    Ok(content) => self.keep(*timeline, &content, emit),
                    Err(failure) => {
                        emit(self.all(absent(failure)?));
                        Ok(())
                    }
                }
            }
        }
    }

    /// A segment that its server finished: the next one of the timeline has begun. What a
    /// promotion left unfinished under a full name has no such successor.
    fn copy(&self, folder: &Path, segment: Segment, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
        let path = folder.join(segment.name(self.size));
        let file = open(&path)?;
        let told = |e: &io::Error| Failure::io(e, path.display());
        self.check(&file, &path, segment)?;
        let next = folder.join(segment.next().name(self.size));
        let follows = self.check(&open(&next)?, &next, segment.next())?;
        if follows != segment.timeline {
            let message = format!("{}: begun on another timeline", next.display());
            return Err(Failure::new(Class::NotFound, message));
        }
        let mut partial = self.spool.placing(&segment.name(self.size))?;
        let (mut block, mut at) = (vec![0; BLOCK], 0);
        while at < self.size.bytes() {
            let n = file.read_at(&mut block, at).map_err(|e| told(&e))?;
            let Some(bytes) = block.get(..n).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            partial.write(at, bytes)?;
            at = at.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
        }
        // The server may have recycled it meanwhile: then its bytes were another segment's.
        let (now, then) = (open(&path)?, file.metadata().map_err(|e| told(&e))?);
        let same = now.metadata().map_err(|e| told(&e))?.ino() == then.ino();
        if !same || at != self.size.bytes() {
            partial.abandon();
            let message = format!("{}: recycled while it was read", path.display());
            return Err(Failure::new(Class::NotFound, message));
        }
        self.check(&now, &path, segment)?;
        let sealed = partial.seal()?;
        self.sealed(File::Wal(segment), self.size.bytes(), sealed, emit)
    }

    /// Whether the file is that segment by its first page; the timeline that the page names.
    fn check(&self, file: &Disk, path: &Path, segment: Segment) -> Outcome<Timeline> {
        let told = |e: &io::Error| Failure::io(e, path.display());
        let mut head = [0; WAL_HEADER_BYTES];
        file.read_exact_at(&mut head, 0).map_err(|e| told(&e))?;
        let header = WalHeader::parse(&head)?;
        header.check(segment, self.size, self.system_id)?;
        let length = file.metadata().map_err(|e| told(&e))?.len();
        if length != self.size.bytes() {
            let message = format!("{}: {length} bytes", path.display());
            return Err(Failure::new(Class::Corrupt, message));
        }
        Ok(header.timeline)
    }

    /// Spools what the server has of the hole; the last events say what it had and what not.
    pub fn from_server(&self, info: &Conninfo, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
        let mut info = info.clone();
        info.slot = None;
        info.application_name = format!("{} fetch", info.application_name);
        match &self.hole {
            Hole::Wal(range) => smol::block_on(self.stream_rest(&info, *range, emit)),
            Hole::History(timeline) => smol::block_on(self.history(&info, *timeline, emit)),
        }
    }

    /// WAL is removed from its oldest end: where the first segment is gone, the first one that is
    /// left is looked for by halving.
    async fn stream_rest(
        &self,
        info: &Conninfo,
        range: Range,
        emit: &mut dyn FnMut(Event),
    ) -> Outcome<()> {
        let Some(mut message) = self.stream(info, range, emit).await? else {
            return Ok(());
        };
        let (mut gone, mut there) = (range.first, range.last.saturating_add(1));
        while there.saturating_sub(gone) > 1 {
            let middle = gone.midpoint(there);
            match self
                .begins(info, Segment::new(range.timeline, middle))
                .await?
            {
                None => there = middle,
                Some(refused) => (gone, message) = (middle, refused),
            }
        }
        let lacks = Range {
            last: gone,
            ..range
        };
        emit(self.sought(lacks, Sought::Absent { message }));
        let rest = Range {
            first: there,
            ..range
        };
        if there <= range.last
            && let Some(message) = self.stream(info, rest, emit).await?
        {
            emit(self.sought(rest, Sought::Absent { message }));
        }
        Ok(())
    }

    /// Spools the range; the answer says why the server has not even its first segment.
    async fn stream(
        &self,
        info: &Conninfo,
        range: Range,
        emit: &mut dyn FnMut(Event),
    ) -> Outcome<Option<String>> {
        let mut connection = self.connect(info).await?;
        let mut writer = Writer::new(self, range);
        let at = Segment::new(range.timeline, range.first);
        let followed = match WalStream::start(&mut connection, self.at(at), soon()).await {
            Ok(wal) => self.follow(wal, &mut |data| writer.write(data, emit)).await,
            Err(fault) => lacking(fault).map(Some),
        };
        let next = writer.number;
        if next > range.first {
            let last = next.saturating_sub(1);
            emit(self.sought(Range { last, ..range }, Sought::Fetched));
        }
        match followed? {
            Some(message) if next == range.first => return Ok(Some(message)),
            // Removed under our eyes.
            Some(message) if next <= range.last => {
                let rest = Range {
                    first: next,
                    ..range
                };
                emit(self.sought(rest, Sought::Absent { message }));
            }
            // A server spares its log a line about a client that left without a word.
            Some(_) | None => drop(connection.close(soon()).await),
        }
        Ok(None)
    }

    /// Why the server has not this segment's beginning, if it has not.
    async fn begins(&self, info: &Conninfo, segment: Segment) -> Outcome<Option<String>> {
        let mut connection = self.connect(info).await?;
        match WalStream::start(&mut connection, self.at(segment), soon()).await {
            Ok(wal) => self.follow(wal, &mut |_| Ok(Next::Enough)).await,
            Err(fault) => lacking(fault).map(Some),
        }
    }

    async fn connect(&self, info: &Conninfo) -> Outcome<Connection> {
        let told = |fault: Fault| fault.failure;
        let mut connection = Connection::connect(info, Mode::Physical, soon())
            .await
            .map_err(told)?;
        let identity = replication::identify(&mut connection, soon())
            .await
            .map_err(told)?;
        match self.system_id.filter(|ours| *ours != identity.system_id) {
            Some(ours) => Err(Failure::new(
                Class::Conflict,
                format!(
                    "postgres at {}: system identifier is {}, this site's is {ours}",
                    connection.server(),
                    identity.system_id
                ),
            )),
            None => Ok(connection),
        }
    }

    fn at(&self, segment: Segment) -> Start<'static> {
        Start {
            slot: None,
            timeline: segment.timeline,
            at: segment.start(self.size),
        }
    }

    /// Hands WAL on until it is enough; the answer says why the server stopped before.
    async fn follow(
        &self,
        mut wal: WalStream<'_>,
        take: &mut dyn FnMut(&[u8]) -> Outcome<Next>,
    ) -> Outcome<Option<String>> {
        let mut heard = Instant::now();
        loop {
            if self.marks.stop.load(Ordering::SeqCst) {
                return Err(Failure::new(Class::Interrupted, "stopped"));
            }
            if heard.elapsed() >= SILENCE {
                let message = format!("no WAL came for {} s", SILENCE.as_secs());
                return Err(Failure::new(Class::Timeout, message));
            }
            let message = match wal.next(Instant::now() + TICK).await {
                Ok(message) => message,
                Err(fault) => return lacking(fault).map(Some),
            };
            let mut asked = false;
            match message {
                None => {}
                Some(Wal::Data { data, .. }) => {
                    heard = Instant::now();
                    if let Next::Enough = take(data)? {
                        return Ok(None);
                    }
                }
                Some(Wal::Keepalive { reply, .. }) => asked = reply == Reply::Wanted,
                Some(Wal::TimelineEnd { at, .. }) => {
                    return Ok(Some(format!("the timeline ended at {at}")));
                }
                Some(Wal::Ended) => {
                    return Err(Failure::new(Class::Network, "the server ended the stream"));
                }
            }
            if asked {
                let told = wal.send_status(SILENT, soon()).await;
                told.map_err(|fault| fault.failure)?;
            }
        }
    }

    async fn history(
        &self,
        info: &Conninfo,
        timeline: Timeline,
        emit: &mut dyn FnMut(Event),
    ) -> Outcome<()> {
        let mut connection = self.connect(info).await?;
        match replication::timeline_history(&mut connection, timeline, soon()).await {
            Ok(file) => self.keep(timeline, &file.content, emit),
            Err(fault) => {
                let message = lacking(fault)?;
                emit(self.all(Sought::Absent { message }));
                Ok(())
            }
        }
    }

    fn keep(&self, timeline: Timeline, content: &[u8], emit: &mut dyn FnMut(Event)) -> Outcome<()> {
        let sealed = self.spool.place(&timeline.history_name(), content)?;
        let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        self.sealed(File::History(timeline), bytes, sealed, emit)?;
        emit(self.all(Sought::Fetched));
        Ok(())
    }

    fn sought(&self, range: Range, outcome: Sought) -> Event {
        let (hole, means) = (Hole::Wal(range), self.means);
        Event::HoleSought {
            hole,
            means,
            outcome,
        }
    }

    fn all(&self, outcome: Sought) -> Event {
        let (hole, means) = (self.hole.clone(), self.means);
        Event::HoleSought {
            hole,
            means,
            outcome,
        }
    }

    /// A conflict fails the fetch: the log does not know of what is in the spool, so the hole
    /// would be fetched for ever.
    fn sealed(
        &self,
        file: File,
        bytes: u64,
        sealed: Sealed,
        emit: &mut dyn FnMut(Event),
    ) -> Outcome<()> {
        match sealed {
            // Whoever sealed a duplicate may have failed before it could say so.
            Sealed::New | Sealed::Duplicate => {
                emit(Event::Spooled {
                    file,
                    entry: self.entries.fetch_add(1, Ordering::SeqCst),
                    bytes,
                    origin: Origin::Fetched,
                });
                Ok(())
            }
            Sealed::Conflict { kept_as } => {
                let message = format!("other content is in the spool; ours is kept as '{kept_as}'");
                emit(Event::Conflicted {
                    file,
                    ours: format!("kept in the spool as '{kept_as}'"),
                    theirs: "sealed in the spool before".into(),
                });
                Err(Failure::new(Class::Conflict, message))
            }
        }
    }
}

/// Neither written nor flushed nor applied: a status of 0/0 counts for nothing.
const SILENT: Status = Status {
    write: Lsn(0),
    flush: Lsn(0),
    reply: Reply::Optional,
};

fn soon() -> Instant {
    Instant::now() + ANSWER
}

/// What the server says where it has not what was asked for; every other fault is a failure.
fn lacking(fault: Fault) -> Outcome<String> {
    // Of a timeline or position that is not in its history it says no more than "internal error".
    match fault.is(SqlState::UNDEFINED_FILE) || fault.is(SqlState::INTERNAL_ERROR) {
        true => Ok(fault.failure.message),
        false => Err(fault.failure),
    }
}

/// A plain file, and no link to one.
fn open(path: &Path) -> Outcome<Disk> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(flags.bits()).open(path);
    let file = file.map_err(|e| Failure::io(&e, path.display()))?;
    let found = file
        .metadata()
        .map_err(|e| Failure::io(&e, path.display()))?;
    match found.is_file() {
        true => Ok(file),
        false => Err(Failure::new(
            Class::Corrupt,
            format!("{}: not a plain file", path.display()),
        )),
    }
}

/// Our own disk's trouble is a failure; everything else says that it cannot be had there.
fn absent(failure: Failure) -> Outcome<Sought> {
    match failure.class {
        Class::DiskFull | Class::Interrupted | Class::Conflict => Err(failure),
        _ => Ok(Sought::Absent {
            message: failure.message,
        }),
    }
}

/// Whether more WAL is wanted.
enum Next {
    More,
    Enough,
}

/// The range as it comes, one segment after the other.
struct Writer<'a> {
    fetch: &'a Fetch<'a>,
    range: Range,
    /// Everything below is sealed.
    number: u64,
    partial: Option<Partial>,
    head: Vec<u8>,
    filled: u64,
}

impl<'a> Writer<'a> {
    fn new(fetch: &'a Fetch<'a>, range: Range) -> Writer<'a> {
        Writer {
            fetch,
            range,
            number: range.first,
            partial: None,
            head: Vec::new(),
            filled: 0,
        }
    }

    /// The stream has checked that the bytes follow each other from where we asked on.
    fn write(&mut self, data: &[u8], emit: &mut dyn FnMut(Event)) -> Outcome<Next> {
        let size = self.fetch.size;
        let mut rest = data;
        while !rest.is_empty() && self.number <= self.range.last {
            let segment = Segment::new(self.range.timeline, self.number);
            let room = size.bytes().saturating_sub(self.filled);
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_checked(room).unwrap_or((rest, &[]));
            if self.head.len() < WAL_HEADER_BYTES {
                let lacking = WAL_HEADER_BYTES - self.head.len();
                self.head
                    .extend_from_slice(now.get(..lacking).unwrap_or(now));
                if self.head.len() == WAL_HEADER_BYTES {
                    WalHeader::parse(&self.head)?.check(segment, size, self.fetch.system_id)?;
                }
            }
            let mut partial = match self.partial.take() {
                Some(partial) => partial,
                None => self.fetch.spool.placing(&segment.name(size))?,
            };
            partial.write(self.filled, now)?;
            self.filled = self
                .filled
                .saturating_add(u64::try_from(now.len()).unwrap_or(0));
            rest = later;
            if self.filled < size.bytes() {
                self.partial = Some(partial);
                continue;
            }
            let sealed = partial.seal()?;
            self.fetch
                .sealed(File::Wal(segment), size.bytes(), sealed, emit)?;
            self.number = self.number.saturating_add(1);
            self.filled = 0;
            self.head.clear();
        }
        Ok(match self.number > self.range.last {
            true => Next::Enough,
            false => Next::More,
        })
    }
}

impl Drop for Writer<'_> {
    /// What is unfinished helps nobody: the next try begins the segment anew.
    fn drop(&mut self) {
        if let Some(partial) = self.partial.take() {
            partial.abandon();
        }
    }
}

#[cfg(test)]
mod tests;
