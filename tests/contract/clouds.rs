//! Azure and Google, on what stands in for them.

use std::fs;

use machine::Class;
use pghoard::store::choose::Missing;
use pghoard::store::{Body, Metadata, Put, Scratch};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::s3::{open, with};
use super::{contract, list_all, metadata, read};
use crate::support::stores::azure::azurite;
use crate::support::stores::google::Google;

#[test]
fn azure() {
    let Some(azurite) = azurite() else { return };
    let container = azurite.container();
    let storage = with(container.object_storage(), json!({ "prefix": "deep/down" }));
    contract(open(storage, Missing::Refuse).as_ref());
    rest(container.object_storage());
    // Hyphens are none there: as rohmu writes them.
    let store = open(container.object_storage(), Missing::Refuse);
    let labels = metadata(&[("start-wal-segment", "x")]);
    let put = store.put("p/x", Body::Bytes(b"x"), &labels, Put::Create);
    put.unwrap();
    assert_eq!(
        store.look("p/x").unwrap().unwrap().metadata["start-wal-segment"],
        "x"
    );
    let key = "d3Jvbmcga2V5IG9mIGEgdGVzdCwgYnV0IGEga2V5IGFsbCB0aGUgc2FtZQ==";
    let wrong = with(container.object_storage(), json!({ "account_key": key }));
    // The emulator calls a wrong key a lack of rights.
    assert!(matches!(class(wrong), Class::Auth | Class::Denied));
    let absent = with(
        container.object_storage(),
        json!({ "bucket_name": "absent" }),
    );
    assert_eq!(class(absent), Class::Config);
    made(container.object_storage());
}

#[test]
fn google() {
    let Some(google) = Google::fake_gcs() else {
        return;
    };
    let storage = with(google.object_storage(), json!({ "prefix": "deep/down" }));
    contract(open(storage, Missing::Refuse).as_ref());
    rest(google.object_storage());
    let absent = with(google.object_storage(), json!({ "bucket_name": "absent" }));
    assert_eq!(class(absent), Class::Config);
    made(google.object_storage());
}

/// Parts, and many at once.
pub fn rest(storage: Value) {
    let store = open(storage, Missing::Refuse);
    let store = store.as_ref();
    let body: Vec<u8> = (0..30_000_001_u32).map(|n| n.to_le_bytes()[1]).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scratch");
    for mode in [Put::Create, Put::Replace] {
        fs::write(&path, &body).unwrap();
        let scratch = Scratch {
            path: &path,
            size_bytes: 30_000_001,
            sha256: Sha256::digest(&body).into(),
        };
        let labels = metadata(&[("host", "\u{e9}"), ("start-time", "x")]);
        let put = store.put("p/big", Body::Scratch(scratch), &labels, mode);
        put.unwrap();
        assert!(read(store, "p/big") == body);
        let found = store.look("p/big").unwrap().unwrap();
        assert_eq!(found.metadata["host"], "\u{e9}");
        assert_eq!(found.metadata["start-time"], "x");
    }
    let again = store.put("p/big", Body::Bytes(&body), &Metadata::new(), Put::Create);
    assert_eq!(again.unwrap_err().class, Class::Conflict);
    store.delete("p/big").unwrap();
    let keys: Vec<String> = (0..300).map(|n| format!("p/xlog/{n:05} +:&")).collect();
    for key in &keys {
        let put = store.put(key, Body::Bytes(b"x"), &Metadata::new(), Put::Replace);
        put.unwrap();
    }
    assert_eq!(list_all(store, "p"), keys);
    store.delete_all(&keys).unwrap();
    store.delete_all(&keys).unwrap();
    assert_eq!(list_all(store, "p"), [""; 0]);
}

/// Of whatever is asked for.
pub fn class(storage: Value) -> Class {
    let store = open(storage, Missing::Refuse);
    let put = store.put("p/x", Body::Bytes(b"x"), &Metadata::new(), Put::Create);
    let classes = [
        put.unwrap_err().class,
        store.look("p/x").unwrap_err().class,
        store.get("p/x").err().unwrap().class,
        store.list("p", &mut |_| Ok(())).unwrap_err().class,
    ];
    assert!(
        classes.iter().all(|class| *class == classes[0]),
        "{classes:?}"
    );
    classes[0]
}

/// The daemon makes what was never there.
pub fn made(storage: Value) {
    let name = format!("made-{:016x}", fastrand::u64(..));
    let storage = with(storage, json!({ "bucket_name": name }));
    let daemon = open(storage.clone(), Missing::Create);
    assert_eq!(list_all(daemon.as_ref(), "p"), [""; 0]);
    let reader = open(storage, Missing::Refuse);
    assert_eq!(reader.look("p/x").unwrap(), None);
}
