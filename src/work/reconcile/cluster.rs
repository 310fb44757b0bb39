//! Which cluster the objects of a site are of, for a log that does not know it yet (S-15).
//!
//! Numbers of segments do not collide between clusters: without this a server that was set up anew,
//! or another one at the old address, would be archived among the old one's WAL after the log was
//! lost. What we stored says it beside the object; what PGHoard stored, in its first page.

use std::collections::BTreeSet;
use std::io::Read;

use machine::{Class, Event, File, Segment, SegmentSize};

use crate::codec::decoder;
use crate::failure::{Failure, Outcome};
use crate::pg::files::{WAL_HEADER_BYTES, WalHeader};
use crate::store::Object;
use crate::work::{Place, label};

/// What the WAL says that was stored last and can be read; `None` if none can. By time and not by
/// name: after a `pg_upgrade` timelines begin anew, and PGHoard went on in the same site.
pub fn learn(
    place: &Place,
    latest: &BTreeSet<(i64, Segment)>,
    size: SegmentSize,
) -> Outcome<Option<Event>> {
    let mut unread = None;
    for (_, segment) in latest.iter().rev() {
        let segment = *segment;
        let key = place.key(&File::Wal(segment).key(size));
        match system_id(place, &key) {
            Ok(system_id) => return Ok(Some(Event::ClusterLearned { system_id, segment })),
            Err(failure) => match failure.class {
                Class::Corrupt | Class::NotFound | Class::Config | Class::Unsupported => {
                    unread = Some(failure.about(&key));
                }
                _ => return Err(failure),
            },
        }
    }
    if let Some(failure) = unread {
        log::warn!(
            "{failure}; the first server that answers is taken for the cluster of the WAL in the \
             store"
        );
    }
    Ok(None)
}

fn system_id(place: &Place, key: &str) -> Outcome<u64> {
    let object = place.store.look(key)?;
    let told = object
        .as_ref()
        .and_then(|o| o.metadata.get(label::SYSTEM_ID));
    if let Some(id) = told.and_then(|id| id.parse().ok()) {
        return Ok(id);
    }
    let (Object { entry, metadata }, body) = place.store.get(key)?;
    let plain = decoder(body, entry.size_bytes, &metadata, &place.keys)?;
    let mut head = Vec::new();
    let wanted = u64::try_from(WAL_HEADER_BYTES).unwrap_or(u64::MAX);
    plain
        .take(wanted)
        .read_to_end(&mut head)
        .map_err(|error| Failure::from_io(&error, "its first page"))?;
    Ok(WalHeader::parse(&head)?.system_id)
}
