//! Objects out of the store: a dead backup's, and WAL that nobody needs.
//!
//! A backup's main object goes first, so that no listing ever shows a main object without its
//! parts; and blindly, because a put that failed may be there. Deleting nothing is fine. Right
//! before that the holds in the store are read: another program may have written one just now.
//! No key is needed for any of it.

use machine::breaks::{Rule, holds};
use machine::event::Range;
use machine::projection::marks::Mark;
use machine::{BackupName, Event, File, Millis, Segment, SegmentSize};

use crate::failure::Outcome;
use crate::work::{Place, marks};

/// Progress of a long deletion is recorded every so many segments.
const STEP: u64 = 1_000;

/// What to remove.
#[derive(Clone, Copy, Debug)]
pub struct Doomed<'a> {
    pub name: &'a BackupName,
    /// The base name of the main object, where it is not the one we would give.
    pub object: Option<&'a str>,
    /// It expired, and stays if somebody holds it now after all. `None` for one that failed.
    pub unless_held_at: Option<Millis>,
}

pub fn backup(
    place: &Place,
    doomed: Doomed<'_>,
    size: SegmentSize,
    emit: &mut dyn FnMut(Event),
) -> Outcome<()> {
    let Doomed { name, object, .. } = doomed;
    let main = File::Main(name.clone());
    let key = match object {
        Some(object) => place.key(&format!("basebackup/{object}")),
        None => place.key(&main.key(size)),
    };
    if let Some(now) = doomed.unless_held_at
        && let Some(hold) = marks::held(place, name, now)?
        && place.store.look(&key)?.is_some()
    {
        // That it exists is part of what a hold relies on.
        emit(Event::Found {
            segment_size: size,
            wal: Vec::new(),
            files: vec![main],
        });
        emit(hold);
        return Ok(());
    }
    if object.is_some() || holds(Rule::MainRemovedBlindly) {
        place.store.delete(&key)?;
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

/// WAL to remove, and what is marked before and forgotten after.
#[derive(Clone, Copy, Debug)]
pub struct Wal<'a> {
    pub ranges: &'a [Range],
    pub retire: &'a [Range],
    pub forget: &'a [String],
}

pub fn wal(
    place: &Place,
    wal: Wal<'_>,
    size: SegmentSize,
    emit: &mut dyn FnMut(Event),
) -> Outcome<()> {
    for range in wal.retire {
        let mark = Mark::WalRetired { range: *range };
        emit(marks::write(place, mark, size)?);
    }
    ranges(place, wal.ranges, size, emit)?;
    for key in wal.forget {
        emit(marks::remove(place, key)?);
    }
    if wal.ranges.is_empty() {
        // The task is done; nothing else says so.
        emit(Event::Deleted {
            wal: Vec::new(),
            files: Vec::new(),
        });
    }
    Ok(())
}

fn ranges(
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
