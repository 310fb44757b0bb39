//! Histories: years in the life of a site, in one thread and without crashes inside a step.
//!
//! The simulator of this folder's parent looks at moments; this looks at what time, people and
//! disasters make of a site ([`happen`]): failovers, rollbacks, holes, holds, other policies, lost
//! and damaged objects, lost logs, lost keys, clocks that jump, a foreign cluster at the old
//! address. The machine and the tasks that list, delete and verify are the real ones; [`oracle`]
//! says what must hold, from the objects alone, and [`answers`] what a lost log must not change.
//!
//! `PGHOARD_HISTORY_SEED=N cargo test --test sim one_history -- --nocapture` replays one.

mod answers;
mod cluster;
mod effects;
mod eyes;
mod happen;
pub mod moved;
mod oracle;
mod shelf;
mod stream;
mod window;

use std::sync::Arc;

use machine::decide::{Busy, decide};
use machine::event::{Lease, Origin, Previous};
use machine::policy::{Policy, SitePolicy, Tiers};
use machine::{
    Class, Command, Envelope, Event, File, Millis, Segment, Site, SiteState, State, Task, TaskId,
    Timeline,
};
use pghoard::Failure;
use pghoard::codec::digest::Algorithm;
use pghoard::codec::keys::Keyring;
use pghoard::codec::slots::Slots;
use pghoard::codec::{Compression, Encoding};
use pghoard::work::Place;

use crate::fate::Fate;
use cluster::Cluster;
use eyes::{Keys, Spoilt};
use shelf::{PREFIX, SIZE, Shelf};

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
const STEPS: u64 = 60;
/// Rounds of decisions in which a step has to come to rest.
const ROUNDS_MAX: u32 = 4_000;

pub fn run(seed: u64, trace: bool) -> Result<(), String> {
    let mut life = Life::new(Fate::new(seed, trace));
    life.log(None, life.started());
    for _ in 0..STEPS {
        life.step();
        if let Some(what) = life.fate.violation() {
            return Err(what);
        }
    }
    Ok(())
}

pub fn site() -> Site {
    Site(PREFIX.into())
}

pub struct Life {
    pub fate: Fate,
    pub shelf: Shelf,
    pub place: Place,
    pub state: State,
    pub policy: Policy,
    busy: Busy,
    /// The site that this one was moved from, once it was.
    old: Option<moved::Old>,
    pub cluster: Cluster,
    pub keys: Keys,
    /// Where the stream goes on, while one runs.
    next: Option<Segment>,
    /// True time, and how far our clock is from it.
    pub now_ms: u64,
    skew_ms: i64,
    clock_ms: u64,
    entries: u64,
    /// Objects went that no listing has shown yet.
    pub unlisted: bool,
    /// Marks are in the store that were not read yet.
    pub unread: bool,
    /// Damage that a person or the disk has done, and how long it went unnoticed.
    pub spoilt: Spoilt,
}

impl Life {
    fn new(fate: Fate) -> Life {
        let shelf = Shelf::default();
        let place = Place {
            site: PREFIX.into(),
            prefix: PREFIX.into(),
            store: Arc::new(shelf.clone()),
            encoding: Encoding {
                compression: Compression::Snappy,
                level: 0,
                threads: 1,
                encryption: None,
            },
            keys: Keyring::default(),
            hash: Algorithm::Sha1,
            host: "here".into(),
            scratch: "/nowhere".into(),
            encoders: Slots::new(1),
        };
        let mut policy = Policy {
            uploads_max: 100,
            retries_max: 3,
            ..Policy::default()
        };
        policy.sites.insert(site(), site_policy(&fate));
        Life {
            fate,
            shelf,
            place,
            state: State::default(),
            policy,
            busy: Busy::new(),
            old: None,
            cluster: Cluster::new(),
            next: None,
            now_ms: 1_790_000_000_000,
            skew_ms: 0,
            clock_ms: 1_790_000_000_000,
            entries: 0,
            unlisted: false,
            unread: false,
            keys: Keys::default(),
            spoilt: Spoilt::new(),
        }
    }

    fn started(&self) -> Event {
        Event::Started {
            version: "0".into(),
            host: "here".into(),
            previous: Previous::Crashed,
            config_digest: String::new(),
        }
    }

    pub fn clock(&self) -> Millis {
        Millis(self.clock_ms).max(self.state.at)
    }

