//! WAL fetched ahead of a recovering server: what it asks for next is there when it asks.
//!
//! Files are fetched and judged as any other ([`wal`]), by a few threads, into a folder of their
//! own, never where PostgreSQL looks: a segment in `pg_wal` that it did not ask for is one that it
//! may believe (S-44). Under its own name a file is whole and judged, and only this process gives
//! it away, by rename to a name of its taker's alone; what a process before left is removed (S-45).
//! Never by link: PostgreSQL writes over segments that it recycles.
//!
//! Nothing that goes wrong here is told to who asks: such a request fetches directly. What is
//! fetched next and for whom is [`plan`]'s.
//!
//! Budget: `restore_prefetch` segments a reader on disk, at most 1 GiB of them, and none where less
//! than [`ROOM_KEPT`] is free; a decoder for each of [`THREADS_MAX`] threads, which end when
//! nobody reads.

pub mod plan;

use std::fs;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use machine::{Class, SegmentSize, Timeline};

use super::Opened;
use super::wal::{self, Places};
use crate::config::Config;
use crate::durable;
use crate::failure::{Failure, Outcome};
use crate::pg::files::History;
use plan::{Got, Job, Plan, SILENCE, Stage};

/// A distant store needs several at a time; to decode more takes more cores than most have.
const THREADS_MAX: u32 = 8;
/// Below this a fetch ahead could cost the server or the spool its room.
const ROOM_KEPT: u64 = 1 << 30;
/// For a fetch under way; after that a request rather fetches by itself.
const PATIENCE: Duration = Duration::from_secs(30);
/// PostgreSQL looks for a newer timeline one by one, too; more promotions than this are none.
const TIMELINES_MAX: u32 = 10_000;

/// What is fetched ahead of whom, from where and to where.
#[derive(Clone, Debug)]
pub struct Order {
    pub config: Arc<Config>,
    pub site: String,
    /// Of the server that recovers, where it is only one and known.
    pub cluster: Option<u64>,
    /// For this alone: what is found in it is removed.
    pub folder: PathBuf,
    /// Servers that recover at the same time.
    pub readers_max: usize,
}

/// The look-ahead of one site. It ends with its owner, in its own time.
pub struct Ahead(Arc<Shared>);

struct Shared {
    order: Order,
    desk: Mutex<Desk>,
    news: Condvar,
}

struct Desk {
    plan: Plan,
    threads: Vec<JoinHandle<()>>,
    /// Of the threads those that have not begun to end.
    working: u32,
    /// Numbers the files that were taken.
    taken: u64,
    stopped: bool,
}

impl Ahead {
    /// Empties the folder, if it is there.
    pub fn new(order: Order) -> Outcome<Ahead> {
        empty(&order.folder)?;
        let plan = Plan::new(order.config.restore_prefetch, order.readers_max);
        Ok(Ahead(Arc::new(Shared {
            order,
            desk: Mutex::new(Desk {
                plan,
                threads: Vec::new(),
                working: 0,
                taken: 0,
                stopped: false,
            }),
            news: Condvar::new(),
        })))
    }

