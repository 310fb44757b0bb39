//! A folder as an object store, in the layout of rohmu's local driver.
//!
//! An object is the file at its key and a JSON sidecar `<file>.metadata`; without the sidecar it
//! does not exist for anybody, so data goes first and the sidecar makes it visible. The sidecar
//! holds the caller's metadata, `Content-Length` and `_hash`, the SHA-256 of the stored bytes,
//! which rohmu lists as `md5` and hides otherwise; so do we.
//! Authority: rohmu `object_storage/local.py`.
//!
//! Publishing happens under an exclusive lock on the folder, so that two writers of one key
//! cannot mix one's data with the other's sidecar.
//!
//! Budget: four fsyncs a put; a listing holds [`PAGE_NAMES`] names of each open folder.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use machine::Class;
use sha2::{Digest, Sha256};

use super::{Body, Entry, Metadata, Object, Put, Store, Upload, Written, sidecar};
use crate::durable::{self, Draft};
use crate::failure::{Failure, Outcome};

#[derive(Debug)]
pub struct Local {
    root: PathBuf,
}

impl Local {
    /// The store in a folder that exists. A missing one is an error, because an unmounted disk
    /// must not look like an empty store.
    pub fn open(root: &Path) -> Outcome<Local> {
        let root = root.to_owned();
        match fs::metadata(&root) {
            Ok(found) if found.is_dir() => Ok(Local { root }),
            Ok(_) => Err(Failure::new(
                Class::Config,
                format!("storage directory '{}' is not a directory", root.display()),
            )),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Failure::new(
                Class::Config,
                format!("storage directory '{}' does not exist", root.display()),
            )
            .hint("is its file system mounted?")),
            Err(e) => Err(Failure::io(&e, root.display())),
        }
    }

    /// The store in a folder that is made if it is missing.
    pub fn create(root: &Path) -> Outcome<Local> {
        durable::make_folders(root)?;
        Local::open(root)
    }

    fn path(&self, key: &str) -> Outcome<PathBuf> {
        sidecar::check_key(key)?;
        Ok(self.root.join(key))
    }

    /// Doubt about the root turns every absence into an error.
    fn confirm_root(&self) -> Outcome<()> {
        Local::open(&self.root).map(|_| ())
    }

    fn sidecar(&self, path: &Path, key: &str) -> Outcome<Option<Metadata>> {
        match fs::read(sidecar_path(path)) {
            Ok(bytes) => sidecar::parse(&bytes, key).map(Some),
            Err(e) if absent(&e) => self.confirm_absent(&sidecar_path(path)).map(|()| None),
            Err(e) => Err(Failure::io(&e, self.told(key))),
        }
    }

    /// Below the root, a link to nowhere is doubt as well: a site may live on a disk of its own.
    fn confirm_absent(&self, path: &Path) -> Outcome<()> {
        self.confirm_root()?;
        // Only the lowest name there is can be such a link.
        for path in path.ancestors().take_while(|path| *path != self.root) {
            match fs::symlink_metadata(path) {
                Ok(found) if found.is_symlink() => return leads_somewhere(path),
                Ok(_) => return Ok(()),
                Err(e) if absent(&e) => {}
                Err(e) => return Err(Failure::io(&e, path.display())),
            }
        }
        Ok(())
    }

    fn told(&self, key: &str) -> String {
        format!("{}/{key}", self.root.display())
    }

    /// Visits the objects below `path` in key order; `key` is the folder's own, with its slash.
    fn walk(
        &self,
        path: &Path,
        key: &str,
        depth: u32,
        visit: &mut dyn FnMut(Entry) -> Outcome<()>,
    ) -> Outcome<()> {
        if depth > DEPTH_MAX {
            let message = format!("{}: folders nested too deep", path.display());
            return Err(Failure::new(Class::Corrupt, message));
        }
        let mut after = None;
        loop {
            let page = read_page(path, after.as_deref())?;
            for name in &page {
                let bytes = name.as_bytes();
                let (plain, is_folder) = match bytes.strip_suffix(b"/") {
                    Some(plain) => (plain, true),
                    None => (bytes, false),
                };
                let text = String::from_utf8_lossy(plain);
                let below = path.join(std::ffi::OsStr::from_bytes(plain));
                if is_folder {
                    self.walk(&below, &format!("{key}{text}/"), depth + 1, visit)?;
                } else if let Some(entry) = entry(&below, format!("{key}{text}"))? {
                    visit(entry)?;
                }
            }
            if page.len() < PAGE_NAMES {
                return Ok(());
            }
            after = page.into_iter().next_back();
        }
    }
}

