//! Members onto the disk. Times and modes of directories come last, for what is put into one
//! changes its time, and its mode may forbid to put anything in.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use machine::Class;
use tar::{Entry, EntryType};

use super::Flags;
use super::pattern::Transform;
use crate::failure::{Failure, Outcome};

pub struct Extraction<'a> {
    flags: &'a Flags,
    transforms: Vec<&'a Transform>,
    /// Symbolic links that this archive made, by device and inode: names may lead to one in more
    /// than one way.
    links: BTreeSet<(u64, u64)>,
    folders: Vec<Folder>,
}

struct Folder {
    path: PathBuf,
    looks: Looks,
}

#[derive(Clone, Copy)]
struct Looks {
    mode: u32,
    modified: SystemTime,
}

/// Where a member goes: the directory it starts from, and the names below it.
struct Target<'a> {
    base: &'a Path,
    parts: Vec<&'a OsStr>,
}

impl<'a> Extraction<'a> {
    pub fn new(flags: &'a Flags) -> Extraction<'a> {
        let mut transforms: Vec<&Transform> = Vec::new();
        for transform in &flags.transform {
            // As PGHoard: a search has one replacement, the last one, in the place of the first.
            match transforms
                .iter_mut()
                .find(|known| known.search == transform.search)
            {
                Some(known) => *known = transform,
                None => transforms.push(transform),
            }
        }
        Extraction {
            flags,
            transforms,
            links: BTreeSet::new(),
            folders: Vec::new(),
        }
    }

    pub fn member(&mut self, mut member: Entry<'_, impl io::Read>) -> Outcome<()> {
        let original = member.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&original).into_owned();
        let about = |failure: Failure| failure.about(format!("member '{shown}'"));
        if self.excluded(&original) {
            return Ok(());
        }
        let name = self.renamed(original).map_err(about)?;
        let name = Path::new(OsStr::from_bytes(&name));
        let Some(target) = self.target(name).map_err(about)? else {
            return Ok(());
        };
        let path = self.parents(&target).map_err(about)?;
        self.write(&path, &mut member).map_err(about)
    }

    fn excluded(&self, name: &[u8]) -> bool {
        let name = String::from_utf8_lossy(name);
        let mut parts = name.split('/');
        parts.any(|part| self.flags.exclude.iter().any(|glob| glob.matches(part)))
    }

    fn renamed(&self, name: Vec<u8>) -> Outcome<Vec<u8>> {
        if self.transforms.is_empty() {
            return Ok(name);
        }
        let name = String::from_utf8(name);
        let name = name.map_err(|_| hostile("is not UTF-8 and cannot be transformed"))?;
        let fold = |name: String, transform: &&Transform| transform.apply(&name);
        Ok(self.transforms.iter().fold(name, fold).into_bytes())
    }

