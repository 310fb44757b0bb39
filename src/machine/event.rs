//! Every fact we ever record. Past tense, a range where a range will do.
//!
//! An event that was ever released keeps its meaning for ever: a field is added with a default, a
//! changed meaning is a new version with an upcast (`journal/upcast.rs`), a name is never reused.
//! What is deliberately absent: bytes received, uploads that began, ticks. They are re-derived.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::file::{BackupName, File, Site};
use crate::projection::marks::{Hole, Mark};
use crate::state::{SiteState, State};
use crate::task::{Means, TaskId};
use crate::wal::{Lsn, Segment, SegmentSize, Timeline};

/// Milliseconds since 1970, UTC.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    pub fn plus(self, ms: u64) -> Millis {
        Millis(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to here; 0 if that is later.
    pub fn since(self, earlier: Millis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Position in the log, from 1, without gaps.
    pub seq: u64,
    /// Never earlier than the one before.
    pub at: Millis,
    /// Which start of the daemon wrote it.
    pub run: u64,
    pub site: Option<Site>,
    pub event: Event,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "body", rename_all = "snake_case")]
pub enum Event {
    // Running
    Started {
        version: String,
        host: String,
        previous: Previous,
        config_digest: String,
    },
    Stopped {
        reason: String,
    },
    /// In force from now on: as a whole, or what of a site is new. Keys by their names, never a
    /// value that may be a secret.
    ConfigLoaded {
        digest: String,
        sites: Vec<String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        changed: Vec<String>,
        /// What needs a restart: the key, what stays in force, what the file says.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        kept: Vec<String>,
        /// The site's servers may be others now.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        elsewhere: bool,
    },
    /// Read while the daemon runs, and not fit for use: the one before stays in force.
    ConfigRefused {
        message: String,
    },

    // PostgreSQL
    ServerSeen(Server),
    ServerLost {
        node: u32,
        class: Class,
        message: String,
    },
    StreamStarted {
        node: u32,
        from: Segment,
        slot: Option<String>,
        /// The server chose `from`: what we wanted before it is not there any more.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        anchored: bool,
    },
    StreamEnded {
        node: u32,
        at: Lsn,
        class: Class,
        message: String,
    },
    TimelineLearned {
        timeline: Timeline,
        ancestors: Vec<Branch>,
    },
    /// This WAL in the store names its cluster: a log that begins anew takes no other for it.
    ClusterLearned {
        system_id: u64,
        segment: Segment,
    },
    /// PostgreSQL was asked to finish its segment because a backup waits for it.
    Switched {
        node: u32,
        at: Lsn,
    },

    /// `archive_command` was given the label of a backup that PostgreSQL made itself. No restore
    /// asks for it, so it is not kept.
    LabelArchived {
        name: String,
    },
    /// `archive_command` went on beyond WAL that never came here: nothing will bring it by itself.
    WalPassed {
        wal: Range,
    },

    // Files
    Spooled {
        file: File,
        entry: u64,
        bytes: u64,
        origin: Origin,
    },
    Stored {
        file: File,
        entry: Option<u64>,
        bytes_in: u64,
        bytes_out: u64,
        digest: String,
        millis: u64,
        how: How,
    },
    Dropped {
        file: File,
        entry: u64,
        reason: Reason,
    },
    Conflicted {
        file: File,
        ours: String,
        theirs: String,
    },
    Found {
        segment_size: SegmentSize,
        wal: Vec<Range>,
        files: Vec<File>,
    },
    Missing {
        wal: Vec<Range>,
        files: Vec<File>,
    },
    Deleted {
        wal: Vec<Range>,
        files: Vec<File>,
    },

    // Basebackups
    BackupRequested {
        reason: Why,
    },
    BackupStarted {
        backup: BackupName,
        node: u32,
        decided_at: Millis,
        normalized_at: Option<Millis>,
        reason: Why,
    },
    BackupProgressed {
        backup: BackupName,
        bytes: u64,
        total: u64,
    },
    BackupFinished(Finished),
    BackupFailed {
        backup: BackupName,
        class: Class,
        message: String,
    },
    BackupExpired {
        backup: BackupName,
        rule: String,
    },
    BackupFound(Adopted),
    /// No backup needs this WAL: it is being deleted.
    WalExpired {
        wal: Vec<Range>,
    },

