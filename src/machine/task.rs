//! What can be running. A task may run twice, be killed anywhere, or have succeeded while
//! reporting failure; each is written for that.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::event::{Event, Millis, Range};
use crate::file::{BackupName, File, Site};
use crate::projection::marks::Hole;
use crate::runs::Runs;
use crate::wal::{Lsn, Segment};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Look at a server: identity, position, timelines.
    Probe { site: Site, node: u32 },
    /// Stream WAL into the spool.
    Receive { site: Site, node: u32, start: Start },
    /// Take a basebackup: parts to the store, main object to the spool.
    Take {
        site: Site,
        node: u32,
        backup: BackupName,
    },
    /// Put a spooled file into the store.
    Store { site: Site, file: File, entry: u64 },
    /// Ask the primary to finish its segment.
    Switch { site: Site, node: u32 },
    /// Remove a dead backup's objects: main, then parts. One that expired stays if the store says
    /// that it is held at this moment; while the clock is in doubt, that is every moment (S-76).
    DeleteBackup {
        site: Site,
        backup: BackupName,
        object: Option<String>,
        unless_held_at: Option<Millis>,
    },
    /// Mark what goes between backups, remove WAL that no backup needs, and marks that say
    /// nothing any more.
    DeleteWal {
        site: Site,
        ranges: Vec<Range>,
        retire: Vec<Range>,
        forget: Vec<String>,
    },
    /// Compare the store's listing with the log.
    Reconcile { site: Site },
    /// Read the marks in the store.
    ReadMarks { site: Site },
    /// Hold the store's lease, or watch who does, for as long as the daemon runs.
    Lease { site: Site },
    /// Read stored objects and judge what they hold.
    Verify { site: Site, what: What },
    /// Put the site's events of this stretch of the log into its store.
    Export { site: Site, first: u64, last: u64 },
    /// Bring what a restore would miss back into the spool.
    Fetch {
        site: Site,
        means: Means,
        hole: Hole,
    },
}

/// What is verified by one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Wal(Vec<Range>),
    /// Each by itself, whatever it belongs to.
    Files(Vec<File>),
    /// The main object (`object` is its base name, where it is not the one we would give) and
    /// all that it lists, but for the chunks that are `done`.
    Backup {
        backup: BackupName,
        object: Option<String>,
        done: Runs,
    },
}

/// Who may still have what the store has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    /// A node, by its number.
    Server(u32),
    /// The `pg_wal` of this machine.
    Directory,
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Means::Server(node) => write!(f, "server {node}"),
            Means::Directory => f.write_str("pg_wal on this machine"),
        }
    }
}

/// Where reception begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    At(Segment),
    /// At the slot's restart position, else at the server's current one.
    Anchor,
    /// As `Anchor`, but without a slot at the server's last checkpoint: what follows it is the
    /// WAL that a server keeps for itself.
    Checkpoint,
}

impl Start {
    /// The server chooses: what it passes over cannot be had.
    pub fn is_anchored(self) -> bool {
        !matches!(self, Start::At(_))
    }
}

/// The identity of a task: at most one of each runs at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskId {
    Probe(Site, u32),
    Receive(Site),
    Take(Site),
    Store(Site, File),
    Switch(Site),
    Delete(Site),
    Reconcile(Site),
    Marks(Site),
    Lease(Site),
    Verify(Site),
    Export(Site),
    Fetch(Site, Means),
}

impl Task {
    pub fn id(&self) -> TaskId {
        match self {
            Task::Probe { site, node } => TaskId::Probe(site.clone(), *node),
            Task::Receive { site, .. } => TaskId::Receive(site.clone()),
            Task::Take { site, .. } => TaskId::Take(site.clone()),
            Task::Store { site, file, .. } => TaskId::Store(site.clone(), file.clone()),
            Task::Switch { site, .. } => TaskId::Switch(site.clone()),
            Task::DeleteBackup { site, .. } | Task::DeleteWal { site, .. } => {
                TaskId::Delete(site.clone())
            }
            Task::Reconcile { site } => TaskId::Reconcile(site.clone()),
            Task::ReadMarks { site } => TaskId::Marks(site.clone()),
            Task::Lease { site } => TaskId::Lease(site.clone()),
            Task::Verify { site, .. } => TaskId::Verify(site.clone()),
            Task::Export { site, .. } => TaskId::Export(site.clone()),
            Task::Fetch { site, means, .. } => TaskId::Fetch(site.clone(), *means),
        }
    }
}

impl Task {
    /// The event that says that this task failed as a whole.
    pub fn failed(&self, class: Class, message: String) -> Event {
        match self {
            Task::Probe { node, .. } => Event::ServerLost {
                node: *node,
                class,
                message,
            },
            Task::Receive { node, .. } => Event::StreamEnded {
                node: *node,
                at: Lsn::default(),
                class,
                message,
            },
            Task::Take { backup, .. } => Event::BackupFailed {
                backup: backup.clone(),
                class,
                message,
            },
            Task::Store { .. }
            | Task::Switch { .. }
            | Task::DeleteBackup { .. }
            | Task::DeleteWal { .. }
            | Task::Reconcile { .. }
            | Task::ReadMarks { .. }
            | Task::Lease { .. }
            | Task::Verify { .. }
            | Task::Export { .. }
            | Task::Fetch { .. } => Event::TaskFailed {
                task: self.id(),
                class,
                message,
            },
        }
    }
}

impl TaskId {
    pub fn site(&self) -> &Site {
        match self {
            TaskId::Probe(site, _)
            | TaskId::Receive(site)
            | TaskId::Take(site)
            | TaskId::Store(site, _)
            | TaskId::Switch(site)
            | TaskId::Delete(site)
            | TaskId::Reconcile(site)
            | TaskId::Marks(site)
            | TaskId::Lease(site)
            | TaskId::Verify(site)
            | TaskId::Export(site)
            | TaskId::Fetch(site, _) => site,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            TaskId::Probe(..) => "probe",
            TaskId::Receive(..) => "receive",
            TaskId::Take(..) => "take",
            TaskId::Store(..) => "store",
            TaskId::Switch(..) => "switch",
            TaskId::Delete(..) => "delete",
            TaskId::Reconcile(..) => "reconcile",
            TaskId::Marks(..) => "read marks",
            TaskId::Lease(..) => "lease",
            TaskId::Verify(..) => "verify",
            TaskId::Export(..) => "export",
            TaskId::Fetch(..) => "fetch",
        }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of site '{}'", self.name(), self.site())
    }
}

/// What `decide` answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Record(Site, Event),
    Start(Task),
    Stop(TaskId),
    /// Let the events up to this one give way to a summary; the loop does it itself.
    Compact(u64),
}
