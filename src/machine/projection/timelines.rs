//! Who branched where: the path a restore walks and a receiver follows.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::event::{Branch, Event};
use crate::wal::{Lsn, Segment, SegmentSize, Timeline};

/// Each known timeline's ancestors, oldest first, as its history file lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timelines {
    pub(crate) ancestors: BTreeMap<Timeline, Vec<Branch>>,
}

/// A stretch of one timeline on the way to another: segments `first..end`, `end` excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    pub timeline: Timeline,
    pub first: u64,
    pub end: u64,
}

impl Timelines {
    pub fn apply(&mut self, event: &Event) {
        if let Event::TimelineLearned {
            timeline,
            ancestors,
        } = event
        {
            self.ancestors.insert(*timeline, ancestors.clone());
        }
    }

    /// Timeline 1 has no history file; every other one is known once its file was read.
    pub fn knows(&self, timeline: Timeline) -> bool {
        timeline == Timeline(1) || self.ancestors.contains_key(&timeline)
    }

    /// The ancestors that were learned of `timeline`, oldest first.
    pub fn ancestors(&self, timeline: Timeline) -> Option<&[Branch]> {
        self.ancestors.get(&timeline).map(Vec::as_slice)
    }

    /// The same as its history says, or that of a timeline which came after it: a log that is new
    /// reads only the newest.
    pub fn way(&self, timeline: Timeline) -> Option<&[Branch]> {
        self.ancestors(timeline).or_else(|| {
            self.ancestors.values().find_map(|path| {
                let place = path.iter().position(|b| b.timeline == timeline)?;
                path.get(..place)
            })
        })
    }

    /// Where `ancestor` was left on the way to `timeline`; `None` if it is not an ancestor.
    pub fn left_at(&self, ancestor: Timeline, timeline: Timeline) -> Option<Lsn> {
        let path = self.way(timeline)?;
        path.iter()
            .find(|b| b.timeline == ancestor)
            .map(|b| b.switch)
    }

    /// The legs from segment `from` to the open end of `timeline`. The segment that holds a switch
    /// point belongs to the child. On a timeline that is no ancestor (after a failover the cluster
    /// may go on elsewhere) the way begins where that one left it; empty if they share nothing.
    pub fn path(&self, from: Segment, timeline: Timeline, size: SegmentSize) -> Vec<Leg> {
        let open = |first| Leg {
            timeline,
            first,
            end: u64::MAX,
        };
        if from.timeline == timeline {
            return vec![open(from.number)];
        }
        let ancestors = self.way(timeline).unwrap_or_default();
        let shared = |t| t == timeline || ancestors.iter().any(|b| b.timeline == t);
        if !shared(from.timeline) {
            let mut ours = self.way(from.timeline).into_iter().flatten();
            return match ours.rfind(|branch| shared(branch.timeline)) {
                Some(left) => {
                    let from = Segment::at(left.timeline, left.switch, size);
                    self.path(from, timeline, size)
                }
                None => Vec::new(),
            };
        }
        let mut legs = Vec::new();
        let mut first = None;
        for branch in ancestors {
            if branch.timeline == from.timeline {
                first = Some(from.number);
            }
            let Some(start) = first else { continue };
            let end = Segment::at(branch.timeline, branch.switch, size).number;
            if start < end {
                legs.push(Leg {
                    timeline: branch.timeline,
                    first: start,
                    end,
                });
            }
            // A branch below `from` means that `from` itself lies on abandoned history.
            first = Some(end);
        }
        match first {
            Some(start) => {
                legs.push(open(start));
                legs
            }
            None => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(timeline: u32, ancestors: &[(u32, u64)]) -> Event {
        let ancestors = ancestors
            .iter()
            .map(|(t, mib)| Branch {
                timeline: Timeline(*t),
                switch: Lsn(mib << 20),
            })
            .collect();
        Event::TimelineLearned {
            timeline: Timeline(timeline),
            ancestors,
        }
    }

    #[test]
    fn a_path_follows_the_switches() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let mut timelines = Timelines::default();
        timelines.apply(&learned(2, &[(1, 10)]));
        timelines.apply(&learned(3, &[(1, 10), (2, 10)]));
        timelines.apply(&learned(4, &[(1, 10), (2, 15)]));
        let legs = |timeline, number, to| -> Vec<(u32, u64, u64)> {
            let from = Segment::new(Timeline(timeline), number);
            let path = timelines.path(from, Timeline(to), size);
            path.iter()
                .map(|l| (l.timeline.0, l.first, l.end))
                .collect()
        };
        assert_eq!(legs(1, 4, 1), [(1, 4, u64::MAX)]);
        assert_eq!(legs(1, 4, 2), [(1, 4, 10), (2, 10, u64::MAX)]);
        assert_eq!(legs(1, 10, 2), [(2, 10, u64::MAX)]);
        assert_eq!(legs(1, 4, 3), [(1, 4, 10), (3, 10, u64::MAX)]);
        assert_eq!(legs(1, 4, 4), [(1, 4, 10), (2, 10, 15), (4, 15, u64::MAX)]);
        // s48: promoted below what we already hold of the parent
        assert_eq!(legs(1, 20, 2), [(2, 10, u64::MAX)]);
        // s49: from a branch that the cluster did not go on with, also back to its parent
        assert_eq!(legs(3, 12, 4), [(2, 10, 15), (4, 15, u64::MAX)]);
        assert_eq!(legs(4, 17, 3), [(2, 10, 10), (3, 10, u64::MAX)][1..]);
        assert_eq!(legs(4, 17, 2), [(2, 15, u64::MAX)]);
        assert_eq!(legs(2, 12, 1), [(1, 10, u64::MAX)]);
        assert_eq!(legs(1, 4, 9), []);
        assert_eq!(legs(9, 4, 1), []);
    }

    #[test]
    fn the_newest_history_tells_of_all_that_it_came_by() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let mut whole = Timelines::default();
        whole.apply(&learned(2, &[(1, 10)]));
        whole.apply(&learned(4, &[(1, 10), (2, 15)]));
        let mut newest = Timelines::default();
        newest.apply(&learned(4, &[(1, 10), (2, 15)]));
        assert!(!newest.knows(Timeline(2)), "its own was not read");
        for (from, to) in [(1, 2), (1, 4), (2, 4), (4, 2), (2, 1)] {
            let (from, to) = (Timeline(from), Timeline(to));
            assert_eq!(newest.left_at(from, to), whole.left_at(from, to));
            let start = Segment::new(from, 4);
            let path = whole.path(start, to, size);
            assert_eq!(newest.path(start, to, size), path, "{from:?} to {to:?}");
        }
        assert_eq!(
            newest.way(Timeline(3)),
            None,
            "a branch that it did not come by"
        );
    }
}
