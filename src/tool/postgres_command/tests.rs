//! Exit codes and what is sent, against a server of one answer.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::json;

use super::*;
use crate::store::local::Local;
use crate::store::{Body, Metadata, Put, Store};

const ABSENT: &str = "404 Not Found\r\nX-PGHoard-Absent: true";

fn code(words: &[&str]) -> i32 {
    run(["pghoard_postgres_command"]
        .iter()
        .chain(words)
        .map(OsString::from))
}

#[test]
fn s40_a_wrong_command_line_is_no_end_of_archive() {
    for (words, expected) in [
        (&["--mode", "restore"][..], 255),
        (&[], 255),
        (&["--mode", "archive"], 2),
        (&["--mode=archive", "--unknown"], 2),
        (&["--mode", "restore", "--site", "archive"], 255),
        (
            &[
                "--mode", "restore", "--site", "s", "--xlog", "x", "--port", "y",
            ],
            255,
        ),
        (&["--help"], 0),
        (&["--version"], 0),
    ] {
        assert_eq!(code(words), expected, "{words:?}");
    }
}

#[test]
fn s40_a_panic_is_no_end_of_archive() {
    for (mode, expected) in [("restore", 255), ("archive", 2)] {
        let args = ["--mode", mode].map(OsString::from);
        assert_eq!(guarded(&args, || panic!("on purpose")), expected, "{mode}");
    }
}

#[test]
fn the_daemons_answers_become_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("RECOVERYXLOG");
    let out = output.to_str().unwrap();
    for (mode, reply, file, expected) in [
        ("archive", "201 Created", "000000010000000000000001", 0),
        ("archive", "500 Internal", "000000010000000000000001", 3),
        ("archive", "", "000000010000000000000001", 2),
        ("archive", "", "000000010000000000000001.00000028.backup", 0),
        // Anybody may answer 404: a daemon without the site, or another server.
        ("restore", "404 Not Found", "000000010000000000000001", 255),
        ("restore", ABSENT, "000000010000000000000001", 4),
        ("restore", "503 Busy", "000000010000000000000001", 255),
        ("restore", "", "000000010000000000000001", 255),
        ("restore", "201 Created", "000000010000000000000001", 255),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let answered = format!("HTTP/1.1 {reply}\r\ncontent-length: 0\r\n\r\n");
        let server = (!reply.is_empty()).then(|| {
            thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                let count = stream.read(&mut request).unwrap();
                stream.write_all(answered.as_bytes()).unwrap();
                String::from_utf8(request[..count].to_vec()).unwrap()
            })
        });
        let what = ["--mode", mode, "--site", "s", "--xlog", file];
        let place = ["--port", &port, "--output", out, "--retry-interval", "0"];
        assert_eq!(
            code(&[&what[..], &place].concat()),
            expected,
            "{mode} {reply}"
        );
        if let Some(server) = server {
            let request = server.join().unwrap();
            let header = request.contains(&format!("x-pghoard-target-path: {out}\r\n"));
            assert_eq!(header, mode == "restore");
            assert!(request.contains(&format!(" /s/archive/{file} HTTP/1.0\r\n")));
            assert!(!request.contains("Authorization"));
        }
    }
}

