//! Files that survive a power cut: the only writer of anything that must not be half there.
//!
//! The order is always the same: write a draft in the folder of its target, fsync it, rename it,
//! fsync the folder. Whoever looks sees the old file, the new one, or none; never a part.
//! A draft is locked while its writer lives, so one left by a crash is told apart and swept up.
//!
//! Budget: two fsyncs a file, no memory beyond the caller's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use machine::Class;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statvfs::statvfs;

use crate::failure::{Failure, Outcome};

/// Puts `bytes` at `path`, over whatever is there.
pub fn write(path: &Path, bytes: &[u8]) -> Outcome<()> {
    let mut draft = Draft::at(path)?;
    draft.fill(bytes)?;
    draft.commit()
}

/// Puts a secret at `path`, over whatever is there: mode 0600, and whoever owned the old file owns
/// the new one, so that a daemon can still read what root rewrote.
pub fn write_private(path: &Path, bytes: &[u8]) -> Outcome<()> {
    let mut draft = Draft::open(path, 0o600)?;
    if let Ok(old) = fs::metadata(path) {
        draft.give_to(old.uid())?;
    }
    draft.fill(bytes)?;
    draft.commit()
}

/// Puts `bytes` at `path`, over whatever is there, for nobody but this process's user (mode 0600).
pub fn write_own(path: &Path, bytes: &[u8]) -> Outcome<()> {
    let mut draft = Draft::open(path, 0o600)?;
    draft.fill(bytes)?;
    draft.commit()
}

/// Puts `bytes` at `path`; a path that exists is a [`Class::Conflict`].
pub fn create(path: &Path, bytes: &[u8]) -> Outcome<()> {
    let mut draft = Draft::at(path)?;
    draft.fill(bytes)?;
    draft.commit_new()
}

/// Renames a file whose content is already synced, over whatever is at `to`.
pub fn rename(from: &Path, to: &Path) -> Outcome<()> {
    fs::rename(from, to).map_err(|e| moved(&e, from, to))?;
    sync_parents(from, to)
}

/// Renames a file whose content is already synced; a target that exists is a [`Class::Conflict`].
///
/// By hard link, which unlike `renameat2` every libc and file system of a spool has.
pub fn rename_new(from: &Path, to: &Path) -> Outcome<()> {
    fs::hard_link(from, to).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => exists(to),
        _ => moved(&e, from, to),
    })?;
    fs::remove_file(from).map_err(|e| Failure::io(&e, from.display()))?;
    sync_parents(from, to)
}

/// Removes a file for good; one that is not there is fine.
pub fn remove(path: &Path) -> Outcome<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(parent(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Failure::io(&e, path.display())),
    }
}

/// Makes a folder and the ones above it (mode 0700), each durable in its parent.
pub fn make_folders(path: &Path) -> Outcome<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    make_folders(parent(path))?;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_folder(parent(path)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(Failure::io(&e, path.display())),
    }
}

/// Room in the file system of `path` for who is not root.
pub fn free_bytes(path: &Path) -> Outcome<u64> {
    let stat = statvfs(path).map_err(|e| Failure::io(&e.into(), path.display()))?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Makes the content durable; the name is the folder's part.
pub fn sync_file(path: &Path) -> Outcome<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|e| Failure::io(&e, path.display()))
}

/// Makes the names in a folder durable.
pub fn sync_folder(path: &Path) -> Outcome<()> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    sync_file(path)
}

/// A file in the making: invisible under its target's name until committed, gone when dropped.
#[derive(Debug)]
pub struct Draft {
    file: Flowing,
    path: PathBuf,
    target: PathBuf,
}

impl Draft {
    pub fn at(target: &Path) -> Outcome<Draft> {
        Draft::open(target, 0o666)
    }

    fn open(target: &Path, mode: u32) -> Outcome<Draft> {
        let folder = parent(target);
        for _ in 0..NAMES_MAX {
            let path = folder.join(draft_name());
            let opened = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&path);
            let file = match opened {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Failure::io(&e, path.display())),
            };
            if file.try_lock().is_ok() {
                let target = target.to_owned();
                let file = Flowing::new(file);
                return Ok(Draft { file, path, target });
            }
        }
        let message = format!("{}: no free name for a draft", folder.display());
        Err(Failure::new(Class::Internal, message))
    }

    fn give_to(&self, owner: u32) -> Outcome<()> {
        let about = |e: io::Error| {
            let message = format!("cannot keep the owner of {}: {e}", self.target.display());
            Failure::new(Class::Denied, message).hint("run it as root or as the file's owner")
        };
        let file = &self.file.file;
        match file.metadata().map_err(about)?.uid() == owner {
            true => Ok(()),
            false => fchown(file, Some(owner), None).map_err(about),
        }
    }

    /// Writes all of `bytes`; the error names the target.
    pub fn fill(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.file
            .write_all(bytes)
            .map_err(|e| Failure::io(&e, self.target.display()))
    }

    /// Puts the draft in the target's place, durably; an older file there is replaced.
    pub fn commit(self) -> Outcome<()> {
        self.sync()?;
        rename(&self.path, &self.target)
    }

    /// A target that exists is a [`Class::Conflict`].
    pub fn commit_new(self) -> Outcome<()> {
        self.sync()?;
        rename_new(&self.path, &self.target)
    }

    fn sync(&self) -> Outcome<()> {
        self.file
            .file
            .sync_all()
            .map_err(|e| Failure::io(&e, self.target.display()))
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a commit nothing has this name any more; a failure only leaves work for `sweep`.
        let _gone = fs::remove_file(&self.path);
    }
}

