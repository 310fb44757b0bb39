//! The spool: one directory a site, where the file is the queue entry.
//!
//! WAL arrives in `NAME.partial` and is sealed under its name once whole. Sealing is create-
//! exclusive: a name that exists with the same content makes ours superfluous, one with other
//! content is a conflict, and nothing is ever replaced. What a left timeline did not finish becomes
//! `NAME.ended`. Content is raw: it can always be encoded
//! again. An interrupted `.partial` is rewritten in place by the next stream, never truncated: it
//! is all a restore has should the server not come back.
//!
//! What PostgreSQL keeps until it is stored is [`lent`]: an entry of the log, and no copy.
//!
//! Everything goes through [`Disk`], so that the simulator can forget what was not synced.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use machine::{Class, File, SegmentSize};

use crate::failure::{Failure, Outcome};

pub use disk::RealDisk;
use lent::{Lent, Loan, Lying};

mod disk;
pub mod lent;
#[cfg(test)]
mod tests;

/// PGHoard's folder for WAL on its way in, below `backup_location` and the site's prefix.
pub const FOLDER: &str = "xlog_incoming";

/// The few things a spool needs of a disk. Paths are names within one directory.
pub trait Disk: Send + Sync {
    /// Opens for reading and writing, creating an empty file where there is none.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Opens for reading; an error of kind `NotFound` where there is none.
    fn read(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Names and lengths.
    fn list(&self) -> io::Result<Vec<Found>>;
    /// Renames unless `to` exists (error of kind `AlreadyExists`), durably.
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()>;
    /// Renames over whatever `to` is, durably.
    fn rename_over(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes; nothing to remove is fine.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// A file that is read.
pub trait Readable: Send {
    /// Fills as much of `buffer` as the file has from `offset` on.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    fn size(&self) -> io::Result<u64>;
    /// Whether what was read until now is what the name stands for. Nobody else writes to files of
    /// the spool.
    fn stayed(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// An open file; what was not synced may be lost in a crash.
pub trait DiskFile: Readable {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Content, length and the file's name are durable once this returns.
    fn sync(&mut self) -> io::Result<()>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    pub bytes: u64,
}

/// How a seal went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sealed {
    New,
    /// The name holds the same content already; ours is gone.
    Duplicate,
    /// The name holds other content; ours is kept under this name.
    Conflict {
        kept_as: String,
    },
}

#[derive(Clone)]
pub struct Spool {
    disk: Arc<dyn Disk>,
    /// Each placing has a working name of its own.
    placings: Arc<AtomicU64>,
    lent: Arc<Lent>,
}

/// Bytes compared at a time.
const BLOCK: usize = 64 << 10;
/// Bytes copied at a time.
const COPIED: usize = 256 << 10;

const PLACING_END: &str = ".placing";

impl Spool {
    pub fn new(disk: Arc<dyn Disk>) -> Spool {
        Spool {
            disk,
            placings: Arc::default(),
            lent: Arc::default(),
        }
    }

    /// Everything in the folder, unfinished files too.
    pub fn scan(&self) -> Outcome<Vec<Found>> {
        self.disk.list().map_err(|e| Failure::io(&e, "spool"))
    }

    /// The file that receives a segment; what an earlier stream left in it stays until rewritten.
    pub fn partial(&self, name: &str) -> Outcome<Partial> {
        self.working(name, &format!("{name}.partial"))
    }

    fn working(&self, name: &str, working: &str) -> Outcome<Partial> {
        let file = self.disk.open(working).map_err(|e| failed(&e, working))?;
        let old = file.size().map_err(|e| failed(&e, working))?;
        Ok(Partial {
            disk: Arc::clone(&self.disk),
            name: name.into(),
            working: working.into(),
            file,
            old,
        })
    }

    /// Places a small file whole: a history file, which two nodes' probes may bring at a time.
    pub fn place(&self, name: &str, content: &[u8]) -> Outcome<Sealed> {
        let mut partial = self.placing(name)?;
        if let Err(failure) = partial.write(0, content) {
            partial.abandon();
            return Err(failure);
        }
        let (disk, working) = (Arc::clone(&partial.disk), partial.working.clone());
        let placed = partial.seal();
        if placed.is_err() {
            let _swept_at_the_next_start = disk.remove(&working);
        }
        placed
    }

    /// A file that is no stream's: it has a working name of its own, and no later one goes on
    /// with it.
    pub fn placing(&self, name: &str) -> Outcome<Partial> {
        let number = self.placings.fetch_add(1, Ordering::Relaxed);
        self.working(name, &format!("{name}.{number}{PLACING_END}"))
    }

    /// Removes what placings of a killed run left; for the start, when nobody places.
    pub fn sweep(&self) -> Outcome<()> {
        let found = self.scan()?.into_iter();
        let mut stale = found.filter(|found| found.name.ends_with(PLACING_END));
        stale.try_for_each(|found| self.remove(&found.name))
    }

    /// The unfinished segment `name` will not be finished: its timeline was left. It moves out of
    /// the way of a stream that may write that name again. Whether there was one to move.
    pub fn end(&self, name: &str) -> Outcome<bool> {
        let (working, ended) = (format!("{name}.partial"), format!("{name}.ended"));
        match self.disk.rename_new(&working, &ended) {
            Ok(()) => Ok(true),
            Err(error) => match error.kind() {
                // One that is still to be stored keeps its name; this one waits its turn.
                io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists => Ok(false),
                _ => Err(failed(&error, &ended)),
            },
        }
    }

    /// An entry without a file: its content is read where it lies, for as long as it stays there.
    pub fn lend(
        &self,
        name: &str,
        lying: &Arc<Lying>,
        entry: impl FnOnce() -> u64,
    ) -> Outcome<Loan> {
        match self.disk.read(name) {
            Ok(_) => Ok(Loan::Occupied),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(self.lent.lend(name, lying, entry))
            }
            Err(error) => Err(failed(&error, name)),
        }
    }

    /// A human has to look at it: what is lent under that entry becomes a file of our own.
    pub fn keep(&self, file: &File, size: SegmentSize, entry: u64) -> Outcome<()> {
        let name = file.spool_name(size);
        let Some(lying) = self.lent.get(&name, entry) else {
            return Ok(());
        };
        let mut partial = self.placing(&name)?;
        let told = |e| failed(&e, &name);
        let whole = partial
            .fill(&lying)
            .and_then(|()| lying.stayed().map_err(told));
        match whole {
            Ok(true) => partial.seal().map(|_named_or_kept_beside| ()),
            gone_or_failed => {
                partial.abandon();
                gone_or_failed.map(|_gone| ())
            }
        }
    }

    pub fn open(&self, file: &File, size: SegmentSize, entry: u64) -> Outcome<Box<dyn Readable>> {
        let name = file.spool_name(size);
        if let Some(lying) = self.lent.get(&name, entry) {
            return Ok(Box::new(lying));
        }
        let file = self.disk.read(&name).map_err(|e| failed(&e, &name))?;
        Ok(file)
    }

    pub fn remove(&self, name: &str) -> Outcome<()> {
        self.lent.end(name);
        self.disk.remove(name).map_err(|e| failed(&e, name))
    }
}

/// A segment on its way in.
pub struct Partial {
    disk: Arc<dyn Disk>,
    name: String,
    working: String,
    file: Box<dyn DiskFile>,
    /// Bytes an earlier stream left: the same, unless history was rewritten.
    old: u64,
}

impl Partial {
    /// Writes at `offset`. Where an earlier stream left other bytes, that content is first set
    /// aside under a name of its own (S-16): the server may have been rolled back.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Outcome<()> {
        if offset < self.old && !self.same(offset, bytes)? {
            self.set_aside(offset)?;
        }
        self.file
            .write_at(offset, bytes)
            .map_err(|e| failed(&e, &self.working))
    }

    fn same(&self, offset: u64, bytes: &[u8]) -> Outcome<bool> {
        let overlap = usize::try_from(self.old.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = bytes.get(..overlap).unwrap_or(bytes);
        let mut old = vec![0; bytes.len()];
        let read = self
            .file
            .read_at(offset, &mut old)
            .map_err(|e| failed(&e, &self.working))?;
        // Zeros are what a file system leaves of bytes that were never synced.
        let written = old.get(..read).unwrap_or(&old);
        Ok(written.iter().zip(bytes).all(|(a, b)| a == b || *a == 0))
    }

    /// Begins anew with the `agreed` bytes that both contents share.
    fn set_aside(&mut self, agreed: u64) -> Outcome<()> {
        let aside = self.free_name()?;
        self.disk
            .rename_new(&self.working, &aside)
            .map_err(|e| failed(&e, &aside))?;
        crate::report::error(&format!(
            "'{}' was received before with other content; that is kept as '{aside}'",
            self.name
        ));
        let kept = self.disk.read(&aside).map_err(|e| failed(&e, &aside))?;
        self.file = self
            .disk
            .open(&self.working)
            .map_err(|e| failed(&e, &self.working))?;
        let mut block = vec![0; BLOCK];
        let mut at = 0;
        while at < agreed {
            let n = kept
                .read_at(at, &mut block)
                .map_err(|e| failed(&e, &aside))?;
            let rest = usize::try_from(agreed.saturating_sub(at)).unwrap_or(usize::MAX);
            let Some(bytes) = block.get(..n.min(rest)).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            self.file
                .write_at(at, bytes)
                .map_err(|e| failed(&e, &self.working))?;
            at = at.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
        }
        self.old = 0;
        Ok(())
    }

    fn free_name(&self) -> Outcome<String> {
        let taken = self.disk.list().map_err(|e| Failure::io(&e, "spool"))?;
        let mut number = 1_u32;
        loop {
            let name = format!("{}.conflict-{number}", self.name);
            if !taken.iter().any(|found| found.name == name) {
                return Ok(name);
            }
            number = number.saturating_add(1);
        }
    }

    /// Writes all of another file.
    pub fn fill(&mut self, from: &dyn Readable) -> Outcome<()> {
        let mut block = vec![0; COPIED];
        let mut at = 0;
        loop {
            let n = from
                .read_at(at, &mut block)
                .map_err(|e| failed(&e, &self.name))?;
            let Some(bytes) = block.get(..n).filter(|bytes| !bytes.is_empty()) else {
                return Ok(());
            };
            self.write(at, bytes)?;
            at = at.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
        }
    }

    /// Everything written so far is durable once this returns.
    pub fn sync(&mut self) -> Outcome<()> {
        self.file.sync().map_err(|e| failed(&e, &self.working))
    }

    /// Gives up: nobody goes on with it.
    pub fn abandon(self) {
        let _swept_at_the_next_start = self.disk.remove(&self.working);
    }

    /// Syncs, then gives the file its name for good.
    pub fn seal(mut self) -> Outcome<Sealed> {
        self.sync()?;
        if !machine::breaks::holds(machine::breaks::Rule::SealExclusive) {
            self.disk
                .rename_over(&self.working, &self.name)
                .map_err(|e| failed(&e, &self.name))?;
            return Ok(Sealed::New);
        }
        match self.disk.rename_new(&self.working, &self.name) {
            Ok(()) => Ok(Sealed::New),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.collide(),
            Err(error) => Err(failed(&error, &self.name)),
        }
    }

    fn collide(&mut self) -> Outcome<Sealed> {
        let other = match self.disk.read(&self.name) {
            Ok(other) => other,
            // Stored and let go at this very moment: the content is safe.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Failure::new(
                    Class::Interrupted,
                    format!("'{}' was just let go", self.name),
                ));
            }
            Err(error) => return Err(failed(&error, &self.name)),
        };
        if equal(&*self.file, &*other).map_err(|e| failed(&e, &self.name))? {
            self.disk
                .remove(&self.working)
                .map_err(|e| failed(&e, &self.working))?;
            return Ok(Sealed::Duplicate);
        }
        let kept_as = self.free_name()?;
        self.disk
            .rename_new(&self.working, &kept_as)
            .map_err(|e| failed(&e, &kept_as))?;
        Ok(Sealed::Conflict { kept_as })
    }
}

fn equal(a: &dyn Readable, b: &dyn Readable) -> io::Result<bool> {
    if a.size()? != b.size()? {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut at = 0;
    loop {
        let n = a.read_at(at, &mut left)?;
        let m = b.read_at(at, &mut right)?;
        if left.get(..n) != right.get(..m) {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
        at = at.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
    }
}

fn failed(error: &io::Error, name: &str) -> Failure {
    Failure::io(error, format!("spool file '{name}'"))
}
