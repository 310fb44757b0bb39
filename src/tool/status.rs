//! `pghoard status`: what the daemon holds and what is wrong, on one screen.
//!
//! It reads the state file; where that is old or missing the daemon does not run, and the log
//! itself is folded. With `--json` the answer is the state file's own part, with `running` added.
//!
//! | code | when |
//! |---|---|
//! | 0 | all is well |
//! | 1 | a person is needed: an alert stands that nobody acknowledged |
//! | 2 | wrong command line or configuration |
//! | 3 | the daemon does not run |

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Parser;
use machine::decide::Busy;
use machine::policy::Policy;
use machine::rule::coverage::Live;
use machine::{Millis, State};
use serde_json::Value;

use super::screen;
use crate::clock;
use crate::config::Config;
use crate::failure::{Failure, Outcome};
use crate::journal::log;
use crate::publish::facts;
use crate::publish::{stats, text};

#[derive(Parser)]
#[command(name = "pghoard status", version, infer_long_args = true)]
/// Show what the daemon holds and what is wrong
struct Flags {
    /// For programs
    #[arg(long)]
    json: bool,
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Configuration file, where --config is not given
    config_file: Option<PathBuf>,
}

pub(super) const WELL: i32 = 0;
pub(super) const NEEDS_A_PERSON: i32 = 1;
const USAGE: i32 = 2;
const DOWN: i32 = 3;

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Flags = match super::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    let config = match screen::config(flags.config.or(flags.config_file)) {
        Ok(config) => config,
        Err(failure) => {
            super::warn(format_args!("pghoard status: {failure}"));
            return USAGE;
        }
    };
    let seen = match look(&config, clock::now()) {
        Ok(seen) => seen,
        Err(failure) => {
            super::warn(format_args!(
                "pghoard status: the daemon does not run: {failure}"
            ));
            return DOWN;
        }
    };
    let text = match flags.json {
        true => text::pretty(&seen.facts).unwrap_or_default(),
        false => screen::render(&seen.facts, seen.at),
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => seen.code(),
        Err(_) => USAGE,
    }
}

/// The own part of the state file, or what takes its place.
#[derive(Debug, PartialEq)]
pub(super) struct Seen {
    pub facts: Value,
    /// When somebody looked.
    at: Millis,
}

impl Seen {
    fn new(mut facts: Value, running: Running, at: Millis) -> Seen {
        if let Value::Object(map) = &mut facts {
            map.insert(RUNNING.to_owned(), Value::Bool(running == Running::Yes));
        }
        Seen { facts, at }
    }

