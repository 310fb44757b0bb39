//! Holds: a backup that must not go. An object as PGHoard's `--preserve-until` writes it (empty,
//! all in its metadata, with the base name of the main object), so that both programs honour each
//! other's; ours adds `hold-reason` and `hold-by`, and one without an end says a year that no clock
//! reaches. It is written before it is confirmed, and only for a backup that is there.
//!
//! Budget: a listing of the main objects and one of the holds, a look-up or put each.

use machine::projection::marks::{HOLDS, Mark};
use machine::{BackupName, Class, Event, SegmentSize};

use crate::failure::{Failure, Outcome};
use crate::store::{Body, Metadata, Put, Store};
use crate::work::label;

/// How PGHoard's readers see a hold without an end.
const FOREVER: &str = "9999-12-31 00:00:00+00:00";

/// Where a site's objects are.
#[derive(Clone, Copy)]
pub struct Shelf<'a> {
    pub store: &'a dyn Store,
    pub prefix: &'a str,
}

impl Shelf<'_> {
    fn key(&self, below: &str) -> String {
        format!("{}/{below}", self.prefix)
    }

    /// Names right in a folder.
    fn names(&self, folder: &str) -> Outcome<Vec<String>> {
        let folder = self.key(folder);
        let mut names = Vec::new();
        self.store.list(&folder, &mut |entry| {
            let below = entry.key.strip_prefix(&folder);
            let name = below.and_then(|below| below.strip_prefix('/'));
            names.extend(name.filter(|name| !name.contains('/')).map(str::to_owned));
            Ok(())
        })?;
        Ok(names)
    }

    /// The base name of a backup's main object: formats name it differently.
    fn object(&self, backup: &BackupName) -> Outcome<Option<String>> {
        let mut names = self.names("basebackup")?.into_iter();
        Ok(names.find(|name| label::backup_name(name) == *backup))
    }

    fn read(&self, key: &str) -> Outcome<Option<Mark>> {
        let object = self.store.look(&self.key(key))?;
        object.map(|object| parse(&object.metadata)).transpose()
    }
}

/// Writes a hold and gives the event that says so.
pub fn hold(shelf: Shelf<'_>, mark: Mark) -> Outcome<Event> {
    let key = mark.key(SegmentSize::DEFAULT);
    let Mark::Hold {
        backup,
        reason,
        by,
        until,
    } = &mark
    else {
        return Err(Failure::new(Class::Internal, format!("{key} is no hold")));
    };
    let absent = |what: &str| {
        let message = format!("basebackup '{backup}' {what}");
        Failure::new(Class::NotFound, message).hint("GET /SITE/basebackup lists what there is")
    };
    let object = shelf.object(backup)?;
    let object = object.ok_or_else(|| absent("is not in the store"))?;
    let until = until.map_or(FOREVER.to_owned(), |at| {
        label::iso(at).replacen('T', " ", 1)
    });
    let metadata = Metadata::from([
        ("preserve-backup".to_owned(), object.clone()),
        ("preserve-until".to_owned(), until),
        ("hold-reason".to_owned(), reason.clone()),
        ("hold-by".to_owned(), by.clone()),
    ]);
    let full = shelf.key(&key);
    shelf
        .store
        .put(&full, Body::Bytes(b""), &metadata, Put::Replace)?;
    // A deletion reads the holds before it removes the main object: one of the two sees the other.
    let object = shelf.key(&format!("basebackup/{object}"));
    if shelf.store.look(&object)?.is_none() {
        shelf.store.delete(&full)?;
        return Err(absent("was deleted meanwhile"));
    }
    Ok(Event::Marked { key, mark })
}

/// Takes every hold of a backup away, PGHoard's too.
pub fn release(shelf: Shelf<'_>, backup: &BackupName) -> Outcome<Vec<Event>> {
    let mut released = Vec::new();
    for (key, mark) in all(shelf)? {
        if matches!(&mark, Mark::Hold { backup: held, .. } if held == backup) {
            shelf.store.delete(&shelf.key(&key))?;
            released.push(Event::Unmarked { key });
        }
    }
    match released.is_empty() {
        true => Err(Failure::new(
            Class::NotFound,
            format!("basebackup '{backup}' is not held"),
        )),
        false => Ok(released),
    }
}

