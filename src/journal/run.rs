//! The loop: append, fold, decide, do.
//!
//! One thread, synchronous, the only writer of log and state. It acts through [`World`]: the real
//! one owns threads and files, the simulated one owns a seed. A restart is an ordinary turn.

use std::sync::mpsc::SyncSender;

use machine::breaks::{Rule, holds};
use machine::decide::{Busy, decide};
use machine::policy::Policy;
use machine::state::summary;
use machine::{Class, Command, Envelope, Event, File, Millis, Site, State, Task, TaskId};

use crate::failure::{Failure, Outcome};
use crate::journal::log::Log;

/// What a task tells: facts that happened, and whether it has ended with them.
#[derive(Clone, Debug)]
pub struct Report {
    pub task: Option<TaskId>,
    pub events: Vec<(Option<Site>, Event)>,
    pub closing: bool,
    /// Hears that the events are committed and folded.
    pub heard: Option<SyncSender<()>>,
}

impl Report {
    pub fn going(task: &TaskId, event: Event) -> Report {
        Report::new(task, vec![event], false)
    }

    pub fn closing(task: &TaskId, events: Vec<Event>) -> Report {
        Report::new(task, events, true)
    }

    fn new(task: &TaskId, events: Vec<Event>, closing: bool) -> Report {
        let site = task.site().clone();
        let events = events
            .into_iter()
            .map(|event| (Some(site.clone()), event))
            .collect();
        Report {
            task: Some(task.clone()),
            events,
            closing,
            heard: None,
        }
    }

    /// A fact from outside every task: a person, a signal.
    pub fn outside(site: Option<Site>, event: Event) -> Report {
        Report::facts(vec![(site, event)])
    }

    /// Several of them, in one commit.
    pub fn facts(events: Vec<(Option<Site>, Event)>) -> Report {
        Report {
            task: None,
            events,
            closing: false,
            heard: None,
        }
    }
}

/// Where the loop acts: the real world, or the simulator's.
pub trait World {
    fn now(&mut self) -> Millis;
    /// Begins the task; it ends with a closing report, unless it could not even begin.
    fn start(&mut self, task: &Task, state: &State) -> Outcome<()>;
    /// Asks a running task to end soon; it still sends its closing report.
    fn stop(&mut self, id: &TaskId);
    /// The event that ends this spool file's life is committed: the file may go.
    fn discard(&mut self, site: &Site, file: &File, state: &State);
    /// The event is committed: whoever reads along may hear of it.
    fn told(&mut self, _envelope: &Envelope) {}
    /// Makes what others see equal to the state.
    fn publish(&mut self, state: &State, policy: &Policy, busy: &Busy);
}

/// Group commit: so many reports go into one durable transaction.
pub const GROUP_MAX: usize = 256;
/// Decisions feed decisions; more rounds than this without rest is a mistake of ours.
const ROUNDS_MAX: u32 = 16;

pub struct Loop<W> {
    pub world: W,
    pub state: State,
    pub policy: Policy,
    pub busy: Busy,
    /// `None` only between a failure of the storage and the next successful opening.
    log: Option<Log>,
    /// Reports not yet known to be committed: the storage failed under them.
    owed: Vec<Report>,
    /// So many of them were in the commit that failed, which may have succeeded all the same.
    tried: usize,
}

impl<W: World> Loop<W> {
    pub fn new(world: W, policy: Policy, log: Log, state: State) -> Loop<W> {
        Loop {
            world,
            state,
            policy,
            busy: Busy::new(),
            log: Some(log),
            owed: Vec::new(),
            tried: 0,
        }
    }

    /// One turn. After an error nothing of it is lost: open the log again with [`Loop::reopen`]
    /// and turn once more.
    pub fn turn(&mut self, reports: Vec<Report>) -> Outcome<()> {
        self.owed.extend(reports);
        if !holds(Rule::BusyUntilCommitted) {
            self.retire();
            self.decide()?;
        }
        self.commit_owed()?;
        self.decide()?;
        self.world.publish(&self.state, &self.policy, &self.busy);
        Ok(())
    }

    /// Closes the log and goes on with what `open` makes of it. What it holds beyond our state was
    /// committed though the commit reported an error: then the reports that were in it are owed no
    /// more.
    pub fn reopen(&mut self, open: impl FnOnce() -> Outcome<(Log, State)>) -> Outcome<()> {
        self.log = None;
        let (log, state) = open()?;
        let before = std::mem::replace(&mut self.state, state);
        self.log = Some(log);
        let tried = std::mem::take(&mut self.tried);
        if self.state.seq > before.seq {
            self.settle(tried);
        }
        for (site, old) in &before.sites {
            let spool = self.state.sites.get(site).map(|s| &s.ledger.spool);
            let gone = |file: &&File| spool.is_some_and(|spool| !spool.contains_key(file));
            for file in old.ledger.spool.keys().filter(gone) {
                self.world.discard(site, file, &self.state);
            }
        }
        Ok(())
    }

