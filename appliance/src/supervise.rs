//! The daemon: started, watched, started again, stopped in order.
//!
//! It says by sd_notify(3) that it is ready, that it lives, and what it does. One thread owns all
//! of this and hears everything through one channel; others read the [`Told`] it leaves.

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pghoard::{Failure, Outcome};
use serde::Serialize;

use crate::children::{self, Children, Ended, lock};
use crate::settings::EFFECTIVE;
use crate::settings::store::{DAEMON, give};

const NOTIFY: &str = "/run/pghoard/notify";
/// All there is in the image, by whatever name it is called.
pub const PROGRAM: &str = "/bin/pghoard";
/// Without a sign of life for so long the daemon hangs.
pub const SILENT_MAX: Duration = Duration::from_secs(60);
/// Opening a log of years is work that says nothing meanwhile.
const START_MAX: Duration = Duration::from_secs(600);
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// After so long a run the next failure is a first one again.
const RAN_WELL: Duration = Duration::from_secs(300);
/// The daemon asks for more while it stores what it holds; 30 s at a time.
const STOP_WITHIN: Duration = Duration::from_secs(60);
const KILL_WITHIN: Duration = Duration::from_secs(10);
const TURN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// There are no settings to run it with.
    #[serde(rename = "not configured")]
    NotConfigured,
    Starting,
    Running,
    /// It ended; it will be started again.
    Failed,
    Stopping,
    /// By a person.
    Stopped,
}

/// What others may know.
#[derive(Clone, Debug)]
pub struct Told {
    pub state: State,
    pub since: Instant,
    pub restarts: u64,
    /// Its own words, or how it ended.
    pub status: String,
    /// The last sign of life of a daemon that runs.
    pub alive: Option<Instant>,
    /// When this thread last turned: it may hang as well.
    pub turned: Instant,
    /// When it last ended by itself, and how.
    pub failed: Option<(Instant, String)>,
    /// Since when it runs without a word of failure.
    pub healthy_since: Option<Instant>,
}

#[derive(Debug)]
pub enum Order {
    /// Settings are there: run.
    Run,
    /// Read them again, without a break.
    Reload,
    Restart,
    Stop,
    /// Answers when no daemon runs any more; none is started after it.
    Finish(Sender<()>),
}

enum Heard {
    Order(Order),
    Said(String),
    Ended(Ended),
}

#[derive(Clone)]
pub struct Supervisor {
    heard: Sender<Heard>,
    told: Arc<Mutex<Told>>,
}

