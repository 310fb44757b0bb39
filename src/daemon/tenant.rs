//! Watched for as long as the daemon runs: the lease of each site, the room on its disk.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use machine::rule::coverage::Space;
use machine::{Event, Millis, Site, TaskId};

use crate::clock;
use crate::config::Activity;
use crate::daemon::Sites;
use crate::daemon::site::SiteContext;
use crate::failure::Outcome;
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
}

impl Room {
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
