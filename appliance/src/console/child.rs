//! PGHoard's own tools as children: the same program by another name, as the user the daemon runs
//! as, so that what they write is the daemon's. Ctrl-C ends them and not the session.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use machine::Class;
use nix::unistd::geteuid;
use pghoard::{Failure, Outcome};

use super::line::say;
use super::place::Places;

/// The user and group of the daemon in the image, before there are settings that belong to it.
const DAEMON: u32 = 100;

/// The user and group that the settings belong to; none where we are not root ourselves.
pub fn owner(places: &Places) -> Option<(u32, u32)> {
    let found = fs::metadata(&places.config);
    let owner = found.map_or((DAEMON, DAEMON), |found| (found.uid(), found.gid()));
    geteuid().is_root().then_some(owner)
}

/// This program, wherever it lies and whoever may look there.
const SELF: &str = "/proc/self/exe";

/// Runs `pghoard_NAME` and shows what it says. Gives its exit code.
pub fn run(places: &Places, name: &str, words: &[String]) -> Outcome<i32> {
    watch(places, name, words, &mut |line| say(line))
}

/// The same, with each line it says, newline and all, for `hear`.
pub fn watch(
    places: &Places,
    name: &str,
    words: &[String],
    hear: &mut dyn FnMut(&str),
) -> Outcome<i32> {
    let told = |e: io::Error| Failure::io(&e, format!("pghoard_{name}"));
    // One pipe for both, so that they stay in order, and no terminal to draw on.
    let (reader, writer) = io::pipe().map_err(told)?;
    let mut command = Command::new(SELF);
    command
        .arg0(format!("pghoard_{name}"))
        .args(words)
        .env("PGHOARD_CONFIG", &places.config)
        .env("USER", places.who())
        .env("TERM", "dumb")
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(told)?)
        .stderr(writer);
    if let Some((uid, gid)) = owner(places) {
        command.gid(gid).uid(uid);
    }
    let mut child = command.spawn().map_err(told)?;
    // Holds the pipe's other end, without which it would never end.
    drop(command);
    let mut lines = BufReader::new(reader);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).map_err(told)? > 0 {
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        hear(&String::from_utf8_lossy(&line));
        line.clear();
    }
    let status = child.wait().map_err(told)?;
    // As shells count.
    let signal = status
        .signal()
        .map_or(1, |signal| 128_i32.saturating_add(signal));
    Ok(status.code().unwrap_or(signal))
}

/// A tool that has to succeed.
pub fn must(places: &Places, name: &str, words: &[String]) -> Outcome<()> {
    match run(places, name, words)? {
        0 => Ok(()),
        code => Err(failed(name, code)),
    }
}

pub fn failed(name: &str, code: i32) -> Failure {
    let message = match code {
        130 => format!("{name} was broken off"),
        code => format!("{name} ended with code {code}"),
    };
    Failure::new(Class::Interrupted, message)
}
