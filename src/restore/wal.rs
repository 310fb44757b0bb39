//! One WAL segment or history file, fetched for a recovering server.
//!
//! A full segment comes from the stores of the related sites, the asked one first, else from their
//! spools on this machine; only if there is none anywhere, the unfinished one of a spool is served,
//! padded with zeros to the segment size. What is served has the size, address and timeline its
//! name says. Of another cluster, which may have continued under the same names, nothing is.
//!
//! Absence ends a recovery, so it is only told by a store that holds something: a disk that is not
//! mounted looks like an empty one.
//!
//! Budget: no segment is held in memory, only [`BLOCK`] of it; a `<output>.tmp` is written and
//! renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use machine::{Class, Lsn, Segment, SegmentSize, Timeline};

use super::target::Owner;
use super::{Opened, Source, at, corrupt};
use crate::codec;
use crate::config::{Config, Site};
use crate::failure::{Failure, Outcome};
use crate::pg::files::{WAL_HEADER_BYTES, WalHeader};
use crate::spool;
use crate::store::Object;

pub mod cluster;

/// Where to look: at the site that was asked for, then at those it is related to.
pub struct Places<'a> {
    /// Never empty but for a look at the spools alone.
    pub stores: Vec<Shelf<'a>>,
    /// The spools of the sites, as far as this machine has them, in the same order.
    pub spools: Vec<PathBuf>,
    /// The system identifier of the server that recovers, where it is known: of a related site
    /// nothing else is taken. What the site itself has is for PostgreSQL to judge.
    pub cluster: Option<u64>,
}

pub struct Shelf<'a> {
    pub prefix: String,
    pub source: Source<'a>,
}

impl<'a> Places<'a> {
    /// The stores of these sites, the asked one first, and their spools.
    pub fn new(opened: &'a [Opened<'a>], config: &Config, cluster: Option<u64>) -> Places<'a> {
        let sites = opened.iter().map(|opened| opened.site);
        Places {
            stores: opened.iter().map(Opened::shelf).collect(),
            spools: spools(config, sites),
            cluster,
        }
    }

    /// The shelves, each with the one cluster that is taken from it.
    fn shelves(&self) -> impl Iterator<Item = (&Shelf<'a>, Option<u64>)> {
        let shelves = self.stores.iter().enumerate();
        shelves.map(|(number, shelf)| (shelf, self.cluster.filter(|_| number > 0)))
    }
}

/// Where the WAL of these sites waits for its store, if it does so on this machine.
pub fn spools<'s>(config: &Config, sites: impl IntoIterator<Item = &'s Site>) -> Vec<PathBuf> {
    let root = config.backup_location.iter();
    let all = sites.into_iter().flat_map(|site| {
        let below = Path::new(&site.prefix).join(spool::FOLDER);
        root.clone().map(move |root| root.join(&below))
    });
    let mut spools: Vec<PathBuf> = Vec::new();
    for path in all {
        if !spools.contains(&path) {
            spools.push(path);
        }
    }
    spools
}

/// What was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Full,
    /// The unfinished segment, of which this many bytes are real.
    Partial {
        bytes: u64,
    },
    /// Confirmed to be nowhere.
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Segment,
    History,
}

/// PostgreSQL asks for nothing else; another name cannot be there.
fn kind(name: &str) -> Option<Kind> {
    match Segment::is_name(name) {
        true => Some(Kind::Segment),
        false => Timeline::from_history_name(name).map(|_| Kind::History),
    }
}

/// Fetches `name` to `output`.
pub fn fetch(places: &Places<'_>, name: &str, output: &Path) -> Outcome<Delivery> {
    let Some(kind) = kind(name) else {
        return Ok(Delivery::Absent);
    };
    // A running daemon may seal, store and let go of a segment between our looks: only what is
    // nowhere twice in a row is absent.
    for _ in 0..2 {
        if full(places, kind, name, output)? {
            return Ok(Delivery::Full);
        }
        let unfinished = unfinished(places, kind, name, output)?;
        if unfinished != Delivery::Absent {
            return Ok(unfinished);
        }
    }
    if let Kind::Segment = kind {
        for (shelf, cluster) in places.shelves() {
            let key = format!("{}/xlog_partial/{name}", shelf.prefix);
            let wanted = Wanted {
                kind,
                name,
                cluster,
                padding: Some(Padding),
            };
            if let Some(bytes) = shelf.deliver(&key, &wanted, output)? {
                return Ok(Delivery::Partial { bytes });
            }
        }
    }
    confirm(places)?;
    Ok(Delivery::Absent)
}

