//! The two commands that look after an archive: what is too much, and what is missing.

use std::ffi::OsString;
use std::path::Path;

use machine::Class;

use super::warn;
use crate::config::{self, Config};
use crate::failure::{Failure, Outcome};

pub mod cleanup;
mod orphans;
pub mod sync;

const DONE: i32 = 0;
const FAILED: i32 = 1;

/// What a command that did not succeed says, and its code.
fn failed(failure: &Failure) -> i32 {
    warn(format_args!("FATAL: {failure}"));
    FAILED
}

/// The configuration, in PGHoard's words where there is none.
fn load(path: Option<&OsString>) -> Result<Config, i32> {
    let path = path.filter(|path| !path.is_empty()).map(Path::new);
    let Some(path) = path else {
        warn("pghoard: config file path must be given with --config or via env PGHOARD_CONFIG");
        return Err(FAILED);
    };
    let (config, warnings) = config::load(path).map_err(|failure| failed(&named(failure)))?;
    for warning in warnings {
        warn(format_args!("warning: {}: {warning}", path.display()));
    }
    Ok(config)
}

/// PGHoard's name for what is wrong with a configuration.
fn named(failure: Failure) -> Failure {
    failure.about("InvalidConfigurationError")
}

fn site<'a>(config: &'a Config, name: Option<&str>) -> Outcome<&'a config::Site> {
    config.site(name).map_err(named)
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Class::Config, message)
}
