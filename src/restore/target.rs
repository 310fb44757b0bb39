//! Where a restore may write: everything is checked before anything is changed.
//!
//! Texts and rules are PGHoard's (`pghoard/restore.py`, `_get_basebackup`), but for these: a
//! target in use by a running server is refused, `--overwrite` keeps the directory itself (it may
//! be a mount point) and `lost+found`, and two tablespaces may not share a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, geteuid};

use super::layout::Tablespace;
use super::refused;
use crate::durable;
use crate::failure::{Failure, Outcome};

mod space;

/// What the command line says about the target.
#[derive(Clone, Debug)]
pub struct Request {
    pub target_dir: PathBuf,
    pub existing: Existing,
    /// `NAME=DIRECTORY`
    pub tablespace_dirs: Vec<String>,
    pub tablespace_base_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Refuse,
    Overwrite,
}

/// The directories to fill, which exist and are empty.
#[derive(Clone, Debug)]
pub struct Places {
    pub pgdata: PathBuf,
    pub tablespaces: BTreeMap<String, Place>,
    pub owner: Option<Owner>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub oid: u32,
    pub path: PathBuf,
}

/// Who shall own the files: PostgreSQL refuses a data directory of another user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    pub fn give(self, path: &Path) -> Outcome<()> {
        chown(path, Some(self.uid), Some(self.gid)).map_err(|e| Failure::io(&e, path.display()))
    }

    /// Whether the mode grants these of `0o7`, as far as user and group tell.
    pub fn may(self, found: &fs::Metadata, wanted: u32) -> bool {
        let shift = match (found.uid() == self.uid, found.gid() == self.gid) {
            (true, _) => 6,
            (false, true) => 3,
            (false, false) => 0,
        };
        (found.mode() >> shift) & wanted == wanted
    }
}

/// Checks all, then makes the directories ready for so many bytes.
pub fn prepare(
    request: &Request,
    tablespaces: &[Tablespace],
    needed_bytes: u64,
) -> Outcome<Places> {
    let pgdata = absolute(&request.target_dir)?;
    check_target(&pgdata, request.existing)?;
    let tablespaces = place_tablespaces(request, tablespaces)?;
    let spaces = tablespaces.values().map(|place| place.path.as_path());
    space::check(needed_bytes, &pgdata, request.existing, spaces)?;
    let owner = match geteuid().is_root() {
        true => owner_above(&pgdata)?,
        false => None,
    };
    empty(&pgdata)?;
    for path in tablespaces
        .values()
        .map(|place| &place.path)
        .chain([&pgdata])
    {
        make(path, owner)?;
    }
    Ok(Places {
        pgdata,
        tablespaces,
        owner,
    })
}

/// A directory, and those above it that are missing: PostgreSQL has to get through them.
fn make(path: &Path, owner: Option<Owner>) -> Outcome<()> {
    let above = path.ancestors().skip(1);
    let missing: Vec<&Path> = above.take_while(|above| !above.exists()).collect();
    if !path.exists() {
        durable::make_folders(path)?;
    }
    match owner {
        Some(owner) => [path]
            .iter()
            .chain(&missing)
            .try_for_each(|path| owner.give(path)),
        None => Ok(()),
    }
}

fn absolute(path: &Path) -> Outcome<PathBuf> {
    std::path::absolute(path).map_err(|e| Failure::io(&e, path.display()))
}

fn check_target(target: &Path, existing: Existing) -> Outcome<()> {
    let shown = target.display();
    match (names(target)?, existing) {
        (None, _) => return Ok(()),
        (Some(names), _) if vacant(&names) => {}
        (Some(_), Existing::Overwrite) => refuse_running(target)?,
        (Some(_), Existing::Refuse) => {
            return Err(refused(format!(
                "$PGDATA target directory '{shown}' exists, is not empty and --overwrite not \
                 specified, aborting."
            )));
        }
    }
    if target.parent().is_none() {
        return Err(refused("the root directory cannot be $PGDATA"));
    }
    match writable(target) {
        true => Ok(()),
        false => Err(refused(format!(
            "$PGDATA target directory '{shown}' is not writable, aborting."
        ))),
    }
}

/// A server that lives on the target would go on writing into the restored files.
fn refuse_running(target: &Path) -> Outcome<()> {
    let text = fs::read_to_string(target.join("postmaster.pid")).unwrap_or_default();
    let pid = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse().ok());
    let Some(pid) = pid.filter(|pid: &i32| *pid > 0) else {
        return Ok(());
    };
    match kill(Pid::from_raw(pid), None) {
        Err(Errno::ESRCH) => Ok(()),
        Ok(()) | Err(_) => Err(refused(format!(
            "$PGDATA target directory '{}' is in use by the server with process id {pid}",
            target.display()
        ))
        .hint("stop it, or remove postmaster.pid if that process is no PostgreSQL server")),
    }
}

