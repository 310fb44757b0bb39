//! A basebackup as one plain tar of the data directory, for a host that has nothing but curl and
//! tar.
//!
//! What can be refused is refused before the first byte ([`plan`]). `global/pg_control` is the
//! last member, written after everything was verified and the settings of recovery: a stream that
//! broke off leaves a directory that does not start. Nothing is written to this machine's disk.
//!
//! The files of a tablespace have absolute names, which `tar -x -P` keeps; its link comes after
//! them.
//!
//! Budget: a piece of plain data, what [`pipe`](super::fetch::pipe) decodes ahead, and about 150
//! bytes a file; of files the manifest alone, and a few small ones.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use machine::Class;
use tar::{Entry, EntryType, Header};

use super::fetch::progress::Progress;
use super::fetch::unpack::{CONTROL, Link, MADE_UP, Sum, member};
use super::fetch::{self, Sink};
use super::layout::{self, Layout, Naming};
use super::recovery::{AUTO_CONF, Recovery, SIGNALS, Version};
use super::target::Place;
use super::{Backup, FOLDERS, OLD_FOLDERS, Source, at, corrupt, manifest, promised, refused};
use crate::failure::{Failure, Outcome};

/// What the stream shall lead to.
#[derive(Clone, Debug)]
pub struct Wish {
    pub recovery: Recovery,
    /// Where tablespaces go, by name.
    pub tablespaces: BTreeMap<String, PathBuf>,
    /// A program of ours, beside the server's files.
    pub script: Script,
}

#[derive(Clone, Debug)]
pub struct Script {
    pub name: &'static str,
    pub content: String,
}

/// A stream that nothing speaks against.
pub struct Plan<'a> {
    layout: Layout,
    source: Source<'a>,
    wish: Wish,
    spaces: BTreeMap<String, Place>,
    modified: u64,
}

/// Reads the description of the backup; [`Class::Config`] where the wish does not fit it.
pub fn plan<'a>(backup: &Backup<'_>, source: Source<'a>, wish: Wish) -> Outcome<Plan<'a>> {
    let version = backup.metadata().get("pg-version");
    let version = version.and_then(|text| text.parse().ok());
    if version.is_some_and(|version: u32| version < 120_000) {
        return Err(refused(
            "a basebackup of a PostgreSQL before 12 is restored by pghoard_restore",
        ));
    }
    let layout = layout::read(backup, &source)?;
    let spaces = place(&layout.tablespaces, &wish.tablespaces)?;
    let modified = backup.start_time().map_or(0, |time| time.as_second());
    Ok(Plan {
        layout,
        source,
        wish,
        spaces,
        modified: u64::try_from(modified).unwrap_or(0),
    })
}

fn place(
    found: &[layout::Tablespace],
    wanted: &BTreeMap<String, PathBuf>,
) -> Outcome<BTreeMap<String, Place>> {
    let mut places = BTreeMap::new();
    let mut taken = HashSet::new();
    for layout::Tablespace { name, oid, path } in found {
        let Some(to) = wanted.get(name) else {
            let message = format!(
                "tablespace '{name}' (it was at {}) has no place",
                path.display()
            );
            return Err(refused(message).hint(format!(
                "say tablespace={name}=/DIRECTORY and extract with tar -x -P; or use \
                 pghoard_restore"
            )));
        };
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !to.is_absolute() || to.parent().is_none() || !to.components().all(plain) {
            let message = format!("tablespace '{name}': expected an absolute directory");
            return Err(refused(message));
        }
        let to: PathBuf = to.components().collect();
        if !taken.insert(to.clone()) {
            return Err(refused(format!(
                "tablespace '{name}': '{}' is used by another tablespace",
                to.display()
            )));
        }
        places.insert(
            name.clone(),
            Place {
                oid: *oid,
                path: to,
            },
        );
    }
    match wanted.keys().find(|name| !places.contains_key(*name)) {
        Some(name) => Err(refused(format!("the backup has no tablespace '{name}'"))),
        None => Ok(places),
    }
}

impl Plan<'_> {
    /// After a failure the stream has no end, and lacks `pg_control`.
    pub fn write(self, out: &mut dyn Write) -> Outcome<()> {
        let Plan { layout, source, .. } = &self;
        let mut tar = Tar {
            out,
            spaces: &self.spaces,
            modified: self.modified,
            made: HashSet::new(),
            sums: HashMap::new(),
            kept: HashMap::new(),
            links: Vec::new(),
            buffer: vec![0; BUFFER_BYTES],
        };
        tar.folder(Path::new(""), 0o700)?;
        for folder in &layout.folders {
            tar.folder_named(folder)?;
        }
        if let Some(main) = &layout.main {
            tar.archive(&mut main.as_slice(), Naming::Prefixed)?;
        }
        for tiny in &layout.tiny {
            let bytes = u64::try_from(tiny.content.len()).ok();
            tar.file(&tiny.path, bytes, &mut tiny.content.as_slice())?;
        }
        let progress = Progress::new(0);
        for job in &layout.jobs {
            let one = fetch::one(job, source, &mut tar, &progress);
            one.map_err(|failure| at(&job.key, failure))?;
        }
        promised(layout, &tar.sums)?;
        if let Some(text) = tar.kept.get(Path::new(MANIFEST)) {
            manifest::check(text, &tar.sums, &mut |name, _| {
                Err(Failure::new(
                    Class::Unsupported,
                    format!("{}: backup_manifest has no CRC-32C of it", name.display()),
                )
                .hint("restore with pghoard_restore"))
            })?;
        }
        tar.finish(&self.wish)
    }
}

