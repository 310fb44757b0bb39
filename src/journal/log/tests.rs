//! The log on a real file and on storage that fails, under every kind of damage.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use machine::event::Previous;
use redb::backends::InMemoryBackend;
use tempfile::TempDir;

use super::*;

mod compaction;
mod pages;

#[test]
fn what_was_appended_is_there_again_and_time_never_runs_backwards() {
    let place = Place::new();
    {
        let mut log = place.open().unwrap().0;
        for now in [50, 40, 60] {
            log.append(Millis(now), 1, some(2)).unwrap();
        }
        assert_eq!(log.append(Millis(70), 1, Vec::new()).unwrap(), []);
    }
    let (mut log, found) = place.open().unwrap();
    let shape = |found: &[Envelope]| -> Vec<(u64, u64, u64)> {
        found.iter().map(|e| (e.seq, e.at.0, e.run)).collect()
    };
    let expected = [
        (1, 50, 1),
        (2, 50, 1),
        (3, 50, 1),
        (4, 50, 1),
        (5, 60, 1),
        (6, 60, 1),
    ];
    assert_eq!(shape(&found), expected);
    let appended = log.append(Millis(1), 2, some(1)).unwrap();
    assert_eq!(shape(&appended), [(7, 60, 2)]);
    drop(log);
    assert_eq!(place.read().unwrap().len(), 7);
}

#[test]
fn a_group_is_committed_whole_or_not_at_all() {
    let disk = Disk::new(u64::MAX);
    let mut log = Log::open_on(disk.clone(), &mut |_| ()).unwrap();
    log.append(Millis(1), 1, some(3)).unwrap();
    // Every later write fails, the first of the commit, the second, ... until it succeeds.
    let mut before = 3;
    for writes in 0.. {
        disk.left.store(writes, Ordering::SeqCst);
        let outcome = log.append(Millis(2), 1, some(100));
        drop(log);
        disk.left.store(u64::MAX, Ordering::SeqCst);
        let after = count(&disk);
        log = Log::open_on(disk.clone(), &mut |_| ()).unwrap();
        match outcome {
            Err(failure) => {
                assert_eq!(failure.class, Class::DiskFull, "{failure}");
                assert!([before, before + 100].contains(&after), "{before} {after}");
                before = after;
            }
            Ok(_) => return assert_eq!(after, before + 100),
        }
    }
}

#[test]
fn s73_a_stale_head_never_overwrites_a_committed_event() {
    let place = Place::new();
    let (mut log, _) = place.open().unwrap();
    log.append(Millis(1), 1, some(2)).unwrap();
    let stale = log.head;
    log.append(Millis(2), 1, some(1)).unwrap();
    let newest = log.head;
    let ahead = Head {
        seq: newest.seq + 1,
        ..newest
    };
    let other = Head {
        chain: [7; 32],
        ..newest
    };
    for head in [stale, ahead, other] {
        log.head = head;
        let failure = log.append(Millis(3), 1, some(1)).unwrap_err();
        assert_eq!(failure.class, Class::Corrupt);
        assert_eq!(
            failure.to_string(),
            "event log: another writer appended to it; hint: run one daemon a log"
        );
    }
    log.head = newest;
    log.append(Millis(4), 1, some(1)).unwrap();
    drop(log);
    assert_eq!(place.read().unwrap().len(), 4);
}

/// As `pghoard events` beside a daemon that starts after a crash.
#[test]
fn a_reader_waits_for_who_just_opens_the_log() {
    let place = Place::new();
    let (mut log, _) = place.open().unwrap();
    log.append(Millis(1), 1, some(2)).unwrap();
    drop(log);
    let opening = Database::builder().open(&place.path).unwrap();
    let refused = try_reader(&place.path).map(|_| ()).unwrap_err();
    assert_eq!(refused.class, Class::Conflict);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| place.read().unwrap().len());
        drop(opening);
        assert_eq!(reading.join().unwrap(), 2);
    });
}

