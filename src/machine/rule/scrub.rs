//! What is verified next.
//!
//! First what a mark says that may not be so any more, then the newest backup, small things, the
//! WAL that this backup is recovered with, older backups, older WAL. A pass that is through waits
//! until it is time for the next; what is stored meanwhile is looked at in handfuls.

use alloc::vec;
use alloc::vec::Vec;

use crate::event::{Millis, Range};
use crate::file::{BackupName, File};
use crate::projection::backups::{Backup, Content, Phase};
use crate::projection::ledger::Presence;
use crate::projection::scrub::{Objects, Trouble};
use crate::runs::Runs;
use crate::state::SiteState;
use crate::task::What;
use crate::wal::Segment;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A pass over so many objects begins.
    Begin(u64),
    Look(What),
}

/// A task looks at so many segments or small files, then others may have their turn.
const BATCH: u64 = 64;
/// Fewer new segments than a batch are worth a look after this long.
const HANDFUL_AFTER_MS: u64 = 3_600_000;
/// What could not be judged is tried again after this long.
const AGAIN_AFTER_MS: u64 = 3_600_000;

pub fn next(site: &SiteState, interval_ms: Option<u64>, now: Millis) -> Option<Next> {
    // Before a listing nobody knows what there is, before the marks what is known of it.
    if site.ledger.reconciled_at.is_none() || site.marks.read_at.is_none() {
        return None;
    }
    if let Some(files) = outdated(site) {
        return Some(Next::Look(What::Files(files)));
    }
    let interval_ms = interval_ms?;
    let Some(pass) = &site.scrub.pass else {
        return Some(Next::Begin(left(site, &Objects::default())));
    };
    if let Some(what) = again(site, now) {
        return Some(Next::Look(what));
    }
    let idle_ms = pass.at.map_or(u64::MAX, |at| now.since(at));
    match unseen(site, &pass.looked, idle_ms) {
        Some(what) => Some(Next::Look(what)),
        None if now.since(pass.started_at) >= interval_ms => {
            Some(Next::Begin(left(site, &Objects::default())))
        }
        None => None,
    }
}

/// Objects that are not in `looked`.
pub fn left(site: &SiteState, looked: &Objects) -> u64 {
    let wal = ranges(site, looked, None);
    let wal = wal
        .iter()
        .map(|range| (range.last - range.first).saturating_add(1));
    let small = small(site, looked).count();
    let backups = backups(site, looked).into_iter().map(|(name, _, content)| {
        let done = looked.parts.get(name).map_or(0, Runs::count);
        u64::from(content.parts)
            .saturating_sub(done)
            .saturating_add(1)
    });
    let small = u64::try_from(small).unwrap_or(u64::MAX);
    wal.chain(backups).fold(small, u64::saturating_add)
}

/// Marked as damaged, and gone or replaced since.
fn outdated(site: &SiteState) -> Option<Vec<File>> {
    let stale = site.ledger.damaged.iter().filter(|(file, presence)| {
        let coming = site.ledger.spool.contains_key(*file);
        **presence != Presence::There && !coming
    });
    let stale: Vec<File> = stale.map(|(file, _)| file.clone()).take(batch()).collect();
    (!stale.is_empty()).then_some(stale)
}

/// One of those that could not be judged.
fn again(site: &SiteState, now: Millis) -> Option<What> {
    let trouble = site.scrub.trouble.as_ref();
    let trouble = trouble.filter(|trouble| now.since(trouble.at) >= AGAIN_AFTER_MS)?;
    let Trouble { objects, .. } = trouble;
    let backup = objects.files.iter().find_map(|file| match file {
        File::Main(name) => Some(name),
        File::Wal(_) | File::Partial(_) | File::History(_) | File::Part { .. } => None,
    });
    if let Some(name) = backup.or_else(|| objects.parts.keys().next()) {
        let content = site
            .backups
            .all
            .get(name)
            .and_then(|b| b.content.as_ref())?;
        return Some(whole(site, name, content, objects));
    }
    if let Some(file) = objects.files.first() {
        return Some(What::Files(vec![file.clone()]));
    }
    let (timeline, runs) = objects.wal.first_key_value()?;
    let run = runs.intervals().next()?;
    Some(What::Wal(vec![Range {
        timeline: *timeline,
        first: *run.start(),
        last: *run.start(),
    }]))
}

