//! Who may use whom: `src/lib.rs` has the table, and the code obeys it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Text, none, read, texts};

/// Path from the top, as far as the name of the folder or file below `src/`.
fn module(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    let name = inside.split('/').next()?;
    let name = name.strip_suffix(".rs").unwrap_or(name);
    (!matches!(name, "lib" | "main" | "machine")).then_some(name)
}

/// The lines `name: names` below "Who may use whom"; what is in brackets is for people.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let lib = read("src/lib.rs").content;
    let part = lib
        .split("# Who may use whom\n")
        .nth(1)
        .expect("its heading");
    let block = part.split("```").nth(1).expect("a block below the heading");
    let rows = block.lines().filter_map(|line| {
        let (name, used) = line.trim_start_matches("//!").trim().split_once(':')?;
        let used = used.split('(').next().unwrap_or_default();
        let used = used.split_whitespace().map(str::to_owned).collect();
        Some((name.to_owned(), used))
    });
    rows.collect()
}

#[test]
fn modules_use_only_whom_they_may() {
    let table = table();
    let everybody = table.get("everybody").expect("a line for everybody");
    let mut found = Vec::new();
    for text in texts() {
        let Some(name) = module(&text.path) else {
            continue;
        };
        let Some(allowed) = table.get(name) else {
            found.push(format!(
                "{}:1: '{name}' is not in the table of src/lib.rs",
                text.path
            ));
            continue;
        };
        let may =
            |used: &String| used == name || allowed.contains(used) || everybody.contains(used);
        for (number, used) in used(&text) {
            if !may(&used) {
                found.push(format!(
                    "{}:{number}: '{name}' may not use '{used}'",
                    text.path
                ));
            }
        }
    }
    none(found);
}

/// Modules of ours that a file names, with the line, by `crate::` or by `super::` from the top.
fn used(text: &Text) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open = None;
    for (number, line) in text.product() {
        if let Some(start) = open {
            // Inside `use crate::{`, one module a line or several.
            found.extend(heads(line).map(|name| (start, name)));
            if line.contains("};") {
                open = None;
            }
        }
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + "crate::".len()..];
            match rest.strip_prefix('{') {
                Some(list) => {
                    found.extend(heads(list).map(|name| (number, name)));
                    open = (!list.contains('}')).then_some(number);
                }
                None => found.extend(heads(rest).take(1).map(|name| (number, name))),
            }
        }
    }
    found
}

/// The first name of each path in a list. Types at the root of the crate are no modules.
fn heads(list: &str) -> impl Iterator<Item = String> {
    let list = list.split(['}', ';']).next().unwrap_or_default();
    list.split(',').filter_map(|path| {
        let path = path.trim();
        let end = path.find(|c: char| c != '_' && !c.is_ascii_lowercase());
        let name = &path[..end.unwrap_or(path.len())];
        (!name.is_empty()).then(|| name.to_owned())
    })
}

/// Words in the product's code that only the files named may have.
const KEPT: &[(&str, &[&str], &str)] = &[
    (
        "serde_cbor",
        &["src/journal/encoding.rs", "src/journal/upcast.rs"],
        "the encoding",
    ),
    ("redb::", &["src/journal/log.rs"], "the log"),
    ("SystemTime::now", &["src/clock.rs"], "the clock"),
    ("Timestamp::now", &["src/clock.rs"], "the clock"),
    ("Zoned::now", &["src/clock.rs"], "the clock"),
];

#[test]
fn a_thing_with_one_place_stays_there() {
    let mut found = Vec::new();
    for text in texts() {
        for (number, line) in text.product() {
            for (word, places, what) in KEPT {
                if line.contains(word) && !places.contains(&text.path.as_str()) {
                    found.push(format!(
                        "{}:{number}: '{word}' belongs to {what}",
                        text.path
                    ));
                }
            }
            let restoring = text.path.starts_with("src/restore/");
            let words = ["journal", "machine::State", "machine::state"];
            if restoring && words.iter().any(|word| line.contains(word)) {
                found.push(format!(
                    "{}:{number}: restore needs the store alone",
                    text.path
                ));
            }
        }
    }
    none(found);
}

/// A test waits for a condition, never for luck.
#[test]
fn tests_sleep_in_one_place() {
    let mut found = Vec::new();
    for text in texts().iter().filter(|text| text.is_rust()) {
        let (waits, itself) = ("tests/support/wait.rs", "tests/tidy/uses.rs");
        if [waits, itself].contains(&text.path.as_str()) {
            continue;
        }
        let words = ["thread::sleep", "Timer::after"];
        let lucky = |line: &str| words.iter().any(|word| line.contains(word));
        let sleeps = text.tests().filter(|(_, line)| lucky(line));
        found.extend(sleeps.map(|(number, _)| {
            format!(
                "{}:{number}: tests wait with support::wait_until",
                text.path
            )
        }));
    }
    none(found);
}

#[test]
fn the_reader_of_uses_sees_every_form() {
    let check = |code: &str, expect: &str| {
        let path = "src/pg/x.rs".to_owned();
        let content = code.to_owned();
        let names: Vec<String> = used(&Text { path, content })
            .into_iter()
            .map(|u| u.1)
            .collect();
        assert_eq!(names.join(" "), expect, "{code}");
    };
    check("use crate::store;", "store");
    check("use crate::store::{Body, Put};", "store");
    check("use crate::{config, durable};", "config durable");
    check(
        "use crate::{\n    config,\n    durable,\n};\nuse std::fs;",
        "config durable",
    );
    check(
        "    crate::report::error(x, crate::clock::now());",
        "report clock",
    );
    check("use crate::{Failure, Outcome};", "");
    check("// crate::tool\nmod tests {\nuse crate::tool;", "");
}
