//! What ends: sites that the configuration has no more, a daemon on its way out, a full disk.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::Envelope;
use crate::event::{Origin, Range, Slot, Why};
use crate::file::{BackupName, File};
use crate::task::Start;
use crate::testing::{lease, reconciled, seen, site_policy};
use crate::wal::{Lsn, Segment, SegmentSize, Timeline};

fn site() -> Site {
    Site("main".into())
}

fn wal(number: u64) -> File {
    File::Wal(Segment::new(Timeline(1), number))
}

fn receive() -> Task {
    Task::Receive {
        site: site(),
        node: 0,
        start: Start::Anchor,
    }
}

fn store(number: u64) -> Task {
    Task::Store {
        site: site(),
        file: wal(number),
        entry: number,
    }
}

fn take() -> Task {
    Task::Take {
        site: site(),
        node: 0,
        backup: BackupName("2026-11-22_09-27_0".into()),
    }
}

/// What the log says of the site, one event a millisecond.
fn folded(events: impl IntoIterator<Item = Event>) -> State {
    let mut state = State::default();
    for (event, seq) in events.into_iter().zip(1..) {
        state.apply(&Envelope {
            seq,
            at: Millis(seq),
            run: 1,
            site: Some(site()),
            event,
        });
    }
    state
}

/// Segments in the spool, what runs, then `+` what starts and `-` what is stopped.
fn check(spooled: &[u64], running: &[Task], policy: &Policy, expect: &[&str]) {
    let spooled = spooled.iter().map(|number| Event::Spooled {
        file: wal(*number),
        entry: *number,
        bytes: 1,
        origin: Origin::Stream,
    });
    let known = [
        lease(true),
        reconciled(),
        Event::ServerSeen(seen(0)),
        Event::MarksRead { marks: 0 },
    ];
    let state = folded(known.into_iter().chain(spooled));
    let busy: Busy = running
        .iter()
        .map(|task| (task.id(), task.clone()))
        .collect();
    let commands = decide(&state, policy, &busy, Millis(9));
    let told = commands.iter().filter_map(|command| match command {
        Command::Start(task @ (Task::Store { .. } | Task::Receive { .. })) => {
            Some((task.id(), "+"))
        }
        Command::Stop(id) => Some((id.clone(), "-")),
        Command::Start(_) | Command::Record(..) | Command::Compact(_) => None,
    });
    let told: Vec<String> = told.map(|(id, way)| way.to_string() + id.name()).collect();
    assert_eq!(told, expect, "{running:?} {policy:?}");
}

fn policy(draining: Drain) -> Policy {
    Policy {
        sites: BTreeMap::from([(site(), site_policy())]),
        uploads_max: 1,
        draining,
        ..Policy::default()
    }
}

#[test]
fn what_runs_of_a_site_that_is_gone_ends_but_uploads_end_by_themselves() {
    let mut gone = policy(Drain::No);
    gone.sites.clear();
    let running = [receive(), store(1), take()];
    check(&[1, 2], &running, &gone, &["-receive", "-take"]);
    let mut inactive = policy(Drain::No);
    for site in inactive.sites.values_mut() {
        site.active = false;
    }
    check(&[1, 2], &running, &inactive, &["-receive", "-take"]);
}

#[test]
fn s27_reception_goes_last_and_not_before_the_uploads() {
    let (storing, ending) = (policy(Drain::Storing), policy(Drain::Ending));
    for (spooled, running, policy, expect) in [
        (
            &[1][..],
            &[receive(), take()][..],
            &storing,
            &["+store", "-take"][..],
        ),
        (&[1], &[receive(), store(1)], &storing, &[]),
        (&[], &[receive()], &storing, &["-receive"]),
        (&[], &[], &storing, &[]),
        (&[1, 2], &[receive(), store(1)], &ending, &["-receive"]),
        (&[1, 2], &[store(1)], &ending, &[]),
    ] {
        check(spooled, running, policy, expect);
    }
    let mut full = storing;
    for site in full.sites.values_mut() {
        site.cramped_since = Some(Millis(1));
    }
    check(&[1], &[receive(), store(1)], &full, &["-receive"]);
}

#[test]
fn s13_a_disk_that_is_nearly_full_pauses_reception_alone() {
    let mut cramped = policy(Drain::No);
    check(&[], &[], &cramped, &["+receive"]);
    for site in cramped.sites.values_mut() {
        site.cramped_since = Some(Millis(1));
    }
    check(&[1], &[receive()], &cramped, &["-receive", "+store"]);
    check(&[], &[], &cramped, &[]);
}

/// A log that is new knows the store's listing and asks a slot what was promised; one that is yet
/// to be made promises nothing, and would begin where the server happens to be.
#[test]
fn a_new_log_asks_a_slot_only_where_there_is_one() {
    let found = Event::Found {
        segment_size: SegmentSize::DEFAULT,
        wal: [Range {
            timeline: Timeline(1),
            first: 1,
            last: 6,
        }]
        .into(),
        files: Vec::new(),
    };
    let mut with = seen(0);
    with.slot = Some(Slot::default());
    for (server, expect) in [
        (seen(0), Start::At(Segment::new(Timeline(1), 7))),
        (with, Start::Anchor),
    ] {
        let known = [lease(true), Event::ServerSeen(server), found.clone()];
        let read = [reconciled(), Event::MarksRead { marks: 0 }];
        let state = folded(known.into_iter().chain(read));
        assert_eq!(reception(&state, Millis(9)), Some(expect));
    }
}

fn reception(state: &State, now: Millis) -> Option<Start> {
    let commands = decide(state, &policy(Drain::No), &Busy::new(), now);
    commands.iter().find_map(|command| match command {
        Command::Start(Task::Receive { start, .. }) => Some(*start),
        Command::Start(_) | Command::Stop(_) | Command::Record(..) | Command::Compact(_) => None,
    })
}

/// The checkpoint of a backup lets go of the segment that is received, and the stream ends. Going
/// on where the server is by then would pass over what the backup needs.
#[test]
fn s07_a_lost_stream_goes_on_at_the_checkpoint_of_the_backup_that_runs() {
    let third = Segment::new(Timeline(1), 3);
    let backup = Event::BackupStarted {
        backup: BackupName("2026-11-22_09-27_0".into()),
        node: 0,
        decided_at: Millis(1),
        normalized_at: None,
        reason: Why::Schedule,
    };
    for (running, class, expect) in [
        (true, Class::NotFound, Start::Checkpoint),
        (false, Class::NotFound, Start::Anchor),
        (true, Class::Network, Start::At(third)),
    ] {
        let streamed = Event::StreamStarted {
            node: 0,
            from: third,
            slot: None,
            anchored: true,
        };
        let ended = Event::StreamEnded {
            node: 0,
            at: Lsn(0x0300_0000),
            class,
            message: "ended".into(),
        };
        let mut events = vec![
            lease(true),
            reconciled(),
            Event::ServerSeen(seen(0)),
            streamed,
        ];
        events.extend(running.then(|| backup.clone()));
        events.extend([ended, Event::ServerSeen(seen(0))]);
        let state = folded(events);
        let started = reception(&state, Millis(1_000));
        assert_eq!(started, Some(expect), "{running} {class}");
    }
}
