//! Which segments are fetched ahead, for whom, and what became of them: the bookkeeping alone.
//!
//! A reader is a server that recovers. It asks for one segment after the other; on the way to a
//! newer timeline it asks, of each segment, the newest timeline that has begun by the segment's
//! end (PostgreSQL `xlogrecovery.c`, `XLogFileReadAnyTLI`). Nobody says who asks, so a request
//! belongs to the reader that was expected to make it, or to a new one.
//!
//! An absence ends the look-ahead until its reader asks again, and is no answer to anybody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use machine::{Lsn, Segment, SegmentSize, Timeline};

use crate::pg::files::History;

/// A reader that has not asked for so long has ended, or needs nothing.
pub const SILENCE: Duration = Duration::from_secs(60);
/// On disk for one reader, however many segments are wished for; one segment is always allowed.
const BYTES_MAX: u64 = 1 << 30;
/// As many of the smallest segments.
const SEGMENTS_MAX: u32 = 1 << 10;

#[derive(Debug)]
pub struct Plan {
    /// So many segments for a reader, at most.
    segments_max: u32,
    readers_max: usize,
    /// Who asked last is last.
    readers: Vec<Reader>,
    files: BTreeMap<String, Stage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Underway,
    Ready,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// The segment of this name.
    Segment(String),
    /// The newest timeline after this one, if there is one.
    Histories(Timeline),
}

/// What came of a segment that was fetched ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    Whole,
    Absent,
    Failed,
}

#[derive(Debug)]
struct Reader {
    /// What it asked for last.
    at: Segment,
    size: SegmentSize,
    /// Of the timeline it is believed to be on the way to.
    history: Option<History>,
    asked: Instant,
    /// The number of a segment that could not be had: from there on nothing is begun.
    end: Option<u64>,
    look: Look,
}

/// Whether newer timelines are to be looked for: when a reader comes, and once more at an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Due,
    Done,
    DueAtEnd,
    DoneAtEnd,
}

impl Plan {
    pub fn new(segments_max: u32, readers_max: usize) -> Plan {
        Plan {
            segments_max: segments_max.min(SEGMENTS_MAX),
            readers_max,
            readers: Vec::new(),
            files: BTreeMap::new(),
        }
    }

    /// Whether this name is there or on its way.
    pub fn find(&self, name: &str) -> Option<Stage> {
        self.files.get(name).copied()
    }

    /// A file that is ready goes to whoever asked for it. Answers the files that are not wanted any
    /// more, which is so below, too.
    pub fn take(&mut self, name: &str, now: Instant) -> Vec<String> {
        self.files.remove(name);
        let mut readers = self.readers.iter().rev();
        let size = readers.find_map(|reader| {
            let segment = Segment::from_name(name, reader.size)?;
            self.expects(reader, segment).then_some(reader.size)
        });
        size.map_or_else(Vec::new, |size| self.asked(name, size, now))
    }

    /// A reader gets the segment `name` now, and will go on from there.
    pub fn asked(&mut self, name: &str, size: SegmentSize, now: Instant) -> Vec<String> {
        let Some(at) = Segment::from_name(name, size) else {
            return Vec::new();
        };
        let known = self.readers.iter().rposition(|reader| {
            reader.size == size && (reader.at == at || self.expects(reader, at))
        });
        let mut reader = match known {
            Some(known) => self.readers.remove(known),
            None => Reader {
                at,
                size,
                history: None,
                asked: now,
                end: None,
                look: Look::Due,
            },
        };
        reader.at = at;
        reader.asked = now;
        reader.end = None;
        if reader.look != Look::Due {
            reader.look = Look::Done;
        }
        self.readers.push(reader);
        let surplus = self.readers.len().saturating_sub(self.readers_max);
        self.readers.drain(..surplus);
        self.sweep()
    }

    /// What to fetch next: the nearest first, of the reader that asked last.
    pub fn begin(&mut self) -> Option<Job> {
        for reader in self.readers.iter_mut().rev() {
            reader.look = match reader.look {
                Look::Due => Look::Done,
                Look::DueAtEnd => Look::DoneAtEnd,
                Look::Done | Look::DoneAtEnd => continue,
            };
            let known = reader.history.as_ref().map(|history| history.timeline);
            let after = known.map_or(reader.at.timeline, |known| known.max(reader.at.timeline));
            return Some(Job::Histories(after));
        }
        let name = self.segment()?;
        self.files.insert(name.clone(), Stage::Underway);
        Some(Job::Segment(name))
    }

