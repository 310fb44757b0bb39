//! The contract of `store::Store`, as one suite that every driver passes.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test binary: a panic is how it reports"
)]

mod broken;
mod checksums;
mod classes;
mod clouds;
mod credentials;
mod faults;
mod options;
mod resumed;
mod rohmu;
mod s3;
mod servers;
mod sftp;
#[path = "../support/mod.rs"]
mod support;
mod swift;
mod through;

use std::fs;
use std::io::{Read, Write};
use std::sync::Barrier;
use std::thread;

use machine::Class;
use pghoard::store::local::Local;
use pghoard::store::{Body, Entry, Metadata, Put, Scratch, Store, Upload, Written};
use sha2::{Digest, Sha256};

#[test]
fn local() {
    let folder = tempfile::tempdir().unwrap();
    let store = Local::create(&folder.path().join("store")).unwrap();
    contract(&store);
}

/// Needs an empty store and leaves it empty.
fn contract(store: &dyn Store) {
    create_has_one_winner(store);
    contract_but_for_races(store);
}

/// For stores that cannot tell which of two writers in one moment came first.
fn contract_but_for_races(store: &dyn Store) {
    put_get_look(store);
    create_refuses_what_exists(store);
    scratch_moves_in(store);
    what_grows_is_invisible_until_it_is_finished(store);
    list_is_complete_and_sorted(store);
    delete_is_repeatable(store);
    hostile_keys_are_refused(store);
    list_all(store, "")
        .iter()
        .for_each(|key| store.delete(key).unwrap());
    assert_eq!(list_all(store, ""), [""; 0]);
}

fn put_get_look(store: &dyn Store) {
    let metadata = metadata(&[
        ("start-time", "2026-11-22T09:27:26+00:00"),
        ("host", "\u{e9}'\"\\"),
    ]);
    for (key, body) in [("p/xlog/empty", vec![]), ("p/xlog/big", vec![7; 3 << 20])] {
        store
            .put(key, Body::Bytes(&body), &metadata, Put::Create)
            .unwrap();
        let object = store.look(key).unwrap().unwrap();
        assert_eq!(object.entry.key, key);
        assert_eq!(object.entry.size_bytes, u64::try_from(body.len()).unwrap());
        assert!(object.entry.modified_ms > 1_600_000_000_000);
        assert_eq!(plain(object.metadata.clone()), metadata);
        let (got, mut stream) = store.get(key).unwrap();
        assert_eq!(got, object);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, body);
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "behind the end");
    }
    assert_eq!(store.look("p/xlog/absent").unwrap(), None);
    assert_eq!(store.look("p/xlog/empty/below").unwrap(), None);
    let failure = store.get("p/xlog/absent").map(|_| ()).unwrap_err();
    assert_eq!(failure.class, Class::NotFound);
}

fn create_refuses_what_exists(store: &dyn Store) {
    let put = |body: &[u8], mode| store.put("p/one", Body::Bytes(body), &Metadata::new(), mode);
    put(b"first", Put::Create).unwrap();
    assert_eq!(
        put(b"second", Put::Create).unwrap_err().class,
        Class::Conflict
    );
    assert_eq!(read(store, "p/one"), b"first");
    put(b"third", Put::Replace).unwrap();
    assert_eq!(read(store, "p/one"), b"third");
}

fn create_has_one_winner(store: &dyn Store) {
    const WRITERS: usize = 8;
    for round in 0..10 {
        let key = format!("p/race/{round}");
        let barrier = Barrier::new(WRITERS);
        let wins: Vec<String> = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (key, barrier) = (&key, &barrier);
                    scope.spawn(move || {
                        let text = writer.to_string();
                        let metadata = metadata(&[("writer", &text)]);
                        barrier.wait();
                        let body = Body::Bytes(text.as_bytes());
                        match store.put(key, body, &metadata, Put::Create) {
                            Ok(()) => Some(text),
                            Err(failure) => {
                                assert_eq!(failure.class, Class::Conflict);
                                None
                            }
                        }
                    })
                })
                .collect();
            writers
                .into_iter()
                .filter_map(|w| w.join().unwrap())
                .collect()
        });
        assert_eq!(wins.len(), 1);
        assert_eq!(read(store, &key), wins[0].as_bytes());
        assert_eq!(
            store.look(&key).unwrap().unwrap().metadata["writer"],
            wins[0]
        );
    }
}

fn scratch_moves_in(store: &dyn Store) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scratch");
    let put = |content: &[u8], size_bytes| {
        fs::write(&path, content).unwrap();
        let scratch = Scratch {
            path: &path,
            size_bytes,
            sha256: Sha256::digest(content).into(),
        };
        let metadata = Metadata::new();
        store.put("p/scratch", Body::Scratch(scratch), &metadata, Put::Create)
    };
    put(b"half", 8).unwrap_err();
    put(b"scratch", 7).unwrap();
    assert!(!path.exists());
    put(b"other", 5).unwrap_err();
    assert!(path.exists());
    assert_eq!(read(store, "p/scratch"), b"scratch");
}

