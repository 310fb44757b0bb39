//! The stores of the clouds, over `object_store`: what S3, Azure and Swift have in common.
//!
//! The library makes and signs the requests, pages listings and finds credentials; [`Wire`] sends
//! them. What it lacks is in each [`Service`]: the names of metadata, headers of its own on a
//! write, finishing only where nothing is, making the bucket, abandoned uploads.
//!
//! An object up to the size of a part is one request. Others go in parts, which become visible
//! together, or are taken back. A request to finish whose answer got lost is settled by looking.
//!
//! Budget: [`room`] bounds the bytes of parts on their way, for all stores of the process together;
//! an object in the making holds two parts.
//!
//! [`Wire`]: super::wire::Wire

pub mod azure;
mod label;
pub(super) mod logins;
pub(super) mod own;
mod parts;
pub(super) mod read;
pub(super) mod room;
pub mod s3;
pub mod swift;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use machine::Class;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    Attributes, GetOptions, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, RetryConfig,
};
use smol::stream::StreamExt;

use super::choose::Missing;
use super::wire::{fault, run};
use super::{Body, Entry, Metadata, Object, Put, Store, Upload, check_key};
use crate::durable;
use crate::failure::{Failure, Outcome};
use parts::Growing;
use read::Streamed;

/// What the library has for each service.
pub trait Client: ObjectStore + MultipartStore {}

impl<T: ObjectStore + MultipartStore> Client for T {}

/// What is another in each service.
pub trait Service: Send + Sync {
    /// Where the objects are, for messages.
    fn place(&self) -> String;
    fn client(&self) -> Arc<dyn Client>;
    /// For reading: it may ask for checksums.
    fn reader(&self) -> Arc<dyn Client> {
        self.client()
    }
    /// For one write: it may have headers that tell the time.
    fn writer(&self) -> Outcome<Arc<dyn Client>>;
    /// The name of a metadata key there.
    fn name_out(&self, name: &str) -> String;
    fn name_in(&self, name: &str) -> String;
    /// Whether the service refuses to create what exists. Where nobody knows, we look before.
    fn refuses_existing(&self) -> bool;
    /// Stores an object in one request.
    fn put(&self, path: &Path, bytes: Vec<u8>, attributes: Attributes, mode: Put) -> Outcome<()> {
        let options = PutOptions {
            mode: match mode {
                Put::Create => PutMode::Create,
                Put::Replace => PutMode::Overwrite,
            },
            attributes,
            ..PutOptions::default()
        };
        let payload = PutPayload::from(bytes);
        let put = run(self.writer()?.put_opts(path, payload, options));
        put.map(drop).map_err(|e| told(&e))
    }
    /// Sends a part of an upload, by its number from 0.
    fn part(&self, upload: &Multipart, number: u64, bytes: Vec<u8>) -> Outcome<PartId> {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        let payload = PutPayload::from(bytes);
        let put = run(self
            .client()
            .put_part(&upload.path, &upload.id, index, payload));
        put.map_err(|e| told(&e))
    }
    /// Whether it keeps the MD5 of what was sent in parts, if it is told.
    fn notes_md5(&self) -> bool {
        false
    }
    fn begin(&self, path: &Path, attributes: Attributes) -> Outcome<String> {
        let options = PutMultipartOptions {
            attributes,
            ..PutMultipartOptions::default()
        };
        let id = run(self.writer()?.create_multipart_opts(path, options));
        id.map_err(|e| told(&e))
    }
    /// Whether what completes an upload brings its metadata, not what begins it.
    fn labels_come_last(&self) -> bool;
    /// Its failure is settled by looking. Where conditions are unknown, nothing was there just now.
    fn complete(&self, upload: &Multipart, parts: Vec<PartId>, mode: Put) -> Outcome<()>;
    fn delete_all(&self, paths: Vec<Path>) -> Outcome<()> {
        let all = smol::stream::iter(paths.into_iter().map(Ok)).boxed();
        let mut gone = self.client().delete_stream(all);
        run(async {
            while let Some(one) = gone.next().await {
                match one.map_err(|e| told(&e)) {
                    Err(failure) if failure.class != Class::NotFound => return Err(failure),
                    Ok(_) | Err(_) => {}
                }
            }
            Ok(())
        })
    }
    /// Makes the bucket; fine if it is there.
    fn make(&self) -> Outcome<()>;
    /// Takes back uploads below a folder that began before a moment and never ended.
    fn sweep(&self, folder: &Path, before_ms: i64) -> Outcome<u64>;
}

