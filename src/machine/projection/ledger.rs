//! What is in the spool, what is in the store, and how far WAL is durable.
//!
//! The frontier is a stored number that only moves forward, never recomputed from the set of
//! stored segments: retention would pull it back, the acknowledgement would freeze and the
//! primary's disk would fill.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::breaks::{Rule, holds};
use crate::event::{Event, How, Millis, Origin, Range};
use crate::file::{BackupName, File};
use crate::projection::timelines::Timelines;
use crate::runs::Runs;
use crate::wal::{Lsn, Segment, SegmentSize, Timeline};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    pub wal: BTreeMap<Timeline, Runs>,
    pub histories: BTreeSet<Timeline>,
    pub partials: BTreeSet<Segment>,
    pub parts: BTreeMap<BackupName, Runs>,
    pub mains: BTreeSet<BackupName>,
    #[serde(with = "crate::state::pairs")]
    pub spool: BTreeMap<File, Entry>,
    /// Marked as damaged: not held, whatever the store has under the name.
    #[serde(with = "crate::state::pairs")]
    pub damaged: BTreeMap<File, Presence>,
    /// Names whose content differs from ours in the store: both kept, for a human.
    #[serde(with = "crate::state::pairs")]
    pub conflicts: BTreeMap<File, Millis>,
    /// The last segment of the contiguous durable WAL.
    pub frontier: Option<Segment>,
    /// The timeline that is received: where the frontier goes.
    pub toward: Option<Timeline>,
    /// WAL that a stream passed over because its server had it not any more. Whether a restore
    /// misses it is another question: `rule/holes.rs`.
    pub lost: Vec<Lost>,
    /// Retention decided to delete it.
    pub expired: BTreeMap<Timeline, Runs>,
    /// Objects of backups and histories that a listing showed gone, and since when.
    #[serde(with = "crate::state::pairs")]
    pub missing: BTreeMap<File, Millis>,
    pub segment_size: Option<SegmentSize>,
    pub reconciled_at: Option<Millis>,
    /// Objects of the last listing that nobody could judge.
    pub unknown: u64,
    pub last_stored_at: Option<Millis>,
}

/// A file in the spool. The id tells it from an earlier or later one of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub id: u64,
    pub bytes: u64,
    pub at: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub range: Range,
    pub since: Millis,
}

/// What the store has of a file that is marked as damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    There,
    /// Nothing any more.
    Gone,
    /// What was written since by an upload that had not heard of the damage.
    Replaced,
}

