//! Stored objects, read to their end and judged: by what they are named, by what is noted beside
//! them, by the backup that lists them.
//!
//! Damage is said only where the content proves it, and proves it again at a second reading. A
//! key that does not fit, a store that does not answer and a format of the future prove nothing:
//! such objects are told as unreadable. Nothing is written here; [`super::scrub`] draws the
//! consequences.
//!
//! Budget: one get an object, three where something is wrong; a main object that describes chunks
//! is held in memory (it is small), everything else streams.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use machine::{BackupName, Class, File, Segment, SegmentSize, Timeline};
use sha2::{Digest as _, Sha256};
use tar::Archive;

use crate::codec::digest::{Algorithm, Digest};
use crate::codec::{decoder, keys};
use crate::failure::{Failure, Outcome};
use crate::pg::files::{self, History, WalHeader};
use crate::restore::layout::{self, Content, Form, Layout};
use crate::store::Object;
use crate::work::Place;
use crate::work::delete::part_number;
use crate::work::pace::Pace;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// So many stored bytes are what they claim to be.
    Good {
        bytes: u64,
    },
    /// As far as can be told without the private key.
    Partly {
        bytes: u64,
    },
    Damaged(String),
    /// Nobody can tell.
    Unreadable(Failure),
    /// Confirmed to be absent.
    Gone,
}

/// One stored object and what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What suffers if it is damaged.
    pub file: File,
    /// Below the site's prefix.
    pub key: String,
    pub expect: Expect,
    /// As its backup announces it.
    pub stored_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    Segment(Segment),
    /// The beginning of a segment.
    Unfinished(Segment),
    History(Timeline),
    Archive {
        plain_bytes: Option<u64>,
    },
    /// A file of a delta backup, by its BLAKE2s digest.
    Content {
        digest: String,
    },
    /// Only that it decodes.
    Anything,
}

/// A backup: its main object's own verdict, and what it consists of beyond that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub main: Verdict,
    pub items: Vec<Item>,
}

pub struct Verifier<'a> {
    pub place: &'a Place,
    pub size: SegmentSize,
    pub cluster: Option<Cluster>,
    pub pace: Pace,
}

/// Whose the WAL is. Below the newest backup it may be that of a cluster before a pg_upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub system_id: u64,
    pub from: Segment,
}

impl Item {
    /// A file by itself.
    pub fn of(file: File, size: SegmentSize) -> Item {
        let expect = match &file {
            File::Wal(segment) => Expect::Segment(*segment),
            File::Partial(segment) => Expect::Unfinished(*segment),
            File::History(timeline) => Expect::History(*timeline),
            File::Part { .. } | File::Main(_) => Expect::Anything,
        };
        Item {
            key: file.key(size),
            file,
            expect,
            stored_bytes: None,
        }
    }
}

