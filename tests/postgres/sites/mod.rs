//! Several sites in one daemon: moved, renamed, at rest, side by side, under long prefixes.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, node};
use crate::support::postgres::{Identity, Install, Options, Server, install};
use crate::support::process::run;
use crate::support::{PATIENCE, wait_for, wait_until};

mod keys;

/// Of a cluster of its own.
fn server(install: &'static Install) -> Server {
    let options = Options {
        segment_mib: Some(1),
        identity: Identity::Own,
        ..Options::default()
    };
    let server = Server::start(install, &options);
    server.sql("create table rows (n int)");
    server
}

fn active(server: &Server) -> Value {
    json!({ "nodes": [node(server)], "active_backup_mode": "walreceiver" })
}

/// Writes a row, ends the segment and gives its name once it is in the store of the site.
fn segment(daemon: &mut Daemon, server: &Server, prefix: &str) -> String {
    server.sql("insert into rows values (1)");
    let name = server.one("select pg_walfile_name(pg_switch_wal())");
    let stored = daemon
        .store()
        .join(format!("{prefix}/xlog/{name}.metadata"));
    wait_until(&format!("segment {name} in the store"), PATIENCE, || {
        daemon.assert_alive();
        stored.exists()
    });
    name
}

/// Names of basebackups in the store of a site.
fn backups(daemon: &Daemon, prefix: &str) -> Vec<String> {
    let mut names = names(&daemon.store().join(format!("{prefix}/basebackup")));
    names.retain(|name| !name.ends_with(".metadata") && !name.starts_with('.'));
    let base = |name: String| name.trim_end_matches(".00000000.pghoard").to_owned();
    names.into_iter().map(base).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn wait_backups(daemon: &mut Daemon, prefix: &str, count: usize) -> Vec<String> {
    wait_for(
        &format!("{count} basebackups of {prefix}"),
        PATIENCE,
        || {
            daemon.assert_alive();
            let found = backups(daemon, prefix);
            (found.len() == count).then_some(found)
        },
    )
}

fn ask(daemon: &Daemon, method: &str, path: &str) -> String {
    let mut stream = wait_for("the daemon to listen", PATIENCE, || {
        TcpStream::connect(("127.0.0.1", daemon.port)).ok()
    });
    let request = format!("{method} {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

fn configure(daemon: &Daemon, change: impl FnOnce(&mut Value)) {
    let path = daemon.home().join("pghoard.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, config.to_string()).unwrap();
}

/// `old` becomes inactive, `new` goes on with this server.
fn move_on(daemon: &mut Daemon, server: &Server, count: u32) {
    daemon.sigterm();
    configure(daemon, |config| {
        let sites = &mut config["backup_sites"];
        let storage = sites["old"]["object_storage"].clone();
        sites["old"]["active"] = json!(false);
        sites["new"] = active(server);
        sites["new"]["object_storage"] = storage;
        sites["new"]["moved_from"] = json!(["old"]);
        sites["new"]["basebackup_count"] = json!(count);
    });
    daemon.up();
}

fn restored(daemon: &Daemon, install: &'static Install, site: &str, more: &[&str]) -> Server {
    let mut server = Server::empty(install);
    let words = [&["--restore-to-primary", "--site", site][..], more].concat();
    let mut restore = daemon.tool("pghoard_restore", &["get-basebackup"]);
    let program = daemon.home().join("bin/pghoard_postgres_command");
    restore.arg("--target-dir").arg(&server.data);
    restore.arg("--pghoard-postgres-command-bin").arg(program);
    restore.args(words);
    run(restore).ok();
    server.move_in();
    server.up();
    server.wait_primary();
    server
}

fn events(daemon: &Daemon, site: &str, kind: &str) -> Vec<Value> {
    let all = daemon.events().into_iter();
    all.filter(|event| event["kind"] == kind && event["site"] == site)
        .collect()
}

/// `segment` is a name that the new cluster has not come to yet.
fn either_name_lists_both(daemon: &Daemon, backups: [&String; 2], segment: &str) {
    let words = ["list-basebackups", "--site", "new"];
    let both = run(daemon.tool("pghoard_restore", &words)).ok();
    assert!(backups.iter().all(|name| both.contains(*name)), "{both}");
    for site in ["new", "old"] {
        let told = ask(daemon, "GET", &format!("/{site}/basebackup"));
        assert!(backups.iter().all(|name| told.contains(*name)), "{told}");
        let told = ask(daemon, "HEAD", &format!("/{site}/archive/{segment}"));
        assert!(told.contains(" 200 "), "{told}");
    }
}

fn plan_and_status_name_the_heir(daemon: &Daemon) {
    let plan = run(daemon.tool(
        "pghoard",
        &["retention", "--site", "old", "--dry-run", "--json"],
    ))
    .ok();
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["sites"], json!(["new", "old"]), "{plan}");
    assert_eq!(plan["backups"][0]["site"], "old", "{plan}");
    let rule = plan["backups"][0]["rules"][0].as_str().unwrap();
    assert!(rule.starts_with("held by"), "{plan}");
    let status = daemon.status().unwrap();
    assert_eq!(status["sites"]["old"]["history_of"], "new");
    assert_eq!(
        status["sites"]["old"]["coverage"]["windows"][0]["open"],
        false
    );
    assert_eq!(status["alerts"], json!({}), "{status}");
}

/// After an upgrade: the new cluster's first basebackup comes at once, the old one's stay
/// restorable under the new name, and go one by one by its rules; the last takes its WAL with it.
#[test]
fn s54_a_moved_site_is_the_history_of_the_new_one() {
    let Some(install) = install(15) else { return };
    let first = server(install);
    let mut daemon = Daemon::configured(json!({}), json!({ "old": active(&first) })).started();
    wait_backups(&mut daemon, "old", 1);
    daemon.ask_for_backup("old");
    let before = wait_backups(&mut daemon, "old", 2);
    let wal: Vec<String> = (0..12)
        .map(|_| segment(&mut daemon, &first, "old"))
        .collect();
    let second = server(install);
    move_on(&mut daemon, &second, 2);
    drop(first);

    let own = wait_backups(&mut daemon, "new", 1);
    // The older of the two went for it.
    let left = wait_backups(&mut daemon, "old", 1);
    assert_eq!(left, before[1..]);
    let held = [
        "hold", "--site", "old", "--backup", &left[0], "--reason", "an audit",
    ];
    run(daemon.tool("pghoard", &held)).ok();
    either_name_lists_both(&daemon, [&left[0], &own[0]], &wal[11]);
    let old = restored(
        &daemon,
        install,
        "new",
        &[
            "--basebackup",
            &format!("old/basebackup/{}.00000000.pghoard", left[0]),
        ],
    );
    assert_eq!(old.one("select count(*) from rows"), "12");
    drop(old);

    let told = ask(&daemon, "PUT", "/old/archive/basebackup");
    assert!(told.contains(" 409 "), "{told}");
    daemon.ask_for_backup("new");
    wait_backups(&mut daemon, "new", 2);
    plan_and_status_name_the_heir(&daemon);
    assert_eq!(backups(&daemon, "old"), left);

    run(daemon.tool(
        "pghoard",
        &["release", "--site", "old", "--backup", &left[0]],
    ))
    .ok();
    let xlog = daemon.store().join("old/xlog");
    wait_until("the history to go", PATIENCE, || {
        daemon.assert_alive();
        backups(&daemon, "old").is_empty() && names(&xlog).is_empty()
    });
    assert_eq!(events(&daemon, "old", "backup_expired").len(), 2);
    let told = run(daemon.tool("pghoard", &["status"])).stdout;
    assert!(
        told.contains("of site new, by whose rules it goes"),
        "{told}"
    );
    let new = restored(&daemon, install, "new", &[]);
    assert_eq!(new.one("select count(*) from rows"), "0");
    daemon.verify_events();
    daemon.assert_alive();
}

/// The same cluster under another name: a basebackup of the old name is recovered through the WAL
/// of the new one, which stays for it.
#[test]
fn a_renamed_site_goes_on_where_the_old_one_ended() {
    let Some(install) = install(15) else { return };
    let server = server(install);
    let mut daemon = Daemon::configured(json!({}), json!({ "old": active(&server) })).started();
    let old = wait_backups(&mut daemon, "old", 1);
    segment(&mut daemon, &server, "old");
    move_on(&mut daemon, &server, 2);
    segment(&mut daemon, &server, "new");
    wait_backups(&mut daemon, "new", 1);
    let last = segment(&mut daemon, &server, "new");
    let key = format!("old/basebackup/{}.00000000.pghoard", old[0]);
    let restored = restored(&daemon, install, "new", &["--basebackup", &key]);
    assert_eq!(restored.one("select count(*) from rows"), "3");
    assert!(!daemon.store().join(format!("old/xlog/{last}")).exists());
    // The WAL of the new site from before its first basebackup is needed by the old one's.
    assert!(events(&daemon, "new", "wal_expired").is_empty());
    daemon.ask_for_backup("new");
    wait_until("the history to go", PATIENCE, || {
        daemon.assert_alive();
        backups(&daemon, "old").is_empty() && names(&daemon.store().join("old/xlog")).is_empty()
    });
    daemon.verify_events();
}

/// Two clusters beside each other, below `path_prefix` and below a prefix of several folders; a
/// third site is at rest: its server is not asked and nothing of it goes, but it is restored.
#[test]
fn sites_side_by_side_keep_to_themselves_and_one_at_rest_is_left_alone() {
    let Some(install) = install(15) else { return };
    let (one, two) = (server(install), server(install));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    silent.set_nonblocking(true).unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut deep = active(&two);
    deep["prefix"] = json!("deep/er/two");
    let rest = json!({
        "nodes": [{ "host": "127.0.0.1", "port": port, "user": "postgres" }],
        "active": false, "basebackup_count": 1, "basebackup_interval_hours": 0.001,
    });
    let global = json!({ "path_prefix": "team/a" });
    let mut daemon = Daemon::configured(
        global,
        json!({ "one": active(&one), "two": deep, "rest": rest }),
    )
    .started();
    wait_backups(&mut daemon, "team/a/one", 1);
    daemon.ask_for_backup("one");
    wait_backups(&mut daemon, "team/a/one", 2);
    wait_backups(&mut daemon, "deep/er/two", 1);
    for _ in 0..2 {
        segment(&mut daemon, &one, "team/a/one");
    }
    segment(&mut daemon, &two, "deep/er/two");
    let status = daemon.status().unwrap();
    assert_eq!(status["alerts"], json!({}), "{status}");
    daemon.sigterm();
    let (from, to) = (
        daemon.store().join("team/a/one"),
        daemon.store().join("team/a/rest"),
    );
    let mut copy = std::process::Command::new("cp");
    assert!(
        copy.arg("-a")
            .args([&from, &to])
            .status()
            .unwrap()
            .success()
    );
    let count = |folder: &str| names(&to.join(folder)).len();
    let before = (count("basebackup"), count("xlog"));
    daemon.up();
    daemon.ask_for_backup("two");
    wait_backups(&mut daemon, "deep/er/two", 2);
    assert_eq!((count("basebackup"), count("xlog")), before);
    assert!(
        silent.accept().is_err(),
        "the server of a site at rest was asked"
    );
    for (site, rows) in [("one", "2"), ("two", "1"), ("rest", "2")] {
        let server = restored(&daemon, install, site, &[]);
        assert_eq!(server.one("select count(*) from rows"), rows, "{site}");
    }
    daemon.verify_events();
}
