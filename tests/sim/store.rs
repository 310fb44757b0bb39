//! The object store: fails before and after succeeding, loses objects, and checks at every change
//! that whoever lists it at this instant sees only whole backups.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read};
use std::sync::{Arc, Mutex, MutexGuard};

use machine::{BackupName, Class, File, Segment};
use pghoard::codec::decoder;
use pghoard::codec::keys::Keyring;
use pghoard::journal::chunk;
use pghoard::store::{Body, Entry, Metadata, Object, Put, Store};
use pghoard::work::lease;
use pghoard::{Failure, Outcome};

use crate::fate::{Fate, Fault};
use crate::server::SIZE;

pub const PREFIX: &str = "main";

/// What a backup really consists of, whatever anybody believes of it.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub parts: u32,
    pub start: Segment,
    pub end: Segment,
}

#[derive(Default)]
pub struct Truth {
    objects: BTreeMap<String, (Vec<u8>, Metadata)>,
    pub manifests: BTreeMap<BackupName, Manifest>,
    /// Where backups that run or wait for their WAL begin.
    pub live: BTreeMap<BackupName, Segment>,
    /// Objects whose bytes the store changed; what it lost counts them too.
    pub corrupt: BTreeSet<String>,
    /// Objects that the store itself lost.
    pub lost: BTreeSet<String>,
    /// Objects that we deleted and may not have said so yet.
    pub deleted: BTreeSet<String>,
    /// Segments that were stored at some time.
    pub ever: BTreeSet<Segment>,
    /// WAL put since the last look, as plain bytes.
    pub put: Vec<(Segment, Vec<u8>)>,
}

#[derive(Clone)]
pub struct SimStore {
    truth: Arc<Mutex<Truth>>,
    fate: Fate,
}

pub fn key(file: &File) -> String {
    format!("{PREFIX}/{}", file.key(SIZE))
}

impl Truth {
    pub fn has(&self, file: &File) -> bool {
        self.objects.contains_key(&key(file))
    }

    pub fn mains(&self) -> impl Iterator<Item = &BackupName> {
        let names = self.manifests.keys();
        names.filter(|name| self.has(&File::Main((*name).clone())))
    }

    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.objects.keys()
    }

    /// What a restore of this backup would miss.
    fn missing(&self, name: &BackupName, manifest: &Manifest) -> Vec<String> {
        let part = |number| File::Part {
            backup: name.clone(),
            number,
        };
        let parts = (1..=manifest.parts).map(part);
        let mut missing: Vec<_> = parts.filter(|file| !self.good(file)).collect();
        let wal = manifest.start.number..=manifest.end.number;
        let wal = wal.map(|n| File::Wal(Segment::new(manifest.start.timeline, n)));
        missing.extend(wal.filter(|file| !self.good(file)));
        missing.iter().map(key).collect()
    }

    fn good(&self, file: &File) -> bool {
        self.has(file) && !self.corrupt.contains(&key(file))
    }

    pub fn restorable(&self) -> BTreeSet<BackupName> {
        let whole = |name: &&BackupName| {
            let main = File::Main((*name).clone());
            self.good(&main) && self.missing(name, &self.manifests[*name]).is_empty()
        };
        self.mains().filter(whole).cloned().collect()
    }

    fn check(&self, fate: &Fate, after: &str) {
        for name in self.mains() {
            let missing = self.missing(name, &self.manifests[name]);
            if let Some(key) = missing.iter().find(|key| !self.lost.contains(*key)) {
                fate.violated(format!(
                    "I4: after {after}, '{name}' is listed without '{key}'"
                ));
            }
        }
    }

    /// WAL from the start of any backup on serves it; what lies behind its end may go where a mark
    /// says so.
    fn check_delete(&self, fate: &Fate, key: &str) {
        let Some(segment) = wal(key) else { return };
        let marked = self.retired(segment);
        let stored = self.mains().map(|name| (name, &self.manifests[name]));
        let stored = stored.filter(|(_, m)| !marked || segment.number <= m.end.number);
        let stored = stored.map(|(name, manifest)| (name, manifest.start));
        let live = self.live.iter().map(|(name, start)| (name, *start));
        for (name, start) in stored.chain(live) {
            if segment.number >= start.number {
                fate.violated(format!("I5: '{key}' is deleted and '{name}' needs it"));
            }
        }
    }
}