struct Tar<'a> {
    out: &'a mut dyn Write,
    spaces: &'a BTreeMap<String, Place>,
    /// Of what is made here, in seconds since 1970.
    modified: u64,
    /// Directories that are in the stream.
    made: HashSet<PathBuf>,
    /// By names relative to PGDATA as PostgreSQL sees them.
    sums: HashMap<PathBuf, Sum>,
    kept: HashMap<PathBuf, Vec<u8>>,
    links: Vec<Link>,
    buffer: Vec<u8>,
}

/// What a member's header says.
struct Head {
    kind: EntryType,
    mode: u32,
    bytes: u64,
    modified: u64,
}

impl Sink for Tar<'_> {
    fn archive(&mut self, source: &mut dyn Read, naming: Naming) -> Outcome<()> {
        fetch::members(source, |entry| self.entry(entry, naming))
    }

    fn file(&mut self, name: &str, bytes: Option<u64>, source: &mut dyn Read) -> Outcome<()> {
        let unfit = || corrupt(format!("'{name}' cannot be the name of a file"));
        let found = member(Path::new(name), Naming::Bare, self.spaces)?.ok_or_else(unfit)?;
        let bytes = bytes.ok_or_else(|| corrupt(format!("{name}: its size is not announced")))?;
        let head = Head {
            kind: EntryType::Regular,
            mode: 0o600,
            bytes,
            modified: self.modified,
        };
        // See `layout::without_size`: it may be another, but the header is on its way.
        let other = |what| {
            Failure::new(Class::Unsupported, what)
                .hint("PGHoard saw it change meanwhile: restore with pghoard_restore")
        };
        self.write((&found.name, &found.name), &head, source, other)
    }
}

