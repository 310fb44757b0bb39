//! Segments cut out of the store: found, healed where anybody has them, told where nobody has.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, SITE, node};
use crate::support::postgres::{Install, Options, Server, install};
use crate::support::process::run;
use crate::support::{PATIENCE, wait_until};

/// Seconds between two listings.
const OFTEN: u64 = 2;

/// The oldest and the newest tell of removed WAL in their own ways.
const MAJORS: [u32; 3] = [13, 15, 18];

fn server(install: &'static Install, more: &[&str]) -> Server {
    let mut conf = vec!["min_wal_size=2MB", "max_wal_size=2MB"];
    conf.extend(more);
    let options = Options {
        segment_mib: Some(1),
        conf: &conf,
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
        metadata(daemon, &name).exists()
    });
    name
}

fn metadata(daemon: &Daemon, name: &str) -> PathBuf {
    daemon.store().join(format!("{SITE}/xlog/{name}.metadata"))
}

fn cut(daemon: &Daemon, name: &str) {
    let path = metadata(daemon, name);
    fs::remove_file(path.with_extension("")).unwrap();
    fs::remove_file(path).unwrap();
}

fn on_disk(server: &Server, name: &str) -> bool {
    server.data.join("pg_wal").join(name).exists()
}

/// Writes until the server has recycled this segment.
fn recycle(daemon: &mut Daemon, server: &Server, name: &str) {
    wait_until("the server to recycle WAL", PATIENCE, || {
        segment(daemon, server);
        server.sql("checkpoint");
        !on_disk(server, name)
    });
}

fn holes(daemon: &Daemon, words: &[&str]) -> (i32, Value) {
    let words = [&["holes"], words].concat();
    let answer = run(daemon.tool("pghoard", &words));
    let json = serde_json::from_str(&answer.stdout).unwrap_or(Value::Null);
    (answer.status.code().unwrap(), json)
}

fn restored_rows(daemon: &Daemon, install: &'static Install) -> String {
    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    restored.up();
    restored.wait_primary();
    restored.one("select count(*) from rows")
}

#[test]
fn s09_a_segment_that_the_store_lost_is_fetched_from_the_server() {
    for install in MAJORS.into_iter().filter_map(install) {
        let server = server(
            install,
            &["wal_keep_size=64MB", "log_replication_commands=on"],
        );
        let mut daemon = Daemon::over(&[&server], json!({ "reconcile_interval_seconds": OFTEN }));
        daemon.wait_backups(1);
        let names: Vec<_> = (0..4).map(|_| segment(&mut daemon, &server)).collect();
        let told = "select confirmed from (select pg_wal_lsn_diff(restart_lsn, '0/0') as confirmed \
            from pg_replication_slots where slot_name = 'pghoard') as slot";
        let before: u64 = server.one(told).parse().unwrap();
        cut(&daemon, &names[1]);
        cut(&daemon, &names[2]);
        let opened = daemon.wait_event("the hole", "hole_opened", |_| true);
        let hole = &opened["hole"]["wal"];
        let number = |name: &str| u64::from_str_radix(&name[16..], 16).unwrap();
        assert_eq!(hole["first"], number(&names[1]), "{opened}");
        assert_eq!(hole["last"], number(&names[2]), "{opened}");
        daemon.wait_event("its end", "hole_closed", |_| true);
        wait_until("all of them in the store", PATIENCE, || {
            names.iter().all(|name| metadata(&daemon, name).exists())
        });
        wait_until("the alert to go", PATIENCE, || {
            daemon.alert("wal_hole").is_none()
        });
        assert_eq!(
            holes(&daemon, &["--json"]),
            (0, json!({ "sites": { SITE: [] } }))
        );
        // The main stream was not disturbed, nor its position taken back.
        assert!(server.one(told).parse::<u64>().unwrap() >= before);
        let log = fs::read_to_string(server.log()).unwrap();
        let fetched = format!("START_REPLICATION PHYSICAL 0/{:X}", number(&names[1]) << 20);
        assert!(
            log.contains(&fetched),
            "without a slot, from the first: {fetched}"
        );
        let ended = daemon.events();
        let ended = ended.iter().filter(|event| event["kind"] == "stream_ended");
        assert_eq!(ended.count(), 0);
        assert_eq!(daemon.backups(), 1, "nothing had to be bridged");
        segment(&mut daemon, &server);
        let rows = server.one("select count(*) from rows");
        assert_eq!(restored_rows(&daemon, install), rows);
        daemon.verify_events();
    }
}

