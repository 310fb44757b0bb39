//! WAL in: which server to stream from, from where, and when to go back.

use alloc::vec::Vec;

use super::Turn;
use crate::breaks::{Rule, holds};
use crate::class::Class;
use crate::event::Server;
use crate::task::{Command, Start, Task, TaskId};

/// A spool near its limit stops reception; it starts again below this share of it.
const SPOOL_RESUME_PERCENT: u64 = 80;

impl Turn<'_> {
    /// The server to stream from: the preferred node if it is up, else the primary, else any.
    pub(super) fn source(&self) -> Option<&Server> {
        let servers = &self.site.servers;
        let named = self.policy.preferred_node;
        let named = named.filter(|node| *node < self.policy.nodes);
        // At the first start another node may answer sooner than the preferred one.
        if named.is_some_and(|node| !servers.nodes.contains_key(&node)) {
            return None;
        }
        let named = named.and_then(|node| servers.up().find(|server| server.node == node));
        named
            .or_else(|| servers.primary())
            .or_else(|| servers.up().next())
    }

    pub(super) fn receive(&self, out: &mut Vec<Command>) {
        let id = TaskId::Receive(self.name.clone());
        let source = self.source();
        if let Some(Task::Receive { node, .. }) = self.busy.get(&id) {
            let stream = self.site.servers.stream.as_ref();
            let elsewhere = source.is_some_and(|server| server.node != *node);
            let unfit = elsewhere || self.site.servers.foreign(*node) || self.ran_past(stream);
            if !self.policy.streams || unfit || self.full() {
                out.push(Command::Stop(id));
            }
            return;
        }
        let Some(server) = source.filter(|_| self.policy.streams) else {
            return;
        };
        let site = self.site;
        let full = self.spool_full(SPOOL_RESUME_PERCENT) || self.policy.cramped_since.is_some();
        if full || !site.timelines.knows(server.timeline) {
            return;
        }
        // After a start and after a stream ended the server is looked at first: it may be on a new
        // timeline.
        let seen_at = site
            .servers
            .nodes
            .get(&server.node)
            .and_then(|node| node.seen_at);
        let ended_at = site.servers.ended.as_ref().map(|ended| ended.at);
        if seen_at < ended_at.max(Some(self.started_at)) {
            return;
        }
        let recycled = site
            .servers
            .ended
            .as_ref()
            .is_some_and(|e| e.class == Class::NotFound && e.node == server.node);
        let wanted = site.ledger.wanted(server.timeline, &site.timelines);
        // Before its first stream this log knows only a listing; a slot that is there knows what
        // was promised. One that is yet to be made may begin beyond what is wanted.
        let slot = self.policy.slot && server.slot.is_some();
        let promised = site.ledger.toward.is_none() && slot;
        let start = match wanted {
            // What a backup that runs needs begins at the checkpoint it made, by which the server
            // let go of what we were about to receive; where the server is now may be beyond.
            _ if recycled && site.backups.running().is_some() => Start::Checkpoint,
            Some(segment) if !recycled && !promised => Start::At(segment),
            Some(_) => Start::Anchor,
            None if site.ledger.frontier.is_none() => {
                // Without a slot only the store can say where reception ended.
                if !self.policy.slot && site.ledger.reconciled_at.is_none() {
                    return;
                }
                Start::Anchor
            }
            None => Start::Anchor,
        };
        self.start(
            out,
            Task::Receive {
                site: self.name.clone(),
                node: server.node,
                start,
            },
        );
    }

    /// Nothing more is taken in; PostgreSQL keeps it meanwhile.
    pub(super) fn full(&self) -> bool {
        self.spool_full(100) || self.policy.cramped_since.is_some()
    }

    pub(super) fn spool_full(&self, percent: u64) -> bool {
        let limit = self.policy.spool_limit_bytes / 100;
        self.site.ledger.spool_bytes() > limit.saturating_mul(percent)
    }

    /// The stream is beyond a segment that is neither spooled nor stored: it goes back.
    fn ran_past(&self, stream: Option<&crate::projection::servers::Stream>) -> bool {
        let Some(stream) = stream.filter(|_| holds(Rule::ReceiverGoesBack)) else {
            return false;
        };
        let wanted = self
            .site
            .ledger
            .wanted(stream.next.timeline, &self.site.timelines);
        wanted.is_some_and(|wanted| {
            (wanted.timeline, wanted.number) < (stream.next.timeline, stream.next.number)
        })
    }
}
