//! Listing against log: every difference is told once, and only after a look at the object.

use machine::event::{Adopted, How};
use machine::projection::marks::Mark;
use machine::{Envelope, Site, State};

use super::*;
use crate::failure::Failure;
use crate::store::{Body, Metadata, Put, Store};
use crate::work::testing::{Bed, first_page};

const BACKUP: &str = "2026-11-22_09-27_0";
const MAIN: &str = "main/basebackup/2026-11-22_09-27_0.00000000.pghoard";
const PART: &str = "main/basebackup_chunk/2026-11-22_09-27_0/2026-11-22_09-27_0.00000001.pghoard";
const ORPHAN: &str = "main/basebackup_chunk/2020-01-01_00-00_0/2020-01-01_00-00_0.00000001.pghoard";
const LABEL: [(&str, &str); 3] = [
    ("format", "pghoard-bb-v2"),
    ("start-time", "2026-11-22T09:27:26+00:00"),
    ("start-wal-segment", "000000010000000000000002"),
];

fn wal(number: u64) -> File {
    File::Wal(Segment::new(Timeline(1), number))
}

fn key(number: u64) -> String {
    format!("main/{}", wal(number).key(SegmentSize::DEFAULT))
}

fn stored(file: File) -> Event {
    Event::Stored {
        file,
        entry: None,
        bytes_in: 1,
        bytes_out: 1,
        digest: String::new(),
        millis: 1,
        how: How::Written,
    }
}

fn known(events: &[Event]) -> Known {
    let mut state = State::default();
    let site = Site("main".into());
    for (event, seq) in events.iter().zip(1..) {
        state.apply(&Envelope {
            seq,
            at: Millis(seq),
            run: 1,
            site: Some(site.clone()),
            event: event.clone(),
        });
    }
    let site = state.sites.remove(&site).unwrap_or_default();
    Known {
        ledger: site.ledger,
        backups: site.backups,
    }
}

/// `found A-B ...`, `missing ...`, `backup NAME`, `objects/found/missing/unknown`.
fn told(bed: &Bed, known: &Known) -> Vec<String> {
    let size = SegmentSize::DEFAULT;
    let list = |wal: &[Range], files: &[File]| {
        let ranges = wal.iter().map(|r| format!(" {}-{}", r.first, r.last));
        let files = files.iter().map(|f| format!(" {}", f.key(size)));
        ranges.chain(files).collect::<String>()
    };
    let mut lines = Vec::new();
    let mut tell = |event: Event| {
        lines.push(match &event {
            Event::Found { wal, files, .. } => format!("found{}", list(wal, files)),
            Event::Missing { wal, files } => format!("missing{}", list(wal, files)),
            Event::BackupFound(Adopted { backup, .. }) => format!("backup {backup}"),
            Event::ClusterLearned { system_id, segment } => {
                format!("cluster {system_id} by {}", segment.number)
            }
            Event::Reconciled {
                objects,
                found,
                missing,
                unknown,
                ..
            } => format!("{objects}/{found}/{missing}/{unknown}"),
            other => panic!("{other:?}"),
        });
    };
    run(&bed.place, known, &mut tell).unwrap();
    lines
}

#[test]
fn what_agrees_is_not_told() {
    let bed = Bed::make();
    assert_eq!(told(&bed, &known(&[])), ["0/0/0/0"]);
    bed.put(&key(1), &[]);
    bed.put("main/timeline/00000002.history", &[]);
    let history = File::History(Timeline(2));
    let known = known(&[stored(wal(1)), stored(history)]);
    assert_eq!(told(&bed, &known), ["2/0/0/0"]);
}

#[test]
fn each_difference_is_told() {
    let bed = Bed::make();
    for number in [1, 2, 3, 7] {
        bed.put(&key(number), &[]);
    }
    bed.put("main/timeline/00000002.history", &[]);
    bed.put("main/xlog/core.1234", &[]);
    let known = known(&[
        stored(wal(2)),
        stored(wal(9)),
        stored(wal(10)),
        stored(File::History(Timeline(3))),
    ]);
    let expected = [
        "found 1-1 3-3 7-7 timeline/00000002.history",
        "missing 9-10 timeline/00000003.history",
        "6/4/3/1",
    ];
    assert_eq!(told(&bed, &known), expected);
}

/// What is marked as damaged is there all the same, until it is not.
#[test]
fn a_damaged_object_is_neither_found_again_nor_forgotten() {
    let bed = Bed::make();
    let history = File::History(Timeline(2));
    bed.put(&key(1), &[]);
    bed.put("main/timeline/00000002.history", &[]);
    let mut events = vec![stored(wal(1)), stored(history.clone())];
    events.extend([wal(1), history].map(|file| {
        let mark = Mark::Damaged {
            file,
            detail: "a bit".into(),
            at: Millis(1),
        };
        let key = mark.key(SegmentSize::DEFAULT);
        Event::Marked { key, mark }
    }));
    let known = known(&events);
    assert_eq!(told(&bed, &known), ["2/0/0/0"]);
    for key in bed.keys() {
        bed.place.store.delete(&key).unwrap();
    }
    let gone = "missing 1-1 timeline/00000002.history";
    assert_eq!(told(&bed, &known), [gone, "0/0/2/0"]);
}

