//! The log over years, in figures: how each step grows with the number of events.
//!
//! `cargo run --release --example log-bench [-- EVENTS...]`. 100 sites, each with ten basebackups,
//! the rest WAL segments, two events each; the same bytes go into a plain redb table beside it.
//! A second table tells what opening is made of, and what a process that does nothing else takes.
//! It is a benchmark, not a test: it judges nothing.

#![allow(
    clippy::unwrap_used,
    clippy::as_conversions,
    clippy::indexing_slicing,
    reason = "a benchmark: a panic is how it reports"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use machine::decide::{Busy, decide};
use machine::event::{Finished, How, Origin, Previous, Server, Why};
use machine::policy::{Ack, Policy, SitePolicy};
use machine::state::summary::{faithful, summary};
use machine::{
    BackupName, Command, Event, File, Lsn, Millis, Segment, SegmentSize, Site, State, Timeline,
};
use pghoard::journal::log::{self, Log};
use redb::{ConcurrencyMode, Database, TableDefinition};

const SITES: u64 = 100;
const BACKUPS: u64 = 10;
const GROUP: usize = 256;
const START: Millis = Millis(1_795_339_646_717);
const PLAIN: TableDefinition<u64, &[u8]> = TableDefinition::new("plain");

mod open;

type Told = (Option<Site>, Event);

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, path] = asked.as_slice()
        && flag == open::WEIGH
    {
        return open::weigh(Path::new(path));
    }
    let sizes: Vec<u64> = match asked.is_empty() {
        true => vec![10_000, 100_000, 1_000_000],
        false => asked.iter().map(|n| n.parse().unwrap()).collect(),
    };
    row(&[
        "events",
        "append/s",
        "plain/s",
        "fold s",
        "decide ms",
        "compact s",
        "file MiB",
        "after MiB",
    ]);
    let mut exported = String::new();
    let opened: Vec<_> = sizes
        .into_iter()
        .map(|size| one(size, &mut exported))
        .collect();
    println!();
    row(&open::COLUMNS);
    for columns in &opened {
        row(&columns.each_ref().map(String::as_str));
    }
    println!("\n{exported}");
}

/// One row of the first table; the second table's is returned.
fn one(count: u64, exported: &mut String) -> [String; 9] {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(log::FILE_NAME);
    let mut all = events(count).into_iter().peekable();
    let mut log = Log::open(&path, &mut |_| ()).unwrap();
    let mut appended = Vec::new();
    let append = timed(|| {
        while all.peek().is_some() {
            let group = all.by_ref().take(GROUP).collect();
            appended.extend(log.append(START, 1, group).unwrap());
        }
    });
    let count = appended.last().unwrap().seq;
    let lines = log.lines(1, count).unwrap();
    drop(log);
    let plain = raw(folder.path(), &lines);
    let mut state = State::default();
    let fold = timed(|| appended.iter().for_each(|envelope| state.apply(envelope)));
    drop(appended);
    let opened = open::split(&path, &lines);
    *exported = open::exported(&site(0), &lines);
    drop(lines);
    let mut folded = State::default();
    let mut log = Log::open(&path, &mut |envelope| folded.apply(envelope)).unwrap();
    assert_eq!(folded, state);
    let round = rounds(&state);
    let full = size(&path);
    let compact = timed(|| {
        log.compact(count - count / 10, 1, &mut |removed| {
            let events = summary(&state, removed);
            assert!(faithful(&state, &events));
            Ok(events)
        })
        .unwrap();
        assert!(log.shrink().unwrap());
    });
    let rate = |time: Duration| count as f64 / time.as_secs_f64();
    let columns = [
        format!("{count}"),
        format!("{:.0}", rate(append)),
        format!("{:.0}", rate(plain)),
        format!("{:.3}", fold.as_secs_f64()),
        format!("{:.3}", round.as_secs_f64() * 1e3),
        format!("{:.3}", compact.as_secs_f64()),
        format!("{:.1}", mib(full)),
        format!("{:.1}", mib(size(&path))),
    ];
    row(&columns.each_ref().map(String::as_str));
    opened
}

fn row(columns: &[&str]) {
    let line: Vec<String> = columns.iter().map(|text| format!("{text:>10}")).collect();
    println!("{}", line.concat());
}

/// The same bytes in groups into a table of redb's own, as durable.
fn raw(folder: &Path, lines: &[(u64, Vec<u8>)]) -> Duration {
    let mut builder = Database::builder();
    builder.set_cache_size(2 << 20);
    builder.set_concurrency_mode(ConcurrencyMode::SingleWriter);
    let database = builder.create(folder.join("plain.redb")).unwrap();
    timed(|| {
        for group in lines.chunks(GROUP) {
            let mut write = database.begin_write().unwrap();
            write.set_quick_repair(true);
            {
                let mut table = write.open_table(PLAIN).unwrap();
                for (seq, line) in group {
                    table.insert(*seq, line.as_slice()).unwrap();
                }
            }
            write.commit().unwrap();
        }
    })
}

