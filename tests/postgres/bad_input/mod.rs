//! Whatever is wrong, a person sees one clear line, nothing is lost, and once it is right again
//! the daemon goes on without a manual step.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pghoard::codec::keys;
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, SITE, node};
use crate::support::disk::Tmpfs;
use crate::support::postgres::{Identity, Install, Options, Server, install};
use crate::support::process::hand_over;
use crate::support::{PATIENCE, tail, wait_for, wait_until};

mod refusals;

const MAJOR: u32 = 15;

/// Segments of 1 MiB: a switch costs little.
fn server(install: &'static Install) -> Server {
    Server::start(install, &small())
}

fn small() -> Options<'static> {
    Options {
        segment_mib: Some(1),
        ..Options::default()
    }
}

/// No basebackup of its own accord.
fn wal_only() -> Value {
    json!({ "basebackup_interval_hours": 0 })
}

/// A daemon that is not started yet, with room to prepare its folders.
fn prepared(server: &Server, global: Value, more: Value) -> Daemon {
    let mut site = json!({ "nodes": [node(server)], "active_backup_mode": "walreceiver" });
    for (key, value) in more.as_object().unwrap() {
        site[key] = value.clone();
    }
    Daemon::configured(global, json!({ SITE: site }))
}

/// One more segment is finished.
fn switch(server: &Server) -> String {
    server.sql("create table if not exists rows (n int)");
    server.sql("insert into rows select generate_series(1, 1000)");
    server.one("select pg_walfile_name(pg_switch_wal())")
}

fn object(daemon: &Daemon, name: &str) -> PathBuf {
    daemon.store().join(format!("{SITE}/xlog/{name}.metadata"))
}

/// What the server wrote by now arrives in the store, without a hole, and the log is whole.
fn check_recovered(daemon: &mut Daemon, server: &Server) {
    let name = switch(server);
    wait_until(&format!("segment {name} in the store"), PATIENCE, || {
        daemon.assert_alive();
        object(daemon, &name).exists()
    });
    wait_until("the state file to say so", PATIENCE, || {
        daemon
            .site()
            .is_some_and(|site| site["frontier"].as_str() >= Some(name.as_str()))
    });
    let site = daemon.site().unwrap();
    assert_eq!(site["holes"], json!([]));
    assert_eq!(site["conflicts"], json!([]));
    daemon.verify_events();
}

/// Waits for a line of the log that has all of `words`, and gives it.
fn line(daemon: &Daemon, words: &[&str]) -> String {
    let what = format!("a log line with {words:?}\n{}", tail(&daemon.log()));
    wait_for(&what, PATIENCE, || {
        let text = fs::read_to_string(daemon.log()).unwrap_or_default();
        let mut lines = text.lines();
        let found = lines.find(|line| words.iter().all(|word| line.contains(word)));
        found.map(str::to_owned)
    })
}

#[test]
fn a_wrong_password() {
    let Some(install) = install(MAJOR) else {
        return;
    };
    let hba = [
        "host all all 127.0.0.1/32 scram-sha-256",
        "host replication all 127.0.0.1/32 scram-sha-256",
    ];
    let server = Server::start(
        install,
        &Options {
            hba: &hba,
            ..small()
        },
    );
    server.sql("alter role postgres password 'another'");
    let mut node = node(&server);
    node["password"] = json!("sesame-4711");
    let more = json!({ "nodes": [node], "basebackup_interval_hours": 0 });
    let mut daemon = prepared(&server, json!({}), more).started();
    line(
        &daemon,
        &[
            "the server refuses the password of user \"postgres\"",
            "hint: check the password in the node",
        ],
    );
    daemon.wait_alert("authentication_error");
    let text = fs::read_to_string(daemon.log()).unwrap();
    assert!(!text.contains("sesame"), "{text}");
    server.sql("alter role postgres password 'sesame-4711'");
    check_recovered(&mut daemon, &server);
}

#[test]
fn s68_a_server_that_is_away_is_asked_again_for_ever() {
    let Some(install) = install(MAJOR) else {
        return;
    };
    let mut server = server(install);
    server.stop();
    let mut daemon = Daemon::over(&[&server], wal_only());
    let address = format!("127.0.0.1:{}", server.port);
    line(&daemon, &[&address, "Connection refused"]);
    daemon.wait_alert("configuration_error");
    server.up();
    check_recovered(&mut daemon, &server);
    for _ in 0..2 {
        server.kill9();
        wait_until("the end of the stream", PATIENCE, || {
            daemon.site().is_some_and(|site| site["stream"].is_null())
        });
        server.up();
        check_recovered(&mut daemon, &server);
    }
}

