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
