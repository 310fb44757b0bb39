//! The store's listing against the log: what is there, what is not, what we had not known.
//!
//! It only observes. Listings lie, look-ups do not: every difference is confirmed by a look-up of
//! the one object before it is reported. Runs beside uploads, never beside a deletion.
//!
//! Budget: one listing of each folder; WAL as intervals; a look-up a difference and a backup.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use machine::event::Range;
use machine::projection::backups::Backups;
use machine::projection::ledger::Ledger;
use machine::runs::Runs;
use machine::{BackupName, Event, File, Millis, Segment, SegmentSize, Timeline};

use crate::failure::Outcome;
use crate::store::{Entry, Object};
use crate::work::delete::part_number;
use crate::work::{Place, label};

/// What the log knew when the task began.
pub struct Known {
    pub ledger: Ledger,
    pub backups: Backups,
}

#[derive(Default)]
struct Listing {
    wal: BTreeMap<Timeline, Runs>,
    files: BTreeSet<File>,
    mains: Vec<Entry>,
    objects: u64,
    bytes: u64,
    unknown: u64,
}

pub fn run(place: &Place, known: &Known, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
    let started = Instant::now();
    let size = segment_size(place, known)?;
    let listing = list(place, size)?;
    let new = confirmed(
        place,
        size,
        &difference(&listing.wal, &known.ledger.wal),
        true,
    )?;
    let gone = confirmed(
        place,
        size,
        &difference(&known.ledger.wal, &listing.wal),
        false,
    )?;
    let files = compare(place, known, &listing, size)?;
    let mut unknown = listing.unknown.saturating_add(files.orphans);
    let mut found = count(&new).saturating_add(length(&files.new));
    let missing = count(&gone).saturating_add(length(&files.gone));
    if found > 0 {
        emit(Event::Found {
            segment_size: size,
            wal: new,
            files: files.new,
        });
    }
    if missing > 0 {
        emit(Event::Missing {
            wal: gone,
            files: files.gone,
        });
    }
    for entry in &listing.mains {
        match adopt(place, known, &listing, entry, size)? {
            Adopt::New(event) => {
                found = found.saturating_add(1);
                emit(event);
            }
            Adopt::Known => {}
            Adopt::Unreadable => unknown += 1,
        }
    }
    emit(Event::Reconciled {
        objects: listing.objects,
        bytes: listing.bytes,
        found,
        missing,
        unknown,
        millis: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    Ok(())
}

/// How the files differ; each difference was looked at once more.
#[derive(Default)]
struct Files {
    new: Vec<File>,
    gone: Vec<File>,
    /// Parts of no backup that anybody knows.
    orphans: u64,
}

fn compare(place: &Place, known: &Known, listing: &Listing, size: SegmentSize) -> Outcome<Files> {
    let mut files = Files::default();
    let held = held_files(&known.ledger);
    for file in listing.files.difference(&held) {
        let orphan = matches!(file, File::Part { backup, .. }
            if !known.backups.all.contains_key(backup) && !listing.has_main(backup));
        if orphan {
            files.orphans += 1;
        } else if place.store.look(&place.key(&file.key(size)))?.is_some() {
            files.new.push(file.clone());
        }
    }
    for file in held.difference(&listing.files) {
        let key = match file {
            File::Main(name) => place.key(&main_key(known, name)),
            other => place.key(&other.key(size)),
        };
        if place.store.look(&key)?.is_none() {
            files.gone.push(file.clone());
        }
    }
    Ok(files)
}

impl Listing {
    fn has_main(&self, backup: &BackupName) -> bool {
        self.mains
            .iter()
            .any(|entry| label::backup_name(base(&entry.key)) == *backup)
    }
}

/// The site's, or, before any server was seen, what the first stored segment says of itself.
fn segment_size(place: &Place, known: &Known) -> Outcome<SegmentSize> {
    if let Some(size) = known.ledger.segment_size {
        return Ok(size);
    }
    let mut first = None;
    place.store.list(&place.key("xlog"), &mut |entry| {
        first.get_or_insert(entry.key);
        Ok(())
    })?;
    let Some(key) = first else {
        return Ok(SegmentSize::DEFAULT);
    };
    let object = place.store.look(&key)?;
    let bytes = object.and_then(|o| o.metadata.get("original-file-size")?.parse().ok());
    Ok(bytes
        .and_then(SegmentSize::new)
        .unwrap_or(SegmentSize::DEFAULT))
}

fn list(place: &Place, size: SegmentSize) -> Outcome<Listing> {
    let mut listing = Listing::default();
    for folder in [
        "xlog",
        "xlog_partial",
        "timeline",
        "basebackup",
        "basebackup_chunk",
    ] {
        place.store.list(&place.key(folder), &mut |entry| {
            listing.objects += 1;
            listing.bytes = listing.bytes.saturating_add(entry.size_bytes);
            listing.file(folder, entry, size);
            Ok(())
        })?;
    }
    Ok(listing)
}

impl Listing {
    fn file(&mut self, folder: &str, entry: Entry, size: SegmentSize) {
        let name = base(&entry.key);
        let segment = || Segment::from_name(name, size);
        match folder {
            "xlog" => match segment() {
                Some(s) => self.wal.entry(s.timeline).or_default().insert(s.number),
                None => self.unknown += 1,
            },
            "xlog_partial" => self.add(segment().map(File::Partial)),
            "timeline" => self.add(Timeline::from_history_name(name).map(File::History)),
            "basebackup" => {
                self.files.insert(File::Main(label::backup_name(name)));
                self.mains.push(entry);
            }
            _ => {
                let backup = entry.key.rsplit('/').nth(1).map(|b| BackupName(b.into()));
                let part = backup.and_then(|backup| {
                    let number = part_number(&entry.key, &backup)?;
                    Some(File::Part { backup, number })
                });
                self.add(part);
            }
        }
    }

    fn add(&mut self, file: Option<File>) {
        match file {
            Some(file) => drop(self.files.insert(file)),
            None => self.unknown += 1,
        }
    }
}

/// Everything but full WAL segments that the log believes stored.
fn held_files(ledger: &Ledger) -> BTreeSet<File> {
    let parts = ledger.parts.iter().flat_map(|(backup, runs)| {
        runs.intervals().flatten().filter_map(|number| {
            Some(File::Part {
                backup: backup.clone(),
                number: u32::try_from(number).ok()?,
            })
        })
    });
    let histories = ledger.histories.iter().copied().map(File::History);
    let partials = ledger.partials.iter().copied().map(File::Partial);
    let mains = ledger.mains.iter().cloned().map(File::Main);
    parts
        .chain(histories)
        .chain(partials)
        .chain(mains)
        .collect()
}

/// What `a` holds beyond `b`.
fn difference(a: &BTreeMap<Timeline, Runs>, b: &BTreeMap<Timeline, Runs>) -> Vec<Range> {
    let mut ranges = Vec::new();
    for (timeline, runs) in a {
        let mut rest = runs.clone();
        for run in b.get(timeline).into_iter().flat_map(Runs::intervals) {
            rest.remove_range(*run.start(), *run.end());
        }
        ranges.extend(rest.intervals().map(|run| Range {
            timeline: *timeline,
            first: *run.start(),
            last: *run.end(),
        }));
    }
    ranges
}

/// The segments of `ranges` whose look-up agrees with the listing, as ranges again.
fn confirmed(
    place: &Place,
    size: SegmentSize,
    ranges: &[Range],
    present: bool,
) -> Outcome<Vec<Range>> {
    let mut agreed: BTreeMap<Timeline, Runs> = BTreeMap::new();
    for range in ranges {
        for number in range.first..=range.last {
            let file = File::Wal(Segment::new(range.timeline, number));
            if place.store.look(&place.key(&file.key(size)))?.is_some() == present {
                agreed.entry(range.timeline).or_default().insert(number);
            }
        }
    }
    Ok(difference(&agreed, &BTreeMap::new()))
}

enum Adopt {
    New(Event),
    Known,
    Unreadable,
}

fn adopt(
    place: &Place,
    known: &Known,
    listing: &Listing,
    entry: &Entry,
    size: SegmentSize,
) -> Outcome<Adopt> {
    let object = base(&entry.key);
    let name = label::backup_name(object);
    if known.backups.all.contains_key(&name) {
        return Ok(Adopt::Known);
    }
    let Some(Object { metadata, entry }) = place.store.look(&entry.key)? else {
        return Ok(Adopt::Known);
    };
    let parts = listing
        .files
        .iter()
        .filter(|file| matches!(file, File::Part { backup, .. } if *backup == name));
    let parts = u32::try_from(parts.count()).unwrap_or(u32::MAX);
    let modified = Millis(u64::try_from(entry.modified_ms).unwrap_or(0));
    Ok(
        match label::read(object, &metadata, parts, size, modified) {
            Some(adopted) => Adopt::New(Event::BackupFound(adopted)),
            None => Adopt::Unreadable,
        },
    )
}

fn main_key(known: &Known, name: &BackupName) -> String {
    let content = known
        .backups
        .all
        .get(name)
        .and_then(|backup| backup.content.as_ref());
    match content.and_then(|content| content.object.as_ref()) {
        Some(object) => format!("basebackup/{object}"),
        None => File::Main(name.clone()).key(SegmentSize::DEFAULT),
    }
}

fn base(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

fn count(ranges: &[Range]) -> u64 {
    ranges.iter().fold(0, |sum, r| {
        sum.saturating_add(r.last.saturating_sub(r.first) + 1)
    })
}

fn length(files: &[File]) -> u64 {
    u64::try_from(files.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
