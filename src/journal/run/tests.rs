//! The loop over storage that fails: before a commit, after one, and while opening again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use machine::event::{How, Origin};
use machine::{Segment, SegmentSize, Timeline};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;

use super::*;

#[test]
fn a_failed_commit_is_repeated_and_nothing_is_lost() {
    let (disk, mut turning) = begin();
    disk.fail_after(0);
    let failure = turning.turn(vec![spooled(1)]).unwrap_err();
    assert_eq!(failure.class, Class::DiskFull, "{failure}");
    assert_eq!(turning.state.seq, 0);
    // Still full: the log cannot even be opened, and reports go on coming.
    assert!(turning.reopen(|| open(&disk)).is_err());
    assert!(!turning.is_open());
    let failure = turning.turn(vec![spooled(2)]).unwrap_err();
    assert_eq!(failure.message, "the event log is closed");
    disk.heal();
    turning.reopen(|| open(&disk)).unwrap();
    turning.turn(Vec::new()).unwrap();
    let state = closed(turning).state;
    assert_eq!(numbers(&disk), [1, 2]);
    assert_eq!(state, open(&disk).unwrap().1);
}

/// The commit may have succeeded though it reported an error, at whichever write it did.
#[test]
fn s73_a_commit_of_unknown_outcome_is_never_repeated_nor_lost() {
    let many = u64::try_from(GROUP_MAX).unwrap() + 50;
    let (mut failures, mut committed) = (0, 0);
    for writes in 0.. {
        let (disk, mut turning) = begin();
        disk.fail_after(writes);
        let outcome = turning.turn((1..=many).map(spooled).collect());
        if outcome.is_ok() {
            break;
        }
        failures += 1;
        assert!(turning.reopen(|| open(&disk)).is_err());
        turning.turn(vec![spooled(many + 1)]).unwrap_err();
        disk.heal();
        turning.reopen(|| open(&disk)).unwrap();
        committed += u64::from(turning.state.seq > 0);
        turning.turn(vec![spooled(many + 2)]).unwrap();
        drop(closed(turning));
        assert_eq!(numbers(&disk), (1..=many + 2).collect::<Vec<_>>());
    }
    assert!(
        failures > committed && committed > 0,
        "{failures} {committed}"
    );
}

/// As above for a closing report: the task ends once, and its spool file goes once.
#[test]
fn a_task_ends_and_its_file_goes_only_with_the_commit() {
    for writes in 0.. {
        let (disk, mut turning) = begin();
        let task = TaskId::Store(site(), wal(1));
        turning.turn(vec![spooled(1)]).unwrap();
        let upload = Task::Store {
            site: site(),
            file: wal(1),
            entry: 1,
        };
        turning.busy.insert(task.clone(), upload);
        let stored = Event::Stored {
            file: wal(1),
            entry: Some(1),
            bytes_in: 1,
            bytes_out: 1,
            digest: String::new(),
            millis: 1,
            how: How::Written,
        };
        disk.fail_after(writes);
        let outcome = turning.turn(vec![Report::closing(&task, vec![stored])]);
        disk.heal();
        if outcome.is_err() {
            assert!(turning.busy.contains_key(&task));
            assert_eq!(turning.world.discarded, []);
            turning.reopen(|| open(&disk)).unwrap();
            turning.turn(Vec::new()).unwrap();
        }
        assert!(!turning.busy.contains_key(&task));
        assert_eq!(turning.world.discarded, [wal(1)]);
        assert_eq!(closed(turning).state, open(&disk).unwrap().1);
        if outcome.is_ok() {
            return;
        }
    }
}

/// A log of at most a hundred events of one site that is out of use.
fn short(turning: &mut Loop<Quiet>) {
    turning.policy.log_events_max = Some(100);
}

#[test]
fn a_long_log_is_compacted_and_nothing_else_changes() {
    for writes in 0.. {
        let (disk, mut turning) = begin();
        turning.turn((1..=100).map(spooled).collect()).unwrap();
        short(&mut turning);
        let before = turning.state.clone();
        disk.fail_after(writes);
        let outcome = turning.turn(vec![spooled(101)]);
        disk.heal();
        if outcome.is_err() {
            turning.reopen(|| open(&disk)).unwrap();
            turning.turn(Vec::new()).unwrap();
        }
        let state = closed(turning).state;
        assert_eq!(state, open(&disk).unwrap().1);
        assert_eq!(state.log.removed_upto, 91);
        let spool = |state: &State| state.sites[&site()].ledger.spool.len();
        assert_eq!((spool(&before), spool(&state)), (100, 101));
        if outcome.is_ok() {
            return;
        }
    }
}

