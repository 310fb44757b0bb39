//! State to what should be recorded, started and stopped: everything we ever do, and when.
//!
//! Level-triggered: it compares what is with what should be and never sees "the last event", so a
//! restart is an ordinary turn. Asked twice with nothing new it answers nothing new. Order:
//! what cannot destroy (interrupt, receive, store, take), then looking, then what can.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use crate::breaks::{Rule, holds};
use crate::class::Class;
use crate::event::{Event, Millis, Range, Reason, Server, Why};
use crate::file::{BackupName, File, Site};
use crate::policy::{Policy, SitePolicy};
use crate::projection::backups::Phase;
use crate::rule::doomed::doomed;
use crate::rule::{retention, schedule};
use crate::state::{SiteState, State};
use crate::task::{Command, Start, Task, TaskId};
use crate::wal::Segment;

/// What runs, by identity.
pub type Busy = BTreeMap<TaskId, Task>;

/// A finished backup whose last segment does not come asks for a switch after this long.
const SWITCH_AFTER_MS: u64 = 2_000;
/// ... and again after this long: the first switch may have met an idle server.
const SWITCH_AGAIN_MS: u64 = 30_000;
/// A server is looked at again this long after a stream from it began.
const LOOK_AFTER_MS: u64 = 1_000;
/// A spool near its limit stops reception; it starts again below this share of it.
const SPOOL_RESUME_PERCENT: u64 = 80;

/// Everything to record, start and stop now. It looks at the state alone, so asking again without
/// anything new gives nothing new.
pub fn decide(state: &State, policy: &Policy, busy: &Busy, now: Millis) -> Vec<Command> {
    let mut out = Vec::new();
    for (name, site_policy) in &policy.sites {
        let empty = SiteState::default();
        let site = state.sites.get(name).unwrap_or(&empty);
        if !site_policy.active || policy.draining {
            stop_all(&mut out, name, busy);
        }
        if !site_policy.active {
            continue;
        }
        let turn = Turn {
            name,
            site,
            policy: site_policy,
            all: policy,
            run: state.run,
            started_at: state.started_at,
            busy,
            now,
        };
        if policy.draining {
            turn.store(&mut out);
            continue;
        }
        turn.interrupt(&mut out);
        turn.receive(&mut out);
        turn.store(&mut out);
        turn.drop_dead(&mut out);
        turn.take(&mut out);
        turn.switch(&mut out);
        turn.probe(&mut out);
        turn.reconcile(&mut out);
        turn.expire(&mut out);
        turn.delete(&mut out);
    }
    out
}

fn stop_all(out: &mut Vec<Command>, site: &Site, busy: &Busy) {
    let ours = busy
        .keys()
        .filter(|id| id.site() == site && !matches!(id, TaskId::Store(..)));
    out.extend(ours.cloned().map(Command::Stop));
}

/// One site's view of one turn.
struct Turn<'a> {
    name: &'a Site,
    site: &'a SiteState,
    policy: &'a SitePolicy,
    all: &'a Policy,
    run: u64,
    started_at: Millis,
    busy: &'a Busy,
    now: Millis,
}

