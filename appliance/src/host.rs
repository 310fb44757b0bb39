//! The running machine: everything that threads of PID 1 share, and what may be asked of it.

use std::fs;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use machine::Class;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::sethostname;
use pghoard::config::{Config, reload};
use pghoard::{Failure, Outcome, durable, report};
use serde_json::{Value, json};

use crate::children::{Children, lock};
use crate::diary::Diary;
use crate::disk::{self, Device};
use crate::network::Network;
use crate::power::How;
use crate::settings::store::{DAEMON, Past, Store, give};
use crate::settings::{self, EFFECTIVE, Settings, source};
use crate::supervise::{Order, Supervisor};
use crate::time::Time;
use crate::update::trial::Trial;

pub mod troubles;

pub const DATA: &str = "/data";
/// Whether the clock is synchronised, for the daemon.
pub const CLOCK: &str = "/run/pghoard/clock.json";
/// A clock that is right before the daemon looks at it is worth a short wait.
const TIME_WITHIN: Duration = Duration::from_secs(5);
pub const HOSTNAME: &str = "pghoard";

pub struct Host {
    pub children: Arc<Children>,
    pub diary: Diary,
    pub supervisor: Supervisor,
    pub network: Arc<Network>,
    pub time: Time,
    pub trial: Trial,
    pub power: Sender<(How, String)>,
    pub started: Instant,
    /// The data partition, or why there is none.
    pub data: Result<Device, String>,
    pub store: Option<Store>,
    /// Held by who changes the settings.
    pub change: Mutex<()>,
    pub inforce: Mutex<InForce>,
}

/// The settings that the machine runs by.
#[derive(Default)]
pub struct InForce {
    pub settings: Option<Settings>,
    /// Where they came from: `drive`, `fw_cfg`, `smbios`, `data` or who at a console.
    pub source: String,
    /// Why others were not taken.
    pub problem: Option<String>,
}

