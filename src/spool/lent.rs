//! Files that wait where PostgreSQL keeps them: read there, and copied only if somebody must keep
//! them.
//!
//! A segment that PostgreSQL holds until it is stored need not be written twice. Its name in
//! `pg_wal` goes before its content does (PostgreSQL renames what it recycles, `xlog.c`,
//! `InstallXLogFileSegment`): as long as the name leads to the file that was opened, what was read
//! from it is that segment.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Readable, disk};
use crate::failure::{Failure, Outcome};

/// Which file of that name it was: PostgreSQL never gives a new one the same in all of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    pub bytes: u64,
    modified_ns: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified_ns: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// A regular file that somebody else keeps.
#[derive(Debug)]
pub struct Lying {
    pub stamp: Stamp,
    file: File,
    path: PathBuf,
}

impl Lying {
    /// `None` for what is no regular file.
    pub fn new(file: File, path: PathBuf) -> Outcome<Option<Lying>> {
        let metadata = file.metadata();
        let metadata = metadata.map_err(|e| Failure::io(&e, path.display()))?;
        let stamp = Stamp::of(&metadata);
        Ok(metadata.is_file().then_some(Lying { stamp, file, path }))
    }
}

impl Readable for Arc<Lying> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        disk::fill(&self.file, offset, buffer)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.stamp.bytes)
    }

    fn stayed(&self) -> io::Result<bool> {
        match fs::symlink_metadata(&self.path) {
            Ok(found) => Ok(Stamp::of(&found) == self.stamp),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// How a loan went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loan {
    /// Under this entry, which the log has to hear of.
    New(u64),
    /// That very file is lent already, under this entry.
    Known(u64),
    /// The spool has a file of that name: theirs has to be compared with it.
    Occupied,
}

/// What is lent, by name: each under the entry that the log knows it by.
#[derive(Debug, Default)]
pub(super) struct Lent(Mutex<BTreeMap<String, (u64, Arc<Lying>)>>);

impl Lent {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (u64, Arc<Lying>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lend(&self, name: &str, lying: &Arc<Lying>, entry: impl FnOnce() -> u64) -> Loan {
        let mut lent = self.lock();
        match lent.get(name) {
            Some((entry, same)) if same.stamp == lying.stamp => Loan::Known(*entry),
            Some(_) | None => {
                let entry = entry();
                lent.insert(name.to_owned(), (entry, Arc::clone(lying)));
                Loan::New(entry)
            }
        }
    }

    pub(super) fn get(&self, name: &str, entry: u64) -> Option<Arc<Lying>> {
        let lent = self.lock();
        let found = lent.get(name).filter(|(of, _)| *of == entry);
        found.map(|(_, lying)| Arc::clone(lying))
    }

    pub(super) fn end(&self, name: &str) {
        self.lock().remove(name);
    }
}
