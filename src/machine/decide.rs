//! State to what should be recorded, started and stopped: everything we ever do, and when.
//!
//! Level-triggered: it compares what is with what should be and never sees "the last event", so a
//! restart is an ordinary turn. Asked twice with nothing new it answers nothing new. Order:
//! what cannot destroy (interrupt, receive, store, take), then looking, then what can.

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::cell::OnceCell;

use crate::breaks::{Rule, holds};
use crate::class::Class;
use crate::event::{Event, Millis};
use crate::file::Site;
use crate::policy::{Drain, Policy, SitePolicy};
use crate::projection::backups::{Backup, Phase};
use crate::rule::chain::Chain;
use crate::rule::clock;
use crate::rule::doomed::doomed;
use crate::rule::holes::Found;
use crate::rule::retention::Plan;
use crate::state::{SiteState, State};
use crate::task::{Command, Task, TaskId};

mod destroy;
mod heal;
mod lease;
mod look;
mod receive;
mod store;
mod take;
mod upkeep;
mod verify;

/// What runs, by identity.
pub type Busy = BTreeMap<TaskId, Task>;

/// Everything to record, start and stop now. It looks at the state alone, so asking again without
/// anything new gives nothing new.
pub fn decide(state: &State, policy: &Policy, busy: &Busy, now: Millis) -> Vec<Command> {
    let mut out = Vec::new();
    let storing = busy.keys().filter(|id| matches!(id, TaskId::Store(..)));
    let mut uploads = storing.count();
    let empty = SiteState::default();
    for id in busy.keys() {
        // The configuration has the site no more; an upload may end.
        if !policy.sites.contains_key(id.site()) && !matches!(id, TaskId::Store(..)) {
            out.push(Command::Stop(id.clone()));
        }
    }
    for (name, site_policy) in &policy.sites {
        let chain = Chain::of(name, policy, state, &empty);
        if chain.is_none() {
            stop_all(&mut out, name, busy);
        }
        let Some((chain, head)) = chain.as_ref().and_then(|c| Some((c, c.links.first()?))) else {
            continue;
        };
        let turn = Turn {
            name,
            site: state.sites.get(name).unwrap_or(&empty),
            policy: site_policy,
            chain,
            all: policy,
            run: state.run,
            started_at: state.started_at,
            busy,
            now,
            doubtful: clock::uncertain(&state.clock, head.site, policy, chain.rules.nodes),
            plan: OnceCell::new(),
            holes: OnceCell::new(),
        };
        if policy.draining != Drain::No {
            turn.drain(&mut out, &mut uploads);
            continue;
        }
        if !site_policy.active {
            turn.look_after(&mut out, &mut uploads);
            continue;
        }
        turn.lease(&mut out);
        turn.interrupt(&mut out);
        turn.receive(&mut out);
        turn.store(&mut out, &mut uploads);
        turn.drop_dead(&mut out);
        turn.take(&mut out);
        turn.switch(&mut out);
        turn.probe(&mut out);
        turn.reconcile(&mut out);
        turn.read_marks(&mut out);
        turn.heal(&mut out);
        turn.expire(&mut out);
        turn.delete(&mut out);
        turn.verify(&mut out);
        turn.export(state, &mut out);
    }
    out.extend(upkeep::compact(state, policy, busy));
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
    /// The sites that retention takes as one with this one.
    chain: &'a Chain<'a>,
    all: &'a Policy,
    run: u64,
    started_at: Millis,
    busy: &'a Busy,
    now: Millis,
    /// The clock may be wrong.
    doubtful: bool,
    /// What several subjects ask, computed once.
    plan: OnceCell<Plan>,
    holes: OnceCell<Vec<Found>>,
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

    /// The history of an active site: no server is asked, and nothing is taken, fetched or read
    /// again. What its spool still holds is stored, what its heir lets go is deleted.
    fn look_after(&self, out: &mut Vec<Command>, uploads: &mut usize) {
        // It may have been active until now.
        let of_active = self.busy.keys().filter(|id| id.site() == self.name);
        let of_active = of_active.filter(|id| match id {
            TaskId::Probe(..) | TaskId::Receive(_) | TaskId::Take(_) | TaskId::Switch(_) => true,
            TaskId::Verify(_) | TaskId::Export(_) | TaskId::Fetch(..) => true,
            TaskId::Store(..) | TaskId::Delete(_) | TaskId::Reconcile(_) => false,
            TaskId::Marks(_) | TaskId::Lease(_) => false,
        });
        out.extend(of_active.cloned().map(Command::Stop));
        self.lease(out);
        self.interrupt(out);
        self.store(out, uploads);
        self.drop_dead(out);
        self.reconcile(out);
        self.read_marks(out);
        self.note_holes(out);
        self.expire(out);
        self.delete(out);
    }

    /// A backup in one object was taken, and nobody is there any more to store it; a listing says
    /// whether it was.
    fn abandoned(&self) -> bool {
        let running = self.site.backups.running();
        let left = running.is_some_and(|(_, b)| b.phase == Phase::Finished && b.one_object());
        left && !self.is_busy(&TaskId::Take(self.name.clone()))
    }

    fn listed_since_start(&self) -> bool {
        let at = self.site.ledger.reconciled_at;
        at.is_some_and(|at| at >= self.started_at)
    }

    /// Reception goes last: until the uploads are done it tells the server how far they came, and
    /// a server that stops as well gets rid of what it still has to send (S-27).
    fn drain(&self, out: &mut Vec<Command>, uploads: &mut usize) {
        let before = out.len();
        if self.all.draining == Drain::Storing {
            self.store(out, uploads);
        }
        let mut running = self.busy.keys().filter(|id| id.site() == self.name);
        let storing = running.any(|id| matches!(id, TaskId::Store(..))) || out.len() > before;
        let receives = storing && self.all.draining == Drain::Storing && !self.full();
        let ours = self.busy.keys().filter(|id| id.site() == self.name);
        let ends = ours.filter(|id| match id {
            TaskId::Store(..) => false,
            TaskId::Receive(_) => !receives,
            // Nobody else takes the prefix while we write there.
            TaskId::Lease(_) => !storing,
            _ => true,
        });
        out.extend(ends.cloned().map(Command::Stop));
    }

    /// A backup begun in an earlier run is dead; one that lost a part or its WAL never completes,
    /// and would keep every later one from being taken. Whoever still takes a dead one stops.
    fn interrupt(&self, out: &mut Vec<Command>) {
        let taking = self.busy.get(&TaskId::Take(self.name.clone()));
        let running = self.site.backups.running().map(|(name, _)| name);
        if let Some(Task::Take { backup, .. }) = taking
            && running != Some(backup)
        {
            out.push(Command::Stop(TaskId::Take(self.name.clone())));
        }
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
                Phase::Finished if !self.policy.active && self.orphaned(backup) => {
                    let message = "its site became inactive before the WAL that it needs came";
                    self.record(out, failed(Class::Interrupted, message.into()));
                }
                Phase::Finished if self.abandoned() && self.listed_since_start() => {
                    let message = "the daemon stopped before its object was stored".to_string();
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

    /// Some of the WAL that it needs to become consistent is nowhere.
    fn orphaned(&self, backup: &Backup) -> bool {
        let content = backup.content.as_ref();
        content.is_none_or(|content| {
            let (start, end) = (content.start, content.end.unwrap_or(content.start));
            let ledger = &self.site.ledger;
            let lacking = ledger.lacking(start.timeline, start.number, end.number);
            end.timeline != start.timeline || !lacking.is_empty()
        })
    }
}

#[cfg(test)]
mod tests;
