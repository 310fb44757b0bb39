//! A basebackup that is held survives retention; released, it goes, and its WAL with it.

use std::fs;

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, SITE};
use crate::support::postgres::{Options, Server, install};
use crate::support::process::run;
use crate::support::{PATIENCE, wait_for};

#[test]
fn s60_a_held_backup_survives_retention_and_goes_when_released() {
    let Some(install) = install(15) else {
        return;
    };
    let server = Server::start(install, &Options::default());
    let more = json!({ "basebackup_count": 1, "basebackup_interval_hours": 24 });
    let mut daemon = Daemon::over(&[&server], more);
    daemon.wait_backups(1);
    let first = names(&daemon)[0].clone();
    let tool = |words: &[&str]| run(daemon.tool("pghoard", words));
    let refused = tool(&["hold", "--site", SITE, "--backup", "no", "--reason", "x"]);
    assert_eq!(refused.status.code(), Some(1));
    let held = tool(&[
        "hold", "--site", SITE, "--backup", &first, "--reason", "an audit",
    ])
    .ok();
    assert!(held.contains("the daemon knows"), "{held}");
    let listed = tool(&["holds", "--site", SITE]).ok();
    assert!(
        listed.contains(&first) && listed.contains("an audit"),
        "{listed}"
    );
    for count in 2..=3 {
        server.sql("create table if not exists t (n int); insert into t values (1)");
        daemon.ask_for_backup(SITE);
        // The second of three goes, by count; the first is held.
        wait_for("the next basebackup and what goes for it", PATIENCE, || {
            // The newest one itself: it is listed a moment after it is finished.
            let finished = events(&daemon, "backup_finished");
            let newest = finished.get(count - 1)?["body"]["backup"]
                .as_str()?
                .to_owned();
            (names(&daemon) == [first.clone(), newest]).then_some(())
        });
    }
    // Its object is there a moment before the log says so.
    let plan = wait_for("the log to know the newest", PATIENCE, || {
        let plan = tool(&["retention", "--site", SITE, "--dry-run", "--json"]).ok();
        let plan: Value = serde_json::from_str(&plan).unwrap();
        (plan["backups"][1]["rules"] == json!(["newest", "count"])).then_some(plan)
    });
    assert_eq!(plan["backups"][0]["name"], first, "{plan}");
    assert_eq!(plan["backups"][0]["goes"], false);
    let rule = plan["backups"][0]["rules"][0].as_str().unwrap();
    assert!(rule.starts_with("held by"), "{plan}");
    tool(&["release", "--site", SITE, "--backup", &first]).ok();
    wait_for("the released basebackup to go", PATIENCE, || {
        (!names(&daemon).contains(&first)).then_some(())
    });
    let wal = wait_for("its WAL to go", PATIENCE, || {
        let expired = events(&daemon, "wal_expired");
        let store = daemon
            .store()
            .join(format!("{SITE}/xlog/000000010000000000000001"));
        (!expired.is_empty() && !store.exists()).then_some(expired)
    });
    assert!(!wal.is_empty());
    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    restored.up();
    assert_eq!(restored.one("select count(*) from t"), "2");
    daemon.verify_events();
    daemon.assert_alive();
}

/// What is listed in the store.
fn names(daemon: &Daemon) -> Vec<String> {
    let folder = daemon.store().join(format!("{SITE}/basebackup"));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        names.extend(name.strip_suffix(".00000000.pghoard").map(str::to_owned));
    }
    names.sort();
    names
}

fn events(daemon: &Daemon, kind: &str) -> Vec<Value> {
    let all = daemon.events().into_iter();
    all.filter(|event| event["kind"] == kind).collect()
}
