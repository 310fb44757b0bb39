//! Counters behind the statistics file and the metrics: what was stored, how often it failed, when
//! it last worked.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::event::{Event, Millis};
use crate::file::File;
use crate::projection::ledger::Ledger;
use crate::task::TaskId;

/// By PGHoard's file type: `xlog`, `timeline`, `basebackup`, `basebackup_chunk`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    pub uploads: BTreeMap<String, Count>,
    pub xlogs_since_basebackup: u64,
    /// Bytes read back from the store and found good, by file type.
    pub downloads: BTreeMap<String, u64>,
    /// Failures by the name of the task; what was stopped on purpose is none.
    pub failures: BTreeMap<String, BTreeMap<Class, u64>>,
    pub backups_completed: u64,
    pub backups_failed: u64,
    /// The last basebackup taken.
    pub took: Option<Took>,
    /// Of the basebackup that is being taken.
    pub moved: Option<Moved>,
    /// Unfinished segments that ended timelines.
    pub partials: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Count {
    pub count: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub failures: u64,
    /// Of what failed, as it lay in the spool.
    pub failed_bytes: u64,
    pub millis: u64,
    pub last_success: Option<Millis>,
    pub latest: Option<File>,
    /// Of the latest: plain, and as stored.
    pub latest_bytes: (u64, u64),
}

/// When a basebackup was there, and how long it was taken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    pub at: Millis,
    pub millis: u64,
}

/// When the basebackup last came forward, and how far it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    pub at: Millis,
    pub bytes: u64,
}

impl Tally {
    /// After the ledger: it knows how large a file is that could not be stored.
    pub fn apply(&mut self, event: &Event, at: Millis, ledger: &Ledger) {
        if let Some((task, class)) = failed(event) {
            let classes = self.failures.entry(task.into()).or_default();
            add(classes.entry(class).or_default(), 1);
        }
        match event {
            Event::Stored {
                file,
                bytes_in,
                bytes_out,
                millis,
                ..
            } => {
                self.stored(file, at, (*bytes_in, *bytes_out));
                let count = self.uploads.entry(file.kind().into()).or_default();
                add(&mut count.millis, *millis);
            }
            Event::TaskFailed {
                task: TaskId::Store(_, file),
                ..
            } => {
                let bytes = ledger.spool.get(file).map_or(0, |entry| entry.bytes);
                let count = self.uploads.entry(file.kind().into()).or_default();
                add(&mut count.failures, 1);
                add(&mut count.failed_bytes, bytes);
            }
            Event::Spooled {
                file: File::Partial(_),
                ..
            } => add(&mut self.partials, 1),
            Event::Verified {
                wal, files, bytes, ..
            } => {
                // One task looks at WAL or at the files of one backup, never at both.
                let kind = match (wal.first(), files.first()) {
                    (None, Some(file)) => file.kind(),
                    _ => "xlog",
                };
                add(self.downloads.entry(kind.into()).or_default(), *bytes);
            }
            _ => self.backup(event, at),
        }
    }

    fn stored(&mut self, file: &File, at: Millis, (bytes_in, bytes_out): (u64, u64)) {
        self.xlogs_since_basebackup = match file.kind() {
            "xlog" => self.xlogs_since_basebackup.saturating_add(1),
            "timeline" => self.xlogs_since_basebackup,
            _ => 0,
        };
        match file {
            File::Main(_) => add(&mut self.backups_completed, 1),
            File::Part { .. } => {
                if let Some(moved) = &mut self.moved {
                    moved.at = at;
                }
            }
            File::Wal(_) | File::Partial(_) | File::History(_) => {}
        }
        let count = self.uploads.entry(file.kind().into()).or_default();
        add(&mut count.count, 1);
        add(&mut count.bytes_in, bytes_in);
        add(&mut count.bytes_out, bytes_out);
        count.last_success = Some(at);
        count.latest = Some(file.clone());
        count.latest_bytes = (bytes_in, bytes_out);
    }

    fn backup(&mut self, event: &Event, at: Millis) {
        match event {
            Event::BackupStarted { .. } => self.moved = Some(Moved { at, bytes: 0 }),
            Event::BackupProgressed { bytes, .. } => {
                if let Some(moved) = &mut self.moved
                    && *bytes > moved.bytes
                {
                    *moved = Moved { at, bytes: *bytes };
                }
            }
            Event::BackupFinished(finished) => {
                self.moved = None;
                let millis = finished.ended_at.since(finished.started_at);
                self.took = Some(Took { at, millis });
            }
            Event::BackupFailed { .. } => {
                self.moved = None;
                add(&mut self.backups_failed, 1);
            }
            _ => {}
        }
    }
}

fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

