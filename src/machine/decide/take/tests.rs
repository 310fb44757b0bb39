//! A backup in one object: what becomes of it between its last byte and its visibility.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use crate::Envelope;
use crate::class::Class;
use crate::decide::{Busy, decide};
use crate::event::{Event, Finished, Millis, WalIn, Why};
use crate::file::{BackupName, File, Site};
use crate::policy::Policy;
use crate::projection::backups::Phase;
use crate::state::State;
use crate::task::{Command, Task};
use crate::testing::{lease, reconciled, seen, site_policy, stored};
use crate::wal::{Lsn, Segment, SegmentSize, Timeline};

const NAME: &str = "2026-11-22_09-27_0";

fn segment(number: u64) -> Segment {
    Segment::new(Timeline(1), number)
}

fn main() -> File {
    File::Main(BackupName(NAME.into()))
}

fn begun() -> Vec<Event> {
    let started = Event::BackupStarted {
        backup: BackupName(NAME.into()),
        node: 0,
        decided_at: Millis(1),
        normalized_at: None,
        reason: Why::Schedule,
    };
    vec![
        lease(true),
        Event::ServerSeen(seen(0)),
        reconciled(),
        started,
    ]
}

/// It needs the segments 2 and 3.
fn finished(wal: WalIn) -> Event {
    Event::BackupFinished(Finished {
        backup: BackupName(NAME.into()),
        start: segment(2),
        end: segment(3),
        start_lsn: Lsn(0x0200_0028),
        end_lsn: Lsn(0x0300_0100),
        started_at: Millis(1),
        ended_at: Millis(2),
        parts: 0,
        bytes_in: 9,
        bytes_out: 4,
        from_standby: false,
        object: Some(NAME.into()),
        wal,
    })
}

fn wal(number: u64) -> Event {
    stored(File::Wal(segment(number)))
}

fn found(files: Vec<File>) -> Event {
    Event::Found {
        segment_size: SegmentSize::DEFAULT,
        wal: Vec::new(),
        files,
    }
}

fn failed() -> Event {
    Event::BackupFailed {
        backup: BackupName(NAME.into()),
        class: Class::Network,
        message: "no".into(),
    }
}

fn started() -> Event {
    Event::Started {
        version: "1".into(),
        host: "vault".into(),
        previous: crate::event::Previous::Crashed,
        config_digest: "x".into(),
    }
}

fn folded(events: &[Event]) -> State {
    let mut state = State::default();
    let mut run = 0;
    for (event, seq) in events.iter().zip(1..) {
        run += u64::from(matches!(event, Event::Started { .. }));
        state.apply(&Envelope {
            seq,
            at: Millis(seq),
            run,
            site: Some(Site("main".into())),
            event: event.clone(),
        });
    }
    state
}

/// After these events: the phase, whether it is ready and restorable, and what is decided of it
/// while somebody takes it (`taking`) or nobody does.
fn check(events: &[Event], phase: Phase, (ready, good): (bool, bool), taking: &str, alone: &str) {
    let state = folded(&[vec![started()], begun(), events.to_vec()].concat());
    let site = state.sites.values().next().unwrap();
    let (backups, ledger) = (&site.backups, &site.ledger);
    let name = BackupName(NAME.into());
    assert_eq!(backups.all[&name].phase, phase, "{events:?}");
    assert_eq!(backups.ready(ledger).is_some(), ready, "{events:?}");
    assert_eq!(!backups.restorable(ledger).is_empty(), good, "{events:?}");
    let task = Task::Take {
        site: Site("main".into()),
        node: 0,
        backup: name,
    };
    let busy = Busy::from([(task.id(), task)]);
    assert_eq!(said(&state, &busy), taking, "taking: {events:?}");
    assert_eq!(said(&state, &Busy::new()), alone, "alone: {events:?}");
}

fn said(state: &State, busy: &Busy) -> String {
    let mut ours = site_policy();
    ours.interval_ms = None;
    let policy = Policy {
        uploads_max: 1,
        sites: [(Site("main".into()), ours)].into(),
        ..Policy::default()
    };
    let about = |command: &Command| match command {
        Command::Record(_, Event::BackupFailed { .. }) => Some("fail"),
        Command::Record(_, Event::BackupExpired { .. }) => Some("expire"),
        Command::Stop(id) if id.name() == "take" => Some("stop"),
        Command::Start(Task::Take { .. }) => Some("take"),
        Command::Start(Task::Switch { .. }) => Some("switch"),
        Command::Start(Task::Reconcile { .. }) => Some("list"),
        Command::Start(Task::Store { .. }) => Some("store"),
        _ => None,
    };
    let now = Millis(10_000);
    let said: Vec<_> = decide(state, &policy, busy, now)
        .iter()
        .filter_map(about)
        .collect();
    said.join(" ").to_string()
}