fn place_tablespaces(
    request: &Request,
    tablespaces: &[Tablespace],
) -> Outcome<BTreeMap<String, Place>> {
    let mut mapped = mappings(&request.tablespace_dirs)?;
    if let Some(base) = &request.tablespace_base_dir
        && !base.is_dir()
        && request.existing == Existing::Refuse
    {
        return Err(refused(format!(
            "Tablespace base directory '{}' does not exist, aborting.",
            base.display()
        )));
    }
    let mut places = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for Tablespace { name, oid, path } in tablespaces {
        let path = match (mapped.remove(name), &request.tablespace_base_dir) {
            (Some(path), _) => absolute(&path)?,
            (None, Some(base)) if !path.exists() => absolute(&base.join(oid.to_string()))?,
            (None, _) => path.clone(),
        };
        let made_here = request
            .tablespace_base_dir
            .as_ref()
            .is_some_and(|base| path.parent() == absolute(base).ok().as_deref());
        check_tablespace(name, &path, made_here)?;
        if !taken.insert(path.clone()) {
            return Err(refused(format!(
                "Tablespace '{name}' target directory '{}' is used by another tablespace",
                path.display()
            )));
        }
        places.insert(name.clone(), Place { oid: *oid, path });
    }
    if mapped.is_empty() {
        return Ok(places);
    }
    let unknown: Vec<String> = mapped.keys().map(|name| format!("'{name}'")).collect();
    Err(refused(format!(
        "Tablespace mapping for [{}] was requested, but the tablespaces are not present in the \
         backup",
        unknown.join(", ")
    )))
}

/// `NAME=DIRECTORY` of the command line.
pub fn mappings(texts: &[String]) -> Outcome<BTreeMap<String, PathBuf>> {
    let mut mapped = BTreeMap::new();
    for text in texts {
        let pair = text.split_once('=');
        let pair = pair.filter(|(name, path)| !name.is_empty() && !path.is_empty());
        let Some((name, path)) = pair else {
            return Err(refused(format!("Invalid tablespace mapping ['{text}']")));
        };
        mapped.insert(name.to_owned(), PathBuf::from(path));
    }
    Ok(mapped)
}

fn check_tablespace(name: &str, path: &Path, made_here: bool) -> Outcome<()> {
    let said = |rest: &str| {
        let path = path.display();
        Err(refused(format!(
            "Tablespace '{name}' target directory '{path}' {rest}, aborting."
        )))
    };
    if !path.is_absolute() || name.contains(['/', '\0']) || name.is_empty() {
        return said("is not absolute");
    }
    match names(path)? {
        None if made_here => Ok(()),
        None => said("does not exist"),
        Some(names) if !vacant(&names) => said("exists but is not empty"),
        Some(_) if !writable(path) => said("is empty, but not writable"),
        Some(_) => Ok(()),
    }
}

/// The names in a directory; none if there is no such thing.
fn names(path: &Path) -> Outcome<Option<Vec<std::ffi::OsString>>> {
    let told = |e: io::Error| Failure::io(&e, path.display());
    match fs::read_dir(path) {
        Ok(items) => {
            let names = items.map(|item| item.map(|item| item.file_name()));
            names.collect::<io::Result<_>>().map(Some).map_err(told)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(told(e)),
    }
}

/// Empty, or the fresh root of a file system.
fn vacant(names: &[std::ffi::OsString]) -> bool {
    names.iter().all(|name| name == LOST_AND_FOUND)
}

fn writable(path: &Path) -> bool {
    tempfile_in(path).is_ok()
}

fn tempfile_in(folder: &Path) -> Outcome<()> {
    durable::Draft::at(&folder.join("test")).map(drop)
}

/// The owner of a directory, or of the one it will be made in; root owns no clusters.
fn owner_above(path: &Path) -> Outcome<Option<Owner>> {
    let there = path.ancestors().find(|path| path.exists());
    let there = there.unwrap_or(Path::new("/"));
    let found = fs::metadata(there).map_err(|e| Failure::io(&e, there.display()))?;
    let (uid, gid) = (found.uid(), found.gid());
    Ok((uid != 0).then_some(Owner { uid, gid }))
}

fn empty(target: &Path) -> Outcome<()> {
    for name in names(target)?.unwrap_or_default() {
        if name == LOST_AND_FOUND {
            continue;
        }
        let path = target.join(name);
        let removed = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(e) => Err(e),
        };
        removed.map_err(|e| Failure::io(&e, path.display()))?;
    }
    Ok(())
}