    /// Our clock never runs backwards and never stands still, whatever is done to it.
    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        let wall = self.now_ms.saturating_add_signed(self.skew_ms);
        self.clock_ms = wall.max(self.clock_ms + ms);
    }

    pub fn ours(&self) -> SiteState {
        self.state.sites.get(&site()).cloned().unwrap_or_default()
    }

    fn log(&mut self, site: Option<Site>, event: Event) {
        self.fate.say(|| format!("    {event:?}"));
        let run = match event {
            Event::Started { .. } => self.state.run + 1,
            _ => self.state.run,
        };
        self.state.apply(&Envelope {
            seq: self.state.seq + 1,
            at: self.clock(),
            run,
            site,
            event,
        });
    }

    fn tell(&mut self, event: Event) {
        match event {
            Event::Reconciled { .. } => self.unlisted = false,
            Event::MarksRead { .. } => self.unread = false,
            _ => {}
        }
        self.log(Some(site()), event);
    }

    fn step(&mut self) {
        let hours = [1, 6, 24, 24, 24, 72, 300];
        let place = usize::try_from(self.fate.below(7)).unwrap();
        let minutes = self.fate.below(HOUR_MS);
        self.pass(hours[place] * HOUR_MS + minutes);
        for _ in 0..self.fate.below(4) {
            self.happen();
        }
        self.turn();
        self.notice();
    }

    /// What the daemon makes of it, and whether that was right.
    fn turn(&mut self) {
        let before = oracle::Before::of(self);
        self.settle();
        before.check(self);
    }

    /// Turns until decide has nothing more to say.
    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let commands = decide(&self.state, &self.policy, &self.busy, self.clock());
            let records: Vec<_> = commands
                .iter()
                .filter_map(|command| match command {
                    Command::Record(site, event) => Some((site.clone(), event.clone())),
                    _ => None,
                })
                .collect();
            let quiet = commands.is_empty();
            if records.is_empty() {
                commands.into_iter().for_each(|command| self.act(command));
            }
            for (site, event) in records {
                self.log(Some(site), event);
            }
            if quiet && !self.pump() {
                return;
            }
            // Every round takes a moment.
            self.pass(1_000);
        }
        self.fate.violated("the machine does not come to rest");
    }

    fn act(&mut self, command: Command) {
        match command {
            Command::Start(Task::Receive { node, start, site }) => self.connect(site, node, start),
            Command::Start(Task::Lease { site }) => self.lease(site),
            Command::Start(task) => self.perform(&task),
            Command::Stop(TaskId::Receive(_)) => self.end(Class::Interrupted),
            _ => {}
        }
    }

    fn lease(&mut self, name: Site) {
        let task = Task::Lease { site: name.clone() };
        self.busy.insert(task.id(), task);
        let lease = Lease {
            holder: "us".into(),
            host: "here".into(),
            ours: true,
            started_at: self.state.started_at,
        };
        self.log(Some(name), Event::LeaseSeen(lease));
    }

    pub fn spool(&mut self, file: File, origin: Origin) {
        self.entries += 1;
        self.tell(Event::Spooled {
            file,
            entry: self.entries,
            bytes: 1,
            origin,
        });
    }

    fn perform(&mut self, task: &Task) {
        if self.perform_old(task) {
            return;
        }
        let mut events = Vec::new();
        let done = self.effect(task, &mut |event| events.push(event));
        // Now and then a task succeeds and its reply is lost.
        let lost = self.fate.chance(10);
        let done = match done {
            Ok(()) if lost => Err(Failure::new(Class::Network, "the reply was lost")),
            other => other,
        };
        if let Err(failure) = done {
            // What it marked all the same is in the store.
            self.unread |= matches!(task, Task::Verify { .. });
            let failed = task.failed(failure.class, failure.to_string());
            events = vec![failed];
        }
        events.into_iter().for_each(|event| self.tell(event));
    }
}

fn site_policy(fate: &Fate) -> SitePolicy {
    let maybe = |chance, value| fate.chance(chance).then_some(value);
    SitePolicy {
        interval_ms: maybe(900, fate.between(12, 100) * HOUR_MS),
        hour: fate.chance(300).then_some(3),
        count: fate
            .chance(800)
            .then(|| usize::try_from(fate.below(5)).unwrap()),
        count_min: usize::try_from(fate.below(4)).unwrap(),
        age_max_ms: maybe(300, fate.between(1, 30) * DAY_MS),
        window_ms: maybe(300, fate.between(1, 30) * DAY_MS),
        verify_interval_ms: maybe(700, fate.between(3, 30) * DAY_MS),
        tiers: match fate.chance(300) {
            true => Tiers {
                weekly: u32::try_from(fate.below(5)).unwrap(),
                monthly: u32::try_from(fate.below(5)).unwrap(),
                yearly: u32::try_from(fate.below(3)).unwrap(),
            },
            false => Tiers::default(),
        },
        ..crate::sim::site_policy()
    }
}

/// The timelines of the path to a segment, for messages.
pub fn named(segment: Segment) -> String {
    let Segment {
        timeline: Timeline(timeline),
        number,
    } = segment;
    format!("{timeline}/{number}")
}
