//! The archive as the daemon tells of it.

use machine::{Class, Segment, SegmentSize};
use serde::Deserialize;

use crate::failure::{Failure, Outcome};
use crate::http::{Peer, Reply};
use crate::store::Metadata;
use crate::tool::warn;
use crate::work::label;

pub struct Archive<'a> {
    pub daemon: Peer,
    pub site: &'a str,
}

/// Whether the archive has a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    No,
    Yes(Option<Noted>),
}

/// The digest of its plain content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    pub algorithm: String,
    pub hash: String,
}

#[derive(Deserialize)]
struct Listing {
    basebackups: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    metadata: Metadata,
}

impl Archive<'_> {
    pub fn held(&self, name: &str) -> Outcome<Held> {
        let path = format!("/{}/archive/{name}", self.site);
        let reply = self.daemon.ask("HEAD", &path, &[])?;
        let header = |name: &str| reply.header(name).map(str::to_owned);
        match reply.status {
            200 => {
                let noted = header("metadata-hash").zip(header("metadata-hash-algorithm"));
                Ok(Held::Yes(
                    noted.map(|(hash, algorithm)| Noted { algorithm, hash }),
                ))
            }
            404 => Ok(Held::No),
            _ => Err(unanswered(&format!("whether '{name}' is archived"), &reply)),
        }
    }

    /// `Err` inside is the daemon's word that it did not.
    pub fn put(&self, name: &str) -> Outcome<Result<(), String>> {
        let path = format!("/{}/archive/{name}", self.site);
        let reply = self.daemon.ask("PUT", &path, &[])?;
        Ok(match reply.status {
            201 => Ok(()),
            status => Err(format!("HTTP status {status}{}", reason(&reply))),
        })
    }

    pub fn ask_for_basebackup(&self) -> Outcome<()> {
        let path = format!("/{}/archive/basebackup", self.site);
        let reply = self.daemon.ask("PUT", &path, &[])?;
        match reply.status {
            201 => Ok(()),
            _ => Err(unanswered("the request for a basebackup", &reply)),
        }
    }

    /// Where the newest basebackup begins, by the time of its start.
    pub fn first_required(&self, size: SegmentSize) -> Outcome<Option<Segment>> {
        let path = format!("/{}/basebackup", self.site);
        let reply = self.daemon.ask("GET", &path, &[])?;
        if reply.status != 200 {
            return Err(unanswered("the list of basebackups", &reply));
        }
        let listing: Listing = serde_json::from_slice(&reply.body).map_err(|e| {
            let message = format!("the daemon's list of basebackups: {e}");
            Failure::new(Class::Corrupt, message)
        })?;
        let started = |listed: &Listed| {
            let at = listed.metadata.get("start-time");
            (at.and_then(|at| label::millis(at)), listed.name.clone())
        };
        let Some(newest) = listing.basebackups.into_iter().max_by_key(started) else {
            warn("No basebackups found: every segment in pg_wal counts");
            return Ok(None);
        };
        let start = newest.metadata.get("start-wal-segment");
        let start = start.and_then(|name| Segment::from_name(name, size));
        let none = || {
            let message = format!("basebackup '{}' does not say where it begins", newest.name);
            Failure::new(Class::Corrupt, message)
        };
        start.map(Some).ok_or_else(none)
    }
}

fn unanswered(what: &str, reply: &Reply) -> Failure {
    let message = format!(
        "{what}: the daemon answered {}{}",
        reply.status,
        reason(reply)
    );
    Failure::new(Class::Unsupported, message)
}

/// The first line of what the daemon said about it.
fn reason(reply: &Reply) -> String {
    let body = String::from_utf8_lossy(&reply.body);
    match body.lines().next() {
        Some(line) if !line.is_empty() => format!(" ({})", line.escape_debug()),
        _ => String::new(),
    }
}
