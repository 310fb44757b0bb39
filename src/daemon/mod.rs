//! The daemon: the real world around the loop.
//!
//! Threads: the loop (this one), one a running task, two for signals, one for HTTP. Tasks report
//! through one bounded channel; the loop alone writes the log and decides.
//!
//! - [`site`]: what a site's configuration amounts to: stores, spools, connections, policy.
//! - `front`: what others see: alert files, the state file, metrics.
//! - [`world`]: tasks as threads; `take` is the longest of them.
//! - [`reload`]: another configuration between two turns. `notify`, `status`: the service manager.
//! - [`surroundings`]: whether this machine's clock is set, and what is wrong with the machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use machine::event::Previous;
use machine::policy::Drain;
use machine::{Class, Event, Millis, Site, State};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::clock;
use crate::config::Config;
use crate::failure::{Failure, Outcome};
use crate::journal::log::{self, Log};
use crate::journal::run::{GROUP_MAX, Loop, Report, World};
use crate::journal::start;
use crate::serve::{self, archive::Desk};
use crate::work::lease::Identity;

mod front;
mod notify;
pub mod reload;
pub mod signals;
pub mod site;
mod status;
pub mod surroundings;
mod take;
mod tenant;
mod verify;
pub mod world;

use front::Front;
use notify::Notify;
use reload::{Read, Source};
use signals::Signals;
use site::SiteContext;
use surroundings::{Synchrony, Troubles};
use world::RealWorld;

/// Reports that may wait for the loop; a task that reports more waits itself.
const REPORTS_MAX: usize = 1_024;
/// The loop turns at least this often: time itself makes things due.
const TURN: Duration = Duration::from_secs(1);
/// Given away when the disk is full, so that the log can say so.
const BALLAST_BYTES: u64 = 4 << 20;
const HELD_ELSEWHERE: Duration = Duration::from_secs(3);
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

pub struct Daemon {
    machine: Loop<RealWorld>,
    reports: Receiver<Report>,
    signals: Arc<Signals>,
    log_path: PathBuf,
    entries: Arc<AtomicU64>,
    http: serve::Handle,
    notify: Notify,
    synchrony: Synchrony,
    troubles: Troubles,
    source: Source,
    /// The file as it was last taken into use, to name what is new in the next one.
    raw: Value,
    /// Since when the log cannot be written, and why, until a turn succeeds.
    suffering: Option<(Millis, String)>,
}

impl Daemon {
    /// Everything up to the first turn: opens stores, spools and the log, and says what is there.
    pub fn start(source: Source, read: Read) -> Outcome<Daemon> {
        let (sender, reports) = sync_channel(REPORTS_MAX);
        let signals = Arc::new(Signals::default());
        signals::watch(signals::EARLY, &signals, sender.clone())?;
        let Read { config, raw } = read;
        let config = &Arc::new(config);
        let spool_root = config.backup_location.as_deref().ok_or_else(|| {
            Failure::new(Class::Config, "backup_location is not set")
                .hint("name a directory for the event log and the WAL on its way")
        })?;
        fs::create_dir_all(spool_root).map_err(|e| Failure::io(&e, spool_root.display()))?;
        // First of all, because it keeps a second daemon from touching what belongs to the first.
        let log_path = spool_root.join(log::FILE_NAME);
        let (mut log, mut state) = open_or_rebuild(&log_path)?;
        place_ballast(&log_path);
        let sites = site::open_all(config, spool_root, &Sites::new())?;
        let policy = site::policy(config, &sites);

        let identity = Identity::of(spool_root, &site::host_name())?;
        let run = state.run.saturating_add(1);
        let mut next_entry = run << 32;
        let mut events = vec![(None, started(config, &state))];
        if let Some(by_ms) = clock::behind(state.at) {
            events.push((None, Event::ClockJumped { by_ms }));
        }
        for (name, site) in &sites {
            let known = state.sites.get(name).cloned().unwrap_or_default();
            let scan = start::scan(&known, &site.spool.scan()?, &mut next_entry);
            events.extend(site.found(scan)?);
        }
        let entries = Arc::new(AtomicU64::new(next_entry.saturating_add(1)));
        signals::watch(signals::LATER, &signals, sender.clone())?;
        let doors = site::doors(config, &sites);
        let desk = Arc::new(Desk::new(doors, Arc::clone(&entries), sender.clone()));
        let front = Front::new(config, &state, &policy, Arc::clone(&desk))?;
        let http = serve::start(serve::Context {
            config: Arc::clone(config),
            document: Arc::clone(&front.document),
            metrics: front.metrics.exposition(),
            reports: sender.clone(),
            desk,
            around: serve::Around::from_environment(),
        })?;
        let shared = (Arc::clone(&entries), identity);
        let mut world = RealWorld::new(config, sites, sender, shared, front);
        let now = clock::not_before(state.at);
        for group in events.chunks(GROUP_MAX) {
            for envelope in log.append(now, run, group.to_vec())? {
                state.apply(&envelope);
                world.told(&envelope);
            }
        }
        Ok(Daemon {
            machine: Loop::new(world, policy, log, state),
            reports,
            signals,
            log_path,
            entries,
            http,
            notify: Notify::from_environment(),
            synchrony: Synchrony::from_environment(),
            troubles: Troubles::from_environment(),
            source,
            raw,
            suffering: None,
        })
    }

