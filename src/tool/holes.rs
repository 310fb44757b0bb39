//! `pghoard holes`: what a restore would miss, from the log, and `--acknowledge`.
//!
//! | code | when |
//! |---|---|
//! | 0 | no hole is open; `--acknowledge`: it is noted in the store |
//! | 1 | a hole is open that nobody acknowledged |
//! | 2 | wrong command line or configuration |
//! | 3 | the log cannot be read, or the acknowledgement was not taken |

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use machine::{Class, SegmentSize, SiteState, State};
use serde_json::{Map, Value, json};

use super::screen;
use crate::clock;
use crate::config::{Config, Site};
use crate::failure::{Failure, Outcome};
use crate::http::Peer;
use crate::journal::log;
use crate::publish::{holes, text};
use crate::serve::operator::holes::{Ask, size_of, store};
use crate::work::marks;

#[derive(Parser)]
#[command(name = "pghoard holes", version, infer_long_args = true)]
/// Show what a restore would miss, or take note of what is lost
struct Flags {
    /// Only this site
    #[arg(long)]
    site: Option<String>,
    /// For programs
    #[arg(long, conflicts_with = "acknowledge")]
    json: bool,
    /// Take note: the hole raises no alarm any more
    #[arg(long, requires = "reason")]
    acknowledge: bool,
    /// Which one, as it is listed
    #[arg(
        long,
        value_name = "NAME",
        requires = "acknowledge",
        conflicts_with = "all"
    )]
    hole: Option<String>,
    /// All that are open in the site
    #[arg(long, requires = "acknowledge")]
    all: bool,
    /// Why it is of no concern
    #[arg(long, value_name = "TEXT", requires = "acknowledge")]
    reason: Option<String>,
    /// Who takes note
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true)]
    by: Option<String>,
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Configuration file, where --config is not given
    config_file: Option<PathBuf>,
}

const NONE: i32 = 0;
const OPEN: i32 = 1;
const USAGE: i32 = 2;
const FAILED: i32 = 3;

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let mut flags: Flags = match super::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    let say = |failure: Failure| super::warn(format_args!("pghoard holes: {failure}"));
    let config = match screen::config(flags.config.take().or(flags.config_file.take())) {
        Ok(config) => config,
        Err(failure) => {
            say(failure);
            return USAGE;
        }
    };
    if flags.acknowledge && flags.hole.is_none() && !flags.all {
        let message = "--acknowledge wants --hole NAME or --all";
        say(Failure::new(Class::Config, message));
        return USAGE;
    }
    // An unknown site must not look like one without holes.
    let named = flags.site.is_some() || flags.acknowledge;
    let site = named.then(|| config.site(flags.site.as_deref()));
    let done = match site.transpose() {
        Err(failure) => {
            say(failure);
            return USAGE;
        }
        Ok(Some(site)) if flags.acknowledge => acknowledge(&flags, &config, site),
        Ok(site) => list(&flags, &config, site),
    };
    done.unwrap_or_else(|failure| {
        say(failure);
        FAILED
    })
}

fn list(flags: &Flags, config: &Config, site: Option<&Site>) -> Outcome<i32> {
    let state = fold(config)?;
    let mut sites = Map::new();
    for (name, found) in &state.sites {
        if site.is_none_or(|site| site.name == name.0) {
            sites.insert(name.0.clone(), Value::Array(holes::list(found)));
        }
    }
    let text = match flags.json {
        true => text::pretty(&json!({ "sites": sites }))?,
        false => render(&sites),
    };
    super::print(&text)?;
    let mut all = sites.values().filter_map(Value::as_array).flatten();
    Ok(
        match all.any(|hole| part(hole, "state") != "acknowledged") {
            true => OPEN,
            false => NONE,
        },
    )
}

fn fold(config: &Config) -> Outcome<State> {
    let mut state = State::default();
    log::read(&screen::log_path(config)?, &mut |envelope| {
        state.apply(envelope);
    })?;
    Ok(state)
}

fn part<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("-")
}

fn render(sites: &Map<String, Value>) -> String {
    let mut out = String::new();
    for (site, holes) in sites {
        for hole in holes.as_array().into_iter().flatten() {
            let told = format!("{}, {}", part(hole, "name"), part(hole, "state"));
            out.push_str(&screen::wrap(&format!("{site}  "), &told));
            out.push_str(&screen::wrap("    ", &cost(hole)));
            out.push_str(&screen::wrap("    ", &outlook(hole)));
        }
    }
    if out.is_empty() {
        out.push_str("no holes\n");
    }
    out
}

fn cost(hole: &Value) -> String {
    let gap = hole.get("impossible").unwrap_or(&Value::Null);
    let to = match part(gap, "to_lsn") {
        "-" => "on".to_owned(),
        to => format!("to {to}"),
    };
    let until = match part(gap, "until") {
        "-" => String::new(),
        until => format!(" ({until})"),
    };
    let timeline = gap.get("timeline").and_then(Value::as_u64).unwrap_or(0);
    let backups = hole.get("backups").and_then(Value::as_array);
    let backups = backups.into_iter().flatten().filter_map(Value::as_str);
    format!(
        "cannot be restored: moments from {} {to}{until} on timeline {timeline}, from backup {}",
        part(gap, "from_lsn"),
        backups.collect::<Vec<_>>().join(", ")
    )
}

