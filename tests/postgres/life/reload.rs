//! SIGHUP: everything that can change does, as a whole or not at all.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{archive, log, metadata, objects};
use crate::support::daemon::{Daemon, SITE, node};
use crate::support::postgres::{Identity, Install, Options, Server, install};
use crate::support::process::run;
use crate::support::{PATIENCE, wait_for, wait_until};

fn server(install: &'static Install) -> Server {
    Server::start(install, &Options::default())
}

fn site(server: &Server) -> Value {
    json!({ "nodes": [node(server)], "active_backup_mode": "walreceiver" })
}

fn make_key(daemon: &Daemon, id: &str) {
    let words = ["--site", SITE, "--key-id", id, "--bits", "2048"];
    run(daemon.tool("pghoard_create_keys", &words)).ok();
    // The tool writes the file anew, as root.
    daemon.configure(|_| {});
}

/// The key changes twice, once while a basebackup is being taken: every object says which key it
/// has, and all of it comes back.
#[test]
fn a_new_key_encrypts_what_comes_after_it() {
    let Some(install) = install(15) else { return };
    let server = server(install);
    let mut daemon = Daemon::configured(json!({}), json!({ SITE: site(&server) }));
    make_key(&daemon, "one");
    daemon.up();
    daemon.wait_backups(1);
    let before = archive(&mut daemon, &server);
    make_key(&daemon, "two");
    daemon.reread("config_loaded");
    let after = archive(&mut daemon, &server);
    let key = |daemon: &Daemon, name: &str| {
        metadata(daemon, &format!("xlog/{name}"))["encryption-key-id"].clone()
    };
    assert_eq!(key(&daemon, &before), "one");
    assert_eq!(key(&daemon, &after), "two");
    let event = daemon.wait_event("the site's event", "config_loaded", |body| {
        body["sites"] == json!([SITE]) && body["changed"].is_array()
    });
    let changed = event["changed"].to_string();
    assert!(changed.contains("encryption_key_id"), "{event}");
    assert!(!log(&daemon).contains("BEGIN"), "no key is logged");

    // A basebackup waits for its checkpoint; it goes on under the key it began with.
    let find = "select pid from pg_stat_activity where backend_type = 'checkpointer'";
    let checkpointer = Pid::from_raw(server.one(find).parse().unwrap());
    kill(checkpointer, Signal::SIGSTOP).unwrap();
    request(&daemon);
    let waits = "select count(*) from pg_stat_progress_basebackup";
    wait_until("the basebackup to wait", PATIENCE, || {
        server.one(waits) == "1"
    });
    make_key(&daemon, "three");
    daemon.reread("config_loaded");
    kill(checkpointer, Signal::SIGCONT).unwrap();
    daemon.wait_backups(2);
    let chunks = objects(&daemon.store().join(SITE).join("basebackup_chunk"));
    let mut keys: Vec<String> = chunks
        .iter()
        .map(|chunk| {
            let text = fs::read(format!("{}.metadata", chunk.display())).unwrap();
            let metadata: Value = serde_json::from_slice(&text).unwrap();
            metadata["encryption-key-id"].as_str().unwrap().to_owned()
        })
        .collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys, ["one", "two"], "of the two basebackups");
    let last = archive(&mut daemon, &server);
    assert_eq!(key(&daemon, &last), "three");
    daemon.wait_caught_up(&server);

    for words in [
        &["--restore-to-primary"][..],
        &["--restore-to-primary", "--basebackup", &oldest(&daemon)],
    ] {
        let mut restored = daemon.restore(install, words);
        restored.up();
        restored.wait_primary();
        assert_eq!(restored.one("select count(*) from rows"), "3");
    }
    daemon.sigterm();
    daemon.verify_events();
}

fn oldest(daemon: &Daemon) -> String {
    let mut mains = objects(&daemon.store().join(SITE).join("basebackup"));
    mains.sort();
    let store = daemon.store();
    mains[0].strip_prefix(store).unwrap().display().to_string()
}

fn request(daemon: &Daemon) {
    let told = http(daemon.port, &format!("PUT /{SITE}/archive/basebackup"), "");
    assert!(told.contains(" 201 "), "{told}");
}

