//! The command over a local store, beside daemons and after them.

use std::fs;
use std::path::PathBuf;

use machine::event::Lease;
use machine::{Segment, SegmentSize, Timeline};
use serde_json::json;

use super::*;
use crate::store::local::Local;
use crate::store::{Body, Metadata, Put, Store};

struct Site {
    folder: tempfile::TempDir,
    store: Local,
}

fn name(number: u64) -> String {
    Segment::new(Timeline(1), number).name(SegmentSize::DEFAULT)
}

impl Site {
    /// With WAL 3 to 8, the site it was moved from, and no basebackup.
    fn make() -> Site {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("spool")).unwrap();
        let storage = json!({ "storage_type": "local", "directory": path("store") });
        let config = json!({
            "backup_location": path("spool"),
            "backup_sites": {
                "main": { "object_storage": storage, "moved_from": ["old"] },
                "old": { "object_storage": storage, "active": false },
            },
        });
        fs::write(path("c.json"), config.to_string()).unwrap();
        let store = Local::create(&path("store")).unwrap();
        let site = Site { folder, store };
        for number in 3..=8 {
            site.put(&format!("main/xlog/{}", name(number)), &[]);
        }
        site
    }

    fn put(&self, key: &str, metadata: &[(&str, &str)]) {
        let pairs = metadata.iter();
        let metadata = pairs.map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let body = Body::Bytes(b"four");
        self.store.put(key, body, &metadata, Put::Create).unwrap();
    }

    fn backup(&self, prefix: &str, backup: &str, number: u64) {
        let key = format!("{prefix}/basebackup/{backup}");
        self.put(&key, &[("start-wal-segment", &name(number))]);
    }

    fn run(&self, words: &[&str]) -> i32 {
        let config = self.folder.path().join("c.json");
        let start = ["x", "--site", "main", "--config", config.to_str().unwrap()];
        run(start.iter().chain(words).map(OsString::from))
    }

    /// Numbers of the segments that are left.
    fn wal(&self) -> Vec<u64> {
        let mut left = Vec::new();
        let mut visit = |entry: crate::store::Entry| {
            let base = entry.key.rsplit('/').next().unwrap().to_owned();
            left.push(
                Segment::from_name(&base, SegmentSize::DEFAULT)
                    .unwrap()
                    .number,
            );
            Ok(())
        };
        self.store.list("main/xlog", &mut visit).unwrap();
        left
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("spool").join(log::FILE_NAME)
    }

    fn lease(&self) -> bool {
        self.store.look("main/daemon_lease").unwrap().is_some()
    }

    /// A daemon elsewhere takes the lease.
    fn foreign(&self) -> Lease {
        let storage = choose::store(
            &crate::config::Storage::Local {
                directory: self.folder.path().join("store"),
                prefix: String::new(),
            },
            Missing::Refuse,
        );
        let place = Place::to_read("main", "main", storage.unwrap().into(), Keyring::default());
        let other = Identity::passing("elsewhere").unwrap();
        let passed = std::time::Duration::ZERO;
        let told = clock::now();
        lease::look(
            &place,
            &other,
            &mut Watch::default(),
            Moment { told, passed },
        )
        .unwrap()
    }
}

#[test]
fn wal_before_every_basebackup_goes_and_nothing_else() {
    let site = Site::make();
    site.backup("main", "a", 6);
    site.backup("old", "a", 5);
    assert_eq!((site.run(&["--dry-run"]), site.wal().len()), (0, 6));
    assert!(!site.lease());
    assert_eq!((site.run(&[]), site.wal()), (0, vec![5, 6, 7, 8]));
    assert!(!site.lease(), "given up");
    assert_eq!((site.run(&[]), site.wal().len()), (0, 4));
    assert!(site.store.look("main/basebackup/a").unwrap().is_some());
}

