//! Everything that a person changes here is an event of the daemon's: who, when, what.
//!
//! Where the daemon does not answer, the line waits on the data partition and is told when it
//! does: at the next command, or by PID 1 when the daemon is ready.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use machine::Class;
use pghoard::publish::text;
use pghoard::{Failure, Outcome, clock, durable};
use serde::{Deserialize, Serialize};

use super::daemon::Daemon;
use super::place::Places;

/// What a person did. Never holds a secret: values of settings are not said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    pub who: String,
    pub command: String,
    pub detail: String,
}

/// The daemon's own limits.
const SHORT_MAX: usize = 200;
const DETAIL_MAX: usize = 2_000;

impl Said {
    pub fn new(places: &Places, command: &str, detail: &str) -> Said {
        Said {
            who: fit(&places.who(), SHORT_MAX),
            command: fit(command, SHORT_MAX),
            detail: fit(detail, DETAIL_MAX),
        }
    }
}

/// What the daemon takes: one line, not too long.
fn fit(text: &str, max: usize) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(max).collect()
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    ToDaemon,
    /// Kept until it answers.
    Later,
}

/// Tells the daemon, or keeps the line for later.
pub fn record(places: &Places, said: &Said) -> Outcome<Told> {
    // In their order: what waits goes first.
    let waits = deliver(places).is_err();
    let told = match waits {
        false => Daemon::of(places).and_then(|daemon| daemon.operator(said)),
        true => Err(Failure::new(Class::Network, "earlier lines wait")),
    };
    match told {
        Ok(()) => Ok(Told::ToDaemon),
        Err(failure) if refused(&failure) => Err(failure),
        Err(_) => keep(&places.unsaid(), said).map(|()| Told::Later),
    }
}

/// Tells the daemon what was said while it did not answer. Gives how many lines that were.
pub fn deliver(places: &Places) -> Outcome<usize> {
    let path = places.unsaid();
    if !path.exists() {
        return Ok(0);
    }
    let _alone = alone(&path)?;
    let lines = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(Failure::io(&e, path.display())),
    };
    let daemon = Daemon::of(places)?;
    let mut count = 0;
    for line in lines.lines() {
        // Cut off by a power cut, or refused: asking again would change nothing.
        let told = match serde_json::from_str(line) {
            Ok(said) => daemon.operator(&said),
            Err(_) => Ok(()),
        };
        match told {
            Err(failure) if !refused(&failure) => {
                let rest: String = lines
                    .lines()
                    .skip(count)
                    .map(|l| format!("{l}\n"))
                    .collect();
                durable::write_own(&path, rest.as_bytes())?;
                return Err(failure);
            }
            Ok(()) | Err(_) => count += 1,
        }
    }
    durable::remove(&path)?;
    Ok(count)
}

fn refused(failure: &Failure) -> bool {
    failure.class == Class::Config
}

/// A console is a person: so many lines without a daemon are no work of one.
const UNSAID_BYTES_MAX: u64 = 1 << 20;

fn keep(path: &Path, said: &Said) -> Outcome<()> {
    let _alone = alone(path)?;
    let told = |e: std::io::Error| Failure::io(&e, path.display());
    let mut said = said.clone();
    let at = text::utc(clock::now());
    let detail = format!(
        "at {at} UTC, while the daemon did not answer: {}",
        said.detail
    );
    said.detail = fit(detail.trim_end_matches(": "), DETAIL_MAX);
    let line = serde_json::to_string(&said);
    let line = line.map_err(|e| Failure::new(Class::Internal, format!("writing JSON: {e}")))?;
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(told)?;
    if file.metadata().map_err(told)?.len() > UNSAID_BYTES_MAX {
        let message = format!("{}: too much waits for the daemon", path.display());
        return Err(Failure::new(Class::DiskFull, message));
    }
    file.write_all(format!("{line}\n").as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(told)?;
    durable::sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// There may be several consoles, and PID 1.
fn alone(path: &Path) -> Outcome<File> {
    durable::make_folders(path.parent().unwrap_or(Path::new("/")))?;
    let path = path.with_extension("lock");
    let told = |e: std::io::Error| Failure::io(&e, path.display());
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(told)?;
    file.lock().map_err(told)?;
    Ok(file)
}
