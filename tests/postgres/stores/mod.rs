//! A whole life in each kind of store: WAL, basebackups, a crash, retention, and the way back to a
//! moment. What is in the store is seen through the driver, as a restore sees it.

mod faults;

use pghoard::config;
use pghoard::store::Store;
use pghoard::store::choose::{self, Missing};
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, SITE};
use crate::support::postgres::{Options, Server, install};
use crate::support::process::{hand_over, run};
use crate::support::stores::azure::azurite;
use crate::support::stores::ceph::ceph;
use crate::support::stores::google::Google;
use crate::support::stores::seaweed::seaweed;
use crate::support::stores::sshd::Sshd;
use crate::support::stores::swift::{swift, swift_by_keystone};
use crate::support::{PATIENCE, wait_until};

#[test]
fn s3_a_life_in_parts() {
    let Some(seaweed) = seaweed() else { return };
    life(seaweed.bucket().object_storage(), "stream");
}

#[test]
fn s3_a_life_in_single_objects_by_https() {
    let Some(seaweed) = seaweed() else { return };
    let bucket = seaweed.bucket();
    life(seaweed.secure(&bucket).object_storage(), "pipe");
}

#[test]
fn azure_a_life_in_parts() {
    let Some(azurite) = azurite() else { return };
    life(azurite.container().object_storage(), "stream");
}

#[test]
fn google_a_life_in_single_objects() {
    let Some(google) = Google::fake_gcs() else {
        return;
    };
    life(google.object_storage(), "pipe");
}

#[test]
fn sftp_a_life() {
    let Some(sshd) = Sshd::start() else { return };
    // The daemon is another user.
    hand_over(&sshd.private_key);
    life(sshd.object_storage(), "stream");
}

#[test]
fn swift_a_life_in_parts() {
    let Some(swift) = swift() else { return };
    life(swift.object_storage(&swift.container()), "stream");
}

#[test]
fn swift_a_life_in_single_objects_behind_keystone() {
    let Some(swift) = swift_by_keystone() else {
        return;
    };
    life(swift.object_storage(&swift.container()), "pipe");
}

#[test]
fn ceph_a_life_by_s3() {
    let Some(ceph) = ceph() else { return };
    life(ceph.bucket().object_storage(), "stream");
}

#[test]
fn ceph_a_life_by_swift() {
    let Some(ceph) = ceph() else { return };
    let name = format!("test-{:016x}", fastrand::u64(..));
    life(ceph.object_storage(&name), "pipe");
}

fn life(storage: Value, mode: &str) {
    let Some(install) = install(15) else {
        return;
    };
    let server = Server::start(install, &Options::default());
    // More than one part of an object, however it is compressed.
    server.sql(
        "create table big as select md5(random()::text) || md5(random()::text) as r \
         from generate_series(1, 400000)",
    );
    server.sql("create table t as select generate_series(1, 1000) as n");
    let more = json!({
        "object_storage": storage, "basebackup_count": 1, "basebackup_mode": mode,
        "reconcile_interval_seconds": 5,
    });
    let mut daemon = Daemon::over(&[&server], more);
    daemon.wait_backups(1);
    let first = names(&daemon);
    assert_eq!(first.len(), 1);
    run(daemon.tool("pghoard", &["check"])).ok();
    server.sql("insert into t select generate_series(1, 1000)");
    daemon.restart();
    daemon.ask_for_backup(SITE);
    wait_until(
        "the first basebackup to go for the second",
        PATIENCE,
        || {
            daemon.assert_alive();
            let now = names(&daemon);
            now.len() == 1 && now != first
        },
    );
    wait_until("the parts of the first to go", PATIENCE, || {
        let base = first[0].split('.').next().unwrap();
        list(&daemon).iter().all(|key| !key.contains(base))
    });
    server.sql("insert into t select generate_series(1, 500)");
    let moment = server.one("select clock_timestamp()");
    server.sql("insert into t select generate_series(1, 500)");
    let last = server.one("select pg_walfile_name(pg_current_wal_lsn())");
    server.sql("select pg_switch_wal()");
    server.sql("create table next_segment ()");
    wait_until("the last segment in the store", PATIENCE, || {
        daemon.assert_alive();
        list(&daemon).contains(&format!("{SITE}/xlog/{last}"))
    });
    let count = |words: &[&str]| {
        let mut restored = daemon.restore(install, words);
        restored.up();
        restored.wait_primary();
        assert_eq!(restored.one("select count(*) from big"), "400000");
        restored.one("select count(*) from t")
    };
    assert_eq!(count(&["--restore-to-primary"]), "3000");
    let mut to = vec!["--restore-to-primary", "--recovery-target-time", &moment];
    to.extend(["--recovery-target-action", "promote"]);
    assert_eq!(count(&to), "2500");
    daemon.verify_events();
    let peak = peak_mib(&daemon);
    assert!(peak <= 96, "{peak} MiB");
    daemon.sigterm();
    let uploads = open(&daemon).sweep(SITE, i64::MAX).unwrap();
    assert_eq!(uploads, 0, "uploads that nobody ended");
}

/// Of the daemon's memory since it was started.
fn peak_mib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() / 1_024
}

fn open(daemon: &Daemon) -> Box<dyn Store> {
    let (config, _) = config::load(daemon.config()).unwrap();
    choose::store(config.sites[SITE].storage().unwrap(), Missing::Refuse).unwrap()
}

/// All keys of its site.
pub fn list(daemon: &Daemon) -> Vec<String> {
    let mut keys = Vec::new();
    let mut visit = |entry: pghoard::store::Entry| {
        keys.push(entry.key);
        Ok(())
    };
    open(daemon).list(SITE, &mut visit).unwrap();
    keys
}

fn open_storage(storage: Value) -> Box<dyn Store> {
    let site = json!({ "object_storage": storage });
    let config = json!({ "backup_sites": { "a": site } });
    let (config, _) = config::parse(&config).unwrap();
    choose::store(config.sites["a"].storage().unwrap(), Missing::Refuse).unwrap()
}

/// Of everything in the site.
fn keys(store: &dyn Store) -> Vec<String> {
    let mut keys = Vec::new();
    let mut visit = |entry: pghoard::store::Entry| {
        keys.push(entry.key);
        Ok(())
    };
    store.list(SITE, &mut visit).unwrap();
    keys
}

/// The names in one folder of the site.
fn bases(store: &dyn Store, folder: &str) -> Vec<String> {
    let start = format!("{SITE}/{folder}/");
    let keys = keys(store).into_iter();
    keys.filter_map(|key| key.strip_prefix(&start).map(str::to_owned))
        .collect()
}

/// Main objects.
fn names(daemon: &Daemon) -> Vec<String> {
    let start = format!("{SITE}/basebackup/");
    let keys = list(daemon).into_iter();
    keys.filter_map(|key| key.strip_prefix(&start).map(str::to_owned))
        .collect()
}