#[test]
fn one_object_is_complete_once_its_wal_is_there_and_it_was_stored() {
    use Phase::{Complete, Dead, Finished};
    let here = || finished(WalIn::Archive);
    let (no, ready, good) = ((false, false), (true, false), (false, true));
    check(&[], Phase::Running, no, "", "take");
    // It waits for segments 2 and 3; without its taker it is lost, as a listing after the start
    // shows.
    check(&[here()], Finished, no, "switch", "fail switch");
    check(&[here(), wal(2)], Finished, no, "switch", "fail switch");
    check(&[here(), wal(2), wal(3)], Finished, ready, "", "fail");
    let put = || stored(main());
    check(&[here(), wal(2), wal(3), put()], Complete, good, "stop", "");
    // It fails after it was taken.
    check(&[here(), wal(2), wal(3), failed()], Dead, no, "stop", "");
    // A daemon that comes back lists first; what it finds is whole.
    let back = [here(), wal(2), wal(3), started()];
    check(&back, Finished, ready, "", "list");
    let listed = |files| [&back[..], &[found(files)], &[reconciled()]].concat();
    check(&listed(vec![main()]), Complete, good, "stop", "");
    check(&listed(vec![]), Finished, ready, "", "fail");
    // The put said that it failed, and a listing was faster.
    let late = [here(), wal(2), wal(3), found(vec![main()]), failed()];
    check(&late, Complete, good, "stop", "");
}

#[test]
fn a_backup_that_brings_its_wal_waits_for_none() {
    let here = || finished(WalIn::Backup);
    check(&[here()], Phase::Finished, (true, false), "", "fail");
    let put = || stored(main());
    check(&[here(), put()], Phase::Complete, (false, true), "stop", "");
}

#[test]
fn wal_that_is_lost_dooms_a_backup_that_waits_for_it_and_no_other() {
    let lost = |wal| {
        let frontier = Event::StreamStarted {
            node: 0,
            from: segment(2),
            slot: None,
            anchored: false,
        };
        let beyond = Event::StreamStarted {
            node: 0,
            from: segment(9),
            slot: None,
            anchored: true,
        };
        [frontier, finished(wal), beyond]
    };
    check(
        &lost(WalIn::Archive),
        Phase::Finished,
        (false, false),
        "fail switch",
        "fail switch",
    );
    check(
        &lost(WalIn::Backup),
        Phase::Finished,
        (true, false),
        "",
        "fail",
    );
}

/// Retention counts only what can be restored: a backup whose WAL is not there yet pushes none out.
#[test]
fn one_that_waits_for_its_wal_pushes_no_other_out() {
    let older = |name: &str, number| {
        let mut event = finished(WalIn::Archive);
        if let Event::BackupFinished(finished) = &mut event {
            finished.backup = BackupName(name.into());
            finished.object = Some(name.into());
            (finished.start, finished.end) = (segment(number), segment(number));
        }
        let started = Event::BackupStarted {
            backup: BackupName(name.into()),
            node: 0,
            decided_at: Millis(1),
            normalized_at: None,
            reason: Why::Schedule,
        };
        let put = stored(File::Main(BackupName(name.into())));
        [started, event, wal(number), put]
    };
    let marks = Event::MarksRead { marks: 0 };
    let before = [
        older("2026-11-20_00-00_0", 0),
        older("2026-11-21_00-00_0", 1),
    ]
    .concat();
    let waiting = [before, begun(), vec![finished(WalIn::Archive), marks]].concat();
    let state = |more: &[Event]| folded(&[&[started()], &waiting[..], more].concat());
    let task = Task::Take {
        site: Site("main".into()),
        node: 0,
        backup: BackupName(NAME.into()),
    };
    let busy = Busy::from([(task.id(), task)]);
    assert_eq!(said(&state(&[]), &busy), "switch");
    let whole = [wal(2), wal(3), stored(main())];
    assert_eq!(said(&state(&whole), &Busy::new()), "expire");
}
