//! `pghoard_restore`: lists basebackups and brings one back.
//!
//! Flags, texts and exit codes are PGHoard's. New: `--recovery-target-lsn`,
//! `--recovery-target-immediate` and `--recovery-target-timeline`; the restored server fetches its
//! WAL with this configuration straight from the store, so no daemon has to run beside it.
//!
//! | code | when |
//! |---|---|
//! | 0 | done |
//! | 1 | not done: `FATAL: ...` on standard output says why |
//! | 2 | wrong command line |

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::thread;

use async_signal::{Signal, Signals};
use clap::CommandFactory;
use machine::{Class, SegmentSize};
use nix::unistd::geteuid;
use serde::Deserialize;
use smol::stream::StreamExt;

use super::{print, say, warn};
use crate::config::{self, Config};
use crate::failure::{Failure, Outcome};
use crate::http::{Login, Patience, Peer};
use crate::restore::choose::{self, Backup, Catalog, Goal, timeline};
use crate::restore::list::{self, Detail, Row};
use crate::restore::{self, Notes, Opened, Order, target, wal};
use crate::store::Metadata;
use flags::{Command, Flags, Get, List, ListHttp};

mod flags;

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Flags = match super::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    if flags.version {
        say(super::VERSION);
        return 0;
    }
    if let Err(failure) = on_interrupt() {
        warn(format_args!("warning: {failure}"));
    }
    let outcome = match &flags.command {
        None => {
            say(&Flags::command().render_help().to_string());
            return 1;
        }
        Some(Command::ListBasebackupsHttp(list)) => list_http(list),
        Some(Command::ListBasebackups(list)) => list_store(list),
        Some(Command::GetBasebackup(get)) => get_basebackup(get, flags.status_output_file),
    };
    match outcome {
        Ok(()) => 0,
        Err((class, failure)) => {
            say(&format!("FATAL: {class}: {failure}\n"));
            1
        }
    }
}

