//! Histories: years in the life of a site, in one thread and without crashes inside a step.
//!
//! The simulator of this folder's parent looks at moments; this looks at what time, people and
//! disasters make of a site: failovers, rollbacks, holes, holds, other policies, lost objects,
//! lost logs, clocks that jump, a foreign cluster at the old address. The machine and the tasks
//! that list and delete are the real ones; [`oracle`] says what must hold, from the objects alone.
//!
//! `PGHOARD_HISTORY_SEED=N cargo test --test sim one_history -- --nocapture` replays one.

mod cluster;
mod oracle;
mod shelf;
mod stream;

use std::sync::Arc;

use machine::decide::{Busy, decide};
use machine::event::{Finished, How, Lease, Origin, Previous, Why};
use machine::policy::{Policy, SitePolicy, Tiers};
use machine::projection::marks::Mark;
use machine::{
    BackupName, Class, Command, Envelope, Event, File, Millis, Segment, Site, SiteState, State,
    Task, TaskId, Timeline,
};
use pghoard::codec::digest::Algorithm;
use pghoard::codec::keys::Keyring;
use pghoard::codec::{Compression, Encoding};
use pghoard::store::Metadata;
use pghoard::work::delete::Doomed;
use pghoard::work::reconcile::Known;
use pghoard::work::{Place, delete, marks, reconcile};
use pghoard::{Failure, Outcome};

