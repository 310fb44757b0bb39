//! What needs no server to be wrong: configurations, logs and tools. One clear line each, and the
//! exit code that its reader expects.

use std::fs;
use std::io;
use std::process::Stdio;

use nix::sys::signal::Signal;
use pghoard::codec::keys;
use redb::{Database, TableDefinition};
use serde_json::json;

use super::line;
use crate::support::daemon::{Daemon, SITE};
use crate::support::process::{Process, command, hand_over, run};
use crate::support::{PATIENCE, wait_until};

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
            json!({ "http_tls_certificate": "/nowhere.pem", "http_tls_key": "/nowhere.pem" }),
            json!({ "nodes": nodes }),
            "certificate /nowhere.pem: ",
        ),
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
    daemon.stock();
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
