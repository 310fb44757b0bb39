//! What is asked of a store that refuses to delete, and when again (S-66).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;

use super::*;
use crate::class::Class;
use crate::decide::{Busy, decide};
use crate::event::Envelope;
use crate::file::Site;
use crate::policy::Policy;
use crate::projection::attempts::refused::REST_MS;
use crate::state::State;
use crate::testing::{adopted, lease, reconciled, seen, site_policy};
use crate::wal::{SegmentSize, Timeline};

const NOW: Millis = Millis(1_795_339_646_717);

#[test]
fn s66_what_is_locked_is_passed_over_and_asked_for_again_in_a_day() {
    let mut site = Bed::new();
    let next = site.decide(0);
    assert_eq!(next, "expire a, expire b");
    site.tell(0, &[expired("a"), expired("b")]);
    assert_eq!(site.decide(0), "delete a");
    // The others go on, and their WAL: only what the locked one needs by itself stays.
    site.tell(0, &[refused(&[], vec![main("a")])]);
    assert_eq!(site.decide(0), "delete b");
    site.tell(0, &[deleted(&[], vec![main("b")])]);
    assert_eq!(site.decide(0), "expire 1-9 11-24");
    site.tell(
        0,
        &[Event::WalExpired {
            wal: vec![range(1, 9), range(11, 24)],
        }],
    );
    assert_eq!(site.decide(0), "delete 1-9 11-24");
    let locked = [
        deleted(&[(1, 4), (11, 24)], Vec::new()),
        refused(&[(5, 9)], Vec::new()),
    ];
    site.tell(0, &locked);
    for later in [0, REST_MS / 2, REST_MS - 1] {
        assert_eq!(site.decide(later), "", "{later}");
    }
    // Each is asked once more, and rests again.
    let day = REST_MS;
    assert_eq!(site.decide(day), "delete a");
    site.tell(day, &[refused(&[], vec![main("a")])]);
    assert_eq!(site.decide(day), "delete 5-9");
    site.tell(day, &[refused(&[(5, 9)], Vec::new())]);
    assert_eq!(site.decide(2 * day - 1), "");
    // The locks end.
    assert_eq!(site.decide(2 * day), "delete a");
    site.tell(2 * day, &[deleted(&[], vec![main("a"), part("a", 1)])]);
    assert_eq!(site.decide(2 * day), "expire 10-10");
    site.tell(
        2 * day,
        &[Event::WalExpired {
            wal: vec![range(10, 10)],
        }],
    );
    assert_eq!(site.decide(2 * day), "delete 5-10");
    site.tell(2 * day, &[deleted(&[(5, 10)], Vec::new())]);
    assert_eq!(site.decide(2 * day), "");
    assert_eq!(site.refusals(), 0);
}

#[test]
fn s66_chunks_that_were_locked_when_their_backup_went_are_not_forgotten() {
    let mut site = Bed::new();
    site.tell(0, &[expired("a"), expired("b")]);
    let gone = |name, number| deleted(&[], vec![main(name), part(name, number)]);
    site.tell(0, &[gone("a", 1), refused(&[], vec![part("a", 2)])]);
    assert_eq!(site.decide(0), "delete b");
    site.tell(0, &[gone("b", 1)]);
    site.retire_wal();
    assert_eq!(site.decide(REST_MS - 1), "");
    assert_eq!(site.decide(REST_MS), "delete a");
    site.tell(REST_MS, &[gone("a", 2)]);
    assert_eq!(site.decide(REST_MS), "");
    assert_eq!(site.refusals(), 0);
}