#[test]
fn a_log_without_a_faithful_summary_is_kept_and_that_is_told() {
    let (disk, mut turning) = begin();
    turning.turn((1..=100).map(spooled).collect()).unwrap();
    short(&mut turning);
    // A state that no log of ours leads to: it cannot come out of a summary either.
    let ledger = &mut turning.state.sites.get_mut(&site()).unwrap().ledger;
    ledger.wal.entry(Timeline(1)).or_default();
    turning.turn(vec![spooled(101)]).unwrap();
    assert!(turning.state.log.refused.is_some());
    turning.turn(vec![spooled(102)]).unwrap();
    let last = closed(turning).state.seq;
    assert_eq!(last, 103);
    assert_eq!(numbers(&disk), (1..=102).collect::<Vec<_>>());
}

/// One opening at a time: memory has no lock.
fn closed(mut turning: Loop<Quiet>) -> Loop<Quiet> {
    turning.log = None;
    turning
}

fn site() -> Site {
    Site("main".into())
}

fn wal(number: u64) -> File {
    File::Wal(Segment::new(Timeline(1), number))
}

fn spooled(number: u64) -> Report {
    let event = Event::Spooled {
        file: wal(number),
        entry: number,
        bytes: 1,
        origin: Origin::Stream,
    };
    Report::outside(Some(site()), event)
}

/// The segments whose arrival the log has, in its order.
fn numbers(disk: &Disk) -> Vec<u64> {
    let mut numbers = Vec::new();
    let visit = &mut |envelope: &machine::Envelope| {
        if let Event::Spooled {
            file: File::Wal(segment),
            ..
        } = &envelope.event
        {
            numbers.push(segment.start(SegmentSize::DEFAULT).0 >> 24);
        }
    };
    drop(Log::open_on(disk.clone(), visit).unwrap());
    numbers
}

fn begin() -> (Disk, Loop<Quiet>) {
    let disk = Disk::default();
    let (log, state) = open(&disk).unwrap();
    // Without a site in the policy decide has nothing to do.
    let turning = Loop::new(Quiet::default(), Policy::default(), log, state);
    (disk, turning)
}

fn open(disk: &Disk) -> Outcome<(Log, State)> {
    let mut state = State::default();
    let log = Log::open_on(disk.clone(), &mut |e| state.apply(e))?;
    Ok((log, state))
}

#[derive(Default)]
struct Quiet {
    discarded: Vec<File>,
}

impl World for Quiet {
    fn now(&mut self) -> Millis {
        Millis(1)
    }

    fn start(&mut self, task: &Task, _state: &State) -> Outcome<()> {
        panic!("{task:?} was not asked for");
    }

    fn stop(&mut self, _id: &TaskId) {}

    fn discard(&mut self, _site: &Site, file: &File, _state: &State) {
        self.discarded.push(file.clone());
    }

    fn publish(&mut self, _state: &State, _policy: &Policy, _busy: &Busy) {}
}

/// Memory that takes so many more writes and syncs, and is full then.
#[derive(Clone, Debug)]
struct Disk {
    inner: Arc<InMemoryBackend>,
    left: Arc<AtomicU64>,
}

impl Default for Disk {
    fn default() -> Disk {
        Disk {
            inner: Arc::new(InMemoryBackend::new()),
            left: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }
}

impl Disk {
    fn fail_after(&self, writes: u64) {
        self.left.store(writes, Ordering::SeqCst);
    }

    fn heal(&self) {
        self.fail_after(u64::MAX);
    }

    fn spend(&self) -> io::Result<()> {
        let spend = |left: u64| match left {
            u64::MAX => Some(left),
            left => left.checked_sub(1),
        };
        let spent = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend);
        spent
            .map(drop)
            .map_err(|_| io::ErrorKind::StorageFull.into())
    }
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
        self.spend()?;
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.spend()?;
        self.inner.write(offset, data)
    }
}