impl Host {
    pub fn inforce(&self) -> MutexGuard<'_, InForce> {
        lock(&self.inforce)
    }

    fn store(&self) -> Outcome<&Store> {
        self.store.as_ref().ok_or_else(|| {
            let why = self.data.as_ref().err().cloned().unwrap_or_default();
            Failure::new(Class::Config, format!("nothing can be kept: {why}"))
        })
    }

    /// At boot: what a source says that is new, else the last good ones.
    pub fn take_settings(&self) {
        let found = source::find().unwrap_or_else(|failure| {
            self.inforce().problem = Some(failure.to_string());
            None
        });
        if let (Some(found), Some(store)) = (&found, &self.store)
            && let Some(read) = source::news(found, store)
        {
            let taken = read.and_then(|settings| {
                source::put_files(found, store)?;
                self.apply(settings, found.source)?;
                source::note_taken(found, store)
            });
            match taken {
                Ok(()) => return,
                Err(failure) => {
                    log::error!("settings of the {}: {failure}", found.source);
                    self.inforce().problem = Some(format!("{}: {failure}", found.source));
                }
            }
        }
        // Without a data partition the drive's own settings still bring up network and console.
        let last = match (&self.store, found) {
            (Some(store), _) => store.current().or_else(|failure| {
                log::error!("the settings that are kept: {failure}");
                self.inforce().problem.get_or_insert(failure.to_string());
                Ok(store.last_good())
            }),
            (None, Some(found)) => Settings::read(&found.bytes, Path::new(found.source)).map(Some),
            (None, None) => Ok(None),
        };
        match last {
            Ok(Some(settings)) => {
                if let Err(failure) = self.put_in_force(settings, "data") {
                    log::error!("{failure}");
                    self.inforce().problem.get_or_insert(failure.to_string());
                }
            }
            Ok(None) => {}
            Err(failure) => {
                log::error!("the settings that are kept: {failure}");
                self.inforce().problem.get_or_insert(failure.to_string());
            }
        }
    }

    /// Keeps them and goes by them. `who` is a person, or the source.
    pub fn apply(&self, settings: Settings, who: &str) -> Outcome<(Past, bool)> {
        let _alone = self.change.lock();
        let past = self.store()?.adopt(&settings, who)?;
        let restart = self.put_in_force(settings, who)?;
        self.inforce().problem = None;
        Ok((past, restart))
    }

    /// Whether the daemon has to start anew for it.
    fn put_in_force(&self, settings: Settings, source: &str) -> Outcome<bool> {
        let effective = Path::new(EFFECTIVE);
        durable::write_own(effective, &settings::pretty(&settings.effective))?;
        give(effective, Some(DAEMON))?;
        let (first, restart) = match &self.inforce().settings {
            Some(old) => (false, needs_restart(&old.config, &settings.config)),
            None => (true, true),
        };
        let hostname = settings.appliance.hostname.as_deref().unwrap_or(HOSTNAME);
        sethostname(hostname).map_err(|e| Failure::io(&e.into(), "hostname"))?;
        report::syslog::send_to(settings.config.syslog.as_ref());
        let appliance = &settings.appliance;
        self.network.apply(appliance.network.clone(), hostname);
        self.time.apply(appliance.time.clone());
        for warning in &settings.warnings {
            log::warn!("settings: {warning}");
        }
        let asked = !appliance.time.servers.is_empty();
        let mut inforce = self.inforce();
        inforce.settings = Some(settings);
        source.clone_into(&mut inforce.source);
        drop(inforce);
        if first && asked && !self.time.first_sync(TIME_WITHIN) {
            log::warn!("no time server answered within {TIME_WITHIN:?}");
        }
        if self.data.is_ok() {
            self.supervisor.order(match (first, restart) {
                (true, _) => Order::Run,
                (false, true) => Order::Restart,
                (false, false) => Order::Reload,
            });
        }
        Ok(restart)
    }

    pub fn roll_back(&self, name: &str, who: &str) -> Outcome<(Past, bool)> {
        let settings = self.store()?.past(name)?;
        self.apply(settings, who)
    }

    pub fn history(&self) -> Outcome<Vec<Past>> {
        Ok(self.store()?.history())
    }

    /// Puts the drive's files in place; its document is for who asked, to look at and to apply.
    pub fn import(&self) -> Outcome<Value> {
        let Some(found) = source::drive()? else {
            let message = format!("no drive is labelled {}", source::LABEL);
            return Err(Failure::new(Class::NotFound, message));
        };
        let settings = Settings::read(&found.bytes, Path::new(found.source))?;
        source::put_files(&found, self.store()?)?;
        source::note_taken(&found, self.store()?)?;
        Ok(settings.document)
    }

    pub fn repair_disk(&self) -> Outcome<()> {
        let device = disk::partition(disk::PARTITION)?;
        let device = device.ok_or_else(|| disk::trouble("there is no data partition"))?;
        if self.data.is_ok() {
            return Err(disk::trouble(
                "the data partition is in use and was found in order",
            ));
        }
        disk::check(&device.node(), "-y", &self.children)
    }

    pub fn status(&self) -> Value {
        let daemon = self.supervisor.told();
        let inforce = self.inforce();
        let settings = json!({ "source": inforce.source, "problem": inforce.problem });
        let configured = inforce.settings.is_some();
        drop(inforce);
        let hostname = nix::unistd::gethostname().ok();
        json!({
            "hostname": hostname.map(|name| name.to_string_lossy().into_owned()),
            "version": env!("CARGO_PKG_VERSION"),
            "slot": self.trial.slot(),
            "trial": self.trial.told(self),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "configured": configured,
            "daemon": {
                "state": daemon.state,
                "since_seconds": daemon.since.elapsed().as_secs(),
                "restarts": daemon.restarts.saturating_sub(1),
                "status": daemon.status,
            },
            "settings": settings,
            "network": self.network.status(),
            "dns": self.network.dns(),
            "time": self.time.status(),
            "disk": self.disk(),
            "memory": memory(),
        })
    }

    /// What an error made of a data partition that was found in order.
    pub fn disk_broken(&self) -> Option<&'static str> {
        let room = statvfs(DATA).ok().filter(|_| self.data.is_ok())?;
        let broken = room.flags().contains(FsFlags::ST_RDONLY);
        broken.then_some("it had an error and takes no writes; a restart checks it")
    }

    fn disk(&self) -> Value {
        let room = statvfs(DATA).ok().filter(|_| self.data.is_ok());
        let bytes = |blocks: u64| room.map(|room| blocks.saturating_mul(room.fragment_size()));
        json!({
            "device": self.data.as_ref().ok().map(|device| device.node()),
            "problem": self.data.as_ref().err().map(String::as_str).or(self.disk_broken()),
            "total_bytes": room.and_then(|room| bytes(room.blocks())),
            "free_bytes": room.and_then(|room| bytes(room.blocks_available())),
        })
    }
}

fn needs_restart(old: &Config, new: &Config) -> bool {
    !reload::keep(old, &mut new.clone()).is_empty()
}

fn memory() -> Value {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let number = line.trim_start_matches(':').trim().split(' ').next()?;
        number.parse::<u64>().ok().map(|kib| kib * 1_024)
    };
    json!({
        "total_bytes": bytes("MemTotal"),
        "available_bytes": bytes("MemAvailable"),
        "processes": processes(),
    })
}

/// All but the kernel's own, which have no command line.
fn processes() -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_one = |path: &Path| fs::read(path.join("cmdline")).is_ok_and(|line| !line.is_empty());
    let numbered = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.parse::<u32>().is_ok())
    };
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| numbered(path) && is_one(path)).count()
}