#[test]
fn s74_a_lost_segment_is_told_bridged_and_acknowledged() {
    for install in MAJORS.into_iter().filter_map(install) {
        let server = server(install, &["wal_keep_size=0"]);
        let mut daemon = Daemon::over(&[&server], json!({ "reconcile_interval_seconds": OFTEN }));
        daemon.wait_backups(1);
        segment(&mut daemon, &server);
        let lost = segment(&mut daemon, &server);
        recycle(&mut daemon, &server, &lost);
        let rows = server.one("select count(*) from rows");
        cut(&daemon, &lost);

        daemon.wait_alert("wal_hole");
        assert!(daemon.alert("wal_hole").unwrap().contains(&lost));
        daemon.wait_backups(2);
        let site = daemon.site().unwrap();
        assert_eq!(site["backups"][1]["reason"], "hole", "{site:#}");
        let (code, listed) = holes(&daemon, &["--json"]);
        assert_eq!(code, 1, "{listed}");
        let hole = &listed["sites"][SITE][0];
        assert_eq!(hole["state"], "lost", "{hole}");
        assert_eq!(hole["first"], lost.as_str(), "{hole}");
        assert_eq!(hole["backups"].as_array().unwrap().len(), 1, "{hole}");
        // The lost moments begin with the segment and end where the new backup is consistent.
        let start = u64::from_str_radix(&lost[16..], 16).unwrap() << 20;
        let gap = &hole["impossible"];
        assert_eq!(gap["from_lsn"], format!("0/{start:X}"), "{hole}");
        let wait = format!(
            "select '{}'::pg_lsn > '0/{start:X}'::pg_lsn",
            gap["to_lsn"].as_str().unwrap()
        );
        assert_eq!(server.one(&wait), "t", "{hole}");
        assert_ne!(gap["until"], Value::Null, "{hole}");

        let name = hole["name"].as_str().unwrap();
        let words = [
            "--acknowledge",
            "--site",
            SITE,
            "--reason",
            "a test",
            "--by",
            "ada",
        ];
        let (code, _) = holes(&daemon, &[&words[..], &["--hole", "other"]].concat());
        assert_eq!(code, 3, "no such hole");
        let (code, told) = holes(&daemon, &[&words[..], &["--hole", name]].concat());
        assert_eq!((code, told), (0, json!({ "acknowledged": [name] })));
        wait_until("the alert to go", PATIENCE, || {
            daemon.alert("wal_hole").is_none()
        });
        let (code, listed) = holes(&daemon, &["--json"]);
        assert_eq!(code, 0, "{listed}");
        let noted = &listed["sites"][SITE][0];
        assert_eq!(noted["state"], "acknowledged");
        assert_eq!(noted["acknowledged"]["by"], "ada");

        segment(&mut daemon, &server);
        let found = restored_rows(&daemon, install);
        assert!(found >= rows, "{found} of {rows}");

        // A new one is told again; without a daemon it is noted in the store.
        let another = segment(&mut daemon, &server);
        recycle(&mut daemon, &server, &another);
        cut(&daemon, &another);
        daemon.wait_alert("wal_hole");
        assert!(!daemon.alert("wal_hole").unwrap().contains(&lost));
        daemon.sigterm();
        let all = run(daemon.tool("pghoard", &[&["holes"], &words[..], &["--all"]].concat()));
        assert!(all.ok().contains("the daemon does not run"));
        let mark = daemon
            .store()
            .join(format!("{SITE}/mark/hole_{another}-{another}"));
        assert!(mark.exists(), "{}", mark.display());
        daemon.verify_events();
    }
}

/// The server has recycled what the slot released; a copy of `pg_wal` on this machine has it.
#[test]
fn a_segment_comes_back_from_pg_wal_where_the_server_refuses() {
    let Some(install) = install(16) else { return };
    let server = server(install, &["wal_keep_size=64MB"]);
    let mut slotless = node(&server);
    slotless.as_object_mut().unwrap().remove("slot");
    let pgdata = server.folder("pgdata");
    let mut daemon = Daemon::over(
        &[&server],
        json!({
            "nodes": [slotless],
            "pg_data_directory": pgdata,
            "reconcile_interval_seconds": OFTEN,
        }),
    );
    daemon.wait_backups(1);
    let lost = segment(&mut daemon, &server);
    let next = segment(&mut daemon, &server);
    let wal = pgdata.join("pg_wal");
    fs::create_dir(&wal).unwrap();
    for name in [&lost, &next] {
        fs::copy(server.data.join("pg_wal").join(name), wal.join(name)).unwrap();
    }
    run({
        let mut own = std::process::Command::new("chmod");
        own.args(["-R", "a+rX"]).arg(&pgdata);
        own
    })
    .ok();
    server.sql("alter system set wal_keep_size = 0");
    server.sql("select pg_reload_conf()");
    recycle(&mut daemon, &server, &next);
    assert!(!on_disk(&server, &lost));
    cut(&daemon, &lost);
    let absent = |body: &Value| body["outcome"].get("absent").is_some();
    daemon.wait_event("the refusal", "hole_sought", absent);
    daemon.wait_event("the copy", "hole_sought", |body| {
        body["means"] == "directory" && body["outcome"] == "fetched"
    });
    daemon.wait_event("its end", "hole_closed", |_| true);
    wait_until("it in the store", PATIENCE, || {
        metadata(&daemon, &lost).exists()
    });
    assert_eq!(daemon.backups(), 1, "nothing had to be bridged");
}
