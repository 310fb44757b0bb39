//! The consoles: on each line a status page, and after Enter a session, which is a process of its
//! own.
//!
//! The page is printed anew when something on it is new that a person should see, and once in a
//! while; a serial line is slow, and a terminal that records it has an end.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{
    ControlFlags, FlushArg, InputFlags, SetArg, tcflush, tcgetattr, tcsetattr,
};
use pghoard::{Failure, Outcome};
use serde_json::Value;

use crate::children;
use crate::console::page;
use crate::host::{CLOCK, Host};
use crate::settings::{EFFECTIVE, STATE};
use crate::supervise::PROGRAM;

/// Serial, virtio, and the screen.
const LINES: [&str; 4] = ["ttyS0", "ttyAMA0", "hvc0", "tty1"];
const LOOK_EVERY: u16 = 2_000;
const PRINT_AT_LEAST: Duration = Duration::from_secs(300);
/// What flaps must not fill the line.
const PRINT_AT_MOST: Duration = Duration::from_secs(3);

/// How many people are logged in.
#[derive(Clone, Default)]
pub struct Attended(Arc<AtomicUsize>);

impl Attended {
    pub fn now(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

pub fn start(host: &Arc<Host>, attended: &Attended) {
    for name in LINES {
        let path = Path::new("/dev").join(name);
        let Ok(device) = open(&path) else { continue };
        // A serial port that is not there opens, and has no settings.
        let Ok(mut fresh) = tcgetattr(&device) else {
            continue;
        };
        // Noise on the line, or a Ctrl-S, must not hold up who writes to it.
        fresh
            .input_flags
            .remove(InputFlags::IXON | InputFlags::IXOFF);
        fresh.control_flags.insert(ControlFlags::CLOCAL);
        fresh.control_flags.remove(ControlFlags::CRTSCTS);
        let (host, attended) = (Arc::clone(host), attended.clone());
        let run = move || {
            let mut line = Line {
                name,
                device,
                host,
                attended,
                shown: None,
            };
            loop {
                let _it_is_dirty = tcsetattr(&line.device, SetArg::TCSANOW, &fresh);
                let turned = line.turn();
                // The end of a session hangs its terminal up, for everybody who has it open.
                let reopened = open(&path).map_err(|e| Failure::io(&e, name));
                if let Err(failure) = turned.and(reopened.map(|device| line.device = device)) {
                    log::warn!("console {name}: {failure}");
                    thread::sleep(PRINT_AT_MOST);
                }
            }
        };
        if let Err(failure) = children::thread(name, run) {
            log::warn!("console {name}: {failure}");
        }
    }
}

/// Not to become the controlling terminal of PID 1.
fn open(path: &Path) -> std::io::Result<File> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NOCTTY)
        .open(path)
}

/// One line to everybody who looks.
pub fn announce(message: &str) {
    for name in LINES {
        let told = format!("\r\n{message}\r\n");
        let tell = move || {
            if let Ok(mut line) = open(&Path::new("/dev").join(name)) {
                let _unseen = line.write_all(told.as_bytes());
            }
        };
        // A line that takes nothing holds up nobody else.
        let _unsaid = children::thread(name, tell);
    }
}

struct Line {
    name: &'static str,
    device: File,
    host: Arc<Host>,
    attended: Attended,
    /// What of the page was new, and when it was printed.
    shown: Option<(String, Instant)>,
}

impl Line {
    /// Shows the page while nobody types; then a session to its end.
    fn turn(&mut self) -> Outcome<()> {
        let name = self.name;
        let about = |e: std::io::Error| Failure::io(&e, name);
        loop {
            self.show().map_err(about)?;
            let mut polled = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
            let heard = poll(&mut polled, PollTimeout::from(LOOK_EVERY));
            if heard.map_err(|e| about(e.into()))? == 0 {
                continue;
            }
            let mut typed = [0; 256];
            match self.device.read(&mut typed).map_err(about)? {
                0 => return Err(Failure::io(&std::io::Error::other("hung up"), name)),
                _ => break,
            }
        }
        self.session()
    }

