//! The servers of a site together: one cluster, one primary, and the directory they keep it in.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::finding::Finding;
use super::server::Seen;
use crate::config::{ActiveBackupMode, Site};
use crate::publish::text;

type Point = fn(&Site, &[Seen]) -> Option<Finding>;

const POINTS: &[Point] = &[identifier, segments, primary, directory];

pub fn findings(site: &Site, servers: &[Seen]) -> Vec<Finding> {
    POINTS
        .iter()
        .filter_map(|point| point(site, servers))
        .collect()
}

fn identifier(_: &Site, servers: &[Seen]) -> Option<Finding> {
    let first = servers.first()?;
    let id = first.identity.system_id;
    let other = servers.iter().find(|seen| seen.identity.system_id != id);
    Some(match other {
        Some(other) => {
            let (a, b) = (first.number, other.number);
            let told = format!(
                "server {a} is of cluster {id}, server {b} of {}",
                other.identity.system_id
            );
            Finding::fail("cluster", told, "give each cluster a site of its own")
        }
        None => Finding::ok("cluster", id.to_string()),
    })
}

fn segments(_: &Site, servers: &[Seen]) -> Option<Finding> {
    let first = servers.first()?;
    let other = servers
        .iter()
        .find(|seen| seen.segment_size != first.segment_size)?;
    let size = |seen: &Seen| text::size(seen.segment_size.bytes());
    let told = format!("segments of {} and of {}", size(first), size(other));
    Some(Finding::fail(
        "segments",
        told,
        "give each cluster a site of its own",
    ))
}

fn primary(site: &Site, servers: &[Seen]) -> Option<Finding> {
    let primaries: Vec<&Seen> = servers
        .iter()
        .filter(|seen| !seen.sql.in_recovery)
        .collect();
    let apart = servers.iter().any(|seen| {
        let first = servers.first();
        first.is_some_and(|first| first.identity.system_id != seen.identity.system_id)
    });
    if apart {
        return None;
    }
    // One that does not answer may be it.
    if servers.is_empty() || (primaries.is_empty() && servers.len() < site.nodes.len()) {
        return None;
    }
    Some(match primaries.as_slice() {
        [] => Finding::warn(
            "primary",
            "every server is a standby",
            "name the primary among the nodes, too: only there a segment can be finished",
        ),
        [one] => Finding::ok("primary", format!("server {}", one.number)),
        [a, b, ..] => Finding::fail(
            "primary",
            format!("servers {} and {} both write", a.number, b.number),
            "stop the one that was left behind by the failover",
        ),
    })
}

/// `pg_data_directory`, where it is here: of the same cluster and version?
fn directory(site: &Site, servers: &[Seen]) -> Option<Finding> {
    let directory = site.pg_data_directory.as_ref()?;
    let shown = directory.display();
    let bad: fn(&'static str, String, String) -> Finding = match site.active_backup_mode {
        ActiveBackupMode::ArchiveCommand => Finding::fail,
        ActiveBackupMode::PgReceivexlog
        | ActiveBackupMode::Walreceiver
        | ActiveBackupMode::StandaloneHotBackup
        | ActiveBackupMode::Basic => Finding::warn,
    };
    let point = "data_directory";
    let version = match fs::read_to_string(directory.join("PG_VERSION")) {
        Ok(version) => version.trim().to_owned(),
        Err(e) => {
            let told = format!("{shown}/PG_VERSION: {e}");
            let cure = "let pg_data_directory name the data directory on this machine, readable \
                        for the daemon; leave it out where there is none";
            return Some(bad(point, told, cure.to_owned()));
        }
    };
    let first = servers.first()?;
    let major = (first.version / 10_000).to_string();
    let cure = "let pg_data_directory name the data directory of this cluster";
    if version != major {
        let told = format!("{shown} is of version {version}, the server of {major}");
        return Some(Finding::fail(point, told, cure));
    }
    Some(match control(directory) {
        Some(id) if id != first.identity.system_id => {
            let told = format!("{shown} is of cluster {id}");
            Finding::fail(point, told, cure)
        }
        Some(_) => Finding::ok(point, format!("{shown} is of this cluster")),
        None => Finding::ok(point, format!("{shown} is of the same version")),
    })
}

/// The system identifier, where we may read it: PostgreSQL `src/include/catalog/pg_control.h`.
fn control(directory: &Path) -> Option<u64> {
    let mut bytes = [0; 8];
    let mut file = File::open(directory.join("global/pg_control")).ok()?;
    file.read_exact(&mut bytes).ok()?;
    Some(u64::from_ne_bytes(bytes))
}
