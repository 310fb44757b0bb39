//! A cluster of one or two nodes: WAL as bytes of a function, slots, recycling, promotion.
//!
//! A position is counted in units: 32 to a segment, and a segment's content is one byte a unit.

use std::collections::BTreeMap;

use machine::event::Branch;
use machine::{Lsn, Segment, SegmentSize, Timeline};

use crate::fate::{Fate, Fault};

pub const SIZE: SegmentSize = SegmentSize::DEFAULT;
pub const UNITS: u64 = 32;
const UNIT_BYTES: u64 = (16 << 20) / UNITS;

pub fn lsn(position: u64) -> Lsn {
    Lsn(position * UNIT_BYTES)
}

/// Whole units below a position.
pub fn units(lsn: Lsn) -> u64 {
    lsn.0 / UNIT_BYTES
}

#[derive(Clone, Debug)]
pub struct Node {
    pub timeline: Timeline,
    /// End of its WAL, in units.
    pub at: u64,
    pub in_recovery: bool,
    /// Turns until it answers again; 0 is up.
    pub down: u64,
    /// How often it went down: no connection outlives that.
    pub falls: u64,
    /// Segments below this number are recycled.
    pub floor: u64,
    /// Where its slot for us restarts.
    pub slot: Option<u64>,
}

impl Node {
    fn fall(&mut self, turns: u64) {
        self.down = turns;
        self.falls += 1;
    }

    /// Made anew as a standby of that one.
    fn anew(&self, leader: &Node) -> Node {
        Node {
            in_recovery: true,
            slot: None,
            falls: self.falls + 1,
            // From its last checkpoint on.
            floor: (leader.at / UNITS).saturating_sub(1),
            ..leader.clone()
        }
    }
}

/// What a walsender has at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Byte(u8),
    /// Nothing yet.
    Wait,
    /// The timeline was left here for this one.
    End(Timeline),
    Recycled,
    /// Beyond its WAL, or not of its history.
    Refused,
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub histories: BTreeMap<Timeline, Vec<Branch>>,
    /// From these positions on, WAL was written anew after a rollback.
    rewritten: Vec<(Timeline, u64)>,
    /// Where the WAL ended before rollbacks: in the end servers grow beyond it.
    peak: u64,
    /// Percent of turns in which the primary writes.
    busy: u64,
    fate: Fate,
}

impl Cluster {
    pub fn new(fate: Fate) -> Cluster {
        let node = |in_recovery| Node {
            timeline: Timeline(1),
            at: 3 * UNITS + 5,
            in_recovery,
            down: 0,
            falls: 0,
            floor: 1,
            slot: None,
        };
        let mut nodes = vec![node(false)];
        if fate.chance(500) {
            nodes.push(node(true));
        }
        let busy = [5, 30, 60, 90][usize::try_from(fate.below(4)).unwrap()];
        Cluster {
            nodes,
            histories: BTreeMap::new(),
            rewritten: Vec::new(),
            peak: 0,
            busy,
            fate,
        }
    }

    pub fn primary(&self) -> Option<usize> {
        let alive = self.nodes.iter().enumerate();
        let alive = alive.filter(|(_, node)| !node.in_recovery && node.down == 0);
        alive.max_by_key(|(_, n)| n.timeline).map(|(i, _)| i)
    }

    pub fn turn(&mut self) {
        let fate = self.fate.clone();
        for node in &mut self.nodes {
            node.down = match node.down {
                1 if fate.is_calm() => 0,
                left => left.saturating_sub(1),
            };
        }
        if fate.strikes(Fault::TurnServerDown) {
            let place = usize::try_from(fate.below(2)).unwrap();
            if let Some(node) = self.nodes.get_mut(place) {
                node.fall(fate.between(1, 20));
            }
        }
        if fate.strikes(Fault::TurnPromotion) {
            self.promote();
        }
        if fate.strikes(Fault::TurnRollback) {
            self.roll_back();
        }
        if fate.strikes(Fault::TurnRecycle) {
            self.recycle();
        }
        if let Some(primary) = self.primary() {
            let behind = fate.is_calm() && self.nodes[primary].at <= self.peak;
            if behind || fate.below(100) < self.busy {
                self.nodes[primary].at += fate.between(1, 2 * UNITS);
            }
        }
        self.follow();
    }

    pub fn idle(&mut self) {
        self.busy = 0;
    }

