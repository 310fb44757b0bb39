//! The log about itself: where it begins, and what of it the stores hold.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::event::{Event, Millis};

/// Of the whole log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Upkeep {
    /// Events up to this one gave way to a summary.
    pub removed_upto: u64,
    pub compacted_at: Option<Millis>,
    /// Why the log was not compacted, in this run of the daemon.
    pub refused: Option<(Millis, String)>,
}

impl Upkeep {
    pub fn apply(&mut self, event: &Event, at: Millis) {
        match event {
            Event::Compacted { upto, .. } => {
                self.removed_upto = *upto;
                self.compacted_at = Some(at);
                self.refused = None;
            }
            Event::CompactionRefused { reason } => self.refused = Some((at, reason.clone())),
            // Another version of the program may know better.
            Event::Started { .. } => self.refused = None,
            _ => {}
        }
    }

    /// Events that a log whose last one is `seq` holds.
    pub fn held(&self, seq: u64) -> u64 {
        seq.saturating_sub(self.removed_upto)
    }
}

/// Of one site: what of the log its store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exports {
    /// Every event of the site up to this one is in its store.
    pub upto: u64,
    pub at: Option<Millis>,
}

impl Exports {
    pub fn apply(&mut self, event: &Event, at: Millis) {
        if let Event::Exported { last, .. } = event {
            self.upto = self.upto.max(*last);
            self.at = Some(at);
        }
    }
}
