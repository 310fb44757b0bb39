//! Object stores, blocking to the outside.
//!
//! The contract every driver keeps:
//! - `put` returns only when the object is durable and visible, whole or not at all; its metadata
//!   comes back byte for byte. [`Put::Create`] refuses a key that exists with [`Class::Conflict`].
//! - `get` streams the stored bytes; a body that is shorter or longer than announced is an error.
//! - `look` answers `None` only for a confirmed absence; any doubt is an error.
//! - `list` visits every object below a folder once, sorted by key, with bounded memory.
//! - `delete` of nothing succeeds.
//! - `begin` takes an object whose end nobody knows yet. Nothing is visible before
//!   [`Upload::finish`], however long that takes: whoever writes may be told then that it is still
//!   too early. What was not finished leaves nothing visible, now or after a crash.
//!
//! Keys are relative to the storage root, `/`-separated, without a leading slash; a key that
//! could lead anywhere else is refused. A driver adds `Content-Length` to the metadata.
//!
//! [`Class::Conflict`]: machine::Class::Conflict

pub mod choose;
pub mod local;

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
