//! `pghoard_restore`: lists basebackups and brings one back.
//!
//! Flags, texts and exit codes are PGHoard's: 0, 1 for `FATAL: ...` on stdout, 2 for a wrong
//! command line. New: `--recovery-target-lsn`, `--recovery-target-immediate` and
//! `--recovery-target-timeline`; the restored server fetches its WAL with this configuration
//! straight from the store, so no daemon has to run beside it.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use machine::{Class, SegmentSize};
use serde::Deserialize;

use super::http::Daemon;
use crate::config::{self, Config, Secret};
use crate::failure::{Failure, Outcome};
use crate::restore::choose::{self, Backup, Goal};
use crate::restore::list::{self, Detail, Row};
use crate::restore::recovery::{Action, Recovery, Role};
use crate::restore::target::{Existing, Request};
use crate::restore::{self, AfterSuccess, Notes, Opened, Order, Preserve};
use crate::store::Metadata;

#[derive(Parser)]
#[command(name = "pghoard_restore", infer_long_args = true)]
/// Restore PostgreSQL from backups in an object store
struct Flags {
    /// Enable debug logging
    #[arg(short = 'D', long = "debug")]
    _debug: bool,
    /// File to write the status of a download to, as JSON
    #[arg(long, value_name = "FILE")]
    status_output_file: Option<PathBuf>,
    /// Show the version
    #[arg(long)]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// List available basebackups by asking the daemon
    ListBasebackupsHttp(ListHttp),
    /// List available basebackups in the object store
    ListBasebackups(List),
    /// Download a basebackup and make it ready to start
    GetBasebackup(Box<Get>),
}

#[derive(Args)]
struct ListHttp {
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    #[arg(long, default_value_t = 16000)]
    port: u16,
    #[arg(long)]
    username: Option<String>,
    #[arg(long)]
    password: Option<String>,
    /// Show metadata too
    #[arg(short, long)]
    verbose: bool,
    /// Accepted for PGHoard's sake
    #[arg(long = "config", env = "PGHOARD_CONFIG")]
    _config: Option<OsString>,
    #[arg(long)]
    site: String,
}

#[derive(Args)]
struct Place {
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Site, if the configuration has more than one
    #[arg(long)]
    site: Option<String>,
}

#[derive(Args)]
struct List {
    /// Show metadata too
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
struct Get {
    /// Full name of a basebackup, or latest
    #[arg(long, default_value = "latest")]
    basebackup: String,
    /// Connection string of the primary, for a standby that then streams
    #[arg(long, default_value = "")]
    primary_conninfo: String,
    /// New PGDATA
    #[arg(long)]
    target_dir: PathBuf,
    /// Empty the target directory first
    #[arg(long)]
    overwrite: bool,
    /// New directory of a tablespace; may be repeated
    #[arg(long, value_name = "NAME=DIRECTORY")]
    tablespace_dir: Vec<String>,
    /// Directory for tablespaces whose own is missing
    #[arg(long, value_name = "DIR")]
    tablespace_base_dir: Option<PathBuf>,
    /// Command to run when recovery ends
    #[arg(long, value_name = "COMMAND")]
    recovery_end_command: Option<String>,
    /// What to do at the recovery target
    #[arg(long, value_enum)]
    recovery_target_action: Option<AtTarget>,
    /// Recover to a named restore point
    #[arg(long, value_name = "RESTOREPOINT")]
    recovery_target_name: Option<String>,
    /// Recover to a time, UTC unless it says otherwise
    #[arg(long, value_name = "ISO_TIMESTAMP")]
    recovery_target_time: Option<String>,
    /// Recover to a transaction
    #[arg(long, value_name = "XID")]
    recovery_target_xid: Option<String>,
    /// Recover to a position in the WAL, as 16/B374D848
    #[arg(long, value_name = "LSN")]
    recovery_target_lsn: Option<String>,
    /// Recover only until the backup is consistent
    #[arg(long)]
    recovery_target_immediate: bool,
    /// Timeline to follow: latest, current or a number
    #[arg(long, default_value = "latest", value_name = "TIMELINE")]
    recovery_target_timeline: String,
    /// Become a primary at the end of the WAL, instead of a standby
    #[arg(long, alias = "restore-to-master")]
    restore_to_primary: bool,
    /// Ask daemons to keep the basebackup until then
    #[arg(long, value_name = "ISO_TIMESTAMP")]
    preserve_until: Option<String>,
    /// Withdraw that after success (default)
    #[arg(long, overrides_with = "no_cancel_preserve_on_success")]
    cancel_preserve_on_success: bool,
    #[arg(long, action = ArgAction::SetTrue)]
    no_cancel_preserve_on_success: bool,
    /// Program that the restored server fetches WAL with
    #[arg(long, value_name = "PROGRAM")]
    pghoard_postgres_command_bin: Option<String>,
    /// Accepted for PGHoard's sake
    #[arg(short = 'v', long = "verbose")]
    _verbose: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, ValueEnum)]
