//! The numbers `decide` needs, already defaulted and checked. It has never heard of JSON.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::event::Millis;
use crate::file::Site;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub sites: BTreeMap<Site, SitePolicy>,
    /// Uploads at a time, over all sites (`transfer.thread_count`).
    pub uploads_max: usize,
    /// An upload that failed more often raises an alert (`upload_retries_warning_limit`).
    pub retries_max: u32,
    /// No new basebackups while the maintenance file exists.
    pub maintenance: bool,
    /// Since when this machine's clock is not synchronised, and why; where nobody says, `None`.
    pub unsynchronised: Option<(Millis, String)>,
    /// What is wrong with this machine itself, as it says, and since when.
    pub troubles: Vec<(Millis, String)>,
    pub draining: Drain,
    /// A log of more events is compacted; `None` never (`event_log_events_max`).
    pub log_events_max: Option<u64>,
    /// So many events are exported to each site's store at a time, and none goes before it is;
    /// `None` exports nothing (`event_log_export`).
    pub export_events: Option<u64>,
}

/// On the way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drain {
    #[default]
    No,
    /// What is spooled is stored, and WAL is received until that is done: whoever waits for it
    /// hears of it. Everything else stops.
    Storing,
    /// Nothing begins any more; uploads that run may end.
    Ending,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SitePolicy {
    pub active: bool,
    /// Nodes are numbered from 0 as the configuration lists them.
    pub nodes: u32,
    /// WAL comes by streaming replication.
    pub streams: bool,
    /// No WAL is expected at all: each backup brings what it needs.
    pub standalone: bool,
    pub slot: bool,
    pub ack: Ack,
    /// `None` prefers whichever node is the primary.
    pub preferred_node: Option<u32>,
    /// Reception pauses while the spool holds more; PostgreSQL keeps the WAL meanwhile.
    pub spool_limit_bytes: u64,
    /// Since when reception pauses because the disk has less than it must have free.
    pub cramped_since: Option<Millis>,
    pub interval_ms: Option<u64>,
    pub hour: Option<u8>,
    pub minute: Option<u8>,
    pub count: Option<usize>,
    pub count_min: usize,
    pub age_max_ms: Option<u64>,
    /// Every moment of this long a time stays restorable.
    pub window_ms: Option<u64>,
    pub tiers: Tiers,
    pub reconcile_interval_ms: u64,
    /// A server that answered is looked at again after this long.
    pub probe_interval_ms: u64,
    /// Without a good backup for so long an alert stands; `None` without an interval.
    pub backup_overdue_ms: Option<u64>,
    /// WAL that the server wrote so long ago and that is not stored raises an alert.
    pub wal_overdue_ms: u64,
    /// A slot that holds more WAL on its server than this raises an alert.
    pub slot_retention_bytes: u64,
    /// Each stored object is looked at once in this time; `None` for never.
    pub verify_interval_ms: Option<u64>,
    /// A `pg_wal` on this machine may have what the store lost.
    pub directory: bool,
    /// Sites that this one was moved from (`moved_from`). Those that are inactive are its history
    /// and judged with it; one that is active judges itself.
    pub origins: Vec<Site>,
}

impl Policy {
    /// The active site that an inactive one is the history of.
    pub fn heir(&self, origin: &Site) -> Option<(&Site, &SitePolicy)> {
        let inactive = self.sites.get(origin).is_some_and(|site| !site.active);
        let mut all = self.sites.iter().filter(|_| inactive);
        all.find(|(_, site)| site.active && site.origins.contains(origin))
    }
}

/// How many of the last weeks, months and years keep their newest restorable backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tiers {
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
}

impl Tiers {
    pub fn any(&self) -> bool {
        *self != Tiers::default()
    }
}

/// When PostgreSQL is told that WAL is safe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    #[default]
    Stored,
    Spooled,
}
