//! The cluster of a history: timelines, segment numbers and when each was full, nothing else.

use std::collections::BTreeMap;

use machine::event::{Branch, Event, Server, Slot};
use machine::{File, Segment, Timeline};

use super::shelf::SIZE;

pub struct Cluster {
    pub system_id: u64,
    pub timeline: Timeline,
    /// The segment that is being written.
    pub at: u64,
    /// Segments below this number are recycled.
    pub floor: u64,
    pub histories: BTreeMap<Timeline, Vec<Branch>>,
    /// When the last moment of each segment passed, by the true time.
    pub written: BTreeMap<Segment, u64>,
}

impl Cluster {
    pub fn new() -> Cluster {
        Cluster {
            system_id: 7,
            timeline: Timeline(1),
            at: 3,
            floor: 1,
            histories: BTreeMap::new(),
            written: BTreeMap::new(),
        }
    }

    /// So many segments become full, now.
    pub fn write(&mut self, segments: u64, now_ms: u64) {
        for _ in 0..segments {
            let full = self.segment(self.at);
            self.written.insert(full, now_ms);
            self.at += 1;
        }
    }

    /// The segment of this number as the newest history has it.
    pub fn segment(&self, number: u64) -> Segment {
        let branches = self.histories.get(&self.timeline).into_iter().flatten();
        let mut left = branches.filter(|b| number < Segment::at(b.timeline, b.switch, SIZE).number);
        Segment::new(left.next().map_or(self.timeline, |b| b.timeline), number)
    }

    /// Whether it can still send this.
    pub fn has(&self, file: &File) -> bool {
        match file {
            File::History(timeline) => self.histories.contains_key(timeline),
            File::Wal(s) => {
                (self.floor..self.at).contains(&s.number) && self.segment(s.number) == *s
            }
            File::Partial(_) | File::Part { .. } | File::Main(_) => false,
        }
    }

    /// A new timeline, from inside segment `at`.
    pub fn branch(&mut self, at: u64) {
        let newest = self.histories.keys().next_back();
        let child = Timeline(newest.map_or(2, |t| t.0 + 1));
        let from = self.segment(at).timeline;
        let mut ancestors = self.histories.get(&from).cloned().unwrap_or_default();
        let mut switch = Segment::new(from, at).start(SIZE);
        switch.0 += 1 << 20;
        ancestors.push(Branch {
            timeline: from,
            switch,
        });
        self.histories.insert(child, ancestors);
        self.timeline = child;
        self.at = at;
    }

    pub fn seen(&self, clock_skew_ms: i64) -> Event {
        let mut lsn = Segment::new(self.timeline, self.at).start(SIZE);
        lsn.0 += 2 << 20;
        Event::ServerSeen(Server {
            node: 0,
            system_id: self.system_id,
            version: 180_000,
            segment_size: SIZE,
            timeline: self.timeline,
            lsn,
            in_recovery: false,
            sync_state: None,
            slot: Some(Slot::default()),
            clock_skew_ms: Some(clock_skew_ms),
        })
    }
}
