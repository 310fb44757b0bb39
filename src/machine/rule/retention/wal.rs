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
use crate::file::{File, Site};
use crate::projection::backups::Phase;
use crate::projection::marks::Mark;
use crate::rule::chain::{Link, alike};
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

/// What the backups of one cluster need, wherever in the chain they lie: a restore looks for WAL in
/// all its sites.
struct Needs {
    all: Vec<Need>,
    /// Where the site's own oldest backup begins.
    oldest: Option<u64>,
    /// Below this number nobody needs WAL, except for stretches; `None` where nobody says so.
    floor: Option<u64>,
}

enum When {
    Now,
    /// Once what is to go has gone.
    Afterwards,
}

pub fn judge(links: &[Link<'_>], verdicts: &[Verdict]) -> BTreeMap<Site, Wal> {
    let of = |link: &Link<'_>| {
        let now = Needs::of(link, links, verdicts, &When::Now);
        let after = Needs::of(link, links, verdicts, &When::Afterwards);
        let wal = now.zip(after).map(|(now, after)| {
            let now_going = unneeded(link.site, &now);
            Wal {
                retire: retire(link.site, &now, &now_going),
                forget: forget(link.site, &now),
                going: unneeded(link.site, &after),
                now: now_going,
            }
        });
        (link.name.clone(), wal.unwrap_or_default())
    };
    links.iter().map(of).collect()
}

impl Needs {
    /// `None` while a backup runs that has not said where it starts: nothing is deleted meanwhile.
    fn of(link: &Link<'_>, links: &[Link<'_>], verdicts: &[Verdict], when: &When) -> Option<Needs> {
        let (mut all, mut oldest) = (Vec::new(), None::<u64>);
        for verdict in verdicts {
            let mut homes = links.iter();
            let home = homes.find(|home| *home.name == verdict.site);
            let Some(home) = home.filter(|home| alike(home.site, link.site)) else {
                continue;
            };
            let need = match need(home.site, verdict, when) {
                Wants::Nothing => continue,
                Wants::Unknown => return None,
                Wants::Wal(need) => need,
            };
            if home.name == link.name {
                let first = need.first.number;
                oldest = Some(oldest.unwrap_or(first).min(first));
            }
            all.push(need);
        }
        let open = all.iter().filter(|need| need.last.is_none());
        let open = open.map(|need| need.first.number).min();
        Some(Needs {
            floor: open.or_else(|| left_behind(link, links, verdicts)),
            all,
            oldest,
        })
    }
}

enum Wants {
    Nothing,
    Unknown,
    Wal(Need),
}

fn need(site: &SiteState, verdict: &Verdict, when: &When) -> Wants {
    let Some(backup) = site.backups.all.get(&verdict.backup) else {
        return Wants::Nothing;
    };
    let exists =
        site.ledger.exists(&File::Main(verdict.backup.clone())) && holds(Rule::ExpiredKeepsWal);
    let Some(content) = &backup.content else {
        return match backup.phase {
            Phase::Dead => Wants::Nothing,
            Phase::Running | Phase::Finished | Phase::Complete => Wants::Unknown,
        };
    };
    let own = content.end.filter(|end| *end >= content.start);
    let last = match (&verdict.fate, when) {
        (Fate::Go(_), When::Afterwards) => return Wants::Nothing,
        (Fate::Go(_), When::Now) if backup.phase == Phase::Dead && !exists => {
            return Wants::Nothing;
        }
        (Fate::Go(_), When::Now) => own,
        (Fate::Keep(why), _) if why.iter().any(Keep::promises_wal) => None,
        (Fate::Keep(_), _) => own,
    };
    Wants::Wal(Need {
        first: content.start,
        last,
    })
}

/// The end of the WAL of a cluster that was left: where none of its backups promises every moment,
/// and the active site has one that can be restored, nobody will go on from there. Not where the
/// store has something that may be a backup.
fn left_behind(link: &Link<'_>, links: &[Link<'_>], verdicts: &[Verdict]) -> Option<u64> {
    let head = links.first()?;
    let mut own = verdicts.iter().filter(|v| v.site == *head.name);
    if alike(link.site, head.site)
        || link.site.ledger.unknown > 0
        || !own.any(|verdict| verdict.restorable)
    {
        return None;
    }
    let lasts = link.site.ledger.present_wal();
    let last = lasts.values().filter_map(Runs::last).max()?;
    Some(last.saturating_add(1))
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

fn unneeded(site: &SiteState, needs: &Needs) -> Vec<Range> {
    // With nothing to keep there is nobody to say what is needed.
    let Some(last) = needs.floor.and_then(|floor| floor.checked_sub(1)) else {
        return Vec::new();
    };
    let stretches = stretches(&needs.all);
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
fn retire(site: &SiteState, needs: &Needs, going: &[Range]) -> Vec<Range> {
    let (Some(oldest), Some(floor)) = (needs.oldest, needs.floor) else {
        return Vec::new();
    };
    let stretches = stretches(&needs.all);
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

fn forget(site: &SiteState, needs: &Needs) -> Vec<String> {
    let Some(oldest) = needs.oldest.or(needs.floor) else {
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
