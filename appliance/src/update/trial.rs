//! The slots of this machine: updates come in, are tried, and are kept or given up.
//!
//! The EFI system partition is mounted only while it is looked at or changed, by one at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use bundle::release::Release;
use machine::Class;
use nix::mount::{MsFlags, mount, umount};
use pghoard::{Failure, Outcome, durable};
use serde_json::{Value, json};

use super::esp::Esp;
use super::slots::{self, Tries};
use super::verdict::{self, Back, Limits, Seen, Verdict, Work};
use super::{change, keys};
use crate::children::lock;
use crate::disk;
use crate::host::Host;
use crate::lines;
use crate::power::How;
use crate::settings::source;
use crate::supervise::State;

const RELEASE: &str = "/etc/os-release";
const KEY: &str = "/etc/update.pub";
const PARTITION: &str = "esp";
const MOUNTED: &str = "/run/esp";
/// Of a bundle on a configuration drive.
const ENDING: &str = "bundle";

pub struct Trial {
    /// Of the program that runs; none where nobody made an image of it.
    running: Option<Release>,
    started: Instant,
    /// Held while the partition is mounted.
    known: Mutex<Known>,
    /// The version whose trial failed; until another takes its place.
    failed: Mutex<Option<String>>,
}

#[derive(Clone, Copy, Default)]
struct Known {
    /// `None` if what runs is confirmed.
    trial: Option<Back>,
}

impl Trial {
    /// Looks which program was started, and whether its tries are counted.
    pub fn start() -> Trial {
        let text = fs::read_to_string(RELEASE).unwrap_or_default();
        let running = Release::parse(&text);
        if let Err(refused) = &running {
            log::warn!("{RELEASE}: {refused}; there is nothing to update");
        }
        let trial = Trial {
            running: running.ok(),
            started: Instant::now(),
            known: Mutex::default(),
            failed: Mutex::default(),
        };
        if let Err(failure) = trial.look_at_slots() {
            log::warn!("slots: {failure}");
        }
        trial
    }

    fn look_at_slots(&self) -> Outcome<()> {
        let mut known = self.known();
        let (trial, failed) = self.with_esp(|esp, running| {
            let (slots, _) = esp.list()?;
            let told = slots::told(&slots, running);
            let failed = told.iter().find(|slot| slot.state == slots::State::Failed);
            let failed = failed.map(|slot| slot.version.to_string());
            let booted = slots::booted(&slots, running);
            let counted = booted.is_some_and(|slot| slot.tries != Tries::Confirmed);
            let back = match change::way_back(&slots, running) {
                Some(_) => Back::Open,
                None => Back::Shut,
            };
            Ok((counted.then_some(back), failed))
        })?;
        known.trial = trial;
        *lock(&self.failed) = failed;
        if known.trial.is_some() {
            log::info!("this version is on trial");
        }
        Ok(())
    }

