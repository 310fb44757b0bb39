//! The calls, and how to see whether one did what it said.

use std::io::{Read, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use pghoard::Failure;
use pghoard::store::{Scratch, Written};
use sha2::{Digest, Sha256};

use super::*;
use crate::support::{PATIENCE, wait_until};
use crate::{list_all, read};

/// More than a part of any store.
const LARGE_BYTES: usize = (8 << 20) + 1_000;
const SMALL_BYTES: usize = 50_000;

pub struct Call {
    pub name: &'static str,
    /// Of a write: how many bytes are to be there afterwards.
    bytes: Option<usize>,
    run: fn(&dyn Store, &Work) -> Result<(), Failure>,
}

/// Where a call writes.
pub struct Work {
    folder: String,
    key: String,
}

pub const CALLS: &[Call] = &[
    write("put", SMALL_BYTES, |store, work| {
        put(store, work, SMALL_BYTES, Put::Create)
    }),
    write("put in parts", LARGE_BYTES, |store, work| {
        put(store, work, LARGE_BYTES, Put::Create)
    }),
    write("replace", SMALL_BYTES, |store, work| {
        put(store, work, SMALL_BYTES, Put::Replace)
    }),
    write("grow", SMALL_BYTES, |store, work| {
        grow(store, work, SMALL_BYTES)
    }),
    write("grow in parts", LARGE_BYTES, |store, work| {
        grow(store, work, LARGE_BYTES)
    }),
    call("look", |store, _| {
        let found = store.look("stock/small")?.expect("it is there");
        assert_eq!(found.entry.size_bytes, u64::try_from(SMALL_BYTES).unwrap());
        assert_eq!(found.metadata["start-time"], LABEL);
        Ok(())
    }),
    call("look for nothing", |store, _| {
        assert_eq!(store.look("stock/absent")?, None);
        Ok(())
    }),
    call("get", |store, _| fetch(store, "stock/small", SMALL_BYTES)),
    call("get large", |store, _| {
        fetch(store, "stock/large", LARGE_BYTES)
    }),
    call("list", |store, _| {
        let mut keys = Vec::new();
        store.list("stock/list", &mut |entry| {
            assert_eq!(entry.size_bytes, 9);
            keys.push(entry.key);
            Ok(())
        })?;
        assert_eq!(keys, listed());
        Ok(())
    }),
    call("delete", |store, work| store.delete(&work.key)),
    call("delete many", |store, work| {
        store.delete_all(std::slice::from_ref(&work.key))
    }),
    call("sweep", |store, work| {
        store.sweep(&work.folder, i64::MAX).map(drop)
    }),
];

impl Call {
    pub fn is_large(&self) -> bool {
        self.bytes == Some(LARGE_BYTES) || ["get large", "sweep"].contains(&self.name)
    }
}

const fn call(name: &'static str, run: fn(&dyn Store, &Work) -> Result<(), Failure>) -> Call {
    Call {
        name,
        bytes: None,
        run,
    }
}

const fn write(
    name: &'static str,
    bytes: usize,
    run: fn(&dyn Store, &Work) -> Result<(), Failure>,
) -> Call {
    Call {
        name,
        bytes: Some(bytes),
        run,
    }
}

const LABEL: &str = "2026-11-22T09:27:26+00:00";

/// Every byte is another than its neighbours, and says where it is.
pub fn body(bytes: usize) -> &'static [u8] {
    static BODY: OnceLock<Vec<u8>> = OnceLock::new();
    let words = || (0..LARGE_BYTES / 4).flat_map(|n| u32::try_from(n).unwrap().to_le_bytes());
    let body = BODY.get_or_init(|| words().collect());
    &body[..bytes]
}

fn labels() -> Metadata {
    crate::metadata(&[("start-time", LABEL)])
}

fn put(store: &dyn Store, work: &Work, bytes: usize, mode: Put) -> Result<(), Failure> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scratch");
    let body = body(bytes);
    std::fs::write(&path, body).unwrap();
    let scratch = Scratch {
        path: &path,
        size_bytes: u64::try_from(bytes).unwrap(),
        sha256: Sha256::digest(body).into(),
    };
    let done = store.put(&work.key, Body::Scratch(scratch), &labels(), mode);
    assert_eq!(done.is_err(), path.exists(), "gone after success alone");
    done
}

fn grow(store: &dyn Store, work: &Work, bytes: usize) -> Result<(), Failure> {
    let body = body(bytes);
    let mut upload = store.begin(&work.key, &labels())?;
    for piece in body.chunks(100_000) {
        upload
            .write_all(piece)
            .map_err(|e| Failure::from_io(&e, "write"))?;
    }
    let written = Written {
        size_bytes: u64::try_from(bytes).unwrap(),
        sha256: Sha256::digest(body).into(),
    };
    upload.finish(written, &Metadata::new())
}

fn fetch(store: &dyn Store, key: &str, bytes: usize) -> Result<(), Failure> {
    let (object, mut stream) = store.get(key)?;
    assert_eq!(object.metadata["start-time"], LABEL);
    let mut got = Vec::new();
    let read = stream.read_to_end(&mut got);
    read.map_err(|e| Failure::from_io(&e, key))?;
    assert!(got == body(bytes), "{key}: wrong bytes are no success");
    Ok(())
}

fn listed() -> Vec<String> {
    (0..5).map(|n| format!("stock/list/{n}")).collect()
}

