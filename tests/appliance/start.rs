//! From power to a prompt, and back; and where settings come from.

use std::fs;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::drive;
use crate::image::image;
use crate::machine::{PATIENCE, Place};
use crate::site::{SITE, Site, settings};
use crate::support::{scale, wait_until};

#[test]
fn a_drive_is_all_it_takes_to_protect_a_server() {
    let Some(image) = image() else { return };
    let Some(site) = Site::new(image, |_| ()) else {
        return;
    };
    let machine = site.place.boot();
    site.wait_backups(1);
    site.write();
    site.wait_caught_up();
    machine.press_power();
    machine.wait_off();
    let out = site.autopsy();
    assert!(out.join("store").join(SITE).is_dir());
}

#[test]
fn s70_power_may_go_in_the_first_boot_and_while_the_disk_is_formatted() {
    let Some(image) = image() else { return };
    let mut random = fastrand::Rng::new();
    eprintln!("seed {}", random.get_seed());
    for _ in 0..scale().pick(2, 12) {
        let place = Place::new(image, 4);
        let machine = place.boot();
        // UEFI takes 3 s, the kernel 2, all of ours less than 1; a loaded machine twice that.
        let after = Duration::from_millis(random.u64(3_000..12_000));
        let began = Instant::now();
        wait_until("the moment", PATIENCE, || began.elapsed() >= after);
        machine.cut_power();
        let mut machine = place.boot();
        machine.expect("disk ");
        let disk = machine.expect("memory ");
        assert!(disk.contains(" free of "), "after {after:?}: {disk}");
        machine.expect("Press Enter");
    }
}

#[test]
fn the_hypervisor_hands_over_settings() {
    let Some(image) = image() else { return };
    let Some(mut site) = Site::new(image, |_| ()) else {
        return;
    };
    let settings = settings(&site.server).to_string();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.json");
    fs::write(&file, &settings).unwrap();
    let by_file = format!("name=opt/org.pghoard/pghoard.json,file={}", file.display());
    let by_text = format!("type=11,value=pghoard.json={}", STANDARD.encode(&settings));
    for (flag, value, source) in [
        ("-fw_cfg", by_file, "from fw_cfg"),
        ("-smbios", by_text, "from smbios"),
    ] {
        let mut place = Place::new(image, 4);
        place.more = vec![flag.to_owned(), value];
        site.place = place;
        let mut machine = site.place.boot();
        machine.expect("settings ");
        let told = machine.expect("Press Enter");
        assert!(told.contains(source), "{told}");
        wait_until("the API", PATIENCE, || site.status().is_some());
    }
}

#[test]
fn bad_settings_are_named_and_the_last_good_ones_stay_in_force() {
    let Some(image) = image() else { return };
    let Some(site) = Site::new(image, |_| ()) else {
        return;
    };
    let machine = site.place.boot();
    wait_until("the API", PATIENCE, || site.status().is_some());
    machine.press_power();
    machine.wait_off();
    let mut bad = settings(&site.server);
    bad["appliance"]["hostname"] = json!("-nobody");
    drive::make(&site.place.drives[0], &bad, &[]);
    let mut machine = site.place.boot();
    machine.expect("SETTINGS ");
    machine.expect("appliance.hostname");
    wait_until("an alert", PATIENCE, || {
        site.troubled("settings were not taken")
    });
}