use crate::fate::Fate;
use crate::tasks::main_metadata;
use cluster::Cluster;
use shelf::{Needs, PREFIX, SIZE, Shelf};

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
    place: Place,
    pub state: State,
    pub policy: Policy,
    busy: Busy,
    pub cluster: Cluster,
    /// Where the stream goes on, while one runs.
    next: Option<Segment>,
    /// True time, and how far our clock is from it.
    pub now_ms: u64,
    skew_ms: i64,
    clock_ms: u64,
    entries: u64,
    /// Objects went that no listing has shown yet.
    pub unlisted: bool,
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
            cluster: Cluster::new(),
            next: None,
            now_ms: 1_790_000_000_000,
            skew_ms: 0,
            clock_ms: 1_790_000_000_000,
            entries: 0,
            unlisted: false,
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
        if matches!(event, Event::Reconciled { .. }) {
            self.unlisted = false;
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
        let before = oracle::Before::of(self);
        self.settle();
        before.check(self);
    }

    /// Something happens to the site.
    fn happen(&mut self) {
        let what = self.fate.below(100);
        self.fate.say(|| format!("  happens: {what}"));
        match what {
            0..45 => self.cluster.at += self.fate.between(1, 5),
            45..50 => self.cluster.branch(self.cluster.at),
            50..53 => {
                let back = self.fate.below(4);
                let begin = self.cluster.segment(self.cluster.at).number;
                self.cluster
                    .branch(begin.saturating_sub(back).max(self.cluster.floor));
            }
            53..60 => self.recycle(),
            60..66 => self.lose(),
            66..70 => self.hold(),
            70..74 => self.release(),
            74..78 => self.ask(),
            78..82 => *self.site_policy() = site_policy(&self.fate),
            82..86 => self.restart(),
            86..90 => self.lose_log(),
            90..93 => self.set_clock(0),
            93..96 => {
                let days = i64::try_from(self.fate.below(800)).unwrap() - 400;
                self.set_clock(days * i64::try_from(DAY_MS).unwrap());
            }
            _ => self.cluster.system_id = if self.fate.chance(500) { 7 } else { 8 },
        }
    }

    fn set_clock(&mut self, skew_ms: i64) {
        let by_ms = skew_ms - self.skew_ms;
        self.skew_ms = skew_ms;
        if by_ms != 0 {
            self.log(None, Event::ClockJumped { by_ms });
        }
    }

    fn site_policy(&mut self) -> &mut SitePolicy {
        self.policy.sites.get_mut(&site()).unwrap()
    }

    fn recycle(&mut self) {
        let frontier = self.ours().ledger.frontier;
        let promised = self.fate.chance(800);
        let keep = frontier
            .filter(|_| promised)
            .map_or(self.cluster.at, |f| f.number + 1);
        self.cluster.floor = self.cluster.floor.max(keep.min(self.cluster.at));
    }

    fn lose(&mut self) {
        let mut truth = self.shelf.truth();
        let keys: Vec<_> = truth.objects.keys().cloned().collect();
        let place = self.fate.below(u64::try_from(keys.len()).unwrap());
        if let Some(key) = keys.get(usize::try_from(place).unwrap()) {
            self.fate.say(|| format!("    the store loses {key}"));
            truth.objects.remove(key);
            self.unlisted = true;
        }
    }

    /// By another program: the daemon has to read it from the store.
    fn hold(&mut self) {
        let names: Vec<_> = self.shelf.truth().needs.keys().cloned().collect();
        let place = self.fate.below(u64::try_from(names.len()).unwrap());
        let Some(backup) = names.get(usize::try_from(place).unwrap()) else {
            return;
        };
        let forever = self.fate.chance(500);
        let days = self.fate.between(1, 60);
        let mark = Mark::Hold {
            backup: backup.clone(),
            reason: "an audit".into(),
            by: "ada".into(),
            until: (!forever).then(|| Millis(self.now_ms + days * DAY_MS)),
        };
        self.fate.say(|| format!("    {mark:?}"));
        drop(marks::write(&self.place, mark, SIZE));
    }

    fn release(&mut self) {
        let mut truth = self.shelf.truth();
        truth
            .objects
            .retain(|key, _| !key.contains("/preservation_request/"));
    }

    fn ask(&mut self) {
        let reason = Why::Operator;
        self.tell(Event::BackupRequested { reason });
    }

    fn restart(&mut self) {
        self.busy.clear();
        self.next = None;
        let started = self.started();
        self.log(None, started);
    }

    fn lose_log(&mut self) {
        let before = oracle::Answers::of(self);
        self.state = State {
            at: self.state.at,
            ..State::default()
        };
        self.restart();
        self.settle();
        before.compare(self);
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
        let task = Task::Lease { site: name };
        self.busy.insert(task.id(), task);
        self.tell(Event::LeaseSeen(Lease {
            holder: "us".into(),
            host: "here".into(),
            ours: true,
            started_at: self.state.started_at,
        }));
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
        let mut events = Vec::new();
        let done = self.effect(task, &mut |event| events.push(event));
        // Now and then a task succeeds and its reply is lost.
        let lost = self.fate.chance(10);
        let done = match done {
            Ok(()) if lost => Err(Failure::new(Class::Network, "the reply was lost")),
            other => other,
        };
        if let Err(failure) = done {
            let failed = task.failed(failure.class, failure.to_string());
            events = vec![failed];
        }
        events.into_iter().for_each(|event| self.tell(event));
    }

    fn effect(&mut self, task: &Task, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
        let ours = self.ours();
        match task {
            Task::Probe { .. } => self.probe(&ours),
            Task::Take { backup, .. } => self.take(backup.clone()),
            Task::Store { file, entry, .. } => {
                self.store(&ours, file);
                emit(stored(file.clone(), Some(*entry)));
            }
            Task::Switch { node, .. } => {
                self.cluster.at += 1;
                let at = Segment::new(self.cluster.timeline, self.cluster.at).start(SIZE);
                emit(Event::Switched { node: *node, at });
            }
            Task::DeleteBackup {
                backup,
                object,
                unless_held_at,
                ..
            } => {
                let doomed = Doomed {
                    name: backup,
                    object: object.as_deref(),
                    unless_held_at: *unless_held_at,
                };
                delete::backup(&self.place, doomed, SIZE, emit)?;
            }
            Task::DeleteWal {
                ranges,
                retire,
                forget,
                ..
            } => {
                let wal = delete::Wal {
                    ranges,
                    retire,
                    forget,
                };
                delete::wal(&self.place, wal, SIZE, emit)?;
            }
            Task::Reconcile { .. } => {
                let known = Known {
                    ledger: ours.ledger,
                    backups: ours.backups,
                };
                reconcile::run(&self.place, &known, emit)?;
            }
            Task::ReadMarks { .. } => marks::read(&self.place, &ours.marks, emit)?,
            Task::Fetch { means, hole, .. } => self.fetch(*means, hole, emit)?,
            // Verification has nothing to read here; the rest is not asked for.
            _ => {}
        }
        Ok(())
    }

    fn probe(&mut self, ours: &SiteState) {
        let known: Vec<_> = self.cluster.histories.clone().into_iter().collect();
        for (timeline, ancestors) in known {
            self.tell(Event::TimelineLearned {
                timeline,
                ancestors,
            });
            let file = File::History(timeline);
            let ledger = &ours.ledger;
            if !ledger.histories.contains(&timeline) && !ledger.spool.contains_key(&file) {
                self.spool(file, Origin::Stream);
            }
        }
        let ahead = i64::try_from(self.clock_ms).unwrap() - i64::try_from(self.now_ms).unwrap();
        self.tell(self.cluster.seen(-ahead));
    }

    fn store(&self, ours: &SiteState, file: &File) {
        let metadata = match file {
            File::Main(name) => main_metadata(ours, name),
            _ => Metadata::from([("original-file-size".into(), SIZE.bytes().to_string())]),
        };
        self.shelf.truth().add(file, metadata);
    }

    fn take(&mut self, backup: BackupName) {
        let start = Segment::new(self.cluster.timeline, self.cluster.at);
        let begun = self.clock();
        let parts = u32::try_from(self.fate.between(1, 3)).unwrap();
        for number in 1..=parts {
            let file = File::Part {
                backup: backup.clone(),
                number,
            };
            self.shelf.truth().add(&file, Metadata::new());
            self.tell(stored(file, None));
        }
        let hours = self.fate.below(3);
        self.pass(hours * HOUR_MS);
        self.cluster.at += self.fate.below(3);
        let end = Segment::new(self.cluster.timeline, self.cluster.at);
        let needs = Needs { parts, start, end };
        self.shelf.truth().needs.insert(backup.clone(), needs);
        self.spool(File::Main(backup.clone()), Origin::Backup);
        self.tell(Event::BackupFinished(Finished {
            backup,
            start,
            end,
            start_lsn: start.start(SIZE),
            end_lsn: end.start(SIZE),
            started_at: begun,
            ended_at: self.clock(),
            parts,
            bytes_in: 1,
            bytes_out: 1,
            from_standby: false,
        }));
    }
}

fn stored(file: File, entry: Option<u64>) -> Event {
    Event::Stored {
        file,
        entry,
        bytes_in: 1,
        bytes_out: 1,
        digest: String::new(),
        millis: 0,
        how: How::Written,
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
