//! What is wrong with the machine itself: told to the daemon in a file, which makes an alert of it.
//!
//! The form of the file is the daemon's (`daemon::surroundings`). Without a data partition no
//! daemon runs, and whoever watches sees that it does not answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use machine::Millis;
use pghoard::{clock, durable};
use serde_json::json;

use super::Host;
use crate::settings;
use crate::settings::store::{DAEMON, give};

pub const FILE: &str = "/run/pghoard/machine.json";
/// A daemon that ended by itself is spoken of for so long.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);

/// Each that stands, and since when.
#[derive(Default)]
pub struct Troubles {
    known: BTreeMap<String, Millis>,
    written: bool,
}

impl Troubles {
    /// Every few seconds; the file is written anew where something came or went.
    pub fn look(&mut self, host: &Host) {
        if self.update(host.troubles(), clock::now()) || !self.written {
            self.written = self.write().inspect_err(|e| log::warn!("{e}")).is_ok();
        }
    }

    fn update(&mut self, found: Vec<String>, now: Millis) -> bool {
        let since = |what: &String| self.known.get(what).copied().unwrap_or(now);
        let found: BTreeMap<String, Millis> = found
            .into_iter()
            .map(|what| {
                let since = since(&what);
                (what, since)
            })
            .collect();
        let changed = found != self.known;
        self.known = found;
        changed
    }

    fn write(&self) -> pghoard::Outcome<()> {
        let list = self.known.iter();
        let list: Vec<_> = list
            .map(|(what, since)| json!({ "since": since, "what": what }))
            .collect();
        let path = Path::new(FILE);
        durable::write_own(path, &settings::pretty(&json!(list)))?;
        give(path, Some(DAEMON))
    }
}

impl Host {
    fn troubles(&self) -> Vec<String> {
        let mut all = Vec::new();
        if let Some(problem) = &self.inforce().problem {
            all.push(format!(
                "settings were not taken, the last good ones stay in force: {problem}"
            ));
        }
        if let Some(broken) = self.disk_broken() {
            all.push(format!("the data partition: {broken}"));
        }
        all.extend(self.trial.failed());
        let daemon = self.supervisor.told();
        if let Some((at, text)) = daemon.failed
            && at.elapsed() < REMEMBERED
        {
            let times = daemon.restarts.saturating_sub(1);
            all.push(format!(
                "the daemon ended by itself: {text}; it was started again, {times} times since the \
                 machine was"
            ));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_keeps_the_time_at_which_it_began() {
        let mut troubles = Troubles::default();
        let list = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect::<Vec<_>>();
        assert!(!troubles.update(list(&[]), Millis(1)));
        assert!(troubles.update(list(&["disk"]), Millis(2)));
        assert!(!troubles.update(list(&["disk"]), Millis(3)));
        assert!(troubles.update(list(&["disk", "slot"]), Millis(4)));
        let known: Vec<_> = troubles.known.values().copied().collect();
        assert_eq!(known, [Millis(2), Millis(4)]);
        assert!(troubles.update(list(&["slot"]), Millis(5)));
        assert_eq!(troubles.known["slot"], Millis(4));
    }
}
