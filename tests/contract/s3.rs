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

/// A store by its configuration, as the daemon opens it.
pub fn open(storage: Value, missing: Missing) -> Box<dyn Store> {
    let site = json!({ "object_storage": storage });
    let config = json!({ "backup_sites": { "a": site } });
    let (config, _) = pghoard::config::parse(&config).unwrap();
    choose::store(config.sites["a"].storage().unwrap(), missing).unwrap()
}

fn at(port: u16, bucket: &str, more: Value) -> Value {
    let mut storage = json!({
        "storage_type": "s3", "region": "us-east-1", "bucket_name": bucket,
        "host": "127.0.0.1", "port": port,
        "aws_access_key_id": "AKIATEST", "aws_secret_access_key": "secretsecret",
    });
    let more = more.as_object().unwrap().clone();
    storage.as_object_mut().unwrap().extend(more);
    storage
}

fn port() -> u16 {
    18_333
}

#[test]
fn s3() {
    let more = json!({ "prefix": "deep/down" });
    let store = open(at(port(), "contract", more), Missing::Create);
    contract(store.as_ref());
}

#[test]
fn s3_parts_arrive_whole_and_in_order() {
    let store = open(at(port(), "parts", json!({})), Missing::Create);
    let body: Vec<u8> = (0..30_000_001_u32).map(|n| (n / 97) as u8).collect();
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
    let store = open(at(port(), "many", json!({})), Missing::Create);
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
    let store = open(at(port(), "sweep", json!({})), Missing::Create);
    let mut upload = store.begin("p/basebackup/x", &Metadata::new()).unwrap();
    upload.write_all(&vec![7; 10 << 20]).unwrap();
    // As after a crash.
    std::mem::forget(upload);
    assert_eq!(store.sweep("p", 0).unwrap(), 0);
    assert_eq!(store.sweep("other", i64::MAX).unwrap(), 0);
    assert_eq!(store.sweep("p", i64::MAX).unwrap(), 1);
    assert_eq!(store.sweep("p", i64::MAX).unwrap(), 0);
}

#[test]
fn s3_says_whose_fault_it_is() {
    let class = |more: Value, missing| {
        let store = open(at(port(), "fault", more), missing);
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
    };
    let store = open(at(port(), "fault", json!({})), Missing::Create);
    store.list("", &mut |_| Ok(())).unwrap();
    let wrong = json!({ "aws_secret_access_key": "wrong" });
    assert_eq!(class(wrong, Missing::Create), Class::Auth);
    let unknown = json!({ "aws_access_key_id": "AKIANOBODY" });
    assert_eq!(class(unknown, Missing::Create), Class::Auth);
    let absent = json!({ "bucket_name": "absent" });
    assert_eq!(class(absent, Missing::Refuse), Class::Config);
    let reader = json!({ "aws_access_key_id": "AKIARO", "aws_secret_access_key": "rosecret" });
    let reader = open(at(port(), "fault", reader), Missing::Refuse);
    let put = reader.put("p/x", Body::Bytes(b"x"), &Metadata::new(), Put::Create);
    assert_eq!(put.unwrap_err().class, Class::Denied);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    let store = open(at(port, "fault", json!({})), Missing::Create);
    let failure = store.look("p/x").unwrap_err();
    assert_eq!(failure.class, Class::Network, "{failure}");
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
    let store = open(at(port, "b", json!({})), Missing::Refuse);
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
        let store = open(at(port, "b", json!({})), Missing::Refuse);
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
    let store = open(at(port, "b", json!({})), Missing::Refuse);
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
    let store = open(at(port, "b", json!({})), Missing::Refuse);
    assert_eq!(store.delete("p/x").unwrap_err().class, Class::Denied);
    assert_eq!(count.load(Ordering::SeqCst), 1);
    const SOME: &str = "HTTP/1.1 200 OK\r\nContent-Length: 163\r\nConnection: close\r\n\r\n\
        <DeleteResult><Deleted><Key>p/x</Key></Deleted><Error><Key>p/y</Key>\
        <Code>AccessDenied</Code><Message>Access Denied by object lock</Message>\
        </Error></DeleteResult>";
    let (port, _) = liar(&[SOME]);
    let store = open(at(port, "b", json!({})), Missing::Refuse);
    let keys = ["p/x".to_owned(), "p/y".to_owned()];
    assert_eq!(store.delete_all(&keys).unwrap_err().class, Class::Denied);
}
