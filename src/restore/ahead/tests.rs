//! The threads and the folder, over a local store.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::store::local::Local;
use crate::store::{Body, Metadata, Put, Store};
use crate::work::testing::small_segment;

const MIB: usize = 1 << 20;

fn name(number: u64) -> String {
    let size = SegmentSize::new(1 << 20).unwrap();
    machine::Segment::new(Timeline(1), number).name(size)
}

/// A segment of 1 MiB, or the beginning of it.
fn wal(number: u64, bytes: usize) -> Vec<u8> {
    small_segment(1, number << 20, bytes)
}

struct World {
    folder: tempfile::TempDir,
    ahead: Ahead,
}

impl World {
    /// `left`: what a process before left in the folder.
    fn new(segments: u32, left: &[&str]) -> World {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("store")).unwrap();
        fs::create_dir(path("ahead")).unwrap();
        for name in left {
            fs::write(path("ahead").join(name), b"half").unwrap();
        }
        let storage = json!({"storage_type": "local", "directory": path("store")});
        let config = json!({
            "restore_prefetch": segments,
            "backup_sites": {"main": {"object_storage": storage}},
        });
        let (config, _) = crate::config::parse(&config).unwrap();
        let ahead = Ahead::new(Order {
            config: Arc::new(config),
            site: "main".to_owned(),
            cluster: None,
            folder: path("ahead"),
            readers_max: 2,
        });
        World {
            ahead: ahead.unwrap(),
            folder,
        }
    }

    fn put(&self, number: u64, body: &[u8]) {
        let store = Local::open(&self.folder.path().join("store")).unwrap();
        let key = format!("main/xlog/{}", name(number));
        store
            .put(&key, Body::Bytes(body), &Metadata::new(), Put::Create)
            .unwrap();
    }

    fn held(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.folder.path().join("ahead")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// Until everything that is wanted was tried.
    fn settled(&self) {
        let shared = &self.ahead.0;
        let mut desk = shared.lock();
        let deadline = Instant::now() + PATIENCE;
        while !desk.plan.is_settled() {
            assert!(Instant::now() < deadline, "{:?}", desk.plan);
            desk = shared.news.wait_timeout(desk, PATIENCE).unwrap().0;
        }
    }
}

#[test]
fn s45_only_what_this_process_has_fetched_and_judged_is_given_away() {
    let (left, draft) = (name(2), format!("{}.tmp", name(3)));
    let world = World::new(3, &[&left, &draft, "taken.1"]);
    assert_eq!(world.held(), BTreeSet::new());
    assert!(world.ahead.take(&left).is_none());
    world.put(2, &wal(2, MIB));
    // Cut short, and another segment's content.
    world.put(3, &wal(3, MIB - 1));
    world.put(4, &wal(9, MIB));
    world.ahead.asked(&name(1), 1 << 20);
    world.settled();
    assert_eq!(world.held(), BTreeSet::from([left.clone()]));
    let taken = world.ahead.take(&left).unwrap();
    let output = world.folder.path().join("RECOVERYXLOG");
    wal::hand_over(taken.path(), &output).unwrap();
    assert_eq!(fs::read(&output).unwrap(), wal(2, MIB));
    assert!(world.ahead.take(&left).is_none(), "it is given away once");
    world.settled();
    for number in [3, 4, 5] {
        assert!(world.ahead.take(&name(number)).is_none());
    }
    assert_eq!(world.held(), BTreeSet::new());
}

#[test]
fn what_is_taken_and_not_handed_over_is_gone() {
    let world = World::new(2, &[]);
    for number in 1..=4 {
        world.put(number, &wal(number, MIB));
    }
    world.ahead.asked(&name(1), 1 << 20);
    world.settled();
    assert_eq!(world.held(), BTreeSet::from([name(2), name(3)]));
    let taken = world.ahead.take(&name(2)).unwrap();
    // It is its taker's alone, whatever becomes of the name.
    assert_eq!(fs::read(taken.path()).unwrap(), wal(2, MIB));
    world.settled();
    drop(taken);
    assert_eq!(world.held(), BTreeSet::from([name(3), name(4)]));
    let folder = world.folder.path().join("ahead");
    world.ahead.stop().unwrap();
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
}

/// The one who waits gets the file of the fetch that was under way.
#[test]
fn a_request_waits_for_the_fetch_under_way() {
    let world = World::new(1, &[]);
    let shared = &world.ahead.0;
    {
        let mut desk = shared.lock();
        let size = SegmentSize::new(1 << 20).unwrap();
        // No thread is told, so this test does its work.
        desk.plan.asked(&name(1), size, Instant::now());
        assert_eq!(desk.plan.begin(), Some(Job::Histories(Timeline(1))));
        assert_eq!(desk.plan.begin(), Some(Job::Segment(name(2))));
    }
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            world
                .ahead
                .take(&name(2))
                .map(|t| fs::read(t.path()).unwrap())
        });
        let path = shared.order.folder.join(name(2));
        fs::write(path, wal(2, MIB)).unwrap();
        assert!(shared.lock().plan.fetched(&name(2), Got::Whole));
        shared.news.notify_all();
        assert_eq!(waits.join().unwrap(), Some(wal(2, MIB)));
    });
}

/// The store is not there for a while: nothing is fetched, and nothing is remembered of that.
#[test]
fn s40_a_store_that_fails_is_asked_again() {
    let world = World::new(1, &[]);
    world.put(2, &wal(2, MIB));
    let path = |name: &str| world.folder.path().join(name);
    fs::rename(path("store"), path("elsewhere")).unwrap();
    world.ahead.asked(&name(1), 1 << 20);
    world.settled();
    assert!(world.ahead.take(&name(2)).is_none());
    fs::rename(path("elsewhere"), path("store")).unwrap();
    world.ahead.asked(&name(1), 1 << 20);
    world.settled();
    assert!(world.ahead.take(&name(2)).is_some());
}
