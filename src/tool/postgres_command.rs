//! `pghoard_postgres_command`: what PostgreSQL runs to archive and to fetch WAL.
//!
//! PostgreSQL's reading of our exit code decides whether a server ends recovery, so it is exact:
//!
//! | code | when |
//! |---|---|
//! | 0 | done |
//! | 1 | a standby could not know within `--retry-deadline`; it asks again |
//! | 2 | archive: no answer; wrong command line |
//! | 3 | archive: refused |
//! | 4 | restore: confirmed to be absent, the end of the archive |
//! | 255 | restore: could not know, or wrong command line; ends a one-shot recovery with an error |
//!
//! PostgreSQL takes 1 to 125 for "no such file" (`RestoreArchivedFile`), which ends recovery; so
//! PGHoard's 5 is 255 here. A standby would stop at 255, so it retries and then says 1, which only
//! makes it ask again. With `--config` the store is read directly, without a daemon; what fetches
//! ahead then is [`ahead`]'s.

mod ahead;

use std::ffi::OsString;
use std::io::Read;
use std::net::IpAddr;
use std::panic::{self, UnwindSafe};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::error::ErrorKind;
use clap::{Parser, ValueEnum};
use machine::Class;

use crate::config;
use crate::failure::{Failure, Outcome};
use crate::http::{Login, Patience, Peer};
use crate::restore::Opened;
use crate::restore::wal::{self, Delivery, Places};
use crate::serve::{ABSENT_HEADER, BODY_HEADER, CLUSTER_HEADER};

pub mod go;

#[derive(Parser)]
#[command(name = "pghoard_postgres_command", infer_long_args = true)]
/// Archive or fetch WAL for PostgreSQL
struct Flags {
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    #[arg(long, default_value_t = 16000)]
    port: u16,
    #[arg(long)]
    username: Option<String>,
    #[arg(long)]
    password: Option<String>,
    #[arg(long)]
    site: String,
    /// Name of the WAL or history file, %f of PostgreSQL
    #[arg(long)]
    xlog: String,
    /// Where to put it, %p of PostgreSQL; without it only ask
    #[arg(long)]
    output: Option<PathBuf>,
    #[arg(long, value_enum)]
    mode: Mode,
    /// Configuration file: restore straight from the store, without a daemon
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon is on another machine: the file itself goes over HTTP (as it does wherever --host
    /// is not this machine)
    #[arg(long)]
    remote: bool,
    #[command(flatten)]
    secured: super::Secured,
    /// Seconds for which a standby's request is repeated
    #[arg(long, default_value_t = 60)]
    retry_deadline: u64,
    /// Seconds between two of three tries to reach the daemon, in a recovery
    #[arg(long, default_value = "5", value_parser = seconds)]
    retry_interval: Duration,
    /// Of the mode that a call leaves behind
    #[arg(long, hide = true)]
    segment_bytes: Option<u64>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Archive,
    Restore,
    /// Run by a call to restore, for those after it.
    #[value(hide = true)]
    LookAhead,
}

const DONE: i32 = 0;
const ASK_AGAIN: i32 = 1;
const UNEXPECTED: i32 = 2;
const ARCHIVE_FAILED: i32 = 3;
const NOT_FOUND: i32 = 4;
const ABORT: i32 = 255;

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let args: Vec<OsString> = args.into_iter().collect();
    guarded(&args, || command(&args))
}

/// A panic would end with 101, which PostgreSQL takes for the end of the archive.
fn guarded(args: &[OsString], work: impl FnOnce() -> i32 + UnwindSafe) -> i32 {
    panic::catch_unwind(work).unwrap_or_else(|_| match usage_code(args) {
        ABORT if standby() => ASK_AGAIN,
        code => code,
    })
}

fn command(args: &[OsString]) -> i32 {
    if args.iter().skip(1).any(|arg| arg == "--version") {
        super::say(super::VERSION);
        return DONE;
    }
    let flags = match Flags::try_parse_from(args) {
        Ok(flags) => flags,
        Err(refused) => {
            // Nothing is left to do if this cannot be printed.
            let _unsaid = refused.print();
            return match refused.kind() {
                ErrorKind::DisplayHelp => DONE,
                _ => usage_code(args),
            };
        }
    };
    match flags.mode {
        Mode::Archive => archive(&flags),
        Mode::Restore => restore(&flags),
        Mode::LookAhead => look_ahead(&flags),
    }
}