/// Marks and the lease are no backups.
fn ours(key: &str) -> bool {
    key.contains("/mark/") || key.ends_with(lease::KEY)
}

impl Truth {
    fn retired(&self, segment: Segment) -> bool {
        let prefix = format!("{PREFIX}/mark/retired_");
        let parsed = |name| Segment::from_name(name, SIZE);
        self.keys().any(|key| {
            let range = key.strip_prefix(&prefix).and_then(|r| r.split_once('-'));
            let range = range.and_then(|(a, b)| Some(parsed(a)?..=parsed(b)?));
            range.is_some_and(|range| range.contains(&segment))
        })
    }
}

fn wal(key: &str) -> Option<Segment> {
    let name = key.strip_prefix(PREFIX)?.strip_prefix("/xlog/")?;
    Segment::from_name(name, SIZE)
}

impl SimStore {
    /// The numbers of all exported events; `None` where the store lost some of them.
    pub fn exported(&self) -> Option<Vec<u64>> {
        let truth = self.truth();
        let folder = format!("{PREFIX}/{}", chunk::FOLDER);
        if truth.lost.iter().any(|key| key.starts_with(&folder)) {
            return None;
        }
        let mut seen = Vec::new();
        let chunks = truth.objects.iter();
        for (_, (bytes, metadata)) in chunks.filter(|(key, _)| key.starts_with(&folder)) {
            let size = u64::try_from(bytes.len()).unwrap();
            let source = Cursor::new(bytes.clone());
            let mut plain = decoder(source, size, metadata, &Keyring::default()).unwrap();
            let mut content = Vec::new();
            plain.read_to_end(&mut content).unwrap();
            chunk::open(&content, &mut |envelope| seen.push(envelope.seq)).unwrap();
        }
        Some(seen)
    }

    pub fn new(fate: Fate) -> SimStore {
        SimStore {
            truth: Arc::default(),
            fate,
        }
    }

    pub fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap()
    }

    pub fn lose_one(&self) {
        let mut truth = self.truth();
        // Half of the time what was stored last: there it hurts most.
        let newest = self.fate.chance(500);
        let keys = truth
            .objects
            .keys()
            .filter(|key| !newest || wal(key).is_some());
        let keys: Vec<_> = keys.rev().take(if newest { 4 } else { 10_000 }).collect();
        let place = usize::try_from(self.fate.below(u64::try_from(keys.len()).unwrap())).unwrap();
        let Some(key) = keys.get(place).map(|key| (*key).clone()) else {
            return;
        };
        self.fate.say(|| format!("  the store loses {key}"));
        truth.objects.remove(&key);
        truth.lost.insert(key);
    }

    /// Its size, its metadata and its name stay.
    pub fn corrupt_one(&self) {
        let mut truth = self.truth();
        let keys = truth.objects.keys().filter(|key| !ours(key));
        let keys: Vec<_> = keys.cloned().collect();
        let place = self.fate.below(u64::try_from(keys.len()).unwrap());
        let Some(key) = keys.get(usize::try_from(place).unwrap()) else {
            return;
        };
        self.fate.say(|| format!("  the store corrupts {key}"));
        truth.corrupt.insert(key.clone());
        truth.lost.insert(key.clone());
    }

    fn trouble(&self, fault: Fault, key: &str) -> Outcome<()> {
        self.fate.burn().map_err(|e| Failure::io(&e, key))?;
        if self.fate.strikes(fault) {
            return Err(Failure::new(
                Class::Network,
                format!("'{key}': the store failed"),
            ));
        }
        Ok(())
    }
}

