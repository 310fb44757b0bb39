//! Other machines than the usual one: disks, drives, consoles, and a firmware that checks
//! signatures.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use firmware_image::run::Bus;
use serde_json::Value;

use crate::image::{bench, image};
use crate::machine::{PATIENCE, Place};
use crate::site::{Site, settings};
use crate::support::process::Scratch;
use crate::support::{skip, wait_for, wait_until};

#[test]
fn secure_boot_starts_what_is_signed_and_nothing_else() {
    let Some(bench) = bench() else { return };
    let boot = |image: &std::path::Path| {
        let mut place = Place::new(image, 4);
        place.secure_boot = true;
        let mut machine = place.boot();
        // The firmware's own words for it.
        machine.expect_one(&["Access Denied", "Press Enter"]).0
    };
    assert_eq!(boot(&bench.image), 0, "an unsigned image was started");
    assert_eq!(boot(&bench.signed()), 1, "a signed image was refused");
}

/// The disk by NVMe or SCSI; settings from an ISO 9660 in a CD drive.
#[test]
fn a_disk_of_any_kind_is_formatted_and_a_cd_tells_the_settings() {
    let Some(image) = image() else { return };
    let Some(site) = Site::new(image, |_| ()) else {
        return;
    };
    let Some(drive) = iso(&site.place.scratch, &settings(&site.server)) else {
        return;
    };
    for bus in [Bus::Nvme, Bus::Scsi] {
        let mut place = Place::new(image, 4);
        place.bus = bus;
        let cd = format!("if=none,id=cd,format=raw,readonly=on,file={drive}");
        place.more = vec!["-drive".into(), cd];
        if bus == Bus::Nvme {
            place
                .more
                .extend(["-device".into(), "virtio-scsi-pci".into()]);
        }
        place
            .more
            .extend(["-device".into(), "scsi-cd,drive=cd".into()]);
        let mut machine = place.boot();
        machine.expect("disk ");
        let disk = machine.expect("memory ");
        assert!(disk.contains(" free of "), "{bus:?}: {disk}");
        machine.expect("settings ");
        let told = machine.expect("Press Enter");
        assert!(told.contains("from drive"), "{bus:?}: {told}");
    }
}

fn iso(scratch: &Scratch, settings: &Value) -> Option<String> {
    let (folder, out) = (scratch.join("iso"), scratch.join("drive.iso"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("pghoard.json"), settings.to_string()).unwrap();
    let made = Command::new("xorriso")
        .args(["-as", "mkisofs", "-R", "-V", "PGHOARD_CFG", "-o"])
        .args([&out, &folder])
        .output();
    match made {
        Ok(made) => assert!(made.status.success(), "{made:?}"),
        Err(_) => {
            skip("iso-drive", "no xorriso: run tests/support/install");
            return None;
        }
    }
    Some(out.to_str().unwrap().to_owned())
}

/// As a hypervisor without a serial port gives it.
#[test]
fn the_virtio_console_has_the_page_and_a_session() {
    let Some(image) = image() else { return };
    let mut place = Place::new(image, 4);
    let socket = place.scratch.join("hvc0");
    let line = format!("socket,id=hvc,server=on,wait=off,path={}", socket.display());
    place.more = ["-device", "virtio-serial-pci", "-chardev", &line]
        .map(Into::into)
        .to_vec();
    place
        .more
        .extend(["-device", "virtconsole,chardev=hvc"].map(Into::into));
    let _machine = place.boot();
    let mut line = wait_for("the line", PATIENCE, || UnixStream::connect(&socket).ok());
    hear(&mut line, "Press Enter");
    line.write_all(b"\r").unwrap();
    hear(&mut line, "Hostname");
}

fn hear(line: &mut UnixStream, text: &str) {
    line.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut heard = Vec::new();
    let mut byte = [0];
    while !heard.ends_with(text.as_bytes()) {
        let read = line.read(&mut byte);
        let told = String::from_utf8_lossy(&heard);
        assert!(matches!(read, Ok(1)), "no '{text}' after:\n{told}");
        heard.extend(byte);
    }
}

/// A person with a keyboard and a screen: what they type is obeyed.
#[test]
fn the_screen_takes_commands_from_the_keyboard() {
    let Some(image) = image() else { return };
    let Some(mut site) = Site::new(image, |settings| {
        settings["appliance"]
            .as_object_mut()
            .unwrap()
            .remove("console_password");
    }) else {
        return;
    };
    site.place.more = vec!["-device".into(), "VGA".into()];
    let machine = site.place.boot();
    wait_until("the API", PATIENCE, || site.status().is_some());
    machine.type_line("");
    wait_until("the command to be obeyed", PATIENCE, || {
        machine.type_line("poweroff");
        site.status().is_none()
    });
    machine.wait_off();
}