#[test]
fn s66_stragglers_do_not_put_off_what_rests_and_a_hold_ends_the_asking() {
    let mut site = Bed::new();
    site.tell(
        0,
        &[expired("a"), expired("b"), refused(&[], vec![main("a")])],
    );
    site.tell(0, &[deleted(&[], vec![main("b")])]);
    site.tell(
        0,
        &[Event::WalExpired {
            wal: vec![range(1, 9), range(11, 24)],
        }],
    );
    site.tell(0, &[refused(&[(1, 9)], Vec::new())]);
    assert_eq!(site.decide(0), "delete 11-24");
    site.tell(REST_MS - 5, &[refused(&[(11, 24)], Vec::new())]);
    assert_eq!(site.decide(REST_MS - 1), "");
    let hold = Event::Marked {
        key: "k".into(),
        mark: crate::projection::marks::Mark::Hold {
            backup: BackupName("a".into()),
            reason: "audit".into(),
            by: "ada".into(),
            until: None,
        },
    };
    site.tell(REST_MS - 1, &[hold]);
    assert_eq!(site.decide(REST_MS), "delete 1-9");
}

/// A hold that comes at the last moment ends by a clock that may be wrong: it counts.
#[test]
fn s76_while_the_clock_is_in_doubt_a_last_look_takes_every_hold_for_standing() {
    for (skew_ms, expect) in [(0, NOW), (400 * 86_400_000, Millis(0))] {
        let mut site = Bed::new();
        let mut server = seen(0);
        server.clock_skew_ms = Some(skew_ms);
        site.tell(0, &[expired("a"), Event::ServerSeen(server)]);
        site.tell(0, &[reconciled(), Event::MarksRead { marks: 0 }]);
        let commands = decide(&site.state, &site.policy, &Busy::new(), NOW);
        let until = commands.iter().find_map(|command| match command {
            Command::Start(Task::DeleteBackup { unless_held_at, .. }) => *unless_held_at,
            _ => None,
        });
        assert_eq!(until, Some(expect), "{skew_ms}");
        // And it lives again, whatever the clock says of the end.
        let mark = crate::projection::marks::Mark::Hold {
            backup: BackupName("a".into()),
            reason: "an audit".into(),
            by: "ada".into(),
            until: Some(Millis(NOW.0 - 1)),
        };
        let key = "x".into();
        site.tell(0, &[Event::Marked { key, mark }]);
        let again = if skew_ms == 0 {
            "expire a, expire b"
        } else {
            "expire b"
        };
        assert_eq!(site.decide(0), again, "{skew_ms}");
    }
}

/// WAL before every basebackup goes by its number.
#[test]
fn s76_nothing_goes_by_age_while_the_clock_is_not_synchronised() {
    for (lost, expect) in [
        (None, "expire a, expire b"),
        (Some(Millis(1)), "expire 1-9"),
    ] {
        let mut site = Bed::new();
        let policy = site.policy.sites.values_mut().next().unwrap();
        (policy.count, policy.count_min) = (None, 1);
        policy.age_max_ms = Some(1);
        site.policy.unsynchronised = lost.map(|since| (since, "no server answers".into()));
        assert_eq!(site.decide(REST_MS * 9), expect, "{lost:?}");
    }
}

/// The try may have ended before it looked for a hold that came late.
#[test]
fn wal_waits_for_the_backup_whose_removal_failed() {
    let mut site = Bed::new();
    site.tell(0, &[expired("a"), expired("b")]);
    assert_eq!(site.decide(0), "delete a");
    let failed = Event::TaskFailed {
        task: TaskId::Delete(name()),
        class: Class::Network,
        message: "the reply was lost".to_string(),
    };
    site.tell(0, &[failed]);
    assert_eq!(site.decide(0), "", "not its WAL");
    assert_eq!(site.decide(60_000), "delete a");
    let gone = ["a", "b"].map(|name| deleted(&[], vec![main(name), part(name, 1)]));
    site.tell(60_000, &gone);
    assert_eq!(site.decide(60_000), "expire 1-24");
}

/// The lock of an old one ends when what came after it is gone: it is better than nothing.
#[test]
fn s66_the_last_backup_there_is_stays_though_it_expired() {
    let mut site = Bed::new();
    site.tell(0, &[expired("a"), expired("b")]);
    site.tell(0, &[refused(&[], vec![main("a")])]);
    site.tell(0, &[deleted(&[], vec![main("b"), part("b", 1)])]);
    site.retire_wal();
    let lost = Event::Missing {
        wal: Vec::new(),
        files: vec![main("c")],
    };
    site.tell(0, core::slice::from_ref(&lost));
    assert_eq!(site.decide(REST_MS), "");
    let back = Event::Found {
        segment_size: SegmentSize::DEFAULT,
        wal: Vec::new(),
        files: vec![main("c")],
    };
    site.tell(REST_MS, &[back]);
    assert_eq!(site.decide(REST_MS), "delete a");
}

