//! What can be restored, and what is not safe yet: the answer that users really want.
//!
//! Moments are lower bounds: every transaction that was committed up to `to_at` is there; a little
//! more may be. They come from looks at the server, so no WAL has to be read for them.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::event::{Millis, Server, Slot, WalIn};
use crate::file::{BackupName, Site};
use crate::policy::{Ack, SitePolicy};
use crate::projection::backups::Content;
use crate::state::SiteState;
use crate::wal::{Lsn, Segment, SegmentSize, Timeline};

/// What is true of this instant only and therefore in no event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Up to where the running streams have synced the spool.
    pub received: BTreeMap<Site, Lsn>,
    /// Of the disk that holds the spool.
    pub space: BTreeMap<Site, Space>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// Since when there is too little, while there is.
    pub low_since: Option<Millis>,
}

/// So little room is too little, on a disk that is twenty times as large.
const FREE_MIN_BYTES: u64 = 1 << 30;

impl Space {
    pub fn low(&self) -> bool {
        self.free_bytes < FREE_MIN_BYTES.min(self.total_bytes / 20)
    }
}

/// How far a site's WAL has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// In the store without a gap before it.
    pub stored: Option<Lsn>,
    /// PostgreSQL was told that it is safe.
    pub flushed: Option<Lsn>,
    /// On our disk or in the store without a gap before it.
    pub received: Option<Lsn>,
}

pub fn positions(
    name: &Site,
    site: &SiteState,
    policy: Option<&SitePolicy>,
    live: &Live,
) -> Positions {
    let (ledger, servers) = (&site.ledger, &site.servers);
    // What lies in the store from before is no measure of what is safe now.
    let expected = policy.is_none_or(|policy| !policy.standalone);
    let Some(frontier) = ledger.frontier.filter(|_| expected) else {
        return Positions::default();
    };
    let streaming = servers.stream.as_ref().map(|stream| stream.next.timeline);
    let timeline = streaming
        .or(servers.primary().map(|primary| primary.timeline))
        .filter(|timeline| site.timelines.knows(*timeline))
        .unwrap_or(frontier.timeline);
    let stored = ledger.acknowledged(timeline, &site.timelines);
    let whole = match (
        ledger.wanted(timeline, &site.timelines),
        ledger.segment_size,
    ) {
        (Some(wanted), Some(size)) => wanted.start(size),
        _ => stored,
    };
    let running = live.received.get(name).filter(|_| streaming.is_some());
    // A stream that ended left its unfinished segment; after a switch it may lie on a branch.
    let left = servers.ended.as_ref().map(|ended| ended.lsn);
    let left = left.filter(|_| streaming.is_none() && timeline == frontier.timeline);
    let synced = running.copied().or(left).unwrap_or_default();
    let received = whole.max(stored).max(synced);
    let flushed = match policy.map(|policy| policy.ack) {
        Some(Ack::Spooled) => received,
        Some(Ack::Stored) | None => stored,
    };
    let some = |lsn: Lsn| Some(lsn).filter(|lsn| lsn.0 > 0);
    Positions {
        stored: some(stored),
        flushed: some(flushed),
        received: some(received),
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Oldest first.
    pub windows: Vec<Window>,
    /// Everything committed until then can be restored; `None` without a backup that reaches the
    /// frontier, where WAL is expected.
    pub protected_until: Option<Millis>,
    pub unprotected: Unprotected,
    pub last_backup: Option<(BackupName, Millis)>,
    /// How long the spool takes WAL if none of it goes to the store, at the rate of the last day.
    pub spool_lasts_ms: Option<u64>,
    pub wal_bytes_an_hour: u64,
}

/// Any moment of it can be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub timeline: Timeline,
    pub from_lsn: Lsn,
    pub to_lsn: Lsn,
    pub from_at: Millis,
    pub to_at: Millis,
    /// So many backups lie in it.
    pub backups: u32,
    /// It reaches the frontier and grows.
    pub open: bool,
}

