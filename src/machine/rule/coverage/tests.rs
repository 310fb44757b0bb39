//! What can be restored and what is not safe, as tables of events.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::*;
use crate::event::{Branch, Envelope, Event, Finished, Origin, Range, Why};
use crate::file::File;
use crate::state::State;
use crate::testing::{self, site_policy};

fn name() -> Site {
    Site("main".into())
}

fn on(timeline: u32, number: u64) -> Segment {
    Segment::new(Timeline(timeline), number)
}

/// The byte at so many hundredths of a segment.
fn lsn(hundredths: u64) -> Lsn {
    Lsn(SegmentSize::DEFAULT.bytes() * hundredths / 100)
}

fn seen_on(timeline: u32, hundredths: u64) -> Event {
    let mut server = testing::seen(0);
    server.timeline = Timeline(timeline);
    server.lsn = lsn(hundredths);
    Event::ServerSeen(server)
}

fn seen(hundredths: u64) -> Event {
    seen_on(1, hundredths)
}

fn begun(timeline: u32, number: u64) -> Event {
    Event::StreamStarted {
        node: 0,
        from: on(timeline, number),
        slot: None,
        anchored: false,
    }
}

fn stored_on(timeline: u32, number: u64) -> Event {
    testing::stored(File::Wal(on(timeline, number)))
}

fn stored(number: u64) -> Event {
    stored_on(1, number)
}

fn learned(timeline: u32, parent: u32, hundredths: u64) -> Event {
    Event::TimelineLearned {
        timeline: Timeline(timeline),
        ancestors: alloc::vec![Branch {
            timeline: Timeline(parent),
            switch: lsn(hundredths),
        }],
    }
}

/// A backup within one segment, in full: three events.
fn backup(label: &str, timeline: u32, number: u64, ended_at: u64) -> Vec<Event> {
    let backup = BackupName(label.into());
    let begun = Event::BackupStarted {
        backup: backup.clone(),
        node: 0,
        decided_at: Millis(1),
        normalized_at: None,
        reason: Why::Schedule,
    };
    let finished = Event::BackupFinished(Finished {
        backup: backup.clone(),
        start: on(timeline, number),
        end: on(timeline, number),
        start_lsn: lsn(number * 100 + 10),
        end_lsn: lsn(number * 100 + 20),
        started_at: Millis(ended_at - 1),
        ended_at: Millis(ended_at),
        parts: 0,
        bytes_in: 1,
        bytes_out: 1,
        from_standby: false,
        object: None,
        wal: WalIn::Archive,
    });
    [begun, finished, testing::stored(File::Main(backup))].into()
}

/// Folds what happens at 1, 2, ...
fn fold(events: &[Event]) -> SiteState {
    let mut state = State::default();
    for (event, seq) in events.iter().zip(1..) {
        state.apply(&Envelope {
            seq,
            at: Millis(seq),
            run: 1,
            site: Some(name()),
            event: event.clone(),
        });
    }
    state.sites.remove(&name()).unwrap_or_default()
}

/// Positions as hundredths of a segment.
fn hundredths(lsn: Lsn) -> u64 {
    let size = SegmentSize::DEFAULT.bytes();
    (lsn.0 * 100 + size / 2) / size
}

/// Each window reads `timeline:from-to moments backups`, `..` behind it while it is open.
fn check(events: &[&[Event]], expect: &str) {
    let site = fold(&events.concat());
    let all = windows(&site);
    let told: Vec<String> = all
        .iter()
        .map(|w| {
            let open = if w.open { ".." } else { "" };
            let (from, to) = (hundredths(w.from_lsn), hundredths(w.to_lsn));
            let (since, until) = (w.from_at.0, w.to_at.0);
            format!(
                "{}:{from}-{to} @{since}-{until} x{}{open}",
                w.timeline, w.backups
            )
        })
        .collect();
    assert_eq!(told.join(", "), expect, "{events:?}");
}

#[test]
fn windows_go_from_a_backups_end_to_the_first_gap() {
    let start = [seen(510), begun(1, 5), stored(5)];
    let one = backup("a", 1, 5, 4);
    let missing = |first, last| Event::Missing {
        wal: alloc::vec![Range {
            timeline: Timeline(1),
            first,
            last,
        }],
        files: Vec::new(),
    };
    let two = [&one[..], &[stored(6)], &backup("b", 1, 6, 9)].concat();
    check(&[&start], "");
    check(&[&start, &one], "1:520-600 @4-4 x1..");
    check(&[&start, &one, &[stored(6)]], "1:520-700 @4-4 x1..");
    // A look that is covered says until when.
    check(&[&start, &one, &[seen(590)]], "1:520-600 @4-7 x1..");
    check(&[&start, &one, &[seen(610)]], "1:520-600 @4-4 x1..");
    check(
        &[&start, &one, &[seen(610), stored(6)]],
        "1:520-700 @4-7 x1..",
    );
    // Two that overlap are one; a gap splits them, and what lies behind it is not reached.
    check(&[&start, &two], "1:520-700 @4-9 x2..");
    let far = [&two[..], &[stored(7), stored(8)], &backup("c", 1, 8, 14)].concat();
    check(&[&start, &far], "1:520-900 @4-14 x3..");
    let gap = [missing(7, 7)];
    check(
        &[&start, &far, &gap],
        "1:520-700 @4-9 x2, 1:820-900 @14-14 x1..",
    );
    // The end of a backup's own WAL is gone: it cannot be restored at all.
    check(&[&start, &two, &[missing(5, 5)]], "1:620-700 @9-9 x1..");
}

