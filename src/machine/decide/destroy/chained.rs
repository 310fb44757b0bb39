//! What is done, and when, in a site that another was moved from.

use alloc::string::String;
use alloc::vec;

use super::*;
use crate::decide::{Busy, decide};
use crate::event::Envelope;
use crate::file::Site;
use crate::policy::Policy;
use crate::state::State;
use crate::testing::{adopted, lease, reconciled, seen, site_policy};
use crate::wal::{SegmentSize, Timeline};

const NOW: Millis = Millis(1_795_339_646_717);
const HOUR_MS: u64 = 3_600_000;

/// `new` has one basebackup and keeps one, `old` has two and WAL 1 to 30.
struct Bed {
    state: State,
    policy: Policy,
}

impl Bed {
    fn new(old_is_active: bool) -> Bed {
        let mut new = site_policy();
        (new.count, new.count_min) = (Some(1), 1);
        (new.interval_ms, new.streams) = (None, false);
        new.origins = vec![Site("old".into())];
        let mut old = new.clone();
        (old.active, old.count, old.origins) = (old_is_active, None, Vec::new());
        let mut policy = Policy {
            export_events: Some(1),
            ..Policy::default()
        };
        policy.sites.insert(Site("new".into()), new);
        policy.sites.insert(Site("old".into()), old);
        let state = State::default();
        let mut bed = Bed { state, policy };
        let range = Range {
            timeline: Timeline(1),
            first: 1,
            last: 30,
        };
        let found = Event::Found {
            segment_size: SegmentSize::DEFAULT,
            wal: vec![range],
            files: Vec::new(),
        };
        for site in ["new", "old"] {
            bed.tell(site, 0, &[found.clone(), lease(true)]);
        }
        let mut server = seen(0);
        server.system_id = 9;
        bed.tell(
            "new",
            0,
            &[Event::ServerSeen(server), adopted("c", 25, NOW)],
        );
        let learned = Event::ClusterLearned {
            system_id: 1,
            segment: Segment::new(Timeline(1), 30),
        };
        bed.tell(
            "old",
            0,
            &[learned, adopted("a", 10, NOW), adopted("b", 20, NOW)],
        );
        bed
    }

    fn tell(&mut self, site: &str, later_ms: u64, events: &[Event]) {
        for event in events {
            self.state.apply(&Envelope {
                seq: self.state.seq + 1,
                at: NOW.plus(later_ms),
                run: 1,
                site: Some(Site(site.into())),
                event: event.clone(),
            });
        }
    }

    fn listed(&mut self, site: &str, later_ms: u64) {
        self.tell(
            site,
            later_ms,
            &[reconciled(), Event::MarksRead { marks: 0 }],
        );
    }

    /// All that is recorded and started for `old`.
    fn decide(&self, later_ms: u64) -> String {
        let now = NOW.plus(later_ms);
        let commands = decide(&self.state, &self.policy, &Busy::new(), now);
        let old = Site("old".into());
        let told = commands.iter().filter_map(|command| match command {
            Command::Record(site, Event::BackupExpired { backup, .. }) if *site == old => {
                Some(alloc::format!("expire {backup}"))
            }
            Command::Record(site, Event::WalExpired { .. }) if *site == old => {
                Some("expire WAL".into())
            }
            Command::Record(site, event) if *site == old => Some(alloc::format!("{event:?}")),
            Command::Start(task) if *task.id().site() == old => Some(task.id().name().into()),
            _ => None,
        });
        told.collect::<Vec<String>>().join(", ")
    }
}

#[test]
fn nothing_goes_before_every_store_of_the_chain_was_listed_lately() {
    let mut bed = Bed::new(false);
    assert_eq!(bed.decide(0), "lease, reconcile, read marks");
    bed.listed("old", 0);
    assert_eq!(bed.decide(0), "lease");
    bed.listed("new", 0);
    assert_eq!(bed.decide(0), "lease, expire a, expire b");
    // What was seen too long ago is looked at again, here and there.
    let later = HOUR_MS;
    bed.listed("new", later);
    assert_eq!(bed.decide(later), "lease, reconcile, read marks");
    bed.listed("old", later);
    assert_eq!(bed.decide(later), "lease, expire a, expire b");
}

#[test]
fn the_history_goes_with_its_wal_and_nothing_else_is_done_there() {
    let mut bed = Bed::new(false);
    bed.listed("old", 0);
    bed.listed("new", 0);
    let expired = |name: &str| Event::BackupExpired {
        backup: BackupName(name.into()),
        rule: "count".into(),
    };
    let deleted = |name: &str| Event::Deleted {
        wal: Vec::new(),
        files: vec![File::Main(BackupName(name.into()))],
    };
    bed.tell("old", 0, &[expired("a"), expired("b")]);
    assert_eq!(bed.decide(0), "lease, delete");
    bed.tell("old", 0, &[deleted("a"), deleted("b")]);
    assert_eq!(bed.decide(0), "lease, expire WAL");
    let wal = vec![Range {
        timeline: Timeline(1),
        first: 1,
        last: 30,
    }];
    bed.tell("old", 0, &[Event::WalExpired { wal: wal.clone() }]);
    assert_eq!(bed.decide(0), "lease, delete");
    let files = Vec::new();
    bed.tell("old", 0, &[Event::Deleted { wal, files }]);
    assert_eq!(bed.decide(0), "lease");
}

#[test]
fn what_another_daemon_holds_or_a_site_of_its_own_has_does_not_go() {
    let mut held = Bed::new(false);
    held.tell("old", 0, &[lease(false)]);
    held.listed("old", 0);
    held.listed("new", 0);
    assert_eq!(held.decide(0), "lease");

    let mut active = Bed::new(true);
    active.listed("old", 0);
    active.listed("new", 0);
    let told = active.decide(0);
    assert!(
        !["expire a", "expire b"].iter().any(|e| told.contains(e)),
        "{told}"
    );

    // Nobody was moved from it: it is left alone.
    let mut alone = Bed::new(false);
    let new = alone.policy.sites.get_mut(&Site("new".into())).unwrap();
    new.origins.clear();
    assert_eq!(alone.decide(0), "");
}