    pub fn heal(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.down = 0);
    }

    /// Standbys follow the primary; one that went another way is made anew.
    fn follow(&mut self) {
        let Some(primary) = self.primary() else {
            return;
        };
        let leader = self.nodes[primary].clone();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if index == primary || node.down > 0 {
                continue;
            }
            // An old primary goes on by itself for a while: nobody told it.
            if !node.in_recovery && node.timeline != leader.timeline && self.fate.chance(900) {
                continue;
            }
            let switch = self.histories.get(&leader.timeline).and_then(|branches| {
                let left = branches.iter().find(|b| b.timeline == node.timeline)?;
                Some(units(left.switch))
            });
            let ours = node.timeline == leader.timeline;
            let parent = switch.is_some_and(|switch| node.at <= switch);
            if node.in_recovery && (ours || parent) && node.at <= leader.at {
                let lag = self.fate.below(UNITS / 2);
                node.at = node.at.max(leader.at.saturating_sub(lag));
                if node.at >= switch.unwrap_or(0) {
                    node.timeline = leader.timeline;
                }
            } else {
                *node = node.anew(&leader);
            }
        }
    }

    /// A standby, or a lone server restarted from an archive, begins a new timeline at its
    /// position, exactly on a segment border now and then.
    fn promote(&mut self) {
        let standby = self.nodes.iter().position(|n| n.in_recovery && n.down == 0);
        let chosen = standby.unwrap_or(0);
        let newest = self.histories.keys().next_back();
        let child = Timeline(newest.map_or(2, |t| t.0 + 1));
        let begin = self.begin(self.nodes[chosen].timeline);
        let node = &mut self.nodes[chosen];
        if standby.is_none() && self.fate.chance(300) {
            let back = node.at.saturating_sub(self.fate.below(UNITS));
            node.at = back.max(begin).max(node.floor * UNITS);
        }
        if self.fate.chance(300) {
            node.at = node.at.next_multiple_of(UNITS);
        }
        let mut ancestors = self
            .histories
            .get(&node.timeline)
            .cloned()
            .unwrap_or_default();
        ancestors.push(Branch {
            timeline: node.timeline,
            switch: lsn(node.at),
        });
        node.timeline = child;
        node.in_recovery = false;
        // The record that ends recovery.
        node.at += 1;
        self.histories.insert(child, ancestors);
        let at = self.nodes[chosen].at;
        self.fate
            .say(|| format!("  node {chosen} is promoted to timeline {child} at unit {at}"));
        if standby.is_some() && self.fate.chance(500) {
            for (index, node) in self.nodes.iter_mut().enumerate() {
                if index != chosen {
                    node.fall(self.fate.between(1, 60));
                }
            }
        }
    }

    /// The primary was put back to an earlier state and writes other WAL under the same names.
    fn roll_back(&mut self) {
        let Some(primary) = self.primary() else {
            return;
        };
        let begin = self.begin(self.nodes[primary].timeline);
        let node = &mut self.nodes[primary];
        self.peak = self.peak.max(node.at);
        node.at = node
            .at
            .saturating_sub(self.fate.between(1, 3 * UNITS))
            .max(begin)
            .max(node.floor * UNITS);
        node.fall(2);
        let (timeline, at) = (node.timeline, node.at);
        self.rewritten.push((timeline, at));
        self.fate
            .say(|| format!("  node {primary} is rolled back to unit {at}"));
        // A standby that has what was taken back cannot follow any more, now or later.
        let leader = self.nodes[primary].clone();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if index != primary && node.timeline == timeline && node.at > at {
                *node = node.anew(&leader);
            }
        }
    }

    /// Where a timeline begins.
    pub fn begin(&self, timeline: Timeline) -> u64 {
        let branches = self.histories.get(&timeline);
        branches
            .and_then(|b| b.last())
            .map_or(0, |b| units(b.switch))
    }

    fn recycle(&mut self) {
        for node in &mut self.nodes {
            let keep = node.slot.map_or(node.at / UNITS, |slot| slot / UNITS);
            let keep = keep.min(node.at / UNITS);
            if keep > node.floor {
                node.floor = self.fate.between(node.floor, keep);
            }
        }
    }

    /// The primary's segment is finished: what follows goes to the next one.
    pub fn switch(&mut self, node: usize) -> u64 {
        let node = &mut self.nodes[node];
        node.at = node.at.next_multiple_of(UNITS);
        node.at
    }

    /// A backup starts at a checkpoint: a new one, on a standby the last that it replayed.
    pub fn checkpoint(&mut self, node: usize) -> u64 {
        let begin = self.begin(self.nodes[node].timeline);
        let back = self.fate.between(1, UNITS / 2);
        let node = &mut self.nodes[node];
        if node.in_recovery {
            let redo = node.at.saturating_sub(back).max(begin);
            return redo.max(node.floor * UNITS);
        }
        node.at += 1;
        node.at - 1
    }

    /// It ends after a record of its own, now and then with the segment.
    pub fn finish_backup(&mut self, node: usize) -> u64 {
        if !self.nodes[node].in_recovery {
            self.nodes[node].at += 1;
            let at = self.nodes[node].at;
            if self.fate.chance(300) {
                self.switch(node);
            }
            return at;
        }
        self.nodes[node].at
    }

    /// Where `timeline` was left on the way to the node's own.
    fn left_at(&self, timeline: Timeline, node: &Node) -> Option<u64> {
        let branches = self.histories.get(&node.timeline)?;
        let left = branches.iter().find(|b| b.timeline == timeline)?;
        Some(units(left.switch))
    }

    pub fn send(&self, node: usize, timeline: Timeline, position: u64) -> Sent {
        let node = &self.nodes[node];
        if timeline == node.timeline {
            if position > node.at {
                return Sent::Refused;
            }
            if position == node.at {
                return Sent::Wait;
            }
        } else {
            match self.left_at(timeline, node) {
                Some(switch) if position < switch => {}
                Some(switch) if position == switch => {
                    return Sent::End(self.child(timeline, node.timeline));
                }
                _ => return Sent::Refused,
            }
        }
        if position / UNITS < node.floor {
            return Sent::Recycled;
        }
        Sent::Byte(self.byte(timeline, position, self.rewritten.len()))
    }

    /// The next timeline after `timeline` on the way to `to`.
    fn child(&self, timeline: Timeline, to: Timeline) -> Timeline {
        let branches = &self.histories[&to];
        let place = branches.iter().position(|b| b.timeline == timeline);
        let next = place.and_then(|place| branches.get(place + 1));
        next.map_or(to, |branch| branch.timeline)
    }

    /// The timeline that holds a position on the way to `to`.
    pub fn owner(&self, to: Timeline, position: u64) -> Timeline {
        let branches = self.histories.get(&to).into_iter().flatten();
        let mut branches = branches.filter(|b| position < units(b.switch));
        branches.next().map_or(to, |branch| branch.timeline)
    }

    /// The timeline whose segment of this number is complete on the way to `to`.
    pub fn segment_on(&self, to: Timeline, number: u64) -> Segment {
        let branches = self.histories.get(&to).into_iter().flatten();
        let mut left = branches.filter(|b| number < units(b.switch) / UNITS);
        Segment::new(left.next().map_or(to, |b| b.timeline), number)
    }

    fn byte(&self, timeline: Timeline, position: u64, rewrites: usize) -> u8 {
        let owner = self.owner(timeline, position);
        let rewrites = self.rewritten.iter().take(rewrites);
        let epoch = rewrites.filter(|(t, from)| *t == owner && *from <= position);
        let epoch = u64::try_from(epoch.count()).unwrap();
        let mixed = (position ^ (u64::from(owner.0) << 32) ^ (epoch << 48))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            >> 40;
        u8::try_from(mixed % 255).unwrap() + 1
    }

    /// Whether these bytes are what a server wrote under this name at some time.
    pub fn wrote(&self, segment: Segment, content: &[u8]) -> bool {
        (0..=self.rewritten.len()).any(|rewrites| {
            let positions = segment.number * UNITS..;
            positions
                .zip(content)
                .all(|(p, byte)| self.byte(segment.timeline, p, rewrites) == *byte)
        })
    }

    /// Whether any node can still send the segment.
    pub fn available(&self, segment: Segment) -> bool {
        self.nodes.iter().any(|node| {
            let theirs = node.timeline == segment.timeline
                || self
                    .left_at(segment.timeline, node)
                    .is_some_and(|s| segment.number < s / UNITS);
            theirs && segment.number >= node.floor
        })
    }

    pub fn history(&self, timeline: Timeline) -> String {
        let branches = self.histories.get(&timeline).into_iter().flatten();
        let lines = branches.map(|b| format!("{}\t{}\tno reason\n", b.timeline, b.switch));
        lines.collect()
    }
}