/// Whether these stores may say that something is absent: at least one of those in the store of
/// the asked site holds something. Nothing is remembered of it, a disk may go at any time.
pub fn confirm(places: &Places<'_>) -> Outcome<()> {
    let Some(asked) = places.stores.first() else {
        return Ok(());
    };
    let store = asked.source.store.name();
    for shelf in &places.stores {
        if shelf.source.store.name() != store {
            continue;
        }
        for folder in ["basebackup", "xlog"] {
            if shelf.first(folder)?.is_some() {
                return Ok(());
            }
        }
    }
    // Not a hint: whoever is answered over HTTP gets the message alone.
    let message = format!(
        "{store} holds nothing of site '{}': is its file system mounted?",
        asked.prefix
    );
    Err(Failure::new(Class::Config, message))
}

/// Fetches `name` to `output` if it is whole somewhere. That it is not says little: it may just
/// be on its way from the spool into a store.
pub fn fetch_full(places: &Places<'_>, name: &str, output: &Path) -> Outcome<bool> {
    kind(name).map_or(Ok(false), |kind| full(places, kind, name, output))
}

/// Judges what another PGHoard sent as `name` and puts it to `output`.
pub fn receive(plain: impl Read, name: &str, output: &Path) -> Outcome<()> {
    let kind = kind(name).ok_or_else(|| corrupt(format!("{name} is no file of an archive")))?;
    let wanted = Wanted::whole(kind, name, None);
    deliver(plain, &wanted, output).map(drop)
}

/// Moves a fetched file to where PostgreSQL wants it: by its name where that is on the same disk.
pub fn hand_over(from: &Path, output: &Path) -> Outcome<()> {
    match fs::rename(from, output) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let scratch = Scratch::beside(output);
            fs::copy(from, &scratch.0).map_err(|e| Failure::io(&e, scratch.0.display()))?;
            scratch.place(output)
        }
        other => other.map_err(|e| Failure::io(&e, output.display())),
    }
}

