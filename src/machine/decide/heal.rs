//! Holes: recorded when they open and close, and healed by the cheapest means that works.
//!
//! What is in the spool is stored again anyway, and for what lies above the frontier a stream goes
//! back; here is what lies below it. Only when no means has it a new basebackup is taken
//! (`take.rs`), and the moments in between are lost until a person takes note.

use alloc::vec::Vec;

use super::Turn;
use crate::event::Event;
use crate::projection::marks::Hole;
use crate::rule::holes::{self, Found};
use crate::rule::passed::passed;
use crate::task::{Command, Means, Task, TaskId};

/// Segments that may be stored before an earlier one, beside those that are taken ahead.
const PASSED_BEYOND: u64 = 8;

impl Turn<'_> {
    pub(super) fn note_holes(&self, out: &mut Vec<Command>) {
        let found = self.found();
        let open = &self.site.holes.open;
        // What is left of a recorded one is not recorded anew.
        for Found { hole, .. } in found {
            if !open.keys().any(|recorded| recorded.covers(hole)) {
                let hole = hole.clone();
                self.record(out, Event::HoleOpened { hole });
            }
        }
        for recorded in open.keys() {
            if !found.iter().any(|found| recorded.covers(&found.hole)) {
                let hole = recorded.clone();
                self.record(out, Event::HoleClosed { hole });
            }
        }
    }

    /// The frontier passes over what `archive_command` passed over; what a restore then misses is
    /// a hole.
    fn pass(&self, out: &mut Vec<Command>) {
        if self.policy.streams || self.policy.standalone {
            return;
        }
        // Taken ahead of what is asked for, twice as many as are moved at a time.
        let ahead = u64::try_from(self.all.uploads_max).unwrap_or(u64::MAX);
        let beyond = ahead.saturating_mul(2).saturating_add(PASSED_BEYOND);
        if let Some(wal) = passed(&self.site.ledger, &self.site.timelines, beyond) {
            self.record(out, Event::WalPassed { wal });
        }
    }

    pub(super) fn heal(&self, out: &mut Vec<Command>) {
        self.pass(out);
        self.note_holes(out);
        let fetching = |id: &TaskId| matches!(id, TaskId::Fetch(site, _) if site == self.name);
        if self.busy.keys().any(fetching) || self.spool_full(100) {
            return;
        }
        for Found { hole, .. } in self.found() {
            let due = |means: &Means| {
                let id = TaskId::Fetch(self.name.clone(), *means);
                self.site.attempts.due(&id, self.now)
            };
            let means = self.untried(hole).find(due);
            if let Some(means) = means {
                let (site, hole) = (self.name.clone(), hole.clone());
                self.start(out, Task::Fetch { site, means, hole });
                return;
            }
        }
    }

    fn found(&self) -> &[Found] {
        self.holes.get_or_init(|| holes::holes(self.site))
    }

    /// Means that have not said since the last listing that they have none of it: servers that
    /// answer, then the directory.
    fn untried<'a>(&'a self, hole: &'a Hole) -> impl Iterator<Item = Means> + 'a {
        // Nobody waits for one that a person has given up: it is asked for once.
        let known = holes::acknowledged(self.site, hole).is_some();
        let servers = self.site.servers.up();
        let servers = servers.map(|server| Means::Server(server.node));
        let directory = self.policy.directory.then_some(Means::Directory);
        servers.chain(directory).filter(move |means| match known {
            true => !self.site.holes.absent(*means, hole),
            false => !self.site.holes.asked(*means, hole),
        })
    }

    /// Holes that nothing will heal as things stand.
    pub(super) fn hopeless(&self) -> impl Iterator<Item = &Found> {
        self.found().iter().filter(|found| {
            let directory = Means::Directory;
            let asked = !self.policy.directory || self.site.holes.absent(directory, &found.hole);
            asked && holes::exhausted(self.site, &found.hole)
        })
    }
}
