//! Watching without a shell: the state file and the alert files as they are, and the end of the
//! log of a machine that keeps it in files.
//!
//! Only names that we know are served, so that no name leads anywhere else.
//!
//! Budget: [`LOG_BYTES_MAX`] of log for an answer.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use hyper::StatusCode;
use machine::rule::alerts::{OURS, STICKY};
use serde_json::json;

use super::Context;
use super::answer::Answer;
use super::handout::Query;
use crate::failure::{Failure, Outcome};
use crate::publish::text::pretty;

const LOG_BYTES_MAX: u64 = 1 << 20;
const LINES: usize = 200;
const LINES_MAX: usize = 10_000;
/// The newest; older ones have `.1`, `.2` ... behind it.
const LOG_NAME: &str = "pghoard.log";
const LOGS_MAX: u32 = 100;

impl Context {
    /// What is there now, by the names that may be asked for.
    fn files(&self) -> Vec<(String, PathBuf)> {
        let state = &self.config.json_state_file_path;
        let state = state
            .file_name()
            .map(|name| (name.to_string_lossy().into_owned(), state.clone()));
        let alerts = STICKY.iter().chain(&OURS);
        let alerts = alerts.map(|name| ((*name).to_owned(), self.config.alert_file_dir.join(name)));
        let all = state.into_iter().chain(alerts);
        all.filter(|(_, path)| path.is_file()).collect()
    }

    pub fn list_files(&self) -> Outcome<Answer> {
        let files = self.files().into_iter().filter_map(|(name, path)| {
            let bytes = fs::metadata(path).ok()?.len();
            Some(json!({ "bytes": bytes, "name": name }))
        });
        let text = pretty(&json!({ "files": files.collect::<Vec<_>>() }))?;
        Ok(Answer::json(StatusCode::OK, &text))
    }

    pub fn file(&self, name: &str) -> Outcome<Answer> {
        let found = self.files().into_iter().find(|(known, _)| known == name);
        let opened = found.map(|(_, path)| File::open(&path).map_err(|e| (e, path)));
        match opened {
            Some(Ok(file)) => Ok(Answer {
                file: Some(file),
                ..Answer::new(StatusCode::OK)
            }),
            Some(Err((e, path))) if e.kind() != io::ErrorKind::NotFound => {
                Err(Failure::io(&e, path.display()))
            }
            Some(Err(_)) | None => {
                let message = format!("there is no file '{name}': GET /files lists them");
                Ok(Answer::text(StatusCode::NOT_FOUND, message))
            }
        }
    }

    pub fn log(&self, query: &str) -> Outcome<Answer> {
        let Some(folder) = &self.around.logs else {
            let message = "the log of this machine is not kept in files: see its journal or syslog";
            return Ok(Answer::text(StatusCode::NOT_IMPLEMENTED, message));
        };
        let lines = Query::parse(query, &["lines"]).map(|query| match query.one("lines") {
            None => Some(LINES),
            Some(text) => text.parse().ok().filter(|n| (1..=LINES_MAX).contains(n)),
        });
        let Ok(Some(lines)) = lines else {
            let message = format!("expected nothing but lines=1 to {LINES_MAX}");
            return Ok(Answer::text(StatusCode::BAD_REQUEST, message));
        };
        let text = last(folder, lines).map_err(|e| Failure::io(&e, folder.display()))?;
        Ok(Answer {
            content_type: "text/plain",
            ..Answer::text(StatusCode::OK, text)
        })
    }
}

/// The last whole lines, of as many files as it takes; the oldest first.
fn last(folder: &Path, lines: usize) -> io::Result<String> {
    let mut text = Vec::new();
    for number in 0..LOGS_MAX {
        let path = match number {
            0 => folder.join(LOG_NAME),
            number => folder.join(format!("{LOG_NAME}.{number}")),
        };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(e) => return Err(e),
        };
        let room = LOG_BYTES_MAX.saturating_sub(u64::try_from(text.len()).unwrap_or(u64::MAX));
        let from = file.metadata()?.len().saturating_sub(room);
        file.seek(SeekFrom::Start(from))?;
        let mut more = Vec::new();
        file.take(room).read_to_end(&mut more)?;
        more.append(&mut text);
        text = more;
        if from > 0 {
            // A line that began before the room did.
            let end = text.iter().position(|byte| *byte == b'\n');
            text.drain(..end.map_or(text.len(), |end| end + 1));
            break;
        }
        if text.iter().filter(|byte| **byte == b'\n').count() > lines {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    let kept = all.get(all.len().saturating_sub(lines)..).unwrap_or(&[]);
    let mut out = kept.join("\n");
    if !out.is_empty() {
        out.push('\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_whole_and_come_from_older_files_too() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(last(folder.path(), 9).unwrap(), "");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("pghoard.log", "e\nf\n");
        write("pghoard.log.1", "c\nd\n");
        write("pghoard.log.2", "a\nb\n");
        write("pghoard.log.4", "never\n");
        for (lines, expect) in [
            (1, "f\n"),
            (2, "e\nf\n"),
            (3, "d\ne\nf\n"),
            (5, "b\nc\nd\ne\nf\n"),
            (100, "a\nb\nc\nd\ne\nf\n"),
        ] {
            assert_eq!(last(folder.path(), lines).unwrap(), expect);
        }
        // A line in the making, and one that is too long to be shown whole.
        write("pghoard.log", "e\nhalf");
        assert_eq!(last(folder.path(), 2).unwrap(), "e\nhalf\n");
        write("pghoard.log", &format!("{}\nend\n", "x".repeat(2 << 20)));
        assert_eq!(last(folder.path(), 9).unwrap(), "end\n");
    }
}
