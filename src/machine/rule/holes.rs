//! What a restore would miss, from the state alone.
//!
//! Each backup in the store is walked from its start to the frontier, and to the last WAL of every
//! other timeline it leads to; what is neither stored nor spooled on the way is a hole, and so is
//! a history file that the way needs. What lies above the frontier is no hole: reception goes back
//! for it. Neither is what retention let go between two backups that stay.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::event::{Millis, Range, WalIn};
use crate::file::{BackupName, File};
use crate::projection::backups::{Content, Phase};
use crate::projection::marks::{Hole, Mark};
use crate::runs::Runs;
use crate::state::SiteState;
use crate::task::{Means, TaskId};
use crate::wal::{Lsn, Segment, SegmentSize, Timeline};

/// A fetch that fails so often in a row counts as "cannot": a backup must not wait for it.
const TRIES_MAX: u32 = 3;

/// A hole, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub hole: Hole,
    /// The backups whose way it cuts, by name.
    pub cuts: BTreeSet<BackupName>,
    pub impossible: Impossible,
}

/// Moments that no backup leads to any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Impossible {
    pub timeline: Timeline,
    /// The first position.
    pub from: Lsn,
    /// Where a later backup begins to cover them again; `None` where none does.
    pub to: Option<Lsn>,
    /// When that was, where it is known.
    pub until: Option<Millis>,
}

/// What becomes of a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Some means may still have it.
    Healing,
    /// None has it.
    Lost,
    /// A person took note.
    Acknowledged,
}

/// The holes there are now, by timeline and place. Nothing before the store was listed once.
pub fn holes(site: &SiteState) -> Vec<Found> {
    let ledger = &site.ledger;
    let (Some(_), Some(frontier), Some(size)) =
        (ledger.reconciled_at, ledger.frontier, ledger.segment_size)
    else {
        return Vec::new();
    };
    let held = Held::of(site);
    let mut walk = Walk {
        site,
        held: &held,
        size,
        lacking: BTreeMap::new(),
        histories: BTreeMap::new(),
    };
    for target in held.targets(frontier, ledger.toward) {
        let last = match target == frontier.timeline {
            true => Some(frontier.number),
            false => held.wal.get(&target).and_then(Runs::last),
        };
        if let Some(last) = last {
            walk.to(Segment::new(target, last));
        }
    }
    walk.found()
}

/// Whether a backup's way goes on to the timeline of the frontier. Doubt is no reason to say no;
/// but no WAL was received for one that brings its own.
pub fn leads(site: &SiteState, content: &Content) -> bool {
    if content.wal == WalIn::Backup {
        return false;
    }
    let (Some(frontier), Some(size)) = (site.ledger.frontier, site.ledger.segment_size) else {
        return true;
    };
    let end = Segment::new(frontier.timeline, u64::MAX);
    let unknown =
        frontier.timeline > Timeline(1) && site.timelines.way(frontier.timeline).is_none();
    unknown || legs(site, content, end, size).is_some()
}

/// Whether a backup's way goes on to all that is received, for certain.
pub fn leads_on(site: &SiteState, content: &Content) -> bool {
    let Some(size) = site.ledger.segment_size else {
        return true;
    };
    let frontier = site.ledger.frontier.map(|frontier| frontier.timeline);
    let mut goals = frontier.into_iter().chain(site.ledger.toward);
    goals.all(|goal| legs(site, content, Segment::new(goal, u64::MAX), size).is_some())
}

/// Whether a person took note of the whole of it.
pub fn acknowledged<'a>(site: &'a SiteState, hole: &Hole) -> Option<&'a Mark> {
    let mut marks = site.marks.all.values();
    marks.find(
        |mark| matches!(mark, Mark::HoleAcknowledged { hole: noted, .. } if noted.covers(hole)),
    )
}

