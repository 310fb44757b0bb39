//! Objects out of the store: a dead backup's, and WAL that nobody needs.
//!
//! A backup's main object goes first, so that no listing ever shows a main object without its
//! parts; and blindly, because a put that failed may be there. Deleting nothing is fine.

use machine::breaks::{Rule, holds};
use machine::event::Range;
use machine::{BackupName, Event, File, Segment, SegmentSize};

use crate::failure::Outcome;
use crate::work::Place;

/// Progress of a long deletion is recorded every so many segments.
const STEP: u64 = 1_000;

/// `object`: the base name of the main object, where it is not the one we would give.
pub fn backup(
    place: &Place,
    name: &BackupName,
    object: Option<&str>,
    emit: &mut dyn FnMut(Event),
) -> Outcome<()> {
    let main = File::Main(name.clone());
    if let Some(object) = object {
        place
            .store
            .delete(&place.key(&format!("basebackup/{object}")))?;
    } else if holds(Rule::MainRemovedBlindly) {
        place
            .store
            .delete(&place.key(&main.key(SegmentSize::DEFAULT)))?;
    }
    let folder = place.key(&format!("basebackup_chunk/{name}"));
    let mut keys = Vec::new();
    place.store.list(&folder, &mut |entry| {
        keys.push(entry.key);
        Ok(())
    })?;
    let mut files = vec![main];
    for key in keys {
        place.store.delete(&key)?;
        files.extend(part_number(&key, name).map(|number| File::Part {
            backup: name.clone(),
            number,
        }));
    }
    emit(Event::Deleted {
        wal: Vec::new(),
        files,
    });
    Ok(())
}

/// The number in `.../BACKUP/BACKUP.00000003.pghoard`.
pub fn part_number(key: &str, backup: &BackupName) -> Option<u32> {
    let base = key.rsplit('/').next()?;
    let number = base
        .strip_prefix(&backup.0)?
        .strip_prefix('.')?
        .strip_suffix(".pghoard")?;
    number.parse().ok()
}

pub fn wal(
    place: &Place,
    ranges: &[Range],
    size: SegmentSize,
    emit: &mut dyn FnMut(Event),
) -> Outcome<()> {
    for range in ranges {
        let mut first = range.first;
        while first <= range.last {
            let last = range.last.min(first.saturating_add(STEP - 1));
            for number in first..=last {
                let file = File::Wal(Segment::new(range.timeline, number));
                place.store.delete(&place.key(&file.key(size)))?;
            }
            let done = Range {
                timeline: range.timeline,
                first,
                last,
            };
            emit(Event::Deleted {
                wal: vec![done],
                files: Vec::new(),
            });
            first = last.saturating_add(1);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
