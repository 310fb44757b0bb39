//! `pghoard`: the daemon. PGHoard's flags, messages and exit codes.
//!
//! | code | when |
//! |---|---|
//! | 0 | stopped by a signal, everything at rest |
//! | 1 | not started, or ended by an error |
//! | 2 | wrong command line or unknown command |

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

use crate::config::LogLevel;
use crate::daemon::Daemon;
use crate::daemon::reload::Source;
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
    let ended = serve(Source {
        path,
        log_level: level,
    });
    log::logger().flush();
    match ended {
        Ok(()) => 0,
        Err(failure) => {
            super::warn(format_args!("pghoard: {failure}"));
            1
        }
    }
}

fn serve(source: Source) -> Outcome<()> {
    let about = format!("failed to load config {}", source.path.display());
    let read = source.read().map_err(|failure| failure.about(about))?;
    source.log_by(&read.config);
    Daemon::start(source, read)?.run()
}

#[cfg(test)]
mod tests {
    use super::*;

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
