//! `archive_command`'s files: taken into the spool, answered once they are safe.
//!
//! Safe is what the site's `ack` says: in the store, or synced in the spool and in the log. The
//! answer waits for the event that says so and for nothing else. What PostgreSQL keeps until it is
//! stored is not copied. While PostgreSQL waits for one
//! segment, those that are ready after it are taken as well, so that every core has something to
//! encode: PostgreSQL hands over one at a time, and when it comes to them they are stored.
//!
//! Budget: one ticket a file on its way; the files themselves are in the spool.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use machine::policy::Ack;
use machine::{Class, Envelope, Event, File, Site, State};

use super::answer::Answer;
use crate::failure::{Failure, Outcome};
use crate::journal::run::Report;
use crate::source::archive::{self, Intake};
use crate::spool::Spool;
use crate::spool::lent::{Lying, Stamp};

/// As PGHoard waits. The work goes on, and the next request for the file finds it done.
const WAIT: Duration = Duration::from_secs(30);
/// Threads that take a site's files: one copies while the disk still syncs what the other copied.
const LOOKING_MAX: usize = 2;
/// Tickets that nobody came for make room from here on.
const TICKETS_MAX: usize = 256;

/// One site's way in.
pub struct Door {
    pub spool: Spool,
    /// Where the server is on this machine.
    pub pg_wal: Option<std::path::PathBuf>,
    pub ack: Ack,
    /// So many files are taken ahead at most; more are looked for when half of them are in.
    pub ahead: usize,
}

pub type Doors = BTreeMap<Site, Arc<Door>>;

/// Between the requests and the loop.
pub struct Desk {
    doors: Mutex<Doors>,
    entries: Arc<AtomicU64>,
    reports: SyncSender<Report>,
    open: Mutex<Open>,
    news: Condvar,
}

#[derive(Default)]
struct Open {
    tickets: BTreeMap<(Site, String), Ticket>,
    clusters: BTreeMap<Site, u64>,
    /// Sites whose ready files are being taken, one entry a thread.
    looking: Vec<Site>,
    issued: u64,
}

impl Open {
    /// Files of a site without a verdict.
    fn on_the_way(&self, site: &Site) -> usize {
        let of_site = self.tickets.iter().filter(|((of, _), _)| of == site);
        of_site
            .filter(|(_, ticket)| ticket.verdict.is_none())
            .count()
    }
}

struct Ticket {
    number: u64,
    stamp: Option<Stamp>,
    /// Known once it was judged.
    file: Option<File>,
    /// It is read where it lies, under this entry.
    lent: Option<u64>,
    /// Its content was compared with what the spool has of it; until then what is told of its name
    /// may be of another content.
    compared: bool,
    early: Option<Result<(), Failure>>,
    verdict: Option<Result<(), Failure>>,
}

impl Ticket {
    fn is(&self, file: &File) -> bool {
        self.file.as_ref() == Some(file)
    }
}

impl Desk {
    pub fn new(doors: Doors, entries: Arc<AtomicU64>, reports: SyncSender<Report>) -> Desk {
        Desk {
            doors: Mutex::new(doors),
            entries,
            reports,
            open: Mutex::default(),
            news: Condvar::new(),
        }
    }

    /// A committed event, in the order of the log.
    pub fn told(&self, envelope: &Envelope) {
        let Some(site) = &envelope.site else { return };
        let Ok(door) = self.door(site) else {
            return;
        };
        let spooled = door.ack == Ack::Spooled;
        let again = |why| {
            Err(Failure::new(
                Class::Interrupted,
                format!("{why}, ask again"),
            ))
        };
        let mut open = self.lock();
        for ((of, name), ticket) in &mut open.tickets {
            let verdict = match &envelope.event {
                Event::Stored { file, entry, .. } if ticket.is(file) => match ticket.lent {
                    // Ours was not compared with what is stored.
                    Some(lent) if *entry != Some(lent) => again("another was stored"),
                    Some(_) | None => Ok(()),
                },
                Event::Spooled { file, .. } if ticket.is(file) => {
                    match spooled && ticket.lent.is_none() {
                        true => Ok(()),
                        false => continue,
                    }
                }
                Event::Conflicted { file, .. } if ticket.is(file) => Err(conflict(name)),
                Event::Dropped { file, .. } if ticket.is(file) => again("the spool lost it"),
                _ => continue,
            };
            if of == site {
                match ticket.compared {
                    true => ticket.verdict = Some(verdict),
                    false => ticket.early = Some(verdict),
                }
            }
        }
        self.news.notify_all();
    }

