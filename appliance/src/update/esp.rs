//! Changes of the EFI system partition, one at a time, each on the disk before it returns.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use bundle::release::Release;
use bundle::{Manifest, PIECE};
use machine::Class;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use pghoard::{Failure, Outcome, durable};

use super::slots::{self, Slot};

pub struct Esp {
    programs: PathBuf,
    /// So many changes until the power goes.
    #[cfg(test)]
    pub left: std::cell::Cell<Option<u32>>,
}

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

impl Esp {
    /// Where the partition is mounted.
    pub fn at(mounted: &Path) -> Esp {
        Esp {
            programs: mounted.join("EFI/Linux"),
            #[cfg(test)]
            left: std::cell::Cell::new(None),
        }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Programs that the loader would start, in its order, and the names of ours that it would not:
    /// what an install left that was cut.
    pub fn list(&self) -> Outcome<(Vec<Slot>, Vec<String>)> {
        let about = |error: io::Error| Failure::io(&error, self.programs.display());
        let (mut found, mut unfinished) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.programs).map_err(about)? {
            let Ok(file) = entry.map_err(about)?.file_name().into_string() else {
                continue;
            };
            let Some((_, tries)) = slots::parse(&file) else {
                continue;
            };
            let mut program = File::open(self.place(&file)).map_err(about)?;
            match Release::of(&mut program) {
                Ok(release) => found.push(Slot {
                    file,
                    tries,
                    release,
                }),
                Err(_) => unfinished.push(file),
            }
        }
        slots::sort(&mut found);
        unfinished.sort();
        Ok((found, unfinished))
    }

    pub fn rename(&self, from: &str, to: &str) -> Outcome<()> {
        self.step()?;
        durable::rename(&self.place(from), &self.place(to))
    }

    pub fn remove(&self, name: &str) -> Outcome<()> {
        self.step()?;
        durable::remove(&self.place(name))
    }

    /// Begins a program under its name, without its first sector.
    pub fn begin(&self, name: &str) -> Outcome<Draft<'_>> {
        self.step()?;
        let path = self.place(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|error| Failure::io(&error, path.display()))?;
        Ok(Draft {
            esp: self,
            path,
            file,
            head: Vec::new(),
        })
    }

    /// In tests a change may be the one that is cut.
    fn step(&self) -> Outcome<()> {
        #[cfg(test)]
        if let Some(left) = self.left.get() {
            let rest = left.checked_sub(1);
            let rest = rest.ok_or_else(|| Failure::new(Class::Internal, "the power is gone"))?;
            self.left.set(Some(rest));
        }
        Ok(())
    }
}

/// A program that is being written, and that nobody would start.
pub struct Draft<'a> {
    esp: &'a Esp,
    path: PathBuf,
    file: File,
    /// The first sector, held back.
    head: Vec<u8>,
}

impl Draft<'_> {
    pub fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        let missing = SECTOR.saturating_sub(self.head.len()).min(bytes.len());
        let (head, rest) = bytes.split_at(missing);
        self.head.extend(head);
        // Zeros in its place.
        self.put(&vec![0; head.len()])?;
        self.put(rest)
    }

    /// Half of it, where the power goes meanwhile.
    fn put(&mut self, bytes: &[u8]) -> Outcome<()> {
        let stopped = self.esp.step().err();
        let (half, rest) = bytes.split_at(bytes.len() / 2);
        let about = |error| Failure::io(&error, self.path.display());
        self.file.write_all(half).map_err(about)?;
        match stopped {
            Some(stopped) => Err(stopped),
            None => self.file.write_all(rest).map_err(about),
        }
    }

    /// Looks at what the disk has, then makes it a program.
    pub fn finish(mut self, manifest: &Manifest) -> Outcome<()> {
        self.sync()?;
        if self.digest()? != manifest.sha256 {
            return Err(Failure::new(
                Class::Corrupt,
                format!(
                    "{}: the disk gives back other bytes than it was given; it is failing",
                    self.path.display()
                ),
            ));
        }
        self.esp.step()?;
        self.file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(&self.head))
            .map_err(|error| Failure::io(&error, self.path.display()))?;
        self.sync()
    }

    fn sync(&self) -> Outcome<()> {
        let synced = self.file.sync_all();
        synced.map_err(|error| Failure::io(&error, self.path.display()))?;
        durable::sync_folder(&self.esp.programs)
    }

    /// Of the bytes on the disk, not of those that the kernel remembers, with the sector that is
    /// held back in its place.
    fn digest(&mut self) -> Outcome<String> {
        let about = |error: io::Error| Failure::io(&error, self.path.display());
        let forgotten = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        forgotten.map_err(|error| about(error.into()))?;
        let mut digest = Context::new(&SHA256);
        digest.update(&self.head);
        let start = u64::try_from(self.head.len()).unwrap_or(0);
        self.file.seek(SeekFrom::Start(start)).map_err(about)?;
        let mut piece = vec![0; PIECE];
        loop {
            let count = self.file.read(&mut piece).map_err(about)?;
            if count == 0 {
                return Ok(hex::encode(digest.finish()));
            }
            digest.update(piece.get(..count).unwrap_or_default());
        }
    }
}
