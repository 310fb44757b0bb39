//! The words of `pghoard_postgres_command_go`, PGHoard's second program of this kind: those of
//! Go's `flag` package, where `-site main`, `--site main` and `-site=main` are the same.
//!
//! Everything else is `pghoard_postgres_command`, codes and all. Different on purpose: `-mode
//! archive` works (PGHoard's ends with 5), a wrong command line is no end of the archive, and
//! `-retry-interval` counts parts of a second.

use std::ffi::OsString;

use super::super::{VERSION, say};

/// Those that no value follows.
const BARE: &[&str] = &["version", "help", "h", "remote", "tls"];

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let args = translated(args);
    if args.iter().skip(1).any(|arg| arg == "--version") {
        say(&format!("pghoard_postgres_command_go {VERSION}"));
        return super::DONE;
    }
    super::run(args)
}

/// Each word with two hyphens and its value behind an equals sign.
fn translated(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut words: Vec<OsString> = args.next().into_iter().collect();
    while let Some(arg) = args.next() {
        let name = arg.to_str().and_then(|text| {
            let name = text.strip_prefix("--").or_else(|| text.strip_prefix('-'));
            name.filter(|name| !name.is_empty())
        });
        let Some(name) = name else {
            words.push(arg);
            continue;
        };
        let mut word = OsString::from(format!("--{name}"));
        if !name.contains('=') && !BARE.contains(&name) {
            if let Some(value) = args.next() {
                word.push("=");
                word.push(value);
            }
        } else if name == "h" {
            word = OsString::from("--help");
        }
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(line: &str) -> i32 {
        run(line.split(' ').map(OsString::from))
    }

    #[test]
    fn gos_words_are_ours() {
        for (line, expect) in [
            (
                "go -site s --xlog x -mode=restore",
                "go --site=s --xlog=x --mode=restore",
            ),
            ("go -version", "go --version"),
            ("go -h -help", "go --help --help"),
            (
                "go -output -x -remote -port 1",
                "go --output=-x --remote --port=1",
            ),
            (
                "go -retry-interval 0.5 word",
                "go --retry-interval=0.5 word",
            ),
            ("go -site", "go --site"),
            ("go - --", "go - --"),
        ] {
            let words = translated(line.split(' ').map(OsString::from));
            let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
            assert_eq!(words.join(" "), expect);
        }
    }

    /// PGHoard ends with 5 or Go's 2, which end a recovery, and does not archive.
    #[test]
    fn differs_the_go_command_archives_and_its_usage_is_no_end_of_archive() {
        for (line, expect) in [
            ("go -version", 0),
            ("go --version", 0),
            ("go -h", 0),
            ("go -site s -xlog x", 255),
            ("go -site s -xlog x -mode dance", 255),
            ("go -site s -mode restore", 255),
            ("go -unknown x -site s -xlog x -mode restore", 255),
            ("go -site s -xlog x.00000028.backup -mode archive", 0),
            ("go -site s -mode archive", 2),
            (
                "go -host 127.0.0.1 -port 1 -site s -xlog x -mode archive",
                2,
            ),
            (
                "go -port 1 -retry-interval 0 -site s -xlog x -mode restore",
                255,
            ),
        ] {
            assert_eq!(code(line), expect, "{line}");
        }
    }
}
