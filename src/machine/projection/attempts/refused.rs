//! What the store would not delete: locked, held there, or not ours to delete (S-66). It stays out
//! of every deletion for a day and is asked for again then, for ever.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::event::{Event, Millis, Range};
use crate::file::{BackupName, File};
use crate::projection::marks::Mark;
use crate::runs::Runs;
use crate::wal::Timeline;

/// Locks end by days, not by minutes.
pub const REST_MS: u64 = 86_400_000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refused {
    /// Since when there has been something.
    pub since: Millis,
    /// The newest answer.
    pub message: String,
    pub backups: BTreeMap<BackupName, Kept>,
    pub wal: BTreeMap<Timeline, Runs>,
    /// Keys below the site's prefix.
    pub marks: BTreeSet<String>,
    /// When WAL and marks, which go together, were last asked for as a whole.
    pub asked_at: Millis,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    pub asked_at: Millis,
    /// What is left of it. None: its main object would not go, and so all of it is there.
    pub parts: Runs,
}

pub(super) fn apply(refused: &mut Option<Refused>, event: &Event, at: Millis) {
    if let Event::DeletionRefused {
        wal,
        files,
        marks,
        message,
        ..
    } = event
    {
        let since = at;
        let refused = refused.get_or_insert_with(|| Refused {
            since,
            ..Refused::default()
        });
        refused.message.clone_from(message);
        refused.add(wal, files, marks, at);
    }
    let Some(known) = refused else { return };
    match event {
        Event::Deleted { wal, files } => {
            wal.iter().for_each(|range| known.release(range));
            // What is still refused of it is told after this.
            known
                .backups
                .retain(|name, _| !files.contains(&File::Main(name.clone())));
        }
        Event::Missing { wal, .. } => wal.iter().for_each(|range| known.release(range)),
        Event::Unmarked { key } => drop(known.marks.remove(key)),
        // It may stay now: there is nothing to ask for.
        Event::Marked {
            mark: Mark::Hold { backup, .. },
            ..
        } => known
            .backups
            .retain(|name, kept| name != backup || !kept.parts.is_empty()),
        _ => {}
    }
    refused.take_if(|refused| refused.count() == 0);
}

impl Refused {
    fn add(&mut self, wal: &[Range], files: &[File], marks: &[String], at: Millis) {
        // Stragglers rest with the others, else these would never be due.
        if !(wal.is_empty() && marks.is_empty()) && self.wal_due(at) {
            self.asked_at = at;
        }
        for range in wal {
            let runs = self.wal.entry(range.timeline).or_default();
            runs.insert_range(range.first, range.last);
        }
        self.marks.extend(marks.iter().cloned());
        for file in files {
            let (File::Main(backup) | File::Part { backup, .. }) = file else {
                continue;
            };
            let kept = self.backups.entry(backup.clone()).or_default();
            kept.asked_at = at;
            if let File::Part { number, .. } = file {
                kept.parts.insert(u64::from(*number));
            }
        }
    }

    fn release(&mut self, range: &Range) {
        if let Some(runs) = self.wal.get_mut(&range.timeline) {
            runs.remove_range(range.first, range.last);
        }
        self.wal.retain(|_, runs| !runs.is_empty());
    }

    /// Whether WAL and marks may be asked for again.
    fn wal_due(&self, now: Millis) -> bool {
        now.since(self.asked_at) >= REST_MS
    }

    /// What of these may be asked for.
    pub fn due(&self, ranges: Vec<Range>, now: Millis) -> Vec<Range> {
        if self.wal_due(now) {
            return ranges;
        }
        let none = Runs::default();
        let rest = |range: Range| {
            let kept = self.wal.get(&range.timeline).unwrap_or(&none);
            let free = kept.gaps(range.first, range.last).into_iter();
            free.map(move |gap| Range {
                timeline: range.timeline,
                first: *gap.start(),
                last: *gap.end(),
            })
        };
        ranges.into_iter().flat_map(rest).collect()
    }

    pub fn mark_rests(&self, key: &String, now: Millis) -> bool {
        self.marks.contains(key) && !self.wal_due(now)
    }

    pub fn backup_rests(&self, backup: &BackupName, now: Millis) -> bool {
        let kept = self.backups.get(backup);
        kept.is_some_and(|kept| now.since(kept.asked_at) < REST_MS)
    }

    pub fn segments(&self) -> u64 {
        let runs = self.wal.values();
        runs.fold(0, |sum, runs| sum.saturating_add(runs.count()))
    }

    /// Objects, but a backup is one however many it has.
    pub fn count(&self) -> u64 {
        let others = self.backups.len().saturating_add(self.marks.len());
        let others = u64::try_from(others).unwrap_or(u64::MAX);
        self.segments().saturating_add(others)
    }

    /// When something is next asked for.
    pub fn next(&self) -> Millis {
        let others = !(self.wal.is_empty() && self.marks.is_empty());
        let others = others.then_some(self.asked_at);
        let backups = self.backups.values().map(|kept| kept.asked_at);
        backups
            .chain(others)
            .min()
            .unwrap_or_default()
            .plus(REST_MS)
    }
}
