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
    let mut order = vec![format!("delete {MAIN}")];
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
        let ranges = [range(2, 3), range(5, 1_005)];
        let outcome = wal(&bed.place, &ranges, size, &mut |e| events.push(e));
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
    let mut events = Vec::new();
    backup(&bed.place, &name(), object, &mut |e| events.push(e))?;
    Ok(events)
}