impl Tar<'_> {
    fn entry(&mut self, mut entry: Entry<'_, impl Read>, naming: Naming) -> Outcome<()> {
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let told = |e: io::Error| Failure::from_io(&e, &shown);
        let path = entry.path().map_err(told)?.into_owned();
        let Some(found) = member(&path, naming, self.spaces)? else {
            return Ok(());
        };
        let name = found.name;
        let to = match found.space {
            Some(place) => place.path.join(found.below),
            None => name.clone(),
        };
        let mode = match MADE_UP.iter().any(|made| name == Path::new(made)) {
            true => 0o600,
            false => entry.header().mode().map_err(told)? & 0o777,
        };
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Directory if OLD_FOLDERS.iter().any(|old| name == Path::new(old)) => Ok(()),
            EntryType::Directory => self.folder(&to, mode | 0o700),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let head = Head {
                    kind: EntryType::Regular,
                    mode,
                    bytes: entry.size(),
                    modified: entry.header().mtime().map_err(told)?,
                };
                self.write((&name, &to), &head, &mut entry, corrupt)
            }
            EntryType::Symlink => {
                let link = entry.link_name().map_err(told)?.unwrap_or_default();
                let mut parts = link.components();
                match parts.all(|part| matches!(part, Component::Normal(_))) {
                    true => self.links.push(Link {
                        at: to,
                        to: link.into_owned(),
                    }),
                    false => log::warn!(
                        "{shown}: the symbolic link to '{}' leads out of the data directory and \
                         is not in the tar",
                        link.display()
                    ),
                }
                Ok(())
            }
            EntryType::Link => {
                let link = entry.link_name().map_err(told)?.unwrap_or_default();
                let first = member(&link, naming, self.spaces)?;
                self.hard_link(&name, &to, first.map(|first| first.name))
            }
            other => Err(corrupt(format!(
                "{shown} is no file or directory but {other:?}"
            ))),
        }
    }

    /// A second name of a file below PGDATA.
    fn hard_link(&mut self, name: &Path, to: &Path, first: Option<PathBuf>) -> Outcome<()> {
        let first = first.filter(|first| !withheld(first) && first.is_relative());
        let found = first.and_then(|first| Some((*self.sums.get(&first)?, first)));
        let (Some((sum, first)), false) = (found, withheld(name)) else {
            return Err(corrupt(format!("{} is a link to nothing", name.display())));
        };
        let head = Head {
            kind: EntryType::Link,
            mode: 0o600,
            bytes: 0,
            modified: self.modified,
        };
        self.header(to, &head, Some(&first))?;
        self.sums.insert(name.to_owned(), sum);
        Ok(())
    }

    /// Into the stream, into memory, or both. `other` is the failure where the head announces
    /// another size.
    fn write(
        &mut self,
        (name, to): (&Path, &Path),
        head: &Head,
        source: &mut dyn Read,
        other: fn(String) -> Failure,
    ) -> Outcome<()> {
        let shown = name.display();
        if self.sums.contains_key(name) {
            return Err(corrupt(format!("{shown} is in the backup twice")));
        }
        let withheld = withheld(name);
        let kept = withheld || KEPT.iter().any(|kept| name == Path::new(kept));
        if kept && head.bytes > KEPT_BYTES_MAX {
            return Err(corrupt(format!("{shown} has {} bytes", head.bytes)));
        }
        if !withheld {
            self.begin(to, head)?;
        }
        let mut copy = kept.then(Vec::new);
        let mut sum = Sum {
            size_bytes: 0,
            crc32c: 0,
        };
        // One byte more would be seen below.
        let mut source = source.take(head.bytes.saturating_add(1));
        loop {
            let count = source
                .read(&mut self.buffer)
                .map_err(|e| Failure::from_io(&e, &shown))?;
            let piece = self.buffer.get(..count).unwrap_or(&[]);
            if piece.is_empty() {
                break;
            }
            sum.crc32c = crc32c::crc32c_append(sum.crc32c, piece);
            sum.size_bytes += u64::try_from(count).unwrap_or(0);
            if let Some(copy) = &mut copy {
                copy.extend_from_slice(piece);
            }
            if !withheld && sum.size_bytes <= head.bytes {
                self.out.write_all(piece).map_err(gone)?;
            }
        }
        if sum.size_bytes != head.bytes {
            let (found, announced) = (sum.size_bytes, head.bytes);
            return Err(other(format!("{shown} has {found} of {announced} bytes")));
        }
        if !withheld {
            self.pad(head.bytes)?;
        }
        self.sums.insert(name.to_owned(), sum);
        self.kept.extend(copy.map(|copy| (name.to_owned(), copy)));
        Ok(())
    }

    /// A directory below PGDATA.
    fn folder_named(&mut self, name: &str) -> Outcome<()> {
        match member(Path::new(name), Naming::Bare, self.spaces)? {
            Some(found) => self.folder(&found.name, 0o700),
            None => Ok(()),
        }
    }

    /// With those above it; the empty name is PGDATA itself.
    fn folder(&mut self, path: &Path, mode: u32) -> Outcome<()> {
        if self.made.contains(path) {
            return Ok(());
        }
        let outside = |path: &&Path| path.is_absolute();
        let spaces = self.spaces;
        // What lies above a tablespace is not ours.
        let own = |path: &Path| spaces.values().any(|place| path.starts_with(&place.path));
        if let Some(parent) = path.parent().filter(|p| !outside(p) || own(p)) {
            self.folder(parent, 0o700)?;
        }
        self.made.insert(path.to_owned());
        let name = match path.as_os_str().is_empty() {
            true => Path::new("./"),
            false => path,
        };
        let head = Head {
            kind: EntryType::Directory,
            mode,
            bytes: 0,
            modified: self.modified,
        };
        self.header(name, &head, None)
    }

    fn begin(&mut self, to: &Path, head: &Head) -> Outcome<()> {
        if let Some(parent) = to.parent() {
            self.folder(parent, 0o700)?;
        }
        self.header(to, head, None)
    }

    /// Names that do not fit get a member of their own before it, as GNU tar writes them.
    fn header(&mut self, name: &Path, head: &Head, link: Option<&Path>) -> Outcome<()> {
        let mut block = Header::new_gnu();
        let (mut path, to) = (name.as_os_str().as_bytes().to_vec(), link);
        if head.kind == EntryType::Directory && !path.ends_with(b"/") {
            path.push(b'/');
        }
        let to = to.map(|to| to.as_os_str().as_bytes()).unwrap_or_default();
        self.long(EntryType::GNULongName, &path)?;
        self.long(EntryType::GNULongLink, to)?;
        if let Some(gnu) = block.as_gnu_mut() {
            fill(&mut gnu.name, &path);
            fill(&mut gnu.linkname, to);
            // As root, tar gives the files to a user of this name if there is one.
            fill(&mut gnu.uname, OWNER);
            fill(&mut gnu.gname, OWNER);
        }
        block.set_entry_type(head.kind);
        block.set_mode(head.mode);
        block.set_size(head.bytes);
        block.set_mtime(head.modified);
        block.set_uid(0);
        block.set_gid(0);
        block.set_cksum();
        self.out.write_all(block.as_bytes()).map_err(gone)
    }

    fn long(&mut self, kind: EntryType, text: &[u8]) -> Outcome<()> {
        if text.len() <= NAME_BYTES_MAX {
            return Ok(());
        }
        let bytes = u64::try_from(text.len())
            .unwrap_or(u64::MAX)
            .saturating_add(1);
        let mut block = Header::new_gnu();
        if let Some(gnu) = block.as_gnu_mut() {
            fill(&mut gnu.name, b"././@LongLink");
        }
        block.set_entry_type(kind);
        block.set_mode(0o644);
        block.set_size(bytes);
        block.set_mtime(0);
        block.set_uid(0);
        block.set_gid(0);
        block.set_cksum();
        let all = [block.as_bytes().as_slice(), text, b"\0"].concat();
        self.out.write_all(&all).map_err(gone)?;
        self.pad(bytes)
    }

    fn pad(&mut self, bytes: u64) -> Outcome<()> {
        let over = usize::try_from(bytes % BLOCK_BYTES).unwrap_or(0);
        let zeros = ZEROS.get(over..).filter(|_| over > 0).unwrap_or_default();
        self.out.write_all(zeros).map_err(gone)
    }

    /// A file that is made here.
    fn made_file(&mut self, name: &str, mode: u32, content: &[u8]) -> Outcome<()> {
        let head = Head {
            kind: EntryType::Regular,
            mode,
            bytes: u64::try_from(content.len()).unwrap_or(u64::MAX),
            modified: self.modified,
        };
        self.begin(Path::new(name), &head)?;
        self.out.write_all(content).map_err(gone)?;
        self.pad(head.bytes)
    }

    fn link(&mut self, link: &Link) -> Outcome<()> {
        let head = Head {
            kind: EntryType::Symlink,
            mode: 0o777,
            bytes: 0,
            modified: self.modified,
        };
        self.header(&link.at, &head, Some(&link.to))
    }

    /// What a restore adds, and what it must not be without.
    fn finish(mut self, wish: &Wish) -> Outcome<()> {
        let text =
            |kept: Option<&Vec<u8>>| kept.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let version = text(self.kept.get(Path::new(PG_VERSION)));
        let version = version.and_then(|text| Version::parse(text.trim()));
        let version = version.filter(|version| *version >= Version::V12);
        let version =
            version.ok_or_else(|| corrupt("PG_VERSION: expected a version of at least 12"))?;
        let before = self.kept.remove(Path::new(AUTO_CONF)).unwrap_or_default();
        for folder in FOLDERS {
            self.folder(Path::new(folder), 0o700)?;
        }
        let spaces = self.spaces;
        for place in spaces.values() {
            self.folder(&place.path, 0o700)?;
            self.link(&Link {
                at: Path::new("pg_tblspc").join(place.oid.to_string()),
                to: place.path.clone(),
            })?;
        }
        for link in std::mem::take(&mut self.links) {
            self.link(&link)?;
        }
        for (name, content) in wish.recovery.files(version, &before)? {
            self.made_file(name, 0o600, &content)?;
        }
        let script = &wish.script;
        self.made_file(script.name, 0o700, script.content.as_bytes())?;
        let control = self.kept.remove(Path::new(CONTROL)).unwrap_or_default();
        self.made_file(CONTROL, 0o600, &control)?;
        self.out.write_all(&ZEROS).map_err(gone)?;
        self.out.write_all(&ZEROS).map_err(gone)?;
        self.out.flush().map_err(gone)
    }
}

fn withheld(name: &Path) -> bool {
    let mut names = WITHHELD.iter().chain(&SIGNALS);
    names.any(|withheld| name == Path::new(withheld))
}

/// Whoever reads the stream has had enough.
fn gone(error: io::Error) -> Failure {
    Failure::from_io(&error, "tar")
}

fn fill(field: &mut [u8], text: &[u8]) {
    for (to, from) in field.iter_mut().zip(text) {
        *to = *from;
    }
}

const PG_VERSION: &str = "PG_VERSION";
const MANIFEST: &str = "backup_manifest";
/// In the stream, and read here.
const KEPT: [&str; 2] = [PG_VERSION, MANIFEST];
/// Written anew at the end.
const WITHHELD: [&str; 2] = [CONTROL, AUTO_CONF];
/// The manifest of a million files.
const KEPT_BYTES_MAX: u64 = 256 << 20;
const OWNER: &[u8] = b"postgres";
const BUFFER_BYTES: usize = 256 << 10;
const BLOCK_BYTES: u64 = 512;
const ZEROS: [u8; 512] = [0; 512];
/// Of a header's fields for names.
const NAME_BYTES_MAX: usize = 100;

#[cfg(test)]
mod tests;
