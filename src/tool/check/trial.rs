//! The store, tried with a small object of our own: put, looked at, read, listed, refused where it
//! exists already, and deleted.
//!
//! It lies in `PREFIX/check/`, which nobody reads, PGHoard included. What a check that was killed
//! left there is swept up by the next one.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use machine::Class;

use super::finding::Finding;
use crate::clock;
use crate::config::{Site, Storage};
use crate::durable;
use crate::failure::{Failure, Outcome};
use crate::publish::text;
use crate::store::choose::{self, Missing};
use crate::store::{Body, Metadata, Put, Store};
use crate::work::Place;

/// Of this site alone, below its prefix.
const FOLDER: &str = "check";
const CONTENT: &[u8] = b"an object of 'pghoard check', which takes it away again\n";
const OTHER: &[u8] = b"what must not replace it\n";

/// An object of a check that runs now is never as old.
const LEFT_OVER_MS: i64 = 3_600_000;

/// Less room than this fills within the hour.
const ROOM_BYTES: u64 = 256 << 20;

/// The site's store, opened.
pub fn open(site: &Site, may_write: bool, findings: &mut Vec<Finding>) -> Option<Place> {
    let opened = site.storage().and_then(|storage| {
        let folders = Folders::before(storage, &site.prefix);
        Ok((choose::store(storage, Missing::Refuse)?, folders))
    });
    let (store, folders) = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            let cure = match &site.object_storage {
                Some(Storage::Local { .. }) => {
                    "make the folder, and let it belong to the daemon's user"
                }
                Some(_) | None => "correct what is wrong in object_storage",
            };
            findings.push(Finding::failed("store", &failure, cure));
            return None;
        }
    };
    findings.push(Finding::ok("store", store.name()));
    findings.extend(room(site));
    let store: Arc<dyn Store> = Arc::from(store);
    if may_write {
        match random() {
            Ok(name) => {
                let folder = format!("{}/{FOLDER}", site.prefix);
                findings.extend(run(store.as_ref(), &folder, &name));
                folders.tidy();
            }
            Err(failure) => findings.push(Finding::failed("store_write", &failure, "try again")),
        }
    }
    // A keyring that cannot be parsed is a point of its own.
    let keys = site.keyring().unwrap_or_default();
    Some(Place::to_read(&site.name, &site.prefix, store, keys))
}

fn room(site: &Site) -> Option<Finding> {
    let Some(Storage::Local { directory, .. }) = &site.object_storage else {
        return None;
    };
    let free = durable::free_bytes(directory).ok()?;
    let told = format!("{} are free", text::size(free));
    Some(match free < ROOM_BYTES {
        true => Finding::fail("store_room", told, "make room there"),
        false => Finding::ok("store_room", told),
    })
}

fn random() -> Outcome<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::new(Class::Internal, format!("no randomness: {e}")))?;
    Ok(hex::encode(bytes))
}

/// A local store has real folders: those that our object needed go with it.
struct Folders {
    ours: Option<PathBuf>,
    /// The prefix's own ones, if they were not there.
    new: Vec<PathBuf>,
}

impl Folders {
    fn before(storage: &Storage, prefix: &str) -> Folders {
        let Storage::Local {
            directory,
            prefix: root,
        } = storage
        else {
            return Folders {
                ours: None,
                new: Vec::new(),
            };
        };
        let root = directory.join(root.trim_matches('/'));
        let base = root.join(prefix);
        let ancestors = base.ancestors().take_while(|path| **path != root);
        let new = ancestors.filter(|path| !path.exists());
        Folders {
            new: new.map(PathBuf::from).collect(),
            ours: Some(base.join(FOLDER)),
        }
    }

    /// Only empty folders go.
    fn tidy(&self) {
        for folder in self.ours.iter().chain(&self.new) {
            let _in_use = fs::remove_dir(folder);
        }
    }
}

/// The object is gone afterwards, whatever failed.
struct Trial<'a> {
    store: &'a dyn Store,
    folder: &'a str,
    key: String,
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        // Nothing to delete succeeds; what fails here failed as a point already.
        let _told = self.store.delete(&self.key);
    }
}