impl Verifier<'_> {
    pub fn check(&self, item: &Item) -> Verdict {
        let judge = &mut |object: &Object, plain: &mut dyn Read| self.judge(item, object, plain);
        self.twice(&item.key, judge)
    }

    /// Judges the main object and says what else belongs to the backup. `object` is its base name,
    /// where it is not the one we would give.
    pub fn backup(&self, name: &BackupName, object: Option<&str>) -> Outcome<Plan> {
        let key = match object {
            Some(object) => format!("basebackup/{object}"),
            None => File::Main(name.clone()).key(self.size),
        };
        let mut found = None;
        let main = self.twice(&key, &mut |object, plain| {
            found = None;
            match layout::form(object)? {
                Form::Single(..) => archive(plain).map(drop),
                Form::Described(form) => {
                    let mut content = Vec::new();
                    read(plain.read_to_end(&mut content))?;
                    let layout = layout::described(&form, object, content, &self.place.prefix)?;
                    found = Some(self.items(name, object, layout)?);
                    Ok(())
                }
            }
        });
        let items = match (&main, found) {
            (Verdict::Good { .. }, found) => found.unwrap_or_default(),
            (Verdict::Partly { .. }, _) => self.listed(name)?,
            _ => Vec::new(),
        };
        Ok(Plan { main, items })
    }

    /// What the description lists, each object once.
    fn items(&self, name: &BackupName, main: &Object, layout: Layout) -> Outcome<Vec<Item>> {
        let wrong = |what: String| Err(Failure::new(Class::Corrupt, what));
        let prefix = self.place.key("");
        let mut seen = BTreeSet::new();
        let mut items = Vec::new();
        for job in layout.jobs {
            let key = job.key.strip_prefix(&prefix).unwrap_or(&job.key).to_owned();
            let mut file = File::Main(name.clone());
            let mut stored_bytes = Some(job.stored_bytes);
            let expect = match job.content {
                Content::Archive(_) => {
                    let Some(number) = part_number(&key, name) else {
                        return wrong(format!("it lists '{key}', a chunk of another basebackup"));
                    };
                    if key.starts_with("basebackup_chunk/") {
                        let backup = name.clone();
                        file = File::Part { backup, number };
                    }
                    let plain_bytes = job.plain_bytes;
                    Expect::Archive { plain_bytes }
                }
                // PGHoard's announcement can be wrong here: the object may have been stored anew
                // with another compression. Its digest cannot.
                Content::File { digest, .. } => {
                    stored_bytes = None;
                    Expect::Content { digest }
                }
            };
            if seen.insert(key.clone()) {
                items.push(Item {
                    file,
                    key,
                    expect,
                    stored_bytes,
                });
            }
        }
        let parts = items
            .iter()
            .filter(|item| matches!(item.file, File::Part { .. }));
        let parts = parts.count().to_string();
        match main.metadata.get("parts").filter(|told| **told != parts) {
            Some(told) => wrong(format!("it lists {parts} chunks, its metadata says {told}")),
            None => Ok(items),
        }
    }

    /// Without the private key only a listing tells which chunks there are.
    fn listed(&self, name: &BackupName) -> Outcome<Vec<Item>> {
        let mut items = Vec::new();
        for folder in ["basebackup_chunk", "basebackup_delta_chunk"] {
            let folder = format!("{folder}/{name}");
            let prefix = self.place.key("");
            self.place
                .store
                .list(&self.place.key(&folder), &mut |entry| {
                    let key = entry.key.strip_prefix(&prefix).unwrap_or(&entry.key);
                    let number =
                        part_number(key, name).filter(|_| key.starts_with("basebackup_chunk/"));
                    let backup = name.clone();
                    items.push(Item {
                        file: match number {
                            Some(number) => File::Part { backup, number },
                            None => File::Main(backup),
                        },
                        key: key.to_owned(),
                        expect: Expect::Anything,
                        stored_bytes: None,
                    });
                    Ok(())
                })?;
        }
        Ok(items)
    }

    /// What is bad, or absent, must be so twice: it may have been replaced under our eyes, and a
    /// network may have lied.
    fn twice(&self, key: &str, judge: &mut Judge<'_>) -> Verdict {
        match self.once(key, judge) {
            Verdict::Damaged(_) | Verdict::Gone => self.once(key, judge),
            verdict => verdict,
        }
    }

    fn once(&self, key: &str, judge: &mut Judge<'_>) -> Verdict {
        let key = self.place.key(key);
        let outcome = self.read(&key, judge);
        match outcome {
            Ok(verdict) => verdict,
            Err(failure) => self.blame(&key, failure),
        }
    }

    fn read(&self, key: &str, judge: &mut Judge<'_>) -> Outcome<Verdict> {
        let store = &self.place.store;
        let (object, body) = store.get(key)?;
        let bytes = object.entry.size_bytes;
        let length = object.metadata.get("Content-Length");
        if let Some(told) = length.filter(|told| **told != bytes.to_string()) {
            return Ok(Verdict::Damaged(format!(
                "it has {bytes} bytes instead of {told}"
            )));
        }
        let noted = store.noted_sha256(key)?;
        let (watch, sum) = Watch::over(body, self.pace.clone());
        let id = object.metadata.get("encryption-key-id");
        if id.is_some_and(|id| self.place.keys.private(id).is_err()) {
            return self.sealed(watch, &sum, bytes, noted);
        }
        let told = match key.starts_with(&self.place.key(layout::DELTA_FILES)) {
            true => &layout::without_size(&object.metadata),
            false => &object.metadata,
        };
        let mut plain = decoder(watch, bytes, told, &self.place.keys)?;
        let judged = judge(&object, &mut plain);
        if let Err(failure) = &judged
            && !matches!(failure.class, Class::Unsupported | Class::Conflict)
        {
            return Err(failure.clone());
        }
        // What is strange may as well be damaged: the end tells.
        read(io::copy(&mut plain, &mut io::sink()))?;
        if let Some(verdict) = unlike(&sum, noted) {
            return Ok(verdict);
        }
        judged.map(|()| Verdict::Good { bytes })
    }

    /// Without the private key the bytes are looked at from outside.
    fn sealed(
        &self,
        mut watch: Watch,
        sum: &Sum,
        bytes: u64,
        noted: Option<String>,
    ) -> Outcome<Verdict> {
        let found = watch.drain()?;
        if found != bytes {
            let what = format!("{found} of {bytes} bytes are stored");
            return Ok(Verdict::Damaged(what));
        }
        Ok(unlike(sum, noted).unwrap_or(Verdict::Partly { bytes }))
    }

    fn blame(&self, key: &str, failure: Failure) -> Verdict {
        if failure.message.contains(keys::UNOPENED) {
            return self.unopened(key, failure);
        }
        match failure.class {
            Class::NotFound => match self.place.store.look(key) {
                Ok(None) => Verdict::Gone,
                Ok(Some(_)) => Verdict::Unreadable(failure),
                Err(look) if matches!(look.class, Class::NotFound | Class::Corrupt) => {
                    Verdict::Damaged(format!("there is metadata, but not its object: {look}"))
                }
                Err(look) => Verdict::Unreadable(look),
            },
            Class::Corrupt => Verdict::Damaged(failure.message),
            _ => Verdict::Unreadable(failure),
        }
    }

    /// The wrong key, or a damaged header: only what the store noted of its bytes can tell.
    fn unopened(&self, key: &str, failure: Failure) -> Verdict {
        let look = || -> Outcome<Option<Verdict>> {
            let store = &self.place.store;
            let Some(noted) = store.noted_sha256(key)? else {
                return Ok(None);
            };
            let (mut watch, sum) = Watch::over(store.get(key)?.1, self.pace.clone());
            watch.drain()?;
            Ok(unlike(&sum, Some(noted)))
        };
        match look() {
            Ok(Some(verdict)) => verdict,
            Ok(None) => Verdict::Unreadable(Failure {
                class: Class::Config,
                ..failure
            }),
            Err(failure) => Verdict::Unreadable(failure),
        }
    }

    fn judge(&self, item: &Item, object: &Object, plain: &mut dyn Read) -> Outcome<()> {
        let stored = object.entry.size_bytes;
        if let Some(told) = item.stored_bytes.filter(|told| *told != stored) {
            return wrong(format!("it has {stored} bytes, its basebackup says {told}"));
        }
        match &item.expect {
            Expect::Segment(segment) => {
                let bytes = self.segment(*segment, plain)?;
                let size = self.size.bytes();
                match bytes == size {
                    true => Ok(()),
                    false => wrong(format!("it holds {bytes} bytes of WAL, expected {size}")),
                }
            }
            Expect::Unfinished(segment) => {
                let (bytes, size) = (self.segment(*segment, plain)?, self.size.bytes());
                match bytes <= size {
                    true => Ok(()),
                    false => wrong(format!("it holds {bytes} bytes of WAL, at most {size} fit")),
                }
            }
            Expect::History(timeline) => {
                let mut text = Vec::new();
                read(plain.take(HISTORY_BYTES_MAX).read_to_end(&mut text))?;
                History::parse(*timeline, &text).map(drop)
            }
            Expect::Archive { plain_bytes } => {
                let bytes = archive(plain)?;
                match plain_bytes.filter(|told| *told != bytes) {
                    Some(told) => wrong(format!(
                        "its archive has {bytes} bytes, its basebackup says {told}"
                    )),
                    None => Ok(()),
                }
            }
            Expect::Content { digest } => {
                let found = blake2s(plain)?;
                match found == *digest {
                    true => Ok(()),
                    false => wrong(format!("its content has the digest {found}")),
                }
            }
            Expect::Anything => Ok(()),
        }
    }

    /// The bytes of what begins as this segment does.
    fn segment(&self, segment: Segment, plain: &mut dyn Read) -> Outcome<u64> {
        let mut head = Vec::new();
        let wanted = u64::try_from(files::WAL_HEADER_BYTES).unwrap_or(u64::MAX);
        read(plain.take(wanted).read_to_end(&mut head))?;
        let unsupported = |what: String| Err(Failure::new(Class::Unsupported, what));
        if let Some(magic) = files::foreign_magic(&head) {
            return unsupported(format!(
                "WAL of a PostgreSQL unknown here (magic {magic:04X})"
            ));
        }
        let header = WalHeader::parse(&head)?;
        // Then its name means another position, and nothing more can be said of it.
        if header.segment_size != self.size {
            let (found, ours) = (header.segment_size.bytes(), self.size.bytes());
            return unsupported(format!("a segment of {found} bytes, the site has {ours}"));
        }
        header.check(segment, self.size, None)?;
        if let Some(ours) = self.cluster
            && segment.number >= ours.from.number
            && header.system_id != ours.system_id
        {
            let (found, ours) = (header.system_id, ours.system_id);
            return Err(Failure::new(
                Class::Conflict,
                format!("whole, but of the cluster {found} while the server is of {ours}"),
            ));
        }
        let rest = read(io::copy(plain, &mut io::sink()))?;
        Ok(rest.saturating_add(u64::try_from(head.len()).unwrap_or(u64::MAX)))
    }
}

