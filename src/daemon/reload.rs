//! The configuration read again while the daemon runs.
//!
//! First everything is built: the file is read and checked, stores are opened, spools of new sites
//! looked at. Then all of it comes into force between two turns of the loop, or, when anything
//! failed, nothing: the configuration before stays in force as a whole, and an alert stands. Tasks
//! that hold to what changed are stopped and begun anew by decide; the rest end by what they began
//! with, so a basebackup that runs keeps its key, its compression and its server.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use machine::policy::Policy;
use machine::{Event, Site};
use serde_json::Value;

use super::{Daemon, Sites, digest, site};
use crate::config::reload::{changes, first, keep};
use crate::config::{self, Activity, Config, LogLevel};
use crate::failure::Outcome;
use crate::journal::run::Report;
use crate::journal::start;
use crate::publish::metrics::send::Metrics;
use crate::report;
use crate::serve::Server;

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub struct Source {
    pub path: PathBuf,
    /// Asked for at the command line.
    pub log_level: LogLevel,
}

/// A configuration, and the file's content it was made of.
pub struct Read {
    pub config: Config,
    pub raw: Value,
}

impl Source {
    /// What has no effect in it is told.
    pub fn read(&self) -> Outcome<Read> {
        let raw = config::load_json(&self.path)?;
        let (config, warnings) = config::parse(&raw)?;
        for warning in warnings {
            log::warn!("{}: {}", warning.path, warning.message);
        }
        Ok(Read { config, raw })
    }

    /// Where log lines go, and which.
    pub fn log_by(&self, config: &Config) {
        report::set_level(stronger(self.log_level, config.log_level));
        report::syslog::send_to(config.syslog.as_ref());
    }
}

/// Who asked for --debug looks right now: it outranks the configuration.
fn stronger(asked: LogLevel, configured: LogLevel) -> LogLevel {
    match asked {
        LogLevel::Debug => asked,
        LogLevel::Info | LogLevel::Warning | LogLevel::Error | LogLevel::Critical => configured,
    }
}

/// Everything that the next turn is to work by.
struct Prepared {
    config: Arc<Config>,
    http: Arc<Server>,
    raw: Value,
    sites: Sites,
    policy: Policy,
    /// If they are wanted otherwise.
    metrics: Option<Metrics>,
    events: Vec<(Option<Site>, Event)>,
}

impl Daemon {
    /// As a whole or not at all; either way the log says so.
    pub(super) fn reload(&mut self) -> Outcome<()> {
        self.notify.reloading();
        let events = match self.prepare() {
            Ok(prepared) => self.adopt(prepared),
            Err(failure) => {
                let message = failure.to_string();
                vec![(None, Event::ConfigRefused { message })]
            }
        };
        self.take_in(vec![Report::facts(events)])?;
        self.notify.ready();
        Ok(())
    }

    fn prepare(&self) -> Outcome<Prepared> {
        let machine = &self.machine;
        let (world, old) = (&machine.world, &machine.world.config);
        let Read { mut config, raw } = self.source.read()?;
        let kept = keep(old, &mut config);
        let config = Arc::new(config);
        let http = self.http.under(&config)?;
        let root = config.backup_location.clone().unwrap_or_default();
        let sites = site::open_all(&config, &root, world.sites())?;
        let mut policy = site::policy(&config, &sites);
        // What the last look around found holds until the next one.
        policy.maintenance = machine.policy.maintenance;
        policy.unsynchronised = machine.policy.unsynchronised.clone();
        policy.troubles = machine.policy.troubles.clone();
        for (name, site) in &mut policy.sites {
            let before = machine.policy.sites.get(name);
            site.cramped_since = before.and_then(|before| before.cramped_since);
        }
        let metrics = world
            .front
            .metrics_under((old, &config), &machine.state, &policy)?;
        let mut events = loaded(old, &config, changes(&self.raw, &raw), kept);
        for (name, opened) in &sites {
            if !world.sites().contains_key(name) {
                let found = opened.spool.scan()?;
                let known = machine.state.sites.get(name).cloned().unwrap_or_default();
                // Numbers of their own for all that may be adopted: the scan counts before use.
                let most = u64::try_from(found.len()).unwrap_or(u64::MAX);
                let mut next = self.entries.fetch_add(most, Ordering::SeqCst);
                next = next.saturating_sub(1);
                let scan = start::scan(&known, &found, &mut next);
                events.extend(opened.found(scan)?);
            }
        }
        Ok(Prepared {
            config,
            http,
            raw,
            sites,
            policy,
            metrics,
            events,
        })
    }