impl Store for Local {
    fn name(&self) -> String {
        format!("local storage {}", self.root.display())
    }

    fn put(&self, key: &str, body: Body<'_>, metadata: &Metadata, mode: Put) -> Outcome<()> {
        let path = self.path(key)?;
        let sidecar_path = sidecar_path(&path);
        let folder = path.parent().unwrap_or(&self.root);
        self.confirm_root()?;
        durable::make_folders(folder)?;
        refuse_existing(mode, &sidecar_path, key)?;

        let (sha256, size_bytes) = content(body)?;
        let data = place(body, &path)?;
        let sidecar = sidecar::render(metadata, size_bytes, &hex::encode(sha256))?;
        let outcome = publish(key, &path, data, &sidecar, mode);
        settle_scratch(body, &path, &outcome)?;
        outcome
    }

    fn begin(&self, key: &str, metadata: &Metadata) -> Outcome<Box<dyn Upload + '_>> {
        let path = self.path(key)?;
        self.confirm_root()?;
        durable::make_folders(path.parent().unwrap_or(&self.root))?;
        refuse_existing(Put::Create, &sidecar_path(&path), key)?;
        Ok(Box::new(Growing {
            key: key.to_owned(),
            data: BufWriter::with_capacity(WRITE_BYTES, Draft::at(&path)?),
            path,
            bytes: 0,
            metadata: metadata.clone(),
        }))
    }

    fn get(&self, key: &str) -> Outcome<(Object, Box<dyn Read + Send>)> {
        let path = self.path(key)?;
        let Some(metadata) = self.sidecar(&path, key)? else {
            let message = format!("{key} not found in {}", self.name());
            return Err(Failure::new(Class::NotFound, message));
        };
        let file = File::open(&path).map_err(|e| Failure::io(&e, self.told(key)))?;
        let found = file
            .metadata()
            .map_err(|e| Failure::io(&e, self.told(key)))?;
        let object = object(key, &found, metadata)?;
        let body = Exact {
            file,
            left_bytes: object.entry.size_bytes,
        };
        Ok((object, Box::new(body)))
    }

    fn look(&self, key: &str) -> Outcome<Option<Object>> {
        let path = self.path(key)?;
        let Some(metadata) = self.sidecar(&path, key)? else {
            return Ok(None);
        };
        match fs::metadata(&path) {
            Ok(found) => object(key, &found, metadata).map(Some),
            Err(e) => Err(Failure::io(&e, self.told(key))),
        }
    }

    fn list(&self, folder: &str, visit: &mut dyn FnMut(Entry) -> Outcome<()>) -> Outcome<()> {
        let folder = folder.trim_end_matches('/');
        self.confirm_root()?;
        if folder.is_empty() {
            return self.walk(&self.root, "", 0, visit);
        }
        let path = self.path(folder)?;
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => self.walk(&path, &format!("{folder}/"), 0, visit),
            Ok(_) => Ok(()),
            Err(e) if absent(&e) => self.confirm_absent(&path),
            Err(e) => Err(Failure::io(&e, self.told(folder))),
        }
    }

    fn noted_sha256(&self, key: &str) -> Outcome<Option<String>> {
        let path = sidecar_path(&self.path(key)?);
        let bytes = fs::read(&path).map_err(|e| Failure::io(&e, self.told(key)))?;
        sidecar::noted_sha256(&bytes, key)
    }

    fn delete(&self, key: &str) -> Outcome<()> {
        let path = self.path(key)?;
        self.confirm_root()?;
        match path.parent().is_some_and(Path::is_dir) {
            true => remove(&path),
            false => self.confirm_absent(&path),
        }
    }
}

/// An object that is being written, beside its place.
struct Growing {
    key: String,
    path: PathBuf,
    data: BufWriter<Draft>,
    bytes: u64,
    metadata: Metadata,
}

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.data.write(bytes)?;
        self.bytes += u64::try_from(taken).unwrap_or(u64::MAX);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.data.flush()
    }
}

