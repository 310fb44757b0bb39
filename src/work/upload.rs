//! A spooled file into the store.
//!
//! Same name, same content: success. Same name, other content: refused, both kept (S-16, S-17).
//! A put that failed may have succeeded; the next try then finds the same content and says so.
//!
//! Budget: small files in memory, others through one scratch file and one read of the spool; one
//! put, and a look-up and a get only where the name is taken.

use std::fs::File as Disk;
use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;
use std::time::Instant;

use machine::event::{How, Reason};
use machine::{Class, Event, File, SegmentSize};

use crate::codec::digest::{Algorithm, Digest};
use crate::codec::{Encoded, Encoder, decoder};
use crate::failure::{Failure, Outcome};
use crate::pg::files::{WAL_HEADER_BYTES, WalHeader};
use crate::spool::{Readable, Spool};
use crate::store::{Body, Metadata, Put, Scratch};
use crate::work::verify::Verdict;
use crate::work::{Place, label, marks};

/// Encoded files up to this size stay in memory.
const MEMORY_BYTES: u64 = 256 << 10;
const BLOCK: usize = 128 << 10;

pub struct Upload<'a> {
    pub place: &'a Place,
    pub spool: &'a Spool,
    pub file: &'a File,
    pub entry: u64,
    pub size: SegmentSize,
    /// What PGHoard keeps beside this kind of object, beyond what the upload itself knows.
    pub metadata: Metadata,
    pub standing: Standing<'a>,
}

/// What is known of the object that may have the name already.
#[derive(Clone, Copy)]
pub enum Standing<'a> {
    Unknown,
    /// It is marked as damaged; this judges it anew.
    Damaged(&'a dyn Fn() -> Verdict),
}

