//! Through proxies, with a name and a password, and to servers whose certificate somebody has to
//! vouch for.

use std::fs;

use machine::Class;
use pghoard::store::choose::Missing;
use pghoard::store::{Body, Metadata, Put};
use serde_json::{Value, json};

use super::credentials::open_in;
use super::s3::{open, with};
use super::{list_all, read};
use crate::support::stores::azure::azurite;
use crate::support::stores::google::Google;
use crate::support::stores::lender::Lender;
use crate::support::stores::proxies::Proxy;
use crate::support::stores::seaweed::seaweed;
use crate::support::stores::swift::swift;

/// Small and in parts, there and back; not without the proxy, and not with a wrong password.
fn through(storage: &Value) {
    for proxy in [Proxy::http(), Proxy::socks5()] {
        let Some(mut proxy) = proxy else { continue };
        let by = |info: Value| open(with(storage.clone(), json!({ "proxy_info": info })), REFUSE);
        let store = by(proxy.info());
        let large = vec![7; 9 << 20];
        for (key, body) in [("through/small", &large[..9]), ("through/large", &large)] {
            store
                .put(key, Body::Bytes(body), &Metadata::new(), Put::Create)
                .unwrap();
            assert!(read(&*store, key) == body);
        }
        assert_eq!(
            list_all(&*store, "through"),
            ["through/large", "through/small"]
        );
        let keys = list_all(&*store, "through");
        store.delete_all(&keys).unwrap();
        for key in ["user", "pass"] {
            let failure = by(with(proxy.info(), json!({ key: "wrong" })))
                .look("p/x")
                .unwrap_err();
            let told = failure.to_string();
            // What a proxy says instead of a tunnel is not told to us.
            let known = matches!(failure.class, Class::Auth | Class::Network);
            assert!(known, "{told}");
            assert!(
                told.contains("proxy") && told.contains("proxy_info"),
                "{told}"
            );
            assert!(!told.contains("proxypass"), "{told}");
        }
        let mut nobody = proxy.info();
        nobody
            .as_object_mut()
            .unwrap()
            .retain(|key, _| !["user", "pass"].contains(&&**key));
        let failure = by(nobody).look("p/x").unwrap_err();
        assert!(failure.to_string().contains("proxy_info"), "{failure}");
        proxy.kill9();
        let failure = store.look("p/x").unwrap_err();
        assert_eq!(failure.class, Class::Network, "{failure}");
    }
}

const REFUSE: Missing = Missing::Refuse;

#[test]
fn s3_goes_through_proxies() {
    let Some(seaweed) = seaweed() else { return };
    let bucket = seaweed.bucket();
    through(&bucket.object_storage());
    // By CONNECT; whom we speak to is still looked at.
    through(&seaweed.secure(&bucket).object_storage());
}

#[test]
fn google_goes_through_proxies() {
    let Some(google) = Google::fake_gcs() else {
        return;
    };
    through(&google.object_storage());
}

#[test]
fn azure_goes_through_proxies() {
    let Some(azurite) = azurite() else { return };
    through(&azurite.container().object_storage());
}

#[test]
fn swift_goes_through_proxies() {
    let Some(swift) = swift() else { return };
    through(&swift.object_storage(&swift.container()));
}

/// What a machine says of itself is asked beside the proxy, wherever that leads.
#[test]
fn metadata_is_not_asked_for_through_a_proxy() {
    let lender = Lender::start(|_| (404, String::new()));
    let nowhere = json!({ "type": "http", "host": "127.0.0.1", "port": 1 });
    let storage = json!({ "storage_type": "s3", "region": "r", "bucket_name": "b",
        "proxy_info": nowhere });
    let url = lender.url("/x");
    for name in [
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    ] {
        let store = open_in(&storage, &[(name, &url)]).unwrap();
        assert_eq!(store.look("p/x").unwrap_err().class, Class::Auth);
        assert!(!lender.asked().is_empty(), "{name}");
    }
}

#[test]
fn s3_a_certificate_is_looked_at_where_that_is_wanted() {
    let Some(seaweed) = seaweed() else { return };
    let secure = seaweed.secure(&seaweed.bucket());
    let right = secure.object_storage();
    let look = |more: Value| {
        let mut storage = with(right.clone(), more);
        let map = storage.as_object_mut().unwrap();
        map.retain(|_, value| !value.is_null());
        open(storage, REFUSE).look("p/x")
    };
    assert_eq!(look(json!({})).unwrap(), None);
    // PGHoard's default for a server of one's own.
    let unchecked = json!({ "is_verify_tls": false, "cert_path": null });
    assert_eq!(look(unchecked).unwrap(), None);
    assert_eq!(
        look(json!({ "is_verify_tls": null, "cert_path": null })).unwrap(),
        None
    );
    // The system knows nothing of our authority, and neither does another one.
    let failure = look(json!({ "cert_path": null })).unwrap_err();
    assert_eq!(failure.class, Class::Config, "{failure}");
    assert!(
        failure.hint.as_ref().unwrap().contains("cert_path"),
        "{failure}"
    );
    // The name is looked at as well: the certificate is for localhost and 127.0.0.1.
    let failure = look(json!({ "host": "127.0.0.2" })).unwrap_err();
    assert!(
        matches!(failure.class, Class::Config | Class::Network),
        "{failure}"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no.pem");
    let storage = with(right.clone(), json!({ "cert_path": path }));
    let opened = |storage: &Value| open_in(storage, &[]).err().unwrap();
    assert_eq!(opened(&storage).class, Class::NotFound);
    fs::write(&path, "no certificate").unwrap();
    let failure = opened(&storage);
    assert_eq!(failure.class, Class::Config, "{failure}");
    assert!(
        failure.message.contains("expected certificates in PEM"),
        "{failure}"
    );
}
