//! `moved_from`: which sites are the history of which.
//!
//! An active site decides what expires in the inactive sites it was moved from. PGHoard takes any
//! list; what would have two sites decide, or a site be its own past, is refused.

use std::collections::BTreeMap;

use machine::Class;

use super::{Activity, Config, Site};
use crate::failure::{Failure, Outcome};

impl Config {
    /// The site and the sites it was moved from: where its backups may be.
    pub fn with_older<'a>(&'a self, site: &'a Site) -> Vec<&'a Site> {
        let older = site.moved_from.iter();
        let older = older.filter_map(|name| self.sites.get(name));
        std::iter::once(site).chain(older).collect()
    }

    /// Where WAL of a site may be: in it, which comes first, because another may belong to another
    /// cluster; in those it was moved from; and in those it was moved to, with their history.
    pub fn related<'a>(&'a self, site: &'a Site) -> Vec<&'a Site> {
        let mut all = self.with_older(site);
        let newer = self.sites.values();
        let newer = newer.filter(|newer| newer.moved_from.contains(&site.name));
        for other in newer.flat_map(|newer| self.with_older(newer)) {
            if all.iter().all(|known| known.name != other.name) {
                all.push(other);
            }
        }
        all
    }

    /// The inactive sites whose backups expire by the rules of this one. One in the very place of
    /// it is none: its objects are the site's own.
    pub fn history<'a>(&'a self, site: &'a Site) -> Vec<&'a Site> {
        let elsewhere = |older: &&Site| {
            let place = (&older.prefix, &older.object_storage);
            place != (&site.prefix, &site.object_storage)
        };
        let mut history: Vec<&Site> = Vec::new();
        if site.active == Activity::Active {
            let older = self.with_older(site).into_iter().skip(1);
            history.extend(older.filter(inactive).filter(elsewhere));
        }
        history.sort_by_key(|site| &site.name);
        history.dedup_by_key(|site| &site.name);
        history
    }
}

fn inactive(site: &&Site) -> bool {
    site.active == Activity::Inactive
}

pub(super) fn check(sites: &BTreeMap<String, Site>) -> Outcome<()> {
    for site in sites.values() {
        for name in &site.moved_from {
            if let Some(why) = refused(site, name, sites) {
                let message = format!("backup_sites.{}.moved_from: expected {why}", site.name);
                return Err(Failure::new(Class::Config, message));
            }
        }
    }
    Ok(())
}

fn refused(site: &Site, name: &str, sites: &BTreeMap<String, Site>) -> Option<String> {
    let Some(origin) = sites.get(name) else {
        return Some(format!("sites of this configuration, found '{name}'"));
    };
    if leads(origin, &site.name, sites, sites.len()) {
        return Some(format!(
            "sites that are older than it, found '{name}', which was moved from '{}'",
            site.name
        ));
    }
    let claims = |other: &&Site| {
        let active = other.active == Activity::Active;
        active && other.name != site.name && other.moved_from.iter().any(|from| from == name)
    };
    let decides = site.active == Activity::Active && inactive(&origin);
    let other = sites.values().filter(|_| decides).find(claims)?;
    Some(format!(
        "one active site to have '{name}' and to decide what expires in it, found '{}' has it too",
        other.name
    ))
}

/// Whether a site is this one or was moved from it, over at most `steps` others.
fn leads(from: &Site, to: &str, sites: &BTreeMap<String, Site>, steps: usize) -> bool {
    let Some(steps) = steps.checked_sub(1) else {
        return from.name == to;
    };
    let mut older = from.moved_from.iter().filter_map(|name| sites.get(name));
    from.name == to || older.any(|older| leads(older, to, sites, steps))
}