impl Upload<'_> {
    pub fn run(self, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
        let started = Instant::now();
        let key = self.place.key(&self.file.key(self.size));
        let plain = match self.spool.open(self.file, self.size, self.entry) {
            Ok(plain) => plain,
            // Sealed anew at the moment an earlier entry of the name was stored and let go.
            Err(failure) if failure.class == Class::NotFound => {
                emit(self.vanished());
                return Ok(());
            }
            Err(failure) => return Err(failure),
        };
        self.refuse_foreign(&*plain, &key)?;
        let encoded = self.encode(&*plain, &key)?;
        if !plain.stayed().map_err(|e| Failure::io(&e, &key))? {
            emit(self.vanished());
            return Ok(());
        }
        let metadata = self.metadata(&encoded);
        let put = self.place.store.put(
            &key,
            encoded.body.as_body(&encoded.sizes),
            &metadata,
            Put::Create,
        );
        let how = match put {
            Ok(()) => How::Written,
            Err(failure) if failure.class == Class::Conflict => {
                match self.beside(&key, &encoded)? {
                    Beside::Same => How::AlreadyThere,
                    Beside::Ruin => {
                        let body = encoded.body.as_body(&encoded.sizes);
                        self.place.store.put(&key, body, &metadata, Put::Replace)?;
                        How::Replaced
                    }
                    Beside::Other(theirs) => {
                        self.spool.keep(self.file, self.size, self.entry)?;
                        let (file, ours) = (self.file.clone(), encoded.digest);
                        emit(Event::Conflicted { file, ours, theirs });
                        return Ok(());
                    }
                }
            }
            Err(failure) => return Err(failure),
        };
        if let Standing::Damaged(_) = self.standing {
            // Before the upload is told: whoever hears of it may rely on the object.
            let mark = marks::damaged_key(self.file, self.size);
            emit(marks::remove(self.place, &mark)?);
        }
        emit(Event::Stored {
            file: self.file.clone(),
            entry: Some(self.entry),
            bytes_in: encoded.sizes.bytes_in,
            bytes_out: encoded.sizes.bytes_out,
            digest: encoded.digest,
            millis: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            how,
        });
        Ok(())
    }

    fn vanished(&self) -> Event {
        Event::Dropped {
            file: self.file.clone(),
            entry: self.entry,
            reason: Reason::Vanished,
        }
    }

    /// Reception looks at every segment itself; this one may have been spooled before the log knew
    /// whose WAL the store holds.
    fn refuse_foreign(&self, plain: &dyn Readable, key: &str) -> Outcome<()> {
        let mut head = [0; WAL_HEADER_BYTES];
        let n = plain
            .read_at(0, &mut head)
            .map_err(|error| Failure::from_io(&error, key))?;
        let header = match self.file {
            File::Wal(_) => WalHeader::parse(head.get(..n).unwrap_or_default()).ok(),
            File::Partial(_) | File::History(_) | File::Part { .. } | File::Main(_) => None,
        };
        let theirs = header.map(|header| header.system_id.to_string());
        match theirs.zip(self.metadata.get(label::SYSTEM_ID)) {
            Some((theirs, ours)) if theirs != *ours => Err(Failure::new(
                Class::Unsupported,
                format!("{key}: the spool has it from cluster {theirs}, this site's is {ours}"),
            )
            .hint("move it out of the spool; another cluster needs a site of its own")),
            _ => Ok(()),
        }
    }

    fn encode(&self, plain: &dyn Readable, key: &str) -> Outcome<Ready> {
        let told = |error: &io::Error| Failure::from_io(error, key);
        let size = plain.size().map_err(|e| told(&e))?;
        let body = if size <= MEMORY_BYTES {
            Content::Memory(Vec::new())
        } else {
            self.scratch()?
        };
        let _slot = self.place.encoders.take();
        let mut encoder = Encoder::sized(body, &self.place.encoding, size)?;
        let mut digest = Digest::new(self.place.hash);
        let mut block = vec![0; BLOCK];
        let mut at = 0;
        loop {
            let n = plain.read_at(at, &mut block).map_err(|e| told(&e))?;
            let Some(bytes) = block.get(..n).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            digest.update(bytes);
            encoder.write_all(bytes).map_err(|e| told(&e))?;
            at = at.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
        }
        let (mut body, sizes) = encoder.finish()?;
        body.flush().map_err(|e| told(&e))?;
        Ok(Ready {
            body,
            sizes,
            digest: digest.hex(),
        })
    }

    fn scratch(&self) -> Outcome<Content> {
        let name = self.file.spool_name(self.size);
        let path = self.place.scratch.join(format!("{name}.{}", self.entry));
        let file = Disk::create(&path).map_err(|e| Failure::io(&e, path.display()))?;
        Ok(Content::Scratch {
            writer: BufWriter::with_capacity(BLOCK, file),
            path,
        })
    }

    fn metadata(&self, encoded: &Ready) -> Metadata {
        let encoding = &self.place.encoding;
        let mut metadata = self.metadata.clone();
        let mut add = |key: &str, value: String| metadata.insert(key.into(), value);
        add("compression-algorithm", encoding.compression.name().into());
        add("compression-level", encoding.level.to_string());
        add("original-file-size", encoded.sizes.bytes_in.to_string());
        add("host", self.place.host.clone());
        add("hash", encoded.digest.clone());
        add("hash-algorithm", self.place.hash.name().into());
        if let Some(encryption) = &encoding.encryption {
            add("encryption-key-id", encryption.key_id.clone());
        }
        metadata
    }

    /// What lies under our name. What is proven to be damaged is replaced, unless it says that it
    /// was something else.
    fn beside(&self, key: &str, ours: &Ready) -> Outcome<Beside> {
        if let Standing::Damaged(judge) = self.standing {
            match judge() {
                Verdict::Good { .. } => {}
                Verdict::Damaged(_) => {
                    let metadata = match self.place.store.look(key) {
                        Ok(object) => object.map(|object| object.metadata).unwrap_or_default(),
                        Err(failure) if failure.class == Class::Corrupt => Metadata::new(),
                        Err(failure) => return Err(failure),
                    };
                    let told = self.announced(&metadata);
                    return Ok(match told.filter(|told| *told != ours.digest) {
                        Some(told) => Beside::Other(told),
                        None => Beside::Ruin,
                    });
                }
                Verdict::Unreadable(failure) => return Err(failure),
                Verdict::Partly { .. } | Verdict::Gone => {
                    let message = format!("{key} is marked as damaged and cannot be judged anew");
                    return Err(Failure::new(Class::Conflict, message)
                        .hint("give the site the private key, or remove the object by hand"));
                }
            }
        }
        let theirs = self.digest_of_stored(key)?;
        Ok(match theirs == ours.digest {
            true => Beside::Same,
            false => Beside::Other(theirs),
        })
    }

    /// The plain digest as metadata has it, if it is of our kind.
    fn announced(&self, metadata: &Metadata) -> Option<String> {
        let kind = metadata.get("hash-algorithm").map(String::as_str);
        let hash = metadata
            .get("hash")
            .filter(|_| kind == Some(self.place.hash.name()));
        hash.map(|hash| hash.to_ascii_lowercase())
    }

    /// The plain digest of what is stored under our name: from its metadata, or by reading it.
    fn digest_of_stored(&self, key: &str) -> Outcome<String> {
        let store = &self.place.store;
        let object = store.look(key)?.ok_or_else(|| {
            Failure::new(Class::NotFound, format!("'{key}' was there and is gone"))
        })?;
        if let Some(hash) = self.announced(&object.metadata) {
            return Ok(hash);
        }
        let (object, body) = store.get(key)?;
        let plain = decoder(
            body,
            object.entry.size_bytes,
            &object.metadata,
            &self.place.keys,
        )?;
        digest(plain, self.place.hash).map_err(|e| Failure::from_io(&e, key))
    }
}

fn digest(mut plain: impl Read, algorithm: Algorithm) -> io::Result<String> {
    let mut digest = Digest::new(algorithm);
    let mut block = vec![0; BLOCK];
    loop {
        match plain.read(&mut block)? {
            0 => return Ok(digest.hex()),
            n => digest.update(block.get(..n).unwrap_or_default()),
        }
    }
}

enum Beside {
    Same,
    /// Damaged, and nothing says that it was anything else than ours.
    Ruin,
    /// By this digest.
    Other(String),
}

struct Ready {
    body: Content,
    sizes: Encoded,
    digest: String,
}

/// The encoded bytes; a scratch file that the store did not take goes with it.
enum Content {
    Memory(Vec<u8>),
    Scratch {
        writer: BufWriter<Disk>,
        path: PathBuf,
    },
}

impl Content {
    fn as_body(&self, encoded: &Encoded) -> Body<'_> {
        match self {
            Content::Memory(bytes) => Body::Bytes(bytes),
            Content::Scratch { path, .. } => Body::Scratch(Scratch {
                path,
                size_bytes: encoded.bytes_out,
                sha256: encoded.sha256,
            }),
        }
    }
}

impl Write for Content {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Content::Memory(all) => all.write(bytes),
            Content::Scratch { writer, .. } => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Content::Memory(_) => Ok(()),
            Content::Scratch { writer, .. } => writer.flush(),
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        if let Content::Scratch { path, .. } = self {
            // Gone already where the store moved it; scratch is emptied at start anyway.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests;
