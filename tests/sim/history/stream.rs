//! The stream of a history: what a receiver would bring, without bytes.

use machine::event::{Event, Origin, Sought};
use machine::projection::marks::Hole;
use machine::task::{Means, Start};
use machine::{Class, File, Segment, Site, Task, TaskId};
use pghoard::{Failure, Outcome};

use super::shelf::SIZE;
use super::{Life, site};

impl Life {
    /// Whether another cluster answers. A site that has WAL knows its own, even without its log,
    /// and asks the other for nothing (I14).
    pub fn is_foreign(&self) -> bool {
        let foreign = self.cluster.system_id != 7;
        let knows = self.ours().servers.system_id == Some(7);
        if foreign && !knows && self.shelf.truth().has_wal() {
            self.fate
                .violated("another cluster was asked for WAL or a basebackup");
        }
        foreign
    }

    /// What of a hole the server still has.
    pub fn fetch(&mut self, means: Means, hole: &Hole, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
        if self.is_foreign() {
            return Err(Failure::new(Class::Conflict, "another cluster"));
        }
        let files: Vec<File> = match hole {
            Hole::History(timeline) => vec![File::History(*timeline)],
            Hole::Wal(range) => (range.first..=range.last)
                .map(|number| File::Wal(Segment::new(range.timeline, number)))
                .collect(),
        };
        for file in files {
            if !self.cluster.has(&file) {
                let message = "it was removed".to_owned();
                emit(Event::HoleSought {
                    hole: hole.clone(),
                    means,
                    outcome: Sought::Absent { message },
                });
                return Ok(());
            }
            self.spool(file, Origin::Fetched);
        }
        emit(Event::HoleSought {
            hole: hole.clone(),
            means,
            outcome: Sought::Fetched,
        });
        Ok(())
    }

    pub fn connect(&mut self, name: Site, node: u32, start: Start) {
        let from = match start {
            Start::At(segment) => segment,
            Start::Anchor | Start::Checkpoint => {
                let frontier = self.ours().ledger.frontier;
                let slot = frontier.map_or(self.cluster.at, |f| f.number + 1);
                let slot = slot.clamp(self.cluster.floor, self.cluster.at);
                self.cluster.segment(slot)
            }
        };
        let own = self.cluster.segment(from.number) == from;
        if from.number < self.cluster.floor || !own || from.number > self.cluster.at {
            let class = if own {
                Class::NotFound
            } else {
                Class::Internal
            };
            let class = if from.number > self.cluster.at {
                Class::Internal
            } else {
                class
            };
            self.next = Some(from);
            self.end(class);
            return;
        }
        let task = Task::Receive {
            site: name,
            node,
            start,
        };
        self.busy.insert(task.id(), task);
        self.tell(Event::StreamStarted {
            node,
            from,
            slot: Some("pghoard".into()),
            anchored: start.is_anchored(),
        });
        self.next = Some(from);
    }

    pub fn end(&mut self, class: Class) {
        self.busy.remove(&TaskId::Receive(site()));
        let at = self.next.take().map_or(0, |s| s.start(SIZE).0);
        self.tell(Event::StreamEnded {
            node: 0,
            at: machine::Lsn(at),
            class,
            message: "ended".into(),
        });
    }

    /// The stream brings what the server has; whether anything came.
    pub fn pump(&mut self) -> bool {
        let Some(next) = self
            .next
            .filter(|_| self.busy.contains_key(&TaskId::Receive(site())))
        else {
            return false;
        };
        // After a failover it may stand on a timeline that was left.
        if self.cluster.segment(next.number) != next || self.is_foreign() {
            self.end(Class::Network);
            return true;
        }
        if next.number >= self.cluster.at {
            return false;
        }
        self.spool(File::Wal(next), Origin::Stream);
        self.next = Some(self.cluster.segment(next.number + 1));
        if self.next.map(|n| n.timeline) != Some(next.timeline) {
            self.end(Class::Interrupted);
        }
        true
    }
}
