//! Object stores, blocking to the outside.
//!
//! The contract every driver keeps:
//! - `put` returns only when the object is durable and visible, whole or not at all. A put that
//!   failed may have succeeded: whoever repeats it with [`Put::Create`] is told that the key exists
//!   and compares. The bytes are sent with a checksum where the store takes one.
//! - [`Put::Create`] refuses a key that exists with [`Class::Conflict`]. Of several writers at a
//!   time one wins, where the store can tell; where it cannot (it ignores conditions), the driver
//!   looks right before it writes, and two writers in the same moment may both be told that it is
//!   theirs.
//! - Metadata comes back byte for byte, non-ASCII included. Its names are PGHoard's: lower-case
//!   letters, digits, hyphens, and `Content-Length`, which a driver adds. Names in capitals do not
//!   survive every store. Values without control characters; what is plain ASCII is stored as rohmu
//!   stores it.
//! - `get` streams the stored bytes; a body that is shorter or longer than announced, or not of the
//!   checksum the store noted, is an error, at the latest where it ends.
//! - `look` answers `None` only for a confirmed absence; any doubt is an error, a missing bucket
//!   among them.
//! - `list` visits every object below a folder once, by pages of the store: with bounded memory,
//!   whatever there is. The keys in one folder come sorted; whether what is below `a` comes before
//!   `a-b` is the store's own business. An answer that is no listing is an error, never an empty
//!   one.
//! - `delete` of nothing succeeds. What the store refuses to delete, for a lock, is
//!   [`Class::Denied`] or [`Class::Conflict`], and stays.
//! - `begin` takes an object whose end nobody knows yet. Nothing is visible before
//!   [`Upload::finish`], however long that takes: whoever writes may be told then that it is still
//!   too early. What was not finished leaves nothing visible, now or after a crash.
//! - Every call ends: each request of a driver has a deadline, and a bounded number of attempts.
//!   An error has the class of what is to be done about it ([`Class::Auth`], `Denied`, `Config`,
//!   `Network`, `Timeout`, `NotFound`, `Quota`, `Conflict`, `Corrupt`, `Unsupported`); it never has
//!   a secret.
//!
//! Keys are relative to the storage root, `/`-separated, without a leading slash; a key that
//! could lead anywhere else is refused.
//!
//! [`Class::Conflict`]: machine::Class::Conflict

mod body;
pub mod choose;
pub mod cloud;
pub mod google;
pub mod local;
pub mod login;
pub mod sftp;
mod sidecar;
pub mod wire;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use machine::Class;

use crate::failure::{Failure, Outcome};

/// What PGHoard keeps beside an object: text to text.
pub type Metadata = BTreeMap<String, String>;

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub size_bytes: u64,
    /// Milliseconds since 1970, UTC.
    pub modified_ms: i64,
}

/// An object as a look-up shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub entry: Entry,
    pub metadata: Metadata,
}

/// What to store. A scratch file may be moved into the store instead of copied: it is gone after
/// a `put` that succeeded, and still there after one that failed.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    Bytes(&'a [u8]),
    Scratch(Scratch<'a>),
}

/// A file and what its writer knows of it, which spares the store a reading.
#[derive(Clone, Copy, Debug)]
pub struct Scratch<'a> {
    pub path: &'a Path,
    pub size_bytes: u64,
    pub sha256: [u8; 32],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Create,
    Replace,
}

/// What the writer of an object knows of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub size_bytes: u64,
    pub sha256: [u8; 32],
}

impl Written {
    /// Whether all of it came: `bytes` did.
    fn is_all(&self, key: &str, bytes: u64) -> Outcome<()> {
        if bytes == self.size_bytes {
            return Ok(());
        }
        let wrote = self.size_bytes;
        let message = format!("{key} has {bytes} bytes, its writer wrote {wrote}");
        Err(Failure::new(Class::Internal, message))
    }
}

/// An object in the making: its bytes are written to it as they come. Budget: a driver holds some
/// megabytes of them, whatever the size of the object.
pub trait Upload: Write {
    /// Makes it visible, whole; what exists meanwhile under its key is a [`Class::Conflict`].
    ///
    /// `late` is metadata that only the end tells, beyond what was given at the beginning. A driver
    /// whose store takes metadata at the beginning alone may leave it out: no reader may need it.
    fn finish(self: Box<Self>, written: Written, late: &Metadata) -> Outcome<()>;
}

pub trait Store: Send + Sync {
    /// For messages: the type and place, without secrets.
    fn name(&self) -> String;
    fn put(&self, key: &str, body: Body<'_>, metadata: &Metadata, mode: Put) -> Outcome<()>;
    fn get(&self, key: &str) -> Outcome<(Object, Box<dyn Read + Send>)>;
    fn look(&self, key: &str) -> Outcome<Option<Object>>;
    fn list(&self, folder: &str, visit: &mut dyn FnMut(Entry) -> Outcome<()>) -> Outcome<()>;
    fn delete(&self, key: &str) -> Outcome<()>;

    /// Deletes all of them. After an error some may be gone: who needs to know deletes one by one.
    fn delete_all(&self, keys: &[String]) -> Outcome<()> {
        keys.iter().try_for_each(|key| self.delete(key))
    }

    /// Takes back what uploads left invisibly below a folder, if they began before a moment
    /// (milliseconds since 1970) and never ended. Answers how many there were.
    fn sweep(&self, _folder: &str, _before_ms: i64) -> Outcome<u64> {
        Ok(0)
    }

    /// Begins an object under a key that does not exist. `metadata` is all that a reader needs.
    fn begin(&self, key: &str, _metadata: &Metadata) -> Outcome<Box<dyn Upload + '_>> {
        let message = format!("{key}: {} takes no object of unknown size", self.name());
        Err(Failure::new(Class::Unsupported, message).hint("set basebackup_mode to \"stream\""))
    }

    /// SHA-256 of the stored bytes in hexadecimal, where the driver noted it when they came.
    fn noted_sha256(&self, _key: &str) -> Outcome<Option<String>> {
        Ok(None)
    }
}

/// A key, or a folder of keys, leads nowhere else.
fn check_key(key: &str) -> Outcome<()> {
    let hostile = |part: &str| {
        part.is_empty() || part == "." || part == ".." || part.contains(char::is_control)
    };
    match key.split('/').any(hostile) {
        true => {
            let message = format!("{key:?} cannot be the key of an object");
            Err(Failure::new(Class::Config, message))
        }
        false => Ok(()),
    }
}
