//! The end of a run: asked for by the power button, the console, the API, or an update that failed.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use machine::Class;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};
use pghoard::{Failure, Outcome};
use serde::{Deserialize, Serialize};

use crate::children::{self, Children};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    Reboot,
    Poweroff,
}

/// Of `linux/input-event-codes.h` and `linux/input.h`, on 64 bits: a time, a kind, a code, a value.
const EVENT_BYTES: usize = 24;
const KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const GOODBYE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A thread for each input device that there is.
pub fn watch_buttons(orders: &Sender<(How, String)>) {
    let entries = fs::read_dir("/dev/input").into_iter().flatten().flatten();
    for entry in entries {
        let Ok(device) = File::open(entry.path()) else {
            continue;
        };
        let orders = orders.clone();
        if let Err(failure) = children::thread("button", move || watch(device, &orders)) {
            log::warn!("{}: {failure}", entry.path().display());
        }
    }
}

fn watch(mut device: File, orders: &Sender<(How, String)>) {
    let mut event = [0; EVENT_BYTES];
    while device.read_exact(&mut event).is_ok() {
        if pressed(&event) && orders.send((How::Poweroff, "power button".into())).is_err() {
            return;
        }
    }
}

fn pressed(event: &[u8; EVENT_BYTES]) -> bool {
    let [.., kind0, kind1, code0, code1, value, _, _, _] = *event;
    let kind = u16::from_ne_bytes([kind0, kind1]);
    let code = u16::from_ne_bytes([code0, code1]);
    (kind, code, value) == (KEY, KEY_POWER, 1)
}

/// Every process but the kernel's and this one ends, in time or by force.
pub fn end_everybody(children: &Children) {
    let all = Pid::from_raw(-1);
    let _nobody_there = kill(all, Signal::SIGTERM);
    let began = Instant::now();
    while children.running() > 0 && began.elapsed() < GOODBYE {
        thread::sleep(LOOK_EVERY);
    }
    let _nobody_there = kill(all, Signal::SIGKILL);
    let began = Instant::now();
    while children.running() > 0 && began.elapsed() < GOODBYE {
        thread::sleep(LOOK_EVERY);
    }
}

/// Whatever happens, the file system is whole afterwards: at worst its journal is replayed.
pub fn unmount(place: &Path) {
    sync();
    let began = Instant::now();
    while umount2(place, MntFlags::empty()) == Err(Errno::EBUSY) {
        // A thread of ours may be at work there.
        if began.elapsed() > GOODBYE {
            let _best_effort = umount2(place, MntFlags::MNT_DETACH);
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    sync();
}

/// Does not return unless the kernel refuses.
pub fn turn(how: How) -> Outcome<()> {
    let mode = match how {
        How::Reboot => RebootMode::RB_AUTOBOOT,
        How::Poweroff => RebootMode::RB_POWER_OFF,
    };
    match reboot(mode) {
        Ok(never) => match never {},
        Err(error) => {
            let message = format!("the kernel would not {how:?}: {error}");
            Err(Failure::new(Class::Internal, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_power_button_going_down_counts() {
        for (kind, code, value, expect) in [
            (KEY, KEY_POWER, 1_u32, true),
            (KEY, KEY_POWER, 0, false),
            (KEY, 30, 1, false),
            (0, KEY_POWER, 1, false),
        ] {
            let mut event = [0; EVENT_BYTES];
            event[16..18].copy_from_slice(&kind.to_ne_bytes());
            event[18..20].copy_from_slice(&code.to_ne_bytes());
            event[20..24].copy_from_slice(&value.to_le_bytes());
            assert_eq!(pressed(&event), expect, "{kind} {code} {value}");
        }
    }
}
