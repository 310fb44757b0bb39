//! A store that changes a bit: who finds it, and what it costs.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::daemon::Daemon;
use crate::support::postgres::{Options, Server, install};
use crate::support::process::run;
use crate::support::{PATIENCE, wait_until};

/// A pass begins as soon as the one before is ten seconds old.
const OFTEN_DAYS: f64 = 0.0001;

#[test]
fn s18_s64_s74_a_changed_bit_is_found_told_and_not_counted_on() {
    let Some(install) = install(15) else { return };
    let server = Server::start(install, &Options::default());
    server.sql("create table rows as select generate_series(1, 1000) as n");
    let mut daemon = Daemon::over(&[&server], json!({ "verify_interval_days": OFTEN_DAYS }));
    daemon.wait_backups(1);
    server.sql("select pg_switch_wal()");
    daemon.wait_caught_up(&server);
    let first = daemon.site().unwrap()["backups"][0]["name"].clone();
    daemon.wait_event("the backup to be verified", "verified", |body| {
        body["files"].to_string().contains("main")
    });
    let healthy = run(daemon.tool("pghoard", &["verify", "--all", "--json"]));
    assert_eq!(healthy.status.code(), Some(0), "{}", healthy.stdout);
    assert_eq!(
        count(&daemon, "found_damaged") + count(&daemon, "unverified"),
        0
    );

    let chunk = objects(&daemon.store().join("main/basebackup_chunk")).remove(0);
    let segment = objects(&daemon.store().join("main/xlog")).pop().unwrap();
    flip(&chunk);
    flip(&segment);
    let found = run(daemon.tool("pghoard", &["verify", "--all", "--dry-run"]));
    assert_eq!(found.status.code(), Some(1), "{}", found.stdout);
    for path in [&chunk, &segment] {
        let name = path.file_name().unwrap().to_str().unwrap();
        let line = |line: &&str| line.starts_with("damaged:") && line.contains(name);
        assert!(
            found.stdout.lines().any(|l| line(&l)),
            "{name}: {}",
            found.stdout
        );
    }

    daemon.wait_alert("verify_failed");
    wait_until("another backup to take its place", PATIENCE, || {
        daemon.assert_alive();
        daemon.site().is_some_and(|site| {
            let backups = site["backups"].as_array().cloned().unwrap_or_default();
            let mut good = backups.iter().filter(|b| b["restorable"] == true);
            good.next().is_some_and(|b| b["name"] != first)
        })
    });

    // The disk is mended, or the backup is gone: either way its mark goes.
    if chunk.exists() {
        flip(&chunk);
    }
    daemon.wait_event("the mark to go", "unmarked", |body| {
        body["key"].to_string().contains("damaged_basebackup_chunk")
    });
    daemon.verify_events();
}

/// Objects below a folder, without their metadata.
fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(objects(&path));
        } else if path.extension().is_none_or(|e| e != "metadata") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn count(daemon: &Daemon, kind: &str) -> usize {
    let events = daemon.events();
    events.iter().filter(|event| event["kind"] == kind).count()
}