    /// Turns until a signal says stop, then drains.
    pub fn run(mut self) -> Outcome<()> {
        // Once the state file is written: who waited for us may ask.
        self.look_around();
        self.take_in(Vec::new())?;
        self.notify.ready();
        while !self.signals.stop() {
            if self.signals.reload() {
                self.reload()?;
            }
            self.look_around();
            self.turn()?;
        }
        self.notify.stopping();
        self.drain()?;
        self.goodbye()
    }

    /// First what is spooled goes on its way to the store while WAL still comes in, then what is on
    /// its way ends. What fails is left to the next start, so a store that is down delays nobody; a
    /// basebackup that runs is broken off and taken anew by the next start.
    fn drain(&mut self) -> Outcome<()> {
        let config = Arc::clone(&self.machine.world.config);
        for (stage, limit) in [
            (Drain::Storing, config.graceful_shutdown_compression_timeout),
            (Drain::Ending, config.graceful_shutdown_upload_timeout),
        ] {
            self.machine.policy.draining = stage;
            self.take_in(Vec::new())?;
            let began = Instant::now();
            let done = |daemon: &Daemon| daemon.machine.busy.is_empty();
            while !done(self)
                && !self.signals.stop_now()
                && limit.is_none_or(|limit| began.elapsed() < limit)
            {
                self.notify.extend();
                self.turn()?;
            }
        }
        Ok(())
    }

    fn goodbye(&mut self) -> Outcome<()> {
        self.machine.policy.draining = Drain::Ending;
        let running = self.machine.busy.len();
        let mut reason = "asked to".to_owned();
        if running > 0 {
            reason.push_str(&format!(", in haste: {running} tasks were cut off"));
        }
        if let Some(left) = status::left(&self.machine.state) {
            ::log::warn!(
                "left in the spool: {left}; nothing is lost, the next start stores it (the server \
                 keeps what was not acknowledged)"
            );
            reason.push_str(&format!("; in the spool: {left}"));
        }
        let goodbye = Report::outside(None, Event::Stopped { reason });
        self.machine.turn(vec![goodbye])?;
        self.show();
        Ok(())
    }

    fn show(&mut self) {
        let Loop {
            world,
            state,
            policy,
            busy,
            ..
        } = &mut self.machine;
        world.show(state, policy, busy);
    }

    fn look_around(&mut self) {
        let Loop { world, policy, .. } = &mut self.machine;
        policy.maintenance = world.config.maintenance_mode_file.exists();
        let now = clock::now();
        policy.unsynchronised = self.synchrony.look(now);
        policy.troubles = self.troubles.look(now).to_vec();
        let suffers = self.suffering.as_ref();
        policy.troubles.extend(suffers.map(|(since, why)| {
            let what = format!("the event log cannot be written: {why}");
            (*since, what)
        }));
        let cramped = world.cramped();
        for (name, site) in &mut policy.sites {
            site.cramped_since = cramped.get(name).copied();
        }
    }