/// Written by the server and not safe here, by what it was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unprotected {
    /// `None` before a server was seen and a stream began.
    pub bytes: Option<u64>,
    pub since: Option<Millis>,
}

pub fn coverage(
    name: &Site,
    site: &SiteState,
    policy: Option<&SitePolicy>,
    live: &Live,
    now: Millis,
) -> Coverage {
    let mut windows = windows(site);
    if policy.is_some_and(|policy| !policy.active) {
        // History: nothing comes any more.
        windows.iter_mut().for_each(|window| window.open = false);
    }
    let alone = policy.is_some_and(|policy| policy.standalone);
    let reaching = windows.iter().rfind(|window| window.open || alone);
    let positions = positions(name, site, policy, live);
    let rate = site.exposure.bytes_an_hour(now);
    let room = policy.map(|policy| {
        let held = site.ledger.spool_bytes();
        let limit = policy.spool_limit_bytes.saturating_sub(held);
        let free = live.space.get(name).map(|space| space.free_bytes);
        free.unwrap_or(u64::MAX).min(limit)
    });
    Coverage {
        protected_until: reaching.map(|window| window.to_at),
        unprotected: unprotected(site, &positions),
        last_backup: last_backup(site, now),
        spool_lasts_ms: room.and_then(|room| {
            let seconds = u128::from(room) * 3_600_000;
            let lasts = seconds.checked_div(u128::from(rate))?;
            u64::try_from(lasts).ok()
        }),
        wal_bytes_an_hour: rate,
        windows,
    }
}

/// The server wrote what it was seen at, and what it sent us since.
fn unprotected(site: &SiteState, positions: &Positions) -> Unprotected {
    let Some((server, safe)) = newest(site).zip(positions.flushed) else {
        return Unprotected::default();
    };
    let written = server.lsn.max(positions.received.unwrap_or_default());
    let (ledger, exposure) = (&site.ledger, &site.exposure);
    let look = exposure.looks.iter().find(|look| look.lsn > safe);
    // Where what is spooled is safe, none of it lies beyond what the server was told.
    let waits = positions.received > positions.flushed;
    let spooled = ledger.waiting_since().filter(|_| waits);
    let since = look.map(|look| look.at).into_iter().chain(spooled).min();
    let bytes = written.since(safe);
    Unprotected {
        bytes: Some(bytes),
        since: since.or(exposure.covered_at).filter(|_| bytes > 0),
    }
}

/// Of the servers of our cluster as last seen: who is furthest.
fn newest(site: &SiteState) -> Option<&Server> {
    let seen = site.servers.nodes.values().filter_map(|n| n.seen.as_ref());
    let ours = seen.filter(|server| Some(server.system_id) == site.servers.system_id);
    ours.max_by_key(|server| (server.timeline, server.lsn))
}

/// The newest backup that can be restored, and when it ended.
pub fn last_backup(site: &SiteState, now: Millis) -> Option<(BackupName, Millis)> {
    let good = site.backups.restorable(&site.ledger).into_iter();
    let ended = good.map(|(name, _, content)| (name.clone(), ended_at(content)));
    // One from the future tells of a clock that was wrong.
    ended.filter(|(_, at)| *at <= now).max_by_key(|(_, at)| *at)
}

/// When it ended, where that is known: a listing does not say.
fn ended_at(content: &Content) -> Millis {
    content.ended_at.unwrap_or(content.started_at)
}

/// Our slot on the node that streams, else the one that holds most.
pub fn slot(site: &SiteState) -> Option<&Slot> {
    let nodes = &site.servers.nodes;
    let of = |node: &u32| nodes.get(node)?.seen.as_ref()?.slot.as_ref();
    let streaming = site.servers.stream.as_ref().map(|stream| stream.node);
    let streaming = streaming.as_ref().and_then(of);
    streaming.or_else(|| {
        let all = nodes.keys().filter_map(of);
        all.max_by_key(|slot| slot.held_bytes)
    })
}

