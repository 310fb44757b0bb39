//! Every route of the HTTP API: both daemons serve the same server, each its own store.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Differs::{Code, Files, Words};
use super::{Did, Differs, assert_listed, judge};
use crate::compat::{Peer, hex, their_config};
use crate::support::daemon::{Daemon, SITE, node};
use crate::support::postgres::{Options, Server, free_port, install};
use crate::support::process::Scratch;
use crate::support::{PATIENCE, wait_until};

/// One request. `SEG` is a full segment, `BAD` one that is not what its name says, `NEVER` one
/// that nobody wrote; a target is below the data directory unless it begins with a slash.
struct Route {
    request: &'static str,
    target: Option<&'static str>,
    /// What the newer PGHoard answers, where that release has other rules or hangs.
    newer: Option<u16>,
    differs: &'static [Differs],
}

const fn route(request: &'static str, differs: &'static [Differs]) -> Route {
    Route {
        request,
        target: None,
        newer: None,
        differs,
    }
}

const fn fetch(request: &'static str, target: &'static str, differs: &'static [Differs]) -> Route {
    Route {
        target: Some(target),
        ..route(request, differs)
    }
}

const fn newer(request: &'static str, status: u16, differs: &'static [Differs]) -> Route {
    Route {
        newer: Some(status),
        ..route(request, differs)
    }
}

const METHOD: &str = "A method that a path does not have";
const LABEL: &str = "The label of a backup";
const TEXTS: &str = "Texts beside a code";
const PARTIAL: &str = "A segment is never padded";

const ROUTES: &[Route] = &[
    route("GET /", &[]),
    route("GET /x", &[]),
    route("GET //x", &[]),
    route("GET /status/x", &[]),
    route("GET /metrics", &[]),
    route("GET /metrics/x", &[]),
    route("GET /main", &[]),
    route("GET /main/status", &[]),
    route("GET /main/foo/bar", &[]),
    route("GET /main/archive", &[]),
    route("GET /main/archive/a/b", &[]),
    route("GET /main/archive/nonsense", &[]),
    route("GET /main/archive/SEG.partial", &[Words(PARTIAL)]),
    route("GET /nosite/archive/SEG", &[]),
    route("GET /nosite/basebackup", &[]),
    route("PUT /main/archive/SEG", &[]),
    route("PUT /main/archive/SEG", &[]),
    route("PUT /main/xlog/SEG", &[]),
    route("PUT /main/archive/NEVER", &[]),
    route("PUT /main/archive/0000000A.history", &[]),
    route("PUT /main/archive/BAD", &[Words(TEXTS)]),
    route("PUT /main/archive/nonsense", &[]),
    route(
        "PUT /main/archive/SEG.00000028.backup",
        &[
            Code(400, 201, LABEL),
            Words(LABEL),
            Files(&["content-type"], LABEL),
        ],
    ),
    route("PUT /main/archive", &[]),
    route("PUT /main/status", &[Code(503, 405, METHOD), Words(METHOD)]),
    route("PUT /status", &[Code(503, 405, METHOD), Words(METHOD)]),
    route("PUT /metrics", &[Code(503, 405, METHOD), Words(METHOD)]),
    route("PUT /nosite/archive/basebackup", &[]),
    route("PUT /main/archive/basebackup", &[]),
    route("PUT /main/basebackup", &[]),
    route("HEAD /main/archive/SEG", &[]),
    route("HEAD /main/xlog/SEG", &[]),
    route("HEAD /main/archive/NEVER", &[]),
    route("HEAD /main/archive/0000000A.history", &[]),
    route("HEAD /main/archive/nonsense", &[]),
    fetch("HEAD /main/archive/SEG", "pg_wal/RECOVERYXLOG", &[]),
    route("HEAD /nosite/archive/SEG", &[]),
    newer(
        "HEAD /main/archive/basebackup",
        503,
        &[Code(503, 405, METHOD)],
    ),
    newer("HEAD /status", 503, &[Code(503, 405, METHOD)]),
    newer("HEAD /metrics", 503, &[Code(503, 405, METHOD)]),
    route("GET /main/archive/SEG", &[]),
    fetch("GET /main/archive/SEG", "pg_wal/RECOVERYXLOG", &[]),
    fetch("GET /main/xlog/SEG", "pg_wal/RECOVERYXLOG", &[]),
    fetch(
        "GET /main/archive/NEVER",
        "pg_wal/RECOVERYXLOG",
        &[Words(TEXTS)],
    ),
    fetch(
        "GET /main/archive/0000000A.history",
        "pg_wal/RECOVERYHISTORY",
        &[Words(TEXTS)],
    ),
    Route {
        newer: Some(400),
        ..fetch("GET /main/archive/SEG", "/tmp/RECOVERYXLOG", &[])
    },
    Route {
        newer: Some(409),
        ..fetch("GET /main/archive/SEG", "pg_wal/absent/RECOVERYXLOG", &[])
    },
    route(
        "DELETE /main/archive/SEG",
        &[
            Code(501, 405, METHOD),
            Words(METHOD),
            Files(&["content-type"], TEXTS),
        ],
    ),
    route(
        "POST /status",
        &[Words(TEXTS), Files(&["content-type"], TEXTS)],
    ),
    route(
        "OPTIONS /status",
        &[Words(TEXTS), Files(&["content-type"], TEXTS)],
    ),
];

