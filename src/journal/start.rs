//! What a start does before the first turn: look at the spool and say what is there.
//!
//! There is no recovery code beyond this: a file the log knows stays what it is, WAL it does not
//! know is adopted, a file it knows that is gone is said to be gone. The rest is decide.

use machine::breaks::{Rule, holds};
use machine::event::{Origin, Reason};
use machine::{Event, File, Segment, SegmentSize, SiteState};

use crate::spool::Found;

pub struct Scan {
    pub events: Vec<Event>,
    /// Names to remove: content nobody can ever want.
    pub useless: Vec<String>,
    pub segment_size: SegmentSize,
}

/// Compares the spool's content with the log's view of it. `next_entry` numbers what is adopted.
pub fn scan(site: &SiteState, found: &[Found], next_entry: &mut u64) -> Scan {
    let ledger = &site.ledger;
    let segment_size = ledger
        .segment_size
        .or_else(|| size_of(found))
        .unwrap_or(SegmentSize::DEFAULT);
    let mut scan = Scan {
        events: Vec::new(),
        useless: Vec::new(),
        segment_size,
    };
    let named = |found: &Found| File::from_spool_name(&found.name, segment_size);
    for entry in found {
        let Some(file) = named(entry) else { continue };
        let known = ledger.spool.contains_key(&file);
        match &file {
            // In the break, "already stored" wins over what the log knows.
            File::Wal(segment) if !holds(Rule::KnownEntryOutranksStored) => {
                if ledger.stored(*segment) {
                    scan.useless.push(entry.name.clone());
                    continue;
                }
            }
            // Still being written, or waiting for its timeline's end to be noticed.
            File::Partial(_) => continue,
            File::Main(_) if !known => {
                scan.useless.push(entry.name.clone());
                continue;
            }
            File::Wal(_) | File::History(_) | File::Main(_) | File::Part { .. } => {}
        }
        if !known {
            *next_entry += 1;
            scan.events.push(Event::Spooled {
                file,
                entry: *next_entry,
                bytes: entry.bytes,
                origin: Origin::Adopted,
            });
        }
    }
    for (file, entry) in &ledger.spool {
        if !found
            .iter()
            .any(|found| named(found).as_ref() == Some(file))
        {
            let (file, entry) = (file.clone(), entry.id);
            scan.events.push(Event::Dropped {
                file,
                entry,
                reason: Reason::Vanished,
            });
        }
    }
    scan
}

/// A sealed segment's length is the segment size: the log may have been lost with that knowledge.
fn size_of(found: &[Found]) -> Option<SegmentSize> {
    found.iter().find_map(|found| {
        let size = SegmentSize::new(found.bytes)?;
        Segment::from_name(&found.name, size).map(|_| size)
    })
}
