//! What is known against our own clock. Folded over all sites: there is one clock.

use serde::{Deserialize, Serialize};

use crate::event::{Event, Millis};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Clock {
    /// Jumps that no server has agreed with since.
    pub jumped: Option<Jump>,
    /// When a person last said that the clock is right.
    pub vouched_at: Option<Millis>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jump {
    pub since: Millis,
    /// Forward and back are added up: our time follows the wall clock forward only, so that a
    /// correction does not undo a jump.
    pub total_ms: u64,
}

/// A server whose clock is so near agrees with ours.
pub const AGREES_MS: u64 = 5 * 60_000;
/// The alert whose acknowledgement vouches for the clock.
pub const ALERT: &str = "clock_doubtful";

impl Clock {
    pub fn apply(&mut self, event: &Event, at: Millis) {
        match event {
            // Also across a restart: only a server or a person ends a doubt.
            Event::ClockJumped { by_ms } => {
                let since = self.jumped.map_or(at, |jump| jump.since);
                let before = self.jumped.map_or(0, |jump| jump.total_ms);
                let total_ms = before.saturating_add(by_ms.unsigned_abs());
                self.jumped = Some(Jump { since, total_ms });
            }
            Event::ServerSeen(server) => {
                let skew = server.clock_skew_ms;
                if skew.is_some_and(|ms| ms.unsigned_abs() <= AGREES_MS) {
                    self.jumped = None;
                }
            }
            Event::AlertAcknowledged { alert } if alert == ALERT => {
                self.jumped = None;
                self.vouched_at = Some(at);
            }
            _ => {}
        }
    }
}