/// What is only read.
pub fn stock(store: &dyn Store) {
    let put = |key: &str, body: &[u8]| {
        store
            .put(key, Body::Bytes(body), &labels(), Put::Create)
            .unwrap();
    };
    put("stock/small", body(SMALL_BYTES));
    put("stock/large", body(LARGE_BYTES));
    listed().iter().for_each(|key| put(key, b"something"));
}

pub fn stock_is_whole(store: &dyn Store) {
    assert!(read(store, "stock/small") == body(SMALL_BYTES));
    assert!(read(store, "stock/large") == body(LARGE_BYTES));
    assert_eq!(list_all(store, "stock/list"), listed());
}

/// A store by two ways, and folders of one's own there.
pub struct Trial {
    proxy: Proxy,
    plain: Box<dyn Store>,
    broken: Box<dyn Store>,
    name: String,
    next: AtomicUsize,
}

impl Trial {
    pub fn of(kind: &Kind, name: &str) -> Trial {
        let proxy = Proxy::to(kind.port);
        let through = (kind.through)(&kind.storage, proxy.port);
        let trial = Trial {
            plain: open(&kind.storage),
            broken: open(&through),
            proxy,
            name: name.to_owned(),
            next: AtomicUsize::new(0),
        };
        // What only the first request of a store needs.
        trial.broken.look("stock/small").unwrap();
        trial
    }

    fn work(&self) -> Work {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let folder = format!("{}-{number}", self.name);
        let key = format!("{folder}/b/object");
        Work { folder, key }
    }

    /// As it has to be before the call.
    fn prepare(&self, call: &Call, work: &Work) {
        let other: &[u8] = b"something else";
        let put = |key: &str| {
            let put = self
                .plain
                .put(key, Body::Bytes(other), &Metadata::new(), Put::Create);
            put.unwrap();
        };
        match call.name {
            "replace" | "delete" | "delete many" => put(&work.key),
            "sweep" => {
                let mut upload = self.plain.begin(&work.key, &labels()).unwrap();
                // Only more than a part is sent.
                upload.write_all(body(LARGE_BYTES)).unwrap();
                // As after a crash.
                std::mem::forget(upload);
            }
            _ => {}
        }
    }

    /// How many requests the call takes, without a fault.
    pub fn requests(&self, call: &Call) -> usize {
        let work = self.work();
        self.prepare(call, &work);
        self.proxy.clear();
        (call.run)(&*self.broken, &work).unwrap();
        self.settled(call, &work);
        self.proxy.seen().len()
    }

    pub fn run(&self, job: &Job, kind: &Kind) {
        let Job {
            call,
            request,
            fault,
            end,
        } = job;
        if unnoticed(job, kind) {
            return;
        }
        let work = self.work();
        self.prepare(call, &work);
        self.proxy.clear();
        self.proxy.plan(Pick::Nth(*request), fault.clone());
        let outcome = (call.run)(&*self.broken, &work);
        let seen = self.proxy.seen();
        let lines = seen
            .iter()
            .map(|s| format!("{} {} {}", s.method, s.path, s.status));
        let lines: Vec<String> = lines.collect();
        let what = format!(
            "{}, request {request}, {fault:?}: {outcome:?}\n{}",
            call.name,
            lines.join("\n")
        );
        assert_eq!(self.proxy.pending(), 0, "{what}");
        if let Err(failure) = &outcome {
            let good = match end {
                End::PassesOrConflict
                    if kind.appends && call.is_large() && failure.class == Class::Corrupt =>
                {
                    true
                }
                End::Passes => false,
                End::PassesOrConflict => call.bytes.is_some() && failure.class == Class::Conflict,
                End::Fails(class) => failure.class == *class,
                End::Told => true,
            };
            assert!(good, "{what}");
        }
        if outcome.is_err() {
            let again = (call.run)(&*self.plain, &work);
            let there = again.as_ref().is_err_and(|f| f.class == Class::Conflict);
            assert!(again.is_ok() || there, "{what}\nthen {again:?}");
        }
        self.settled(call, &work);
    }

    /// As it has to be afterwards: once, whole, and nothing else.
    fn settled(&self, call: &Call, work: &Work) {
        let store = &*self.plain;
        let there = list_all(store, &work.folder);
        match call.bytes {
            Some(bytes) => {
                assert_eq!(there, [work.key.as_str()], "{}", call.name);
                assert!(read(store, &work.key) == body(bytes), "{}", call.name);
                let found = store.look(&work.key).unwrap().unwrap();
                assert_eq!(found.metadata["start-time"], LABEL, "{}", call.name);
                store.delete(&work.key).unwrap();
            }
            None => assert_eq!(there, [""; 0], "{}", call.name),
        }
        // What an upload that failed could not take back is taken back later, and then is gone; in
        // a listing of Swift not at once.
        wait_until("nothing to sweep", PATIENCE, || {
            store.sweep(&work.folder, i64::MAX).unwrap() == 0
        });
    }
}

/// Bits that nobody can see changed: without TLS, where no sum is noted. Whoever reads objects has
/// sums of its own.
fn unnoticed(job: &Job, kind: &Kind) -> bool {
    let noted = match job.call.name {
        "list" | "sweep" => false,
        "look" => !kind.has_words,
        "get" => kind.notes_small && !(kind.has_words && job.request == 0),
        "get large" => kind.notes_large && !(kind.has_words && job.request == 0),
        _ => true,
    };
    job.fault == Fault::FlippedResponse && !noted
}
