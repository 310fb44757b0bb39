//! What is delivered from where, over two local stores and two spools.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::codec::keys::Keyring;
use crate::store::local::Local;
use crate::store::{Body, Metadata, Put, Store};
use crate::work::testing::small_segment as wal;

const NAME: &str = "000000020000000000000003";
const MIB: usize = 1 << 20;

/// Of another cluster.
fn strange(mut wal: Vec<u8>) -> Vec<u8> {
    wal[24..32].copy_from_slice(&8u64.to_ne_bytes());
    wal
}

/// Asked is site `new`, which was moved from `old`; each has a store and a spool.
struct World {
    folder: tempfile::TempDir,
    stores: Vec<Local>,
    keys: Keyring,
    cluster: Option<u64>,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("spool")).unwrap();
        fs::create_dir(folder.path().join("spool-old")).unwrap();
        let open = |name: &str| Local::create(&folder.path().join(name)).unwrap();
        World {
            stores: vec![open("new"), open("old")],
            keys: Keyring::default(),
            cluster: Some(7),
            folder,
        }
    }

    fn places(&self) -> Places<'_> {
        let stores = self.stores.iter().zip(["new", "old"]);
        Places {
            stores: stores
                .map(|(store, prefix)| Shelf {
                    prefix: prefix.to_owned(),
                    source: Source {
                        store,
                        keys: &self.keys,
                    },
                })
                .collect(),
            spools: ["spool", "spool-old"]
                .map(|name| self.folder.path().join(name))
                .to_vec(),
            cluster: self.cluster,
        }
    }

    fn put(&self, store: usize, key: &str, body: &[u8]) {
        let size = body.len().to_string();
        let metadata = Metadata::from([("original-file-size".to_owned(), size)]);
        self.stores[store]
            .put(key, Body::Bytes(body), &metadata, Put::Create)
            .unwrap();
    }

    fn spool(&self, name: &str, content: &[u8]) {
        fs::write(self.folder.path().join("spool").join(name), content).unwrap();
    }

    fn fetch(&self, name: &str) -> (Outcome<Delivery>, Option<Vec<u8>>) {
        let output = self.folder.path().join("RECOVERYXLOG");
        let outcome = fetch(&self.places(), name, &output);
        assert!(!self.folder.path().join("RECOVERYXLOG.tmp").exists());
        (outcome, fs::read(output).ok())
    }
}

#[test]
fn a_segment_comes_from_an_older_site_and_history_from_its_folder() {
    let world = World::new();
    let whole = wal(1, 3 << 20, MIB);
    world.put(1, &format!("old/xlog/{NAME}"), &whole);
    world.put(0, "new/timeline/00000002.history", b"1\t0/300000\tx\n");
    assert_eq!(world.fetch(NAME), (Ok(Delivery::Full), Some(whole)));
    let history = world.fetch("00000002.history");
    assert_eq!(
        history,
        (Ok(Delivery::Full), Some(b"1\t0/300000\tx\n".to_vec()))
    );
    assert_eq!(exists(&world.places(), NAME), Ok(true));
    assert_eq!(exists(&world.places(), "00000003.history"), Ok(false));
}

#[test]
fn absence_is_told_with_the_last_position_within_reach() {
    let world = World::new();
    world.put(0, "new/basebackup/b", b"");
    for name in [
        NAME,
        "00000009.history",
        "000000020000000000000003.partial",
        "x",
    ] {
        assert_eq!(world.fetch(name), (Ok(Delivery::Absent), None), "{name}");
    }
    assert_eq!(reach(&world.places(), NAME), Ok(None));
    world.put(
        0,
        "new/xlog/000000020000000000000002",
        &wal(1, 2 << 20, MIB),
    );
    assert_eq!(reach(&world.places(), NAME), Ok(Some(Lsn(3 << 20))));
}

#[test]
fn the_unfinished_segment_is_padded_and_the_last_choice() {
    let world = World::new();
    let part = wal(2, 3 << 20, 70_000);
    world.spool(&format!("{NAME}.partial"), &part);
    let (outcome, bytes) = world.fetch(NAME);
    assert_eq!(outcome, Ok(Delivery::Partial { bytes: 70_000 }));
    let bytes = bytes.unwrap();
    assert_eq!((bytes.len(), &bytes[..70_000]), (MIB, &part[..]));
    assert!(bytes[70_000..].iter().all(|byte| *byte == 0));

    let sealed = wal(2, 3 << 20, MIB);
    world.spool(NAME, &sealed);
    assert_eq!(world.fetch(NAME), (Ok(Delivery::Full), Some(sealed)));
    let stored = wal(1, 3 << 20, MIB);
    world.put(0, &format!("new/xlog/{NAME}"), &stored);
    assert_eq!(world.fetch(NAME), (Ok(Delivery::Full), Some(stored)));
}

