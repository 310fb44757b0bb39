//! The event log: one redb table from sequence number to line, durable in groups.
//!
//! Budget: one durable transaction a group (two syncs of the file), a few MiB of cache. The head in
//! memory is a hint only: an append reads the slot it will write and the line before it, so that a
//! stale head can never overwrite a committed event (S-73). After any error of the storage the
//! handle is useless and the log has to be opened again; the loop does.
//!
//! A log that was compacted begins later than with 1. In the place of the last line that went is
//! its digest alone, which the chain goes on from; the summary further on (`Compacted`) says the
//! same, and a log that begins later without one is damaged.

use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use machine::state::summary::Removed;
use machine::{Class, Envelope, Event, Millis, Site};
use redb::{
    Builder, ConcurrencyMode, Database, ReadableDatabase, ReadableTable, StorageBackend,
    TableDefinition,
};

use crate::failure::{Failure, Outcome};
use crate::journal::encoding::{Chain, GENESIS, digest_of, encode, parse, prove};

/// The log's name in `backup_location`.
pub const FILE_NAME: &str = "events.redb";

const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("events");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// The layout of the tables. A log of a higher one is refused.
const FORMAT: u64 = 1;
/// redb's default would take a gigabyte; the log is read once, front to back.
const CACHE_BYTES: usize = 2 << 20;
/// A daemon that starts lets nobody read until it has checked its log, after a crash above all.
const OPENING: Duration = Duration::from_secs(10);

pub struct Log {
    database: Database,
    head: Head,
}

#[derive(Clone, Copy)]
struct Head {
    seq: u64,
    chain: Chain,
    at: Millis,
}

impl Log {
    /// Opens or creates the log and hands every event to `fold`, in order.
    ///
    /// redb checks the file each time, though that costs a reading of all of it. Our digests prove
    /// every line, but redb keeps more than lines: which pages are free. Of a file that it closed
    /// cleanly, or cut off after a commit with quick repair, it believes that list, and of the
    /// pages it reads it checks no sum (its design assumes that media do not change bytes). One
    /// changed there would have a later append overwrite events, seen only at the next opening.
    /// The check proves every page of every tree and makes the list anew from them. Readers write
    /// nothing and do without.
    pub fn open(path: &Path, fold: &mut dyn FnMut(&Envelope)) -> Outcome<Log> {
        let database = guarded(path, || {
            builder()
                .set_concurrency_mode(ConcurrencyMode::SingleWriter)
                .set_check_integrity_on_open(true)
                .create(path)
        })?;
        guarded_read(path, || Log::start(database, fold))
    }

    /// The same over any storage: the simulator's crashing disk.
    pub fn open_on(backend: impl StorageBackend, fold: &mut dyn FnMut(&Envelope)) -> Outcome<Log> {
        let path = Path::new("simulated");
        let database = guarded(path, || builder().create_with_backend(backend))?;
        Log::start(database, fold)
    }

    fn start(database: Database, fold: &mut dyn FnMut(&Envelope)) -> Outcome<Log> {
        let mut write = database.begin_write().map_err(storage)?;
        write.set_quick_repair(true);
        {
            let mut meta = write.open_table(META).map_err(storage)?;
            let format = meta.get("format").map_err(storage)?.map(|v| v.value());
            match format {
                None => drop(meta.insert("format", FORMAT).map_err(storage)?),
                Some(FORMAT) => {}
                Some(other) => return Err(newer(other)),
            }
            write.open_table(EVENTS).map_err(storage)?;
        }
        write.commit().map_err(storage)?;
        let head = read_all(&database, 0, fold)?.head;
        Ok(Log { database, head })
    }