/// Every hold in the store that can be read, by key.
pub fn all(shelf: Shelf<'_>) -> Outcome<Vec<(String, Mark)>> {
    let mut holds = Vec::new();
    for name in shelf.names(HOLDS)? {
        let key = format!("{HOLDS}/{name}");
        match shelf.read(&key) {
            Ok(mark) => holds.extend(mark.map(|mark| (key, mark))),
            Err(failure) if failure.class == Class::Corrupt => {
                log::warn!("{}: {failure}", shelf.key(&key));
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(holds)
}

/// A preservation request, PGHoard's or ours.
pub(super) fn parse(metadata: &Metadata) -> Outcome<Mark> {
    let text = |key: &str| metadata.get(key).map(String::as_str);
    let wrong = |what: &str| Failure::new(Class::Corrupt, format!("a hold without {what}"));
    let backup = text("preserve-backup").ok_or_else(|| wrong("preserve-backup"))?;
    let until = text("preserve-until").ok_or_else(|| wrong("preserve-until"))?;
    let until = match until {
        FOREVER => None,
        until => Some(label::millis(until).ok_or_else(|| wrong("a readable preserve-until"))?),
    };
    Ok(Mark::Hold {
        backup: label::backup_name(backup),
        reason: text("hold-reason")
            .unwrap_or("a restore asked for it")
            .into(),
        by: text("hold-by").unwrap_or("preservation request").into(),
        until,
    })
}

#[cfg(test)]
mod tests {
    use machine::Millis;

    use super::*;
    use crate::work::testing::{Bed, Fault};

    const NAME: &str = "2026-11-22_09-27_0";

    fn mark(backup: &str, until: Option<Millis>) -> Mark {
        Mark::Hold {
            backup: BackupName(backup.into()),
            reason: "an audit".into(),
            by: "ada@desk".into(),
            until,
        }
    }

    fn shelf(bed: &Bed) -> Shelf<'_> {
        Shelf {
            store: bed.store.as_ref(),
            prefix: "main",
        }
    }

    #[test]
    fn a_hold_names_the_object_as_pghoard_looks_for_it() {
        for object in [NAME.to_owned(), format!("{NAME}.00000000.pghoard")] {
            let bed = Bed::make();
            bed.put(&format!("main/basebackup/{object}"), &[]);
            let until = Some(Millis(1_893_456_000_000));
            let event = hold(shelf(&bed), mark(NAME, until)).unwrap();
            let Event::Marked { key, .. } = event else {
                panic!("{event:?}")
            };
            let written = bed.place.store.look(&format!("main/{key}")).unwrap();
            let metadata = written.unwrap().metadata;
            assert_eq!(metadata["preserve-backup"], object);
            assert_eq!(metadata["preserve-until"], "2030-01-01 00:00:00+00:00");
            assert_eq!(all(shelf(&bed)).unwrap(), [(key, mark(NAME, until))]);
        }
    }

    #[test]
    fn only_what_is_there_can_be_held_and_what_is_held_released() {
        let bed = Bed::make();
        bed.put(&format!("main/basebackup/{NAME}1"), &[]);
        let refused = hold(shelf(&bed), mark(NAME, None)).unwrap_err();
        assert_eq!(refused.class, Class::NotFound);
        assert_eq!(bed.keys().len(), 1);
        bed.put(&format!("main/basebackup/{NAME}"), &[]);
        hold(shelf(&bed), mark(NAME, None)).unwrap();
        let request = [
            ("preserve-backup", NAME),
            ("preserve-until", "2030-01-01 00:00:00+00:00"),
        ];
        bed.put("main/preservation_request/x", &request);
        let name = BackupName(NAME.into());
        assert_eq!(release(shelf(&bed), &name).unwrap().len(), 2);
        let again = release(shelf(&bed), &name).unwrap_err();
        assert_eq!(again.class, Class::NotFound);
        assert_eq!(bed.keys().len(), 2);
    }

    #[test]
    fn a_hold_that_failed_is_asked_again() {
        for fault in [Fault::Before(Class::Network), Fault::After(Class::Network)] {
            let bed = Bed::make();
            bed.put(&format!("main/basebackup/{NAME}"), &[]);
            bed.store.fail(0, fault);
            hold(shelf(&bed), mark(NAME, None)).unwrap_err();
            hold(shelf(&bed), mark(NAME, None)).unwrap();
            assert_eq!(all(shelf(&bed)).unwrap().len(), 1);
        }
    }
}
