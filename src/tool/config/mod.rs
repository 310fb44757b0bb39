//! `pghoard config`: the configuration in force with its defaults filled in, as JSON, and what each
//! key means. Secrets are never shown.
//!
//! | code | when |
//! |---|---|
//! | 0 | shown |
//! | 2 | wrong command line or configuration, or no such key |

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser;
use machine::Class;
use serde_json::Value;

use crate::config;
use crate::failure::{Failure, Outcome};
use crate::publish::text::pretty;

mod explain;
mod shown;

#[derive(Parser)]
#[command(name = "pghoard config", version, infer_long_args = true)]
/// Show the configuration in force, or what its keys mean
struct Flags {
    /// What every key means, or this one: its name, its beginning or its path
    /// (compression.level); with a configuration also its value there
    #[arg(long, value_name = "KEY", num_args = 0..=1, default_missing_value = "")]
    explain: Option<String>,
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Configuration file, where --config is not given
    config_file: Option<PathBuf>,
}

const SHOWN: i32 = 0;
const USAGE: i32 = 2;

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Flags = match super::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    match told(flags).and_then(|text| super::print(&text)) {
        Ok(()) => SHOWN,
        Err(failure) => {
            super::warn(format_args!("pghoard config: {failure}"));
            USAGE
        }
    }
}

fn told(flags: Flags) -> Outcome<String> {
    let path = flags.config.or(flags.config_file);
    let path = path.filter(|path| !path.as_os_str().is_empty());
    let document = path.as_deref().map(read).transpose()?;
    match (flags.explain.as_deref(), document) {
        (Some(""), _) => Ok(explain::all()),
        (Some(key), document) => explain::one(key, document.as_ref()),
        (None, Some(document)) => pretty(&document),
        (None, None) => Err(Failure::new(
            Class::Config,
            "config file path must be given with --config or via env PGHOARD_CONFIG",
        )
        .hint("--explain tells of every key without one")),
    }
}

/// The configuration in force; what in it has no effect is told on the way.
fn read(path: &Path) -> Outcome<Value> {
    let raw = config::load_json(path)?;
    let (config, warnings) = config::parse(&raw)?;
    for warning in warnings {
        super::warn(format_args!("warning: {}: {warning}", path.display()));
    }
    Ok(shown::document(&config, &raw))
}

/// Whether the file holds what is nobody else's business.
pub(super) fn holds_secrets(config: &config::Config, raw: &Value) -> bool {
    shown::document(config, raw)
        .to_string()
        .contains(shown::HIDDEN)
}

/// The document as it stands, every secret hidden: for who shows or hands it on.
pub fn without_secrets(raw: &Value) -> Value {
    shown::blanked("", raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_or_a_configuration_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.json");
        std::fs::write(&path, r#"{"http_port": 1, "backup_sites": {"a": {}}}"#).unwrap();
        let path = path.to_str().unwrap();
        for (words, code) in [
            (&["--explain"][..], SHOWN),
            (&["--explain", "http_port"], SHOWN),
            (&["--explain", "http_prot"], USAGE),
            (&["--config", path], SHOWN),
            (&[path], SHOWN),
            (&["--explain", "http_port", "--config", path], SHOWN),
            (&["--config", "/nowhere/c.json"], USAGE),
            (&["--config", ""], USAGE),
            (&["--unknown"], USAGE),
            (&["--help"], SHOWN),
        ] {
            let args = ["pghoard config"].iter().chain(words).map(OsString::from);
            assert_eq!(run(args), code, "{words:?}");
        }
    }
}
