//! The clock: SNTP, and an honest word on whether it is synchronised. One thread of PID 1.
//!
//! - [`settings`]: the servers, out of JSON. [`ask`]: a question to each, and its answer.
//! - [`course`]: whom to believe and what to do. [`clock`]: the kernel's clock.
//!
//! Whoever asks about the clock from elsewhere reads a file: `{"synchronised": bool, "why": text}`.

mod ask;
mod clock;
mod course;
mod settings;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pghoard::{Outcome, durable};
use serde::Serialize;
use serde_json::json;

use course::{Act, Course, When};
use settings::Server;

use crate::children;
use crate::network::random;

pub use clock::{Clock, Kernel};
pub use settings::Settings;

/// The running clock. Its thread ends when this is dropped.
pub struct Time {
    orders: Sender<Order>,
    shared: Arc<Shared>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    pub synchronised: bool,
    pub server: Option<String>,
    /// What the last answer found the clock to lack.
    pub offset_ms: Option<i64>,
    pub checked_seconds_ago: Option<u64>,
    /// A sentence.
    pub why: String,
}

enum Order {
    Apply(Settings),
    SyncNow,
}

struct Shared {
    course: Mutex<Course>,
    moved: Condvar,
}

/// Who names servers when the settings do not.
pub type Others = Box<dyn Fn() -> Vec<IpAddr> + Send>;

/// Begins to ask; what is known is in `file` from then on.
pub fn start(
    settings: Settings,
    others: Others,
    clock: Box<dyn Clock>,
    file: &Path,
) -> Outcome<Time> {
    let (orders, receiver) = channel();
    let shared = Arc::new(Shared {
        course: Mutex::new(Course::new(Instant::now())),
        moved: Condvar::new(),
    });
    let mut keeper = Keeper {
        settings,
        others,
        clock,
        file: file.to_owned(),
        orders: receiver,
        shared: Arc::clone(&shared),
        resting: BTreeMap::new(),
        asked: Vec::new(),
        said: None,
    };
    keeper.tell();
    children::thread("time", move || keeper.run())?;
    Ok(Time { orders, shared })
}

