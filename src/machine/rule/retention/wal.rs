//! The WAL side of retention: what each backup needs, and what that leaves to nobody.
//!
//! A backup that promises every moment needs all WAL from its start on; by number alone, for after
//! a failover nobody knows on which timeline a restore will go on. One that a tier keeps needs its
//! own start to end, and so does one whose main object still exists though it expired: a lost log
//! would bring it back to life.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Fate, Keep, Verdict};
use crate::breaks::{Rule, holds};
use crate::event::Range;
use crate::file::File;
use crate::projection::backups::Phase;
use crate::projection::marks::Mark;
use crate::runs::Runs;
use crate::state::SiteState;
use crate::wal::{Segment, Timeline};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wal {
    /// What is left to nobody once every backup that is to go has gone.
    pub going: Vec<Range>,
    /// What may be deleted now.
    pub now: Vec<Range>,
    /// Stretches behind older backups that must be marked before that, lest they look like holes.
    pub retire: Vec<Range>,
    /// Keys of marks that say nothing any more.
    pub forget: Vec<String>,
}

/// What a backup needs: from here on, or just up to there.
struct Need {
    first: Segment,
    last: Option<Segment>,
}

enum When {
    Now,
    /// Once what is to go has gone.
    Afterwards,
}

pub fn judge(site: &SiteState, verdicts: &[Verdict]) -> Wal {
    let (Some(now), Some(after)) = (
        needs(site, verdicts, When::Now),
        needs(site, verdicts, When::Afterwards),
    ) else {
        return Wal::default();
    };
    let going = unneeded(site, &after);
    let now_going = unneeded(site, &now);
    Wal {
        retire: retire(site, &now, &now_going),
        forget: forget(site, &now),
        going,
        now: now_going,
    }
}

/// `None` while a backup runs that has not said where it starts: nothing is deleted meanwhile.
fn needs(site: &SiteState, verdicts: &[Verdict], when: When) -> Option<Vec<Need>> {
    let mut needs = Vec::new();
    for verdict in verdicts {
        let Some(backup) = site.backups.all.get(&verdict.backup) else {
            continue;
        };
        let exists =
            site.ledger.exists(&File::Main(verdict.backup.clone())) && holds(Rule::ExpiredKeepsWal);
        let Some(content) = &backup.content else {
            match backup.phase {
                Phase::Dead => continue,
                Phase::Running | Phase::Finished | Phase::Complete => return None,
            }
        };
        let own = content.end.filter(|end| *end >= content.start);
        let last = match (&verdict.fate, &when) {
            (Fate::Go(_), When::Afterwards) => continue,
            (Fate::Go(_), When::Now) if backup.phase == Phase::Dead && !exists => continue,
            (Fate::Go(_), When::Now) => own,
            (Fate::Keep(why), _) if why.iter().any(Keep::promises_wal) => None,
            (Fate::Keep(_), _) => own,
        };
        needs.push(Need {
            first: content.start,
            last,
        });
    }
    Some(needs)
}

/// Below this number nobody needs WAL, except for stretches.
fn floor(needs: &[Need]) -> Option<u64> {
    let open = needs.iter().filter(|need| need.last.is_none());
    open.map(|need| need.first.number).min()
}

/// The stretches that are needed below the floor.
fn stretches(needs: &[Need]) -> BTreeMap<Timeline, Runs> {
    let mut stretches: BTreeMap<Timeline, Runs> = BTreeMap::new();
    for need in needs {
        if let Some(last) = need.last {
            let runs = stretches.entry(need.first.timeline).or_default();
            runs.insert_range(need.first.number, last.number);
        }
    }
    stretches
}

fn unneeded(site: &SiteState, needs: &[Need]) -> Vec<Range> {
    // With nothing to keep there is nobody to say what is needed.
    let Some(last) = floor(needs).and_then(|floor| floor.checked_sub(1)) else {
        return Vec::new();
    };
    let stretches = stretches(needs);
    let mut ranges = Vec::new();
    for (timeline, mut left) in site.ledger.present_wal() {
        left.remove_range(last.saturating_add(1), u64::MAX);
        let kept = stretches.get(&timeline).into_iter();
        for run in kept.flat_map(Runs::intervals) {
            left.remove_range(*run.start(), *run.end());
        }
        ranges.extend(left.ranges(timeline));
    }
    ranges
}

/// The whole stretches between needs, so that a gap in what was stored is no hole either.
fn retire(site: &SiteState, needs: &[Need], going: &[Range]) -> Vec<Range> {
    let oldest = needs.iter().map(|need| need.first.number).min();
    let (Some(oldest), Some(floor)) = (oldest, floor(needs)) else {
        return Vec::new();
    };
    let stretches = stretches(needs);
    let marked: Vec<Range> = retired(site).map(|(_, range)| range).collect();
    let mut timelines: Vec<Timeline> = going.iter().map(|range| range.timeline).collect();
    timelines.dedup();
    let mut spans = Vec::new();
    for timeline in timelines {
        let kept = stretches.get(&timeline).cloned().unwrap_or_default();
        spans.extend(
            kept.gaps(oldest, floor.saturating_sub(1))
                .into_iter()
                .map(|gap| Range {
                    timeline,
                    first: *gap.start(),
                    last: *gap.end(),
                }),
        );
    }
    spans.retain(|span| {
        let cut = going.iter().any(|range| {
            let apart = range.last < span.first || span.last < range.first;
            range.timeline == span.timeline && !apart
        });
        cut && !marked.iter().any(|mark| covers(mark, span))
    });
    spans
}

fn forget(site: &SiteState, needs: &[Need]) -> Vec<String> {
    let Some(oldest) = needs.iter().map(|need| need.first.number).min() else {
        return Vec::new();
    };
    let within = |range: &Range| {
        let mut others = retired(site).map(|(_, other)| other);
        others.any(|other| other != *range && covers(&other, range))
    };
    retired(site)
        .filter(|(_, range)| range.last < oldest || within(range))
        .map(|(key, _)| key.clone())
        .collect()
}

fn retired(site: &SiteState) -> impl Iterator<Item = (&String, Range)> {
    site.marks.all.iter().filter_map(|(key, mark)| match mark {
        Mark::WalRetired { range } => Some((key, *range)),
        Mark::Hold { .. } | Mark::HoleAcknowledged { .. } | Mark::Damaged { .. } => None,
    })
}

fn covers(outer: &Range, inner: &Range) -> bool {
    outer.timeline == inner.timeline && outer.first <= inner.first && inner.last <= outer.last
}