/// What becomes of it: acknowledged, still sought, or lost.
pub fn fate(site: &SiteState, hole: &Hole) -> Fate {
    if acknowledged(site, hole).is_some() {
        Fate::Acknowledged
    } else if exhausted(site, hole) {
        Fate::Lost
    } else {
        Fate::Healing
    }
}

/// Every server that answers said no, or fails to say anything.
pub fn exhausted(site: &SiteState, hole: &Hole) -> bool {
    let hopeless = |means: Means| {
        let tired = site.attempts.iter().any(|(task, failed)| {
            matches!(task, TaskId::Fetch(_, m) if *m == means) && failed.times > TRIES_MAX
        });
        tired || site.holes.absent(means, hole)
    };
    let mut servers = site.servers.up().peekable();
    match servers.peek().is_some() {
        true => servers.all(|server| hopeless(Means::Server(server.node))),
        // Nobody answers: what was said before still holds.
        false => site.holes.absent_somewhere(hole),
    }
}

/// WAL and histories that a restore could have.
struct Held {
    wal: BTreeMap<Timeline, Runs>,
    histories: BTreeSet<Timeline>,
}

impl Held {
    /// Stored and whole (the ledger holds nothing damaged), or spooled, or let go on purpose.
    fn of(site: &SiteState) -> Held {
        let mut held = Held {
            wal: site.ledger.wal.clone(),
            histories: site.ledger.histories.clone(),
        };
        for mark in site.marks.all.values() {
            if let Mark::WalRetired { range } = mark {
                held.add(*range);
            }
        }
        for file in site.ledger.spool.keys() {
            match file {
                File::Wal(s) => held.add(Range {
                    timeline: s.timeline,
                    first: s.number,
                    last: s.number,
                }),
                File::History(timeline) => drop(held.histories.insert(*timeline)),
                File::Partial(_) | File::Part { .. } | File::Main(_) => {}
            }
        }
        held
    }

    fn add(&mut self, range: Range) {
        let runs = self.wal.entry(range.timeline).or_default();
        runs.insert_range(range.first, range.last);
    }

    /// The frontier's timeline first; not the one that reception is on its way to, whose way here
    /// it still fills.
    fn targets(&self, frontier: Segment, toward: Option<Timeline>) -> Vec<Timeline> {
        let others = self.wal.keys().copied();
        let others = others.filter(|t| *t != frontier.timeline && Some(*t) != toward);
        [frontier.timeline].into_iter().chain(others).collect()
    }
}

struct Walk<'a> {
    site: &'a SiteState,
    held: &'a Held,
    size: SegmentSize,
    /// Missing segments, and which backups miss them from where.
    lacking: BTreeMap<Timeline, Runs>,
    histories: BTreeMap<Timeline, Segment>,
}

/// The backups in the store that need WAL beside them, each with what is known of it.
fn backups(site: &SiteState) -> impl Iterator<Item = (&BackupName, &Content)> {
    site.backups.live().filter_map(|(name, backup)| {
        let stored = backup.phase == Phase::Complete && site.ledger.mains.contains(name);
        let needs = |content: &&Content| stored && content.wal == WalIn::Archive;
        Some((name, backup.content.as_ref().filter(needs)?))
    })
}

