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

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::String;

    use super::*;
    use crate::class::Class;
    use crate::event::{Envelope, Event, How, Origin, Why};
    use crate::file::Site;
    use crate::projection::marks::Mark;
    use crate::state::State;
    use crate::testing::backup;
    use crate::wal::{SegmentSize, Timeline};

    const DAY: u64 = 86_400_000;

    fn wal(first: u64, last: u64) -> Vec<Range> {
        vec![Range {
            timeline: Timeline(1),
            first,
            last,
        }]
    }

    fn segment(number: u64) -> File {
        File::Wal(Segment::new(Timeline(1), number))
    }

    fn verified(wal: Vec<Range>, files: Vec<File>) -> Event {
        Event::Verified {
            wal,
            files,
            bytes: 7,
            partly: 0,
        }
    }

    fn unverified(number: u64, class: Class) -> Event {
        Event::Unverified {
            wal: wal(number, number),
            files: vec![],
            class,
            message: "no".into(),
        }
    }

    fn marked(file: File) -> Event {
        let mark = Mark::Damaged {
            file: file.clone(),
            detail: "a bit".into(),
            at: Millis(1),
        };
        let key = mark.key(SegmentSize::DEFAULT);
        Event::Marked { key, mark }
    }

    fn unmarked(file: File) -> Event {
        match marked(file) {
            Event::Marked { key, .. } => Event::Unmarked { key },
            other => other,
        }
    }

    fn stored(file: File) -> Event {
        Event::Stored {
            file,
            entry: Some(1),
            bytes_in: 1,
            bytes_out: 1,
            digest: String::new(),
            millis: 0,
            how: How::Written,
        }
    }

    fn spooled(file: File) -> Event {
        Event::Spooled {
            file,
            entry: 1,
            bytes: 1,
            origin: Origin::Stream,
        }
    }

    fn gone(number: u64) -> Event {
        Event::Deleted {
            wal: wal(number, number),
            files: vec![],
        }
    }

    fn main(name: &str) -> File {
        File::Main(BackupName(name.into()))
    }

    /// Segments 1 to 200 and a history, listed; marks read; backups `a` at 10 and `b` at 150.
    fn base(backups: &[(&str, u64)]) -> State {
        let files = [File::History(Timeline(2))].into_iter();
        let files = files.chain(backups.iter().map(|(name, _)| main(name)));
        let found = Event::Found {
            segment_size: SegmentSize::DEFAULT,
            wal: wal(1, 200),
            files: files.collect(),
        };
        let listed = crate::testing::reconciled();
        let mut state = State::default();
        for event in [found, listed, Event::MarksRead { marks: 0 }] {
            apply(&mut state, event, Millis(0));
        }
        let site = state.sites.get_mut(&Site("main".into())).unwrap();
        for (name, start) in backups {
            let (name, mut made) = backup(name, Millis(*start), Why::Schedule);
            let content = made.content.as_mut().unwrap();
            content.start = Segment::new(Timeline(1), *start);
            content.end = Some(content.start);
            site.backups.all.insert(name, made);
        }
        state
    }

    fn apply(state: &mut State, event: Event, at: Millis) {
        state.apply(&Envelope {
            seq: state.seq + 1,
            at,
            run: 1,
            site: Some(Site("main".into())),
            event,
        });
    }

    fn told(next: Option<Next>) -> String {
        let range = |r: &Range| format!("{}-{}", r.first, r.last);
        let ranges = |all: &[Range]| all.iter().map(range).collect::<Vec<_>>().join(",");
        match next {
            None => "nothing".into(),
            Some(Next::Begin(objects)) => format!("begin {objects}"),
            Some(Next::Look(What::Wal(all))) => format!("wal {}", ranges(&all)),
            Some(Next::Look(What::Files(files))) => format!("files {}", files.len()),
            Some(Next::Look(What::Backup { backup, done, .. })) => {
                format!("backup {backup} but {}", done.count())
            }
        }
    }

    /// After these events, `now` later.
    fn check(events: &[Event], now: u64, expect: &str) {
        let mut state = base(&[("a", 10), ("b", 150)]);
        for event in events {
            apply(&mut state, event.clone(), Millis(1_000));
        }
        let site = &state.sites[&Site("main".into())];
        let got = next(site, Some(30 * DAY), Millis(1_000 + now));
        assert_eq!(told(got), expect, "after {events:#?}");
    }

    #[test]
    fn s74_each_object_is_looked_at_once_the_newest_backup_first() {
        let begin = Event::ScrubStarted { objects: 203 };
        let newest = [begin.clone(), verified(vec![], vec![main("b")])];
        let history = File::History(Timeline(2));
        let small = [&newest[..], &[verified(vec![], vec![history])]].concat();
        let with = |before: &[Event], more: &[Event]| [before, more].concat();
        let recent = with(&small, &[verified(wal(150, 200), vec![])]);
        let older = with(&recent, &[verified(vec![], vec![main("a")])]);
        let all = with(&older, &[verified(wal(1, 149), vec![])]);
        check(&[], 0, "begin 203");
        check(&newest[..1], 0, "backup b but 0");
        check(&newest, 0, "files 1");
        // Fewer than a batch of new ones wait, but not for ever.
        check(&small, 0, "backup a but 0");
        check(&small, 2 * 3_600_000, "wal 150-200");
        check(&recent, 0, "backup a but 0");
        check(&older, 0, "wal 1-64");
        check(&all, 29 * DAY, "nothing");
        check(&all, 30 * DAY, "begin 203");
        check(&with(&all, &[stored(segment(201))]), 0, "nothing");
        check(
            &with(&all, &[stored(segment(201))]),
            3_600_000,
            "wal 201-201",
        );
        check(
            &with(&all, core::slice::from_ref(&begin)),
            0,
            "backup b but 0",
        );
        let part = File::Part {
            backup: BackupName("b".into()),
            number: 1,
        };
        let half = [begin.clone(), verified(vec![], vec![part])];
        check(&half, 0, "backup b but 1");
        // Deleted and come back: it is another object.
        let back = with(&all, &[gone(7), stored(segment(7))]);
        check(&back, 3_600_000, "wal 7-7");
    }

    #[test]
    fn what_nobody_could_judge_is_tried_again_and_all_of_it_when_one_is_good() {
        let history = File::History(Timeline(2));
        let through = [
            Event::ScrubStarted { objects: 203 },
            verified(wal(3, 200), vec![main("a"), main("b"), history]),
            unverified(1, Class::Config),
            unverified(2, Class::Config),
        ];
        check(&through, 3_599_999, "nothing");
        check(&through, 3_600_000, "wal 1-1");
        let good = [&through[..], &[verified(wal(1, 1), vec![])]].concat();
        check(&good, 3_600_000, "wal 2-2");
        let deleted = [&through[..], &[gone(1), gone(2)]].concat();
        check(&deleted, 3_600_000, "nothing");
        // Gone meanwhile: no trouble, and nothing to try.
        let absent = [
            &through[..2],
            &[verified(wal(2, 2), vec![]), unverified(1, Class::NotFound)],
        ];
        check(&absent.concat(), 3_600_000, "nothing");
    }

    #[test]
    fn a_mark_whose_object_went_or_came_is_looked_at_at_once() {
        let history = File::History(Timeline(2));
        let through = [
            Event::ScrubStarted { objects: 203 },
            verified(wal(1, 200), vec![main("a"), main("b"), history]),
            marked(segment(7)),
        ];
        let with = |more: &[Event]| [&through[..], more].concat();
        check(&through, 0, "nothing");
        check(&with(&[gone(7)]), 0, "files 1");
        check(&with(&[gone(7), unmarked(segment(7))]), 0, "nothing");
        check(&with(&[spooled(segment(7))]), 0, "nothing");
        check(
            &with(&[spooled(segment(7)), stored(segment(7))]),
            0,
            "files 1",
        );
        // In the next pass the damaged one has its turn with the others.
        let later = [
            Event::ScrubStarted { objects: 0 },
            verified(wal(8, 200), vec![main("b")]),
        ];
        let later = with(&[&later[..], &[verified(wal(1, 6), vec![main("a")])]].concat());
        let small = verified(vec![], vec![File::History(Timeline(2))]);
        check(&[&later[..], &[small]].concat(), 3_600_000, "wal 7-7");
    }

    /// Marked is as good as lost, except that the store still has it.
    #[test]
    fn s18_what_is_marked_as_damaged_is_not_held() {
        let mut state = base(&[("a", 10), ("b", 150)]);
        let held = |state: &State, number: u64| {
            let ledger = &state.sites[&Site("main".into())].ledger;
            let restorable = &state.sites[&Site("main".into())].backups;
            let restorable = restorable.restorable(ledger).len();
            let segment = Segment::new(Timeline(1), number);
            let frontier = ledger.frontier.map_or(0, |frontier| frontier.number);
            let exists = ledger.exists(&File::Wal(segment));
            (ledger.has(segment), exists, restorable, frontier)
        };
        assert_eq!(held(&state, 150), (true, true, 2, 200));
        let found = Event::Found {
            segment_size: SegmentSize::DEFAULT,
            wal: wal(149, 151),
            files: vec![],
        };
        for (event, expect) in [
            (marked(segment(150)), (false, true, 1, 200)),
            (found.clone(), (false, true, 1, 200)),
            (gone(150), (false, false, 1, 200)),
            (found, (false, true, 1, 200)),
            (spooled(segment(150)), (true, true, 1, 200)),
            (stored(segment(150)), (false, true, 1, 200)),
            (unmarked(segment(150)), (true, true, 2, 200)),
            (marked(main("b")), (true, true, 1, 200)),
            (unmarked(main("b")), (true, true, 2, 200)),
        ] {
            apply(&mut state, event.clone(), Millis(5));
            assert_eq!(held(&state, 150), expect, "after {event:?}");
        }
    }
}
