//! S3, on a real server and on one that lies.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use machine::Class;
use pghoard::store::choose::{self, Missing};
use pghoard::store::{Body, Metadata, Put, Scratch, Store};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{contract, list_all, metadata, read};
use crate::support::postgres::free_port;
use crate::support::stores::ceph::ceph;
use crate::support::stores::s3::Bucket;
use crate::support::stores::seaweed::{Seaweed, seaweed};
use crate::support::stores::strict::Strict;

/// A store by its configuration, as the daemon opens it.
pub fn open(storage: Value, missing: Missing) -> Box<dyn Store> {
    let site = json!({ "object_storage": storage });
    let config = json!({ "backup_sites": { "a": site } });
    let (config, _) = pghoard::config::parse(&config).unwrap();
    choose::store(config.sites["a"].storage().unwrap(), missing).unwrap()
}

pub fn with(mut storage: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    storage.as_object_mut().unwrap().extend(more);
    storage
}

/// At a server that is none.
fn at(port: u16) -> Box<dyn Store> {
    let storage = json!({
        "storage_type": "s3", "region": "us-east-1", "bucket_name": "b",
        "host": "127.0.0.1", "port": port,
        "aws_access_key_id": "AKIATEST", "aws_secret_access_key": "secretsecret",
    });
    open(storage, Missing::Refuse)
}

#[test]
fn s3() {
    let Some(seaweed) = seaweed() else { return };
    let bucket = seaweed.bucket();
    let more = json!({ "prefix": "deep/down" });
    let storage = with(bucket.object_storage(), more);
    contract(open(storage, Missing::Refuse).as_ref());
    let secure = seaweed.secure(&bucket).object_storage();
    contract(open(secure, Missing::Refuse).as_ref());
}

/// Who compares every payload with what was signed and announced, and lists by few.
#[test]
fn s3_strict() {
    let strict = Strict::start();
    strict.page(3);
    let bucket = strict.bucket();
    contract(open(bucket.object_storage(), Missing::Refuse).as_ref());
    assert_eq!(strict.unfinished(), 0);
}

#[test]
fn s3_ceph() {
    let Some(ceph) = ceph() else { return };
    contract(open(ceph.bucket().object_storage(), Missing::Refuse).as_ref());
}

#[test]
fn s3_parts_arrive_whole_and_in_order() {
    let Some(seaweed) = seaweed() else { return };
    let store = open(seaweed.bucket().object_storage(), Missing::Refuse);
    let body: Vec<u8> = (0..30_000_001_u32).map(|n| n.to_le_bytes()[1]).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scratch");
    for mode in [Put::Create, Put::Replace] {
        std::fs::write(&path, &body).unwrap();
        let scratch = Scratch {
            path: &path,
            size_bytes: 30_000_001,
            sha256: Sha256::digest(&body).into(),
        };
        let labels = metadata(&[("host", "\u{e9}")]);
        store
            .put("p/big", Body::Scratch(scratch), &labels, mode)
            .unwrap();
        assert!(!path.exists());
        assert!(read(store.as_ref(), "p/big") == body);
        let found = store.look("p/big").unwrap().unwrap();
        assert_eq!(found.metadata["host"], "\u{e9}");
        assert_eq!(found.metadata["Content-Length"], "30000001");
    }
    let again = store.put("p/big", Body::Bytes(&body), &Metadata::new(), Put::Create);
    assert_eq!(again.unwrap_err().class, Class::Conflict);
    store.delete("p/big").unwrap();
}

#[test]
fn s3_many_are_deleted_at_once() {
    let Some(seaweed) = seaweed() else { return };
    let store = open(seaweed.bucket().object_storage(), Missing::Refuse);
    let keys: Vec<String> = (0..1_100).map(|n| format!("p/xlog/{n:05}&<>")).collect();
    thread::scope(|scope| {
        let store = store.as_ref();
        for some in keys.chunks(100) {
            scope.spawn(move || {
                for key in some {
                    let put = store.put(key, Body::Bytes(b"x"), &Metadata::new(), Put::Replace);
                    put.unwrap();
                }
            });
        }
    });
    assert_eq!(list_all(store.as_ref(), "p"), keys);
    store.delete_all(&keys).unwrap();
    store.delete_all(&keys).unwrap();
    store.delete_all(&[]).unwrap();
    assert_eq!(list_all(store.as_ref(), "p"), [""; 0]);
}

