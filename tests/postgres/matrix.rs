//! The whole way on every major: a server is streamed and backed up while it works, dies with its
//! disk, and comes back; to the end of its WAL, to a chosen point, and across a promotion.
//!
//! Budget: about 30 s a major on two cores, mostly PostgreSQL starting and recovering.

use std::fs;

use serde_json::json;

use crate::support::PATIENCE;
use crate::support::daemon::Daemon;
use crate::support::postgres::{Install, Options, Server, install, lsn_text};
use crate::support::process::{command, run};
use crate::support::wait_until;

#[test]
fn postgres_12_comes_back() {
    comes_back(12);
}

#[test]
fn postgres_13_comes_back() {
    comes_back(13);
}

#[test]
fn postgres_14_comes_back() {
    comes_back(14);
}

#[test]
fn postgres_15_comes_back() {
    comes_back(15);
}

#[test]
fn postgres_16_comes_back() {
    comes_back(16);
}

#[test]
fn postgres_17_comes_back() {
    comes_back(17);
}

#[test]
fn postgres_18_comes_back() {
    comes_back(18);
}

#[test]
fn postgres_12_promotion_is_followed() {
    promotion_is_followed(12);
}

#[test]
fn postgres_13_promotion_is_followed() {
    promotion_is_followed(13);
}

#[test]
fn postgres_14_promotion_is_followed() {
    promotion_is_followed(14);
}

#[test]
fn postgres_15_promotion_is_followed() {
    promotion_is_followed(15);
}

#[test]
fn postgres_16_promotion_is_followed() {
    promotion_is_followed(16);
}

#[test]
fn postgres_17_promotion_is_followed() {
    promotion_is_followed(17);
}

#[test]
fn postgres_18_promotion_is_followed() {
    promotion_is_followed(18);
}

#[test]
fn segments_of_1_mib() {
    odd_segments(1);
}

#[test]
fn segments_of_64_mib() {
    odd_segments(64);
}

/// One row, and the ways to name the moment just after it.
struct Mark {
    rows: u32,
    words: Vec<String>,
}

/// Backup, five batches of rows with a recovery target after each, loss of the server, a restore
/// to every target beside it and to the end in its place. Half of the rows live in a tablespace.
fn comes_back(major: u32) {
    let Some(install) = install(major) else {
        return;
    };
    let options = Options {
        checksums: true,
        ..Options::default()
    };
    let mut server = Server::start(install, &options);
    let space = server.folder("space");
    server.sql(&format!(
        "create tablespace far location '{}'",
        space.display()
    ));
    server.sql("create table rows (n int primary key, body text)");
    server.sql("create table rows_far (n int primary key, body text) tablespace far");
    add_rows(&server, 1);

    let site = json!({ "pg_data_directory": server.data });
    let mut daemon = Daemon::over(&[&server], site);
    daemon.wait_backups(1);
    let marks = write_and_mark(&server);
    daemon.wait_caught_up(&server);
    let before = content(&server);
    server.kill9();
    server.destroy_data();

    for (mark, number) in marks.iter().zip(1..) {
        let moved = server.folder(&format!("space-{number}"));
        let moved = format!("far={}", moved.display());
        let mut words = vec!["--restore-to-primary", "--tablespace-dir", &moved];
        words.extend(["--recovery-target-action", "promote"]);
        words.extend(mark.words.iter().map(String::as_str));
        let mut restored = daemon.restore(install, &words);
        restored.up();
        restored.wait_primary();
        for table in ["rows", "rows_far"] {
            let last = restored.one(&format!("select max(n) from {table}"));
            assert_eq!(last, mark.rows.to_string(), "{table}, {words:?}");
        }
    }

    // To the end, in its old place: the WAL comes through the daemon, which then follows.
    fs::remove_dir_all(&space).unwrap();
    server.folder("space");
    let words = ["--restore-to-primary"];
    daemon.restore_into(&server.data, &words).ok();
    verified(&server);
    server.move_in();
    server.overrule(&format!("restore_command='{}'", daemon.fetch_command()));
    server.up();
    server.wait_primary();
    assert_eq!(content(&server), before);
    add_rows(&server, 7);
    daemon.wait_caught_up(&server);
    daemon.verify_events();
    daemon.sigterm();
}

/// PostgreSQL's own judgement of what was restored; the WAL is not there yet.
fn verified(restored: &Server) {
    if restored.install.major < 13 {
        return; // neither manifest nor pg_verifybackup
    }
    let mut verify = command(
        restored.install.tools.join("pg_verifybackup"),
        restored.home(),
    );
    verify.arg("--no-parse-wal").arg(&restored.data);
    run(verify).ok();
}

