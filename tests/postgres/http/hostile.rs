//! Those who mean no good: names that lead elsewhere, links, giants, garbage, slow clients and
//! thousands of them. Afterwards the daemon serves, and nothing is where it should not be.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::support::daemon::{Daemon, SITE};
use crate::support::process::{Scratch, hand_over};
use crate::support::{PATIENCE, scale, wait_until};

const NAME: &str = "000000010000000000000003";
/// For one answer.
const SOON: Duration = Duration::from_secs(60);

fn started(pgdata: &Path) -> Daemon {
    let site = json!({
        "nodes": [],
        "active_backup_mode": "archive_command",
        "pg_data_directory": pgdata,
    });
    let daemon = Daemon::configured(json!({ "prometheus": {} }), json!({ SITE: site })).started();
    wait_until("the daemon to answer", PATIENCE, || {
        ask(&daemon, "/status") == 200
    });
    daemon
}

fn connect(daemon: &Daemon) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

/// The status, 0 for a connection that was closed without a word.
fn raw(daemon: &Daemon, bytes: &[u8]) -> u16 {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", daemon.port)) else {
        return 0;
    };
    stream.set_read_timeout(Some(SOON)).unwrap();
    let _closed = stream.write_all(bytes);
    let mut reply = Vec::new();
    let read = stream.read_to_end(&mut reply);
    let hung = |e: &std::io::Error| e.kind() == std::io::ErrorKind::WouldBlock;
    assert!(!read.as_ref().is_err_and(hung), "no answer within a minute");
    let reply = String::from_utf8_lossy(&reply).into_owned();
    let status = reply
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    status.unwrap_or(0)
}

fn ask(daemon: &Daemon, path: &str) -> u16 {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    raw(daemon, request.as_bytes())
}

/// What there is below a folder: names, and content or where a link leads.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for item in fs::read_dir(next).unwrap() {
            let path = item.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap();
            let content = match (kind.is_dir(), kind.is_symlink()) {
                (true, _) => Vec::new(),
                (_, true) => fs::read_link(&path).unwrap().display().to_string().into(),
                _ => fs::read(&path).unwrap(),
            };
            if kind.is_dir() {
                left.push(path.clone());
            }
            found.insert(path.display().to_string(), content);
        }
    }
    found
}

/// A data directory with links out of it, and what they lead to.
fn place(scratch: &Scratch) -> std::path::PathBuf {
    let outside = scratch.folder("outside");
    fs::write(outside.join("secret"), "secret").unwrap();
    let pgdata = scratch.folder("pgdata");
    let pg_wal = scratch.folder("pgdata/pg_wal");
    symlink(&outside, pg_wal.join("link")).unwrap();
    symlink(outside.join("secret"), pg_wal.join(NAME)).unwrap();
    symlink(outside.join("secret"), pg_wal.join("RECOVERYXLOG.tmp")).unwrap();
    symlink(outside.join("secret"), pg_wal.join("RECOVERYXLOG")).unwrap();
    for name in ["outside", "outside/secret"] {
        hand_over(&scratch.join(name));
    }
    pgdata
}

/// Paths and targets that lead elsewhere.
fn hostile_requests(scratch: &Scratch) -> Vec<Vec<u8>> {
    let long = "a".repeat(12_000);
    let mut requests = Vec::new();
    for name in [
        "..",
        ".",
        "../../../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/x",
        "%00",
        "a%00b",
        "link/secret",
        "//etc/passwd",
        "..\\..\\x",
        "000000010000000000000003/../../secret",
        "0000000100000000000000FF.partial.partial",
        "RECOVERYXLOG",
        "",
        "%",
        "%zz",
        "*",
        "?",
        "#",
        &long,
    ] {
        for folder in ["archive", "xlog", "timeline", "basebackup", "hold", ".."] {
            for method in ["GET", "HEAD", "PUT", "DELETE", "POST", "get", "G\u{e9}T"] {
                for more in ["", "x-pghoard-body: 1\r\n", "content-length: 3\r\n\r\nabc"] {
                    let request = format!(
                        "{method} /{SITE}/{folder}/{name} HTTP/1.1\r\nhost: x\r\n\
                         connection: close\r\n{more}\r\n"
                    );
                    requests.push(request.into_bytes());
                }
            }
        }
    }
    let at = |name: &str| scratch.join(name).display().to_string();
    for target in [
        at("outside/x"),
        at("pgdata/pg_wal/link/x"),
        at("pgdata/pg_wal/../../outside/x"),
        at("pgdata"),
        at("pgdata/"),
        at("pgdata/pg_wal/.."),
        at(&format!("pgdata/pg_wal/{long}")),
        "pg_wal/x".to_owned(),
        "/etc/passwd".to_owned(),
        "/proc/self/mem".to_owned(),
        format!("/{long}"),
        String::new(),
        "\u{fffd}".to_owned(),
        "x\u{1}y".to_owned(),
    ] {
        let request = format!(
            "GET /{SITE}/archive/00000007.history HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             x-pghoard-target-path: {target}\r\n\r\n"
        );
        requests.push(request.into_bytes());
    }
    requests
}

