//! The API over loopback: paths, fetches, limits, authentication.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use machine::policy::Ack;
use serde_json::{Value, json};

use super::answer::BODY_BYTES_MAX;
use super::connection::{HEAD_BYTES_MAX, HEADERS_MAX};
use super::*;
use crate::config;
use crate::spool::{RealDisk, Spool};
use crate::store::local::Local;
use crate::store::{Body, Metadata, Put, Store};
use crate::work::testing::small_segment;

mod appliance;
mod archiving;
mod bodies;
mod document;
mod fetching;
mod people;
mod tokens;

const NAME: &str = "000000010000000000000003";

/// Waits for what a thread is about to do.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "waited for {what}");
        thread::yield_now();
    }
}

struct Api {
    handle: Handle,
    reports: Receiver<Report>,
    desk: Arc<archive::Desk>,
    metrics: Exposition,
    document: Arc<Mutex<Arc<str>>>,
    folder: tempfile::TempDir,
}

fn raw(address: SocketAddr, request: &[u8], body: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request).unwrap();
    // A server that had enough closes on what it did not read; its answer comes before that.
    let _broken = stream.write_all(body);
    let mut reply = Vec::new();
    let _reset = stream.read_to_end(&mut reply);
    String::from_utf8(reply).unwrap()
}

fn ask(address: SocketAddr, method: &str, path: &str, headers: &str) -> (u16, String, String) {
    speak(address, (method, path, headers), "1.1")
}

