//! Whether this machine's clock is synchronised, as whoever sets it says in a file: on the
//! appliance its time client, `{"synchronised": true, "why": "..."}`.
//!
//! A file that is missing or cannot be read says nothing, and then nothing may expire by age.
//! Where the environment names no file, nobody watches the clock and nothing changes.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{env, fs};

use machine::Millis;
use serde::Deserialize;

/// Names the file.
pub const VARIABLE: &str = "PGHOARD_CLOCK_FILE";
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Of a reason; more is nobody's to read.
const WHY_CHARS_MAX: usize = 300;

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
        Synchrony::at(env::var_os(VARIABLE).map(PathBuf::from))
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
            Ok(Said { why, .. }) => {
                let plain = why.chars().filter(|c| !c.is_control());
                Some(plain.take(WHY_CHARS_MAX).collect())
            }
            Err(error) => Some(format!("{}: {error}", path.display())),
        }
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
}