impl Time {
    /// Waits for the first good answer, so that nothing starts under a wrong clock; whether it
    /// came by the deadline.
    pub fn first_sync(&self, within: Duration) -> bool {
        let waits = |course: &mut Course| !course.status(Instant::now()).synchronised;
        let course = self.shared.course();
        let waited = self.shared.moved.wait_timeout_while(course, within, waits);
        let (_course, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }

    pub fn apply(&self, settings: Settings) {
        // The thread ends only after its last order.
        let _sent = self.orders.send(Order::Apply(settings));
    }

    /// Asks at once; the status tells what came of it.
    pub fn sync_now(&self) {
        let _sent = self.orders.send(Order::SyncNow);
    }

    pub fn status(&self) -> Status {
        self.shared.course().status(Instant::now())
    }
}

impl Shared {
    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Keeper {
    settings: Settings,
    others: Others,
    clock: Box<dyn Clock>,
    file: PathBuf,
    orders: Receiver<Order>,
    shared: Arc<Shared>,
    /// Those that want not to be asked, until when.
    resting: BTreeMap<Server, Instant>,
    asked: Vec<Server>,
    /// Synchronised, and why; said already.
    said: Option<(bool, String)>,
}

impl Keeper {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            let servers = self.servers();
            if servers != self.asked {
                self.shared.course().hurry(now);
                self.resting.clear();
                self.asked = servers;
            }
            if self.shared.course().next() <= now {
                self.turn();
            }
            self.tell();
            let next = self.shared.course().next();
            let wait = next.saturating_duration_since(Instant::now()).min(LOOK);
            match self.orders.recv_timeout(wait) {
                Ok(Order::Apply(settings)) => self.settings = settings,
                Ok(Order::SyncNow) => {
                    self.resting.clear();
                    self.shared.course().hurry(Instant::now());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn servers(&self) -> Vec<Server> {
        match self.settings.servers.is_empty() {
            true => (self.others)().into_iter().map(Server::from).collect(),
            false => self.settings.servers.clone(),
        }
    }

    /// Asks everybody who may be asked, and does what follows.
    fn turn(&mut self) {
        if self.asked.is_empty() {
            self.shared.course().unknown(Instant::now());
            return;
        }
        let now = Instant::now();
        self.resting.retain(|_, until| *until > now);
        let awake = |server: &&Server| !self.resting.contains_key(*server);
        let servers: Vec<Server> = self.asked.iter().filter(awake).cloned().collect();
        let (samples, mut refusals) = ask::ask(&servers);
        let now = Instant::now();
        for refusal in &refusals {
            log::debug!("time server {}: {}", refusal.server, refusal.why);
            if refusal.rest {
                log::warn!(
                    "time server {}: {}; left alone",
                    refusal.server,
                    refusal.why
                );
                self.resting.insert(refusal.server.clone(), now + REST);
            }
        }
        let rests = |server: &&Server| !servers.contains(*server);
        refusals.extend(self.asked.iter().filter(rests).map(|server| ask::Refusal {
            server: server.clone(),
            why: "it does not want to be asked".to_owned(),
            rest: true,
        }));
        let shared = Arc::clone(&self.shared);
        // Held until the clock is right: who waits for that must not go on before.
        let mut course = shared.course();
        let act = course.heard(&samples, &refusals, now, random());
        if let Err(failure) = self.put_right(act) {
            course.failed(failure.to_string());
        }
        let error_us = samples.iter().map(|sample| sample.delay_us / 2).max();
        let marked = match (course.status(now).synchronised, error_us) {
            (true, None) => Ok(()),
            (true, error_us) => self.clock.mark(error_us),
            (false, _) => self.clock.mark(None),
        };
        if let Err(failure) = marked {
            log::warn!("{failure}");
        }
    }

    fn put_right(&mut self, act: Act) -> Outcome<()> {
        match act {
            Act::Rate { ppm } => self.clock.rate(ppm),
            Act::Step { by_us, when } => {
                self.clock.rate(0)?;
                self.clock.step(by_us)?;
                let (ms, way) = (by_us.unsigned_abs() / 1000, way(by_us));
                let amount = format!("{}.{:03} s", ms / 1000, ms % 1000);
                match when {
                    When::Boot => log::info!("the clock was set {way} by {amount}"),
                    When::Running => log::error!(
                        "the clock was wrong and was set {way} by {amount} while in use"
                    ),
                }
                Ok(())
            }
        }
    }

    /// Whoever waits, the log and the file, if there is something new.
    fn tell(&mut self) {
        let status = self.shared.course().status(Instant::now());
        self.shared.moved.notify_all();
        let now = (status.synchronised, status.why);
        if self.said.as_ref() == Some(&now) {
            return;
        }
        let (synchronised, why) = &now;
        let before = self.said.as_ref().map(|(synchronised, _)| *synchronised);
        match (before, synchronised) {
            (Some(true), true) => log::debug!("the clock: {why}"),
            (_, true) => log::info!("the clock is synchronised: {why}"),
            (_, false) => log::warn!("the clock is not synchronised: {why}"),
        }
        let text = json!({"synchronised": synchronised, "why": why}).to_string();
        match durable::write(&self.file, text.as_bytes()) {
            Ok(()) => self.said = Some(now),
            Err(failure) => log::error!("{failure}"),
        }
    }
}

fn way(by_us: i64) -> &'static str {
    if by_us < 0 { "back" } else { "forward" }
}

/// Between two looks whether others know servers now, and whether the last answer is too old.
const LOOK: Duration = Duration::from_secs(2);
/// RFC 4330 section 8: who says so is not asked again; an hour later it may be another server.
const REST: Duration = Duration::from_secs(3600);
