//! A basebackup back from the store: choose, check, fetch, unpack, verify, write the settings.
//!
//! It needs a configuration file, the private key and the store; never the event log (I13), so
//! that a bare machine can restore. Nothing is believed: every object is read to its verified
//! end, and where the backup carries PostgreSQL's `backup_manifest`, each file is held against it.
//!
//! A target is not startable until all of it is there and on disk: `global/pg_control` keeps
//! another name until the end, and PostgreSQL does not start without it.
//!
//! Or as a stream: [`stream`] does the same into a tar, for a host that has none of our programs.
//!
//! Budget: a worker holds [`PIECES_MAX`](fetch::pipe::PIECES_MAX) pieces of plain data; names,
//! sizes and checksums of all files are held, about 150 bytes a file. One sync a file system, none
//! a file.

pub mod ahead;
pub mod choose;
pub mod fetch;
pub mod layout;
pub mod list;
pub mod manifest;
pub mod recovery;
pub mod stream;
pub mod target;
pub mod wal;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use machine::Class;

use crate::codec;
use crate::codec::keys::Keyring;
use crate::config::Site;
use crate::durable;
use crate::failure::{Failure, Outcome};
use crate::store::choose::Missing;
use crate::store::{self, Store};
use fetch::Sink;
use fetch::progress::{self, Progress};
use fetch::unpack::{CONTROL, CONTROL_UNFINISHED, Sum, Unpacked, Unpacker};
use layout::{Layout, Naming};
use recovery::{Recovery, Version};
use target::{Owner, Places};
use wal::Shelf;

pub use choose::Backup;
pub use fetch::unpack::Link;

/// A site with its store and keys at hand.
pub struct Opened<'a> {
    pub site: &'a Site,
    pub store: Box<dyn Store>,
    keys: Keyring,
}

impl<'a> Opened<'a> {
    pub fn new(site: &'a Site) -> Outcome<Opened<'a>> {
        Ok(Opened {
            site,
            store: store::choose::store(site.storage()?, Missing::Refuse)?,
            keys: site.keyring()?,
        })
    }

    pub fn source(&self) -> Source<'_> {
        Source {
            store: self.store.as_ref(),
            keys: &self.keys,
        }
    }

    pub fn shelf(&self) -> Shelf<'_> {
        Shelf {
            prefix: self.site.prefix.clone(),
            source: self.source(),
        }
    }
}

/// What a restore is asked for, once the backup is chosen.
#[derive(Clone, Debug)]
pub struct Order {
    pub target: target::Request,
    pub recovery: Recovery,
    pub preserve: Option<Preserve>,
    pub threads: u32,
    pub status_file: Option<PathBuf>,
}

/// Keeps the backup from expiring meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Preserve {
    pub until: Timestamp,
    pub after: AfterSuccess,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterSuccess {
    Cancel,
    Keep,
}

/// What a person should know about a restore that succeeded.
#[derive(Debug, Default)]
pub struct Notes {
    /// Symbolic links that lead out of the target and were not made.
    pub strays: Vec<Link>,
    /// Whose the files are, if they were given to somebody.
    pub owner: Option<Owner>,
    /// Why the backup could not be preserved, which does not stop the restore.
    pub unpreserved: Option<Failure>,
}

/// Restores a backup. After a failure the target does not start, and `--overwrite` tries again.
pub fn run(backup: &Backup<'_>, source: &Source<'_>, order: &Order) -> Outcome<Notes> {
    let layout = layout::read(backup, source)?;
    let places = target::prepare(&order.target, &layout.tablespaces, backup.plain_bytes())?;
    let request = order
        .preserve
        .map(|wish| backup.preserve(source.store, wish.until));

    let unpacked = fetch_all(&layout, source, &places, order)?;
    verify(&layout, &places, &unpacked)?;
    make_links(&places, &unpacked.links)?;
    tidy(&places)?;
    recovery::write(&places, &order.recovery)?;
    sync(&places)?;
    durable::rename(
        &places.pgdata.join(CONTROL_UNFINISHED),
        &places.pgdata.join(CONTROL),
    )?;

    let mut notes = Notes {
        strays: unpacked.strays,
        owner: places.owner,
        unpreserved: None,
    };
    let cancel = order.preserve.map(|wish| wish.after) == Some(AfterSuccess::Cancel);
    match request {
        Some(Ok(key)) if cancel => notes.unpreserved = source.store.delete(&key).err(),
        Some(Err(failure)) => notes.unpreserved = Some(failure),
        Some(Ok(_)) | None => {}
    }
    Ok(notes)
}