    /// Whose WAL each site takes.
    pub fn know(&self, state: &State) {
        let sites = state.sites.iter();
        let known = sites.filter_map(|(name, site)| Some((name.clone(), site.servers.system_id?)));
        self.lock().clusters = known.collect();
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other sites, or other settings; a file that is on its way goes through its old door.
    pub fn adopt(&self, doors: Doors) {
        *self.doors.lock().unwrap_or_else(PoisonError::into_inner) = doors;
    }

    fn door(&self, site: &Site) -> Outcome<Arc<Door>> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors
            .get(site)
            .cloned()
            .ok_or_else(|| Failure::new(Class::Config, format!("site '{site}' is not active")))
    }

    /// PostgreSQL's request for a file of its `pg_wal`.
    pub fn archive(self: &Arc<Self>, site: &Site, name: &str) -> Outcome<()> {
        let door = self.door(site)?;
        let pg_wal = door.pg_wal.as_deref().ok_or_else(|| {
            Failure::new(
                Class::Config,
                format!("site '{site}' has no pg_data_directory"),
            )
            .hint("set it, or let pghoard_postgres_command send the file")
        })?;
        let lying = archive::lying(pg_wal, name)?;
        let deadline = Instant::now() + WAIT;
        let key = (site.clone(), name.to_owned());
        if let Some(number) = self.draw(&key, Some(lying.stamp)) {
            self.take(site, &door, name, number, lying);
        }
        self.look_ahead(site, &door, name);
        self.wait(&key, deadline)
    }

    /// What came as the body of a request.
    pub fn finish(&self, site: &Site, name: &str, intake: Intake) -> Outcome<()> {
        let key = (site.clone(), name.to_owned());
        let deadline = Instant::now() + WAIT;
        if let Some(number) = self.draw(&key, None) {
            let door = self.door(site)?;
            self.hand(site, &door, name, number, Ok(intake));
        }
        self.wait(&key, deadline)
    }

    pub fn begin(&self, site: &Site, name: &str) -> Outcome<Intake> {
        Intake::new(&self.door(site)?.spool, name)
    }

    /// A ticket's number for whoever has to bring the file in; `None` where that very file is on
    /// its way or in.
    fn draw(&self, key: &(Site, String), stamp: Option<Stamp>) -> Option<u64> {
        let mut open = self.lock();
        let same = open.tickets.get(key).is_some_and(|ticket| {
            stamp.is_some() && ticket.stamp == stamp && !matches!(ticket.verdict, Some(Err(_)))
        });
        if same {
            return None;
        }
        open.issued += 1;
        let number = open.issued;
        let ticket = Ticket {
            number,
            stamp,
            file: None,
            lent: None,
            compared: false,
            early: None,
            verdict: None,
        };
        open.tickets.insert(key.clone(), ticket);
        while open.tickets.len() > TICKETS_MAX {
            let done = open.tickets.iter().filter(|(_, t)| t.verdict.is_some());
            let Some(oldest) = done.min_by_key(|(_, t)| t.number).map(|(k, _)| k.clone()) else {
                break;
            };
            open.tickets.remove(&oldest);
        }
        Some(number)
    }

    fn take(&self, site: &Site, door: &Door, name: &str, number: u64, lying: Lying) {
        let intake = match door.ack {
            Ack::Stored => Intake::lying(&door.spool, name, lying),
            Ack::Spooled => Intake::copied(&door.spool, name, lying),
        };
        self.hand(site, door, name, number, intake);
    }

    /// To the loop, or the reason why not to whoever waits.
    fn hand(&self, site: &Site, door: &Door, name: &str, number: u64, intake: Outcome<Intake>) {
        let key = (site.clone(), name.to_owned());
        let handed = intake.and_then(|intake| {
            let cluster = self.lock().clusters.get(site).copied();
            let judged = intake.judge(cluster)?;
            self.change(&key, number, |ticket| {
                ticket.file = Some(judged.file.clone())
            });
            let taken = judged.take(|| self.entries.fetch_add(1, Ordering::SeqCst))?;
            self.change(&key, number, |ticket| {
                ticket.lent = taken.lent;
                ticket.compared = true;
                // The same content was there already: what was told meanwhile was of it.
                if taken.event.is_none() {
                    ticket.verdict = ticket.early.take();
                }
            });
            match taken.event {
                Some(event) => {
                    let report = Report::outside(Some(site.clone()), event);
                    let sent = self.reports.send(report);
                    sent.map_err(|_| Failure::new(Class::Interrupted, "the daemon is stopping"))
                }
                // The log knows it, and it is synced.
                None if door.ack == Ack::Spooled => {
                    self.change(&key, number, |ticket| ticket.verdict = Some(Ok(())));
                    Ok(())
                }
                None => Ok(()),
            }
        });
        if let Err(failure) = handed {
            self.change(&key, number, |ticket| ticket.verdict = Some(Err(failure)));
        }
        self.news.notify_all();
    }

