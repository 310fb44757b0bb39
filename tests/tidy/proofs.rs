//! `tests/README.md`: what differs from PGHoard has its test, and every test it names exists.

use std::collections::BTreeSet;

use crate::tables::rows_of;
use crate::{none, read, texts};

const TESTS: &str = "tests/README.md";
const DIFFERENCES: &str = "## Differences and their tests";
const COUNTERPARTS: &str = "## PGHoard's own tests and their counterparts";

/// README's lines on differences, in one line each.
fn differences() -> Vec<String> {
    let readme = read("README.md").content;
    let part = readme.split("\n## Differences from PGHoard\n").nth(1);
    let part = part.expect("the heading").split("\n## ").next();
    let lines = part.expect("a text").split("\n- ").skip(1);
    let flat = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    lines.map(flat).collect()
}

#[test]
fn every_difference_has_its_test() {
    let differences = differences();
    let rows = &rows_of(TESTS, DIFFERENCES)[1..];
    let mut found = Vec::new();
    for line in &differences {
        let count = rows.iter().filter(|row| line.starts_with(&row[0])).count();
        if count != 1 {
            found.push(format!("{TESTS}:1: {count} rows begin '{line}'"));
        }
    }
    for row in rows {
        if !differences.iter().any(|line| line.starts_with(&row[0])) {
            found.push(format!(
                "{TESTS}:1: '{}' is no difference of README.md",
                row[0]
            ));
        }
    }
    none(found);
}

#[test]
fn every_named_test_exists() {
    let mut known = BTreeSet::new();
    for text in texts().iter().filter(|text| text.is_rust()) {
        let mut marked = false;
        for (_, line) in text.lines() {
            let line = line.trim_start();
            marked |= line == "#[test]";
            if let Some(rest) = line.strip_prefix("fn ").filter(|_| marked) {
                known.extend(rest.split(['(', '<']).next().map(str::to_owned));
                marked = false;
            }
        }
    }
    let mut found = Vec::new();
    for heading in [DIFFERENCES, COUNTERPARTS] {
        let rows = rows_of(TESTS, heading);
        assert!(rows.len() > 20, "{heading}: {} rows", rows.len());
        for row in &rows[1..] {
            let names: Vec<&str> = row[1].split('`').skip(1).step_by(2).collect();
            if names.is_empty() && !row[1].starts_with("none") {
                found.push(format!(
                    "{TESTS}:1: '{}' has neither test nor reason",
                    row[0]
                ));
            }
            let absent = names.iter().filter(|name| {
                !known.contains(**name)
                    && name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())
            });
            found.extend(absent.map(|name| format!("{TESTS}:1: there is no test '{name}'")));
        }
    }
    none(found);
}
