//! The invariants, after every step.

use std::collections::BTreeSet;

use machine::decide::{Busy, decide};
use machine::policy::Policy;
use machine::projection::backups::Phase;
use machine::projection::ledger::Ledger;
use machine::projection::marks::Hole;
use machine::rule::holes;
use machine::state::summary::{Removed, faithful, summary};
use machine::{BackupName, Command, File, Segment, SiteState, State, Task, TaskId};
use pghoard::work::lease;

use crate::server::{SIZE, UNITS, lsn};
use crate::store::{PREFIX, Truth, key};
use crate::world::{World, site};

/// What is remembered from one turn to the next, within the life of one log.
#[derive(Default)]
pub struct Checker {
    frontier: Option<Segment>,
    dead: BTreeSet<BackupName>,
    lost: usize,
}

impl Checker {
    pub fn turn(&mut self, world: &mut World, state: &State, policy: &Policy, busy: &Busy) {
        let empty = SiteState::default();
        let ours = state.sites.get(&site()).unwrap_or(&empty);
        contents(world);
        spool(world, ours);
        self.frontier(world, ours);
        self.holes(world, ours);
        self.retention(world, ours, policy);
        quiet(world, state, policy, busy);
        let mut truth = world.store.truth();
        truth.live.retain(|name, _| {
            let phase = ours.backups.all.get(name).map(|b| b.phase);
            matches!(phase, Some(Phase::Running | Phase::Finished))
        });
        let held = held(&ours.ledger);
        truth
            .deleted
            .retain(|key| held.iter().any(|file| crate::store::key(file) == *key));
        ghosts(world, &truth, &held);
    }

    /// The frontier only moves forward on its timeline, but for a stream that fills a gap below; it
    /// leaves for another timeline that is received.
    fn frontier(&mut self, world: &mut World, ours: &SiteState) {
        let now = ours.ledger.frontier;
        let began = std::mem::take(&mut world.began);
        let forward = match (self.frontier, now) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(old), Some(new)) if old.timeline == new.timeline => {
                new.number >= old.number
                    || began.iter().any(|from| from.number <= new.next().number)
            }
            (Some(_), Some(_)) => true,
        };
        if !forward {
            let old = self.frontier;
            world
                .fate
                .violated(format!("the frontier went from {old:?} to {now:?}"));
        }
        self.frontier = now;
    }

    /// Nothing is given up while the only server still has what comes first of it; but what the
    /// store lost after its slot let go of it nobody asks the server for.
    fn holes(&mut self, world: &World, ours: &SiteState) {
        let lost = &ours.ledger.lost;
        if let Some(first) = lost.get(self.lost) {
            let segment = Segment::new(first.range.timeline, first.range.first);
            let stored = world.store.truth().ever.contains(&segment);
            let alone = world.cluster.nodes.len() == 1;
            if alone && !stored && world.cluster.available(segment) {
                world
                    .fate
                    .violated(format!("{segment:?} is given up and the server has it"));
            }
        }
        self.lost = lost.len();
    }

    /// An expiry leaves as many restorable backups as configured, where there were so many.
    fn retention(&mut self, world: &World, ours: &SiteState, policy: &Policy) {
        let ledger = &ours.ledger;
        let left = ours.backups.restorable(ledger).len();
        let keep = policy.sites[&site()].count.unwrap_or(usize::MAX);
        let mut dead = BTreeSet::new();
        let mut expired = 0;
        for (name, backup) in &ours.backups.all {
            if backup.phase != Phase::Dead {
                continue;
            }
            dead.insert(name.clone());
            let content = backup.content.as_ref();
            let good = content.is_some_and(|c| c.whole(name, ledger) && c.consistent(ledger));
            if good && ledger.mains.contains(name) && !self.dead.contains(name) {
                expired += 1;
            }
        }
        if expired > 0 && left < keep.min(left + expired) {
            world.fate.violated(format!(
                "I12: {expired} restorable backups expired and {left} are left of {keep}"
            ));
        }
        self.dead = dead;
    }
}

/// What got its final name, here or in the store, is what a server wrote, whole.
fn contents(world: &World) {
    let parsed = |name: &str| Segment::from_name(name, SIZE);
    let sealed = world.disk.take_sealed().into_iter();
    let sealed = sealed.filter_map(|(name, content)| Some((parsed(&name)?, content)));
    let put = std::mem::take(&mut world.store.truth().put);
    for (segment, content) in sealed.chain(put) {
        let whole = u64::try_from(content.len()).unwrap() == UNITS;
        if !whole || !world.cluster.wrote(segment, &content) {
            world
                .fate
                .violated(format!("I6: {segment:?} is not what the server wrote"));
        }
    }
    for name in world.disk.take_removed() {
        let truth = world.store.truth();
        if let Some(segment) = parsed(&name)
            && !truth.ever.contains(&segment)
        {
            world
                .fate
                .violated(format!("I3: '{name}' left the spool and was never stored"));
        }
    }
}

/// What the log says is spooled is on the disk, or was stored and is being let go.
fn spool(world: &World, ours: &SiteState) {
    for file in ours.ledger.spool.keys() {
        let truth = world.store.truth();
        let stored = match file {
            File::Wal(segment) => truth.ever.contains(segment),
            // A stream that finished the segment after all has taken the file.
            File::Partial(_) => true,
            other => truth.has(other) || truth.lost.contains(&key(other)),
        };
        if !stored && !world.disk.has(&file.spool_name(SIZE)) {
            world
                .fate
                .violated(format!("I3: {file:?} is gone from the spool"));
        }
    }
}

