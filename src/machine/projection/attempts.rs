//! Failures of each task and its next try. Backoff is capped and never gives up (S-68).

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::event::{Event, Millis};
use crate::file::{File, Site};
use crate::projection::ledger::streamed;
use crate::task::TaskId;

pub mod refused;

use refused::Refused;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attempts {
    #[serde(with = "crate::state::pairs")]
    failed: BTreeMap<TaskId, Failed>,
    streaming_since: Option<Millis>,
    /// What the store would not delete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub times: u32,
    pub class: Class,
    pub message: String,
    pub since: Millis,
    pub next: Millis,
}

/// The first retry of anything comes after this long.
const BASE_MS: u64 = 500;
/// PGHoard's cap for uploads; fit for everything that may heal by itself.
const CAP_MS: u64 = 20_000;
/// What a person must mend is asked less often.
const HUMAN_CAP_MS: u64 = 60_000;
/// A stream that lasted so long had nothing wrong with it.
const LASTING_MS: u64 = 60_000;
/// A failed basebackup costs its server a full read: it waits longer (PGHoard: 3600 s).
const BACKUP_BASE_MS: u64 = 5_000;
const BACKUP_CAP_MS: u64 = 3_600_000;

impl Attempts {
    pub fn apply(&mut self, site: &Site, event: &Event, at: Millis) {
        refused::apply(&mut self.refused, event, at);
        if streamed(event).is_some() && !self.failed.is_empty() {
            self.failed.remove(&TaskId::Receive(site.clone()));
        }
        // Only now it is one that can be restored: what is taken and then lacks WAL failed.
        if let Event::Stored {
            file: File::Main(_),
            ..
        } = event
        {
            self.failed.remove(&TaskId::Take(site.clone()));
        }
        match event {
            Event::TaskFailed {
                task,
                class,
                message,
            } => {
                self.fail(task.clone(), *class, message, at);
            }
            Event::ServerLost {
                node,
                class,
                message,
            } => {
                self.fail(TaskId::Probe(site.clone(), *node), *class, message, at);
            }
            Event::StreamStarted { .. } => self.streaming_since = Some(at),
            Event::StreamEnded { class, message, .. } => {
                let lasted = self.streaming_since.take().map(|since| at.since(since));
                let receive = TaskId::Receive(site.clone());
                // An idle server completes no segment: a stream that lasted is success enough.
                if lasted.is_some_and(|ms| ms >= LASTING_MS) || *class == Class::Interrupted {
                    self.failed.remove(&receive);
                }
                self.fail(receive, *class, message, at);
            }
            // Both are kept for a person, and looked at again now and then.
            Event::Conflicted { file, theirs, .. } => {
                let message = format!("the store holds other content ({theirs})");
                self.fail(
                    TaskId::Store(site.clone(), file.clone()),
                    Class::Conflict,
                    &message,
                    at,
                );
            }
            Event::BackupFailed { class, message, .. } => {
                self.fail(TaskId::Take(site.clone()), *class, message, at);
            }
            // A new configuration or a restart is a reason to try everything at once.
            Event::Started { .. } | Event::ConfigLoaded { .. } => self.failed.clear(),
            // Mostly nothing has failed, and no name is made for nothing.
            _ if self.failed.is_empty() => {}
            _ => {
                if let Some(task) = succeeded(site, event) {
                    self.failed.remove(&task);
                }
            }
        }
    }

    fn fail(&mut self, task: TaskId, class: Class, message: &str, at: Millis) {
        let (times, since) = self
            .failed
            .get(&task)
            .map_or((0, at), |f| (f.times, f.since));
        let times = times.saturating_add(1);
        let next = at.plus(backoff_ms(&task, class, times));
        self.failed.insert(
            task,
            Failed {
                times,
                class,
                message: message.into(),
                since,
                next,
            },
        );
    }

    /// Whether the task may be tried now.
    pub fn due(&self, task: &TaskId, now: Millis) -> bool {
        self.failed
            .get(task)
            .is_none_or(|failed| failed.next <= now)
    }

    pub fn get(&self, task: &TaskId) -> Option<&Failed> {
        self.failed.get(task)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&TaskId, &Failed)> {
        self.failed.iter()
    }
}

