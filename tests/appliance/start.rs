//! From power to a prompt, and back.

use crate::image::image;
use crate::machine::PATIENCE;
use crate::machine::Place;
use crate::site::{SITE, Site};
use crate::support::wait_until;

#[test]
fn a_blank_disk_becomes_a_machine_with_a_console() {
    let Some(image) = image() else { return };
    let place = Place::new(image, 4);
    let mut machine = place.boot();
    machine.expect("uptime");
    eprintln!("{:?} {}", machine.started.elapsed(), machine.cpu_seconds());
    machine.press_power();
    let said = machine.wait_off();
    eprintln!("{said}");
}

#[test]
fn a_drive_is_all_it_takes_to_protect_a_server() {
    let Some(image) = image() else { return };
    let Some(site) = Site::new(image, |_| ()) else {
        return;
    };
    let machine = site.place.boot();
    wait_until("a basebackup", PATIENCE, || site.backups() > 0);
    site.write();
    site.wait_caught_up();
    eprintln!(
        "{:?} {} {SITE}",
        machine.started.elapsed(),
        machine.cpu_seconds()
    );
    machine.press_power();
    eprintln!("{}", machine.wait_off());
    let out = site.autopsy();
    eprintln!("{out:?}");
}
