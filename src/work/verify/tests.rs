//! Every kind of damage to every kind of object, in every form that objects have.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::*;
use crate::codec::keys::{Keyring, generate};
use crate::codec::{Compression, Encoder, Encoding, Encryption, Envelope};
use crate::store::{Body, Metadata, Put, Store};
use crate::work::testing::Bed;

const MIB: usize = 1 << 20;
const NAME: &str = "2026-11-22_09-27_0";

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn segment(number: u64) -> Segment {
    Segment::new(Timeline(2), number)
}

/// A 1 MiB segment of cluster 7: a header, and bytes that do not compress to nothing.
fn wal(number: u64) -> Vec<u8> {
    let mut wal = Vec::new();
    wal.extend(0xD110u16.to_ne_bytes());
    wal.extend(2u16.to_ne_bytes());
    wal.extend(2u32.to_ne_bytes());
    wal.extend((number << 20).to_ne_bytes());
    wal.extend([0; 8]);
    wal.extend(7u64.to_ne_bytes());
    wal.extend((1u32 << 20).to_ne_bytes());
    wal.extend(8192u32.to_ne_bytes());
    let mut seed = number.wrapping_add(1);
    while wal.len() < MIB {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        wal.extend((seed >> 40).to_le_bytes());
    }
    wal.truncate(MIB);
    wal
}

fn archive_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_size(u64::try_from(content.len()).unwrap());
        header.set_mode(0o600);
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Made once: it takes seconds.
fn pair() -> (&'static str, &'static str) {
    static PAIR: OnceLock<(String, String)> = OnceLock::new();
    let (private, public) = PAIR.get_or_init(|| {
        let (private, public) = generate(2048).unwrap();
        (private.to_string(), public)
    });
    (private, public)
}

/// A store with two of everything, so that each can be swapped with its like.
struct World {
    bed: Bed,
    encoding: Encoding,
}

impl World {
    fn new(compression: Compression, envelope: Option<Envelope>) -> World {
        let mut bed = Bed::make();
        let (private, public) = pair();
        let mut keys = Keyring::default();
        keys.insert("ours", Some(public), Some(private)).unwrap();
        let encryption = envelope.map(|envelope| Encryption {
            key_id: "ours".into(),
            key: keys.public("ours").unwrap().clone(),
            envelope,
        });
        bed.place.keys = keys;
        let encoding = Encoding {
            compression,
            level: 0,
            threads: 0,
            encryption,
        };
        let world = World { bed, encoding };
        for number in [3, 4] {
            world.put(
                &format!("xlog/{}", segment(number).name(size())),
                &wal(number),
                &[],
            );
        }
        world.put(
            "xlog_partial/000000020000000000000005",
            &wal(5)[..70_000],
            &[],
        );
        world.put(
            "timeline/00000002.history",
            b"1\t0/3000000\tno recovery target\n",
            &[],
        );
        world.put(
            "timeline/00000003.history",
            b"1\t0/3000000\tx\n2\t0/4000000\tx\n",
            &[],
        );
        world.backup(NAME);
        world.backup("2026-11-23_09-27_0");
        world
    }

    fn backup(&self, name: &str) {
        let mut chunks = Vec::new();
        for number in [1, 2] {
            let member = vec![b'a'; 1_000 * number + name.len()];
            let chunk = archive_of(&[("pgdata/base/1/1", &member), ("pgdata/x", &wal(9)[..999])]);
            let file = format!("{name}/{name}.{number:08}.pghoard");
            let stored = self.put(&format!("basebackup_chunk/{file}"), &chunk, &[]);
            chunks.push(serde_json::json!({
                "chunk_filename": file, "input_size": chunk.len(), "result_size": stored,
                "files": ["pgdata/base/1/1", "pgdata/x"],
            }));
        }
        let description = serde_json::json!({ "chunks": chunks, "tablespaces": {} }).to_string();
        let main = archive_of(&[(".pghoard_tar_metadata.json", description.as_bytes())]);
        let more = [("format", "pghoard-bb-v2"), ("parts", "2")];
        self.put(&format!("basebackup/{name}.00000000.pghoard"), &main, &more);
    }