impl Store for SimStore {
    fn name(&self) -> String {
        "simulated".into()
    }

    fn put(&self, key: &str, body: Body<'_>, metadata: &Metadata, mode: Put) -> Outcome<()> {
        self.trouble(Fault::StoreBefore, key)?;
        let Body::Bytes(bytes) = body else {
            return Err(Failure::new(
                Class::Unsupported,
                "a body that is not in memory",
            ));
        };
        let mut truth = self.truth();
        if mode == Put::Create && truth.objects.contains_key(key) {
            return Err(Failure::new(Class::Conflict, format!("'{key}' exists")));
        }
        let sound = truth.objects.contains_key(key) && !truth.corrupt.contains(key);
        if sound && !ours(key) {
            self.fate.violated(format!("I6: '{key}' is replaced"));
        }
        if let Some(segment) = wal(key) {
            let plain = decoder(
                Cursor::new(bytes.to_vec()),
                u64::try_from(bytes.len()).unwrap(),
                metadata,
                &pghoard::codec::keys::Keyring::default(),
            );
            let mut content = Vec::new();
            plain.unwrap().read_to_end(&mut content).unwrap();
            truth.ever.insert(segment);
            truth.put.push((segment, content));
        }
        truth.lost.remove(key);
        truth.corrupt.remove(key);
        truth.deleted.remove(key);
        let object = (bytes.to_vec(), metadata.clone());
        truth.objects.insert(key.into(), object);
        truth.check(&self.fate, &format!("put of '{key}'"));
        drop(truth);
        self.trouble(Fault::StoreAfter, key)
    }

    fn get(&self, key: &str) -> Outcome<(Object, Box<dyn Read + Send>)> {
        let absent = || Failure::new(Class::NotFound, format!("'{key}' does not exist"));
        let object = self.look(key)?.ok_or_else(absent)?;
        let truth = self.truth();
        let (bytes, _) = truth.objects.get(key).ok_or_else(absent)?;
        let mut bytes = bytes.clone();
        if let (Some(last), true) = (bytes.last_mut(), truth.corrupt.contains(key)) {
            *last ^= 1;
        }
        Ok((object, Box::new(Cursor::new(bytes))))
    }

    fn look(&self, key: &str) -> Outcome<Option<Object>> {
        self.trouble(Fault::StoreBefore, key)?;
        let truth = self.truth();
        Ok(truth.objects.get(key).map(|(bytes, metadata)| Object {
            entry: entry(key, bytes),
            metadata: metadata.clone(),
        }))
    }

    fn list(&self, folder: &str, visit: &mut dyn FnMut(Entry) -> Outcome<()>) -> Outcome<()> {
        self.trouble(Fault::StoreBefore, folder)?;
        let below = format!("{folder}/");
        let truth = self.truth();
        let here = truth.objects.range(below.clone()..);
        let here = here.take_while(|(key, _)| key.starts_with(&below));
        let entries: Vec<_> = here.map(|(key, (bytes, _))| entry(key, bytes)).collect();
        drop(truth);
        entries.into_iter().try_for_each(visit)
    }

    fn delete(&self, key: &str) -> Outcome<()> {
        self.trouble(Fault::StoreBefore, key)?;
        let mut truth = self.truth();
        if truth.objects.contains_key(key) {
            truth.check_delete(&self.fate, key);
            truth.objects.remove(key);
            truth.corrupt.remove(key);
            truth.deleted.insert(key.into());
            truth.check(&self.fate, &format!("delete of '{key}'"));
        }
        drop(truth);
        self.trouble(Fault::StoreAfter, key)
    }
}

pub fn entry(key: &str, bytes: &[u8]) -> Entry {
    Entry {
        key: key.into(),
        size_bytes: u64::try_from(bytes.len()).unwrap(),
        modified_ms: 0,
    }
}
