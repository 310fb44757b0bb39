//! What the test binaries share: scratch folders, processes that die with their test, real
//! PostgreSQL servers and our daemon running against them.
//!
//! Used as a module (`#[path = "../support/mod.rs"] mod support;`), not as a crate: each binary
//! compiles what it needs and the rest is unused there, which is why `dead_code` is allowed.
//! Nothing in here sleeps for luck: `wait_until` is the only way to wait.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part")]

pub mod daemon;
pub mod disk;
pub mod faults;
pub mod http;
pub mod postgres;
pub mod process;
pub mod skip;
pub mod stores;
pub mod tls;
pub mod wait;

use std::path::Path;
use std::{env, fs};

pub use skip::{left_out, skip};
pub use wait::{PATIENCE, wait_for, wait_until};

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