fn outlook(hole: &Value) -> String {
    let since = part(hole, "since");
    if let Some(noted) = hole.get("acknowledged").filter(|noted| noted.is_object()) {
        let (by, at, reason) = (part(noted, "by"), part(noted, "at"), part(noted, "reason"));
        return format!("since {since}; acknowledged by {by} on {at}: {reason}");
    }
    let asking = hole.get("asking").and_then(Value::as_array);
    let asking = asking.into_iter().flatten().filter_map(Value::as_str);
    let asking: Vec<_> = asking.collect();
    match (part(hole, "state"), asking.is_empty()) {
        ("healing", true) => format!("since {since}; no server answers that could be asked"),
        ("healing", false) => format!("since {since}; asked for: {}", asking.join(", ")),
        _ => format!(
            "since {since}; nobody has it any more, a new basebackup covers what follows; take \
             note with --acknowledge"
        ),
    }
}

fn acknowledge(flags: &Flags, config: &Config, site: &Site) -> Outcome<i32> {
    let ask = Ask {
        hole: flags.hole.clone(),
        reason: flags.reason.clone().unwrap_or_default(),
        by: flags.by.clone().unwrap_or_else(|| "operator".to_owned()),
    };
    // As the daemon will see it: what it would refuse is refused without it, too.
    let ask = Ask::parse(&ask.body()).map_err(|why| Failure::new(Class::Config, why))?;
    let path = format!("/{}/holes/acknowledge", site.name);
    match Peer::of(config).send("PUT", &path, &[], &ask.body()) {
        Ok(reply) if reply.status == 201 => {
            super::say(&format!("{}\n", String::from_utf8_lossy(&reply.body)));
            Ok(NONE)
        }
        Ok(reply) => Err(Failure::new(
            Class::Config,
            format!(
                "the daemon answers {}: {}",
                reply.status,
                String::from_utf8_lossy(&reply.body)
            ),
        )),
        Err(failure) if failure.class == Class::Network => without_a_daemon(config, site, &ask),
        Err(failure) => Err(failure),
    }
}

/// The mark counts, not who wrote it: the daemon reads it when it runs.
fn without_a_daemon(config: &Config, site: &Site, ask: &Ask) -> Outcome<i32> {
    let state = fold(config)?;
    let empty = SiteState::default();
    let found = state.sites.get(&machine::Site(site.name.clone()));
    let found = found.unwrap_or(&empty);
    let size = found.ledger.segment_size;
    let facts = json!({
        "holes": holes::list(found),
        "segment_size": size.map(SegmentSize::bytes),
    });
    let marks = ask.marks(&facts, clock::now()).ok_or_else(|| {
        let name = ask.hole.as_deref().unwrap_or_default();
        let message = format!("no hole '{name}' is open in site '{}'", site.name);
        Failure::new(Class::NotFound, message).hint("pghoard holes lists them")
    })?;
    let store = store(site)?;
    let count = marks.len();
    for mark in marks {
        marks::put(store.as_ref(), &site.prefix, mark, size_of(&facts))?;
    }
    super::say(&format!(
        "the daemon does not run: {count} noted in the store, which it reads every five minutes\n"
    ));
    Ok(NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_checked_before_anything_is_asked() {
        for (words, code) in [
            (&["holes", "--help"][..], 0),
            (&["holes"], 2),
            (&["holes", "--acknowledge"], 2),
            (&["holes", "--all", "--reason", "x"], 2),
            (&["holes", "--acknowledge", "--all"], 2),
            (
                &[
                    "holes",
                    "--acknowledge",
                    "--reason",
                    "x",
                    "--config",
                    "/nowhere",
                ],
                2,
            ),
            (&["holes", "--config", "/nowhere"], 2),
        ] {
            assert_eq!(run(words.iter().map(OsString::from)), code, "{words:?}");
        }
    }

    #[test]
    fn a_hole_is_told_in_words() {
        let hole = |state: &str, noted: Value, to: Value| {
            json!({
                "acknowledged": noted,
                "asking": ["server 0"],
                "backups": ["a", "b"],
                "impossible": {
                    "from_lsn": "0/5000000", "timeline": 1, "to_lsn": to, "until": null,
                },
                "name": "00000002.history",
                "since": "T",
                "state": state,
            })
        };
        let noted = json!({ "by": "ada", "at": "then", "reason": "known" });
        for (hole, expect) in [
            (
                hole("healing", Value::Null, Value::Null),
                "asked for: server 0",
            ),
            (
                hole("lost", Value::Null, json!("0/8000000")),
                "from 0/5000000 to 0/8000000",
            ),
            (
                hole("lost", Value::Null, Value::Null),
                "from 0/5000000 on on timeline 1",
            ),
            (
                hole("acknowledged", noted, Value::Null),
                "acknowledged by ada on then: known",
            ),
        ] {
            let text = format!("{} {}", cost(&hole), outlook(&hole));
            assert!(text.contains(expect), "{text}");
        }
        assert_eq!(render(&Map::new()), "no holes\n");
    }
}
