//! Looking: at servers, at the store, at its marks.

use alloc::vec::Vec;

use super::Turn;
use crate::breaks::{Rule, holds};
use crate::task::{Command, Task, TaskId};

/// A server is looked at again this long after a stream from it began.
const LOOK_AFTER_MS: u64 = 1_000;
/// Marks read longer ago are read again; PGHoard looks for preservation requests as often.
pub(super) const MARKS_AGE_MS: u64 = 300_000;

impl Turn<'_> {
    pub(super) fn probe(&self, out: &mut Vec<Command>) {
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
        let asked = || !self.listed_lately() && self.takes_something();
        if (stale || asked()) && !deleting {
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
