//! Our drivers as a program, for `tests/bench/store`: puts files, gets objects, lists folders.
//!
//! `store-client CONFIG put FILE KEY...`, `get AT_ONCE KEY...` or `list FOLDER`, over the
//! `object_storage` of the one site in CONFIG. It prints one line of JSON: how many objects and
//! bytes, and its memory before and at the peak.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark: a panic is how it reports"
)]

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use pghoard::config;
use pghoard::store::choose::{self, Missing};
use pghoard::store::{Body, Metadata, Put, Scratch, Store};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [config, job, first, rest @ ..] = words.as_slice() else {
        panic!("store-client CONFIG put FILE KEY... | get AT_ONCE KEY... | list FOLDER");
    };
    let (config, _) = config::load(Path::new(config)).unwrap();
    let site = config.sites.values().next().unwrap();
    let store = choose::store(site.storage().unwrap(), Missing::Create).unwrap();
    let before = kib("VmRSS:");
    let (objects, bytes) = match *job {
        "put" => put(&*store, Path::new(first), rest),
        "get" => get(&*store, first.parse().unwrap(), rest),
        "list" => list(&*store, first),
        job => panic!("{job} is no job"),
    };
    let peak = kib("VmHWM:");
    println!(
        "{{\"objects\": {objects}, \"bytes\": {bytes}, \"before_kib\": {before}, \
         \"peak_kib\": {peak}}}"
    );
}

/// One after the other, as the chunks of a basebackup go.
fn put(store: &dyn Store, file: &Path, keys: &[&str]) -> (u64, u64) {
    let size_bytes = file.metadata().unwrap().len();
    for key in keys {
        // What is stored is gone, so each has a name of its own.
        let path = file.with_extension("scratch");
        fs::hard_link(file, &path).unwrap();
        let scratch = Scratch {
            path: &path,
            size_bytes,
            // Its writer's, which this driver has no use for.
            sha256: [0; 32],
        };
        let metadata = Metadata::from([("format".to_owned(), "pghoard-bb-v2".to_owned())]);
        let put = store.put(key, Body::Scratch(scratch), &metadata, Put::Create);
        put.unwrap();
    }
    let count = u64::try_from(keys.len()).unwrap();
    (count, count * size_bytes)
}

/// So many at once, as a restore has them; each is read to its end, which proves it.
fn get(store: &dyn Store, at_once: usize, keys: &[&str]) -> (u64, u64) {
    let (next, all) = (AtomicUsize::new(0), AtomicU64::new(0));
    let worker = || {
        let mut buffer = vec![0; 256 << 10];
        while let Some(key) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (_, mut body) = store.get(key).unwrap();
            loop {
                match body.read(&mut buffer).unwrap() {
                    0 => break,
                    count => all.fetch_add(u64::try_from(count).unwrap(), Ordering::Relaxed),
                };
            }
        }
    };
    thread::scope(|scope| (0..at_once).for_each(|_| drop(scope.spawn(worker))));
    (u64::try_from(keys.len()).unwrap(), all.into_inner())
}

fn list(store: &dyn Store, folder: &str) -> (u64, u64) {
    let (mut objects, mut bytes) = (0, 0);
    let mut visit = |entry: pghoard::store::Entry| {
        objects += 1;
        bytes += entry.size_bytes;
        Ok(())
    };
    store.list(folder, &mut visit).unwrap();
    (objects, bytes)
}

/// Of this process.
fn kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let text = line.unwrap().trim().trim_end_matches(" kB");
    text.parse().unwrap()
}
