//! The store of a history: objects in memory, and what each backup really consists of.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read};
use std::sync::{Arc, Mutex, MutexGuard};

use machine::{BackupName, Class, File, Segment, SegmentSize};
use pghoard::store::{Body, Entry, Metadata, Object, Put, Store};
use pghoard::{Failure, Outcome};

use crate::store::entry;

pub const SIZE: SegmentSize = SegmentSize::DEFAULT;
pub const PREFIX: &str = "main";

/// What every object holds, and what is left of it once it is damaged.
const WHOLE: &[u8] = b"x";
const DAMAGED: &[u8] = b"y";

/// What a backup needs, whatever anybody believes of it.
#[derive(Clone, Debug)]
pub struct Needs {
    pub parts: u32,
    pub start: Segment,
    pub end: Segment,
    /// By the true time.
    pub ended_ms: u64,
}

#[derive(Default)]
pub struct Truth {
    pub objects: BTreeMap<String, (Vec<u8>, Metadata)>,
    pub needs: BTreeMap<BackupName, Needs>,
    /// How often the content of an object was asked for.
    pub reads: u64,
}

#[derive(Clone, Default)]
pub struct Shelf(Arc<Mutex<Truth>>);

pub fn key(file: &File) -> String {
    format!("{PREFIX}/{}", file.key(SIZE))
}

/// Keys of objects whose damage is known: a mark in the store says so.
pub type Marked = BTreeSet<String>;

impl Truth {
    pub fn has(&self, file: &File) -> bool {
        self.objects.contains_key(&key(file))
    }

    pub fn has_wal(&self) -> bool {
        let folder = format!("{PREFIX}/xlog/");
        self.objects.keys().any(|key| key.starts_with(&folder))
    }

    pub fn add(&mut self, file: &File, metadata: Metadata) {
        self.objects.insert(key(file), (WHOLE.to_vec(), metadata));
    }

    /// Whether there was something whole to damage.
    pub fn damage(&mut self, key: &str) -> bool {
        let object = self.objects.get_mut(key);
        let whole = object.filter(|(bytes, _)| bytes == WHOLE);
        whole.is_some_and(|(bytes, _)| {
            *bytes = DAMAGED.to_vec();
            true
        })
    }

    pub fn damaged(&self, key: &str) -> bool {
        let object = self.objects.get(key);
        object.is_some_and(|(bytes, _)| bytes == DAMAGED)
    }

    /// All damage, whoever knows of it.
    pub fn all_damaged(&self) -> Marked {
        let keys = self.objects.keys();
        keys.filter(|key| self.damaged(key)).cloned().collect()
    }

    pub fn marked(&self) -> Marked {
        let noted = |key: &str| {
            let below = key.strip_prefix("main/").unwrap_or(key);
            let mark = format!("{PREFIX}/mark/damaged_{}", below.replace('/', "_"));
            self.objects.contains_key(&mark)
        };
        let keys = self.objects.keys();
        let damaged = keys.filter(|key| self.damaged(key) && noted(key));
        damaged.cloned().collect()
    }

    /// It is there, and nobody can know that it is damaged.
    pub fn good(&self, file: &File, marked: &Marked) -> bool {
        let key = key(file);
        self.objects.contains_key(&key) && !(self.damaged(&key) && marked.contains(&key))
    }

    /// Every object that a restore of this backup to its own end reads.
    pub fn files(&self, name: &BackupName) -> Vec<File> {
        let Some(needs) = self.needs.get(name) else {
            return Vec::new();
        };
        let part = |number| File::Part {
            backup: name.clone(),
            number,
        };
        let wal = needs.start.number..=needs.end.number;
        let wal = wal.map(|number| File::Wal(Segment::new(needs.start.timeline, number)));
        let parts = (1..=needs.parts).map(part);
        [File::Main(name.clone())]
            .into_iter()
            .chain(parts)
            .chain(wal)
            .collect()
    }

    /// A restore of this backup to its own end would find everything.
    pub fn restorable(&self, name: &BackupName, marked: &Marked) -> bool {
        // The main object first: most backups that were ever taken lack it.
        self.needs.contains_key(name)
            && self.has(&File::Main(name.clone()))
            && self.files(name).iter().all(|file| self.good(file, marked))
    }

    pub fn all_restorable(&self, marked: &Marked) -> BTreeSet<BackupName> {
        let names = self.needs.keys();
        names
            .filter(|name| self.restorable(name, marked))
            .cloned()
            .collect()
    }
}

impl Shelf {
    pub fn truth(&self) -> MutexGuard<'_, Truth> {
        self.0.lock().unwrap()
    }
}

impl Store for Shelf {
    fn name(&self) -> String {
        "simulated".into()
    }

    fn put(&self, key: &str, body: Body<'_>, metadata: &Metadata, mode: Put) -> Outcome<()> {
        let Body::Bytes(bytes) = body else {
            return Err(Failure::new(Class::Unsupported, "not in memory"));
        };
        let mut truth = self.truth();
        if mode == Put::Create && truth.objects.contains_key(key) {
            return Err(Failure::new(Class::Conflict, format!("'{key}' exists")));
        }
        let object = (bytes.to_vec(), metadata.clone());
        truth.objects.insert(key.into(), object);
        Ok(())
    }

    fn get(&self, key: &str) -> Outcome<(Object, Box<dyn Read + Send>)> {
        let absent = || Failure::new(Class::NotFound, format!("'{key}' does not exist"));
        let object = self.look(key)?.ok_or_else(absent)?;
        let mut truth = self.truth();
        truth.reads += 1;
        let (bytes, _) = truth.objects.get(key).ok_or_else(absent)?;
        Ok((object, Box::new(Cursor::new(bytes.clone()))))
    }

    fn look(&self, key: &str) -> Outcome<Option<Object>> {
        let truth = self.truth();
        Ok(truth.objects.get(key).map(|(bytes, metadata)| Object {
            entry: entry(key, bytes),
            metadata: metadata.clone(),
        }))
    }

    fn list(&self, folder: &str, visit: &mut dyn FnMut(Entry) -> Outcome<()>) -> Outcome<()> {
        let below = format!("{folder}/");
        let truth = self.truth();
        let here = truth.objects.range(below.clone()..);
        let here = here.take_while(|(key, _)| key.starts_with(&below));
        let entries: Vec<_> = here.map(|(key, (bytes, _))| entry(key, bytes)).collect();
        drop(truth);
        entries.into_iter().try_for_each(visit)
    }

    fn delete(&self, key: &str) -> Outcome<()> {
        self.truth().objects.remove(key);
        Ok(())
    }
}
