//! Each alert that the state, the time and the moment raise: raised, since when, gone.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::event::{Envelope, Event, Finished, Lease, Millis, Origin, Slot, Why};
use crate::file::{BackupName, File, Site};
use crate::policy::{Policy, SitePolicy};
use crate::rule::alerts::alerts;
use crate::rule::coverage::{Live, Space};
use crate::state::State;
use crate::testing::{seen, site_policy, stored};
use crate::wal::{Lsn, Segment, SegmentSize, Timeline};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const GIB: u64 = 1 << 30;

fn site() -> Site {
    Site("main".into())
}

fn at_lsn(hundredths: u64) -> Event {
    let mut server = seen(0);
    server.lsn = Lsn(SegmentSize::DEFAULT.bytes() * hundredths / 100);
    Event::ServerSeen(server)
}

fn slot(held_bytes: u64, status: &str) -> Event {
    let mut server = seen(0);
    server.slot = Some(Slot {
        name: "pghoard".into(),
        held_bytes: Some(held_bytes),
        wal_status: Some(status.into()),
        ..Slot::default()
    });
    Event::ServerSeen(server)
}

fn skew(ms: i64) -> Event {
    let mut server = seen(0);
    server.clock_skew_ms = Some(ms);
    Event::ServerSeen(server)
}

fn begun() -> Event {
    Event::StreamStarted {
        node: 0,
        from: Segment::new(Timeline(1), 5),
        slot: None,
        anchored: false,
    }
}

fn ended() -> Event {
    Event::StreamEnded {
        node: 0,
        at: Lsn(0),
        class: crate::class::Class::Interrupted,
        message: String::new(),
    }
}

fn wal(number: u64) -> Event {
    stored(File::Wal(Segment::new(Timeline(1), number)))
}

fn taken(minute: u64) -> [Event; 3] {
    let backup = BackupName("b".into());
    let start = Segment::new(Timeline(1), 5);
    let begun = Event::BackupStarted {
        backup: backup.clone(),
        node: 0,
        decided_at: Millis(1),
        normalized_at: None,
        reason: Why::Schedule,
    };
    let finished = Event::BackupFinished(Finished {
        backup: backup.clone(),
        start,
        end: start,
        start_lsn: Lsn(1),
        end_lsn: Lsn(2),
        started_at: Millis(minute * MINUTE),
        ended_at: Millis(minute * MINUTE),
        parts: 0,
        bytes_in: 1,
        bytes_out: 1,
        from_standby: false,
        object: None,
        wal: crate::event::WalIn::Archive,
    });
    [begun, finished, stored(File::Main(backup))]
}

fn lease(holder: &str, ours: bool) -> Event {
    Event::LeaseSeen(Lease {
        holder: holder.into(),
        host: "vault".into(),
        ours,
        started_at: Millis(1),
    })
}

/// What happened at which minute, the minute it is now, how far a stream is; then each alert as
/// `name since`, in minutes.
fn check(events: &[(u64, Event)], now: u64, live: &Live, expect: &[&str]) {
    check_of(site_policy(), events, now, live, expect);
}

fn check_of(
    mut site_policy: SitePolicy,
    events: &[(u64, Event)],
    now: u64,
    live: &Live,
    expect: &[&str],
) {
    let mut state = State::default();
    let mut policy = Policy::default();
    site_policy.backup_overdue_ms = Some(10 * HOUR);
    site_policy.slot_retention_bytes = 10 * GIB;
    policy.sites.insert(site(), site_policy);
    for ((minute, event), seq) in events.iter().zip(1..) {
        let everywhere = matches!(
            event,
            Event::ClockJumped { .. } | Event::AlertAcknowledged { .. }
        );
        state.apply(&Envelope {
            seq,
            at: Millis(minute * MINUTE),
            run: 1,
            site: (!everywhere).then(site),
            event: event.clone(),
        });
    }
    let got: Vec<String> = alerts(&state, &policy, live, Millis(now * MINUTE))
        .iter()
        .map(|(name, alert)| alloc::format!("{name} {}", alert.since().0 / MINUTE))
        .collect();
    assert_eq!(got, expect, "{events:?} at {now}");
}

fn none() -> Live {
    Live::default()
}

fn received(hundredths: u64) -> Live {
    let lsn = Lsn(SegmentSize::DEFAULT.bytes() * hundredths / 100);
    Live {
        received: [(site(), lsn)].into(),
        ..Live::default()
    }
}

