//! Bytes that change on their way to a store or back: nothing that was damaged is stored, and
//! nothing that was damaged is read as whole.

use std::io::Read;

use machine::Class;
use pghoard::store::choose::Missing;
use pghoard::store::{Body, Metadata, Put, Store};
use serde_json::{Value, json};

use super::s3::{open, with};
use super::{grow, read};
use crate::support::faults::{Fault, Pick, Proxy};
use crate::support::stores::azure::azurite;
use crate::support::stores::google::Google;
use crate::support::stores::strict::Strict;
use crate::support::stores::swift::swift;

const SMALL: usize = 100_000;
const LARGE: usize = (9 << 20) + 1;

/// `there` and `back` match the requests that carry bytes. What is refused for its checksum is sent
/// once more, and arrives.
fn guarded(storage: &Value, proxy: &Proxy, there: &[(usize, &str)], back: &[(usize, &str)]) {
    let store = open(storage.clone(), Missing::Refuse);
    let store: &dyn Store = &*store;
    let none = Metadata::new();
    let body: Vec<u8> = (0..u32::try_from(LARGE).unwrap())
        .map(|n| n.to_le_bytes()[1])
        .collect();
    for (number, (size, pattern)) in there.iter().enumerate() {
        let key = format!("p/there/{number}");
        proxy.plan(Pick::line(pattern), Fault::FlippedRequest);
        let put = store.put(&key, Body::Bytes(&body[..*size]), &none, Put::Create);
        assert_eq!(proxy.pending(), 0, "{pattern}: {:?}", proxy.seen());
        match put {
            Ok(()) => assert!(read(store, &key) == body[..*size], "{pattern}"),
            Err(failure) => {
                assert_eq!(failure.class, Class::Corrupt, "{pattern}: {failure}");
                assert_eq!(store.look(&key).unwrap(), None);
            }
        }
    }
    let (upload, written) = grow(store, "p/grown", &body);
    upload.finish(written, &none).unwrap();
    for (number, (size, pattern)) in back.iter().enumerate() {
        let key = format!("p/back/{number}");
        store
            .put(&key, Body::Bytes(&body[..*size]), &none, Put::Create)
            .unwrap();
        let mut all = vec![key];
        all.extend((*size == LARGE).then(|| "p/grown".to_owned()));
        for key in all {
            proxy.plan(Pick::line(pattern), Fault::FlippedResponse);
            let mut bytes = Vec::new();
            let got = store.get(&key).unwrap().1.read_to_end(&mut bytes);
            assert_eq!(proxy.pending(), 0, "{pattern}");
            let failure = pghoard::Failure::from_io(&got.unwrap_err(), &key);
            assert_eq!(failure.class, Class::Corrupt, "{failure}");
            // It was the way.
            assert!(read(store, &key) == body[..*size]);
        }
    }
}

#[test]
fn azure_damage_on_the_way_is_found() {
    let Some(azurite) = azurite() else { return };
    let container = azurite.container();
    let proxy = Proxy::to(container.port);
    let storage = with(container.object_storage(), json!({ "port": proxy.port }));
    let there = [(SMALL, "^PUT .*/p/there/0$"), (LARGE, "^PUT .*comp=block&")];
    let get = "^GET .*/p/(back|grown)";
    guarded(&storage, &proxy, &there, &[(SMALL, get), (LARGE, get)]);
}

#[test]
fn google_damage_on_the_way_is_found() {
    let Some(google) = Google::fake_gcs() else {
        return;
    };
    let there = [
        (SMALL, "^POST /upload/.*uploadType=multipart"),
        (LARGE, "^PUT /upload/"),
    ];
    let get = "^GET .*alt=media";
    let back = [(SMALL, get), (LARGE, get)];
    guarded(&google.object_storage(), &google.proxy, &there, &back);
}

#[test]
fn swift_damage_on_the_way_is_found() {
    let Some(swift) = swift() else { return };
    let proxy = Proxy::to(swift.port);
    let url = format!("http://127.0.0.1:{}/auth/v1.0", proxy.port);
    let storage = swift.object_storage(&swift.container());
    let storage = with(storage, json!({ "auth_url": url }));
    // The account's address is what the server says: it says how it was reached.
    let there = [(SMALL, "^PUT .*/p/there/0$"), (LARGE, "^PUT .*_segments/")];
    guarded(&storage, &proxy, &there, &[(SMALL, "^GET .*/p/back/")]);
}

#[test]
fn s3_damage_on_the_way_is_found() {
    let strict = Strict::start();
    let bucket = strict.bucket();
    let proxy = Proxy::to(bucket.port);
    let storage = with(bucket.object_storage(), json!({ "port": proxy.port }));
    let there = [
        (SMALL, "^PUT .*/p/there/0$"),
        (LARGE, "^PUT .*partNumber="),
        (LARGE, "^POST .*uploadId="),
    ];
    guarded(&storage, &proxy, &there, &[(SMALL, "^GET .*/p/back/")]);
}
