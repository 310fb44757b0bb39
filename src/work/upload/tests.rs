//! The upload rule: absent is put, the same is success, other content is refused and kept.

use std::fs;
use std::sync::Arc;

use machine::event::Reason;
use machine::{Segment, Timeline};

use machine::projection::marks::Mark;

use super::*;
use crate::spool::RealDisk;
use crate::spool::lent::{Loan, Lying};
use crate::store::{Body, Store};
use crate::work::testing::{Bed, Fault, first_page};

const KEY: &str = "main/xlog/000000010000000000000001";
const NAME: &str = "000000010000000000000001";

/// Longer than fits in memory, so that it takes the way through the scratch file.
const LARGE: usize = 300 << 10;

#[test]
fn a_file_is_stored_with_what_pghoard_keeps_beside_it() {
    for length in [100, LARGE] {
        let bed = Bed::make();
        let content = vec![7; length];
        let events = upload(&bed, &content).unwrap();
        let [
            Event::Stored {
                how,
                digest,
                entry,
                bytes_in,
                ..
            },
        ] = events.as_slice()
        else {
            panic!("{events:?}")
        };
        assert_eq!((*how, *entry), (How::Written, Some(5)));
        assert_eq!(*bytes_in, u64::try_from(length).unwrap());
        let (object, _) = bed.store.get(KEY).unwrap();
        for (name, value) in [
            ("compression-algorithm", "snappy"),
            ("original-file-size", length.to_string().as_str()),
            ("hash", digest.as_str()),
            ("hash-algorithm", "sha1"),
            ("host", "here"),
            ("pg-version", "150018"),
        ] {
            assert_eq!(object.metadata[name], value, "{name}");
        }
        assert_eq!(stored(&bed), content);
        settled(&bed, &content);
    }
}

#[test]
fn s17_the_same_content_again_is_success() {
    for length in [100, LARGE] {
        let bed = Bed::make();
        let content = vec![7; length];
        // Stored, but the answer was lost.
        bed.store.fail(0, Fault::After(Class::Network));
        let failure = upload(&bed, &content).unwrap_err();
        assert_eq!(failure.class, Class::Network);
        settled(&bed, &content);
        for _ in 0..2 {
            let events = upload(&bed, &content).unwrap();
            let told = matches!(
                events.as_slice(),
                [Event::Stored {
                    how: How::AlreadyThere,
                    ..
                }]
            );
            assert!(told, "{events:?}");
        }
        assert_eq!(*bed.store.asked.lock().unwrap(), [format!("put {KEY}")]);
        settled(&bed, &content);
    }
}

#[test]
fn s16_other_content_under_the_name_is_refused_and_both_are_kept() {
    for length in [100, LARGE] {
        let bed = Bed::make();
        let (first, second) = (vec![7; length], vec![8; length]);
        upload(&bed, &first).unwrap();
        let events = upload(&bed, &second).unwrap();
        let [Event::Conflicted { ours, theirs, .. }] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert_eq!(*ours, Algorithm::Sha1.hex(&second));
        assert_eq!(*theirs, Algorithm::Sha1.hex(&first));
        assert_eq!(stored(&bed), first);
        settled(&bed, &second);
    }
}

/// Objects of others have no digest, or one of another algorithm: their content decides.
#[test]
fn s16_without_a_digest_the_stored_content_is_compared() {
    for (theirs, digest, same) in [
        ("content", None, true),
        ("another", None, false),
        ("content", Some(Algorithm::Md5), true),
        ("another", Some(Algorithm::Md5), false),
    ] {
        let bed = Bed::make();
        let theirs = theirs.as_bytes();
        let pairs = digest.map(|digest| {
            let name = ("hash-algorithm".to_owned(), digest.name().to_owned());
            [("hash".to_owned(), digest.hex(theirs)), name]
        });
        let metadata = pairs.into_iter().flatten().collect();
        let body = Body::Bytes(theirs);
        bed.store.put(KEY, body, &metadata, Put::Create).unwrap();
        let events = upload(&bed, b"content").unwrap();
        let success = matches!(events.as_slice(), [Event::Stored { .. }]);
        let conflict = matches!(events.as_slice(), [Event::Conflicted { .. }]);
        assert!(success == same && conflict != same, "{events:?}");
    }
}

#[test]
fn a_store_that_refuses_loses_nothing() {
    for class in [Class::DiskFull, Class::Denied, Class::Timeout] {
        let bed = Bed::make();
        let content = vec![7; LARGE];
        bed.store.fail(0, Fault::Before(class));
        assert_eq!(upload(&bed, &content).unwrap_err().class, class);
        assert!(bed.keys().is_empty());
        settled(&bed, &content);
        upload(&bed, &content).unwrap();
        assert_eq!(stored(&bed), content);
    }
}

