//! The simulated receiver: streams through the real spool and reports as the real one does.
//! Every acknowledgement it sends is checked.

use machine::event::Origin;
use machine::policy::Ack;
use machine::task::Start;
use machine::{Class, Event, File, Segment, TaskId, Timeline};
use pghoard::spool::{Partial, Sealed};
use pghoard::{Failure, Outcome};

use crate::server::{SIZE, Sent, UNITS, lsn, units};
use crate::store::key;
use crate::world::{Running, World};

pub struct Receiver {
    node: usize,
    start: Start,
    stream: Option<Stream>,
}

struct Stream {
    segment: Segment,
    partial: Option<Partial>,
    /// Units received, and of them durable.
    at: u64,
    synced: u64,
    told: u64,
    falls: u64,
}

impl Stream {
    fn new(segment: Segment, falls: u64) -> Stream {
        let at = segment.number * UNITS;
        Stream {
            segment,
            partial: None,
            at,
            synced: at,
            told: at,
            falls,
        }
    }
}

impl Receiver {
    pub fn new(node: u32, start: Start) -> Receiver {
        Receiver {
            node: usize::try_from(node).unwrap(),
            start,
            stream: None,
        }
    }

    /// One step; an error ends the stream.
    pub fn act(&mut self, world: &mut World, id: &TaskId, running: &mut Running) {
        let stepped = if running.stopping {
            Err(Failure::new(Class::Interrupted, "stopped"))
        } else if self.cut_off(world) {
            Err(Failure::new(Class::Network, "the server hung up"))
        } else if self.stream.is_none() {
            self.connect(world, running)
        } else {
            match world.fate.below(10) {
                0..=5 => self.receive(world, running),
                6 => self.sync(),
                _ => self.sync().map(|()| self.acknowledge(world)),
            }
        };
        let Err(failure) = stepped else { return };
        world.fate.say(|| format!("  {id} ends: {failure}"));
        let at = self.stream.as_ref().map_or(0, |stream| stream.at);
        running.outbox.push_back(vec![Event::StreamEnded {
            node: u32::try_from(self.node).unwrap(),
            at: lsn(at),
            class: failure.class,
            message: failure.message,
        }]);
        running.done = true;
    }

    fn cut_off(&self, world: &World) -> bool {
        let node = &world.cluster.nodes[self.node];
        let other = self.stream.as_ref().is_some_and(|s| s.falls != node.falls);
        node.down > 0 || other
    }

    fn connect(&mut self, world: &mut World, running: &mut Running) -> Outcome<()> {
        let back = world.fate.below(3);
        let node = &mut world.cluster.nodes[self.node];
        let redo = (node.at / UNITS).saturating_sub(back).max(node.floor);
        let redo = (redo * UNITS).min(node.at);
        if world.slot && node.slot.is_none() {
            node.slot = Some(redo);
        }
        let (own, slot, at, falls) = (node.timeline, node.slot, node.at, node.falls);
        let segment = match self.start {
            Start::At(segment) => segment,
            Start::Anchor | Start::Checkpoint => {
                let own_choice = match self.start {
                    Start::Checkpoint => redo,
                    Start::At(_) | Start::Anchor => at,
                };
                let position = slot.unwrap_or(own_choice);
                Segment::new(world.cluster.owner(own, position), position / UNITS)
            }
        };
        let begin = segment.number * UNITS;
        match world.cluster.send(self.node, segment.timeline, begin) {
            Sent::Recycled => {
                return Err(Failure::new(Class::NotFound, "the segment was recycled"));
            }
            Sent::Refused => {
                return Err(Failure::new(Class::Internal, "the start is refused"));
            }
            // A stream that is at its timeline's end at once never starts.
            Sent::End(_) => {}
            Sent::Byte(_) | Sent::Wait => {
                running.outbox.push_back(vec![Event::StreamStarted {
                    node: u32::try_from(self.node).unwrap(),
                    from: segment,
                    slot: world.slot.then(|| "pghoard".into()),
                    anchored: self.start.is_anchored(),
                }]);
                close_older(world, running, segment.timeline)?;
            }
        }
        self.stream = Some(Stream::new(segment, falls));
        Ok(())
    }

