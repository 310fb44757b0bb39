//! Out to the store: what is spooled, in which order, and what is let go.

use alloc::vec::Vec;

use super::Turn;
use crate::breaks::{Rule, holds};
use crate::event::{Event, Reason};
use crate::file::File;
use crate::projection::backups::Phase;
use crate::task::{Command, Task, TaskId};

impl Turn<'_> {
    /// `uploads` counts those that run and those that start, over all sites of this round.
    pub(super) fn store(&self, out: &mut Vec<Command>, uploads: &mut usize) {
        // What is spooled waits, and is not acknowledged.
        if self.site.tenure.foreign().is_some() || !self.introduced() {
            return;
        }
        let spool = &self.site.ledger.spool;
        let wal = |file: &File| matches!(file, File::Wal(_));
        // What WAL cannot do without goes before it: the frontier waits for histories.
        let first = spool.iter().filter(|(file, _)| !wal(file));
        for (file, entry) in first.chain(spool.iter().filter(|(file, _)| wal(file))) {
            if *uploads >= self.all.uploads_max {
                return;
            }
            if self.storable(file) {
                let (site, file) = (self.name.clone(), file.clone());
                let before = out.len();
                self.start(
                    out,
                    Task::Store {
                        site,
                        file,
                        entry: entry.id,
                    },
                );
                *uploads = uploads.saturating_add(out.len().saturating_sub(before));
            }
        }
    }

    /// A main object goes last: after its parts and after the WAL that makes it consistent, so
    /// that any listing shows only whole backups.
    fn storable(&self, file: &File) -> bool {
        let name = match file {
            File::Main(name) => name,
            File::Wal(segment) => return !self.deleting(*segment),
            File::Partial(_) | File::History(_) | File::Part { .. } => return true,
        };
        let ledger = &self.site.ledger;
        let Some(backup) = self.site.backups.all.get(name) else {
            return false;
        };
        let content = backup.content.as_ref();
        let alive = backup.phase == Phase::Finished
            || (backup.phase == Phase::Dead && !holds(Rule::DeadIsDropped));
        alive && content.is_some_and(|c| c.whole(name, ledger) && c.consistent(ledger))
    }

    pub(super) fn drop_dead(&self, out: &mut Vec<Command>) {
        for (file, entry) in &self.site.ledger.spool {
            let File::Main(name) = file else { continue };
            let phase = self.site.backups.all.get(name).map(|backup| backup.phase);
            let wanted = matches!(phase, Some(Phase::Running | Phase::Finished));
            let storing = self.is_busy(&TaskId::Store(self.name.clone(), file.clone()));
            if !wanted && !storing && holds(Rule::DeadIsDropped) {
                let (file, entry) = (file.clone(), entry.id);
                self.record(
                    out,
                    Event::Dropped {
                        file,
                        entry,
                        reason: Reason::Unwanted,
                    },
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Envelope;
    use crate::decide::{Busy, decide};
    use crate::event::{Event, Millis, Origin, Range};
    use crate::file::Site;
    use crate::policy::Policy;
    use crate::state::State;
    use crate::testing::{lease, reconciled, site_policy};
    use crate::wal::{Segment, Timeline};
    use alloc::vec;

    /// Whether WAL `number` in the spool is put into the store while `first..=last` is deleted.
    fn check(number: u64, (first, last): (u64, u64), expect: bool) {
        let site = Site("main".into());
        let mut state = State::default();
        let spooled = Event::Spooled {
            file: File::Wal(Segment::new(Timeline(1), number)),
            entry: 1,
            bytes: 1,
            origin: Origin::Adopted,
        };
        for (event, seq) in [lease(true), reconciled(), spooled].into_iter().zip(1..) {
            state.apply(&Envelope {
                seq,
                at: Millis(seq),
                run: 1,
                site: Some(site.clone()),
                event,
            });
        }
        let mut policy = Policy {
            uploads_max: 1,
            ..Policy::default()
        };
        policy.sites.insert(site.clone(), site_policy());
        let range = Range {
            timeline: Timeline(1),
            first,
            last,
        };
        let task = Task::DeleteWal {
            site,
            ranges: vec![range],
            retire: Vec::new(),
            forget: Vec::new(),
        };
        let busy = Busy::from([(task.id(), task)]);
        let commands = decide(&state, &policy, &busy, Millis(4));
        let mut stores = commands.iter();
        let stores = stores.any(|c| matches!(c, Command::Start(Task::Store { .. })));
        assert_eq!(stores, expect, "{number} beside {first} to {last}");
    }

    #[test]
    fn no_wal_is_stored_into_a_range_that_is_being_deleted() {
        for (number, range, expect) in [
            (1, (2, 4), true),
            (2, (2, 4), false),
            (3, (2, 4), false),
            (4, (2, 4), false),
            (5, (2, 4), true),
        ] {
            check(number, range, expect);
        }
    }
}
