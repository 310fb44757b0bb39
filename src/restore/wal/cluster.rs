//! Whose WAL is whose: a site that was moved to another may have left a cluster behind, and both
//! have the same names.
//!
//! A segment says in its first page to which cluster it belongs. A history file does not, so the
//! segment in which its timeline begins speaks for it; where that is gone nobody knows, and the
//! file is taken: PostgreSQL refuses a history that is not its own, but would end its recovery
//! early without one that is.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use machine::{Class, Segment, Timeline};

use super::{Kind, Shelf, WAL_HEADER_BYTES, WalHeader, at, decoded};
use crate::failure::{Failure, Outcome};
use crate::pg::files::History;

/// The system identifier of the cluster in a data directory, if there is one that we may read:
/// the first field of `pg_control` (PostgreSQL `pg_control.h`, `ControlFileData`).
pub fn of(pgdata: &Path) -> Option<u64> {
    let mut field = [0; 8];
    let mut file = File::open(pgdata.join("global/pg_control")).ok()?;
    file.read_exact(&mut field).ok()?;
    Some(u64::from_ne_bytes(field)).filter(|id| *id != 0)
}

/// Whether a segment's file is of this cluster, or may be.
pub fn fits(segment: &Path, cluster: Option<u64>) -> bool {
    let Some(cluster) = cluster else {
        return true;
    };
    let mut head = [0; WAL_HEADER_BYTES];
    let read = File::open(segment).and_then(|mut file| file.read_exact(&mut head));
    let header = read.ok().and_then(|()| WalHeader::parse(&head).ok());
    header.is_some_and(|header| header.system_id == cluster)
}

impl Shelf<'_> {
    /// The cluster that the segment `name` is of, if it is here and says so.
    pub fn cluster(&self, name: &str) -> Outcome<Option<u64>> {
        let key = self.key(Kind::Segment, name);
        if self.source.store.look(&key)?.is_none() {
            return Ok(None);
        }
        let (object, body) = self.source.store.get(&key)?;
        let mut head = Vec::new();
        let wanted = u64::try_from(WAL_HEADER_BYTES).unwrap_or(u64::MAX);
        let read = decoded(&object, body, &self.source).and_then(|plain| {
            let read = plain.take(wanted).read_to_end(&mut head);
            read.map_err(|e| Failure::from_io(&e, &key))?;
            WalHeader::parse(&head)
        });
        match read {
            Ok(header) => Ok(Some(header.system_id)),
            // Whoever is given it is told of that.
            Err(failure) if failure.class == Class::Corrupt => Ok(None),
            Err(failure) => Err(at(&key, failure)),
        }
    }

    /// Whether the history file `name` is known to be of another cluster than this.
    pub fn is_foreign(&self, name: &str, cluster: Option<u64>) -> Outcome<bool> {
        let (Some(cluster), Some(timeline)) = (cluster, Timeline::from_history_name(name)) else {
            return Ok(false);
        };
        let text = self.source.read(&self.key(Kind::History, name));
        let history = match text.and_then(|text| History::parse(timeline, &text)) {
            Ok(history) => history,
            Err(failure) if failure.class == Class::Corrupt => return Ok(false),
            Err(failure) => return Err(failure),
        };
        let (Some(left), Some(size)) = (history.ancestors.last(), self.segment_size()?) else {
            return Ok(false);
        };
        let first = Segment::at(timeline, left.end, size).name(size);
        let found = self.cluster(&first)?;
        Ok(found.is_some_and(|found| found != cluster))
    }
}
