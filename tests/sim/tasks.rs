//! The tasks: the real functions of `work` over the faulty store and spool, and stand-ins for
//! those that speak to a server. A task has its effect at one turn and tells it at later ones.

use std::collections::{BTreeMap, BTreeSet};

use machine::event::{Lease, Origin, Server, Slot, Sought};
use machine::projection::ledger::{Ledger, Presence};
use machine::projection::marks::{Hole, Marks};
use machine::task::Means;
use machine::{BackupName, Class, Event, File, Segment, SiteState, State, Task, TaskId, Timeline};
use pghoard::journal::chunk;
use pghoard::journal::log::Log;
use pghoard::spool::Sealed;
use pghoard::store::Metadata;
use pghoard::work::delete::Doomed;
use pghoard::work::export::Export;
use pghoard::work::lease::Moment;
use pghoard::work::reconcile::Known;
use pghoard::work::scrub::{Eyes, Scrub};
use pghoard::work::upload::{Standing, Upload};
use pghoard::work::verify::{Item, Plan, Verdict};
use pghoard::work::{delete, export, label, lease, marks, reconcile};
use pghoard::{Failure, Outcome};

use crate::receiver::Receiver;
use crate::server::{SIZE, Sent, UNITS, lsn};
use crate::take::Take;
use crate::world::{Running, Stage, World, site};

/// What a task is given of the state when it starts.
pub enum Facts {
    None,
    /// Metadata of a main object, and whether the name is marked as damaged.
    Store(Metadata, bool),
    /// Histories in spool or store.
    Held(BTreeSet<Timeline>),
    Reconcile(Box<Known>),
    Marks(Marks),
    Damaged(BTreeMap<File, Presence>),
}

impl Facts {
    pub fn of(task: &Task, state: &State) -> Facts {
        let empty = SiteState::default();
        let site = state.sites.get(task.id().site()).unwrap_or(&empty);
        match task {
            Task::Probe { .. } => Facts::Held(held(&site.ledger)),
            Task::Store { file, .. } => {
                let damaged = site.ledger.damaged.contains_key(file);
                match file {
                    File::Main(name) => Facts::Store(main_metadata(site, name), damaged),
                    _ => Facts::Store(Metadata::new(), damaged),
                }
            }
            Task::Verify { .. } => Facts::Damaged(site.ledger.damaged.clone()),
            Task::Reconcile { .. } => Facts::Reconcile(Box::new(Known {
                ledger: site.ledger.clone(),
                backups: site.backups.clone(),
            })),
            Task::ReadMarks { .. } => Facts::Marks(site.marks.clone()),
            _ => Facts::None,
        }
    }
}

fn held(ledger: &Ledger) -> BTreeSet<Timeline> {
    let spooled = ledger.spool.keys().filter_map(|file| match file {
        File::History(timeline) => Some(*timeline),
        _ => None,
    });
    ledger.histories.iter().copied().chain(spooled).collect()
}

pub fn main_metadata(site: &SiteState, name: &BackupName) -> Metadata {
    let modes = label::Modes {
        active_backup: "walreceiver",
        basebackup: "stream",
    };
    let backup = site.backups.all.get(name);
    let content = backup.and_then(|backup| Some((backup, backup.content.as_ref()?)));
    content.map_or_else(Metadata::new, |(backup, content)| {
        let mut metadata = label::write("main", &modes, backup, content, Some(180_000), SIZE);
        if backup.one_object() {
            metadata.remove("format");
        }
        metadata
    })
}

/// One step of a task; those with a single effect have it here.
pub fn act(world: &mut World, id: &TaskId) {
    let Some(mut running) = world.running.remove(id) else {
        return;
    };
    if !running.done {
        match std::mem::replace(&mut running.stage, Stage::Ready) {
            Stage::Receiving(mut receiver) => {
                receiver.act(world, id, &mut running);
                running.stage = Stage::Receiving(receiver);
            }
            Stage::Taking(mut take) => {
                take.act(world, &mut running);
                running.stage = Stage::Taking(take);
            }
            Stage::Holding(told) => running.stage = Stage::Holding(hold(world, &mut running, told)),
            Stage::Ready if matches!(id, TaskId::Lease(_)) => {
                running.stage = Stage::Holding(hold(world, &mut running, None));
            }
            Stage::Ready => begin(world, id, &mut running),
        }
    }
    world.running.insert(id.clone(), running);
}

