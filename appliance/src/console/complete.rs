//! What may come next on the line: commands, their words and flags, sites and basebackups.

use clap::{Command, CommandFactory};
use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};
use serde_json::Value;

use super::place::Places;
use super::word::Line;

pub struct Words(Places);

impl Words {
    pub fn new(places: &Places) -> Words {
        Words(places.clone())
    }
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let before = line.get(..at).unwrap_or(line);
        let facts = || self.0.facts().unwrap_or_default();
        Ok(candidates(before, &facts))
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}

/// Where the last word begins, and what it may become.
fn candidates(before: &str, facts: &dyn Fn() -> Value) -> (usize, Vec<String>) {
    let start = before.rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let (said, begun) = before.split_at_checked(start).unwrap_or(("", before));
    let mut command = Line::command();
    let mut last = "";
    for word in said.split_whitespace() {
        if let Some(inner) = command.find_subcommand(word) {
            command = inner.clone();
        }
        last = word;
    }
    let mut names = match last {
        "--site" | "now" => sites(&facts()),
        "--backup" => backups(&facts()),
        _ => words(&command),
    };
    names.retain(|name| name.starts_with(begun));
    // So that the next word can be typed at once.
    names.iter_mut().for_each(|name| name.push(' '));
    (start, names)
}

fn words(command: &Command) -> Vec<String> {
    let inner = command.get_subcommands().map(|c| c.get_name().to_owned());
    let flags = command.get_arguments().filter_map(|arg| arg.get_long());
    inner.chain(flags.map(|flag| format!("--{flag}"))).collect()
}

fn sites(facts: &Value) -> Vec<String> {
    let sites = facts.get("sites").and_then(Value::as_object);
    sites
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect()
}

fn backups(facts: &Value) -> Vec<String> {
    let sites = facts.get("sites").and_then(Value::as_object);
    let sites = sites.into_iter().flatten().map(|(_, site)| site);
    let lists = sites.filter_map(|site| site.get("backups").and_then(Value::as_array));
    let names = lists.flatten().filter_map(|backup| backup.get("name"));
    names.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_word_is_completed() {
        let facts = || {
            json!({ "sites": {
                "main": { "backups": [{ "name": "2026-11-22_03-00_0" }] },
                "old": {},
            } })
        };
        for (before, start, expect) in [
            ("sta", 0, &["status "][..]),
            ("re", 0, &["reboot ", "release ", "restore "]),
            ("config s", 7, &["set ", "show "]),
            (
                "restore --ta",
                8,
                &[
                    "--target-time ",
                    "--target-lsn ",
                    "--target-name ",
                    "--target-xid ",
                ],
            ),
            ("restore --site ", 15, &["main ", "old "]),
            ("backup now m", 11, &["main "]),
            ("restore --backup 2026", 17, &["2026-11-22_03-00_0 "]),
            ("xyzzy", 0, &[]),
        ] {
            let (at, found) = candidates(before, &facts);
            assert_eq!(
                (at, &found[..]),
                (
                    start,
                    &expect.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..]
                ),
                "{before}"
            );
        }
    }
}