/// The same with its WAL inside.
fn alone(label: &str, number: u64, ended_at: u64) -> Vec<Event> {
    let mut events = backup(label, 1, number, ended_at);
    for event in &mut events {
        if let Event::BackupFinished(finished) = event {
            finished.wal = WalIn::Backup;
            finished.object = Some(label.into());
        }
    }
    events
}

#[test]
fn backups_that_stand_alone_are_windows_of_one_position() {
    let two = [alone("a", 5, 4), alone("b", 8, 9)].concat();
    check(
        &[&[seen(510)], &two],
        "1:520-520 @4-4 x1, 1:820-820 @9-9 x1",
    );
    // WAL after it counts only with the whole of its last segment.
    check(
        &[&[seen(510)], &two, &[stored(9)]],
        "1:520-520 @4-4 x1, 1:820-820 @9-9 x1",
    );
    check(
        &[&[seen(510)], &two, &[stored(8), stored(9)]],
        "1:520-520 @4-4 x1, 1:820-1000 @9-9 x1",
    );
    // They make no holes, whatever lies in the store from other times, and nothing is awaited.
    let before = [seen(510), begun(1, 2), stored(2), seen(900)];
    let site = fold(&[&before[..], &two, &[testing::reconciled()]].concat());
    assert_eq!(crate::rule::holes::holes(&site), []);
    let mut policy = site_policy();
    (policy.streams, policy.standalone) = (false, true);
    let now = Millis(20);
    let said = coverage(&name(), &site, Some(&policy), &Live::default(), now);
    assert_eq!(said.protected_until, Some(Millis(9)));
    assert_eq!(said.unprotected, Unprotected::default());
}

#[test]
fn s48_windows_follow_timelines_whose_history_is_stored() {
    let start = [seen(510), begun(1, 5), stored(5)];
    let one = backup("a", 1, 5, 4);
    let history = [testing::stored(File::History(Timeline(2)))];
    let over = [learned(2, 1, 650), seen_on(2, 660), begun(2, 6)];
    let child = [stored_on(2, 6), stored_on(2, 7)];
    check(&[&start, &one, &over, &child], "1:520-600 @4-4 x1..");
    check(
        &[&start, &one, &history, &over, &child],
        "2:520-800 @4-9 x1..",
    );
    // Taken beyond the point where the cluster left that timeline.
    let dead = [&[stored(6), stored(7)][..], &backup("b", 1, 7, 9)].concat();
    check(
        &[&start, &one, &dead, &history, &over, &child],
        "2:520-800 @4-14 x1.., 1:720-800 @9-9 x1",
    );
}

/// A log that was lost while the new timeline had nothing stored begins on that timeline.
#[test]
fn a_window_is_open_though_the_new_timeline_has_nothing_yet() {
    let over = [learned(2, 1, 650), seen_on(2, 660), begun(2, 6)];
    let one = [&[stored(5)][..], &backup("a", 1, 5, 4)].concat();
    let history = [testing::stored(File::History(Timeline(2)))];
    check(&[&over, &one, &history], "1:520-600 @4-4 x1..");
    // Reception that began further on left something out.
    let later = [learned(2, 1, 650), seen_on(2, 760), begun(2, 7)];
    check(&[&later, &one, &history], "1:520-600 @4-4 x1");
}

fn exposed(events: &[Event], ack: Ack, received: u64, expect: (Option<u64>, Option<u64>)) {
    let (site, mut policy) = (fold(events), site_policy());
    policy.ack = ack;
    let live = Live {
        received: [(name(), lsn(received))].into(),
        ..Live::default()
    };
    let told = coverage(&name(), &site, Some(&policy), &live, Millis(1_000)).unprotected;
    let bytes = told.bytes.map(|bytes| hundredths(Lsn(bytes)));
    assert_eq!((bytes, told.since.map(|at| at.0)), expect, "{events:?}");
}

