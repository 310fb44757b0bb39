//! From power to a prompt, and back.

use crate::image::image;
use crate::machine::Place;

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
