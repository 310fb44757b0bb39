//! `pghoard systemd-unit`: a unit file for systemd that names this program and the configuration.
//!
//! | code | when |
//! |---|---|
//! | 0 | printed |
//! | 1 | not so, and why |
//! | 2 | wrong command line |

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use machine::Class;

use crate::failure::{Failure, Outcome};

#[derive(Parser)]
#[command(name = "pghoard systemd-unit", version, infer_long_args = true)]
/// Print a unit file for systemd, to be kept as /etc/systemd/system/pghoard.service
struct Flags {
    /// User the daemon runs as; its group has the same name
    #[arg(long, default_value = "postgres")]
    user: String,
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", hide_env_values = true)]
    config: PathBuf,
}

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Flags = match super::super::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    let program = env::current_exe().and_then(fs::canonicalize);
    let program = program.map_err(|e| Failure::io(&e, "the path of this program"));
    let config = std::path::absolute(&flags.config);
    let config = config.map_err(|e| Failure::io(&e, flags.config.display()));
    let text = program.and_then(|program| unit(&program, &config?, &flags.user));
    match text.and_then(|text| super::super::print(&text)) {
        Ok(()) => 0,
        Err(failure) => {
            super::super::warn(format_args!("pghoard systemd-unit: {failure}"));
            1
        }
    }
}

/// systemd.service(5). `notify` with an `ExecReload` of its own, because `notify-reload` is younger
/// (253) than the systemd of many. A stop asks for more time itself, as long as it needs.
fn unit(program: &Path, config: &Path, user: &str) -> Outcome<String> {
    let (program, config) = (word(program)?, word(config)?);
    if user.is_empty() || user.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(Failure::new(Class::Config, "expected --user to be a name"));
    }
    Ok(format!(
        "[Unit]\n\
         Description=PostgreSQL backup daemon\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         Type=notify\n\
         User={user}\n\
         Group={user}\n\
         ExecStart={program} --config {config}\n\
         ExecReload=/bin/kill -HUP $MAINPID\n\
         Restart=always\n\
         RestartSec=5\n\
         WatchdogSec=120\n\
         NoNewPrivileges=yes\n\
         ProtectSystem=full\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    ))
}

/// As one word of a command line (systemd.service(5), "Command lines").
fn word(path: &Path) -> Outcome<String> {
    let text = path
        .to_str()
        .filter(|text| !text.contains(char::is_control));
    let text = text.ok_or_else(|| {
        let message = format!("{path:?}: expected a path of printable characters");
        Failure::new(Class::Config, message)
    })?;
    let text = text.replace('%', "%%").replace('$', "$$");
    let plain = |c: char| c.is_alphanumeric() || "/._-+@:,%$".contains(c);
    Ok(match text.chars().all(plain) {
        true => text,
        false => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_names_the_program_the_file_and_the_user() {
        let program = Path::new("/usr/bin/pghoard");
        let made = unit(program, Path::new("/etc/pghoard.json"), "backup").unwrap();
        for line in [
            "Type=notify",
            "User=backup",
            "ExecStart=/usr/bin/pghoard --config /etc/pghoard.json",
            "ExecReload=/bin/kill -HUP $MAINPID",
        ] {
            assert!(made.lines().any(|told| told == line), "{made}");
        }
    }

    #[test]
    fn a_path_is_one_word() {
        for (path, expect) in [
            ("/etc/a-b_c.json", "/etc/a-b_c.json"),
            ("/etc/my backups.json", "\"/etc/my backups.json\""),
            ("/etc/100%$x", "/etc/100%%$$x"),
            ("/etc/\"q\"", "\"/etc/\\\"q\\\"\""),
        ] {
            assert_eq!(word(Path::new(path)).unwrap(), expect);
        }
        assert!(word(Path::new("/a\nExecStartPre=/b")).is_err());
        assert!(unit(Path::new("/p"), Path::new("/c"), "a\nb").is_err());
    }
}
