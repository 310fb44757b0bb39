//! What PGHoard's own drivers write is read by ours, and what ours write by them, on the same
//! servers: rohmu as PyPI has it (the newer PGHoard's), and the drivers inside PGHoard 2.1.0.

mod differs;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use machine::Class;
use pghoard::store::choose::Missing;
use pghoard::store::{Body, Entry, Metadata, Put, Scratch as File, Store, Written};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::s3::{open, with};
use super::{metadata, read};
use crate::support::postgres::testbed;
use crate::support::process::{Scratch, command, hand_over, run};
use crate::support::skip;

/// Whose drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Of PyPI: those of the newer PGHoard.
    Rohmu,
    /// Those of the last PGHoard in PyPI.
    Pghoard,
}

/// One store, seen by them and by us.
struct Pair {
    whose: Whose,
    python: PathBuf,
    scratch: Scratch,
    storage: Value,
    ours: Box<dyn Store>,
}

impl Pair {
    /// `None` has been said aloud as a skip.
    fn of(whose: Whose, storage: &Value) -> Option<Pair> {
        let name = match whose {
            Whose::Rohmu => "rohmu",
            Whose::Pghoard => "pghoard",
        };
        let python = testbed().join(name).join("bin/python");
        if !python.exists() {
            skip(name, "not installed: run tests/support/install");
            return None;
        }
        let scratch = Scratch::new();
        scratch.file("driver", include_str!("driver"));
        Some(Pair {
            whose,
            python,
            scratch,
            storage: storage.clone(),
            ours: open(storage.clone(), Missing::Create),
        })
    }

    /// Their answers to all of these steps.
    fn they(&self, steps: &Value) -> Vec<Value> {
        let plan = json!({ "storage": self.storage, "do": steps });
        let plan = self.scratch.file("plan.json", &plan.to_string());
        let mut driver = command(&self.python, self.scratch.path());
        driver.arg(self.scratch.join("driver")).arg(plan);
        let said = run(driver).ok();
        serde_json::from_str(&said).unwrap()
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.scratch.join(name);
        fs::write(&path, content).unwrap();
        hand_over(&path);
        path
    }

    /// Their answers to steps that go well.
    #[track_caller]
    fn theirs(&self, steps: &[Value]) -> Vec<Value> {
        let answers = self.they(&json!(steps));
        for (step, answer) in steps.iter().zip(&answers) {
            assert_eq!(answer.get("error"), None, "{:?}: {step}", self.whose);
        }
        answers
    }

    /// As PGHoard uploads a file, with its size in the metadata.
    fn step_put(&self, number: usize, key: &str, content: &[u8], labels: &Value) -> Value {
        let labels = with(labels.clone(), json!({ "Content-Length": content.len() }));
        let file = self.file(&number.to_string(), content);
        // What PGHoard 2.1.0 says of basebackups.
        let multipart = (content.len() > PART).then_some(true);
        json!({
            "step": "put", "key": key, "file": file, "metadata": labels, "multipart": multipart,
        })
    }

    /// Name to size and metadata.
    #[track_caller]
    fn they_list(&self, folders: &[&str]) -> BTreeMap<String, (u64, Metadata)> {
        let step = |folder: &&str| json!({ "step": "list", "key": folder });
        let steps: Vec<Value> = folders.iter().map(step).collect();
        let mut found = BTreeMap::new();
        for answer in self.theirs(&steps) {
            for item in answer["list"].as_array().unwrap() {
                let name = item["name"].as_str().unwrap().to_owned();
                // SeaweedFS shows a folder that has become empty.
                if !name.ends_with('/') {
                    let size = item["size"].as_u64().unwrap();
                    found.insert(name, (size, labels(&item["metadata"])));
                }
            }
        }
        found
    }

    fn we_list(&self, folder: &str) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        let mut visit = |entry: Entry| {
            found.insert(entry.key, entry.size_bytes);
            Ok(())
        };
        self.ours.list(folder, &mut visit).unwrap();
        found
    }
}

fn labels(value: &Value) -> Metadata {
    let pairs = value.as_object().expect("metadata").iter();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    pairs
        .map(|(name, value)| (name.clone(), text(value)))
        .collect()
}

