//! `pghoard`: the daemon. PGHoard's flags, messages and exit codes.
//!
//! | code | when |
//! |---|---|
//! | 0 | stopped by a signal, everything at rest |
//! | 1 | not started, or ended by an error |
//! | 2 | wrong command line or unknown command |

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;

use crate::config::{self, LogLevel};
use crate::daemon::Daemon;
use crate::failure::Outcome;
use crate::report::{self, Form};

/// PostgreSQL backup daemon.
#[derive(Parser)]
#[command(
    name = "pghoard",
    version,
    disable_version_flag = true,
    infer_long_args = true
)]
struct Arguments {
    /// Log in detail
    #[arg(short = 'D', long)]
    debug: bool,
    /// Show the version
    #[arg(long)]
    version: bool,
    /// Log lines without time and place
    #[arg(short, long)]
    short_log: bool,
    /// Configuration file
    // Not a path to clap, which would refuse an empty PGHOARD_CONFIG: it means none.
    #[arg(long, env = "PGHOARD_CONFIG", hide_env_values = true)]
    config: Option<OsString>,
    /// Configuration file, where --config is not given
    config_file: Option<PathBuf>,
}

pub fn run(arguments: impl IntoIterator<Item = OsString>) -> i32 {
    let arguments: Arguments = match super::flags(arguments) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    if arguments.version {
        super::say(super::VERSION);
        return 0;
    }
    let named = arguments.config.filter(|path| !path.is_empty());
    let Some(path) = named.map(PathBuf::from).or(arguments.config_file) else {
        super::warn(format_args!(
            "pghoard: config file path must be given with --config or via env PGHOARD_CONFIG"
        ));
        return 1;
    };
    if !path.exists() {
        super::warn(format_args!("pghoard: '{}' doesn't exist", path.display()));
        return 1;
    }
    let (form, level) = (
        match arguments.short_log {
            true => Form::Short,
            false => Form::Full,
        },
        match arguments.debug {
            true => LogLevel::Debug,
            false => LogLevel::Info,
        },
    );
    report::start(form, level);
    match serve(&path, level) {
        Ok(()) => 0,
        Err(failure) => {
            super::warn(format_args!("pghoard: {failure}"));
            1
        }
    }
}

fn serve(path: &std::path::Path, level: LogLevel) -> Outcome<()> {
    let (config, warnings) = config::load(path)
        .map_err(|failure| failure.about(format!("failed to load config {}", path.display())))?;
    report::set_level(stronger(level, config.log_level));
    for warning in warnings {
        log::warn!("{}: {}", warning.path, warning.message);
    }
    Daemon::start(&Arc::new(config))?.run()
}

/// Who asked for --debug looks right now: it outranks the configuration.
fn stronger(asked: LogLevel, configured: LogLevel) -> LogLevel {
    match asked {
        LogLevel::Debug => asked,
        LogLevel::Info | LogLevel::Warning | LogLevel::Error | LogLevel::Critical => configured,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PGHoard's configuration takes it back.
    #[test]
    fn differs_debug_outranks_the_configuration() {
        for (asked, configured, expect) in [
            (LogLevel::Debug, LogLevel::Error, LogLevel::Debug),
            (LogLevel::Info, LogLevel::Error, LogLevel::Error),
            (LogLevel::Info, LogLevel::Debug, LogLevel::Debug),
        ] {
            assert_eq!(stronger(asked, configured), expect);
        }
    }

    #[test]
    fn the_configuration_may_be_a_plain_word_and_an_empty_one_is_none() {
        for (words, code) in [
            (&["--config", ""][..], 1),
            (&["-D", "-s", "/nowhere/c.json"], 1),
            (&["--debug", "--short-log", "--conf", "/nowhere/c.json"], 1),
            (&["--config", "", "/nowhere/c.json"], 1),
            (&["--version"], 0),
            (&["a.json", "b.json"], 2),
            (&["--unknown"], 2),
        ] {
            let args = ["pghoard"].iter().chain(words).map(OsString::from);
            assert_eq!(run(args), code, "{words:?}");
        }
    }
}