#[test]
fn the_kept_end_of_a_left_timeline_comes_last_of_all() {
    let world = World::new();
    let kept = wal(2, 3 << 20, 60_000);
    world.put(0, &format!("new/xlog_partial/{NAME}"), &kept);
    let (outcome, bytes) = world.fetch(NAME);
    assert_eq!(outcome, Ok(Delivery::Partial { bytes: 60_000 }));
    assert_eq!(bytes.map(|bytes| bytes.len()), Some(MIB));
    let spooled = wal(2, 3 << 20, 70_000);
    world.spool(&format!("{NAME}.partial"), &spooled);
    assert_eq!(world.fetch(NAME).0, Ok(Delivery::Partial { bytes: 70_000 }));
}

#[test]
fn s40_damage_is_a_failure_not_an_absence() {
    for (bad, expected) in [
        (
            wal(2, 3 << 20, MIB - 1),
            "has 1048575 bytes, expected 1048576",
        ),
        (
            wal(2, 3 << 20, MIB + 1),
            "has 1048577 bytes, expected 1048576",
        ),
        (wal(2, 4 << 20, MIB), "Expected LSN '0/300000' in WAL file"),
        (wal(3, 3 << 20, MIB), "holds WAL of timeline 3"),
        (vec![0; MIB], "WAL header: magic 0000"),
        (vec![], "WAL header: 0 bytes"),
    ] {
        let world = World::new();
        world.put(0, &format!("new/xlog/{NAME}"), &bad);
        let (outcome, bytes) = world.fetch(NAME);
        let failure = outcome.unwrap_err();
        assert!(failure.message.contains(expected), "{failure}");
        assert_eq!(failure.class, Class::Corrupt);
        assert_eq!(bytes, None);
    }
}

/// As a disk that is not mounted: its folder is there and empty.
#[test]
fn s40_a_store_that_holds_nothing_confirms_no_absence() {
    let history = "00000002.history";
    for (store, key, expected) in [
        (0, "", false),
        (0, "new/basebackup/b", true),
        (0, "new/xlog/000000010000000000000001", true),
        (0, "new/config/x", false),
        (0, "other/basebackup/b", false),
        // Related, but on another disk.
        (1, "old/basebackup/b", false),
    ] {
        let world = World::new();
        if !key.is_empty() {
            world.put(store, key, b"");
        }
        for name in [NAME, history] {
            let (outcome, bytes) = world.fetch(name);
            assert_eq!(bytes, None);
            match outcome {
                Ok(delivery) => assert!(expected && delivery == Delivery::Absent, "{key}"),
                Err(failure) => {
                    let told = failure.to_string();
                    assert!(
                        !expected && told.contains("holds nothing of site 'new'"),
                        "{told}"
                    );
                    assert!(told.ends_with("is its file system mounted?"), "{told}");
                }
            }
        }
    }
}

/// A site was moved to another with the name of its cluster alone, or with another cluster.
#[test]
fn nothing_of_another_cluster_is_taken_from_a_related_site() {
    let (ours, other) = (wal(2, 3 << 20, MIB), strange(wal(2, 3 << 20, MIB)));
    let key = format!("old/xlog/{NAME}");
    let (part, draft) = (
        format!("old/xlog_partial/{NAME}"),
        format!("{NAME}.partial"),
    );
    for (cluster, taken) in [(Some(7), false), (Some(8), true), (None, true)] {
        let mut world = World::new();
        world.cluster = cluster;
        world.put(0, "new/basebackup/b", b"");
        world.put(1, &key, &other);
        let full = if taken {
            Delivery::Full
        } else {
            Delivery::Absent
        };
        assert_eq!(world.fetch(NAME).0, Ok(full), "{cluster:?}");

        let mut world = World::new();
        world.cluster = cluster;
        world.put(0, "new/basebackup/b", b"");
        world.put(1, &part, &other[..50_000]);
        let bytes = |bytes| Delivery::Partial { bytes };
        let kept = if taken {
            bytes(50_000)
        } else {
            Delivery::Absent
        };
        assert_eq!(world.fetch(NAME).0, Ok(kept), "{cluster:?}");
        let spool =
            |content| fs::write(world.folder.path().join("spool-old").join(&draft), content);
        spool(&other[..60_000]).unwrap();
        let kept = if taken {
            bytes(60_000)
        } else {
            Delivery::Absent
        };
        assert_eq!(world.fetch(NAME).0, Ok(kept), "{cluster:?}");
        // The asked site comes first, whatever it has.
        world.put(0, &format!("new/xlog/{NAME}"), &ours);
        assert_eq!(world.fetch(NAME), (Ok(Delivery::Full), Some(ours.clone())));
    }
}