#[test]
fn what_the_server_wrote_and_was_not_told_is_safe_is_unprotected() {
    use Ack::{Spooled, Stored};
    let start = [begun(1, 5), seen(510)];
    exposed(&[], Stored, 0, (None, None));
    exposed(&start, Stored, 510, (Some(10), Some(2)));
    exposed(&start, Spooled, 510, (Some(0), None));
    exposed(&start, Spooled, 505, (Some(5), Some(2)));
    let with = |more: &[Event]| [&start[..], more].concat();
    // The oldest that is not covered counts, also after the server was seen again.
    exposed(
        &with(&[seen(580), seen(650)]),
        Stored,
        650,
        (Some(150), Some(2)),
    );
    let some = with(&[seen(580), seen(650), stored(5)]);
    exposed(&some, Stored, 650, (Some(50), Some(4)));
    exposed(
        &with(&[seen(650), seen(650), stored(5), stored(6)]),
        Stored,
        0,
        (Some(0), None),
    );
    // What it sent since it was last seen was written too.
    let spooled = Event::Spooled {
        file: File::Wal(on(1, 5)),
        entry: 1,
        bytes: 1,
        origin: Origin::Stream,
    };
    let some = [begun(1, 5), seen(500), spooled];
    exposed(&some, Stored, 650, (Some(150), Some(3)));
    exposed(&some, Spooled, 650, (Some(0), None));
    exposed(&some[..2], Stored, 520, (Some(20), Some(2)));
    // s48: what lies beyond the switch is on no one's way.
    let over = with(&[seen(590), learned(2, 1, 550), seen_on(2, 560)]);
    exposed(&over, Stored, 550, (Some(60), Some(2)));
    // An old primary that came back says nothing about what the cluster writes.
    let back = with(&[learned(2, 1, 550), seen_on(2, 560), seen(900)]);
    let site = fold(&back);
    assert_eq!(
        site.exposure.looks.last().map(|look| look.lsn),
        Some(lsn(560))
    );
}

#[test]
fn looks_are_bounded_and_the_oldest_stays() {
    let many: Vec<Event> = (0..1_000).map(|n| seen(510 + n)).collect();
    let site = fold(&[&[begun(1, 5)], &many[..]].concat());
    assert!(site.exposure.looks.len() <= 64);
    assert_eq!(
        site.exposure.looks.first().map(|look| look.at),
        Some(Millis(2))
    );
}

#[test]
fn the_spool_lasts_as_long_as_its_room_at_the_rate_of_the_last_day() {
    let hour = 3_600_000;
    let mut state = State::default();
    let spooled = |number: u64| Event::Spooled {
        file: File::Wal(on(1, number)),
        entry: number,
        bytes: 1_000,
        origin: Origin::Stream,
    };
    // Ten segments an hour for two days; all but the last one are stored.
    for number in 0..480 {
        let events = [spooled(number), stored(number)];
        for event in events.into_iter().take(if number == 479 { 1 } else { 2 }) {
            state.apply(&Envelope {
                seq: number + 1,
                at: Millis(hour * 100 + number * hour / 10),
                run: 1,
                site: Some(name()),
                event: match event {
                    Event::Stored { file, .. } => Event::Dropped {
                        file,
                        entry: number,
                        reason: crate::event::Reason::Duplicate,
                    },
                    other => other,
                },
            });
        }
    }
    let site = &state.sites[&name()];
    let mut policy = site_policy();
    let now = Millis(hour * 148);
    let mut lasts = |limit, free: Option<u64>| {
        policy.spool_limit_bytes = limit;
        let space = free.map(|free_bytes| Space {
            free_bytes,
            ..Space::default()
        });
        let live = Live {
            space: space.map(|space| (name(), space)).into_iter().collect(),
            ..Live::default()
        };
        coverage(&name(), site, Some(&policy), &live, now).spool_lasts_ms
    };
    assert_eq!(lasts(101_000, None), Some(10 * hour));
    assert_eq!(lasts(101_000, Some(50_000)), Some(5 * hour));
    assert_eq!(lasts(500, Some(50_000)), Some(0));
    let idle = coverage(
        &name(),
        &SiteState::default(),
        Some(&policy),
        &Live::default(),
        now,
    );
    assert_eq!((idle.spool_lasts_ms, idle.wal_bytes_an_hour), (None, 0));
}

#[test]
fn the_newest_backup_that_can_be_restored_is_the_last_good_one() {
    let start = [seen(510), begun(1, 5), stored(5)];
    let one = backup("a", 1, 5, 4);
    let future = backup("b", 1, 5, 9_000);
    let last = |events: &[&[Event]]| {
        let (name, at) = last_backup(&fold(&events.concat()), Millis(1_000))?;
        Some(format!("{name} {}", at.0))
    };
    assert_eq!(last(&[&start]), None);
    assert_eq!(last(&[&start, &one]).as_deref(), Some("a 4"));
    // s36: a clock that was wrong took it.
    assert_eq!(last(&[&start, &one, &future]).as_deref(), Some("a 4"));
}
