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

/// What a backup needs, whatever anybody believes of it.
#[derive(Clone, Debug)]
pub struct Needs {
    pub parts: u32,
    pub start: Segment,
    pub end: Segment,
}

#[derive(Default)]
pub struct Truth {
    pub objects: BTreeMap<String, (Vec<u8>, Metadata)>,
    pub needs: BTreeMap<BackupName, Needs>,
}

#[derive(Clone, Default)]
pub struct Shelf(Arc<Mutex<Truth>>);

pub fn key(file: &File) -> String {
    format!("{PREFIX}/{}", file.key(SIZE))
}

impl Truth {
    pub fn has(&self, file: &File) -> bool {
        self.objects.contains_key(&key(file))
    }

    pub fn wal(&self, segment: Segment) -> bool {
        self.has(&File::Wal(segment))
    }

    pub fn add(&mut self, file: &File, metadata: Metadata) {
        self.objects.insert(key(file), (b"x".to_vec(), metadata));
    }

    /// A restore of this backup to its own end would find everything.
    pub fn restorable(&self, name: &BackupName) -> bool {
        let Some(needs) = self.needs.get(name) else {
            return false;
        };
        let part = |number| File::Part {
            backup: name.clone(),
            number,
        };
        let wal = needs.start.number..=needs.end.number;
        self.has(&File::Main(name.clone()))
            && (1..=needs.parts).all(|number| self.has(&part(number)))
            && wal
                .map(|number| Segment::new(needs.start.timeline, number))
                .all(|segment| self.wal(segment))
    }

    pub fn all_restorable(&self) -> BTreeSet<BackupName> {
        let names = self.needs.keys();
        names
            .filter(|name| self.restorable(name))
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
        let truth = self.truth();
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
