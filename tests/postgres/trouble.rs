//! What goes wrong between a server and the daemon, and what the daemon says and does about it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, SITE, node};
use crate::support::faults::tcp::{TcpFault, TcpProxy, Way};
use crate::support::postgres::{Identity, Install, Options, Server, install};
use crate::support::process::run;
use crate::support::{PATIENCE, wait_until};

/// A quiet server would never finish the segment in which a backup ends.
#[test]
fn s32_a_backup_of_an_idle_server_completes() {
    for install in [13, 18].into_iter().filter_map(install) {
        let server = Server::start(install, &Options::default());
        server.sql("create table rows as select generate_series(1, 100) as n");
        server.sql("select pg_switch_wal()");
        let mut daemon = Daemon::over(&[&server], json!({}));
        daemon.wait_backups(1);
        wait_until("the slot to be seen in use", PATIENCE, || {
            let site = daemon.site().unwrap_or_default();
            let slot = &site["coverage"]["slot"];
            slot["active"] == true
                && slot["wal_status"] == "reserved"
                && slot["held_bytes"].is_u64()
        });
        let mut restored = daemon.restore(install, &["--restore-to-primary"]);
        restored.up();
        restored.wait_primary();
        assert_eq!(restored.one("select count(*) from rows"), "100");
        daemon.sigterm();
        // The one that ended the backup: idle time never seals a segment.
        let switches = count(&daemon.events(), "switched");
        assert!(switches <= 1, "{switches} switches");
    }
}

/// A slot that reserves nothing would let the first segments go before the stream begins.
#[test]
fn s05_the_slot_reserves_wal_from_its_beginning() {
    let Some(install) = install(14) else { return };
    let conf = ["log_replication_commands=on"];
    let options = Options {
        conf: &conf,
        ..Options::default()
    };
    let server = Server::start(install, &options);
    let _daemon = Daemon::over(&[&server], json!({}));
    let slot = "select count(*) from pg_replication_slots \
        where slot_name = 'pghoard' and slot_type = 'physical' and active \
        and restart_lsn is not null";
    wait_until("the slot to be used", PATIENCE, || server.one(slot) == "1");
    let log = fs::read_to_string(server.log()).unwrap();
    let creations: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("received replication command: CREATE_REPLICATION_SLOT"))
        .collect();
    assert_eq!(creations.len(), 1, "{creations:?}");
    assert!(creations[0].contains("RESERVE_WAL"), "{creations:?}");
}

/// The address stays, the cluster behind it is another: nothing of it joins the archive. A log that
/// was lost meanwhile learns from the store whose archive it is.
#[test]
fn s15_another_cluster_at_the_same_address_is_refused() {
    for log_is_lost in [false, true] {
        let Some(install) = install(15) else { return };
        another_cluster(install, log_is_lost);
    }
}

fn another_cluster(install: &'static Install, log_is_lost: bool) {
    let options = |identity| Options {
        identity,
        ..Options::default()
    };
    let mut ours = Server::start(install, &options(Identity::Shared));
    let mut daemon = Daemon::over(&[&ours], json!({}));
    daemon.wait_backups(1);
    ours.sql("create table rows as select generate_series(1, 100) as n");
    daemon.wait_caught_up(&ours);
    if log_is_lost {
        ours.sql("select pg_switch_wal()");
        daemon.wait_caught_up(&ours);
        daemon.sigterm();
        fs::remove_file(daemon.spool().join("events.redb")).unwrap();
    }
    ours.stop();

    // On a timeline that ours never had: its history must not come in either.
    let mut other = Server::start(install, &options(Identity::Own));
    other.stop();
    fs::write(other.data.join("standby.signal"), "").unwrap();
    other.up();
    other.promote();
    other.stop();
    let own_port = other.port;
    other.port = ours.port;
    other.configure(&format!("port={}", ours.port));
    other.up();
    if log_is_lost {
        daemon.up();
    }
    daemon.wait_alert("wal_conflict");
    let said = daemon.alert("wal_conflict").unwrap();
    assert!(said.contains("system identifier"), "{said}");
    let streams = "select count(*) from pg_stat_replication";
    assert_eq!(other.one(streams), "0", "nothing is received from it");
    other.stop();
    other.port = own_port;

    ours.up();
    ours.sql("insert into rows values (101)");
    daemon.wait_caught_up(&ours);
    wait_until("the alert to go", PATIENCE, || {
        daemon.alert("wal_conflict").is_none()
    });
    let learned = count(&daemon.events(), "timeline_learned");
    assert_eq!(learned, 0, "histories of the other cluster");
    assert!(!daemon.store().join("main/timeline").exists());
    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    restored.up();
    restored.wait_primary();
    assert_eq!(restored.one("select count(*) from rows"), "101");
}