#[test]
fn s07_wal_that_is_gone_is_said_and_bridged_by_a_basebackup() {
    let Some(install) = install(MAJOR) else {
        return;
    };
    let server = server(install);
    let mut daemon = Daemon::over(&[&server], json!({}));
    daemon.wait_backups(1);
    check_recovered(&mut daemon, &server);
    daemon.kill9();
    let free = "select pg_drop_replication_slot('pghoard')";
    wait_until("the slot to be free", PATIENCE, || {
        server.try_sql(free).is_ok()
    });
    let lost = switch(&server);
    for _ in 0..4 {
        switch(&server);
    }
    server.sql("checkpoint");
    let gone = server.data.join("pg_wal").join(&lost);
    wait_until("the WAL to be gone", PATIENCE, || {
        server.sql("checkpoint");
        switch(&server);
        !gone.exists()
    });
    daemon.up();
    daemon.wait_alert("wal_hole");
    daemon.wait_backups(2);
    let reasons = daemon.site().unwrap()["backups"].clone();
    let bridged = |b: &Value| b["reason"] == "hole";
    assert!(reasons.as_array().unwrap().iter().any(bridged), "{reasons}");
    let name = switch(&server);
    wait_until("new WAL in the store", PATIENCE, || {
        object(&daemon, &name).exists()
    });
    assert!(!object(&daemon, &lost).exists());
    daemon.verify_events();
}

#[test]
fn another_cluster_at_the_same_address() {
    let Some(install) = install(MAJOR) else {
        return;
    };
    let mut ours = server(install);
    let mut daemon = Daemon::over(&[&ours], wal_only());
    check_recovered(&mut daemon, &ours);
    let id = |server: &Server| server.one("select system_identifier from pg_control_system()");
    let own = id(&ours);
    ours.stop();
    let identity = Identity::Own;
    let mut other = Server::start(
        install,
        &Options {
            identity,
            ..small()
        },
    );
    let foreign = id(&other);
    other.stop();
    other.port = ours.port;
    other.move_in();
    let before = stored(&daemon);
    other.up();
    daemon.wait_alert("wal_conflict");
    let alert = fs::read_to_string(daemon.home().join("alerts/wal_conflict")).unwrap();
    for word in [&own, &foreign, "a site of its own"] {
        assert!(alert.contains(word), "{alert}");
    }
    switch(&other);
    assert_eq!(other.one("select count(*) from pg_replication_slots"), "0");
    other.stop();
    assert_eq!(stored(&daemon), before);
    ours.up();
    check_recovered(&mut daemon, &ours);
    wait_until("the alert to go", PATIENCE, || {
        !daemon.alerts().contains("wal_conflict")
    });
}

fn stored(daemon: &Daemon) -> BTreeSet<PathBuf> {
    let items = fs::read_dir(daemon.store().join(SITE).join("xlog")).unwrap();
    items.map(|item| item.unwrap().path()).collect()
}

#[test]
fn a_store_that_cannot_be_used_for_a_while() {
    let Some(install) = install(MAJOR) else {
        return;
    };
    let server = server(install);
    let limit = json!({ "upload_retries_warning_limit": 1 });
    let mut daemon = prepared(&server, limit, wal_only()).started();
    check_recovered(&mut daemon, &server);
    let mode = |mode| fs::Permissions::from_mode(mode);
    fs::set_permissions(daemon.store(), mode(0o000)).unwrap();
    switch(&server);
    line(
        &daemon,
        &[&daemon.store().display().to_string(), "Permission denied"],
    );
    daemon.wait_alert("upload_retries_warning");
    fs::set_permissions(daemon.store(), mode(0o755)).unwrap();
    check_recovered(&mut daemon, &server);

    let away = daemon.home().join("away");
    fs::rename(daemon.store(), &away).unwrap();
    switch(&server);
    line(
        &daemon,
        &["does not exist; hint: is its file system mounted?"],
    );
    assert!(!daemon.store().exists());
    fs::rename(&away, daemon.store()).unwrap();
    check_recovered(&mut daemon, &server);
}