    /// Whether the last opening of the log succeeded.
    pub fn is_open(&self) -> bool {
        self.log.is_some()
    }

    fn commit_owed(&mut self) -> Outcome<()> {
        while !self.owed.is_empty() {
            let group = self.owed.len().min(GROUP_MAX);
            let events = self
                .owed
                .iter()
                .take(group)
                .flat_map(|r| r.events.iter().cloned());
            let events = events.collect();
            if self.log.is_some() {
                self.tried = group;
            }
            self.append(events)?;
            self.tried = 0;
            self.settle(group);
        }
        Ok(())
    }

    /// The first `count` of the reports owed are committed.
    fn settle(&mut self, count: usize) {
        let count = count.min(self.owed.len());
        for report in self.owed.drain(..count) {
            if let Some(heard) = &report.heard {
                // Whoever asked may have gone meanwhile.
                let _unheard = heard.try_send(());
            }
            if let Some(task) = report.task.filter(|_| report.closing) {
                self.busy.remove(&task);
            }
        }
    }

    fn retire(&mut self) {
        for report in &self.owed {
            if let Some(task) = report.task.as_ref().filter(|_| report.closing) {
                self.busy.remove(task);
            }
        }
    }

    /// Commits, folds, then lets go of the spool files that this ended.
    fn append(&mut self, events: Vec<(Option<Site>, Event)>) -> Outcome<()> {
        let now = self.world.now();
        let Some(log) = &mut self.log else {
            return Err(Failure::new(Class::Internal, "the event log is closed"));
        };
        let committed = log.append(now, self.state.run, events)?;
        for envelope in committed {
            self.state.apply(&envelope);
            self.world.told(&envelope);
            let Some(site) = &envelope.site else { continue };
            if let Event::Stored {
                file,
                entry: Some(_),
                ..
            }
            | Event::Dropped { file, .. } = &envelope.event
            {
                let spool = self.state.sites.get(site).map(|s| &s.ledger.spool);
                if spool.is_some_and(|spool| !spool.contains_key(file)) {
                    self.world.discard(site, file, &self.state);
                }
            }
        }
        Ok(())
    }

    /// Records until decide has nothing more to record, then starts and stops.
    fn decide(&mut self) -> Outcome<()> {
        for _ in 0..ROUNDS_MAX {
            let now = self.world.now().max(self.state.at);
            let commands = decide(&self.state, &self.policy, &self.busy, now);
            let (mut records, mut acts, mut compact) = (Vec::new(), Vec::new(), None);
            for command in commands {
                match command {
                    Command::Record(site, event) => records.push((Some(site), event)),
                    Command::Start(_) | Command::Stop(_) => acts.push(command),
                    Command::Compact(upto) => compact = Some(upto),
                }
            }
            if let Some(upto) = compact.filter(|_| records.is_empty()) {
                self.compact(upto)?;
                continue;
            }
            if records.is_empty() {
                acts.into_iter().for_each(|command| self.act(command));
                return Ok(());
            }
            self.append(records)?;
        }
        crate::report::error("the machine does not come to rest; please report this state");
        Ok(())
    }

    /// Lets the log's beginning go for a summary, if that folds to the very state we have.
    fn compact(&mut self, upto: u64) -> Outcome<()> {
        let Some(log) = &mut self.log else {
            return Err(Failure::new(Class::Internal, "the event log is closed"));
        };
        let state = &self.state;
        let mut refused = None;
        let compacted = log.compact(upto, state.run, &mut |removed| {
            let events = summary::summary(state, removed);
            let refuse = || Failure::new(Class::Internal, "its summary is not faithful");
            match summary::faithful(state, &events) {
                true => Ok(events),
                false => Err(refused.insert(refuse()).clone()),
            }
        });
        if let Some(refused) = refused {
            let reason = refused.message;
            return self.append(vec![(None, Event::CompactionRefused { reason })]);
        }
        for envelope in compacted? {
            self.state.apply(&envelope);
            if matches!(envelope.event, Event::Compacted { .. }) {
                self.world.told(&envelope);
            }
        }
        // The room in the file is no reason to stop: others may be reading it.
        log.shrink().map(drop)
    }

    fn act(&mut self, command: Command) {
        match command {
            Command::Start(task) => {
                self.busy.insert(task.id(), task.clone());
                if let Err(failure) = self.world.start(&task, &self.state) {
                    let event = task.failed(failure.class, failure.to_string());
                    self.owed.push(Report::closing(&task.id(), vec![event]));
                }
            }
            Command::Stop(id) => self.world.stop(&id),
            Command::Record(..) | Command::Compact(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
