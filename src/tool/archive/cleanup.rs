//! `pghoard_archive_cleanup`: deletes WAL that no basebackup in the store needs.
//!
//! It works on the store alone. A running daemon does the same by itself and counts on what it
//! knows, so beside one nothing is deleted: where something could be, that is said and the code
//! is 1. While it deletes it holds the site's lease (`work::lease`), so that a daemon elsewhere
//! waits, and the log of this machine, so that one here does not start; that log also tells of
//! basebackups that are not stored yet. What goes lies before every basebackup, where nobody looks
//! for holes: a `WalRetired` mark would say nothing and be forgotten at once.
//!
//! Different on purpose: see `orphans`; and a store without basebackups is refused in words.
//!
//! | code | when |
//! |---|---|
//! | 0 | done, or nothing to do |
//! | 1 | not done: `FATAL: ...` on standard error says why |
//! | 2 | wrong command line |

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use machine::event::Range;
use machine::{Class, Event, Segment, SiteState, State};

use super::orphans::{self, Orphans};
use super::{DONE, failed};
use crate::clock;
use crate::codec::keys::Keyring;
use crate::config::{self, Config};
use crate::daemon::site::host_name;
use crate::failure::{Failure, Outcome};
use crate::journal::log::{self, Log};
use crate::store::choose::{self, Missing};
use crate::tool::warn;
use crate::work::Place;
use crate::work::delete::{self, Wal};
use crate::work::lease::{self, Identity, Moment, Watch};

#[derive(Parser)]
#[command(name = "pghoard_archive_cleanup", version, infer_long_args = true)]
/// Delete WAL that no basebackup needs
struct Flags {
    /// Backup site
    #[arg(long)]
    site: Option<String>,
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", hide_env_values = true)]
    config: Option<OsString>,
    /// Only show what would be deleted
    #[arg(long)]
    dry_run: bool,
}

/// Deleted between two looks at the clock, which may be looks at the lease.
const PIECE: u64 = 100;

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
    let done = super::site(&config, flags.site.as_deref()).and_then(|site| match flags.dry_run {
        true => dry_run(&config, site),
        false => clean(&config, site),
    });
    match done {
        Ok(()) => DONE,
        Err(failure) => failed(&failure),
    }
}

fn dry_run(config: &Config, site: &config::Site) -> Outcome<()> {
    let logged = match log_path(config) {
        Some(path) => {
            let mut state = State::default();
            log::read(&path, &mut |envelope| state.apply(envelope))?;
            of_site(state, site)
        }
        None => None,
    };
    let (place, relatives) = places(config, site)?;
    let orphans = orphans::look(&place, &relatives, logged.as_ref())?;
    tell(&place, &orphans, "Would delete");
    Ok(())
}

fn clean(config: &Config, site: &config::Site) -> Outcome<()> {
    let (place, relatives) = places(config, site)?;
    let mut claim = Claim::new(config, site, &place)?;
    let cleaned = claimed(&place, &relatives, &mut claim);
    if let Claim::Ours(ours) = &claim
        && let Err(failure) = ours.release(&place)
    {
        // It ends by itself, only later.
        warn(format_args!("warning: {failure}"));
    }
    cleaned
}

fn claimed(place: &Place, relatives: &[Place], claim: &mut Claim) -> Outcome<()> {
    let orphans = orphans::look(place, relatives, claim.logged())?;
    match claim {
        Claim::Ours(ours) => delete(place, &orphans, ours),
        Claim::Theirs { refusal, .. } => {
            tell(place, &orphans, "Not deleted:");
            match orphans.bytes.is_empty() {
                true => Ok(()),
                false => Err(refusal.clone()),
            }
        }
    }
}

/// The site's place, and those whose restores go on with its WAL.
fn places(config: &Config, site: &config::Site) -> Outcome<(Place, Vec<Place>)> {
    let open = |site: &config::Site| {
        let store = choose::store(site.storage()?, Missing::Refuse)?;
        let keys = Keyring::default();
        Ok(Place::to_read(
            &site.name,
            &site.prefix,
            Arc::from(store),
            keys,
        ))
    };
    let others = config.related(site).into_iter();
    let others = others.filter(|other| other.name != site.name);
    Ok((open(site)?, others.map(open).collect::<Outcome<_>>()?))
}

/// The log of this machine's daemon, if there ever was one.
fn log_path(config: &Config) -> Option<std::path::PathBuf> {
    let path = config.backup_location.as_ref()?.join(log::FILE_NAME);
    path.exists().then_some(path)
}

fn of_site(mut state: State, site: &config::Site) -> Option<SiteState> {
    state.sites.remove(&machine::Site(site.name.clone()))
}

fn tell(place: &Place, orphans: &Orphans, what: &str) {
    for (segment, bytes) in &orphans.bytes {
        tell_one(place, orphans, (*segment, *bytes), what);
    }
    tell_total(place, orphans);
}

fn tell_one(place: &Place, orphans: &Orphans, (segment, bytes): (Segment, u64), what: &str) {
    let key = place.key(&format!("xlog/{}", segment.name(orphans.size)));
    warn(format_args!(
        "{what} orphan WAL segment {key} ({bytes} bytes)"
    ));
}

