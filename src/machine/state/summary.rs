//! The short list of events that folds to a given state, for a log that has grown too long.
//!
//! The law: whatever was folded before, folding the summary of `s` gives `s`, with the last event's
//! number and the note of where the log now begins. It holds by construction: the first event
//! carries the state of the whole and forgets all sites; then, for each site, its timelines, what
//! its store holds and its marks as ordinary events (what a later version may want to fold anew),
//! and at the end all the rest as it is. A projection added later is in "the rest" by itself. The
//! daemon checks the law before it lets go of anything, and so does the simulator.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::take;

use crate::event::{Envelope, Event, Range};
use crate::file::{File, Site};
use crate::state::{SiteState, State};
use crate::wal::SegmentSize;

/// What the summary stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The last event that goes, and how many go with it.
    pub upto: u64,
    pub count: u64,
    /// The digest of that last event: what the chain of the remaining ones begins with.
    pub digest: String,
}

/// Events that fold to `state`, whatever is folded before them.
pub fn summary(state: &State, removed: Removed) -> Vec<(Option<Site>, Event)> {
    let mut carried = state.clone();
    let sites = take(&mut carried.sites);
    let begin = Event::Compacted {
        upto: removed.upto,
        removed: removed.count,
        last_digest: removed.digest,
        carried: Box::new(carried),
    };
    let mut events = vec![(None, begin)];
    for (name, site) in sites {
        let of_site = split(site);
        events.extend(of_site.into_iter().map(|event| (Some(name.clone()), event)));
    }
    events
}

/// A site as ordinary events, and what is left as it is.
fn split(mut rest: SiteState) -> Vec<Event> {
    let mut events = Vec::new();
    for (timeline, ancestors) in take(&mut rest.timelines.ancestors) {
        events.push(Event::TimelineLearned {
            timeline,
            ancestors,
        });
    }
    let ledger = &mut rest.ledger;
    let mut wal = Vec::new();
    for (timeline, runs) in take(&mut ledger.wal) {
        wal.extend(runs.intervals().map(|run| Range {
            timeline,
            first: *run.start(),
            last: *run.end(),
        }));
    }
    let histories = take(&mut ledger.histories).into_iter().map(File::History);
    let partials = take(&mut ledger.partials).into_iter().map(File::Partial);
    let mains = take(&mut ledger.mains).into_iter().map(File::Main);
    let files: Vec<File> = histories.chain(partials).chain(mains).collect();
    if !wal.is_empty() || !files.is_empty() {
        events.push(Event::Found {
            segment_size: ledger.segment_size.unwrap_or(SegmentSize::DEFAULT),
            wal,
            files,
        });
    }
    let marks = take(&mut rest.marks.all).into_iter();
    events.extend(marks.map(|(key, mark)| Event::Marked { key, mark }));
    events.push(Event::Carried(Box::new(rest)));
    events
}

impl SiteState {
    /// The end of a site's part of a summary: what was told by events stays, the rest is as it was.
    pub(super) fn carry(&mut self, rest: &SiteState) {
        let told = core::mem::replace(self, rest.clone());
        self.timelines.ancestors = told.timelines.ancestors;
        self.ledger.wal = told.ledger.wal;
        self.ledger.histories = told.ledger.histories;
        self.ledger.partials = told.ledger.partials;
        self.ledger.mains = told.ledger.mains;
        self.marks.all = told.marks.all;
    }
}

/// The law: these events, folded after nothing or after anything, give the state they stand for.
pub fn faithful(state: &State, events: &[(Option<Site>, Event)]) -> bool {
    let Some((_, first)) = events.first() else {
        return false;
    };
    let mut wanted = state.clone();
    wanted.log.apply(first, state.at);
    let mut folded = State::default();
    for (site, event) in events {
        wanted.seq = wanted.seq.saturating_add(1);
        folded.apply(&Envelope {
            seq: wanted.seq,
            at: state.at,
            run: state.run,
            site: site.clone(),
            event: event.clone(),
        });
    }
    folded == wanted
}
