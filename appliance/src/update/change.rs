//! What changes the slots. Every one of these may be cut at any point, or done twice: the loader
//! always finds the program that runs, or the one that was just made whole.

use std::path::Path;

use bundle::key::PublicKey;
use bundle::reader::Bundle;
use bundle::release::Release;
use bundle::{Refused, Version};
use machine::Class;
use pghoard::{Failure, Outcome};

use super::esp::Esp;
use super::slots::{self, Slot, Tries};

/// How often the loader starts a new program before it takes the other one: once for a power cut,
/// once for a fault that does not come back, and once more.
pub const TRIES: u32 = 3;

/// Keeps the program that runs. Nothing happens if it is kept already.
pub fn confirm(esp: &Esp, running: &Release) -> Outcome<()> {
    let (slots, _) = esp.list()?;
    let booted = booted(&slots, running)?;
    match booted.tries {
        Tries::Confirmed => Ok(()),
        Tries::Counted { .. } => esp.rename(
            &booted.file,
            &slots::name(&running.version, Tries::Confirmed),
        ),
    }
}

/// What the loader would start if the one that runs were given up, if that is another one.
pub fn way_back(slots: &[Slot], running: &Release) -> Option<Version> {
    let mut after = slots.to_vec();
    for slot in &mut after {
        if slot.release.version == running.version {
            slot.tries = Tries::Counted { left: 0, done: 0 };
        }
    }
    slots::sort(&mut after);
    let next = after.into_iter().next()?.release.version;
    (next != running.version).then_some(next)
}

/// Lets the loader take another program, from its next start on.
pub fn give_up(esp: &Esp, running: &Release) -> Outcome<()> {
    let (slots, _) = esp.list()?;
    spend(esp, booted(&slots, running)?)
}

fn spend(esp: &Esp, slot: &Slot) -> Outcome<()> {
    let done = match slot.tries {
        Tries::Counted { left: 0, .. } => return Ok(()),
        Tries::Counted { done, .. } => done,
        Tries::Confirmed => 0,
    };
    let spent = Tries::Counted { left: 0, done };
    esp.rename(&slot.file, &slots::name(&slot.release.version, spent))
}

/// Lets the loader try the other program from its next start on, whatever became of it before. It
/// is tried as an update is: if it is not confirmed, the one that runs now returns.
pub fn slot_back(esp: &Esp, running: &Release) -> Outcome<Version> {
    let (slots, _) = esp.list()?;
    let booted = booted(&slots, running)?;
    let other = slots
        .iter()
        .find(|slot| slot.release.version != running.version)
        .ok_or_else(|| refused("there is no other version to go back to"))?;
    readable(&other.release, running)?;
    let tried = Tries::Counted {
        left: TRIES,
        done: 0,
    };
    if other.tries != tried {
        let name = slots::name(&other.release.version, tried);
        esp.rename(&other.file, &name)?;
    }
    spend(esp, booted)?;
    Ok(other.release.version.clone())
}

/// Puts a bundle's program beside the one that runs, to be tried from the next start on.
pub fn install(esp: &Esp, path: &Path, keys: &[PublicKey], running: &Release) -> Outcome<Version> {
    let about =
        |refused: Refused| Failure::new(Class::Denied, format!("{}: {refused}", path.display()));
    let (slots, _) = esp.list()?;
    let booted = booted(&slots, running)?;
    if booted.tries != Tries::Confirmed {
        return Err(refused(&format!(
            "version {} is still being tried; an update waits until it is confirmed",
            running.version
        )));
    }
    let compatible = bundle::compatible(std::env::consts::ARCH);
    let bundle = Bundle::open(path, keys, &compatible).map_err(about)?;
    let manifest = bundle.manifest.clone();
    let release = Release {
        version: manifest.version.clone(),
        log: manifest.log,
    };
    newer(&release, running)?;
    readable(&release, running)?;

    make_room(esp, &release.version, running)?;
    let name = slots::name(
        &release.version,
        Tries::Counted {
            left: TRIES,
            done: 0,
        },
    );
    let mut draft = esp.begin(&name)?;
    let written = bundle.unpack(|piece| draft.write(piece).map_err(Stopped::Failed));
    let written = written.map_err(|stopped| match stopped {
        Stopped::Refused(refused) => about(refused),
        Stopped::Failed(failure) => failure,
    });
    if let Err(failure) = written.and_then(|()| draft.finish(&manifest)) {
        // If even this fails, it is a file that nobody starts.
        let _left = esp.remove(&name);
        return Err(failure);
    }
    let kept = [&running.version, &release.version];
    for slot in &esp.list()?.0 {
        if !kept.contains(&&slot.release.version) {
            esp.remove(&slot.file)?;
        }
    }
    Ok(release.version)
}

/// There is room for three: the one that runs, one before it, and the wanted one, of which nothing
/// from before may be there.
fn make_room(esp: &Esp, wanted: &Version, running: &Release) -> Outcome<()> {
    let (slots, unfinished) = esp.list()?;
    for file in &unfinished {
        esp.remove(file)?;
    }
    let mut before = None;
    for slot in &slots {
        let version = &slot.release.version;
        let runs = *version == running.version;
        let last = !runs && version != wanted && *before.get_or_insert(version) == version;
        if !runs && !last {
            esp.remove(&slot.file)?;
        }
    }
    Ok(())
}

/// Why the bytes of a bundle ended early.
enum Stopped {
    Refused(Refused),
    Failed(Failure),
}

impl From<Refused> for Stopped {
    fn from(refused: Refused) -> Stopped {
        Stopped::Refused(refused)
    }
}

fn booted<'a>(slots: &'a [Slot], running: &Release) -> Outcome<&'a Slot> {
    slots::booted(slots, running).ok_or_else(|| {
        refused(&format!(
            "version {}, which runs, is not on this disk; nothing is changed on it",
            running.version
        ))
    })
}

fn newer(wanted: &Release, running: &Release) -> Outcome<()> {
    let (wanted, running) = (&wanted.version, &running.version);
    match wanted.cmp(running) {
        std::cmp::Ordering::Greater => Ok(()),
        std::cmp::Ordering::Equal => Err(refused(&format!("version {wanted} runs already"))),
        std::cmp::Ordering::Less => Err(refused(&format!(
            "version {wanted} is older than {running}, which runs; 'update back' goes to the \
             other version on this disk"
        ))),
    }
}

/// Whether the program can read what the one that runs has written (S-75).
fn readable(wanted: &Release, running: &Release) -> Outcome<()> {
    if wanted.log >= running.log {
        return Ok(());
    }
    Err(refused(&format!(
        "version {} writes logs of format {}, the log here has {}: it may not understand what \
         happened; take a version that writes {} or more",
        wanted.version, wanted.log, running.log, running.log
    )))
}

fn refused(sentence: &str) -> Failure {
    Failure::new(Class::Denied, sentence)
}