/// Whether `name` is in a store.
pub fn exists(places: &Places<'_>, name: &str) -> Outcome<bool> {
    let Some(kind) = kind(name) else {
        return Ok(false);
    };
    for shelf in &places.stores {
        if shelf.source.store.look(&shelf.key(kind, name))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How far recovery can come that asks for the absent segment `name` next.
pub fn reach(places: &Places<'_>, name: &str) -> Outcome<Option<Lsn>> {
    for shelf in &places.stores {
        if let Some(size) = shelf.segment_size()? {
            return Ok(Segment::from_name(name, size).map(|segment| segment.start(size)));
        }
    }
    Ok(None)
}

impl Shelf<'_> {
    fn key(&self, kind: Kind, name: &str) -> String {
        match kind {
            Kind::Segment => format!("{}/xlog/{name}", self.prefix),
            Kind::History => format!("{}/timeline/{name}", self.prefix),
        }
    }

    /// The plain bytes of what was delivered; `None` where the store has no such object, or one of
    /// another cluster.
    fn deliver(&self, key: &str, wanted: &Wanted<'_>, output: &Path) -> Outcome<Option<u64>> {
        if self.source.store.look(key)?.is_none() {
            return Ok(None);
        }
        if wanted.kind == Kind::History && self.is_foreign(wanted.name, wanted.cluster)? {
            return Ok(None);
        }
        let (object, body) = self.source.store.get(key)?;
        let plain = decoded(&object, body, &self.source).map_err(|f| at(key, f))?;
        deliver(plain, wanted, output).map_err(|f| at(key, f))
    }

    /// Read off any segment.
    fn segment_size(&self) -> Outcome<Option<SegmentSize>> {
        let Some(key) = self.first("xlog")? else {
            return Ok(None);
        };
        Ok(self.source.store.look(&key)?.and_then(|object| {
            let bytes = object.metadata.get("original-file-size")?.parse().ok()?;
            SegmentSize::new(bytes)
        }))
    }

    /// The key of something in a folder of the site.
    fn first(&self, folder: &str) -> Outcome<Option<String>> {
        let mut first = None;
        let folder = format!("{}/{folder}", self.prefix);
        let listed = self.source.store.list(&folder, &mut |entry| {
            first = Some(entry.key);
            Err(Failure::new(Class::Interrupted, "one is enough"))
        });
        match (listed, first) {
            (_, Some(key)) => Ok(Some(key)),
            (Err(failure), None) => Err(failure),
            (Ok(()), None) => Ok(None),
        }
    }
}

fn decoded(
    object: &Object,
    body: Box<dyn Read + Send>,
    source: &Source<'_>,
) -> Outcome<Box<dyn Read + Send>> {
    codec::decoder(body, object.entry.size_bytes, &object.metadata, source.keys)
}

fn full(places: &Places<'_>, kind: Kind, name: &str, output: &Path) -> Outcome<bool> {
    for (shelf, cluster) in places.shelves() {
        let wanted = Wanted::whole(kind, name, cluster);
        let key = shelf.key(kind, name);
        if shelf.deliver(&key, &wanted, output)?.is_some() {
            return Ok(true);
        }
    }
    for spool in &places.spools {
        let wanted = Wanted::whole(kind, name, places.cluster);
        if let Some(file) = spooled(spool, name)?
            && deliver(file, &wanted, output)?.is_some()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A file of the spool.
fn spooled(spool: &Path, name: &str) -> Outcome<Option<File>> {
    let path = spool.join(name);
    match File::open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(unread(&e, &path)),
    }
}

/// The daemon's spool may hold the end of the WAL, so to pass over one that is shut would lose it.
fn unread(error: &io::Error, path: &Path) -> Failure {
    let failure = Failure::io(error, path.display());
    match failure.class {
        Class::Denied => failure.hint(
            "let this user read the spool, or restore with a configuration without backup_location",
        ),
        _ => failure,
    }
}

/// Whether this spool is shut to the server that will ask for WAL: to the owner of its files, else
/// to us, who will start it.
pub fn is_shut(spool: &Path, owner: Option<Owner>) -> Option<Failure> {
    let denied = || unread(&io::ErrorKind::PermissionDenied.into(), spool);
    let Some(owner) = owner else {
        let failure = fs::read_dir(spool).err().map(|e| unread(&e, spool));
        return failure.filter(|failure| failure.class == Class::Denied);
    };
    // What is there at all: of a spool that another machine has nothing is.
    let there = |path: &Path| fs::metadata(path).ok();
    there(spool)?;
    let shut = |path: &Path| {
        let wanted = if path == spool { 0o5 } else { 0o1 };
        there(path).is_some_and(|found| !owner.may(&found, wanted))
    };
    spool.ancestors().any(shut).then(denied)
}

fn unfinished(places: &Places<'_>, kind: Kind, name: &str, output: &Path) -> Outcome<Delivery> {
    let wanted = Wanted {
        padding: Some(Padding),
        ..Wanted::whole(kind, name, places.cluster)
    };
    for spool in &places.spools {
        let partial = match spooled(spool, &format!("{name}.partial"))? {
            Some(file) => Some(file),
            None => spooled(spool, &format!("{name}.ended"))?,
        };
        let (Kind::Segment, Some(file)) = (kind, partial) else {
            continue;
        };
        let told = |e: io::Error| Failure::io(&e, format!("{name}.partial"));
        let needed = u64::try_from(WAL_HEADER_BYTES).unwrap_or(u64::MAX);
        if file.metadata().map_err(told)?.len() < needed {
            continue;
        }
        if let Some(bytes) = deliver(file, &wanted, output)? {
            return Ok(Delivery::Partial { bytes });
        }
    }
    Ok(Delivery::Absent)
}

/// Zeros after the end of the data, up to the segment size.
#[derive(Clone, Copy, Debug)]
struct Padding;

/// What is looked for.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    kind: Kind,
    name: &'a str,
    /// Of this cluster alone.
    cluster: Option<u64>,
    padding: Option<Padding>,
}

impl Wanted<'_> {
    fn whole(kind: Kind, name: &str, cluster: Option<u64>) -> Wanted<'_> {
        Wanted {
            kind,
            name,
            cluster,
            padding: None,
        }
    }
}