    fn segment(&self) -> Option<String> {
        for ahead in 1..=u64::from(self.segments_max) {
            for reader in self.readers.iter().rev() {
                let segment = reader.on(reader.at.number.saturating_add(ahead));
                let name = segment.name(reader.size);
                let beyond = reader.end.is_some_and(|end| segment.number >= end);
                if !beyond && self.expects(reader, segment) && !self.files.contains_key(&name) {
                    return Some(name);
                }
            }
        }
        None
    }

    /// The end of a [`Job::Segment`]. Whether the file is kept.
    pub fn fetched(&mut self, name: &str, got: Got) -> bool {
        let wanted = self.is_wanted(name);
        if got == Got::Whole && wanted {
            self.files.insert(name.to_owned(), Stage::Ready);
            return true;
        }
        self.files.remove(name);
        if got == Got::Whole {
            return false;
        }
        let segments_max = self.segments_max;
        for reader in &mut self.readers {
            let segment = Segment::from_name(name, reader.size);
            let Some(segment) = segment.filter(|s| reader.expects(*s, segments_max)) else {
                continue;
            };
            let end = reader.end.unwrap_or(u64::MAX);
            reader.end = Some(end.min(segment.number));
            if got == Got::Absent && reader.look == Look::Done {
                reader.look = Look::DueAtEnd;
            }
        }
        false
    }

    /// The end of a [`Job::Histories`] that found one. It counts for whoever is on the way to its
    /// timeline.
    pub fn learned(&mut self, history: &History) -> Vec<String> {
        for reader in &mut self.readers {
            let leads = timeline_of(history, reader.at.number, reader.size) == reader.at.timeline;
            if leads && reader.history.as_ref() != Some(history) {
                reader.history = Some(history.clone());
                reader.end = None;
            }
        }
        self.sweep()
    }

    pub fn expire(&mut self, now: Instant) -> Vec<String> {
        self.readers
            .retain(|reader| now.saturating_duration_since(reader.asked) < SILENCE);
        self.sweep()
    }

    /// Nobody reads.
    pub fn is_idle(&self) -> bool {
        self.readers.is_empty()
    }

    /// Nothing is under way or to be begun.
    #[cfg(test)]
    pub fn is_settled(&self) -> bool {
        let underway = self.files.values().any(|stage| *stage == Stage::Underway);
        let due = |reader: &Reader| matches!(reader.look, Look::Due | Look::DueAtEnd);
        let due = self.readers.iter().any(due);
        !underway && !due && self.segment().is_none()
    }

    /// A file under way stays in the book until its fetch ends: two would write the same file.
    fn sweep(&mut self) -> Vec<String> {
        let ready = self
            .files
            .iter()
            .filter(|(_, stage)| **stage == Stage::Ready);
        let useless = ready.filter(|(name, _)| !self.is_wanted(name));
        let useless: Vec<String> = useless.map(|(name, _)| name.clone()).collect();
        for name in &useless {
            self.files.remove(name);
        }
        useless
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.readers.iter().any(|reader| {
            let segment = Segment::from_name(name, reader.size);
            segment.is_some_and(|segment| self.expects(reader, segment))
        })
    }

    fn expects(&self, reader: &Reader, segment: Segment) -> bool {
        reader.expects(segment, self.segments_max)
    }
}

impl Reader {
    /// Which timeline it will ask for that segment.
    fn on(&self, number: u64) -> Segment {
        let timeline = match &self.history {
            Some(history) => timeline_of(history, number, self.size),
            None => self.at.timeline,
        };
        Segment::new(timeline, number)
    }

    fn expects(&self, segment: Segment, segments_max: u32) -> bool {
        let room = (BYTES_MAX / self.size.bytes()).max(1);
        let last = self
            .at
            .number
            .saturating_add(room.min(u64::from(segments_max)));
        let ahead = segment.number > self.at.number && segment.number <= last;
        ahead && self.on(segment.number) == segment
    }
}

/// The newest timeline that has begun where the segment ends.
fn timeline_of(history: &History, number: u64, size: SegmentSize) -> Timeline {
    let end = Segment::new(history.timeline, number).end(size);
    history.timeline_at(Lsn(end.0.saturating_sub(1)))
}

#[cfg(test)]
mod tests;