    fn receive(&mut self, world: &mut World, running: &mut Running) -> Outcome<()> {
        for _ in 0..world.fate.between(1, 2 * UNITS) {
            let Some(stream) = &mut self.stream else {
                break;
            };
            let timeline = stream.segment.timeline;
            match world.cluster.send(self.node, timeline, stream.at) {
                Sent::Byte(byte) => {
                    let name = stream.segment.name(SIZE);
                    if stream.partial.is_none() {
                        stream.partial = Some(world.spool.partial(&name)?);
                    }
                    let partial = stream.partial.as_mut().unwrap();
                    partial.write(stream.at % UNITS, &[byte])?;
                    stream.at += 1;
                    if stream.at % UNITS == 0 {
                        seal(world, running, stream)?;
                    }
                }
                Sent::Wait => break,
                Sent::End(child) => return end_of_timeline(world, running, stream, child),
                Sent::Recycled => {
                    return Err(Failure::new(Class::NotFound, "the segment was recycled"));
                }
                Sent::Refused => return Err(Failure::new(Class::Internal, "refused")),
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Outcome<()> {
        if let Some(stream) = &mut self.stream {
            if let Some(partial) = &mut stream.partial {
                partial.sync()?;
            }
            stream.synced = stream.at;
        }
        Ok(())
    }

    fn acknowledge(&mut self, world: &mut World) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let timeline = stream.segment.timeline;
        let stored = world.published.acknowledged.get(&timeline);
        let stored = stored.map_or(0, |lsn| units(*lsn));
        let position = match world.ack {
            Ack::Stored => stored,
            Ack::Spooled => stream.synced,
        };
        if position <= stream.told {
            return;
        }
        world.fate.say(|| format!("  ack {timeline} {position}"));
        for number in stream.told / UNITS..=position / UNITS {
            let segment = world.cluster.segment_on(timeline, number);
            let needed = position.saturating_sub(number * UNITS).min(UNITS);
            let whole = needed == UNITS || world.ack == Ack::Spooled;
            if whole && !durable(world, segment, needed) {
                let name = segment.name(SIZE);
                world.fate.violated(format!(
                    "I2: unit {position} of timeline {timeline} is acknowledged, and '{name}' is \
                     not durable"
                ));
            }
        }
        stream.told = position;
        let node = &mut world.cluster.nodes[self.node];
        node.slot = node.slot.map(|slot| slot.max(position));
    }
}

/// Timelines that ended while nobody streamed left their unfinished segments behind.
fn close_older(world: &mut World, running: &mut Running, timeline: Timeline) -> Outcome<()> {
    for found in world.spool.scan()? {
        let name = found.name.strip_suffix(".partial").unwrap_or_default();
        let segment = Segment::from_name(name, SIZE).filter(|s| s.timeline < timeline);
        if let Some(segment) = segment
            && world.spool.end(name)?
        {
            running.outbox.push_back(vec![Event::Spooled {
                file: File::Partial(segment),
                entry: world.entry(),
                bytes: found.bytes,
                origin: Origin::Stream,
            }]);
        }
    }
    Ok(())
}

/// The unfinished segment is kept for itself.
fn end_of_timeline(
    world: &mut World,
    running: &mut Running,
    stream: &mut Stream,
    child: Timeline,
) -> Outcome<()> {
    if let Some(mut partial) = stream.partial.take() {
        partial.sync()?;
        drop(partial);
        if !world.spool.end(&stream.segment.name(SIZE))? {
            let reason = format!("the timeline ended, {child} follows");
            return Err(Failure::new(Class::Interrupted, reason));
        }
        running.outbox.push_back(vec![Event::Spooled {
            file: File::Partial(stream.segment),
            entry: world.entry(),
            bytes: stream.at % UNITS,
            origin: Origin::Stream,
        }]);
    }
    let reason = format!("the timeline ended, {child} follows");
    Err(Failure::new(Class::Interrupted, reason))
}

fn seal(world: &mut World, running: &mut Running, stream: &mut Stream) -> Outcome<()> {
    let file = File::Wal(stream.segment);
    let Some(partial) = stream.partial.take() else {
        return Ok(());
    };
    match partial.seal()? {
        // Whoever sealed a duplicate may have failed before it could say so.
        Sealed::New | Sealed::Duplicate => {
            let entry = world.entry();
            running.outbox.push_back(vec![Event::Spooled {
                file,
                entry,
                bytes: UNITS,
                origin: Origin::Stream,
            }]);
        }
        Sealed::Conflict { kept_as } => {
            running.outbox.push_back(vec![Event::Conflicted {
                file,
                ours: kept_as,
                theirs: "spooled".into(),
            }]);
        }
    }
    stream.segment = stream.segment.next();
    stream.synced = stream.at;
    Ok(())
}

/// Stored at some time (what is gone since is judged where it went), known to be lost, or in the
/// spool in a way that a power cut leaves.
fn durable(world: &World, segment: Segment, needed: u64) -> bool {
    let truth = world.store.truth();
    if truth.ever.contains(&segment) || truth.lost.contains(&key(&File::Wal(segment))) {
        return true;
    }
    let lost = world.published.lost.iter().any(|range| {
        range.timeline == segment.timeline && (range.first..=range.last).contains(&segment.number)
    });
    let spooled = |name: &str| {
        let content = world.disk.durable(name).unwrap_or_default();
        let content = content.get(..usize::try_from(needed).unwrap());
        content.is_some_and(|content| world.cluster.wrote(segment, content))
    };
    let name = segment.name(SIZE);
    lost || (world.ack == Ack::Spooled
        && (needed == 0 || spooled(&name) || spooled(&format!("{name}.partial"))))
}
