//! The command line of `pghoard_restore`, and what it means.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use machine::Class;

use crate::failure::{Failure, Outcome};
use crate::restore::choose::{self, Goal, Immediate, Wish};
use crate::restore::recovery::{Action, Recovery, Role};
use crate::restore::target::{Existing, Request};
use crate::restore::{AfterSuccess, Preserve};
use crate::tool::Secured;

#[derive(Parser)]
#[command(name = "pghoard_restore", infer_long_args = true)]
/// Restore PostgreSQL from backups in an object store
pub struct Flags {
    /// Enable debug logging
    #[arg(short = 'D', long = "debug")]
    pub _debug: bool,
    /// File to write the status of a download to, as JSON
    #[arg(long, value_name = "FILE")]
    pub status_output_file: Option<PathBuf>,
    /// Show the version
    #[arg(long)]
    pub version: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Subcommand)]
pub enum Command {
    /// List available basebackups by asking the daemon
    ListBasebackupsHttp(ListHttp),
    /// List available basebackups in the object store
    ListBasebackups(List),
    /// Download a basebackup and make it ready to start
    GetBasebackup(Box<Get>),
}

#[derive(Args)]
pub struct ListHttp {
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    #[arg(long, default_value_t = 16000)]
    pub port: u16,
    #[arg(long)]
    pub username: Option<String>,
    #[arg(long)]
    pub password: Option<String>,
    #[command(flatten)]
    pub secured: Secured,
    /// Show metadata too
    #[arg(short, long)]
    pub verbose: bool,
    /// Accepted for PGHoard's sake
    #[arg(long = "config", env = "PGHOARD_CONFIG")]
    pub _config: Option<OsString>,
    #[arg(long)]
    pub site: String,
}

#[derive(Args)]
pub struct Place {
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// Site, if the configuration has more than one
    #[arg(long)]
    pub site: Option<String>,
}

#[derive(Args)]
pub struct List {
    /// Show metadata too
    #[arg(short, long)]
    pub verbose: bool,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Args)]
pub struct Get {
    /// Full name of a basebackup, or latest
    #[arg(long, default_value = "latest")]
    pub basebackup: String,
    /// Connection string of the primary, for a standby that then streams
    #[arg(long, default_value = "")]
    pub primary_conninfo: String,
    /// New PGDATA
    #[arg(long)]
    pub target_dir: PathBuf,
    /// Empty the target directory first
    #[arg(long)]
    pub overwrite: bool,
    /// New directory of a tablespace; may be repeated
    #[arg(long, value_name = "NAME=DIRECTORY")]
    pub tablespace_dir: Vec<String>,
    /// Directory for tablespaces whose own is missing
    #[arg(long, value_name = "DIR")]
    pub tablespace_base_dir: Option<PathBuf>,
    /// Command to run when recovery ends
    #[arg(long, value_name = "COMMAND")]
    pub recovery_end_command: Option<String>,
    /// What to do at the recovery target
    #[arg(long, value_enum)]
    pub recovery_target_action: Option<AtTarget>,
    /// Recover to a named restore point
    #[arg(long, value_name = "RESTOREPOINT")]
    pub recovery_target_name: Option<String>,
    /// Recover to a time, UTC unless it says otherwise
    #[arg(long, value_name = "ISO_TIMESTAMP")]
    pub recovery_target_time: Option<String>,
    /// Recover to a transaction
    #[arg(long, value_name = "XID")]
    pub recovery_target_xid: Option<String>,
    /// Recover to a position in the WAL, as 16/B374D848
    #[arg(long, value_name = "LSN")]
    pub recovery_target_lsn: Option<String>,
    /// Recover only until the backup is consistent
    #[arg(long)]
    pub recovery_target_immediate: bool,
    /// Timeline to follow: latest, current or a number
    #[arg(long, default_value = "latest", value_name = "TIMELINE")]
    pub recovery_target_timeline: String,
    /// Become a primary at the end of the WAL, instead of a standby
    #[arg(long, alias = "restore-to-master")]
    pub restore_to_primary: bool,
    /// Ask daemons to keep the basebackup until then
    #[arg(long, value_name = "ISO_TIMESTAMP")]
    pub preserve_until: Option<String>,
    /// Withdraw that after success (default)
    #[arg(long, overrides_with = "no_cancel_preserve_on_success")]
    pub cancel_preserve_on_success: bool,
    #[arg(long, action = ArgAction::SetTrue)]
    pub no_cancel_preserve_on_success: bool,
    /// Program that the restored server fetches WAL with
    #[arg(long, value_name = "PROGRAM")]
    pub pghoard_postgres_command_bin: Option<String>,
    /// Accepted for PGHoard's sake
    #[arg(short = 'v', long = "verbose")]
    pub _verbose: bool,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum AtTarget {
    Pause,
    Promote,
    Shutdown,
}

impl Get {
    pub fn goal(&self) -> Outcome<Goal> {
        let wish = Wish {
            name: self.recovery_target_name.as_deref(),
            xid: self.recovery_target_xid.as_deref(),
            time: self.recovery_target_time.as_deref(),
            lsn: self.recovery_target_lsn.as_deref(),
            immediate: self.recovery_target_immediate.then_some(Immediate),
        };
        wish.goal()
    }

