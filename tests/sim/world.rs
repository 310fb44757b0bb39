//! The world the loop acts through: a clock that jumps, tasks whose effect and report come at
//! random later turns, and what others may see of the state.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use machine::decide::Busy;
use machine::event::{Lease, Range};
use machine::policy::{Ack, Policy};
use machine::{
    BackupName, Class, Envelope, Event, File, Lsn, Millis, Segment, Site, State, Task, TaskId,
    Timeline,
};
use pghoard::codec::digest::Algorithm;
use pghoard::codec::keys::Keyring;
use pghoard::codec::slots::Slots;
use pghoard::codec::{Compression, Encoding};
use pghoard::journal::run::{self, Report};
use pghoard::spool::Spool;
use pghoard::store::Metadata;
use pghoard::work::Place;
use pghoard::work::lease::{Identity, Watch};
use pghoard::{Failure, Outcome};

use crate::disk::SimDisk;
use crate::fate::{Fate, Fault};
use crate::receiver::Receiver;
use crate::server::{Cluster, SIZE};
use crate::storage::LogDisk;
use crate::store::{PREFIX, SimStore};
use crate::take::Take;
use crate::tasks::{Facts, main_metadata};

pub fn site() -> Site {
    Site("main".into())
}

/// The loop's view of the world; the driver has another handle of the same.
#[derive(Clone)]
pub struct Handle(pub Rc<RefCell<World>>);

pub struct World {
    pub fate: Fate,
    pub cluster: Cluster,
    pub disk: SimDisk,
    pub spool: Spool,
    pub store: SimStore,
    /// To read along, never to write.
    pub log: LogDisk,
    pub place: Place,
    pub me: Identity,
    pub watch: Watch,
    pub ack: Ack,
    pub slot: bool,
    /// Backups are one object each, which whoever takes them stores.
    pub one_object: bool,
    /// What the wall clock says; it may jump.
    wall: u64,
    now: u64,
    pub running: BTreeMap<TaskId, Running>,
    /// Closing reports handed over: the log's position then, and whether events came with them.
    pub closed: BTreeMap<TaskId, (u64, bool)>,
    pub next_entry: u64,
    pub published: Published,
    /// Where streams began since the last check.
    pub began: Vec<Segment>,
    pace: BTreeMap<&'static str, (u64, u64)>,
}

/// What the receiver may know of the state.
#[derive(Default)]
pub struct Published {
    pub acknowledged: BTreeMap<Timeline, Lsn>,
    pub lost: Vec<Range>,
    /// The backup that only its object keeps from being complete, and the object's metadata.
    pub ready: Option<(BackupName, Metadata)>,
}

pub struct Running {
    pub task: Task,
    pub facts: Facts,
    pub stage: Stage,
    /// Groups of events not yet told, the last of them closing if `done`.
    pub outbox: VecDeque<Vec<Event>>,
    pub done: bool,
    pub stopping: bool,
}

pub enum Stage {
    Ready,
    Receiving(Box<Receiver>),
    Taking(Box<Take>),
    Holding(Option<Lease>),
}

fn identity(run: u64) -> Identity {
    Identity {
        instance: "sim".into(),
        session: run.to_string(),
        host: "sim".into(),
    }
}

const KINDS: [&str; 11] = [
    "probe",
    "receive",
    "take",
    "store",
    "switch",
    "delete",
    "reconcile",
    "read marks",
    "lease",
    "verify",
    "export",
];

impl World {
    /// What the checker has to know of an event that counts.
    pub fn hear(&mut self, envelope: &Envelope) {
        if let Event::StreamStarted { from, .. } = &envelope.event {
            self.began.push(*from);
        }
    }

    pub fn new(fate: &Fate, log: &LogDisk) -> World {
        let disk = SimDisk::new(fate.clone());
        let store = SimStore::new(fate.clone());
        let place = Place {
            site: "main".into(),
            prefix: PREFIX.into(),
            store: Arc::new(store.clone()),
            encoding: Encoding {
                compression: Compression::Snappy,
                level: 0,
                threads: 0,
                encryption: None,
            },
            keys: Keyring::default(),
            hash: Algorithm::Sha1,
            host: "sim".into(),
            scratch: "unused".into(),
            encoders: Slots::new(1),
        };
        // How often in a thousand turns each kind of task acts, and tells: some are very slow.
        let rate = || match fate.below(5) {
            0 => fate.between(15, 120),
            1 => fate.between(120, 500),
            _ => fate.between(500, 1000),
        };
        let (last, drawn) = KINDS.split_last().unwrap();
        let paces = drawn.iter().map(|kind| (*kind, (rate(), rate())));
        let mut pace: BTreeMap<_, _> = paces.collect();
        pace.insert(last, (500, 500));
        pace.insert("fetch", (600, 600));
        // Much can happen between the loss of a log and the first listing.
        if fate.may(Fault::RestartLosesLog) && fate.chance(500) {
            pace.insert("reconcile", (fate.between(10, 60), fate.between(10, 60)));
        }
        World {
            cluster: Cluster::new(fate.clone()),
            spool: Spool::new(Arc::new(disk.clone())),
            disk,
            store,
            log: log.clone(),
            place,
            me: identity(0),
            watch: Watch::default(),
            ack: if fate.chance(700) {
                Ack::Stored
            } else {
                Ack::Spooled
            },
            slot: fate.chance(700),
            one_object: false,
            wall: 1_795_339_646_717,
            now: 0,
            running: BTreeMap::new(),
            closed: BTreeMap::new(),
            next_entry: 0,
            published: Published::default(),
            began: Vec::new(),
            pace,
            fate: fate.clone(),
        }
    }