fn speak(address: SocketAddr, asked: (&str, &str, &str), version: &str) -> (u16, String, String) {
    let (method, path, headers) = asked;
    let request =
        format!("{method} {path} HTTP/{version}\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    let reply = raw(address, request.as_bytes(), b"");
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

fn doors(folder: &Path, ack: Ack) -> archive::Doors {
    let spool = folder.join("spool/main/xlog_incoming");
    let door = archive::Door {
        spool: Spool::new(Arc::new(RealDisk::new(&spool).unwrap())),
        pg_wal: Some(folder.join("pgdata/pg_wal")),
        ack,
        ahead: 1,
    };
    BTreeMap::from([(machine::Site("main".into()), Arc::new(door))])
}

impl Api {
    /// Site `main`, moved from `old`, in one local store.
    fn new(more: Value) -> Api {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "store",
            "spool/main/xlog_incoming",
            "pgdata/pg_wal",
            "outside",
        ] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let storage = json!({ "storage_type": "local", "directory": folder.path().join("store") });
        let mut value = json!({
            "backup_location": folder.path().join("spool"),
            "http_port": 0,
            "backup_sites": {
                "main": {
                    "object_storage": storage,
                    "pg_data_directory": folder.path().join("pgdata"),
                    "moved_from": ["old"],
                },
                "old": { "object_storage": storage, "active": false },
            },
        });
        let Value::Object(more) = more else { panic!() };
        for (key, more) in more {
            value[key] = more;
        }
        let (config, _) = config::parse(&value).unwrap();
        let (sender, reports) = sync_channel(1);
        let doors = doors(folder.path(), Ack::Stored);
        let desk = archive::Desk::new(doors, Arc::default(), sender.clone());
        let desk = Arc::new(desk);
        let metrics: Exposition = Arc::new(Mutex::new(Arc::from("a 1\n")));
        let document: Arc<Mutex<Arc<str>>> = Arc::new(Mutex::new(Arc::from("{\"a\": 1}\n")));
        let handle = start(Context {
            config: Arc::new(config),
            document: Arc::clone(&document),
            metrics: Arc::clone(&metrics),
            reports: sender,
            desk: Arc::clone(&desk),
            around: Around {
                logs: Some(folder.path().join("log")),
                control: Some(folder.path().join("control")),
                updates: Some(folder.path().join("updates")),
            },
        });
        Api {
            handle: handle.unwrap(),
            reports,
            desk,
            metrics,
            document,
            folder,
        }
    }

    fn speak(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        version: &str,
    ) -> (u16, String, String) {
        speak(self.handle.address(), (method, path, headers), version)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn put(&self, key: &str, body: &[u8], metadata: &[(&str, &str)]) {
        let metadata = metadata
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let metadata: Metadata = metadata.collect();
        let store = Local::open(&self.folder.path().join("store")).unwrap();
        store
            .put(key, Body::Bytes(body), &metadata, Put::Create)
            .unwrap();
    }

    fn spool(&self, name: &str, body: &[u8]) {
        fs::write(self.path(&format!("spool/main/xlog_incoming/{name}")), body).unwrap();
    }

    fn raw(&self, request: &str) -> String {
        raw(self.handle.address(), request.as_bytes(), b"")
    }

    /// Status, headers and body.
    fn ask(&self, method: &str, path: &str, headers: &str) -> (u16, String, String) {
        ask(self.handle.address(), method, path, headers)
    }

    fn fetch(&self, name: &str, target: &str) -> (u16, String, String) {
        let header = format!("x-pghoard-target-path: {target}\r\n");
        self.ask("GET", &format!("/main/archive/{name}"), &header)
    }
}

/// A segment of 1 MiB, or the beginning of it.
fn wal(bytes: usize) -> Vec<u8> {
    small_segment(1, 3 << 20, bytes)
}

const MIB: usize = 1 << 20;

#[test]
fn paths_mean_what_they_mean_to_pghoard() {
    let api = Api::new(json!({}));
    for (method, path, status, body) in [
        ("GET", "/status", 200, "{\"a\": 1}\n"),
        ("GET", "//status", 200, "{\"a\": 1}\n"),
        ("GET", "/status/x", 400, "Invalid status request"),
        ("GET", "/metrics", 501, ""),
        ("GET", "/metrics/x", 400, "Invalid request"),
        ("GET", "/x", 400, "Invalid path ['x']"),
        ("GET", "/", 400, "Invalid path ['']"),
        (
            "GET",
            "/who/archive/x",
            404,
            "Site: 'who' not found for path ['who', 'archive', 'x']",
        ),
        ("GET", "/main/status", 501, ""),
        (
            "GET",
            "/main/archive/x",
            400,
            "Unrecognized file 'x' for archiving",
        ),
        (
            "GET",
            "/main/huh/x",
            400,
            "Invalid path ['main', 'huh', 'x']",
        ),
        (
            "GET",
            "/main/xlog/a/b",
            400,
            "Invalid 'xlog' request, only single file retrieval is supported for now",
        ),
        ("PUT", "/status", 405, "this path has no such method"),
        (
            "POST",
            "/status",
            501,
            "GET, HEAD, PUT and DELETE are served",
        ),
    ] {
        let (got, head, text) = api.ask(method, path, "");
        assert_eq!((got, text.as_str()), (status, body), "{method} {path}");
        let length = format!("content-length: {}", body.len());
        assert!(head.contains(&length), "{head}");
        let kind = if status < 300 {
            "application/octet-stream"
        } else {
            "text/plain"
        };
        assert!(head.contains(kind), "{head}");
    }
    let (status, head, body) = api.ask("PUT", "/main/archive/000000010000000000000001", "");
    assert_eq!((status, body.as_str()), (404, "N/A"));
    assert!(head.contains("server: pghoard/"));
}

#[test]
fn basebackups_are_listed_and_asked_for() {
    let api = Api::new(json!({}));
    api.put(
        "main/basebackup/b1",
        b"12345",
        &[("start-wal-segment", NAME)],
    );
    api.put("main/basebackup/sub/b2", b"1", &[]);
    api.put("old/basebackup/b0", b"1", &[]);
    let (status, head, body) = api.ask("GET", "/main/basebackup", "");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/json"));
    assert!(body.starts_with("{\n    \"basebackups\": [\n") && body.ends_with('}'));
    let body: Value = serde_json::from_str(&body).unwrap();
    let first = &body["basebackups"][0];
    assert_eq!(first["name"], "main/basebackup/b1");
    assert_eq!(first["size"], 5);
    assert_eq!(first["metadata"]["start-wal-segment"], NAME);
    assert!(first["last_modified"].as_str().unwrap().ends_with('Z'));
    assert_eq!(body["basebackups"][1]["name"], "old/basebackup/b0");
    assert_eq!(body["basebackups"].as_array().unwrap().len(), 2);
    assert_eq!(api.ask("GET", "/main/archive/basebackup", "").0, 200);

    assert_eq!(api.ask("PUT", "/main/archive/basebackup", "").0, 201);
    // The loop does not listen: the channel is full.
    assert_eq!(api.ask("PUT", "/main/basebackup", "").0, 503);
    let report = api.reports.try_recv().unwrap();
    let reason = machine::event::Why::Operator;
    let event = machine::Event::BackupRequested { reason };
    assert_eq!(report.events, [(Some(machine::Site("main".into())), event)]);
}

#[test]
fn wal_comes_from_spool_and_stores_and_absence_is_confirmed() {
    let api = Api::new(json!({}));
    let target = api.path("pgdata/pg_wal/RECOVERYXLOG");
    let got = || fs::read(&target).unwrap();
    api.put("main/basebackup/b", b"", &[]);
    let (status, head, body) = api.fetch(NAME, &target);
    assert_eq!(
        (status, body.as_str()),
        (404, &*format!("{NAME} not found"))
    );
    assert!(head.contains("x-pghoard-absent: true"), "{head}");
    // That no such site is known says nothing about its archive.
    let (status, head, _) = api.ask("HEAD", &format!("/who/archive/{NAME}"), "");
    assert_eq!((status, head.contains("x-pghoard-absent")), (404, false));

    api.spool(&format!("{NAME}.partial"), &wal(70_000));
    let (status, head, body) = api.fetch(NAME, &target);
    assert_eq!((status, body.as_str()), (201, ""));
    assert!(head.contains("x-pghoard-partial: true"), "{head}");
    assert_eq!((got().len(), &got()[..70_000]), (MIB, &wal(70_000)[..]));

    let mut stored = wal(MIB);
    stored[MIB - 1] = 1;
    api.put(&format!("old/xlog/{NAME}"), &stored, &[]);
    let (status, head, _) = api.fetch(NAME, &target);
    assert_eq!((status, got()), (201, stored));
    assert!(!head.contains("x-pghoard-partial"), "{head}");

    api.spool(NAME, &wal(MIB));
    assert_eq!((api.fetch(NAME, &target).0, got()), (201, wal(MIB)));
    assert!(!Path::new(&format!("{target}.tmp")).exists());

    api.put("main/timeline/00000002.history", b"1\t0/300000\tx\n", &[]);
    assert_eq!(api.fetch("00000002.history", &target).0, 201);
    assert_eq!(got(), b"1\t0/300000\tx\n");
}

#[test]
fn s40_any_doubt_is_no_absence() {
    let api = Api::new(json!({}));
    let target = api.path("pgdata/pg_wal/RECOVERYXLOG");
    api.put(&format!("main/xlog/{NAME}"), &wal(MIB - 1), &[]);
    let (status, _, body) = api.fetch(NAME, &target);
    assert_eq!(status, 503);
    assert!(body.starts_with("server failure: "), "{body}");
    // The store's disk is not mounted.
    fs::rename(api.path("store"), api.path("elsewhere")).unwrap();
    assert_eq!(api.fetch("000000010000000000000009", &target).0, 503);
    assert_eq!(api.ask("HEAD", &format!("/main/archive/{NAME}"), "").0, 503);
    // The directory of the configuration is the mount point itself, and is there.
    fs::create_dir(api.path("store")).unwrap();
    let (status, head, body) = api.fetch("000000010000000000000009", &target);
    assert_eq!((status, head.contains("x-pghoard-absent")), (503, false));
    assert!(body.ends_with("is its file system mounted?"), "{body}");
    assert_eq!(api.ask("HEAD", &format!("/main/archive/{NAME}"), "").0, 503);
    assert!(!Path::new(&target).exists());
}

#[test]
fn the_target_must_lie_in_the_data_directory() {
    let api = Api::new(json!({}));
    api.put(&format!("main/xlog/{NAME}"), &wal(MIB), &[]);
    std::os::unix::fs::symlink(api.path("outside"), api.path("pgdata/link")).unwrap();
    for (target, status) in [
        ("pg_wal/RECOVERYXLOG".to_owned(), 400),
        (api.path("outside/x"), 400),
        (api.path("pgdata/link/x"), 400),
        (api.path("pgdata/pg_wal/../../outside/x"), 400),
        (api.path("pgdata/.."), 400),
        ("/".to_owned(), 400),
        (api.path("pgdata/none/x"), 409),
        (api.path("pgdata/pg_wal/../x"), 201),
    ] {
        let (got, _, body) = api.fetch(NAME, &target);
        assert_eq!(got, status, "{target}: {body}");
    }
    assert!(Path::new(&api.path("pgdata/x")).exists());
    assert_eq!(fs::read_dir(api.path("outside")).unwrap().count(), 0);
    let path = format!("/main/archive/{NAME}");
    let missing = "x-pghoard-target-path header missing from download";
    assert_eq!(api.ask("GET", &path, "").2, missing);
    let (status, _, body) = api.ask("GET", &path.replace("main", "old"), "");
    assert_eq!((status, body.as_str()), (400, missing));
}

#[test]
fn head_tells_whether_it_is_there_and_its_digest() {
    let api = Api::new(json!({}));
    let metadata = [("hash", "abc"), ("hash-algorithm", "sha1")];
    api.put(&format!("old/xlog/{NAME}"), b"x", &metadata);
    let (status, head, body) = api.ask("HEAD", &format!("/main/archive/{NAME}"), "");
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("metadata-hash: abc") && head.contains("metadata-hash-algorithm: sha1"));
    api.spool("000000010000000000000004", b"");
    for (path, headers, expected) in [
        ("/main/archive/000000010000000000000004", "", 200),
        ("/main/archive/000000010000000000000005", "", 404),
        ("/main/xlog/..", "", 404),
        ("/main/archive/00000002.history", "", 404),
        (
            "/main/archive/00000002.history",
            "x-pghoard-target-path: /x\r\n",
            400,
        ),
        ("/main/basebackup", "", 405),
    ] {
        let (status, head, body) = api.ask("HEAD", path, headers);
        assert_eq!((status, body.as_str()), (expected, ""), "{path}");
        let absent = head.contains("x-pghoard-absent: true");
        assert_eq!(absent, expected == 404, "{path}");
    }
}

#[test]
fn a_password_is_asked_for_when_one_is_set() {
    let login = json!({ "webserver_username": "u", "webserver_password": "s3cret" });
    let api = Api::new(login);
    let (status, head, body) = api.ask("GET", "/status", "");
    assert_eq!((status, body.as_str()), (401, "Authentication required"));
    assert!(
        head.contains("www-authenticate: basic realm=\"pghoard\""),
        "{head}"
    );
    for (login, status) in [("u:s3cret", 200), ("u:secret", 401), ("", 401)] {
        let header = format!("Authorization: Basic {}\r\n", STANDARD.encode(login));
        assert_eq!(api.ask("GET", "/status", &header).0, status, "{login}");
    }
}

#[test]
fn metrics_are_served_where_they_are_configured() {
    let login = json!({
        "prometheus": {},
        "webserver_username": "u",
        "webserver_password": "p",
    });
    let api = Api::new(login);
    let authorization = "authorization: Basic dTpw\r\n";
    for (method, path, headers, status, body) in [
        ("GET", "/metrics", authorization, 200, "a 1\n"),
        ("GET", "/metrics", "", 401, "Authentication required"),
        (
            "POST",
            "/metrics",
            authorization,
            501,
            "GET, HEAD, PUT and DELETE are served",
        ),
        (
            "GET",
            "/main/metrics",
            authorization,
            400,
            "Invalid path ['main', 'metrics']",
        ),
    ] {
        let (found, head, text) = api.ask(method, path, headers);
        assert_eq!((found, text.as_str()), (status, body), "{method} {path}");
        let told = head.contains("content-type: text/plain; version=0.0.4");
        assert_eq!(told, status == 200, "{head}");
    }
    *api.metrics.lock().unwrap() = Arc::from("");
    let (status, _, text) = api.ask("GET", "/metrics", authorization);
    assert!(status == 503 && text.contains("ask again"), "{text}");
}

#[test]
fn limits_come_first() {
    let api = Api::new(json!({}));
    let many = "a: b\r\n".repeat(HEADERS_MAX + 1);
    let long = format!("a: {}\r\n", "b".repeat(HEAD_BYTES_MAX));
    for headers in [many, long] {
        assert_eq!(api.ask("GET", "/status", &headers).0, 431);
    }
    let body = "x".repeat(BODY_BYTES_MAX + 1);
    let headers = format!("content-length: {}\r\n\r\n{body}", body.len());
    assert_eq!(api.ask("GET", "/status", &headers).0, 413);
    // Old clients, and the tools of this program.
    assert!(
        api.raw("GET /status HTTP/1.0\r\n\r\n")
            .starts_with("HTTP/1.0 200")
    );
}

#[test]
fn beyond_loopback_a_password_is_needed() {
    let check = |more: Value| {
        let (config, _) = config::parse(&more).unwrap();
        bind(&config).map(|_| ())
    };
    for (address, more, fine) in [
        ("127.0.0.1", json!({}), true),
        ("localhost", json!({}), true),
        ("0.0.0.0", json!({}), false),
        ("", json!({}), false),
        ("::", json!({}), false),
        ("::1", json!({}), true),
        ("::ffff:127.0.0.1", json!({}), true),
        ("::ffff:0.0.0.0", json!({}), false),
        ("0", json!({}), false),
        ("", json!({ "http_allow_unauthenticated": true }), true),
        (
            "",
            json!({ "webserver_username": "u", "webserver_password": "p" }),
            true,
        ),
        ("", json!({ "webserver_username": "u" }), false),
    ] {
        let mut value = json!({ "http_address": address, "http_port": 0, "backup_sites": {} });
        for (key, more) in more.as_object().unwrap() {
            value[key] = more.clone();
        }
        let bound = check(value);
        assert_eq!(bound.is_ok(), fine, "{address} {more}: {bound:?}");
        if let Err(failure) = bound {
            assert_eq!(failure.class, Class::Config);
            assert!(
                failure.to_string().contains("webserver_username"),
                "{failure}"
            );
        }
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let refused = check(json!({ "http_port": port, "backup_sites": {} })).unwrap_err();
    assert!(
        refused.message.contains("cannot listen on 127.0.0.1:"),
        "{refused}"
    );
}

/// As its own tests bind: an address with a colon is IPv6, a name IPv4, nothing all of IPv4.
#[test]
fn addresses_mean_what_they_mean_to_pghoard() {
    for (host, expect) in [
        ("", "0.0.0.0:7"),
        ("127.0.0.1", "127.0.0.1:7"),
        ("localhost", "127.0.0.1:7"),
        ("::", "[::]:7"),
        ("::1", "[::1]:7"),
    ] {
        let found = super::resolve(host, 7).unwrap();
        assert_eq!(found[0].to_string(), expect, "{host}");
    }
}
