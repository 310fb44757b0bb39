//! How far verification has come: what the pass that runs has looked at, and what it found.
//!
//! A pass looks at each object once. WAL and chunks are kept as intervals, so that the state stays
//! small; what was replaced or deleted is forgotten and, where it comes back, looked at again.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::event::{Event, Millis, Range};
use crate::file::{BackupName, File};
use crate::runs::Runs;
use crate::wal::{Segment, Timeline};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scrub {
    pub pass: Option<Pass>,
    /// The pass before it.
    pub last: Option<Done>,
    /// What nobody could judge, and why.
    pub trouble: Option<Trouble>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pass {
    pub started_at: Millis,
    /// Objects there were when it began.
    pub objects: u64,
    pub looked: Objects,
    pub counts: Counts,
    /// When something was last looked at.
    pub at: Option<Millis>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    pub good: u64,
    /// Of the good ones, judged without the private key.
    pub partly: u64,
    pub damaged: u64,
    pub unjudged: u64,
    /// As stored, of the good ones.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub started_at: Millis,
    /// When it last looked at something.
    pub ended_at: Millis,
    pub counts: Counts,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub since: Millis,
    /// When something last could not be judged.
    pub at: Millis,
    pub class: Class,
    pub message: String,
    pub objects: Objects,
}

/// A set of stored objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Objects {
    pub wal: BTreeMap<Timeline, Runs>,
    pub parts: BTreeMap<BackupName, Runs>,
    /// All that is neither a full segment nor a chunk.
    pub files: BTreeSet<File>,
}

impl Scrub {
    pub fn apply(&mut self, event: &Event, at: Millis) {
        match event {
            Event::ScrubStarted { objects } => self.begin(*objects, at),
            Event::Verified {
                wal,
                files,
                bytes,
                partly,
            } => {
                self.relieve(wal, files);
                let count = self.look(wal, files, at);
                if let Some(pass) = &mut self.pass {
                    let counts = &mut pass.counts;
                    counts.good = counts.good.saturating_add(count);
                    counts.partly = counts.partly.saturating_add(*partly);
                    counts.bytes = counts.bytes.saturating_add(*bytes);
                }
            }
            Event::FoundDamaged { file, .. } => {
                let count = self.look(&[], core::slice::from_ref(file), at);
                if let Some(pass) = &mut self.pass {
                    pass.counts.damaged = pass.counts.damaged.saturating_add(count);
                }
            }
            Event::Unverified {
                wal,
                files,
                class,
                message,
            } => {
                let count = self.look(wal, files, at);
                if let Some(pass) = &mut self.pass {
                    pass.counts.unjudged = pass.counts.unjudged.saturating_add(count);
                }
                // What went away meanwhile is no trouble: a listing tells of it.
                if *class != Class::NotFound {
                    self.worry(wal, files, *class, message, at);
                }
            }
            Event::Stored { file, .. } => self.forget(&[], core::slice::from_ref(file)),
            Event::Missing { wal, files } | Event::Deleted { wal, files } => {
                self.forget(wal, files);
            }
            _ => {}
        }
    }

    /// No object was last looked at before this, while `left` of the pass are to come.
    pub fn floor(&self, left: u64) -> Option<Millis> {
        match (left, &self.pass) {
            (0, Some(pass)) => Some(pass.started_at),
            _ => self.last.map(|last| last.started_at),
        }
    }

    fn begin(&mut self, objects: u64, at: Millis) {
        self.last = self.pass.take().map(|pass| Done {
            started_at: pass.started_at,
            ended_at: pass.at.unwrap_or(pass.started_at),
            counts: pass.counts,
        });
        self.pass = Some(Pass {
            started_at: at,
            objects,
            ..Pass::default()
        });
    }

    /// How many of these were not looked at before.
    fn look(&mut self, wal: &[Range], files: &[File], at: Millis) -> u64 {
        let pass = self.pass.get_or_insert_with(|| Pass {
            started_at: at,
            ..Pass::default()
        });
        pass.at = Some(at);
        let before = pass.looked.count();
        wal.iter().for_each(|range| pass.looked.add_range(range));
        files.iter().for_each(|file| pass.looked.add(file));
        pass.looked.count().saturating_sub(before)
    }

