//! `pghoard alerts`: what needs a person, from the state file, and `alerts acknowledge NAME`.
//!
//! | code | when |
//! |---|---|
//! | 0 | no alert stands that nobody acknowledged; `acknowledge`: it is in the log |
//! | 1 | an alert stands that nobody acknowledged |
//! | 2 | wrong command line or configuration |
//! | 3 | the daemon does not run, or the acknowledgement was not taken |

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use machine::Class;
use serde_json::{Value, json};

use super::{screen, status};
use crate::clock;
use crate::config::Config;
use crate::failure::{Failure, Outcome};
use crate::http::Peer;
use crate::publish::text;

#[derive(Parser)]
#[command(name = "pghoard alerts", version, infer_long_args = true)]
/// Show what needs a person, or take note of it
struct Flags {
    /// For programs
    #[arg(long)]
    json: bool,
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", hide_env_values = true, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Take note: it comes back only for a new occurrence
    Acknowledge {
        /// As it is listed
        alert: String,
        /// Why it is of no concern
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Who takes note
        #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true)]
        by: Option<String>,
    },
}

const NONE: i32 = 0;
const STANDS: i32 = 1;
const USAGE: i32 = 2;
const FAILED: i32 = 3;

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Flags = match super::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    let say = |failure: Failure| super::warn(format_args!("pghoard alerts: {failure}"));
    let config = match screen::config(flags.config) {
        Ok(config) => config,
        Err(failure) => {
            say(failure);
            return USAGE;
        }
    };
    let done = match flags.command {
        None => list(&config, flags.json),
        Some(Command::Acknowledge { alert, reason, by }) => {
            let reason = reason.unwrap_or_default();
            let by = by.unwrap_or_else(|| "operator".to_owned());
            let body = json!({ "alert": alert, "by": by, "reason": reason });
            acknowledge(&config, &body)
        }
    };
    done.unwrap_or_else(|failure| {
        say(failure);
        FAILED
    })
}

fn list(config: &Config, json: bool) -> Outcome<i32> {
    let seen = status::look(config, clock::now())?;
    let text = match json {
        true => text::pretty(&json!({ "alerts": seen.facts.get(status::ALERTS) }))?,
        false => screen::alerts(&seen.facts),
    };
    let none = "no alert stands\n";
    super::print(if text.is_empty() { none } else { &text })?;
    Ok(match seen.code() {
        status::WELL => NONE,
        status::NEEDS_A_PERSON => STANDS,
        _ => {
            super::warn("pghoard alerts: the daemon does not run; this is what it last said");
            FAILED
        }
    })
}

fn acknowledge(config: &Config, body: &Value) -> Outcome<i32> {
    let reply = Peer::of(config).send(
        "PUT",
        "/alerts/acknowledge",
        &[],
        body.to_string().as_bytes(),
    )?;
    let said = String::from_utf8_lossy(&reply.body);
    if reply.status != 201 {
        let message = format!("the daemon answers {}: {said}", reply.status);
        return Err(Failure::new(Class::Config, message).hint("pghoard alerts lists them"));
    }
    super::say(&format!("{said}\n"));
    Ok(NONE)
}
