//! Two daemons on one prefix (D11): who holds it, and who waits.

use alloc::vec::Vec;

use super::Turn;
use crate::task::{Command, Task, TaskId};

impl Turn<'_> {
    /// Runs as long as the daemon does.
    pub(super) fn lease(&self, out: &mut Vec<Command>) {
        let site = self.name.clone();
        self.start(out, Task::Lease { site });
    }

    /// Whether a backup may be taken and anything destroyed: not while another daemon holds the
    /// prefix, nor before this run has looked. A lease that cannot be read or written keeps nobody
    /// from working: it tells of other daemons and is no lock.
    pub(super) fn holds_prefix(&self) -> bool {
        match &self.site.tenure.lease {
            Some(lease) => lease.ours,
            None => {
                let tried = TaskId::Lease(self.name.clone());
                self.site.attempts.get(&tried).is_some()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;
    use alloc::string::String;
    use alloc::vec::Vec;

    use crate::class::Class;
    use crate::decide::{Busy, decide};
    use crate::event::{Envelope, Event, Millis, Origin, Previous, Why};
    use crate::file::{BackupName, File, Site};
    use crate::policy::Policy;
    use crate::state::State;
    use crate::task::{Command, TaskId};
    use crate::testing::{lease, reconciled, seen, site_policy};
    use crate::wal::{Segment, Timeline};

    fn site() -> Site {
        Site("main".into())
    }

    fn started() -> Event {
        Event::Started {
            version: String::new(),
            host: String::new(),
            previous: Previous::Clean,
            config_digest: String::new(),
        }
    }

    /// A site with something to store, a backup to take and a dead one to delete.
    fn site_at_work() -> Vec<Event> {
        let segment = Segment::new(Timeline(1), 5);
        let dead = BackupName("dead".into());
        [
            started(),
            Event::ServerSeen(seen(0)),
            Event::StreamStarted {
                node: 0,
                from: segment,
                slot: None,
                anchored: false,
            },
            reconciled(),
            Event::MarksRead { marks: 0 },
            Event::Spooled {
                file: File::Wal(segment),
                entry: 1,
                bytes: 1,
                origin: Origin::Stream,
            },
            Event::BackupStarted {
                backup: dead.clone(),
                node: 0,
                decided_at: Millis(1),
                normalized_at: None,
                reason: Why::Schedule,
            },
            Event::BackupFailed {
                backup: dead,
                class: Class::Network,
                message: String::new(),
            },
            // No failure to wait for.
            Event::ConfigLoaded {
                digest: String::new(),
                sites: Vec::new(),
                changed: Vec::new(),
                kept: Vec::new(),
                elsewhere: false,
            },
        ]
        .into()
    }

    /// What of it decide does after these events.
    fn check(more: &[Event], expect: &str) {
        let mut state = State::default();
        for (event, seq) in site_at_work().iter().chain(more).zip(1..) {
            let everywhere = matches!(event, Event::Started { .. });
            state.apply(&Envelope {
                seq,
                at: Millis(seq),
                run: 1,
                site: (!everywhere).then(site),
                event: event.clone(),
            });
        }
        let policy = Policy {
            sites: BTreeMap::from([(site(), site_policy())]),
            uploads_max: 4,
            ..Policy::default()
        };
        let commands = decide(&state, &policy, &Busy::new(), Millis(1_000));
        let done = commands.iter().filter_map(|command| match command {
            Command::Record(_, Event::BackupStarted { .. }) => Some("take"),
            Command::Start(task) => match task.id() {
                TaskId::Store(..) => Some("store"),
                TaskId::Delete(_) => Some("delete"),
                TaskId::Receive(_) => Some("receive"),
                TaskId::Lease(_) => Some("lease"),
                _ => None,
            },
            _ => None,
        });
        assert_eq!(done.collect::<Vec<_>>().join(" "), expect, "{more:?}");
    }

    #[test]
    fn who_does_not_hold_the_prefix_receives_and_changes_nothing_there() {
        let failed = Event::TaskFailed {
            task: TaskId::Lease(site()),
            class: Class::Denied,
            message: "no".into(),
        };
        check(&[], "lease receive store");
        check(&[lease(true)], "lease receive store take delete");
        check(&[lease(false)], "lease receive");
        check(&[lease(true), lease(false)], "lease receive");
        check(
            &[lease(false), lease(true)],
            "lease receive store take delete",
        );
        // No lease can be had there: that keeps nobody from working.
        check(
            core::slice::from_ref(&failed),
            "lease receive store take delete",
        );
        check(&[lease(false), failed], "lease receive");
        // After a restart another may have come: first a look. The server is asked again too.
        check(&[lease(true), started()], "lease store");
        // Who waited goes on waiting.
        check(&[lease(false), started()], "lease");
        check(
            &[lease(false), started(), lease(true)],
            "lease store delete",
        );
    }
}