#[test]
fn one_writer_at_a_time_and_readers_beside_it() {
    let place = Place::new();
    let (mut log, _) = place.open().unwrap();
    log.append(Millis(1), 1, some(2)).unwrap();
    let failure = place.open().map(|_| ()).unwrap_err();
    assert_eq!(failure.class, Class::Conflict);
    let expected = format!(
        "event log '{}' is in use by another process; hint: is the daemon running already?",
        place.path.display()
    );
    assert_eq!(failure.to_string(), expected);
    assert_eq!(place.read().unwrap().len(), 2);
    log.append(Millis(2), 1, some(1)).unwrap();
    let mut seen = Vec::new();
    let extent = read_after(&place.path, 2, &mut |e| seen.push(e.seq)).unwrap();
    assert_eq!((extent.last, seen), (3, vec![3]));
    assert_eq!(read_after(&place.path, 9, &mut |_| ()).unwrap().last, 0);
}

#[test]
fn an_event_changed_moved_or_lost_breaks_the_chain() {
    type Change = fn(&mut redb::Table<'_, u64, &'static [u8]>);
    let broken = "event log: a line does not continue the digest chain";
    let rows: [(Change, &str); 4] = [
        (
            |table| {
                let mut line = table.get(2).unwrap().unwrap().value().to_vec();
                *line.last_mut().unwrap() ^= 1;
                table.insert(2, line.as_slice()).unwrap();
            },
            broken,
        ),
        (
            |table| {
                let line = table.get(3).unwrap().unwrap().value().to_vec();
                table.insert(2, line.as_slice()).unwrap();
            },
            broken,
        ),
        (
            |table| {
                table.insert(2, [1_u8; 31].as_slice()).unwrap();
            },
            "event log: a line is shorter than its digest",
        ),
        (
            |table| {
                table.remove(2).unwrap();
            },
            "event log: event 1 is followed by 3",
        ),
    ];
    for (change, expected) in rows {
        let place = Place::with(3);
        let database = builder().open(&place.path).unwrap();
        let write = database.begin_write().unwrap();
        change(&mut write.open_table(EVENTS).unwrap());
        write.commit().unwrap();
        drop(database);
        for failure in [
            place.open().map(|_| ()).unwrap_err(),
            place.read().unwrap_err(),
        ] {
            assert_eq!(
                (failure.class, failure.message.as_str()),
                (Class::Corrupt, expected)
            );
        }
    }
}

