//! Settings on the data partition: the ones in force, and every one before.
//!
//! Only what was checked is ever written here, so these are the last good ones. All of it is
//! readable by the daemon's user alone.

use std::fs;
use std::io;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};

use machine::Class;
use pghoard::{Failure, Outcome, durable};
use serde::{Deserialize, Serialize};

use super::{Settings, digest};

/// Older ones are let go; each is some kilobytes.
const KEPT_MAX: usize = 200;
/// Of the daemon, as in the image's etc/passwd.
pub const DAEMON: u32 = 100;

pub struct Store {
    folder: PathBuf,
    owner: Option<u32>,
}

/// One that was in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    pub name: String,
    pub at_ms: u64,
    pub digest: String,
    pub who: String,
}

impl Store {
    pub fn open(folder: &Path) -> Outcome<Store> {
        let owner = nix::unistd::geteuid().is_root().then_some(DAEMON);
        let store = Store {
            folder: folder.to_owned(),
            owner,
        };
        for folder in [folder.to_owned(), store.history_folder(), store.files()] {
            durable::make_folders(&folder)?;
            store.give(&folder)?;
        }
        Ok(store)
    }

    fn current_path(&self) -> PathBuf {
        self.folder.join("pghoard.json")
    }

    fn history_folder(&self) -> PathBuf {
        self.folder.join("history")
    }

    /// What settings refer to by path: certificates, key files.
    pub fn files(&self) -> PathBuf {
        self.folder.join("files")
    }

    pub fn current(&self) -> Outcome<Option<Settings>> {
        let path = self.current_path();
        match fs::read(&path) {
            Ok(bytes) => Settings::read(&bytes, &path).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Failure::io(&e, path.display())),
        }
    }

    /// The newest of the past that this program can read.
    pub fn last_good(&self) -> Option<Settings> {
        let history = self.history();
        history.iter().find_map(|past| self.past(&past.name).ok())
    }

    /// From now on these. The history comes first: what is in force is always in it.
    pub fn adopt(&self, settings: &Settings, who: &str) -> Outcome<Past> {
        let text = settings.text();
        let digest = digest(&text);
        let at_ms = pghoard::clock::now().0;
        let name = format!("{at_ms}-{}", digest.get(..12).unwrap_or_default());
        let past = Past {
            name,
            at_ms,
            digest,
            who: who.to_owned(),
        };
        let told = serde_json::to_vec(&past)
            .map_err(|e| Failure::new(Class::Internal, format!("settings: {e}")))?;
        let folder = self.history_folder();
        self.write(&folder.join(format!("{}.json", past.name)), &text)?;
        self.write(&folder.join(format!("{}.who", past.name)), &told)?;
        self.write(&self.current_path(), &text)?;
        self.forget_the_oldest();
        Ok(past)
    }

    /// Newest first.
    pub fn history(&self) -> Vec<Past> {
        let entries = fs::read_dir(self.history_folder()).into_iter().flatten();
        let mut all: Vec<Past> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let told = path.extension().is_some_and(|end| end == "who");
                serde_json::from_slice(&fs::read(path).ok().filter(|_| told)?).ok()
            })
            .collect();
        all.sort_by(|a, b| b.name.cmp(&a.name));
        all
    }

    pub fn past(&self, name: &str) -> Outcome<Settings> {
        let known = self.history().into_iter().any(|past| past.name == name);
        if !known {
            let message = format!("settings '{name}' are not known");
            return Err(
                Failure::new(Class::NotFound, message).hint("'config history' lists the names")
            );
        }
        let path = self.history_folder().join(format!("{name}.json"));
        let bytes = fs::read(&path).map_err(|e| Failure::io(&e, path.display()))?;
        Settings::read(&bytes, &path)
    }

    fn forget_the_oldest(&self) {
        for past in self.history().iter().skip(KEPT_MAX) {
            for end in ["json", "who"] {
                let path = self.history_folder().join(format!("{}.{end}", past.name));
                if let Err(failure) = durable::remove(&path) {
                    log::warn!("{failure}");
                }
            }
        }
    }

    /// What was last taken from a source, so that it is not taken again over later changes.
    pub fn taken(&self, source: &str) -> Option<String> {
        fs::read_to_string(self.folder.join(format!("taken-{source}"))).ok()
    }

    pub fn note_taken(&self, source: &str, digest: &str) -> Outcome<()> {
        self.write(
            &self.folder.join(format!("taken-{source}")),
            digest.as_bytes(),
        )
    }

    pub fn write(&self, path: &Path, bytes: &[u8]) -> Outcome<()> {
        durable::write_own(path, bytes)?;
        self.give(path)
    }

    fn give(&self, path: &Path) -> Outcome<()> {
        give(path, self.owner)
    }
}

/// To the daemon's user, where we may.
pub fn give(path: &Path, owner: Option<u32>) -> Outcome<()> {
    match owner {
        Some(owner) => {
            lchown(path, Some(owner), Some(owner)).map_err(|e| Failure::io(&e, path.display()))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn named(name: &str) -> Settings {
        Settings::parse(json!({ "appliance": { "hostname": name } })).unwrap()
    }

    #[test]
    fn the_last_good_ones_are_kept_and_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("settings")).unwrap();
        assert!(store.current().unwrap().is_none());
        let first = store.adopt(&named("one"), "drive").unwrap();
        let second = store.adopt(&named("two"), "console ttyS0").unwrap();
        let current = store.current().unwrap().unwrap();
        assert_eq!(digest(&current.text()), second.digest);
        let history = store.history();
        assert_eq!(history, [second, first.clone()]);
        let back = store.past(&first.name).unwrap();
        assert_eq!(back.appliance.hostname.as_deref(), Some("one"));
        let unknown = store.past("../pghoard").unwrap_err().to_string();
        assert!(unknown.contains("not known"), "{unknown}");
        fs::write(store.current_path(), b"{ half").unwrap();
        assert!(store.current().is_err());
        let last = store.last_good().unwrap();
        assert_eq!(last.appliance.hostname.as_deref(), Some("two"));
        let mode = fs::metadata(store.current_path())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_source_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.taken("drive"), None);
        store.note_taken("drive", "abc").unwrap();
        assert_eq!(store.taken("drive").as_deref(), Some("abc"));
    }
}