/// A person who presses Ctrl-C is told so in PGHoard's words. What was restored so far does not
/// start: its `pg_control` has no name yet.
pub(super) fn on_interrupt() -> Outcome<()> {
    let mut signals =
        Signals::new([Signal::Int]).map_err(|e| Failure::io(&e, "watching signals"))?;
    let watch = move || {
        if smol::block_on(signals.next()).is_some() {
            say("*** interrupted by keyboard ***\n");
            std::process::exit(1);
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(watch)
        .map(drop)
        .map_err(|e| Failure::io(&e, "no thread for signals"))
}

/// PGHoard's name for the kind of error, and the error.
type Fatal = (&'static str, Failure);

fn fatal(failure: Failure) -> Fatal {
    ("RestoreError", failure)
}

fn misconfigured(failure: Failure) -> Fatal {
    ("InvalidConfigurationError", failure)
}

fn load(path: &Path) -> Result<Config, Fatal> {
    let (config, warnings) = config::load(path).map_err(misconfigured)?;
    for warning in warnings {
        warn(format_args!("warning: {}: {warning}", path.display()));
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
    let login = list.username.as_deref().zip(list.password.as_deref());
    let daemon = Peer {
        host: list.host.clone(),
        port: list.port,
        login: login.map(|(name, password)| Login::new(name, password)),
        tls: list.secured.trust(),
        patience: Patience::DAEMON,
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
    print(&list::render(&caption, rows, detail(list.verbose))).map_err(fatal)
}

fn list_store(list: &List) -> Result<(), Fatal> {
    let config = load(&list.place.config)?;
    let site = config
        .site(list.place.site.as_deref())
        .map_err(misconfigured)?;
    let opened = open(&config, site).map_err(fatal)?;
    let backups = backups(&opened, choose::LATEST).map_err(fatal)?;
    let caption = format!("Available '{}' basebackups:", site.name);
    let rows = backups.iter().map(Row::from);
    print(&list::render(&caption, rows, detail(list.verbose))).map_err(fatal)
}

/// The site and the ones it was moved from.
fn open<'a>(config: &'a Config, site: &'a config::Site) -> Outcome<Vec<Opened<'a>>> {
    config
        .with_older(site)
        .into_iter()
        .map(Opened::new)
        .collect()
}

fn backups<'a>(opened: &[Opened<'a>], wanted: &str) -> Outcome<Vec<Backup<'a>>> {
    let mut found = Catalog::default();
    for opened in opened {
        found.add(choose::backups(opened.site, opened.store.as_ref())?);
    }
    for (key, failure) in &found.damaged {
        warn(format_args!("warning: '{key}' is left out: {failure}"));
    }
    found.usable(wanted)
}

fn get_basebackup(get: &Get, status_file: Option<PathBuf>) -> Result<(), Fatal> {
    target::mappings(&get.tablespace_dir).map_err(fatal)?;
    let config = load(&get.place.config)?;
    let site = config
        .site(get.place.site.as_deref())
        .map_err(misconfigured)?;
    let goal = get.goal().map_err(fatal)?;
    let preserve = get.preserve().map_err(fatal)?;
    let opened = open(&config, site).map_err(fatal)?;
    let all = backups(&opened, &get.basebackup).map_err(fatal)?;
    let (backup, chosen) = choose(&get.basebackup, &all, &opened, &goal).map_err(fatal)?;
    let size = choose::segment_size(backup, chosen.store.as_ref()).map_err(fatal)?;
    let timeline = &get.recovery_target_timeline;
    timeline::check(backup, timeline, &opened, size).map_err(fatal)?;
    say(&format!("\nSelecting '{}' for restore\n", backup.key()));

    let order = Order {
        recovery: get.recovery(&backup.site.name, goal).map_err(fatal)?,
        target: get.request(),
        preserve,
        threads: config.restore_threads,
        status_file,
    };
    let notes = restore::run(backup, &chosen.source(), &order).map_err(fatal)?;
    tell(&notes);
    for spool in wal::spools(&config, config.related(backup.site)) {
        if let Some(failure) = wal::is_shut(&spool, notes.owner) {
            warn(format_args!(
                "warning: the server's restore_command will fail: {failure}"
            ));
        }
    }
    if geteuid().is_root() && notes.owner.is_none() {
        warn(format_args!(
            "warning: the restored files belong to root, as whom PostgreSQL does not run"
        ));
    }
    let target = get.target_dir.display();
    say(&format!(
        "Basebackup restoration complete.\n\
         You can start PostgreSQL by running pg_ctl -D {target} start\n\
         On systemd based systems you can run systemctl start postgresql\n\
         On SYSV Init based systems you can run /etc/init.d/postgresql start\n"
    ));
    Ok(())
}

fn tell(notes: &Notes) {
    for link in &notes.strays {
        warn(format_args!(
            "warning: symbolic link '{}' to '{}' was not made, as it leads out of the target; \
             hint: make it by hand if it is wanted",
            link.at.display(),
            link.to.display()
        ));
    }
    if let Some(failure) = &notes.unpreserved {
        warn(format_args!(
            "warning: the basebackup's preservation request: {failure}"
        ));
    }
}

/// Picks one, with the site that has it. Where none was named the candidates are shown.
fn choose<'b, 'a>(
    wanted: &str,
    all: &'b [Backup<'a>],
    opened: &'b [Opened<'a>],
    goal: &Goal,
) -> Outcome<(&'b Backup<'a>, &'b Opened<'a>)> {
    let holder = |backup: &Backup<'_>| {
        let name = &backup.site.name;
        opened.iter().find(|opened| opened.site.name == *name)
    };
    let found = choose::candidates(all, goal);
    if wanted == choose::LATEST && !found.is_empty() {
        show(&found);
    }
    let size = match (goal, all.first().and_then(|b| Some((b, holder(b)?)))) {
        (Goal::Lsn(_), Some((first, opened))) => {
            choose::segment_size(first, opened.store.as_ref())?
        }
        _ => SegmentSize::DEFAULT,
    };
    let backup = choose::choose(all, wanted, goal, size)?;
    let lost = || Failure::new(Class::Internal, "the basebackup belongs to no site");
    Ok((backup, holder(backup).ok_or_else(lost)?))
}

fn show(found: &[Backup<'_>]) {
    let plural = if found.len() == 1 { "" } else { "s" };
    let caption = format!("Found {} applicable basebackup{plural}", found.len());
    let rows = found.iter().map(Row::from);
    say(&list::render(&caption, rows, Detail::Verbose));
}

#[cfg(test)]
mod tests {
    use super::*;

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