/// Every commit would wait for a whole segment: that is said at once.
#[test]
fn a_synchronous_daemon_that_acknowledges_whole_segments_is_told() {
    let Some(install) = install(17) else { return };
    let server = Server::start(install, &Options::default());
    let mut daemon = Daemon::over(&[&server], json!({}));
    daemon.wait_backups(1);
    server.sql("alter system set synchronous_standby_names = 'pghoard'");
    server.sql("select pg_reload_conf()");
    daemon.wait_alert("sync_misconfigured");
    server.sql("alter system reset synchronous_standby_names");
    server.sql("select pg_reload_conf()");
    wait_until("the alert to go", PATIENCE, || {
        daemon.alert("sync_misconfigured").is_none()
    });
}

/// Without a slot the server may let go of WAL that we lack: that is said, and a new basebackup
/// covers what comes after the hole.
#[test]
fn s07_recycled_wal_is_told_and_bridged_by_a_new_backup() {
    let Some(install) = install(15) else { return };
    let conf = ["min_wal_size=2MB", "max_wal_size=2MB", "wal_keep_size=0"];
    let options = Options {
        segment_mib: Some(1),
        conf: &conf,
        ..Options::default()
    };
    let server = Server::start(install, &options);
    server.sql("create table rows (n int)");
    let mut slotless = node(&server);
    slotless.as_object_mut().unwrap().remove("slot");
    let mut daemon = Daemon::over(&[&server], json!({ "nodes": [slotless] }));
    daemon.wait_backups(1);
    daemon.kill9();

    let lost = server.one("select pg_walfile_name(pg_current_wal_lsn())");
    let there = format!("select count(*) from pg_ls_waldir() where name = '{lost}'");
    wait_until("the server to recycle WAL", PATIENCE, || {
        server.sql("insert into rows values (1)");
        server.sql("select pg_switch_wal()");
        server.sql("checkpoint");
        server.one(&there) == "0"
    });
    let rows = server.one("select count(*) from rows");

    daemon.up();
    daemon.wait_alert("wal_hole");
    daemon.wait_backups(2);
    let site = daemon.site().unwrap();
    assert_eq!(site["backups"][1]["reason"], "hole", "{site:#}");
    server.sql("insert into rows values (2)");
    daemon.wait_caught_up(&server);
    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    restored.up();
    restored.wait_primary();
    let found = restored.one("select count(*) filter (where n = 1), max(n) from rows");
    assert_eq!(found, format!("{rows}|2"));
    daemon.verify_events();
}

/// An idle server without a slot: the checkpoint with which the first backup begins removes the
/// segment that is received, since its end, all zeros, had no time to arrive. The backup needs
/// what follows, and is complete without a second try.
#[test]
fn s07_a_backup_that_breaks_the_stream_completes() {
    let Some(install) = install(15) else { return };
    let conf = ["wal_keep_size=0"];
    let options = Options {
        conf: &conf,
        ..Options::default()
    };
    let server = Server::start(install, &options);
    let proxy = TcpProxy::to(server.port);
    // After the two connections of the first look the stream; it ends before the segment does.
    proxy.plan(2, TcpFault::Reset(Way::ToClient, 1 << 20));
    let mut slotless = node(&server);
    slotless["port"] = json!(proxy.port);
    slotless.as_object_mut().unwrap().remove("slot");
    let mut daemon = Daemon::over(&[&server], json!({ "nodes": [slotless] }));
    daemon.wait_backups(1);
    let events = daemon.events();
    let failed: Vec<&Value> = events
        .iter()
        .filter(|event| event["kind"] == "backup_failed")
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(count(&events, "stream_ended") > 0, "the stream was cut");
}

/// The same of a later backup, over a line that is slower than the checkpoint: the server keeps for
/// a moment what is on its way, and recovery can pass from the backup before.
#[test]
fn s07_a_backup_without_a_slot_leaves_no_hole_before_it() {
    for install in [12, 18].into_iter().filter_map(install) {
        let server = Server::start(install, &Options::default());
        let proxy = TcpProxy::to(server.port);
        let mut slotless = node(&server);
        slotless["port"] = json!(proxy.port);
        slotless.as_object_mut().unwrap().remove("slot");
        let mut daemon = Daemon::over(&[&server], json!({ "nodes": [slotless] }));
        daemon.wait_backups(1);
        daemon.wait_caught_up(&server);
        server.sql("create table rows as select generate_series(1, 1000) as n");
        // After the two connections of the first look the stream.
        proxy.hold(Some(2));
        let first = daemon.wait_event("the first backup", "backup_finished", |_| true);
        daemon.ask_for_backup(SITE);
        let second = |body: &Value| body["backup"] != first["backup"];
        daemon.wait_event("the second backup", "backup_finished", second);
        proxy.hold(None);
        daemon.wait_backups(2);
        assert_eq!(daemon.alert("wal_hole"), None);
        let slots = "select count(*) from pg_replication_slots";
        wait_until("the slot to go", PATIENCE, || server.one(slots) == "0");
        let coverage = daemon.site().unwrap()["coverage"].clone();
        let windows = coverage["windows"].as_array().map(Vec::len);
        assert_eq!(windows, Some(1), "{coverage:#}");
    }
}

