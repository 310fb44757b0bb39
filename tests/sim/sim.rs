//! One seed from its first turn to rest: the real loop over the faulty world.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use machine::event::Previous;
use machine::policy::{Drain, Policy, SitePolicy};
use machine::{Envelope, Event, File, State};
use pghoard::journal::log::Log;
use pghoard::journal::run::Loop;
use pghoard::journal::start;
use pghoard::{Failure, Outcome};

use crate::check::{Checker, garbage, law, unrest};
use crate::fate::{Fate, Fault};
use crate::server::{SIZE, UNITS};
use crate::storage::LogDisk;
use crate::world::{Handle, World, site};

/// Turns that the world may take to come to rest once faults have ended.
const REST_MAX: u64 = 2_000;
/// The law of summaries is checked in one turn of so many.
const LAW_EVERY: u64 = 5;

struct Sim {
    seed: u64,
    fate: Fate,
    world: Rc<RefCell<World>>,
    log: LogDisk,
    policy: Policy,
    appliance: Option<Loop<Handle>>,
    /// The log's storage failed: it has to be opened again.
    broken: bool,
    /// What the last process believed, to compare with what the log says at the next start.
    last: Option<State>,
    /// The log could be read once.
    opened: bool,
    log_lost: bool,
    ever_lost: bool,
    checker: Checker,
}

/// Runs a seed; the error is the invariant it broke.
pub fn run(seed: u64, trace: bool) -> Result<(), String> {
    let fate = Fate::new(seed, trace);
    let caught = catch_unwind(AssertUnwindSafe(|| Sim::new(&fate, seed).run()));
    let outcome = caught.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    });
    outcome.map_err(|what| format!("{what}\n  mix: {}", fate.mix()))
}

/// What no simulation varies.
pub fn site_policy() -> SitePolicy {
    SitePolicy {
        active: true,
        nodes: 1,
        streams: true,
        slot: true,
        spool_limit_bytes: u64::MAX,
        count_min: 1,
        reconcile_interval_ms: 86_400_000,
        probe_interval_ms: 30_000,
        wal_overdue_ms: 3_600_000,
        slot_retention_bytes: 10 << 30,
        ..SitePolicy::default()
    }
}

fn policy(fate: &Fate, world: &World, seed: u64) -> Policy {
    let minute = 60_000;
    let ours = SitePolicy {
        nodes: u32::try_from(world.cluster.nodes.len()).unwrap(),
        slot: world.slot,
        ack: world.ack,
        preferred_node: fate.chance(150).then_some(0),
        spool_limit_bytes: if fate.chance(300) { 6 * UNITS } else { 1 << 20 },
        interval_ms: Some(fate.between(8, 40) * minute),
        count: Some(usize::try_from(fate.between(1, 3)).unwrap()),
        reconcile_interval_ms: fate.between(1, 20) * minute,
        probe_interval_ms: fate.between(10, 60) * 1_000,
        verify_interval_ms: Some(20 * minute),
        ..site_policy()
    };
    Policy {
        sites: BTreeMap::from([(site(), ours)]),
        retries_max: 3,
        uploads_max: usize::try_from(fate.between(1, 4)).unwrap(),
        maintenance: false,
        unsynchronised: None,
        troubles: Vec::new(),
        draining: Drain::No,
        // Not drawn: the dice of seeds that were found with a log that only grows stay theirs.
        log_events_max: compacts(seed).then_some(60 + seed % 121),
        export_events: (compacts(seed) && seed.is_multiple_of(2)).then_some(10 + seed % 17),
    }
}

/// Whether a seed's log is short: three of seven.
fn compacts(seed: u64) -> bool {
    matches!(seed % 7, 0 | 1 | 6)
}

/// The log, folded. What was being written when something failed may be in it: of streams that
/// nobody was told of the checker hears here.
fn open(disk: &LogDisk, world: &RefCell<World>, known: u64) -> Outcome<(Log, State)> {
    let mut state = State::default();
    let mut fold = |envelope: &Envelope| {
        state.apply(envelope);
        if envelope.seq > known {
            world.borrow_mut().hear(envelope);
        }
    };
    let log = Log::open_on(disk.open(), &mut fold)?;
    Ok((log, state))
}

impl Sim {
    fn new(fate: &Fate, seed: u64) -> Sim {
        let log = LogDisk::new(fate.clone());
        let mut world = World::new(fate, &log);
        // Not drawn: the dice of seeds that were found before stay theirs.
        world.one_object = seed.is_multiple_of(5);
        Sim {
            seed,
            policy: policy(fate, &world, seed),
            world: Rc::new(RefCell::new(world)),
            log,
            fate: fate.clone(),
            appliance: None,
            broken: false,
            last: None,
            opened: false,
            log_lost: false,
            ever_lost: false,
            checker: Checker::default(),
        }
    }

