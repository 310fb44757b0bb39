//! Each node as last seen or lost, and the stream that runs.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::event::{Event, Millis, Server, Slot};
use crate::projection::ledger::streamed;
use crate::rule::clock;
use crate::wal::{Lsn, Segment};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Servers {
    pub nodes: BTreeMap<u32, Node>,
    /// The cluster this site belongs to: of the WAL in the store, else of the first server seen.
    pub system_id: Option<u64>,
    pub stream: Option<Stream>,
    pub ended: Option<Ended>,
    pub switched_at: Option<Millis>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    pub seen: Option<Server>,
    pub seen_at: Option<Millis>,
    /// Since when its cluster and our `sync_state` with it are what they are.
    pub alike_since: Option<Millis>,
    /// Since when its clock is far from ours, while it is.
    pub skewed_since: Option<Millis>,
    /// Since when our slot there holds at least so many bytes: by powers of two, from 1 MiB.
    pub held_since: BTreeMap<u32, Millis>,
    /// Since when the slot's `wal_status` is what it is.
    pub status_since: Option<Millis>,
    /// Set while the last look failed.
    pub lost: Option<Lost>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub at: Millis,
    pub class: Class,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    pub node: u32,
    /// The next segment the stream will complete.
    pub next: Segment,
    pub since: Millis,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub node: u32,
    pub at: Millis,
    pub lsn: Lsn,
    pub class: Class,
    pub message: String,
}

/// A slot that holds less is as good as empty.
const HELD_POWER_MIN: u32 = 20;

impl Node {
    /// Remembers since when: before `seen` is replaced.
    fn slot(&mut self, slot: Option<&Slot>, at: Millis) {
        let held = slot.and_then(|slot| slot.held_bytes).unwrap_or_default();
        self.held_since.retain(|power, _| held >> *power > 0);
        let highest = held.checked_ilog2().unwrap_or_default();
        for power in HELD_POWER_MIN..=highest {
            self.held_since.entry(power).or_insert(at);
        }
        let status = |slot: &Slot| slot.wal_status.clone();
        let before = self.seen.as_ref().and_then(|seen| seen.slot.as_ref());
        let alike = before.and_then(status) == slot.and_then(status);
        self.status_since = self.status_since.filter(|_| alike).or(Some(at));
    }

    /// Since when the slot holds roughly this much: half of it at least.
    pub fn holding_since(&self, bytes: u64) -> Option<Millis> {
        let power = bytes.checked_ilog2().unwrap_or_default();
        let power = power.max(HELD_POWER_MIN);
        self.held_since.get(&power).copied()
    }
}

impl Servers {
    pub fn apply(&mut self, event: &Event, at: Millis) {
        if let Some(segment) = streamed(event)
            && let Some(stream) = &mut self.stream
        {
            stream.next = segment.next();
            return;
        }
        match event {
            // The configuration may have other nodes now; a look at each comes first.
            Event::Started { .. } => {
                self.nodes.clear();
                self.stream = None;
                self.ended = None;
            }
            Event::ConfigLoaded {
                elsewhere: true, ..
            } => self.nodes.clear(),
            Event::ServerSeen(server) => {
                self.system_id.get_or_insert(server.system_id);
                let node = self.nodes.entry(server.node).or_default();
                let alike = node.seen.as_ref().is_some_and(|seen| {
                    seen.system_id == server.system_id && seen.sync_state == server.sync_state
                });
                node.alike_since = node.alike_since.filter(|_| alike).or(Some(at));
                let far = clock::far(server.clock_skew_ms);
                node.skewed_since = node.skewed_since.or(Some(at)).filter(|_| far);
                node.slot(server.slot.as_ref(), at);
                node.seen = Some(server.clone());
                node.seen_at = Some(at);
                node.lost = None;
            }
            Event::ClusterLearned { system_id, .. } => self.system_id = Some(*system_id),
            Event::ServerLost {
                node,
                class,
                message,
            } => {
                let lost = Lost {
                    at,
                    class: *class,
                    message: message.clone(),
                };
                self.nodes.entry(*node).or_default().lost = Some(lost);
            }
            Event::StreamStarted { node, from, .. } => {
                self.stream = Some(Stream {
                    node: *node,
                    next: *from,
                    since: at,
                });
                self.ended = None;
            }
            Event::StreamEnded {
                node,
                at: lsn,
                class,
                message,
            } => {
                self.stream = None;
                let message = message.clone();
                self.ended = Some(Ended {
                    node: *node,
                    at,
                    lsn: *lsn,
                    class: *class,
                    message,
                });
            }
            Event::Switched { .. } => self.switched_at = Some(at),
            _ => {}
        }
    }

    /// Servers of our own cluster that answered when last asked.
    pub fn up(&self) -> impl Iterator<Item = &Server> {
        self.nodes.values().filter_map(move |node| {
            let seen = node.seen.as_ref().filter(|_| node.lost.is_none())?;
            (Some(seen.system_id) == self.system_id).then_some(seen)
        })
    }

    /// What was seen there is another cluster.
    pub fn foreign(&self, node: u32) -> bool {
        let seen = self.nodes.get(&node).and_then(|node| node.seen.as_ref());
        seen.is_some_and(|seen| Some(seen.system_id) != self.system_id)
    }

    /// The primary with the newest history: after a failover the old one may still answer.
    pub fn primary(&self) -> Option<&Server> {
        self.up()
            .filter(|server| !server.in_recovery)
            .max_by_key(|server| server.timeline)
    }
}