#[test]
fn a_full_store_disk() {
    let Some(install) = install(MAJOR) else {
        return;
    };
    let server = server(install);
    let mut daemon = prepared(&server, json!({}), wal_only());
    let Some(disk) = Tmpfs::mount("full-store-disk", daemon.store(), 4) else {
        return;
    };
    daemon.up();
    check_recovered(&mut daemon, &server);
    disk.fill();
    switch(&server);
    line(
        &daemon,
        &["No space left on device", "hint: make room on that disk"],
    );
    disk.free();
    check_recovered(&mut daemon, &server);
}

#[test]
fn a_full_spool_disk() {
    let Some(install) = install(MAJOR) else {
        return;
    };
    let server = server(install);
    let mut daemon = prepared(&server, json!({}), wal_only());
    let spool = folder(&daemon, &format!("{SITE}/xlog_incoming"));
    let Some(disk) = Tmpfs::mount("full-spool-disk", spool, 16) else {
        return;
    };
    daemon.up();
    check_recovered(&mut daemon, &server);
    disk.fill();
    switch(&server);
    line(
        &daemon,
        &[
            "spool file '",
            ".partial': No space left on device",
            "hint: make room",
        ],
    );
    daemon.wait_alert("spool_filling");
    disk.free();
    check_recovered(&mut daemon, &server);
}

#[test]
fn a_full_log_disk() {
    let Some(install) = install(MAJOR) else {
        return;
    };
    let server = server(install);
    let mut daemon = prepared(&server, json!({}), wal_only());
    let Some(disk) = Tmpfs::mount("full-log-disk", daemon.spool(), 16) else {
        return;
    };
    // The spool proper is elsewhere, so that only the log suffers.
    let spool = folder(&daemon, SITE);
    let Some(_spool) = Tmpfs::mount("full-log-disk", spool, 64) else {
        return;
    };
    daemon.up();
    check_recovered(&mut daemon, &server);
    let trouble = "event log: No space left on device";
    let told = |daemon: &Daemon| {
        let text = fs::read_to_string(daemon.log()).unwrap();
        text.lines().filter(|line| line.contains(trouble)).count()
    };
    wait_until("the log to suffer", PATIENCE, || {
        daemon.assert_alive();
        disk.fill();
        switch(&server);
        told(&daemon) > 0
    });
    line(
        &daemon,
        &[
            "events.redb: event log: No space",
            "hint: make room on that disk",
        ],
    );
    // An alarm does not wait for the log.
    daemon.wait_alert("machine_trouble");
    disk.free();
    line(
        &daemon,
        &["the event log is written again; nothing was lost"],
    );
    check_recovered(&mut daemon, &server);
    wait_until("the alert to go", PATIENCE, || {
        daemon.alert("machine_trouble").is_none()
    });
    assert!(daemon.spool().join("events.ballast").exists());
}

/// A folder below the spool, before the daemon makes it.
fn folder(daemon: &Daemon, name: &str) -> PathBuf {
    let path = daemon.spool().join(name);
    fs::create_dir_all(&path).unwrap();
    for path in path.ancestors().take_while(|path| *path != daemon.spool()) {
        hand_over(path);
    }
    path
}