#[test]
fn a_lying_listing_is_not_believed() {
    let bed = Bed::make();
    bed.put(&key(1), &[]);
    *bed.store.unlisted.lock().unwrap() = Some(key(1));
    assert_eq!(told(&bed, &known(&[stored(wal(1))])), ["0/0/0/0"]);
}

#[test]
fn a_backup_that_the_log_does_not_know_is_adopted() {
    let bed = Bed::make();
    bed.put(MAIN, &LABEL);
    bed.put(PART, &[]);
    bed.put(&key(2), &[("original-file-size", "16777216")]);
    let found = format!(
        "found 2-2 basebackup_chunk/{BACKUP}/{BACKUP}.00000001.pghoard \
         basebackup/{BACKUP}.00000000.pghoard"
    );
    let lines = told(&bed, &known(&[]));
    assert_eq!(lines, [found, format!("backup {BACKUP}"), "3/4/0/0".into()]);
}

/// Objects that belong to nothing we know are counted and left alone.
#[test]
fn what_nobody_can_name_is_only_counted() {
    let bed = Bed::make();
    bed.put(ORPHAN, &[]);
    bed.put(MAIN, &[("format", "pghoard-bb-v2")]);
    bed.put("main/xlog_partial/junk", &[]);
    let expected = [
        format!("found basebackup/{BACKUP}.00000000.pghoard"),
        "3/1/0/3".into(),
    ];
    assert_eq!(told(&bed, &known(&[])), expected);
    assert_eq!(bed.keys().len(), 3);
}

#[test]
fn the_segment_size_comes_from_the_store_after_a_lost_log() {
    let bed = Bed::make();
    let mib = [("original-file-size", "1048576")];
    bed.put("main/xlog/000000010000000000000FFF", &mib);
    let mut sizes = Vec::new();
    let mut tell = |event: Event| {
        if let Event::Found {
            segment_size, wal, ..
        } = event
        {
            sizes.push((segment_size.bytes(), wal.len()));
        }
    };
    run(&bed.place, &known(&[]), &mut tell).unwrap();
    assert_eq!(sizes, [(1 << 20, 1)]);
}

/// A truncated object, a sidecar that is no JSON, a sidecar without data: the rest is told.
#[test]
fn s18_damage_is_counted_and_the_listing_goes_on() {
    let bed = Bed::make();
    let mib = [("original-file-size", "1048576")];
    for number in [1, 2, 3, 4] {
        bed.put(&key(number), &mib);
    }
    bed.put(MAIN, &LABEL);
    bed.put("main/timeline/00000002.history", &[]);
    let path = |key: &str| bed.folder.path().join("store").join(key);
    std::fs::write(path(&key(1)), b"").unwrap();
    std::fs::write(path(&format!("{}.metadata", key(2))), b"{").unwrap();
    std::fs::write(path(&format!("{MAIN}.metadata")), b"{").unwrap();
    std::fs::write(path("main/timeline/00000002.history"), b"").unwrap();
    let expected = ["found 3-4".to_owned(), "6/2/0/4".into()];
    assert_eq!(told(&bed, &known(&[])), expected);
    std::fs::remove_file(path(&key(1))).unwrap();
    let held: Vec<Event> = [1, 3, 4].map(wal).map(stored).into();
    assert_eq!(told(&bed, &known(&held)), ["5/0/0/4"]);
}

#[test]
fn a_store_that_is_gone_is_an_error_not_an_absence() {
    let bed = Bed::make();
    bed.put(&key(1), &[]);
    std::fs::rename(
        bed.folder.path().join("store"),
        bed.folder.path().join("away"),
    )
    .unwrap();
    let mut events = 0;
    let failure: Failure =
        run(&bed.place, &known(&[stored(wal(1))]), &mut |_| events += 1).unwrap_err();
    assert!(failure.message.contains("does not exist"), "{failure}");
    assert_eq!(events, 0);
}

/// What we stored says its cluster beside it, what PGHoard stored in its first page; what cannot
/// be read leaves it to the next newest.
#[test]
fn s15_a_new_log_learns_whose_wal_the_store_holds() {
    let bed = Bed::make();
    let told = |known: &Known| {
        let lines = told(&bed, known);
        lines.into_iter().find(|line| line.starts_with("cluster"))
    };
    bed.put(&key(1), &[(label::SYSTEM_ID, "7")]);
    assert_eq!(told(&known(&[])), Some("cluster 7 by 1".into()));
    let body = Body::Bytes(&first_page(8, 2));
    bed.store
        .inner
        .put(&key(2), body, &Metadata::new(), Put::Create)
        .unwrap();
    assert_eq!(told(&known(&[])), Some("cluster 8 by 2".into()));
    bed.put(&key(3), &[]);
    bed.put(&key(4), &[("encryption-key-id", "lost")]);
    assert_eq!(told(&known(&[])), Some("cluster 8 by 2".into()));
    // S-54: names sort, time does not.
    let path = bed.folder.path().join("store").join(key(1));
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    file.set_modified(later).unwrap();
    assert_eq!(told(&known(&[])), Some("cluster 7 by 1".into()));
    let reconciled = Event::Reconciled {
        objects: 0,
        bytes: 0,
        found: 0,
        missing: 0,
        unknown: 0,
        millis: 0,
    };
    assert_eq!(told(&known(&[reconciled])), None);
}