#[test]
fn s3_abandoned_uploads_are_swept_when_they_are_old() {
    let Some(seaweed) = seaweed() else { return };
    let store = open(seaweed.bucket().object_storage(), Missing::Refuse);
    let mut upload = store.begin("p/basebackup/x", &Metadata::new()).unwrap();
    upload.write_all(&vec![7; 10 << 20]).unwrap();
    // As after a crash.
    std::mem::forget(upload);
    assert_eq!(store.sweep("p", 0).unwrap(), 0);
    assert_eq!(store.sweep("other", i64::MAX).unwrap(), 0);
    assert_eq!(store.sweep("p", i64::MAX).unwrap(), 1);
    assert_eq!(store.sweep("p", i64::MAX).unwrap(), 0);
}

/// Small and in parts alike: what the bucket's owner wants is asked for on every write.
#[test]
fn s3_the_server_encrypts_and_locks() {
    let Some(seaweed) = seaweed() else { return };
    let bucket = Bucket {
        name: format!("lock-{:016x}", fastrand::u64(..)),
        ..seaweed.bucket()
    };
    let locks = "x-amz-bucket-object-lock-enabled: true";
    assert_eq!(bucket.ask("PUT", "", "", &[locks]).status, 200);
    let more =
        json!({ "encrypted": true, "object_lock_mode": "GOVERNANCE", "object_lock_days": 1 });
    let store = open(with(bucket.object_storage(), more), Missing::Refuse);
    let body = vec![7; 17 << 20];
    for (key, body) in [("p/small", &body[..9]), ("p/large", &body)] {
        store
            .put(key, Body::Bytes(body), &Metadata::new(), Put::Create)
            .unwrap();
        assert!(read(store.as_ref(), key) == body);
        let told = bucket.ask("HEAD", key, "", &[]).text().to_ascii_lowercase();
        assert!(
            told.contains("x-amz-server-side-encryption: aes256"),
            "{key}: {told}"
        );
        assert!(
            told.contains("x-amz-object-lock-mode: governance"),
            "{key}: {told}"
        );
        assert!(
            told.contains("x-amz-object-lock-retain-until-date: 20"),
            "{key}: {told}"
        );
    }
    // Hidden, and kept below: versions are what is locked.
    store.delete("p/small").unwrap();
    assert_eq!(list_all(store.as_ref(), "p"), ["p/large"]);
}

#[test]
fn s3_says_whose_fault_it_is() {
    let Some(seaweed) = seaweed() else { return };
    let bucket = seaweed.bucket();
    let class = |more: Value| {
        let store = open(with(bucket.object_storage(), more), Missing::Refuse);
        let put = store.put("p/x", Body::Bytes(b"x"), &Metadata::new(), Put::Create);
        let classes = [
            put.unwrap_err().class,
            store.look("p/x").unwrap_err().class,
            store.get("p/x").err().unwrap().class,
            store.list("p", &mut |_| Ok(())).unwrap_err().class,
            store.begin("p/x", &Metadata::new()).err().unwrap().class,
        ];
        assert!(
            classes.iter().all(|class| *class == classes[0]),
            "{classes:?}"
        );
        classes[0]
    };
    assert_eq!(
        class(json!({ "aws_secret_access_key": "wrong" })),
        Class::Auth
    );
    assert_eq!(
        class(json!({ "aws_access_key_id": "AKIANOBODY" })),
        Class::Auth
    );
    assert_eq!(class(json!({ "bucket_name": "absent" })), Class::Config);
    let reader = open(Seaweed::reader(&bucket).object_storage(), Missing::Refuse);
    let put = reader.put("p/x", Body::Bytes(b"x"), &Metadata::new(), Put::Create);
    assert_eq!(put.unwrap_err().class, Class::Denied);
    let other = json!({ "cert_path": "/etc/ssl/certs/ca-certificates.crt" });
    let distrustful = with(seaweed.secure(&bucket).object_storage(), other);
    let failure = open(distrustful, Missing::Refuse).look("p/x").unwrap_err();
    assert_eq!(failure.class, Class::Config, "{failure}");
    let failure = at(free_port()).look("p/x").unwrap_err();
    assert_eq!(failure.class, Class::Network, "{failure}");
}

