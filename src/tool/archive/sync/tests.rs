//! The command against a daemon that a test plays.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use machine::Lsn;
use serde_json::json;

use super::*;
use crate::codec::digest::Algorithm;
use crate::http::Patience;

const SIZE: SegmentSize = SegmentSize::DEFAULT;
const CLUSTER: u64 = 7;

/// Answers by `METHOD NAME` of the last part of the path: status and digest.
type Script = BTreeMap<String, (u16, Option<String>)>;

struct Played {
    port: u16,
    thread: JoinHandle<Vec<String>>,
}

impl Played {
    /// Answers 404 to a HEAD and 201 to a PUT that the script does not name. `starts` is where the
    /// basebackups begin; none at all is a daemon that refuses to list them.
    fn start(script: Script, starts: Option<Vec<String>>) -> Played {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let mut asked: Vec<String> = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 4096];
                let count = stream.read(&mut request).unwrap();
                let request = String::from_utf8(request[..count].to_vec()).unwrap();
                let mut words = request.split(' ');
                let method = words.next().unwrap().to_owned();
                if method == "QUIT" {
                    break;
                }
                let name = words.next().unwrap().rsplit('/').next().unwrap();
                let line = format!("{method} {name}");
                let reply = answer(&line, &script, starts.as_deref());
                stream.write_all(reply.as_bytes()).unwrap();
                asked.push(line);
            }
            asked
        });
        Played { port, thread }
    }

    fn asked(self) -> Vec<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(b"QUIT x").unwrap();
        self.thread.join().unwrap()
    }
}

fn answer(line: &str, script: &Script, starts: Option<&[String]>) -> String {
    if line == "GET basebackup" {
        let Some(starts) = starts else {
            return "HTTP/1.1 500 x\r\n\r\n".to_owned();
        };
        let list: Vec<_> = starts
            .iter()
            .enumerate()
            .map(|(day, start)| {
                // The newest has the smallest name.
                let name = format!("s/basebackup/{}", 100 - day);
                let at = format!("2026-11-{:02}T00:00:00+00:00", day + 1);
                let metadata = json!({ "start-wal-segment": start, "start-time": at });
                json!({ "name": name, "metadata": metadata })
            })
            .collect();
        return format!("HTTP/1.1 200 x\r\n\r\n{}", json!({ "basebackups": list }));
    }
    let (status, hash) = match script.get(line) {
        Some((status, hash)) => (*status, hash.clone()),
        None if line.starts_with("HEAD") => (404, None),
        None => (201, None),
    };
    let hash = hash.map_or(String::new(), |hash| {
        format!("metadata-hash: {hash}\r\nmetadata-hash-algorithm: sha1\r\n")
    });
    format!("HTTP/1.1 {status} x\r\n{hash}\r\nwhy")
}

fn name(timeline: u32, number: u64) -> String {
    Segment::new(Timeline(timeline), number).name(SIZE)
}

/// What PostgreSQL 15 writes at the front of a segment.
fn wal(timeline: u32, number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(0xD110_u16.to_ne_bytes());
    bytes.extend(2_u16.to_ne_bytes());
    bytes.extend(timeline.to_ne_bytes());
    bytes.extend((number << 24).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(CLUSTER.to_ne_bytes());
    bytes.extend((16_u32 << 20).to_ne_bytes());
    bytes.extend(8192_u32.to_ne_bytes());
    bytes
}

fn digest(timeline: u32, number: u64) -> Option<String> {
    Some(Algorithm::Sha1.hex(&wal(timeline, number)))
}

/// Timeline and number; number 0 is the timeline's history.
type Name = (u32, u64);
/// Method, file, status and digest.
type Line<'a> = (&'a str, Name, u16, Option<String>);

struct Case<'a> {
    /// Where the server is: timeline and number.
    now: Name,
    /// In `pg_wal`, by name and what is really in it.
    files: &'a [(Name, Name)],
    script: Vec<Line<'a>>,
    starts: Option<&'a [Name]>,
    words: &'a [&'a str],
}

impl Default for Case<'_> {
    fn default() -> Self {
        Case {
            now: (1, 9),
            files: &[],
            script: Vec::new(),
            starts: Some(&[(1, 5)]),
            words: &[],
        }
    }
}

/// The way to timeline 2 leaves 1 within segment 7.
fn timelines(now: u32) -> Timelines {
    let mut timelines = Timelines::default();
    if now == 2 {
        timelines.apply(&Event::TimelineLearned {
            timeline: Timeline(2),
            ancestors: vec![Branch {
                timeline: Timeline(1),
                switch: Lsn((7 << 24) + 100),
            }],
        });
    }
    timelines
}

