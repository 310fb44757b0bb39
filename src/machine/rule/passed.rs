//! WAL that `archive_command` passed over.
//!
//! PostgreSQL hands over one segment after the other. Where enough of those that follow are stored,
//! it went on without what lacks (`archive_mode` was off for a while, say), and nobody goes back
//! for it, as a stream would.

use crate::event::Range;
use crate::projection::ledger::Ledger;
use crate::projection::timelines::Timelines;
use crate::runs::Runs;
use crate::wal::Segment;

/// What lacks right after the frontier while at least `beyond` segments after it, on the way to the
/// timeline that is received, are stored.
pub fn passed(ledger: &Ledger, timelines: &Timelines, beyond: u64) -> Option<Range> {
    let (frontier, size) = (ledger.frontier?, ledger.segment_size?);
    let goal = ledger.toward.unwrap_or(frontier.timeline);
    let mut gap: Option<Range> = None;
    let mut after = 0_u64;
    let none = Runs::default();
    for leg in timelines.path(frontier.next(), goal, size) {
        let held = ledger.wal.get(&leg.timeline).unwrap_or(&none);
        let last = match leg.timeline == goal {
            true => held.last(),
            false => leg.end.checked_sub(1),
        };
        let Some(last) = last.filter(|last| *last >= leg.first) else {
            continue;
        };
        let gaps = held.gaps(leg.first, last);
        let mut gaps = gaps.iter();
        let first = match gap {
            Some(_) => leg.first,
            None => {
                let Some(found) = gaps.next() else { continue };
                gap = Some(Range {
                    timeline: leg.timeline,
                    first: *found.start(),
                    last: *found.end(),
                });
                found.end().saturating_add(1)
            }
        };
        let missing = gaps.map(|gap| (gap.end() - gap.start()).saturating_add(1));
        let missing = missing.fold(0, u64::saturating_add);
        let all = last.saturating_add(1).saturating_sub(first);
        after = after.saturating_add(all.saturating_sub(missing));
    }
    // What waits in the spool is still to be stored.
    let waits = |gap: &Range| ledger.has(Segment::new(gap.timeline, gap.first));
    gap.filter(|gap| after >= beyond && !waits(gap))
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::event::{Branch, Event};
    use crate::wal::{Lsn, SegmentSize, Timeline};

    /// A frontier, what is stored beside it, and what was passed by three segments: `1:6-7`.
    #[test]
    fn what_enough_segments_were_stored_beyond_was_passed_over() {
        let size = SegmentSize::DEFAULT;
        let switch = Lsn(size.bytes() * 10 + 5);
        let mut timelines = Timelines::default();
        timelines.apply(&Event::TimelineLearned {
            timeline: Timeline(2),
            ancestors: vec![Branch {
                timeline: Timeline(1),
                switch,
            }],
        });
        for (toward, stored, expect) in [
            (1, &[(1, 3, 5)][..], ""),
            (1, &[(1, 3, 5), (1, 8, 9)], ""),
            (1, &[(1, 3, 5), (1, 8, 10)], "1:6-7"),
            // Several gaps: the first, and all that is stored beyond it counts.
            (1, &[(1, 3, 5), (1, 7, 8), (1, 12, 12)], "1:6-6"),
            // The end of the old timeline, and the beginning of the new one.
            (2, &[(1, 3, 5), (2, 10, 12)], "1:6-9"),
            (2, &[(1, 3, 5), (2, 10, 11)], ""),
            (2, &[(1, 3, 9), (2, 11, 13)], "2:10-10"),
            (2, &[(1, 3, 7), (1, 9, 9), (2, 10, 11)], "1:8-8"),
            // Whoever has not heard of the new one yet.
            (3, &[(1, 3, 5), (3, 10, 20)], ""),
        ] {
            let mut ledger = Ledger {
                frontier: Some(Segment::new(Timeline(1), 5)),
                toward: Some(Timeline(toward)),
                segment_size: Some(size),
                ..Ledger::default()
            };
            for (timeline, first, last) in stored {
                let runs = ledger.wal.entry(Timeline(*timeline)).or_default();
                runs.insert_range(*first, *last);
            }
            let found = passed(&ledger, &timelines, 3);
            let told =
                found.map(|gap| alloc::format!("{}:{}-{}", gap.timeline.0, gap.first, gap.last));
            assert_eq!(told.unwrap_or_default(), expect, "{toward}: {stored:?}");
        }
    }
}
