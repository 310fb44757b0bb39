//! Archives and files onto the disk, never outside their places.
//!
//! Names are made of plain components only, and no symbolic link exists while files are written,
//! so nothing can lead elsewhere: links are kept for the end. A link that would lead out of its
//! directory is not made but reported. A name that comes twice is damage.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use tar::{Entry, EntryType};

use super::{Sink, members};
use crate::durable::Flowing;
use crate::failure::{Failure, Outcome};
use crate::restore::corrupt;
use crate::restore::layout::{DESCRIPTION, Naming};
use crate::restore::target::{Place, Places};

/// PostgreSQL does not start without it, so it gets its name last.
pub const CONTROL: &str = "global/pg_control";
pub const CONTROL_UNFINISHED: &str = "global/pg_control.unfinished-restore";

/// What was written of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    pub size_bytes: u64,
    pub crc32c: u32,
}

/// Written into the archive from memory, with a mode that PostgreSQL did not choose.
pub const MADE_UP: &[&str] = &[CONTROL, "backup_label", "backup_manifest"];

/// What a worker did, by names relative to PGDATA as PostgreSQL sees them.
#[derive(Debug, Default)]
pub struct Unpacked {
    pub sums: HashMap<PathBuf, Sum>,
    pub links: Vec<Link>,
    /// Links that lead elsewhere and were not made.
    pub strays: Vec<Link>,
}

impl Unpacked {
    pub fn merge(&mut self, other: Unpacked) {
        self.sums.extend(other.sums);
        self.links.extend(other.links);
        self.strays.extend(other.strays);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub at: PathBuf,
    pub to: PathBuf,
}

pub struct Unpacker<'a> {
    places: &'a Places,
    /// Directories known to exist.
    made: HashSet<PathBuf>,
    buffer: Vec<u8>,
    pub done: Unpacked,
}

/// A member's place on the disk, and its name as PostgreSQL sees it.
struct Spot {
    path: PathBuf,
    name: PathBuf,
}

impl Sink for Unpacker<'_> {
    fn archive(&mut self, source: &mut dyn Read, naming: Naming) -> Outcome<()> {
        members(source, |entry| self.entry(entry, naming))
    }

    fn file(&mut self, name: &str, _bytes: Option<u64>, source: &mut dyn Read) -> Outcome<()> {
        match self.spot(Path::new(name), Naming::Bare)? {
            Some(spot) => self.write(&spot, 0o600, source).map(|_| ()),
            None => Err(corrupt(format!("'{name}' cannot be the name of a file"))),
        }
    }
}

impl<'a> Unpacker<'a> {
    pub fn new(places: &'a Places) -> Unpacker<'a> {
        let roots = places.tablespaces.values().map(|place| place.path.clone());
        Unpacker {
            places,
            made: roots.chain([places.pgdata.clone()]).collect(),
            buffer: vec![0; BUFFER_BYTES],
            done: Unpacked::default(),
        }
    }

    /// A directory below PGDATA.
    pub fn folder_named(&mut self, name: &str) -> Outcome<()> {
        match self.spot(Path::new(name), Naming::Bare)? {
            Some(spot) => self.folder(&spot.path, 0o700),
            None => Ok(()),
        }
    }

    fn entry(&mut self, mut entry: Entry<'_, impl Read>, naming: Naming) -> Outcome<()> {
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let told = |e: io::Error| Failure::from_io(&e, &shown);
        let path = entry.path().map_err(told)?.into_owned();
        let Some(spot) = self.spot(&path, naming)? else {
            return Ok(());
        };
        let mode = match MADE_UP.iter().any(|name| spot.name == Path::new(name)) {
            true => 0o600,
            false => entry.header().mode().map_err(told)? & 0o777,
        };
        match entry.header().entry_type() {
            EntryType::Directory => self.folder(&spot.path, mode | 0o700),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let announced = entry.size();
                let sum = self.write(&spot, mode, &mut entry)?;
                if sum.size_bytes != announced {
                    let found = sum.size_bytes;
                    return Err(corrupt(format!(
                        "{shown} ends after {found} of {announced} bytes"
                    )));
                }
                Ok(())
            }
            EntryType::Symlink => {
                let to = entry.link_name().map_err(told)?.unwrap_or_default();
                let inside = to
                    .components()
                    .all(|part| matches!(part, Component::Normal(_)));
                let link = Link {
                    at: spot.path,
                    to: to.into_owned(),
                };
                let list = match inside {
                    true => &mut self.done.links,
                    false => &mut self.done.strays,
                };
                list.push(link);
                Ok(())
            }
            EntryType::Link => {
                let to = entry.link_name().map_err(told)?.unwrap_or_default();
                let Some(first) = self.spot(&to, naming)? else {
                    return Err(corrupt(format!("{shown} is a link to nothing")));
                };
                let mut file = File::open(&first.path).map_err(told)?;
                self.write(&spot, mode, &mut file).map(|_| ())
            }
            other => Err(corrupt(format!(
                "{shown} is no file or directory but {other:?}"
            ))),
        }
    }