    /// The segment `name`, if it was fetched ahead or is just being fetched.
    pub fn take(&self, name: &str) -> Option<Taken> {
        let shared = &self.0;
        let deadline = Instant::now() + PATIENCE;
        let mut desk = shared.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match desk.plan.find(name)? {
                Stage::Ready => break,
                Stage::Underway if left.is_zero() => return None,
                Stage::Underway => {
                    let waited = shared.news.wait_timeout(desk, left);
                    desk = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        let useless = desk.plan.take(name, Instant::now());
        desk.taken += 1;
        let path = shared.order.folder.join(format!("{TAKEN}{}", desk.taken));
        let renamed = fs::rename(shared.order.folder.join(name), &path);
        shared.refill(desk, &useless);
        renamed.ok().map(|()| Taken { path })
    }

    /// A server gets the segment `name`, of `bytes` bytes, by another way, and will go on from it.
    pub fn asked(&self, name: &str, bytes: u64) {
        let Some(size) = SegmentSize::new(bytes) else {
            return;
        };
        let mut desk = self.0.lock();
        let useless = desk.plan.asked(name, size, Instant::now());
        self.0.refill(desk, &useless);
    }

    /// Ends all fetches and waits for that; nothing is left in the folder.
    pub fn stop(self) -> Outcome<()> {
        let mut desk = self.0.lock();
        desk.stopped = true;
        let threads = std::mem::take(&mut desk.threads);
        drop(desk);
        self.0.news.notify_all();
        for thread in threads {
            // A panic on that thread was printed when it happened.
            let _ended = thread.join();
        }
        empty(&self.0.order.folder)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.news.notify_all();
    }
}

const TAKEN: &str = "taken.";

/// A whole segment that belongs to nobody else. Gone when it was not handed over.
#[derive(Debug)]
pub struct Taken {
    path: PathBuf,
}

impl Taken {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let _handed_over = fs::remove_file(&self.path);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what nobody wants any more, and has somebody fetch what is wanted.
    fn refill(self: &Arc<Self>, mut desk: MutexGuard<'_, Desk>, useless: &[String]) {
        self.remove(useless);
        desk.threads.retain(|thread| !thread.is_finished());
        let wanted = self.order.config.restore_prefetch.min(THREADS_MAX);
        while !desk.stopped && !desk.plan.is_idle() && desk.working < wanted {
            let shared = Arc::clone(self);
            let run = move || shared.work();
            // Without a thread there is less look-ahead, or none.
            match thread::Builder::new().name("ahead".into()).spawn(run) {
                Ok(thread) => desk.threads.push(thread),
                Err(_) => break,
            }
            desk.working += 1;
        }
        drop(desk);
        self.news.notify_all();
    }

    fn remove(&self, names: &[String]) {
        for name in names {
            let _gone = fs::remove_file(self.order.folder.join(name));
        }
    }

    /// One thread: until nobody reads.
    fn work(&self) {
        let mut opened: Option<Vec<Opened<'_>>> = None;
        let mut desk = self.lock();
        while !desk.stopped {
            let useless = desk.plan.expire(Instant::now());
            self.remove(&useless);
            let Some(job) = desk.plan.begin() else {
                if desk.plan.is_idle() {
                    break;
                }
                let waited = self.news.wait_timeout(desk, SILENCE);
                desk = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            };
            drop(desk);
            if opened.is_none() {
                opened = self.open().map_err(debug).ok();
            }
            let done = self.act(job, opened.as_deref());
            desk = self.lock();
            match done {
                Done::Segment(name, got) => {
                    if !desk.plan.fetched(&name, got) {
                        self.remove(&[name]);
                    }
                }
                Done::Histories(newest) => {
                    let useless = newest.map(|newest| desk.plan.learned(&newest));
                    self.remove(&useless.unwrap_or_default());
                }
            }
            self.news.notify_all();
        }
        desk.working = desk.working.saturating_sub(1);
    }

    fn open(&self) -> Outcome<Vec<Opened<'_>>> {
        let config = &self.order.config;
        let site = config.site(Some(&self.order.site))?;
        config.related(site).into_iter().map(Opened::new).collect()
    }

    /// `None`: the stores could not even be opened.
    fn act(&self, job: Job, opened: Option<&[Opened<'_>]>) -> Done {
        let (config, cluster) = (&self.order.config, self.order.cluster);
        let places = opened.map(|opened| Places::new(opened, config, cluster));
        match job {
            Job::Segment(name) => {
                let got = places.map_or(Got::Failed, |places| self.fetch(&places, &name));
                Done::Segment(name, got)
            }
            Job::Histories(after) => {
                let newest = places.map(|places| guarded(|| self.newest(&places, after)));
                Done::Histories(newest.and_then(|newest| newest.map_err(debug).ok().flatten()))
            }
        }
    }

    fn fetch(&self, places: &Places<'_>, name: &str) -> Got {
        let output = self.order.folder.join(name);
        let fetched = guarded(|| {
            self.room()?;
            wal::fetch_full(places, name, &output)
        });
        match fetched.map_err(debug) {
            Ok(true) => Got::Whole,
            Ok(false) => Got::Absent,
            Err(()) => Got::Failed,
        }
    }

    fn room(&self) -> Outcome<()> {
        let folder = &self.order.folder;
        match durable::free_bytes(folder)? >= ROOM_KEPT {
            true => Ok(()),
            false => Err(Failure::new(
                Class::DiskFull,
                format!("{}: no room to fetch WAL ahead", folder.display()),
            )),
        }
    }

    /// The history of the newest timeline of those that follow `after` without a gap, as
    /// PostgreSQL looks for it (`timeline.c`, `findNewestTimeLine`).
    fn newest(&self, places: &Places<'_>, after: Timeline) -> Outcome<Option<History>> {
        let mut newest = None;
        for step in 1..=TIMELINES_MAX {
            let next = Timeline(after.0.saturating_add(step));
            if !wal::exists(places, &next.history_name())? {
                break;
            }
            newest = Some(next);
        }
        let Some(newest) = newest else {
            return Ok(None);
        };
        let name = newest.history_name();
        let output = self.order.folder.join(&name);
        if !wal::fetch_full(places, &name, &output)? {
            return Ok(None);
        }
        let content = fs::read(&output).map_err(|e| Failure::io(&e, output.display()));
        self.remove(&[name]);
        History::parse(newest, &content?).map(Some)
    }
}

/// What came of a job.
enum Done {
    Segment(String, Got),
    Histories(Option<History>),
}

/// A decoder that panics over what is damaged says no more than one that fails.
fn guarded<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let message = "a thread that fetches ahead panicked";
        Err(Failure::new(Class::Internal, message))
    })
}

/// Whoever asks for the file gets its failure from the store itself.
fn debug(failure: Failure) {
    log::debug!("fetching ahead: {failure}");
}

/// Nothing that an earlier process fetched is believed.
fn empty(folder: &Path) -> Outcome<()> {
    let told = |e: io::Error| Failure::io(&e, folder.display());
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(told)?,
    };
    for entry in entries {
        fs::remove_file(entry.map_err(told)?.path()).map_err(told)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
