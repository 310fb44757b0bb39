//! The simulator: the real machine, journal, spool and work on a faulty world, one seed a run.
//!
//! `PGHOARD_SIM_SEED=N cargo test --test sim replay -- --nocapture` replays one seed with a trace;
//! `PGHOARD_SIM_BREAK=Rule` removes a rule for it. `PGHOARD_TEST_SCALE=long` runs many more seeds,
//! `PGHOARD_SIM_SEEDS=FIRST..LAST` those.

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
mod history;
mod receiver;
mod server;
mod sim;
mod storage;
mod store;
mod take;
mod tasks;
mod world;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use machine::breaks::{self, Rule};

/// Seeds that found something once.
const FOUND: [(u64, &str); 12] = [
    (
        321,
        "a backup of a clock that ran ahead hid every later one",
    ),
    (
        654,
        "a listing was taken for a promise, WAL in the spool for stored",
    ),
    (
        709,
        "an upload told of a segment that was deleted meanwhile",
    ),
    (
        1_002,
        "an acknowledgement went out before the stream's beginning was folded",
    ),
    (
        10_574,
        "the spool's WAL was forgotten where the store had none",
    ),
    (
        21_093,
        "a stream finished a segment that was kept as unfinished",
    ),
    (
        21_142,
        "a loss that was told late made a stream that we chose a gap",
    ),
    (21_157, "the same across timelines"),
    (
        79_541_973_602_857,
        "an upload began inside a range that was being deleted",
    ),
    (
        79_574_193_508_871,
        "a slot that had yet to be made was asked what had been promised",
    ),
    (
        79_574_423_809_843,
        "the checker did not hear of a stream that a failed write had told after all",
    ),
    (
        79_574_647_004_765,
        "nor of one that was being told in a crash",
    ),
];

/// Histories that failed once.
const FOUND_HISTORIES: [(u64, &str); 2] = [
    (
        12_322,
        "a removal that failed let WAL go before its backup, for which a hold came",
    ),
    (
        17_174,
        "a window was not open where the new timeline had nothing yet",
    ),
];

/// Breaking a rule is process-wide: while one is broken no honest seed runs.
static RULES: RwLock<()> = RwLock::new(());

/// CI's seeds are always the same: a new failure is found by the long run, not by chance.
const FIXED: u64 = 1_000;
const NEW_LONG: u64 = 10_000;
const HISTORIES: u64 = 2_000;
/// Without a rule a seed below this one fails.
const BROKEN_MAX: u64 = 2_000;
/// Rules that show in a history: time has to pass for them to matter.
const LATE: [Rule; 2] = [Rule::RestorableCounts, Rule::ReconcileFirst];
/// No seed meets the moment of the first; and no store here refuses to delete a backup, whose WAL
/// would go before it but for the second. `decide/store.rs` and `decide/destroy/tests.rs` have
/// tests of their own.
const UNSEEN: [Rule; 2] = [Rule::StoreApartFromDelete, Rule::ExpiredKeepsWal];

#[test]
fn seeds() {
    let rules = RULES.read().unwrap();
    let (first, last) = new_seeds();
    println!("seeds 0..{FIXED} and {first}..{last}");
    let began = Instant::now();
    let found = FOUND.iter().map(|(seed, _)| *seed);
    let all: Vec<u64> = found.chain(0..FIXED).chain(first..last).collect();
    let failed = failures(&all, 5, sim::run);
    println!("{} seeds in {:?}", all.len(), began.elapsed());
    drop(rules);
    let told: Vec<_> = failed
        .iter()
        .map(|(seed, what)| {
            format!(
                "seed {seed}: {what}\n  replay: PGHOARD_SIM_SEED={seed} cargo test --test sim \
                 replay -- --nocapture"
            )
        })
        .collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
}