    fn show(&mut self) -> std::io::Result<()> {
        let status = self.host.status();
        let state = state();
        let news = news(&status, state.as_ref());
        if let Some((old, at)) = &self.shown {
            let waited = at.elapsed();
            let due = waited >= PRINT_AT_LEAST || (*old != news && waited >= PRINT_AT_MOST);
            if !due {
                return Ok(());
            }
        }
        let page = page::render(&status, state.as_ref(), pghoard::clock::now());
        let page = page.replace('\n', "\r\n");
        self.device
            .write_all(format!("\r\n{page}\r\n").as_bytes())?;
        self.shown = Some((news, Instant::now()));
        Ok(())
    }

    fn session(&mut self) -> Outcome<()> {
        let end = || -> Outcome<Stdio> {
            let copy = self.device.try_clone();
            copy.map(Stdio::from)
                .map_err(|e| Failure::io(&e, self.name))
        };
        let term = if self.name == "tty1" {
            "linux"
        } else {
            "vt100"
        };
        let mut command = Command::new(PROGRAM);
        command
            .arg0("pghoard_console")
            .env_clear()
            .env("TERM", term)
            .env("PATH", "/bin")
            .env("HOME", "/root")
            .env("PGHOARD_CONFIG", EFFECTIVE)
            .env("PGHOARD_CLOCK_FILE", CLOCK)
            .env("PGHOARD_CONSOLE_TTY", self.name)
            .current_dir("/")
            .stdin(end()?)
            .stdout(end()?)
            .stderr(end()?);
        let (tell, told) = children::told();
        self.attended.0.fetch_add(1, Ordering::SeqCst);
        let started = self.host.children.start(&mut command, tell);
        let ended = started.map(|_| told.recv());
        self.attended.0.fetch_sub(1, Ordering::SeqCst);
        self.shown = None;
        let _nothing_typed_ahead = tcflush(&self.device, FlushArg::TCIFLUSH);
        ended.map(drop)
    }
}

/// The daemon's own word on its state.
pub fn state() -> Option<Value> {
    let inside = fs::read(STATE).ok()?;
    serde_json::from_slice(&inside).ok()
}

/// What of it all makes the page worth printing again.
fn news(status: &Value, state: Option<&Value>) -> String {
    let of = |value: &Value, path: &str| value.pointer(path).cloned().unwrap_or_default();
    let links = of(status, "/network");
    let addresses: Vec<Value> = links
        .as_array()
        .into_iter()
        .flatten()
        .map(|link| of(link, "/addresses"))
        .collect();
    let alerts: Vec<String> = state
        .and_then(|state| state.pointer("/daemon/alerts")?.as_object())
        .map(|alerts| alerts.keys().cloned().collect())
        .unwrap_or_default();
    format!(
        "{} {} {addresses:?} {} {} {alerts:?}",
        of(status, "/daemon/state"),
        of(status, "/settings/problem"),
        of(status, "/time/synchronised"),
        of(status, "/trial"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_matters_prints_the_page_again() {
        let status = |daemon: &str, uptime: u64, address: &str| {
            json!({
                "daemon": { "state": daemon },
                "uptime_seconds": uptime,
                "network": [{ "addresses": [address] }],
                "time": { "synchronised": true, "offset_ms": uptime },
            })
        };
        let quiet = news(&status("running", 1, "10.0.0.5/24"), None);
        assert_eq!(quiet, news(&status("running", 9, "10.0.0.5/24"), None));
        assert_ne!(quiet, news(&status("failed", 1, "10.0.0.5/24"), None));
        assert_ne!(quiet, news(&status("running", 1, "10.0.0.6/24"), None));
        let alerted = json!({ "daemon": { "alerts": { "store_unreachable": {} } } });
        assert_ne!(
            quiet,
            news(&status("running", 1, "10.0.0.5/24"), Some(&alerted))
        );
    }
}
