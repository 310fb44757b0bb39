//! Log lines: one a fact, on stderr and where [`syslog`] sends them, with a level that systemd and
//! syslog understand.
//!
//! The forms are PGHoard's: `time<TAB>logger<TAB>thread<TAB>LEVEL<TAB>message`, short
//! `LEVEL<TAB>message`, and under systemd `logger thread LEVEL: message` with the priority that
//! the journal takes off the front. Times are UTC. A message is one line whatever it quotes, so
//! that a server's text cannot pose as a line of ours. What the libraries below us say is shown
//! from warnings on: their details may name what must not be in a log.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::{env, fs, thread};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::clock;
use crate::config::LogLevel;
use crate::publish::text::utc;

pub mod syslog;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Full,
    Short,
    /// For systemd's journal, which knows the time and the program, and for syslog.
    Journal,
}

/// Begins to write log lines; the first call decides the form.
pub fn start(form: Form, level: LogLevel) {
    let form = match form {
        Form::Full if to_journal() => Form::Journal,
        form => form,
    };
    // A second start in one process (tests) keeps the first writer.
    let _already = log::set_boxed_logger(Box::new(Stderr { form }));
    set_level(level);
}

pub fn set_level(level: LogLevel) {
    log::set_max_level(match level {
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Warning => LevelFilter::Warn,
        LogLevel::Error | LogLevel::Critical => LevelFilter::Error,
    });
}

/// Something a person should know of now.
pub fn error(message: &str) {
    log::error!("{message}");
}

struct Stderr {
    form: Form,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        let ours = target == OURS || PARTS.iter().any(|part| target.starts_with(part));
        let most = if ours { Level::Debug } else { Level::Warn };
        metadata.level() <= most
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let current = thread::current();
        let thread = current.name().unwrap_or("worker");
        let message = record.args().to_string();
        let at = utc_millis();
        let (level, target) = (record.level(), record.target());
        let rendered = |form| render(form, &at, level, target, thread, &message);
        let line = rendered(self.form);
        // Nowhere is left to say that stderr is gone.
        let _unsaid = io::stderr().lock().write_all(line.as_bytes());
        syslog::hand_over(|| rendered(Form::Journal));
    }

    /// What syslog has not got yet, for a short time: before the process ends.
    fn flush(&self) {
        syslog::flush();
    }
}

const OURS: &str = "pghoard";
/// Modules of ours, the appliance's crate among them.
const PARTS: [&str; 2] = ["pghoard::", "pghoard_appliance"];

/// `2026-11-22 09:28:51,251`, as Python's logging writes it.
fn utc_millis() -> String {
    let now = clock::now();
    format!("{},{:03}", utc(now), now.0 % 1_000)
}

fn render(form: Form, at: &str, level: Level, target: &str, thread: &str, message: &str) -> String {
    let message: String = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    // Syslog's numbers, as sd-daemon(3) has them.
    let (name, priority) = match level {
        Level::Error => ("ERROR", 3),
        Level::Warn => ("WARNING", 4),
        Level::Info => ("INFO", 6),
        Level::Debug | Level::Trace => ("DEBUG", 7),
    };
    let logger = target.rsplit("::").next().unwrap_or(target);
    match form {
        Form::Full => format!("{at}\t{logger}\t{thread}\t{name}\t{message}\n"),
        Form::Short => format!("{name}\t{message}\n"),
        Form::Journal => format!("<{priority}>{logger} {thread} {name}: {message}\n"),
    }
}

/// systemd.exec(5): `JOURNAL_STREAM` is device and inode of the stream; it is inherited by those
/// whose stderr goes elsewhere.
fn to_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    let stderr = io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .map(fs::File::from);
    let found = stderr.and_then(|stderr| stderr.metadata());
    found.is_ok_and(|found| stream == format!("{}:{}", found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_pghoards_and_one_each() {
        let line = |form, level, message| {
            let at = "2026-11-22 09:28:51,251";
            render(
                form,
                at,
                level,
                "pghoard::daemon::world",
                "receive",
                message,
            )
        };
        for (form, level, message, expect) in [
            (
                Form::Full,
                Level::Info,
                "ready",
                "2026-11-22 09:28:51,251\tworld\treceive\tINFO\tready\n",
            ),
            (Form::Short, Level::Warn, "hm", "WARNING\thm\n"),
            (
                Form::Journal,
                Level::Error,
                "server said: a\nERROR\tb\u{1b}[2J",
                "<3>world receive ERROR: server said: a ERROR b [2J\n",
            ),
        ] {
            assert_eq!(line(form, level, message), expect);
        }
    }

    #[test]
    fn libraries_are_heard_from_warnings_on() {
        let stderr = Stderr { form: Form::Short };
        for (target, level, heard) in [
            ("pghoard::pg::auth", Level::Debug, true),
            ("pghoard", Level::Debug, true),
            ("pghoard_appliance::boot", Level::Info, true),
            ("rustls::client", Level::Debug, false),
            ("rustls::client", Level::Warn, true),
            ("pghoardish", Level::Info, false),
        ] {
            let metadata = Metadata::builder().target(target).level(level).build();
            assert_eq!(stderr.enabled(&metadata), heard, "{target}");
        }
    }
}