/// `written` is what the writer says of it.
fn grow<'a>(store: &'a dyn Store, key: &str, body: &[u8]) -> (Box<dyn Upload + 'a>, Written) {
    let needed = metadata(&[("start-time", "2026-11-22T09:27:26+00:00")]);
    let mut upload = store.begin(key, &needed).unwrap();
    for piece in body.chunks(100_000) {
        upload.write_all(piece).unwrap();
    }
    let written = Written {
        size_bytes: u64::try_from(body.len()).unwrap(),
        sha256: Sha256::digest(body).into(),
    };
    (upload, written)
}

fn what_grows_is_invisible_until_it_is_finished(store: &dyn Store) {
    let body = vec![7; (20 << 20) + 1];
    let absent = |key: &str| {
        assert_eq!(store.look(key).unwrap(), None);
        assert_eq!(list_all(store, "grow"), [""; 0]);
    };
    let (dropped, _) = grow(store, "grow/a", &body);
    absent("grow/a");
    drop(dropped);
    absent("grow/a");
    let (short, written) = grow(store, "grow/a", &body[1..]);
    let longer = Written {
        size_bytes: written.size_bytes + 1,
        ..written
    };
    short.finish(longer, &Metadata::new()).unwrap_err();
    absent("grow/a");

    let (upload, written) = grow(store, "grow/a", &body);
    let (late, written_late) = grow(store, "grow/a", &body[1..]);
    upload
        .finish(written, &metadata(&[("end-lsn", "0/1")]))
        .unwrap();
    assert!(read(store, "grow/a") == body);
    let object = store.look("grow/a").unwrap().unwrap();
    assert_eq!(object.metadata["Content-Length"], body.len().to_string());
    assert_eq!(object.metadata["start-time"], "2026-11-22T09:27:26+00:00");
    // A driver may leave out what came late, but not make anything else of it.
    let said = object.metadata.get("end-lsn").map(String::as_str);
    assert!(matches!(said, None | Some("0/1")), "{said:?}");
    let failure = late.finish(written_late, &Metadata::new()).unwrap_err();
    assert_eq!(failure.class, Class::Conflict);
    let failure = store.begin("grow/a", &Metadata::new()).err().unwrap();
    assert_eq!(failure.class, Class::Conflict);
    assert!(read(store, "grow/a") == body);
    assert_eq!(list_all(store, "grow"), ["grow/a"]);
}

fn list_is_complete_and_sorted(store: &dyn Store) {
    let keys = ["q/a-b", "q/a.b", "q/a/1", "q/a/2/3", "q/a0", "q/b", "qq/x"];
    for key in keys.iter().rev() {
        store
            .put(key, Body::Bytes(b"x"), &Metadata::new(), Put::Create)
            .unwrap();
    }
    let mut found = list_all(store, "q");
    assert!(
        found.is_sorted() || found.is_sorted_by_key(|key| parts(key)),
        "{found:?}"
    );
    found.sort();
    assert_eq!(found, keys[..6]);
    assert_eq!(list_all(store, "q/a"), keys[2..4]);
    assert_eq!(list_all(store, "absent"), [""; 0]);
    let mut seen = 0;
    let stop = store.list("q", &mut |_| {
        seen += 1;
        Err(pghoard::Failure::new(Class::Interrupted, "enough"))
    });
    assert_eq!((stop.unwrap_err().class, seen), (Class::Interrupted, 1));
}

fn delete_is_repeatable(store: &dyn Store) {
    store.delete("q/b").unwrap();
    store.delete("q/b").unwrap();
    store.delete("nothing/here").unwrap();
    assert_eq!(store.look("q/b").unwrap(), None);
}

fn hostile_keys_are_refused(store: &dyn Store) {
    for key in [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "a/",
        "a/./b",
        "a\0b",
    ] {
        let put = store.put(key, Body::Bytes(b""), &Metadata::new(), Put::Replace);
        assert!(put.is_err(), "{key:?}");
        assert!(store.look(key).is_err(), "{key:?}");
        assert!(store.get(key).is_err(), "{key:?}");
        assert!(store.delete(key).is_err(), "{key:?}");
    }
    assert!(store.list("..", &mut |_| Ok(())).is_err());
}

fn read(store: &dyn Store, key: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.get(key).unwrap().1.read_to_end(&mut bytes).unwrap();
    bytes
}

/// As of a store that walks folders: `a` before `a-b`, whatever is below it.
fn parts(key: &str) -> Vec<String> {
    key.split('/').map(str::to_owned).collect()
}

fn list_all(store: &dyn Store, folder: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut visit = |entry: Entry| {
        keys.push(entry.key);
        Ok(())
    };
    store.list(folder, &mut visit).unwrap();
    keys
}

fn metadata(pairs: &[(&str, &str)]) -> Metadata {
    pairs
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect()
}

/// Without the size, which drivers may add.
fn plain(mut metadata: Metadata) -> Metadata {
    metadata.remove("Content-Length");
    metadata
}
