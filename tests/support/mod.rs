//! What the test binaries share: scratch folders, processes that die with their test, real
//! PostgreSQL servers and our daemon running against them.
//!
//! Used as a module (`#[path = "../support/mod.rs"] mod support;`), not as a crate: each binary
//! compiles what it needs and the rest is unused there, which is why `dead_code` is allowed.
//! Nothing in here sleeps for luck: `wait_until` is the only way to wait.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod daemon;
pub mod disk;
pub mod faults;
pub mod http;
pub mod postgres;
pub mod process;
pub mod stores;
pub mod tls;

use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs, io::Write, thread};

/// How much of the counted tests to run: `PGHOARD_TEST_SCALE`, set by `tests/run [--long]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Small,
    Long,
}

pub fn scale() -> Scale {
    match env::var("PGHOARD_TEST_SCALE").as_deref() {
        Err(_) | Ok("" | "small") => Scale::Small,
        Ok("long") => Scale::Long,
        Ok(other) => panic!("PGHOARD_TEST_SCALE is '{other}', expected small or long"),
    }
}

impl Scale {
    pub fn pick<T>(self, small: T, long: T) -> T {
        match self {
            Scale::Small => small,
            Scale::Long => long,
        }
    }
}

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

/// Says that a test cannot run here. `tests/run` prints and counts it; in CI it is a failure unless
/// `PGHOARD_TEST_SKIP` names it. The caller returns at once.
pub fn skip(name: &str, why: &str) {
    let named = env::var("PGHOARD_TEST_SKIP").unwrap_or_default();
    let allowed = named.split_whitespace().any(|word| word == name);
    assert!(
        allowed || env::var_os("CI").is_none(),
        "{name} cannot be left out in CI: {why}"
    );
    left_out(name, why);
}

/// As `skip`, for what nobody asked for: no failure anywhere.
pub fn left_out(name: &str, why: &str) {
    eprintln!("SKIPPED {name}: {why}");
    if let Some(file) = env::var_os("PGHOARD_TEST_SKIPPED") {
        let mut list = fs::File::options()
            .append(true)
            .create(true)
            .open(file)
            .unwrap();
        writeln!(list, "  {name}: {why}").unwrap();
    }
}

/// The last lines of a log, for the message of a test that failed.
pub fn tail(log: &Path) -> String {
    const LINES: usize = 60;
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    format!(
        "--- {} (last {LINES} lines)\n{}\n",
        log.display(),
        lines[from..].join("\n")
    )
}
