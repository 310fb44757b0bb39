//! Marks in the store: written before anything is confirmed by them, read back as a whole.
//!
//! A hold is PGHoard's preservation request (see [`holds`]). Other marks are JSON. A mark that
//! cannot be read is told and kept: nobody knows what it protects.
//!
//! Budget: one listing of two small folders; one look-up or get a mark that is new.

use std::collections::BTreeSet;
use std::io::Read;

use machine::projection::marks::{HOLDS, MARKS, Mark, Marks};
use machine::{BackupName, Class, Event, File, Millis, SegmentSize};

use crate::failure::{Failure, Outcome};
use crate::store::{Body, Metadata, Put, Store};
use crate::work::Place;
use crate::work::marks::holds::Shelf;

pub mod holds;

/// A mark is a few hundred bytes; more than this is no mark of ours.
const MARK_BYTES_MAX: u64 = 64 << 10;

/// Puts the mark's object in its place and gives the event that says so.
pub fn write(place: &Place, mark: Mark, size: SegmentSize) -> Outcome<Event> {
    put(place.store.as_ref(), &place.prefix, mark, size)
}

/// The same for who knows only the store and the site's prefix.
pub fn put(store: &dyn Store, prefix: &str, mark: Mark, size: SegmentSize) -> Outcome<Event> {
    let key = mark.key(size);
    let body = match &mark {
        Mark::Hold { .. } => {
            return holds::hold(Shelf { store, prefix }, mark);
        }
        Mark::HoleAcknowledged { .. } | Mark::WalRetired { .. } | Mark::Damaged { .. } => {
            serde_json::to_vec(&mark)
                .map_err(|e| Failure::new(Class::Internal, format!("{key}: {e}")))?
        }
    };
    let body = Body::Bytes(&body);
    store.put(
        &format!("{prefix}/{key}"),
        body,
        &Metadata::new(),
        Put::Replace,
    )?;
    Ok(Event::Marked { key, mark })
}

/// Where the mark of a damaged file lies.
pub fn damaged_key(file: &File, size: SegmentSize) -> String {
    let (file, detail, at) = (file.clone(), String::new(), Millis::default());
    Mark::Damaged { file, detail, at }.key(size)
}

/// Takes a mark's object away; one that is gone already is fine.
pub fn remove(place: &Place, key: &str) -> Outcome<Event> {
    place.store.delete(&place.key(key))?;
    Ok(Event::Unmarked { key: key.into() })
}

/// Tells how the store's marks differ from what the log knows, and that they were read.
pub fn read(place: &Place, known: &Marks, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
    let mut there = BTreeSet::new();
    for folder in [HOLDS, MARKS] {
        let prefix = place.key("");
        place.store.list(&place.key(folder), &mut |entry| {
            if let Some(key) = entry.key.strip_prefix(&prefix) {
                there.insert(key.to_owned());
            }
            Ok(())
        })?;
    }
    for key in &there {
        match parse(place, key) {
            Ok(Some(mark)) if known.all.get(key) != Some(&mark) => {
                emit(Event::Marked {
                    key: key.clone(),
                    mark,
                });
            }
            Ok(_) => {}
            Err(failure) if failure.class == Class::Corrupt => {
                log::warn!("{}: {failure}", place.key(key));
            }
            Err(failure) => return Err(failure),
        }
    }
    for key in known.all.keys().filter(|key| !there.contains(*key)) {
        // Listings lie, look-ups do not.
        if place.store.look(&place.key(key))?.is_none() {
            emit(Event::Unmarked { key: key.clone() });
        }
    }
    emit(Event::MarksRead {
        marks: u64::try_from(there.len()).unwrap_or(u64::MAX),
    });
    Ok(())
}

/// The event of a hold on this backup that lasts beyond `now`, if the store has one.
pub fn held(place: &Place, backup: &BackupName, now: Millis) -> Outcome<Option<Event>> {
    let mut keys = Vec::new();
    let prefix = place.key("");
    place.store.list(&place.key(HOLDS), &mut |entry| {
        keys.extend(entry.key.strip_prefix(&prefix).map(str::to_owned));
        Ok(())
    })?;
    for key in keys {
        let mark = match parse(place, &key) {
            // Its name tells whose it would be; of the others nobody knows, and `read` tells.
            Err(failure) if failure.class == Class::Corrupt && !names(&key, backup) => continue,
            parsed => parsed.map_err(|failure| failure.about(&key))?,
        };
        if let Some(mark) = mark
            && let Mark::Hold {
                backup: of, until, ..
            } = &mark
            && of == backup
            && until.is_none_or(|until| until > now)
        {
            return Ok(Some(Event::Marked { key, mark }));
        }
    }
    Ok(None)
}

