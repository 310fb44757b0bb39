//! `pghoard_archive_sync`: compares `pg_wal` on this machine with the archive, has the daemon
//! archive what is missing, and proves that WAL reaches from the newest basebackup to now.
//!
//! It asks the daemon over HTTP and the first node for where it stands. Segments are judged by what
//! their headers say, so recycled ones are not archived. Different on purpose: an upload that was
//! refused is code 1; the way goes by the timelines' histories, which must be in the archive too;
//! what the daemon cannot answer is a failure, never a gap.
//!
//! | code | when |
//! |---|---|
//! | 0 | everything is archived and no WAL is missing, or a new basebackup was asked for instead |
//! | 1 | not so, or it cannot be known: `FATAL: ...` on standard error says why |
//! | 2 | wrong command line |

use std::ffi::OsString;
use std::time::{Duration, Instant};

use clap::Parser;
use machine::event::Branch;
use machine::projection::timelines::Timelines;
use machine::{Class, Event, Segment, SegmentSize, Timeline};

use super::{DONE, FAILED, failed, named, refused};
use crate::config::{self, Config};
use crate::daemon::site::conninfo;
use crate::failure::{Failure, Outcome};
use crate::http::Peer;
use crate::pg::connection::{Connection, Mode};
use crate::pg::conninfo::Conninfo;
use crate::pg::replication;
use crate::tool::restore::on_interrupt;
use crate::tool::warn;
use archive::{Archive, Held};

mod archive;
mod local;

#[derive(Parser)]
#[command(name = "pghoard_archive_sync", version, infer_long_args = true)]
/// Archive what is missing of the WAL on this machine, and verify the archive
struct Flags {
    /// Enable debug logging
    #[arg(short = 'D', long = "debug")]
    _debug: bool,
    /// Backup site
    #[arg(long)]
    site: Option<String>,
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", hide_env_values = true)]
    config: Option<OsString>,
    /// How many archived segments to compare by their digests; negative for all
    #[arg(long, default_value_t = 100, allow_negative_numbers = true)]
    max_hash_checks: i64,
    /// Do not verify the archive
    #[arg(long)]
    no_verify: bool,
    /// Ask for a new basebackup if WAL is missing
    #[arg(long)]
    create_new_backup_on_failure: bool,
}

/// Connecting to the server and two answers.
const SERVER_WITHIN: Duration = Duration::from_secs(30);

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Flags = match crate::tool::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    let config = match super::load(flags.config.as_ref()) {
        Ok(config) => config,
        Err(code) => return code,
    };
    if let Err(failure) = on_interrupt() {
        warn(format_args!("warning: {failure}"));
    }
    match start(&config, &flags) {
        Ok(code) => code,
        Err(failure) => failed(&failure),
    }
}

fn start(config: &Config, flags: &Flags) -> Outcome<i32> {
    let site = super::site(config, flags.site.as_deref())?;
    let directory = site.pg_data_directory.as_ref().ok_or_else(|| {
        let message = format!("Site '{}': pg_data_directory must be set", site.name);
        named(refused(message))
    })?;
    let archive = Archive {
        daemon: Peer::of(config),
        site: &site.name,
    };
    let standing = standing(site).map_err(sync_error)?;
    sync(&archive, &standing, &directory.join("pg_wal"), flags).map_err(sync_error)
}

/// PGHoard's name for what this command cannot do.
fn sync_error(failure: Failure) -> Failure {
    failure.about("SyncError")
}

/// Where the server stands.
#[derive(Debug)]
struct Standing {
    current: Segment,
    size: SegmentSize,
    system_id: u64,
    timelines: Timelines,
}

fn standing(site: &config::Site) -> Outcome<Standing> {
    let none = || refused(format!("Site '{}': no nodes are configured", site.name));
    let node = site.nodes.first().ok_or_else(none)?;
    let info = conninfo(node, site)?;
    smol::block_on(ask(&info))
        .map_err(|failure| failure.about("Could not figure out current WAL segment"))
}