/// Looks at the plain content; it need not read to the end.
type Judge<'a> = dyn FnMut(&Object, &mut dyn Read) -> Outcome<()> + 'a;

/// A history file has a line a promotion; this is a million of them.
const HISTORY_BYTES_MAX: u64 = 64 << 20;
const BLOCK: usize = 128 << 10;

fn wrong<T>(what: String) -> Outcome<T> {
    Err(Failure::new(Class::Corrupt, what))
}

/// An error that is none of ours came from a reader of ours that met what it did not expect.
fn read<T>(outcome: io::Result<T>) -> Outcome<T> {
    outcome.map_err(|error| {
        Failure::within(&error).unwrap_or_else(|| Failure::new(Class::Corrupt, error.to_string()))
    })
}

/// Reads every member; answers the bytes up to the end of the source.
fn archive(plain: &mut dyn Read) -> Outcome<u64> {
    let mut counted = Counted { plain, bytes: 0 };
    let mut archive = Archive::new(&mut counted);
    for entry in read(archive.entries())? {
        let mut entry = read(entry)?;
        let (told, found) = (entry.size(), read(io::copy(&mut entry, &mut io::sink()))?);
        if found != told {
            return wrong(format!(
                "a member of its archive ends after {found} of {told} bytes"
            ));
        }
    }
    read(io::copy(&mut counted, &mut io::sink()))?;
    Ok(counted.bytes)
}

