//! A set of segment numbers kept as intervals.
//!
//! A bucket of 400,000 segments is one interval, a hole is a gap between two, and deleting old WAL
//! trims the front: the state stays small whatever the history.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::event::Range;
use crate::wal::Timeline;

/// First number of each interval to its last. Intervals neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Runs(BTreeMap<u64, u64>);

impl Runs {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, (a, b)| {
            sum.saturating_add((b - a).saturating_add(1))
        })
    }

    pub fn intervals(&self) -> impl DoubleEndedIterator<Item = RangeInclusive<u64>> + '_ {
        self.0.iter().map(|(a, b)| *a..=*b)
    }

    pub fn ranges(&self, timeline: Timeline) -> impl Iterator<Item = Range> + '_ {
        self.intervals().map(move |run| Range {
            timeline,
            first: *run.start(),
            last: *run.end(),
        })
    }

    pub fn last(&self) -> Option<u64> {
        self.0.values().next_back().copied()
    }

    pub fn contains(&self, number: u64) -> bool {
        self.run_of(number).is_some()
    }

    /// Whether the whole of `first..=last` is here.
    pub fn covers(&self, first: u64, last: u64) -> bool {
        self.run_of(first).is_some_and(|(_, end)| end >= last)
    }

    /// The first number at or after `from` that is not here.
    pub fn gap_from(&self, from: u64) -> u64 {
        self.run_of(from)
            .map_or(from, |(_, end)| end.saturating_add(1))
    }

    fn run_of(&self, number: u64) -> Option<(u64, u64)> {
        let (first, last) = self.0.range(..=number).next_back()?;
        (*last >= number).then_some((*first, *last))
    }

    pub fn insert(&mut self, number: u64) {
        self.insert_range(number, number);
    }

    /// Adds `first..=last`; an empty range (`first > last`) adds nothing.
    pub fn insert_range(&mut self, mut first: u64, mut last: u64) {
        if first > last {
            return;
        }
        // As nearly all WAL comes: right after the last.
        if let Some(mut newest) = self.0.last_entry()
            && newest.get().checked_add(1) == Some(first)
        {
            *newest.get_mut() = last;
            return;
        }
        // Swallow every interval that overlaps or touches the new one.
        let reach = last.saturating_add(1);
        let touching: Vec<(u64, u64)> = self
            .0
            .range(..=reach)
            .rev()
            .map(|(a, b)| (*a, *b))
            .take_while(|(_, b)| b.saturating_add(1) >= first)
            .collect();
        for (a, b) in touching {
            self.0.remove(&a);
            first = first.min(a);
            last = last.max(b);
        }
        self.0.insert(first, last);
    }

    pub fn remove(&mut self, number: u64) {
        self.remove_range(number, number);
    }

    /// Takes `first..=last` out; what is not here stays out.
    pub fn remove_range(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let hit: Vec<(u64, u64)> = self
            .0
            .range(..=last)
            .rev()
            .map(|(a, b)| (*a, *b))
            .take_while(|(_, b)| *b >= first)
            .collect();
        for (a, b) in hit {
            self.0.remove(&a);
            if a < first {
                self.0.insert(a, first.saturating_sub(1));
            }
            if b > last {
                self.0.insert(last.saturating_add(1), b);
            }
        }
    }

    /// What of `first..=last` is missing, as intervals.
    pub fn gaps(&self, first: u64, last: u64) -> Vec<RangeInclusive<u64>> {
        let mut gaps = Vec::new();
        let mut at = first;
        while at <= last {
            let start = self.gap_from(at);
            if start > last {
                break;
            }
            let next = self.0.range(start..).next().map_or(u64::MAX, |(a, _)| *a);
            let end = last.min(next.saturating_sub(1));
            gaps.push(start..=end);
            match end.checked_add(1) {
                Some(n) => at = n,
                None => break,
            }
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec;

    #[test]
    fn behaves_as_a_plain_set_does() {
        // A small linear generator: the crate has no dependency to draw from.
        let mut seed: u64 = 7;
        let mut draw = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let (mut runs, mut plain) = (Runs::default(), BTreeSet::new());
        for _ in 0..20_000 {
            let (first, length, add) = (draw(64), draw(6), draw(2));
            for n in first..first + length {
                if add == 1 {
                    plain.insert(n)
                } else {
                    plain.remove(&n)
                };
            }
            match (add, length) {
                (_, 0) => {}
                (1, _) => runs.insert_range(first, first + length - 1),
                _ => runs.remove_range(first, first + length - 1),
            }
            assert!((0..80).all(|n| runs.contains(n) == plain.contains(&n)));
            assert_eq!(runs.count(), u64::try_from(plain.len()).unwrap());
            let gap = (first..).find(|n| !plain.contains(n)).unwrap();
            assert_eq!(runs.gap_from(first), gap);
            let missing: BTreeSet<u64> = runs.gaps(3, 70).into_iter().flatten().collect();
            assert_eq!(missing, (3..=70).filter(|n| !plain.contains(n)).collect());
        }
    }

    #[test]
    fn neighbours_melt_and_edges_hold() {
        let mut runs = Runs::default();
        runs.insert(u64::MAX);
        runs.insert(0);
        runs.insert_range(2, 4);
        runs.insert(1);
        assert_eq!(
            runs.intervals().collect::<Vec<_>>(),
            vec![0..=4, u64::MAX..=u64::MAX]
        );
        assert!(runs.covers(0, 4) && !runs.covers(0, 5));
        runs.remove_range(0, u64::MAX);
        assert!(runs.is_empty());
    }
}
