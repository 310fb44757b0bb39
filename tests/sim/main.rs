//! The simulator: the real machine, journal, spool and work on a faulty world, one seed a run.
//!
//! `PGHOARD_SIM_SEED=N cargo test --test sim replay -- --nocapture` replays one seed with a trace;
//! `PGHOARD_SIM_BREAK=Rule` removes a rule for it, `PGHOARD_TEST_SCALE=long` runs many more.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test binary: a panic is how it reports"
)]

mod check;
mod disk;
mod fate;
mod receiver;
mod server;
mod sim;
mod storage;
mod store;
mod tasks;
mod world;

use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use machine::breaks::{self, Rule};

/// Seeds that found something once.
const FOUND: [(u64, &str); 3] = [
    (
        321,
        "a backup of a clock that ran ahead hid every later one",
    ),
    (
        709,
        "an upload told of a segment that was deleted meanwhile",
    ),
    (
        10_574,
        "the spool's WAL was forgotten where the store had none",
    ),
];

/// Breaking a rule is process-wide: while one is broken no honest seed runs.
static RULES: RwLock<()> = RwLock::new(());

/// CI's seeds are always the same: a new failure is found by the long run, not by chance.
const FIXED: u64 = 1_000;
/// Without a rule a seed below this one fails.
const BROKEN_MAX: u64 = 500;

#[test]
fn seeds() {
    let rules = RULES.read().unwrap();
    let long = std::env::var("PGHOARD_TEST_SCALE").is_ok_and(|scale| scale == "long");
    let new = if long { 20_000 } else { 0 };
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = clock.as_secs() % 1_000_000_000 * 100_000;
    println!("seeds 0..{FIXED} and {first}..{}", first + new);
    let began = Instant::now();
    let found = FOUND.iter().map(|(seed, _)| *seed);
    let all: Vec<u64> = found.chain(0..FIXED).chain(first..first + new).collect();
    let failed = first_failure(&all);
    println!("{} seeds in {:?}", all.len(), began.elapsed());
    drop(rules);
    if let Some((seed, what)) = failed {
        panic!(
            "seed {seed}: {what}\n  replay: PGHOARD_SIM_SEED={seed} cargo test --test sim replay \
             -- --nocapture"
        );
    }
}

/// The failure of the lowest place in the list, with every processor at work.
fn first_failure(seeds: &[u64]) -> Option<(u64, String)> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let next = AtomicU64::new(0);
    let worker = || {
        loop {
            let place = next.fetch_add(1, Ordering::SeqCst);
            let seed = *seeds.get(usize::try_from(place).unwrap())?;
            if let Err(what) = sim::run(seed, false) {
                next.store(u64::MAX / 2, Ordering::SeqCst);
                return Some((place, seed, what));
            }
        }
    };
    let failed = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let ended = workers.into_iter().filter_map(|w| w.join().unwrap());
        ended.min_by_key(|(place, _, _)| *place)
    });
    failed.map(|(_, seed, what)| (seed, what))
}

/// Other rules now stand before these two, and no seed has shown them alone: a stored segment is
/// compared with the spool's before it goes, and no basebackup begins before a listing.
const UNSEEN: [Rule; 2] = [Rule::KnownEntryOutranksStored, Rule::ReconcileFirst];

/// A simulator that cannot fail proves nothing: without any one rule it fails soon.
#[test]
fn every_rule_is_missed() {
    let rules = RULES.write().unwrap();
    let seeds: Vec<u64> = (0..BROKEN_MAX).collect();
    let mut unmissed = Vec::new();
    for rule in breaks::RULES
        .into_iter()
        .filter(|rule| !UNSEEN.contains(rule))
    {
        breaks::break_rule(Some(rule));
        let failed = first_failure(&seeds);
        breaks::break_rule(None);
        match failed {
            Some((seed, what)) => {
                let line = what.lines().next().unwrap_or_default();
                println!("without {rule:?} seed {seed} fails: {line}");
            }
            None => unmissed.push(rule),
        }
    }
    drop(rules);
    assert!(
        unmissed.is_empty(),
        "{BROKEN_MAX} seeds do without {unmissed:?}"
    );
}

#[test]
fn replay() {
    let Ok(seed) = std::env::var("PGHOARD_SIM_SEED") else {
        return;
    };
    let _rules = RULES.write().unwrap();
    let broken = std::env::var("PGHOARD_SIM_BREAK").unwrap_or_default();
    let mut rules = breaks::RULES.into_iter();
    breaks::break_rule(rules.find(|rule| format!("{rule:?}") == broken));
    if let Err(what) = sim::run(seed.parse().unwrap(), true) {
        panic!("seed {seed}: {what}");
    }
}