#[test]
fn s72_no_good_backup_for_too_long_is_told() {
    let start = [(0, at_lsn(510)), (0, begun()), (1, wal(5))];
    let with = |backup: [Event; 3], minute| {
        let backup = backup.map(|event| (minute, event));
        [&start[..], &backup].concat()
    };
    check(&start, 600, &none(), &[]);
    check(&start, 601, &none(), &["backup_overdue 0"]);
    check(&with(taken(30), 31), 630, &none(), &[]);
    check(&with(taken(30), 31), 631, &none(), &["backup_overdue 30"]);
    // Whole again by a later one.
    let two = [&with(taken(30), 31)[..], &taken(700).map(|e| (700, e))].concat();
    check(&two, 701, &none(), &[]);
    // It lost what it needs: it does not count.
    let gone = Event::Missing {
        wal: Vec::new(),
        files: [File::Wal(Segment::new(Timeline(1), 5))].into(),
    };
    let hollow = [&with(taken(590), 590)[..], &[(595, gone)]].concat();
    check(&hollow, 601, &none(), &["backup_overdue 0"]);
}

#[test]
fn s72_wal_that_does_not_become_durable_is_told_and_an_idle_server_is_not() {
    let start = [(0, at_lsn(510)), (0, begun())];
    let with = |more: &[(u64, Event)]| [&start[..], more].concat();
    // Half a segment is no reason, for however long.
    check(&start, 500, &received(510), &[]);
    // Written an hour ago and a whole segment: stored in time, late, and stored at last.
    let full = with(&[(10, at_lsn(600))]);
    check(&full, 70, &received(600), &[]);
    check(&full, 71, &received(600), &["wal_overdue 10"]);
    check(
        &with(&[(10, at_lsn(600)), (72, wal(5))]),
        500,
        &received(600),
        &[],
    );
    // More is written, nothing is stored: since the first of it.
    let more = with(&[(10, at_lsn(600)), (20, at_lsn(700)), (60, at_lsn(900))]);
    check(&more, 71, &received(900), &["wal_overdue 10"]);
    let some = [&more[..], &[(72, wal(5))]].concat();
    check(&some, 80, &received(900), &[]);
    check(&some, 81, &received(900), &["wal_overdue 20"]);
    // A segment waits in the spool, whoever saw the server; one in conflict waits for a person.
    let number = |number| File::Wal(Segment::new(Timeline(1), number));
    let spooled = Event::Spooled {
        file: number(5),
        entry: 1,
        bytes: 1,
        origin: Origin::Stream,
    };
    let waits = with(&[(10, spooled)]);
    check(&waits, 71, &received(600), &["wal_overdue 10"]);
    let conflict = Event::Conflicted {
        file: number(5),
        ours: String::new(),
        theirs: String::new(),
    };
    let told = [&waits[..], &[(20, conflict)]].concat();
    check(&told, 71, &received(600), &["wal_conflict 20"]);
    // A stream that stands and brings nothing.
    check(
        &with(&[(10, at_lsn(550))]),
        71,
        &received(510),
        &["wal_overdue 10"],
    );
    check(&with(&[(10, at_lsn(550))]), 71, &received(550), &[]);
    // No stream at all, whatever the server does; and one again.
    check(&with(&[(10, ended())]), 70, &none(), &[]);
    check(&with(&[(10, ended())]), 71, &none(), &["wal_overdue 10"]);
    check(
        &with(&[(10, ended()), (30, ended())]),
        71,
        &none(),
        &["wal_overdue 10"],
    );
    check(
        &with(&[(10, ended()), (80, begun())]),
        81,
        &received(510),
        &[],
    );
    check(&[(3, at_lsn(510))], 64, &none(), &["wal_overdue 3"]);
}