/// Nobody listens to what goes wrong: the calls fetch by themselves then.
fn look_ahead(flags: &Flags) -> i32 {
    let asked = flags.config.as_deref().map(|config| flags.asked(config));
    let bytes = flags.segment_bytes.unwrap_or_default();
    let run = || asked.map_or(Ok(()), |asked| ahead::run(&asked, bytes));
    if let Ok(Err(failure)) = panic::catch_unwind(run) {
        say(failure);
    }
    DONE
}

/// Whoever does not clearly archive may be recovering.
fn usage_code(args: &[OsString]) -> i32 {
    let apart = |pair: &[OsString]| matches!(pair, [k, v] if k == "--mode" && v == "archive");
    match args.windows(2).any(apart) || args.iter().any(|arg| arg == "--mode=archive") {
        true => UNEXPECTED,
        false => ABORT,
    }
}

/// PostgreSQL runs us in its data directory.
fn standby() -> bool {
    Path::new("standby.signal").exists()
}

fn say(message: impl std::fmt::Display) {
    tell(format_args!("ERROR: {message}"));
}

fn tell(message: impl std::fmt::Display) {
    super::warn(format_args!("pghoard_postgres_command: {message}"));
}

impl Flags {
    fn daemon(&self) -> Peer {
        let login = self.username.as_deref().zip(self.password.as_deref());
        Peer {
            host: self.host.clone(),
            port: self.port,
            login: login.map(|(name, password)| Login::new(name, password)),
            tls: self.secured.trust(),
            patience: Patience::DAEMON,
        }
    }

    fn remote(&self) -> bool {
        let ip = self.host.parse::<IpAddr>();
        let here = self.host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback());
        self.remote || !here
    }

    fn path(&self) -> String {
        format!("/{}/archive/{}", self.site, self.xlog)
    }

    fn asked<'a>(&'a self, config: &'a Path) -> ahead::Asked<'a> {
        ahead::Asked {
            site: &self.site,
            config,
            name: &self.xlog,
        }
    }
}

fn archive(flags: &Flags) -> i32 {
    let name = &flags.xlog;
    if name.ends_with(".backup") {
        super::say(&format!(
            "Ignoring request to archive backup label '{name}': PGHoard does not use them\n"
        ));
        // The log hears of it, if it can.
        let _unheard = flags.daemon().ask("PUT", &flags.path(), &[]);
        return DONE;
    }
    let (daemon, path) = (flags.daemon(), flags.path());
    let asked = match flags.remote() {
        // PostgreSQL runs us in its data directory.
        true => daemon.put(&path, &Path::new("pg_wal").join(name)),
        false => daemon.ask("PUT", &path, &[]),
    };
    match asked {
        Ok(reply) if reply.status == 201 => DONE,
        Ok(reply) => {
            say(format!("Archival failed with HTTP status {}", reply.status));
            ARCHIVE_FAILED
        }
        Err(failure) => {
            say(failure);
            UNEXPECTED
        }
    }
}

