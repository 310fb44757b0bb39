//! The only way a test waits: for a condition, with a deadline.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine with two cores; a test that meets it has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);

pub fn wait_until(what: &str, deadline: Duration, mut holds: impl FnMut() -> bool) {
    wait_for(what, deadline, || holds().then_some(()));
}

/// As `wait_until`, for a condition that brings an answer.
pub fn wait_for<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = look() {
            return answer;
        }
        assert!(
            start.elapsed() < deadline,
            "waited {} s for {what}",
            deadline.as_secs()
        );
        thread::sleep(POLL);
    }
}