/// One round of decide, on average, with as much running as may.
fn rounds(state: &State) -> Duration {
    let policy = policy();
    let mut busy = Busy::new();
    for command in decide(state, &policy, &busy, state.at) {
        if let Command::Start(task) = command {
            busy.insert(task.id(), task);
        }
    }
    let times = 20;
    let all = timed(|| {
        for _ in 0..times {
            std::hint::black_box(decide(state, &policy, &busy, state.at));
        }
    });
    all / times
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn site(number: u64) -> Site {
    Site(format!("site-{number:03}"))
}

fn policy() -> Policy {
    let ours = SitePolicy {
        active: true,
        nodes: 1,
        streams: true,
        standalone: false,
        slot: true,
        ack: Ack::Stored,
        preferred_node: None,
        spool_limit_bytes: u64::MAX,
        cramped_since: None,
        interval_ms: Some(86_400_000),
        hour: Some(3),
        minute: None,
        count: Some(10),
        count_min: 2,
        age_max_ms: None,
        reconcile_interval_ms: 86_400_000,
        probe_interval_ms: 30_000,
        ..SitePolicy::default()
    };
    let sites: BTreeMap<_, _> = (0..SITES).map(|n| (site(n), ours.clone())).collect();
    Policy {
        sites,
        uploads_max: 20,
        retries_max: 3,
        log_events_max: Some(10_000_000),
        export_events: Some(10_000),
        ..Policy::default()
    }
}

/// What a log of so many events would tell: sites in turn, segment after segment, a basebackup
/// now and then.
fn events(count: u64) -> Vec<Told> {
    let started = Event::Started {
        version: "bench".into(),
        host: "bench".into(),
        previous: Previous::Clean,
        config_digest: String::new(),
    };
    let mut all = vec![(None, started)];
    for number in 0..SITES {
        all.push((Some(site(number)), seen()));
        let begun = Event::StreamStarted {
            node: 0,
            from: segment(1),
            slot: None,
            anchored: true,
        };
        all.push((Some(site(number)), begun));
        all.push((Some(site(number)), reconciled()));
        all.push((Some(site(number)), Event::MarksRead { marks: 0 }));
    }
    let segments = count.saturating_sub(all.len() as u64) / SITES / 2;
    let every = (segments / BACKUPS).max(1);
    for number in 1..=segments {
        for of in 0..SITES {
            let mut tell = |event| all.push((Some(site(of)), event));
            let wal = File::Wal(segment(number));
            // The newest stay in the spool: an upload that lags.
            tell(spooled(wal.clone(), number));
            if number + 5 < segments {
                tell(stored(wal, Some(number)));
            }
            if number % every == 1 {
                backup(number, &mut tell);
            }
        }
    }
    all
}

fn segment(number: u64) -> Segment {
    Segment::new(Timeline(1), number)
}

fn seen() -> Event {
    Event::ServerSeen(Server {
        node: 0,
        system_id: 7_300_000_000_000_000_001,
        version: 180_000,
        segment_size: SegmentSize::DEFAULT,
        timeline: Timeline(1),
        lsn: Lsn(0),
        in_recovery: false,
        sync_state: None,
        slot: None,
        clock_skew_ms: None,
    })
}

fn reconciled() -> Event {
    Event::Reconciled {
        objects: 0,
        bytes: 0,
        found: 0,
        missing: 0,
        unknown: 0,
        millis: 1,
    }
}

fn spooled(file: File, entry: u64) -> Event {
    Event::Spooled {
        file,
        entry,
        bytes: 16 << 20,
        origin: Origin::Stream,
    }
}

fn stored(file: File, entry: Option<u64>) -> Event {
    Event::Stored {
        file,
        entry,
        bytes_in: 16 << 20,
        bytes_out: 4 << 20,
        digest: "da39a3ee5e6b4b0d3255bfef95601890afd80709".into(),
        millis: 80,
        how: How::Written,
    }
}

fn backup(number: u64, tell: &mut dyn FnMut(Event)) {
    let backup = BackupName(format!("2026-11-22_09-27_{number}"));
    tell(Event::BackupStarted {
        backup: backup.clone(),
        node: 0,
        decided_at: START,
        normalized_at: Some(START),
        reason: Why::Schedule,
    });
    for part in 1..=3 {
        let file = File::Part {
            backup: backup.clone(),
            number: part,
        };
        tell(stored(file, None));
    }
    tell(Event::BackupFinished(Finished {
        backup: backup.clone(),
        start: segment(number),
        end: segment(number),
        start_lsn: Lsn(number << 24),
        end_lsn: Lsn((number << 24) + 9),
        started_at: START,
        ended_at: START,
        parts: 3,
        bytes_in: 1 << 30,
        bytes_out: 1 << 28,
        from_standby: false,
        object: None,
        wal: machine::event::WalIn::Archive,
    }));
    tell(stored(File::Main(backup), None));
}
