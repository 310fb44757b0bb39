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

    /// Their answer to one step that goes well.
    #[track_caller]
    fn theirs(&self, step: Value) -> Value {
        let mut answers = self.they(&json!([step]));
        let answer = answers.remove(0);
        assert_eq!(answer.get("error"), None, "{:?}: {step}", self.whose);
        answer
    }

    fn file(&self, content: &[u8]) -> PathBuf {
        let path = self.scratch.join("content");
        fs::write(&path, content).unwrap();
        hand_over(&path);
        path
    }

    /// As PGHoard uploads a file, with its size in the metadata.
    #[track_caller]
    fn they_put(&self, key: &str, content: &[u8], labels: &Value) {
        let labels = with(labels.clone(), json!({ "Content-Length": content.len() }));
        let file = self.file(content);
        // What PGHoard 2.1.0 says of everything that is larger than a part.
        let multipart = (content.len() > PART).then_some(true);
        self.theirs(json!({
            "step": "put", "key": key, "file": file, "metadata": labels, "multipart": multipart,
        }));
    }

    /// Name to size and metadata.
    #[track_caller]
    fn they_list(&self, folder: &str) -> BTreeMap<String, (u64, Metadata)> {
        let answer = self.theirs(json!({ "step": "list", "key": folder }));
        // SeaweedFS shows a folder that has become empty.
        let is_folder = |item: &&Value| item["name"].as_str().unwrap().ends_with('/');
        let items = answer["list"].as_array().unwrap().iter();
        let items = items.filter(|item| !is_folder(item));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let item = |item: &Value| {
            let size = item["size"].as_u64().unwrap();
            (text(&item["name"]), (size, labels(&item["metadata"])))
        };
        items.map(item).collect()
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

/// Larger than a part, whoever cuts.
const LARGE: usize = (63 << 20) + 1;
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

/// Keys of PGHoard's, with what lies under each.
fn objects() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("s/xlog/000000010000000000000001", content(70_000)),
        ("s/timeline/00000002.history", b"1\t0/1\tx\n".to_vec()),
        (
            "s/preservation_request/2026-11-22_09-28_0_2030-01-01 00:00:00+00:00",
            Vec::new(),
        ),
        ("s/basebackup/2026-11-22_09-28_0", content(LARGE)),
        (
            "s/basebackup/2026-11-22_09-28_0.00000000.pghoard",
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

/// Both ways, then what each has of its own.
fn both_ways(storage: &Value) {
    for whose in [Whose::Rohmu, Whose::Pghoard] {
        for prefix in ["", "deep/down"] {
            let storage = with(storage.clone(), json!({ "prefix": prefix }));
            let storage = with(storage, json!({ "segment_size": PART }));
            let Some(pair) = Pair::of(whose, &storage) else {
                continue;
            };
            eprintln!("{whose:?}, prefix {prefix:?}");
            theirs_are_read_by_us(&pair);
            ours_are_read_by_them(&pair);
        }
    }
}

fn theirs_are_read_by_us(pair: &Pair) {
    let sizes = |(key, content): &(&str, Vec<u8>)| ((*key).to_owned(), size(content));
    let all = objects();
    for (key, content) in &all {
        pair.they_put(key, content, &their_labels());
    }
    assert_eq!(pair.we_list("s"), all.iter().map(sizes).collect());
    for (key, content) in &all {
        let found = pair.ours.look(key).unwrap().unwrap();
        assert_eq!(found.metadata, read_labels(content.len()), "{key}");
        assert_eq!(found.entry.size_bytes, size(content), "{key}");
        assert!(read(&*pair.ours, key) == *content, "{key}");
        let put = pair
            .ours
            .put(key, Body::Bytes(b"x"), &Metadata::new(), Put::Create);
        assert_eq!(put.unwrap_err().class, Class::Conflict, "{key}");
    }
    for (key, _) in &all {
        pair.ours.delete(key).unwrap();
    }
    assert_eq!(pair.we_list(""), BTreeMap::new());
    for folder in ["s/xlog", "s/timeline", "s/basebackup"] {
        assert_eq!(pair.they_list(folder), BTreeMap::new(), "{folder}");
    }
}

fn ours_are_read_by_them(pair: &Pair) {
    let mut all = objects();
    for (key, content) in &all {
        let path = pair.file(content);
        let file = File {
            path: &path,
            size_bytes: size(content),
            sha256: Sha256::digest(content).into(),
        };
        let labels = our_labels();
        let put = pair
            .ours
            .put(key, Body::Scratch(file), &labels, Put::Create);
        put.unwrap();
    }
    let (key, body) = (GROWN, content(LARGE / 2));
    let mut upload = pair.ours.begin(key, &our_labels()).unwrap();
    upload.write_all(&body).unwrap();
    let written = Written {
        size_bytes: size(&body),
        sha256: Sha256::digest(&body).into(),
    };
    upload.finish(written, &Metadata::new()).unwrap();
    all.push((key, body));

    let mut listed = BTreeMap::new();
    for folder in [
        "s/xlog",
        "s/timeline",
        "s/preservation_request",
        "s/basebackup",
    ] {
        listed.append(&mut pair.they_list(folder));
    }
    let names: Vec<&String> = listed.keys().collect();
    assert_eq!(names.len(), all.len(), "{:?}: {names:?}", pair.whose);
    for (key, content) in &all {
        let (listed_size, listed_labels) = &listed[*key];
        assert_eq!(*listed_size, size(content), "{:?}: {key}", pair.whose);
        let grown = *key == GROWN;
        let expected = seen(&pair.storage, our_labels(), content.len(), grown);
        assert_eq!(known(listed_labels), expected, "{:?}: {key}", pair.whose);
        they_get(pair, key, content, &expected);
    }
    for (key, _) in &all {
        pair.theirs(json!({ "step": "delete", "key": key }));
        assert_eq!(pair.ours.look(key).unwrap(), None, "{key}");
    }
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

/// By each of their ways.
fn they_get(pair: &Pair, key: &str, content: &[u8], expected: &Metadata) {
    let into = pair.scratch.join("got");
    let answers = pair.they(&json!([
        { "step": "get", "key": key, "file": into },
        { "step": "get_bytes", "key": key },
        { "step": "metadata", "key": key },
    ]));
    let sha256 = hex::encode(Sha256::digest(content));
    for (way, answer) in answers.iter().enumerate() {
        let whose = pair.whose;
        let error = answer["error"].as_str().unwrap_or_default();
        // Of nothing the emulator of Google tells no range, which their library wants.
        if content.is_empty() && error.contains("content-range") {
            continue;
        }
        assert_eq!(answer.get("error"), None, "{whose:?}: {key}, way {way}");
        assert_eq!(
            known(&labels(&answer["metadata"])),
            *expected,
            "{key}, way {way}"
        );
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
fn seen(storage: &Value, mut labels: Metadata, size: usize, grown: bool) -> Metadata {
    let kind = storage["storage_type"].as_str().unwrap();
    if grown && matches!(kind, "s3" | "google") {
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
