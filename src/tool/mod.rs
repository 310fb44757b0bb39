//! One file a command, and which one was meant.
//!
//! One binary has several names, told apart by the name it is called by; `pghoard COMMAND` does
//! the same where there are no links.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;

use crate::failure::{Failure, Outcome};
use crate::journal::upcast::LOG_TOLD;
use crate::tls::{Roots, Trust};

pub mod alerts;
pub mod archive;
pub mod check;
pub mod config;
pub mod create_keys;
pub mod events;
pub mod gnutaremu;
pub mod holes;
pub mod links;
pub mod pghoard;
pub mod postgres_command;
pub mod restore;
pub mod retention;
pub mod screen;
pub mod status;
pub mod verify;

/// How a command asks a daemon that may be elsewhere.
#[derive(clap::Args)]
pub struct Secured {
    /// The daemon speaks TLS
    #[arg(long)]
    tls: bool,
    /// PEM file of who signed the daemon's certificate, instead of whom the system trusts; with it
    /// --tls need not be said
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Secured {
    fn trust(&self) -> Option<Trust> {
        match &self.ca {
            Some(path) => Some(Trust::Roots(Roots::File(path.clone()))),
            None => self.tls.then_some(Trust::Roots(Roots::System)),
        }
    }
}

type Tool = fn(Vec<OsString>) -> i32;

/// By the part after `pghoard_`; as a command a hyphen does for the underscore.
const TOOLS: &[(&str, Tool)] = &[
    ("alerts", |args| alerts::run(args)),
    ("archive_cleanup", |args| archive::cleanup::run(args)),
    ("archive_sync", |args| archive::sync::run(args)),
    ("check", |args| check::run(args)),
    ("config", |args| config::run(args)),
    ("create_keys", |args| create_keys::run(args)),
    ("events", |args| events::run(args)),
    ("gnutaremu", |args| gnutaremu::run(args)),
    ("hold", |args| retention::hold::hold(args)),
    ("holds", |args| retention::hold::holds(args)),
    ("holes", |args| holes::run(args)),
    ("install_links", |args| links::run(args)),
    ("log_format", |_| {
        say(LOG_TOLD);
        0
    }),
    ("postgres_command", |args| postgres_command::run(args)),
    ("postgres_command_go", |args| {
        postgres_command::go::run(args)
    }),
    ("release", |args| retention::hold::release(args)),
    ("restore", |args| restore::run(args)),
    ("retention", |args| retention::run(args)),
    ("status", |args| status::run(args)),
    ("systemd_unit", |args| links::unit::run(args)),
    ("verify", |args| verify::run(args)),
];

/// Runs the tool that the arguments name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let called = args.first().map(Path::new).and_then(Path::file_name);
    let called = called.and_then(|name| name.to_str()).unwrap_or_default();
    if let Some(name) = called.strip_prefix("pghoard_") {
        return match tool(name) {
            Some(tool) => tool(args),
            None => unknown(called),
        };
    }
    let Some(word) = args.get(1).and_then(|arg| arg.to_str()) else {
        return pghoard::run(args);
    };
    if let Some(tool) = tool(&word.replace('-', "_")) {
        let name = format!("pghoard {word}");
        args.splice(..2, [OsString::from(name)]);
        return tool(args);
    }
    // PGHoard's daemon takes its configuration file as a plain word.
    match word.contains(['-', '.', '/']) || Path::new(word).exists() {
        true => pghoard::run(args),
        false => unknown(word),
    }
}

fn tool(name: &str) -> Option<Tool> {
    let found = TOOLS.iter().find(|(known, _)| *known == name);
    found.map(|(_, tool)| *tool)
}

/// The command line as the tool wants it, or the exit code of one that was refused or only asked
/// for help or the version, which is printed alone.
fn flags<F: clap::Parser>(args: impl IntoIterator<Item = OsString>) -> Result<F, i32> {
    F::try_parse_from(args).map_err(|refused| {
        if refused.kind() == ErrorKind::DisplayVersion {
            say(VERSION);
            return 0;
        }
        let text = refused.render().to_string();
        if !refused.use_stderr() {
            say(&text);
            return refused.exit_code();
        }
        // A refused value alone would be told without the usage.
        if !text.contains("Usage:") {
            warn(F::command().render_usage());
        }
        warn(text.trim_end());
        refused.exit_code()
    })
}

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\n");

fn unknown(word: &str) -> i32 {
    let names: Vec<String> = TOOLS
        .iter()
        .map(|(name, _)| name.replace('_', "-"))
        .collect();
    warn(format_args!(
        "pghoard: unknown command '{word}'\n\
         usage: pghoard --config FILE          run the daemon\n       \
         pghoard COMMAND [--help] ...   one of {}",
        names.join(", ")
    ));
    UNKNOWN
}

const UNKNOWN: i32 = 2;

/// To standard output. That nobody reads it any more (`| head -1`) is no failure.
fn print(text: &str) -> Outcome<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::io(&e, "standard output")),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What is said beside the work, which goes on without it.
fn say(text: &str) {
    let _unsaid = print(text);
}

/// A line to standard error. `eprintln!` would panic where that is closed or on a full disk.
fn warn(message: impl fmt::Display) {
    let line = format!("{message}\n");
    let _unsaid = io::stderr().lock().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_chooses_the_tool() {
        for (words, code) in [
            (
                &["/usr/bin/pghoard_postgres_command", "--mode", "restore"][..],
                255,
            ),
            (&["pghoard", "postgres_command", "--mode", "restore"], 255),
            (&["pghoard_postgres_command_go", "-version"], 0),
            (&["pghoard_restore"], 1),
            (&["pghoard_create_keys"], 2),
            (&["pghoard", "--version"], 0),
            (&["pghoard", "/nowhere/pghoard.json"], 1),
            (&["pghoard", "create-keys"], 2),
            (&["pghoard_create_keys", "--version"], 0),
            (&["pghoard_archive_cleanup", "--version"], 0),
            (&["pghoard_archive_sync", "--vers"], 0),
            (&["pghoard_archive_sync", "--max-hash-checks", "many"], 2),
            (&["pghoard", "archive-sync", "--unknown"], 2),
            (&["pghoard_gnutaremu", "--version"], 0),
            (&["pghoard_gnutaremu", "-f", "-"], 2),
            (&["pghoard", "install-links"], 2),
            (&["pghoard", "systemd-unit", "--config", "/c.json"], 0),
            (&["pghoard", "systemd-unit", "--unknown"], 2),
            (&["pghoard", "log-format"], 0),
            (&["pghoard", "status", "--help"], 0),
            (&["pghoard", "alerts", "acknowledge"], 2),
            (&["pghoard_events", "--verify", "--follow"], 2),
            (&["pghoard", "staus"], 2),
            (&["pghoard_unheard_of", "--version"], 2),
        ] {
            assert_eq!(run(words.iter().map(OsString::from)), code, "{words:?}");
        }
    }
}
