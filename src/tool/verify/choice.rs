//! Which objects are verified, from the store's listing alone.

use std::collections::BTreeSet;

use machine::event::Adopted;
use machine::{BackupName, Class, File, Millis, Segment, SegmentSize, Timeline};

use crate::failure::{Failure, Outcome};
use crate::work::verify::Item;
use crate::work::{Place, label};

#[derive(Default)]
pub struct Choice {
    /// With the base name of the main object.
    pub backups: Vec<(BackupName, String)>,
    pub items: Vec<Item>,
    /// Keys that should be there.
    pub missing: Vec<String>,
    pub unknown: u64,
}

/// A main object as it is listed; one whose metadata cannot be read has no content.
struct Listed {
    object: String,
    content: Option<Adopted>,
}

pub fn of_all(place: &Place, size: SegmentSize) -> Outcome<Choice> {
    let mut choice = Choice::default();
    let wal = wal(place, size, &mut choice.unknown)?;
    for listed in backups(place, size)? {
        choice.add(place, listed, &wal, size)?;
    }
    choice.small(place, size)?;
    choice.wal(&wal, size);
    Ok(choice)
}

pub fn of_backup(place: &Place, size: SegmentSize, wanted: &str) -> Outcome<Choice> {
    let mut choice = Choice::default();
    let wanted = label::backup_name(wanted.rsplit('/').next().unwrap_or(wanted));
    let mut all = backups(place, size)?.into_iter();
    let found = all.find(|listed| label::backup_name(&listed.object) == wanted);
    let found = found.ok_or_else(|| {
        let message = format!("site '{}' has no basebackup '{wanted}'", place.site);
        Failure::new(Class::Config, message).hint("see pghoard_restore list-basebackups")
    })?;
    let mut wal = wal(place, size, &mut choice.unknown)?;
    let needed = found.content.as_ref().map(needed);
    choice.add(place, found, &wal, size)?;
    wal.retain(|segment| needed.is_some_and(|(start, end)| start <= *segment && *segment <= end));
    choice.wal(&wal, size);
    Ok(choice)
}

/// The newest backup, those that hide whether they are newer, and all WAL from its start on.
pub fn of_newest(place: &Place, size: SegmentSize) -> Outcome<Choice> {
    let mut choice = Choice::default();
    let mut wal = wal(place, size, &mut choice.unknown)?;
    let (plain, hidden): (Vec<_>, Vec<_>) = backups(place, size)?
        .into_iter()
        .partition(|listed| listed.content.is_some());
    let age = |listed: &Listed| listed.content.as_ref().map(|c| (c.started_at, c.start));
    let newest = plain.into_iter().max_by_key(age);
    let start = newest
        .as_ref()
        .and_then(|n| Some(n.content.as_ref()?.start));
    for listed in newest.into_iter().chain(hidden) {
        choice.add(place, listed, &wal, size)?;
    }
    choice.small(place, size)?;
    wal.retain(|segment| {
        start.is_none_or(|s| segment.timeline >= s.timeline && segment.number >= s.number)
    });
    choice.wal(&wal, size);
    Ok(choice)
}

impl Choice {
    /// The backup, and what of the WAL that makes it consistent is not there.
    fn add(
        &mut self,
        place: &Place,
        listed: Listed,
        wal: &BTreeSet<Segment>,
        size: SegmentSize,
    ) -> Outcome<()> {
        let Listed { object, content } = listed;
        if let Some((start, end)) = content.as_ref().map(needed)
            && start.timeline == end.timeline
        {
            let all = (start.number..=end.number).map(|n| Segment::new(start.timeline, n));
            for segment in all.filter(|segment| !wal.contains(segment)) {
                let key = File::Wal(segment).key(size);
                // What cannot be looked at is told when it is read.
                if let Ok(None) = place.store.look(&place.key(&key)) {
                    self.missing.push(key);
                }
            }
        }
        self.backups.push((label::backup_name(&object), object));
        Ok(())
    }

    fn wal(&mut self, wal: &BTreeSet<Segment>, size: SegmentSize) {
        let items = wal
            .iter()
            .map(|segment| Item::of(File::Wal(*segment), size));
        self.items.extend(items);
    }

    /// Histories and unfinished segments.
    fn small(&mut self, place: &Place, size: SegmentSize) -> Outcome<()> {
        for folder in ["timeline", "xlog_partial"] {
            for name in names(place, folder)? {
                let file = match folder {
                    "timeline" => Timeline::from_history_name(&name).map(File::History),
                    _ => Segment::from_name(&name, size).map(File::Partial),
                };
                match file {
                    Some(file) => self.items.push(Item::of(file, size)),
                    None => self.unknown += 1,
                }
            }
        }
        Ok(())
    }
}

/// The WAL that makes a backup consistent.
fn needed(content: &Adopted) -> (Segment, Segment) {
    (content.start, content.end.unwrap_or(content.start))
}

fn names(place: &Place, folder: &str) -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    place.store.list(&place.key(folder), &mut |entry| {
        names.extend(entry.key.rsplit('/').next().map(str::to_owned));
        Ok(())
    })?;
    Ok(names)
}

fn wal(place: &Place, size: SegmentSize, unknown: &mut u64) -> Outcome<BTreeSet<Segment>> {
    let mut segments = BTreeSet::new();
    for name in names(place, "xlog")? {
        match Segment::from_name(&name, size) {
            Some(segment) => drop(segments.insert(segment)),
            None => *unknown += 1,
        }
    }
    Ok(segments)
}

fn backups(place: &Place, size: SegmentSize) -> Outcome<Vec<Listed>> {
    let mut all = Vec::new();
    for object in names(place, "basebackup")? {
        let content = match place
            .store
            .look(&place.key(&format!("basebackup/{object}")))
        {
            Ok(Some(found)) => {
                let modified = u64::try_from(found.entry.modified_ms).unwrap_or(0);
                label::read(&object, &found.metadata, 0, size, Millis(modified))
            }
            // Deleted since it was listed.
            Ok(None) => continue,
            Err(failure) if matches!(failure.class, Class::Corrupt | Class::NotFound) => None,
            Err(failure) => return Err(failure),
        };
        all.push(Listed { object, content });
    }
    Ok(all)
}
