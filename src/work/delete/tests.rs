//! What a deletion removes, in which order, and again after it was interrupted.

use machine::{Class, Timeline};

use super::*;
use crate::work::testing::{Bed, Fault};

const MAIN: &str = "main/basebackup/2026-11-22_09-27_0.00000000.pghoard";

fn name() -> BackupName {
    BackupName("2026-11-22_09-27_0".into())
}

fn part(number: u32) -> String {
    format!("main/basebackup_chunk/{0}/{0}.{number:08}.pghoard", name())
}

fn bed() -> Bed {
    let bed = Bed::make();
    for number in 1..=3 {
        bed.put(&part(number), &[]);
    }
    bed.put(MAIN, &[]);
    // Neighbours, one with a name that begins alike (S-63).
    bed.put("main/basebackup/2026-11-22_09-27_01.00000000.pghoard", &[]);
    bed.put(
        "main/basebackup_chunk/2026-11-22_09-27_01/x.00000001.pghoard",
        &[],
    );
    bed
}

#[test]
fn s63_a_backup_goes_main_object_first_and_alone() {
    let bed = bed();
    let events = delete(&bed, None).unwrap();
    // One that failed may have left either form.
    let whole = format!("delete main/basebackup/{}", name());
    let mut order = vec![format!("delete {MAIN}"), whole];
    order.extend((1..=3).map(|n| format!("delete {}", part(n))));
    assert_eq!(*bed.store.asked.lock().unwrap(), order);
    let part = |number| File::Part {
        backup: name(),
        number,
    };
    let files = vec![File::Main(name()), part(1), part(2), part(3)];
    let wal = Vec::new();
    assert_eq!(events, [Event::Deleted { wal, files }]);
    assert_eq!(bed.keys().len(), 2);
}

#[test]
fn an_interrupted_deletion_is_repeated_from_anywhere() {
    for after in 0..4 {
        for fault in [Fault::Before(Class::Network), Fault::After(Class::Network)] {
            let bed = bed();
            bed.store.fail(after, fault);
            delete(&bed, None).unwrap_err();
            let main = bed.keys().contains(&MAIN.to_owned());
            let parts = bed.keys().iter().filter(|k| k.contains("_0/")).count();
            assert!(!main || parts == 3, "a listed main object has its parts");
            assert_eq!(delete(&bed, None).unwrap().len(), 1);
            assert_eq!(bed.keys().len(), 2);
        }
    }
}

#[test]
fn a_main_object_of_another_name_is_the_one_that_goes() {
    let bed = Bed::make();
    bed.put("main/basebackup/2026-11-22_09-27_0", &[]);
    delete(&bed, Some("2026-11-22_09-27_0")).unwrap();
    assert!(bed.keys().is_empty());
}

#[test]
fn wal_goes_in_steps_and_again() {
    let bed = Bed::make();
    let size = SegmentSize::DEFAULT;
    for number in [1, 2, 3, 4] {
        let file = File::Wal(Segment::new(Timeline(2), number));
        bed.put(&bed.place.key(&file.key(size)), &[]);
    }
    let range = |first, last| Range {
        timeline: Timeline(2),
        first,
        last,
    };
    let run = |bed: &Bed| {
        let mut events = Vec::new();
        let going = Wal {
            ranges: &[range(2, 3), range(5, 1_005)],
            retire: &[],
            forget: &[],
        };
        let outcome = wal(&bed.place, going, size, &mut |e| events.push(e));
        (outcome, events)
    };
    bed.store.fail(1, Fault::After(Class::Network));
    let (outcome, events) = run(&bed);
    assert!(outcome.is_err() && events.is_empty());
    let (outcome, events) = run(&bed);
    outcome.unwrap();
    let told = [range(2, 3), range(5, 1_004), range(1_005, 1_005)];
    let deleted = told.map(|range| Event::Deleted {
        wal: vec![range],
        files: Vec::new(),
    });
    assert_eq!(events, deleted);
    let left = ["000000020000000000000001", "000000020000000000000004"];
    assert_eq!(bed.keys(), left.map(|name| format!("main/xlog/{name}")));
}

fn delete(bed: &Bed, object: Option<&str>) -> Outcome<Vec<Event>> {
    remove(bed, object, None)
}

fn remove(bed: &Bed, object: Option<&str>, unless: Option<Millis>) -> Outcome<Vec<Event>> {
    let mut events = Vec::new();
    let name = name();
    let doomed = Doomed {
        name: &name,
        object,
        unless_held_at: unless,
    };
    backup(&bed.place, doomed, SegmentSize::DEFAULT, &mut |e| {
        events.push(e);
    })?;
    Ok(events)
}

fn request(bed: &Bed, key: &str, backup: &str, until: &str) {
    let metadata = [("preserve-backup", backup), ("preserve-until", until)];
    bed.put(&format!("main/preservation_request/{key}"), &metadata);
}