    fn worry(&mut self, wal: &[Range], files: &[File], class: Class, message: &str, at: Millis) {
        let trouble = self.trouble.get_or_insert_with(|| Trouble {
            since: at,
            at,
            class,
            message: message.into(),
            objects: Objects::default(),
        });
        trouble.at = at;
        wal.iter()
            .for_each(|range| trouble.objects.add_range(range));
        files.iter().for_each(|file| trouble.objects.add(file));
    }

    /// One that could not be judged can be now: so, probably, can the others.
    fn relieve(&mut self, wal: &[Range], files: &[File]) {
        let over = self.trouble.as_ref().is_some_and(|trouble| {
            let objects = &trouble.objects;
            wal.iter().any(|range| objects.meets(range)) || files.iter().any(|f| objects.has(f))
        });
        let trouble = self.trouble.take_if(|_| over);
        if let (Some(trouble), Some(pass)) = (trouble, &mut self.pass) {
            pass.looked.subtract(&trouble.objects);
        }
    }

    fn forget(&mut self, wal: &[Range], files: &[File]) {
        let looked = self.pass.as_mut().map(|pass| &mut pass.looked);
        let worried = self.trouble.as_mut().map(|trouble| &mut trouble.objects);
        for objects in looked.into_iter().chain(worried) {
            wal.iter().for_each(|range| objects.remove_range(range));
            files.iter().for_each(|file| objects.remove(file));
        }
        self.trouble.take_if(|trouble| trouble.objects.count() == 0);
    }
}

impl Objects {
    pub fn has(&self, file: &File) -> bool {
        match file {
            File::Wal(segment) => {
                let runs = self.wal.get(&segment.timeline);
                runs.is_some_and(|runs| runs.contains(segment.number))
            }
            File::Part { backup, number } => {
                let runs = self.parts.get(backup);
                runs.is_some_and(|runs| runs.contains(u64::from(*number)))
            }
            File::Partial(_) | File::History(_) | File::Main(_) => self.files.contains(file),
        }
    }

    pub fn add(&mut self, file: &File) {
        match file {
            File::Wal(segment) => self.add_range(&one(*segment)),
            File::Part { backup, number } => {
                let runs = self.parts.entry(backup.clone()).or_default();
                runs.insert(u64::from(*number));
            }
            File::Partial(_) | File::History(_) | File::Main(_) => {
                self.files.insert(file.clone());
            }
        }
    }

    pub fn remove(&mut self, file: &File) {
        match file {
            File::Wal(segment) => self.remove_range(&one(*segment)),
            File::Part { backup, number } => {
                if let Some(runs) = self.parts.get_mut(backup) {
                    runs.remove(u64::from(*number));
                }
                self.parts.retain(|_, runs| !runs.is_empty());
            }
            File::Partial(_) | File::History(_) | File::Main(_) => {
                self.files.remove(file);
            }
        }
    }

    pub fn add_range(&mut self, range: &Range) {
        let runs = self.wal.entry(range.timeline).or_default();
        runs.insert_range(range.first, range.last);
    }

    pub fn remove_range(&mut self, range: &Range) {
        if let Some(runs) = self.wal.get_mut(&range.timeline) {
            runs.remove_range(range.first, range.last);
        }
        self.wal.retain(|_, runs| !runs.is_empty());
    }

    pub fn count(&self) -> u64 {
        let runs = self.wal.values().chain(self.parts.values());
        let files = u64::try_from(self.files.len()).unwrap_or(u64::MAX);
        runs.fold(files, |sum, runs| sum.saturating_add(runs.count()))
    }

    fn meets(&self, range: &Range) -> bool {
        let runs = self.wal.get(&range.timeline);
        runs.is_some_and(|runs| {
            let mut runs = runs.intervals();
            runs.any(|run| *run.start() <= range.last && *run.end() >= range.first)
        })
    }

    fn subtract(&mut self, other: &Objects) {
        for (timeline, runs) in &other.wal {
            for run in runs.intervals() {
                self.remove_range(&Range {
                    timeline: *timeline,
                    first: *run.start(),
                    last: *run.end(),
                });
            }
        }
        for (backup, runs) in &other.parts {
            if let Some(ours) = self.parts.get_mut(backup) {
                for run in runs.intervals() {
                    ours.remove_range(*run.start(), *run.end());
                }
            }
        }
        self.parts.retain(|_, runs| !runs.is_empty());
        self.files.retain(|file| !other.files.contains(file));
    }
}

fn one(segment: Segment) -> Range {
    Range {
        timeline: segment.timeline,
        first: segment.number,
        last: segment.number,
    }
}