impl Supervisor {
    /// `environment` and `log` (its standard error) are the daemon's.
    pub fn start(
        children: &Arc<Children>,
        environment: Vec<(&'static str, String)>,
        log: std::os::fd::OwnedFd,
    ) -> Outcome<Supervisor> {
        let about = |e: std::io::Error| Failure::io(&e, "supervisor");
        let _from_another_life = std::fs::remove_file(NOTIFY);
        let socket = UnixDatagram::bind(NOTIFY).map_err(about)?;
        give(Path::new(NOTIFY), Some(DAEMON))?;
        let (heard, hears) = channel();
        let now = Instant::now();
        let told = Arc::new(Mutex::new(Told {
            state: State::NotConfigured,
            since: now,
            restarts: 0,
            status: String::new(),
            alive: None,
            turned: now,
            failed: None,
            healthy_since: None,
        }));
        let keeper = Keeper {
            children: Arc::clone(children),
            environment,
            log,
            heard: heard.clone(),
            told: Arc::clone(&told),
            wanted: false,
            finished: None,
            over: false,
            child: None,
            started: now,
            deadline: None,
            backoff: BACKOFF_FIRST,
        };
        let said = heard.clone();
        children::thread("notify", move || listen(&socket, &said))?;
        children::thread("supervise", move || keeper.run(&hears))?;
        Ok(Supervisor { heard, told })
    }

    pub fn order(&self, order: Order) {
        let _the_thread_lives = self.heard.send(Heard::Order(order));
    }

    /// Stops the daemon for good and waits until it has.
    pub fn finish(&self) {
        let (done, heard) = channel();
        self.order(Order::Finish(done));
        let _ended = heard.recv();
    }

    pub fn told(&self) -> Told {
        lock(&self.told).clone()
    }
}

fn listen(socket: &UnixDatagram, heard: &Sender<Heard>) {
    let mut buffer = [0; 4_096];
    loop {
        let Ok(length) = socket.recv(&mut buffer) else {
            thread::sleep(TURN);
            continue;
        };
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        for line in text.lines() {
            if heard.send(Heard::Said(line.to_owned())).is_err() {
                return;
            }
        }
    }
}

struct Keeper {
    children: Arc<Children>,
    environment: Vec<(&'static str, String)>,
    log: std::os::fd::OwnedFd,
    heard: Sender<Heard>,
    told: Arc<Mutex<Told>>,
    wanted: bool,
    finished: Option<Sender<()>>,
    over: bool,
    child: Option<Pid>,
    started: Instant,
    /// When what is going on has taken too long: a start, a stop, a pause.
    deadline: Option<Instant>,
    backoff: Duration,
}

impl Keeper {
    fn run(mut self, hears: &Receiver<Heard>) {
        loop {
            match hears.recv_timeout(TURN) {
                Ok(Heard::Order(order)) => self.obey(order),
                Ok(Heard::Said(line)) => self.hear(&line),
                Ok(Heard::Ended(ended)) => self.ended(&ended),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.look();
            lock(&self.told).turned = Instant::now();
        }
    }

    fn obey(&mut self, order: Order) {
        // The end has begun: nothing starts any more.
        if self.over && !matches!(order, Order::Finish(_)) {
            return;
        }
        match order {
            Order::Run => self.wanted = true,
            Order::Reload => match self.child {
                Some(child) => self.children.signal(child, Signal::SIGHUP),
                None if self.state() == State::Stopped => {}
                None => self.wanted = true,
            },
            Order::Restart => {
                self.wanted = true;
                self.backoff = BACKOFF_FIRST;
                match self.child {
                    Some(_) => self.stop(),
                    None => self.deadline = None,
                }
            }
            Order::Stop => {
                self.wanted = false;
                match self.child {
                    Some(_) => self.stop(),
                    None => self.say(State::Stopped, "stopped at the console"),
                }
            }
            Order::Finish(done) => {
                self.wanted = false;
                self.over = true;
                match self.child {
                    Some(_) => {
                        self.finished = Some(done);
                        self.stop();
                    }
                    None => {
                        let _nobody_waits = done.send(());
                    }
                }
            }
        }
    }

    /// Once: a second signal would have the daemon end in haste.
    fn stop(&mut self) {
        if let Some(child) = self.child.filter(|_| self.state() != State::Stopping) {
            self.children.signal(child, Signal::SIGTERM);
            self.deadline = Some(Instant::now() + STOP_WITHIN);
            self.say(State::Stopping, "storing what it holds");
        }
    }

    fn hear(&mut self, line: &str) {
        let now = Instant::now();
        match line.split_once('=') {
            Some(("READY", "1")) if self.state() == State::Starting => {
                self.deadline = None;
                self.say(State::Running, "");
                let mut told = lock(&self.told);
                told.alive = Some(now);
                told.healthy_since = Some(now);
            }
            Some(("WATCHDOG", "1")) => lock(&self.told).alive = Some(now),
            Some(("STATUS", text)) => text.clone_into(&mut lock(&self.told).status),
            Some(("EXTEND_TIMEOUT_USEC", text)) => {
                let more = Duration::from_micros(text.parse().unwrap_or_default());
                let deadline = now + more.min(START_MAX);
                self.deadline = self.deadline.map(|old| old.max(deadline));
            }
            _ => {}
        }
    }

    fn ended(&mut self, ended: &Ended) {
        self.child = None;
        self.deadline = None;
        if let Some(done) = self.finished.take() {
            let _nobody_waits = done.send(());
        }
        let stopping = self.state() == State::Stopping;
        if stopping && !self.wanted {
            return self.say(State::Stopped, "stopped");
        }
        if stopping {
            return self.say(State::Starting, "starts again");
        }
        if self.started.elapsed() >= RAN_WELL {
            self.backoff = BACKOFF_FIRST;
        }
        log::error!(
            "the daemon {}; starting it again in {:?}",
            ended.text,
            self.backoff
        );
        let now = Instant::now();
        self.deadline = Some(now + self.backoff);
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        lock(&self.told).failed = Some((now, ended.text.clone()));
        self.say(State::Failed, &format!("{}; the log says why", ended.text));
    }

    /// What time makes due.
    fn look(&mut self) {
        let late = self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline);
        match (self.child, self.state()) {
            (None, _) if self.wanted && (self.deadline.is_none() || late) => self.begin(),
            (Some(child), State::Starting) if late => {
                log::error!("the daemon is not ready after {START_MAX:?}");
                self.end(child);
            }
            (Some(child), State::Running) => {
                let alive = lock(&self.told).alive;
                let silent = alive.is_none_or(|at| at.elapsed() > SILENT_MAX);
                if silent && (self.deadline.is_none() || late) {
                    log::error!("the daemon gave no sign of life for {SILENT_MAX:?}");
                    self.end(child);
                }
            }
            (Some(child), State::Stopping) if late => self.end(child),
            _ => {}
        }
    }

    /// By force; once more where that was not enough.
    fn end(&mut self, child: Pid) {
        self.children.signal(child, Signal::SIGKILL);
        self.deadline = Some(Instant::now() + KILL_WITHIN);
    }

    fn begin(&mut self) {
        self.started = Instant::now();
        match self.spawn() {
            Ok(child) => {
                self.child = Some(child);
                self.deadline = Some(Instant::now() + START_MAX);
                let mut told = lock(&self.told);
                told.restarts += 1;
                drop(told);
                self.say(State::Starting, "starting");
            }
            Err(failure) => {
                log::error!("{failure}");
                self.deadline = Some(Instant::now() + self.backoff);
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                self.say(State::Failed, &failure.to_string());
            }
        }
    }

    fn spawn(&self) -> Outcome<Pid> {
        let log = || {
            let pipe = self.log.try_clone();
            pipe.map_err(|e| Failure::io(&e, "the daemon's log"))
        };
        let mut command = Command::new(PROGRAM);
        command
            .args(["--config", EFFECTIVE])
            .env_clear()
            .env("NOTIFY_SOCKET", NOTIFY)
            .env("WATCHDOG_USEC", SILENT_MAX.as_micros().to_string())
            .env("HOME", "/data/pghoard")
            .env("PATH", "/bin")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .uid(DAEMON)
            .gid(DAEMON)
            .stdin(Stdio::null())
            .stdout(log()?)
            .stderr(log()?);
        let heard = self.heard.clone();
        self.children.start(&mut command, move |ended| {
            let _the_thread_lives = heard.send(Heard::Ended(ended));
        })
    }

    fn state(&self) -> State {
        lock(&self.told).state
    }

    fn say(&self, state: State, status: &str) {
        let mut told = lock(&self.told);
        if told.state != state {
            told.since = Instant::now();
        }
        told.state = state;
        status.clone_into(&mut told.status);
        if state != State::Running {
            told.alive = None;
            told.healthy_since = None;
        }
    }
}
