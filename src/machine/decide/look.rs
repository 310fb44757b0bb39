//! Looking: at servers, at the store, at its marks.

use alloc::vec::Vec;

use super::Turn;
use super::destroy::listed_lately;
use crate::breaks::{Rule, holds};
use crate::task::{Command, Task, TaskId};

/// A server is looked at again this long after a stream from it began.
const LOOK_AFTER_MS: u64 = 1_000;
/// Marks read longer ago are read again; PGHoard looks for preservation requests as often.
pub(super) const MARKS_AGE_MS: u64 = 300_000;

impl Turn<'_> {
    /// A log that begins anew lets the store say first which cluster its WAL is of, or fail to:
    /// nothing of another one may enter (S-15).
    pub(super) fn introduced(&self) -> bool {
        let asked = TaskId::Reconcile(self.name.clone());
        self.site.ledger.reconciled_at.is_some() || self.site.attempts.get(&asked).is_some()
    }

    pub(super) fn probe(&self, out: &mut Vec<Command>) {
        if !self.introduced() {
            return;
        }
        for node in 0..self.policy.nodes {
            let known = self.site.servers.nodes.get(&node);
            let seen_at = known.filter(|n| n.lost.is_none()).and_then(|n| n.seen_at);
            // When a stream ended, every node may have another role since.
            let ended = self.site.servers.ended.as_ref();
            let stream = self.site.servers.stream.as_ref().filter(|s| s.node == node);
            let stale = seen_at.is_none_or(|at| {
                // What the server makes of our stream shows soon after it began.
                let unseen = stream.is_some_and(|s| at < s.since.plus(LOOK_AFTER_MS));
                self.now.since(at) >= self.policy.probe_interval_ms
                    || at < self.started_at
                    || (unseen && stream.is_some_and(|s| self.now >= s.since.plus(LOOK_AFTER_MS)))
                    || ended.is_some_and(|ended| at < ended.at)
            });
            if stale {
                self.start(
                    out,
                    Task::Probe {
                        site: self.name.clone(),
                        node,
                    },
                );
            }
        }
    }

    pub(super) fn reconcile(&self, out: &mut Vec<Command>) {
        let deleting = self.is_busy(&TaskId::Delete(self.name.clone()))
            && holds(Rule::DeleteApartFromReconcile);
        let at = self.site.ledger.reconciled_at;
        let stale = at.is_none_or(|at| self.now.since(at) >= self.policy.reconcile_interval_ms);
        let asked = || !listed_lately(self.site, self.now) && self.takes_something();
        let unsaid = || self.abandoned() && !self.listed_since_start();
        if (stale || asked() || unsaid()) && !deleting {
            self.start(
                out,
                Task::Reconcile {
                    site: self.name.clone(),
                },
            );
        }
    }

    /// Marks are few and another program may write them: they are read more often than the rest.
    pub(super) fn read_marks(&self, out: &mut Vec<Command>) {
        let at = self.site.marks.read_at;
        if at.is_none_or(|at| self.now.since(at) >= MARKS_AGE_MS) {
            let site = self.name.clone();
            self.start(out, Task::ReadMarks { site });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Envelope;
    use crate::class::Class;
    use crate::decide::{Busy, decide};
    use crate::event::{Event, Millis, Origin};
    use crate::file::{File, Site};
    use crate::policy::Policy;
    use crate::state::State;
    use crate::task::Start;
    use crate::testing::{lease, reconciled, seen, site_policy};
    use crate::wal::{Segment, Timeline};
    use alloc::string::ToString;
    use alloc::vec;

    const SEGMENT: Segment = Segment {
        timeline: Timeline(1),
        number: 1,
    };

    /// The tasks that start after these events (`-` before those that are stopped), of those by
    /// which anything of a server could enter.
    fn check(events: &[Event], busy: &Busy, expect: &[&str]) {
        let site = Site("main".into());
        let mut state = State::default();
        for (event, seq) in events.iter().zip(1..) {
            state.apply(&Envelope {
                seq,
                at: Millis(seq),
                run: 1,
                site: Some(site.clone()),
                event: event.clone(),
            });
        }
        let mut policy = Policy {
            uploads_max: 1,
            ..Policy::default()
        };
        policy.sites.insert(site, site_policy());
        let commands = decide(&state, &policy, busy, Millis(100));
        let told = commands.iter().filter_map(|command| match command {
            Command::Start(task) => Some((task.id(), "")),
            Command::Stop(id) => Some((id.clone(), "-")),
            _ => None,
        });
        let told = told.filter(|(id, _)| {
            matches!(
                id,
                TaskId::Probe(..) | TaskId::Receive(_) | TaskId::Store(..) | TaskId::Take(_)
            )
        });
        let told: Vec<_> = told
            .map(|(id, sign)| alloc::format!("{sign}{}", id.name()))
            .collect();
        assert_eq!(told, expect, "{events:?}");
    }

    #[test]
    fn s15_a_new_log_asks_the_store_for_its_cluster_before_anything_enters() {
        let failed = Task::Reconcile {
            site: Site("main".into()),
        };
        let failed = failed.failed(Class::Network, "unreachable".to_string());
        let spooled = Event::Spooled {
            file: File::Wal(SEGMENT),
            entry: 1,
            bytes: 1,
            origin: Origin::Adopted,
        };
        let told = |system_id| Event::ClusterLearned {
            system_id,
            segment: SEGMENT,
        };
        let nothing = Busy::new();
        let fresh = [lease(true), spooled.clone()];
        check(&fresh, &nothing, &[]);
        let (probe, store) = ("probe", "store");
        let reachable = [lease(true), spooled.clone(), reconciled()];
        check(&reachable, &nothing, &[store, probe]);
        let not = [lease(true), spooled, failed];
        check(&not, &nothing, &[store, probe]);
        // The server is of cluster 1.
        let with = |told| [lease(true), told, reconciled(), Event::ServerSeen(seen(0))];
        check(&with(told(1)), &nothing, &["receive"]);
        check(&with(told(2)), &nothing, &[]);
        let receive = Task::Receive {
            site: Site("main".into()),
            node: 0,
            start: Start::Anchor,
        };
        let streaming = Busy::from([(receive.id(), receive)]);
        check(&with(told(2)), &streaming, &["-receive"]);
        check(&with(told(1)), &streaming, &[]);
    }

    #[test]
    fn s15_the_store_outranks_the_server_that_answered_first() {
        let told = Event::ClusterLearned {
            system_id: 2,
            segment: SEGMENT,
        };
        let events = vec![lease(true), Event::ServerSeen(seen(0)), told, reconciled()];
        check(&events, &Busy::new(), &[]);
    }
}