    /// Nothing for a member that is not part of the cluster.
    fn spot(&self, path: &Path, naming: Naming) -> Outcome<Option<Spot>> {
        let tablespaces = &self.places.tablespaces;
        let Some(Member { name, space, below }) = member(path, naming, tablespaces)? else {
            return Ok(None);
        };
        let root = space.map_or(&self.places.pgdata, |place| &place.path);
        let path = match name == Path::new(CONTROL) {
            true => root.join(CONTROL_UNFINISHED),
            false => root.join(below),
        };
        Ok(Some(Spot { path, name }))
    }

    fn write(&mut self, spot: &Spot, mode: u32, source: &mut dyn Read) -> Outcome<Sum> {
        self.folder(spot.path.parent().unwrap_or(Path::new("/")), 0o700)?;
        let shown = spot.path.display();
        let told = |e: io::Error| Failure::io(&e, &shown);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&spot.path)
            .map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => corrupt(format!("{shown} is in the backup twice")),
                _ => told(e),
            })?;
        // The umask takes nothing from the owner, but may take from the others.
        if mode & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(mode))
                .map_err(told)?;
        }
        if let Some(owner) = self.places.owner {
            fchown(&file, Some(owner.uid), Some(owner.gid)).map_err(told)?;
        }
        let mut file = Flowing::new(file);
        let mut sum = Sum {
            size_bytes: 0,
            crc32c: 0,
        };
        loop {
            let count = source
                .read(&mut self.buffer)
                .map_err(|e| Failure::from_io(&e, spot.name.display()))?;
            let piece = self.buffer.get(..count).unwrap_or(&[]);
            if piece.is_empty() {
                break;
            }
            file.write_all(piece).map_err(told)?;
            sum.crc32c = crc32c::crc32c_append(sum.crc32c, piece);
            sum.size_bytes += u64::try_from(count).unwrap_or(0);
        }
        self.done.sums.insert(spot.name.clone(), sum);
        Ok(sum)
    }

    fn folder(&mut self, path: &Path, mode: u32) -> Outcome<()> {
        let told = |e: io::Error| Failure::io(&e, path.display());
        if !self.made.contains(path) {
            if let Some(parent) = path.parent() {
                self.folder(parent, 0o700)?;
            }
            match DirBuilder::new().mode(0o700).create(path) {
                Ok(()) => self.places.owner.map_or(Ok(()), |owner| owner.give(path))?,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(told(e)),
            }
            self.made.insert(path.to_owned());
        }
        if mode != 0o700 {
            fs::set_permissions(path, Permissions::from_mode(mode)).map_err(told)?;
        }
        Ok(())
    }
}

/// What a member of an archive is.
pub struct Member<'a> {
    /// Below PGDATA, as PostgreSQL sees it.
    pub name: PathBuf,
    /// The tablespace it belongs to.
    pub space: Option<&'a Place>,
    /// Below the tablespace, or PGDATA.
    pub below: PathBuf,
}

/// Nothing for a member that is not part of the cluster. A name that leads elsewhere is damage.
pub fn member<'a>(
    path: &Path,
    naming: Naming,
    tablespaces: &'a BTreeMap<String, Place>,
) -> Outcome<Option<Member<'a>>> {
    let hostile = || {
        let message = format!(
            "'{}' would be written outside of the target",
            path.display()
        );
        corrupt(message).hint("this backup was tampered with or damaged")
    };
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(part) if !part.as_encoded_bytes().contains(&0) => {
                parts.push(part);
            }
            _ => return Err(hostile()),
        }
    }
    let below = |skipped: usize| parts.iter().skip(skipped).collect::<PathBuf>();
    let (space, name, below) = match (naming, parts.as_slice()) {
        (_, []) => return Ok(None),
        (_, [only]) if *only == DESCRIPTION || *only == DELTA_DESCRIPTION => return Ok(None),
        (Naming::Bare, _) => (None, below(0), below(0)),
        (Naming::Prefixed, [first, ..]) if *first == "pgdata" => (None, below(1), below(1)),
        (Naming::Prefixed, [first, space, ..]) if *first == "tablespaces" => {
            let place = space.to_str().and_then(|s| tablespaces.get(s));
            let Some(place) = place else {
                let message = format!("'{}' is of an unknown tablespace", path.display());
                return Err(corrupt(message));
            };
            let name = Path::new("pg_tblspc").join(place.oid.to_string());
            (Some(place), name.join(below(2)), below(2))
        }
        (Naming::Prefixed, [only]) if *only == "tablespaces" => return Ok(None),
        (Naming::Prefixed, _) => return Err(hostile()),
    };
    // The links are made from the description; the map would lead to the original places.
    if below.as_os_str().is_empty()
        || (naming == Naming::Prefixed && name == Path::new("tablespace_map"))
    {
        return Ok(None);
    }
    Ok(Some(Member { name, space, below }))
}

