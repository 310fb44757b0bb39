//! One WAL segment or history file, fetched for a recovering server.
//!
//! A full segment comes from the stores of the related sites, else from the spool of this
//! machine; only if there is none anywhere, the unfinished one of the spool is served, padded with
//! zeros to the segment size. What is served has the size, address and timeline its name says.
//!
//! Budget: no segment is held in memory, only [`BLOCK`] of it; a `<output>.tmp` is written and
//! renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use machine::{Class, Lsn, Segment, SegmentSize, Timeline};

use super::{Opened, Source, at, corrupt};
use crate::codec;
use crate::failure::{Failure, Outcome};
use crate::pg::files::{WAL_HEADER_BYTES, WalHeader};
use crate::store::Object;

/// Where to look: the stores in order, each with its site's prefix, and the spool.
pub struct Places<'a> {
    pub stores: Vec<Shelf<'a>>,
    /// The spool's folder of the site, if this machine has it.
    pub spool: Option<PathBuf>,
}

pub struct Shelf<'a> {
    pub prefix: String,
    pub source: Source<'a>,
}

impl<'a> Places<'a> {
    /// The stores of these sites, and the spool.
    pub fn new(opened: &'a [Opened<'a>], spool: Option<PathBuf>) -> Places<'a> {
        let shelves = opened.iter().map(|opened| Shelf {
            prefix: opened.site.prefix.clone(),
            source: opened.source(),
        });
        Places {
            stores: shelves.collect(),
            spool,
        }
    }
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
        for shelf in &places.stores {
            let key = format!("{}/xlog_partial/{name}", shelf.prefix);
            if let Some(bytes) = shelf.deliver(&key, kind, name, Some(Padding), output)? {
                return Ok(Delivery::Partial { bytes });
            }
        }
    }
    Ok(Delivery::Absent)
}

/// Fetches `name` to `output` if it is whole somewhere. That it is not says little: it may just
/// be on its way from the spool into a store.
pub fn fetch_full(places: &Places<'_>, name: &str, output: &Path) -> Outcome<bool> {
    kind(name).map_or(Ok(false), |kind| full(places, kind, name, output))
}

/// Judges what another PGHoard sent as `name` and puts it to `output`.
pub fn receive(plain: impl Read, name: &str, output: &Path) -> Outcome<()> {
    let kind = kind(name).ok_or_else(|| corrupt(format!("{name} is no file of an archive")))?;
    deliver(plain, kind, name, None, output).map(drop)
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

    /// The plain bytes of what was delivered; `None` where the store has no such object.
    fn deliver(
        &self,
        key: &str,
        kind: Kind,
        name: &str,
        padding: Option<Padding>,
        output: &Path,
    ) -> Outcome<Option<u64>> {
        if self.source.store.look(key)?.is_none() {
            return Ok(None);
        }
        let (object, body) = self.source.store.get(key)?;
        let plain = decoded(&object, body, &self.source).map_err(|f| at(key, f))?;
        let bytes = deliver(plain, kind, name, padding, output).map_err(|f| at(key, f))?;
        Ok(Some(bytes))
    }

    /// Read off any segment.
    fn segment_size(&self) -> Outcome<Option<SegmentSize>> {
        let mut first = None;
        let listed = self
            .source
            .store
            .list(&format!("{}/xlog", self.prefix), &mut |entry| {
                first = Some(entry.key);
                Err(Failure::new(Class::Interrupted, "one is enough"))
            });
        match (listed, first) {
            (_, Some(key)) => Ok(self.source.store.look(&key)?.and_then(|object| {
                let bytes = object.metadata.get("original-file-size")?.parse().ok()?;
                SegmentSize::new(bytes)
            })),
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
    for shelf in &places.stores {
        let key = shelf.key(kind, name);
        if shelf.deliver(&key, kind, name, None, output)?.is_some() {
            return Ok(true);
        }
    }
    let Some(file) = spooled(places, name)? else {
        return Ok(false);
    };
    deliver(file, kind, name, None, output)?;
    Ok(true)
}

/// A file of the spool.
fn spooled(places: &Places<'_>, name: &str) -> Outcome<Option<File>> {
    let Some(spool) = &places.spool else {
        return Ok(None);
    };
    let path = spool.join(name);
    match File::open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::io(&e, path.display())),
    }
}

