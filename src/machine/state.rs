//! The fold: every projection of the log, one set a site.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::event::{Envelope, Event, Millis, Origin, Previous};
use crate::file::{File, Site};
use crate::projection::attempts::Attempts;
use crate::projection::backups::Backups;
use crate::projection::clock::Clock;
use crate::projection::exposure::Exposure;
use crate::projection::holes::Holes;
use crate::projection::ledger::Ledger;
use crate::projection::marks::lease::Tenure;
use crate::projection::marks::{Mark, Marks};
use crate::projection::scrub::Scrub;
use crate::projection::servers::Servers;
use crate::projection::tally::Tally;
use crate::projection::timelines::Timelines;

pub mod pairs;
pub mod summary;
pub mod upkeep;

use upkeep::{Exports, Upkeep};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub seq: u64,
    pub at: Millis,
    pub run: u64,
    pub started_at: Millis,
    /// The last run said goodbye.
    pub stopped: bool,
    /// Runs that ended without a goodbye.
    pub crashes: u64,
    pub sites: BTreeMap<Site, SiteState>,
    /// Why the log before this one was set aside.
    pub rebuilt: Option<(Millis, String)>,
    /// A configuration that was not fit for use, until one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_refused: Option<(Millis, String)>,
    /// When a person last took note of each alert.
    pub acknowledged: BTreeMap<String, Millis>,
    pub clock: Clock,
    pub log: Upkeep,
}

/// Kept in the log as it is by compaction: what is added reads as its default where it is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SiteState {
    pub servers: Servers,
    pub timelines: Timelines,
    pub ledger: Ledger,
    pub backups: Backups,
    pub marks: Marks,
    pub scrub: Scrub,
    pub holes: Holes,
    pub attempts: Attempts,
    pub tally: Tally,
    pub exposure: Exposure,
    pub tenure: Tenure,
    pub exports: Exports,
}

impl State {
    /// Whether something was stored, or a store listed, since this start of the daemon: a proof
    /// that it can do its work. At rest the marks are listed every five minutes.
    pub fn proved(&self) -> bool {
        let since = |at: Option<Millis>| at.is_some_and(|at| at > self.started_at);
        self.sites.values().any(|site| {
            let ledger = &site.ledger;
            let all = [
                ledger.last_stored_at,
                ledger.reconciled_at,
                site.marks.read_at,
            ];
            all.into_iter().any(since)
        })
    }

    pub fn apply(&mut self, envelope: &Envelope) {
        let Envelope {
            seq,
            at,
            run,
            site,
            event,
        } = envelope;
        if let Event::Compacted { carried, .. } = event {
            *self = (**carried).clone();
        }
        self.seq = *seq;
        self.at = *at;
        self.clock.apply(event, *at);
        self.log.apply(event, *at);
        match event {
            Event::Started { previous, .. } => {
                let crashed = *previous == Previous::Crashed;
                self.crashes = self.crashes.saturating_add(crashed.into());
                self.run = *run;
                self.started_at = *at;
                self.stopped = false;
                self.config_refused = None;
                // What ran before the start runs no more, in every site.
                for (site, state) in &mut self.sites {
                    state.apply(site, event, *at, *run);
                }
            }
            Event::Stopped { .. } => self.stopped = true,
            Event::ConfigLoaded { .. } => self.config_refused = None,
            Event::ConfigRefused { message } => self.config_refused = Some((*at, message.clone())),
            Event::LogRebuilt { reason } => self.rebuilt = Some((*at, reason.clone())),
            Event::AlertAcknowledged { alert } => {
                self.acknowledged.insert(alert.clone(), *at);
            }
            _ => {}
        }
        if let Some(site) = site {
            // Nearly always there: no name is copied for nothing.
            let state = match self.sites.get_mut(site) {
                Some(state) => state,
                None => self.sites.entry(site.clone()).or_default(),
            };
            state.apply(site, event, *at, *run);
        }
    }
}

impl SiteState {
    /// Order matters: timelines before the ledger that asks them.
    fn apply(&mut self, site: &Site, event: &Event, at: Millis, run: u64) {
        if let Event::Carried(rest) = event {
            self.carry(rest);
            return;
        }
        self.timelines.apply(event);
        self.servers.apply(event, at);
        self.judge(event);
        // While something streams, that says where the cluster goes on.
        if let Event::Spooled {
            file: File::Wal(segment),
            origin: Origin::Archive,
            ..
        } = event
            && self.servers.stream.is_none()
        {
            self.ledger.follow(segment.timeline);
        }
        self.ledger.apply(event, at, &self.timelines);
        self.backups.apply(event, at, run);
        // Whether it has ended is the plan's to say, which knows what the clock is worth.
        if let Event::Marked {
            mark: Mark::Hold { backup, .. },
            ..
        } = event
            && self.ledger.mains.contains(backup)
        {
            self.backups.revive(backup);
        }
        self.marks.apply(event, at);
        self.scrub.apply(event, at);
        self.holes.apply(event, at);
        self.attempts.apply(site, event, at);
        self.tally.apply(event, at, &self.ledger);
        self.tenure.apply(event, at);
        self.exposure
            .apply(event, at, &self.ledger, &self.servers, &self.timelines);
        self.exports.apply(event, at);
    }

    /// What is marked as damaged is not held, until the mark is taken away. The ledger cannot tell
    /// by the name of a mark what it was about.
    fn judge(&mut self, event: &Event) {
        match event {
            Event::Marked {
                mark: Mark::Damaged { file, .. },
                ..
            } => self.ledger.damage(file),
            Event::Unmarked { key } => {
                if let Some(Mark::Damaged { file, .. }) = self.marks.all.get(key) {
                    self.ledger.mend(file);
                }
            }
            _ => {}
        }
    }
}
