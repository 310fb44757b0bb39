//! All objects of a backup at once: a few workers, each with a thread that decodes ahead.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use machine::Class;
use tar::{Archive, Entry};

use super::layout::{self, Content, Job, Naming};
use super::target::Places;
use super::{Source, at, corrupt};
use crate::codec;
use crate::codec::digest::{Algorithm, Digest};
use crate::failure::{Failure, Outcome};
use progress::Progress;
use unpack::{Unpacked, Unpacker};

pub mod pipe;
pub mod progress;
pub mod unpack;

/// Fetches the largest first; the first failure stops all.
pub fn all(
    jobs: &[Job],
    threads: u32,
    source: &Source<'_>,
    places: &Places,
    progress: &Arc<Progress>,
) -> Outcome<Unpacked> {
    let mut order: Vec<&Job> = jobs.iter().collect();
    order.sort_by_key(|job| std::cmp::Reverse(job.stored_bytes));
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut unpacker = Unpacker::new(places);
        while let Some(job) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            one(job, source, &mut unpacker, progress).map_err(|failure| {
                progress.stop.store(true, Ordering::Relaxed);
                at(&job.key, failure)
            })?;
        }
        Ok(unpacker.done)
    };
    let count = usize::try_from(threads).unwrap_or(1).min(jobs.len());
    let outcomes: Vec<Outcome<Unpacked>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..count).map(|_| scope.spawn(worker)).collect();
        let died = |_| Err(Failure::new(Class::Internal, "a worker died"));
        let joined = workers.into_iter().map(|w| w.join().unwrap_or_else(died));
        joined.collect()
    });
    let mut all = Unpacked::default();
    let mut failure: Option<Failure> = None;
    for outcome in outcomes {
        match outcome {
            Ok(done) => all.merge(done),
            // Those that were stopped say nothing new.
            Err(new) => match &failure {
                Some(old) if old.class != Class::Interrupted => {}
                Some(_) | None => failure = Some(new),
            },
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None => Ok(all),
    }
}

/// Where objects go: onto the disk, or into a stream.
pub trait Sink {
    /// Takes all members and reads the source to its end, which proves it.
    fn archive(&mut self, source: &mut dyn Read, naming: Naming) -> Outcome<()>;
    /// A file of a delta backup, which keeps no modes; PostgreSQL's own is 0600. `bytes` as
    /// announced.
    fn file(&mut self, name: &str, bytes: Option<u64>, source: &mut dyn Read) -> Outcome<()>;
}

/// Hands over every member of an archive, then reads the source to its end, which proves it.
pub fn members<R: Read>(
    source: R,
    mut each: impl FnMut(Entry<'_, R>) -> Outcome<()>,
) -> Outcome<()> {
    let told = |e: io::Error| Failure::from_io(&e, "archive");
    let mut archive = Archive::new(source);
    for entry in archive.entries().map_err(told)? {
        each(entry.map_err(told)?)?;
    }
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(told)?;
    Ok(())
}

/// One object, verified as far as it can be by itself.
pub fn one(
    job: &Job,
    source: &Source<'_>,
    sink: &mut impl Sink,
    progress: &Arc<Progress>,
) -> Outcome<()> {
    let (object, body) = source.store.get(&job.key)?;
    let stored = object.entry.size_bytes;
    let body = Metered {
        body,
        progress: Arc::clone(progress),
    };
    let decoder = |told| codec::decoder(body, stored, told, source.keys);
    match &job.content {
        Content::Archive(naming) => {
            if stored != job.stored_bytes {
                let announced = job.stored_bytes;
                return Err(corrupt(format!(
                    "it has {stored} bytes, the backup announces {announced}"
                )));
            }
            sink.archive(&mut pipe::ahead(decoder(&object.metadata)?), *naming)
        }
        // PGHoard's announcement can be wrong here: the object may have been stored anew with
        // another compression. Its digest cannot.
        Content::File { path, digest } => {
            let mut hashed = Hashed {
                source: decoder(&layout::without_size(&object.metadata))?,
                digest: Digest::new(Algorithm::Blake2s),
            };
            sink.file(path, job.plain_bytes, &mut hashed)?;
            match hashed.digest.hex() == *digest {
                true => Ok(()),
                false => Err(corrupt("its content has another digest than its name")),
            }
        }
    }
}

/// Counts what comes from the store, and ends early when another worker has failed.
struct Metered {
    body: Box<dyn Read + Send>,
    progress: Arc<Progress>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.progress.stop.load(Ordering::Relaxed) {
            return Err(Failure::new(Class::Interrupted, "stopped by another failure").into());
        }
        let count = self.body.read(buffer)?;
        let bytes = u64::try_from(count).unwrap_or(0);
        self.progress.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(count)
    }
}

struct Hashed {
    source: Box<dyn Read + Send>,
    digest: Digest,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.digest.update(buffer.get(..count).unwrap_or(&[]));
        Ok(count)
    }
}