    fn put(&self, key: &str, plain: &[u8], more: &[(&str, &str)]) -> usize {
        let mut encoder = Encoder::new(Vec::new(), &self.encoding).unwrap();
        encoder.write_all(plain).unwrap();
        let (stored, _) = encoder.finish().unwrap();
        let mut metadata = Metadata::new();
        let mut add = |key: &str, value: &str| metadata.insert(key.into(), value.into());
        add("compression-algorithm", self.encoding.compression.name());
        add("original-file-size", &plain.len().to_string());
        if key.starts_with("xlog") {
            add("hash", &Algorithm::Sha1.hex(plain));
            add("hash-algorithm", "sha1");
        }
        if self.encoding.encryption.is_some() {
            add("encryption-key-id", "ours");
        }
        more.iter().for_each(|(key, value)| drop(add(key, value)));
        let (store, key) = (&self.bed.place.store, self.bed.place.key(key));
        store
            .put(&key, Body::Bytes(&stored), &metadata, Put::Replace)
            .unwrap();
        stored.len()
    }

    fn path(&self, key: &str) -> PathBuf {
        self.bed.folder.path().join("store/main").join(key)
    }

    fn verifier(&self) -> Verifier<'_> {
        Verifier {
            place: &self.bed.place,
            size: size(),
            cluster: Some(Cluster {
                system_id: 7,
                from: segment(0),
            }),
            pace: Pace::new(None, || false),
        }
    }

    fn verdicts(&self) -> Vec<(String, Verdict)> {
        let verifier = self.verifier();
        let files = [
            File::Wal(segment(3)),
            File::Wal(segment(4)),
            File::Partial(segment(5)),
            File::History(Timeline(2)),
            File::History(Timeline(3)),
        ];
        let mut items: Vec<Item> = files
            .into_iter()
            .map(|file| Item::of(file, size()))
            .collect();
        let name = BackupName(NAME.into());
        let plan = verifier.backup(&name, None).unwrap();
        items.extend(plan.items);
        let mut all = vec![(File::Main(name).key(size()), plan.main)];
        all.extend(
            items
                .iter()
                .map(|item| (item.key.clone(), verifier.check(item))),
        );
        all
    }

    /// The one object that is not good, and why.
    fn bad(&self) -> Option<(String, Verdict)> {
        let all = self.verdicts().into_iter();
        let mut bad = all.filter(|(_, verdict)| !matches!(verdict, Verdict::Good { .. }));
        let first = bad.next();
        assert_eq!(bad.next(), None, "only one is touched");
        first
    }
}

/// One kind of damage, done to the file of an object and its sidecar.
type Harm = fn(&World, &str);