    pub fn code(&self) -> i32 {
        let alerts = self.facts.get(ALERTS).and_then(Value::as_object);
        let stands = |alert: &Value| alert.get("acknowledged") != Some(&Value::Bool(true));
        if self.facts.get(RUNNING) != Some(&Value::Bool(true)) {
            DOWN
        } else if alerts.is_some_and(|alerts| alerts.values().any(stands)) {
            NEEDS_A_PERSON
        } else {
            WELL
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Running {
    Yes,
    No,
}

pub(super) const ALERTS: &str = "alerts";
pub(super) const RUNNING: &str = "running";

pub(super) fn look(config: &Config, now: Millis) -> Outcome<Seen> {
    let written = state_file(config);
    if let Ok(facts) = &written
        && fresh(facts, now)
    {
        return Ok(Seen::new(facts.clone(), Running::Yes, now));
    }
    // The log knows more than an old state file, except for the alerts, which need the policy.
    let facts = match (from_log(config), written) {
        (Ok(mut facts), Ok(mut written)) => {
            if let Some(alerts) = written.get_mut(ALERTS).map(Value::take)
                && let Value::Object(map) = &mut facts
            {
                map.insert(ALERTS.to_owned(), alerts);
            }
            facts
        }
        (Ok(facts), Err(_)) | (Err(_), Ok(facts)) => facts,
        (Err(failure), Err(_)) => return Err(failure),
    };
    Ok(Seen::new(facts, Running::No, now))
}

fn state_file(config: &Config) -> Outcome<Value> {
    let path = config.json_state_file_path.display();
    let bytes = fs::read(&config.json_state_file_path).map_err(|e| Failure::io(&e, &path))?;
    let document: Option<Value> = serde_json::from_slice(&bytes).ok();
    let own = document.and_then(|mut document| document.get_mut(stats::OWN).map(Value::take));
    own.ok_or_else(|| {
        let message = format!("{path} is no state file of this program");
        Failure::new(machine::Class::Corrupt, message)
    })
}

fn fresh(facts: &Value, now: Millis) -> bool {
    let at = facts.get(facts::AT).and_then(stats::moment);
    let stopped = facts.get("stopped") == Some(&Value::Bool(true));
    // From the future: a clock was set back, and nobody can tell.
    !stopped && at.is_some_and(|at| now.since(at) <= stats::FRESH_MS)
}

fn from_log(config: &Config) -> Outcome<Value> {
    let mut state = State::default();
    log::read(&screen::log_path(config)?, &mut |envelope| {
        state.apply(envelope)
    })?;
    let (policy, busy, live) = (Policy::default(), Busy::new(), Live::default());
    let at = state.at;
    Ok(facts::facts(&state, &policy, &busy, &live, at))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::config;
    use crate::journal::log::Log;
    use crate::publish::testing;

    const NOW: Millis = Millis(1_795_340_000_000);

    fn configured(folder: &Path) -> Config {
        let value = json!({
            "backup_location": folder,
            "json_state_file_path": folder.join("state.json"),
            "backup_sites": {},
        });
        config::parse(&value).unwrap().0
    }

    fn write(config: &Config, state: &State, at: Millis) {
        let (policy, busy, live) = (
            testing::policy("main"),
            testing::busy("main"),
            testing::live(),
        );
        let document = stats::document(state, &policy, &busy, &live, at);
        let mut stats = stats::Stats::new(&config.json_state_file_path);
        stats.publish(document, at).unwrap();
    }

    #[test]
    fn the_exit_code_says_how_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let config = configured(folder.path());
        assert!(look(&config, NOW).is_err());
        let state = testing::state("main");
        write(&config, &state, NOW);
        let later = NOW.plus(stats::FRESH_MS);
        assert_eq!(look(&config, later).unwrap().code(), NEEDS_A_PERSON);
        assert_eq!(look(&config, later.plus(1)).unwrap().code(), DOWN);

        let mut well = state.clone();
        let node = machine::Event::AlertAcknowledged {
            alert: "configuration_error".into(),
        };
        well.apply(&machine::Envelope {
            seq: state.seq + 1,
            at: NOW,
            run: 1,
            site: None,
            event: node,
        });
        write(&config, &well, NOW);
        let seen = look(&config, NOW).unwrap();
        assert_eq!(seen.code(), WELL);
        assert_eq!(seen.facts[RUNNING], true);
        well.stopped = true;
        write(&config, &well, NOW);
        assert_eq!(look(&config, NOW).unwrap().code(), DOWN);
    }

    #[test]
    fn without_a_daemon_the_log_is_folded() {
        let folder = tempfile::tempdir().unwrap();
        let config = configured(folder.path());
        let path = screen::log_path(&config).unwrap();
        let mut log = Log::open(&path, &mut |_| {}).unwrap();
        let event = testing::seen(0, 1);
        let site = Some(testing::site("main"));
        log.append(NOW, 1, vec![(site, event)]).unwrap();
        drop(log);
        write(&config, &testing::state("main"), NOW);
        let seen = look(&config, NOW.plus(60_000)).unwrap();
        assert!(seen.facts[ALERTS].get("configuration_error").is_some());
        assert_eq!(seen.code(), DOWN);
        assert_eq!(seen.facts["sites"]["main"]["servers"][0]["role"], "primary");
    }
}
