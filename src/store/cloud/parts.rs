//! Objects in parts.
//!
//! A store takes 10,000 parts of an object at most, so parts grow with what there is of it: with
//! its size where that is known, with the number of parts where it is not.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use machine::Class;
use md5::{Digest, Md5};
use object_store::Attributes;
use object_store::multipart::PartId;

use super::{CONTENT_LENGTH, Cloud, Multipart, exists, room};
use crate::failure::{Failure, Outcome};
use crate::store::body::Source;
use crate::store::{Body, Metadata, Put, Upload, Written};

/// Of one object, from a file: a few parts at a time. It is taken back unless all arrive.
pub(super) fn put(
    cloud: &Cloud,
    key: &str,
    body: Body<'_>,
    size_bytes: u64,
    attributes: Attributes,
    mode: Put,
) -> Outcome<()> {
    let part_bytes = cloud.part_bytes.max(size_bytes.div_ceil(PARTS_MAX));
    if part_bytes > PART_BYTES_MAX {
        return Err(too_large(key));
    }
    let source = body.open()?;
    let md5 = match cloud.service.notes_md5() {
        true => Some(md5(&source, size_bytes)?),
        false => None,
    };
    let upload = Multipart {
        md5,
        ..cloud.begin_parts(key, attributes)?
    };
    let plan = Plan {
        key,
        source,
        size_bytes,
        part_bytes,
    };
    let sent = send(cloud, &plan, &upload);
    let done = sent.and_then(|parts| cloud.complete(key, &upload, parts, size_bytes, mode));
    if done.is_err() {
        cloud.abort(&upload);
    }
    done
}

/// Parts are sent as they are free to go: it is read once more, in its order.
fn md5(source: &Source<'_>, size_bytes: u64) -> Outcome<[u8; 16]> {
    let mut digest = Md5::new();
    let mut at = 0;
    while at < size_bytes {
        let count = READ_BYTES.min(size_bytes - at);
        digest.update(source.read(at, count)?);
        at += count;
    }
    Ok(digest.finalize().into())
}

struct Plan<'a> {
    key: &'a str,
    source: Source<'a>,
    size_bytes: u64,
    part_bytes: u64,
}

impl Plan<'_> {
    fn read(&self, number: u64) -> Outcome<Vec<u8>> {
        let from = number.saturating_mul(self.part_bytes);
        let count = self.part_bytes.min(self.size_bytes.saturating_sub(from));
        self.source.read(from, count)
    }
}

fn send(cloud: &Cloud, plan: &Plan<'_>, upload: &Multipart) -> Outcome<Vec<PartId>> {
    let count = plan.size_bytes.div_ceil(plan.part_bytes);
    let service = cloud.service.as_ref();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let done = Mutex::new(Vec::new());
    let worker = || -> Outcome<()> {
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            let _room = room::take(plan.part_bytes);
            let sent = plan.read(number).and_then(|bytes| {
                let part = service.part(upload, number, bytes);
                part.map_err(|failure| failure.about(plan.key))
            });
            let id = sent.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.push((number, id));
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..PARALLEL.min(count))
            .map(|_| scope.spawn(worker))
            .collect();
        let ended = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| died()));
        ended
            .collect::<Vec<_>>()
            .into_iter()
            .collect::<Outcome<()>>()
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, id)| id).collect())
}

fn died<T>() -> Outcome<T> {
    Err(Failure::new(
        Class::Internal,
        "the thread of an upload died",
    ))
}

fn too_large(key: &str) -> Failure {
    let message = format!("{key} is too large for one object of this store");
    Failure::new(Class::Unsupported, message).hint("set basebackup_mode to \"stream\"")
}

/// An object of unknown size. Up to one part it waits in memory and is one request; one part is
/// sent while the next one fills.
pub(super) struct Growing<'a> {
    cloud: &'a Cloud,
    key: String,
    metadata: Metadata,
    buffer: Vec<u8>,
    bytes: u64,
    md5: Option<Md5>,
    upload: Option<Multipart>,
    parts: Vec<PartId>,
    on_its_way: Option<JoinHandle<Outcome<PartId>>>,
}