    pub fn preserve(&self) -> Outcome<Option<Preserve>> {
        let Some(text) = &self.preserve_until else {
            return Ok(None);
        };
        let until = choose::time(text).ok_or_else(|| {
            refused(format!(
                "preserve_until '{text}': expected an ISO 8601 time"
            ))
        })?;
        let after = match self.no_cancel_preserve_on_success {
            true => AfterSuccess::Keep,
            false => AfterSuccess::Cancel,
        };
        Ok(Some(Preserve { until, after }))
    }

    pub fn request(&self) -> Request {
        Request {
            target_dir: self.target_dir.clone(),
            existing: match self.overwrite {
                true => Existing::Overwrite,
                false => Existing::Refuse,
            },
            tablespace_dirs: self.tablespace_dir.clone(),
            tablespace_base_dir: self.tablespace_base_dir.clone(),
        }
    }

    pub fn recovery(&self, site: &str, goal: Goal) -> Outcome<Recovery> {
        let path = &self.place.config;
        let config = std::path::absolute(path).map_err(|e| Failure::io(&e, path.display()))?;
        let config = config
            .to_str()
            .ok_or_else(|| refused(format!("{}: expected UTF-8", config.display())))?;
        let mut words = match &self.pghoard_postgres_command_bin {
            Some(program) => vec![program.clone()],
            None => postgres_command(),
        };
        let rest = [
            "--mode", "restore", "--config", config, "--site", site, "--output", "%p", "--xlog",
            "%f",
        ];
        words.extend(rest.map(str::to_owned));
        Ok(Recovery {
            restore_command: words,
            role: match self.restore_to_primary {
                true => Role::Primary,
                false => Role::Standby,
            },
            goal,
            action: self.recovery_target_action.map(|action| match action {
                AtTarget::Pause => Action::Pause,
                AtTarget::Promote => Action::Promote,
                AtTarget::Shutdown => Action::Shutdown,
            }),
            timeline: self.recovery_target_timeline.clone(),
            primary_conninfo: self.primary_conninfo.clone(),
            end_command: self.recovery_end_command.clone(),
        })
    }
}

/// The program PostgreSQL shall run, by its full path, because the server's PATH is another: the
/// one beside us or in our PATH, else ourselves under that name.
fn postgres_command() -> Vec<String> {
    const NAME: &str = "pghoard_postgres_command";
    let own = env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = beside.into_iter().chain(env::split_paths(&path));
    let found = folders
        .map(|folder| folder.join(NAME))
        .find(|path| path.is_file());
    let text = |path: PathBuf| path.to_str().map(str::to_owned);
    match (found.and_then(text), own.and_then(text)) {
        (Some(found), _) => vec![found],
        (None, Some(own)) => vec![own, "postgres_command".to_owned()],
        (None, None) => vec![NAME.to_owned()],
    }
}

fn refused(message: String) -> Failure {
    Failure::new(Class::Config, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(words: &[&str]) -> Get {
        let start = [
            "pghoard_restore",
            "get-basebackup",
            "--config",
            "/c",
            "--target-dir",
            "/t",
        ];
        let flags = Flags::try_parse_from(start.iter().chain(words)).unwrap();
        match flags.command {
            Some(Command::GetBasebackup(get)) => *get,
            _ => panic!("expected get-basebackup"),
        }
    }

    #[test]
    fn one_recovery_target_at_most() {
        for (words, expected) in [
            (&[][..], Ok(Goal::End)),
            (
                &["--recovery-target-name", "x"],
                Ok(Goal::Name("x".to_owned())),
            ),
            (&["--recovery-target-xid=7"], Ok(Goal::Xid("7".to_owned()))),
            (&["--recovery-target-immediate"], Ok(Goal::Immediate)),
            (
                &["--recovery-target-lsn", "1/2"],
                Ok(Goal::Lsn("1/2".parse().unwrap())),
            ),
            (
                &["--recovery-target-lsn", "12"],
                Err("recovery_target_lsn '12': expected two hex numbers with a /"),
            ),
            (
                &["--recovery-target-time", "13am"],
                Err("recovery_target_time '13am': expected an ISO 8601 time"),
            ),
            (
                &["--recovery-target-immediate", "--recovery-target-xid=7"],
                Err(
                    "Specify at most one of recovery_target_name, recovery_target_time, \
                     recovery_target_xid, recovery_target_lsn or recovery_target_immediate",
                ),
            ),
        ] {
            let goal = get(words).goal().map_err(|failure| failure.message);
            assert_eq!(goal, expected.map_err(str::to_owned));
        }
    }

    /// Each option of PGHoard's, its value apart or behind an equals sign, shortened or not.
    const KNOWN: &[&str] = &[
        "list-basebackups-http --host h --port 1 --username u --password p --verbose",
        "list-basebackups-http --host=h --port=1 --user u --pass p -v",
        "list-basebackups -v",
        "list-basebackups --verb",
        "get-basebackup --target-dir /t --basebackup b --primary-conninfo c --overwrite",
        "get-basebackup --target-dir=/t --base=b --primary=c --over -v",
        "get-basebackup --target /t --tablespace-dir a=/a --tablespace-dir b=/b",
        "get-basebackup --target /t --tablespace-base-dir /b --recovery-end-command c",
        "get-basebackup --target /t --recovery-target-action pause --restore-to-primary",
        "get-basebackup --target /t --recovery-target-action promote --verbose",
        "get-basebackup --target /t --recovery-target-action shutdown --restore-to-master",
        "get-basebackup --target /t --recovery-target-name n --preserve-until 2030-01-01",
        "get-basebackup --target /t --recovery-target-time t --cancel-preserve-on-success",
        "get-basebackup --target /t --recovery-target-xid 7 --no-cancel-preserve-on-success",
        "get-basebackup --target /t --pghoard-postgres-command-bin /bin/x",
    ];
    const REFUSED: &[&str] = &[
        "list-basebackups-http --config /c",
        "list-basebackups --config /c --host h",
        "get-basebackup --config /c",
        "get-basebackup --config /c --target-dir /t --recovery-target-action sleep",
        "get-basebackup --config /c --target-dir /t --recovery-target x",
        "get-basebackup --config /c --target-dir /t --status-output-file /s",
    ];

    #[test]
    fn every_flag_of_pghoard_is_known() {
        let parse = |words: String| {
            let words = format!("pghoard_restore {words}");
            let parsed = Flags::try_parse_from(words.split(' '));
            parsed.err().map(|refused| refused.exit_code())
        };
        for words in KNOWN {
            let all = format!("-D --status-output-file /s {words} --config /c --site s");
            assert_eq!(parse(all), None, "{words}");
        }
        for words in REFUSED {
            assert_eq!(parse((*words).to_owned()), Some(2), "{words}");
        }
    }

    #[test]
    fn the_restored_server_needs_only_the_configuration() {
        let get = get(&[
            "--pghoard-postgres-command-bin",
            "/bin/x",
            "--restore-to-master",
        ]);
        let recovery = get.recovery("main", Goal::End).unwrap();
        assert_eq!(
            recovery.restore_command.join(" "),
            "/bin/x --mode restore --config /c --site main --output %p --xlog %f"
        );
        assert_eq!(recovery.role, Role::Primary);
        let command = postgres_command();
        assert!(command[0].starts_with('/'), "{command:?}");
    }

    #[test]
    fn preservation_is_withdrawn_unless_told_otherwise() {
        let until = ["--preserve-until", "2030-01-01"];
        let after = |words: &[&str]| get(words).preserve().unwrap().map(|p| p.after);
        assert_eq!(after(&[]), None);
        assert_eq!(after(&until), Some(AfterSuccess::Cancel));
        let keep = [until[0], until[1], "--no-cancel-preserve-on-success"];
        assert_eq!(after(&keep), Some(AfterSuccess::Keep));
        assert!(get(&["--preserve-until", "soon"]).preserve().is_err());
    }
}