/// Whether a hold's key begins with the backup's name, as PGHoard's and ours do (S-63).
fn names(key: &str, backup: &BackupName) -> bool {
    let base = key.rsplit('/').next().unwrap_or_default();
    let rest = base.strip_prefix(backup.0.as_str());
    rest.is_some_and(|rest| rest.starts_with('_'))
}

/// `None` where it went away since it was listed.
fn parse(place: &Place, key: &str) -> Outcome<Option<Mark>> {
    let full = place.key(key);
    if key.starts_with(HOLDS) {
        let object = place.store.look(&full)?;
        return object
            .map(|object| holds::parse(&object.metadata))
            .transpose();
    }
    let (_, body) = match place.store.get(&full) {
        Ok(got) => got,
        Err(failure) if failure.class == Class::NotFound => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let mut text = Vec::new();
    body.take(MARK_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(|e| Failure::io(&e, &full))?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| Failure::new(Class::Corrupt, format!("this is no mark: {e}")))
}

#[cfg(test)]
mod tests {
    use machine::event::Range;
    use machine::projection::marks::Hole;
    use machine::{Site, State, Timeline};

    use super::*;
    use crate::work::testing::Bed;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn hold(by: &str, until: Option<Millis>) -> Mark {
        Mark::Hold {
            backup: BackupName("2026-11-22_09-27_0".into()),
            reason: "an audit".into(),
            by: by.into(),
            until,
        }
    }

    fn fold(events: Vec<Event>) -> Marks {
        let mut state = State::default();
        let site = Site("main".into());
        for (event, seq) in events.into_iter().zip(1..) {
            state.apply(&machine::Envelope {
                seq,
                at: Millis(seq),
                run: 1,
                site: Some(site.clone()),
                event,
            });
        }
        state.sites.remove(&site).unwrap_or_default().marks
    }

    fn told(bed: &Bed, known: &Marks) -> Vec<Event> {
        let mut events = Vec::new();
        read(&bed.place, known, &mut |event| events.push(event)).unwrap();
        events
    }

    #[test]
    fn what_is_marked_is_read_back_the_same_once() {
        let bed = Bed::make();
        bed.put("main/basebackup/2026-11-22_09-27_0", &[]);
        let range = Range {
            timeline: Timeline(2),
            first: 3,
            last: 9,
        };
        let all = [
            hold("ada", None),
            hold("../b ob", Some(Millis(1_795_339_646_717))),
            Mark::WalRetired { range },
            Mark::HoleAcknowledged {
                hole: Hole::Wal(range),
                reason: "known".into(),
                by: "ada".into(),
                at: Millis(5),
            },
        ];
        let written: Vec<Event> = all
            .iter()
            .map(|mark| write(&bed.place, mark.clone(), SIZE).unwrap())
            .collect();
        let found = told(&bed, &Marks::default());
        let (end, marked) = found.split_last().unwrap();
        assert_eq!(*end, Event::MarksRead { marks: 4 });
        assert_eq!(fold(marked.to_vec()), fold(written.clone()));
        let known = fold(written);
        assert_eq!(told(&bed, &known).len(), 1, "nothing new");
        let gone = known.all.keys().next().unwrap();
        remove(&bed.place, gone).unwrap();
        remove(&bed.place, gone).unwrap();
        let key = gone.clone();
        assert_eq!(told(&bed, &known)[0], Event::Unmarked { key });
    }

    #[test]
    fn a_preservation_request_of_pghoard_is_a_hold_and_what_is_damaged_stays() {
        let bed = Bed::make();
        bed.put(
            "main/preservation_request/2026-11-22_09-27_0_2030-01-01 00:00:00+00:00",
            &[
                ("preserve-backup", "2026-11-22_09-27_0"),
                ("preserve-until", "2030-01-01 00:00:00+00:00"),
            ],
        );
        bed.put(
            "main/preservation_request/other",
            &[("preserve-backup", "x")],
        );
        bed.put("main/mark/hole_x", &[]);
        let found = told(&bed, &Marks::default());
        let [Event::Marked { mark, .. }, Event::MarksRead { marks: 3 }] = found.as_slice() else {
            panic!("{found:?}");
        };
        let Mark::Hold { backup, until, .. } = mark else {
            panic!("{mark:?}");
        };
        assert_eq!(backup.0, "2026-11-22_09-27_0");
        assert_eq!(*until, Some(Millis(1_893_456_000_000)));
    }
}