fn unseen(site: &SiteState, looked: &Objects, idle_ms: u64) -> Option<What> {
    let backups = backups(site, looked);
    let nothing = Objects::default();
    let newest = site.backups.live().filter(complete).filter_map(content);
    let newest = newest.max_by_key(|(name, _, content)| (content.started_at, *name));
    let of = |(name, _, content): &(&BackupName, &Backup, &Content)| {
        Some(whole(site, name, content, &nothing))
    };
    if let Some((name, ..)) = newest
        && let Some(found) = backups.iter().find(|(other, ..)| *other == name)
    {
        return of(found);
    }
    let small: Vec<File> = small(site, looked).take(batch()).collect();
    if !small.is_empty() {
        return Some(What::Files(small));
    }
    let recent = ranges(site, looked, newest.map(|(.., content)| content.start));
    let older = backups
        .iter()
        .max_by_key(|(name, _, c)| (c.started_at, *name));
    let few = |wal: &[Range]| {
        let count = wal
            .iter()
            .map(|range| (range.last - range.first).saturating_add(1));
        count.fold(0, u64::saturating_add) < BATCH && idle_ms < HANDFUL_AFTER_MS
    };
    if !few(&recent) && !recent.is_empty() {
        return Some(What::Wal(first(recent)));
    }
    if let Some(older) = older {
        return of(older);
    }
    let wal = ranges(site, looked, None);
    (!few(&wal) && !wal.is_empty()).then(|| What::Wal(first(wal)))
}

/// The backup but for the chunks that were looked at and that are not in `anew`.
fn whole(site: &SiteState, name: &BackupName, content: &Content, anew: &Objects) -> What {
    let looked = site.scrub.pass.as_ref().map(|pass| &pass.looked.parts);
    let mut done = looked
        .and_then(|parts| parts.get(name))
        .cloned()
        .unwrap_or_default();
    for run in anew.parts.get(name).into_iter().flat_map(Runs::intervals) {
        done.remove_range(*run.start(), *run.end());
    }
    What::Backup {
        backup: name.clone(),
        object: content.object.clone(),
        done,
    }
}

fn complete((_, backup): &(&BackupName, &Backup)) -> bool {
    backup.phase == Phase::Complete
}

fn content<'a>(
    (name, backup): (&'a BackupName, &'a Backup),
) -> Option<(&'a BackupName, &'a Backup, &'a Content)> {
    Some((name, backup, backup.content.as_ref()?))
}

/// Complete backups whose main object was not looked at.
fn backups<'a>(
    site: &'a SiteState,
    looked: &Objects,
) -> Vec<(&'a BackupName, &'a Backup, &'a Content)> {
    let live = site.backups.live().filter(complete).filter_map(content);
    live.filter(|(name, ..)| {
        let main = File::Main((*name).clone());
        site.ledger.exists(&main) && !looked.files.contains(&main)
    })
    .collect()
}

/// Histories and unfinished segments.
fn small<'a>(site: &'a SiteState, looked: &'a Objects) -> impl Iterator<Item = File> + 'a {
    let ledger = &site.ledger;
    let histories = ledger.histories.iter().copied().map(File::History);
    let partials = ledger.partials.iter().copied().map(File::Partial);
    let damaged = ledger.damaged.iter().filter(|(file, presence)| {
        let small = matches!(file, File::History(_) | File::Partial(_));
        small && **presence == Presence::There && !ledger.spool.contains_key(*file)
    });
    let damaged = damaged.map(|(file, _)| file.clone());
    let all = histories.chain(partials).chain(damaged);
    all.filter(|file| !looked.files.contains(file))
}

/// Stored segments that were not looked at, from `start` on.
fn ranges(site: &SiteState, looked: &Objects, start: Option<Segment>) -> Vec<Range> {
    let none = Runs::default();
    let mut all = Vec::new();
    for (timeline, mut runs) in site.ledger.present_wal() {
        for file in site.ledger.damaged.keys() {
            if let File::Wal(segment) = file
                && segment.timeline == timeline
                && site.ledger.spool.contains_key(file)
            {
                runs.remove(segment.number);
            }
        }
        let seen = looked.wal.get(&timeline).unwrap_or(&none);
        let from = start.map_or(0, |start| start.number);
        if start.is_some_and(|start| timeline < start.timeline) {
            continue;
        }
        for run in runs.intervals().filter(|run| *run.end() >= from) {
            let gaps = seen.gaps((*run.start()).max(from), *run.end());
            all.extend(gaps.into_iter().map(|gap| Range {
                timeline,
                first: *gap.start(),
                last: *gap.end(),
            }));
        }
    }
    all
}

/// As many of them as one task takes.
fn first(ranges: Vec<Range>) -> Vec<Range> {
    let mut room = BATCH;
    let mut taken = Vec::new();
    for mut range in ranges {
        if room == 0 {
            break;
        }
        range.last = range.last.min(range.first.saturating_add(room - 1));
        room = room.saturating_sub((range.last - range.first).saturating_add(1));
        taken.push(range);
    }
    taken
}

fn batch() -> usize {
    usize::try_from(BATCH).unwrap_or(usize::MAX)
}