#[test]
fn s14_a_slot_that_holds_too_much_or_is_given_up_is_told() {
    let stream = |more: &[(u64, Event)]| [&[(0, begun())], more].concat();
    check(&stream(&[(1, slot(10 * GIB, "extended"))]), 2, &none(), &[]);
    let over = [(1, slot(10 * GIB + 1, "extended"))];
    check(&stream(&over), 2, &none(), &["slot_retention 1"]);
    // Since it held half of that; and gone with it.
    let grew = [
        (1, slot(9 * GIB, "extended")),
        (5, slot(12 * GIB, "extended")),
    ];
    check(&stream(&grew), 6, &none(), &["slot_retention 1"]);
    let less = [&grew[..], &[(7, slot(GIB, "reserved"))]].concat();
    check(&stream(&less), 8, &none(), &[]);
    let again = [&less[..], &[(9, slot(12 * GIB, "extended"))]].concat();
    check(&stream(&again), 10, &none(), &["slot_retention 9"]);
    for status in ["unreserved", "lost"] {
        let bad = [
            (1, slot(1, "reserved")),
            (2, slot(1, status)),
            (3, slot(1, status)),
        ];
        check(&stream(&bad), 4, &none(), &["slot_retention 2"]);
        let good = [&bad[..], &[(4, slot(1, "reserved"))]].concat();
        check(&stream(&good), 5, &none(), &[]);
    }
}

#[test]
fn s76_a_doubtful_clock_is_told_until_a_server_or_a_person_agrees() {
    let hours = |hours: i64| Event::ClockJumped {
        by_ms: hours * 3_600_000,
    };
    let start = [(0, begun()), (1, hours(3))];
    check(&start, 2, &none(), &["clock_doubtful 1"]);
    check(&[&start[..], &[(3, skew(1_000))]].concat(), 4, &none(), &[]);
    let alert = "clock_doubtful".into();
    let noted = Event::AlertAcknowledged { alert };
    check(&[&start[..], &[(3, noted)]].concat(), 4, &none(), &[]);
    let apart = [(0, begun()), (1, skew(7_200_000))];
    check(&apart, 2, &none(), &["clock_doubtful 1"]);
    check(&[&apart[..], &[(3, skew(0))]].concat(), 4, &none(), &[]);
}

/// Nobody streams: what counts is what the server wrote.
#[test]
fn s72_wal_that_archive_command_does_not_bring_is_told() {
    let mut archives = site_policy();
    archives.streams = false;
    let check = |events: &[_], now, expect: &[&str]| {
        check_of(archives.clone(), events, now, &none(), expect);
    };
    check(&[(0, at_lsn(90))], 300, &[]);
    let wrote = [(0, at_lsn(90)), (10, at_lsn(310))];
    check(&wrote, 70, &[]);
    check(&wrote, 71, &["wal_overdue 10"]);
}

#[test]
fn what_the_machine_says_of_itself_is_told_while_it_says_so() {
    let mut policy = Policy::default();
    let told = |policy: &Policy| alerts(&State::default(), policy, &none(), Millis(8));
    assert!(told(&policy).is_empty());
    policy.troubles = [(7, "no disk"), (5, "bad settings")]
        .map(|(since, what)| (Millis(since), what.into()))
        .into();
    let told = told(&policy);
    let alert = &told["machine_trouble"];
    assert_eq!((told.len(), alert.entries.len()), (1, 2));
    assert_eq!(alert.since(), Millis(5));
}

#[test]
fn another_daemon_on_the_prefix_is_told_while_it_holds_it() {
    let start = [(0, begun()), (1, lease("me", true))];
    check(&start, 2, &none(), &[]);
    let foreign = [
        &start[..],
        &[(3, lease("you", false)), (5, lease("you", false))],
    ]
    .concat();
    check(&foreign, 6, &none(), &["two_daemons 3"]);
    let back = [&foreign[..], &[(7, lease("me", true))]].concat();
    check(&back, 8, &none(), &[]);
}

#[test]
fn a_disk_without_room_is_told_however_little_the_spool_holds() {
    let start = [(0, begun())];
    let spooled = Event::Spooled {
        file: File::Wal(Segment::new(Timeline(1), 5)),
        entry: 1,
        bytes: 40,
        origin: Origin::Stream,
    };
    let live = |free_bytes, total_bytes| Live {
        received: BTreeMap::new(),
        space: [(
            site(),
            Space {
                free_bytes,
                total_bytes,
                low_since: Some(Millis(MINUTE)),
            },
        )]
        .into(),
    };
    check(&start, 2, &live(GIB, 100 * GIB), &[]);
    check(&start, 2, &live(GIB - 1, 100 * GIB), &["spool_filling 1"]);
    // A small disk is not full because it is small.
    check(&start, 2, &live(GIB / 10, GIB), &[]);
    check(&start, 2, &live(GIB / 100, GIB), &["spool_filling 1"]);
    check(&[(0, begun()), (1, spooled)], 2, &live(GIB, GIB), &[]);
}
