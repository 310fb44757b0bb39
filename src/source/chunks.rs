//! Members into chunks, chunks into the store.
//!
//! A chunk is a tar, compressed and encrypted while it grows into a scratch file; when it is full
//! it goes to the uploader's thread and the next one begins. So the stream, the codec and the store
//! work at the same time, and what is on disk is bounded: one chunk growing, one being stored, and
//! the few between them.
//!
//! Budget: the codec's memory, one write buffer, and a few words a chunk.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use machine::{BackupName, Class, SegmentSize};

use super::header::BLOCK;
use super::members::{Kind, Member, padding};
use crate::codec::{Encoder, Encoding};
use crate::durable::Flowing;
use crate::failure::{Failure, Outcome};
use crate::store::{Body, Metadata, Put, Scratch, Store};

/// Large enough that a scratch file is written in few calls.
const WRITE_BYTES: usize = 256 << 10;

/// Between two tries to store a chunk: doubled each time, up to the second value.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// How often a waiting uploader looks whether it is still wanted.
const GLANCE: Duration = Duration::from_millis(100);

/// Two blocks of zeros end a tar.
const TAR_END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// A finished chunk, as the main object describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub number: u32,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Of the stored bytes.
    pub sha256: [u8; 32],
    /// Where its members' names lie in the list of names.
    pub names: Range<u64>,
}

pub struct Packer<'a> {
    folder: &'a Path,
    encoding: &'a Encoding,
    target_bytes: u64,
    uploader: SyncSender<(PathBuf, Chunk)>,
    names: Names,
    open: Option<Open>,
    /// The folders the stream is in, outermost first, to begin every chunk with.
    inside: Vec<(Vec<u8>, Vec<u8>)>,
    done: Vec<Chunk>,
}

struct Open {
    path: PathBuf,
    encoder: Encoder<BufWriter<Flowing>>,
    bytes_in: u64,
    names_from: u64,
}

/// Member names of all chunks, as JSON strings with commas between those of one chunk, on disk.
struct Names {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
}

impl<'a> Packer<'a> {
    pub fn new(
        folder: &'a Path,
        encoding: &'a Encoding,
        target_bytes: u64,
        uploader: SyncSender<(PathBuf, Chunk)>,
    ) -> Outcome<Packer<'a>> {
        let path = folder.join("names");
        let file = File::create_new(&path).map_err(|e| Failure::io(&e, path.display()))?;
        Ok(Packer {
            folder,
            encoding,
            target_bytes,
            uploader,
            names: Names {
                path,
                file: BufWriter::new(file),
                bytes: 0,
            },
            open: None,
            inside: Vec::new(),
            done: Vec::new(),
        })
    }

    /// Begins a member under its name in the backup.
    pub fn begin(&mut self, name: &[u8], member: &Member) -> Outcome<()> {
        let size = member.size_bytes;
        let full = self.open.as_ref().is_some_and(|open| {
            let bytes = open.bytes_in;
            bytes > self.target_bytes / 5 && bytes.saturating_add(size) > self.target_bytes
        });
        if full && member.kind == Kind::File {
            self.close()?;
        }
        self.inside.retain(|(folder, _)| {
            let below = name.strip_prefix(folder.as_slice());
            below.is_some_and(|rest| rest.starts_with(b"/"))
        });
        if self.open.is_none() {
            self.open()?;
        }
        let blocks = member.blocks(name);
        self.name(name)?;
        self.write(&blocks)?;
        if member.kind == Kind::Folder {
            self.inside.push((name.to_vec(), blocks));
        }
        Ok(())
    }

    /// A piece of the body of the member begun last.
    pub fn body(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.write(bytes)
    }

    pub fn end(&mut self, member: &Member) -> Outcome<()> {
        let zeros = usize::try_from(padding(member.size_bytes)).unwrap_or(0);
        self.write(TAR_END.get(..zeros).unwrap_or(&[]))
    }

    /// Ends the last chunk. What remains is the list of chunks and the file of names.
    pub fn finish(mut self) -> Outcome<(Vec<Chunk>, PathBuf)> {
        self.close()?;
        let flushed = self.names.file.flush();
        flushed.map_err(|e| Failure::io(&e, self.names.path.display()))?;
        Ok((self.done, self.names.path))
    }

    fn open(&mut self) -> Outcome<()> {
        let number = self.done.len() + 1;
        let path = self.folder.join(format!("chunk-{number:08}"));
        let file = File::create_new(&path).map_err(|e| Failure::io(&e, path.display()))?;
        let sink = BufWriter::with_capacity(WRITE_BYTES, Flowing::new(file));
        self.open = Some(Open {
            path,
            encoder: Encoder::new(sink, self.encoding)?,
            bytes_in: 0,
            names_from: self.names.bytes,
        });
        for (name, blocks) in std::mem::take(&mut self.inside) {
            self.name(&name)?;
            self.write(&blocks)?;
            self.inside.push((name, blocks));
        }
        Ok(())
    }

    fn close(&mut self) -> Outcome<()> {
        self.write(&TAR_END)?;
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let (mut sink, encoded) = open.encoder.finish()?;
        let flushed = sink.flush();
        flushed.map_err(|e| Failure::io(&e, open.path.display()))?;
        let number = u32::try_from(self.done.len() + 1)
            .map_err(|_| Failure::new(Class::Unsupported, "a backup of over 2^32 chunks"))?;
        let chunk = Chunk {
            number,
            bytes_in: encoded.bytes_in,
            bytes_out: encoded.bytes_out,
            sha256: encoded.sha256,
            names: open.names_from..self.names.bytes,
        };
        self.done.push(chunk.clone());
        // The uploader hangs up only after a failure of its own, which its thread tells.
        let sent = self.uploader.send((open.path, chunk));
        sent.map_err(|_| Failure::new(Class::Interrupted, "the uploader of chunks gave up"))
    }

    fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let written = open.encoder.write_all(bytes);
        written.map_err(|e| Failure::from_io(&e, open.path.display()))?;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        open.bytes_in = open.bytes_in.saturating_add(length);
        Ok(())
    }

    fn name(&mut self, name: &[u8]) -> Outcome<()> {
        let first = self
            .open
            .as_ref()
            .is_none_or(|open| open.names_from == self.names.bytes);
        let comma = if first { "" } else { "," };
        let text = String::from_utf8_lossy(name);
        let text = format!("{comma}{}", serde_json::Value::from(text.as_ref()));
        let written = self.names.file.write_all(text.as_bytes());
        written.map_err(|e| Failure::io(&e, self.names.path.display()))?;
        self.names.bytes += u64::try_from(text.len()).unwrap_or(u64::MAX);
        Ok(())
    }
}