impl Upload for Growing {
    fn finish(self: Box<Self>, written: Written, late: &Metadata) -> Outcome<()> {
        let Growing {
            key,
            path,
            data,
            bytes,
            mut metadata,
        } = *self;
        written.is_all(&key, bytes)?;
        let Written { size_bytes, sha256 } = written;
        metadata.extend(late.clone());
        let data = data.into_inner();
        let data = data.map_err(|e| Failure::io(e.error(), path.display()))?;
        let sidecar = sidecar::render(&metadata, size_bytes, &hex::encode(sha256))?;
        publish(&key, &path, Data::Draft(data), &sidecar, Put::Create)
    }
}

/// Puts data and sidecar in their places.
fn publish(key: &str, path: &Path, data: Data<'_>, sidecar: &[u8], mode: Put) -> Outcome<()> {
    let sidecar_path = sidecar_path(path);
    let folder = path.parent().unwrap_or(path);
    let mut draft = Draft::at(&sidecar_path)?;
    draft.fill(sidecar)?;
    let _lock = File::open(folder)
        .and_then(|file| file.lock().map(|()| file))
        .map_err(|e| Failure::io(&e, folder.display()))?;
    refuse_existing(mode, &sidecar_path, key)?;
    // A crash half way through a replacement leaves no object, which the caller repeats, rather
    // than new data under old metadata.
    durable::remove(&sidecar_path)?;
    match data {
        Data::Draft(data) => data.commit()?,
        Data::Scratch(scratch) => durable::rename(scratch, path)?,
    }
    draft.commit()
}

/// Data synced and ready to be renamed into place.
enum Data<'a> {
    Draft(Draft),
    Scratch(&'a Path),
}

/// A scratch file of another file system is copied beside its target, any other stays until the
/// rename.
fn place<'a>(body: Body<'a>, target: &Path) -> Outcome<Data<'a>> {
    let scratch = match body {
        Body::Bytes(bytes) => {
            let mut draft = Draft::at(target)?;
            draft.fill(bytes)?;
            return Ok(Data::Draft(draft));
        }
        Body::Scratch(scratch) => scratch.path,
    };
    let device = |path: &Path| -> Outcome<u64> {
        let found = fs::metadata(path).map_err(|e| Failure::io(&e, path.display()))?;
        Ok(found.dev())
    };
    if device(scratch)? == device(target.parent().unwrap_or(target))? {
        durable::sync_file(scratch)?;
        return Ok(Data::Scratch(scratch));
    }
    let mut draft = Draft::at(target)?;
    let mut file = File::open(scratch).map_err(|e| Failure::io(&e, scratch.display()))?;
    io::copy(&mut file, &mut draft).map_err(|e| Failure::io(&e, target.display()))?;
    Ok(Data::Draft(draft))
}

/// The promise about scratch files: gone after a success, still there after a failure.
fn settle_scratch(body: Body<'_>, path: &Path, outcome: &Outcome<()>) -> Outcome<()> {
    match (body, outcome) {
        (Body::Bytes(_), _) => Ok(()),
        (Body::Scratch(scratch), Ok(())) => durable::remove(scratch.path),
        (Body::Scratch(scratch), Err(_)) if scratch.path.exists() => Ok(()),
        (Body::Scratch(scratch), Err(_)) => {
            // One that stayed would be an object without content, and block the name for ever.
            let swept = durable::remove(&sidecar_path(path));
            durable::rename(path, scratch.path)?;
            swept
        }
    }
}

/// SHA-256 and size of what is about to be stored.
fn content(body: Body<'_>) -> Outcome<([u8; 32], u64)> {
    let scratch = match body {
        Body::Bytes(bytes) => {
            let size_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            return Ok((Sha256::digest(bytes).into(), size_bytes));
        }
        Body::Scratch(scratch) => scratch,
    };
    let shown = scratch.path.display();
    let found = fs::metadata(scratch.path).map_err(|e| Failure::io(&e, &shown))?;
    if found.len() != scratch.size_bytes {
        let (found, written) = (found.len(), scratch.size_bytes);
        let message = format!("{shown} has {found} bytes, its writer wrote {written}");
        return Err(Failure::new(Class::Internal, message));
    }
    Ok((scratch.sha256, scratch.size_bytes))
}

fn refuse_existing(mode: Put, sidecar: &Path, key: &str) -> Outcome<()> {
    match mode {
        Put::Create if sidecar.exists() => Err(Failure::new(
            Class::Conflict,
            format!("{key} already exists"),
        )),
        Put::Create | Put::Replace => Ok(()),
    }
}

