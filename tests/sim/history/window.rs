//! The recovery window, exactly: which moments a restore from the objects could reach.
//!
//! A moment can be restored from a backup that had ended by then, with the WAL of the cluster's
//! own way from there up to the segment that holds the moment.

use std::collections::BTreeMap;

use machine::File;

use super::cluster::Cluster;
use super::shelf::{Marked, Truth};

/// Stretches of the true time, sorted, none touching the next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments(Vec<(u64, u64)>);

impl Moments {
    pub fn of(truth: &Truth, cluster: &Cluster, marked: &Marked) -> Moments {
        let mut stretches = Vec::new();
        let mut reached = BTreeMap::new();
        // Newest first: where an older one comes to a newer one's start, it goes as far.
        let mut backups: Vec<_> = truth.needs.iter().collect();
        backups.sort_by_key(|(_, needs)| std::cmp::Reverse(needs.end.number));
        for (name, needs) in backups {
            let own = cluster.segment(needs.end.number) == needs.end
                && cluster.segment(needs.start.number) == needs.start;
            if !own || !truth.restorable(name, marked) {
                continue;
            }
            let mut last = needs.end.number;
            loop {
                if let Some(further) = reached.get(&last) {
                    last = *further;
                    break;
                }
                let next = cluster.segment(last + 1);
                if next.number >= cluster.at || !truth.good(&File::Wal(next), marked) {
                    break;
                }
                last += 1;
            }
            reached.insert(needs.end.number, last);
            let until = cluster.written.get(&cluster.segment(last));
            let until = until.copied().unwrap_or(needs.ended_ms);
            stretches.push((needs.ended_ms, until));
        }
        Moments(joined(stretches))
    }

    /// The first stretch from `since` on that `other` has not.
    pub fn beyond(&self, other: &Moments, since: u64) -> Option<(u64, u64)> {
        self.0.iter().find_map(|(first, last)| {
            let mut first = (*first).max(since);
            for (from, to) in &other.0 {
                if *from <= first && first < *to {
                    first = *to;
                }
            }
            let next = other.0.iter().map(|(from, _)| *from);
            let until = next.filter(|from| *from > first).min();
            (first < *last).then(|| (first, until.unwrap_or(*last).min(*last)))
        })
    }
}

fn joined(mut stretches: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    stretches.retain(|(first, last)| first <= last);
    stretches.sort_unstable();
    let mut all: Vec<(u64, u64)> = Vec::new();
    for (first, last) in stretches {
        match all.last_mut() {
            Some((_, end)) if first <= *end => *end = (*end).max(last),
            _ => all.push((first, last)),
        }
    }
    all
}

#[test]
fn what_is_lost_of_the_moments_is_told_from_the_window_on() {
    let moments = |stretches: &[(u64, u64)]| Moments(joined(stretches.to_vec()));
    for (before, after, since, expect) in [
        (&[(1, 9)][..], &[(1, 9)][..], 0, None),
        (&[(1, 9)], &[(1, 5), (4, 9)], 0, None),
        (&[(1, 9)], &[(3, 9)], 0, Some((1, 3))),
        (&[(1, 9)], &[(3, 9)], 3, None),
        (&[(1, 9)], &[(1, 3), (5, 9)], 2, Some((3, 5))),
        (&[(1, 9)], &[(1, 7)], 2, Some((7, 9))),
        (&[(1, 2), (5, 6)], &[(1, 2)], 0, Some((5, 6))),
        (&[(1, 2), (5, 6)], &[(0, 2), (5, 8)], 0, None),
        (&[(1, 2)], &[], 0, Some((1, 2))),
        (&[(1, 2)], &[], 2, None),
    ] {
        let lost = moments(before).beyond(&moments(after), since);
        assert_eq!(lost, expect, "{before:?} {after:?} {since}");
    }
}