    /// An update that did not prove itself; the version before runs.
    pub fn failed(&self) -> Option<String> {
        let failed = lock(&self.failed);
        let version = failed.as_ref()?;
        Some(format!(
            "version {version} failed its trial, the one before it runs; install another, or go on \
             without"
        ))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    fn with_esp<T>(&self, run: impl FnOnce(&Esp, &Release) -> Outcome<T>) -> Outcome<T> {
        let running = self.running.as_ref().ok_or_else(|| {
            Failure::new(
                Class::Unsupported,
                "this program does not run from an image",
            )
        })?;
        let device = disk::partition(PARTITION)?.ok_or_else(|| {
            let message = format!("no disk has a partition named '{PARTITION}'");
            Failure::new(Class::NotFound, message)
        })?;
        let place = Path::new(MOUNTED);
        fs::create_dir_all(place).map_err(|e| Failure::io(&e, MOUNTED))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let node = device.node();
        mount(
            Some(&node),
            place,
            Some("vfat"),
            flags,
            Some("fmask=0077,dmask=0077"),
        )
        .map_err(|e| Failure::io(&e.into(), format!("mount {}", node.display())))?;
        let result = run(&Esp::at(place), running);
        let unmounted = umount(place).map_err(|e| Failure::io(&e.into(), MOUNTED));
        let value = result?;
        unmounted.map(|()| value)
    }

    pub fn slot(&self) -> Value {
        json!(
            self.running
                .as_ref()
                .map(|running| running.version.to_string())
        )
    }

    pub fn slots(&self) -> Outcome<Value> {
        let _alone = self.known();
        self.with_esp(|esp, running| {
            let (slots, unfinished) = esp.list()?;
            for file in unfinished {
                log::info!("{file} is half an update; the next one removes it");
            }
            Ok(json!(slots::told(&slots, running)))
        })
    }

    /// From a file, which is removed when it is installed. The machine has to start anew to try it.
    pub fn install(&self, host: &Host, path: &Path, who: &str) -> Outcome<Value> {
        let installed = self.install_file(host, path, who)?;
        if path.starts_with("/data") {
            durable::remove(path)?;
        }
        Ok(installed)
    }

    fn install_file(&self, host: &Host, path: &Path, who: &str) -> Outcome<Value> {
        let set = {
            let inforce = host.inforce();
            let settings = inforce.settings.as_ref();
            settings.and_then(|settings| settings.appliance.update.key.clone())
        };
        let keys = keys(Path::new(KEY), set.as_deref())?;
        let _alone = self.known();
        let version = self.with_esp(|esp, running| change::install(esp, path, &keys, running))?;
        *lock(&self.failed) = None;
        log::info!("{who} installed version {version}; the next start tries it");
        Ok(json!({ "version": version, "reboot": true }))
    }

    pub fn install_from_drive(&self, host: &Host, who: &str) -> Outcome<Value> {
        let installed = source::with_drive(|place| {
            let about = |e: std::io::Error| Failure::io(&e, "configuration drive");
            let mut bundles: Vec<PathBuf> = Vec::new();
            for entry in fs::read_dir(place).map_err(about)? {
                let path = entry.map_err(about)?.path();
                if path
                    .extension()
                    .is_some_and(|end| end.eq_ignore_ascii_case(ENDING))
                {
                    bundles.push(path);
                }
            }
            match bundles.as_slice() {
                [only] => self.install_file(host, only, who),
                [] => Err(Failure::new(
                    Class::NotFound,
                    format!("the configuration drive has no file *.{ENDING}"),
                )),
                [..] => Err(Failure::new(
                    Class::Config,
                    "the configuration drive has more than one update: leave one",
                )),
            }
        })?;
        let none = format!("no drive is labelled {}", source::LABEL);
        installed.ok_or_else(|| Failure::new(Class::NotFound, none))
    }

    pub fn back(&self, who: &str) -> Outcome<Value> {
        let _alone = self.known();
        let version = self.with_esp(change::slot_back)?;
        log::info!("{who} goes back to version {version} with the next start");
        Ok(json!({ "version": version, "reboot": true }))
    }

    /// What the trial waits for, for the status.
    pub fn told(&self, host: &Host) -> Value {
        match self.known.try_lock() {
            Ok(known) if known.trial.is_none() => return Value::Null,
            Ok(_) | Err(TryLockError::Poisoned(_)) => {}
            Err(TryLockError::WouldBlock) => {
                return json!({ "waits_for": "a change of the slots" });
            }
        }
        let (limits, seen) = self.seen(host, Back::Open);
        let well = match seen.work {
            Work::Unconfigured => Some(seen.up),
            Work::Unproved | Work::Proved => seen.well,
        };
        let left = well.map(|well| limits.confirm.saturating_sub(well).as_secs());
        let waits = match (seen.well, seen.work) {
            (_, Work::Unconfigured) => "",
            (None, _) => "the daemon",
            (_, Work::Unproved) => "something to be stored or listed",
            (Some(_), Work::Proved) => "",
        };
        json!({ "confirm_in_seconds": left, "waits_for": waits })
    }

    fn seen(&self, host: &Host, back: Back) -> (Limits, Seen) {
        let daemon = host.supervisor.told();
        let inforce = host.inforce();
        let settings = inforce.settings.as_ref();
        let update = settings
            .map(|s| s.appliance.update.clone())
            .unwrap_or_default();
        // Settings that could not be read or kept are no proof of having nothing to do.
        let idle = match settings {
            Some(settings) => settings.config.sites.is_empty(),
            None => inforce.problem.is_none(),
        };
        drop(inforce);
        let proved = lines::state()
            .and_then(|state| state.pointer("/daemon/proved_since_start")?.as_bool())
            .unwrap_or_default();
        let running = daemon.state == State::Running;
        let seen = Seen {
            up: self.started.elapsed(),
            well: daemon
                .healthy_since
                .filter(|_| running)
                .map(|at| at.elapsed()),
            work: match (idle && host.data.is_ok(), proved && running) {
                (true, _) => Work::Unconfigured,
                (false, false) => Work::Unproved,
                (false, true) => Work::Proved,
            },
            back,
        };
        let limits = Limits {
            confirm: Duration::from_secs(update.confirm_seconds),
            give_up: Duration::from_secs(update.give_up_seconds),
        };
        (limits, seen)
    }

    /// Every few seconds. Gives what has to happen to the machine, if anything has to.
    pub fn look(&self, host: &Host) -> Option<(How, String)> {
        // Whoever writes a slot takes its time; a person who stopped the daemon has a reason.
        let back = self.known.try_lock().ok()?.trial?;
        if host.supervisor.told().state == State::Stopped {
            return None;
        }
        let (limits, seen) = self.seen(host, back);
        match verdict::judge(&limits, &seen) {
            Verdict::Wait => None,
            Verdict::Confirm => {
                let mut known = self.known();
                match self.with_esp(change::confirm) {
                    Ok(()) => {
                        known.trial = None;
                        log::info!("this version is confirmed");
                    }
                    Err(failure) => log::error!("cannot confirm this version: {failure}"),
                }
                None
            }
            Verdict::GiveUp(why) => {
                let _alone = self.known();
                log::error!("this version is given up: {why}");
                if let Err(failure) = self.with_esp(change::give_up) {
                    log::error!("{failure}; the boot loader counts its tries all the same");
                }
                Some((How::Reboot, format!("a trial that failed: {why}")))
            }
        }
    }
}