/// Each row is its own transaction; after rows 2 to 5 there is a moment to go back to, named in one
/// of the four ways; row 6 is beyond them all.
fn write_and_mark(server: &Server) -> Vec<Mark> {
    let mark = |rows, option: &str, value: String| Mark {
        rows,
        words: vec![format!("--recovery-target-{option}"), value],
    };
    add_rows(server, 2);
    server.sql("select pg_create_restore_point('after two')");
    let name = mark(2, "name", "after two".to_owned());
    add_rows(server, 3);
    let lsn = mark(3, "lsn", server.one("select pg_current_wal_insert_lsn()"));
    add_rows(server, 4);
    let time = mark(
        4,
        "time",
        server.one(
            "select to_char(clock_timestamp() at time zone 'UTC', \
        'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"')",
        ),
    );
    server.sql(
        "begin; insert into rows values (5, 'five'); insert into rows_far values (5, ''); \
        create table at_five as select txid_current() as xid; commit",
    );
    let xid = mark(5, "xid", server.one("select xid from at_five"));
    add_rows(server, 6);
    vec![name, lsn, time, xid]
}

fn add_rows(server: &Server, n: u32) {
    server.sql(&format!(
        "begin; insert into rows select {n}, repeat(md5('{n}'), 1000); \
         insert into rows_far select {n}, repeat(md5('{n}'), 1000); commit"
    ));
}

fn content(server: &Server) -> Vec<String> {
    server.sql(
        "select 'near', n, md5(body) from rows union all \
        select 'far', n, md5(body) from rows_far order by 1, 2",
    )
}

/// Two nodes; the primary dies, the standby takes over on a new timeline, rows are written there,
/// and the restore walks the backup of the old timeline into the new one.
fn promotion_is_followed(major: u32) {
    let Some(install) = install(major) else {
        return;
    };
    let mut primary = Server::start(install, &Options::default());
    primary.sql("create table rows (n int primary key)");
    let standby = Server::standby_of(&primary);
    let mut daemon = Daemon::over(&[&primary, &standby], json!({}));
    daemon.wait_backups(1);
    primary.sql("insert into rows select generate_series(1, 1000)");
    daemon.wait_caught_up(&primary);
    wait_replayed(&standby, primary.flushed());

    primary.kill9();
    primary.destroy_data();
    standby.promote();
    standby.wait_primary();
    standby.sql("insert into rows select generate_series(1001, 2000)");
    daemon.wait_caught_up(&standby);
    drop(standby);

    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    restored.up();
    restored.wait_primary();
    assert_eq!(
        restored.one("select count(*), min(n), max(n) from rows"),
        "2000|1|2000"
    );
    // The standby opened timeline 2, the restored server opens the next one.
    assert_eq!(timeline(&restored), 3);
    daemon.verify_events();
}

fn timeline(server: &Server) -> u32 {
    server
        .one("select timeline_id from pg_control_checkpoint()")
        .parse()
        .unwrap()
}

fn wait_replayed(standby: &Server, lsn: u64) {
    let query = format!("select pg_last_wal_replay_lsn() >= '{}'", lsn_text(lsn));
    wait_until("the standby to replay", PATIENCE, || {
        standby.one(&query) == "t"
    });
}

fn odd_segments(mib: u32) {
    let Some(install) = install(15) else { return };
    let options = Options {
        segment_mib: Some(mib),
        ..Options::default()
    };
    let mut server = Server::start(install, &options);
    let mut daemon = Daemon::over(&[&server], json!({}));
    daemon.wait_backups(1);
    // Enough for two segments of either size to be filled by rows, not by a switch.
    server.sql("create table rows (n int, body text)");
    let count = 2 * 1024 * mib + 1;
    server.sql(&format!(
        "insert into rows select n, repeat(md5(n::text), 32) \
        from generate_series(1, {count}) as n"
    ));
    daemon.wait_caught_up(&server);
    let sum = "select count(*), sum(n), md5(string_agg(md5(body), '' order by n)) from rows";
    let before = server.one(sum);
    server.kill9();
    server.destroy_data();
    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    restored.up();
    restored.wait_primary();
    assert_eq!(restored.one("show wal_segment_size"), format!("{mib}MB"));
    assert_eq!(restored.one(sum), before);
}

/// A standby restored from the store catches up from there, then streams from the primary; what was
/// written after the daemon stopped can only have come by the stream.
#[test]
fn a_new_standby_catches_up_from_the_store_and_streams() {
    for install in newest_and_oldest() {
        let primary = Server::start(install, &Options::default());
        primary.sql("create table rows (n int)");
        let mut daemon = Daemon::over(&[&primary], json!({}));
        daemon.wait_backups(1);
        primary.sql("insert into rows select generate_series(1, 1000)");
        primary.sql("select pg_switch_wal()");
        daemon.wait_caught_up(&primary);

        let (host, port) = (primary.home().display(), primary.port);
        let conninfo = format!("host={host} port={port} user=postgres application_name=newborn");
        let mut standby = daemon.restore(install, &["--primary-conninfo", &conninfo]);
        standby.up();
        let streaming = "select count(*) from pg_stat_replication \
            where application_name = 'newborn' and state = 'streaming'";
        wait_until("the standby to stream", PATIENCE, || {
            primary.one(streaming) == "1"
        });
        daemon.sigterm();
        primary.sql("insert into rows select generate_series(1001, 1100)");
        wait_replayed(&standby, primary.flushed());
        assert_eq!(standby.one("select count(*) from rows"), "1100");
        assert!(standby.in_recovery());
    }
}

fn newest_and_oldest() -> Vec<&'static Install> {
    [12, 18].into_iter().filter_map(install).collect()
}
