//! A folder of an SSH server as an object store, in the layout of rohmu's sftp driver.
//!
//! An object is the file at its key and a JSON sidecar `<file>.metadata`, which makes it visible.
//! Both are written under other names, made durable (`fsync@openssh.com`) and renamed into place.
//! Authority: rohmu `object_storage/sftp.py`; the protocol is draft-ietf-secsh-filexfer-02 and
//! OpenSSH's PROTOCOL.
//!
//! Budget: seven round trips a put and some megabytes an open file.

mod files;
mod flow;
mod hosts;
mod link;
mod list;
mod session;

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use machine::Class;
use russh_sftp::protocol::OpenFlags;
use sha2::{Digest, Sha256};

use super::choose::Missing;
use super::{
    Body, Entry, Metadata, Object, Put, Scratch, Store, Upload, Written, sidecar, wire::run,
};
use crate::config;
use crate::durable;
use crate::failure::{Failure, Outcome};
use files::{Draft, Pair, exists, sidecar_path};
use flow::Inflow;
use link::{Link, kind, passing};
use session::Session;

pub struct Sftp {
    link: Arc<Link>,
}

impl Sftp {
    /// Connects at the first call, not here.
    pub fn new(config: config::Sftp, missing: Missing) -> Sftp {
        Sftp {
            link: Arc::new(Link::new(config, missing)),
        }
    }

    fn path(&self, key: &str) -> Outcome<String> {
        sidecar::check_key(key)?;
        Ok(self.link.path(key))
    }

    fn with<T>(&self, work: impl AsyncFn(Arc<Session>) -> Outcome<T>) -> Outcome<T> {
        run(self.link.with(work)).map_err(|f| f.about(self.link.name()))
    }

    /// Opens a draft for the data, unless the object is there. Twice is fine: what a first try
    /// left is swept.
    fn draft(&self, key: &str, path: &str, mode: Put) -> Outcome<Draft> {
        self.with(async |session: Arc<Session>| {
            self.link.confirm_root(&session).await?;
            let there = session.stat(&sidecar_path(path)).await?.is_some();
            if mode == Put::Create && there {
                return Err(exists(key));
            }
            Draft::beside(&self.link, session, path).await
        })
    }

    fn stage(
        &self,
        key: &str,
        path: &str,
        body: Body<'_>,
        metadata: &Metadata,
        mode: Put,
    ) -> Outcome<Pair> {
        let mut data = self.draft(key, path, mode)?;
        let written = match body {
            Body::Bytes(bytes) => {
                data.write(bytes)?;
                Written {
                    size_bytes: length(bytes),
                    sha256: Sha256::digest(bytes).into(),
                }
            }
            Body::Scratch(scratch) => copy(scratch, &mut data)?,
        };
        self.pair(path, data, metadata, written)
    }
}

impl Sftp {
    /// The sidecar is written before the data is sealed, so that the data is placed at once then.
    fn pair(
        &self,
        path: &str,
        data: Draft,
        metadata: &Metadata,
        written: Written,
    ) -> Outcome<Pair> {
        let session = Arc::clone(&data.session);
        let mut sidecar = run(Draft::beside(&self.link, session, path))?;
        let sha256 = hex::encode(written.sha256);
        sidecar.write(&sidecar::render(metadata, written.size_bytes, &sha256)?)?;
        let sidecar = sidecar.seal()?;
        let data = data.seal()?;
        Ok(Pair { data, sidecar })
    }
}

impl Store for Sftp {
    fn name(&self) -> String {
        self.link.name()
    }

    fn put(&self, key: &str, body: Body<'_>, metadata: &Metadata, mode: Put) -> Outcome<()> {
        let path = self.path(key)?;
        let staged = match self.stage(key, &path, body, metadata, mode) {
            // Nothing can be seen of it yet, so a broken line costs nothing but time.
            Err(failure) if passing(&failure) => self.stage(key, &path, body, metadata, mode),
            staged => staged,
        };
        let staged = staged?;
        run(staged.publish(key, &path, mode))?;
        match body {
            Body::Bytes(_) => Ok(()),
            Body::Scratch(scratch) => durable::remove(scratch.path),
        }
    }

