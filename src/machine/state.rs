//! The fold: every projection of the log, one set a site.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::event::{Envelope, Event, Millis};
use crate::file::Site;
use crate::projection::attempts::Attempts;
use crate::projection::backups::Backups;
use crate::projection::holes::Holes;
use crate::projection::ledger::Ledger;
use crate::projection::marks::Marks;
use crate::projection::servers::Servers;
use crate::projection::tally::Tally;
use crate::projection::timelines::Timelines;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub seq: u64,
    pub at: Millis,
    pub run: u64,
    pub started_at: Millis,
    /// The last run said goodbye.
    pub stopped: bool,
    pub sites: BTreeMap<Site, SiteState>,
    /// Why the log before this one was set aside.
    pub rebuilt: Option<(Millis, String)>,
    /// When a person last took note of each alert.
    pub acknowledged: BTreeMap<String, Millis>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteState {
    pub servers: Servers,
    pub timelines: Timelines,
    pub ledger: Ledger,
    pub backups: Backups,
    pub marks: Marks,
    pub holes: Holes,
    pub attempts: Attempts,
    pub tally: Tally,
}

impl State {
    pub fn apply(&mut self, envelope: &Envelope) {
        let Envelope {
            seq,
            at,
            run,
            site,
            event,
        } = envelope;
        self.seq = *seq;
        self.at = *at;
        match event {
            Event::Started { .. } => {
                self.run = *run;
                self.started_at = *at;
                self.stopped = false;
                // What ran before the start runs no more, in every site.
                for (site, state) in &mut self.sites {
                    state.apply(site, event, *at, *run);
                }
            }
            Event::Stopped { .. } => self.stopped = true,
            Event::LogRebuilt { reason } => self.rebuilt = Some((*at, reason.clone())),
            Event::AlertAcknowledged { alert } => {
                self.acknowledged.insert(alert.clone(), *at);
            }
            _ => {}
        }
        if let Some(site) = site {
            self.sites
                .entry(site.clone())
                .or_default()
                .apply(site, event, *at, *run);
        }
    }
}

impl SiteState {
    /// Order matters: timelines before the ledger that asks them.
    fn apply(&mut self, site: &Site, event: &Event, at: Millis, run: u64) {
        self.timelines.apply(event);
        self.servers.apply(event, at);
        self.ledger.apply(event, at, &self.timelines);
        self.backups.apply(event, at, run);
        self.marks.apply(event, at);
        self.holes.apply(event, at);
        self.attempts.apply(site, event, at);
        self.tally.apply(event, at);
    }
}