fn tell_total(place: &Place, orphans: &Orphans) {
    if orphans.strangers > 0 {
        let (count, folder) = (orphans.strangers, place.key("xlog"));
        warn(format_args!(
            "{count} objects in {folder} are no WAL segments by their names: they stay"
        ));
    }
    let total: u64 = orphans.bytes.values().sum();
    warn(format_args!(
        "Total orphan WAL segments size is {total} bytes"
    ));
}

/// Who may delete here.
enum Claim {
    Ours(Ours),
    Theirs {
        refusal: Failure,
        logged: Option<SiteState>,
    },
}

struct Ours {
    /// Held open: no daemon starts with it meanwhile.
    log: Option<Log>,
    logged: Option<SiteState>,
    me: Identity,
    watch: Watch,
    since: Instant,
    looked: Instant,
}

impl Claim {
    fn new(config: &Config, site: &config::Site, place: &Place) -> Outcome<Claim> {
        let mut state = State::default();
        let log = match log_path(config) {
            None => None,
            Some(path) => match Log::open(&path, &mut |envelope| state.apply(envelope)) {
                Ok(log) => Some(log),
                Err(failure) if failure.class == Class::Conflict => {
                    let mut state = State::default();
                    log::read(&path, &mut |envelope| state.apply(envelope))?;
                    return Ok(Claim::Theirs {
                        refusal: by_itself("the daemon runs on this machine"),
                        logged: of_site(state, site),
                    });
                }
                Err(failure) => return Err(failure),
            },
        };
        let logged = of_site(state, site);
        let root = config.backup_location.as_ref().filter(|_| log.is_some());
        let me = match root {
            Some(root) => Identity::of(root, &host_name())?,
            None => Identity::passing(&host_name())?,
        };
        let now = Instant::now();
        let mut ours = Ours {
            log,
            logged,
            me,
            watch: Watch::default(),
            since: now,
            looked: now,
        };
        match ours.look(place) {
            Ok(()) => Ok(Claim::Ours(ours)),
            Err(refusal) if refusal.class == Class::Conflict => Ok(Claim::Theirs {
                refusal,
                logged: ours.logged,
            }),
            Err(failure) => Err(failure),
        }
    }

    fn logged(&self) -> Option<&SiteState> {
        match self {
            Claim::Ours(Ours { logged, .. }) | Claim::Theirs { logged, .. } => logged.as_ref(),
        }
    }
}

fn by_itself(who: &str) -> Failure {
    let message =
        format!("{who}, and deletes WAL that nobody needs by itself; nothing was deleted");
    Failure::new(Class::Conflict, message).hint(
        "'pghoard retention --dry-run' shows what it keeps and why; --dry-run shows what this \
         command would delete",
    )
}

impl Ours {
    /// Takes or renews the lease.
    fn look(&mut self, place: &Place) -> Outcome<()> {
        let moment = Moment {
            told: clock::now(),
            passed: self.since.elapsed(),
        };
        self.looked = Instant::now();
        let lease = lease::look(place, &self.me, &mut self.watch, moment)?;
        match lease.ours {
            true => Ok(()),
            false => {
                let key = place.key(lease::KEY);
                let host = &lease.host;
                let who = format!("a daemon on host '{host}' holds '{key}'");
                Err(by_itself(&who).hint(
                    "if that daemon is gone for good, remove the object and try again; stopped, \
                     this command may run with its configuration on its machine",
                ))
            }
        }
    }

    /// A daemon's lease stays: only that daemon's log let us use it.
    fn release(&self, place: &Place) -> Outcome<()> {
        match self.log {
            Some(_) => Ok(()),
            None => lease::release(place, &self.me),
        }
    }
}

/// What the store refuses to delete is passed over, told, and the command's failure in the end.
fn delete(place: &Place, orphans: &Orphans, ours: &mut Ours) -> Outcome<()> {
    let mut refused = None;
    for range in &orphans.ranges {
        let mut first = range.first;
        while first <= range.last {
            if ours.looked.elapsed() >= lease::EVERY {
                ours.look(place)?;
            }
            let last = range.last.min(first.saturating_add(PIECE - 1));
            let timeline = range.timeline;
            let piece = [Range {
                timeline,
                first,
                last,
            }];
            let (from, to) = (Segment::new(timeline, first), Segment::new(timeline, last));
            for (segment, bytes) in orphans.bytes.range(from..=to) {
                tell_one(place, orphans, (*segment, *bytes), "Deleting");
            }
            let wal = Wal {
                ranges: &piece,
                retire: &[],
                forget: &[],
            };
            delete::wal(place, wal, orphans.size, &mut |event| {
                if let Event::DeletionRefused {
                    wal,
                    class,
                    message,
                    ..
                } = event
                {
                    let names: Vec<_> = wal.iter().map(|r| r.name(orphans.size)).collect();
                    let names = names.join(", ");
                    warn(format_args!("Not deleted: {names}: {message}"));
                    refused = Some(Failure::new(class, message));
                }
            })?;
            first = last.saturating_add(1);
        }
    }
    tell_total(place, orphans);
    match refused {
        None => Ok(()),
        Some(failure) => Err(failure
            .about("not all of it was deleted")
            .hint("what is locked for a time goes when the lock ends")),
    }
}

#[cfg(test)]
mod tests;