    fn begin(&self, key: &str, metadata: &Metadata) -> Outcome<Box<dyn Upload + '_>> {
        let path = self.path(key)?;
        Ok(Box::new(Growing {
            store: self,
            key: key.to_owned(),
            data: self.draft(key, &path, Put::Create)?,
            path,
            bytes: 0,
            metadata: metadata.clone(),
        }))
    }

    fn get(&self, key: &str) -> Outcome<(Object, Box<dyn Read + Send>)> {
        let path = self.path(key)?;
        let Some(object) = self.look(key)? else {
            let message = format!("{key} not found in {}", self.name());
            return Err(Failure::new(Class::NotFound, message));
        };
        let body = Stream {
            link: Arc::clone(&self.link),
            path,
            size_bytes: object.entry.size_bytes,
            modified_ms: object.entry.modified_ms,
            at: 0,
            flow: None,
        };
        Ok((object, Box::new(body)))
    }

    fn look(&self, key: &str) -> Outcome<Option<Object>> {
        let path = self.path(key)?;
        self.with(async |session: Arc<Session>| look(&self.link, &session, key, &path).await)
    }

    fn list(&self, folder: &str, visit: &mut dyn FnMut(Entry) -> Outcome<()>) -> Outcome<()> {
        let mut walk = Walk {
            store: self,
            visit,
            sweep_s: None,
            swept: 0,
        };
        walk.root(folder)
    }

    fn sweep(&self, folder: &str, before_ms: i64) -> Outcome<u64> {
        let mut walk = Walk {
            store: self,
            visit: &mut |_| Ok(()),
            sweep_s: Some(u64::try_from(before_ms / 1000).unwrap_or(0)),
            swept: 0,
        };
        walk.root(folder)?;
        Ok(walk.swept)
    }

    fn delete(&self, key: &str) -> Outcome<()> {
        let path = self.path(key)?;
        self.with(
            async |session: Arc<Session>| match files::remove(&session, &path).await? {
                true => Ok(()),
                false => confirm_absent(&self.link, &session, &path).await,
            },
        )
    }

    fn noted_sha256(&self, key: &str) -> Outcome<Option<String>> {
        let path = sidecar_path(&self.path(key)?);
        let read = self.with(async |session: Arc<Session>| read_small(&session, &path).await)?;
        match read {
            Some(bytes) => sidecar::noted_sha256(&bytes, key),
            None => {
                let message = format!("{key} not found in {}", self.name());
                Err(Failure::new(Class::NotFound, message))
            }
        }
    }
}

/// A walk through folders, in key order.
struct Walk<'a> {
    store: &'a Sftp,
    visit: &'a mut dyn FnMut(Entry) -> Outcome<()>,
    /// Drafts that were last written before (seconds since 1970) are removed.
    sweep_s: Option<u64>,
    swept: u64,
}

impl Walk<'_> {
    fn root(&mut self, folder: &str) -> Outcome<()> {
        let (store, folder) = (self.store, folder.trim_end_matches('/'));
        store.with(async |session: Arc<Session>| store.link.confirm_root(&session).await)?;
        if folder.is_empty() {
            return self.folder(store.link.root(), "", 0);
        }
        let path = store.path(folder)?;
        let is_folder = store.with(async |session: Arc<Session>| {
            let found = session.stat(&path).await?;
            if found.is_none() {
                confirm_absent(&store.link, &session, &path).await?;
            }
            Ok(found.is_some_and(|found| link::is_folder(&found)))
        })?;
        match is_folder {
            true => self.folder(&path, &format!("{folder}/"), 0),
            false => Ok(()),
        }
    }

    /// `key` is the folder's own, with its slash.
    fn folder(&mut self, path: &str, key: &str, depth: u32) -> Outcome<()> {
        if depth > DEPTH_MAX {
            let message = format!("{path}: folders nested too deep");
            return Err(Failure::new(Class::Corrupt, message));
        }
        let mut after: Option<String> = None;
        loop {
            // Each page goes through the whole folder.
            let sweep_s = self.sweep_s.filter(|_| after.is_none());
            let page = self.store.with(async |session: Arc<Session>| {
                list::page(&session, path, after.as_deref(), sweep_s).await
            })?;
            // Removed since it was seen.
            let Some((page, swept)) = page else {
                return Ok(());
            };
            self.swept += swept;
            let whole = list::is_whole(&page);
            for (name, seen) in page {
                if let Some(plain) = name.strip_suffix('/') {
                    let below = format!("{path}/{plain}");
                    self.folder(&below, &format!("{key}{name}"), depth + 1)?;
                } else if let (true, Some(data)) = (seen.sidecar, seen.data) {
                    (self.visit)(Entry {
                        key: format!("{key}{name}"),
                        size_bytes: data.size_bytes,
                        modified_ms: millis(data.modified_s),
                    })?;
                }
                after = Some(name);
            }
            if whole {
                return Ok(());
            }
        }
    }
}