    fn turn(&mut self) -> Outcome<()> {
        let mut reports = Vec::new();
        match self.reports.recv_timeout(self.notify.turn(TURN)) {
            Ok(report) => reports.push(report),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        reports.extend(self.reports.try_iter().take(GROUP_MAX));
        if let Some(by_ms) = clock::jump() {
            reports.push(Report::outside(None, Event::ClockJumped { by_ms }));
        }
        self.take_in(reports)
    }

    fn take_in(&mut self, reports: Vec<Report>) -> Outcome<()> {
        match self.machine.turn(reports) {
            Ok(()) if self.suffering.take().is_some() => {
                ::log::info!("the event log is written again; nothing was lost");
                place_ballast(&self.log_path);
            }
            Ok(()) => {}
            Err(failure) => {
                if failure.class == Class::DiskFull {
                    let _ = fs::remove_file(ballast(&self.log_path));
                }
                if self.machine.is_open() {
                    self.complain(failure.about(self.log_path.display()));
                }
                self.reopen()?;
                // An alarm must not wait for a log that cannot be written.
                self.look_around();
                self.show();
            }
        }
        self.notify.alive(&self.machine.world.front.status);
        Ok(())
    }

    /// After a failure of its storage the log is opened again; nothing that was reported is lost.
    /// A log that turns out to be damaged ends the daemon: the next start sets it aside.
    fn reopen(&mut self) -> Outcome<()> {
        let path = self.log_path.clone();
        let reopened = self.machine.reopen(|| {
            let mut state = State::default();
            let log = Log::open(&path, &mut |envelope| state.apply(envelope))?;
            Ok((log, state))
        });
        if let Err(failure) = reopened {
            if failure.class == Class::Corrupt {
                return Err(failure.hint("start again: the log is set aside then and rebuilt"));
            }
            self.complain(failure);
        }
        thread::sleep(REOPEN_PAUSE);
        Ok(())
    }

    /// The same trouble is told once, however many tries it lasts.
    fn complain(&mut self, failure: Failure) {
        let text = failure.to_string();
        let told = self.suffering.as_ref();
        if told.is_none_or(|(_, told)| *told != text) {
            crate::report::error(&text);
            let since = told.map_or_else(clock::now, |(since, _)| *since);
            self.suffering = Some((since, text));
        }
    }
}

fn started(config: &Config, state: &State) -> Event {
    let previous = match (state.run, state.stopped) {
        (0, _) => Previous::Unknown,
        (_, true) => Previous::Clean,
        (_, false) => Previous::Crashed,
    };
    Event::Started {
        version: env!("CARGO_PKG_VERSION").into(),
        host: site::host_name(),
        previous,
        config_digest: digest(config),
    }
}

/// Debug forms of secrets are blank, so it says only whether the settings changed.
fn digest(config: &Config) -> String {
    hex::encode(Sha256::digest(format!("{config:?}").as_bytes()))
}

/// The log and its fold. A damaged one is set aside and an empty one begun, which says so at once:
/// whatever else keeps this start from succeeding, the next one knows.
fn open_or_rebuild(path: &Path) -> Outcome<(Log, State)> {
    let open = || -> Outcome<(Log, State)> {
        let mut state = State::default();
        let log = Log::open(path, &mut |envelope| state.apply(envelope))?;
        Ok((log, state))
    };
    // A tool that looks at the log of a daemon that was killed holds it for a moment.
    let failure = match log::patiently(HELD_ELSEWHERE, open) {
        Err(failure) if failure.class == Class::Corrupt => failure,
        other => return other,
    };
    let aside = log::set_aside(path)?;
    let reason = format!("{failure}; kept as '{}'", aside.display());
    crate::report::error(&format!("{reason}; the log is rebuilt from the stores"));
    let (mut log, mut state) = open()?;
    let rebuilt = vec![(None, Event::LogRebuilt { reason })];
    for envelope in log.append(clock::now(), state.run, rebuilt)? {
        state.apply(&envelope);
    }
    Ok((log, state))
}

fn ballast(log_path: &Path) -> PathBuf {
    log_path.with_extension("ballast")
}

/// Best effort: on a disk without room for it there is nothing to give away.
fn place_ballast(log_path: &Path) {
    let path = ballast(log_path);
    if !path.exists() {
        // Not from one buffer: glibc takes the largest block ever freed for a size to keep.
        let mut zeros = io::repeat(0).take(BALLAST_BYTES);
        let _ = File::create(path).and_then(|mut file| io::copy(&mut zeros, &mut file));
    }
}

pub(crate) type Sites = BTreeMap<Site, Arc<SiteContext>>;
