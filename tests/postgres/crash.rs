//! The promise, tested with SIGKILL: what the daemon has reported as flushed to the server, or as
//! held to its operator, comes back, whatever was killed when.
//!
//! The moments are drawn in bytes of WAL, not in seconds: the load goes on whether the daemon runs
//! or not, so a kill meets it connecting, streaming, sealing, storing or taking a backup. A failing
//! round prints its seed; PGHOARD_TEST_SEED=N runs that round first.

use std::collections::BTreeMap;
use std::env;

use serde_json::{Value, json};

use crate::load::{Load, Survivors};
use crate::support::daemon::Daemon;
use crate::support::postgres::{Options, Server, install, lsn, lsn_text};
use crate::support::{PATIENCE, scale, wait_until};

/// Rounds of the first test, and kills of the daemon in each: 10 kills, or 200.
const ROUNDS: (u64, u64) = (2, 20);
const KILLS: u64 = 10;
const KILLS_SMALL: u64 = 5;

/// Rounds of the second test.
const SYNCHRONOUS_ROUNDS: (u64, u64) = (3, 50);

/// The newest and the oldest, and the one with every tool.
const MAJORS: [u32; 3] = [15, 18, 13];

#[test]
fn s01_what_was_reported_as_flushed_survives_kills_of_daemon_and_server() {
    for seed in seeds(scale().pick(ROUNDS.0, ROUNDS.1)) {
        eprintln!("round with seed {seed}: PGHOARD_TEST_SEED={seed} repeats it");
        reported_survives(seed);
    }
}

#[test]
fn s02_no_committed_transaction_is_missing_with_the_daemon_as_synchronous_standby() {
    for seed in seeds(scale().pick(SYNCHRONOUS_ROUNDS.0, SYNCHRONOUS_ROUNDS.1)) {
        eprintln!("round with seed {seed}: PGHOARD_TEST_SEED={seed} repeats it");
        committed_survives(seed);
    }
}

fn seeds(rounds: u64) -> Vec<u64> {
    let given = env::var("PGHOARD_TEST_SEED").ok();
    let first = given.map_or_else(|| fastrand::u64(..1_000_000), |text| text.parse().unwrap());
    (first..).take(usize::try_from(rounds).unwrap()).collect()
}

fn reported_survives(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let Some(mut server) = loaded_server(seed, &[]) else {
        return;
    };
    let ack = if random.bool() { "spooled" } else { "stored" };
    let mut daemon = Daemon::over(&[&server], json!({ "ack": ack }));
    daemon.wait_backups(1);
    // Whatever the dice say, a whole segment of the load is reported: else nothing is promised.
    let before = server.flushed();
    let load = Load::start(&server);
    let_it_write(&server, 2 << 20);
    wait_until("a segment of the load to be held", PATIENCE, || {
        daemon.held().is_some_and(|held| held > before + (1 << 20))
    });

    let mut reported = 0;
    for _ in 0..scale().pick(KILLS_SMALL, KILLS) {
        reported = reported.max(daemon.held().unwrap_or(0));
        let_it_write(&server, random.u64(..2 << 20));
        daemon.kill9();
        reported = reported.max(slot_position(&server));
        let_it_write(&server, random.u64(..1 << 20));
        daemon.up();
    }
    let_it_write(&server, random.u64(..2 << 20));
    reported = reported.max(daemon.held().unwrap_or(0));
    daemon.kill9();
    reported = reported.max(slot_position(&server));
    server.kill9();
    server.destroy_data();
    let promises = load.finish();

    // Either way is promised: with the daemon back, or from its disk alone.
    if random.bool() {
        daemon.up();
        wait_until("the daemon to answer", PATIENCE, || {
            daemon.status().is_some()
        });
    }
    let mut restored = daemon.restore(server.install, &["--restore-to-primary"]);
    restored.up();
    restored.wait_primary();
    let survivors = Survivors::read(&restored);
    let position = lsn_text(reported);
    let covered: Vec<_> = promises.iter().filter(|p| p.lsn <= reported).collect();
    eprintln!(
        "{} of {} rows were reported as safe",
        covered.len(),
        promises.len()
    );
    assert!(!covered.is_empty(), "seed {seed}: nothing was promised");
    for promise in covered {
        let (writer, n) = (promise.writer, promise.n);
        assert!(
            survivors.holds(promise),
            "seed {seed}, ack {ack}: row {n} of writer {writer}, committed by {}, is gone; \
             the WAL up to {position} had been reported",
            lsn_text(promise.lsn)
        );
    }
    assert_stored_once(&daemon.events());
    daemon.verify_events();
}

fn committed_survives(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let Some(mut server) = loaded_server(seed, &[]) else {
        return;
    };
    let mut daemon = Daemon::over(&[&server], json!({ "ack": "spooled" }));
    daemon.wait_backups(1);
    server.sql("alter system set synchronous_standby_names = 'pghoard'");
    server.sql("select pg_reload_conf()");
    let synchronous = "select count(*) from pg_stat_replication where sync_state = 'sync'";
    wait_until("the daemon to be synchronous", PATIENCE, || {
        server.one(synchronous) == "1"
    });
    let load = Load::start(&server);
    let_it_write(&server, random.u64(1 << 16..3 << 20));
    server.kill9();
    server.destroy_data();
    let promises = load.finish();

    if random.bool() {
        daemon.kill9();
    }
    let mut restored = daemon.restore(server.install, &["--restore-to-primary"]);
    // Nobody would confirm the restored server's commits.
    restored.configure("synchronous_standby_names=''");
    restored.up();
    restored.wait_primary();
    let survivors = Survivors::read(&restored);
    eprintln!("{} rows were committed", promises.len());
    for promise in &promises {
        let (writer, n) = (promise.writer, promise.n);
        assert!(
            survivors.holds(promise),
            "seed {seed}: row {n} of writer {writer} is gone"
        );
    }
    daemon.verify_events();
}

/// Segments of 1 MiB, so that a round seals many of them.
fn loaded_server(seed: u64, conf: &[&str]) -> Option<Server> {
    let major = MAJORS[usize::try_from(seed).unwrap() % MAJORS.len()];
    let options = Options {
        segment_mib: Some(1),
        conf,
        ..Options::default()
    };
    Some(Server::start(install(major)?, &options))
}

fn let_it_write(server: &Server, bytes: u64) {
    let until = server.flushed() + bytes;
    wait_until("the load to write on", PATIENCE, || {
        server.flushed() >= until
    });
}

/// What the server was last told is safe; it forgets everything older.
fn slot_position(server: &Server) -> u64 {
    let slot = "select coalesce(restart_lsn, '0/0') from pg_replication_slots \
        where slot_name = 'pghoard'";
    server.sql(slot).first().map_or(0, |text| lsn(text))
}

/// One content a file, for ever.
fn assert_stored_once(events: &[Value]) {
    let mut digests: BTreeMap<String, &Value> = BTreeMap::new();
    for event in events {
        assert_ne!(event["kind"], "conflicted", "{event}");
        if event["kind"] == "stored" {
            let (file, digest) = (event["body"]["file"].to_string(), &event["body"]["digest"]);
            let first = digests.entry(file).or_insert(digest);
            assert_eq!(
                *first, digest,
                "stored twice with different content: {event}"
            );
        }
    }
    let segments = digests.keys().filter(|file| file.contains("wal")).count();
    assert!(
        segments > 0,
        "nothing was stored: the check saw no event it knows"
    );
}