    /// Appends all events in one durable transaction and returns their envelopes. `now` is never
    /// allowed to run backwards within the log.
    pub fn append(
        &mut self,
        now: Millis,
        run: u64,
        events: Vec<(Option<Site>, Event)>,
    ) -> Outcome<Vec<Envelope>> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let mut head = self.head;
        head.at = head.at.max(now);
        let mut write = self.database.begin_write().map_err(storage)?;
        write.set_quick_repair(true);
        let appended = {
            let mut table = write.open_table(EVENTS).map_err(storage)?;
            probe(&table, &self.head)?;
            insert(&mut table, &mut head, run, events)?
        };
        write.commit().map_err(storage)?;
        self.head = head;
        Ok(appended)
    }

    /// Lets the events up to `upto` go for a summary, in one durable transaction. `summarize` is
    /// told what goes, and answers the summary's events; an error of its keeps the log as it is.
    pub fn compact(
        &mut self,
        upto: u64,
        run: u64,
        summarize: &mut dyn FnMut(Removed) -> Outcome<Vec<(Option<Site>, Event)>>,
    ) -> Outcome<Vec<Envelope>> {
        let mut head = self.head;
        let mut write = self.database.begin_write().map_err(storage)?;
        write.set_quick_repair(true);
        let appended = {
            let mut table = write.open_table(EVENTS).map_err(storage)?;
            probe(&table, &self.head)?;
            let last = table.get(upto).map_err(storage)?;
            let last: Option<Chain> = last.and_then(|line| line.value().first_chunk().copied());
            let Some(last) = last.filter(|_| upto < head.seq) else {
                return Err(corrupt(format!(
                    "there is no event {upto} to compact up to"
                )));
            };
            let removed = Removed {
                upto,
                count: upto.saturating_sub(base(&table)?.seq),
                digest: hex::encode(last),
            };
            let appended = insert(&mut table, &mut head, run, summarize(removed)?)?;
            let below = ..=upto;
            table.retain_in(below, |_, _| false).map_err(storage)?;
            table.insert(upto, last.as_slice()).map_err(storage)?;
            appended
        };
        write.commit().map_err(storage)?;
        self.head = head;
        Ok(appended)
    }

    /// Gives the room that compaction left in the file back to the disk; `false` while others read
    /// the file, which keeps its size then until the next time.
    pub fn shrink(&mut self) -> Outcome<bool> {
        match self.database.compact() {
            Ok(_) => Ok(true),
            Err(redb::CompactionError::Storage(error)) => Err(storage(error)),
            Err(_) => Ok(false),
        }
    }

    /// The stored lines `first..=last`, as they are.
    pub fn lines(&self, first: u64, last: u64) -> Outcome<Vec<(u64, Vec<u8>)>> {
        lines_of(&self.database, first, last)
    }
}

fn insert(
    table: &mut redb::Table<'_, u64, &'static [u8]>,
    head: &mut Head,
    run: u64,
    events: Vec<(Option<Site>, Event)>,
) -> Outcome<Vec<Envelope>> {
    let mut appended = Vec::with_capacity(events.len());
    for (site, event) in events {
        head.seq = head.seq.saturating_add(1);
        let envelope = Envelope {
            seq: head.seq,
            at: head.at,
            run,
            site,
            event,
        };
        let (value, chain) = encode(&envelope, &head.chain)?;
        table.insert(head.seq, value.as_slice()).map_err(storage)?;
        head.chain = chain;
        appended.push(envelope);
    }
    Ok(appended)
}

/// Where the lines begin: just after nothing, or after the digest that compaction left.
fn base(table: &impl ReadableTable<u64, &'static [u8]>) -> Outcome<Head> {
    let first = table.first().map_err(storage)?;
    let digest = first.and_then(|(seq, value)| Some((seq.value(), digest_of(value.value())?)));
    let (seq, chain) = digest.unwrap_or((0, GENESIS));
    Ok(Head {
        seq,
        chain,
        at: Millis(0),
    })
}

/// The slot after the head is free and the head's own line is the one we remember.
fn probe(table: &impl ReadableTable<u64, &'static [u8]>, head: &Head) -> Outcome<()> {
    let last = table.last().map_err(storage)?;
    let matches = match &last {
        None => head.seq == 0,
        Some((seq, value)) => seq.value() == head.seq && value.value().starts_with(&head.chain),
    };
    if matches {
        return Ok(());
    }
    Err(
        Failure::new(Class::Corrupt, "event log: another writer appended to it")
            .hint("run one daemon a log"),
    )
}

/// What was read of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Events up to this one are not in the log any more.
    pub removed_upto: u64,
    pub last: u64,
}

/// Reads a log without writing to it, beside a running daemon or after one; the digest chain holds
/// all of it together.
pub fn read(path: &Path, visit: &mut dyn FnMut(&Envelope)) -> Outcome<Extent> {
    read_after(path, 0, visit)
}

/// The same for the lines after the one numbered `after`, whose digest is taken on trust.
pub fn read_after(path: &Path, after: u64, visit: &mut dyn FnMut(&Envelope)) -> Outcome<Extent> {
    let reader = reader(path)?;
    let read = guarded_read(path, || match &reader {
        Reader::Shared(database) => read_all(database, after, visit),
        Reader::Owned(database) => read_all(database, after, visit),
    })?;
    Ok(Extent {
        removed_upto: read.base,
        last: read.head.seq,
    })
}