async fn look(
    link: &Link,
    session: &Arc<Session>,
    key: &str,
    path: &str,
) -> Outcome<Option<Object>> {
    let beside = sidecar_path(path);
    for _ in 0..2 {
        let (labels, found) = tokio::join!(read_small(session, &beside), session.stat(path));
        let Some(labels) = labels? else {
            confirm_absent(link, session, path).await?;
            return Ok(None);
        };
        if let Some(found) = found? {
            let entry = Entry {
                key: key.to_owned(),
                size_bytes: found.size.unwrap_or(0),
                modified_ms: millis(found.mtime.unwrap_or(0)),
            };
            let metadata = sidecar::parse(&labels, key)?;
            return sidecar::object(entry, metadata).map(Some);
        }
        // Somebody may have deleted it in between.
    }
    let message = format!("{key} has metadata but no data in {}", link.name());
    Err(Failure::new(Class::Corrupt, message))
}

/// A file that is read as a whole; None where there is none.
async fn read_small(session: &Arc<Session>, path: &str) -> Outcome<Option<Vec<u8>>> {
    let Some(handle) = session.open_file(path, OpenFlags::READ).await? else {
        return Ok(None);
    };
    let read = read_open(session, path, &handle).await;
    session.close(handle).await;
    read.map(Some)
}

async fn read_open(session: &Session, path: &str, handle: &str) -> Outcome<Vec<u8>> {
    use russh_sftp::client::error::Error;
    use russh_sftp::protocol::StatusCode;

    let mut bytes = Vec::new();
    while bytes.len() <= SIDECAR_BYTES_MAX {
        match session
            .sftp
            .read(handle, length(&bytes), SIDECAR_BLOCK_BYTES)
            .await
        {
            Ok(data) => bytes.extend(data.data),
            Err(Error::Status(s)) if s.status_code == StatusCode::Eof => return Ok(bytes),
            Err(e) => return Err(session.failure(&e, path)),
        }
    }
    let message = format!("{path}: more than {SIDECAR_BYTES_MAX} bytes of metadata");
    Err(Failure::new(Class::Corrupt, message))
}

/// Below the root, a link to nowhere is doubt as well: a site may live on a disk of its own.
async fn confirm_absent(link: &Link, session: &Session, path: &str) -> Outcome<()> {
    link.confirm_root(session).await?;
    let mut path = path;
    // Only the lowest name there is can be such a link.
    while path.len() > link.root().len() || link.root() == "." {
        let found = session.seek(path, session.sftp.lstat(path)).await?;
        match found.map(|found| kind(&found.attrs)) {
            Some(Some(list::LINK)) if session.stat(path).await?.is_none() => {
                return Err(list::leads_nowhere(path));
            }
            Some(_) => return Ok(()),
            None => match path.rsplit_once('/') {
                Some((above, _)) => path = above,
                None => return Ok(()),
            },
        }
    }
    Ok(())
}

