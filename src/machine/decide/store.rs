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
        if self.site.tenure.foreign().is_some() {
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