    fn run(&mut self) -> Result<(), String> {
        self.fate
            .say(|| format!("{:#?}\n{}", self.policy, self.fate.mix()));
        for turn in 0..self.fate.between(150, 450) {
            let ms = self.fate.between(200, 25_000);
            self.turn(turn, ms)?;
        }
        self.fate.calm();
        self.world.borrow_mut().cluster.heal();
        self.rest("after the faults")?;
        self.crash();
        self.rest("after a last start")?;
        self.compare()?;
        self.exported()?;
        self.without_a_log()
    }

    /// Whatever the log knew, a listing and the marks give the same answers: at rest what is
    /// believed to be restorable is compared with what is.
    fn without_a_log(&mut self) -> Result<(), String> {
        if !self.seed.is_multiple_of(4) {
            return Ok(());
        }
        self.crash();
        self.lose();
        self.rest("after the log is lost")
    }

    fn lose(&mut self) {
        self.fate.say(|| "  the log is lost".into());
        self.log.lose();
        self.last = None;
        (self.opened, self.log_lost, self.ever_lost) = (false, true, true);
        self.checker = Checker::default();
    }

    fn failed(&self) -> Result<(), String> {
        self.fate.violation().map_or(Ok(()), Err)
    }

    fn turn(&mut self, turn: u64, ms: u64) -> Result<(), String> {
        self.fate.say(|| format!("turn {turn}"));
        {
            let world = &mut *self.world.borrow_mut();
            world.pass(ms);
            world.cluster.turn();
            if self.fate.strikes(Fault::TurnLosesObject) {
                world.store.lose_one();
            }
            if self.fate.strikes(Fault::TurnCorruptsObject) {
                world.store.corrupt_one();
            }
        }
        if self.fate.strikes(Fault::TurnFuse) {
            self.fate.light_fuse(self.fate.below(60));
        }
        if self.fate.strikes(Fault::TurnCrash) {
            self.crash();
        } else if self.appliance.is_none() {
            self.boot();
        } else {
            self.step();
        }
        if self.fate.dead() {
            self.crash();
        }
        if let Some(appliance) = &self.appliance {
            let world = &mut *self.world.borrow_mut();
            let Loop { state, busy, .. } = appliance;
            if !self.broken {
                self.checker.turn(world, state, &self.policy, busy);
                if turn.is_multiple_of(LAW_EVERY) {
                    law(world, state);
                }
            }
        }
        self.failed()
    }

    fn step(&mut self) {
        self.world.borrow_mut().act();
        let Some(appliance) = self.appliance.as_mut().filter(|_| !self.fate.dead()) else {
            return;
        };
        if self.broken {
            let disk = self.log.clone();
            let (known, world) = (appliance.state.seq, Rc::clone(&self.world));
            let reopened = appliance.reopen(|| open(&disk, &world, known));
            if let Err(failure) = reopened {
                self.fate
                    .say(|| format!("  the log does not open: {failure}"));
                return;
            }
        }
        let reports = self.world.borrow_mut().reports(&appliance.state);
        let turned = appliance.turn(reports);
        self.broken = turned.is_err();
        if let Err(failure) = turned {
            self.fate.say(|| format!("  the log fails: {failure}"));
        }
    }

    fn crash(&mut self) {
        self.log.cut_off();
        if let Some(appliance) = self.appliance.take() {
            self.fate.say(|| "  crash".into());
            self.last = Some(appliance.state.clone());
        }
        self.fate.revive();
        if self.fate.strikes(Fault::CrashCutsPower) {
            self.fate.say(|| "  the power is cut".into());
            self.world.borrow().disk.power_cut();
            self.log.power_cut();
        }
        if self.fate.strikes(Fault::RestartLosesLog) {
            self.lose();
        }
        self.broken = false;
    }

