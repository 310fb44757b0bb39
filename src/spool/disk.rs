//! The real disk under the spool: one directory, plain files, names made durable.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::durable;
use crate::failure::Outcome;
use crate::spool::{Disk, DiskFile, Found, Readable};

pub struct RealDisk {
    directory: PathBuf,
}

impl RealDisk {
    /// The directory is made if it is missing.
    pub fn new(directory: &Path) -> Outcome<RealDisk> {
        durable::make_folders(directory)?;
        Ok(RealDisk {
            directory: directory.into(),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A name that exists may be a killed run's, which never came to sync it.
    fn opened(&self, name: &str) -> io::Result<Opened> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path(name))?;
        let unnamed = Some(self.directory.clone());
        Ok(Opened { file, unnamed })
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

impl Disk for RealDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(self.opened(name)?))
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(Opened {
            file: File::open(self.path(name))?,
            unnamed: None,
        }))
    }

    fn list(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if let Some(name) = entry.file_name().to_str().filter(|_| metadata.is_file()) {
                found.push(Found {
                    name: name.into(),
                    bytes: metadata.len(),
                });
            }
        }
        Ok(found)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        let (from, to) = (self.path(from), self.path(to));
        let flags = RenameFlags::RENAME_NOREPLACE;
        match renameat2(AT_FDCWD, &from, AT_FDCWD, &to, flags) {
            // A file system without the flag: a link refuses an existing name as well.
            Err(nix::errno::Errno::EINVAL) => {
                fs::hard_link(&from, &to)?;
                fs::remove_file(&from)?;
            }
            other => other?,
        }
        self.sync_directory()
    }

    fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))?;
        self.sync_directory()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

struct Opened {
    file: File,
    /// The directory whose entry for this file may not be durable yet.
    unnamed: Option<PathBuf>,
}

/// As much of `buffer` as the file has from `offset` on.
pub(super) fn fill(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
        match file.read_at(rest, at)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

impl Readable for Opened {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        fill(&self.file, offset, buffer)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

impl DiskFile for Opened {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if let Some(directory) = &self.unnamed {
            File::open(directory)?.sync_all()?;
            self.unnamed = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_a_killed_run_left_is_made_durable_too() {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(&folder.path().join("a/b")).unwrap();
        fs::write(disk.path("x.partial"), b"").unwrap();
        for name in ["x.partial", "y.partial"] {
            let mut opened = disk.opened(name).unwrap();
            assert_eq!(opened.unnamed, Some(folder.path().join("a/b")), "{name}");
            opened.sync().unwrap();
            assert_eq!(opened.unnamed, None, "{name}");
        }
    }
}
