//! The hardware's (or kernel's) watchdog: the machine starts anew when nobody feeds it.
//!
//! It is fed while the daemon is well, or is not meant to run. One that was not well for long is a
//! reason to start the machine anew, unless a person is at the console to see to it.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use crate::supervise::{SILENT_MAX, State, Told};
use crate::sys;

const DEVICE: &str = "/dev/watchdog";
/// The machine starts anew when PID 1 hangs for so long.
const SECONDS: i32 = 30;
pub const FEED_EVERY: Duration = Duration::from_secs(5);
/// Restarts of the daemon get this long to help.
pub const PATIENCE: Duration = Duration::from_secs(900);
/// The supervisor's own thread turns every second.
const HANGS_AFTER: Duration = Duration::from_secs(20);

pub struct Watchdog {
    device: Option<File>,
    last_well: Instant,
}

impl Watchdog {
    pub fn open() -> Watchdog {
        let device = File::options().write(true).open(DEVICE);
        match &device {
            Ok(device) => {
                let seconds = sys::watchdog_timeout(device, SECONDS);
                let name = fs::read_to_string("/sys/class/watchdog/watchdog0/identity");
                let name = name.unwrap_or_default();
                log::info!("watchdog: {} {seconds:?}", name.trim());
            }
            Err(error) => log::warn!("no watchdog: {DEVICE}: {error}"),
        }
        Watchdog {
            device: device.ok(),
            last_well: Instant::now(),
        }
    }

    pub fn feed(&mut self) {
        if let Some(device) = &mut self.device
            && let Err(error) = device.write_all(b"1")
        {
            log::warn!("{DEVICE}: {error}");
        }
    }

    /// Every [`FEED_EVERY`]. Gives how long is left where the machine will start anew.
    pub fn look(&mut self, told: &Told, attended: bool) -> Option<Duration> {
        let now = Instant::now();
        if well(told, now) || attended {
            self.last_well = now;
        }
        let starved = now.duration_since(self.last_well);
        if starved < PATIENCE {
            self.feed();
        }
        // Soon enough for a person to come.
        let well = starved < PATIENCE / 2;
        (!well && self.device.is_some()).then(|| PATIENCE.saturating_sub(starved))
    }

    /// An ordered end: it is not to bite.
    pub fn disarm(self) {
        if let Some(mut device) = self.device {
            let _it_bites_then = device.write_all(b"V");
        }
    }
}

fn well(told: &Told, now: Instant) -> bool {
    let turns = now.saturating_duration_since(told.turned) < HANGS_AFTER;
    let alive = |at: Instant| now.saturating_duration_since(at) < SILENT_MAX * 2;
    let daemon = match told.state {
        State::Running => told.alive.is_some_and(alive),
        State::NotConfigured | State::Stopped | State::Stopping => true,
        State::Starting | State::Failed => false,
    };
    turns && daemon
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_fed_while_the_daemon_is_well_or_not_wanted() {
        let now = Instant::now() + Duration::from_secs(200);
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds)).unwrap();
        for (state, turned_ago, alive_ago, expect) in [
            (State::Running, 1, Some(50), true),
            (State::Running, 30, Some(1), false),
            (State::Running, 1, Some(150), false),
            (State::Running, 1, None, false),
            (State::NotConfigured, 1, None, true),
            (State::Stopped, 1, None, true),
            (State::Stopping, 1, None, true),
            (State::Starting, 1, None, false),
            (State::Failed, 1, None, false),
        ] {
            let told = Told {
                state,
                since: now,
                restarts: 0,
                status: String::new(),
                alive: alive_ago.map(ago),
                turned: ago(turned_ago),
                failed: None,
                healthy_since: None,
            };
            assert_eq!(well(&told, now), expect, "{state:?} {turned_ago}");
        }
    }
}
