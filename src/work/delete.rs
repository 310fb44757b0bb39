//! Objects out of the store: a dead backup's, and WAL that nobody needs.
//!
//! A backup's main object goes first, so that no listing ever shows a main object without its
//! parts; and blindly, because a put that failed may be there. Deleting nothing is fine. Right
//! before that the holds in the store are read: another program may have written one just now.
//! No key is needed for any of it.
//!
//! What the store refuses to delete (object lock, immutability, a legal hold there) is told and
//! passed over (S-66). A backup whose main object is refused stays whole.

use machine::breaks::{Rule, holds};
use machine::event::Range;
use machine::projection::marks::Mark;
use machine::runs::Runs;
use machine::{BackupName, Class, Event, File, Millis, Segment, SegmentSize};

use crate::failure::{Failure, Outcome};
use crate::work::{Place, marks};

/// Progress of a long deletion is recorded every so many segments.
const STEP: u64 = 1_000;
/// After so many refusals in a row the last of the range is asked for: what is locked by age is
/// locked to the end, and nobody wants to ask for 400,000 segments every day.
const REFUSED_MAX: u64 = 16;

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
    let mut refused = Refusals::default();
    let blindly = object.is_some() || holds(Rule::MainRemovedBlindly);
    let mut mains = vec![key];
    // One that failed did not say whether it was to be one object.
    let unsaid = object.is_none() && doomed.unless_held_at.is_none();
    mains.extend(unsaid.then(|| place.key(&format!("basebackup/{name}"))));
    for key in mains.iter().filter(|_| blindly) {
        if !refused.delete(place, key)? {
            refused.files.push(main);
            refused.tell(emit);
            return Ok(());
        }
    }
    let folder = place.key(&format!("basebackup_chunk/{name}"));
    let mut keys = Vec::new();
    place.store.list(&folder, &mut |entry| {
        keys.push(entry.key);
        Ok(())
    })?;
    let mut files = vec![main];
    for key in keys {
        let gone = refused.delete(place, &key)?;
        let part = part_number(&key, name).map(|number| File::Part {
            backup: name.clone(),
            number,
        });
        match gone {
            true => files.extend(part),
            false => refused.files.extend(part),
        }
    }
    // In this order: with its main object gone, what is left of the backup is told anew.
    emit(Event::Deleted {
        wal: Vec::new(),
        files,
    });
    refused.tell(emit);
    Ok(())
}

/// What the store would not delete.
#[derive(Default)]
struct Refusals {
    wal: Vec<Range>,
    files: Vec<File>,
    marks: Vec<String>,
    why: Option<Failure>,
}

impl Refusals {
    /// `false` if the store refuses; anything else that goes wrong ends the task.
    fn delete(&mut self, place: &Place, key: &str) -> Outcome<bool> {
        match place.store.delete(key) {
            Ok(()) => Ok(true),
            Err(failure) if is_refusal(&failure) => {
                self.why.get_or_insert(failure);
                Ok(false)
            }
            Err(failure) => Err(failure),
        }
    }

    fn tell(self, emit: &mut dyn FnMut(Event)) {
        if let Some(why) = self.why {
            emit(Event::DeletionRefused {
                wal: self.wal,
                files: self.files,
                marks: self.marks,
                class: why.class,
                message: why.to_string(),
            });
        }
    }
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
    let mut refused = Refusals::default();
    for key in wal.forget {
        match refused.delete(place, &place.key(key))? {
            true => emit(Event::Unmarked { key: key.clone() }),
            false => refused.marks.push(key.clone()),
        }
    }
    refused.tell(emit);
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
        let mut row = 0;
        while first <= range.last {
            let last = range.last.min(first.saturating_add(STEP - 1));
            if at_once(place, range, first, last, size)? {
                let wal = vec![Range {
                    first,
                    last,
                    ..*range
                }];
                let files = Vec::new();
                emit(Event::Deleted { wal, files });
                first = last.saturating_add(1);
                continue;
            }
            let mut gone = Runs::default();
            let mut kept = Runs::default();
            let mut refused = Refusals::default();
            let mut delete = |number| {
                let file = File::Wal(Segment::new(range.timeline, number));
                refused.delete(place, &place.key(&file.key(size)))
            };
            for number in first..=last {
                if delete(number)? {
                    gone.insert(number);
                    row = 0;
                    continue;
                }
                kept.insert(number);
                row += 1;
                if row == REFUSED_MAX && !delete(range.last)? {
                    kept.insert_range(number, range.last);
                    break;
                }
            }
            first = last
                .saturating_add(1)
                .max(kept.last().map_or(0, |n| n.saturating_add(1)));
            refused.wal = kept.ranges(range.timeline).collect();
            let wal: Vec<Range> = gone.ranges(range.timeline).collect();
            if !wal.is_empty() {
                let files = Vec::new();
                emit(Event::Deleted { wal, files });
            }
            refused.tell(emit);
        }
    }
    Ok(())
}

/// `false` if the store refuses some: which ones, only one request for each can tell.
fn at_once(
    place: &Place,
    range: &Range,
    first: u64,
    last: u64,
    size: SegmentSize,
) -> Outcome<bool> {
    let key = |number| place.key(&File::Wal(Segment::new(range.timeline, number)).key(size));
    let keys: Vec<String> = (first..=last).map(key).collect();
    match place.store.delete_all(&keys) {
        Ok(()) => Ok(true),
        Err(failure) if is_refusal(&failure) => Ok(false),
        Err(failure) => Err(failure),
    }
}

fn is_refusal(failure: &Failure) -> bool {
    matches!(failure.class, Class::Denied | Class::Conflict)
}

#[cfg(test)]
mod tests;