    /// Nothing for what has no name below its directory.
    fn target<'n>(&'n self, name: &'n Path) -> Outcome<Option<Target<'n>>> {
        let mut base = self.flags.directory.as_path();
        let mut parts = Vec::new();
        for part in name.components() {
            match part {
                Component::Normal(part) => parts.push(part),
                Component::RootDir if self.flags.absolute_names => base = Path::new("/"),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(hostile("would be written outside of its directory"));
                }
            }
        }
        Ok((!parts.is_empty()).then_some(Target { base, parts }))
    }

    /// Makes the way to the target and gives its path.
    fn parents(&self, target: &Target<'_>) -> Outcome<PathBuf> {
        let mut path = target.base.to_owned();
        let Some((last, way)) = target.parts.split_last() else {
            return Ok(path);
        };
        for part in way {
            path.push(part);
            let told = |e: io::Error| Failure::io(&e, path.display());
            match looked(&path)? {
                Some(found) if found.is_dir() => continue,
                Some(found) if found.is_symlink() => {
                    let absolute = target.base != self.flags.directory;
                    if self.followed(&found, &path, absolute)? {
                        continue;
                    }
                    fs::remove_file(&path).map_err(told)?;
                }
                Some(_) => return Err(hostile(&format!("'{}' is in its way", path.display()))),
                None => {}
            }
            DirBuilder::new().create(&path).map_err(told)?;
        }
        path.push(last);
        Ok(path)
    }

    /// Whether a symbolic link on the way, or in the place of a directory, is to be followed; if
    /// not, a directory takes its place.
    fn followed(&self, found: &fs::Metadata, path: &Path, absolute: bool) -> Outcome<bool> {
        if !self.flags.keep_directory_symlink && !absolute {
            return Ok(false);
        }
        if self.links.contains(&(found.dev(), found.ino())) {
            let message = "would be written through a symbolic link of the same archive";
            return Err(hostile(message));
        }
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => Ok(true),
            Ok(_) | Err(_) => {
                let message = format!("'{}' leads to no directory", path.display());
                Err(hostile(&message))
            }
        }
    }

    fn write(&mut self, path: &Path, member: &mut Entry<'_, impl io::Read>) -> Outcome<()> {
        let told = |e: io::Error| Failure::from_io(&e, path.display());
        let header = member.header();
        let since = Duration::from_secs(header.mtime().map_err(told)?);
        let modified = SystemTime::UNIX_EPOCH.checked_add(since);
        let looks = Looks {
            mode: header.mode().map_err(told)? & 0o777,
            modified: modified.ok_or_else(|| hostile("is of a time that no clock reaches"))?,
        };
        match header.entry_type() {
            EntryType::Directory => self.folder(path, looks),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                make_room(path)?;
                let mut options = OpenOptions::new();
                let mut file = options
                    .write(true)
                    .create_new(true)
                    .open(path)
                    .map_err(told)?;
                let announced = member.size();
                let written = io::copy(member, &mut file).map_err(told)?;
                if written != announced {
                    let message = format!("ends after {written} of {announced} bytes");
                    return Err(Failure::new(Class::Corrupt, message));
                }
                looks.set(&file).map_err(told)
            }
            EntryType::Symlink => {
                let to = member.link_name_bytes().unwrap_or_default().into_owned();
                make_room(path)?;
                symlink(OsStr::from_bytes(&to), path).map_err(told)?;
                let made = fs::symlink_metadata(path).map_err(told)?;
                self.links.insert((made.dev(), made.ino()));
                Ok(())
            }
            other => Err(hostile(&format!(
                "is no file, directory or symbolic link but {other:?}"
            ))),
        }
    }

    fn folder(&mut self, path: &Path, looks: Looks) -> Outcome<()> {
        let told = |e: io::Error| Failure::io(&e, path.display());
        match looked(path)? {
            Some(found) if found.is_dir() => {}
            Some(found) if found.is_symlink() => {
                if self.followed(&found, path, false)? {
                    return Ok(());
                }
                fs::remove_file(path).map_err(told)?;
                DirBuilder::new().create(path).map_err(told)?;
            }
            Some(_) => return Err(hostile(&format!("'{}' is in its way", path.display()))),
            None => DirBuilder::new().create(path).map_err(told)?,
        }
        let path = path.to_owned();
        self.folders.push(Folder { path, looks });
        Ok(())
    }

    pub fn finish(self) -> Outcome<()> {
        // The inner ones first; a directory is never replaced, so this is still the one we made.
        for Folder { path, looks } in self.folders.iter().rev() {
            let set = File::open(path).and_then(|folder| looks.set(&folder));
            set.map_err(|e| Failure::io(&e, path.display()))?;
        }
        Ok(())
    }
}

impl Looks {
    fn set(self, file: &File) -> io::Result<()> {
        file.set_times(FileTimes::new().set_modified(self.modified))?;
        file.set_permissions(Permissions::from_mode(self.mode))
    }
}

fn looked(path: &Path) -> Outcome<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::io(&e, path.display())),
    }
}

/// What lies there goes, unless it is a directory.
fn make_room(path: &Path) -> Outcome<()> {
    match looked(path)? {
        None => Ok(()),
        Some(found) if found.is_dir() => {
            Err(hostile(&format!("'{}' is a directory", path.display())))
        }
        Some(_) => fs::remove_file(path).map_err(|e| Failure::io(&e, path.display())),
    }
}

fn hostile(what: &str) -> Failure {
    Failure::new(Class::Denied, what)
}