/// One look at the lease; it is told when it is new.
fn hold(world: &mut World, running: &mut Running, told: Option<Lease>) -> Option<Lease> {
    if running.stopping {
        running.done = true;
        running.outbox.push_back(Vec::new());
        return told;
    }
    // As often as a minute is among what turns take, roughly.
    if told.is_some() && !world.fate.chance(50) {
        return told;
    }
    let now = Moment {
        told: world.now(),
        passed: std::time::Duration::from_millis(world.now().0),
    };
    match lease::look(&world.place, &world.me, &mut world.watch, now) {
        Ok(seen) if told.as_ref() == Some(&seen) => told,
        Ok(seen) => {
            // One daemon, however often it is killed, is never taken for another.
            if !seen.ours {
                world.fate.violated(format!("the lease is {seen:?}"));
            }
            running
                .outbox
                .push_back(vec![Event::LeaseSeen(seen.clone())]);
            Some(seen)
        }
        Err(failure) => {
            let event = running.task.failed(failure.class, failure.message);
            running.outbox.push_back(vec![event]);
            running.done = true;
            told
        }
    }
}

fn begin(world: &mut World, id: &TaskId, running: &mut Running) {
    match running.task.clone() {
        Task::Receive { node, start, .. } => {
            running.stage = Stage::Receiving(Box::new(Receiver::new(node, start)));
            return;
        }
        Task::Take { node, backup, .. } => {
            running.stage = Stage::Taking(Box::new(Take::new(world, node, backup)));
            return;
        }
        _ => {}
    }
    let mut events = Vec::new();
    let outcome = effect(world, running, &mut |event| events.push(steady(event)));
    if let Err(failure) = outcome {
        world.fate.say(|| format!("  {id} fails: {failure}"));
        events.push(Event::TaskFailed {
            task: id.clone(),
            class: failure.class,
            message: failure.message,
        });
    }
    running.outbox.push_back(events);
    running.done = true;
}

#[allow(clippy::too_many_lines, reason = "a table: one arm a task")]
fn effect(world: &mut World, running: &mut Running, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
    let place = &world.place;
    match (&running.task.clone(), &running.facts) {
        (Task::Store { file, entry, .. }, Facts::Store(metadata, damaged)) => {
            let metadata = metadata.clone();
            let judge = || look(world, &file.key(SIZE));
            let upload = Upload {
                place,
                spool: &world.spool,
                file,
                entry: *entry,
                size: SIZE,
                metadata,
                standing: match damaged {
                    true => Standing::Damaged(&judge),
                    false => Standing::Unknown,
                },
            };
            upload.run(emit)
        }
        (
            Task::DeleteBackup {
                backup,
                object,
                unless_held_at,
                ..
            },
            _,
        ) => {
            let doomed = Doomed {
                name: backup,
                object: object.as_deref(),
                unless_held_at: *unless_held_at,
            };
            delete::backup(place, doomed, SIZE, emit)
        }
        (
            Task::DeleteWal {
                ranges,
                retire,
                forget,
                ..
            },
            _,
        ) => {
            let wal = delete::Wal {
                ranges,
                retire,
                forget,
            };
            delete::wal(place, wal, SIZE, emit)
        }
        (Task::Reconcile { .. }, Facts::Reconcile(known)) => reconcile::run(place, known, emit),
        (Task::ReadMarks { .. }, Facts::Marks(known)) => marks::read(place, known, emit),
        (Task::Verify { what, .. }, Facts::Damaged(damaged)) => {
            let now = world.now();
            let scrub = Scrub {
                place,
                eyes: Eyes {
                    check: &|item| look(world, &item.key),
                    backup: &|name, _| Ok(plan(world, name)),
                },
                size: SIZE,
                damaged,
                now: &|| now,
            };
            scrub.run(what, emit)
        }
        (Task::Export { first, last, .. }, _) => {
            let log = Log::open_on(world.log.copy(), &mut |_| ())?;
            let sealed = chunk::seal(&[site()], &log.lines(*first, *last)?)?;
            let export = Export {
                first: *first,
                last: *last,
                object: sealed.object,
                events: sealed.events,
                content: sealed.content,
                metadata: sealed.metadata,
                identity: chunk::LAST_DIGEST,
            };
            export::run(place, &export, emit)
        }
        (Task::Probe { node, .. }, _) => probe(world, running, *node, emit),
        (Task::Fetch { means, hole, .. }, _) => fetch(world, *means, hole, emit),
        (Task::Switch { node, .. }, _) => {
            let index = usize::try_from(*node).unwrap();
            if world.cluster.nodes[index].down > 0 {
                return Err(Failure::new(Class::Network, "the server is down"));
            }
            let at = lsn(world.cluster.switch(index));
            emit(Event::Switched { node: *node, at });
            Ok(())
        }
        (task, _) => Err(Failure::new(Class::Internal, format!("no facts: {task:?}"))),
    }
}

