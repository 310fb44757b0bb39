//! A whole life in which every third request fails in some way: backups, WAL, retention, a crash,
//! and the way back.

use super::super::install;
use super::*;

#[test]
fn s19_s66_a_life_in_which_every_third_request_fails() {
    let (Some(install), Some(seaweed)) = (install(15), seaweed()) else {
        return;
    };
    // A part that nobody answers is given the minutes that a slow line would need: too long here.
    let passing: Vec<Fault> = faults()
        .into_iter()
        .filter(|(fault, class)| class.is_none() && *fault != Fault::Stall)
        .map(|(fault, _)| fault)
        .collect();
    // Each request meets every fault in as many lives as there are.
    for offset in 0..scale().pick(1, passing.len()) {
        a_life(install, &seaweed.bucket(), |request| {
            let fault = (request + offset) / 3 % passing.len();
            ((request + offset) % 3 == 0).then(|| passing[fault].clone())
        });
    }
}

/// More requests than a life has.
const REQUESTS: usize = 4_000;

fn a_life(install: &'static Install, bucket: &Bucket, fault: impl Fn(usize) -> Option<Fault>) {
    let server = Server::start(install, &Options::default());
    // More than one part of an object, however it is compressed.
    server.sql(
        "create table big as select md5(random()::text) || md5(random()::text) as r \
         from generate_series(1, 300000)",
    );
    server.sql("create table t as select generate_series(1, 1000) as n");
    let proxy = Proxy::to(bucket.port);
    let spoil = || {
        proxy.clear();
        for request in 0..REQUESTS {
            if let Some(fault) = fault(request) {
                proxy.plan(Pick::Nth(request), fault);
            }
        }
    };
    spoil();
    let more = json!({
        "object_storage": through(bucket, &proxy), "basebackup_count": 1,
        "reconcile_interval_seconds": 5,
    });
    let mut daemon = Daemon::over(&[&server], more);
    daemon.wait_backups(1);
    let first = super::super::names(&daemon);
    server.sql("insert into t select generate_series(1, 1000)");
    daemon.ask_for_backup(SITE);
    wait_until(
        "the first basebackup to go for the second",
        PATIENCE,
        || {
            daemon.assert_alive();
            let now = super::super::names(&daemon);
            now.len() == 1 && now != first
        },
    );
    server.sql("insert into t select generate_series(1, 1000)");
    let last = server.one("select pg_walfile_name(pg_switch_wal())");
    server.sql("create table next_segment ()");
    let plain = super::super::open_storage(bucket.object_storage());
    wait_until("the last segment to be stored", PATIENCE, || {
        plain
            .look(&format!("{SITE}/xlog/{last}"))
            .unwrap()
            .is_some()
    });
    spoil();
    comes_back(install, &daemon);
    proxy.clear();
    let events = daemon.events();
    let kinds = ["conflicted", "missing", "found_damaged", "hole_opened"];
    for event in &events {
        let kind = event["kind"].as_str().unwrap_or_default();
        assert!(!kinds.contains(&kind), "{event}");
    }
    // Everything is there once, and whole.
    let verified = run(daemon.tool("pghoard", &["verify", "--all"]));
    assert!(
        verified.status.success(),
        "{}{}",
        verified.stdout,
        verified.stderr
    );
    wait_until("no alert", PATIENCE, || daemon.alerts().is_empty());
    daemon.verify_events();
    daemon.sigterm();
    // An upload whose beginning was not heard of is begun again, and the first taken back later.
    plain.sweep(SITE, i64::MAX).unwrap();
    assert_eq!(plain.sweep(SITE, i64::MAX).unwrap(), 0);
}

fn comes_back(install: &'static Install, daemon: &Daemon) {
    let mut restored = Server::empty(install);
    daemon
        .restore_into(&restored.data, &["--restore-to-primary"])
        .ok();
    restored.move_in();
    // Its own fetches fail, too.
    restored.up();
    restored.wait_primary();
    assert_eq!(restored.one("select count(*) from t"), "3000");
    assert_eq!(restored.one("select count(*) from big"), "300000");
}
