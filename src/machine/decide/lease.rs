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