    // Judgements that outlive the log
    /// An object of its own in the store says so; `key` is below the site's prefix.
    Marked {
        key: String,
        mark: Mark,
    },
    Unmarked {
        key: String,
    },
    /// All marks in the store were read and compared.
    MarksRead {
        marks: u64,
    },

    // Verification
    /// Every object that the store held then is to be looked at once more.
    ScrubStarted {
        objects: u64,
    },
    /// Read and found to be what they claim. `partly` of them only as far as that can be told
    /// without the private key; `bytes` as stored.
    Verified {
        wal: Vec<Range>,
        files: Vec<File>,
        bytes: u64,
        partly: u64,
    },
    /// Looked at, and nobody can say what they are.
    Unverified {
        wal: Vec<Range>,
        files: Vec<File>,
        class: Class,
        message: String,
    },
    /// The content proves it, twice; its mark is in the store already.
    FoundDamaged {
        file: File,
        detail: String,
    },

    // Holes: WAL and histories that a restore would miss
    HoleOpened {
        hole: Hole,
    },
    /// It was healed, or nothing in the store needs it any more.
    HoleClosed {
        hole: Hole,
    },
    /// What one means to heal it had to say of it.
    HoleSought {
        hole: Hole,
        means: Means,
        outcome: Sought,
    },

    // Tasks, people, the log
    TaskFailed {
        task: TaskId,
        class: Class,
        message: String,
    },
    Reconciled {
        objects: u64,
        bytes: u64,
        found: u64,
        missing: u64,
        /// Objects that belong to nothing we know: never touched, only told.
        unknown: u64,
        millis: u64,
    },
    AlertAcknowledged {
        alert: String,
    },
    /// A person changed something, with a command that may have events of its own beside this one.
    /// Never a secret.
    Operated {
        who: String,
        command: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
    },
    /// The log before this one was lost or damaged and set aside.
    LogRebuilt {
        reason: String,
    },
    /// The wall clock moved against the one that nobody can set, or says less at a start than the
    /// log does: by so much, forward if positive.
    ClockJumped {
        by_ms: i64,
    },
    /// The store's lease was looked at, and something about it is new: who may write there.
    LeaseSeen(Lease),
    /// This stretch of the log is in the site's store, under this key below its prefix.
    Exported {
        first: u64,
        last: u64,
        object: String,
        events: u64,
        bytes: u64,
    },
    /// The events up to `upto` gave way to a summary, which begins with this one: the state of the
    /// whole, without sites.
    Compacted {
        upto: u64,
        removed: u64,
        last_digest: String,
        carried: Box<State>,
    },
    /// The end of one site's part of a summary: what its other events do not tell.
    Carried(Box<SiteState>),
    /// A summary did not fold to the state; the log was kept as it is.
    CompactionRefused {
        reason: String,
    },
    /// The store would not delete these: locked, held there, or not ours to delete. `marks` are
    /// keys below the site's prefix.
    DeletionRefused {
        wal: Vec<Range>,
        files: Vec<File>,
        marks: Vec<String>,
        class: Class,
        message: String,
    },
}

/// How the run before this one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Previous {
    Clean,
    Crashed,
    Unknown,
}

/// A PostgreSQL server as a probe saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub node: u32,
    pub system_id: u64,
    /// As `server_version_num`: 150018.
    pub version: u32,
    pub segment_size: SegmentSize,
    pub timeline: Timeline,
    pub lsn: Lsn,
    pub in_recovery: bool,
    /// Our own line in `pg_stat_replication`, when we have one and may read it.
    pub sync_state: Option<String>,
    /// Our slot there, when it exists and may be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
    /// Its clock less ours, when it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_ms: Option<i64>,
}

/// Our replication slot as its server has it (`pg_replication_slots`). What a version does not
/// tell, or the user may not read, is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub name: String,
    pub active: bool,
    pub restart_lsn: Option<Lsn>,
    /// WAL that the server keeps for it.
    pub held_bytes: Option<u64>,
    /// `reserved`, `extended`, `unreserved` or `lost`, since version 13.
    pub wal_status: Option<String>,
    /// WAL that may still be written before the slot is in danger of being lost.
    pub safe_bytes: Option<i64>,
    /// `max_slot_wal_keep_size`, where it is limited.
    pub limit_bytes: Option<u64>,
}

