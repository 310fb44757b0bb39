//! Verification as a task: objects are judged one after another, and what was seen is told in
//! batches, so that a stop or a crash costs little of it.
//!
//! A mark is in the store before its verdict is told, and is taken away where the object is good
//! again or gone.

use std::collections::BTreeMap;

use machine::event::Range;
use machine::projection::ledger::Presence;
use machine::projection::marks::Mark;
use machine::runs::Runs;
use machine::task::What;
use machine::{BackupName, Class, Event, File, Millis, Segment, SegmentSize, Timeline};

use crate::failure::{Failure, Outcome};
use crate::work::verify::{Item, Plan, Verdict};
use crate::work::{Place, marks};

/// Who looks: [`super::verify::Verifier`], or the simulator.
pub struct Eyes<'a> {
    pub check: &'a dyn Fn(&Item) -> Verdict,
    pub backup: &'a dyn Fn(&BackupName, Option<&str>) -> Outcome<Plan>,
}

pub struct Scrub<'a> {
    pub place: &'a Place,
    pub eyes: Eyes<'a>,
    pub size: SegmentSize,
    /// What is marked as damaged, as the log knows it.
    pub damaged: &'a BTreeMap<File, Presence>,
    pub now: &'a dyn Fn() -> Millis,
}

/// What was seen good is told after so many objects ...
const BATCH_OBJECTS: u64 = 64;
/// ... or stored bytes.
const BATCH_BYTES: u64 = 1 << 30;

impl Scrub<'_> {
    pub fn run(&self, what: &What, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
        let mut batch = Batch::default();
        let outcome = match what {
            What::Wal(ranges) => self.wal(ranges, &mut batch, emit),
            What::Files(files) => files.iter().try_for_each(|file| {
                let item = Item::of(file.clone(), self.size);
                self.settle(file, (self.eyes.check)(&item), &mut batch, emit)
            }),
            What::Backup {
                backup,
                object,
                done,
            } => self.backup(backup, object.as_deref(), done, &mut batch, emit),
        };
        batch.tell(emit);
        match outcome {
            Err(failure) if failure.class == Class::Interrupted => Ok(()),
            outcome => outcome,
        }
    }

    fn wal(&self, ranges: &[Range], batch: &mut Batch, emit: Emit<'_>) -> Outcome<()> {
        for range in ranges {
            for number in range.first..=range.last {
                let file = File::Wal(Segment::new(range.timeline, number));
                let item = Item::of(file.clone(), self.size);
                self.settle(&file, (self.eyes.check)(&item), batch, emit)?;
            }
        }
        Ok(())
    }

    /// The main object is told last: until then the backup is not through.
    fn backup(
        &self,
        name: &BackupName,
        object: Option<&str>,
        done: &Runs,
        batch: &mut Batch,
        emit: Emit<'_>,
    ) -> Outcome<()> {
        let Plan { mut main, items } = (self.eyes.backup)(name, object)?;
        for item in items {
            if let File::Part { number, .. } = &item.file {
                if !done.contains(u64::from(*number)) {
                    self.settle(&item.file, (self.eyes.check)(&item), batch, emit)?;
                }
                continue;
            }
            // What has no name of its own in the log is the backup's.
            let key = &item.key;
            match (self.eyes.check)(&item) {
                Verdict::Good { bytes } | Verdict::Partly { bytes } => main.add(bytes),
                Verdict::Damaged(why) => main = Verdict::Damaged(format!("'{key}': {why}")),
                Verdict::Gone => main = Verdict::Damaged(format!("it lacks '{key}'")),
                Verdict::Unreadable(failure) => main = Verdict::Unreadable(failure.about(key)),
            }
            if !matches!(main, Verdict::Good { .. } | Verdict::Partly { .. }) {
                break;
            }
        }
        self.settle(&File::Main(name.clone()), main, batch, emit)
    }

    fn settle(
        &self,
        file: &File,
        verdict: Verdict,
        batch: &mut Batch,
        emit: Emit<'_>,
    ) -> Outcome<()> {
        match verdict {
            Verdict::Good { bytes } => {
                if self.damaged.contains_key(file) {
                    emit(self.unmark(file)?);
                }
                batch.add(file, bytes);
            }
            Verdict::Partly { bytes } => {
                batch.partly += 1;
                batch.add(file, bytes);
            }
            Verdict::Damaged(detail) => {
                if self.damaged.get(file) != Some(&Presence::There) {
                    let (file, detail, at) = (file.clone(), detail.clone(), (self.now)());
                    let mark = Mark::Damaged { file, detail, at };
                    emit(marks::write(self.place, mark, self.size)?);
                }
                let file = file.clone();
                emit(Event::FoundDamaged { file, detail });
            }
            Verdict::Gone => self.gone(file, emit)?,
            Verdict::Unreadable(failure) if stops(&failure) => {
                return Err(failure.about(self.place.key(&file.key(self.size))));
            }
            Verdict::Unreadable(failure) => {
                let class = failure.class;
                let failure = failure.about(format!("'{}'", file.key(self.size)));
                emit(unverified(file, class, failure.to_string()));
            }
        }
        if batch.objects >= BATCH_OBJECTS || batch.bytes >= BATCH_BYTES {
            batch.tell(emit);
        }
        Ok(())
    }

    /// Without a mark it is no matter of ours: a deletion, or the next listing, tells of it.
    fn gone(&self, file: &File, emit: Emit<'_>) -> Outcome<()> {
        match self.damaged.get(file) {
            None => {
                let message = format!("'{}' is not there any more", file.key(self.size));
                emit(unverified(file, Class::NotFound, message));
                return Ok(());
            }
            Some(Presence::Gone) => {}
            Some(Presence::There | Presence::Replaced) => {
                let (wal, files) = split(file);
                emit(Event::Missing { wal, files });
            }
        }
        emit(self.unmark(file)?);
        Ok(())
    }

    fn unmark(&self, file: &File) -> Outcome<Event> {
        marks::remove(self.place, &marks::damaged_key(file, self.size))
    }
}

