//! What the store holds already: of which cluster, from when, and can it be read?

use std::io;

use machine::event::Event;
use machine::{Class, File, Segment, SegmentSize};

use super::finding::Finding;
use super::server::Seen;
use crate::clock;
use crate::codec::decoder;
use crate::failure::{Failure, Outcome};
use crate::publish::text;
use crate::store::{Entry, Object};
use crate::work::Place;
use crate::work::reconcile::{cluster, latest_wal, stored_size};

/// More than the clocks of ordinary machines differ.
const FUTURE_MS: i64 = 60_000;

pub fn look(place: &Place, servers: &[Seen], findings: &mut Vec<Finding>) {
    let newest = match Newest::find(place) {
        Ok(newest) => newest,
        Err(failure) => {
            let cure = "let the daemon's user list and read there";
            findings.push(Finding::failed("stored", &failure, cure));
            return;
        }
    };
    if newest.wal.is_none() && newest.main.is_none() {
        findings.push(Finding::ok("stored", "nothing yet"));
        return;
    }
    findings.extend(same_cluster(&newest, servers));
    findings.extend(future(&newest));
    findings.push(readable(place, &newest));
}

struct Newest {
    wal: Option<(i64, Segment)>,
    main: Option<Entry>,
    cluster: Option<u64>,
    size: SegmentSize,
}

impl Newest {
    fn find(place: &Place) -> Outcome<Newest> {
        let size = stored_size(place)?;
        let latest = latest_wal(place, size)?;
        let mut main: Option<Entry> = None;
        place.store.list(&place.key("basebackup"), &mut |entry| {
            if main
                .as_ref()
                .is_none_or(|newest| newest.modified_ms < entry.modified_ms)
            {
                main = Some(entry);
            }
            Ok(())
        })?;
        let cluster = match cluster::learn(place, &latest, size)? {
            Some(Event::ClusterLearned { system_id, .. }) => Some(system_id),
            Some(_) | None => None,
        };
        Ok(Newest {
            wal: latest.last().copied(),
            main,
            cluster,
            size,
        })
    }
}

fn same_cluster(newest: &Newest, servers: &[Seen]) -> Option<Finding> {
    let stored = newest.cluster?;
    let server = servers.first()?;
    let id = server.identity.system_id;
    Some(match stored == id {
        true => Finding::ok("stored_cluster", "the WAL in the store is of this cluster"),
        false => Finding::fail(
            "stored_cluster",
            format!("the store holds WAL of cluster {stored}, the servers are of {id}"),
            "give the new cluster a site (or a prefix) of its own, and let its moved_from name the \
             old one",
        ),
    })
}

fn future(newest: &Newest) -> Option<Finding> {
    let wal = newest.wal.map(|(at, _)| at);
    let main = newest.main.as_ref().map(|entry| entry.modified_ms);
    let at = wal.into_iter().chain(main).max()?;
    let now = i64::try_from(clock::now().0).unwrap_or(i64::MAX);
    let ahead = at.saturating_sub(now);
    let span = |ms: i64| text::span(ms.unsigned_abs());
    Some(match ahead > FUTURE_MS {
        true => Finding::warn(
            "stored_time",
            format!("the newest object is {} in the future", span(ahead)),
            "set this machine's clock; have it follow a time server",
        ),
        false => Finding::ok(
            "stored_time",
            format!("the newest object is {} old", span(ahead)),
        ),
    })
}

/// The newest segment and the newest main object, read to their ends.
fn readable(place: &Place, newest: &Newest) -> Finding {
    let wal = newest
        .wal
        .map(|(_, segment)| place.key(&File::Wal(segment).key(newest.size)));
    let main = newest.main.as_ref().map(|entry| entry.key.clone());
    let keys: Vec<String> = wal.into_iter().chain(main).collect();
    for key in &keys {
        match read(place, key) {
            Ok(()) => {}
            Err(failure) if failure.class == Class::Config => {
                return Finding::ok(
                    "stored_readable",
                    format!("not read: {}; a restore needs it", failure.message),
                );
            }
            Err(failure) => {
                let cure = "restore the key it was encrypted for; pghoard verify tells of the rest";
                return Finding::failed("stored_readable", &failure.about(key), cure);
            }
        }
    }
    Finding::ok(
        "stored_readable",
        format!("{} newest objects were read", keys.len()),
    )
}

fn read(place: &Place, key: &str) -> Outcome<()> {
    let (Object { entry, metadata }, body) = place.store.get(key)?;
    let mut plain = decoder(body, entry.size_bytes, &metadata, &place.keys)?;
    let read = io::copy(&mut plain, &mut io::sink());
    read.map(drop)
        .map_err(|e| Failure::from_io(&e, "its content"))
}
