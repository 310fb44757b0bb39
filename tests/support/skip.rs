//! Tests that cannot run where they are: said and counted, never passed over in silence.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::{env, fs, io::Write};

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
