//! Whatever is wrong, a person sees one clear line, nothing is lost, and once it is right again
//! the daemon goes on without a manual step.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use pghoard::codec::keys;
use redb::{Database, TableDefinition};
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, SITE, node};
use crate::support::postgres::{Identity, Install, Options, Server, install};
use crate::support::process::{Process, command, hand_over, run};
use crate::support::{PATIENCE, skip, tail, wait_for, wait_until};

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
fn an_unknown_key_is_named_with_the_nearest_known_one() {
    let site = json!({ "nodes": [], "basebackup_intervall_hours": 24 });
    let daemon = Daemon::configured(json!({ "htttp_port": 1 }), json!({ SITE: site })).started();
    for (key, nearest) in [
        ("htttp_port", "http_port"),
        (
            "backup_sites.main.basebackup_intervall_hours",
            "basebackup_interval_hours",
        ),
    ] {
        let expected = format!("{key}: unknown key, ignored; did you mean {nearest}?");
        line(&daemon, &["\tWARNING\t", &expected]);
    }
}

/// A configuration that cannot work: one line, exit code 1, and nothing begun.
#[test]
fn a_configuration_that_cannot_work_is_one_line() {
    let (private, public) = keys::generate(2048).unwrap();
    let pair = |public: &str| json!({ "a": { "private": *private, "public": public } });
    let nodes = json!([]);
    for (global, site, expected) in [
        (
            json!({}),
            json!({ "nodes": nodes, "encryption_key_id": "a" }),
            "backup_sites.main.encryption_key_id: expected one of the ids in encryption_keys",
        ),
        (
            json!({}),
            json!({
                "nodes": nodes, "encryption_key_id": "a",
                "encryption_keys": { "a": { "private": *private } },
            }),
            "site 'main': ",
        ),
        (
            json!({}),
            json!({ "nodes": nodes, "encryption_key_id": "a", "encryption_keys": pair("x") }),
            "site 'main': ",
        ),
        (
            json!({}),
            json!({ "nodes": nodes, "encryption_keys": pair(&public), "ack": "never" }),
            "backup_sites.main.ack: expected one of stored, spooled, found another text",
        ),
        (json!({}), json!({ "nodes": ["host='x"] }), "site 'main': "),
        (
            json!({ "backup_location": null }),
            json!({ "nodes": nodes }),
            "backup_location is not set; hint: name a directory",
        ),
        (
            json!({ "backup_location": "/proc/pghoard" }),
            json!({ "nodes": nodes }),
            "/proc/pghoard: ",
        ),
    ] {
        let daemon = Daemon::configured(global, json!({ SITE: site.clone() }));
        let answer = run(daemon.tool("pghoard", &[]));
        assert_eq!(
            answer.status.code(),
            Some(1),
            "{expected}\n{}",
            answer.stderr
        );
        let said = answer.stderr.trim_end();
        assert!(
            said.starts_with("pghoard: ") && said.contains(expected),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!said.contains("PRIVATE KEY"), "{said}");
    }
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
    disk.free();
    line(
        &daemon,
        &["the event log is written again; nothing was lost"],
    );
    check_recovered(&mut daemon, &server);
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
fn an_event_log_of_a_newer_version_is_refused() {
    let daemon = Daemon::configured(json!({}), json!({ SITE: { "nodes": [] } }));
    let log = daemon.spool().join("events.redb");
    let database = Database::create(&log).unwrap();
    let write = database.begin_write().unwrap();
    let meta: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
    write.open_table(meta).unwrap().insert("format", 2).unwrap();
    write.commit().unwrap();
    drop(database);
    hand_over(&log);
    for _ in 0..2 {
        let answer = run(daemon.tool("pghoard", &[]));
        assert_eq!(answer.status.code(), Some(1));
        assert_eq!(
            answer.stderr,
            "pghoard: event log: written by a newer version (layout 2, this one reads 1); hint: \
             install the version that wrote it, or a later one\n"
        );
    }
}

#[test]
fn a_second_daemon_is_refused_and_harms_nothing() {
    let mut daemon = Daemon::configured(json!({}), json!({ SITE: { "nodes": [] } })).started();
    wait_until("the daemon to run", PATIENCE, || daemon.status().is_some());
    let scratch = daemon.spool().join(SITE).join("scratch/in-use");
    fs::write(&scratch, "half an upload").unwrap();
    let answer = run(daemon.tool("pghoard", &[]));
    assert_eq!(answer.status.code(), Some(1), "{}", answer.stderr);
    let expected = format!(
        "pghoard: event log '{}' is in use by another process; hint: is the daemon running \
         already?\n",
        daemon.spool().join("events.redb").display()
    );
    assert_eq!(answer.stderr, expected);
    assert!(scratch.exists());
    daemon.assert_alive();
    daemon.verify_events();
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let daemon = Daemon::configured(json!({}), json!({ SITE: { "nodes": [] } }));
    for (name, words) in [
        ("pghoard_restore", &["list-basebackups"][..]),
        ("pghoard", &["--version"]),
    ] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut tool = daemon.tool(name, words);
        let output = tool.stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            (output.status.code(), said.as_str()),
            (Some(0), ""),
            "{words:?}"
        );
    }
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut tool = daemon.tool("pghoard_restore", &["list-basebackups"]);
    assert_eq!(tool.stdout(full).output().unwrap().status.code(), Some(1));
}