/// Its listener is there, but it closes two connections without a word.
#[test]
fn a_daemon_that_does_not_answer_is_asked_three_times() {
    for (silent, expected) in [(0, 4), (2, 4), (3, 255)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let server = thread::spawn(move || {
            for number in 0..=silent.min(2) {
                let (mut stream, _) = listener.accept().unwrap();
                let _count = stream.read(&mut [0; 4096]).unwrap();
                if number == silent {
                    let answer = format!("HTTP/1.1 {ABSENT}\r\n\r\n");
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            }
        });
        let what = "--mode restore --site s --xlog 000000010000000000000001 --port";
        let words = what
            .split(' ')
            .chain([port.as_str(), "--retry-interval=0.0"]);
        assert_eq!(code(&words.collect::<Vec<_>>()), expected, "{silent}");
        server.join().unwrap();
    }
    let what = "--mode restore --site s --xlog x --retry-interval";
    for wrong in ["-1", "soon", "nan"] {
        let words: Vec<&str> = what.split(' ').chain([wrong]).collect();
        assert_eq!(code(&words), 255, "{wrong}");
    }
}

/// PGHoard parses them and never sends them.
#[test]
fn differs_username_and_password_are_sent() {
    for (mode, reply, expected) in [
        ("archive", "201 Created", 0),
        ("restore", ABSENT, 4),
        ("restore", "401 Unauthorized", 255),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let answered = format!("HTTP/1.1 {reply}\r\n\r\n");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap();
            stream.write_all(answered.as_bytes()).unwrap();
            String::from_utf8(request[..count].to_vec()).unwrap()
        });
        let words = [
            "--mode",
            mode,
            "--site",
            "s",
            "--xlog",
            "000000010000000000000001",
        ];
        let login = ["--port", &port, "--username", "ada", "--password", "hush"];
        assert_eq!(code(&[words, login].concat()), expected, "{mode} {reply}");
        let request = server.join().unwrap();
        let sent = "Authorization: Basic YWRhOmh1c2g=\r\n";
        assert!(request.contains(sent), "{request}");
    }
}

#[test]
fn with_a_configuration_the_store_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let store = Local::create(&path("store")).unwrap();
    let history = b"1\t0/300000\tx\n";
    let key = "main/timeline/00000002.history";
    store
        .put(key, Body::Bytes(history), &Metadata::new(), Put::Create)
        .unwrap();
    let storage = json!({"storage_type": "local", "directory": path("store")});
    let config = json!({"backup_sites": {"main": {"object_storage": storage}}});
    fs::write(path("c.json"), config.to_string()).unwrap();
    let output = path("RECOVERYHISTORY");
    let ask = |config: &str, name: &str| {
        let (config, out) = (path(config), output.to_str().unwrap());
        let config = config.to_str().unwrap();
        let place = ["--mode", "restore", "--site", "main", "--config", config];
        code(&[&place[..], &["--xlog", name, "--output", out]].concat())
    };
    assert_eq!(ask("c.json", "00000002.history"), 0);
    assert_eq!(fs::read(&output).unwrap(), history);
    // Nothing else is there, as on a disk that is not mounted.
    assert_eq!(ask("c.json", "00000003.history"), 255);
    store
        .put(
            "main/basebackup/b",
            Body::Bytes(b""),
            &Metadata::new(),
            Put::Create,
        )
        .unwrap();
    assert_eq!(ask("c.json", "00000003.history"), 4);
    assert_eq!(ask("nowhere.json", "00000003.history"), 255);
    fs::rename(path("store"), path("elsewhere")).unwrap();
    assert_eq!(ask("c.json", "00000003.history"), 255);
}

/// What comes over the network is judged as what comes from the store: by name, size and page.
#[test]
fn s45_a_body_that_is_not_the_segment_never_gets_its_name() {
    let mut segment = crate::work::testing::first_page(7, 3);
    segment.resize(16 << 20, 0x55);
    let whole = segment.len();
    let mut other = segment.clone();
    other[8] ^= 1;
    for (body, length, calls, expected) in [
        (&segment[..], whole, 1, 0),
        (&other[..], whole, 1, 255),
        (&segment[..whole - 1], whole - 1, 1, 255),
        // It broke off, which is the network's: asked three times.
        (&segment[..5000], whole, 3, 255),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("RECOVERYXLOG");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let words = "--mode restore --site s --remote --retry-interval 0 --xlog";
        let name = "000000010000000000000003";
        let place = [name, "--port", &port, "--output", output.to_str().unwrap()];
        let words: Vec<&str> = words.split(' ').chain(place).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..calls {
                    let (mut stream, _) = listener.accept().unwrap();
                    let _count = stream.read(&mut [0; 4096]).unwrap();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                    stream.write_all(head.as_bytes()).unwrap();
                    // A client that has seen enough hangs up.
                    let _broken = stream.write_all(body);
                }
            });
            assert_eq!(code(&words), expected, "{length}");
        });
        let found = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(found, usize::from(expected == 0), "{length}");
        assert!(expected != 0 || fs::read(&output).unwrap() == segment);
    }
}
