//! Basebackups: when one is begun, its name, and the WAL it waits for.

use alloc::format;
use alloc::vec::Vec;

use super::Turn;
use crate::breaks::{Rule, holds};
use crate::event::{Event, Server, WalIn, Why};
use crate::file::{BackupName, File};
use crate::projection::backups::Phase;
use crate::rule::{holes, schedule};
use crate::task::{Command, Task, TaskId};

/// A finished backup whose last segment does not come asks for a switch after this long.
const SWITCH_AFTER_MS: u64 = 2_000;
/// ... and again after this long: the first switch may have met an idle server.
const SWITCH_AGAIN_MS: u64 = 30_000;

/// Backups that are to cover a hole come at most this often.
const HOLE_AGAIN_MS: u64 = 600_000;

impl Turn<'_> {
    pub(super) fn take(&self, out: &mut Vec<Command>) {
        if !self.holds_prefix() {
            return;
        }
        let id = TaskId::Take(self.name.clone());
        if let Some((name, backup)) = self.site.backups.running() {
            let fresh = backup.phase == Phase::Running && backup.run == self.run;
            if let Some(node) = backup.node.filter(|_| fresh) {
                let (site, backup) = (self.name.clone(), name.clone());
                self.start(out, Task::Take { site, node, backup });
            }
            return;
        }
        let Some(server) = self.giver() else { return };
        // Reception first: WAL written between a backup and a later stream is covered by nothing.
        // And a look at the store: the name of a backup it holds must not be taken again.
        let streaming = self.site.servers.stream.is_some() || !self.policy.streams;
        let listed = self.site.ledger.reconciled_at.is_some() || !holds(Rule::ReconcileFirst);
        let streaming = streaming && listed;
        let blocked = self.is_busy(&id) || !self.site.attempts.due(&id, self.now);
        if blocked || !streaming || self.all.maintenance {
            return;
        }
        let wanted = schedule::due(&self.site.backups, self.policy, self.now).or_else(|| {
            (self.uncovered() || self.bare()).then_some(schedule::Due {
                reason: Why::Hole,
                normalized_at: schedule::normalized(self.policy, self.now),
            })
        });
        if let Some(due) = wanted {
            self.record(
                out,
                Event::BackupStarted {
                    backup: self.free_name(),
                    node: server.node,
                    decided_at: self.now,
                    normalized_at: due.normalized_at,
                    reason: due.reason,
                },
            );
        }
    }

    /// Whoever streams gives the backup; after a failed one the primary, whose checkpoint is a new
    /// one: a standby's may begin in WAL that is lost, again and again.
    fn giver(&self) -> Option<&Server> {
        let failed = self.site.attempts.get(&TaskId::Take(self.name.clone()));
        let primary = failed.and_then(|_| self.site.servers.primary());
        primary.or_else(|| self.source())
    }

    /// No backup leads to what is written now: a hole that nothing heals cuts the newest one off,
    /// or the cluster went on from before all of them (S-48).
    fn uncovered(&self) -> bool {
        if self.policy.standalone {
            return false;
        }
        let live = self.site.backups.live();
        // A backup that does not mend it must not follow the one before at once.
        let ours = live.filter(|(_, b)| b.reason == Why::Hole && b.node.is_some());
        let last = ours.map(|(_, backup)| backup.decided_at).max();
        if last.is_some_and(|at| self.now.since(at) < HOLE_AGAIN_MS) {
            return false;
        }
        let good = self.site.backups.restorable(&self.site.ledger);
        let mut leading = good.iter().rev();
        match leading.find(|(_, _, content)| holes::leads(self.site, content)) {
            Some((newest, ..)) => self.hopeless().any(|found| found.cuts.contains(*newest)),
            None => !good.is_empty(),
        }
    }

    /// Backups there are, and none that a restore could use.
    fn bare(&self) -> bool {
        let site = self.site;
        let seen = site.ledger.reconciled_at.is_some() && site.backups.live().next().is_some();
        seen && site.backups.restorable(&site.ledger).is_empty()
    }

    /// Never that of a failed one: a deletion of its objects may yet arrive in the store.
    fn free_name(&self) -> BackupName {
        let minute = BackupName::minute(self.now);
        let newest = self.site.backups.newest.as_ref();
        let used = newest.and_then(|n| n.0.strip_prefix(&*minute)?.strip_prefix('_')?.parse().ok());
        let mut index = used.map_or(0, |used: u32| used.saturating_add(1));
        loop {
            let name = BackupName(format!("{minute}_{index}"));
            let ledger = &self.site.ledger;
            let taken = self.site.backups.all.contains_key(&name)
                || ledger.mains.contains(&name)
                || ledger.parts.contains_key(&name)
                || ledger.spool.contains_key(&File::Main(name.clone()));
            if !taken {
                return name;
            }
            index = index.saturating_add(1);
        }
    }

    /// An idle server never finishes the segment a backup waits for.
    pub(super) fn switch(&self, out: &mut Vec<Command>) {
        let Some((_, backup)) = self.site.backups.running() else {
            return;
        };
        let content = backup
            .content
            .as_ref()
            .filter(|_| backup.phase == Phase::Finished);
        let Some((content, primary)) = content.zip(self.site.servers.primary()) else {
            return;
        };
        let end = content.end.unwrap_or(content.start);
        let waited = self.now.since(backup.decided_at) >= SWITCH_AFTER_MS;
        let last = self
            .site
            .servers
            .switched_at
            .filter(|at| *at >= backup.decided_at);
        let again = last.is_none_or(|at| self.now.since(at) >= SWITCH_AGAIN_MS);
        let waits = content.wal == WalIn::Archive && !self.site.ledger.has(end);
        if waited && again && waits {
            self.start(
                out,
                Task::Switch {
                    site: self.name.clone(),
                    node: primary.node,
                },
            );
        }
    }
}

#[cfg(test)]
mod tests;