enum AtTarget {
    Pause,
    Promote,
    Shutdown,
}

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags = match Flags::try_parse_from(args) {
        Ok(flags) => flags,
        Err(refused) => {
            return match refused.print() {
                Ok(()) => refused.exit_code(),
                Err(_) => 1,
            };
        }
    };
    if flags.version {
        println!("{}", env!("CARGO_PKG_VERSION"));
        return 0;
    }
    let outcome = match &flags.command {
        None => {
            print!("{}", Flags::command().render_help());
            return 1;
        }
        Some(Command::ListBasebackupsHttp(list)) => list_http(list),
        Some(Command::ListBasebackups(list)) => list_store(list),
        Some(Command::GetBasebackup(get)) => get_basebackup(get, flags.status_output_file),
    };
    match outcome {
        Ok(()) => 0,
        Err((class, failure)) => {
            println!("FATAL: {class}: {failure}");
            1
        }
    }
}

/// PGHoard's name for the kind of error, and the error.
type Fatal = (&'static str, Failure);

fn fatal(failure: Failure) -> Fatal {
    ("RestoreError", failure)
}

fn misconfigured(failure: Failure) -> Fatal {
    ("InvalidConfigurationError", failure)
}

fn refused(message: String) -> Failure {
    Failure::new(Class::Config, message)
}

fn load(path: &Path) -> Result<Config, Fatal> {
    let (config, warnings) = config::load(path).map_err(misconfigured)?;
    for warning in warnings {
        eprintln!("warning: {}: {warning}", path.display());
    }
    Ok(config)
}

fn detail(verbose: bool) -> Detail {
    match verbose {
        true => Detail::Verbose,
        false => Detail::Plain,
    }
}

/// What the daemon says about each basebackup.
#[derive(Deserialize)]
struct Listing {
    basebackups: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    size: u64,
    metadata: Metadata,
}

fn list_http(list: &ListHttp) -> Result<(), Fatal> {
    let password = list.password.clone().map(Secret::new);
    let daemon = Daemon {
        host: list.host.clone(),
        port: list.port,
        login: list.username.clone().zip(password),
    };
    let reply = daemon.ask("GET", &format!("/{}/basebackup", list.site), &[]);
    let reply = reply.map_err(fatal)?;
    if reply.status != 200 {
        let message = format!("the daemon answered with HTTP status {}", reply.status);
        return Err(fatal(Failure::new(Class::Unsupported, message)));
    }
    let listing: Listing = serde_json::from_slice(&reply.body).map_err(|e| {
        let message = format!("the daemon's list of basebackups: {e}");
        fatal(Failure::new(Class::Corrupt, message))
    })?;
    let rows = listing.basebackups.iter().map(|listed| Row {
        name: &listed.name,
        size_bytes: listed.size,
        metadata: &listed.metadata,
    });
    let caption = format!("Available '{}' basebackups:", list.site);
    print!("{}", list::render(&caption, rows, detail(list.verbose)));
    Ok(())
}

fn list_store(list: &List) -> Result<(), Fatal> {
    let config = load(&list.place.config)?;
    let site = config
        .site(list.place.site.as_deref())
        .map_err(misconfigured)?;
    let opened = open(&config, site).map_err(fatal)?;
    let backups = backups(&opened).map_err(fatal)?;
    let caption = format!("Available '{}' basebackups:", site.name);
    let rows = backups.iter().map(Row::from);
    print!("{}", list::render(&caption, rows, detail(list.verbose)));
    Ok(())
}

/// The site and the ones it was moved from.
fn open<'a>(config: &'a Config, site: &'a config::Site) -> Outcome<Vec<Opened<'a>>> {
    config
        .with_older(site)
        .into_iter()
        .map(Opened::new)
        .collect()
}

fn backups<'a>(opened: &[Opened<'a>]) -> Outcome<Vec<Backup<'a>>> {
    let mut all = Vec::new();
    for opened in opened {
        all.extend(choose::backups(opened.site, opened.store.as_ref())?);
    }
    Ok(all)
}