#[test]
fn an_interrupted_restore_says_so() {
    let daemon = Daemon::configured(json!({}), json!({ SITE: { "nodes": [] } }));
    // Whoever opens it waits for a writer, who never comes.
    let config = daemon.home().join("config.fifo");
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    hand_over(&config);
    let mut tool = command(daemon.home().join("bin/pghoard_restore"), daemon.home());
    tool.arg("list-basebackups").arg("--config").arg(&config);
    let mut restore = Process::spawn(tool, daemon.home().join("restore.log"));
    let status = format!("/proc/{}/status", restore.pid());
    wait_until("the signal to be caught", PATIENCE, || {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        caught.is_some_and(|mask| mask & 0b10 != 0)
    });
    restore.signal(Signal::SIGINT);
    assert_eq!(restore.wait(PATIENCE).code(), Some(1));
    let said = fs::read_to_string(restore.log()).unwrap();
    assert_eq!(said, "*** interrupted by keyboard ***\n");
}

/// PostgreSQL takes 1 to 125 for the end of the archive, which only a standby survives.
#[test]
fn s40_a_standby_asks_again_and_a_recovery_is_ended() {
    let daemon = Daemon::configured(json!({}), json!({ SITE: { "nodes": [] } }));
    let name = "000000010000000000000001";
    let ask = |deadline: &str| {
        let words = ["--mode", "restore", "--site", SITE, "--xlog", name];
        let mut words = words.to_vec();
        words.extend(["--output", "RECOVERYXLOG", "--retry-deadline", deadline]);
        daemon.tool("pghoard_postgres_command", &words)
    };
    let away = daemon.home().join("away");
    fs::rename(daemon.store(), &away).unwrap();
    let answer = run(ask("60"));
    assert_eq!(answer.status.code(), Some(255), "{}", answer.stderr);
    assert!(
        answer.stderr.contains("is its file system mounted?"),
        "{}",
        answer.stderr
    );
    fs::write(daemon.home().join("standby.signal"), "").unwrap();
    let answer = run(ask("0"));
    assert_eq!(answer.status.code(), Some(1), "{}", answer.stderr);
    assert_eq!(answer.stderr.lines().count(), 1);
    // While it asks again the store comes back, and it says what it knows then.
    let mut asking = Process::spawn(ask("60"), daemon.home().join("asking.log"));
    wait_until("the first try to fail", PATIENCE, || {
        fs::read_to_string(asking.log()).is_ok_and(|said| said.contains("mounted?"))
    });
    fs::rename(&away, daemon.store()).unwrap();
    assert_eq!(asking.wait(PATIENCE).code(), Some(4));
    let said = fs::read_to_string(asking.log()).unwrap();
    assert!(
        said.ends_with(&format!("ERROR: '{name}' not found from archive\n")),
        "{said}"
    );
    // A closed stderr is no reason to tell the server something else.
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    fs::rename(daemon.store(), &away).unwrap();
    fs::remove_file(daemon.home().join("standby.signal")).unwrap();
    let status = ask("60").stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(255));
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

/// A small disk of its own, gone with the test.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None` has been said aloud as a skip: only root may mount, and not everywhere.
    fn mount(test: &str, at: PathBuf, mib: u32) -> Option<Tmpfs> {
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={mib}m,mode=0777"));
        let mounted = mount.arg("pghoard-test").arg(&at).output().unwrap();
        if mounted.status.success() {
            return Some(Tmpfs(at));
        }
        skip(test, "cannot mount a small disk here");
        None
    }

    /// Not a byte is left.
    fn fill(&self) {
        let mut file = fs::File::options()
            .append(true)
            .create(true)
            .open(self.filler())
            .unwrap();
        let block = vec![1; 64 << 10];
        while io::Write::write_all(&mut file, &block).is_ok() {}
        while io::Write::write_all(&mut file, &[1]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the daemon may have files open on it.
        let _gone = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