fn fetch_all(
    layout: &Layout,
    source: &Source<'_>,
    places: &Places,
    order: &Order,
) -> Outcome<Unpacked> {
    let progress = Progress::new(layout.jobs.iter().map(|job| job.stored_bytes).sum());
    let watch = progress::watch(progress.clone(), order.status_file.clone());
    let mut unpacker = Unpacker::new(places);
    for folder in &layout.folders {
        unpacker.folder_named(folder)?;
    }
    if let Some(main) = &layout.main {
        unpacker.archive(&mut main.as_slice(), Naming::Prefixed)?;
    }
    for tiny in &layout.tiny {
        unpacker.file(&tiny.path, None, &mut tiny.content.as_slice())?;
    }
    let mut all = unpacker.done;
    all.merge(fetch::all(
        &layout.jobs,
        order.threads,
        source,
        places,
        &progress,
    )?);
    drop(watch);
    Ok(all)
}

/// Holds the files against everything the backup says about them.
fn verify(layout: &Layout, places: &Places, unpacked: &Unpacked) -> Outcome<()> {
    promised(layout, &unpacked.sums)?;
    manifest::verify(&places.pgdata, &unpacked.sums)
}

/// Holds the files against what the backup's own description promises.
fn promised(layout: &Layout, sums: &HashMap<PathBuf, Sum>) -> Outcome<()> {
    for path in &layout.promised {
        if !sums.contains_key(Path::new(path)) {
            return Err(corrupt(format!("{path} is missing from the backup")));
        }
    }
    match sums.contains_key(Path::new(CONTROL)) {
        true => Ok(()),
        false => Err(corrupt(format!("the backup has no {CONTROL}"))),
    }
}

/// Links come after all files, so that no file was written through one.
fn make_links(places: &Places, links: &[Link]) -> Outcome<()> {
    let spaces = places.tablespaces.values().map(|place| Link {
        at: places.pgdata.join("pg_tblspc").join(place.oid.to_string()),
        to: place.path.clone(),
    });
    for link in spaces.chain(links.iter().cloned()) {
        let told = |e: io::Error| Failure::io(&e, link.at.display());
        if let Some(parent) = link.at.parent() {
            fs::create_dir_all(parent).map_err(told)?;
        }
        symlink(&link.to, &link.at).map_err(told)?;
    }
    Ok(())
}

/// Directories the server needs are there, and those of servers before 10 are not.
fn tidy(places: &Places) -> Outcome<()> {
    if Version::read(&places.pgdata)? < Version::V10 {
        return Ok(());
    }
    for name in OLD_FOLDERS {
        // One that has content is somebody's, and stays.
        let _kept = fs::remove_dir(places.pgdata.join(name));
    }
    let mut unpacker = Unpacker::new(places);
    FOLDERS
        .iter()
        .try_for_each(|name| unpacker.folder_named(name))
}

/// PGHoard adds the names of all versions to every backup.
const OLD_FOLDERS: &[&str] = &["pg_xlog/archive_status", "pg_xlog", "pg_log", "pg_snapshot"];

/// What a backup may leave out and a server does not make. PostgreSQL `initdb.c`, `subdirs`.
const FOLDERS: &[&str] = &[
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_wal/archive_status",
];

/// One sync a file system is cheaper than one a file.
fn sync(places: &Places) -> Outcome<()> {
    let mut synced = BTreeSet::new();
    for path in places
        .tablespaces
        .values()
        .map(|place| &place.path)
        .chain([&places.pgdata])
    {
        let told = |e: io::Error| Failure::io(&e, path.display());
        let folder = File::open(path).map_err(told)?;
        let device = folder.metadata().map_err(told)?.dev();
        if synced.insert(device) {
            nix::unistd::syncfs(&folder).map_err(|e| told(e.into()))?;
        }
    }
    Ok(())
}

/// Where objects come from: a site's store with its keys.
pub struct Source<'a> {
    pub store: &'a dyn Store,
    pub keys: &'a Keyring,
}

impl Source<'_> {
    /// A small object, decoded and verified, whole.
    pub fn read(&self, key: &str) -> Outcome<Vec<u8>> {
        let (object, body) = self.store.get(key)?;
        let mut plain = Vec::new();
        codec::decoder(body, object.entry.size_bytes, &object.metadata, self.keys)
            .map_err(|failure| at(key, failure))?
            .read_to_end(&mut plain)
            .map_err(|e| Failure::from_io(&e, key))?;
        Ok(plain)
    }
}

/// The failure with the thing it happened to in front.
fn at(thing: &str, failure: Failure) -> Failure {
    Failure {
        message: format!("{thing}: {}", failure.message),
        ..failure
    }
}

fn corrupt(message: impl Into<String>) -> Failure {
    Failure::new(Class::Corrupt, message)
}

/// Our own settings, or the command line, are wrong.
fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Class::Config, message)
}
