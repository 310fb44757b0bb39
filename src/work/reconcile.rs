//! The store's listing against the log: what is there, what is not, what we had not known.
//!
//! It only observes. Listings lie, look-ups do not: every difference is confirmed by a look-up of
//! the one object before it is reported. Runs beside uploads, never beside a deletion.
//!
//! The first one of a log also says which cluster the WAL in the store is of.
//!
//! Budget: one listing of each folder; WAL as intervals; a look-up a difference and a backup.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use machine::event::Range;
use machine::projection::backups::Backups;
use machine::projection::ledger::Ledger;
use machine::runs::Runs;
use machine::{BackupName, Class, Event, File, Millis, Segment, SegmentSize, Timeline};

use crate::clock;
use crate::failure::Outcome;
use crate::report;
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
    /// The WAL stored last, by the store's time.
    latest: BTreeSet<(i64, Segment)>,
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
    let present = known.ledger.present_wal();
    let (new, gone) = (
        difference(&listing.wal, &present),
        difference(&present, &listing.wal),
    );
    let mut unknown = listing.unknown;
    let new = confirmed(place, size, &new, true, &mut unknown)?;
    let gone = confirmed(place, size, &gone, false, &mut unknown)?;
    let files = compare(place, known, &listing, size)?;
    unknown = unknown.saturating_add(files.unknown);
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
                emit(*event);
            }
            Adopt::Known => {}
            Adopt::Unreadable => unknown += 1,
        }
    }
    if known.ledger.reconciled_at.is_none()
        && let Some(event) = cluster::learn(place, &listing.latest, size)?
    {
        emit(event);
    }
    sweep(place);
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

/// What uploads of ours that a crash ended left invisibly in the store costs money there, and
/// nothing else: where it cannot be taken back, that is told, and no more.
fn sweep(place: &Place) {
    let now = i64::try_from(clock::now().0).unwrap_or(i64::MAX);
    if let Err(failure) = place
        .store
        .sweep(&place.prefix, now.saturating_sub(ABANDONED_MS))
    {
        let site = &place.site;
        report::error(&format!(
            "site '{site}': abandoned uploads are not removed: {failure}"
        ));
    }
}

/// No upload takes a week; other daemons may write below our prefix.
const ABANDONED_MS: i64 = 7 * 86_400_000;

/// How the files differ; each difference was looked at once more.
#[derive(Default)]
struct Files {
    new: Vec<File>,
    gone: Vec<File>,
    /// Parts of no backup that anybody knows, and what is damaged.
    unknown: u64,
}

fn compare(place: &Place, known: &Known, listing: &Listing, size: SegmentSize) -> Outcome<Files> {
    let mut files = Files::default();
    let held = held_files(&known.ledger);
    for file in listing.files.difference(&held) {
        let orphan = matches!(file, File::Part { backup, .. }
            if !known.backups.all.contains_key(backup) && !listing.has_main(backup));
        if orphan {
            files.unknown += 1;
            continue;
        }
        match look(place, &key_of(place, known, file, size))? {
            Look::There(_) => files.new.push(file.clone()),
            // Counted where its backup is adopted.
            Look::Damaged if matches!(file, File::Main(_)) => {}
            Look::Damaged => files.unknown += 1,
            Look::Absent => {}
        }
    }
    for file in held.difference(&listing.files) {
        match look(place, &key_of(place, known, file, size))? {
            Look::Absent => files.gone.push(file.clone()),
            Look::Damaged => files.unknown += 1,
            Look::There(_) => {}
        }
    }
    Ok(files)
}

/// Of one object. Damage is neither presence nor absence, and no reason to end the listing.
enum Look {
    There(Object),
    Absent,
    Damaged,
}

fn look(place: &Place, key: &str) -> Outcome<Look> {
    match place.store.look(key) {
        Ok(Some(object)) => Ok(Look::There(object)),
        Ok(None) => Ok(Look::Absent),
        Err(failure) if matches!(failure.class, Class::Corrupt | Class::NotFound) => {
            log::warn!("{key}: {failure}");
            Ok(Look::Damaged)
        }
        Err(failure) => Err(failure),
    }
}

impl Listing {
    fn has_main(&self, backup: &BackupName) -> bool {
        self.mains
            .iter()
            .any(|entry| label::backup_name(base(&entry.key)) == *backup)
    }
}

/// The site's, or, before any server was seen, the store's.
fn segment_size(place: &Place, known: &Known) -> Outcome<SegmentSize> {
    match known.ledger.segment_size {
        Some(size) => Ok(size),
        None => stored_size(place),
    }
}