async fn ask(info: &Conninfo) -> Outcome<Standing> {
    let deadline = Instant::now() + SERVER_WITHIN;
    let told = |fault: crate::pg::fault::Fault| fault.failure;
    let connection = Connection::connect(info, Mode::Physical, deadline).await;
    let mut connection = connection.map_err(told)?;
    let identity = replication::identify(&mut connection, deadline).await;
    let identity = identity.map_err(told)?;
    let size = replication::segment_size(&mut connection, deadline).await;
    let size = size.map_err(told)?;
    let mut timelines = Timelines::default();
    if identity.timeline > Timeline(1) {
        let timeline = identity.timeline;
        let file = replication::timeline_history(&mut connection, timeline, deadline).await;
        let ancestors = file.map_err(told)?.history.ancestors.into_iter();
        timelines.apply(&Event::TimelineLearned {
            timeline,
            ancestors: ancestors
                .map(|ancestor| Branch {
                    timeline: ancestor.timeline,
                    switch: ancestor.end,
                })
                .collect(),
        });
    }
    // A server spares its log a line about a client that left without a word.
    let _said = connection.close(deadline).await;
    Ok(Standing {
        current: Segment::at(identity.timeline, identity.position, size),
        size,
        system_id: identity.system_id,
        timelines,
    })
}

fn sync(
    archive: &Archive<'_>,
    standing: &Standing,
    pg_wal: &std::path::Path,
    flags: &Flags,
) -> Outcome<i32> {
    let first = archive.first_required(standing.size)?;
    let files = local::list(pg_wal, standing, first)?;
    let wanted = local::unarchived(archive, &files, flags.max_hash_checks)?;
    let mut unarchived = 0;
    for file in wanted.iter().rev() {
        match archive.put(&file.name)? {
            Ok(()) => warn(format_args!("Archived {}", file.name)),
            Err(why) => {
                warn(format_args!("{} was not archived: {why}", file.name));
                unarchived += 1;
            }
        }
    }
    if flags.no_verify {
        return Ok(code(unarchived));
    }
    let first = first.ok_or_else(|| {
        Failure::new(Class::NotFound, "No basebackups found").hint("--no-verify leaves this out")
    })?;
    let Some(missing) = verify(archive, standing, first)? else {
        return Ok(code(unarchived));
    };
    let message = format!(
        "xlog file {missing} missing, integrity check from {} to {} failed",
        standing.current.name(standing.size),
        first.name(standing.size)
    );
    if !flags.create_new_backup_on_failure {
        return Err(Failure::new(Class::NotFound, message)
            .hint("--create-new-backup-on-failure asks for a new basebackup"));
    }
    warn(format_args!("{message}: asking for a new basebackup"));
    archive.ask_for_basebackup()?;
    Ok(DONE)
}

fn code(unarchived: u32) -> i32 {
    match unarchived {
        0 => DONE,
        _ => FAILED,
    }
}

/// The first file on the way back from now to the start of the basebackup that is not archived.
fn verify(archive: &Archive<'_>, standing: &Standing, first: Segment) -> Outcome<Option<String>> {
    let (current, size) = (standing.current, standing.size);
    let told = |what: String| {
        let message = format!(
            "the newest basebackup begins at {}, {what}",
            first.name(size)
        );
        Failure::new(Class::Conflict, message).hint("is it a basebackup of this server?")
    };
    if first.number > current.number {
        let name = current.name(size);
        return Err(told(format!("but the server has only come to {name}")));
    }
    let way = standing.timelines.path(first, current.timeline, size);
    if way.is_empty() {
        let timeline = current.timeline;
        return Err(told(format!(
            "from where nothing leads to timeline {timeline}"
        )));
    }
    let mut found = 0_u64;
    for leg in way.iter().rev() {
        for number in (leg.first..leg.end.min(current.number)).rev() {
            let name = Segment::new(leg.timeline, number).name(size);
            if archive.held(&name)? == Held::No {
                return Ok(Some(name));
            }
            found += 1;
        }
        let name = leg.timeline.history_name();
        if leg.timeline > Timeline(1) && archive.held(&name)? == Held::No {
            return Ok(Some(name));
        }
    }
    warn(format_args!(
        "Integrity check passed: {found} WAL segments from {} to {} are archived",
        first.name(size),
        current.name(size)
    ));
    Ok(None)
}

#[cfg(test)]
mod tests;
