//! A local store that notes what it is asked and fails once when told, for the tests of the tasks.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex};

use machine::Class;
use tempfile::TempDir;

use crate::codec::digest::Algorithm;
use crate::codec::keys::Keyring;
use crate::codec::slots::Slots;
use crate::codec::{Compression, Encoding};
use crate::failure::{Failure, Outcome};
use crate::store::local::Local;
use crate::store::{Body, Entry, Metadata, Object, Put, Store};
use crate::work::Place;

pub struct Bed {
    pub folder: TempDir,
    pub store: Arc<Fickle>,
    pub place: Place,
}

impl Bed {
    pub fn make() -> Bed {
        let folder = tempfile::tempdir().unwrap();
        let scratch = folder.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        let store = Arc::new(Fickle {
            inner: Local::create(&folder.path().join("store")).unwrap(),
            asked: Mutex::default(),
            fault: Mutex::default(),
            unlisted: Mutex::default(),
            locked: Mutex::default(),
        });
        let shared: Arc<dyn Store> = store.clone();
        let place = Place {
            site: "main".into(),
            prefix: "main".into(),
            store: shared,
            encoding: Encoding {
                compression: Compression::Snappy,
                level: 0,
                threads: 1,
                encryption: None,
            },
            keys: Keyring::default(),
            hash: Algorithm::Sha1,
            host: "here".into(),
            scratch,
            encoders: Slots::new(1),
        };
        Bed {
            folder,
            store,
            place,
        }
    }

    /// Puts an object without asking through the notes.
    pub fn put(&self, key: &str, metadata: &[(&str, &str)]) {
        let metadata = metadata
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        let body = Body::Bytes(b"x");
        self.store
            .inner
            .put(key, body, &metadata, Put::Create)
            .unwrap();
    }

    /// Every key there is.
    pub fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        let visit = &mut |entry: Entry| {
            keys.push(entry.key);
            Ok(())
        };
        self.store.inner.list("", visit).unwrap();
        keys
    }
}

/// Where one request goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refused, nothing done.
    Before(Class),
    /// Done, but told as failed.
    After(Class),
}

pub struct Fickle {
    pub inner: Local,
    /// `put KEY`, `delete KEY`, in order.
    pub asked: Mutex<Vec<String>>,
    /// After so many good changes one fails.
    pub fault: Mutex<Option<(u32, Fault)>>,
    /// A key that listings forget.
    pub unlisted: Mutex<Option<String>>,
    /// What may not be deleted, and how that is told.
    pub locked: Mutex<BTreeMap<String, Class>>,
}

impl Fickle {
    pub fn fail(&self, after: u32, fault: Fault) {
        *self.fault.lock().unwrap() = Some((after, fault));
    }

    fn change(&self, what: String, change: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
        let due = {
            let mut fault = self.fault.lock().unwrap();
            match fault.as_mut() {
                Some((0, _)) => fault.take().map(|(_, fault)| fault),
                Some((after, _)) => {
                    *after -= 1;
                    None
                }
                None => None,
            }
        };
        let refused = |class| Err(Failure::new(class, "the test says so"));
        if let Some(Fault::Before(class)) = due {
            return refused(class);
        }
        change()?;
        self.asked.lock().unwrap().push(what);
        match due {
            Some(Fault::After(class)) => refused(class),
            _ => Ok(()),
        }
    }
}

impl Store for Fickle {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn put(&self, key: &str, body: Body<'_>, metadata: &Metadata, mode: Put) -> Outcome<()> {
        let put = || self.inner.put(key, body, metadata, mode);
        self.change(format!("put {key}"), put)
    }

    fn get(&self, key: &str) -> Outcome<(Object, Box<dyn Read + Send>)> {
        self.inner.get(key)
    }

    fn look(&self, key: &str) -> Outcome<Option<Object>> {
        self.inner.look(key)
    }

    fn list(&self, folder: &str, visit: &mut dyn FnMut(Entry) -> Outcome<()>) -> Outcome<()> {
        let unlisted = self.unlisted.lock().unwrap().clone();
        self.inner.list(folder, &mut |entry| {
            if unlisted.as_ref() == Some(&entry.key) {
                return Ok(());
            }
            visit(entry)
        })
    }

    fn noted_sha256(&self, key: &str) -> Outcome<Option<String>> {
        self.inner.noted_sha256(key)
    }

    fn delete(&self, key: &str) -> Outcome<()> {
        if let Some(class) = self.locked.lock().unwrap().get(key) {
            self.asked.lock().unwrap().push(format!("refuse {key}"));
            return Err(Failure::new(*class, "the object is locked"));
        }
        self.change(format!("delete {key}"), || self.inner.delete(key))
    }

    /// As one request, which tells of a lock and not of which key.
    fn delete_all(&self, keys: &[String]) -> Outcome<()> {
        let locked = self.locked.lock().unwrap().clone();
        if let Some(class) = keys.iter().find_map(|key| locked.get(key)) {
            return Err(Failure::new(*class, "some objects are locked"));
        }
        keys.iter().try_for_each(|key| self.delete(key))
    }
}

/// The first page of WAL `number` of this cluster, as far as it tells that.
pub fn first_page(system_id: u64, number: u64) -> Vec<u8> {
    page(1, number << 24, system_id, 16 << 20)
}

/// A segment of 1 MiB, or its first `bytes`, of cluster 7.
pub fn small_segment(timeline: u32, address: u64, bytes: usize) -> Vec<u8> {
    let mut segment = page(timeline, address, 7, 1 << 20);
    segment.resize(bytes, 0x55);
    segment
}

fn page(timeline: u32, address: u64, system_id: u64, segment_bytes: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(0xD110_u16.to_ne_bytes());
    bytes.extend(2_u16.to_ne_bytes());
    bytes.extend(timeline.to_ne_bytes());
    bytes.extend(address.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(system_id.to_ne_bytes());
    bytes.extend(segment_bytes.to_ne_bytes());
    bytes.extend(8192_u32.to_ne_bytes());
    bytes
}