type Step = (
    &'static str,
    &'static str,
    fn(&Trial<'_>) -> Outcome<()>,
    &'static str,
);

/// Point, what is done, how, and what to do where it fails.
const STEPS: &[Step] = &[
    (
        "store_write",
        "put",
        put,
        "let the daemon's user write there, and make room",
    ),
    (
        "store_read",
        "read back",
        read,
        "let the daemon's user read there",
    ),
    (
        "store_list",
        "listed",
        list,
        "let the daemon's user list there",
    ),
    (
        "store_create",
        "not replaced",
        refuse,
        "use a store that can create an object only where none is: nothing may be replaced",
    ),
    (
        "store_delete",
        "deleted",
        delete,
        "let the daemon's user delete there",
    ),
];

fn run(store: &dyn Store, folder: &str, name: &str) -> Vec<Finding> {
    let trial = Trial {
        store,
        folder,
        key: format!("{folder}/{name}"),
    };
    let mut findings = Vec::new();
    for (point, what, step, cure) in STEPS {
        let began = Instant::now();
        match step(&trial) {
            Ok(()) => {
                let told = format!("{what} in {} ms", began.elapsed().as_millis());
                findings.push(Finding::ok(point, told));
            }
            Err(failure) => {
                findings.push(Finding::failed(point, &failure, cure));
                // Without an object there is nothing to try.
                if *point == "store_write" {
                    break;
                }
            }
        }
    }
    findings
}

fn put(trial: &Trial<'_>) -> Outcome<()> {
    let body = Body::Bytes(CONTENT);
    trial
        .store
        .put(&trial.key, body, &Metadata::new(), Put::Create)
}

fn read(trial: &Trial<'_>) -> Outcome<()> {
    let wrong = |what: &str| Err(Failure::new(Class::Corrupt, what).about(&trial.key));
    let Some(object) = trial.store.look(&trial.key)? else {
        return wrong("just put, and not there");
    };
    let size = u64::try_from(CONTENT.len()).unwrap_or_default();
    let (_, mut body) = trial.store.get(&trial.key)?;
    let mut content = Vec::new();
    body.read_to_end(&mut content)
        .map_err(|e| Failure::from_io(&e, &trial.key))?;
    match object.entry.size_bytes == size && content == CONTENT {
        true => Ok(()),
        false => wrong("read back as something else"),
    }
}

fn list(trial: &Trial<'_>) -> Outcome<()> {
    let (mut found, mut old) = (false, Vec::new());
    let now = i64::try_from(clock::now().0).unwrap_or(i64::MAX);
    trial.store.list(trial.folder, &mut |entry| {
        found |= entry.key == trial.key;
        if now.saturating_sub(entry.modified_ms) > LEFT_OVER_MS {
            old.push(entry.key);
        }
        Ok(())
    })?;
    for key in old {
        trial.store.delete(&key)?;
    }
    match found {
        true => Ok(()),
        false => Err(Failure::new(Class::Corrupt, "just put, and not listed").about(&trial.key)),
    }
}

fn refuse(trial: &Trial<'_>) -> Outcome<()> {
    let body = Body::Bytes(OTHER);
    match trial
        .store
        .put(&trial.key, body, &Metadata::new(), Put::Create)
    {
        Err(failure) if failure.class == Class::Conflict => read(trial),
        Err(failure) => Err(failure),
        Ok(()) => Err(Failure::new(
            Class::Unsupported,
            "the store replaced an object",
        )),
    }
}

fn delete(trial: &Trial<'_>) -> Outcome<()> {
    trial.store.delete(&trial.key)?;
    match trial.store.look(&trial.key)? {
        None => Ok(()),
        Some(_) => Err(Failure::new(Class::Corrupt, "deleted, and still there").about(&trial.key)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::store::local::Local;
    use crate::store::{Entry, Object};

    /// A store with one flaw.
    struct Flawed {
        inner: Local,
        flaw: &'static str,
        deletes: Mutex<u32>,
    }

    impl Flawed {
        fn has(&self, flaw: &str) -> Outcome<()> {
            match self.flaw == flaw {
                true => Err(Failure::new(Class::Denied, flaw)),
                false => Ok(()),
            }
        }
    }

    impl Store for Flawed {
        fn name(&self) -> String {
            self.inner.name()
        }

        fn put(&self, key: &str, body: Body<'_>, metadata: &Metadata, put: Put) -> Outcome<()> {
            self.has("put")?;
            let mode = if self.flaw == "replaces" {
                Put::Replace
            } else {
                put
            };
            self.inner.put(key, body, metadata, mode)
        }

        fn get(&self, key: &str) -> Outcome<(Object, Box<dyn Read + Send>)> {
            self.has("get")?;
            self.inner.get(key)
        }

        fn look(&self, key: &str) -> Outcome<Option<Object>> {
            self.inner.look(key)
        }

        fn list(&self, folder: &str, visit: &mut dyn FnMut(Entry) -> Outcome<()>) -> Outcome<()> {
            match self.flaw {
                "lists nothing" => Ok(()),
                _ => self.inner.list(folder, visit),
            }
        }

        fn delete(&self, key: &str) -> Outcome<()> {
            let mut deletes = self.deletes.lock().unwrap();
            *deletes += 1;
            match self.flaw == "delete" && *deletes == 1 {
                true => self.has("delete"),
                false => self.inner.delete(key),
            }
        }
    }

    #[test]
    fn each_flaw_is_its_own_point_and_nothing_is_left() {
        for (flaw, failed) in [
            ("none", &[][..]),
            ("put", &["store_write"]),
            ("get", &["store_read", "store_create"]),
            ("lists nothing", &["store_list"]),
            ("replaces", &["store_create"]),
            ("delete", &["store_delete"]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let inner = Local::open(folder.path()).unwrap();
            let store = Flawed {
                inner,
                flaw,
                deletes: Mutex::new(0),
            };
            let findings = run(&store, "a/b/check", "x");
            let points = findings.iter().filter(|finding| finding.cure.is_some());
            let points: Vec<&str> = points.map(|finding| finding.point).collect();
            assert_eq!(points, failed, "{flaw}");
            let mut left = 0;
            store
                .inner
                .list("", &mut |_| {
                    left += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!(left, 0, "{flaw}");
        }
    }

    #[test]
    fn folders_that_were_not_there_go_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::Local {
            directory: folder.path().to_owned(),
            prefix: "root/".to_owned(),
        };
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("a")).unwrap();
        let folders = Folders::before(&storage, "a/b");
        let store = Local::open(&root).unwrap();
        run(&store, "a/b/check", "x");
        assert!(root.join("a/b/check").exists());
        folders.tidy();
        assert!(root.join("a").exists() && !root.join("a/b").exists());
    }
}
