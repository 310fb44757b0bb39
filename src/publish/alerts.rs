//! The folder of alert files, made equal to what the machine wants.
//!
//! PGHoard's own names are created with their condition and stay until a person removes them;
//! ours go when their condition goes. A file that a person removes while its condition lasts is an
//! acknowledgement: it is told as an event and not written again until something new befalls.
//!
//! Budget: one look-up a name and call; a file is written when its text changes, with two fsyncs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use machine::rule::alerts::{Alert, OURS};
use machine::{Event, Millis};

use crate::durable;
use crate::failure::{Failure, Outcome};
use crate::publish::text::iso;

#[derive(Debug)]
pub struct Alerts {
    directory: PathBuf,
    shown: BTreeMap<&'static str, Shown>,
}

/// What became of an alert whose condition lasts.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    /// The file has this text, about occurrences up to this moment.
    File { latest: Millis, text: String },
    /// A person removed it; the event that says so may not be folded yet.
    Noted { latest: Millis },
}

impl Alerts {
    pub fn new(directory: &Path) -> Alerts {
        Alerts {
            directory: directory.to_owned(),
            shown: BTreeMap::new(),
        }
    }

    /// Answers the acknowledgements found, for the log. After a failure the next call mends it.
    pub fn publish(&mut self, wanted: &BTreeMap<&'static str, Alert>) -> Outcome<Vec<Event>> {
        let mut noted = Vec::new();
        for (name, alert) in wanted {
            noted.extend(self.show(name, alert)?);
        }
        self.shown.retain(|name, _| wanted.contains_key(name));
        for name in OURS {
            let path = self.directory.join(name);
            if !wanted.contains_key(name) && is_file(&path)? {
                durable::remove(&path)?;
            }
        }
        Ok(noted)
    }

    fn show(&mut self, name: &'static str, alert: &Alert) -> Outcome<Option<Event>> {
        let path = self.directory.join(name);
        if alert.acknowledged {
            self.shown.remove(name);
            // A person said so otherwise than by removing it.
            if is_file(&path)? {
                durable::remove(&path)?;
            }
            return Ok(None);
        }
        let (latest, text) = (alert.latest(), render(alert));
        match self.shown.get(name) {
            Some(Shown::Noted { latest: noted }) if *noted >= latest => return Ok(None),
            Some(Shown::File { latest: told, .. }) if *told >= latest && !is_file(&path)? => {
                self.shown.insert(name, Shown::Noted { latest });
                let alert = name.to_owned();
                return Ok(Some(Event::AlertAcknowledged { alert }));
            }
            Some(Shown::File { text: told, .. }) if *told == text && is_file(&path)? => {}
            Some(_) | None => {
                durable::make_folders(&self.directory)?;
                if fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
                    durable::write(&path, text.as_bytes())?;
                }
            }
        }
        self.shown.insert(name, Shown::File { latest, text });
        Ok(None)
    }
}

fn is_file(path: &Path) -> Outcome<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(found.is_file()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Failure::io(&e, path.display())),
    }
}

/// One paragraph an entry.
fn render(alert: &Alert) -> String {
    let mut text = String::new();
    for entry in &alert.entries {
        let blank = if text.is_empty() { "" } else { "\n" };
        let (what, since, todo) = (&entry.what, iso(entry.since), entry.todo);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{blank}{what}\nsince {since}\nto do: {todo}");
    }
    text
}

#[cfg(test)]
mod tests {
    use machine::rule::alerts::Entry;

    use super::*;

    fn alert(since: u64, what: &str) -> Alert {
        let entry = Entry {
            since: Millis(since),
            what: what.to_owned(),
            todo: "mend it",
        };
        Alert {
            entries: vec![entry],
            acknowledged: false,
        }
    }

    fn wanted(alerts: &[(&'static str, Alert)]) -> BTreeMap<&'static str, Alert> {
        alerts.iter().cloned().collect()
    }

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn the_folder_follows_the_state_and_pghoards_files_stay() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("alerts");
        let mut alerts = Alerts::new(&folder);
        assert_eq!(alerts.publish(&wanted(&[])).unwrap(), []);
        assert!(!folder.exists());
        let both = wanted(&[
            ("authentication_error", alert(1_000, "a")),
            ("wal_hole", alert(1_000, "b")),
        ]);
        assert_eq!(alerts.publish(&both).unwrap(), []);
        assert_eq!(names(&folder), ["authentication_error", "wal_hole"]);
        assert_eq!(
            fs::read_to_string(folder.join("wal_hole")).unwrap(),
            "b\nsince 1970-01-01T00:00:01Z\nto do: mend it\n"
        );
        assert_eq!(alerts.publish(&wanted(&[])).unwrap(), []);
        assert_eq!(names(&folder), ["authentication_error"]);
        // Its condition is over: removing the file is no acknowledgement.
        fs::remove_file(folder.join("authentication_error")).unwrap();
        assert_eq!(alerts.publish(&wanted(&[])).unwrap(), []);
        assert_eq!(alerts.publish(&both).unwrap(), []);
        assert_eq!(names(&folder), ["authentication_error", "wal_hole"]);
        // What an earlier run left of ours goes as well.
        assert_eq!(Alerts::new(&folder).publish(&wanted(&[])).unwrap(), []);
        assert_eq!(names(&folder), ["authentication_error"]);
    }

    #[test]
    fn a_file_removed_by_a_person_is_an_acknowledgement_of_that_occurrence() {
        for name in ["wal_hole", "configuration_error"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            let mut alerts = Alerts::new(folder.path());
            let mut first = wanted(&[(name, alert(5, "one"))]);
            assert_eq!(alerts.publish(&first).unwrap(), []);
            assert!(fs::read_to_string(&path).unwrap().starts_with("one\n"));
            first.insert(name, alert(5, "one again"));
            assert_eq!(alerts.publish(&first).unwrap(), []);
            assert!(fs::read_to_string(&path).unwrap().starts_with("one again"));

            fs::remove_file(&path).unwrap();
            let noted = Event::AlertAcknowledged { alert: name.into() };
            assert_eq!(alerts.publish(&first).unwrap(), [noted]);
            assert_eq!(alerts.publish(&first).unwrap(), []);
            // Folded, also by a later run.
            first.get_mut(name).unwrap().acknowledged = true;
            assert_eq!(alerts.publish(&first).unwrap(), []);
            fs::write(&path, "one again").unwrap();
            assert_eq!(Alerts::new(folder.path()).publish(&first).unwrap(), []);
            assert!(!path.exists());

            let newer = wanted(&[(name, alert(6, "two"))]);
            assert_eq!(alerts.publish(&newer).unwrap(), []);
            assert!(fs::read_to_string(&path).unwrap().starts_with("two\n"));
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_one_clear_failure() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let mut alerts = Alerts::new(&root.path().join("file/alerts"));
        assert!(
            alerts
                .publish(&wanted(&[("wal_hole", alert(1, "a"))]))
                .is_err()
        );
    }
}