#[test]
fn damage_and_wrong_keys_are_refused_by_a_restore() {
    let Some(install) = install(MAJOR) else {
        return;
    };
    let server = server(install);
    let (private, public) = keys::generate(2048).unwrap();
    let (stranger, _) = keys::generate(2048).unwrap();
    let with = |private: &str| json!({ "a": { "private": private, "public": public } });
    let more = json!({ "encryption_key_id": "a", "encryption_keys": with(&private) });
    let mut daemon = prepared(&server, json!({}), more).started();
    daemon.wait_backups(1);
    daemon.sigterm();
    let refused = |words: &[&str]| {
        let place = tempfile::tempdir_in(daemon.home()).unwrap();
        hand_over(place.path());
        let data = place.path().join("data");
        let answer = daemon.restore_into(&data, &[]);
        assert_eq!(
            answer.status.code(),
            Some(1),
            "{words:?}\n{}",
            answer.stdout
        );
        let last = answer.stdout.lines().last().unwrap_or_default().to_owned();
        assert!(last.starts_with("FATAL: RestoreError: "), "{last}");
        for word in words {
            assert!(last.contains(word), "{last}");
        }
        assert!(!data.join("global/pg_control").exists());
        assert!(!answer.stderr.contains("panicked"), "{}", answer.stderr);
    };
    let chunk = find(&daemon.store().join(SITE).join("basebackup_chunk"));
    let whole = fs::read(&chunk).unwrap();
    let key = chunk
        .strip_prefix(daemon.store())
        .unwrap()
        .display()
        .to_string();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&chunk, &flipped).unwrap();
    refused(&[&key]);
    fs::write(&chunk, &whole[..whole.len() - 1]).unwrap();
    refused(&[&key, "bytes"]);
    fs::rename(&chunk, chunk.with_extension("away")).unwrap();
    refused(&[&key]);
    fs::rename(chunk.with_extension("away"), &chunk).unwrap();
    fs::write(&chunk, &whole).unwrap();

    let path = daemon.home().join("pghoard.json");
    let config = fs::read_to_string(&path).unwrap();
    let mut wrong: Value = serde_json::from_str(&config).unwrap();
    wrong["backup_sites"][SITE]["encryption_keys"] = with(&stranger);
    fs::write(&path, wrong.to_string()).unwrap();
    refused(&["'a'", "private"]);
    wrong["backup_sites"][SITE]["encryption_keys"] = json!({ "a": { "public": public } });
    fs::write(&path, wrong.to_string()).unwrap();
    refused(&["'a'", "private"]);
    fs::write(&path, config).unwrap();
    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    restored.up();
    restored.wait_primary();
}

/// The first chunk below a folder.
fn find(folder: &Path) -> PathBuf {
    let items = fs::read_dir(folder)
        .unwrap()
        .map(|item| item.unwrap().path());
    let mut items: Vec<PathBuf> = items.collect();
    items.sort();
    let found = items
        .into_iter()
        .find(|path| path.extension().is_none_or(|e| e != "metadata"));
    let found = found.expect("a chunk");
    match found.is_dir() {
        true => find(&found),
        false => found,
    }
}

#[test]
fn a_damaged_event_log_is_set_aside_and_rebuilt_from_the_store() {
    let Some(install) = install(MAJOR) else {
        return;
    };
    let server = server(install);
    let mut daemon = Daemon::over(&[&server], json!({}));
    daemon.wait_backups(1);
    check_recovered(&mut daemon, &server);
    let backups = daemon.site().unwrap()["backups"][0]["name"].clone();
    daemon.kill9();
    let log = daemon.spool().join("events.redb");
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[4096..middle].fill(0xA5);
    fs::write(&log, &bytes).unwrap();
    daemon.up();
    line(
        &daemon,
        &["events.damaged-1'; the log is rebuilt from the stores"],
    );
    daemon.wait_alert("event_log_rebuilt");
    daemon.wait_backups(1);
    assert_eq!(daemon.site().unwrap()["backups"][0]["name"], backups);
    check_recovered(&mut daemon, &server);
    assert_eq!(
        fs::read(daemon.spool().join("events.damaged-1")).unwrap(),
        bytes
    );
    daemon.restart();
    check_recovered(&mut daemon, &server);
    assert!(daemon.alerts().contains("event_log_rebuilt"));
}

#[test]
fn a_restore_that_cannot_fit_is_refused_before_anything_is_written() {
    let Some(install) = install(MAJOR) else {
        return;
    };
    let server = server(install);
    let mut daemon = Daemon::over(&[&server], json!({}));
    daemon.wait_backups(1);
    let target = daemon.home().join("small");
    fs::create_dir(&target).unwrap();
    hand_over(&target);
    let Some(_disk) = Tmpfs::mount("restore-disk", target.clone(), 4) else {
        return;
    };
    let data = target.join("data");
    let answer = daemon.restore_into(&data, &[]);
    assert_eq!(answer.status.code(), Some(1));
    let last = answer.stdout.lines().last().unwrap_or_default();
    assert!(
        last.contains("data': the basebackup needs ") && last.contains(" MiB are free"),
        "{last}"
    );
    assert!(!data.exists());
    let answer = daemon.restore_into(&data, &["--recovery-target-lsn", "0/28"]);
    assert_eq!(answer.status.code(), Some(1));
    let last = answer.stdout.lines().last().unwrap_or_default();
    assert!(
        last.contains("every basebackup ends after the recovery target; the earliest, "),
        "{last}"
    );
}