/// What the first stored segment that can be read says of itself.
pub fn stored_size(place: &Place) -> Outcome<SegmentSize> {
    let mut first = Vec::new();
    place.store.list(&place.key("xlog"), &mut |entry| {
        if first.len() < SAMPLES {
            first.push(entry.key);
        }
        Ok(())
    })?;
    for key in first {
        let Look::There(object) = look(place, &key)? else {
            continue;
        };
        let bytes = object.metadata.get("original-file-size");
        let bytes = bytes.and_then(|bytes| bytes.parse().ok());
        return Ok(bytes
            .and_then(SegmentSize::new)
            .unwrap_or(SegmentSize::DEFAULT));
    }
    told_by_backup(place)
}

/// Backups that stand alone have no WAL beside them.
fn told_by_backup(place: &Place) -> Outcome<SegmentSize> {
    let mut newest = BTreeSet::new();
    place.store.list(&place.key("basebackup"), &mut |entry| {
        newest.insert((entry.modified_ms, entry.key));
        if newest.len() > SAMPLES {
            newest.pop_first();
        }
        Ok(())
    })?;
    for (_, key) in newest {
        if let Look::There(object) = look(place, &key)?
            && let Some(bytes) = object.metadata.get(label::SEGMENT_SIZE)
        {
            let size = bytes.parse().ok().and_then(SegmentSize::new);
            return Ok(size.unwrap_or(SegmentSize::DEFAULT));
        }
    }
    Ok(SegmentSize::DEFAULT)
}

/// The full segments that were stored last, with the store's times in milliseconds since 1970.
pub fn latest_wal(place: &Place, size: SegmentSize) -> Outcome<BTreeSet<(i64, Segment)>> {
    let mut listing = Listing::default();
    place.store.list(&place.key("xlog"), &mut |entry| {
        listing.file("xlog", entry, size);
        Ok(())
    })?;
    Ok(listing.latest)
}

/// Segments asked for what all have in common; more than these are not damaged at a time.
const SAMPLES: usize = 16;

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
                Some(s) => {
                    self.wal.entry(s.timeline).or_default().insert(s.number);
                    self.latest.insert((entry.modified_ms, s));
                    if self.latest.len() > SAMPLES {
                        self.latest.pop_first();
                    }
                }
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
    // Damaged ones are there all the same.
    let damaged = ledger.damaged.keys();
    let damaged = damaged.filter(|file| !matches!(file, File::Wal(_)) && ledger.exists(file));
    parts
        .chain(histories)
        .chain(partials)
        .chain(mains)
        .chain(damaged.cloned())
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

/// The segments of `ranges` whose look-up agrees with the listing, as ranges again; damaged ones
/// are added to `unknown`.
fn confirmed(
    place: &Place,
    size: SegmentSize,
    ranges: &[Range],
    present: bool,
    unknown: &mut u64,
) -> Outcome<Vec<Range>> {
    let mut agreed: BTreeMap<Timeline, Runs> = BTreeMap::new();
    for range in ranges {
        for number in range.first..=range.last {
            let file = File::Wal(Segment::new(range.timeline, number));
            let there = match look(place, &place.key(&file.key(size)))? {
                Look::There(_) => true,
                Look::Absent => false,
                Look::Damaged => {
                    *unknown += 1;
                    continue;
                }
            };
            if there == present {
                agreed.entry(range.timeline).or_default().insert(number);
            }
        }
    }
    Ok(difference(&agreed, &BTreeMap::new()))
}

enum Adopt {
    New(Box<Event>),
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
    let Object { metadata, entry } = match look(place, &entry.key)? {
        Look::There(object) => object,
        Look::Absent => return Ok(Adopt::Known),
        Look::Damaged => return Ok(Adopt::Unreadable),
    };
    let parts = listing
        .files
        .iter()
        .filter(|file| matches!(file, File::Part { backup, .. } if *backup == name));
    let parts = u32::try_from(parts.count()).unwrap_or(u32::MAX);
    let modified = Millis(u64::try_from(entry.modified_ms).unwrap_or(0));
    Ok(
        match label::read(object, &metadata, parts, size, modified) {
            Some(adopted) => Adopt::New(Box::new(Event::BackupFound(adopted))),
            None => Adopt::Unreadable,
        },
    )
}

fn key_of(place: &Place, known: &Known, file: &File, size: SegmentSize) -> String {
    match file {
        File::Main(name) => place.key(&main_key(known, name)),
        other => place.key(&other.key(size)),
    }
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

pub mod cluster;
#[cfg(test)]
mod tests;
