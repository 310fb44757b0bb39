//! Swift by both ways to log in, and Ceph's.

use std::fs;

use machine::Class;
use pghoard::store::choose::Missing;
use pghoard::store::{Body, Entry, Metadata, Put, Store};
use serde_json::{Value, json};

use super::clouds::rest;
use super::s3::{open, with};
use super::{contract_but_for_races, list_all, metadata, plain, read};
use crate::support::stores::ceph::ceph;
use crate::support::stores::swift::{Swift, swift, swift_by_keystone};

#[test]
fn swift_with_its_own_users() {
    let Some(swift) = swift() else { return };
    whole(swift);
    large_objects(swift);
}

#[test]
fn swift_behind_keystone() {
    let Some(swift) = swift_by_keystone() else {
        return;
    };
    whole(swift);
    let storage = swift.object_storage(&swift.container());
    let elsewhere = with(storage.clone(), json!({ "region_name": "Nowhere" }));
    let failure = look(elsewhere);
    assert_eq!(failure.class, Class::Config, "{failure}");
    let inside = with(
        storage,
        json!({ "auth_url": swift.auth_url().replace("/v3", "") }),
    );
    open(inside, Missing::Refuse).look("p/x").unwrap();
}

#[test]
fn swift_of_ceph() {
    let Some(ceph) = ceph() else { return };
    let name = format!("test-{:016x}", fastrand::u64(..));
    let storage = with(ceph.object_storage(&name), json!({ "prefix": "deep/down" }));
    contract_but_for_races(&*open(storage, Missing::Create));
    rest(ceph.object_storage(&name));
    let store = open(ceph.object_storage(&name), Missing::Refuse);
    static_objects(&*store, &|| ceph.names(&name));
}

fn whole(swift: &Swift) {
    let storage = swift.object_storage(&swift.container());
    let deep = with(storage.clone(), json!({ "prefix": "deep/down" }));
    contract_but_for_races(&*open(deep, Missing::Refuse));
    rest(storage.clone());
    let wrong = look(with(storage.clone(), json!({ "key": "wrong" })));
    assert_eq!(wrong.class, Class::Auth, "{wrong}");
    let absent = with(storage.clone(), json!({ "container_name": "absent" }));
    let failure = look(absent);
    assert_eq!(failure.class, Class::Config, "{failure}");
    let name = format!("made-{:016x}", fastrand::u64(..));
    let made = with(storage, json!({ "container_name": name }));
    let daemon = open(made.clone(), Missing::Create);
    assert_eq!(list_all(&*daemon, "p"), [""; 0]);
    assert_eq!(open(made, Missing::Refuse).look("p/x").unwrap(), None);
}

fn look(storage: Value) -> pghoard::Failure {
    open(storage, Missing::Refuse).look("p/x").unwrap_err()
}

/// No segment of ours is seen or left.
fn static_objects(store: &dyn Store, names: &dyn Fn() -> Vec<String>) {
    let body: Vec<u8> = (0..20_000_001_u32).map(|n| n.to_le_bytes()[1]).collect();
    let labels = metadata(&[("start-time", "x")]);
    let put = |mode| store.put("s/b/x", Body::Bytes(&body), &labels, mode);
    put(Put::Create).unwrap();
    assert_eq!(names().len(), 4, "{:?}", names());
    assert_eq!(sizes(store, ""), [("s/b/x".to_owned(), 20_000_001)]);
    let found = store.look("s/b/x").unwrap().unwrap();
    assert_eq!(plain(found.metadata), labels);
    assert_eq!(store.sweep("s", i64::MAX).unwrap(), 0);
    store.delete("s/b/x").unwrap();
    assert_eq!(names(), [""; 0]);
    put(Put::Create).unwrap();
    let other = store.put("s/b/x", Body::Bytes(&body[1..]), &labels, Put::Replace);
    other.unwrap();
    assert_eq!(store.sweep("s", 0).unwrap(), 0);
    assert_eq!(store.sweep("s", i64::MAX).unwrap(), 1);
    assert_eq!(names().len(), 4, "{:?}", names());
    assert!(read(store, "s/b/x") == body[1..]);
    store.delete("s/b/x").unwrap();
    assert_eq!(names(), [""; 0]);
}

fn sizes(store: &dyn Store, folder: &str) -> Vec<(String, u64)> {
    let mut sizes = Vec::new();
    let mut visit = |entry: Entry| {
        sizes.push((entry.key, entry.size_bytes));
        Ok(())
    };
    store.list(folder, &mut visit).unwrap();
    sizes
}

/// Ours, and PGHoard's, which are dynamic: read, listed, deleted.
fn large_objects(swift: &Swift) {
    let container = swift.container();
    let store = open(swift.object_storage(&container), Missing::Refuse);
    let names = || {
        let reply = swift.ask(&[], &container).text();
        reply.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    static_objects(&*store, &names);

    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    for (number, content) in [("00000001", "first "), ("00000002", "second")] {
        let path = format!("{container}/s/b_segments/y/{number}");
        let put = swift.ask(&["-T", &file(number, content)], &path);
        assert_eq!(put.status, 201, "{}", put.text());
    }
    let manifest = format!("X-Object-Manifest: {container}/s/b_segments/y/");
    let words = ["-H", &manifest, "-H", "X-Object-Meta-Start-Time: then"];
    let empty = file("manifest", "");
    let words = [&words[..], &["-T", &empty]].concat();
    let put = swift.ask(&words, &format!("{container}/s/b/y"));
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!(list_all(&*store, "s"), ["s/b/y"]);
    assert_eq!(read(&*store, "s/b/y"), b"first second");
    let found = store.look("s/b/y").unwrap().unwrap();
    assert_eq!(found.entry.size_bytes, 12);
    assert_eq!(found.metadata["start-time"], "then");
    assert_eq!(sizes(&*store, "s"), [("s/b/y".to_owned(), 12)]);
    store.delete("s/b/y").unwrap();
    assert_eq!(names(), [""; 0]);
    let put = store.put("s/b/z", Body::Bytes(b"z"), &Metadata::new(), Put::Create);
    put.unwrap();
    store
        .delete_all(&["s/b/z".into(), "s/b/absent".into()])
        .unwrap();
    assert_eq!(names(), [""; 0]);
}