/// As PGHoard does at its start; whoever only reads makes nothing.
#[test]
fn s3_the_daemon_makes_its_bucket() {
    let Some(seaweed) = seaweed() else { return };
    let name = format!("made-{:016x}", fastrand::u64(..));
    let storage = with(
        seaweed.bucket().object_storage(),
        json!({ "bucket_name": name }),
    );
    let reader = open(storage.clone(), Missing::Refuse);
    assert_eq!(reader.look("p/x").unwrap_err().class, Class::Config);
    let daemon = open(storage, Missing::Create);
    assert_eq!(list_all(daemon.as_ref(), "p"), [""; 0]);
    assert_eq!(reader.look("p/x").unwrap(), None);
}

/// Answers requests in order, each with one of these; the last one for ever.
fn liar(answers: &'static [&'static str]) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            if !take_request(&mut stream) {
                continue;
            }
            let number = counted.fetch_add(1, Ordering::SeqCst);
            let answer = answers[number.min(answers.len() - 1)];
            let _gone = stream.write_all(answer.as_bytes());
        }
    });
    (port, count)
}

fn take_request(stream: &mut TcpStream) -> bool {
    let mut bytes = Vec::new();
    let mut block = [0; 65_536];
    loop {
        let Ok(n @ 1..) = stream.read(&mut block) else {
            return false;
        };
        bytes.extend_from_slice(&block[..n]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, _)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let line = line.to_ascii_lowercase();
            line.strip_prefix("content-length: ")?.parse::<usize>().ok()
        });
        if bytes.len() >= head.len() + 4 + length.unwrap_or(0) {
            return true;
        }
    }
}

const DONE: &str =
    "HTTP/1.1 200 OK\r\nETag: \"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const GONE: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const SLOW: &str = "HTTP/1.1 503 Slow Down\r\nRetry-After: 1\r\nContent-Length: 38\r\n\
    Connection: close\r\n\r\n<Error><Code>SlowDown</Code></Error>  ";
const DENIED: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 42\r\nConnection: close\r\n\r\n\
    <Error><Code>AccessDenied</Code></Error>  ";
const LIE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 41\r\nConnection: close\r\n\r\n\
    <Error><Code>AccessDenied</Code></Error> ";
const PAGE: &str =
    "HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n<html></html>";

#[test]
fn s3_waits_as_long_as_a_busy_server_asks() {
    let (port, count) = liar(&[SLOW, SLOW, DONE]);
    let store = at(port);
    let began = Instant::now();
    store
        .put("p/x", Body::Bytes(b"x"), &Metadata::new(), Put::Replace)
        .unwrap();
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

/// S-19.
#[test]
fn s19_s3_an_error_inside_a_success_is_an_error() {
    for answers in [&[LIE][..], &[PAGE]] {
        let (port, _) = liar(answers);
        let store = at(port);
        let mut seen = 0;
        let listed = store.list("p", &mut |_| {
            seen += 1;
            Ok(())
        });
        assert!(listed.is_err() && seen == 0);
    }
    const BEGUN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 85\r\nConnection: close\r\n\r\n\
        <InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
    // Nothing there, begun, two parts, and the lie; then still nothing there.
    let (port, _) = liar(&[GONE, GONE, BEGUN, DONE, DONE, GONE, GONE, LIE, GONE]);
    let store = at(port);
    let put = store.put(
        "p/x",
        Body::Bytes(&vec![0; 9 << 20]),
        &Metadata::new(),
        Put::Create,
    );
    assert!(put.is_err());
}

/// S-66.
#[test]
fn s66_s3_what_is_locked_is_denied_and_stays() {
    let (port, count) = liar(&[DENIED]);
    let store = at(port);
    assert_eq!(store.delete("p/x").unwrap_err().class, Class::Denied);
    assert_eq!(count.load(Ordering::SeqCst), 1);
    const SOME: &str = "HTTP/1.1 200 OK\r\nContent-Length: 163\r\nConnection: close\r\n\r\n\
        <DeleteResult><Deleted><Key>p/x</Key></Deleted><Error><Key>p/y</Key>\
        <Code>AccessDenied</Code><Message>Access Denied by object lock</Message>\
        </Error></DeleteResult>";
    let (port, _) = liar(&[SOME]);
    let store = at(port);
    let keys = ["p/x".to_owned(), "p/y".to_owned()];
    assert_eq!(store.delete_all(&keys).unwrap_err().class, Class::Denied);
}
