//! Each node as last seen or lost, and the stream that runs.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::event::{Event, Millis, Server};
use crate::projection::ledger::streamed;
use crate::wal::{Lsn, Segment};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Servers {
    pub nodes: BTreeMap<u32, Node>,
    /// The cluster this site belongs to: set once, by the first server seen.
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
            Event::ServerSeen(server) => {
                self.system_id.get_or_insert(server.system_id);
                let node = self.nodes.entry(server.node).or_default();
                let alike = node.seen.as_ref().is_some_and(|seen| {
                    seen.system_id == server.system_id && seen.sync_state == server.sync_state
                });
                node.alike_since = node.alike_since.filter(|_| alike).or(Some(at));
                node.seen = Some(server.clone());
                node.seen_at = Some(at);
                node.lost = None;
            }
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

    /// The primary with the newest history: after a failover the old one may still answer.
    pub fn primary(&self) -> Option<&Server> {
        self.up()
            .filter(|server| !server.in_recovery)
            .max_by_key(|server| server.timeline)
    }
}
