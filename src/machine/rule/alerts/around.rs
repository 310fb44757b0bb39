//! What is wrong around us: slots, clocks, another daemon, the disk.

use alloc::format;

use super::{List, View};
use crate::policy::Policy;
use crate::projection::clock::{ALERT, Clock};
use crate::rule::clock;
use crate::state::State;

const CLOCK_TODO: &str = "set the clocks of this machine and of its servers right (NTP); until a \
                          server agrees within 5 minutes nothing expires by age; removing this \
                          file says that this machine's clock is right";

const SYNCHRONISE: &str = "see why the time servers cannot be used, or name others; until the \
                           clock is synchronised nothing expires by age; removing this file says \
                           that this machine's clock is right";

/// One clock, one entry, however many sites.
pub(super) fn clock_lost(list: &mut List, known: &Clock, policy: &Policy) {
    if let Some((since, what)) = clock::unsynchronised(known, policy) {
        list.add(ALERT, since, what, SYNCHRONISE);
    }
    if let Some((since, what)) = clock::jumped(known) {
        list.add(ALERT, since, what, CLOCK_TODO);
    }
}

/// What runs is well; the next start is not.
pub(super) fn config_refused(list: &mut List, state: &State) {
    if let Some((since, message)) = &state.config_refused {
        let what = format!("the configuration was not taken, the one before stays: {message}");
        let todo = "mend the file and send SIGHUP again (systemctl reload pghoard): with this \
                    file the daemon would not start";
        list.add("config_refused", *since, what, todo);
    }
}

pub(super) fn machine_trouble(list: &mut List, policy: &Policy) {
    for (since, what) in &policy.troubles {
        let todo = "see to the machine itself: its status page and log say more, at its console \
                    and by GET /appliance/status and /log";
        list.add("machine_trouble", *since, what.clone(), todo);
    }
}

impl View<'_> {
    pub(super) fn clock(&self, list: &mut List) {
        if let Some((since, why)) = clock::skewed(self.clock, self.site) {
            let what = format!("site '{}': {why}", self.name);
            list.add(ALERT, since, what, CLOCK_TODO);
        }
    }

    /// A slot that nobody empties fills the server's disk (S-14); one that the server gave up
    /// promises nothing any more.
    pub(super) fn slots(&self, list: &mut List) {
        let limit = self.policy.slot_retention_bytes;
        for (number, node) in &self.site.servers.nodes {
            let Some(slot) = node.seen.as_ref().and_then(|seen| seen.slot.as_ref()) else {
                continue;
            };
            let at = format!("site '{}', node {number}: slot '{}'", self.name, slot.name);
            let held = slot.held_bytes.unwrap_or_default();
            if held > limit {
                let since = node.holding_since(limit).unwrap_or_default();
                let what = format!(
                    "{at} holds back {} MiB of WAL on the server, more than the {} MiB of \
                     slot_retention_bytes",
                    held >> 20,
                    limit >> 20
                );
                let todo = "see why WAL is not stored (pghoard status); if this node is not to \
                            be streamed from any more, drop the slot there; \
                            max_slot_wal_keep_size keeps its disk from filling";
                list.add("slot_retention", since, what, todo);
            }
            let status = slot.wal_status.as_deref();
            if let Some(status @ ("unreserved" | "lost")) = status {
                let since = node.status_since.unwrap_or_default();
                let what = format!(
                    "{at} is {status}: the server lets go of WAL that was not stored yet \
                     (max_slot_wal_keep_size)"
                );
                let todo = match status {
                    "lost" => {
                        "drop the slot on that server; it is made anew, and a basebackup covers \
                         what comes after the gap; raise max_slot_wal_keep_size"
                    }
                    _ => {
                        "mend what keeps WAL from being stored at once, or raise \
                         max_slot_wal_keep_size: at the next checkpoint it may be lost"
                    }
                };
                list.add("slot_retention", since, what, todo);
            }
        }
    }

    pub(super) fn daemons(&self, list: &mut List) {
        if let Some((lease, since)) = self.site.tenure.foreign() {
            let what = format!(
                "site '{}': another daemon, on host '{}', holds the site's prefix in the store \
                 (instance {}); this one receives, but stores, takes and deletes nothing",
                self.name, lease.host, lease.holder
            );
            let todo = "stop one of the two, or give them different prefixes; this one takes over \
                        when the other has not been heard of for 10 minutes, or at once when the \
                        object 'daemon_lease' below the prefix is removed";
            list.add("two_daemons", since, what, todo);
        }
    }

    /// Reception pauses, as `min_disk_free_bytes` wants it.
    pub(super) fn cramped(&self, list: &mut List) {
        if let Some(since) = self.policy.cramped_since {
            let what = format!(
                "site '{}': reception pauses, the disk of backup_location has less free than \
                 min_disk_free_bytes; the server keeps the WAL meanwhile",
                self.name
            );
            let todo = "make room on that disk; reception goes on by itself at \
                        resume_multiplier times as much";
            list.add("spool_filling", since, what, todo);
        }
    }

    /// What else fills the disk leaves the spool no room, however little it holds.
    pub(super) fn space(&self, list: &mut List) {
        let space = self.live.space.get(self.name).filter(|space| space.low());
        if let Some(space) = space {
            let what = format!(
                "site '{}': the disk of backup_location has {} MiB free of {} MiB",
                self.name,
                space.free_bytes >> 20,
                space.total_bytes >> 20
            );
            let todo = "make room: without it neither WAL can be received nor the event log \
                        written";
            let since = space.low_since.unwrap_or(self.now);
            list.add("spool_filling", since, what, todo);
        }
    }
}

#[cfg(test)]
mod tests;