/// Stores finished chunks, one after the other, until the packer hangs up.
pub struct Uploader<'a> {
    pub store: &'a dyn Store,
    pub prefix: &'a str,
    pub backup: &'a BackupName,
    pub encoding: &'a Encoding,
    pub host: &'a str,
    /// How long one chunk may fail before the backup does.
    pub patience: Duration,
    /// Set when nobody waits for the result any more.
    pub abandoned: &'a AtomicBool,
    /// The daemon's: whoever waits for room for a chunk cannot look at it himself.
    pub stop: &'a AtomicBool,
    pub stored: &'a AtomicU32,
}

impl Uploader<'_> {
    pub fn run(&self, chunks: Receiver<(PathBuf, Chunk)>) -> Outcome<()> {
        for (path, chunk) in chunks {
            self.store(&path, &chunk)?;
            // A store may have moved the file, or copied it.
            let _gone_is_fine = fs::remove_file(&path);
            self.stored.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn store(&self, path: &Path, chunk: &Chunk) -> Outcome<()> {
        let file = machine::File::Part {
            backup: self.backup.clone(),
            number: chunk.number,
        };
        let key = format!("{}/{}", self.prefix, file.key(SegmentSize::DEFAULT));
        let metadata = self.metadata(chunk);
        let started = Instant::now();
        let (mut pause, longest) = BACKOFF;
        loop {
            let body = Body::Scratch(Scratch {
                path,
                size_bytes: chunk.bytes_out,
                sha256: chunk.sha256,
            });
            let failure = match self.store.put(&key, body, &metadata, Put::Create) {
                Ok(()) => return Ok(()),
                // The name is this backup's alone: what a try finds there is one before it, of ours
                // or of the driver's, which succeeded without our knowing.
                Err(e) if e.class == Class::Conflict && self.there(&key, chunk)? => {
                    return Ok(());
                }
                Err(failure) => failure,
            };
            let passing = matches!(
                failure.class,
                Class::Network | Class::Timeout | Class::Quota
            );
            if !passing || started.elapsed().saturating_add(pause) > self.patience {
                return Err(failure);
            }
            log::info!("{key}: trying again in {} ms: {failure}", pause.as_millis());
            self.wait(pause)?;
            pause = pause.saturating_mul(2).min(longest);
        }
    }

    fn there(&self, key: &str, chunk: &Chunk) -> Outcome<bool> {
        let found = self.store.look(key)?;
        Ok(found.is_some_and(|object| object.entry.size_bytes == chunk.bytes_out))
    }

    fn wait(&self, pause: Duration) -> Outcome<()> {
        let started = Instant::now();
        while started.elapsed() < pause {
            if [self.abandoned, self.stop]
                .iter()
                .any(|flag| flag.load(Ordering::Relaxed))
            {
                return Err(Failure::new(Class::Interrupted, "the backup was given up"));
            }
            thread::sleep(GLANCE.min(pause));
        }
        Ok(())
    }

    fn metadata(&self, chunk: &Chunk) -> Metadata {
        let mut metadata = Metadata::new();
        let mut add = |key: &str, value: String| metadata.insert(key.into(), value);
        add(
            "compression-algorithm",
            self.encoding.compression.name().into(),
        );
        add("format", super::stream::FORMAT.into());
        add("host", self.host.into());
        add("original-file-size", chunk.bytes_in.to_string());
        if let Some(encryption) = &self.encoding.encryption {
            add("encryption-key-id", encryption.key_id.clone());
        }
        metadata
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::work::testing::{Bed, Fault};

    #[test]
    fn a_stop_is_heard_between_two_tries() {
        let bed = Bed::make();
        let path = bed.place.scratch.join("chunk");
        fs::write(&path, b"x").unwrap();
        bed.store.fail(0, Fault::Before(Class::Network));
        let (sender, chunks) = mpsc::channel();
        let chunk = Chunk {
            number: 1,
            bytes_in: 1,
            bytes_out: 1,
            sha256: [0; 32],
            names: 0..0,
        };
        sender.send((path, chunk)).unwrap();
        let uploader = Uploader {
            store: bed.store.as_ref(),
            prefix: "main",
            backup: &BackupName("b".into()),
            encoding: &bed.place.encoding,
            host: "here",
            patience: Duration::from_secs(3600),
            abandoned: &AtomicBool::new(false),
            stop: &AtomicBool::new(true),
            stored: &AtomicU32::new(0),
        };
        let failure = uploader.run(chunks).unwrap_err();
        assert_eq!(failure.class, Class::Interrupted);
        assert!(bed.keys().is_empty());
    }
}
