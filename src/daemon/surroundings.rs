//! What this machine says of itself in files that the environment names; on the appliance PID 1
//! does.
//!
//! - Whether its clock is synchronised: `{"synchronised": true, "why": "..."}`. A file that is
//!   missing or cannot be read says nothing, and then nothing may expire by age.
//! - What is wrong with it: `[{"since": 1795348800000, "what": "..."}]`, times in ms since 1970. A
//!   file that cannot be read is wrong itself.
//!
//! Where the environment names no file, nobody watches and nothing changes.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{env, fs};

use machine::Millis;
use serde::Deserialize;

const CLOCK: &str = "PGHOARD_CLOCK_FILE";
const MACHINE: &str = "PGHOARD_MACHINE_FILE";
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Of a reason; more is nobody's to read.
const WHY_CHARS_MAX: usize = 300;
const TROUBLES_MAX: usize = 20;

#[derive(Debug, Default)]
pub struct Synchrony {
    path: Option<PathBuf>,
    looked: Option<Instant>,
    /// Since when it is not, and why.
    lost: Option<(Millis, String)>,
}

#[derive(Deserialize)]
struct Said {
    synchronised: bool,
    #[serde(default)]
    why: String,
}

impl Synchrony {
    pub fn from_environment() -> Synchrony {
        Synchrony::at(env::var_os(CLOCK).map(PathBuf::from))
    }

    fn at(path: Option<PathBuf>) -> Synchrony {
        Synchrony {
            path,
            ..Synchrony::default()
        }
    }

    /// Since when the clock is not synchronised, and why; asked at most once a second.
    pub fn look(&mut self, now: Millis) -> Option<(Millis, String)> {
        if self.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.looked = Some(Instant::now());
            self.judge(now);
        }
        self.lost.clone()
    }

    fn judge(&mut self, now: Millis) {
        let why = self.why();
        match (&why, &self.lost) {
            (Some(why), None) => log::warn!(
                "the clock is not synchronised: {why}; nothing expires by age until it is"
            ),
            (None, Some(_)) => log::info!("the clock is synchronised"),
            (Some(_), Some(_)) | (None, None) => {}
        }
        let since = self.lost.as_ref().map_or(now, |(since, _)| *since);
        self.lost = why.map(|why| (since, why));
    }

    fn why(&self) -> Option<String> {
        let path = self.path.as_ref()?;
        let said = fs::read(path).map_err(|error| error.to_string());
        let said = said.and_then(|text| {
            serde_json::from_slice(&text).map_err(|_| "it says nothing of a clock".to_owned())
        });
        match said {
            Ok(Said {
                synchronised: true, ..
            }) => None,
            Ok(Said { why, .. }) if why.trim().is_empty() => Some("no reason is given".to_owned()),
            Ok(Said { why, .. }) => Some(plain(&why)),
            Err(error) => Some(format!("{}: {error}", path.display())),
        }
    }
}

fn plain(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control());
    plain.take(WHY_CHARS_MAX).collect()
}

/// What is wrong with the machine, and since when.
#[derive(Debug, Default)]
pub struct Troubles {
    path: Option<PathBuf>,
    looked: Option<Instant>,
    known: Vec<(Millis, String)>,
    /// Since when the file cannot be read.
    unread: Option<Millis>,
}

#[derive(Deserialize)]
struct Trouble {
    since: Millis,
    what: String,
}

impl Troubles {
    pub fn from_environment() -> Troubles {
        Troubles::at(env::var_os(MACHINE).map(PathBuf::from))
    }

    fn at(path: Option<PathBuf>) -> Troubles {
        Troubles {
            path,
            ..Troubles::default()
        }
    }

    /// Asked at most once a second.
    pub fn look(&mut self, now: Millis) -> &[(Millis, String)] {
        if self.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.looked = Some(Instant::now());
            self.read(now);
        }
        &self.known
    }

    fn read(&mut self, now: Millis) {
        let Some(path) = &self.path else { return };
        let read = fs::read(path).map_err(|error| error.to_string());
        let read = read.and_then(|text| {
            serde_json::from_slice::<Vec<Trouble>>(&text)
                .map_err(|_| "it is not a list of what is wrong".to_owned())
        });
        self.known = match read {
            Ok(troubles) => {
                self.unread = None;
                let all = troubles.into_iter().take(TROUBLES_MAX);
                all.map(|one| (one.since, plain(&one.what))).collect()
            }
            Err(error) => {
                let since = *self.unread.get_or_insert(now);
                vec![(since, format!("{}: {error}", path.display()))]
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s76_a_file_that_does_not_say_so_is_a_doubt_since_it_began() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clock.json");
        let mut synchrony = Synchrony::at(Some(path.clone()));
        for (at, text, expect) in [
            (1, None, Some((1, "No such file"))),
            (2, Some("{"), Some((1, "it says nothing of a clock"))),
            (
                3,
                Some("{\"synchronised\": false, \"why\": \"no server answers\"}"),
                Some((1, "no server answers")),
            ),
            (
                4,
                Some("{\"synchronised\": false}"),
                Some((1, "no reason is given")),
            ),
            (5, Some("{\"synchronised\": true, \"why\": \"\"}"), None),
            (
                6,
                Some("{\"synchronised\": 1}"),
                Some((6, "it says nothing of a clock")),
            ),
        ] {
            if let Some(text) = text {
                fs::write(&path, text).unwrap();
            }
            synchrony.judge(Millis(at));
            let lost = synchrony.lost.clone();
            match expect {
                None => assert_eq!(lost, None),
                Some((since, why)) => {
                    let (told, text) = lost.unwrap();
                    assert_eq!(told.0, since);
                    assert!(text.contains(why), "{text}");
                }
            }
        }
        let mut nobody = Synchrony::at(None);
        assert_eq!(nobody.look(Millis(1)), None);
    }

    #[test]
    fn what_is_wrong_with_the_machine_is_read_and_a_file_that_is_not_there_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machine.json");
        let mut troubles = Troubles::at(Some(path.clone()));
        for (at, text, expect) in [
            (1, None, Some((1, "No such file"))),
            (2, Some("{}"), Some((1, "not a list"))),
            (3, Some("[]"), None),
            (
                4,
                Some("[{\"since\": 2, \"what\": \"no\\u0007 disk\"}]"),
                Some((2, "no disk")),
            ),
            (5, Some("["), Some((5, "not a list"))),
        ] {
            if let Some(text) = text {
                fs::write(&path, text).unwrap();
            }
            troubles.read(Millis(at));
            let known: Vec<_> = troubles.known.iter().collect();
            match expect {
                None => assert!(known.is_empty(), "{known:?}"),
                Some((since, what)) => {
                    assert_eq!(known.len(), 1);
                    assert_eq!(known[0].0, Millis(since));
                    assert!(known[0].1.contains(what), "{known:?}");
                }
            }
        }
        assert!(Troubles::at(None).look(Millis(1)).is_empty());
    }
}