/// The stored lines `first..=last` of a log that another thread may be writing.
pub fn lines(path: &Path, first: u64, last: u64) -> Outcome<Vec<(u64, Vec<u8>)>> {
    let reader = reader(path)?;
    guarded_read(path, || match &reader {
        Reader::Shared(database) => lines_of(database, first, last),
        Reader::Owned(database) => lines_of(database, first, last),
    })
}

fn lines_of(
    database: &impl ReadableDatabase,
    first: u64,
    last: u64,
) -> Outcome<Vec<(u64, Vec<u8>)>> {
    let read = database.begin_read().map_err(storage)?;
    let table = read.open_table(EVENTS).map_err(storage)?;
    if first <= base(&table)?.seq {
        return Err(corrupt(format!("event {first} gave way to a summary")));
    }
    let mut lines = Vec::new();
    for (line, seq) in table.range(first..=last).map_err(storage)?.zip(first..) {
        let (found, value) = line.map_err(storage)?;
        if found.value() != seq {
            return Err(corrupt(format!("event {seq} is missing")));
        }
        lines.push((seq, value.value().to_vec()));
    }
    match lines.last() {
        Some((seq, _)) if *seq == last => Ok(lines),
        _ => Err(corrupt(format!("it does not reach event {last}"))),
    }
}

fn reader(path: &Path) -> Outcome<Reader> {
    if !path.exists() {
        return Err(Failure::new(
            Class::NotFound,
            format!("event log '{}' does not exist", path.display()),
        )
        .hint("has the daemon been started with this configuration?"));
    }
    patiently(OPENING, || try_reader(path))
}

/// Tries again while another process has the log, for `limit` at most.
pub fn patiently<T>(limit: Duration, mut open: impl FnMut() -> Outcome<T>) -> Outcome<T> {
    let patience = Instant::now() + limit;
    loop {
        match open() {
            Err(failure) if failure.class == Class::Conflict && Instant::now() < patience => {
                thread::sleep(Duration::from_millis(100));
            }
            other => return other,
        }
    }
}

fn try_reader(path: &Path) -> Outcome<Reader> {
    let open = || {
        builder()
            .set_concurrency_mode(ConcurrencyMode::SingleWriter)
            .open_read_only(path)
            .map(Reader::Shared)
    };
    match open() {
        // A daemon that was killed leaves the log to be repaired by a writer.
        Err(redb::DatabaseError::RepairAborted) => guarded(path, || {
            builder()
                .set_concurrency_mode(ConcurrencyMode::SingleWriter)
                .open(path)
        })
        .map(Reader::Owned),
        other => guarded(path, || other),
    }
}

enum Reader {
    Shared(redb::ReadOnlyDatabase),
    Owned(Database),
}

/// Sets a damaged log aside, under a name that is free.
pub fn set_aside(path: &Path) -> Outcome<PathBuf> {
    let mut number = 1_u32;
    loop {
        let aside = path.with_extension(format!("damaged-{number}"));
        if !aside.exists() {
            std::fs::rename(path, &aside).map_err(|e| Failure::io(&e, path.display()))?;
            return Ok(aside);
        }
        number = number.saturating_add(1);
    }
}

struct Read {
    base: u64,
    head: Head,
}

/// Lines are read and proved on a thread of their own, and understood and folded on this one: half
/// the time each, where there are two processors.
fn read_all(
    database: &(impl ReadableDatabase + Sync),
    after: u64,
    fold: &mut dyn FnMut(&Envelope),
) -> Outcome<Read> {
    std::thread::scope(|scope| {
        let (send, batches) = sync_channel(BATCHES);
        let scan = move || {
            let mut batch = Vec::new();
            let scanned = scan(database, after, &mut |line| {
                batch.push(line.to_vec());
                batch.len() < BATCH || send.send(std::mem::take(&mut batch)).is_ok()
            });
            // Nobody listens any more where a line could not be understood.
            let _ = send.send(batch);
            scanned
        };
        let scan = std::thread::Builder::new()
            .spawn_scoped(scope, scan)
            .map_err(|e| Failure::io(&e, "no thread to read the event log"))?;
        let (mut at, mut summaries) = (Millis(0), Vec::new());
        for line in batches.into_iter().flatten() {
            let Some(envelope) = parse(&line)? else {
                continue;
            };
            at = envelope.at;
            if let Event::Compacted {
                upto, last_digest, ..
            } = &envelope.event
            {
                summaries.push((*upto, last_digest.clone()));
            }
            fold(&envelope);
        }
        let scanned = scan.join();
        let scanned = scanned.unwrap_or_else(|_| Err(corrupt("it is damaged".into())))?;
        let Scan { base, begun, last } = scanned;
        // Only the summary proves that what is not there went for it.
        let summary = (base.seq, hex::encode(base.chain));
        if begun == base.seq && base.seq > 0 && !summaries.contains(&summary) {
            let first = base.seq;
            return Err(corrupt(format!(
                "events up to {first} are gone without a summary"
            )));
        }
        Ok(Read {
            base: base.seq,
            head: Head { at, ..last },
        })
    })
}