fn held(ledger: &Ledger) -> Vec<File> {
    let wal = ledger.wal.iter().flat_map(|(t, runs)| {
        let numbers = runs.intervals().flatten();
        numbers.map(|n| File::Wal(Segment::new(*t, n)))
    });
    let parts = ledger.parts.iter().flat_map(|(backup, runs)| {
        let numbers = runs.intervals().flatten();
        numbers.map(|n| File::Part {
            backup: backup.clone(),
            number: u32::try_from(n).unwrap(),
        })
    });
    let mains = ledger.mains.iter().cloned().map(File::Main);
    let histories = ledger.histories.iter().copied().map(File::History);
    wal.chain(parts).chain(mains).chain(histories).collect()
}

/// What the log says is stored is stored, unless the store lost it or we are deleting it.
fn ghosts(world: &World, truth: &Truth, held: &[File]) {
    for file in held {
        if !truth.has(file) {
            let key = key(file);
            if !truth.lost.contains(&key) && !truth.deleted.contains(&key) {
                world
                    .fate
                    .violated(format!("the log holds '{key}' and the store does not"));
            }
        }
    }
}

/// The summary of a state folds to it, also when there is something to fold before.
pub fn law(world: &World, state: &State) {
    let removed = Removed {
        upto: state.seq.saturating_sub(1),
        count: 1,
        digest: String::new(),
    };
    let events = summary(state, removed);
    // Programs read events as JSON, which knows only text keys.
    if let Err(error) = serde_json::to_string(state) {
        world.fate.violated(format!("no JSON: {error}"));
    }
    if !faithful(state, &events) {
        world
            .fate
            .violated("the summary does not fold to the state");
    }
}

/// I8: asked again with nothing new, decide has nothing new to say.
fn quiet(world: &World, state: &State, policy: &Policy, busy: &Busy) {
    let now = world.now().max(state.at);
    for command in decide(state, policy, busy, now) {
        if !matches!(command, Command::Stop(_)) {
            world
                .fate
                .violated(format!("I8: decide says after its turn: {command:?}"));
        }
    }
}

/// I17: why the world is not as it should be once faults have ended; `None` if it is.
pub fn unrest(world: &World, state: &State, busy: &Busy, since: machine::Millis) -> Option<String> {
    let ours = state.sites.get(&site())?;
    let ledger = &ours.ledger;
    let mut working = busy.keys();
    let working = working.find(|id| {
        !matches!(
            id,
            TaskId::Receive(_) | TaskId::Probe(..) | TaskId::Lease(_) | TaskId::Export(_)
        )
    });
    if let Some(id) = working {
        return Some(format!("{id} is busy"));
    }
    let Some(Task::Receive { node: source, .. }) = busy.get(&TaskId::Receive(site())) else {
        return Some("nothing is received".into());
    };
    if ledger.reconciled_at < Some(since) {
        return Some("not reconciled".into());
    }
    let spooled = ledger
        .spool
        .keys()
        .find(|f| !ledger.conflicts.contains_key(*f));
    if let Some(file) = spooled {
        return Some(format!("{file:?} stays in the spool"));
    }
    let truth = world.store.truth();
    let node = world.cluster.primary()?;
    let node = &world.cluster.nodes[node];
    let last = Segment::new(node.timeline, (node.at / UNITS).saturating_sub(1));
    let begun = node.at / UNITS > world.cluster.begin(node.timeline) / UNITS;
    if ledger.conflicts.is_empty() && begun && ledger.frontier != Some(last) {
        return Some(format!(
            "frontier {:?} instead of {last:?}",
            ledger.frontier
        ));
    }
    let source = &world.cluster.nodes[usize::try_from(*source).unwrap()];
    let acknowledged = source.slot.unwrap_or(u64::MAX) / UNITS;
    if ledger.conflicts.is_empty() && begun && acknowledged < node.at / UNITS {
        return Some(format!(
            "acknowledged {:?} of {:?}",
            source.slot,
            lsn(node.at)
        ));
    }
    let open = holes::holes(ours);
    if let Some(found) = open.iter().find(|found| healable(world, &found.hole)) {
        return Some(format!("{:?} is not healed", found.hole));
    }
    let believed = ours.backups.restorable(ledger);
    let believed: BTreeSet<_> = believed.into_iter().map(|(n, _, _)| n.clone()).collect();
    let really = truth.restorable();
    if believed.is_empty() && ledger.conflicts.is_empty() {
        return Some("no backup".into());
    }
    if believed != really {
        return Some(format!("restorable: {believed:?}, really {really:?}"));
    }
    None
}

/// Whether a server still has some of it.
fn healable(world: &World, hole: &Hole) -> bool {
    match hole {
        Hole::Wal(range) => (range.first..=range.last)
            .any(|n| world.cluster.available(Segment::new(range.timeline, n))),
        Hole::History(timeline) => world.cluster.histories.contains_key(timeline),
    }
}

/// Objects nobody will ever ask for or remove.
pub fn garbage(world: &World, state: &State) -> Option<String> {
    let ours = state.sites.get(&site())?;
    let damaged = ours.ledger.damaged.keys().cloned();
    let held = held(&ours.ledger).into_iter().chain(damaged);
    let held: BTreeSet<_> = held.map(|file| key(&file)).collect();
    let truth = world.store.truth();
    // Unfinished segments, and what is not about backups.
    let apart = |key: &&String| {
        let folders = ["xlog_partial", "event_log", "/mark/damaged"];
        folders.iter().any(|folder| key.contains(folder)) || key.ends_with(lease::KEY)
    };
    let marks = ours.marks.all.keys();
    let marks: BTreeSet<_> = marks.map(|below| format!("{PREFIX}/{below}")).collect();
    let mut stray = truth
        .keys()
        .filter(|key| !apart(key) && !marks.contains(*key));
    let stray = stray.find(|key| !held.contains(*key));
    stray.map(|key| format!("'{key}' is stored and the log does not know"))
}