/// An upload in parts that has begun.
#[derive(Clone, Debug)]
pub struct Multipart {
    pub path: Path,
    pub id: String,
    pub attributes: Attributes,
    /// Of all of it, where the service notes it.
    pub md5: Option<[u8; 16]>,
}

pub struct Cloud {
    service: Arc<dyn Service>,
    /// Before every key: empty, or with a slash at its end.
    prefix: String,
    part_bytes: u64,
    /// The bucket may be made: nothing was ever seen in it.
    may_make: AtomicBool,
}

impl Cloud {
    pub fn new(
        service: Box<dyn Service>,
        prefix: &str,
        part_bytes: Option<u64>,
        missing: Missing,
    ) -> Cloud {
        Cloud {
            service: Arc::from(service),
            prefix: match prefix {
                "" => String::new(),
                prefix => format!("{prefix}/"),
            },
            part_bytes: part_bytes
                .unwrap_or(parts::PART_BYTES)
                .clamp(parts::PART_BYTES_MIN, parts::PART_BYTES_MAX),
            may_make: AtomicBool::new(missing == Missing::Create),
        }
    }

    fn path(&self, key: &str) -> Outcome<Path> {
        check_key(key)?;
        self.whole_path(&format!("{}{key}", self.prefix))
    }

    fn whole_path(&self, text: &str) -> Outcome<Path> {
        let wrong = |_| Failure::new(Class::Config, format!("{text:?} cannot be a key"));
        Path::parse(text).map_err(wrong)
    }

    fn told(&self, error: &object_store::Error, key: &str) -> Failure {
        told(error).about(key)
    }

    /// Runs it again in a bucket of our making, where there was none. Only at first: a bucket that
    /// was there and is gone is no empty one.
    fn in_bucket<T>(&self, mut work: impl FnMut() -> Outcome<T>) -> Outcome<T> {
        let outcome = match work() {
            Err(failure) if no_bucket(&failure) && self.may_make.load(Ordering::Relaxed) => {
                self.service.make()?;
                work()
            }
            outcome => outcome,
        };
        if outcome.is_ok() {
            self.may_make.store(false, Ordering::Relaxed);
        }
        outcome
    }

    fn object(&self, key: &str, meta: &ObjectMeta, attributes: &Attributes) -> Outcome<Object> {
        let entry = entry(key, meta);
        let metadata = label::read(attributes, |name| self.service.name_in(name));
        let size = entry.size_bytes.to_string();
        match metadata.get(CONTENT_LENGTH).filter(|told| **told != size) {
            Some(told) => {
                let message = format!("{key} has {size} bytes instead of {told}");
                Err(Failure::new(Class::Corrupt, message))
            }
            None => {
                let mut metadata = metadata;
                metadata.insert(CONTENT_LENGTH.to_owned(), size);
                Ok(Object { entry, metadata })
            }
        }
    }

    fn attributes(&self, metadata: &Metadata) -> Attributes {
        label::write(metadata, |name| self.service.name_out(name))
    }

    fn refuse_existing(&self, key: &str) -> Outcome<()> {
        match self.look(key)? {
            Some(_) => Err(exists(key)),
            None => Ok(()),
        }
    }

    /// In one request.
    fn put_whole(
        &self,
        key: &str,
        bytes: Vec<u8>,
        attributes: Attributes,
        mode: Put,
    ) -> Outcome<()> {
        let path = self.path(key)?;
        let put = self.service.put(&path, bytes, attributes, mode);
        put.map_err(|failure| match failure.class {
            Class::Conflict if mode == Put::Create => exists(key),
            _ => failure.about(key),
        })
    }