#[test]
fn what_is_held_meanwhile_stays_and_is_told() {
    let now = Some(Millis(1_795_339_646_717));
    let (later, earlier) = ("2030-01-01 00:00:00+00:00", "2020-01-01 00:00:00+00:00");
    // the hold, whether the backup expired, what is left of its four objects
    for (of, until, expired, left) in [
        ("2026-11-22_09-27_0", later, now, 4),
        ("2026-11-22_09-27_0.00000000.pghoard", later, now, 4),
        ("2026-11-22_09-27_0", earlier, now, 0),
        ("2026-11-22_09-27_0", later, None, 0),
        // S-63
        ("2026-11-22_09-27_01", later, now, 0),
    ] {
        let bed = bed();
        let others = bed.keys().len() - 4;
        request(&bed, "any", of, until);
        let events = remove(&bed, None, expired).unwrap();
        assert_eq!(bed.keys().len() - others - 1, left, "{of} {until}");
        match (left, events.as_slice()) {
            (4, [Event::Found { files, .. }, Event::Marked { key, .. }]) => {
                assert_eq!(*files, [File::Main(name())]);
                assert_eq!(key, "preservation_request/any");
            }
            (0, [Event::Deleted { .. }]) => {}
            _ => panic!("{events:?}"),
        }
    }
}

#[test]
fn a_hold_without_its_main_object_comes_too_late() {
    let bed = bed();
    request(
        &bed,
        "any",
        "2026-11-22_09-27_0",
        "2030-01-01 00:00:00+00:00",
    );
    bed.place.store.delete(MAIN).unwrap();
    remove(&bed, None, Some(Millis(5))).unwrap();
    assert!(!bed.keys().iter().any(|key| key.contains("_0/")));
}

#[test]
fn a_hold_that_cannot_be_read_stops_its_backup_from_going() {
    for (key, goes) in [
        ("2026-11-22_09-27_0_2030", false),
        ("2026-11-22_09-27_01_2030", true),
    ] {
        let bed = bed();
        bed.put(&format!("main/preservation_request/{key}"), &[]);
        let removed = remove(&bed, None, Some(Millis(5)));
        assert_eq!(removed.is_ok(), goes, "{key}");
        assert_eq!(bed.keys().contains(&MAIN.to_owned()), !goes);
    }
}

#[test]
fn wal_between_backups_is_marked_before_it_goes() {
    let (size, timeline) = (SegmentSize::DEFAULT, Timeline(1));
    let range = Range {
        timeline,
        first: 2,
        last: 3,
    };
    let mark = "main/mark/retired_000000010000000000000002-000000010000000000000003";
    let segment = |n| format!("main/xlog/{}", Segment::new(timeline, n).name(size));
    for after in 0..4 {
        for fault in [Fault::Before(Class::Network), Fault::After(Class::Network)] {
            let bed = Bed::make();
            bed.put("main/mark/retired_old", &[]);
            (2..=3).for_each(|n| bed.put(&segment(n), &[]));
            let going = Wal {
                ranges: &[range],
                retire: &[range],
                forget: &["mark/retired_old".to_owned()],
            };
            let run = || wal(&bed.place, going, size, &mut |_| {});
            bed.store.fail(after, fault);
            run().unwrap_err();
            let keys = bed.keys();
            let gone = (2..=3).any(|n| !keys.contains(&segment(n)));
            assert!(
                !gone || keys.contains(&mark.to_owned()),
                "{after} {fault:?}"
            );
            run().unwrap();
            assert_eq!(bed.keys(), [mark]);
        }
    }
}

fn lock(bed: &Bed, key: &str, class: Class) {
    bed.store.locked.lock().unwrap().insert(key.into(), class);
}

fn refusal(wal: &[Range], files: &[File], marks: &[&str], class: Class) -> Event {
    Event::DeletionRefused {
        wal: wal.to_vec(),
        files: files.to_vec(),
        marks: marks.iter().map(|key| (*key).to_owned()).collect(),
        class,
        message: "the object is locked".into(),
    }
}

#[test]
fn s66_a_backup_whose_main_object_is_locked_stays_whole() {
    for class in [Class::Denied, Class::Conflict] {
        let bed = bed();
        let before = bed.keys();
        lock(&bed, MAIN, class);
        let told = delete(&bed, None).unwrap();
        assert_eq!(told, [refusal(&[], &[File::Main(name())], &[], class)]);
        assert_eq!(bed.keys(), before);
        bed.store.locked.lock().unwrap().clear();
        assert_eq!(delete(&bed, None).unwrap().len(), 1);
        assert_eq!(bed.keys().len(), 2);
    }
}

