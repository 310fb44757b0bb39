//! Side by side: the released PGHoard and we get the same words and requests in the same
//! surroundings, and answer the same but for what README.md lists as a difference.
//!
//! A row says how the two differ and why. A difference that no row tells fails, and so does a row
//! whose difference is not there any more. What that release does not have is answered by the
//! row: it stands for the newer PGHoard whose behaviour we keep.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::hex;

mod commands;
mod http;
mod rows;

/// What one program did.
#[derive(Debug, Default)]
struct Did {
    code: Option<i32>,
    out: String,
    err: String,
    /// Below its folder, afterwards: names and contents, or digests of what is no text.
    files: BTreeMap<String, String>,
}

/// How the two may differ, and the beginning of README's line that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Differs {
    /// Exit codes, theirs and ours.
    Code(i32, i32, &'static str),
    /// What it says on standard output we say, in the same words, on standard error.
    ToError(&'static str),
    /// Other words on standard output.
    Words(&'static str),
    /// The files that are not the same.
    Files(&'static [&'static str], &'static str),
}

impl Differs {
    fn why(self) -> &'static str {
        match self {
            Differs::Code(_, _, why)
            | Differs::ToError(why)
            | Differs::Words(why)
            | Differs::Files(_, why) => why,
        }
    }
}

/// What is wrong with a row, nothing if its differences are exactly those it tells.
fn judge(theirs: &Did, ours: &Did, told: &[Differs]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut codes = (theirs.code, ours.code);
    let (mut moved, mut words, mut files) = (false, false, &[][..]);
    for differs in told {
        match *differs {
            Differs::Code(their, our, _) => {
                if codes != (Some(their), Some(our)) {
                    wrong.push(format!("codes {codes:?}, told {differs:?}"));
                }
                codes = (None, None);
            }
            Differs::ToError(_) => moved = true,
            Differs::Words(_) => words = true,
            Differs::Files(names, _) => files = names,
        }
    }
    if codes.0 != codes.1 {
        wrong.push(format!("codes {codes:?}"));
    }
    let (their, our) = match moved {
        true => (&theirs.out, &ours.err),
        false => (&theirs.out, &ours.out),
    };
    if (their == our) == words {
        wrong.push(format!("said {their:?}, {our:?}; told {words}"));
    }
    if moved && !ours.out.is_empty() {
        wrong.push(format!("we said both {:?} and {:?}", ours.err, ours.out));
    }
    let names = theirs.files.keys().chain(ours.files.keys());
    let mut found: Vec<&str> = names
        .filter(|name| theirs.files.get(*name) != ours.files.get(*name))
        .map(String::as_str)
        .collect();
    found.sort_unstable();
    found.dedup();
    if found != files {
        wrong.push(format!("files {found:?}, told {files:?}"));
    }
    wrong
}

/// README's part on differences, one line each, without line breaks.
fn listed() -> Vec<String> {
    let readme = include_str!("../../../../README.md");
    let part = readme.split("\n## Differences from PGHoard\n").nth(1);
    let part = part.unwrap().split("\n## ").next().unwrap();
    let lines = part.split("\n- ").skip(1);
    lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

/// Each reason begins one of README's lines.
#[track_caller]
fn assert_listed<'a>(reasons: impl IntoIterator<Item = &'a str>) {
    let listed = listed();
    let unlisted: Vec<&str> = reasons
        .into_iter()
        .filter(|why| !listed.iter().any(|line| line.starts_with(why)))
        .collect();
    assert!(unlisted.is_empty(), "README.md does not say {unlisted:#?}");
}

/// Text without what is another one each time: the folder, the program, progress, fresh keys; and
/// without metadata of a list, where that release shows the local store's own `_hash`.
fn plain(text: &str, folder: &Path, program: &str, version: &str) -> String {
    let shown = |line: &str| match line.trim_start() {
        line if line.starts_with("metadata: {") => "    metadata: ...\n".to_owned(),
        line if line.starts_with("Download progress: ") => String::new(),
        _ => line.to_owned(),
    };
    let text: String = text.split_inclusive('\n').map(shown).collect();
    let text = text
        .replace(&folder.display().to_string(), "DIR")
        .replace(program, "")
        .replace(version, "VERSION");
    let mut rest = text.as_str();
    let mut plain = String::new();
    while let Some((before, after)) = rest.split_once("KEY-----") {
        plain.push_str(before);
        match after.split_once("-----END") {
            Some((_, end)) => {
                plain.push_str("...");
                rest = end.split_once("KEY-----").map_or("", |(_, rest)| rest);
            }
            None => rest = after,
        }
    }
    plain + rest
}

fn files(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            if let Ok(to) = fs::read_link(&path) {
                found.insert(
                    name,
                    plain(&format!("-> {}", to.display()), folder, "\0", "\0"),
                );
            } else if path.is_dir() {
                found.insert(name + "/", String::new());
                folders.push(path);
            } else {
                let content = fs::read(&path).unwrap();
                let text = String::from_utf8(content);
                let text = text.map(|text| plain(&text, folder, "\0", "\0"));
                let digest = |e: std::string::FromUtf8Error| hex(&Sha256::digest(e.as_bytes()));
                found.insert(name, text.unwrap_or_else(digest));
            }
        }
    }
    found
}

/// The judge himself: what is not told is found, and so is what is told and not there.
#[test]
fn a_difference_is_told_or_found() {
    let did = |code, out: &str, err: &str| Did {
        code: Some(code),
        out: out.to_owned(),
        err: err.to_owned(),
        files: BTreeMap::new(),
    };
    let (moved, words) = (Differs::ToError("x"), Differs::Words("x"));
    let code = Differs::Code(1, 2, "x");
    let files = Differs::Files(&["a"], "x");
    for (theirs, ours, told, wrong) in [
        (did(0, "a", ""), did(0, "a", "b"), &[][..], 0),
        (did(0, "a", ""), did(1, "a", ""), &[], 1),
        (did(0, "a", ""), did(0, "b", ""), &[], 1),
        (did(0, "a", ""), did(0, "b", ""), &[words], 0),
        (did(0, "a", ""), did(0, "a", ""), &[words], 1),
        (did(1, "a", ""), did(2, "a", ""), &[code], 0),
        (did(1, "a", ""), did(1, "a", ""), &[code], 1),
        (did(1, "a", ""), did(1, "", "a"), &[moved], 0),
        (did(1, "a", ""), did(1, "a", ""), &[moved], 2),
        (did(1, "a", ""), did(1, "", "b"), &[moved, words], 0),
        (did(0, "", ""), did(0, "", ""), &[files], 1),
    ] {
        let found = judge(&theirs, &ours, told);
        assert_eq!(
            found.len(),
            wrong,
            "{theirs:?} {ours:?} {told:?}: {found:?}"
        );
    }
    let mut ours = did(0, "", "");
    ours.files.insert("a".to_owned(), "new".to_owned());
    assert_eq!(judge(&did(0, "", ""), &ours, &[]).len(), 1);
    assert_eq!(
        judge(&did(0, "", ""), &ours, &[files]),
        Vec::<String>::new()
    );
}