#[test]
fn every_route_answers_as_pghoards_does() {
    let (Some(install), Some(peer)) = (install(15), Peer::installed()) else {
        return;
    };
    let options = Options {
        conf: &["wal_keep_size=256"],
        ..Options::default()
    };
    let server = Server::start(install, &options);
    server.sql("create table rows (n int)");
    let (scratch, port) = (Scratch::new(), free_port());
    let config = their_config(&scratch, &server, port, (json!({}), json!({})));
    let _theirs = peer.daemon(&config);
    let site = json!({
        "nodes": [node(&server)],
        "active_backup_mode": "archive_command",
        "pg_data_directory": server.data,
    });
    let mut ours = Daemon::configured(json!({}), json!({ SITE: site })).started();
    wait_until("our basebackup", PATIENCE, || {
        ours.assert_alive();
        archive_all(&server, ours.port);
        ours.backups() == 1
    });
    wait_until("PGHoard's basebackup", PATIENCE, || {
        listed(port).is_some_and(|list| list["basebackups"].get(0).is_some())
    });
    same_documents(port, ours.port);

    let (segment, bad) = (full_segment(&server), full_segment(&server));
    let wal = server.data.join("pg_wal");
    let mut damaged = fs::read(wal.join(&bad)).unwrap();
    damaged[12] ^= 0xff;
    fs::write(wal.join(&bad), damaged).unwrap();
    let words = Filled {
        segment,
        bad,
        data: &server.data,
    };
    let mut wrong = Vec::new();
    for route in ROUTES {
        if route.request.starts_with("GET /main/archive/SEG") && route.target.is_some() {
            // That release moves it from there to the target, below a server's feet.
            let _gone = fs::remove_file(wal.join(&words.segment));
        }
        let our = words.asked(route, ours.port);
        let their = match route.newer {
            // The words of its answer are not known.
            Some(status) => Did {
                code: Some(i32::from(status)),
                out: our.out.clone(),
                files: our.files.clone(),
                ..Did::default()
            },
            None => words.asked(route, port),
        };
        let told = |what| format!("{} {:?}\n    {what}", route.request, route.target);
        wrong.extend(judge(&their, &our, route.differs).into_iter().map(told));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_listed(ROUTES.iter().flat_map(|row| row.differs).map(|d| d.why()));
}

/// As its archive_command would.
fn archive_all(server: &Server, port: u16) {
    let current = server.one("select pg_walfile_name(pg_current_wal_lsn())");
    for entry in fs::read_dir(server.data.join("pg_wal")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.len() == 24 && name < current {
            let _answer = ask(port, "PUT", &format!("/{SITE}/archive/{name}"), None);
        }
    }
}

fn full_segment(server: &Server) -> String {
    server.sql("insert into rows values (1)");
    server.one("select pg_walfile_name(pg_switch_wal())")
}

/// What monitoring and tools read is there: the state file's keys, the list's fields.
fn same_documents(theirs: u16, ours: u16) {
    let keys = |value: &Value| -> Vec<String> {
        let object = value.as_object().expect("an object");
        object.keys().cloned().collect()
    };
    let state = |port| -> Value {
        let (status, head, body) = ask(port, "GET", "/status", None).expect("an answer");
        assert_eq!(status, 200);
        assert!(
            head.contains("content-type: application/octet-stream"),
            "{head}"
        );
        serde_json::from_str(&body).unwrap()
    };
    let (their, our) = (state(theirs), state(ours));
    for key in keys(&their) {
        // The newer PGHoard has it no more.
        if key == "transfer_agents" {
            continue;
        }
        assert!(our.get(&key).is_some(), "no '{key}' in the state file");
    }
    let (their, our) = (listed(theirs).unwrap(), listed(ours).unwrap());
    assert_eq!(keys(&their), keys(&our));
    let first = |list: &Value| list["basebackups"][0].clone();
    assert_eq!(keys(&first(&their)), keys(&first(&our)));
}

fn listed(port: u16) -> Option<Value> {
    let (status, head, body) = ask(port, "GET", "/main/basebackup", None)?;
    assert!(
        status != 200 || head.contains("content-type: application/json"),
        "{head}"
    );
    (status == 200).then(|| serde_json::from_str(&body).unwrap())
}

struct Filled<'a> {
    segment: String,
    bad: String,
    data: &'a Path,
}