    fn change(&self, key: &(Site, String), number: u64, change: impl FnOnce(&mut Ticket)) {
        let mut open = self.lock();
        if let Some(ticket) = open.tickets.get_mut(key).filter(|t| t.number == number) {
            change(ticket);
        }
    }

    /// Until there is a verdict, which goes with its ticket.
    fn wait(&self, key: &(Site, String), deadline: Instant) -> Outcome<()> {
        let mut open = self.lock();
        loop {
            let verdict = match open.tickets.get(key) {
                Some(ticket) => ticket.verdict.clone(),
                // Another request for the same file took it.
                None => return Err(Failure::new(Class::Interrupted, "ask again")),
            };
            if let Some(verdict) = verdict {
                open.tickets.remove(key);
                return verdict;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // The next request hands it over anew, lest anything was missed; what is in the
                // spool already is found there.
                open.tickets.remove(key);
                return Err(Failure::new(Class::Timeout, "TIMEOUT"));
            }
            let waited = self.news.wait_timeout(open, left);
            open = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes what is ready after `name`, on a thread of its own.
    fn look_ahead(self: &Arc<Self>, site: &Site, door: &Arc<Door>, name: &str) {
        {
            let mut open = self.lock();
            let looking = open.looking.iter().filter(|of| *of == site);
            let enough = door.ahead.div_ceil(2);
            if looking.count() >= LOOKING_MAX || open.on_the_way(site) > enough {
                return;
            }
            open.looking.push(site.clone());
        }
        let (desk, site, name) = (Arc::clone(self), site.clone(), name.to_owned());
        let door = Arc::clone(door);
        let looking = Looking {
            desk: Arc::clone(self),
            site: site.clone(),
        };
        let body = move || {
            let looking = looking;
            if let Some(pg_wal) = door.pg_wal.as_deref() {
                desk.take_ahead(&site, &door, pg_wal, &name);
            }
            drop(looking);
        };
        // Without a thread PostgreSQL's next request does the same.
        let _unhelped = thread::Builder::new().name("archive".into()).spawn(body);
    }

    fn take_ahead(&self, site: &Site, door: &Door, pg_wal: &Path, name: &str) {
        for next in archive::ready(pg_wal) {
            if self.lock().on_the_way(site) > door.ahead {
                return;
            }
            if next == name {
                continue;
            }
            let key = (site.clone(), next.clone());
            let Ok(lying) = archive::lying(pg_wal, &next) else {
                continue;
            };
            if let Some(number) = self.draw(&key, Some(lying.stamp)) {
                self.take(site, door, &next, number, lying);
            }
        }
    }
}

/// A thread looks ahead for a site, until this is dropped.
struct Looking {
    desk: Arc<Desk>,
    site: Site,
}

impl Drop for Looking {
    fn drop(&mut self) {
        let mut open = self.desk.lock();
        if let Some(at) = open.looking.iter().position(|site| *site == self.site) {
            open.looking.remove(at);
        }
    }
}

fn conflict(name: &str) -> Failure {
    Failure::new(
        Class::Conflict,
        format!("'{name}' is archived already with other content; both are kept"),
    )
}

/// PGHoard's codes: 412 for a segment that is not what its name says, 404 for none.
pub fn answer(done: Outcome<()>) -> Answer {
    let failure = match done {
        Ok(()) => return Answer::new(StatusCode::CREATED),
        Err(failure) => failure,
    };
    let status = match failure.class {
        Class::NotFound => StatusCode::NOT_FOUND,
        Class::Corrupt => StatusCode::PRECONDITION_FAILED,
        Class::Conflict => StatusCode::CONFLICT,
        Class::Timeout => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    Answer::text(status, failure.message)
}