/// Backups whose WAL ends at the same place share one window: where they overlap there is no gap
/// between them.
pub fn windows(site: &SiteState) -> Vec<Window> {
    let Some(size) = site.ledger.segment_size else {
        return Vec::new();
    };
    let mut windows: Vec<Window> = Vec::new();
    for (_, _, content) in site.backups.restorable(&site.ledger) {
        let from_lsn = content.end_lsn.unwrap_or_else(|| last(content).end(size));
        let Some((timeline, to_lsn)) = reach(site, content, from_lsn, size) else {
            continue;
        };
        let at = ended_at(content);
        let same = |w: &&mut Window| (w.timeline, w.to_lsn) == (timeline, to_lsn);
        if let Some(window) = windows.iter_mut().find(same) {
            window.from_lsn = window.from_lsn.min(from_lsn);
            window.from_at = window.from_at.min(at);
            window.to_at = window.to_at.max(at);
            window.backups = window.backups.saturating_add(1);
            continue;
        }
        let open = reaches_frontier(site, timeline, to_lsn, size);
        let covered = site.exposure.covered_at.filter(|_| open);
        windows.push(Window {
            timeline,
            from_lsn,
            to_lsn,
            from_at: at,
            to_at: covered.unwrap_or_default().max(at),
            backups: 1,
            open,
        });
    }
    windows
}

/// On its timeline, or where that was left for one of which nothing is stored yet.
fn reaches_frontier(site: &SiteState, timeline: Timeline, to: Lsn, size: SegmentSize) -> bool {
    let Some(frontier) = site.ledger.frontier.filter(|f| f.end(size) == to) else {
        return false;
    };
    let next = Segment::at(timeline, to, size);
    let path = || site.timelines.path(next, frontier.timeline, size);
    frontier.timeline == timeline
        || path()
            .first()
            .is_some_and(|leg| (leg.timeline, leg.first) == (frontier.timeline, next.number))
}

fn last(content: &Content) -> Segment {
    content.end.unwrap_or(content.start)
}

/// Where the WAL after a backup ends: on the way to the cluster's timeline if one leads there, else
/// on the backup's own.
fn reach(
    site: &SiteState,
    content: &Content,
    own: Lsn,
    size: SegmentSize,
) -> Option<(Timeline, Lsn)> {
    let from = last(content);
    // WAL in the backup ends where it does; only its last segment, whole, leads on.
    if content.wal == WalIn::Backup && !site.ledger.stored(from) {
        return Some((from.timeline, own));
    }
    let consistent = content.end_lsn.unwrap_or_else(|| from.start(size));
    let goal = site.ledger.frontier.map(|frontier| frontier.timeline);
    // A backup that ended beyond the switch lies on the branch that was left.
    let goal = goal.filter(|goal| {
        let left = site.timelines.left_at(from.timeline, *goal);
        left.is_some_and(|switch| switch >= consistent)
    });
    let goal = goal.unwrap_or(from.timeline);
    let mut reached = None;
    for leg in site.timelines.path(from, goal, size) {
        let child = leg.timeline != from.timeline;
        if child && !site.ledger.histories.contains(&leg.timeline) {
            break;
        }
        let held = site.ledger.wal.get(&leg.timeline);
        let ahead = held.map_or(leg.first, |runs| runs.gap_from(leg.first));
        let end = ahead.min(leg.end);
        if end > leg.first || reached.is_none() {
            let end = Segment::new(leg.timeline, end);
            reached = Some((leg.timeline, end.start(size)));
        }
        if end < leg.end {
            break;
        }
    }
    reached.or_else(|| {
        let held = site.ledger.wal.get(&from.timeline)?;
        let end = Segment::new(from.timeline, held.gap_from(from.number));
        Some((from.timeline, end.start(size)))
    })
}

#[cfg(test)]
mod tests;