impl Filled<'_> {
    /// The status as the code, the headers that matter and the file that was written as files.
    fn asked(&self, route: &Route, port: u16) -> Did {
        let request = route.request.replace("SEG", &self.segment);
        let request = request.replace("BAD", &self.bad);
        let request = request.replace("NEVER", "00000001000000AA000000BB");
        let (method, path) = request.split_once(' ').unwrap();
        let target = route.target.map(|target| self.data.join(target));
        let (status, head, body) = ask(port, method, path, target.as_deref()).expect("an answer");
        let data = self.data.display().to_string();
        let mut did = Did {
            code: Some(status.into()),
            out: body.replace(&data, "DATA"),
            ..Did::default()
        };
        for line in head.lines().skip(1) {
            let Some((name, value)) = line.split_once(": ") else {
                continue;
            };
            let name = name.to_ascii_lowercase();
            let kept = ["content-type", "metadata-hash", "metadata-hash-algorithm"];
            if kept.contains(&name.as_str()) {
                did.files.insert(name, value.to_owned());
            }
        }
        if let Some(content) = target.as_ref().and_then(|target| fs::read(target).ok()) {
            did.files
                .insert("target".to_owned(), hex(&Sha256::digest(content)));
            fs::remove_file(target.unwrap()).unwrap();
        }
        did
    }
}

fn ask(
    port: u16,
    method: &str,
    path: &str,
    target: Option<&Path>,
) -> Option<(u16, String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let target = target.map(|target| format!("x-pghoard-target-path: {}\r\n", target.display()));
    let request = format!(
        "{method} {path} HTTP/1.0\r\n{}\r\n",
        target.unwrap_or_default()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().unwrap();
    // That release writes a body even to HEAD.
    let body = if method == "HEAD" { "" } else { body };
    Some((
        status,
        head.replace("Content-Type", "content-type"),
        body.to_owned(),
    ))
}