/// `timeline` was left at `switch` for its child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    pub timeline: Timeline,
    pub switch: Lsn,
}

/// Segments `first..=last` of one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Range {
    pub timeline: Timeline,
    pub first: u64,
    pub last: u64,
}

impl Range {
    /// `FIRST-LAST`, as names of segments.
    pub fn name(&self, size: SegmentSize) -> String {
        let name = |number| Segment::new(self.timeline, number).name(size);
        format!("{}-{}", name(self.first), name(self.last))
    }

    pub fn holds(&self, segment: Segment) -> bool {
        self.timeline == segment.timeline && (self.first..=self.last).contains(&segment.number)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    Stream,
    Archive,
    Backup,
    /// Found in the spool at start, unknown to the log.
    Adopted,
    /// Brought back into a hole.
    Fetched,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    Written,
    AlreadyThere,
    /// What lay under the name was damaged.
    Replaced,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sought {
    /// It is in the spool now.
    Fetched,
    /// It is confirmed to be gone there.
    Absent { message: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nobody needs it: its backup is dead.
    Unwanted,
    /// The store holds it already.
    Duplicate,
    /// The spool lost it.
    Vanished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    Schedule,
    Operator,
    Hole,
}

/// Which daemon holds a site's prefix in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The instance: one per `backup_location`.
    pub holder: String,
    pub host: String,
    pub ours: bool,
    /// By the holder's clock.
    pub started_at: Millis,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    pub backup: BackupName,
    pub start: Segment,
    pub end: Segment,
    pub start_lsn: Lsn,
    pub end_lsn: Lsn,
    pub started_at: Millis,
    pub ended_at: Millis,
    pub parts: u32,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub from_standby: bool,
    /// Base name of the one object that is all of it: whoever takes the backup stores it, once
    /// the WAL it needs is there. `None` for parts and a main object that waits in the spool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    #[serde(default, skip_serializing_if = "WalIn::is_archive")]
    pub wal: WalIn,
}

/// Where the WAL is that makes a backup consistent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WalIn {
    /// Stored beside it, segment by segment.
    #[default]
    Archive,
    /// In the backup: it can be restored by itself, to its end.
    Backup,
}

impl WalIn {
    pub fn is_archive(&self) -> bool {
        *self == WalIn::Archive
    }
}

/// A backup that a listing showed and the log did not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    pub backup: BackupName,
    /// Base name of the main object: formats name it differently.
    pub object: String,
    pub format: String,
    pub start: Segment,
    pub end: Option<Segment>,
    pub started_at: Millis,
    pub decided_at: Millis,
    pub normalized_at: Option<Millis>,
    pub reason: Why,
    pub parts: u32,
    pub bytes_in: u64,
    pub bytes_out: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Millis>,
    /// Where it is consistent, to the byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_lsn: Option<Lsn>,
    #[serde(default, skip_serializing_if = "WalIn::is_archive")]
    pub wal: WalIn,
}

impl Event {
    /// Whether a reader that does not know this kind must refuse the log instead of skipping it.
    /// Everything that decides what may be acknowledged or deleted is critical.
    pub fn critical(&self) -> bool {
        !matches!(
            self,
            Event::BackupProgressed { .. }
                | Event::AlertAcknowledged { .. }
                | Event::Operated { .. }
                | Event::ConfigRefused { .. }
                | Event::TaskFailed { .. }
                | Event::Switched { .. }
                | Event::LabelArchived { .. }
                | Event::ClockJumped { .. }
                | Event::LeaseSeen(_)
                | Event::ScrubStarted { .. }
                | Event::Verified { .. }
                | Event::Unverified { .. }
                | Event::FoundDamaged { .. }
                | Event::Exported { .. }
                | Event::CompactionRefused { .. }
                | Event::DeletionRefused { .. }
                | Event::HoleOpened { .. }
                | Event::HoleClosed { .. }
                | Event::HoleSought { .. }
        )
    }
}
