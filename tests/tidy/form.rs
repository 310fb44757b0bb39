//! Size and form of files and folders.

use std::path::Path;

use crate::{DATA, Text, entries, none, read, texts};

const LINES_MAX: usize = 600;
const COLUMNS_MAX: usize = 100;
const FILES_MAX: usize = 12;
const FUNCTION_LINES_MAX: usize = 70;

/// Files that may be longer, each with its reason.
const LONG: &[(&str, &str)] = &[];

/// Beside the dotfiles of tools; Cargo insists on its lock, lawyers on the licence.
const TOP: &[&str] = &[
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "appliance",
    "buildroot",
    "firmware-image",
    "src",
    "tests",
];
const TOOLS: &[&str] = &[
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".deny.toml",
    ".git",
    ".gitignore",
    ".rustfmt.toml",
];

#[test]
fn the_top_level_is_what_a_visitor_expects() {
    let allowed = |name: &str| TOP.contains(&name) || TOOLS.contains(&name) || name == "target";
    let names = entries(Path::new(""));
    let strangers = names.iter().filter(|(name, _)| !allowed(name));
    none(
        strangers
            .map(|(name, _)| format!("{name}:1: not one of the names at the top"))
            .collect(),
    );
    for wanted in TOP {
        assert!(
            names.iter().any(|(name, _)| name == wanted),
            "{wanted} is missing"
        );
    }
}

#[test]
fn every_file_keeps_its_size_and_form() {
    none(texts().iter().flat_map(form).collect());
}

fn form(text: &Text) -> Vec<String> {
    let mut found = Vec::new();
    let mut find = |line: usize, what: &str| found.push(format!("{}:{line}: {what}", text.path));
    if !text.content.ends_with('\n') || text.content.ends_with("\n\n") {
        find(
            text.content.lines().count(),
            "ends without exactly one newline",
        );
    }
    if text.is_rust() && !text.content.starts_with("//! ") {
        find(1, "no module doc on the first line");
    }
    let excused = LONG.iter().any(|(path, _)| *path == text.path);
    if (text.is_rust() || text.is_script()) && text.lines().count() > LINES_MAX && !excused {
        find(LINES_MAX, "longer than 600 lines");
    }
    for (number, line) in text.lines() {
        let ascii =
            text.is_rust() || text.is_script() || has_ending(text, &[".toml", ".mk", ".sh"]);
        if ascii && !line.is_ascii() {
            find(number, "not ASCII");
        }
        if line.ends_with([' ', '\t', '\r']) {
            find(number, "blank at the end of the line");
        }
        if (text.is_rust() || text.is_script()) && line.chars().count() > COLUMNS_MAX {
            find(number, "longer than 100 columns");
        }
    }
    found
}

fn has_ending(text: &Text, endings: &[&str]) -> bool {
    endings.iter().any(|ending| text.path.ends_with(ending))
}

#[test]
fn folders_stay_small() {
    let texts = texts();
    let folder = |text: &Text| {
        text.path
            .rsplit_once('/')
            .map(|(folder, _)| folder.to_owned())
    };
    let mut folders: Vec<String> = texts.iter().filter_map(folder).collect();
    folders.sort();
    folders.dedup();
    let crowded = folders.iter().filter_map(|name| {
        // A crate's Cargo.toml has to lie where it lies.
        let inside = |text: &&Text| folder(text).as_ref() == Some(name) && text.is_rust();
        let count = texts.iter().filter(inside).count();
        (count > FILES_MAX).then(|| format!("{name}:1: {count} files, at most {FILES_MAX}"))
    });
    none(crowded.collect());
    assert!(DATA.ends_with('/'), "the folder itself is code");
}

/// The lint that counts a function's lines is on, with our number.
#[test]
fn functions_are_measured() {
    let measured = read("Cargo.toml")
        .content
        .contains("\ntoo_many_lines = \"deny\"\n");
    assert!(
        measured,
        "Cargo.toml: clippy's too_many_lines is not denied"
    );
    let threshold = format!("too-many-lines-threshold = {FUNCTION_LINES_MAX}\n");
    assert!(
        read(".clippy.toml").content.contains(&threshold),
        ".clippy.toml: {threshold}"
    );
}

#[test]
fn every_dependency_has_its_reason_on_its_line() {
    let mut found = Vec::new();
    for text in texts()
        .iter()
        .filter(|text| text.path.ends_with("Cargo.toml"))
    {
        let mut listed = false;
        for (number, line) in text.lines() {
            if line.starts_with('[') {
                listed = line.ends_with("dependencies]");
            } else if listed && line.contains(" = ") && !line.contains(" # ") {
                found.push(format!(
                    "{}:{number}: a dependency without a reason",
                    text.path
                ));
            }
        }
    }
    none(found);
}
