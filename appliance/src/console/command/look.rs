//! Commands that only look: the page, events, logs.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use pghoard::{Failure, Outcome, clock};
use serde_json::Value;

use super::Session;
use crate::console::line::{complain, say};
use crate::console::word::Events;
use crate::console::{child, page};

pub fn status(session: &Session) {
    // A page without PID 1's part is better than none.
    let status = session.control.status().unwrap_or_else(|failure| {
        complain(&failure);
        Value::Null
    });
    say(&page::render(
        &status,
        session.places.state().as_ref(),
        clock::now(),
    ));
}

/// The tool shows all; here the last ones are wanted.
pub fn events(session: &Session, wanted: &Events) -> Outcome<()> {
    let mut words: Vec<String> = Vec::new();
    for (flag, value) in [("--site", &wanted.site), ("--kind", &wanted.kind)] {
        if let Some(value) = value {
            words.extend([flag.to_owned(), value.clone()]);
        }
    }
    if wanted.verify {
        words.push("--verify".to_owned());
        return child::run(&session.places, "events", &words).map(drop);
    }
    if wanted.follow {
        let facts = session.places.facts().unwrap_or_default();
        let known = facts.get("events").and_then(Value::as_u64).unwrap_or(0);
        let number = u64::try_from(wanted.number).unwrap_or(u64::MAX);
        words.extend(["--follow".to_owned(), "--since".to_owned()]);
        words.push(known.saturating_sub(number).to_string());
        return child::run(&session.places, "events", &words).map(drop);
    }
    let mut last = Last::new(wanted.number);
    child::watch(&session.places, "events", &words, &mut |line| {
        last.hear(line)
    })?;
    say(&last.text());
    Ok(())
}

/// The last events of many, each with the lines it goes on for.
pub struct Last {
    max: usize,
    entries: VecDeque<String>,
}

impl Last {
    pub fn new(max: usize) -> Last {
        Last {
            max,
            entries: VecDeque::new(),
        }
    }

    pub fn hear(&mut self, line: &str) {
        // What goes on is indented further than any number of an event.
        let goes_on = line
            .get(..SEQ_COLUMNS)
            .is_some_and(|head| head.trim().is_empty());
        match self.entries.back_mut().filter(|_| goes_on) {
            Some(entry) => entry.push_str(line),
            None => self.entries.push_back(line.to_owned()),
        }
        while self.entries.len() > self.max {
            self.entries.pop_front();
        }
    }

    pub fn text(&self) -> String {
        self.entries.iter().map(String::as_str).collect()
    }
}

const SEQ_COLUMNS: usize = 7;

pub fn log(session: &Session, number: usize) -> Outcome<()> {
    let folder = session.places.data.join("log");
    let mut left = number;
    let mut texts = Vec::new();
    for path in newest_first(&folder)? {
        let text = tail(&path, TAIL_BYTES_MAX)?;
        let lines: Vec<&str> = text.lines().collect();
        let skipped = lines.len().saturating_sub(left);
        let taken: Vec<&str> = lines.into_iter().skip(skipped).collect();
        left = left.saturating_sub(taken.len());
        texts.push(
            taken
                .iter()
                .map(|line| format!("{line}\n"))
                .collect::<String>(),
        );
        if left == 0 {
            break;
        }
    }
    if texts.is_empty() {
        say("there is no log yet\n");
    }
    for text in texts.iter().rev() {
        say(text);
    }
    Ok(())
}

/// Of one file, at most.
const TAIL_BYTES_MAX: u64 = 2 << 20;

/// The files of logs, as they were written to.
pub fn newest_first(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| Failure::io(&e, folder.display()))?;
    let mut files: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let found = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            Some((found.modified().ok()?, entry.path()))
        })
        .collect();
    files.sort();
    Ok(files.into_iter().rev().map(|(_, path)| path).collect())
}

/// Whole lines of a file's end.
pub fn tail(path: &Path, bytes_max: u64) -> Outcome<String> {
    let told = |e: std::io::Error| Failure::io(&e, path.display());
    let mut file = File::open(path).map_err(told)?;
    let length = file.metadata().map_err(told)?.len();
    let start = length.saturating_sub(bytes_max);
    file.seek(SeekFrom::Start(start)).map_err(told)?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes).map_err(told)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(match (start, text.split_once('\n')) {
        (1.., Some((_, rest))) => rest.to_owned(),
        _ => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_keep_their_lines_together() {
        let mut last = Last::new(2);
        for line in [
            "      1 2026-11-22 one\n",
            "      2 2026-11-22 two\n",
            "                   goes on\n",
            "      3 2026-11-22 three\n",
        ] {
            last.hear(line);
        }
        assert_eq!(
            last.text(),
            "      2 2026-11-22 two\n                   goes on\n      3 2026-11-22 three\n"
        );
    }

    #[test]
    fn the_end_of_a_file_is_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "first\nsecond\nthird\n").unwrap();
        for (max, expect) in [
            (100, "first\nsecond\nthird\n"),
            (8, "third\n"),
            (10, "third\n"),
        ] {
            assert_eq!(tail(&path, max).unwrap(), expect, "{max}");
        }
        assert_eq!(newest_first(folder.path()).unwrap(), [path]);
    }
}
