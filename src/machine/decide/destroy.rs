//! Destruction: what expires, and what is deleted of it.

use alloc::vec::Vec;

use super::Turn;
use super::look::MARKS_AGE_MS;
use crate::breaks::{Rule, holds};
use crate::event::{Event, Millis, Range};
use crate::file::{BackupName, File};
use crate::projection::backups::{Backup, Phase};
use crate::rule::chain::{Chain, Link};
use crate::rule::retention::{self, Plan};
use crate::runs::Runs;
use crate::state::SiteState;
use crate::task::{Command, Task, TaskId};
use crate::wal::Segment;

/// How old the listing may be by which a backup or WAL expires.
const LISTED_AGE_MS: u64 = 3_600_000;

/// A backup and its WAL go only because others stay, and that these are whole was seen a moment
/// ago: what the store lost since an older listing would be counted on.
pub(super) fn listed_lately(site: &SiteState, now: Millis) -> bool {
    let at = site.ledger.reconciled_at;
    let lately = at.is_some_and(|at| now.since(at) < LISTED_AGE_MS);
    lately || !holds(Rule::ReconcileFirst)
}

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

    /// Of every site of the chain: one counts on what another holds.
    fn all_listed_lately(&self) -> bool {
        let mut links = self.chain.links.iter();
        links.all(|link| listed_lately(link.site, self.now))
    }

    /// Whether a backup or WAL of the chain would go, but for what a store refused lately.
    pub(super) fn takes_something(&self) -> bool {
        let plan = self.plan();
        let free = |link: &Link<'_>| {
            let now = plan.wal.get(link.name).map(|wal| &wal.now);
            now.is_some_and(|now| match &link.site.attempts.refused {
                Some(refused) => !refused.due(now.clone(), self.now).is_empty(),
                None => !now.is_empty(),
            })
        };
        plan.expired().next().is_some() || self.chain.links.iter().any(free)
    }

    fn plan(&self) -> &Plan {
        let Chain { rules, links } = self.chain;
        let plan = || retention::plan(links, rules, self.now, self.doubtful);
        self.plan.get_or_init(plan)
    }

    pub(super) fn expire(&self, out: &mut Vec<Command>) {
        let mut links = self.chain.links.iter();
        let idle = links.all(|link| link.site.backups.running().is_none());
        if !self.may_destroy() || !idle || !self.all_listed_lately() {
            return;
        }
        let ours = self
            .plan()
            .expired()
            .filter(|(site, ..)| *site == self.name);
        for (_, backup, rule) in ours {
            let backup = backup.clone();
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
        if self.is_busy(&TaskId::Take(self.name.clone())) {
            return;
        }
        // A backup before its WAL, so that a hold that comes late finds both: also after a try that
        // failed, which may have ended before it looked for one.
        match self.dead() {
            Some(task) => self.start(out, task),
            None => self.delete_wal(out),
        }
    }

    /// What goes is recorded first; the task is given what was recorded and is still unneeded.
    fn delete_wal(&self, out: &mut Vec<Command>) {
        if self.site.backups.running().is_some() {
            return;
        }
        let plan = self.plan();
        // What expires in this turn takes its WAL with it, later and at once.
        if plan.expired().next().is_some() {
            return;
        }
        let Some(wal) = plan.wal.get(self.name) else {
            return;
        };
        let refused = self.site.attempts.refused.as_ref();
        let recorded = &self.site.ledger.expired;
        let mut fresh = Vec::new();
        let mut ranges = Vec::new();
        for range in &wal.now {
            let known = recorded.get(&range.timeline).cloned().unwrap_or_default();
            let new = known.gaps(range.first, range.last);
            let mut old = Runs::default();
            old.insert_range(range.first, range.last);
            for gap in &new {
                old.remove_range(*gap.start(), *gap.end());
            }
            ranges.extend(old.ranges(range.timeline));
            fresh.extend(new.into_iter().map(|gap| Range {
                timeline: range.timeline,
                first: *gap.start(),
                last: *gap.end(),
            }));
        }
        if !fresh.is_empty() {
            if !self.all_listed_lately() {
                return;
            }
            self.record(out, Event::WalExpired { wal: fresh });
            return;
        }
        let mut forget = wal.forget.clone();
        if let Some(refused) = refused {
            ranges = refused.due(ranges, self.now);
            forget.retain(|key| !refused.mark_rests(key, self.now));
        }
        let idle = ranges.is_empty() && forget.is_empty();
        if !idle && !self.storing_within(out, &ranges) {
            let task = Task::DeleteWal {
                site: self.name.clone(),
                ranges,
                retire: wal.retire.clone(),
                forget,
            };
            self.start(out, task);
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

    /// The removal of a backup that failed or expired.
    fn dead(&self) -> Option<Task> {
        let site = self.name.clone();
        let storing = |name: &BackupName| TaskId::Store(site.clone(), File::Main(name.clone()));
        // What lies under a name in conflict is not ours to remove.
        let main = |name: &BackupName| File::Main(name.clone());
        let ours = |name: &BackupName| !self.site.ledger.conflicts.contains_key(&main(name));
        let refused = self.site.attempts.refused.as_ref();
        let rests = |name| refused.is_some_and(|refused| refused.backup_rests(name, self.now));
        let free = |name| ours(name) && !self.is_busy(&storing(name)) && !rests(name);
        // What was to replace it may be damaged or gone by now: it is better than nothing.
        let bare = |link: &Link<'_>| link.site.backups.restorable(&link.site.ledger).is_empty();
        let last = |backup: &Backup| backup.expired.is_some() && self.chain.links.iter().all(bare);
        let mut all = self.site.backups.all.iter();
        let dead =
            all.find(|(name, backup)| backup.phase == Phase::Dead && free(name) && !last(backup));
        let Some((name, backup)) = dead else {
            // Chunks that were locked when the rest of their backup went.
            let mut left = refused?.backups.keys();
            let known = |name: &BackupName| {
                let exists = self.site.ledger.exists(&main(name));
                exists || self.site.backups.all.contains_key(name)
            };
            return left
                .find(|name| !known(name) && free(name))
                .map(|name| Task::DeleteBackup {
                    site: site.clone(),
                    backup: name.clone(),
                    object: None,
                    unless_held_at: None,
                });
        };
        let content = backup.content.as_ref();
        let now = if self.doubtful { Millis(0) } else { self.now };
        Some(Task::DeleteBackup {
            site: self.name.clone(),
            backup: name.clone(),
            object: content.and_then(|content| content.object.clone()),
            unless_held_at: backup.expired.is_some().then_some(now),
        })
    }
}

#[cfg(test)]
mod chained;
#[cfg(test)]
mod tests;
