//! The log's own upkeep: stretches of it go to the stores, then its beginning may go.

use alloc::vec::Vec;

use super::{Busy, Turn};
use crate::policy::Policy;
use crate::state::State;
use crate::task::{Command, Task, TaskId};

/// One event in so many, the newest, stays when a log is compacted: for people to look back.
const KEPT_SHARE: u64 = 10;

impl Turn<'_> {
    /// Stretch by stretch, each whole: what is exported never changes again.
    pub(super) fn export(&self, state: &State, out: &mut Vec<Command>) {
        let Some(events) = self.all.export_events else {
            return;
        };
        let after = self.site.exports.upto.max(state.log.removed_upto);
        let last = after.saturating_add(events);
        if last <= state.seq {
            let (site, first) = (self.name.clone(), after.saturating_add(1));
            self.start(out, Task::Export { site, first, last });
        }
    }
}

/// Compaction stops the loop for a moment, so it waits until nothing but reception is going on;
/// a daemon that is never at rest does it all the same before the log is twice as long. It waits
/// for every store that has not taken its part yet, and for enough to be won by it.
pub(super) fn compact(state: &State, policy: &Policy, busy: &Busy) -> Option<Command> {
    let max = policy.log_events_max.filter(|_| !policy.draining)?;
    let held = state.log.held(state.seq);
    let quiet = busy.keys().all(|id| matches!(id, TaskId::Receive(_)));
    let pressing = held > max.saturating_mul(2);
    if held <= max || state.log.refused.is_some() || !(quiet || pressing) {
        return None;
    }
    let active = policy.sites.iter().filter(|(_, site)| site.active);
    let exported = active.map(|(name, _)| {
        let site = state.sites.get(name);
        site.map_or(0, |site| site.exports.upto)
    });
    let exported = match policy.export_events {
        Some(_) => exported.min().unwrap_or(u64::MAX),
        None => u64::MAX,
    };
    let upto = exported.min(state.seq.saturating_sub(max / KEPT_SHARE));
    let won = upto.saturating_sub(state.log.removed_upto);
    (won > 0 && won >= max / 2).then_some(Command::Compact(upto))
}
