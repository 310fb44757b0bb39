//! Verification: beside reception and uploads, never beside what changes the store in bulk.

use alloc::vec::Vec;

use super::Turn;
use crate::event::Event;
use crate::rule::scrub::{self, Next};
use crate::task::{Command, Task, TaskId};

impl Turn<'_> {
    pub(super) fn verify(&self, out: &mut Vec<Command>) {
        let site = || self.name.clone();
        let interval_ms = self.policy.verify_interval_ms;
        // A basebackup wants the bandwidth; a deletion or a listing would be told of twice.
        let first = [
            TaskId::Take(site()),
            TaskId::Delete(site()),
            TaskId::Reconcile(site()),
        ];
        let starting = |id: &TaskId| {
            let mut tasks = out.iter();
            tasks.any(|command| matches!(command, Command::Start(task) if task.id() == *id))
        };
        // And what is found is marked in the store, where another daemon may write.
        let foreign = self.site.tenure.foreign().is_some();
        if foreign || first.iter().any(|id| self.is_busy(id) || starting(id)) {
            return;
        }
        let id = TaskId::Verify(site());
        if self.is_busy(&id) || !self.site.attempts.due(&id, self.now) {
            return;
        }
        match scrub::next(self.site, interval_ms, self.now) {
            Some(Next::Begin(objects)) => self.record(out, Event::ScrubStarted { objects }),
            Some(Next::Look(what)) => {
                let site = site();
                self.start(out, Task::Verify { site, what });
            }
            None => {}
        }
    }
}
