//! The log's own upkeep: stretches of it go to the stores, then its beginning may go.

use alloc::vec::Vec;

use super::{Busy, Turn};
use crate::policy::{Drain, Policy};
use crate::state::State;
use crate::state::summary::length;
use crate::task::{Command, Task, TaskId};

/// One event in so many, the newest, stays when a log is compacted: for people to look back.
const KEPT_SHARE: u64 = 10;

impl Turn<'_> {
    /// Stretch by stretch, each whole: what is exported never changes again.
    pub(super) fn export(&self, state: &State, out: &mut Vec<Command>) {
        // As with everything else, nothing is put where another daemon writes.
        let free = self.site.tenure.foreign().is_none();
        let Some(events) = self.all.export_events.filter(|_| free) else {
            return;
        };
        let after = self.site.exports.upto.max(state.log.removed_upto);
        let last = after.saturating_add(events);
        if last <= state.seq {
            let (site, first) = (self.name.clone(), after.saturating_add(1));
            self.start(out, Task::Export { site, first, last });
        }
    }
}

/// Compaction stops the loop for a moment, so it waits until nothing is going on that ends;
/// a daemon that is never at rest does it all the same before the log is twice as long. It waits
/// for every store that has not taken its part yet, and for enough to be won by it.
pub(super) fn compact(state: &State, policy: &Policy, busy: &Busy) -> Option<Command> {
    let max = policy
        .log_events_max
        .filter(|_| policy.draining == Drain::No)?;
    let held = state.log.held(state.seq);
    // These two run as long as the daemon does.
    let lasting = |id: &TaskId| matches!(id, TaskId::Receive(_) | TaskId::Lease(_));
    let quiet = busy.keys().all(lasting);
    let pressing = held > max.saturating_mul(2);
    if held <= max || state.log.refused.is_some() || !(quiet || pressing) {
        return None;
    }
    let active = policy.sites.iter().filter(|(_, site)| site.active);
    let exported = active.map(|(name, _)| {
        let site = state.sites.get(name);
        site.map_or(0, |site| site.exports.upto)
    });
    let exported = match policy.export_events {
        Some(_) => exported.min().unwrap_or(u64::MAX),
        None => u64::MAX,
    };
    let kept = (max / KEPT_SHARE).max(1);
    let upto = exported.min(state.seq.saturating_sub(kept));
    let won = upto.saturating_sub(state.log.removed_upto);
    // The summary takes room itself; with a small limit that could be all there is.
    let enough = (max / 2).max(length(state).saturating_mul(2));
    (won >= enough).then_some(Command::Compact(upto))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::decide;
    use crate::event::Millis;
    use crate::file::Site;
    use crate::testing::{lease, site_policy};

    struct Row {
        /// Last event; up to which events were removed; up to which each site has exported.
        log: (u64, u64),
        exported: &'static [u64],
        export: bool,
        busy: &'static [&'static str],
        expect: &'static str,
    }

    /// A log of at most 100 events, exported ten at a time; answers `upto N` and `site FIRST-LAST`.
    fn check(row: &Row) {
        let mut policy = Policy {
            log_events_max: Some(100),
            export_events: row.export.then_some(10),
            ..Policy::default()
        };
        let mut state = State {
            seq: row.log.0,
            ..State::default()
        };
        state.log.removed_upto = row.log.1;
        for (exported, number) in row.exported.iter().zip(0_u32..) {
            let name = Site(alloc::format!("s{number}"));
            policy.sites.insert(name.clone(), site_policy());
            state.sites.entry(name).or_default().exports.upto = *exported;
        }
        let mut busy = Busy::new();
        for word in row.busy {
            let site = Site("s0".into());
            let task = match *word {
                "receive" => Task::Receive {
                    site,
                    node: 0,
                    start: crate::task::Start::Anchor,
                },
                "lease" => Task::Lease { site },
                _ => Task::Reconcile { site },
            };
            busy.insert(task.id(), task);
        }
        let commands = decide(&state, &policy, &busy, Millis(1));
        let told = commands.iter().filter_map(|command| match command {
            Command::Compact(upto) => Some(alloc::format!("upto {upto}")),
            Command::Start(Task::Export { site, first, last }) => {
                Some(alloc::format!("{site} {first}-{last}"))
            }
            _ => None,
        });
        let told: Vec<_> = told.collect();
        let (log, exported, busy) = (row.log, row.exported, row.busy);
        assert_eq!(told.join(", "), row.expect, "{log:?} {exported:?} {busy:?}");
    }

    #[test]
    fn the_log_is_exported_and_then_compacted() {
        let row = |log, exported, busy, expect| Row {
            log,
            exported,
            export: true,
            busy,
            expect,
        };
        let alone = |log, busy, expect| Row {
            export: false,
            ..row(log, &[0, 0], busy, expect)
        };
        for row in [
            row((9, 0), &[0], &[], ""),
            row((10, 0), &[0], &[], "s0 1-10"),
            row((35, 0), &[20, 30], &[], "s0 21-30"),
            row((100, 0), &[100], &[], ""),
            // Too long, and the stores hold enough of it.
            row((101, 0), &[100], &[], "upto 91"),
            row((101, 0), &[100], &["receive"], "upto 91"),
            row((101, 0), &[100], &["receive", "lease"], "upto 91"),
            row((101, 0), &[100], &["reconcile"], ""),
            row((201, 0), &[200], &["reconcile"], "upto 191"),
            // Each store counts; little is not worth it; a new site begins where the log does.
            row((105, 0), &[100, 60], &[], "s1 61-70, upto 60"),
            row((105, 0), &[100, 40], &[], "s1 41-50"),
            row((195, 91), &[190, 0], &[], "s1 92-101"),
            row((195, 91), &[190, 190], &[], "upto 185"),
            row((191, 91), &[190, 190], &[], ""),
            alone((101, 0), &[], "upto 91"),
            alone((100, 0), &[], ""),
        ] {
            check(&row);
        }
    }

    #[test]
    fn nothing_is_exported_where_another_daemon_writes() {
        for (ours, exported) in [(true, true), (false, false)] {
            let name = Site("s0".into());
            let mut policy = Policy {
                export_events: Some(1),
                ..Policy::default()
            };
            policy.sites.insert(name.clone(), site_policy());
            let mut state = State::default();
            state.apply(&crate::Envelope {
                seq: 1,
                at: Millis(1),
                run: 1,
                site: Some(name),
                event: lease(ours),
            });
            let commands = decide(&state, &policy, &Busy::new(), Millis(1));
            let mut started = commands.iter();
            let started = started.any(|c| matches!(c, Command::Start(Task::Export { .. })));
            assert_eq!(started, exported, "{ours}");
        }
    }

    #[test]
    fn a_limit_below_the_summary_itself_comes_to_rest() {
        for max in 1..20 {
            let policy = Policy {
                log_events_max: Some(max),
                ..Policy::default()
            };
            let mut state = State::default();
            for number in 0..30 {
                state
                    .sites
                    .entry(Site(alloc::format!("{number}")))
                    .or_default();
            }
            state.seq = 200;
            let mut rounds = 0;
            while let Some(Command::Compact(upto)) = compact(&state, &policy, &Busy::new()) {
                assert!(upto < state.seq, "{max}");
                state.log.removed_upto = upto;
                state.seq += length(&state);
                rounds += 1;
            }
            assert_eq!(rounds, 1, "{max}");
        }
    }

    #[test]
    fn a_refusal_holds_until_the_next_start() {
        let policy = Policy {
            log_events_max: Some(100),
            ..Policy::default()
        };
        let mut state = State {
            seq: 150,
            ..State::default()
        };
        let asked = |state: &State| compact(state, &policy, &Busy::new()).is_some();
        assert!(asked(&state));
        let refused = crate::event::Event::CompactionRefused { reason: "x".into() };
        state.log.apply(&refused, Millis(5));
        assert!(!asked(&state));
    }
}