impl Ledger {
    #[allow(
        clippy::too_many_lines,
        reason = "exhaustive: a new kind must be thought of here"
    )]
    pub fn apply(&mut self, event: &Event, at: Millis, timelines: &Timelines) {
        match event {
            Event::ServerSeen(server) => {
                self.segment_size.get_or_insert(server.segment_size);
            }
            Event::StreamStarted { from, anchored, .. } => {
                self.begin(*from, *anchored, at, timelines);
            }
            Event::Spooled {
                file, entry, bytes, ..
            } => self.enspool(file, *entry, *bytes, at),
            Event::Stored {
                file, entry, how, ..
            } => self.store(file, *entry, *how, at),
            Event::Dropped { file, entry, .. } => self.unspool(file, Some(*entry)),
            Event::Conflicted { file, .. } => {
                self.conflicts.entry(file.clone()).or_insert(at);
            }
            Event::Found {
                segment_size,
                wal,
                files,
            } => {
                self.segment_size.get_or_insert(*segment_size);
                wal.iter().for_each(|range| self.gain(range));
                files.iter().for_each(|file| self.hold(file));
            }
            Event::WalPassed { wal } => self.pass(*wal, at),
            Event::Deleted { wal, files } => self.forget(wal, files),
            Event::Missing { wal, files } => {
                self.forget(wal, files);
                let gone = files.iter().map(|file| (file.clone(), at));
                self.missing.extend(gone);
            }
            Event::WalExpired { wal } => wal.iter().for_each(|range| self.expire(range)),
            Event::BackupFound(adopted) => self.hold(&File::Main(adopted.backup.clone())),
            Event::Unverified { wal, files, .. } => self.doubted(wal, files),
            Event::Reconciled { unknown, .. } => {
                self.reconciled_at = Some(at);
                self.unknown = *unknown;
                self.adopt_frontier();
            }
            Event::Started { .. }
            | Event::Stopped { .. }
            | Event::ConfigLoaded { .. }
            | Event::ConfigRefused { .. }
            | Event::ServerLost { .. }
            | Event::StreamEnded { .. }
            | Event::TimelineLearned { .. }
            | Event::ClusterLearned { .. }
            | Event::Switched { .. }
            | Event::LabelArchived { .. }
            | Event::BackupRequested { .. }
            | Event::BackupStarted { .. }
            | Event::BackupProgressed { .. }
            | Event::BackupFinished(_)
            | Event::BackupFailed { .. }
            | Event::BackupExpired { .. }
            | Event::Marked { .. }
            | Event::Unmarked { .. }
            | Event::MarksRead { .. }
            | Event::ScrubStarted { .. }
            | Event::Verified { .. }
            | Event::FoundDamaged { .. }
            | Event::HoleOpened { .. }
            | Event::HoleClosed { .. }
            | Event::HoleSought { .. }
            | Event::TaskFailed { .. }
            | Event::AlertAcknowledged { .. }
            | Event::Operated { .. }
            | Event::LogRebuilt { .. }
            | Event::ClockJumped { .. }
            | Event::LeaseSeen(_)
            | Event::Exported { .. }
            | Event::Compacted { .. }
            | Event::Carried(_)
            | Event::CompactionRefused { .. }
            | Event::DeletionRefused { .. } => {}
        }
        self.advance(timelines);
    }

    /// What was replaced, or seemed to be gone, was looked at.
    fn doubted(&mut self, wal: &[Range], files: &[File]) {
        for (file, presence) in &mut self.damaged {
            if within(file, wal) || files.contains(file) {
                *presence = Presence::There;
            }
        }
    }

    /// `archive_command` hands over WAL of this timeline: the cluster goes on there.
    pub(crate) fn follow(&mut self, timeline: Timeline) {
        self.toward = self.toward.max(Some(timeline));
    }

    /// As a stream that begins beyond the frontier.
    fn pass(&mut self, range: Range, since: Millis) {
        let last = Segment::new(range.timeline, range.last);
        if self.frontier.is_some_and(|frontier| frontier < last) {
            self.lost.push(Lost { range, since });
            self.frontier = Some(last);
        }
    }

    /// From now on the store's object of this name counts as absent.
    pub(crate) fn damage(&mut self, file: &File) {
        self.lose(file);
        self.damaged.insert(file.clone(), Presence::There);
    }

    /// The verdict is taken back.
    pub(crate) fn mend(&mut self, file: &File) {
        if self
            .damaged
            .remove(file)
            .is_some_and(|p| p != Presence::Gone)
        {
            self.hold(file);
        }
    }

    /// Whether the store has an object of that name, good or not.
    pub fn exists(&self, file: &File) -> bool {
        let held = match file {
            File::Wal(segment) => self.stored(*segment),
            File::Partial(segment) => self.partials.contains(segment),
            File::History(timeline) => self.histories.contains(timeline),
            File::Part { backup, number } => {
                let parts = self.parts.get(backup);
                parts.is_some_and(|parts| parts.contains(u64::from(*number)))
            }
            File::Main(backup) => self.mains.contains(backup),
        };
        held || self.damaged.get(file).is_some_and(|p| *p != Presence::Gone)
    }

    /// The WAL that the store has, good or not: what can be deleted.
    pub fn present_wal(&self) -> BTreeMap<Timeline, Runs> {
        let mut all = self.wal.clone();
        for (file, presence) in &self.damaged {
            if let (File::Wal(segment), true) = (file, *presence != Presence::Gone) {
                let runs = all.entry(segment.timeline).or_default();
                runs.insert(segment.number);
            }
        }
        all
    }

    fn store(&mut self, file: &File, entry: Option<u64>, how: How, at: Millis) {
        self.hold(file);
        if let (How::Written, Some(presence)) = (how, self.damaged.get_mut(file)) {
            *presence = Presence::Replaced;
        }
        self.conflicts.remove(file);
        self.last_stored_at = Some(at);
        self.unspool(file, entry);
    }

    fn hold(&mut self, file: &File) {
        self.missing.remove(file);
        if let Some(presence) = self.damaged.get_mut(file) {
            *presence = Presence::There;
            return;
        }
        match file {
            File::Wal(segment) => {
                self.wal
                    .entry(segment.timeline)
                    .or_default()
                    .insert(segment.number);
            }
            File::Partial(segment) => {
                self.partials.insert(*segment);
            }
            File::History(timeline) => {
                self.histories.insert(*timeline);
            }
            File::Part { backup, number } => {
                self.parts
                    .entry(backup.clone())
                    .or_default()
                    .insert(u64::from(*number));
            }
            File::Main(backup) => {
                self.mains.insert(backup.clone());
            }
        }
    }

    fn lose(&mut self, file: &File) {
        if let Some(presence) = self.damaged.get_mut(file) {
            *presence = Presence::Gone;
        }
        self.missing.remove(file);
        match file {
            File::Wal(s) => {
                self.release(&Range {
                    timeline: s.timeline,
                    first: s.number,
                    last: s.number,
                });
            }
            File::Partial(segment) => {
                self.partials.remove(segment);
            }
            File::History(timeline) => {
                self.histories.remove(timeline);
            }
            File::Part { backup, number } => {
                if let Some(parts) = self.parts.get_mut(backup) {
                    parts.remove(u64::from(*number));
                    if parts.is_empty() {
                        self.parts.remove(backup);
                    }
                }
            }
            File::Main(backup) => {
                self.mains.remove(backup);
            }
        }
    }

    fn gain(&mut self, range: &Range) {
        if range.first > range.last {
            return;
        }
        let runs = self.wal.entry(range.timeline).or_default();
        runs.insert_range(range.first, range.last);
        for (file, presence) in &mut self.damaged {
            if let File::Wal(segment) = file
                && range.holds(*segment)
            {
                runs.remove(segment.number);
                *presence = Presence::There;
            }
        }
        if runs.is_empty() {
            self.wal.remove(&range.timeline);
        }
    }

    fn expire(&mut self, range: &Range) {
        let runs = self.expired.entry(range.timeline).or_default();
        runs.insert_range(range.first, range.last);
    }

    fn release(&mut self, range: &Range) {
        for (file, presence) in &mut self.damaged {
            if within(file, core::slice::from_ref(range)) {
                *presence = Presence::Gone;
            }
        }
        for held in [&mut self.wal, &mut self.expired] {
            if let Some(runs) = held.get_mut(&range.timeline) {
                runs.remove_range(range.first, range.last);
                if runs.is_empty() {
                    held.remove(&range.timeline);
                }
            }
        }
    }

    fn enspool(&mut self, file: &File, id: u64, bytes: u64, at: Millis) {
        self.spool.insert(file.clone(), Entry { id, bytes, at });
        // What a start found tells of a stream that the log never heard of.
        if self.reconciled_at.is_some() {
            self.adopt_frontier();
        }
    }

    fn forget(&mut self, wal: &[Range], files: &[File]) {
        wal.iter().for_each(|range| self.release(range));
        if !holds(Rule::FrontierForward) {
            self.frontier = self.frontier.filter(|frontier| self.stored(*frontier));
        }
        files.iter().for_each(|file| self.lose(file));
    }

    /// Only the entry that was meant goes: the name may have been received anew meanwhile.
    fn unspool(&mut self, file: &File, entry: Option<u64>) {
        if self.spool.get(file).map(|e| e.id) == entry {
            self.spool.remove(file);
        }
    }

    /// A stream began at `from`. The first one sets the frontier just below. Where the server
    /// chose, a start beyond the frontier says that what lies between cannot be had any more, and
    /// one below a gap that it can be had after all.
    fn begin(&mut self, from: Segment, anchored: bool, at: Millis, timelines: &Timelines) {
        self.toward = Some(from.timeline);
        let below = Segment {
            number: from.number.saturating_sub(1),
            ..from
        };
        match (self.frontier, self.segment_size) {
            (None, _) => self.frontier = Some(below),
            (Some(frontier), Some(size)) if anchored => {
                self.anchor(from, below, frontier, at, timelines, size);
            }
            _ => {}
        }
    }

    fn anchor(
        &mut self,
        from: Segment,
        below: Segment,
        frontier: Segment,
        at: Millis,
        timelines: &Timelines,
        size: SegmentSize,
    ) {
        if self.pulls_back(from, frontier, timelines, size) {
            self.frontier = Some(below);
            return;
        }
        let legs = timelines.path(frontier.next(), from.timeline, size);
        let mut gaps = Vec::new();
        for leg in &legs {
            let end = if leg.timeline == from.timeline {
                from.number
            } else {
                leg.end
            };
            let Some(last) = end.checked_sub(1).filter(|last| *last >= leg.first) else {
                continue;
            };
            gaps.extend(self.lacking(leg.timeline, leg.first, last));
        }
        // Without a way from there to here the frontier has nothing to follow.
        if !gaps.is_empty() || legs.is_empty() {
            self.lost
                .extend(gaps.into_iter().map(|range| Lost { range, since: at }));
            self.frontier = Some(below);
        }
    }

    /// A stream from below the frontier brings WAL that is missing there: the frontier was taken
    /// from a listing, which does not tell what was still to come.
    fn pulls_back(
        &self,
        from: Segment,
        frontier: Segment,
        timelines: &Timelines,
        size: SegmentSize,
    ) -> bool {
        let (on, to) = (from.timeline, frontier.timeline);
        let behind = if on == to {
            from.number <= frontier.number
        } else {
            let left = timelines.left_at(on, to);
            left.is_some_and(|switch| from < Segment::at(on, switch, size))
        };
        let legs = timelines.path(from, to, size);
        behind
            && legs.iter().any(|leg| {
                let end = leg.end.min(if leg.timeline == to {
                    frontier.number.saturating_add(1)
                } else {
                    u64::MAX
                });
                let last = end.saturating_sub(1);
                let held = self.wal.get(&leg.timeline);
                end > leg.first && !held.is_some_and(|runs| runs.covers(leg.first, last))
            })
    }

    /// Without a stream yet (the log is new, the store is not) the newest stored WAL is where
    /// reception goes on, unless the spool still holds some from before.
    fn adopt_frontier(&mut self) {
        if self.frontier.is_some() {
            return;
        }
        let newest = self.wal.iter().next_back();
        let stored = newest.and_then(|(t, runs)| Some(Segment::new(*t, runs.last()?)));
        let spooled = self.spool.keys().find_map(|file| match file {
            File::Wal(s) => Some(Segment::new(s.timeline, s.number.checked_sub(1)?)),
            _ => None,
        });
        self.frontier = match (stored, spooled) {
            (Some(stored), Some(spooled)) => Some(stored.min(spooled)),
            (stored, spooled) => stored.or(spooled),
        };
    }

    /// Along its timeline, and over to the one that is received once the way there is stored and
    /// that one has begun.
    fn advance(&mut self, timelines: &Timelines) {
        let (Some(mut frontier), Some(size)) = (self.frontier, self.segment_size) else {
            return;
        };
        frontier = self.contiguous(frontier);
        let reachable = |t: &Timeline| *t == Timeline(1) || self.histories.contains(t);
        let toward = self.toward.filter(|t| *t != frontier.timeline);
        if let Some(toward) = toward.filter(reachable) {
            let mut legs = timelines.path(frontier.next(), toward, size);
            let open = legs.pop().map(|leg| Segment::new(toward, leg.first));
            let whole = legs.iter().all(|leg| {
                let held = self.wal.get(&leg.timeline);
                held.is_some_and(|runs| runs.covers(leg.first, leg.end.saturating_sub(1)))
            });
            if let Some(first) = open.filter(|first| whole && self.stored(*first)) {
                frontier = self.contiguous(first);
            }
        }
        self.frontier = Some(frontier);
    }

    /// The last stored segment before the first gap after `from`.
    fn contiguous(&self, from: Segment) -> Segment {
        let next = from.number.saturating_add(1);
        let held = self.wal.get(&from.timeline);
        let ahead = held.map_or(next, |runs| runs.gap_from(next));
        Segment::new(from.timeline, ahead.saturating_sub(1))
    }

    /// Whether the store holds it, as far as the log knows.
    pub fn stored(&self, segment: Segment) -> bool {
        self.wal
            .get(&segment.timeline)
            .is_some_and(|runs| runs.contains(segment.number))
    }

    /// Spooled or stored: no reason to receive it.
    pub fn has(&self, segment: Segment) -> bool {
        self.stored(segment) || self.spool.contains_key(&File::Wal(segment))
    }

    /// What of `first..=last` is neither stored nor spooled.
    pub fn lacking(&self, timeline: Timeline, first: u64, last: u64) -> Vec<Range> {
        let mut held = self.wal.get(&timeline).cloned().unwrap_or_default();
        let wal = |number| File::Wal(Segment::new(timeline, number));
        for file in self
            .spool
            .range(wal(first)..=wal(last))
            .map(|(file, _)| file)
        {
            if let File::Wal(segment) = file {
                held.insert(segment.number);
            }
        }
        let gaps = held.gaps(first, last).into_iter();
        gaps.map(|gap| Range {
            timeline,
            first: *gap.start(),
            last: *gap.end(),
        })
        .collect()
    }

    /// The first segment after the frontier, on the way to `timeline`, that is neither spooled
    /// nor stored: where reception goes on. `None` before the first stream, and where no way
    /// leads there from the frontier.
    pub fn wanted(&self, timeline: Timeline, timelines: &Timelines) -> Option<Segment> {
        let (frontier, size) = (self.frontier?, self.segment_size?);
        for leg in timelines.path(frontier.next(), timeline, size) {
            let mut segment = Segment::new(leg.timeline, leg.first);
            while segment.number < leg.end && self.has(segment) {
                let runs = self.wal.get(&leg.timeline);
                let ahead = runs.map_or(segment.number, |runs| runs.gap_from(segment.number));
                segment.number = ahead.max(segment.number);
                while self.spool.contains_key(&File::Wal(segment)) {
                    segment = segment.next();
                }
            }
            if segment.number < leg.end {
                return Some(segment);
            }
        }
        None
    }

    /// The position up to which a server on `timeline` may be told that WAL is stored.
    pub fn acknowledged(&self, timeline: Timeline, timelines: &Timelines) -> Lsn {
        let (Some(frontier), Some(size)) = (self.frontier, self.segment_size) else {
            return Lsn::default();
        };
        if frontier.timeline == timeline {
            return frontier.end(size);
        }
        match timelines.left_at(frontier.timeline, timeline) {
            Some(switch) => frontier.end(size).min(switch),
            None => Lsn::default(),
        }
    }

    /// Since when a segment waits for the store; one in conflict waits for a person.
    pub fn waiting_since(&self) -> Option<Millis> {
        let waits = self.spool.iter().filter(|(file, _)| {
            matches!(file, File::Wal(_)) && !self.conflicts.contains_key(*file)
        });
        waits.map(|(_, entry)| entry.at).min()
    }

    pub fn spool_bytes(&self) -> u64 {
        self.spool
            .values()
            .fold(0, |sum, entry| sum.saturating_add(entry.bytes))
    }
}

fn within(file: &File, ranges: &[Range]) -> bool {
    matches!(file, File::Wal(segment) if ranges.iter().any(|range| range.holds(*segment)))
}

/// Whether an event says that the receiver itself made progress.
pub fn streamed(event: &Event) -> Option<Segment> {
    match event {
        Event::Spooled {
            file: File::Wal(segment),
            origin: Origin::Stream,
            ..
        } => Some(*segment),
        _ => None,
    }
}
