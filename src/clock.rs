//! The only place that asks for the time. The log clamps what it gets: its time never runs back.

use std::time::{SystemTime, UNIX_EPOCH};

use machine::Millis;

pub fn now() -> Millis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
