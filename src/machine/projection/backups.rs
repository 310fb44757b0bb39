//! The life of each basebackup, and which of them can be restored.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::event::{Adopted, Event, Finished, Millis, WalIn, Why};
use crate::file::{BackupName, File};
use crate::projection::ledger::Ledger;
use crate::wal::{Lsn, Segment};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backups {
    pub all: BTreeMap<BackupName, Backup>,
    /// The last one begun, whatever became of it.
    pub newest: Option<BackupName>,
    /// Asked for and not yet started.
    pub requested: Option<Why>,
    pub last_failure: Option<(Millis, Class, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    pub phase: Phase,
    pub run: u64,
    pub node: Option<u32>,
    pub decided_at: Millis,
    pub normalized_at: Option<Millis>,
    pub reason: Why,
    pub content: Option<Content>,
    /// Bytes copied so far, and the estimated total, while it runs.
    pub progress: (u64, u64),
    /// The rule of retention by which it is dead.
    pub expired: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Being taken.
    Running,
    /// Taken; its main object, or the one object that is all of it, is stored once the WAL it
    /// needs is.
    Finished,
    /// Its main object was stored.
    Complete,
    /// Failed, expired or damaged: its objects go.
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Base name of the main object; `None` where it is ours to derive.
    pub object: Option<String>,
    pub format: String,
    pub start: Segment,
    /// Unknown for PGHoard's backups that do not record it.
    pub end: Option<Segment>,
    pub end_lsn: Option<Lsn>,
    pub started_at: Millis,
    /// Unknown for backups that do not record it.
    pub ended_at: Option<Millis>,
    pub parts: u32,
    pub bytes_in: u64,
    pub bytes_out: u64,
    #[serde(default, skip_serializing_if = "WalIn::is_archive")]
    pub wal: WalIn,
}

impl Backups {
    pub fn apply(&mut self, event: &Event, at: Millis, run: u64) {
        match event {
            Event::BackupRequested { reason } => self.requested = Some(*reason),
            Event::BackupStarted {
                backup,
                node,
                decided_at,
                normalized_at,
                reason,
            } => {
                self.requested = None;
                self.newest = Some(backup.clone());
                let started = Backup {
                    phase: Phase::Running,
                    run,
                    node: Some(*node),
                    decided_at: *decided_at,
                    normalized_at: *normalized_at,
                    reason: *reason,
                    content: None,
                    progress: (0, 0),
                    expired: None,
                };
                self.all.insert(backup.clone(), started);
            }
            Event::BackupProgressed {
                backup,
                bytes,
                total,
            } => {
                if let Some(backup) = self.all.get_mut(backup) {
                    backup.progress = (*bytes, *total);
                }
            }
            Event::BackupFinished(finished) => self.finish(finished),
            Event::BackupFailed {
                backup,
                class,
                message,
            } => {
                self.last_failure = Some((at, *class, message.clone()));
                // A put that only said that it failed may have been listed meanwhile.
                let found = self.all.get(backup).map(|backup| backup.phase);
                if found != Some(Phase::Complete) {
                    self.bury(backup);
                }
            }
            Event::BackupExpired { backup, rule } => {
                self.bury(backup);
                if let Some(backup) = self.all.get_mut(backup) {
                    backup.expired = Some(rule.clone());
                }
            }
            // A dead backup is remembered until its objects were removed, seen or unseen; one
            // that a hold revived too late is gone all the same.
            Event::Deleted { files, .. } => self
                .all
                .retain(|name, _| !files.contains(&File::Main(name.clone()))),
            Event::BackupFound(adopted) => self.adopt(adopted, run),
            Event::Stored {
                file: File::Main(backup),
                ..
            } => {
                if let Some(backup) = self.all.get_mut(backup)
                    && backup.phase == Phase::Finished
                {
                    backup.phase = Phase::Complete;
                }
            }
            // One object is not made visible before it is a whole backup, whoever says so first.
            Event::Found { files, .. } => self.found(files),
            _ => {}
        }
    }

    fn found(&mut self, files: &[File]) {
        for file in files {
            if let File::Main(backup) = file
                && let Some(backup) = self.all.get_mut(backup)
                && backup.phase == Phase::Finished
                && backup.one_object()
            {
                backup.phase = Phase::Complete;
            }
        }
    }

    fn bury(&mut self, backup: &BackupName) {
        if let Some(backup) = self.all.get_mut(backup) {
            backup.phase = Phase::Dead;
        }
    }

    /// A hold on a backup that expired but still exists brings it back to life.
    pub fn revive(&mut self, backup: &BackupName) {
        if let Some(backup) = self.all.get_mut(backup)
            && backup.phase == Phase::Dead
            && backup.expired.take().is_some()
        {
            backup.phase = Phase::Complete;
        }
    }

    fn finish(&mut self, finished: &Finished) {
        let Some(backup) = self.all.get_mut(&finished.backup) else {
            return;
        };
        if backup.phase != Phase::Running {
            return;
        }
        backup.phase = Phase::Finished;
        backup.content = Some(Content {
            format: match finished.object {
                Some(_) => String::new(),
                None => "pghoard-bb-v2".into(),
            },
            object: finished.object.clone(),
            start: finished.start,
            end: Some(finished.end),
            end_lsn: Some(finished.end_lsn),
            started_at: finished.started_at,
            ended_at: Some(finished.ended_at),
            parts: finished.parts,
            bytes_in: finished.bytes_in,
            bytes_out: finished.bytes_out,
            wal: finished.wal,
        });
    }

    /// A listing knows less than we do about a backup of our own: only what is new is taken.
    fn adopt(&mut self, adopted: &Adopted, run: u64) {
        if self.all.contains_key(&adopted.backup) {
            return;
        }
        let content = Content {
            object: Some(adopted.object.clone()),
            format: adopted.format.clone(),
            start: adopted.start,
            end: adopted.end,
            end_lsn: adopted.end_lsn,
            started_at: adopted.started_at,
            ended_at: adopted.ended_at,
            parts: adopted.parts,
            bytes_in: adopted.bytes_in,
            bytes_out: adopted.bytes_out,
            wal: adopted.wal,
        };
        let backup = Backup {
            phase: Phase::Complete,
            run,
            node: None,
            decided_at: adopted.decided_at,
            normalized_at: adopted.normalized_at,
            reason: adopted.reason,
            content: Some(content),
            progress: (0, 0),
            expired: None,
        };
        self.all.insert(adopted.backup.clone(), backup);
    }

    /// Backups that neither failed nor expired, oldest first.
    pub fn live(&self) -> impl DoubleEndedIterator<Item = (&BackupName, &Backup)> {
        self.all
            .iter()
            .filter(|(_, backup)| backup.phase != Phase::Dead)
    }

    pub fn running(&self) -> Option<(&BackupName, &Backup)> {
        self.live()
            .find(|(_, b)| matches!(b.phase, Phase::Running | Phase::Finished))
    }

    /// The backup that only its last object keeps from being complete.
    pub fn ready(&self, ledger: &Ledger) -> Option<(&BackupName, &Content)> {
        let (name, backup) = self.running()?;
        let content = backup.content.as_ref()?;
        let there = content.whole(name, ledger) && content.consistent(ledger);
        (backup.phase == Phase::Finished && there).then_some((name, content))
    }

    /// Restorable backups, oldest first: main object, every part and the WAL it needs to become
    /// consistent are stored. Age goes by WAL: clocks may have been wrong.
    pub fn restorable(&self, ledger: &Ledger) -> Vec<(&BackupName, &Backup, &Content)> {
        let mut good: Vec<_> = self
            .live()
            .filter_map(|(name, backup)| Some((name, backup, backup.content.as_ref()?)))
            .filter(|(name, backup, content)| {
                backup.phase == Phase::Complete
                    && ledger.mains.contains(*name)
                    && content.whole(name, ledger)
                    && content.consistent(ledger)
            })
            .collect();
        good.sort_by_key(|(name, _, content)| (content.start, content.started_at, *name));
        good
    }
}

impl Backup {
    /// It was taken into one object, which only the task that takes it can store.
    pub fn one_object(&self) -> bool {
        let object = self.content.as_ref().map(|content| &content.object);
        matches!(object, Some(Some(_)))
    }
}

impl Content {
    /// Every part is stored.
    pub fn whole(&self, name: &BackupName, ledger: &Ledger) -> bool {
        let parts = u64::from(self.parts);
        parts == 0
            || ledger
                .parts
                .get(name)
                .is_some_and(|have| have.covers(1, parts))
    }

    /// The WAL from start to end is stored, or the backup brings it.
    pub fn consistent(&self, ledger: &Ledger) -> bool {
        if self.wal == WalIn::Backup {
            return true;
        }
        let end = self.end.unwrap_or(self.start);
        let held = ledger.wal.get(&self.start.timeline);
        end.timeline == self.start.timeline
            && held.is_some_and(|runs| runs.covers(self.start.number, end.number))
    }
}
