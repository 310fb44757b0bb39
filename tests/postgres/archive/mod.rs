//! archive_command and restore_command through the daemon: on the same machine, and on another one
//! that shares nothing with the server but the network.

use std::fs;

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, SITE, node};
use crate::support::postgres::{Install, Options, Server, install};
use crate::support::{PATIENCE, wait_until};

/// A server whose `archive_command` asks the daemon of that port.
fn archiving(install: &'static Install, more: Value) -> (Server, Daemon) {
    let mut server = Server::start(install, &Options::default());
    server.sql("create table rows (n int)");
    let mut site = json!({
        "nodes": [node(&server)],
        "active_backup_mode": "archive_command",
        "pg_data_directory": server.data,
    });
    let Value::Object(more) = more else { panic!() };
    let remote = more.contains_key("pg_data_directory");
    for (key, value) in more {
        site[key] = value;
    }
    let daemon = Daemon::configured(json!({}), json!({ SITE: site })).started();
    let command = daemon.command("archive", remote);
    server.stop();
    server.configure(&format!("archive_mode=on\narchive_command='{command}'"));
    server.up();
    (server, daemon)
}

/// Writes rows and ends the segment: its name.
fn segment(server: &Server, rows: u32) -> String {
    server.sql(&format!(
        "insert into rows select generate_series(1, {rows})"
    ));
    server.one("select pg_walfile_name(pg_switch_wal())")
}

fn wait_archived(daemon: &mut Daemon, server: &Server, name: &str) {
    let sql = format!("select coalesce(last_archived_wal, '') >= '{name}' from pg_stat_archiver");
    wait_until(&format!("{name} to be archived"), PATIENCE, || {
        daemon.assert_alive();
        server.one(&sql) == "t"
    });
    let stored = daemon.store().join(format!("{SITE}/xlog/{name}"));
    assert!(stored.exists(), "{name} was archived and is not stored");
}

#[test]
fn s17_archive_command_says_yes_when_the_segment_is_stored() {
    for install in [12, 18].into_iter().filter_map(install) {
        let (mut server, mut daemon) = archiving(install, json!({}));
        daemon.wait_backups(1);
        let first = segment(&server, 100);
        wait_archived(&mut daemon, &server, &first);
        // A backlog, and a daemon that dies in the middle of it.
        daemon.kill9();
        let names: Vec<String> = (0..12).map(|_| segment(&server, 100)).collect();
        daemon.up();
        wait_archived(&mut daemon, &server, &names[5]);
        daemon.restart();
        wait_archived(&mut daemon, &server, &names[11]);
        // A promotion ends its timeline in the middle of a segment.
        server.stop();
        fs::write(server.data.join("standby.signal"), "").unwrap();
        server.up();
        server.promote();
        let last = segment(&server, 100);
        wait_archived(&mut daemon, &server, &last);
        let history = daemon
            .store()
            .join(format!("{SITE}/timeline/00000002.history"));
        assert!(history.exists());
        // What is safe goes on there, and the backup leads to it.
        wait_until("the new timeline to be followed", PATIENCE, || {
            let site = daemon.site().unwrap_or_default();
            let windows = site["coverage"]["windows"].as_array().map(Vec::len);
            site["frontier"] == last.as_str() && windows == Some(1)
        });
        let streams = "select count(*) from pg_stat_replication";
        assert_eq!(server.one(streams), "0", "nothing is streamed");
        daemon.verify_events();
        server.kill9();
        server.destroy_data();
        let mut restored = daemon.restore(install, &["--restore-to-primary"]);
        restored.up();
        restored.wait_primary();
        assert_eq!(restored.one("select count(*) from rows"), "1400");
    }
}

/// `archive_mode` was as good as off: nobody goes back for what it passed over. That is a hole, the
/// server still has it, and what follows counts as safe.
#[test]
fn s07_wal_that_archive_command_passed_over_is_a_hole_and_is_brought_back() {
    let Some(install) = install(14) else { return };
    let (mut server, mut daemon) = archiving(install, json!({}));
    daemon.wait_backups(1);
    let first = segment(&server, 10);
    wait_archived(&mut daemon, &server, &first);
    let command = server.one("show archive_command");
    let say = |server: &mut Server, command: &str| {
        server.sql(&format!("alter system set archive_command = '{command}'"));
        server.sql("select pg_reload_conf()");
    };
    // The server keeps them for us to find.
    server.sql("alter system set wal_keep_size = '4GB'");
    say(&mut server, "/bin/true");
    let passed = [segment(&server, 10), segment(&server, 10)];
    let told = format!(
        "select last_archived_wal >= '{}' from pg_stat_archiver",
        passed[1]
    );
    wait_until("them to be passed over", PATIENCE, || {
        server.one(&told) == "t"
    });
    say(&mut server, &command);
    // More than are taken ahead.
    let names: Vec<String> = (0..40).map(|_| segment(&server, 1)).collect();
    wait_archived(&mut daemon, &server, &names[39]);
    let over = |body: &Value| body["wal"].is_object();
    daemon.wait_event("what was passed over", "wal_passed", over);
    daemon.wait_event("a hole", "hole_opened", |_| true);
    daemon.wait_event("its end", "hole_closed", |_| true);
    let xlog = daemon.store().join(format!("{SITE}/xlog"));
    for name in &passed {
        assert!(xlog.join(name).exists(), "{name} was not brought back");
    }
    wait_until("one window to the end", PATIENCE, || {
        let site = daemon.site().unwrap_or_default();
        let windows = site["coverage"]["windows"].as_array().map(Vec::len);
        site["frontier"] == names[39].as_str() && windows == Some(1)
    });
    server.kill9();
    server.destroy_data();
    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    restored.up();
    restored.wait_primary();
    assert_eq!(restored.one("select count(*) from rows"), "70");
}

/// Nothing is shared but the network: WAL travels in requests and answers.
#[test]
fn a_daemon_on_another_machine_gets_and_gives_wal_over_http() {
    let Some(install) = install(16) else { return };
    let (mut server, mut daemon) = archiving(install, json!({ "pg_data_directory": null }));
    daemon.wait_backups(1);
    let names: Vec<String> = (0..4).map(|_| segment(&server, 100)).collect();
    wait_archived(&mut daemon, &server, &names[3]);
    server.kill9();
    server.destroy_data();
    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    restored.overrule(&format!(
        "restore_command='{}'",
        daemon.command("restore", true)
    ));
    restored.up();
    restored.wait_primary();
    assert_eq!(restored.one("select count(*) from rows"), "400");
}
