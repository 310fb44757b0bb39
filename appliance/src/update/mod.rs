//! The boot loader's two slots: what is in them, which one was tried, and signed bundles.
//!
//! A slot is a file of the EFI system partition, `EFI/Linux/pghoard-<version>.efi`: kernel and
//! initramfs in one. The loader (systemd-boot) starts the newest version that has tries left. A
//! file `pghoard-<version>+<left>-<done>.efi` is one whose tries are counted, by the loader, at
//! each start; without a counter it is confirmed.
//!
//! ```text
//! install    version 2 comes as pghoard-2+3.efi beside pghoard-1.efi, and is tried
//! confirm    it is pghoard-2.efi from now on
//! give up    it is pghoard-2+0-1.efi, comes last, and version 1 starts again
//! slot back  version 1 becomes pghoard-1+3.efi, then version 2 pghoard-2+0.efi
//! ```
//!
//! A kernel that panics is started anew and uses up its tries; a machine whose daemon does not come
//! to work is given up by PID 1 ([`verdict`]). Either way the other version returns by itself.
//!
//! The running version is told by `/etc/os-release`, not by the variables that the loader sets: it
//! is the same text as the one in the slot's file, and no two slots have the same version.
//!
//! Power may go at any moment. FAT has no journal, and a rename that is cut can leave a file under
//! both names. So a new program is written under its own name from the start, all of it but its
//! first sector ([`esp`]): what does not begin as an EFI program is passed over by the loader, and
//! that sector, written last, is what makes it one. Nothing is renamed but to count tries, and no
//! second name of a version that is kept is ever removed.
//!
//! - [`slots`]: names, counters, the loader's order. [`esp`]: changes of the partition, synced.
//! - [`change`]: install, confirm, give up, go back. [`verdict`]: when to do which.
//!
//! - [`trial`]: all of it on the machine that runs.
//!
//! All but the last works on a folder, where the partition is mounted, and nothing starts a thread.

pub mod change;
pub mod esp;
pub mod slots;
pub mod trial;
pub mod verdict;

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::Path;

use bundle::key::PublicKey;
use machine::Class;
use pghoard::{Failure, Outcome};

/// Who may sign updates: whoever the image says (in the file), and whoever the settings say.
pub fn keys(image: &Path, set: Option<&str>) -> Outcome<Vec<PublicKey>> {
    let mut keys = Vec::new();
    match fs::read_to_string(image) {
        Ok(text) => keys.push(key(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Failure::io(&error, image.display())),
    }
    if let Some(text) = set {
        keys.push(key(text)?);
    }
    Ok(keys)
}

fn key(text: &str) -> Outcome<PublicKey> {
    PublicKey::parse(text).map_err(|refused| Failure::new(Class::Config, refused.to_string()))
}
