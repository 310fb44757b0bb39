//! What the configuration asks of S3 beyond storing: each option is in the requests that it is
//! meant for, looked at where they arrive.

use machine::Class;
use pghoard::store::choose::Missing;
use pghoard::store::{Body, Metadata, Put, Store};
use serde_json::{Value, json};

use crate::s3::{open, with};
use crate::support::stores::lender::Lender;
use crate::support::stores::strict::{DOMAIN, Seen, Strict};
use crate::{contract, list_all, read};

/// A small object, one in parts, and one that grows: every way to write.
fn writes(store: &dyn Store) {
    let large = vec![7; 9 << 20];
    let none = Metadata::new();
    for (key, body) in [("p/small", &large[..9]), ("p/large", &large)] {
        store
            .put(key, Body::Bytes(body), &none, Put::Create)
            .unwrap();
        assert!(read(store, key) == body);
    }
    let (upload, written) = crate::grow(store, "p/grown", &large);
    upload.finish(written, &none).unwrap();
}

/// The requests that say what an object is: the others go with them.
fn beginnings(strict: &Strict) -> Vec<Seen> {
    let seen = strict.seen();
    let begins = |one: &&Seen| {
        let put = one.line.starts_with("PUT /") && !one.line.contains("uploadId=");
        put || one.line.starts_with("POST /") && one.line.contains("?uploads")
    };
    let found: Vec<Seen> = seen.iter().filter(begins).cloned().collect();
    assert_eq!(found.len(), 3, "{seen:?}");
    found
}

fn with_option(more: Value) -> Vec<Seen> {
    let strict = Strict::start();
    let storage = with(strict.bucket().object_storage(), more);
    let _of_the_bucket = strict.seen();
    writes(&*open(storage, Missing::Refuse));
    assert_eq!(
        strict
            .refused()
            .iter()
            .filter(|line| !line.contains("NoSuchKey"))
            .count(),
        0
    );
    beginnings(&strict)
}

#[test]
fn s3_the_server_is_asked_to_encrypt_by_its_key_or_by_one_of_ours() {
    let encryption = "x-amz-server-side-encryption";
    let key = "x-amz-server-side-encryption-aws-kms-key-id";
    for one in with_option(json!({ "encrypted": true })) {
        assert_eq!(one.headers[encryption], "AES256", "{}", one.line);
        assert!(!one.headers.contains_key(key));
    }
    // With both, the key.
    let id = "arn:aws:kms:r:1:key/k";
    for one in with_option(json!({ "encrypted": true, "sse_kms_key_id": id })) {
        assert_eq!(one.headers[encryption], "aws:kms", "{}", one.line);
        assert_eq!(one.headers[key], id, "{}", one.line);
    }
    for one in with_option(json!({})) {
        assert!(!one.headers.contains_key(encryption), "{}", one.line);
    }
}

#[test]
fn s3_every_object_has_the_storage_class() {
    for one in with_option(json!({ "storage_class": "STANDARD_IA" })) {
        assert_eq!(
            one.headers["x-amz-storage-class"], "STANDARD_IA",
            "{}",
            one.line
        );
    }
}

#[test]
fn s3_every_object_is_locked_for_its_days_from_now() {
    for mode in ["GOVERNANCE", "COMPLIANCE"] {
        let now = jiff::Timestamp::now().as_second();
        for one in with_option(json!({ "object_lock_mode": mode, "object_lock_days": 30 })) {
            assert_eq!(one.headers["x-amz-object-lock-mode"], mode, "{}", one.line);
            let until = &one.headers["x-amz-object-lock-retain-until-date"];
            let until: jiff::Timestamp = until.parse().unwrap();
            let days = until.as_second() - now - 30 * 86_400;
            assert!((0..120).contains(&days), "{until}");
            // Who locks wants to know what.
            assert!(one.line.starts_with("POST") || one.headers.contains_key(SUM));
        }
    }
}

const SUM: &str = "x-amz-checksum-sha256";

