//! Who holds the site's prefix in the store, as this run of the daemon saw it.

use serde::{Deserialize, Serialize};

use crate::event::{Event, Lease, Millis};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tenure {
    /// `None` until this run has looked: meanwhile another may have come. One that held the prefix
    /// when the run before ended is taken to hold it still.
    pub lease: Option<Lease>,
    /// Since when that holder is known.
    pub since: Option<Millis>,
}

impl Tenure {
    pub fn apply(&mut self, event: &Event, at: Millis) {
        match event {
            Event::Started { .. } if self.foreign().is_none() => *self = Tenure::default(),
            Event::LeaseSeen(lease) => {
                let same = |old: &Lease| old.holder == lease.holder && old.ours == lease.ours;
                let known = self.lease.as_ref().is_some_and(same);
                self.since = self.since.filter(|_| known).or(Some(at));
                self.lease = Some(lease.clone());
            }
            _ => {}
        }
    }

    /// The other daemon that writes to the prefix, and since when it is known.
    pub fn foreign(&self) -> Option<(&Lease, Millis)> {
        let lease = self.lease.as_ref().filter(|lease| !lease.ours)?;
        Some((lease, self.since?))
    }
}
