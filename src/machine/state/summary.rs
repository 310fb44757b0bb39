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

/// About how many events the summary of `state` has, without making it.
pub fn length(state: &State) -> u64 {
    let of_site = |site: &SiteState| {
        let told = site
            .timelines
            .ancestors
            .len()
            .saturating_add(site.marks.all.len());
        u64::try_from(told).unwrap_or(u64::MAX).saturating_add(2)
    };
    let sites = state.sites.values().map(of_site);
    sites.fold(1, u64::saturating_add)
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
    let Some((None, first @ Event::Compacted { .. })) = events.first() else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::Class;
    use crate::event::{Branch, How, Millis, Origin, Server, Why};
    use crate::file::BackupName;
    use crate::projection::marks::Mark;
    use crate::task::TaskId;
    use crate::wal::{Lsn, Segment, Timeline};

    fn site() -> Site {
        Site("main".into())
    }

    fn segment(timeline: u32, number: u64) -> Segment {
        Segment::new(Timeline(timeline), number)
    }

    /// One of many events, drawn by number: no order among them makes sense, and none must.
    #[allow(clippy::too_many_lines, reason = "a table: one sample of each kind")]
    fn drawn(draw: &mut impl FnMut(u64) -> u64) -> Event {
        let wal = segment(1 + u32::try_from(draw(3)).unwrap(), draw(12));
        let backup = BackupName(alloc::format!("b{}", draw(4)));
        let file = match draw(5) {
            0 => File::Main(backup.clone()),
            1 => File::History(wal.timeline),
            2 => File::Partial(wal),
            3 => File::Part {
                backup: backup.clone(),
                number: 1,
            },
            _ => File::Wal(wal),
        };
        let entry = draw(3);
        match draw(16) {
            0 => Event::ServerSeen(Server {
                node: 0,
                system_id: 1,
                version: 180_000,
                segment_size: SegmentSize::DEFAULT,
                timeline: wal.timeline,
                lsn: Lsn(draw(9) << 24),
                in_recovery: false,
                sync_state: None,
                slot: None,
                clock_skew_ms: None,
            }),
            1 => Event::StreamStarted {
                node: 0,
                from: wal,
                slot: None,
                anchored: draw(2) == 0,
            },
            2 => Event::TimelineLearned {
                timeline: wal.timeline,
                ancestors: vec![Branch {
                    timeline: Timeline(1),
                    switch: Lsn(draw(9) << 24),
                }],
            },
            3 => Event::Spooled {
                file,
                entry,
                bytes: 9,
                origin: Origin::Stream,
            },
            4..=6 => Event::Stored {
                file,
                entry: Some(entry),
                bytes_in: 9,
                bytes_out: 3,
                digest: String::new(),
                millis: 1,
                how: How::Written,
            },
            7 => Event::Conflicted {
                file,
                ours: String::new(),
                theirs: String::new(),
            },
            8 => Event::Missing {
                wal: vec![Range {
                    timeline: wal.timeline,
                    first: wal.number,
                    last: draw(12),
                }],
                files: vec![file],
            },
            9 => Event::BackupStarted {
                backup,
                node: 0,
                decided_at: Millis(draw(9)),
                normalized_at: None,
                reason: Why::Schedule,
            },
            10 => Event::Found {
                segment_size: SegmentSize::DEFAULT,
                wal: vec![Range {
                    timeline: wal.timeline,
                    first: wal.number,
                    last: draw(12),
                }],
                files: vec![file],
            },
            11 => Event::TaskFailed {
                task: TaskId::Store(site(), file),
                class: Class::Network,
                message: "no".into(),
            },
            12 => Event::Marked {
                key: alloc::format!("mark/{}", draw(3)),
                mark: Mark::Hold {
                    backup,
                    reason: "audit".into(),
                    by: "ada".into(),
                    until: None,
                },
            },
            13 => Event::Reconciled {
                objects: 1,
                bytes: 1,
                found: 0,
                missing: 0,
                unknown: 0,
                millis: 1,
            },
            14 => Event::BackupFailed {
                backup,
                class: Class::Timeout,
                message: "no".into(),
            },
            _ => Event::Started {
                version: String::new(),
                host: String::new(),
                previous: crate::event::Previous::Clean,
                config_digest: String::new(),
            },
        }
    }

    fn removed(upto: u64) -> Removed {
        Removed {
            upto,
            count: upto,
            digest: "ab".into(),
        }
    }

    #[test]
    fn a_summary_folds_to_any_state_after_anything() {
        let mut seed: u64 = 11;
        let mut draw = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for _ in 0..300 {
            let (mut state, mut other) = (State::default(), State::default());
            for seq in 1..=1 + draw(60) {
                let names = [None, Some(site()), Some(Site("other".into()))];
                let site = names[usize::try_from(draw(3)).unwrap()].clone();
                let envelope = Envelope {
                    seq,
                    at: Millis(seq * 7),
                    run: 1 + seq / 20,
                    site,
                    event: drawn(&mut draw),
                };
                if draw(3) > 0 {
                    state.apply(&envelope);
                }
                other.apply(&envelope);
            }
            let events = summary(&state, removed(state.seq / 2));
            assert!(faithful(&state, &events), "{state:#?}");
            assert!(length(&state) >= u64::try_from(events.len()).unwrap());
            // What is kept of the log before the summary leaves no trace.
            let mut live = state.clone();
            for (site, event) in &events {
                let envelope = Envelope {
                    seq: live.seq + 1,
                    at: state.at,
                    run: state.run,
                    site: site.clone(),
                    event: event.clone(),
                };
                live.apply(&envelope);
                other.apply(&envelope);
            }
            assert_eq!(live, other);
            assert_eq!(live.log.removed_upto, state.seq / 2);
            live.seq = state.seq;
            live.log = state.log.clone();
            assert_eq!(live, state);
        }
    }

    #[test]
    fn a_summary_that_lacks_something_is_not_faithful() {
        let mut state = State::default();
        state.apply(&Envelope {
            seq: 1,
            at: Millis(1),
            run: 1,
            site: Some(site()),
            event: Event::BackupRequested {
                reason: Why::Operator,
            },
        });
        let whole = summary(&state, removed(1));
        assert!(faithful(&state, &whole));
        assert!(!faithful(&state, &whole[..1]));
        assert!(!faithful(&state, &whole[1..]));
        assert!(!faithful(&state, &[]));
        let mut newer = state.clone();
        newer.run = 2;
        assert!(!faithful(&newer, &whole));
    }
}
