//! Watched for as long as the daemon runs: the lease of each site, the room on its disk.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use machine::rule::coverage::Space;
use machine::{Event, Millis, Site, TaskId};

use crate::clock;
use crate::config::{Activity, DiskFree};
use crate::daemon::Sites;
use crate::daemon::site::SiteContext;
use crate::durable;
use crate::failure::Outcome;
use crate::publish::text::size;
use crate::work::lease::{self, Identity, Moment, Watch};

/// Who we are, and what this process saw of each lease.
pub struct Tenant {
    me: Identity,
    since: Instant,
    watches: BTreeMap<TaskId, Arc<Mutex<Watch>>>,
}

/// One site's lease, held or watched by a thread of its own.
pub struct Hold {
    me: Identity,
    since: Instant,
    watch: Arc<Mutex<Watch>>,
    context: Arc<SiteContext>,
}

/// A stop is noticed so soon.
const NAP: Duration = Duration::from_millis(250);

impl Tenant {
    pub fn new(me: Identity) -> Tenant {
        Tenant {
            me,
            since: Instant::now(),
            watches: BTreeMap::new(),
        }
    }

    /// A task that begins again after a failure remembers what was seen before.
    pub fn hold(&mut self, id: &TaskId, context: Arc<SiteContext>) -> Hold {
        let watch = self.watches.entry(id.clone()).or_default();
        Hold {
            me: self.me.clone(),
            since: self.since,
            watch: Arc::clone(watch),
            context,
        }
    }
}

impl Hold {
    /// Until it is stopped or a look fails. Tells the first look and every change.
    pub fn run(&self, stop: &AtomicBool, emit: &mut dyn FnMut(Event)) -> Outcome<Vec<Event>> {
        let mut told = None;
        loop {
            let now = Moment {
                told: clock::now(),
                passed: self.since.elapsed(),
            };
            // Only the one task of this site ever takes it.
            let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
            let look = match self.context.config.active {
                Activity::Active => lease::look,
                Activity::Inactive => lease::watch,
            };
            let seen = look(&self.context.place, &self.me, &mut watch, now)?;
            drop(watch);
            if told.as_ref() != Some(&seen) {
                emit(Event::LeaseSeen(seen.clone()));
                told = Some(seen);
            }
            let looked = Instant::now();
            while looked.elapsed() < lease::EVERY {
                if stop.load(Ordering::SeqCst) {
                    return Ok(Vec::new());
                }
                thread::sleep(NAP);
            }
        }
    }
}

/// The room on each site's disk, and since when there is too little.
#[derive(Debug, Default)]
pub struct Room {
    low: BTreeMap<Site, Millis>,
    /// Sites whose reception pauses.
    cramped: BTreeMap<Site, Millis>,
    looked: Option<Instant>,
}

/// A disk is asked for its room this often, for reception's sake.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Room {
    /// Since when reception pauses: a disk has less than `min_disk_free_bytes`, and not yet again
    /// `resume_multiplier` times as much. One that cannot be asked says what it last said.
    pub fn cramped(&mut self, sites: &Sites, now: Millis) -> BTreeMap<Site, Millis> {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return self.cramped.clone();
        }
        self.looked = Some(Instant::now());
        let limited = |name: &Site| {
            sites
                .get(name)
                .is_some_and(|s| s.config.disk_free.is_some())
        };
        self.cramped.retain(|name, _| limited(name));
        for (name, context) in sites {
            let active = context.config.active == Activity::Active;
            if let Some(limit) = context.config.disk_free.filter(|_| active)
                && let Ok(free) = durable::free_bytes(&context.spool_directory)
            {
                self.judge(name, limit, free, now);
            }
        }
        self.cramped.clone()
    }

    fn judge(&mut self, name: &Site, limit: DiskFree, free: u64, now: Millis) {
        let wanted = match self.cramped.contains_key(name) {
            true => limit.resume_from,
            false => limit.pause_below,
        };
        if free >= wanted {
            if self.cramped.remove(name).is_some() {
                log::info!(
                    "{name}: the disk has {} free, reception goes on",
                    size(free)
                );
            }
        } else if !self.cramped.contains_key(name) {
            self.cramped.insert(name.clone(), now);
            log::warn!(
                "{name}: reception pauses: the disk of backup_location has {} free, \
                 min_disk_free_bytes is {}; the server keeps the WAL meanwhile",
                size(free),
                size(limit.pause_below)
            );
        }
    }

    /// What cannot be asked is left out.
    pub fn look(&mut self, sites: &Sites, now: Millis) -> BTreeMap<Site, Space> {
        let mut all = BTreeMap::new();
        for (name, context) in sites {
            let Ok(stat) = nix::sys::statvfs::statvfs(&context.spool_directory) else {
                continue;
            };
            let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
            let mut space = Space {
                free_bytes: bytes(stat.blocks_available()),
                total_bytes: bytes(stat.blocks()),
                low_since: None,
            };
            if space.low() {
                space.low_since = Some(*self.low.entry(name.clone()).or_insert(now));
            } else {
                self.low.remove(name);
            }
            all.insert(name.clone(), space);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reception_pauses_below_one_limit_and_goes_on_from_the_other() {
        let (mut room, site) = (Room::default(), Site("main".into()));
        let limit = DiskFree {
            pause_below: 100,
            resume_from: 150,
        };
        for (free, at, since) in [
            (100, 1, None),
            (99, 2, Some(2)),
            (50, 3, Some(2)),
            (149, 4, Some(2)),
            (150, 5, None),
            (120, 6, None),
            (0, 7, Some(7)),
        ] {
            room.judge(&site, limit, free, Millis(at));
            let told = room.cramped.get(&site).copied();
            assert_eq!(told, since.map(Millis), "{free}");
        }
    }
}
