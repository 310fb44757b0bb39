//! Backups taken from a standby: what only its primary can end is ended there, else waited for.

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, node};
use crate::support::postgres::{Install, Options, Server, install};
use crate::support::{PATIENCE, wait_for, wait_until};

/// A primary with a thousand rows and its standby, which stands within a segment.
fn pair(install: &'static Install) -> (Server, Server) {
    let primary = Server::start(install, &Options::default());
    primary.sql("create table rows (n int)");
    primary.sql("insert into rows select generate_series(1, 1000)");
    let standby = Server::standby_of(&primary);
    primary.sql("insert into rows values (0)");
    primary.sql("checkpoint");
    wait_replayed(&standby, &primary);
    (primary, standby)
}

/// The backup's last segment is finished by a switch on the primary, which is a node as well.
#[test]
fn s32_a_backup_of_a_standby_is_ended_on_its_primary() {
    for install in [13, 17].into_iter().filter_map(install) {
        let (primary, standby) = pair(install);
        let mut daemon = Daemon::over(&[&standby, &primary], json!({ "preferred_node": 0 }));
        daemon.wait_backups(1);
        assert_eq!(daemon.site().unwrap()["backups"][0]["node"], 0);
        // Reception comes from the standby as well: what it has replayed is on its way to us.
        primary.sql("insert into rows select generate_series(1001, 2000)");
        daemon.wait_caught_up(&primary);
        let restored = restored(&daemon, install);
        assert_eq!(restored.one("select count(*) from rows"), "2001");
        daemon.verify_events();
    }
}

/// Without the primary among its nodes the daemon can only say what it waits for.
#[test]
fn s33_a_backup_of_a_standby_alone_waits_and_says_so() {
    let Some(install) = install(15) else { return };
    let (primary, standby) = pair(install);
    let mut daemon = Daemon::over(&[&standby], json!({}));
    let said = waits_for_a_segment(&daemon);
    assert!(said.contains("pg_switch_wal()"), "{said}");
    assert_eq!(daemon.backups(), 0);
    primary.sql("select pg_switch_wal()");
    daemon.wait_backups(1);
    wait_until("the alert to go", PATIENCE, || {
        daemon.alert("backup_overdue").is_none()
    });
    let restored = restored(&daemon, install);
    assert_eq!(restored.one("select count(*) from rows"), "1001");
}

/// Without a slot reception begins where the standby stands, and its backup before that, at its
/// last restartpoint: such a backup never becomes consistent, so it fails, until one begins later.
#[test]
fn s33_a_backup_that_begins_before_our_wal_fails_until_one_does_not() {
    let Some(install) = install(16) else { return };
    let (primary, standby) = pair(install);
    // Whole segments between the standby's restartpoint and its position.
    for _ in 0..3 {
        primary.sql("insert into rows values (0)");
        primary.sql("select pg_switch_wal()");
    }
    wait_replayed(&standby, &primary);
    let mut slotless = node(&standby);
    slotless.as_object_mut().unwrap().remove("slot");
    let mut daemon = Daemon::over(&[&standby, &primary], {
        json!({ "nodes": [slotless, node(&primary)], "preferred_node": 0 })
    });
    let failed = daemon.wait_event("the first backup to fail", "backup_failed", |_| true);
    assert_eq!(failed["class"], "not_found", "{failed}");
    assert_eq!(daemon.backups(), 0);
    primary.sql("checkpoint");
    daemon.wait_backups(1);
    let restored = restored(&daemon, install);
    assert_eq!(restored.one("select count(*) from rows"), "1004");
}

/// The timeline ends below the segment that the backup waits for: it can never be whole. The next
/// one, on the new timeline, is.
#[test]
fn s38_a_promotion_fails_the_backup_that_waits() {
    let Some(install) = install(18) else { return };
    let (mut primary, standby) = pair(install);
    let mut daemon = Daemon::over(&[&standby], json!({}));
    waits_for_a_segment(&daemon);
    primary.kill9();
    standby.promote();
    standby.wait_primary();
    let failed = daemon.wait_event("the backup to fail", "backup_failed", |_| true);
    assert_eq!(failed["class"], "interrupted", "{failed}");
    daemon.wait_backups(1);
    let site = daemon.site().unwrap();
    let complete: Vec<&Value> = list(&site["backups"])
        .filter(|backup| backup["complete"] == true)
        .collect();
    assert_eq!(complete.len(), 1, "{site:#}");
    assert_ne!(complete[0]["name"], failed["backup"], "{site:#}");
    let start = complete[0]["start_segment"].as_str().unwrap();
    assert!(start.starts_with("00000002"), "{start}");
    let restored = restored(&daemon, install);
    assert_eq!(restored.one("select count(*) from rows"), "1001");
    daemon.verify_events();
}

/// The alert's text once it says that a backup waits.
fn waits_for_a_segment(daemon: &Daemon) -> String {
    wait_for("word of a backup that waits", PATIENCE, || {
        let text = daemon.alert("backup_overdue")?;
        text.contains("waits for WAL segment").then_some(text)
    })
}

fn wait_replayed(standby: &Server, primary: &Server) {
    let query = format!(
        "select pg_last_wal_replay_lsn() >= '{}'",
        crate::support::postgres::lsn_text(primary.flushed())
    );
    wait_until("the standby to replay", PATIENCE, || {
        standby.one(&query) == "t"
    });
}

fn restored(daemon: &Daemon, install: &'static Install) -> Server {
    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    restored.up();
    restored.wait_primary();
    restored
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
