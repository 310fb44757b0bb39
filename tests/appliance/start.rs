//! From power to a prompt, and back.

use crate::image::image;
use crate::machine::Place;
use crate::site::Site;

#[test]
fn a_blank_disk_becomes_a_machine_with_a_console() {
    let Some(image) = image() else { return };
    let place = Place::new(image, 4);
    let mut machine = place.boot();
    machine.expect("Press Enter");
    machine.press_power();
    machine.wait_off();
}

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
    assert!(out.join("store").join(crate::site::SITE).is_dir());
}