fn flip(world: &World, key: &str, place: fn(usize) -> usize) {
    let path = world.path(key);
    let mut bytes = fs::read(&path).unwrap();
    let at = place(bytes.len());
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Changes the sidecar and keeps it consistent with the size of the object.
fn sidecar(
    world: &World,
    key: &str,
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) {
    let path = world.path(&format!("{key}.metadata"));
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(value.as_object_mut().unwrap());
    fs::write(path, value.to_string()).unwrap();
}

/// As a store that keeps no digest of its own, and whose size is that of the body it has.
fn unnoted(world: &World, key: &str) {
    let bytes = fs::read(world.path(key)).unwrap().len();
    sidecar(world, key, |metadata| {
        metadata.remove("_hash");
        metadata.insert("Content-Length".into(), bytes.to_string().into());
    });
}

fn swap(world: &World, key: &str, both: &[&str]) {
    let other = match key {
        key if key.contains("xlog/") => "xlog/000000020000000000000004",
        key if key.contains("history") => "timeline/00000003.history",
        key if key.contains("chunk") => {
            "basebackup_chunk/2026-11-22_09-27_0/2026-11-22_09-27_0.00000002.pghoard"
        }
        _ => "basebackup/2026-11-23_09-27_0.00000000.pghoard",
    };
    for end in both {
        let from = world.path(&format!("{other}{end}"));
        fs::copy(from, world.path(&format!("{key}{end}"))).unwrap();
    }
}

const HARMS: [(&str, Harm); 13] = [
    ("first byte", |w, k| flip(w, k, |_| 0)),
    ("a byte in the middle", |w, k| flip(w, k, |n| n / 2)),
    ("last byte", |w, k| flip(w, k, |n| n - 1)),
    ("middle, no digest of the store", |w, k| {
        flip(w, k, |n| n / 2);
        unnoted(w, k);
    }),
    ("last, no digest of the store", |w, k| {
        flip(w, k, |n| n - 1);
        unnoted(w, k);
    }),
    ("cut", |w, k| {
        let bytes = fs::read(w.path(k)).unwrap();
        fs::write(w.path(k), &bytes[..bytes.len() - 7]).unwrap();
    }),
    ("cut, and its size told so", |w, k| {
        let bytes = fs::read(w.path(k)).unwrap();
        fs::write(w.path(k), &bytes[..bytes.len() - 7]).unwrap();
        unnoted(w, k);
    }),
    ("lengthened", |w, k| {
        let bytes = fs::read(w.path(k)).unwrap();
        fs::write(w.path(k), [bytes, vec![0; 9]].concat()).unwrap();
        unnoted(w, k);
    }),
    ("empty", |w, k| {
        fs::write(w.path(k), b"").unwrap();
        unnoted(w, k);
    }),
    ("the body of another", |w, k| {
        swap(w, k, &[""]);
        unnoted(w, k);
    }),
    ("another, with its metadata", |w, k| {
        swap(w, k, &["", ".metadata"])
    }),
    ("no object beside its metadata", |w, k| {
        fs::remove_file(w.path(k)).unwrap()
    }),
    ("garbled metadata", |w, k| {
        fs::write(w.path(&format!("{k}.metadata")), b"{\"compr").unwrap();
    }),
];

const OBJECTS: [&str; 4] = [
    "xlog/000000020000000000000003",
    "timeline/00000002.history",
    "basebackup/2026-11-22_09-27_0.00000000.pghoard",
    "basebackup_chunk/2026-11-22_09-27_0/2026-11-22_09-27_0.00000001.pghoard",
];

/// A flipped byte in the header of an envelope is as good as another key, unless the store noted
/// what it got.
#[test]
fn s18_s51_s64_every_damage_is_found_and_nothing_else_is_blamed() {
    for compression in [Compression::Snappy, Compression::Zstd, Compression::Lzma] {
        for envelope in [None, Some(Envelope::AesGcm), Some(Envelope::Pghoa1)] {
            let world = World::new(compression, envelope);
            assert_eq!(world.bad(), None, "{compression} {envelope:?}");
            for key in OBJECTS {
                let paths = [key.to_owned(), format!("{key}.metadata")];
                let before = paths
                    .clone()
                    .map(|path| fs::read(world.path(&path)).unwrap());
                for (what, harm) in HARMS {
                    harm(&world, key);
                    let told = format!("{what} of {key}, {compression} {envelope:?}");
                    check(&world, key, &told);
                    for (path, bytes) in paths.iter().zip(&before) {
                        fs::write(world.path(path), bytes).unwrap();
                    }
                }
            }
            assert_eq!(world.bad(), None, "{compression} {envelope:?} after all");
        }
    }
}

fn check(world: &World, key: &str, told: &str) {
    let all = world.verdicts();
    for (found, verdict) in &all {
        match verdict {
            Verdict::Damaged(_) => assert_eq!(found, key, "{told}"),
            // In the header of an envelope, where the store noted nothing, it may be the key.
            Verdict::Unreadable(failure)
                if told.contains("no digest") && failure.message.contains(keys::UNOPENED) =>
            {
                assert_eq!(found, key, "{told}");
            }
            // The second chunk of a backup whose main object is another lists other sizes.
            Verdict::Good { .. } => assert_ne!(found, key, "{told}"),
            other => panic!("{told}: {found} is {other:?}"),
        }
    }
    let main = "basebackup/2026";
    let hidden = key.contains(main);
    assert_eq!(all.len(), if hidden { 6 } else { 8 }, "{told}");
}

#[test]
fn lost_or_wrong_metadata_of_wal_is_damage_or_said() {
    let key = OBJECTS[0];
    for (compression, envelope) in [
        (Compression::Snappy, None),
        (Compression::Zstd, Some(Envelope::AesGcm)),
        (Compression::Lzma, Some(Envelope::Pghoa1)),
    ] {
        for (name, value, damaged) in [
            ("compression-algorithm", None, true),
            ("compression-algorithm", Some("brotli"), false),
            ("hash", Some("00"), true),
            ("hash-algorithm", Some("crc7"), false),
            ("original-file-size", Some("17"), true),
            ("original-file-size", Some("many"), true),
            ("_hash", Some("00"), true),
            ("Content-Length", Some("17"), true),
            ("encryption-key-id", Some("theirs"), false),
        ] {
            let world = World::new(compression, envelope);
            sidecar(&world, key, |metadata| match value {
                Some(value) => drop(metadata.insert(name.into(), value.into())),
                None => drop(metadata.remove(name)),
            });
            let (found, verdict) = world.bad().unwrap();
            assert_eq!(found, key);
            let got = matches!(verdict, Verdict::Damaged(_));
            assert_eq!(got, damaged, "{name} {value:?} {envelope:?}: {verdict:?}");
        }
    }
}

/// A rotated key, or none, is no damage: marked as damaged, every backup would be given up.
#[test]
fn s65_another_key_is_never_damage() {
    for envelope in [Envelope::AesGcm, Envelope::Pghoa1] {
        let mut world = World::new(Compression::Zstd, Some(envelope));
        let (private, public) = generate(2048).unwrap();
        let mut other = Keyring::default();
        other.insert("ours", Some(&public), Some(&private)).unwrap();
        world.bed.place.keys = other;
        for noted in [true, false] {
            if !noted {
                unnoted(&world, OBJECTS[0]);
            }
            for (key, verdict) in world.verdicts() {
                let Verdict::Unreadable(failure) = verdict else {
                    panic!("{key}: {verdict:?}")
                };
                assert_eq!(failure.class, Class::Config);
            }
        }
        flip(&world, OBJECTS[1], |_| 40);
        let found = world.verdicts();
        let damaged: Vec<_> = found
            .iter()
            .filter(|(_, v)| matches!(v, Verdict::Damaged(_)))
            .collect();
        assert_eq!(
            damaged.len(),
            1,
            "the store's own digest tells: {damaged:?}"
        );
    }
}

#[test]
fn without_the_private_key_the_outside_is_judged() {
    let mut world = World::new(Compression::Snappy, Some(Envelope::AesGcm));
    world.bed.place.keys = Keyring::default();
    let all = world.verdicts();
    assert!(
        all.iter().all(|(_, v)| matches!(v, Verdict::Partly { .. })),
        "{all:?}"
    );
    assert_eq!(all.len(), 8, "chunks are listed");
    flip(&world, OBJECTS[3], |n| n / 2);
    let bad = world
        .verdicts()
        .into_iter()
        .find(|(_, v)| matches!(v, Verdict::Damaged(_)));
    assert_eq!(bad.unwrap().0, OBJECTS[3]);
}

#[test]
fn what_is_gone_is_gone_and_what_is_of_tomorrow_is_not_damaged() {
    let world = World::new(Compression::Snappy, None);
    world
        .bed
        .store
        .inner
        .delete(&world.bed.place.key(OBJECTS[0]))
        .unwrap();
    assert_eq!(world.bad(), Some((OBJECTS[0].to_owned(), Verdict::Gone)));
    // Of a PostgreSQL to come, of one long gone, of another segment size.
    let strange: [(usize, &[u8]); 3] = [
        (0, &0xD11Bu16.to_ne_bytes()),
        (0, &0xD093u16.to_ne_bytes()),
        (32, &(2u32 << 20).to_ne_bytes()),
    ];
    for (at, bytes) in strange {
        let mut other = wal(3);
        other[at..at + bytes.len()].copy_from_slice(bytes);
        world.put(OBJECTS[0], &other, &[]);
        let Some((_, Verdict::Unreadable(failure))) = world.bad() else {
            panic!("{at}: {:?}", world.bad())
        };
        assert_eq!(failure.class, Class::Unsupported);
        sidecar(&world, OBJECTS[0], |metadata| {
            drop(metadata.insert("hash".into(), "00".into()))
        });
        assert!(matches!(world.bad(), Some((_, Verdict::Damaged(_)))));
    }
    // Of another cluster, as after a pg_upgrade: told, not given up.
    let mut other = wal(3);
    other[24..32].copy_from_slice(&8u64.to_ne_bytes());
    world.put(OBJECTS[0], &other, &[]);
    let Some((_, Verdict::Unreadable(failure))) = world.bad() else {
        panic!()
    };
    assert_eq!(failure.class, Class::Conflict);
}

/// PGHoard announces the size that the file had when it was listed; the server may have cut it.
#[test]
fn s18_a_file_of_a_delta_backup_is_judged_by_its_name_alone() {
    let world = World::new(Compression::Zstd, Some(Envelope::AesGcm));
    let cut = b"what is left of it";
    let digest = Algorithm::Blake2s.hex(cut);
    let key = format!("basebackup_delta/{digest}");
    let item = Item {
        file: File::Main(BackupName(NAME.into())),
        key: key.clone(),
        expect: Expect::Content { digest },
        stored_bytes: None,
    };
    for (content, good) in [(&cut[..], true), (&cut[1..], false)] {
        world.put(&key, content, &[("original-file-size", "8192")]);
        let verdict = world.verifier().check(&item);
        assert_eq!(matches!(verdict, Verdict::Good { .. }), good, "{verdict:?}");
        assert_eq!(matches!(verdict, Verdict::Damaged(_)), !good, "{verdict:?}");
    }
}
