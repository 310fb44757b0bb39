//! The simulated basebackup: parts and a main object, or one object that waits for its WAL.

use machine::event::{Finished, How, Origin, WalIn};
use machine::{BackupName, Class, Event, File, Segment, Timeline};
use pghoard::spool::Sealed;
use pghoard::store::{Body, Metadata, Put, Store};
use pghoard::{Failure, Outcome};

use crate::server::{SIZE, UNITS, lsn};
use crate::store::{Manifest, key};
use crate::world::{Running, World};

/// A basebackup on its way: parts straight to the store, the main object to the spool.
pub struct Take {
    node: usize,
    backup: BackupName,
    timeline: Timeline,
    start: u64,
    started_at: machine::Millis,
    parts: u32,
    put: u32,
    falls: u64,
    /// One object that waits for its WAL.
    waits: bool,
}

impl Take {
    pub fn new(world: &mut World, node: u32, backup: BackupName) -> Take {
        let node = usize::try_from(node).unwrap();
        let at = world.cluster.checkpoint(node);
        let timeline = world.cluster.nodes[node].timeline;
        let mut truth = world.store.truth();
        let start = Segment::new(timeline, at / UNITS);
        truth.live.insert(backup.clone(), start);
        Take {
            node,
            backup,
            timeline,
            start: at,
            started_at: world.now(),
            parts: match u32::try_from(world.fate.between(1, 4)).unwrap() {
                _ if world.one_object => 0,
                parts => parts,
            },
            put: 0,
            waits: false,
            falls: world.cluster.nodes[node].falls,
        }
    }

    pub fn act(&mut self, world: &mut World, running: &mut Running) {
        let server = &world.cluster.nodes[self.node];
        let stepped = if running.stopping {
            Err(Failure::new(Class::Interrupted, "stopped"))
        } else if self.waits {
            self.store(world, running)
        } else if server.falls != self.falls || world.fate.strikes(crate::fate::Fault::TakeStep) {
            Err(Failure::new(Class::Network, "the server hung up"))
        } else if server.timeline != self.timeline {
            Err(Failure::new(Class::Internal, "promoted meanwhile"))
        } else if self.put < self.parts {
            self.part(world, running)
        } else {
            self.finish(world, running)
        };
        let Err(failure) = stepped else { return };
        running.outbox.push_back(vec![Event::BackupFailed {
            backup: self.backup.clone(),
            class: failure.class,
            message: failure.message,
        }]);
        running.done = true;
    }

    fn part(&mut self, world: &mut World, running: &mut Running) -> Outcome<()> {
        let file = File::Part {
            backup: self.backup.clone(),
            number: self.put + 1,
        };
        let key = key(&file);
        let body = Body::Bytes(key.as_bytes());
        world.store.put(&key, body, &Metadata::new(), Put::Create)?;
        self.put += 1;
        running.outbox.push_back(vec![stored(file)]);
        Ok(())
    }

    /// The object, once nothing else is missing.
    fn store(&mut self, world: &mut World, running: &mut Running) -> Outcome<()> {
        let ready = world.published.ready.as_ref();
        let Some((_, metadata)) = ready.filter(|(name, _)| *name == self.backup) else {
            return Ok(());
        };
        let file = File::Main(self.backup.clone());
        let key = key(&file);
        let body = Body::Bytes(key.as_bytes());
        world.store.put(&key, body, metadata, Put::Create)?;
        running.outbox.push_back(vec![stored(file)]);
        running.done = true;
        Ok(())
    }

    fn finish(&mut self, world: &mut World, running: &mut Running) -> Outcome<()> {
        let at = world.cluster.finish_backup(self.node);
        if at <= self.start {
            return Err(Failure::new(Class::Internal, "no checkpoint yet"));
        }
        let end = Segment::new(self.timeline, (at - 1) / UNITS);
        let start = Segment::new(self.timeline, self.start / UNITS);
        let manifest = Manifest {
            parts: self.parts,
            start,
            end,
        };
        let main = File::Main(self.backup.clone());
        if !world.one_object {
            let content = self.backup.0.as_bytes();
            match world.spool.place(&main.spool_name(SIZE), content)? {
                Sealed::New => {}
                other => world
                    .fate
                    .violated(format!("I6: {main:?} twice: {other:?}")),
            }
        }
        let mut truth = world.store.truth();
        truth.manifests.insert(self.backup.clone(), manifest);
        drop(truth);
        let finished = Finished {
            backup: self.backup.clone(),
            start,
            end,
            start_lsn: lsn(self.start),
            end_lsn: lsn(at),
            started_at: self.started_at,
            ended_at: world.now(),
            parts: self.parts,
            bytes_in: 1,
            bytes_out: 1,
            from_standby: world.cluster.nodes[self.node].in_recovery,
            // Under the name that the other form has: here nobody looks at keys but to compare.
            object: world.one_object.then(|| base(&main)),
            wal: WalIn::Archive,
        };
        if world.one_object {
            running
                .outbox
                .push_back(vec![Event::BackupFinished(finished)]);
            self.waits = true;
            return Ok(());
        }
        running.outbox.push_back(vec![
            Event::Spooled {
                file: main,
                entry: world.entry(),
                bytes: 1,
                origin: Origin::Backup,
            },
            Event::BackupFinished(finished),
        ]);
        running.done = true;
        Ok(())
    }
}

fn stored(file: File) -> Event {
    Event::Stored {
        file,
        entry: None,
        bytes_in: 1,
        bytes_out: 1,
        digest: String::new(),
        millis: 0,
        how: How::Written,
    }
}

fn base(file: &File) -> String {
    let key = key(file);
    key.rsplit('/').next().unwrap().into()
}
