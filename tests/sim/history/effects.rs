//! The tasks of a history: the real ones where they only know the store, stand-ins for the rest.

use machine::event::{Finished, How, Origin};
use machine::{BackupName, Class, Event, File, Segment, SiteState, Task, Timeline};
use pghoard::store::Metadata;
use pghoard::work::delete::Doomed;
use pghoard::work::reconcile::Known;
use pghoard::work::verify::Verdict;
use pghoard::work::{self, Place, label, marks, reconcile};
use pghoard::{Failure, Outcome};

use super::shelf::{Needs, SIZE, key};
use super::{HOUR_MS, Life};
use crate::tasks::main_metadata;

impl Life {
    pub fn effect(&mut self, task: &Task, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
        let ours = self.ours();
        match task {
            Task::Probe { .. } => self.probe(&ours),
            Task::Take { backup, .. } => self.take(backup.clone())?,
            Task::Store { file, entry, .. } => self.store(&ours, file, *entry, emit)?,
            Task::Switch { node, .. } => {
                self.cluster.write(1, self.now_ms);
                let at = Segment::new(self.cluster.timeline, self.cluster.at).start(SIZE);
                emit(Event::Switched { node: *node, at });
            }
            Task::DeleteBackup { .. } | Task::DeleteWal { .. } => {
                let reads = self.shelf.truth().reads;
                delete(&self.place, task, emit)?;
                // Who deletes may have no private key.
                if self.shelf.truth().reads > reads {
                    self.fate.violated("a deletion read what an object holds");
                }
            }
            Task::Reconcile { .. } => {
                let known = Known {
                    ledger: ours.ledger,
                    backups: ours.backups,
                };
                reconcile::run(&self.place, &known, emit)?;
            }
            Task::ReadMarks { .. } => marks::read(&self.place, &ours.marks, emit)?,
            Task::Verify { what, .. } => self.verify(what, emit)?,
            Task::Fetch { means, hole, .. } => self.fetch(*means, hole, emit)?,
            // The rest is not asked for.
            _ => {}
        }
        Ok(())
    }

    /// As the real one: the newest history, and on its way those that nobody holds.
    fn probe(&mut self, ours: &SiteState) {
        let ledger = &ours.ledger;
        let held = |timeline: &Timeline| {
            let spooled = ledger.spool.contains_key(&File::History(*timeline));
            ledger.histories.contains(timeline) || spooled
        };
        let newest = self.cluster.timeline;
        let path = self.cluster.histories.get(&newest).into_iter().flatten();
        let older = path.map(|branch| branch.timeline);
        let older = older.filter(|timeline| *timeline > Timeline(1) && !held(timeline));
        let all: Vec<_> = [newest].into_iter().chain(older).collect();
        for timeline in all {
            let Some(ancestors) = self.cluster.histories.get(&timeline).cloned() else {
                continue;
            };
            if ours.timelines.ancestors(timeline).is_none() {
                self.tell(Event::TimelineLearned {
                    timeline,
                    ancestors,
                });
            }
            if !held(&timeline) {
                self.spool(File::History(timeline), Origin::Stream);
            }
        }
        let ahead = i64::try_from(self.clock_ms).unwrap() - i64::try_from(self.now_ms).unwrap();
        self.tell(self.cluster.seen(-ahead));
    }

    /// As the real one: nothing is replaced but what is marked and proves to be damaged.
    fn store(
        &self,
        ours: &SiteState,
        file: &File,
        entry: u64,
        emit: &mut dyn FnMut(Event),
    ) -> Outcome<()> {
        let mut metadata = match file {
            File::Main(name) => main_metadata(ours, name),
            _ => Metadata::from([
                ("original-file-size".into(), SIZE.bytes().to_string()),
                (label::SYSTEM_ID.into(), "7".into()),
            ]),
        };
        self.keys.seal(&mut metadata);
        let marked = ours.ledger.damaged.contains_key(file);
        let there = self.shelf.truth().has(file);
        let how = match (there, marked) {
            (false, _) => How::Written,
            (true, false) => How::AlreadyThere,
            (true, true) => match self.look(&file.key(SIZE)) {
                Verdict::Good { .. } => How::AlreadyThere,
                Verdict::Damaged(_) => How::Replaced,
                Verdict::Partly { .. } | Verdict::Unreadable(_) | Verdict::Gone => {
                    let message = format!("{} cannot be judged anew", key(file));
                    return Err(Failure::new(Class::Conflict, message));
                }
            },
        };
        if how != How::AlreadyThere {
            self.shelf.truth().add(file, metadata);
        }
        if marked {
            emit(marks::remove(&self.place, &marks::damaged_key(file, SIZE))?);
        }
        emit(stored(file.clone(), Some(entry), how));
        Ok(())
    }

    fn take(&mut self, backup: BackupName) -> Outcome<()> {
        if self.is_foreign() {
            return Err(Failure::new(Class::Conflict, "another cluster"));
        }
        let start = Segment::new(self.cluster.timeline, self.cluster.at);
        let begun = self.clock();
        let parts = u32::try_from(self.fate.between(1, 3)).unwrap();
        for number in 1..=parts {
            let file = File::Part {
                backup: backup.clone(),
                number,
            };
            let mut metadata = Metadata::new();
            self.keys.seal(&mut metadata);
            self.shelf.truth().add(&file, metadata);
            self.tell(stored(file, None, How::Written));
        }
        let hours = self.fate.below(3);
        self.pass(hours * HOUR_MS);
        self.cluster.write(self.fate.below(3), self.now_ms);
        let end = Segment::new(self.cluster.timeline, self.cluster.at);
        let needs = Needs {
            parts,
            start,
            end,
            ended_ms: self.now_ms,
        };
        self.shelf.truth().needs.insert(backup.clone(), needs);
        self.spool(File::Main(backup.clone()), Origin::Backup);
        self.tell(Event::BackupFinished(Finished {
            backup,
            start,
            end,
            start_lsn: start.start(SIZE),
            end_lsn: end.start(SIZE),
            started_at: begun,
            ended_at: self.clock(),
            parts,
            bytes_in: 1,
            bytes_out: 1,
            from_standby: false,
            object: None,
            wal: machine::event::WalIn::Archive,
        }));
        Ok(())
    }
}

fn stored(file: File, entry: Option<u64>, how: How) -> Event {
    Event::Stored {
        file,
        entry,
        bytes_in: 1,
        bytes_out: 1,
        digest: String::new(),
        millis: 0,
        how,
    }
}

pub fn delete(place: &Place, task: &Task, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
    match task {
        Task::DeleteBackup {
            backup,
            object,
            unless_held_at,
            ..
        } => {
            let doomed = Doomed {
                name: backup,
                object: object.as_deref(),
                unless_held_at: *unless_held_at,
            };
            work::delete::backup(place, doomed, SIZE, emit)
        }
        Task::DeleteWal {
            ranges,
            retire,
            forget,
            ..
        } => {
            let wal = work::delete::Wal {
                ranges,
                retire,
                forget,
            };
            work::delete::wal(place, wal, SIZE, emit)
        }
        _ => Ok(()),
    }
}
