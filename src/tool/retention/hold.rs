//! `pghoard hold`, `pghoard release`, `pghoard holds`: basebackups that must not go.
//!
//! A running daemon is asked, so that it knows at once; without one the object is written straight
//! to the store, where the daemon reads it when it starts. PGHoard's preservation requests are the
//! same objects.
//!
//! | code | when |
//! |---|---|
//! | 0 | done |
//! | 1 | not done, and why |
//! | 2 | wrong command line or configuration |

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use machine::projection::marks::Mark;
use machine::{BackupName, Class, Millis};
use serde_json::{Value, json};

use crate::clock;
use crate::config::{Config, Site};
use crate::failure::{Failure, Outcome};
use crate::http::{Peer, Reply};
use crate::publish::text::{iso, pretty, utc};
use crate::restore::Opened;
use crate::tool::screen;
use crate::work::label;
use crate::work::marks::holds::{self, Shelf};

#[derive(Parser)]
#[command(name = "pghoard hold", version, infer_long_args = true)]
/// Keep a basebackup, and all WAL from it on, whatever retention says
struct Hold {
    #[command(flatten)]
    at: At,
    /// The basebackup, as list-basebackups shows it
    #[arg(long, value_name = "NAME")]
    backup: String,
    /// Why, for whoever wonders later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// When it ends, as 2027-01-31T12:00:00Z; without it, until it is released
    #[arg(long, value_name = "ISO")]
    until: Option<String>,
}

#[derive(Parser)]
#[command(name = "pghoard release", version, infer_long_args = true)]
/// Take every hold of a basebackup away
struct Release {
    #[command(flatten)]
    at: At,
    /// The basebackup
    #[arg(long, value_name = "NAME")]
    backup: String,
}