fn object(key: &str, found: &fs::Metadata, metadata: Metadata) -> Outcome<Object> {
    let entry = Entry {
        key: key.to_owned(),
        size_bytes: found.len(),
        modified_ms: modified_ms(found),
    };
    sidecar::object(entry, metadata)
}

/// A listed file, if it is an object: it has a sidecar, and is still there.
fn entry(path: &Path, key: String) -> Outcome<Option<Entry>> {
    let there = |path: &Path| match fs::metadata(path) {
        Ok(found) => Ok(found.is_file().then_some(found)),
        Err(e) if absent(&e) => Ok(None),
        Err(e) => Err(Failure::io(&e, path.display())),
    };
    if there(&sidecar_path(path))?.is_none() {
        return Ok(None);
    }
    Ok(there(path)?.map(|found| Entry {
        key,
        size_bytes: found.len(),
        modified_ms: modified_ms(&found),
    }))
}

fn modified_ms(found: &fs::Metadata) -> i64 {
    let since = found.modified().ok();
    let since = since.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// The next names of a folder in key order: folders carry a `/`, as they do in keys.
fn read_page(folder: &Path, after: Option<&std::ffi::OsStr>) -> Outcome<BTreeSet<OsString>> {
    let told = |e: io::Error| Failure::io(&e, folder.display());
    let mut page = BTreeSet::new();
    for item in fs::read_dir(folder).map_err(told)? {
        let item = item.map_err(told)?;
        let name = item.file_name();
        if sidecar::hidden(name.as_bytes()) {
            // Sweeping is a courtesy; who may only read has nothing to sweep.
            let _unswept = durable::sweep(&item.path());
            continue;
        }
        let name = match is_folder(&item)? {
            true => OsString::from_vec([name.as_bytes(), b"/"].concat()),
            false => name,
        };
        if after.is_none_or(|after| name.as_os_str() > after) {
            page.insert(name);
        }
        if page.len() > PAGE_NAMES {
            page.pop_last();
        }
    }
    Ok(page)
}

/// Follows a symbolic link: a site may live on a disk of its own.
fn is_folder(item: &fs::DirEntry) -> Outcome<bool> {
    match item.file_type() {
        Ok(kind) if kind.is_symlink() => {
            leads_somewhere(&item.path()).map(|()| item.path().is_dir())
        }
        Ok(kind) => Ok(kind.is_dir()),
        Err(_) => Ok(false),
    }
}

fn leads_somewhere(link: &Path) -> Outcome<()> {
    fs::metadata(link).map(drop).map_err(|e| {
        let message = format!("symbolic link '{}' leads nowhere: {e}", link.display());
        Failure::new(Class::Config, message).hint("is its file system mounted?")
    })
}

/// The sidecar goes first. Where the file then cannot go (`chattr +i`) the sidecar comes back: what
/// somebody locked must not vanish from every listing.
fn remove(path: &Path) -> Outcome<()> {
    let sidecar = sidecar_path(path);
    let shown = fs::read(&sidecar).ok();
    durable::remove(&sidecar)?;
    durable::remove(path).or_else(|failure| {
        shown.map_or(Ok(()), |shown| durable::write(&sidecar, &shown))?;
        Err(failure)
    })
}

fn sidecar_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(sidecar::END);
    PathBuf::from(name)
}

/// Not there, or below something that is no folder.
fn absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Reads exactly the announced number of bytes, else fails.
struct Exact {
    file: File,
    left_bytes: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        let wrong = |text| io::Error::new(io::ErrorKind::UnexpectedEof, text);
        if count == 0 && !buffer.is_empty() && self.left_bytes > 0 {
            return Err(wrong("the object ends early"));
        }
        let counted = u64::try_from(count).unwrap_or(u64::MAX);
        self.left_bytes = self
            .left_bytes
            .checked_sub(counted)
            .ok_or_else(|| wrong("the object is longer than announced"))?;
        Ok(count)
    }
}

/// Large enough that a growing object is written in few calls.
const WRITE_BYTES: usize = 256 << 10;

/// Keys have five parts; more than this is a loop of symbolic links.
const DEPTH_MAX: u32 = 32;

/// Names held at once: a bigger folder is read in several passes rather than held in memory.
const PAGE_NAMES: usize = 16 << 10;

#[cfg(test)]
mod tests;