struct Counted<'a> {
    plain: &'a mut dyn Read,
    bytes: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.plain.read(buffer)?;
        self.bytes = self
            .bytes
            .saturating_add(u64::try_from(got).unwrap_or(u64::MAX));
        Ok(got)
    }
}

fn blake2s(plain: &mut dyn Read) -> Outcome<String> {
    let mut digest = Digest::new(Algorithm::Blake2s);
    let mut block = vec![0; BLOCK];
    loop {
        match read(plain.read(&mut block))? {
            0 => return Ok(digest.hex()),
            got => digest.update(block.get(..got).unwrap_or_default()),
        }
    }
}

/// The digest of all that was read.
type Sum = Arc<Mutex<Sha256>>;

/// The stored bytes on their way, not faster than allowed.
struct Watch {
    body: Box<dyn Read + Send>,
    pace: Pace,
    sum: Sum,
}

impl Watch {
    fn over(body: Box<dyn Read + Send>, pace: Pace) -> (Watch, Sum) {
        let sum = Sum::default();
        let watch = Watch {
            body,
            pace,
            sum: Arc::clone(&sum),
        };
        (watch, sum)
    }

    fn drain(&mut self) -> Outcome<u64> {
        io::copy(self, &mut io::sink()).map_err(|e| Failure::from_io(&e, "the stored bytes"))
    }
}

impl Read for Watch {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.body.read(buffer)?;
        let mut sum = self.sum.lock().unwrap_or_else(PoisonError::into_inner);
        sum.update(buffer.get(..got).unwrap_or_default());
        drop(sum);
        self.pace.spend(u64::try_from(got).unwrap_or(u64::MAX))?;
        Ok(got)
    }
}

fn unlike(sum: &Sum, noted: Option<String>) -> Option<Verdict> {
    let noted = noted?;
    let sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
    let found = hex::encode(sum.clone().finalize());
    (found != noted).then(|| {
        Verdict::Damaged(format!(
            "the SHA-256 of its stored bytes is {found}, noted was {noted}"
        ))
    })
}

#[cfg(test)]
mod tests;
