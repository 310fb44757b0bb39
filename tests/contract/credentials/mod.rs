//! Who we are where the configuration does not say it, asked of what stands in for the clouds' own
//! services, and shown to servers that look.

mod aws;
mod azure;
mod google;

use std::fs;
use std::path::PathBuf;

use machine::Class;
use pghoard::Failure;
use pghoard::store::choose::{self, Missing};
use pghoard::store::login::Environment;
use pghoard::store::{Body, Metadata, Put, Store};
use serde_json::{Value, json};

use crate::s3::with;
use crate::support::stores::lender::Lender;

type Pairs<'a> = &'a [(&'a str, &'a str)];

/// A store as the daemon opens it in such an environment.
pub fn open_in(storage: &Value, pairs: Pairs<'_>) -> Result<Box<dyn Store>, Failure> {
    let site = json!({ "object_storage": storage });
    let (config, _) = pghoard::config::parse(&json!({ "backup_sites": { "a": site } }))?;
    let pairs = pairs
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()));
    let environment = Environment::of(pairs.collect());
    let storage = config.sites["a"].storage()?;
    choose::store_of(storage, Missing::Refuse, &environment)
}

/// A file, and its folder while it is needed.
fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    (folder, path)
}

/// Without what would say who we are.
fn stranger(mut storage: Value, keys: &[&str]) -> Value {
    let map = storage.as_object_mut().unwrap();
    keys.iter().for_each(|key| drop(map.remove(*key)));
    storage
}

/// In the future by so many seconds.
fn time(seconds: i64) -> String {
    let now = jiff::Timestamp::now().as_second();
    jiff::Timestamp::from_second(now + seconds)
        .unwrap()
        .to_string()
}

/// A 404 of who hands out credentials must not pass for an object that is not there: a restore
/// would take it for the end of the archive, and a deletion for done.
#[test]
fn s40_nobody_to_say_who_we_are_is_no_empty_store() {
    let lender = Lender::start(|_| (404, String::new()));
    let url = lender.url("");
    let host = url.strip_prefix("http://").unwrap().to_owned();
    let here = json!({ "host": "127.0.0.1", "port": lender.port(), "is_secure": false });
    let bucket = |kind: &str| {
        let base = json!({ "storage_type": kind, "bucket_name": "b", "region": "r",
            "account_name": "a" });
        let mut storage = with(base, here.clone());
        let map = storage.as_object_mut().unwrap();
        if kind != "s3" {
            map.remove("region");
        }
        if kind != "azure" {
            map.remove("account_name");
        }
        storage
    };
    let swift = json!({ "storage_type": "swift", "auth_url": url, "auth_version": "1.0",
        "user": "u", "key": "k", "container_name": "c" });
    for (storage, name, value) in [
        (bucket("s3"), "AWS_EC2_METADATA_SERVICE_ENDPOINT", &url),
        (bucket("s3"), "AWS_CONTAINER_CREDENTIALS_FULL_URI", &url),
        (bucket("google"), "GCE_METADATA_HOST", &host),
        (bucket("azure"), "AZURE_POD_IDENTITY_AUTHORITY_HOST", &url),
        (swift, "X", &url),
    ] {
        let store = open_in(&storage, &[(name, value)]).unwrap();
        let failures = [
            store.look("p/x").unwrap_err(),
            store.get("p/x").err().unwrap(),
            store.delete("p/x").unwrap_err(),
            store.delete_all(&["p/x".into()]).unwrap_err(),
            store.list("p", &mut |_| Ok(())).unwrap_err(),
            store
                .put("p/x", Body::Bytes(b"x"), &Metadata::new(), Put::Create)
                .unwrap_err(),
        ];
        for failure in failures {
            let told = failure.to_string();
            assert!(
                matches!(failure.class, Class::Auth | Class::Config),
                "{name}: {told}"
            );
            assert!(
                failure.hint.is_some() || told.contains("container"),
                "{name}: {told}"
            );
        }
    }
}