#[test]
fn a_history_is_of_the_cluster_of_the_segment_it_begins_in() {
    let (name, text) = ("00000002.history", b"1\t0/300000\tx\n");
    let first = wal(1, 3 << 20, MIB);
    for (first, cluster, taken) in [
        (Some(&first), Some(7), true),
        (Some(&first), None, true),
        (Some(&strange(first.clone())), Some(7), false),
        (Some(&strange(first.clone())), None, true),
        // Nobody knows: PostgreSQL judges.
        (None, Some(7), true),
    ] {
        let mut world = World::new();
        world.cluster = cluster;
        world.put(0, "new/basebackup/b", b"");
        world.put(1, &format!("old/timeline/{name}"), text);
        if let Some(first) = first {
            world.put(1, &format!("old/xlog/{NAME}"), first);
        }
        let full = if taken {
            Delivery::Full
        } else {
            Delivery::Absent
        };
        assert_eq!(
            world.fetch(name).0,
            Ok(full),
            "{cluster:?} {}",
            first.is_some()
        );
    }
}

/// The backup is of the site before it got its new name, and its last WAL is not stored yet.
#[test]
fn the_spools_of_all_related_sites_are_looked_in() {
    let world = World::new();
    let part = wal(2, 3 << 20, 70_000);
    let spool = |name: &str, content: &[u8]| {
        fs::write(world.folder.path().join("spool-old").join(name), content).unwrap();
    };
    spool(&format!("{NAME}.ended"), &part);
    assert_eq!(world.fetch(NAME).0, Ok(Delivery::Partial { bytes: 70_000 }));
    let sealed = wal(2, 3 << 20, MIB);
    spool(NAME, &sealed);
    assert_eq!(world.fetch(NAME), (Ok(Delivery::Full), Some(sealed)));
    // The asked site's own comes first.
    let own = wal(1, 3 << 20, MIB);
    world.spool(NAME, &own);
    assert_eq!(world.fetch(NAME), (Ok(Delivery::Full), Some(own)));
}

#[test]
fn a_spool_that_the_server_cannot_read_is_told_at_the_restore() {
    let told = unread(
        &io::ErrorKind::PermissionDenied.into(),
        Path::new("/spool/x"),
    );
    let hint = "let this user read the spool, or restore with a configuration without \
                backup_location";
    assert_eq!(told.hint.as_deref(), Some(hint));
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("main/xlog_incoming");
    fs::create_dir_all(&spool).unwrap();
    let found = fs::metadata(&spool).unwrap();
    let (uid, gid) = (found.uid(), found.gid());
    let ours = Owner { uid, gid };
    let [group, others] = [gid, gid + 1].map(|gid| Owner { uid: uid + 1, gid });
    for (above, mode, shut) in [
        (0o755, 0o700, [false, true, true]),
        (0o755, 0o750, [false, false, true]),
        (0o755, 0o755, [false, false, false]),
        (0o755, 0o744, [false, true, true]),
        (0o700, 0o755, [false, true, true]),
    ] {
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        set(folder.path(), above).unwrap();
        set(&spool, mode).unwrap();
        let found = [ours, group, others].map(|owner| is_shut(&spool, Some(owner)).is_some());
        assert_eq!(found, shut, "{above:o} {mode:o}");
        assert_eq!(is_shut(&spool, None), None);
    }
    let nowhere = folder.path().join("nowhere");
    assert_eq!(is_shut(&nowhere, Some(others)), None);
    assert_eq!(is_shut(&nowhere, None), None);
}

#[test]
fn the_cluster_of_a_data_directory_is_the_first_field_of_pg_control() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(cluster::of(folder.path()), None);
    fs::create_dir(folder.path().join("global")).unwrap();
    let control = folder.path().join("global/pg_control");
    for (content, expected) in [
        (&[7u64.to_ne_bytes(), [1; 8]].concat()[..], Some(7)),
        (&[0; 16], None),
        (&[7; 7], None),
    ] {
        fs::write(&control, content).unwrap();
        assert_eq!(cluster::of(folder.path()), expected);
    }
    let segment = folder.path().join("segment");
    fs::write(&segment, wal(1, 3 << 20, 100)).unwrap();
    let fits = [Some(7), Some(8), None].map(|id| cluster::fits(&segment, id));
    assert_eq!(fits, [true, false, true]);
}