    /// Cannot fail. Answers what the log is to know.
    fn adopt(&mut self, prepared: Prepared) -> Vec<(Option<Site>, Event)> {
        let config = &prepared.config;
        let before = Arc::clone(&self.machine.world.config);
        self.source.log_by(config);
        warn_of_slots(&before, config);
        self.http.adopt(prepared.http);
        let world = &mut self.machine.world;
        let doors = site::doors(config, &prepared.sites);
        world.front.desk.adopt(doors);
        world.front.adopt(config, prepared.metrics);
        world.adopt(config, prepared.sites);
        self.machine.policy = prepared.policy;
        self.raw = prepared.raw;
        prepared.events
    }
}

/// A slot that nobody empties fills its server's disk (S-14), and nobody will tell any more.
fn warn_of_slots(old: &Config, new: &Config) {
    let gone = |site: &&config::Site| {
        let there = new.sites.get(&site.name);
        there.is_none_or(|there| there.active == Activity::Inactive)
    };
    let left = old.sites.values().filter(gone);
    for site in left.filter(|site| site.active == Activity::Active) {
        log::warn!(
            "site '{}' is not active any more; a replication slot of its keeps holding back WAL on \
             the server: drop it there unless the site comes back soon",
            site.name
        );
    }
}

/// One event for the whole, and one for each site that was there before and is otherwise now: its
/// tries begin anew, and a look at its servers where these may be others.
fn loaded(
    old: &Config,
    new: &Config,
    mut changed: Vec<String>,
    kept: Vec<String>,
) -> Vec<(Option<Site>, Event)> {
    let digest = digest(new);
    let mut events = Vec::new();
    for (name, site) in &new.sites {
        let before = old.sites.get(name);
        let Some(before) = before.filter(|before| *before != site) else {
            continue;
        };
        let path = format!("backup_sites.{name}.");
        let (ours, rest) = changed
            .into_iter()
            .partition(|key: &String| key.starts_with(&path));
        changed = rest;
        let ours: Vec<String> = ours;
        let ours = ours.iter().filter_map(|key| key.strip_prefix(&path));
        let event = Event::ConfigLoaded {
            digest: digest.clone(),
            sites: vec![name.clone()],
            changed: first(ours.map(str::to_owned).collect()),
            kept: Vec::new(),
            elsewhere: before.nodes != site.nodes,
        };
        events.push((Some(Site(name.clone())), event));
    }
    let whole = Event::ConfigLoaded {
        digest,
        sites: new.sites.keys().cloned().collect(),
        changed: first(changed),
        kept,
        elsewhere: false,
    };
    events.insert(0, (None, whole));
    events
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// PGHoard's configuration takes it back.
    #[test]
    fn differs_debug_outranks_the_configuration() {
        for (asked, configured, expect) in [
            (LogLevel::Debug, LogLevel::Error, LogLevel::Debug),
            (LogLevel::Info, LogLevel::Error, LogLevel::Error),
            (LogLevel::Info, LogLevel::Debug, LogLevel::Debug),
        ] {
            assert_eq!(stronger(asked, configured), expect);
        }
    }

    /// What the log is told of a change: `SITE or -: changed keys[, elsewhere]`.
    fn check(old: &Value, new: &Value, expect: &[&str]) {
        let parsed = |value| config::parse(value).unwrap().0;
        let events = loaded(&parsed(old), &parsed(new), changes(old, new), Vec::new());
        let told = events.iter().map(|(site, event)| {
            let Event::ConfigLoaded {
                changed, elsewhere, ..
            } = event
            else {
                panic!("{event:?}");
            };
            let site = site.as_ref().map_or("-", |site| site.0.as_str());
            let elsewhere = if *elsewhere { ", elsewhere" } else { "" };
            format!("{site}: {}{elsewhere}", changed.join(" "))
        });
        assert_eq!(told.collect::<Vec<_>>(), expect, "{new}");
    }

    #[test]
    fn each_site_hears_of_its_own() {
        let nodes = json!([{ "host": "db", "password": "x" }]);
        let old = json!({ "backup_sites": { "a": { "nodes": nodes }, "b": {}, "c": {} } });
        let changed = |path: &str, value: Value| {
            let mut new = old.clone();
            *new.pointer_mut(path).unwrap() = value;
            new
        };
        check(&old, &old, &["-: "]);
        let password = json!([{ "host": "db", "password": "y" }]);
        let new = changed("/backup_sites/a/nodes", password);
        check(&old, &new, &["-: ", "a: nodes, elsewhere"]);
        let new = changed("/backup_sites/b", json!({ "ack": "spooled" }));
        check(&old, &new, &["-: ", "b: ack"]);
        let fewer = json!({ "log_level": "DEBUG", "backup_sites": { "a": { "nodes": nodes } } });
        let whole = "-: backup_sites.b backup_sites.c log_level";
        check(&old, &fewer, &[whole]);
        check(&fewer, &old, &[whole]);
    }
}