/// What the delta format of old versions describes itself with.
const DELTA_DESCRIPTION: &str = ".manifest.json";

/// One read and one write.
const BUFFER_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    fn unpack(root: &Path, naming: Naming, tar: &[u8]) -> Outcome<Unpacked> {
        let space = root.join("space");
        fs::create_dir_all(&space).unwrap();
        let pgdata = root.join("data");
        fs::create_dir_all(&pgdata).unwrap();
        let place = Place {
            oid: 16_795,
            path: space,
        };
        let places = Places {
            pgdata,
            tablespaces: BTreeMap::from([("ts".to_owned(), place)]),
            owner: None,
        };
        let mut unpacker = Unpacker::new(&places);
        unpacker.archive(&mut &*tar, naming)?;
        Ok(unpacker.done)
    }

    /// The crate refuses hostile names when writing, so the header is filled by hand.
    fn tar(kind: EntryType, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len().try_into().unwrap());
        header.set_mode(0o640);
        header.set_cksum();
        let mut builder = Builder::new(Vec::new());
        builder.append(&header, content).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn hostile_names_are_refused() {
        for (naming, name) in [
            (Naming::Bare, "../x"),
            (Naming::Bare, "a/../../x"),
            (Naming::Bare, "/etc/x"),
            (Naming::Prefixed, "pgdata/../x"),
            (Naming::Prefixed, "tablespaces/ts/../x"),
            (Naming::Prefixed, "tablespaces/other/x"),
            (Naming::Prefixed, "x"),
            (Naming::Prefixed, "etc/x"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let tar = tar(EntryType::Regular, name, "", b"x");
            assert!(unpack(root.path(), naming, &tar).is_err(), "{name}");
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2, "{name}");
        }
    }

    #[test]
    fn members_come_to_their_places() {
        let root = tempfile::tempdir().unwrap();
        for (name, path, seen) in [
            ("pgdata/base/1", "data/base/1", "base/1"),
            ("./pgdata/base/2", "data/base/2", "base/2"),
            (
                "tablespaces/ts/PG_15/1",
                "space/PG_15/1",
                "pg_tblspc/16795/PG_15/1",
            ),
            (
                "pgdata/global/pg_control",
                "data/global/pg_control.unfinished-restore",
                CONTROL,
            ),
        ] {
            let tar = tar(EntryType::Regular, name, "", b"123456789");
            let done = unpack(root.path(), Naming::Prefixed, &tar).unwrap();
            let sum = Sum {
                size_bytes: 9,
                crc32c: 0xE306_9283,
            };
            assert_eq!(done.sums, HashMap::from([(PathBuf::from(seen), sum)]));
            let path = root.path().join(path);
            assert_eq!(fs::read(&path).unwrap(), b"123456789");
            let mode = if seen == CONTROL { 0o600 } else { 0o640 };
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                mode
            );
        }
        for name in [
            ".pghoard_tar_metadata.json",
            "pgdata",
            "pgdata/tablespace_map",
        ] {
            let tar = tar(EntryType::Regular, name, "", b"x");
            let done = unpack(root.path(), Naming::Prefixed, &tar).unwrap();
            assert!(done.sums.is_empty(), "{name}");
        }
    }

    #[test]
    fn links_wait_and_strays_are_reported() {
        for (to, stray) in [("x.conf", false), ("/etc/x", true), ("../x", true)] {
            let root = tempfile::tempdir().unwrap();
            let tar = tar(EntryType::Symlink, "a.conf", to, b"");
            let done = unpack(root.path(), Naming::Bare, &tar).unwrap();
            assert_eq!(
                (done.links.len(), done.strays.len()),
                (1 - usize::from(stray), stray.into())
            );
            assert!(!root.path().join("data/a.conf").is_symlink());
        }
    }

    #[test]
    fn s18_a_cut_archive_and_a_name_twice_are_damage() {
        let root = tempfile::tempdir().unwrap();
        let whole = tar(EntryType::Regular, "a", "", &[1; 2000]);
        let cut = unpack(root.path(), Naming::Bare, &whole[..1024]).unwrap_err();
        assert!(cut.message.contains("a"), "{cut}");
        let root = tempfile::tempdir().unwrap();
        unpack(root.path(), Naming::Bare, &whole).unwrap();
        let twice = unpack(root.path(), Naming::Bare, &whole).unwrap_err();
        assert!(twice.message.ends_with("is in the backup twice"));
        let fifo = tar(EntryType::Fifo, "fifo", "", b"");
        assert!(unpack(root.path(), Naming::Bare, &fifo).is_err());
    }
}
