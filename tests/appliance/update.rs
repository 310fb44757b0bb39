//! Updates: one is tried, and kept or given up; whatever happens, a slot works.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::drive;
use crate::image::{Bench, VERSION, bench, replace};
use crate::machine::{Machine, PATIENCE};
use crate::site::{LOGIN, PASSWORD, Site, settings};
use crate::support::{scale, wait_until};

/// Gives the bundle to the API; what it answers.
fn upload(site: &Site, bundle: &[u8]) -> (u16, String) {
    let file = site.place.scratch.join("upload.bundle");
    fs::write(&file, bundle).unwrap();
    let url = format!("http://127.0.0.1:{}/appliance/update", site.place.api);
    let asked = Command::new("curl")
        .args([
            "-sS",
            "-m",
            "300",
            "-u",
            LOGIN,
            "-w",
            "\n%{http_code}",
            "-T",
        ])
        .arg(&file)
        .arg(&url)
        .output()
        .unwrap();
    let text = String::from_utf8(asked.stdout).unwrap();
    let (body, code) = text.rsplit_once('\n').unwrap();
    (code.parse().unwrap_or_default(), body.to_owned())
}

fn reboot(site: &Site, machine: Machine) -> Machine {
    let told = site.put("/appliance/power", &json!({ "how": "reboot" }));
    assert!(told.is_some());
    machine.wait_off();
    site.place.boot()
}

/// What the status page says of the slot: `1.0.0`, or with `, ON TRIAL`.
fn version(machine: &mut Machine) -> String {
    machine.expect("slot ");
    let rest = machine.expect("disk ");
    rest.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn site_of(bench: &Bench) -> Option<Site> {
    Site::new(&bench.image, |_| ())
}

#[test]
fn an_update_is_tried_and_kept_and_bad_ones_change_nothing() {
    let Some(bench) = bench() else { return };
    let Some(site) = site_of(bench) else { return };
    let mut machine = site.place.boot();
    site.wait_backups(1);
    assert!(version(&mut machine).starts_with(VERSION));

    let good = bench.bundle("2.0.0", |_| ());
    let mut damaged = good.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let strange = bench.bundle_by(&bench.strangers_key(), "2.0.0", |_| ());
    let old = bench.bundle("0.9.0", |_| ());
    for (bundle, why) in [
        (&good[..good.len() - 7], "truncated"),
        (&damaged[..], "digest"),
        (&strange[..], "sign"),
        (&old[..], "0.9.0"),
        (b"PK\x03\x04 something else", "bundle"),
    ] {
        let (code, body) = upload(&site, bundle);
        assert_eq!(code, 409, "{why}: {body}");
        eprintln!("{why}: {body}");
    }
    let mut machine = reboot(&site, machine);
    assert!(version(&mut machine).starts_with(VERSION));
    wait_until("the API", PATIENCE, || site.status().is_some());

    let (code, body) = upload(&site, &good);
    assert_eq!(code, 200, "{body}");
    let mut machine = reboot(&site, machine);
    let told = version(&mut machine);
    assert!(
        told.starts_with("2.0.0") && told.contains("ON TRIAL"),
        "{told}"
    );
    machine.log_in(Some(PASSWORD));
    // Something to store: a version that does nothing is not kept.
    site.write();
    confirmed(&mut machine, "2.0.0");
    let mut machine = reboot(&site, machine);
    let told = version(&mut machine);
    assert!(
        told.starts_with("2.0.0") && !told.contains("TRIAL"),
        "{told}"
    );
}

/// Until `update` says that the version that runs is confirmed.
fn confirmed(machine: &mut Machine, version: &str) {
    wait_until("the trial to end", PATIENCE, || {
        let told = machine.command("update status");
        let line = told.lines().find(|line| line.contains(version));
        line.is_some_and(|line| line.contains("confirmed"))
    });
}

/// Boots again and again, as firmware would, until the old version runs for good, and says so.
fn comes_back(site: &Site, mut machine: Machine, tried: &str) {
    let began = Instant::now();
    loop {
        let over = machine.expect_or_off("Press Enter");
        if over.is_some_and(|page| page.contains(VERSION)) {
            break;
        }
        assert!(began.elapsed() < 4 * PATIENCE, "{}", machine.heard());
        machine.wait_off();
        machine = site.place.boot();
    }
    let rows = site.rows();
    site.write();
    site.wait_caught_up();
    assert_eq!(site.rows(), rows + 1);
    let trial = format!("version {tried} failed its trial");
    wait_until("an alert", PATIENCE, || site.troubled(&trial));
}

fn gives_way(version: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let Some(bench) = bench() else { return };
    let Some(site) = site_of(bench) else { return };
    let machine = site.place.boot();
    site.wait_backups(1);
    let (code, body) = upload(&site, &bench.bundle(version, change));
    assert_eq!(code, 200, "{body}");
    let machine = reboot(&site, machine);
    comes_back(&site, machine, version);
}

#[test]
fn s75_a_program_that_panics_gives_way_to_the_old_one() {
    gives_way("2.0.0", |program| *program = panicking());
}

#[test]
fn s75_a_daemon_that_never_works_gives_way_to_the_old_one() {
    gives_way("3.0.0", |program| replace(program, "READY=1", "REALY=1"));
}

/// A first process that ends at once.
fn panicking() -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("panic.c");
    let program = scratch.path().join("panic");
    let log = pghoard::journal::upcast::LOG;
    let text = format!("const char *told = \"pghoard writes logs of format {log}\\n\";\n");
    fs::write(&source, text + "int main(void) { return told[0] == 0; }\n").unwrap();
    let built = Command::new("cc")
        .arg("-static")
        .arg("-o")
        .args([&program, &source])
        .status();
    assert!(built.unwrap().success());
    fs::read(&program).unwrap()
}

#[test]
fn s75_power_goes_while_an_update_is_written() {
    let Some(bench) = bench() else { return };
    let Some(site) = site_of(bench) else { return };
    let bundle = bench.bundle("2.0.0", |_| ());
    let mut random = fastrand::Rng::new();
    eprintln!("seed {}", random.get_seed());
    for _ in 0..scale().pick(2, 10) {
        let machine = site.place.boot();
        wait_until("the API", PATIENCE, || site.status().is_some());
        let after = Duration::from_millis(random.u64(100..8_000));
        let began = Instant::now();
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| upload(&site, &bundle));
            wait_until("the moment", PATIENCE, || began.elapsed() >= after);
            machine.cut_power();
            let _broken_off = writing.join();
        });
    }
    let machine = site.place.boot();
    site.wait_backups(1);
    let (code, body) = upload(&site, &bundle);
    assert!(code == 200 || body.contains("2.0.0"), "{code} {body}");
    let machine = reboot(&site, machine);
    site.write();
    site.wait_caught_up();
    drop(machine);
}

#[test]
fn an_update_comes_on_a_drive() {
    let Some(bench) = bench() else { return };
    let Some(mut site) = site_of(bench) else {
        return;
    };
    let path = site.place.scratch.join("drive.img");
    let bundle = bench.bundle("2.0.0", |_| ());
    drive::make(&path, &settings(&site.server), &[("v2.bundle", &bundle)]);
    site.place.drives = vec![path];
    let mut machine = site.place.boot();
    machine.log_in(Some(PASSWORD));
    let told = machine.command("update try drive");
    assert!(told.contains("2.0.0"), "{told}");
}