#[test]
fn a_log_of_a_newer_version_is_refused_and_left_alone() {
    let place = Place::with(1);
    let database = builder().open(&place.path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(META).unwrap().insert("format", 2).unwrap();
    write.commit().unwrap();
    drop(database);
    let failure = place.open().map(|_| ()).unwrap_err();
    assert_eq!(failure.class, Class::Unsupported);
    assert_eq!(
        failure.to_string(),
        "event log: written by a newer version (layout 2, this one reads 1); hint: install the \
         version that wrote it, or a later one"
    );
}

/// Whatever happens to the file: an error, or the events that were written, or none; never others.
#[test]
fn damage_anywhere_is_an_error_or_harmless() {
    let place = Place::with(40);
    let whole = fs::read(&place.path).unwrap();
    let expected = place.read().unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let mut refused = 0;
    for round in 0..ROUNDS {
        let mut bytes = whole.clone();
        // Half of the hits where the data are: the file is mostly empty.
        let at = match random.bool() {
            true => random.usize(..bytes.len()),
            false => random.usize(..bytes.len() / 8),
        };
        let what = match round % 4 {
            0 => {
                bytes[at] ^= 1 << random.u8(..8);
                "bit"
            }
            1 => {
                let page = at / 4096 * 4096;
                let end = bytes.len().min(page + 4096);
                bytes[page..end].fill(0);
                "page"
            }
            2 => {
                bytes.truncate(at);
                "truncated"
            }
            _ => {
                let end = bytes.len().min(at + 512);
                random.fill(&mut bytes[at..end]);
                "noise"
            }
        };
        fs::write(&place.path, &bytes).unwrap();
        let read = place.read();
        fs::write(&place.path, &bytes).unwrap();
        let opened = place.open().map(|(_, found)| found);
        for (how, found) in [("read", read), ("open", opened)] {
            match found {
                Ok(found) if found == expected => {}
                Ok(found) => {
                    let kept = found.iter().eq(expected.iter().take(found.len()));
                    let empty = found.is_empty() && what == "truncated" && at == 0;
                    assert!(
                        empty || kept && found.len() >= 39,
                        "{how} {what} at {at}: {}",
                        found.len()
                    );
                }
                Err(failure) => {
                    refused += 1;
                    let damaged = matches!(failure.class, Class::Corrupt | Class::Unsupported);
                    assert!(damaged, "{how} {what} at {at}: {failure:?}");
                }
            }
        }
    }
    assert!(refused > ROUNDS / 8, "{refused}");
}

const ROUNDS: usize = 200;

#[test]
fn a_damaged_log_is_set_aside_under_a_free_name() {
    let place = Place::new();
    for number in 1..3 {
        fs::write(&place.path, b"no database").unwrap();
        let failure = place.open().map(|_| ()).unwrap_err();
        assert_eq!(failure.class, Class::Corrupt, "{failure}");
        let aside = set_aside(&place.path).unwrap();
        assert_eq!(
            aside,
            place.folder.path().join(format!("events.damaged-{number}"))
        );
    }
    assert_eq!(place.open().unwrap().1, []);
}

#[test]
fn only_what_redb_says_of_the_content_is_damage() {
    use redb::{DatabaseError, StorageError};
    let system = |number| StorageError::Io(io::Error::from_raw_os_error(number));
    let own = StorageError::Io(io::ErrorKind::InvalidData.into());
    for (error, class) in [
        (system(nix::libc::EIO), Class::Internal),
        (system(nix::libc::EMFILE), Class::Internal),
        (system(nix::libc::ENOMEM), Class::Internal),
        (system(nix::libc::ENOSPC), Class::DiskFull),
        (system(nix::libc::EACCES), Class::Denied),
        (StorageError::PreviousIo, Class::Internal),
        (StorageError::Corrupted("page 7".into()), Class::Corrupt),
        (own, Class::Corrupt),
    ] {
        let told = error.to_string();
        let opened = guarded::<()>(Path::new("x"), || Err(DatabaseError::Storage(error)));
        assert_eq!(opened.unwrap_err().class, class, "{told}");
    }
}

#[test]
fn a_missing_log_is_said_to_be_missing() {
    let place = Place::new();
    let failure = place.read().unwrap_err();
    assert_eq!(failure.class, Class::NotFound);
    assert!(failure.message.ends_with("events.redb' does not exist"));
    assert!(!place.path.exists());
}

fn some(count: u64) -> Vec<(Option<Site>, Event)> {
    let event = |n: u64| Event::Stopped {
        reason: format!("reason {n}"),
    };
    (0..count).map(|n| (None, event(n))).collect()
}

struct Place {
    folder: TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        Place { folder, path }
    }

    fn with(count: u64) -> Place {
        let place = Place::new();
        let (mut log, _) = place.open().unwrap();
        let started = Event::Started {
            version: "1".into(),
            host: "here".into(),
            previous: Previous::Unknown,
            config_digest: "00".into(),
        };
        log.append(Millis(1), 1, vec![(None, started)]).unwrap();
        for n in 1..count {
            log.append(Millis(n), 1, some(1)).unwrap();
        }
        drop(log);
        place
    }

    fn open(&self) -> Outcome<(Log, Vec<Envelope>)> {
        let mut found = Vec::new();
        let log = Log::open(&self.path, &mut |e| found.push(e.clone()))?;
        Ok((log, found))
    }

    fn read(&self) -> Outcome<Vec<Envelope>> {
        let mut found = Vec::new();
        let extent = read(&self.path, &mut |e| found.push(e.clone()))?;
        let count = extent.last - extent.removed_upto;
        assert_eq!(usize::try_from(count).unwrap(), found.len());
        Ok(found)
    }
}

/// Memory that takes so many writes and is full then.
#[derive(Clone, Debug)]
struct Disk {
    inner: Arc<InMemoryBackend>,
    left: Arc<AtomicU64>,
}

impl Disk {
    fn new(left: u64) -> Disk {
        Disk {
            inner: Arc::new(InMemoryBackend::new()),
            left: Arc::new(AtomicU64::new(left)),
        }
    }
}

fn count(disk: &Disk) -> usize {
    let mut count = 0;
    drop(Log::open_on(disk.clone(), &mut |_| count += 1).unwrap());
    count
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let spend = |left: u64| match left {
            u64::MAX => Some(left),
            left => left.checked_sub(1),
        };
        match self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend)
        {
            Ok(_) => self.inner.write(offset, data),
            Err(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}