fn get_basebackup(get: &Get, status_file: Option<PathBuf>) -> Result<(), Fatal> {
    let config = load(&get.place.config)?;
    let site = config
        .site(get.place.site.as_deref())
        .map_err(misconfigured)?;
    let goal = get.goal().map_err(fatal)?;
    let preserve = get.preserve().map_err(fatal)?;
    let opened = open(&config, site).map_err(fatal)?;
    let all = backups(&opened).map_err(fatal)?;
    let (backup, opened) = get.choose(&all, &opened, &goal).map_err(fatal)?;
    println!("\nSelecting '{}' for restore", backup.key());

    let order = Order {
        recovery: get.recovery(&backup.site.name, goal).map_err(fatal)?,
        target: get.request(),
        preserve,
        threads: config.restore_threads,
        status_file,
    };
    let notes = restore::run(backup, &opened.source(), &order).map_err(fatal)?;
    tell(&notes);
    let target = get.target_dir.display();
    println!("Basebackup restoration complete.");
    println!("You can start PostgreSQL by running pg_ctl -D {target} start");
    println!("On systemd based systems you can run systemctl start postgresql");
    println!("On SYSV Init based systems you can run /etc/init.d/postgresql start");
    Ok(())
}

fn tell(notes: &Notes) {
    for link in &notes.strays {
        eprintln!(
            "warning: symbolic link '{}' to '{}' was not made, as it leads out of the target; \
             hint: make it by hand if it is wanted",
            link.at.display(),
            link.to.display()
        );
    }
    if let Some(failure) = &notes.unpreserved {
        eprintln!("warning: the basebackup's preservation request: {failure}");
    }
}

impl Get {
    fn choose<'b, 'a>(
        &self,
        all: &'b [Backup<'a>],
        opened: &'b [Opened<'a>],
        goal: &Goal,
    ) -> Outcome<(&'b Backup<'a>, &'b Opened<'a>)> {
        let holder = |backup: &Backup<'_>| {
            let name = &backup.site.name;
            opened.iter().find(|opened| opened.site.name == *name)
        };
        let found = choose::candidates(all, goal);
        let plural = if found.len() == 1 { "" } else { "s" };
        let caption = format!("Found {} applicable basebackup{plural}", found.len());
        print!(
            "{}",
            list::render(&caption, found.iter().map(Row::from), Detail::Verbose)
        );
        let size = match (goal, all.first().and_then(|b| Some((b, holder(b)?)))) {
            (Goal::Lsn(_), Some((first, opened))) => {
                choose::segment_size(first, opened.store.as_ref())?
            }
            _ => SegmentSize::DEFAULT,
        };
        let backup = choose::choose(all, &self.basebackup, goal, size)?;
        let lost = || Failure::new(Class::Internal, "the basebackup belongs to no site");
        Ok((backup, holder(backup).ok_or_else(lost)?))
    }

    fn goal(&self) -> Outcome<Goal> {
        let mut goals = Vec::new();
        goals.extend(self.recovery_target_name.clone().map(Goal::Name));
        goals.extend(self.recovery_target_xid.clone().map(Goal::Xid));
        if let Some(text) = &self.recovery_target_time {
            let time = choose::time(text).ok_or_else(|| {
                refused(format!(
                    "recovery_target_time '{text}': expected an ISO 8601 time"
                ))
            })?;
            goals.push(Goal::Time(time));
        }
        if let Some(text) = &self.recovery_target_lsn {
            let lsn = text.parse().map_err(|_| {
                refused(format!(
                    "recovery_target_lsn '{text}': expected two hex numbers with a /"
                ))
            })?;
            goals.push(Goal::Lsn(lsn));
        }
        if self.recovery_target_immediate {
            goals.push(Goal::Immediate);
        }
        match (goals.pop(), goals.is_empty()) {
            (None, _) => Ok(Goal::End),
            (Some(goal), true) => Ok(goal),
            (Some(_), false) => Err(refused(
                "Specify at most one of recovery_target_name, recovery_target_time, \
                 recovery_target_xid, recovery_target_lsn or recovery_target_immediate"
                    .to_owned(),
            )),
        }
    }

    fn preserve(&self) -> Outcome<Option<Preserve>> {
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

    fn request(&self) -> Request {
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

    fn recovery(&self, site: &str, goal: Goal) -> Outcome<Recovery> {
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

    #[test]
    fn exit_codes_are_those_of_the_table() {
        for (words, code) in [
            (&["--version"][..], 0),
            (&["--help"], 0),
            (&[], 1),
            (&["list-basebackups", "--conf", "/nowhere/c.json"], 1),
            (&["get-basebackup", "--config", "/c"], 2),
            (&["unknown"], 2),
        ] {
            let args = ["pghoard_restore"].iter().chain(words).map(OsString::from);
            assert_eq!(run(args), code, "{words:?}");
        }
    }
}