/// A large file on its way. The kernel is asked to begin writing what has come, or the sync at the
/// end, which is the caller's, would wait for all of it.
#[derive(Debug)]
pub struct Flowing {
    file: File,
    written: i64,
    begun: i64,
}

impl Flowing {
    pub fn new(file: File) -> Flowing {
        Flowing {
            file,
            written: 0,
            begun: 0,
        }
    }
}

impl Write for Flowing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.file.write(bytes)?;
        self.written += i64::try_from(taken).unwrap_or(0);
        let waiting = self.written - self.begun;
        if waiting >= FLOW_BYTES {
            // On dirty pages it starts their writing and returns (Linux mm/fadvise.c). Advice: a
            // file system that cannot take it loses speed only.
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            let _slower = posix_fadvise(&self.file, self.begun, waiting, advice);
            self.begun = self.written;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Enough for one long write of the disk, little beside a sync.
const FLOW_BYTES: i64 = 8 << 20;

/// Removes a draft whose writer is dead; any other file, and a draft in use, stays.
pub fn sweep(path: &Path) -> Outcome<()> {
    let is_draft = path
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with(DRAFT_START) && name.ends_with(DRAFT_END));
    if !is_draft {
        return Ok(());
    }
    match File::open(path) {
        Ok(file) if file.try_lock().is_ok() => remove(path),
        Ok(_in_use) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Failure::io(&e, path.display())),
    }
}

const DRAFT_START: &str = ".draft-";
const DRAFT_END: &str = ".tmp";

/// More collisions than this in one folder are no accident.
const NAMES_MAX: u32 = 1000;

fn draft_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{DRAFT_START}{}-{number}{DRAFT_END}", process::id())
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn sync_parents(from: &Path, to: &Path) -> Outcome<()> {
    sync_folder(parent(to))?;
    match parent(from) == parent(to) {
        true => Ok(()),
        false => sync_folder(parent(from)),
    }
}

fn exists(path: &Path) -> Failure {
    Failure::new(
        Class::Conflict,
        format!("{} already exists", path.display()),
    )
}

fn moved(error: &io::Error, from: &Path, to: &Path) -> Failure {
    Failure::io(error, format!("{} -> {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_created_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(create(&path, b"three").unwrap_err().class, Class::Conflict);
        assert_eq!(fs::read(&path).unwrap(), b"two");
        create(&folder.path().join("b"), b"new").unwrap();
        assert_eq!(names(folder.path()), ["a", "b"]);
    }

    #[test]
    fn an_uncommitted_draft_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut draft = Draft::at(&folder.path().join("a")).unwrap();
        draft.fill(b"half").unwrap();
        drop(draft);
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn only_a_draft_without_a_writer_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other.tmp");
        write(&other, b"").unwrap();
        let dead = folder.path().join(".draft-1-1.tmp");
        fs::write(&dead, b"").unwrap();
        let draft = Draft::at(&folder.path().join("a")).unwrap();
        for path in [&other, &dead, &draft.path] {
            sweep(path).unwrap();
        }
        assert!(other.exists() && draft.path.exists() && !dead.exists());
    }

    #[test]
    fn renaming_anew_never_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        write(&from, b"new").unwrap();
        write(&to, b"old").unwrap();
        let refused = rename_new(&from, &to).unwrap_err();
        assert_eq!(refused.class, Class::Conflict);
        assert_eq!(fs::read(&to).unwrap(), b"old");
        remove(&to).unwrap();
        remove(&to).unwrap();
        rename_new(&from, &to).unwrap();
        assert_eq!(names(folder.path()), ["to"]);
    }

    #[test]
    fn folders_are_made_down_to_the_last() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b/c");
        make_folders(&deep).unwrap();
        make_folders(&deep).unwrap();
        assert!(deep.is_dir());
        write(&root.path().join("f"), b"").unwrap();
        assert!(make_folders(&root.path().join("f/g")).is_err());
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}