/// As the verifier sees an object of the simulated store, which is no WAL and no archive.
fn look(world: &World, key: &str) -> Verdict {
    let key = world.place.key(key);
    match world.place.store.look(&key) {
        Err(failure) => Verdict::Unreadable(failure),
        Ok(None) => Verdict::Gone,
        Ok(Some(_)) if world.store.truth().corrupt.contains(&key) => {
            Verdict::Damaged("a bit is another".into())
        }
        Ok(Some(object)) => Verdict::Good {
            bytes: object.entry.size_bytes,
        },
    }
}

fn plan(world: &World, name: &BackupName) -> Plan {
    let main = look(world, &File::Main(name.clone()).key(SIZE));
    let parts = world.store.truth().manifests.get(name).map(|m| m.parts);
    let parts = parts.filter(|_| matches!(main, Verdict::Good { .. }));
    let part = |number| {
        let backup = name.clone();
        Item::of(File::Part { backup, number }, SIZE)
    };
    Plan {
        main,
        items: (1..=parts.unwrap_or(0)).map(part).collect(),
    }
}

/// Real time has no place in a seed.
fn steady(mut event: Event) -> Event {
    if let Event::Stored { millis, .. } | Event::Reconciled { millis, .. } = &mut event {
        *millis = 0;
    }
    event
}

/// What the server still has of the hole goes into the spool, as the real one does it.
fn fetch(world: &mut World, means: Means, hole: &Hole, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
    let Means::Server(node) = means else {
        return Err(Failure::new(Class::Internal, "no directory here"));
    };
    let node = usize::try_from(node).unwrap();
    if world.cluster.nodes[node].down > 0 || world.fate.strikes(crate::fate::Fault::TakeStep) {
        return Err(Failure::new(Class::Network, "the server hung up"));
    }
    let sought = |hole, outcome| Event::HoleSought {
        hole,
        means,
        outcome,
    };
    let absent = || Sought::Absent {
        message: "removed".into(),
    };
    let range = match hole {
        Hole::Wal(range) => *range,
        Hole::History(timeline) => {
            let content = world.cluster.history(*timeline);
            let found = world.cluster.histories.contains_key(timeline);
            if found {
                let file = File::History(*timeline);
                place(world, file, content.as_bytes(), emit)?;
            }
            let outcome = if found { Sought::Fetched } else { absent() };
            emit(sought(hole.clone(), outcome));
            return Ok(());
        }
    };
    for number in range.first..=range.last {
        let positions = number * UNITS..(number + 1) * UNITS;
        let sent = positions.map(|p| match world.cluster.send(node, range.timeline, p) {
            Sent::Byte(byte) => Some(byte),
            Sent::Wait | Sent::End(_) | Sent::Recycled | Sent::Refused => None,
        });
        let content: Option<Vec<u8>> = sent.collect();
        let outcome = match content {
            Some(content) => {
                let file = File::Wal(Segment::new(range.timeline, number));
                place(world, file, &content, emit)?;
                Sought::Fetched
            }
            None => absent(),
        };
        let one = machine::event::Range {
            first: number,
            last: number,
            ..range
        };
        emit(sought(Hole::Wal(one), outcome));
    }
    Ok(())
}

