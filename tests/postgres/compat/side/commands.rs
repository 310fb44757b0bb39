//! Every command, with every kind of word.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::rows::{ROWS, Row, Theirs};
use super::{Did, assert_listed, files, judge, plain};
use crate::compat::{Peer, RELEASE, golden, keys};
use crate::support::daemon::Daemon;
use crate::support::process::{Scratch, command, hand_over, run};

#[test]
fn every_command_does_what_pghoards_does() {
    let Some(peer) = Peer::installed() else {
        return;
    };
    // Only for its links.
    let links = Daemon::configured(json!({}), json!({}));
    let bin = links.home().join("bin");
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(row) = ROWS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = row.compared(&peer, &bin);
            wrong.lock().unwrap().extend(found);
        }
    };
    thread::scope(|scope| (0..WORKERS).for_each(|_| drop(scope.spawn(work))));
    let mut wrong = wrong.into_inner().unwrap();
    wrong.sort();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_listed(ROWS.iter().flat_map(|row| row.differs).map(|d| d.why()));
}

/// Most of the time goes into Python's starts and waits.
const WORKERS: usize = 4;

fn last(text: &str) -> &str {
    text.trim_end().lines().last().unwrap_or_default()
}

fn clean((mut did, folder): (Did, Scratch), bin: &Path, version: &str) -> Did {
    let bin = format!("{}/", bin.display());
    for text in [&mut did.out, &mut did.err] {
        *text = plain(text, folder.path(), &bin, version);
    }
    did
}

impl Row {
    fn compared(&self, peer: &Peer, bin: &Path) -> Vec<String> {
        let ours = self.done(&|name| command(bin.join(name), bin));
        let mut ours = clean(ours, bin, env!("CARGO_PKG_VERSION"));
        let theirs = match self.theirs {
            Theirs::Runs => {
                let did = self.done(&|name| peer.tool(name, &[]));
                clean(did, &peer.bin, RELEASE)
            }
            Theirs::Would(code) => {
                ours.files.clear();
                Did {
                    code: Some(code),
                    out: ours.out.clone(),
                    ..Did::default()
                }
            }
        };
        let found = judge(&theirs, &ours, self.differs).into_iter();
        let (their, our) = (last(&theirs.err), last(&ours.err));
        let told = |what| format!("{}\n    {what}\n    {their:?}\n    {our:?}", self.words);
        found.map(told).collect()
    }

    fn done(&self, program: &dyn Fn(&str) -> Command) -> (Did, Scratch) {
        let folder = Scratch::new();
        furnish(&folder);
        let port = self.reply.map(answering);
        let port = port.unwrap_or(1).to_string();
        let place = folder.path().display().to_string();
        let mut words = self.words.split(' ');
        let mut command = program(words.next().unwrap());
        let fill = |word: &str| word.replace("DIR", &place).replace("PORT", &port);
        command.args(words.map(fill)).current_dir(folder.path());
        let answer = run(command);
        let did = Did {
            code: answer.status.code(),
            out: answer.stdout,
            err: answer.stderr,
            files: files(folder.path()),
        };
        (did, folder)
    }
}

/// Stores that PGHoard filled, configurations good and bad, an archive.
fn furnish(folder: &Scratch) {
    let stores = [
        ("store", "basic-snappy"),
        ("chunks", "local-tar-zstd-enc"),
        ("orphans", "delta-zstd-enc"),
        ("history", "timeline-zstd-enc"),
    ];
    for (name, run) in stores {
        let to = folder.join(name);
        let mut copy = Command::new("cp");
        copy.arg("-r").arg(golden("storage").join(run)).arg(&to);
        assert!(copy.status().unwrap().success());
    }
    // Retention of another program took it and left its WAL.
    let first = "orphans/golden/basebackup/2026-11-22_09-28_0.00000000.pghoard";
    for name in [first.to_owned(), format!("{first}.metadata")] {
        fs::remove_file(folder.join(&name)).unwrap();
    }
    for site in ["full", "far"] {
        folder.folder(site);
    }
    folder.file("full/file", "x");
    configure(folder);
    archive(folder);
    let mut own = Command::new("chown");
    own.arg("-R").arg("--reference").arg(folder.path());
    let _unless_root = own.arg(folder.path()).status();
    hand_over(folder.path());
}

fn configure(folder: &Scratch) {
    let local = |name: &str| {
        let directory = folder.join(name);
        json!({ "storage_type": "local", "directory": directory })
    };
    let site = |storage: Value| {
        let mut site = keys();
        site["object_storage"] = storage;
        site["prefix"] = json!("golden");
        site
    };
    let one = |site: Value| json!({ "backup_sites": { "golden": site } });
    let mut sites = one(site(local("store")));
    sites["backup_sites"]["other"] = site(local("chunks"));
    let mut same = one(site(local("store")));
    same["backup_location"] = json!(folder.join("store"));
    let floppy = json!({ "storage_type": "floppy" });
    let untyped = json!({ "directory": folder.join("store") });
    let configurations = [
        ("c", one(site(local("store")))),
        ("chunks", one(site(local("chunks")))),
        ("orphans", one(site(local("orphans")))),
        ("history", one(site(local("history")))),
        ("two", sites),
        ("none", json!({ "backup_sites": {} })),
        ("empty", json!({})),
        ("same", same),
        ("floppy", one(site(floppy))),
        ("untyped", one(site(untyped))),
        ("bare", json!({ "backup_sites": { "main": {} } })),
    ];
    for (name, config) in configurations {
        folder.file(&format!("{name}.json"), &config.to_string());
    }
    folder.file("broken.json", "{");
}

/// Files, a folder, a link and a name that leads out.
fn archive(folder: &Scratch) {
    let tree = folder.folder("tree");
    for name in [
        "pgdata/base/1",
        "pgdata/PG_VERSION",
        "tablespaces/t/5/x",
        "skip/me",
    ] {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    std::os::unix::fs::symlink("base", tree.join("pgdata/link")).unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-C")
        .arg(&tree)
        .arg("-cf")
        .arg(folder.join("a.tar"));
    tar.args([
        "--sort=name",
        "--mtime=@0",
        "--owner=0",
        "--group=0",
        "pgdata",
        "tablespaces",
        "skip",
    ]);
    assert!(tar.status().unwrap().success());
    fs::remove_dir_all(&tree).unwrap();
}

/// Gives every request this answer, for as long as the test runs.
fn answering(reply: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let _request = stream.read(&mut [0; 4096]);
            let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((reply, ""));
            let length = body.len();
            let text = format!("HTTP/1.0 {head}\r\ncontent-length: {length}\r\n\r\n{body}");
            let _answer = stream.write_all(text.as_bytes());
        }
    });
    port
}