const LOST_AND_FOUND: &str = "lost+found";

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &Path) -> Request {
        Request {
            target_dir: target.to_owned(),
            existing: Existing::Refuse,
            tablespace_dirs: Vec::new(),
            tablespace_base_dir: None,
        }
    }

    #[test]
    fn s49_only_an_empty_target_is_taken_without_overwrite() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("data");
        let mut request = request(&target);
        prepare(&request, &[], 0).unwrap();
        fs::create_dir(target.join("lost+found")).unwrap();
        prepare(&request, &[], 0).unwrap();
        fs::write(target.join("PG_VERSION"), "15").unwrap();
        let failure = prepare(&request, &[], 0).unwrap_err();
        let expected = format!(
            "$PGDATA target directory '{}' exists, is not empty and --overwrite not specified, \
             aborting.",
            target.display()
        );
        assert_eq!(failure.message, expected);
        request.existing = Existing::Overwrite;
        prepare(&request, &[], 0).unwrap();
        let left: Vec<_> = names(&target).unwrap().unwrap();
        assert_eq!(left, ["lost+found"]);
    }

    #[test]
    fn all_that_root_makes_on_the_way_to_the_target_is_the_owners() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        if chown(root.path(), Some(12_345), Some(12_345)).is_err() {
            eprintln!("SKIPPED: only root can give a directory away");
            return;
        }
        let space = Tablespace {
            name: "ts".to_owned(),
            oid: 16_795,
            path: at("gone"),
        };
        let request = Request {
            existing: Existing::Overwrite,
            tablespace_base_dir: Some(at("far/spaces")),
            ..request(&at("15/main/data"))
        };
        prepare(&request, &[space], 0).unwrap();
        for name in [
            "15",
            "15/main",
            "15/main/data",
            "far",
            "far/spaces",
            "far/spaces/16795",
        ] {
            let found = fs::metadata(at(name)).unwrap();
            assert_eq!((found.uid(), found.gid()), (12_345, 12_345), "{name}");
        }
    }

    #[test]
    fn s49_a_running_server_is_not_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let pid = root.path().join("postmaster.pid");
        let mut request = request(root.path());
        request.existing = Existing::Overwrite;
        fs::write(&pid, format!("{}\n", std::process::id())).unwrap();
        assert!(
            prepare(&request, &[], 0)
                .unwrap_err()
                .message
                .contains("is in use")
        );
        assert!(pid.exists());
        fs::write(&pid, "2147483646\n").unwrap();
        prepare(&request, &[], 0).unwrap();
        assert!(!pid.exists());
    }

    #[test]
    fn s50_tablespaces_are_mapped_or_refused() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let (mapped, full, base) = (at("mapped"), at("full"), at("base"));
        for path in [&mapped, &full, &base] {
            fs::create_dir(path).unwrap();
        }
        fs::write(full.join("x"), "").unwrap();
        let gone = at("gone");
        let space = [Tablespace {
            name: "ts".to_owned(),
            oid: 16_795,
            path: gone.clone(),
        }];
        let said = |dirs: &[String], base: Option<&Path>| {
            let request = Request {
                tablespace_dirs: dirs.to_vec(),
                tablespace_base_dir: base.map(Path::to_owned),
                ..request(&at("data"))
            };
            match prepare(&request, &space, 0) {
                Ok(places) => places.tablespaces["ts"].path.display().to_string(),
                Err(failure) => failure.message,
            }
        };
        let map = |path: &Path| [format!("ts={}", path.display())];
        let target = |path: &Path, rest: &str| {
            format!(
                "Tablespace 'ts' target directory '{}' {rest}, aborting.",
                path.display()
            )
        };
        assert_eq!(said(&[], None), target(&gone, "does not exist"));
        assert_eq!(
            said(&map(&full), None),
            target(&full, "exists but is not empty")
        );
        assert_eq!(said(&map(&mapped), None), mapped.display().to_string());
        assert_eq!(
            said(&[], Some(&base)),
            base.join("16795").display().to_string()
        );
        assert!(base.join("16795").is_dir());
        assert_eq!(
            said(&["ts".to_owned()], None),
            "Invalid tablespace mapping ['ts']"
        );
        assert_eq!(
            said(&[map(&mapped)[0].clone(), "other=/x".to_owned()], None),
            "Tablespace mapping for ['other'] was requested, but the tablespaces are not present \
             in the backup"
        );
        let nowhere = at("nowhere");
        assert!(said(&[], Some(&nowhere)).ends_with("does not exist, aborting."));
    }
}