fn place(
    world: &mut World,
    file: File,
    content: &[u8],
    emit: &mut dyn FnMut(Event),
) -> Outcome<()> {
    let bytes = u64::try_from(content.len()).unwrap();
    match world.spool.place(&file.spool_name(SIZE), content)? {
        Sealed::New | Sealed::Duplicate => emit(Event::Spooled {
            file,
            entry: world.entry(),
            bytes,
            origin: Origin::Fetched,
        }),
        Sealed::Conflict { kept_as } => emit(Event::Conflicted {
            file,
            ours: format!("kept as '{kept_as}'"),
            theirs: "sealed before".into(),
        }),
    }
    Ok(())
}

fn probe(
    world: &mut World,
    running: &mut Running,
    node: u32,
    emit: &mut dyn FnMut(Event),
) -> Outcome<()> {
    let seen = world.cluster.nodes[usize::try_from(node).unwrap()].clone();
    if seen.down > 0 {
        emit(Event::ServerLost {
            node,
            class: Class::Network,
            message: "the server is down".into(),
        });
        return Ok(());
    }
    if seen.timeline > Timeline(1) {
        let told = histories(world, running, seen.timeline);
        // As the real one: what was learned before a failure is not told.
        match told {
            Ok(events) => events.into_iter().for_each(&mut *emit),
            Err(failure) => {
                emit(Event::ServerLost {
                    node,
                    class: failure.class,
                    message: failure.message,
                });
                return Ok(());
            }
        }
    }
    emit(Event::ServerSeen(Server {
        node,
        system_id: 7,
        version: 180_000,
        segment_size: SIZE,
        timeline: seen.timeline,
        lsn: lsn(seen.at),
        in_recovery: seen.in_recovery,
        sync_state: None,
        slot: seen.slot.map(|position| Slot {
            name: "pghoard".into(),
            restart_lsn: Some(lsn(position)),
            ..Slot::default()
        }),
        clock_skew_ms: None,
    }));
    Ok(())
}

/// What the histories on the way to a timeline say; those that nobody holds are spooled.
fn histories(world: &mut World, running: &Running, to: Timeline) -> Outcome<Vec<Event>> {
    let Facts::Held(held) = &running.facts else {
        return Ok(Vec::new());
    };
    let ancestors = world.cluster.histories[&to].clone();
    let older = ancestors.iter().map(|b| b.timeline);
    let older = older.filter(|t| *t > Timeline(1) && !held.contains(t));
    let mut events = Vec::new();
    for timeline in [to].into_iter().chain(older) {
        events.push(Event::TimelineLearned {
            timeline,
            ancestors: world.cluster.histories[&timeline].clone(),
        });
        if held.contains(&timeline) {
            continue;
        }
        let content = world.cluster.history(timeline);
        let name = timeline.history_name();
        match world.spool.place(&name, content.as_bytes())? {
            Sealed::New | Sealed::Duplicate => events.push(Event::Spooled {
                file: File::History(timeline),
                entry: world.entry(),
                bytes: u64::try_from(content.len()).unwrap(),
                origin: Origin::Stream,
            }),
            Sealed::Conflict { kept_as } => world
                .fate
                .violated(format!("I6: a history file conflicts: '{kept_as}'")),
        }
    }
    Ok(events)
}