impl Walk<'_> {
    fn to(&mut self, target: Segment) {
        for (_, content) in backups(self.site) {
            let Some(legs) = legs(self.site, content, target, self.size) else {
                continue;
            };
            for leg in &legs {
                let none = Runs::default();
                let held = self.held.wal.get(&leg.timeline).unwrap_or(&none);
                let last = leg.end.checked_sub(1).filter(|last| *last >= leg.first);
                for gap in last
                    .map(|last| held.gaps(leg.first, last))
                    .into_iter()
                    .flatten()
                {
                    let missing = self.lacking.entry(leg.timeline).or_default();
                    missing.insert_range(*gap.start(), *gap.end());
                }
            }
            // The timeline that a backup began on has no need of its history.
            for leg in legs.iter().skip(1) {
                if !self.held.histories.contains(&leg.timeline) {
                    let begin = Segment::new(leg.timeline, leg.first);
                    self.histories.insert(leg.timeline, begin);
                }
            }
        }
    }

    fn found(self) -> Vec<Found> {
        let mut found = Vec::new();
        for (timeline, runs) in &self.lacking {
            for run in runs.intervals() {
                let (first, last) = (*run.start(), *run.end());
                let timeline = *timeline;
                let hole = Hole::Wal(Range {
                    timeline,
                    first,
                    last,
                });
                let on = |number| Segment::new(timeline, number);
                found.push(self.cost(hole, on(first), on(last), on(last).next()));
            }
        }
        for (timeline, first) in &self.histories {
            found.push(self.cost(Hole::History(*timeline), *first, *first, *first));
        }
        found.sort_by(|a, b| a.hole.cmp(&b.hole));
        found
    }

    /// Backups that begin before `after` and lead to `last` are cut; what follows is lost from
    /// `first` up to the next backup that begins at or beyond `after`.
    fn cost(&self, hole: Hole, first: Segment, last: Segment, after: Segment) -> Found {
        let mut cuts = BTreeSet::new();
        let mut next: Option<&Content> = None;
        for (name, content) in backups(self.site) {
            if self.beyond(content, after) {
                if next.is_none_or(|next| content.start < next.start) {
                    next = Some(content);
                }
            } else if legs(self.site, content, last, self.size).is_some() {
                cuts.insert(name.clone());
            }
        }
        let to = next.map(|next| {
            let end = next.end.unwrap_or(next.start);
            next.end_lsn.unwrap_or(end.end(self.size))
        });
        Found {
            hole,
            cuts,
            impossible: Impossible {
                timeline: first.timeline,
                from: first.start(self.size),
                to,
                until: next.and_then(|next| next.ended_at),
            },
        }
    }

    /// Whether a backup begins at or after `place`, on its timeline or on one that left it later.
    fn beyond(&self, content: &Content, place: Segment) -> bool {
        let start = content.start;
        if start.timeline == place.timeline {
            return start.number >= place.number;
        }
        let path = self.site.timelines.way(start.timeline).unwrap_or_default();
        let left = path.iter().find(|b| b.timeline == place.timeline);
        left.is_some_and(|b| Segment::at(b.timeline, b.switch, self.size).number >= place.number)
    }
}

/// Segments `first..end` of one timeline, `end` excluded; none of a timeline that was left in the
/// segment it began in.
struct Leg {
    timeline: Timeline,
    first: u64,
    end: u64,
}

/// The way from a backup's start to `target`, both included; `None` where it leads elsewhere: it
/// began beyond the target, or on another branch, or ended after its timeline was left.
fn legs(
    site: &SiteState,
    content: &Content,
    target: Segment,
    size: SegmentSize,
) -> Option<Vec<Leg>> {
    let (start, end) = (content.start, content.end.unwrap_or(content.start));
    let mut legs = Vec::new();
    let mut first = start.number;
    if start.timeline != target.timeline {
        let path = site.timelines.way(target.timeline)?;
        let mine = path.iter().position(|b| b.timeline == start.timeline)?;
        let path = path.get(mine..)?;
        for (place, branch) in path.iter().enumerate() {
            // Recovery may have ended before the switch to its own timeline: what follows an
            // earlier end was left.
            let later = path.iter().skip(place).map(|b| b.switch);
            let switch = later.min().unwrap_or(branch.switch);
            let left = Segment::at(branch.timeline, switch, size).number;
            if place == 0 && end.number >= left {
                return None;
            }
            legs.push(Leg {
                timeline: branch.timeline,
                first,
                end: left,
            });
            first = first.max(left);
        }
    }
    let last = target.number;
    legs.push(Leg {
        timeline: target.timeline,
        first,
        end: last.saturating_add(1),
    });
    (first <= last).then_some(legs)
}

#[cfg(test)]
mod tests;