/// The store refuses everything while the server writes: the server keeps its WAL, and somebody is
/// told though no component says that it failed for good.
#[test]
fn s72_wal_that_is_not_stored_for_too_long_is_told() {
    let Some(install) = install(16) else { return };
    let options = Options {
        segment_mib: Some(1),
        ..Options::default()
    };
    let server = Server::start(install, &options);
    server.sql("create table rows (n int)");
    let mut daemon = Daemon::over(&[&server], json!({ "wal_overdue_seconds": 5 }));
    daemon.wait_backups(1);
    daemon.wait_caught_up(&server);
    let away = daemon.home().join("away");
    fs::rename(daemon.store(), &away).unwrap();
    server.sql("insert into rows select generate_series(1, 100000)");
    daemon.wait_alert("wal_overdue");
    let said = daemon.alert("wal_overdue").unwrap();
    assert!(said.contains("more than 5 s: it is stored up to"), "{said}");
    let site = daemon.site().unwrap();
    let unprotected = site["coverage"]["unprotected_bytes"].as_u64();
    assert!(unprotected > Some(1 << 20), "{site:#}");
    let slot = &site["coverage"]["slot"];
    assert!(
        slot["held_bytes"].is_u64() && slot["wal_status"] == "reserved",
        "{slot}"
    );
    assert!(
        site["servers"][0]["clock_skew_ms"]
            .as_i64()
            .is_some_and(|ms| ms.abs() < 60_000)
    );
    fs::rename(&away, daemon.store()).unwrap();
    wait_until("the alert to go", PATIENCE, || {
        daemon.alert("wal_overdue").is_none()
    });
    let windows = daemon.site().unwrap()["coverage"]["windows"].clone();
    assert_eq!(windows.as_array().map(Vec::len), Some(1), "{windows}");
}

/// D11: two daemons over one prefix. The younger one says so and stores nothing, the older one
/// goes on.
#[test]
fn two_daemons_on_one_prefix_are_told_and_the_younger_waits() {
    let Some(install) = install(17) else { return };
    let options = Options {
        segment_mib: Some(1),
        ..Options::default()
    };
    let server = Server::start(install, &options);
    server.sql("create table rows (n int)");
    let mut older = Daemon::over(&[&server], json!({}));
    older.wait_backups(1);
    let mut own_slot = node(&server);
    own_slot["slot"] = json!("second");
    let storage = json!({ "storage_type": "local", "directory": older.store() });
    let mut younger = Daemon::over(
        &[&server],
        json!({ "nodes": [own_slot], "object_storage": storage }),
    );
    younger.wait_alert("two_daemons");
    server.sql("insert into rows select generate_series(1, 100000)");
    older.wait_caught_up(&server);
    younger.wait_caught_up(&server);
    let spooled = younger.site().unwrap()["spool"]["files"].as_u64();
    assert!(spooled > Some(0), "it receives, and stores nothing");
    assert_eq!(count(&younger.events(), "stored"), 0);
    assert_eq!(count(&younger.events(), "backup_started"), 0);
    assert_eq!(older.alert("two_daemons"), None);
    // A restart of either changes nothing.
    older.restart();
    older.wait_event("the lease again", "lease_seen", |body| body["ours"] == true);
    older.wait_caught_up(&server);
    wait_until("the spool of the older one to empty", PATIENCE, || {
        older.site().is_some_and(|site| site["spool"]["files"] == 0)
    });
    assert_eq!(older.alert("two_daemons"), None);
    younger.restart();
    younger.wait_alert("two_daemons");
    assert_eq!(count(&younger.events(), "stored"), 0);
}

/// A pass begins as soon as the one before is ten seconds old.
const OFTEN_DAYS: f64 = 0.0001;

/// A store that changes a bit: who finds it, and what it costs.
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
    let events = daemon.events();
    let bad = count(&events, "found_damaged") + count(&events, "unverified");
    assert_eq!(bad, 0, "nothing is wrong yet");

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

fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["kind"] == kind).count()
}