/// The task whose success an event tells.
fn succeeded(site: &Site, event: &Event) -> Option<TaskId> {
    let site = || site.clone();
    Some(match event {
        Event::ServerSeen(server) => TaskId::Probe(site(), server.node),
        Event::Stored { file, .. } | Event::Dropped { file, .. } => {
            TaskId::Store(site(), file.clone())
        }
        Event::Deleted { .. } | Event::DeletionRefused { .. } => TaskId::Delete(site()),
        Event::Switched { .. } => TaskId::Switch(site()),
        Event::Reconciled { .. } => TaskId::Reconcile(site()),
        Event::Exported { .. } => TaskId::Export(site()),
        Event::MarksRead { .. } => TaskId::Marks(site()),
        Event::LeaseSeen(_) => TaskId::Lease(site()),
        Event::Verified { .. } | Event::Unverified { .. } | Event::FoundDamaged { .. } => {
            TaskId::Verify(site())
        }
        Event::HoleSought { means, .. } => TaskId::Fetch(site(), *means),
        _ => return None,
    })
}

fn backoff_ms(task: &TaskId, class: Class, times: u32) -> u64 {
    let (base, cap) = match (task, class) {
        // Stopped on purpose or cut by a restart: nothing argues against trying again.
        (_, Class::Interrupted) => (BASE_MS, BASE_MS),
        (TaskId::Take(_), _) => (BACKUP_BASE_MS, BACKUP_CAP_MS),
        (_, Class::Auth | Class::Denied | Class::Config | Class::Unsupported | Class::Conflict) => {
            (BASE_MS, HUMAN_CAP_MS)
        }
        _ => (BASE_MS, CAP_MS),
    };
    let doublings = times.saturating_sub(1).min(20);
    base.saturating_mul(1 << doublings).min(cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s68_backoff_is_capped_and_never_stops() {
        let site = Site("main".into());
        let store = TaskId::Reconcile(site.clone());
        let take = TaskId::Take(site);
        for (task, class, times, expect) in [
            (&store, Class::Network, 1, 500),
            (&store, Class::Network, 2, 1_000),
            (&store, Class::Network, 6, 16_000),
            (&store, Class::Network, 7, 20_000),
            (&store, Class::Network, u32::MAX, 20_000),
            (&store, Class::Auth, 60, 60_000),
            (&take, Class::Network, 1, 5_000),
            (&take, Class::Network, 99, 3_600_000),
            (&take, Class::Interrupted, 9, 500),
        ] {
            assert_eq!(
                backoff_ms(task, class, times),
                expect,
                "{task} {class} {times}"
            );
        }
    }

    /// A backup that is taken whole and then lacks WAL costs its server as much as any.
    #[test]
    fn s68_only_a_complete_backup_ends_the_backoff() {
        let site = Site("main".into());
        let backup = crate::file::BackupName("b".into());
        let lost = Event::BackupFailed {
            backup: backup.clone(),
            class: Class::NotFound,
            message: "lost".into(),
        };
        let stored = Event::Stored {
            file: File::Main(backup.clone()),
            entry: Some(1),
            bytes_in: 1,
            bytes_out: 1,
            digest: String::new(),
            millis: 1,
            how: crate::event::How::Written,
        };
        let segment = crate::wal::Segment::new(crate::wal::Timeline(1), 1);
        let finished = Event::BackupFinished(crate::event::Finished {
            backup,
            start: segment,
            end: segment,
            start_lsn: crate::wal::Lsn(0),
            end_lsn: crate::wal::Lsn(0),
            started_at: Millis(1),
            ended_at: Millis(1),
            parts: 1,
            bytes_in: 1,
            bytes_out: 1,
            from_standby: true,
            object: None,
            wal: crate::event::WalIn::Archive,
        });
        let mut attempts = Attempts::default();
        let take = TaskId::Take(site.clone());
        for (event, times) in [(&lost, 1), (&finished, 1), (&lost, 2), (&stored, 0)] {
            attempts.apply(&site, event, Millis(1));
            let failed = attempts.get(&take).map_or(0, |failed| failed.times);
            assert_eq!(failed, times, "{event:?}");
        }
    }
}