impl<'a> Growing<'a> {
    pub fn new(cloud: &'a Cloud, key: &str, metadata: &Metadata) -> Growing<'a> {
        Growing {
            cloud,
            key: key.to_owned(),
            metadata: metadata.clone(),
            buffer: Vec::new(),
            bytes: 0,
            md5: cloud.service.notes_md5().then(Md5::new),
            upload: None,
            parts: Vec::new(),
            on_its_way: None,
        }
    }

    /// Of the part that fills now: it doubles where another size would not do.
    fn part_bytes(&self) -> u64 {
        let doubled = self.begun() / DOUBLE_EVERY;
        let bytes = self.cloud.part_bytes.saturating_mul(1 << doubled.min(8));
        bytes.min(PART_BYTES_MAX.max(self.cloud.part_bytes))
    }

    /// Parts that were sent or are being sent.
    fn begun(&self) -> u64 {
        let sent = self.parts.len() + usize::from(self.on_its_way.is_some());
        u64::try_from(sent).unwrap_or(u64::MAX)
    }

    fn arrived(&mut self) -> Outcome<()> {
        if let Some(part) = self.on_its_way.take() {
            let part = part.join().unwrap_or_else(|_| died());
            self.parts
                .push(part.map_err(|failure| failure.about(&self.key))?);
        }
        Ok(())
    }

    fn send(&mut self) -> Outcome<()> {
        let upload = match &self.upload {
            Some(upload) => upload.clone(),
            None => {
                let attributes = self.cloud.attributes(&self.metadata);
                let upload = self.cloud.begin_parts(&self.key, attributes)?;
                self.upload.insert(upload).clone()
            }
        };
        let number = self.begun();
        if number >= PARTS_MAX {
            return Err(too_large(&self.key));
        }
        self.arrived()?;
        let bytes = std::mem::take(&mut self.buffer);
        if let Some(md5) = &mut self.md5 {
            md5.update(&bytes);
        }
        let service = Arc::clone(&self.cloud.service);
        let sender = move || service.part(&upload, number, bytes);
        let thread = thread::Builder::new().name("part".to_owned()).spawn(sender);
        let thread = thread.map_err(|e| Failure::io(&e, &self.key))?;
        self.on_its_way = Some(thread);
        Ok(())
    }
}

impl Write for Growing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.part_bytes()).unwrap_or(usize::MAX);
        // Only more than a part makes parts of it.
        if self.buffer.len() >= wanted && !bytes.is_empty() {
            self.send()?;
        }
        let count = bytes.len().min(wanted.saturating_sub(self.buffer.len()));
        self.buffer
            .extend_from_slice(bytes.get(..count).unwrap_or_default());
        self.bytes += u64::try_from(count).unwrap_or(0);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for Growing<'_> {
    fn finish(mut self: Box<Self>, written: Written, late: &Metadata) -> Outcome<()> {
        written.is_all(&self.key, self.bytes)?;
        let mut metadata = self.metadata.clone();
        metadata.extend(late.clone());
        let size = written.size_bytes.to_string();
        metadata.insert(CONTENT_LENGTH.to_owned(), size);
        if self.upload.is_none() {
            let body = std::mem::take(&mut self.buffer);
            return match self.cloud.refuse_existing(&self.key) {
                Ok(()) => {
                    let attributes = self.cloud.attributes(&metadata);
                    self.cloud
                        .put_whole(&self.key, body, attributes, Put::Create)
                }
                Err(failure) if failure.class == Class::Conflict => Err(exists(&self.key)),
                Err(failure) => Err(failure),
            };
        }
        if !self.buffer.is_empty() {
            self.send()?;
        }
        self.arrived()?;
        let Some(mut upload) = self.upload.clone() else {
            return died();
        };
        if self.cloud.service.labels_come_last() {
            upload.attributes = self.cloud.attributes(&metadata);
        }
        upload.md5 = self.md5.take().map(|md5| md5.finalize().into());
        let parts = std::mem::take(&mut self.parts);
        let (cloud, key) = (self.cloud, self.key.clone());
        cloud.complete(&key, &upload, parts, written.size_bytes, Put::Create)?;
        // It is no longer to be taken back.
        self.upload = None;
        Ok(())
    }
}

impl Drop for Growing<'_> {
    fn drop(&mut self) {
        // A part that arrives after the end of its upload would stay.
        if let Some(part) = self.on_its_way.take() {
            let _late = part.join();
        }
        if let Some(upload) = self.upload.take() {
            self.cloud.abort(&upload);
        }
    }
}

/// A good size for a network: larger ones are no faster, and cost memory.
pub(super) const PART_BYTES: u64 = 8 << 20;
/// The least that S3 takes.
pub(super) const PART_BYTES_MIN: u64 = 5 << 20;
pub(super) const PART_BYTES_MAX: u64 = 64 << 20;
pub(super) const PARTS_MAX: u64 = 10_000;
/// 20 GiB in the first size, 293 GiB in all sizes together.
const DOUBLE_EVERY: u64 = 2_500;
const READ_BYTES: u64 = 1 << 20;
/// At a time, of one object.
const PARALLEL: u64 = 3;
