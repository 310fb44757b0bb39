//! Destruction: what expires, and what is deleted of it.

use alloc::vec::Vec;

use super::Turn;
use super::look::MARKS_AGE_MS;
use crate::breaks::{Rule, holds};
use crate::event::{Event, Range};
use crate::file::{BackupName, File};
use crate::projection::backups::Phase;
use crate::rule::retention;
use crate::task::{Command, Task, TaskId};
use crate::wal::Segment;

/// How old the listing may be by which a backup expires.
const LISTED_AGE_MS: u64 = 3_600_000;

impl Turn<'_> {
    /// Nothing is destroyed in a site whose store this log has not seen, nor beside a listing.
    fn may_destroy(&self) -> bool {
        let listing = self.is_busy(&TaskId::Reconcile(self.name.clone()))
            && holds(Rule::DeleteApartFromReconcile);
        let seen = self.site.ledger.reconciled_at.is_some() || !holds(Rule::ReconcileFirst);
        // What may not go is written in the store, perhaps by another program.
        let held = self.site.marks.read_at;
        let fresh = held.is_some_and(|at| self.now.since(at) < MARKS_AGE_MS);
        seen && fresh && !listing && self.holds_prefix()
    }

    /// A backup goes only because others stay, and that these are whole was seen a moment ago: what
    /// the store lost since an older listing would be counted on.
    pub(super) fn listed_lately(&self) -> bool {
        let at = self.site.ledger.reconciled_at;
        at.is_some_and(|at| self.now.since(at) < LISTED_AGE_MS)
    }

    pub(super) fn expire(&self, out: &mut Vec<Command>) {
        let idle = self.site.backups.running().is_none();
        if !self.may_destroy() || !idle || !self.listed_lately() {
            return;
        }
        for (backup, rule) in retention::expired(self.site, self.policy, self.now) {
            self.record(out, Event::BackupExpired { backup, rule });
        }
    }

    pub(super) fn delete(&self, out: &mut Vec<Command>) {
        let delete = TaskId::Delete(self.name.clone());
        // One decide may start a listing above: what it starts counts as running.
        let listing = out.iter().any(|command| {
            matches!(command, Command::Start(Task::Reconcile { site }) if site == self.name)
        }) && holds(Rule::DeleteApartFromReconcile);
        if !self.may_destroy() || listing || self.is_busy(&delete) {
            return;
        }
        // WAL first: a dead backup that cannot be removed does not keep it from going.
        let taking = self.is_busy(&TaskId::Take(self.name.clone()));
        let ranges = retention::unneeded_wal(self.site);
        let idle = self.site.backups.running().is_none() && !taking;
        if idle && !ranges.is_empty() && !self.storing_within(out, &ranges) {
            let site = self.name.clone();
            self.start(out, Task::DeleteWal { site, ranges });
        } else if !taking {
            self.delete_dead(out);
        }
    }

    /// The other half of `storing_within`: while WAL goes, none of it comes.
    pub(super) fn deleting(&self, segment: Segment) -> bool {
        let task = self.busy.get(&TaskId::Delete(self.name.clone()));
        let task = task.filter(|_| holds(Rule::StoreApartFromDelete));
        matches!(task, Some(Task::DeleteWal { ranges, .. })
            if ranges.iter().any(|range| range.holds(segment)))
    }

    /// An upload that ends beside the deletion would tell of what is gone by then.
    fn storing_within(&self, out: &[Command], ranges: &[Range]) -> bool {
        let within = |file: &File| {
            matches!(file, File::Wal(segment)
            if ranges.iter().any(|range| range.holds(*segment)))
        };
        let starting = out.iter().filter_map(|command| match command {
            Command::Start(Task::Store { site, file, .. }) => Some((site, file)),
            _ => None,
        });
        let running = self.busy.keys().filter_map(|id| match id {
            TaskId::Store(site, file) => Some((site, file)),
            _ => None,
        });
        let mut all = starting.chain(running);
        all.any(|(site, file)| site == self.name && within(file))
    }

    fn delete_dead(&self, out: &mut Vec<Command>) {
        let site = self.name.clone();
        let storing = |name: &BackupName| TaskId::Store(site.clone(), File::Main(name.clone()));
        // What lies under a name in conflict is not ours to remove.
        let main = |name: &BackupName| File::Main(name.clone());
        let ours = |name: &BackupName| !self.site.ledger.conflicts.contains_key(&main(name));
        let dead = self.site.backups.all.iter().find(|(name, backup)| {
            backup.phase == Phase::Dead && ours(name) && !self.is_busy(&storing(name))
        });
        if let Some((name, backup)) = dead {
            let content = backup.content.as_ref();
            let object = content.and_then(|content| content.object.clone());
            let (site, backup) = (self.name.clone(), name.clone());
            self.start(
                out,
                Task::DeleteBackup {
                    site,
                    backup,
                    object,
                },
            );
        }
    }
}
