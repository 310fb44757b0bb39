//! A log that cannot be made shorter.

use alloc::format;

use super::List;
use crate::policy::Policy;
use crate::state::State;
use crate::task::TaskId;

const NAME: &str = "event_log_growing";
/// A store may be down so long before its part of the log is missed.
const PATIENCE_MS: u64 = 86_400_000;

pub(super) fn growing(state: &State, policy: &Policy, list: &mut List) {
    if let Some((at, reason)) = &state.log.refused {
        let what = format!("the event log was not compacted and is whole: {reason}");
        let todo = "please report this; the log grows meanwhile, give its disk room";
        list.add(NAME, *at, what, todo);
    }
    let max = policy.log_events_max.unwrap_or(u64::MAX);
    let long = state.log.held(state.seq) > max.saturating_mul(2);
    for (name, _) in policy.sites.iter().filter(|(_, site)| site.active) {
        let export = TaskId::Export(name.clone());
        let site = state.sites.get(name);
        let Some(failed) = site.and_then(|site| site.attempts.get(&export)) else {
            continue;
        };
        if long || state.at.since(failed.since) > PATIENCE_MS {
            let what = format!(
                "site '{name}': the event log cannot be exported to the store, and is not \
                 compacted before: {}",
                failed.message
            );
            let todo = "mend the store; nothing is lost, but the log grows; \
                        event_log_export: false does without";
            list.add(NAME, failed.since, what, todo);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::alerts;
    use super::*;
    use crate::class::Class;
    use crate::event::{Envelope, Event, Millis};
    use crate::file::Site;
    use crate::rule::coverage::Live;
    use crate::testing::site_policy;

    const DAY: u64 = PATIENCE_MS;

    /// Moments in days with what happened then; the alert is `since MILLISECONDS`, or nothing.
    fn check(events: &[(u64, Event)], held: u64, expect: Option<u64>) {
        let name = Site("main".into());
        let mut policy = Policy {
            log_events_max: Some(100),
            export_events: Some(10),
            ..Policy::default()
        };
        policy.sites.insert(name.clone(), site_policy());
        let mut state = State::default();
        for (at, event) in events {
            let refused = matches!(event, Event::CompactionRefused { .. });
            state.apply(&Envelope {
                seq: held,
                at: Millis(at * DAY / 2),
                run: 1,
                site: (!refused).then(|| name.clone()),
                event: event.clone(),
            });
        }
        let alerts = alerts(&state, &policy, &Live::default(), state.at);
        let since = alerts.get(NAME).map(|alert| alert.since().0);
        assert_eq!(since, expect, "{events:?} {held}");
    }

    #[test]
    fn a_log_that_cannot_go_is_told_after_a_day_or_when_it_is_twice_as_long() {
        let failed = || Event::TaskFailed {
            task: TaskId::Export(Site("main".into())),
            class: Class::Network,
            message: "no".into(),
        };
        let exported = || Event::Exported {
            first: 1,
            last: 10,
            object: "o".into(),
            events: 1,
            bytes: 1,
        };
        let refused = || Event::CompactionRefused { reason: "x".into() };
        let half = DAY / 2;
        check(&[(1, failed()), (2, failed())], 50, None);
        check(&[(1, failed()), (4, failed())], 50, Some(half));
        check(&[(1, failed()), (4, exported())], 50, None);
        check(&[(1, failed()), (2, failed())], 201, Some(half));
        check(&[(1, refused())], 50, Some(half));
    }
}