fn http(port: u16, request: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nhost: x\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Whatever is wrong with the file, what was in force stays so, and it is said until it is mended.
#[test]
fn a_bad_file_changes_nothing() {
    let Some(install) = install(15) else { return };
    let server = server(install);
    let mut daemon = Daemon::over(&[&server], json!({}));
    daemon.wait_backups(1);
    let good = fs::read_to_string(daemon.config()).unwrap();
    let other = |change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&good).unwrap();
        // Fit by itself, and yet not taken: nothing is half in force.
        value["http_address"] = json!("127.0.0.1");
        value["log_level"] = json!("ERROR");
        change(&mut value);
        value.to_string()
    };
    let cannot = json!({ "storage_type": "local", "directory": "/dev/null/no" });
    for (text, says) in [
        (Some("{ \"backup_sites\": ".to_owned()), "valid JSON"),
        (None, "does not exist"),
        (
            Some(other(&|v| v["backup_sites"][SITE]["ack"] = json!("never"))),
            "ack",
        ),
        (
            Some(other(&|v| {
                v["backup_sites"]["new"] = json!({ "object_storage": cannot })
            })),
            "new",
        ),
        (
            Some(other(&|v| v["backup_sites"]["new"] = json!({}))),
            "object_storage is not set",
        ),
    ] {
        match text {
            Some(text) => daemon.configure_raw(&text),
            None => fs::remove_file(daemon.config()).unwrap(),
        }
        // The events are read without the file.
        let count = log(&daemon).matches("configuration not taken").count();
        daemon.signal(Signal::SIGHUP);
        wait_until(says, PATIENCE, || {
            daemon.assert_alive();
            log(&daemon).matches("configuration not taken").count() > count
        });
        let log = log(&daemon);
        let line = log
            .lines()
            .rfind(|l| l.contains("configuration not taken"))
            .unwrap();
        assert!(line.contains(says) && line.contains("ERROR"), "{line}");
        wait_until("the alert", PATIENCE, || {
            daemon
                .alert("config_refused")
                .is_some_and(|alert| alert.contains(says))
        });
    }
    daemon.configure_raw(&good);
    archive(&mut daemon, &server);
    daemon.reread("config_loaded");
    wait_until("the alert to go", PATIENCE, || {
        daemon.alert("config_refused").is_none()
    });
    assert_eq!(daemon.site().unwrap()["active"], true);
    daemon.sigterm();
}

#[test]
fn sites_come_and_go_and_come_back() {
    let Some(install) = install(15) else { return };
    let (one, two) = (server(install), server(install));
    let mut daemon = Daemon::over(&[&one], json!({}));
    daemon.wait_backups(1);
    let kept = fs::read_to_string(daemon.config()).unwrap();
    let storage = json!({ "storage_type": "local", "directory": daemon.store() });
    let mut more = site(&two);
    more["object_storage"] = storage;
    let event = daemon.reload(|config| config["backup_sites"]["two"] = more.clone());
    assert_eq!(event["changed"], json!(["backup_sites.two"]));
    let backups = |daemon: &Daemon, site: &str| {
        let status = daemon.status().unwrap_or_default();
        let backups = status["sites"][site]["backups"].as_array();
        backups.is_some_and(|all| all.iter().any(|backup| backup["complete"] == true))
    };
    wait_until("a basebackup of the new site", PATIENCE, || {
        backups(&daemon, "two")
    });

    // A basebackup has a sender, too.
    let senders = "select count(*) from pg_stat_replication where state = 'streaming'";
    daemon.reload(|config| config["backup_sites"] = json!({ "two": more }));
    wait_until("reception of the old site to end", PATIENCE, || {
        one.one(senders) == "0"
    });
    assert_eq!(two.one(senders), "1");
    let ended = daemon.wait_event("its end", "stream_ended", |_| true);
    assert_eq!(ended["class"], "interrupted", "{ended}");
    one.sql("create table rows as select generate_series(1, 100) as n");

    daemon.configure_raw(&kept);
    daemon.reread("config_loaded");
    wait_until("the other to end", PATIENCE, || two.one(senders) == "0");
    daemon.wait_caught_up(&one);
    daemon.reload(|config| config["backup_sites"][SITE]["active"] = json!(false));
    wait_until("the inactive one to end", PATIENCE, || {
        one.one(senders) == "0"
    });
    daemon.reload(|config| config["backup_sites"][SITE]["active"] = json!(true));
    daemon.wait_caught_up(&one);
    archive(&mut daemon, &one);
    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    restored.up();
    restored.wait_primary();
    assert_eq!(restored.one("select count(*) from rows"), "101");
    daemon.sigterm();
    daemon.verify_events();
}