impl Turn<'_> {
    fn record(&self, out: &mut Vec<Command>, event: Event) {
        out.push(Command::Record(self.name.clone(), event));
    }

    fn is_busy(&self, id: &TaskId) -> bool {
        self.busy.contains_key(id)
    }

    /// Starts the task unless one of its identity runs or its next try lies ahead.
    fn start(&self, out: &mut Vec<Command>, task: Task) {
        let id = task.id();
        if !self.is_busy(&id) && self.site.attempts.due(&id, self.now) {
            out.push(Command::Start(task));
        }
    }

    /// A backup begun in an earlier run is dead; one that lost a part or its WAL never completes,
    /// and would keep every later one from being taken.
    fn interrupt(&self, out: &mut Vec<Command>) {
        for (name, backup) in self.site.backups.live() {
            let failed = |class, message| Event::BackupFailed {
                backup: name.clone(),
                class,
                message,
            };
            match backup.phase {
                Phase::Running if backup.run != self.run => {
                    let message = "the daemon stopped while it was taken".to_string();
                    self.record(out, failed(Class::Interrupted, message));
                }
                Phase::Finished if holds(Rule::LostPartFails) => {
                    if let Some((class, why)) = doomed(self.site, name, backup, self.source()) {
                        self.record(out, failed(class, why.into()));
                    }
                }
                Phase::Running | Phase::Finished | Phase::Complete | Phase::Dead => {}
            }
        }
    }

    // ---- WAL in

    /// The server to stream from: the preferred node if it is up, else the primary, else any.
    fn source(&self) -> Option<&Server> {
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

    fn receive(&self, out: &mut Vec<Command>) {
        let id = TaskId::Receive(self.name.clone());
        let source = self.source();
        if let Some(Task::Receive { node, .. }) = self.busy.get(&id) {
            let stream = self.site.servers.stream.as_ref();
            let elsewhere = source.is_some_and(|server| server.node != *node);
            if !self.policy.streams || elsewhere || self.spool_full(100) || self.ran_past(stream) {
                out.push(Command::Stop(id));
            }
            return;
        }
        let Some(server) = source.filter(|_| self.policy.streams) else {
            return;
        };
        let site = self.site;
        if self.spool_full(SPOOL_RESUME_PERCENT) || !site.timelines.knows(server.timeline) {
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
        // Before its first stream this log knows only a listing; the slot knows what was promised.
        let promised = site.ledger.toward.is_none() && self.policy.slot;
        let start = match wanted {
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

    fn spool_full(&self, percent: u64) -> bool {
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

    // ---- out to the store

    fn store(&self, out: &mut Vec<Command>) {
        let running = self
            .busy
            .keys()
            .filter(|id| matches!(id, TaskId::Store(..)))
            .count();
        let starting = |out: &[Command]| {
            out.iter()
                .filter(|c| matches!(c, Command::Start(Task::Store { .. })))
                .count()
        };
        // What WAL cannot do without goes before it: the frontier waits for histories.
        let (wal, first): (Vec<_>, Vec<_>) = self
            .site
            .ledger
            .spool
            .iter()
            .partition(|(file, _)| matches!(file, File::Wal(_)));
        for (file, entry) in first.into_iter().chain(wal) {
            if running.saturating_add(starting(out)) >= self.all.uploads_max {
                return;
            }
            if self.storable(file) {
                let (site, file) = (self.name.clone(), file.clone());
                self.start(
                    out,
                    Task::Store {
                        site,
                        file,
                        entry: entry.id,
                    },
                );
            }
        }
    }

    /// A main object goes last: after its parts and after the WAL that makes it consistent, so
    /// that any listing shows only whole backups.
    fn storable(&self, file: &File) -> bool {
        let name = match file {
            File::Main(name) => name,
            File::Wal(segment) => return !self.deleting(*segment),
            File::Partial(_) | File::History(_) | File::Part { .. } => return true,
        };
        let ledger = &self.site.ledger;
        let Some(backup) = self.site.backups.all.get(name) else {
            return false;
        };
        let content = backup.content.as_ref();
        let alive = backup.phase == Phase::Finished
            || (backup.phase == Phase::Dead && !holds(Rule::DeadIsDropped));
        alive && content.is_some_and(|c| c.whole(name, ledger) && c.consistent(ledger))
    }

    fn drop_dead(&self, out: &mut Vec<Command>) {
        for (file, entry) in &self.site.ledger.spool {
            let File::Main(name) = file else { continue };
            let phase = self.site.backups.all.get(name).map(|backup| backup.phase);
            let wanted = matches!(phase, Some(Phase::Running | Phase::Finished));
            let storing = self.is_busy(&TaskId::Store(self.name.clone(), file.clone()));
            if !wanted && !storing && holds(Rule::DeadIsDropped) {
                let (file, entry) = (file.clone(), entry.id);
                self.record(
                    out,
                    Event::Dropped {
                        file,
                        entry,
                        reason: Reason::Unwanted,
                    },
                );
            }
        }
    }

    // ---- basebackups

    fn take(&self, out: &mut Vec<Command>) {
        let id = TaskId::Take(self.name.clone());
        if let Some((name, backup)) = self.site.backups.running() {
            let fresh = backup.phase == Phase::Running && backup.run == self.run;
            if let Some(node) = backup.node.filter(|_| fresh) {
                let (site, backup) = (self.name.clone(), name.clone());
                self.start(out, Task::Take { site, node, backup });
            }
            return;
        }
        let Some(server) = self.source() else { return };
        // Reception first: WAL written between a backup and a later stream is covered by nothing.
        // And a look at the store: the name of a backup it holds must not be taken again.
        let streaming = self.site.servers.stream.is_some() || !self.policy.streams;
        let listed = self.site.ledger.reconciled_at.is_some() || !holds(Rule::ReconcileFirst);
        let streaming = streaming && listed;
        let blocked = self.is_busy(&id) || !self.site.attempts.due(&id, self.now);
        if blocked || !streaming || self.all.maintenance {
            return;
        }
        let wanted = schedule::due(&self.site.backups, self.policy, self.now).or_else(|| {
            (self.uncovered() || self.bare()).then_some(schedule::Due {
                reason: Why::Hole,
                normalized_at: schedule::normalized(self.policy, self.now),
            })
        });
        if let Some(due) = wanted {
            self.record(
                out,
                Event::BackupStarted {
                    backup: self.free_name(),
                    node: server.node,
                    decided_at: self.now,
                    normalized_at: due.normalized_at,
                    reason: due.reason,
                },
            );
        }
    }

    /// A hole in the WAL that no later backup has bridged yet.
    fn uncovered(&self) -> bool {
        let newest = self
            .site
            .backups
            .live()
            .map(|(_, backup)| backup.decided_at)
            .max();
        let hole = self.site.ledger.lost.iter().map(|lost| lost.since).max();
        newest.is_some() && hole > newest
    }

    /// Backups there are, and none that a restore could use.
    fn bare(&self) -> bool {
        let site = self.site;
        let seen = site.ledger.reconciled_at.is_some() && site.backups.live().next().is_some();
        seen && site.backups.restorable(&site.ledger).is_empty()
    }

    /// Never that of a failed one: a deletion of its objects may yet arrive in the store.
    fn free_name(&self) -> BackupName {
        let minute = BackupName::minute(self.now);
        let newest = self.site.backups.newest.as_ref();
        let used = newest.and_then(|n| n.0.strip_prefix(&*minute)?.strip_prefix('_')?.parse().ok());
        let mut index = used.map_or(0, |used: u32| used.saturating_add(1));
        loop {
            let name = BackupName(format!("{minute}_{index}"));
            let ledger = &self.site.ledger;
            let taken = self.site.backups.all.contains_key(&name)
                || ledger.mains.contains(&name)
                || ledger.parts.contains_key(&name)
                || ledger.spool.contains_key(&File::Main(name.clone()));
            if !taken {
                return name;
            }
            index = index.saturating_add(1);
        }
    }

    /// An idle server never finishes the segment a backup waits for.
    fn switch(&self, out: &mut Vec<Command>) {
        let Some((_, backup)) = self.site.backups.running() else {
            return;
        };
        let content = backup
            .content
            .as_ref()
            .filter(|_| backup.phase == Phase::Finished);
        let Some((content, primary)) = content.zip(self.site.servers.primary()) else {
            return;
        };
        let end = content.end.unwrap_or(content.start);
        let waited = self.now.since(backup.decided_at) >= SWITCH_AFTER_MS;
        let last = self
            .site
            .servers
            .switched_at
            .filter(|at| *at >= backup.decided_at);
        let again = last.is_none_or(|at| self.now.since(at) >= SWITCH_AGAIN_MS);
        if waited && again && !self.site.ledger.has(end) {
            self.start(
                out,
                Task::Switch {
                    site: self.name.clone(),
                    node: primary.node,
                },
            );
        }
    }

    // ---- looking

    fn probe(&self, out: &mut Vec<Command>) {
        for node in 0..self.policy.nodes {
            let known = self.site.servers.nodes.get(&node);
            let seen_at = known.filter(|n| n.lost.is_none()).and_then(|n| n.seen_at);
            // When a stream ended, every node may have another role since.
            let ended = self.site.servers.ended.as_ref();
            let stream = self.site.servers.stream.as_ref().filter(|s| s.node == node);
            let stale = seen_at.is_none_or(|at| {
                // What the server makes of our stream shows soon after it began.
                let unseen = stream.is_some_and(|s| at < s.since.plus(LOOK_AFTER_MS));
                self.now.since(at) >= self.policy.probe_interval_ms
                    || at < self.started_at
                    || (unseen && stream.is_some_and(|s| self.now >= s.since.plus(LOOK_AFTER_MS)))
                    || ended.is_some_and(|ended| at < ended.at)
            });
            if stale {
                self.start(
                    out,
                    Task::Probe {
                        site: self.name.clone(),
                        node,
                    },
                );
            }
        }
    }

    fn reconcile(&self, out: &mut Vec<Command>) {
        let deleting = self.is_busy(&TaskId::Delete(self.name.clone()))
            && holds(Rule::DeleteApartFromReconcile);
        let at = self.site.ledger.reconciled_at;
        let stale = at.is_none_or(|at| self.now.since(at) >= self.policy.reconcile_interval_ms);
        if stale && !deleting {
            self.start(
                out,
                Task::Reconcile {
                    site: self.name.clone(),
                },
            );
        }
    }

    // ---- destruction

    /// Nothing is destroyed in a site whose store this log has not seen, nor beside a listing.
    fn may_destroy(&self) -> bool {
        let listing = self.is_busy(&TaskId::Reconcile(self.name.clone()))
            && holds(Rule::DeleteApartFromReconcile);
        let seen = self.site.ledger.reconciled_at.is_some() || !holds(Rule::ReconcileFirst);
        seen && !listing
    }

    fn expire(&self, out: &mut Vec<Command>) {
        if !self.may_destroy() || self.site.backups.running().is_some() {
            return;
        }
        for (backup, rule) in retention::expired(self.site, self.policy, self.now) {
            self.record(out, Event::BackupExpired { backup, rule });
        }
    }

    fn delete(&self, out: &mut Vec<Command>) {
        let delete = TaskId::Delete(self.name.clone());
        // One decide may start a listing above: what it starts counts as running.
        let listing = out.iter().any(|command| {
            matches!(command, Command::Start(Task::Reconcile { site }) if site == self.name)
        }) && holds(Rule::DeleteApartFromReconcile);
        if !self.may_destroy() || listing || self.is_busy(&delete) {
            return;
        }
        // WAL first: a dead backup that cannot be removed does not keep it from going.
        let taking = self.is_busy(&TaskId::Take(self.name.clone()));
        let ranges = retention::unneeded_wal(self.site);
        let idle = self.site.backups.running().is_none() && !taking;
        if idle && !ranges.is_empty() && !self.storing_within(out, &ranges) {
            let site = self.name.clone();
            self.start(out, Task::DeleteWal { site, ranges });
        } else if !taking {
            self.delete_dead(out);
        }
    }

    /// The other half of `storing_within`: while WAL goes, none of it comes.
    fn deleting(&self, segment: Segment) -> bool {
        let task = self.busy.get(&TaskId::Delete(self.name.clone()));
        let task = task.filter(|_| holds(Rule::StoreApartFromDelete));
        matches!(task, Some(Task::DeleteWal { ranges, .. })
            if ranges.iter().any(|range| range.holds(segment)))
    }

    /// An upload that ends beside the deletion would tell of what is gone by then.
    fn storing_within(&self, out: &[Command], ranges: &[Range]) -> bool {
        let within = |file: &File| {
            matches!(file, File::Wal(segment)
            if ranges.iter().any(|range| range.holds(*segment)))
        };
        let starting = out.iter().filter_map(|command| match command {
            Command::Start(Task::Store { site, file, .. }) => Some((site, file)),
            _ => None,
        });
        let running = self.busy.keys().filter_map(|id| match id {
            TaskId::Store(site, file) => Some((site, file)),
            _ => None,
        });
        let mut all = starting.chain(running);
        all.any(|(site, file)| site == self.name && within(file))
    }

    fn delete_dead(&self, out: &mut Vec<Command>) {
        let site = self.name.clone();
        let storing = |name: &BackupName| TaskId::Store(site.clone(), File::Main(name.clone()));
        // What lies under a name in conflict is not ours to remove.
        let main = |name: &BackupName| File::Main(name.clone());
        let ours = |name: &BackupName| !self.site.ledger.conflicts.contains_key(&main(name));
        let dead = self.site.backups.all.iter().find(|(name, backup)| {
            backup.phase == Phase::Dead && ours(name) && !self.is_busy(&storing(name))
        });
        if let Some((name, backup)) = dead {
            let content = backup.content.as_ref();
            let object = content.and_then(|content| content.object.clone());
            let (site, backup) = (self.name.clone(), name.clone());
            self.start(
                out,
                Task::DeleteBackup {
                    site,
                    backup,
                    object,
                },
            );
        }
    }
}