impl Verdict {
    fn add(&mut self, more: u64) {
        if let Verdict::Good { bytes } | Verdict::Partly { bytes } = self {
            *bytes = bytes.saturating_add(more);
        }
    }
}

type Emit<'a> = &'a mut dyn FnMut(Event);

/// The store suffers, or we are asked to stop: another object would fare no better.
fn stops(failure: &Failure) -> bool {
    match failure.class {
        Class::Auth | Class::Network | Class::Timeout | Class::Quota | Class::Interrupted => true,
        Class::Denied
        | Class::Config
        | Class::NotFound
        | Class::DiskFull
        | Class::Corrupt
        | Class::Conflict
        | Class::Unsupported
        | Class::Internal => false,
    }
}

fn unverified(file: &File, class: Class, message: String) -> Event {
    let (wal, files) = split(file);
    Event::Unverified {
        wal,
        files,
        class,
        message,
    }
}

/// As events tell of files.
fn split(file: &File) -> (Vec<Range>, Vec<File>) {
    match file {
        File::Wal(segment) => {
            let (timeline, first, last) = (segment.timeline, segment.number, segment.number);
            let range = Range {
                timeline,
                first,
                last,
            };
            (vec![range], Vec::new())
        }
        File::Partial(_) | File::History(_) | File::Part { .. } | File::Main(_) => {
            (Vec::new(), vec![file.clone()])
        }
    }
}

/// Good objects that were not told yet.
#[derive(Default)]
struct Batch {
    wal: BTreeMap<Timeline, Runs>,
    files: Vec<File>,
    objects: u64,
    bytes: u64,
    partly: u64,
}

impl Batch {
    fn add(&mut self, file: &File, bytes: u64) {
        match file {
            File::Wal(segment) => {
                let runs = self.wal.entry(segment.timeline).or_default();
                runs.insert(segment.number);
            }
            File::Partial(_) | File::History(_) | File::Part { .. } | File::Main(_) => {
                self.files.push(file.clone());
            }
        }
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn tell(&mut self, emit: Emit<'_>) {
        let batch = std::mem::take(self);
        if batch.objects == 0 {
            return;
        }
        let wal = batch.wal.iter().flat_map(|(timeline, runs)| {
            runs.intervals().map(|run| Range {
                timeline: *timeline,
                first: *run.start(),
                last: *run.end(),
            })
        });
        emit(Event::Verified {
            wal: wal.collect(),
            files: batch.files,
            bytes: batch.bytes,
            partly: batch.partly,
        });
    }
}

#[cfg(test)]
mod tests;
