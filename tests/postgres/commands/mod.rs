//! PGHoard's commands that look after an archive, against a real server and a real daemon.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::support::daemon::{Daemon, SITE};
use crate::support::postgres::{Options, Server, install};
use crate::support::process::{Answer, run};
use crate::support::{PATIENCE, wait_until};

fn server(install: &'static crate::support::postgres::Install) -> Server {
    let options = Options {
        segment_mib: Some(1),
        ..Options::default()
    };
    let server = Server::start(install, &options);
    server.sql("create table rows (n int)");
    server
}

/// Writes a row, ends the segment and gives its name once it is in the store.
fn segment(daemon: &mut Daemon, server: &Server) -> String {
    server.sql("insert into rows values (1)");
    let name = server.one("select pg_walfile_name(pg_switch_wal())");
    wait_until(&format!("segment {name} in the store"), PATIENCE, || {
        daemon.assert_alive();
        object(daemon, &name).with_extension("metadata").exists()
    });
    name
}

fn object(daemon: &Daemon, name: &str) -> PathBuf {
    daemon.store().join(format!("{SITE}/xlog/{name}"))
}

fn remove(path: &std::path::Path) {
    let mut metadata = path.as_os_str().to_owned();
    metadata.push(".metadata");
    fs::remove_file(path).unwrap();
    fs::remove_file(metadata).unwrap();
}

fn tool(daemon: &Daemon, words: &[&str], code: i32, says: &str) -> Answer {
    let answer = run(daemon.tool("pghoard", words));
    let Answer {
        status,
        stdout,
        stderr,
    } = &answer;
    assert_eq!(status.code(), Some(code), "{words:?}\n{stdout}{stderr}");
    assert!(stderr.contains(says), "{words:?}: {says}\n{stdout}{stderr}");
    answer
}

#[test]
fn archive_sync_verifies_the_way_and_asks_for_a_basebackup_over_a_gap() {
    for install in [13, 18].into_iter().filter_map(install) {
        let server = server(install);
        let more = json!({ "pg_data_directory": server.data });
        let mut daemon = Daemon::over(&[&server], more);
        daemon.wait_backups(1);
        let names = [(); 3].map(|()| segment(&mut daemon, &server));
        let sync = ["archive-sync", "--site", SITE, "--max-hash-checks", "-1"];
        tool(&daemon, &sync, 0, "Integrity check passed");

        // Lost in the store; the server still has it.
        remove(&object(&daemon, &names[1]));
        tool(&daemon, &[&sync[..], &["--no-verify"]].concat(), 0, "");
        assert!(object(&daemon, &names[1]).exists());
        // Lost in both.
        remove(&object(&daemon, &names[1]));
        fs::remove_file(server.data.join("pg_wal").join(&names[1])).unwrap();
        let told = format!("xlog file {} missing, integrity check", names[1]);
        tool(&daemon, &sync, 1, &told);
        let asks = [&sync[..], &["--create-new-backup-on-failure"]].concat();
        tool(&daemon, &asks, 0, "asking for a new basebackup");
        daemon.wait_backups(2);
        segment(&mut daemon, &server);
        tool(&daemon, &sync, 0, "Integrity check passed");
        daemon.kill9();
        tool(&daemon, &sync, 1, "HTTP connection to 127.0.0.1");
    }
}

/// What goes is needed by nothing, and the daemon neither misses it nor is disturbed.
#[test]
fn archive_cleanup_waits_for_the_daemon_to_stop() {
    let Some(install) = install(15) else { return };
    let server = server(install);
    let mut daemon = Daemon::over(&[&server], json!({ "basebackup_interval_hours": 24 }));
    daemon.wait_backups(1);
    let names = [(); 3].map(|()| segment(&mut daemon, &server));
    ask_for_a_basebackup(&daemon);
    daemon.wait_backups(2);
    let backups = listed(&daemon);
    remove(&backups[0]);

    let cleanup = |daemon: &Daemon, words: &[&str], code, says: &str| {
        tool(daemon, &[&["archive-cleanup"], words].concat(), code, says)
    };
    let told = format!("Would delete orphan WAL segment {SITE}/xlog/{}", names[0]);
    cleanup(&daemon, &["--dry-run"], 0, &told);
    cleanup(&daemon, &[], 1, "the daemon runs on this machine");
    // From another machine the lease tells.
    let elsewhere = elsewhere(&daemon);
    let answer = run(elsewhere.tool("pghoard", &["archive-cleanup"]));
    assert_eq!(answer.status.code(), Some(1), "{}", answer.stderr);
    assert!(
        answer.stderr.contains("main/daemon_lease"),
        "{}",
        answer.stderr
    );
    assert!(names.iter().all(|name| object(&daemon, name).exists()));

    daemon.sigterm();
    cleanup(&daemon, &[], 0, "Total orphan WAL segments size is ");
    assert!(names.iter().all(|name| !object(&daemon, name).exists()));
    daemon.up();
    segment(&mut daemon, &server);
    daemon.wait_caught_up(&server);
    let holes = run(daemon.tool("pghoard", &["holes"]));
    assert_eq!(holes.status.code(), Some(0), "{}", holes.stdout);
    assert!(daemon.alert("two_daemons").is_none());
    assert!(daemon.alert("wal_hole").is_none());
    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    restored.up();
    restored.wait_primary();
    assert_eq!(restored.one("select count(*) from rows"), "4");
    daemon.verify_events();
}

/// The main objects in the store, oldest first.
fn listed(daemon: &Daemon) -> Vec<PathBuf> {
    let folder = daemon.store().join(format!("{SITE}/basebackup"));
    let entries = fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|end| end != "metadata"))
        .collect();
    paths.sort();
    assert_eq!(paths.len(), 2, "{paths:?}");
    paths
}

/// Another machine: the same store, a `backup_location` of its own.
fn elsewhere(daemon: &Daemon) -> Daemon {
    let storage = json!({ "storage_type": "local", "directory": daemon.store() });
    Daemon::configured(json!({}), json!({ SITE: { "object_storage": storage } }))
}

fn ask_for_a_basebackup(daemon: &Daemon) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    let request = format!("PUT /{SITE}/archive/basebackup HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.contains(" 201 "), "{reply}");
}
