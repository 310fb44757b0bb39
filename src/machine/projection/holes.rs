//! Holes as they were recorded: since when each stands, and which means were tried to heal it.
//!
//! Which holes there are is never read here but computed (`rule/holes.rs`); this remembers what
//! the state alone cannot tell.

use alloc::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::event::{Event, Millis, Sought};
use crate::projection::marks::Hole;
use crate::runs::Runs;
use crate::task::Means;
use crate::wal::Timeline;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Holes {
    #[serde(with = "crate::state::pairs")]
    pub open: BTreeMap<Hole, Millis>,
    /// What each means has said it does not have, however long ago.
    #[serde(with = "crate::state::pairs")]
    absent: BTreeMap<Means, Missing>,
    /// The same, since the last listing: then they are asked once more.
    #[serde(with = "crate::state::pairs")]
    asked: BTreeMap<Means, Missing>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Missing {
    wal: BTreeMap<Timeline, Runs>,
    histories: BTreeSet<Timeline>,
}

impl Missing {
    fn add(&mut self, hole: &Hole) {
        match hole {
            Hole::Wal(range) => {
                let runs = self.wal.entry(range.timeline).or_default();
                runs.insert_range(range.first, range.last);
            }
            Hole::History(timeline) => {
                self.histories.insert(*timeline);
            }
        }
    }

    fn forget(&mut self, hole: &Hole) {
        match hole {
            Hole::Wal(range) => {
                if let Some(runs) = self.wal.get_mut(&range.timeline) {
                    runs.remove_range(range.first, range.last);
                }
                self.wal.retain(|_, runs| !runs.is_empty());
            }
            Hole::History(timeline) => {
                self.histories.remove(timeline);
            }
        }
    }

    fn covers(&self, hole: &Hole) -> bool {
        match hole {
            Hole::Wal(range) => {
                let runs = self.wal.get(&range.timeline);
                runs.is_some_and(|runs| runs.covers(range.first, range.last))
            }
            Hole::History(timeline) => self.histories.contains(timeline),
        }
    }
}

impl Holes {
    pub fn apply(&mut self, event: &Event, at: Millis) {
        match event {
            // The configuration may name other servers now; and a standby may have caught up
            // since it was asked: every listing is a reason to ask again.
            Event::Started { .. } | Event::ConfigLoaded { .. } | Event::Reconciled { .. } => {
                self.asked.clear();
            }
            // A server that comes back may be another one.
            Event::ServerLost { node, .. } => drop(self.asked.remove(&Means::Server(*node))),
            Event::HoleOpened { hole } => {
                self.open.entry(hole.clone()).or_insert(at);
            }
            Event::HoleClosed { hole } => {
                self.open.remove(hole);
                // The same WAL may be lost again where a server has it now.
                for missing in self.absent.values_mut().chain(self.asked.values_mut()) {
                    missing.forget(hole);
                }
            }
            Event::HoleSought {
                hole,
                means,
                outcome: Sought::Absent { .. },
            } => {
                self.absent.entry(*means).or_default().add(hole);
                self.asked.entry(*means).or_default().add(hole);
            }
            _ => {}
        }
    }

    /// Since when the hole, or one that it is what is left of, stands.
    pub fn since(&self, hole: &Hole) -> Option<Millis> {
        let mut open = self.open.iter();
        open.find(|(recorded, _)| recorded.covers(hole))
            .map(|(_, since)| *since)
    }

    /// Whether this means said, lately or before, that it has none of it.
    pub fn absent(&self, means: Means, hole: &Hole) -> bool {
        let said = self.absent.get(&means);
        said.is_some_and(|said| said.covers(hole))
    }

    /// Whether any of them said so.
    pub fn absent_somewhere(&self, hole: &Hole) -> bool {
        self.absent.values().any(|said| said.covers(hole))
    }

    /// Whether it was asked already since the last listing.
    pub fn asked(&self, means: Means, hole: &Hole) -> bool {
        let said = self.asked.get(&means);
        said.is_some_and(|said| said.covers(hole))
    }
}
