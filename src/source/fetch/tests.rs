//! What is taken from `pg_wal`, and what is not. Servers are in `tests/postgres`.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use super::*;
use crate::spool::RealDisk;

const MIB: usize = 1 << 20;
const SYSTEM: u64 = 7;

/// A segment of 1 MiB as its server began it.
fn wal(timeline: u32, number: u64, system_id: u64) -> Vec<u8> {
    let mut wal = Vec::new();
    wal.extend(0xD110u16.to_ne_bytes());
    wal.extend(2u16.to_ne_bytes());
    wal.extend(timeline.to_ne_bytes());
    wal.extend((number << 20).to_ne_bytes());
    wal.extend([0; 8]);
    wal.extend(system_id.to_ne_bytes());
    wal.extend((1u32 << 20).to_ne_bytes());
    wal.extend(8192u32.to_ne_bytes());
    wal.resize(MIB, u8::try_from(number).unwrap());
    wal
}

fn name(number: u64) -> String {
    Segment::new(Timeline(2), number).name(SegmentSize::new(1 << 20).unwrap())
}

/// Fetches the hole from a `pg_wal` with these files; answers what was spooled and what was said.
fn fetch(hole: Hole, files: &[(String, Vec<u8>)], more: impl Fn(&Path)) -> (Vec<String>, String) {
    let folder = tempfile::tempdir().unwrap();
    let pg_wal = folder.path().join("pg_wal");
    fs::create_dir(&pg_wal).unwrap();
    for (name, content) in files {
        fs::write(pg_wal.join(name), content).unwrap();
    }
    more(&pg_wal);
    let disk = RealDisk::new(&folder.path().join("spool")).unwrap();
    let spool = Spool::new(Arc::new(disk));
    let (entries, marks) = (AtomicU64::new(1), Marks::default());
    let fetch = Fetch {
        means: Means::Directory,
        hole,
        size: SegmentSize::new(1 << 20).unwrap(),
        system_id: Some(SYSTEM),
        spool: &spool,
        entries: &entries,
        marks: &marks,
    };
    let mut told = String::new();
    let mut emit = |event| match event {
        Event::Spooled { origin, .. } => assert_eq!(origin, Origin::Fetched),
        Event::HoleSought { outcome, .. } => told.push(match outcome {
            Sought::Fetched => '+',
            Sought::Absent { .. } => '-',
        }),
        other => panic!("{other:?}"),
    };
    fetch.from_directory(folder.path(), &mut emit).unwrap();
    let found = spool.scan().unwrap().into_iter();
    let mut names: Vec<String> = found.map(|found| found.name).collect();
    names.sort();
    (names, told)
}

fn range(first: u64, last: u64) -> Hole {
    Hole::Wal(Range {
        timeline: Timeline(2),
        first,
        last,
    })
}

#[test]
fn only_finished_segments_of_our_cluster_are_taken_from_pg_wal() {
    let whole = |number| (name(number), wal(2, number, SYSTEM));
    let own = |number, content| (name(number), content);
    let mut short = wal(2, 4, SYSTEM);
    short.truncate(MIB / 2);
    for (files, expect) in [
        (vec![whole(4), whole(5)], "+"),
        // The first segment of a timeline begins with its parent's page.
        (vec![own(4, wal(1, 4, SYSTEM)), whole(5)], "+"),
        // s30: the next one is a recycled file, or one of the timeline before.
        (vec![whole(4), own(5, wal(2, 1, SYSTEM))], "-"),
        (vec![whole(4), own(5, wal(1, 5, SYSTEM))], "-"),
        (vec![whole(4)], "-"),
        (vec![], "-"),
        (vec![own(4, wal(2, 1, SYSTEM)), whole(5)], "-"),
        (vec![own(4, wal(3, 4, SYSTEM)), whole(5)], "-"),
        (vec![own(4, wal(2, 4, 8)), whole(5)], "-"),
        (vec![own(4, short), whole(5)], "-"),
        (vec![own(4, Vec::new()), whole(5)], "-"),
    ] {
        let (spooled, told) = fetch(range(4, 4), &files, |_| {});
        assert_eq!(told, expect);
        assert_eq!(spooled.len(), expect.matches('+').count(), "{spooled:?}");
    }
    let some = [whole(4), whole(5), whole(7), whole(8)];
    let (spooled, told) = fetch(range(4, 7), &some, |_| {});
    assert_eq!(told, "+--+");
    assert_eq!(spooled, [name(4), name(7)]);
}

/// s29: nothing but a plain file of that very name is read.
#[test]
fn s29_links_and_folders_are_no_segments() {
    let next = [(name(5), wal(2, 5, SYSTEM))];
    let (spooled, told) = fetch(range(4, 4), &next, |pg_wal| {
        fs::write(pg_wal.join("elsewhere"), wal(2, 4, SYSTEM)).unwrap();
        symlink("elsewhere", pg_wal.join(name(4))).unwrap();
    });
    assert_eq!((spooled.len(), told.as_str()), (0, "-"));
    let (spooled, told) = fetch(range(4, 4), &next, |pg_wal| {
        fs::create_dir(pg_wal.join(name(4))).unwrap();
    });
    assert_eq!((spooled.len(), told.as_str()), (0, "-"));
}

#[test]
fn s24_a_history_is_taken_where_it_is_one() {
    for (content, expect) in [
        (&b"1\t0/500000\tno reason\n"[..], "+"),
        (b"nonsense\n", "-"),
        (b"9\t0/500000\tno reason\n", "-"),
    ] {
        let files = [("00000002.history".to_owned(), content.to_vec())];
        let (spooled, told) = fetch(Hole::History(Timeline(2)), &files, |_| {});
        assert_eq!(told, expect);
        assert_eq!(spooled.len(), expect.matches('+').count());
    }
}