/// Where the bucket is said is what is signed, so a server that finds it has read it there.
#[test]
fn s3_the_bucket_is_in_the_path_or_in_the_hosts_name() {
    let strict = Strict::start();
    let bucket = strict.bucket();
    // The server is its own proxy, so that names need nobody who knows them.
    let proxy = json!({ "type": "http", "host": "127.0.0.1", "port": strict.port() });
    let named = json!({ "host": DOMAIN, "port": 80, "proxy_info": proxy });
    let storage = with(bucket.object_storage(), named);
    for (style, host) in [
        ("virtual", format!("{}.{DOMAIN}", bucket.name)),
        ("auto", format!("{}.{DOMAIN}", bucket.name)),
        ("path", DOMAIN.to_owned()),
    ] {
        let _before = strict.seen();
        let styled = with(storage.clone(), json!({ "addressing_style": style }));
        let store = open(styled, Missing::Refuse);
        contract(&*store);
        writes(&*store);
        store.delete_all(&list_all(&*store, "p")).unwrap();
        assert_eq!(store.sweep("p", i64::MAX).unwrap(), 0);
        for one in strict.seen() {
            let have = one.headers["host"].split(':').next().unwrap();
            assert_eq!(have, host, "{}", one.line);
        }
    }
    // Made there, too.
    let name = format!("made-{:016x}", fastrand::u64(..));
    let more = json!({ "addressing_style": "virtual", "bucket_name": name });
    let daemon = open(with(storage, more), Missing::Create);
    assert_eq!(list_all(&*daemon, "p"), [""; 0]);
}

/// Answers every request with this.
fn says(status: u16, body: &'static str) -> (Lender, Value) {
    let lender = Lender::start(move |_| (status, body.to_owned()));
    let storage = json!({ "storage_type": "s3", "region": "r", "bucket_name": "b",
        "host": "127.0.0.1", "port": lender.port(),
        "aws_access_key_id": "x", "aws_secret_access_key": "y" });
    (lender, storage)
}

#[test]
fn s67_s3_a_clock_that_is_wrong_is_named() {
    let (_lender, storage) = says(
        403,
        "<Error><Code>RequestTimeTooSkewed</Code><Message>m</Message></Error>",
    );
    let failure = open(storage, Missing::Refuse).look("p/x").unwrap_err();
    assert_eq!(failure.class, Class::Auth);
    assert!(
        failure.message.contains("RequestTimeTooSkewed"),
        "{failure}"
    );
    assert!(failure.hint.unwrap().contains("this machine's clock"));
}

/// What is said of one of many is not lost in a 200, and has its own class.
#[test]
fn s19_s3_each_refusal_among_many_deletions_is_told() {
    const ANSWERS: [(&str, Class); 4] = [
        (
            "<DeleteResult><Error><Key>p/y</Key><Code>AccessDenied</Code><Message>m</Message>\
             </Error></DeleteResult>",
            Class::Denied,
        ),
        (
            "<DeleteResult><Error><Key>p/y</Key><Code>InternalError</Code><Message>m</Message>\
             </Error></DeleteResult>",
            Class::Network,
        ),
        (
            "<DeleteResult><Error><Key>p/y</Key><Code>SlowDown</Code><Message>m</Message>\
             </Error></DeleteResult>",
            Class::Quota,
        ),
        ("<html></html>", Class::Corrupt),
    ];
    let keys = ["p/x".to_owned(), "p/y".to_owned()];
    for (answer, class) in ANSWERS {
        let (_lender, storage) = says(200, answer);
        let store = open(storage, Missing::Refuse);
        let failure = store.delete_all(&keys).unwrap_err();
        assert_eq!(failure.class, class, "{failure}");
    }
    let gone = "<DeleteResult><Deleted><Key>p/x</Key></Deleted><Error><Key>p/y</Key>\
                <Code>NoSuchKey</Code><Message>m</Message></Error></DeleteResult>";
    let (_lender, storage) = says(200, gone);
    open(storage, Missing::Refuse).delete_all(&keys).unwrap();
}
