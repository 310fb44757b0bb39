//! The upload rule: absent is put, the same is success, other content is refused and kept.

use std::fs;

use machine::event::Reason;
use machine::{Segment, Timeline};

use super::*;
use crate::spool::RealDisk;
use crate::store::{Body, Store};
use crate::work::testing::{Bed, Fault};

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

#[test]
fn a_spool_file_that_is_gone_is_said_to_be() {
    let bed = Bed::make();
    let events = run(&bed).unwrap();
    let [Event::Dropped { reason, .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(*reason, Reason::Vanished);
}

/// Damaged and marked so: replaced and unmarked. Not damaged, or claiming to be something else:
/// left alone. Not marked: not even looked at.
#[test]
fn only_what_is_marked_and_does_not_decode_is_replaced() {
    const MARK: &str = "mark/damaged_xlog_000000010000000000000001";
    let content = vec![7; LARGE];
    for (damage, marked, ours, expect) in [
        (true, true, 7, Some(How::Replaced)),
        (false, true, 7, Some(How::AlreadyThere)),
        (true, false, 7, Some(How::AlreadyThere)),
        (true, true, 8, None),
        (false, true, 8, None),
    ] {
        let bed = Bed::make();
        upload(&bed, &content).unwrap();
        if damage {
            let (object, mut body) = bed.store.get(KEY).unwrap();
            let mut bytes = Vec::new();
            body.read_to_end(&mut bytes).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x55;
            let mut metadata = object.metadata;
            metadata.remove("Content-Length");
            let body = Body::Bytes(&bytes);
            bed.store.put(KEY, body, &metadata, Put::Replace).unwrap();
        }
        bed.put(&format!("main/{MARK}"), &[]);
        let mark = marked.then_some(MARK);
        let events = upload_over(&bed, &vec![ours; LARGE], mark).unwrap();
        let how = events.iter().find_map(|event| match event {
            Event::Stored { how, .. } => Some(*how),
            _ => None,
        });
        assert_eq!(how, expect, "{damage} {marked} {ours}: {events:?}");
        let freed = events
            .iter()
            .any(|event| matches!(event, Event::Unmarked { key } if key == MARK));
        let healed = marked && expect.is_some();
        assert_eq!(freed, healed, "{damage} {marked} {ours}: {events:?}");
        assert_eq!(bed.keys().contains(&format!("main/{MARK}")), !healed);
        if healed {
            assert_eq!(stored(&bed), content);
        }
    }
}

fn upload(bed: &Bed, content: &[u8]) -> Outcome<Vec<Event>> {
    upload_over(bed, content, None)
}

fn upload_over(bed: &Bed, content: &[u8], damaged: Option<&str>) -> Outcome<Vec<Event>> {
    let spool = bed.folder.path().join("spool");
    fs::create_dir_all(&spool).unwrap();
    fs::write(spool.join(NAME), content).unwrap();
    run_over(bed, damaged)
}

fn run(bed: &Bed) -> Outcome<Vec<Event>> {
    run_over(bed, None)
}

fn run_over(bed: &Bed, damaged: Option<&str>) -> Outcome<Vec<Event>> {
    let disk = RealDisk::new(&bed.folder.path().join("spool")).unwrap();
    let upload = Upload {
        place: &bed.place,
        spool: &Spool::new(std::sync::Arc::new(disk)),
        file: &File::Wal(Segment::new(Timeline(1), 1)),
        entry: 5,
        size: SegmentSize::DEFAULT,
        metadata: Metadata::from([("pg-version".to_owned(), "150018".to_owned())]),
        damaged: damaged.map(str::to_owned),
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
