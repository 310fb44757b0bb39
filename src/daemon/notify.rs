//! What the service manager is told: sd_notify(3), datagrams to `NOTIFY_SOCKET`.
//!
//! Never waits, and nobody but the loop speaks: `WATCHDOG=1` comes from its turns, so a loop that
//! hangs is not kept alive by another thread.

use std::env;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::{Duration, Instant};

use crate::clock;

pub struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// Without a sign of life for so long we are killed.
    watchdog: Option<Duration>,
    fed: Option<Instant>,
    status: String,
    spoken: Option<Instant>,
    extended: Option<Instant>,
}

/// A status that changes often is told this often.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// A stop that takes longer than the unit allows is asked for in such steps.
const EXTEND_EVERY: Duration = Duration::from_secs(5);
const EXTEND_USEC: u64 = 30_000_000;

impl Notify {
    pub fn from_environment() -> Notify {
        let number = |name| {
            env::var(name)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
        };
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0);
        let name = env::var("NOTIFY_SOCKET").unwrap_or_default();
        Notify::new(&name, watchdog.map(Duration::from_micros))
    }

    /// A name that begins with `@` is in the abstract name space; an empty one is nobody.
    fn new(name: &str, watchdog: Option<Duration>) -> Notify {
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(name),
        };
        let socket = address.and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            Ok((socket, address))
        });
        let there = !name.is_empty();
        if let Err(error) = socket.as_ref().map(drop).as_ref()
            && there
        {
            log::warn!("NOTIFY_SOCKET '{name}': {error}");
        }
        Notify {
            socket: socket.ok().filter(|_| there),
            watchdog,
            fed: None,
            status: String::new(),
            spoken: None,
            extended: None,
        }
    }

    /// The loop turns at least this often, so that the watchdog gets its food.
    pub fn turn(&self, at_least: Duration) -> Duration {
        self.watchdog
            .map_or(at_least, |limit| at_least.min(limit / 4))
    }

    pub fn ready(&self) {
        self.say("READY=1");
    }

    pub fn reloading(&self) {
        let now = clock::monotonic_us();
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// At every turn of the loop.
    pub fn alive(&mut self, status: &str) {
        if let Some(limit) = self.watchdog
            && self.fed.is_none_or(|at| at.elapsed() >= limit / 4)
        {
            self.fed = Some(Instant::now());
            self.say("WATCHDOG=1");
        }
        let rested = self.spoken.is_none_or(|at| at.elapsed() >= STATUS_EVERY);
        if status != self.status && rested {
            status.clone_into(&mut self.status);
            self.spoken = Some(Instant::now());
            self.say(&format!("STATUS={}", plain(status)));
        }
    }

    /// A stop that works takes the time that the configuration gives it, whatever the unit says.
    pub fn extend(&mut self) {
        if self.extended.is_none_or(|at| at.elapsed() >= EXTEND_EVERY) {
            self.extended = Some(Instant::now());
            self.say(&format!("EXTEND_TIMEOUT_USEC={EXTEND_USEC}"));
        }
    }

    fn say(&self, text: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(text.as_bytes(), address)
        {
            log::debug!("NOTIFY_SOCKET: {error}");
        }
    }
}

/// One line is one variable: a name from outside must not begin another.
fn plain(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        socket.set_nonblocking(true).unwrap();
        let mut all = Vec::new();
        let mut buffer = [0; 1_024];
        while let Ok(size) = socket.recv(&mut buffer) {
            all.push(String::from_utf8_lossy(&buffer[..size]).into_owned());
        }
        all
    }

    fn speak(mut notify: Notify) {
        notify.ready();
        notify.alive("main: receiving");
        notify.alive("main: receiving");
        notify.alive("another, too soon");
        notify.reloading();
        notify.stopping();
        notify.extend();
        notify.extend();
    }

    #[test]
    fn the_manager_hears_everything_once_by_path_and_by_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("pghoard-test-{}", process::id());
        let abstractly = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, name) in [
            (UnixDatagram::bind(&path), path.display().to_string()),
            (UnixDatagram::bind_addr(&abstractly), format!("@{name}")),
        ] {
            let socket = socket.unwrap();
            speak(Notify::new(&name, Some(Duration::from_secs(60))));
            let mut heard = heard(&socket);
            let reloading = heard.remove(3);
            assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="));
            assert_eq!(
                heard,
                [
                    "READY=1",
                    "WATCHDOG=1",
                    "STATUS=main: receiving",
                    "STOPPING=1",
                    "EXTEND_TIMEOUT_USEC=30000000"
                ]
            );
        }
    }

    #[test]
    fn without_a_manager_nothing_is_said_and_the_watchdog_sets_the_pace() {
        speak(Notify::new("", None));
        speak(Notify::new("/nowhere/at/all", None));
        let second = Duration::from_secs(1);
        for (limit, expect) in [(None, 1_000), (Some(60_000), 1_000), (Some(2_000), 500)] {
            let limit = limit.map(Duration::from_millis);
            let turn = Notify::new("", limit).turn(second);
            assert_eq!(turn, Duration::from_millis(expect));
        }
    }
}