/// The plain bytes; `None` for a segment of another cluster.
fn deliver(plain: impl Read, wanted: &Wanted<'_>, output: &Path) -> Outcome<Option<u64>> {
    let scratch = Scratch::beside(output);
    let told = |e: io::Error| Failure::io(&e, scratch.0.display());
    // Never through a link that somebody left there.
    let _gone = fs::remove_file(&scratch.0);
    let file = File::create_new(&scratch.0).map_err(told)?;
    let mut file = BufWriter::with_capacity(BLOCK, file);
    let bytes = match wanted.kind {
        Kind::Segment => segment(plain, wanted, &mut file)?,
        Kind::History => {
            let mut plain = plain.take(HISTORY_BYTES_MAX);
            let copied = io::copy(&mut plain, &mut file);
            Some(copied.map_err(|e| Failure::from_io(&e, wanted.name))?)
        }
    };
    file.flush().map_err(told)?;
    if bytes.is_some() {
        scratch.place(output)?;
    }
    Ok(bytes)
}

/// A large part of a segment for each system call.
const BLOCK: usize = 256 << 10;

/// Copies a segment and checks it against its name. Answers its bytes without the padding; `None`
/// where it is of another cluster.
fn segment(
    mut plain: impl Read,
    wanted: &Wanted<'_>,
    file: &mut BufWriter<File>,
) -> Outcome<Option<u64>> {
    let Wanted { name, padding, .. } = *wanted;
    let told = |e: io::Error| Failure::from_io(&e, name);
    let mut head = Vec::new();
    let head_bytes = u64::try_from(WAL_HEADER_BYTES).unwrap_or(u64::MAX);
    plain
        .by_ref()
        .take(head_bytes)
        .read_to_end(&mut head)
        .map_err(told)?;
    let header = WalHeader::parse(&head).map_err(|failure| at(name, failure))?;
    if wanted.cluster.is_some_and(|id| id != header.system_id) {
        log::debug!("{name}: one of another cluster is passed over");
        return Ok(None);
    }
    let size = header.segment_size;
    let expected = Segment::from_name(name, size).ok_or_else(|| {
        corrupt(format!(
            "{name} is no name of a segment of {} bytes",
            size.bytes()
        ))
    })?;
    if header.address != expected.start(size) {
        return Err(corrupt(format!(
            "Expected LSN '{}' in WAL file '{name}'; found '{}'",
            expected.start(size),
            header.address
        )));
    }
    // A segment in which a timeline begins starts with pages of the one before.
    if header.timeline > expected.timeline {
        return Err(corrupt(format!(
            "{name} holds WAL of timeline {}",
            header.timeline
        )));
    }
    file.write_all(&head).map_err(told)?;
    let limit = size.bytes().saturating_add(1);
    let rest = io::copy(&mut plain.take(limit), file).map_err(told)?;
    let bytes = rest.saturating_add(head_bytes);
    match padding {
        Some(Padding) if bytes < size.bytes() => {
            let written = file
                .flush()
                .and_then(|()| file.get_ref().set_len(size.bytes()));
            written.map_err(told)?;
        }
        Some(_) | None if bytes == size.bytes() => {}
        Some(_) | None => {
            let expected = size.bytes();
            return Err(corrupt(format!(
                "{name} has {bytes} bytes, expected {expected}"
            )));
        }
    }
    Ok(Some(bytes))
}

/// A history file has a line a promotion; this is a million of them.
const HISTORY_BYTES_MAX: u64 = 64 << 20;

/// A file that is gone when it was not renamed.
struct Scratch(PathBuf);

impl Scratch {
    fn beside(output: &Path) -> Scratch {
        let mut scratch = output.as_os_str().to_owned();
        scratch.push(".tmp");
        Scratch(PathBuf::from(scratch))
    }

    /// Not synced: PostgreSQL asks again for what it lost in a crash.
    fn place(&self, output: &Path) -> Outcome<()> {
        fs::rename(&self.0, output).map_err(|e| Failure::io(&e, output.display()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // After the rename there is nothing to remove; a leftover is overwritten next time.
        let _gone = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests;
