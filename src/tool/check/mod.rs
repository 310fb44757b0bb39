//! `pghoard check`: does the configuration fit the world? Every point is `ok` or says what to do:
//! folders, servers, store, keys, clock, and at last one WAL segment all the way there and back.
//!
//! It may run beside a daemon and in production. It opens no event log, moves no slot, and what it
//! puts into the store it takes away again. Only the last point does something to the server: it
//! has the current WAL segment finished, as `archive_timeout` would.
//!
//! | code | when |
//! |---|---|
//! | 0 | all is well; warnings may be shown |
//! | 1 | something must be done |
//! | 2 | wrong command line or configuration |

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use machine::Class;

use crate::config::{self, Activity, Config, Site};
use crate::failure::{Failure, Outcome};
use crate::publish::text;
use finding::{About, Finding, Group, Verdict};
use host::Host;

mod cluster;
mod door;
mod finding;
mod host;
mod keys;
mod segment;
mod server;
mod site;
mod stored;
mod trial;

#[derive(Parser)]
#[command(name = "pghoard check", version, infer_long_args = true)]
/// Check the configuration, the servers, the store and the keys, and say what to do
struct Flags {
    /// Only this site
    #[arg(long)]
    site: Option<String>,
    /// For programs
    #[arg(long)]
    json: bool,
    /// How long the last point waits for its segment
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Configuration file, where --config is not given
    config_file: Option<PathBuf>,
}

const WELL: i32 = 0;
const TO_DO: i32 = 1;
const USAGE: i32 = 2;

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Flags = match super::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    check(flags).unwrap_or_else(|failure| {
        super::warn(format_args!("pghoard check: {failure}"));
        USAGE
    })
}

fn check(mut flags: Flags) -> Outcome<i32> {
    let path = flags.config.take().or(flags.config_file.take());
    let path = path.filter(|path| !path.as_os_str().is_empty());
    let path = path.ok_or_else(|| {
        let message = "config file path must be given with --config or via env PGHOARD_CONFIG";
        Failure::new(Class::Config, message)
    })?;
    let raw = config::load_json(&path)?;
    let (config, warnings) = config::parse(&raw)?;
    let sites: Vec<&Site> = match &flags.site {
        Some(name) => vec![config.site(Some(name))?],
        None => config.sites.values().collect(),
    };
    let mut report = Report {
        json: flags.json,
        groups: Vec::new(),
    };
    let host = Host::look(&config, &path, warnings, &raw);
    report.add(Group {
        about: About::default(),
        title: path.display().to_string(),
        findings: host.findings(),
    })?;
    for site in sites {
        let wait = Duration::from_secs(flags.timeout);
        look(&config, site, &host, wait, &mut report)?;
    }
    report.end()
}

fn look(
    config: &Config,
    site: &Site,
    host: &Host<'_>,
    wait: Duration,
    report: &mut Report,
) -> Outcome<()> {
    let about = About {
        site: Some(site.name.clone()),
        node: None,
    };
    let title = format!("site {}", site.name);
    if site.active == Activity::Inactive {
        let idle = Finding::ok("active", "false: nothing is received, taken or deleted");
        return report.add(Group {
            about,
            title,
            findings: vec![idle],
        });
    }
    let mut findings = site::findings(site);
    findings.extend(keys::findings(config, site));
    report.add(Group {
        about: about.clone(),
        title: title.clone(),
        findings,
    })?;
    let mut servers = Vec::new();
    for (number, info) in site::infos(site).into_iter().enumerate() {
        let looked = server::look(number, info, site, host.running());
        report.add(Group {
            about: About {
                node: Some(number),
                ..about.clone()
            },
            title: format!("{title}, server {number} at {}", looked.place),
            findings: looked.findings,
        })?;
        servers.extend(looked.seen);
    }
    let mut findings = cluster::findings(site, &servers);
    let shelf = trial::open(site, host.may_write(), &mut findings);
    if let Some(shelf) = &shelf {
        stored::look(shelf, &servers, &mut findings);
        findings.extend(segment::findings(&segment::Way {
            host,
            site,
            shelf,
            servers: &servers,
            wait,
        }));
    }
    report.add(Group {
        about,
        title: format!("{title}, cluster and store"),
        findings,
    })
}

/// Shown as it is found, or at the end for programs.
struct Report {
    json: bool,
    groups: Vec<Group>,
}

impl Report {
    fn add(&mut self, group: Group) -> Outcome<()> {
        let gap = if self.groups.is_empty() { "" } else { "\n" };
        if !self.json && !group.findings.is_empty() {
            super::print(&format!("{gap}{}", group.render()))?;
        }
        self.groups.push(group);
        Ok(())
    }

    fn end(&self) -> Outcome<i32> {
        match self.json {
            true => super::print(&text::pretty(&finding::json(&self.groups))?)?,
            false => super::print(&format!("\n{}\n", finding::summary(&self.groups)))?,
        }
        Ok(match finding::count(&self.groups, Verdict::Fail) {
            0 => WELL,
            _ => TO_DO,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.json");
        std::fs::write(&path, r#"{"backup_sites": {"a": {"active": false}}}"#).unwrap();
        let path = path.to_str().unwrap();
        for (words, code) in [
            (&["--config", ""][..], USAGE),
            (&["--config", "/nowhere/c.json"], USAGE),
            (&["--config", path, "--site", "b"], USAGE),
            (&["--timeout", "soon"], USAGE),
            // No backup_location.
            (&["--config", path], TO_DO),
            (&["--json", path, "--site", "a"], TO_DO),
        ] {
            let args = ["pghoard check"].iter().chain(words).map(OsString::from);
            assert_eq!(run(args), code, "{words:?}");
        }
    }
}