/// The name of the task that failed, and how.
fn failed(event: &Event) -> Option<(&'static str, Class)> {
    let (task, class) = match event {
        Event::TaskFailed { task, class, .. } => (task.name(), *class),
        Event::ServerLost { class, .. } => ("probe", *class),
        Event::StreamEnded { class, .. } => ("receive", *class),
        Event::BackupFailed { class, .. } => ("take", *class),
        Event::Conflicted { .. } => ("store", Class::Conflict),
        _ => return None,
    };
    (class != Class::Interrupted).then_some((task, class))
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::event::{Finished, How, Origin, Range};
    use crate::file::{BackupName, Site};
    use crate::projection::timelines::Timelines;
    use crate::wal::{Lsn, Segment, Timeline};

    fn backup() -> BackupName {
        BackupName("2026-11-22_09-27_0".into())
    }

    fn wal(number: u64) -> File {
        File::Wal(Segment::new(Timeline(1), number))
    }

    fn fold(events: &[Event]) -> Tally {
        let (mut tally, mut ledger) = (Tally::default(), Ledger::default());
        for (at, event) in (0..).zip(events) {
            ledger.apply(event, Millis(at), &Timelines::default());
            tally.apply(event, Millis(at), &ledger);
        }
        tally
    }

    fn stored(file: File, bytes_out: u64) -> Event {
        Event::Stored {
            file,
            entry: None,
            bytes_in: 10,
            bytes_out,
            digest: String::new(),
            millis: 3,
            how: How::Written,
        }
    }

    fn broken(task: TaskId, class: Class) -> Event {
        Event::TaskFailed {
            task,
            class,
            message: "no".into(),
        }
    }

    fn progressed(bytes: u64) -> Event {
        Event::BackupProgressed {
            backup: backup(),
            bytes,
            total: 100,
        }
    }

    #[test]
    fn uploads_add_up_and_what_failed_has_its_size() {
        let site = Site("main".into());
        let spooled = |file| Event::Spooled {
            file,
            entry: 1,
            bytes: 16,
            origin: Origin::Stream,
        };
        let partial = File::Partial(Segment::new(Timeline(1), 3));
        let tally = fold(&[
            spooled(wal(1)),
            broken(TaskId::Store(site.clone(), wal(1)), Class::Quota),
            broken(TaskId::Store(site.clone(), wal(1)), Class::Quota),
            broken(TaskId::Export(site.clone()), Class::Interrupted),
            stored(wal(1), 4),
            stored(wal(2), 6),
            spooled(partial),
        ]);
        let xlog = &tally.uploads["xlog"];
        assert_eq!((xlog.count, xlog.bytes_in, xlog.bytes_out), (2, 20, 10));
        assert_eq!((xlog.failures, xlog.failed_bytes), (2, 32));
        assert_eq!((xlog.latest_bytes, xlog.millis), ((10, 6), 6));
        assert_eq!(tally.xlogs_since_basebackup, 2);
        assert_eq!(tally.partials, 1);
        assert_eq!(tally.failures.len(), 1);
        assert_eq!(tally.failures["store"][&Class::Quota], 2);
    }

    #[test]
    fn a_basebackup_moves_ends_and_is_counted() {
        let started = Event::BackupStarted {
            backup: backup(),
            node: 0,
            decided_at: Millis(0),
            normalized_at: None,
            reason: crate::event::Why::Schedule,
        };
        let part = File::Part {
            backup: backup(),
            number: 1,
        };
        let running = [started.clone(), progressed(5), progressed(5)];
        assert_eq!(
            fold(&running).moved,
            Some(Moved {
                at: Millis(1),
                bytes: 5
            })
        );
        let running = [started.clone(), progressed(5), stored(part, 2)];
        assert_eq!(
            fold(&running).moved,
            Some(Moved {
                at: Millis(2),
                bytes: 5
            })
        );

        let segment = Segment::new(Timeline(1), 1);
        let finished = Event::BackupFinished(Finished {
            backup: backup(),
            start: segment,
            end: segment,
            start_lsn: Lsn(1),
            end_lsn: Lsn(2),
            started_at: Millis(1_000),
            ended_at: Millis(3_500),
            parts: 1,
            bytes_in: 1,
            bytes_out: 1,
            from_standby: false,
            object: None,
            wal: crate::event::WalIn::Archive,
        });
        let failed = Event::BackupFailed {
            backup: backup(),
            class: Class::Network,
            message: "gone".into(),
        };
        let main = stored(File::Main(backup()), 1);
        let tally = fold(&[started.clone(), failed, started, finished, main]);
        assert_eq!((tally.backups_completed, tally.backups_failed), (1, 1));
        assert_eq!(tally.failures["take"][&Class::Network], 1);
        let took = Took {
            at: Millis(3),
            millis: 2_500,
        };
        assert_eq!((tally.took, tally.moved), (Some(took), None));
    }

    #[test]
    fn what_verification_reads_counts_by_what_it_read() {
        let range = Range {
            timeline: Timeline(1),
            first: 1,
            last: 2,
        };
        let verified = |wal, files| Event::Verified {
            wal,
            files,
            bytes: 7,
            partly: 0,
        };
        let tally = fold(&[
            verified(vec![range], vec![]),
            verified(vec![], vec![File::Main(backup())]),
            verified(vec![range], vec![]),
        ]);
        assert_eq!(tally.downloads["xlog"], 14);
        assert_eq!(tally.downloads["basebackup"], 7);
    }
}