/// What PGHoard's `segment_size` is set to, where there is one.
const PART: usize = 5 << 20;

/// Written without knowing its size.
const GROWN: &str = "s/basebackup/2026-11-23_09-28_0";

/// Bytes that repeat nowhere near.
fn content(size: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(..))
        .take(size)
        .collect()
}

/// Keys of PGHoard's, with what lies under each; one goes in parts, whoever cuts.
fn objects(storage: &Value) -> Vec<(&'static str, Vec<u8>)> {
    // As large as Microsoft's libraries take for one part.
    let large = if storage["storage_type"] == "azure" {
        64 << 20
    } else {
        20 << 20
    };
    vec![
        ("s/xlog/000000010000000000000001", content(70_000)),
        ("s/timeline/00000002.history", b"1\t0/1\tx\n".to_vec()),
        (
            "s/preservation_request/2026-11-22_09-28_0_2030-01-01 00:00:00+00:00",
            Vec::new(),
        ),
        ("s/basebackup/2026-11-22_09-28_0", content(large + 1)),
        (
            "s/basebackup/2026-11-22_09-29_0.00000000.pghoard",
            content(3),
        ),
    ]
}

/// As PGHoard has them: text and numbers, and what is dropped.
fn their_labels() -> Value {
    json!({
        "start-time": "2026-11-22T09:27:26+00:00",
        "end-time": "2026-11-22 09:16:40.468438+00:00",
        "pg-version": 150018,
        "hash": null,
        "encryption-key-id": "a=b?c",
    })
}

/// What is to be read of them; `Content-Length` is of the object.
fn read_labels(size: usize) -> Metadata {
    let size = size.to_string();
    metadata(&[
        ("start-time", "2026-11-22T09:27:26+00:00"),
        ("end-time", "2026-11-22 09:16:40.468438+00:00"),
        ("pg-version", "150018"),
        ("encryption-key-id", "a=b?c"),
        ("Content-Length", &size),
    ])
}

const FOLDERS: &[&str] = &[
    "s/xlog",
    "s/timeline",
    "s/preservation_request",
    "s/basebackup",
];

fn both_ways(storage: &Value) {
    for (whose, prefix) in [
        (Whose::Rohmu, "deep/down"),
        (Whose::Rohmu, "/deep/slash/"),
        (Whose::Pghoard, ""),
    ] {
        let mut storage = with(storage.clone(), json!({ "segment_size": PART }));
        match storage["storage_type"].as_str() {
            // It has the folder of the test.
            Some("sftp") => {}
            // They list nothing there themselves: "does not start with expected prefix".
            Some("s3") => storage["prefix"] = json!(prefix.trim_start_matches('/')),
            _ => storage["prefix"] = json!(prefix),
        }
        let Some(pair) = Pair::of(whose, &storage) else {
            continue;
        };
        eprintln!("{whose:?}, prefix {prefix:?}");
        theirs_are_read_by_us(&pair);
        ours_are_read_by_them(&pair);
    }
}

fn theirs_are_read_by_us(pair: &Pair) {
    let all = objects(&pair.storage);
    let put = |(number, (key, content)): (usize, &(&str, Vec<u8>))| {
        pair.step_put(number, key, content, &their_labels())
    };
    pair.theirs(&all.iter().enumerate().map(put).collect::<Vec<_>>());
    let sizes = |(key, content): &(&str, Vec<u8>)| ((*key).to_owned(), size(content));
    assert_eq!(pair.we_list("s"), all.iter().map(sizes).collect());
    for (key, content) in &all {
        let found = pair.ours.look(key).unwrap().unwrap();
        assert_eq!(found.metadata, read_labels(content.len()), "{key}");
        assert_eq!(found.entry.size_bytes, size(content), "{key}");
        assert!(read(&*pair.ours, key) == *content, "{key}");
        let again = Body::Bytes(b"x");
        let put = pair.ours.put(key, again, &Metadata::new(), Put::Create);
        assert_eq!(put.unwrap_err().class, Class::Conflict, "{key}");
    }
    for (key, _) in &all {
        pair.ours.delete(key).unwrap();
    }
    assert_eq!(pair.we_list(""), BTreeMap::new());
    assert_eq!(pair.they_list(FOLDERS), BTreeMap::new());
}