struct Bed {
    state: State,
    policy: Policy,
}

impl Bed {
    /// Three backups of which the newest stays, and WAL 1 to 30.
    fn new() -> Bed {
        let mut ours = site_policy();
        (ours.count, ours.count_min) = (Some(1), 1);
        ours.interval_ms = None;
        ours.verify_interval_ms = None;
        ours.streams = false;
        let mut policy = Policy::default();
        policy.sites.insert(name(), ours);
        let state = State::default();
        let mut bed = Bed { state, policy };
        let found = Event::Found {
            segment_size: SegmentSize::DEFAULT,
            wal: vec![range(1, 30)],
            files: Vec::new(),
        };
        let backups = [("a", 10), ("b", 20), ("c", 25)].map(|(name, at)| adopted(name, at, NOW));
        bed.tell(0, &[Event::ServerSeen(seen(0)), lease(true), found]);
        bed.tell(0, &backups);
        bed
    }

    fn tell(&mut self, later_ms: u64, events: &[Event]) {
        for event in events {
            self.state.apply(&Envelope {
                seq: self.state.seq + 1,
                at: NOW.plus(later_ms),
                run: 1,
                site: Some(name()),
                event: event.clone(),
            });
        }
    }

    /// What would be destroyed, with a listing and the marks just read.
    fn decide(&mut self, later_ms: u64) -> String {
        self.tell(later_ms, &[reconciled(), Event::MarksRead { marks: 0 }]);
        let now = NOW.plus(later_ms);
        let commands = decide(&self.state, &self.policy, &Busy::new(), now);
        let told = commands.iter().filter_map(|command| match command {
            Command::Record(_, Event::BackupExpired { backup, .. }) => {
                Some(format!("expire {backup}"))
            }
            Command::Record(_, Event::WalExpired { wal }) => Some(format!("expire{}", names(wal))),
            Command::Start(Task::DeleteBackup { backup, .. }) => Some(format!("delete {backup}")),
            Command::Start(Task::DeleteWal { ranges, .. }) => {
                Some(format!("delete{}", names(ranges)))
            }
            _ => None,
        });
        told.collect::<Vec<_>>().join(", ")
    }

    /// All WAL below the newest backup goes.
    fn retire_wal(&mut self) {
        self.tell(0, &[deleted(&[(1, 24)], Vec::new())]);
    }

    fn refusals(&self) -> u64 {
        let site = self.state.sites.get(&name());
        let refused = site.and_then(|site| site.attempts.refused.as_ref());
        refused.map_or(0, |refused| refused.count())
    }
}

fn name() -> Site {
    Site("main".into())
}

fn names(ranges: &[Range]) -> String {
    let range = |range: &Range| format!(" {}-{}", range.first, range.last);
    ranges.iter().map(range).collect()
}

fn range(first: u64, last: u64) -> Range {
    let timeline = Timeline(1);
    Range {
        timeline,
        first,
        last,
    }
}

fn main(name: &str) -> File {
    File::Main(BackupName(name.into()))
}

fn part(name: &str, number: u32) -> File {
    let backup = BackupName(name.into());
    File::Part { backup, number }
}

fn expired(name: &str) -> Event {
    Event::BackupExpired {
        backup: BackupName(name.into()),
        rule: "count".into(),
    }
}

fn deleted(wal: &[(u64, u64)], files: Vec<File>) -> Event {
    let wal = wal
        .iter()
        .map(|(first, last)| range(*first, *last))
        .collect();
    Event::Deleted { wal, files }
}

fn refused(wal: &[(u64, u64)], files: Vec<File>) -> Event {
    Event::DeletionRefused {
        wal: wal
            .iter()
            .map(|(first, last)| range(*first, *last))
            .collect(),
        files,
        marks: Vec::new(),
        class: Class::Denied,
        message: "locked".to_string(),
    }
}