    /// The start of a process: the log, the spool, the first turn.
    fn boot(&mut self) {
        let known = self.last.as_ref().map_or(0, |last| last.seq);
        let (mut log, mut state) = match open(&self.log, &self.world, known) {
            Ok(opened) => opened,
            Err(failure) => {
                self.fate
                    .say(|| format!("  the log does not open: {failure}"));
                self.unreadable(&failure);
                return;
            }
        };
        if let Some(last) = &self.last
            && (state.seq < last.seq || (state.seq == last.seq && state != *last))
        {
            self.fate.violated(format!(
                "the log says {} events, the last process had folded {}: or they differ",
                state.seq, last.seq
            ));
        }
        self.opened = true;
        self.last = Some(state.clone());
        let world = Rc::clone(&self.world);
        world.borrow_mut().restart(&state);
        let run = state.run + 1;
        let mut events = vec![(
            None,
            Event::Started {
                version: "sim".into(),
                host: "sim".into(),
                previous: Previous::Unknown,
                config_digest: String::new(),
            },
        )];
        if std::mem::take(&mut self.log_lost) && self.fate.chance(500) {
            let reason = "lost".into();
            events.push((None, Event::LogRebuilt { reason }));
        }
        let spool = world.borrow().spool.clone();
        let Ok(found) = spool.scan() else { return };
        let ours = state.sites.get(&site()).cloned().unwrap_or_default();
        let scan = start::scan(&ours, &found, &mut world.borrow_mut().next_entry);
        for name in &scan.useless {
            self.fate.say(|| format!("  '{name}' is of no use"));
            let file = File::from_spool_name(name, SIZE);
            if file.is_some_and(|file| ours.ledger.spool.contains_key(&file)) {
                self.fate
                    .violated(format!("I3: '{name}' is removed, and the log counts on it"));
            }
            if spool.remove(name).is_err() {
                return;
            }
        }
        self.fate
            .say(|| format!("  start {run}: {:?}", scan.events));
        events.extend(scan.events.into_iter().map(|e| (Some(site()), e)));
        let now = world.borrow().now();
        match log.append(now, run, events) {
            Ok(envelopes) => envelopes.iter().for_each(|e| state.apply(e)),
            Err(failure) => {
                self.fate.say(|| format!("  the start fails: {failure}"));
                self.log.cut_off();
                return;
            }
        }
        let mut appliance = Loop::new(Handle(world), self.policy.clone(), log, state);
        self.broken = appliance.turn(Vec::new()).is_err();
        self.last = None;
        self.appliance = Some(appliance);
    }

    /// A disk that fails is asked again. A log that never was one (its making was cut short) is
    /// begun anew; any other damage is ours.
    fn unreadable(&mut self, failure: &Failure) {
        if self.fate.dead() || failure.message.contains("disk failed") {
            return;
        }
        if self.opened {
            self.fate.violated(format!("the log is damaged: {failure}"));
        }
        self.log.lose();
    }

    fn rest(&mut self, when: &str) -> Result<(), String> {
        let mut since = None;
        let mut why = BTreeMap::new();
        for turn in 0..REST_MAX {
            // Where nothing but time is missing, time passes faster.
            let busy = self.appliance.as_ref().map_or(2, |a| a.busy.len());
            self.turn(turn, if busy > 2 { 2_000 } else { 20_000 })?;
            if turn == 30 {
                self.world.borrow_mut().cluster.idle();
            }
            let Some(appliance) = &self.appliance else {
                continue;
            };
            let world = self.world.borrow();
            let since = *since.get_or_insert(world.now());
            let unrest = unrest(&world, &appliance.state, &appliance.busy, since);
            let garbage = || garbage(&world, &appliance.state).filter(|_| !self.ever_lost);
            match unrest.or_else(garbage) {
                Some(reason) => *why.entry(reason).or_insert(0) += 1,
                None if turn > 30 => return Ok(()),
                None => {}
            }
        }
        Err(format!(
            "I17: {when} there is no rest; turns by reason: {why:#?}"
        ))
    }

    /// What compaction took from the log is in the store, whole.
    fn exported(&self) -> Result<(), String> {
        let live = self.appliance.as_ref().map(|a| &a.state);
        let ours = live.and_then(|state| state.sites.get(&site()));
        let upto = ours.map_or(0, |site| site.exports.upto);
        let whole = self.policy.export_events.is_some() && !self.ever_lost;
        if !whole {
            return Ok(());
        }
        match self.world.borrow().store.exported() {
            Some(seen) if seen != (1..=upto).collect::<Vec<_>>() => {
                Err(format!("of events 1 to {upto} the store has {seen:?}"))
            }
            _ => Ok(()),
        }
    }

    /// The log from scratch is the state we have.
    fn compare(&mut self) -> Result<(), String> {
        let mut state = State::default();
        let read = Log::open_on(self.log.copy(), &mut |e| state.apply(e));
        let live = self.appliance.as_ref().map(|a| &a.state);
        match read {
            Ok(_) if Some(&state) == live => Ok(()),
            Ok(_) => Err("the fold of the log is not the live state".into()),
            Err(failure) => Err(format!("the log does not open: {failure}")),
        }
    }
}
