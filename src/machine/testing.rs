//! Small states for the tables of the rules.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::event::{Adopted, Event, How, Lease, Millis, Server, WalIn, Why};
use crate::file::{BackupName, File};
use crate::policy::{Ack, SitePolicy, Tiers};
use crate::projection::backups::{Backup, Content, Phase};
use crate::wal::{Lsn, Segment, SegmentSize, Timeline};

pub fn site_policy() -> SitePolicy {
    SitePolicy {
        active: true,
        nodes: 1,
        streams: true,
        standalone: false,
        slot: true,
        ack: Ack::Stored,
        preferred_node: None,
        spool_limit_bytes: u64::MAX,
        cramped_since: None,
        interval_ms: Some(86_400_000),
        hour: None,
        minute: None,
        count: Some(2),
        count_min: 2,
        age_max_ms: None,
        window_ms: None,
        tiers: Tiers::default(),
        reconcile_interval_ms: 86_400_000,
        probe_interval_ms: 30_000,
        backup_overdue_ms: Some(2 * 86_400_000 + 3_600_000),
        wal_overdue_ms: 3_600_000,
        slot_retention_bytes: 10 << 30,
        verify_interval_ms: Some(30 * 86_400_000),
        directory: false,
        origins: Vec::new(),
    }
}

/// A primary of cluster 1.
pub fn seen(node: u32) -> Server {
    Server {
        node,
        system_id: 1,
        version: 150_018,
        segment_size: SegmentSize::DEFAULT,
        timeline: Timeline(1),
        lsn: Lsn(0),
        in_recovery: false,
        sync_state: None,
        slot: None,
        clock_skew_ms: None,
    }
}

/// Who holds the prefix.
pub fn lease(ours: bool) -> Event {
    Event::LeaseSeen(Lease {
        holder: "x".into(),
        host: "vault".into(),
        ours,
        started_at: Millis(1),
    })
}

/// A listing that showed nothing new.
pub fn reconciled() -> Event {
    Event::Reconciled {
        objects: 0,
        bytes: 0,
        found: 0,
        missing: 0,
        unknown: 0,
        millis: 0,
    }
}

/// A complete backup without parts that began at `at`.
pub fn backup(name: &str, at: Millis, reason: Why) -> (BackupName, Backup) {
    let start = Segment::new(Timeline(1), 1);
    let content = Content {
        object: None,
        format: "pghoard-bb-v2".into(),
        start,
        end: Some(start),
        end_lsn: None,
        started_at: at,
        ended_at: None,
        parts: 0,
        bytes_in: 0,
        bytes_out: 0,
        wal: WalIn::Archive,
    };
    let made = Backup {
        phase: Phase::Complete,
        run: 1,
        node: Some(0),
        decided_at: at,
        normalized_at: None,
        reason,
        content: Some(content),
        progress: (0, 0),
        expired: None,
    };
    (BackupName(name.into()), made)
}

/// A backup of the one segment `start`, seen in the store. It began a second before `now`; of two
/// the one with the higher segment is the newer by the difference in milliseconds.
pub fn adopted(name: &str, start: u64, now: Millis) -> Event {
    let start = Segment::new(Timeline(1), start);
    Event::BackupFound(Adopted {
        backup: BackupName(name.into()),
        object: format!("{name}.00000000.pghoard"),
        format: "pghoard-bb-v2".into(),
        start,
        end: Some(start),
        started_at: Millis(now.0 - 1_000 + start.number),
        decided_at: Millis(now.0 - 1_000 + start.number),
        normalized_at: None,
        reason: Why::Schedule,
        parts: 0,
        bytes_in: 0,
        bytes_out: 0,
        ended_at: None,
        end_lsn: None,
        wal: WalIn::Archive,
    })
}

/// Stored, of no entry of the spool.
pub fn stored(file: File) -> Event {
    Event::Stored {
        file,
        entry: None,
        bytes_in: 1,
        bytes_out: 1,
        digest: String::new(),
        millis: 0,
        how: How::Written,
    }
}