fn unfinished(places: &Places<'_>, kind: Kind, name: &str, output: &Path) -> Outcome<Delivery> {
    let partial = match spooled(places, &format!("{name}.partial"))? {
        Some(file) => Some(file),
        None => spooled(places, &format!("{name}.ended"))?,
    };
    let (Kind::Segment, Some(file)) = (kind, partial) else {
        return Ok(Delivery::Absent);
    };
    let told = |e: io::Error| Failure::io(&e, format!("{name}.partial"));
    let needed = u64::try_from(WAL_HEADER_BYTES).unwrap_or(u64::MAX);
    if file.metadata().map_err(told)?.len() < needed {
        return Ok(Delivery::Absent);
    }
    let bytes = deliver(file, kind, name, Some(Padding), output)?;
    Ok(Delivery::Partial { bytes })
}

/// Zeros after the end of the data, up to the segment size.
struct Padding;

fn deliver(
    plain: impl Read,
    kind: Kind,
    name: &str,
    padding: Option<Padding>,
    output: &Path,
) -> Outcome<u64> {
    let scratch = Scratch::beside(output);
    let told = |e: io::Error| Failure::io(&e, scratch.0.display());
    // Never through a link that somebody left there.
    let _gone = fs::remove_file(&scratch.0);
    let file = File::create_new(&scratch.0).map_err(told)?;
    let mut file = BufWriter::with_capacity(BLOCK, file);
    let bytes = match kind {
        Kind::Segment => segment(plain, name, padding, &mut file)?,
        Kind::History => {
            let mut plain = plain.take(HISTORY_BYTES_MAX);
            io::copy(&mut plain, &mut file).map_err(|e| Failure::from_io(&e, name))?
        }
    };
    file.flush().map_err(told)?;
    scratch.place(output)?;
    Ok(bytes)
}

/// A large part of a segment for each system call.
const BLOCK: usize = 256 << 10;