/// None in CI, many where time is no matter, or those asked for.
fn new_seeds() -> (u64, u64) {
    if let Ok(range) = std::env::var("PGHOARD_SIM_SEEDS") {
        let (first, last) = range
            .split_once("..")
            .expect("PGHOARD_SIM_SEEDS=FIRST..LAST");
        return (first.parse().unwrap(), last.parse().unwrap());
    }
    let long = std::env::var("PGHOARD_TEST_SCALE").is_ok_and(|scale| scale == "long");
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = clock.as_secs() % 1_000_000_000 * 100_000;
    (first, first + if long { NEW_LONG } else { 0 })
}

/// The first `max` failures, with every processor at work.
fn failures(
    seeds: &[u64],
    max: usize,
    run: fn(u64, bool) -> Result<(), String>,
) -> Vec<(u64, String)> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(BTreeMap::new());
    let work = || {
        while failed.lock().unwrap().len() < max {
            let place = next.fetch_add(1, Ordering::SeqCst);
            let Some(seed) = seeds.get(place) else { break };
            if let Err(what) = run(*seed, false) {
                failed.lock().unwrap().insert(place, (*seed, what));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    failed.into_inner().unwrap().into_values().collect()
}

/// A simulator that cannot fail proves nothing: without any one rule it fails soon.
#[test]
fn every_rule_is_missed() {
    let rules = RULES.write().unwrap();
    let mut unmissed = Vec::new();
    let only = std::env::var("PGHOARD_SIM_BREAK").ok();
    let asked = |rule: &Rule| {
        let named = only
            .as_ref()
            .is_none_or(|name| *name == format!("{rule:?}"));
        named && !UNSEEN.contains(rule)
    };
    for rule in breaks::RULES.into_iter().filter(asked) {
        let seeds: Vec<u64> = (0..BROKEN_MAX).collect();
        let life = match LATE.contains(&rule) {
            true => history::run,
            false => sim::run,
        };
        breaks::break_rule(Some(rule));
        let failed = failures(&seeds, 1, life);
        breaks::break_rule(None);
        match failed.first() {
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

/// Years in the life of a site: nothing called restorable is not, nothing promised goes.
#[test]
fn histories() {
    let _rules = RULES.read().unwrap();
    let long = std::env::var("PGHOARD_TEST_SCALE").is_ok_and(|scale| scale == "long");
    let found = FOUND_HISTORIES.iter().map(|(seed, _)| *seed);
    let all: Vec<u64> = found
        .chain(0..if long { 20_000 } else { HISTORIES })
        .collect();
    let failed = failures(&all, 5, history::run);
    let told: Vec<_> = failed
        .iter()
        .map(|(seed, what)| {
            format!(
                "history {seed}: {what}\n  replay: PGHOARD_HISTORY_SEED={seed} cargo test --test \
                 sim one_history -- --nocapture"
            )
        })
        .collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
}

/// The same over a move into another site.
#[test]
fn moved_histories() {
    let _rules = RULES.read().unwrap();
    let long = std::env::var("PGHOARD_TEST_SCALE").is_ok_and(|scale| scale == "long");
    let all: Vec<u64> = (0..if long { 20_000 } else { HISTORIES / 2 }).collect();
    let failed = failures(&all, 5, history::moved::run);
    let told: Vec<_> = failed
        .iter()
        .map(|(seed, what)| {
            format!(
                "moved history {seed}: {what}\n  replay: PGHOARD_HISTORY_MOVED=1 \
                 PGHOARD_HISTORY_SEED={seed} cargo test --test sim one_history -- --nocapture"
            )
        })
        .collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
}

#[test]
fn one_history() {
    let Ok(seed) = std::env::var("PGHOARD_HISTORY_SEED") else {
        return;
    };
    let _rules = RULES.read().unwrap();
    let life = match std::env::var("PGHOARD_HISTORY_MOVED") {
        Ok(_) => history::moved::run,
        Err(_) => history::run,
    };
    if let Err(what) = life(seed.parse().unwrap(), true) {
        panic!("history {seed}: {what}");
    }
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