fn garbage() -> Vec<Vec<u8>> {
    let head = format!("GET /status HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(10_000));
    let line = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    let mut all: Vec<Vec<u8>> = vec![
        head.into_bytes(),
        line.into_bytes(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET /status HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /status HTTP/1.1\r\nconnection: close\r\n folded: x\r\n\r\n".to_vec(),
        b"GET http://elsewhere/status HTTP/1.1\r\nconnection: close\r\n\r\n".to_vec(),
        b"CONNECT elsewhere:80 HTTP/1.1\r\nconnection: close\r\n\r\n".to_vec(),
        b"OPTIONS * HTTP/1.1\r\nconnection: close\r\n\r\n".to_vec(),
        b"\r\n\r\n\r\n\0\0\0\0".to_vec(),
        vec![0; 100_000],
        vec![0xFF; 100_000],
    ];
    let mut seed = fastrand::Rng::with_seed(7);
    all.extend((0..50).map(|_| (0..4_000).map(|_| seed.u8(..)).collect()));
    all
}

#[test]
fn names_links_and_garbage_lead_nowhere() {
    let scratch = Scratch::new();
    let pgdata = place(&scratch);
    let mut daemon = started(&pgdata);
    // History to fetch: whoever got through would get it.
    let history = "1\t0/300000\tx\n";
    let put = format!(
        "PUT /{SITE}/archive/00000007.history HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{history}",
        history.len()
    );
    assert_eq!(raw(&daemon, put.as_bytes()), 201);
    let before = tree(scratch.path());
    let store = tree(&daemon.store());
    for request in hostile_requests(&scratch).iter().chain(&garbage()) {
        let status = raw(&daemon, request);
        // Only its own history may be asked for, and a listing.
        let shown = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
        let open = ["GET /main/basebackup", "GET http://elsewhere/status "];
        let fine = status != 200 || open.iter().any(|open| shown.starts_with(open));
        assert!(fine && status != 500, "{status} for {shown}");
    }
    daemon.assert_alive();
    let after = tree(scratch.path());
    let all = before.keys().chain(after.keys());
    let changed: Vec<_> = all
        .filter(|name| before.get(*name) != after.get(*name))
        .collect();
    assert!(changed.is_empty(), "{changed:?}");
    let now = tree(&daemon.store());
    let names = |tree: &BTreeMap<String, Vec<u8>>| -> Vec<String> {
        // What the daemon writes of its own accord.
        let own = |name: &&String| !name.contains("daemon_lease") && !name.contains("event_log");
        tree.keys().filter(own).cloned().collect()
    };
    assert_eq!(names(&now), names(&store));
    let fetch = format!(
        "GET /{SITE}/archive/00000007.history HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         x-pghoard-target-path: {}\r\n\r\n",
        pgdata.join("pg_wal/RECOVERYXLOG").display()
    );
    assert_eq!(raw(&daemon, fetch.as_bytes()), 201);
    // In place of the links, not through them.
    assert_eq!(
        fs::read_to_string(scratch.join("outside/secret")).unwrap(),
        "secret"
    );
    let got = fs::read_to_string(pgdata.join("pg_wal/RECOVERYXLOG")).unwrap();
    assert_eq!(got, history);
    let spool = tree(&daemon.spool());
    let left = spool.keys().filter(|name| name.contains("/scratch/"));
    assert_eq!(left.count(), 0, "{:?}", spool.keys());
}

/// Slow, half-closed, idle, gone: none of them keeps others from being heard.
#[test]
fn thousands_of_clients_that_say_nothing_keep_nobody_out() {
    let scratch = Scratch::new();
    let pgdata = scratch.folder("pgdata");
    let mut daemon = started(&pgdata);
    let mut held = Vec::new();
    for number in 0..scale().pick(2_000, 8_000) {
        // The machine may not let us have so many; what there is will do.
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", daemon.port)) else {
            break;
        };
        let _said = match number % 5 {
            0 => Ok(()),
            1 => stream.write_all(b"GET /status HT"),
            2 => stream.write_all(b"GET /status HTTP/1.1\r\nhost: x\r\nx"),
            3 => stream.shutdown(Shutdown::Write),
            // Served, and kept alive.
            _ => stream.write_all(b"GET /status HTTP/1.1\r\nhost: x\r\n\r\n"),
        };
        held.push(stream);
        if number % 500 == 499 {
            assert_eq!(ask(&daemon, "/status"), 200, "with {number} others");
        }
    }
    assert!(held.len() > 500, "{}", held.len());
    for path in ["/status", "/metrics", "/main/basebackup", "/openapi.json"] {
        assert_eq!(ask(&daemon, path), 200, "{path}");
    }
    daemon.assert_alive();
    drop(held);
    assert_eq!(ask(&daemon, "/main/basebackup"), 200);
}

/// As many slow uploads as there is room for: the rest is refused, what is in memory answers.
#[test]
fn too_much_work_is_refused_and_status_answers() {
    let scratch = Scratch::new();
    let pgdata = scratch.folder("pgdata");
    let mut daemon = started(&pgdata);
    let slow = |number: usize| {
        let mut stream = connect(&daemon);
        let request = format!(
            "PUT /{SITE}/archive/{number:024X} HTTP/1.1\r\nhost: x\r\n\
             content-length: 1048576\r\n\r\nx"
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let mut held: Vec<TcpStream> = (0..70).map(slow).collect();
    wait_until("all hands to be full", PATIENCE, || {
        ask(&daemon, "/main/basebackup") == 503
    });
    for path in ["/status", "/metrics"] {
        assert_eq!(ask(&daemon, path), 200, "{path}");
    }
    held.clear();
    wait_until("hands to be free", PATIENCE, || {
        ask(&daemon, "/main/basebackup") == 200
    });
    wait_until("nothing to be left", PATIENCE, || {
        let spool = daemon.spool().join(SITE).join("xlog_incoming");
        fs::read_dir(spool).unwrap().count() == 0
    });
    daemon.assert_alive();
}