/// Copies a segment and checks it against its name. Answers its bytes without the padding.
fn segment(
    mut plain: impl Read,
    name: &str,
    padding: Option<Padding>,
    file: &mut BufWriter<File>,
) -> Outcome<u64> {
    let told = |e: io::Error| Failure::from_io(&e, name);
    let mut head = Vec::new();
    let head_bytes = u64::try_from(WAL_HEADER_BYTES).unwrap_or(u64::MAX);
    plain
        .by_ref()
        .take(head_bytes)
        .read_to_end(&mut head)
        .map_err(told)?;
    let header = WalHeader::parse(&head).map_err(|failure| at(name, failure))?;
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
    Ok(bytes)
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
mod tests {
    use super::*;
    use crate::codec::keys::Keyring;
    use crate::store::local::Local;
    use crate::store::{Body, Metadata, Put, Store};

    const NAME: &str = "000000020000000000000003";
    const MIB: usize = 1 << 20;

    /// A 1 MiB segment's beginning, of `bytes` in all.
    fn wal(timeline: u32, address: u64, bytes: usize) -> Vec<u8> {
        let mut wal = Vec::new();
        wal.extend(0xD110u16.to_ne_bytes());
        wal.extend(2u16.to_ne_bytes());
        wal.extend(timeline.to_ne_bytes());
        wal.extend(address.to_ne_bytes());
        wal.extend([0; 8]);
        wal.extend(7u64.to_ne_bytes());
        wal.extend((1u32 << 20).to_ne_bytes());
        wal.extend(8192u32.to_ne_bytes());
        wal.resize(bytes, 0x55);
        wal
    }

    struct World {
        folder: tempfile::TempDir,
        stores: Vec<Local>,
        keys: Keyring,
    }

    impl World {
        fn new() -> World {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("spool")).unwrap();
            let open = |name: &str| Local::create(&folder.path().join(name)).unwrap();
            World {
                stores: vec![open("new"), open("old")],
                keys: Keyring::default(),
                folder,
            }
        }

        fn places(&self) -> Places<'_> {
            let stores = self.stores.iter().zip(["new", "old"]);
            Places {
                stores: stores
                    .map(|(store, prefix)| Shelf {
                        prefix: prefix.to_owned(),
                        source: Source {
                            store,
                            keys: &self.keys,
                        },
                    })
                    .collect(),
                spool: Some(self.folder.path().join("spool")),
            }
        }

        fn put(&self, store: usize, key: &str, body: &[u8]) {
            let size = body.len().to_string();
            let metadata = Metadata::from([("original-file-size".to_owned(), size)]);
            self.stores[store]
                .put(key, Body::Bytes(body), &metadata, Put::Create)
                .unwrap();
        }

        fn spool(&self, name: &str, content: &[u8]) {
            fs::write(self.folder.path().join("spool").join(name), content).unwrap();
        }

        fn fetch(&self, name: &str) -> (Outcome<Delivery>, Option<Vec<u8>>) {
            let output = self.folder.path().join("RECOVERYXLOG");
            let outcome = fetch(&self.places(), name, &output);
            assert!(!self.folder.path().join("RECOVERYXLOG.tmp").exists());
            (outcome, fs::read(output).ok())
        }
    }

    #[test]
    fn a_segment_comes_from_an_older_site_and_history_from_its_folder() {
        let world = World::new();
        let whole = wal(1, 3 << 20, MIB);
        world.put(1, &format!("old/xlog/{NAME}"), &whole);
        world.put(0, "new/timeline/00000002.history", b"1\t0/300000\tx\n");
        assert_eq!(world.fetch(NAME), (Ok(Delivery::Full), Some(whole)));
        let history = world.fetch("00000002.history");
        assert_eq!(
            history,
            (Ok(Delivery::Full), Some(b"1\t0/300000\tx\n".to_vec()))
        );
        assert_eq!(exists(&world.places(), NAME), Ok(true));
        assert_eq!(exists(&world.places(), "00000003.history"), Ok(false));
    }

    #[test]
    fn absence_is_told_with_the_last_position_within_reach() {
        let world = World::new();
        for name in [
            NAME,
            "00000009.history",
            "000000020000000000000003.partial",
            "x",
        ] {
            assert_eq!(world.fetch(name), (Ok(Delivery::Absent), None), "{name}");
        }
        assert_eq!(reach(&world.places(), NAME), Ok(None));
        world.put(
            0,
            "new/xlog/000000020000000000000002",
            &wal(1, 2 << 20, MIB),
        );
        assert_eq!(reach(&world.places(), NAME), Ok(Some(Lsn(3 << 20))));
    }

    #[test]
    fn the_unfinished_segment_is_padded_and_the_last_choice() {
        let world = World::new();
        let part = wal(2, 3 << 20, 70_000);
        world.spool(&format!("{NAME}.partial"), &part);
        let (outcome, bytes) = world.fetch(NAME);
        assert_eq!(outcome, Ok(Delivery::Partial { bytes: 70_000 }));
        let bytes = bytes.unwrap();
        assert_eq!((bytes.len(), &bytes[..70_000]), (MIB, &part[..]));
        assert!(bytes[70_000..].iter().all(|byte| *byte == 0));

        let sealed = wal(2, 3 << 20, MIB);
        world.spool(NAME, &sealed);
        assert_eq!(world.fetch(NAME), (Ok(Delivery::Full), Some(sealed)));
        let stored = wal(1, 3 << 20, MIB);
        world.put(0, &format!("new/xlog/{NAME}"), &stored);
        assert_eq!(world.fetch(NAME), (Ok(Delivery::Full), Some(stored)));
    }

    #[test]
    fn the_kept_end_of_a_left_timeline_comes_last_of_all() {
        let world = World::new();
        let kept = wal(2, 3 << 20, 60_000);
        world.put(0, &format!("new/xlog_partial/{NAME}"), &kept);
        let (outcome, bytes) = world.fetch(NAME);
        assert_eq!(outcome, Ok(Delivery::Partial { bytes: 60_000 }));
        assert_eq!(bytes.map(|bytes| bytes.len()), Some(MIB));
        let spooled = wal(2, 3 << 20, 70_000);
        world.spool(&format!("{NAME}.partial"), &spooled);
        assert_eq!(world.fetch(NAME).0, Ok(Delivery::Partial { bytes: 70_000 }));
    }

    #[test]
    fn s40_damage_is_a_failure_not_an_absence() {
        for (bad, expected) in [
            (
                wal(2, 3 << 20, MIB - 1),
                "has 1048575 bytes, expected 1048576",
            ),
            (
                wal(2, 3 << 20, MIB + 1),
                "has 1048577 bytes, expected 1048576",
            ),
            (wal(2, 4 << 20, MIB), "Expected LSN '0/300000' in WAL file"),
            (wal(3, 3 << 20, MIB), "holds WAL of timeline 3"),
            (vec![0; MIB], "WAL header: magic 0000"),
            (vec![], "WAL header: 0 bytes"),
        ] {
            let world = World::new();
            world.put(0, &format!("new/xlog/{NAME}"), &bad);
            let (outcome, bytes) = world.fetch(NAME);
            let failure = outcome.unwrap_err();
            assert!(failure.message.contains(expected), "{failure}");
            assert_eq!(failure.class, Class::Corrupt);
            assert_eq!(bytes, None);
        }
    }
}