#[derive(Parser)]
#[command(name = "pghoard holds", version, infer_long_args = true)]
/// Show which basebackups are held, from the store
struct Holds {
    #[command(flatten)]
    at: At,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct At {
    /// The site; may be left out where there is only one
    #[arg(long)]
    site: Option<String>,
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
}

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;

pub fn hold(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Hold = match crate::tool::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    run("hold", &flags.at, |config, site| {
        let until = match &flags.until {
            None => None,
            Some(text) => Some(label::millis(text).ok_or_else(|| {
                let message = format!("--until '{text}' is no moment");
                Failure::new(Class::Config, message).hint("give it as 2027-01-31T12:00:00Z")
            })?),
        };
        if until.is_some_and(|until| until <= clock::now()) {
            return Err(Failure::new(Class::Config, "--until lies in the past"));
        }
        let wanted = json!({
            "backup": flags.backup,
            "reason": flags.reason,
            "by": author(),
            "until": until.map(iso),
        });
        let mark = Mark::Hold {
            backup: BackupName(flags.backup.clone()),
            reason: flags.reason.clone(),
            by: author(),
            until,
        };
        let knows = told(config, site, "hold", &wanted, |shelf| {
            holds::hold(shelf, mark).map(drop)
        })?;
        let until = until.map_or("until it is released".to_owned(), |at| {
            format!("until {} UTC", utc(at))
        });
        Ok(format!(
            "basebackup {} of site '{}' is held {until}\n{knows}",
            flags.backup, site.name
        ))
    })
}

pub fn release(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Release = match crate::tool::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    run("release", &flags.at, |config, site| {
        let wanted = json!({ "backup": flags.backup });
        let backup = BackupName(flags.backup.clone());
        let knows = told(config, site, "release", &wanted, |shelf| {
            holds::release(shelf, &backup).map(drop)
        })?;
        Ok(format!(
            "basebackup {backup} of site '{}' is not held any more\n{knows}",
            site.name
        ))
    })
}

pub fn holds(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Holds = match crate::tool::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    run("holds", &flags.at, |_, site| {
        let opened = Opened::new(site)?;
        let all = holds::all(shelf(&opened))?;
        list(&all, flags.json, clock::now())
    })
}

fn run(name: &str, at: &At, act: impl FnOnce(&Config, &Site) -> Outcome<String>) -> i32 {
    let told = |failure: Failure, code: i32| {
        crate::tool::warn(format_args!("pghoard {name}: {failure}"));
        code
    };
    let config = match screen::config(at.config.clone()) {
        Ok(config) => config,
        Err(failure) => return told(failure, USAGE),
    };
    let site = match config.site(at.site.as_deref()) {
        Ok(site) => site,
        Err(failure) => return told(failure, USAGE),
    };
    match act(&config, site).and_then(|text| crate::tool::print(&text)) {
        Ok(()) => DONE,
        Err(failure) if failure.class == Class::Config => told(failure, USAGE),
        Err(failure) => told(failure, FAILED),
    }
}

fn list(all: &[(String, Mark)], json: bool, now: Millis) -> Outcome<String> {
    let mut rows = Vec::new();
    let mut text = String::new();
    for (key, mark) in all {
        let Mark::Hold {
            backup,
            reason,
            by,
            until,
        } = mark
        else {
            continue;
        };
        let passed = until.is_some_and(|until| until <= now);
        rows.push(json!({
            "backup": backup.0,
            "by": by,
            "object": key,
            "passed": passed,
            "reason": reason,
            "until": until.map(iso),
        }));
        let end = until.map_or("until it is released".to_owned(), |at| {
            format!("{} {}", if passed { "ended" } else { "until" }, utc(at))
        });
        let line = format!("{end}, by {by}: {reason}");
        text.push_str(&screen::wrap(&format!("{:<19}  ", backup.0), &line));
    }
    if json {
        return pretty(&Value::Array(rows));
    }
    Ok(match text.is_empty() {
        true => "nothing is held\n".to_owned(),
        false => text,
    })
}

/// Asks the daemon, or does it here where none runs; gives the line that says which it was.
fn told(
    config: &Config,
    site: &Site,
    what: &str,
    body: &Value,
    here: impl FnOnce(Shelf<'_>) -> Outcome<()>,
) -> Outcome<&'static str> {
    let path = format!("/{}/{what}", site.name);
    let asked = Peer::of(config).send("PUT", &path, &[], body.to_string().as_bytes());
    match asked {
        Ok(reply) if reply.status == 201 => return Ok("the daemon knows\n"),
        Ok(reply) if ours(&reply) => {
            let message = String::from_utf8_lossy(&reply.body);
            let class = match reply.status {
                400 => Class::Config,
                404 => Class::NotFound,
                401 => Class::Auth,
                _ => Class::Network,
            };
            let message = format!("the daemon answered {}: {message}", reply.status);
            return Err(Failure::new(class, message));
        }
        // Another program has the port.
        Ok(_) => {}
        Err(failure) if matches!(failure.class, Class::Network | Class::Timeout) => {}
        Err(failure) => return Err(failure),
    }
    let opened = Opened::new(site)?;
    here(shelf(&opened))?;
    Ok("no daemon runs here: it is written in the store, and known once one reads it\n")
}

fn ours(reply: &Reply) -> bool {
    let server = reply.header("server");
    server.is_some_and(|server| server.starts_with("pghoard/"))
}

/// Who asks: `user@host`.
fn author() -> String {
    let named = ["USER", "LOGNAME"].into_iter().find_map(|name| {
        let user = std::env::var(name).ok();
        user.filter(|user| !user.is_empty())
    });
    let user = named.unwrap_or_else(|| format!("uid {}", nix::unistd::geteuid()));
    format!("{user}@{}", crate::daemon::site::host_name())
}

fn shelf<'a>(opened: &'a Opened<'_>) -> Shelf<'a> {
    Shelf {
        store: opened.store.as_ref(),
        prefix: &opened.site.prefix,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn without_a_daemon_the_store_is_written_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("store/main/basebackup")).unwrap();
        fs::write(path("store/main/basebackup/a"), "x").unwrap();
        fs::write(path("store/main/basebackup/a.metadata"), "{}").unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let storage = json!({ "storage_type": "local", "directory": path("store") });
        let config = json!({
            "http_port": port,
            "backup_sites": { "main": { "object_storage": storage } },
        });
        fs::write(path("c.json"), config.to_string()).unwrap();
        let args = |words: &str| {
            let words = words.split(' ').map(OsString::from);
            let config = [OsString::from("--config"), path("c.json").into()];
            words.chain(config).collect::<Vec<_>>()
        };
        let held =
            || fs::read_dir(path("store/main/preservation_request")).map_or(0, |d| d.count());
        for (command, words, code, objects) in [
            ("hold", "x --backup b --reason audit", FAILED, 0),
            ("hold", "x --backup a", USAGE, 0),
            ("hold", "x --site other --backup a --reason r", USAGE, 0),
            (
                "hold",
                "x --backup a --reason r --until 2020-01-01",
                USAGE,
                0,
            ),
            (
                "hold",
                "x --backup a --reason r --until 2999-01-01T00:00:00Z",
                DONE,
                2,
            ),
            ("hold", "x --site main --backup a --reason again", DONE, 2),
            ("holds", "x", DONE, 2),
            ("holds", "x --json", DONE, 2),
            ("release", "x --backup b", FAILED, 2),
            ("release", "x --backup a", DONE, 0),
            ("release", "x --backup a", FAILED, 0),
        ] {
            let got = match command {
                "hold" => hold(args(words)),
                "release" => release(args(words)),
                _ => holds(args(words)),
            };
            assert_eq!((got, held()), (code, objects), "{command} {words}");
        }
    }

    #[test]
    fn holds_are_told_one_a_line() {
        let mark = |until| Mark::Hold {
            backup: BackupName("2026-11-22_09-27_0".into()),
            reason: "an audit".into(),
            by: "ada@desk".into(),
            until,
        };
        let all = [
            ("k".to_owned(), mark(None)),
            ("l".to_owned(), mark(Some(Millis(0)))),
        ];
        let text = list(&all, false, Millis(5)).unwrap();
        assert_eq!(
            text,
            "2026-11-22_09-27_0   until it is released, by ada@desk: an audit\n\
             2026-11-22_09-27_0   ended 1970-01-01 00:00:00, by ada@desk: an audit\n"
        );
        assert_eq!(list(&[], false, Millis(5)).unwrap(), "nothing is held\n");
        let told = list(&all, true, Millis(5)).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(
            (&told[0]["passed"], &told[1]["passed"]),
            (&json!(false), &json!(true))
        );
    }
}