#[test]
fn s66_locked_chunks_are_told_and_the_others_go() {
    let bed = bed();
    lock(&bed, &part(2), Class::Denied);
    let of = |number| File::Part {
        backup: name(),
        number,
    };
    let gone = |files: &[File]| Event::Deleted {
        wal: Vec::new(),
        files: files.to_vec(),
    };
    let told = delete(&bed, None).unwrap();
    let kept = refusal(&[], &[of(2)], &[], Class::Denied);
    assert_eq!(told, [gone(&[File::Main(name()), of(1), of(3)]), kept]);
    bed.store.locked.lock().unwrap().clear();
    assert_eq!(
        delete(&bed, None).unwrap(),
        [gone(&[File::Main(name()), of(2)])]
    );
    assert_eq!(bed.keys().len(), 2);
}

#[test]
fn s66_what_does_not_answer_is_no_refusal() {
    for class in [Class::Network, Class::Auth, Class::Timeout, Class::Quota] {
        let bed = bed();
        lock(&bed, MAIN, class);
        assert_eq!(delete(&bed, None).unwrap_err().class, class);
    }
}

/// Segments `first..=last` are stored, `locked` of them refused; what is told, and how often the
/// store was asked in vain.
fn wal_beside_locks(last: u64, locked: impl Fn(u64) -> bool) -> (Vec<Event>, usize, Bed) {
    let (size, timeline) = (SegmentSize::DEFAULT, Timeline(1));
    let bed = Bed::make();
    for number in 1..=last {
        let key = bed
            .place
            .key(&File::Wal(Segment::new(timeline, number)).key(size));
        bed.put(&key, &[]);
        if locked(number) {
            lock(&bed, &key, Class::Denied);
        }
    }
    let mut events = Vec::new();
    let range = Range {
        timeline,
        first: 1,
        last,
    };
    let going = Wal {
        ranges: &[range],
        retire: &[],
        forget: &[],
    };
    wal(&bed.place, going, size, &mut |event| events.push(event)).unwrap();
    let asked = bed.store.asked.lock().unwrap();
    let vain = asked.iter().filter(|a| a.starts_with("refuse")).count();
    drop(asked);
    (events, vain, bed)
}

#[test]
fn s66_locked_wal_is_passed_over() {
    // Up to which there are segments, the locked ones; what goes, what stays, in vain asked.
    type Row<'a> = (
        u64,
        fn(u64) -> bool,
        &'a [(u64, u64)],
        &'a [(u64, u64)],
        usize,
    );
    let rows: [Row<'_>; 5] = [
        (5, |_| false, &[(1, 5)], &[], 0),
        (5, |n| n == 3, &[(1, 2), (4, 5)], &[(3, 3)], 1),
        // Locked by age: the newer the longer.
        (50, |n| n > 10, &[(1, 10)], &[(11, 50)], 17),
        // Held one by one, however many: the others still go.
        (50, |n| n <= 40, &[(41, 50)], &[(1, 40)], 40),
        (
            1_100,
            |n| n == 999 || n == 1_100,
            &[(1, 998), (1_000, 1_099)],
            &[(999, 999), (1_100, 1_100)],
            2,
        ),
    ];
    let range = |(first, last): &(u64, u64)| Range {
        timeline: Timeline(1),
        first: *first,
        last: *last,
    };
    for (last, locked, gone, kept, vain) in rows {
        let (events, asked, bed) = wal_beside_locks(last, locked);
        let (mut deleted, mut refused) = (Vec::new(), Vec::new());
        for event in &events {
            match event {
                Event::Deleted { wal, .. } => deleted.extend(wal.clone()),
                Event::DeletionRefused { wal, .. } => refused.extend(wal.clone()),
                other => panic!("{other:?}"),
            }
        }
        // Steps of a thousand may split what belongs together.
        deleted.dedup_by(|next, range| {
            let touches = range.last + 1 == next.first;
            if touches {
                range.last = next.last;
            }
            touches
        });
        assert_eq!(
            deleted,
            gone.iter().map(range).collect::<Vec<_>>(),
            "{last}"
        );
        assert_eq!(
            refused,
            kept.iter().map(range).collect::<Vec<_>>(),
            "{last}"
        );
        assert_eq!(asked, vain, "{last}");
        let left: u64 = kept.iter().map(|(first, last)| last - first + 1).sum();
        assert_eq!(u64::try_from(bed.keys().len()).unwrap(), left);
    }
}

#[test]
fn s66_a_locked_mark_does_not_keep_wal_and_other_marks() {
    let (bed, size) = (Bed::make(), SegmentSize::DEFAULT);
    let keys = ["mark/retired_one".to_owned(), "mark/retired_two".to_owned()];
    for key in &keys {
        bed.put(&bed.place.key(key), &[]);
    }
    lock(&bed, &bed.place.key(&keys[0]), Class::Conflict);
    let going = Wal {
        ranges: &[],
        retire: &[],
        forget: &keys,
    };
    let mut events = Vec::new();
    wal(&bed.place, going, size, &mut |event| events.push(event)).unwrap();
    let [one, two] = &keys;
    assert_eq!(events[0], Event::Unmarked { key: two.clone() });
    assert_eq!(events[1], refusal(&[], &[], &[one], Class::Conflict));
    assert_eq!(bed.keys(), [bed.place.key(one)]);
}