/// What is marked as damaged is healed by the same bytes, never by others.
#[test]
fn s18_a_damaged_object_is_replaced_by_what_it_was() {
    let bad = || Verdict::Damaged("a bit".into());
    let good = || Verdict::Good { bytes: 1 };
    let doubt = || Verdict::Unreadable(Failure::new(Class::Network, "no"));
    let judges: [(&str, &dyn Fn() -> Verdict); 3] =
        [("bad", &bad), ("good", &good), ("doubt", &doubt)];
    for (judge, again, expect) in [
        ("bad", &b"content"[..], "Unmarked Stored"),
        ("good", b"content", "Unmarked Stored"),
        ("bad", b"another", "Conflicted"),
        ("good", b"another", "Conflicted"),
        ("doubt", b"content", "network"),
    ] {
        let bed = Bed::make();
        upload(&bed, b"content").unwrap();
        let file = File::Wal(Segment::new(Timeline(1), 1));
        let mark = Mark::Damaged {
            file,
            detail: "a bit".into(),
            at: machine::Millis(1),
        };
        marks::write(&bed.place, mark, SegmentSize::DEFAULT).unwrap();
        let path = bed.folder.path().join("store").join(KEY);
        let mut bytes = fs::read(&path).unwrap();
        let whole = bytes.clone();
        *bytes.last_mut().unwrap() ^= 1;
        if judge == "bad" {
            fs::write(&path, &bytes).unwrap();
        }
        let (_, judge) = judges.iter().find(|(name, _)| *name == judge).unwrap();
        fs::write(bed.folder.path().join("spool").join(NAME), again).unwrap();
        let told = match run_as(&bed, version(), Standing::Damaged(judge)) {
            Ok(events) => {
                let kind =
                    |event: &Event| format!("{event:?}").split(' ').next().unwrap().to_owned();
                events.iter().map(kind).collect::<Vec<_>>().join(" ")
            }
            Err(failure) => failure.class.to_string(),
        };
        assert_eq!(told, expect);
        let healed = expect.contains("Stored");
        assert_eq!(bed.keys().iter().any(|key| key.contains("/mark/")), !healed);
        if healed {
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }
}

#[test]
fn a_spool_file_that_is_gone_is_said_to_be() {
    let bed = Bed::make();
    let events = run(&bed).unwrap();
    let [Event::Dropped { reason, .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(*reason, Reason::Vanished);
}

#[test]
fn s15_wal_of_another_cluster_is_not_stored() {
    let bed = Bed::make();
    let failure = upload_as(&bed, "8", &first_page(7, 1)).unwrap_err();
    assert_eq!(failure.class, Class::Unsupported, "{failure}");
    assert!(failure.to_string().contains("cluster 7"), "{failure}");
    assert!(bed.keys().is_empty());
    upload_as(&bed, "7", &first_page(7, 1)).unwrap();
    assert_eq!(bed.keys(), [KEY]);
}

fn upload_as(bed: &Bed, system_id: &str, content: &[u8]) -> Outcome<Vec<Event>> {
    let spool = bed.folder.path().join("spool");
    fs::create_dir_all(&spool).unwrap();
    fs::write(spool.join(NAME), content).unwrap();
    let metadata = Metadata::from([(label::SYSTEM_ID.to_owned(), system_id.to_owned())]);
    run_as(bed, metadata, Standing::Unknown)
}

fn upload(bed: &Bed, content: &[u8]) -> Outcome<Vec<Event>> {
    let spool = bed.folder.path().join("spool");
    fs::create_dir_all(&spool).unwrap();
    fs::write(spool.join(NAME), content).unwrap();
    run(bed)
}

fn run(bed: &Bed) -> Outcome<Vec<Event>> {
    run_as(bed, version(), Standing::Unknown)
}

/// What PostgreSQL keeps is read where it lies, and only there.
#[test]
fn a_lent_segment_is_stored_without_a_copy() {
    let bed = Bed::make();
    let (spool, lying) = lend(&bed, &vec![7; LARGE]);
    let events = upload_from(&bed, &spool, 5).unwrap();
    assert!(
        matches!(events.as_slice(), [Event::Stored { entry: Some(5), .. }]),
        "{events:?}"
    );
    assert_eq!(stored(&bed), vec![7; LARGE]);
    assert!(spool.scan().unwrap().is_empty());
    // Another entry of that name is another file.
    assert_vanished(&upload_from(&bed, &spool, 6).unwrap());
    // Let go, and PostgreSQL's file stays.
    spool.remove(NAME).unwrap();
    assert_vanished(&upload_from(&bed, &spool, 5).unwrap());
    assert!(lying.exists());
}

/// PostgreSQL renames a segment that it uses again: what was read of it then is nothing.
#[test]
fn s16_a_lent_segment_that_was_recycled_is_not_stored() {
    type Change = fn(&std::path::Path);
    let changes: [Change; 3] = [
        |path| fs::rename(path, path.with_extension("later")).unwrap(),
        |path| {
            fs::rename(path, path.with_extension("later")).unwrap();
            fs::write(path, vec![7; LARGE]).unwrap();
        },
        |path| fs::write(path, vec![8; LARGE + 1]).unwrap(),
    ];
    for change in changes {
        let bed = Bed::make();
        let (spool, lying) = lend(&bed, &vec![7; LARGE]);
        change(&lying);
        assert_vanished(&upload_from(&bed, &spool, 5).unwrap());
        assert!(bed.keys().is_empty());
        assert_eq!(fs::read_dir(&bed.place.scratch).unwrap().count(), 0);
    }
}

#[test]
fn s16_a_lent_segment_that_is_refused_is_kept_for_a_human() {
    let bed = Bed::make();
    upload(&bed, &vec![8; LARGE]).unwrap();
    fs::remove_file(bed.folder.path().join("spool").join(NAME)).unwrap();
    let (spool, _) = lend(&bed, &vec![7; LARGE]);
    for _ in 0..2 {
        let events = upload_from(&bed, &spool, 5).unwrap();
        assert!(
            matches!(events.as_slice(), [Event::Conflicted { .. }]),
            "{events:?}"
        );
        assert_eq!(stored(&bed), vec![8; LARGE]);
        settled(&bed, &vec![7; LARGE]);
    }
}

/// A spool with one entry, 5, that is a file elsewhere.
fn lend(bed: &Bed, content: &[u8]) -> (Spool, PathBuf) {
    let path = bed.folder.path().join(NAME);
    fs::write(&path, content).unwrap();
    let lying = Lying::new(Disk::open(&path).unwrap(), path.clone()).unwrap();
    let disk = RealDisk::new(&bed.folder.path().join("spool")).unwrap();
    let spool = Spool::new(Arc::new(disk));
    let loan = spool.lend(NAME, &Arc::new(lying.unwrap()), || 5).unwrap();
    assert_eq!(loan, Loan::New(5));
    (spool, path)
}

fn assert_vanished(events: &[Event]) {
    let vanished = matches!(
        events,
        [Event::Dropped {
            reason: Reason::Vanished,
            ..
        }]
    );
    assert!(vanished, "{events:?}");
}

fn upload_from(bed: &Bed, spool: &Spool, entry: u64) -> Outcome<Vec<Event>> {
    run_of(bed, spool, entry, version(), Standing::Unknown)
}

fn version() -> Metadata {
    Metadata::from([("pg-version".to_owned(), "150018".to_owned())])
}

fn run_as(bed: &Bed, metadata: Metadata, standing: Standing<'_>) -> Outcome<Vec<Event>> {
    let disk = RealDisk::new(&bed.folder.path().join("spool")).unwrap();
    run_of(bed, &Spool::new(Arc::new(disk)), 5, metadata, standing)
}

fn run_of(
    bed: &Bed,
    spool: &Spool,
    entry: u64,
    metadata: Metadata,
    standing: Standing<'_>,
) -> Outcome<Vec<Event>> {
    let upload = Upload {
        place: &bed.place,
        spool,
        file: &File::Wal(Segment::new(Timeline(1), 1)),
        entry,
        size: SegmentSize::DEFAULT,
        metadata,
        standing,
    };
    let mut events = Vec::new();
    upload.run(&mut |event| events.push(event))?;
    Ok(events)
}

fn stored(bed: &Bed) -> Vec<u8> {
    let (object, body) = bed.store.get(KEY).unwrap();
    let size = object.entry.size_bytes;
    let mut plain = decoder(body, size, &object.metadata, &bed.place.keys).unwrap();
    let mut content = Vec::new();
    plain.read_to_end(&mut content).unwrap();
    content
}

/// The spool has its file until the loop lets it go; scratch is empty.
fn settled(bed: &Bed, content: &[u8]) {
    assert_eq!(
        fs::read(bed.folder.path().join("spool").join(NAME)).unwrap(),
        content
    );
    assert_eq!(fs::read_dir(&bed.place.scratch).unwrap().count(), 0);
}
