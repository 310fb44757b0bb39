//! What the boot loader finds, and in which order it takes it.

use std::cmp::Reverse;

use bundle::Version;
use bundle::release::Release;
use serde::Serialize;

/// A program that the loader can start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name in the folder.
    pub file: String,
    pub tries: Tries,
    /// What it says about itself.
    pub release: Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tries {
    Confirmed,
    Counted { left: u32, done: u32 },
}

impl Tries {
    /// None left: the loader takes it when there is nothing else.
    pub fn spent(self) -> bool {
        matches!(self, Tries::Counted { left: 0, .. })
    }
}

const BEGINNING: &str = "pghoard-";
const ENDING: &str = ".efi";

/// The version and the counter of a file that is one of ours.
pub fn parse(file: &str) -> Option<(Version, Tries)> {
    let name = file.strip_prefix(BEGINNING)?.strip_suffix(ENDING)?;
    let Some((version, counter)) = name.split_once('+') else {
        return Some((name.parse().ok()?, Tries::Confirmed));
    };
    let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
    let tries = Tries::Counted {
        left: left.parse().ok()?,
        done: done.parse().ok()?,
    };
    Some((version.parse().ok()?, tries))
}

pub fn name(version: &Version, tries: Tries) -> String {
    match tries {
        Tries::Confirmed => format!("{BEGINNING}{version}{ENDING}"),
        Tries::Counted { left, done: 0 } => format!("{BEGINNING}{version}+{left}{ENDING}"),
        Tries::Counted { left, done } => format!("{BEGINNING}{version}+{left}-{done}{ENDING}"),
    }
}

/// As systemd-boot sorts (`boot_entry_compare` of its `boot.c`): what has no tries left comes last,
/// then the newest version first. The first one is started next.
pub fn sort(slots: &mut [Slot]) {
    slots.sort_by_key(|slot| {
        let version = Reverse(slot.release.version.clone());
        (slot.tries.spent(), version, slot.file.clone())
    });
}

/// The one that runs: version by version there is one file. Where a cut rename left two, they are
/// one program, and the confirmed name counts.
pub fn booted<'a>(slots: &'a [Slot], running: &Release) -> Option<&'a Slot> {
    let mut same = slots
        .iter()
        .filter(|slot| slot.release.version == running.version);
    let confirmed = same.clone().find(|slot| slot.tries == Tries::Confirmed);
    confirmed.or_else(|| same.next())
}

/// A slot as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Told {
    pub version: Version,
    pub state: State,
    pub booted: bool,
    pub log: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Confirmed,
    /// Not confirmed yet, and running or to be started.
    Trying,
    Failed,
}

/// In the loader's order.
pub fn told(slots: &[Slot], running: &Release) -> Vec<Told> {
    let booted = booted(slots, running);
    let told = slots.iter().map(|slot| {
        let booted = booted == Some(slot);
        Told {
            version: slot.release.version.clone(),
            state: match slot.tries {
                Tries::Confirmed => State::Confirmed,
                Tries::Counted { left: 0, .. } if !booted => State::Failed,
                Tries::Counted { .. } => State::Trying,
            },
            booted,
            log: slot.release.log,
        }
    });
    told.collect()
}