fn ours_are_read_by_them(pair: &Pair) {
    let all = we_put(pair);
    let listed = pair.they_list(FOLDERS);
    let names: Vec<&String> = listed.keys().collect();
    assert_eq!(names.len(), all.len(), "{:?}: {names:?}", pair.whose);
    for (key, content) in &all {
        let expected = seen(pair, key, content.len());
        let (listed_size, listed_labels) = &listed[*key];
        assert_eq!(*listed_size, size(content), "{:?}: {key}", pair.whose);
        assert_eq!(known(listed_labels), expected, "{:?}: {key}", pair.whose);
        they_get(pair, key, content, &expected);
    }
    let delete = |(key, _): &(&str, Vec<u8>)| json!({ "step": "delete", "key": key });
    pair.theirs(&all.iter().map(delete).collect::<Vec<_>>());
    assert_eq!(pair.we_list(""), BTreeMap::new());
    // Of our large objects they know the manifest alone.
    let left = pair.ours.sweep("s", i64::MAX).unwrap();
    let parts = if pair.storage["storage_type"] == "swift" {
        2
    } else {
        0
    };
    assert_eq!(left, parts, "{:?}", pair.whose);
}

fn we_put(pair: &Pair) -> Vec<(&'static str, Vec<u8>)> {
    let mut all = objects(&pair.storage);
    for (key, content) in &all {
        let path = pair.file("ours", content);
        let file = File {
            path: &path,
            size_bytes: size(content),
            sha256: Sha256::digest(content).into(),
        };
        let (file, labels) = (Body::Scratch(file), our_labels());
        pair.ours.put(key, file, &labels, Put::Create).unwrap();
    }
    let body = content((20 << 20) + 1);
    let mut upload = pair.ours.begin(GROWN, &our_labels()).unwrap();
    upload.write_all(&body).unwrap();
    let written = Written {
        size_bytes: size(&body),
        sha256: Sha256::digest(&body).into(),
    };
    upload.finish(written, &Metadata::new()).unwrap();
    all.push((GROWN, body));
    all
}

/// By each of their ways.
fn they_get(pair: &Pair, key: &str, content: &[u8], expected: &Metadata) {
    let (whose, into) = (pair.whose, pair.scratch.join("got"));
    let answers = pair.they(&json!([
        { "step": "get", "key": key, "file": into },
        { "step": "get_bytes", "key": key },
        { "step": "metadata", "key": key },
    ]));
    let sha256 = hex::encode(Sha256::digest(content));
    for (way, answer) in answers.iter().enumerate() {
        let error = answer["error"].as_str().unwrap_or_default();
        // Of nothing the emulator of Google tells no range, which their library wants.
        if content.is_empty() && error.contains("content-range") {
            continue;
        }
        assert_eq!(error, "", "{whose:?}: {key}, way {way}");
        let found = known(&labels(&answer["metadata"]));
        assert_eq!(found, *expected, "{whose:?}: {key}, way {way}");
        if way < 2 {
            assert_eq!(
                answer["sha256"],
                json!(sha256),
                "{whose:?}: {key}, way {way}"
            );
        }
    }
}

fn our_labels() -> Metadata {
    let mut labels = read_labels(0);
    labels.remove("Content-Length");
    labels
}

/// What they see of our metadata: names in lower case where they are headers. Some stores have to
/// be told before the size of what grows is known.
fn seen(pair: &Pair, key: &str, size: usize) -> Metadata {
    let mut labels = our_labels();
    let kind = pair.storage["storage_type"].as_str().unwrap();
    if key == GROWN && matches!(kind, "s3" | "google") {
        return labels;
    }
    let name = match kind {
        "s3" | "swift" | "azure" => "content-length",
        _ => "Content-Length",
    };
    labels.insert(name.to_owned(), size.to_string());
    labels
}

/// Without the digest that ours note beside a file, which is one more name to them.
fn known(labels: &Metadata) -> Metadata {
    let mut labels = labels.clone();
    labels.remove("_hash");
    labels
}

fn size(content: &[u8]) -> u64 {
    u64::try_from(content.len()).unwrap()
}