#[test]
fn what_is_refused_deletes_nothing() {
    let site = Site::make();
    let folder = site.folder.path().to_str().unwrap();
    for (words, code) in [
        ("--config=", 1),
        ("--config FOLDER/absent.json", 1),
        ("--config FOLDER/store", 1),
        ("--config FOLDER/c.json", 1),
        ("--config FOLDER/c.json --site other", 1),
        ("--config FOLDER/c.json --site", 2),
        ("--config FOLDER/c.json --site main --unknown", 2),
        // No basebackup: PGHoard ends with a traceback and the same code.
        ("--config FOLDER/c.json --site main", 1),
        ("--config FOLDER/c.json --site main --dry-run", 1),
    ] {
        let words = words.replace("FOLDER", folder);
        let words = ["x"].into_iter().chain(words.split(' '));
        let code_found = run(words.clone().map(OsString::from));
        let words: Vec<&str> = words.collect();
        assert_eq!((code_found, site.wal().len()), (code, 6), "{words:?}");
    }
    site.backup("main", "a", 6);
    let time = [("start-time", "2026-11-22T09:27:26+00:00")];
    site.put("main/basebackup/b", &time);
    assert!(!site.lease(), "given up");
    let told = "b does not say where it begins";
    assert_eq!((site.run(&[]), site.wal().len()), (1, 6), "{told}");
}

#[test]
fn differs_beside_a_daemon_nothing_is_deleted() {
    // One elsewhere, which holds the lease.
    let site = Site::make();
    site.backup("main", "a", 6);
    assert!(site.foreign().ours);
    assert_eq!((site.run(&[]), site.wal().len()), (1, 6));
    assert_eq!((site.run(&["--dry-run"]), site.wal().len()), (0, 6));
    site.backup("main", "b", 3);
    assert_eq!(
        site.run(&[]),
        0,
        "nothing could be deleted: a cron job is not alarmed"
    );
    assert!(site.lease(), "the daemon's lease is left alone");

    // One on this machine, which holds its log.
    let site = Site::make();
    site.backup("main", "a", 6);
    let daemon = Log::open(&site.log(), &mut |_| ()).unwrap();
    assert_eq!((site.run(&[]), site.wal().len()), (1, 6));
    assert_eq!((site.run(&["--dry-run"]), site.wal().len()), (0, 6));
    assert!(!site.lease());
    drop(daemon);
    assert_eq!((site.run(&[]), site.wal()), (0, vec![6, 7, 8]));
    assert!(site.lease(), "in the name of the daemon that is stopped");
    assert!(site.log().exists());
    assert_eq!(site.run(&[]), 0, "which is no other daemon");
}

#[test]
fn a_hold_keeps_what_its_basebackup_needs() {
    let site = Site::make();
    site.backup("main", "2026-11-22_09-27_0", 4);
    site.backup("main", "2026-11-23_09-27_0", 7);
    let hold: Metadata = [
        ("preserve-backup", "2026-11-22_09-27_0"),
        ("preserve-until", "9999-12-31"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    let key = "main/preservation_request/2026-11-22_09-27_0_hold_ada";
    site.store
        .put(key, Body::Bytes(b""), &hold, Put::Create)
        .unwrap();
    assert_eq!((site.run(&[]), site.wal()), (0, vec![4, 5, 6, 7, 8]));
    // A hold on what is gone keeps nothing: there is nothing to restore.
    site.store
        .delete("main/basebackup/2026-11-22_09-27_0")
        .unwrap();
    assert_eq!((site.run(&[]), site.wal()), (0, vec![7, 8]));
}

/// The store keeps one: the others go, and it is said.
#[test]
fn s66_what_the_store_refuses_to_delete_is_told_and_is_a_failure() {
    let bed = crate::work::testing::Bed::make();
    let segment = |number| Segment::new(Timeline(1), number);
    for number in 3..=5 {
        bed.put(&format!("main/xlog/{}", name(number)), &[]);
    }
    let range = Range {
        timeline: Timeline(1),
        first: 3,
        last: 5,
    };
    let orphans = Orphans {
        size: SegmentSize::DEFAULT,
        ranges: vec![range],
        bytes: (3..=5).map(|number| (segment(number), 1)).collect(),
        strangers: 0,
    };
    let now = Instant::now();
    let mut ours = Ours {
        log: None,
        logged: None,
        me: Identity::passing("here").unwrap(),
        watch: Watch::default(),
        since: now,
        looked: now,
    };
    let key = format!("main/xlog/{}", name(4));
    bed.store.locked.lock().unwrap().insert(key, Class::Denied);
    let failure = delete(&bed.place, &orphans, &mut ours).unwrap_err();
    assert_eq!(failure.class, Class::Denied);
    assert!(
        failure.message.contains("not all of it was deleted"),
        "{failure}"
    );
    let left = bed.keys();
    assert_eq!(left, [format!("main/xlog/{}", name(4))]);
}
