//! Where things are, and who sits here: PID 1 says so in the environment, tests say otherwise.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use pghoard::config::{self, Config};
use pghoard::publish::stats;
use pghoard::{Failure, Outcome};
use serde_json::Value;

use crate::control::SOCKET;
use crate::settings::EFFECTIVE;

#[derive(Clone, Debug)]
pub struct Places {
    /// The data partition.
    pub data: PathBuf,
    pub control: PathBuf,
    /// What the daemon and the tools are given: the settings with their defaults.
    pub config: PathBuf,
    /// `ttyS0`
    pub tty: String,
}

impl Places {
    pub fn from_env() -> Places {
        let path = |name, default: &str| {
            let found = env::var_os(name).filter(|value| !value.is_empty());
            found.map_or_else(|| PathBuf::from(default), PathBuf::from)
        };
        Places {
            data: path("PGHOARD_DATA", "/data"),
            control: path("PGHOARD_CONTROL", SOCKET),
            config: path("PGHOARD_CONFIG", EFFECTIVE),
            tty: env::var("PGHOARD_CONSOLE_TTY").unwrap_or_else(|_| "console".to_owned()),
        }
    }

    /// As events and the history of settings name who did something.
    pub fn who(&self) -> String {
        format!("console {}", self.tty)
    }

    /// In memory, and root's: beside the control socket.
    pub fn tries(&self) -> PathBuf {
        let folder = self.control.parent().unwrap_or(Path::new("/"));
        folder.join(format!("console-{}.json", self.tty))
    }

    pub fn unsaid(&self) -> PathBuf {
        self.data.join("console/unsaid.jsonl")
    }

    /// The settings as they were given, if there are any yet.
    pub fn settings(&self) -> Outcome<Option<Value>> {
        let path = self.data.join("settings/pghoard.json");
        match fs::metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Failure::io(&e, path.display())),
            Ok(_) => config::load_json(&path).map(Some),
        }
    }

    pub fn config(&self) -> Outcome<Config> {
        config::load(&self.config).map(|(config, _)| config)
    }

    /// The state file's document, if there is one.
    pub fn state(&self) -> Option<Value> {
        let config = self.config().ok()?;
        let bytes = fs::read(&config.json_state_file_path).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// The part of it that is the daemon's own.
    pub fn facts(&self) -> Option<Value> {
        self.state()?.get_mut(stats::OWN).map(Value::take)
    }
}