/// An object that is being written, beside its place.
struct Growing<'a> {
    store: &'a Sftp,
    key: String,
    path: String,
    data: Draft,
    bytes: u64,
    metadata: Metadata,
}

impl Write for Growing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.data.write(bytes)?;
        self.bytes += length(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for Growing<'_> {
    fn finish(self: Box<Self>, written: Written, late: &Metadata) -> Outcome<()> {
        let Growing {
            store,
            key,
            path,
            data,
            bytes,
            mut metadata,
        } = *self;
        written.is_all(&key, bytes)?;
        metadata.extend(late.clone());
        let pair = store.pair(&path, data, &metadata, written)?;
        run(pair.publish(&key, &path, Put::Create))
    }
}

/// The bytes of a scratch file, which must be what its writer said.
fn copy(scratch: Scratch<'_>, data: &mut Draft) -> Outcome<Written> {
    let shown = scratch.path.display();
    let told = |e: io::Error| Failure::io(&e, scratch.path.display());
    let mut file = File::open(scratch.path).map_err(told)?;
    let mut block = vec![0; COPY_BYTES];
    let mut size_bytes = 0;
    loop {
        let count = file.read(&mut block).map_err(told)?;
        let read = block.get(..count).unwrap_or_default();
        if read.is_empty() {
            break;
        }
        data.write(read)?;
        size_bytes += length(read);
    }
    if size_bytes != scratch.size_bytes {
        let written = scratch.size_bytes;
        let message = format!("{shown} has {size_bytes} bytes, its writer wrote {written}");
        return Err(Failure::new(Class::Internal, message));
    }
    Ok(Written {
        size_bytes,
        sha256: scratch.sha256,
    })
}

/// The bytes of an object; on a new connection from where they stopped, where the old one breaks.
struct Stream {
    link: Arc<Link>,
    path: String,
    size_bytes: u64,
    modified_ms: i64,
    at: u64,
    flow: Option<Inflow>,
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut pause = RESUME_FIRST;
        let mut tries = 0;
        loop {
            let read = match &mut self.flow {
                Some(flow) => flow.read(buffer),
                None => run(self.open()).and_then(|flow| self.flow.insert(flow).read(buffer)),
            };
            match read {
                Ok(count) => {
                    self.at += u64::try_from(count).unwrap_or(u64::MAX);
                    return Ok(count);
                }
                Err(failure) if passing(&failure) && tries < RESUMES_MAX => {
                    self.flow = None;
                    std::thread::sleep(pause);
                    pause *= 2;
                    tries += 1;
                }
                Err(failure) => return Err(failure.about(self.link.name()).into()),
            }
        }
    }
}

impl Stream {
    async fn open(&self) -> Outcome<Inflow> {
        let (path, at, size_bytes) = (&self.path, self.at, self.size_bytes);
        let session = self.link.session().await?;
        let Some(handle) = session.open_file(path, OpenFlags::READ).await? else {
            let message = format!("{path} is gone");
            return Err(Failure::new(Class::NotFound, message));
        };
        let found = session.ask(path, session.sftp.fstat(handle.as_str())).await;
        let flow = Inflow::new(session, handle, path.clone(), at, size_bytes);
        let found = found?.attrs;
        let modified_ms = millis(found.mtime.unwrap_or(0));
        if (found.size, modified_ms) != (Some(size_bytes), self.modified_ms) {
            let message = format!("{path} is another than a moment ago");
            return Err(Failure::new(Class::Conflict, message));
        }
        Ok(flow)
    }
}

fn millis(seconds: u32) -> i64 {
    i64::from(seconds) * 1000
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Keys have five parts; more than this is a loop of symbolic links.
const DEPTH_MAX: u32 = 32;
const COPY_BYTES: usize = 256 << 10;
/// Some hundred bytes are usual.
const SIDECAR_BYTES_MAX: usize = 1 << 20;
const SIDECAR_BLOCK_BYTES: u32 = 32 << 10;
/// A server that is started again is back within a minute.
const RESUMES_MAX: u32 = 6;
const RESUME_FIRST: Duration = Duration::from_secs(1);