/// Lines handed over at once, and how often: some hundred KiB.
const BATCH: usize = 256;
const BATCHES: usize = 4;

struct Scan {
    base: Head,
    /// The line before the first that was told.
    begun: u64,
    last: Head,
}

/// Tells every line after `after` that continues the digest chain, until `tell` has enough.
fn scan(
    database: &impl ReadableDatabase,
    after: u64,
    tell: &mut dyn FnMut(&[u8]) -> bool,
) -> Outcome<Scan> {
    let nothing = Head {
        seq: 0,
        chain: GENESIS,
        at: Millis(0),
    };
    let ended = |base, last: Head| Scan {
        base,
        begun: last.seq,
        last,
    };
    let read = database.begin_read().map_err(storage)?;
    let table = match read.open_table(EVENTS) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(ended(nothing, nothing)),
        Err(error) => return Err(storage(error)),
    };
    let base = base(&table)?;
    let mut head = base;
    if after > base.seq {
        // A log that ends before that line has nothing after it.
        let Some(line) = table.get(after).map_err(storage)? else {
            return Ok(ended(base, nothing));
        };
        head.seq = after;
        head.chain = *line.value().first_chunk().unwrap_or(&GENESIS);
    }
    let begun = head.seq;
    for line in table.range(begun.saturating_add(1)..).map_err(storage)? {
        let (seq, value) = line.map_err(storage)?;
        if seq.value() != head.seq.saturating_add(1) {
            let (last, next) = (head.seq, seq.value());
            return Err(corrupt(format!("event {last} is followed by {next}")));
        }
        let (line, chain) = prove(value.value(), &head.chain)?;
        (head.seq, head.chain) = (seq.value(), chain);
        if !tell(line) {
            break;
        }
    }
    Ok(Scan {
        base,
        begun,
        last: head,
    })
}

fn corrupt(message: String) -> Failure {
    Failure::new(Class::Corrupt, format!("event log: {message}"))
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// redb may panic on a page that is not what it expects; damage is an error, not a crash.
fn guarded<T>(path: &Path, open: impl FnOnce() -> Result<T, redb::DatabaseError>) -> Outcome<T> {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(open));
    let thing = format!("event log '{}'", path.display());
    match caught {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => Err(Failure::new(
            Class::Conflict,
            format!("{thing} is in use by another process"),
        )
        .hint("is the daemon running already?")),
        Ok(Err(redb::DatabaseError::UpgradeRequired(format))) => Err(newer(u64::from(format))),
        Ok(Err(redb::DatabaseError::Storage(redb::StorageError::Io(error)))) => {
            let failure = Failure::io(&error, &thing);
            // What the system refuses (EIO, EMFILE, ENOMEM) says nothing about the content, and a
            // good log must not be set aside; what redb itself says of the file does.
            Err(match error.raw_os_error() {
                Some(_) => failure,
                None => Failure {
                    class: Class::Corrupt,
                    ..failure
                },
            })
        }
        Ok(Err(error)) => Err(Failure {
            message: format!("{thing}: {error}"),
            ..storage(error)
        }),
        Err(_) => Err(Failure::new(Class::Corrupt, format!("{thing} is damaged"))),
    }
}

fn guarded_read<T>(path: &Path, read: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(Failure::new(
            Class::Corrupt,
            format!("event log '{}' is damaged", path.display()),
        ))
    })
}

fn newer(format: u64) -> Failure {
    Failure::new(
        Class::Unsupported,
        format!("event log: written by a newer version (layout {format}, this one reads {FORMAT})"),
    )
    .hint("install the version that wrote it, or a later one")
}

fn storage(error: impl Into<redb::Error>) -> Failure {
    match error.into() {
        redb::Error::Io(error) => Failure::io(&error, "event log"),
        redb::Error::Corrupted(what) => Failure::new(Class::Corrupt, format!("event log: {what}")),
        redb::Error::RepairAborted => Failure::new(Class::Corrupt, "event log: beyond repair"),
        error => Failure::new(Class::Internal, format!("event log: {error}")),
    }
}

#[cfg(test)]
mod tests;