#[test]
fn policies_change_at_once() {
    let Some(install) = install(15) else { return };
    let server = server(install);
    let mut daemon = Daemon::over(&[&server], json!({}));
    daemon.wait_backups(1);
    request(&daemon);
    daemon.wait_backups(2);
    assert!(http(daemon.port, "GET /metrics", "").contains(" 501 "));
    daemon.reload(|config| {
        config["backup_sites"][SITE]["basebackup_count"] = json!(1);
        config["backup_sites"][SITE]["application_name"] = json!("another");
        config["prometheus"] = json!({});
    });
    wait_until("metrics", PATIENCE, || {
        http(daemon.port, "GET /metrics", "").contains("pghoard_info")
    });
    wait_until("the older basebackup to go", PATIENCE, || {
        objects(&daemon.store().join(SITE).join("basebackup")).len() == 1
    });
    let named = "select count(*) from pg_stat_replication where application_name = 'another'";
    wait_until("the new name", PATIENCE, || server.one(named) == "1");
    archive(&mut daemon, &server);
    daemon.sigterm();
}

/// The same cluster under another address: what the log knew of node 0 is looked at anew.
#[test]
fn reception_follows_the_nodes() {
    let Some(install) = install(15) else { return };
    let primary = server(install);
    let identity = Identity::Own;
    let other = Server::start(
        install,
        &Options {
            identity,
            ..Options::default()
        },
    );
    let standby = Server::standby_of(&primary);
    let mut daemon = Daemon::over(&[&primary], json!({}));
    daemon.wait_backups(1);
    let senders = "select count(*) from pg_stat_replication where application_name = 'pghoard'";
    let nodes = json!([node(&standby)]);
    daemon.reload(|config| config["backup_sites"][SITE]["nodes"] = nodes);
    wait_until("the standby to send", PATIENCE, || {
        standby.one(senders) == "1"
    });
    assert_eq!(primary.one(senders), "0");
    daemon.wait_caught_up(&primary);
    // Another cluster is refused as ever.
    let nodes = json!([node(&other)]);
    daemon.reload(|config| config["backup_sites"][SITE]["nodes"] = nodes);
    daemon.wait_alert("wal_conflict");
    assert_eq!(other.one(senders), "0");
    let nodes = json!([node(&primary)]);
    daemon.reload(|config| config["backup_sites"][SITE]["nodes"] = nodes);
    archive(&mut daemon, &primary);
    daemon.sigterm();
}

#[test]
fn what_needs_a_restart_is_named_and_stays() {
    let Some(install) = install(15) else { return };
    let server = server(install);
    let mut daemon = Daemon::over(&[&server], json!({}));
    daemon.wait_backups(1);
    let state = daemon.home().join("elsewhere.json");
    let (port, spool) = (daemon.port, daemon.spool());
    daemon.configure(|config| {
        config["http_port"] = json!(1);
        config["backup_location"] = json!("/nowhere");
        config["webserver_username"] = json!("admin");
        config["webserver_password"] = json!("hush-hush");
        config["json_state_file_path"] = json!(state);
    });
    // The tools would look for the log where the file says.
    daemon.signal(Signal::SIGHUP);
    let line = wait_for("the line of the log", PATIENCE, || {
        daemon.assert_alive();
        let log = log(&daemon);
        log.lines()
            .find(|line| line.contains("needs a restart"))
            .map(str::to_owned)
    });
    let location = spool.display();
    for kept in [
        format!("http_port: {port} stays in force, found 1"),
        format!("backup_location: {location} stays in force, found /nowhere"),
    ] {
        assert!(line.contains(&kept) && line.contains("WARNING"), "{line}");
    }
    let answer = http(daemon.port, "GET /status", "");
    assert!(answer.contains(" 401 "), "{answer}");
    let login = "authorization: Basic YWRtaW46aHVzaC1odXNo\r\n";
    let answer = http(daemon.port, "GET /status", login);
    assert!(answer.contains(" 200 "), "{answer}");
    wait_for("the state file at its new place", PATIENCE, || {
        fs::read(&state).ok()
    });
    assert!(!log(&daemon).contains("hush-hush"), "no secret is logged");
    daemon.configure(|config| config["backup_location"] = json!(spool));
    archive(&mut daemon, &server);
    daemon.sigterm();
}