/// The code or the words of the failure, and what the daemon was asked.
fn play(case: &Case<'_>) -> (Result<i32, String>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let pg_wal = folder.path().join("pg_wal");
    fs::create_dir_all(pg_wal.join("archive_status")).unwrap();
    for ((timeline, number), (of, at)) in case.files {
        fs::write(pg_wal.join(name(*timeline, *number)), wal(*of, *at)).unwrap();
    }
    if case.now.0 > 1 {
        fs::write(pg_wal.join("00000002.history"), "1\t0/7000064\tx\n").unwrap();
    }
    fs::write(pg_wal.join("000000010000000000000003.partial"), "x").unwrap();
    let script = case.script.iter().map(|(method, file, status, hash)| {
        let name = match file {
            (timeline, 0) => Timeline(*timeline).history_name(),
            (timeline, number) => name(*timeline, *number),
        };
        (format!("{method} {name}"), (*status, hash.clone()))
    });
    let starts = case.starts.map(|starts| {
        let names = starts
            .iter()
            .map(|(timeline, number)| name(*timeline, *number));
        names.collect()
    });
    let played = Played::start(script.collect(), starts);
    let archive = Archive {
        daemon: Peer {
            host: "127.0.0.1".to_owned(),
            port: played.port,
            login: None,
            tls: None,
            patience: Patience::DAEMON,
        },
        site: "s",
    };
    let standing = Standing {
        current: Segment::new(Timeline(case.now.0), case.now.1),
        size: SIZE,
        system_id: CLUSTER,
        timelines: timelines(case.now.0),
    };
    let flags = Flags::try_parse_from(["x"].iter().chain(case.words)).unwrap();
    let done = sync(&archive, &standing, &pg_wal, &flags).map_err(|failure| failure.message);
    (done, played.asked())
}

/// As `METHOD timeline:number`, without the list of basebackups.
fn short(asked: &[String]) -> Vec<String> {
    let lines = asked.iter().filter(|line| *line != "GET basebackup");
    lines
        .map(|line| {
            let (method, name) = line.split_once(' ').unwrap();
            match Segment::from_name(name, SIZE) {
                Some(segment) => format!("{method} {}:{}", segment.timeline, segment.number),
                None => line.clone(),
            }
        })
        .collect()
}

fn check(case: &Case<'_>, code: Result<i32, &str>, asked: &[&str]) {
    let (done, told) = play(case);
    match (&done, code) {
        (Err(message), Err(part)) => assert!(message.contains(part), "{message}"),
        _ => assert_eq!(done, code.map_err(str::to_owned)),
    }
    assert_eq!(short(&told), asked);
}

fn same(number: u64) -> (Name, Name) {
    ((1, number), (1, number))
}

#[test]
fn what_is_not_archived_is_archived_in_order() {
    let files = [
        same(4),
        same(5),
        same(6),
        same(7),
        same(8),
        same(9),
        ((1, 10), (1, 2)),
    ];
    let held = |number, hash| ("HEAD", (1, number), 200, hash);
    let case = Case {
        files: &files,
        script: vec![held(6, digest(1, 6)), held(8, digest(1, 3))],
        words: &["--no-verify"],
        ..Case::default()
    };
    // 9 is current, 10 recycled, 4 from before the basebackup, 8 has another digest.
    let asked = [
        "HEAD 1:8", "HEAD 1:7", "HEAD 1:6", "HEAD 1:5", "PUT 1:5", "PUT 1:7", "PUT 1:8",
    ];
    check(&case, Ok(0), &asked);
}

#[test]
fn recycled_segments_are_known_by_their_headers() {
    let files = [((1, 6), (1, 2)), same(7), ((1, 8), (2, 8))];
    let case = Case {
        files: &files,
        words: &["--no-verify"],
        ..Case::default()
    };
    check(&case, Ok(0), &["HEAD 1:7", "PUT 1:7"]);
}

/// PGHoard takes the value for a text and ends with a TypeError.
#[test]
fn differs_max_hash_checks_is_a_number() {
    let files = [same(5), same(6), same(7), same(8)];
    let wrong = |number| ("HEAD", (1, number), 200, digest(1, 1));
    for (words, puts) in [
        (&["--no-verify"][..], 4),
        (&["--no-verify", "--max-hash-checks", "2"], 2),
        (&["--no-verify", "--max-hash=0"], 0),
        (&["--no-verify", "--max-hash-checks", "-1"], 4),
        (&["--no-verify", "--max-hash-checks=-1"], 4),
    ] {
        let case = Case {
            files: &files,
            script: [5, 6, 7, 8].map(wrong).to_vec(),
            words,
            ..Case::default()
        };
        let (done, asked) = play(&case);
        let count = asked.iter().filter(|line| line.starts_with("PUT")).count();
        assert_eq!((done, count), (Ok(0), puts), "{words:?}");
    }
}

