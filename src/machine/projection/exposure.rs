//! What is not safe yet, and since when: positions at which servers were seen and that the frontier
//! has not passed, how long nothing has streamed, and how much WAL comes in an hour.
//!
//! All of it outlives a restart: an alarm about the absence of success must not begin anew with
//! every start of what fails (S-72).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::event::{Event, Millis, Origin, Server};
use crate::file::File;
use crate::projection::ledger::Ledger;
use crate::projection::servers::Servers;
use crate::projection::timelines::Timelines;
use crate::wal::{Lsn, Segment, Timeline};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exposure {
    /// When the site was first heard of.
    pub begun_at: Option<Millis>,
    /// When the frontier last moved.
    pub frontier_at: Option<Millis>,
    frontier: Option<Segment>,
    /// Positions that are not stored, in the order in which they were seen, each beyond the last.
    pub looks: Vec<Look>,
    /// What servers had written at this moment has been stored since.
    pub covered_at: Option<Millis>,
    /// The newest that a server was seen on.
    timeline: Option<Timeline>,
    /// Since when no stream runs.
    pub unstreamed_since: Option<Millis>,
    /// Bytes of WAL that came, by hours since 1970.
    hours: BTreeMap<u64, u64>,
}

/// A server was seen to have written WAL up to here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    pub at: Millis,
    pub timeline: Timeline,
    pub lsn: Lsn,
}

/// When there are more, every second one is forgotten: what is asked is how long ago, roughly.
const LOOKS_MAX: usize = 64;
const HOUR_MS: u64 = 3_600_000;
const HOURS: u64 = 24;

impl Exposure {
    /// After the other projections: it asks them.
    pub fn apply(
        &mut self,
        event: &Event,
        at: Millis,
        ledger: &Ledger,
        servers: &Servers,
        timelines: &Timelines,
    ) {
        self.begun_at.get_or_insert(at);
        match servers.stream {
            Some(_) => self.unstreamed_since = None,
            None => drop(self.unstreamed_since.get_or_insert(at)),
        }
        let moved = self.frontier != ledger.frontier;
        if moved {
            self.frontier = ledger.frontier;
            self.frontier_at = Some(at);
        }
        match event {
            Event::ServerSeen(server) => self.look(server, at, ledger, servers, timelines),
            Event::Spooled {
                file: File::Wal(_),
                bytes,
                origin: Origin::Stream | Origin::Archive,
                ..
            } => self.came(*bytes, at),
            _ if moved => self.cover(ledger, timelines),
            _ => {}
        }
    }

    fn look(
        &mut self,
        server: &Server,
        at: Millis,
        ledger: &Ledger,
        servers: &Servers,
        timelines: &Timelines,
    ) {
        // A standby may lag; what counts is what the primary wrote, where one is known.
        let counts = servers.primary().is_none_or(|p| p.node == server.node);
        let ours = servers.system_id == Some(server.system_id);
        if !ours || !counts || self.timeline.is_some_and(|t| t > server.timeline) {
            return;
        }
        self.follow(server.timeline, timelines);
        self.cover(ledger, timelines);
        let safe = ledger.acknowledged(server.timeline, timelines);
        if server.lsn <= safe {
            self.covered_at = Some(at);
        } else if self.looks.last().is_none_or(|last| last.lsn < server.lsn) {
            self.thin();
            self.looks.push(Look {
                at,
                timeline: server.timeline,
                lsn: server.lsn,
            });
        }
    }

    /// What was written beyond the switch to `timeline` lies on a dead branch.
    fn follow(&mut self, timeline: Timeline, timelines: &Timelines) {
        self.timeline = Some(timeline);
        self.looks.retain_mut(|look| {
            if look.timeline == timeline {
                return true;
            }
            let Some(switch) = timelines.left_at(look.timeline, timeline) else {
                return false;
            };
            look.lsn = look.lsn.min(switch);
            look.timeline = timeline;
            true
        });
    }

    fn cover(&mut self, ledger: &Ledger, timelines: &Timelines) {
        let Some(first) = self.looks.first() else {
            return;
        };
        let safe = ledger.acknowledged(first.timeline, timelines);
        let covered = self.looks.iter().take_while(|look| look.lsn <= safe);
        if let Some(last) = covered.last().copied() {
            self.covered_at = self.covered_at.max(Some(last.at));
            self.looks.retain(|look| look.lsn > safe);
        }
    }

    fn thin(&mut self) {
        if self.looks.len() >= LOOKS_MAX {
            let mut keep = false;
            self.looks.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    fn came(&mut self, bytes: u64, at: Millis) {
        let hour = at.0 / HOUR_MS;
        if let Some(sum) = self.hours.get_mut(&hour) {
            *sum = sum.saturating_add(bytes);
            return;
        }
        self.hours.insert(hour, bytes);
        self.hours = self.hours.split_off(&hour.saturating_sub(HOURS));
    }

    /// Bytes of WAL an hour, over the last day or what is known of it.
    pub fn bytes_an_hour(&self, now: Millis) -> u64 {
        let hour = now.0 / HOUR_MS;
        let recent = self.hours.range(hour.saturating_sub(HOURS)..);
        let sum = recent.fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
        let known = self.begun_at.map_or(0, |at| now.since(at));
        // The hour that is not over counts as far as it is.
        let day = HOURS
            .saturating_mul(HOUR_MS)
            .saturating_add(now.0 % HOUR_MS);
        let minutes = known.clamp(HOUR_MS, day) / 60_000;
        sum.saturating_mul(60) / minutes.max(1)
    }
}