    /// A new process: nothing runs, and time goes on from what the log says at the earliest.
    pub fn restart(&mut self, state: &State) {
        self.running.clear();
        self.closed.clear();
        self.me = identity(state.run + 1);
        self.watch = Watch::default();
        self.published = Published::default();
        self.now = state.at.0.max(self.wall);
        self.next_entry = (state.run + 1) << 24;
    }

    pub fn pass(&mut self, ms: u64) {
        self.wall += ms;
        if self.fate.strikes(Fault::TurnClockJump) {
            let jump = self.fate.between(1_000, 3 * 86_400_000);
            self.wall = if self.fate.chance(500) {
                self.wall + jump
            } else {
                self.wall - jump
            };
        }
        // The clock of a process never runs backwards and never stands still.
        self.now = self.wall.max(self.now + ms);
    }

    pub fn entry(&mut self) -> u64 {
        self.next_entry += 1;
        self.next_entry
    }

    pub fn now(&self) -> Millis {
        Millis(self.now)
    }

    /// Lets each task act or not, in a random order.
    pub fn act(&mut self) {
        let mut ids: Vec<_> = self.running.keys().cloned().collect();
        while !ids.is_empty() && !self.fate.dead() {
            let place = self.fate.below(u64::try_from(ids.len()).unwrap());
            let id = ids.swap_remove(usize::try_from(place).unwrap());
            let pace = self.pace[id.name()].0;
            if self.fate.is_calm() || self.fate.chance(pace) {
                crate::tasks::act(self, &id);
            }
        }
    }

    /// What the tasks tell this turn; each in its own order, all of them mixed.
    pub fn reports(&mut self, state: &State) -> Vec<Report> {
        let mut queues = Vec::new();
        let ids: Vec<_> = self.running.keys().cloned().collect();
        for id in ids {
            let pace = self.pace[id.name()].1;
            if !self.fate.is_calm() && !self.fate.chance(pace) {
                continue;
            }
            let running = self.running.get_mut(&id).unwrap();
            let mut queue = VecDeque::new();
            while let Some(events) = running.outbox.pop_front() {
                let last = running.done && running.outbox.is_empty();
                let empty = events.is_empty();
                let events = events.into_iter();
                queue.push_back(match last {
                    true => Report::closing(&id, events.collect()),
                    false => {
                        let mut report = Report::closing(&id, events.collect());
                        report.closing = false;
                        report
                    }
                });
                if last {
                    self.closed.insert(id.clone(), (state.seq, !empty));
                }
            }
            if self.closed.contains_key(&id) {
                self.running.remove(&id);
            }
            if !queue.is_empty() {
                queues.push(queue);
            }
        }
        let mut reports = Vec::new();
        while !queues.is_empty() {
            let place = self.fate.below(u64::try_from(queues.len()).unwrap());
            let place = usize::try_from(place).unwrap();
            reports.extend(queues[place].pop_front());
            if queues[place].is_empty() {
                queues.swap_remove(place);
            }
        }
        for report in &reports {
            self.fate.say(|| {
                let events: Vec<_> = report.events.iter().map(|(_, e)| e).collect();
                format!("  told by {:?}: {events:?}", report.task)
            });
        }
        reports
    }
}

impl run::World for Handle {
    fn now(&mut self) -> Millis {
        self.0.borrow().now()
    }

    fn start(&mut self, task: &Task, state: &State) -> Outcome<()> {
        let world = &mut *self.0.borrow_mut();
        if world.fate.dead() {
            return Ok(());
        }
        let id = task.id();
        world.fate.say(|| format!("  start {task:?}"));
        let untold = world.closed.remove(&id);
        if world.running.contains_key(&id)
            || untold.is_some_and(|(seq, told)| told && state.seq <= seq)
        {
            world.fate.violated(format!(
                "I1: {task:?} starts while the one before is not committed"
            ));
        }
        if world.fate.strikes(Fault::TaskStart) {
            return Err(Failure::new(Class::Internal, "no thread"));
        }
        let running = Running {
            facts: Facts::of(task, state),
            task: task.clone(),
            stage: Stage::Ready,
            outbox: VecDeque::new(),
            done: false,
            stopping: false,
        };
        world.running.insert(id, running);
        Ok(())
    }

    fn stop(&mut self, id: &TaskId) {
        let world = &mut *self.0.borrow_mut();
        if let Some(running) = world.running.get_mut(id) {
            if !running.stopping {
                world.fate.say(|| format!("  stop {id}"));
            }
            running.stopping = true;
        }
    }

    fn told(&mut self, envelope: &Envelope) {
        self.0.borrow_mut().hear(envelope);
    }

    fn discard(&mut self, _: &Site, file: &File, _: &State) {
        let world = &mut *self.0.borrow_mut();
        world.fate.say(|| format!("  discard {file:?}"));
        // A file that stays because of an error is found by the scan of the next start.
        let _ = world.spool.remove(&file.spool_name(SIZE));
    }

    fn publish(&mut self, state: &State, _: &Policy, _: &Busy) {
        let world = &mut *self.0.borrow_mut();
        let Some(site) = state.sites.get(&site()).filter(|_| !world.fate.dead()) else {
            return;
        };
        // As the daemon does: nothing is acknowledged before the stream's beginning is folded.
        let stream = site
            .servers
            .stream
            .as_ref()
            .map(|stream| stream.next.timeline);
        world.published = Published {
            acknowledged: stream
                .map(|t| (t, site.ledger.acknowledged(t, &site.timelines)))
                .into_iter()
                .collect(),
            lost: site.ledger.lost.iter().map(|lost| lost.range).collect(),
            ready: site
                .backups
                .ready(&site.ledger)
                .map(|(name, _)| (name.clone(), main_metadata(site, name))),
        };
    }
}
