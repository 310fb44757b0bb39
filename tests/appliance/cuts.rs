//! The plug is pulled at any moment: it starts again, and nothing that was acknowledged is lost.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::image::image;
use crate::machine::PATIENCE;
use crate::site::{SITE, Site};
use crate::support::postgres::{Server, lsn};
use crate::support::{scale, wait_until};

/// What PostgreSQL believes to be safe on the appliance.
fn acknowledged(server: &Server) -> u64 {
    let at = server.one("select coalesce(max(restart_lsn), '0/0') from pg_replication_slots");
    lsn(&at)
}

/// What PostgreSQL keeps for a machine that is off must not fill this one's disk.
const KEPT_MAX: u64 = 256 << 20;

/// While the machine lives or does not, rows come in. Until then.
fn busy_until(site: &Site, moment: Instant) {
    wait_until("the moment", PATIENCE, || {
        let promised = acknowledged(&site.server);
        if promised == 0 || site.server.flushed() < promised + KEPT_MAX {
            site.write();
        }
        Instant::now() >= moment
    });
}

#[test]
fn s70_power_may_go_at_any_moment_of_its_life() {
    let Some(image) = image() else { return };
    // A log this short is compacted all the time.
    let Some(site) = Site::new(image, |settings| {
        settings["event_log_events_max"] = json!(1_000)
    }) else {
        return;
    };
    let cuts = scale().pick(3, 30);
    let mut random = fastrand::Rng::new();
    eprintln!("seed {}", random.get_seed());
    for cut in 0..cuts {
        let machine = site.place.boot();
        // Boot, first boot and format among them, takes half of it or more.
        let after = Duration::from_millis(random.u64(500..40_000));
        busy_until(&site, machine.started + after);
        eprintln!("cut {cut} after {after:?}");
        machine.cut_power();
    }
    let promised = acknowledged(&site.server);
    let machine = site.place.boot();
    site.wait_backups(1);
    site.write();
    site.wait_caught_up();
    let holes = site.fact(&format!("/sites/{SITE}/holes")).unwrap();
    assert!(holes.as_array().is_none_or(Vec::is_empty), "{holes}");
    machine.press_power();
    machine.wait_off();
    assert!(acknowledged(&site.server) >= promised);
    let rows = site.rows();
    let out = site.autopsy();
    verify(&out);
    assert_eq!(restored_rows(&site, &out), rows);
}

/// The log's chain of digests, read by the tool.
fn verify(out: &Path) {
    let config = out.join("pghoard.json");
    let text = json!({ "backup_location": out.join("pghoard"), "backup_sites": {} });
    std::fs::write(&config, text.to_string()).unwrap();
    let told = Command::new(env!("CARGO_BIN_EXE_pghoard"))
        .args(["events", "--verify", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert!(told.status.success(), "{told:?}");
}

/// The newest backup and all WAL out of the store that was in the machine, under PostgreSQL.
fn restored_rows(site: &Site, out: &Path) -> u64 {
    let (_daemon, mut server) = site.restored(out, &["--restore-to-primary"]);
    server.up();
    server.wait_primary();
    server.one("select count(*) from rows").parse().unwrap()
}