    fn begin_parts(&self, key: &str, attributes: Attributes) -> Outcome<Multipart> {
        let path = self.path(key)?;
        let id = self.service.begin(&path, attributes.clone());
        Ok(Multipart {
            id: id.map_err(|failure| failure.about(key))?,
            path,
            attributes,
            md5: None,
        })
    }

    /// Makes an upload visible. An answer that got lost is settled by looking.
    fn complete(
        &self,
        key: &str,
        upload: &Multipart,
        parts: Vec<PartId>,
        size_bytes: u64,
        mode: Put,
    ) -> Outcome<()> {
        if mode == Put::Create && !self.service.refuses_existing() {
            self.refuse_existing(key)?;
        }
        let Err(failure) = self.service.complete(upload, parts, mode) else {
            return Ok(());
        };
        let ours = label::read(&upload.attributes, |name| self.service.name_in(name));
        let is_ours = |there: &Object| {
            let mut all = ours.iter();
            // What is to be replaced may say the same of itself, and be damaged.
            mode == Put::Create
                && there.entry.size_bytes == size_bytes
                && all.all(|(name, value)| there.metadata.get(name) == Some(value))
        };
        match self.look(key) {
            Ok(Some(there)) if is_ours(&there) => Ok(()),
            Ok(Some(_)) if failure.class == Class::Conflict => Err(exists(key)),
            _ => Err(failure.about(key)),
        }
    }

    fn abort(&self, upload: &Multipart) {
        // What fails here is swept later.
        let _left = run(self
            .service
            .client()
            .abort_multipart(&upload.path, &upload.id));
    }

    fn get_opts(&self, key: &str, head: bool) -> Outcome<object_store::GetResult> {
        let path = self.path(key)?;
        let options = GetOptions {
            head,
            ..GetOptions::default()
        };
        let found = run(self.service.reader().get_opts(&path, options));
        found.map_err(|e| self.told(&e, key))
    }
}

impl Store for Cloud {
    fn name(&self) -> String {
        format!("{}/{}", self.service.place(), self.prefix)
    }

    fn put(&self, key: &str, body: Body<'_>, metadata: &Metadata, mode: Put) -> Outcome<()> {
        let size_bytes = body.size_bytes()?;
        let small = size_bytes <= self.part_bytes;
        self.path(key)?;
        let mut metadata = metadata.clone();
        metadata.insert(CONTENT_LENGTH.to_owned(), size_bytes.to_string());
        let attributes = self.attributes(&metadata);
        self.in_bucket(|| {
            if mode == Put::Create && !(small && self.service.refuses_existing()) {
                self.refuse_existing(key)?;
            }
            let attributes = attributes.clone();
            if !small {
                return parts::put(self, key, body, size_bytes, attributes, mode);
            }
            let _room = room::take(size_bytes);
            let bytes = body.open()?.read(0, size_bytes)?;
            self.put_whole(key, bytes, attributes, mode)
        })?;
        match body {
            Body::Bytes(_) => Ok(()),
            Body::Scratch(scratch) => durable::remove(scratch.path),
        }
    }

