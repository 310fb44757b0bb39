//! A log that is soon too long: exported, compacted, killed, read back from the store.

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, SITE, node};
use crate::support::postgres::{Options, Server, install};
use crate::support::process::run;
use crate::support::{PATIENCE, wait_for, wait_until};

/// The log of this test is short, so that it is compacted every few segments.
const EVENTS_MAX: u64 = 40;

#[test]
fn a_long_log_is_exported_compacted_and_still_tells_everything() {
    let Some(install) = install(15) else {
        return;
    };
    let server = Server::start(install, &Options::default());
    let site = json!({ "nodes": [node(&server)], "active_backup_mode": "walreceiver" });
    let global = json!({ "event_log_events_max": EVENTS_MAX });
    let mut daemon = Daemon::configured(global, json!({ SITE: site }));
    let keys = ["--site", SITE, "--key-id", "log"];
    run(daemon.tool("pghoard_create_keys", &keys)).ok();
    daemon.up();
    daemon.wait_backups(1);
    for round in 0..2 {
        let upto = compacted(&mut daemon, &server);
        let before = daemon.site().unwrap();
        if round == 0 {
            daemon.restart();
        } else {
            daemon.sigterm();
            daemon.up();
        }
        daemon.wait_backups(1);
        let after = daemon.site().unwrap();
        let frontier = |site: &Value| site["frontier"].as_str().unwrap().to_owned();
        assert!(frontier(&after) >= frontier(&before));
        daemon.verify_events();
        let rebuilt = run(daemon.tool("pghoard", &["events", "--rebuild"])).ok();
        assert!(
            rebuilt.contains("as stored") && !rebuilt.contains("DIFFERENT"),
            "{rebuilt}"
        );
        assert!(upto > 0);
    }
    let numbers = numbers(&daemon);
    let last = u64::try_from(numbers.len()).unwrap();
    assert_eq!(
        numbers,
        (1..=last).collect::<Vec<_>>(),
        "nothing is missing in the store"
    );
    let first = daemon.events()[0]["seq"].as_u64().unwrap();
    assert!(first > 1 && first <= last + 1, "{first} {last}");
    daemon.sigterm();
    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    restored.up();
    restored.wait_primary();
}

/// Writes segments until the log is compacted once more; answers up to where it was.
fn compacted(daemon: &mut Daemon, server: &Server) -> u64 {
    let upto = |daemon: &Daemon| {
        let answer = run(daemon.tool("pghoard", &["events", "--json", "--kind", "compacted"]));
        let line = answer.stdout.lines().last()?;
        let event: Value = serde_json::from_str(line).expect("JSON");
        event["body"]["upto"].as_u64()
    };
    let before = upto(daemon);
    wait_for("the log to be compacted", PATIENCE, || {
        daemon.assert_alive();
        server.sql("create table if not exists t (n int); insert into t values (1)");
        server.sql("select pg_switch_wal()");
        upto(daemon).filter(|upto| Some(*upto) > before)
    })
}

/// Of the events in the store.
fn numbers(daemon: &Daemon) -> Vec<u64> {
    let mut text = String::new();
    wait_until("the store to hold events", PATIENCE, || {
        let words = ["events", "--from-store", "--json", "--site", SITE];
        text = run(daemon.tool("pghoard", &words)).ok();
        !text.is_empty()
    });
    let number = |line: &str| -> u64 {
        let event: Value = serde_json::from_str(line).expect("JSON");
        event["seq"].as_u64().unwrap()
    };
    text.lines().map(number).collect()
}
