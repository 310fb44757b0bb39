//! Judgements that outlive the log: each is an object of its own in the site's store, written
//! before it is confirmed, so that a log rebuilt from a listing answers as the lost one did.
//!
//! Holds are PGHoard's preservation requests (`preservation_request/`, metadata only), everything
//! else lies under `mark/` as a small JSON object. The name says what is marked, so that marking
//! twice is one mark.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::event::{Event, Millis, Range};
use crate::file::{BackupName, File};
use crate::wal::{Segment, SegmentSize, Timeline};

pub mod lease;

/// The site's marks as the log knows them: by object key below the prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Marks {
    pub all: BTreeMap<String, Mark>,
    /// When the store's marks were last read as a whole.
    pub read_at: Option<Millis>,
}

impl Marks {
    pub fn apply(&mut self, event: &Event, at: Millis) {
        match event {
            Event::Marked { key, mark } => drop(self.all.insert(key.clone(), mark.clone())),
            Event::Unmarked { key } => drop(self.all.remove(key)),
            Event::MarksRead { .. } => self.read_at = Some(at),
            _ => {}
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// This backup must not go. Without an end it stays until a person releases it.
    Hold {
        backup: BackupName,
        reason: String,
        by: String,
        until: Option<Millis>,
    },
    /// A person knows that this is lost: it raises no alarm any more.
    HoleAcknowledged {
        hole: Hole,
        reason: String,
        by: String,
        at: Millis,
    },
    /// WAL that retention let go between backups that stay: no hole.
    WalRetired { range: Range },
    /// Verification found the stored object damaged: it counts as absent.
    Damaged {
        file: File,
        detail: String,
        at: Millis,
    },
}

/// What a restore would miss.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hole {
    Wal(Range),
    History(Timeline),
}

impl Hole {
    /// As a person names it: `FIRST-LAST` by segments, or the history file.
    pub fn name(&self, size: SegmentSize) -> String {
        match self {
            Hole::Wal(range) => range.name(size),
            Hole::History(timeline) => timeline.history_name(),
        }
    }

    pub fn from_name(name: &str, size: SegmentSize) -> Option<Hole> {
        if let Some(timeline) = Timeline::from_history_name(name) {
            return Some(Hole::History(timeline));
        }
        let (first, last) = name.split_once('-')?;
        let first = Segment::from_name(first, size)?;
        let last = Segment::from_name(last, size)?;
        let range = Range {
            timeline: first.timeline,
            first: first.number,
            last: last.number,
        };
        let rising = first.timeline == last.timeline && first.number <= last.number;
        rising.then_some(Hole::Wal(range))
    }

    /// Whether all of `other` is in it.
    pub fn covers(&self, other: &Hole) -> bool {
        match (self, other) {
            (Hole::Wal(a), Hole::Wal(b)) => {
                a.timeline == b.timeline && a.first <= b.first && b.last <= a.last
            }
            (Hole::History(a), Hole::History(b)) => a == b,
            (Hole::Wal(_), Hole::History(_)) | (Hole::History(_), Hole::Wal(_)) => false,
        }
    }
}

/// Folders of marks below a site's prefix.
pub const HOLDS: &str = "preservation_request";
pub const MARKS: &str = "mark";

impl Mark {
    /// The object's key below the site's prefix. A hold of ours is one per backup and author.
    pub fn key(&self, size: SegmentSize) -> String {
        match self {
            Mark::Hold { backup, by, .. } => format!("{HOLDS}/{backup}_hold_{}", plain(by)),
            Mark::HoleAcknowledged {
                hole: Hole::Wal(range),
                ..
            } => format!("{MARKS}/hole_{}", range.name(size)),
            Mark::HoleAcknowledged {
                hole: Hole::History(timeline),
                ..
            } => format!("{MARKS}/hole_{}", timeline.history_name()),
            Mark::WalRetired { range } => format!("{MARKS}/retired_{}", range.name(size)),
            Mark::Damaged { file, .. } => {
                format!("{MARKS}/damaged_{}", file.key(size).replace('/', "_"))
            }
        }
    }
}

/// Letters, digits, dots and dashes of a name that a person gave.
fn plain(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    text.chars()
        .map(|c| if safe(c) { c } else { '_' })
        .collect()
}