    fn begin(&self, key: &str, metadata: &Metadata) -> Outcome<Box<dyn Upload + '_>> {
        self.in_bucket(|| self.refuse_existing(key))?;
        Ok(Box::new(Growing::new(self, key, metadata)))
    }

    fn get(&self, key: &str) -> Outcome<(Object, Box<dyn Read + Send>)> {
        let found = self.get_opts(key, false)?;
        let object = self.object(key, &found.meta, &found.attributes)?;
        Ok((object, Box::new(Streamed::of(key, found))))
    }

    fn look(&self, key: &str) -> Outcome<Option<Object>> {
        let found = match self.get_opts(key, true) {
            Ok(found) => found,
            // An answer to HEAD has no words: is it the object that is not there, or the bucket?
            // Whose fault is it? One to GET tells.
            Err(failure) if is_wordless(&failure) => match self.get_opts(key, false) {
                Ok(found) => found,
                Err(failure) if failure.class == Class::NotFound => return Ok(None),
                Err(failure) => return Err(failure),
            },
            Err(failure) => return Err(failure),
        };
        self.object(key, &found.meta, &found.attributes).map(Some)
    }

    fn list(&self, folder: &str, visit: &mut dyn FnMut(Entry) -> Outcome<()>) -> Outcome<()> {
        let folder = folder.trim_end_matches('/');
        if !folder.is_empty() {
            check_key(folder)?;
        }
        let whole = format!("{}{folder}", self.prefix);
        let root = self.whole_path(&whole)?;
        let client = self.service.client();
        let first = self.in_bucket(|| {
            let mut found = client.list(Some(&root));
            let first = run(found.next()).transpose();
            first
                .map(|first| (first, found))
                .map_err(|e| self.told(&e, folder))
        });
        let (mut next, mut found) = first?;
        while let Some(meta) = next {
            if let Some(key) = meta.location.as_ref().strip_prefix(&self.prefix) {
                visit(entry(key, &meta))?;
            }
            next = run(found.next())
                .transpose()
                .map_err(|e| self.told(&e, folder))?;
        }
        Ok(())
    }

    fn delete(&self, key: &str) -> Outcome<()> {
        let path = self.path(key)?;
        let one = smol::stream::once(Ok(path)).boxed();
        let deleted = run(self.service.client().delete_stream(one).next());
        match deleted.transpose() {
            Ok(_) => Ok(()),
            Err(error) => match told(&error) {
                failure if failure.class == Class::NotFound => Ok(()),
                failure => Err(failure.about(key)),
            },
        }
    }

    fn delete_all(&self, keys: &[String]) -> Outcome<()> {
        let paths: Vec<Path> = keys
            .iter()
            .map(|key| self.path(key))
            .collect::<Outcome<_>>()?;
        self.service.delete_all(paths)
    }

    fn sweep(&self, folder: &str, before_ms: i64) -> Outcome<u64> {
        let path = self.path(folder)?;
        self.service.sweep(&path, before_ms)
    }
}

/// The failure in an error of the library's.
pub(super) fn told(error: &object_store::Error) -> Failure {
    if let Some(failure) = fault::failure(error) {
        return failure;
    }
    let class =
        match error {
            object_store::Error::NotFound { .. } => Class::NotFound,
            object_store::Error::AlreadyExists { .. }
            | object_store::Error::Precondition { .. } => Class::Conflict,
            object_store::Error::PermissionDenied { .. } => Class::Denied,
            object_store::Error::Unauthenticated { .. } => Class::Auth,
            object_store::Error::NotSupported { .. }
            | object_store::Error::NotImplemented { .. } => Class::Unsupported,
            object_store::Error::InvalidPath { .. } => Class::Config,
            // What the answer was made of.
            _ => Class::Corrupt,
        };
    Failure::new(class, fault::root(error))
}

/// The library tries nothing again but to read on in a body that broke off.
pub(super) fn retry() -> RetryConfig {
    RetryConfig {
        max_retries: 3,
        ..RetryConfig::default()
    }
}

pub(super) fn exists(key: &str) -> Failure {
    Failure::new(Class::Conflict, format!("{key} already exists"))
}

fn no_bucket(failure: &Failure) -> bool {
    let says = |code| failure.message.contains(code);
    failure.class == Class::Config && (says("NoSuchBucket") || says("ContainerNotFound"))
}

/// Any answer in the range of "it is your fault" to a HEAD.
fn is_wordless(failure: &Failure) -> bool {
    matches!(
        failure.class,
        Class::NotFound | Class::Denied | Class::Auth | Class::Config
    )
}

fn entry(key: &str, meta: &ObjectMeta) -> Entry {
    Entry {
        key: key.to_owned(),
        size_bytes: meta.size,
        modified_ms: meta.last_modified.timestamp_millis(),
    }
}

const CONTENT_LENGTH: &str = "Content-Length";