fn restore(flags: &Flags) -> i32 {
    let standby = standby();
    let deadline = Instant::now() + Duration::from_secs(flags.retry_deadline);
    let mut pause = PAUSE_MIN;
    let mut retries = RETRIES;
    loop {
        let failure = match fetch(flags, standby) {
            Ok(Answer::Here) => return DONE,
            Ok(Answer::Absent) => {
                say(format!("'{}' not found from archive", flags.xlog));
                return NOT_FOUND;
            }
            Err(failure) => failure,
        };
        // Only what says nothing at all may be on its way up.
        if !standby && failure.class == Class::Network && flags.config.is_none() && retries > 0 {
            let pause = flags.retry_interval;
            let seconds = pause.as_secs();
            say(format_args!(
                "{failure}; {retries} retries left, sleeping {seconds} seconds and retrying"
            ));
            retries -= 1;
            thread::sleep(pause);
            continue;
        }
        say(&failure);
        if !standby {
            return ABORT;
        }
        if Instant::now() + pause > deadline {
            return ASK_AGAIN;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// PGHoard's number; a recovery that ends now has to be begun again by a person.
const RETRIES: u32 = 2;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Here,
    Absent,
}

fn fetch(flags: &Flags, standby: bool) -> Outcome<Answer> {
    let output = flags.output.as_ref().map(std::path::absolute).transpose();
    let output = output.map_err(|e| Failure::io(&e, "--output"))?;
    match &flags.config {
        Some(config) => from_store(flags, config, output.as_deref(), standby),
        None => from_daemon(flags, output.as_deref()),
    }
}

fn from_daemon(flags: &Flags, output: Option<&Path>) -> Outcome<Answer> {
    let daemon = flags.daemon();
    // PostgreSQL runs us in its data directory.
    let cluster = wal::cluster::of(Path::new(".")).map(|id| id.to_string());
    let cluster = cluster.as_deref().map(|id| (CLUSTER_HEADER, id));
    let (reply, done) = match output {
        None => (daemon.ask("HEAD", &flags.path(), &[])?, 200),
        Some(output) if flags.remote() => {
            let headers: Vec<_> = [(BODY_HEADER, "1")].into_iter().chain(cluster).collect();
            let save = |body: &mut dyn Read| wal::receive(body, &flags.xlog, output);
            (daemon.get(&flags.path(), &headers, save)?, 200)
        }
        Some(output) => {
            let target = output.to_str().ok_or_else(|| {
                let message = format!("{}: expected UTF-8", output.display());
                Failure::new(Class::Config, message)
            })?;
            let target = [("x-pghoard-target-path", target)];
            let headers: Vec<_> = target.into_iter().chain(cluster).collect();
            (daemon.ask("GET", &flags.path(), &headers)?, 201)
        }
    };
    match reply.status {
        404 if reply.header(ABSENT_HEADER) == Some("true") => Ok(Answer::Absent),
        404 => Err(Failure::new(
            Class::Config,
            "HTTP status 404, but not the daemon's word that the file is absent",
        )
        .hint("does the daemon of that port know the site? is it PGHoard's?")),
        status if status == done && output.is_none_or(Path::exists) => Ok(Answer::Here),
        status if status == done => Err(Failure::new(
            Class::Internal,
            "the daemon answered that it wrote the file, but it is not there",
        )
        .hint("the daemon must run on this machine; --config reads the store without it")),
        status => {
            let failure = Failure::new(
                Class::Unsupported,
                format!("Restore failed with HTTP status {status}"),
            );
            Err(match reason(&reply.body) {
                Some(reason) => failure.hint(reason),
                None => failure,
            })
        }
    }
}

/// What the daemon said about it: one line for PostgreSQL's log.
fn reason(body: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(body).ok()?.lines().next()?;
    let fit = !line.is_empty() && line.len() <= 1_000 && !line.chars().any(char::is_control);
    fit.then(|| line.to_owned())
}

fn from_store(flags: &Flags, path: &Path, output: Option<&Path>, standby: bool) -> Outcome<Answer> {
    let asked = flags.asked(path);
    let told = output.map(|output| ahead::take(&asked, output));
    if told == Some(ahead::Told::Here) {
        return Ok(Answer::Here);
    }
    let (config, _) = config::load(path)?;
    let site = config.site(Some(&flags.site))?;
    let opened = config.related(site).into_iter().map(Opened::new);
    let opened: Vec<Opened<'_>> = opened.collect::<Outcome<_>>()?;
    // PostgreSQL runs us in its data directory.
    let places = Places::new(&opened, &config, wal::cluster::of(Path::new(".")));
    let Some(output) = output else {
        if wal::exists(&places, &flags.xlog)? {
            return Ok(Answer::Here);
        }
        wal::confirm(&places)?;
        return Ok(Answer::Absent);
    };
    match wal::fetch(&places, &flags.xlog, output)? {
        Delivery::Full => {
            if told == Some(ahead::Told::NobodyThere) && config.restore_prefetch > 0 {
                ahead::start(&asked, output);
            }
            Ok(Answer::Here)
        }
        Delivery::Partial { bytes } => {
            tell(format_args!(
                "'{}' is the unfinished segment of the spool, with {bytes} bytes of WAL",
                flags.xlog
            ));
            Ok(Answer::Here)
        }
        Delivery::Absent => {
            // A standby asks every few seconds, and its archive has no last position.
            if !standby && let Some(lsn) = wal::reach(&places, &flags.xlog)? {
                tell(format_args!("the WAL within reach ends at {lsn}"));
            }
            Ok(Answer::Absent)
        }
    }
}

#[cfg(test)]
mod tests;