#[test]
fn of_files_without_a_digest_only_the_first_is_archived_again() {
    let files = [same(5), same(6), same(7)];
    let case = Case {
        files: &files,
        script: [5, 6, 7]
            .map(|number| ("HEAD", (1, number), 200, None))
            .to_vec(),
        words: &["--no-verify"],
        ..Case::default()
    };
    check(
        &case,
        Ok(0),
        &["HEAD 1:7", "HEAD 1:6", "HEAD 1:5", "PUT 1:7"],
    );
}

/// PGHoard only logs it and ends with 0.
#[test]
fn differs_a_refused_upload_is_told_by_the_exit_code() {
    let files = [same(7), same(8)];
    let case = Case {
        files: &files,
        script: vec![("PUT", (1, 7), 500, None)],
        words: &["--no-verify"],
        ..Case::default()
    };
    check(
        &case,
        Ok(1),
        &["HEAD 1:8", "HEAD 1:7", "PUT 1:7", "PUT 1:8"],
    );
}

#[test]
fn the_walk_goes_back_to_the_newest_basebackup() {
    let held = |number| ("HEAD", (1, number), 200, None);
    let full = [5, 6, 7, 8].map(held).to_vec();
    let case = Case {
        script: full.clone(),
        starts: Some(&[(1, 1), (1, 5)]),
        ..Case::default()
    };
    check(
        &case,
        Ok(0),
        &["HEAD 1:8", "HEAD 1:7", "HEAD 1:6", "HEAD 1:5"],
    );
    let gap = Case {
        script: [5, 7, 8].map(held).to_vec(),
        ..Case::default()
    };
    let told = "xlog file 000000010000000000000006 missing, integrity check from \
                000000010000000000000009 to 000000010000000000000005 failed";
    check(&gap, Err(told), &["HEAD 1:8", "HEAD 1:7", "HEAD 1:6"]);
    let asks = Case {
        words: &["--create-new-backup-on-failure"],
        ..gap
    };
    let asked = ["HEAD 1:8", "HEAD 1:7", "HEAD 1:6", "PUT basebackup"];
    check(&asks, Ok(0), &asked);
    let none = Case {
        starts: Some(&[]),
        ..Case::default()
    };
    check(&none, Err("No basebackups found"), &[]);
    let ahead = Case {
        starts: Some(&[(1, 12)]),
        ..Case::default()
    };
    check(&ahead, Err("but the server has only come to"), &[]);
}

/// PGHoard tries the timeline below, once, and looks at no history file.
#[test]
fn differs_the_walk_follows_the_histories() {
    let held = |timeline, number| ("HEAD", (timeline, number), 200, None);
    let way = [held(2, 8), held(2, 7), held(2, 0), held(1, 6), held(1, 5)];
    let history = "HEAD 00000002.history";
    let case = |script: &[_]| Case {
        now: (2, 9),
        script: script.to_vec(),
        ..Case::default()
    };
    let asked = [
        history, "HEAD 2:8", "HEAD 2:7", history, "HEAD 1:6", "HEAD 1:5",
    ];
    check(&case(&way), Ok(0), &asked);
    let lost = [held(2, 8), held(2, 7), held(1, 6), held(1, 5)];
    let asked = [
        history,
        "PUT 00000002.history",
        "HEAD 2:8",
        "HEAD 2:7",
        history,
    ];
    check(&case(&lost), Err("00000002.history missing"), &asked);
    let foreign = Case {
        starts: Some(&[(3, 5)]),
        ..case(&way)
    };
    check(&foreign, Err("nothing leads to timeline 2"), &[history]);
}

#[test]
fn differs_what_the_daemon_cannot_say_is_no_gap() {
    let case = Case {
        script: vec![("HEAD", (1, 8), 503, None)],
        words: &["--create-new-backup-on-failure"],
        ..Case::default()
    };
    let told = "whether '000000010000000000000008' is archived: the daemon answered 503 (why)";
    check(&case, Err(told), &["HEAD 1:8"]);
    let unlisted = Case {
        starts: None,
        ..Case::default()
    };
    check(&unlisted, Err("the list of basebackups"), &[]);
}

#[test]
fn the_configuration_must_say_enough() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.json");
    for (site, code) in [
        (json!({}), 1),
        // No server answers there.
        (
            json!({ "pg_data_directory": "/nowhere", "nodes": ["host=/nowhere"] }),
            1,
        ),
        (json!({ "pg_data_directory": "/nowhere", "nodes": [] }), 1),
    ] {
        let config = json!({ "backup_sites": { "s": site } });
        fs::write(&path, config.to_string()).unwrap();
        let args = ["x", "--config", path.to_str().unwrap()];
        assert_eq!(run(args.map(OsString::from)), code, "{config}");
    }
    assert_eq!(
        run(["x", "--config", "/nowhere/c.json"].map(OsString::from)),
        1
    );
    assert_eq!(run(["x", "--config", ""].map(OsString::from)), 1);
    assert_eq!(run(["x", "--max-hash-checks", "x"].map(OsString::from)), 2);
}
