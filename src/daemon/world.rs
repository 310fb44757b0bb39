//! Tasks as threads. Each runs once, reports by events and ends with a closing report, whatever
//! happens inside it: a panic is a failed task, never a silent one (S-70).

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use machine::decide::Busy;
use machine::policy::{Ack, Policy};
use machine::projection::marks::Hole;
use machine::rule::coverage::Live;
use machine::task::{Means, Start};
use machine::{
    BackupName, Class, Envelope, Event, File, Lsn, Millis, SegmentSize, Site, SiteState, State,
    Task, TaskId, Timeline,
};

use crate::clock;
use crate::config::{self, Config};
use crate::daemon::Sites;
use crate::daemon::front::Front;
use crate::daemon::site::{self, SiteContext};
use crate::daemon::take::Take;
use crate::daemon::tenant::{Room, Tenant};
use crate::daemon::{status, verify};
use crate::failure::{Failure, Outcome};
use crate::journal::run::{Report, World};
use crate::journal::{chunk, log};
use crate::pg::conninfo::Conninfo;
use crate::publish::story::Story;
use crate::source::fetch::Fetch;
use crate::source::probe::Probe;
use crate::source::receive::{Marks, Receive};
use crate::source::switch_wal;
use crate::work::delete::Doomed;
use crate::work::export::Export;
use crate::work::lease::Identity;
use crate::work::reconcile::Known;
use crate::work::{delete, export, marks, reconcile};

pub struct RealWorld {
    pub config: Arc<Config>,
    sites: Sites,
    reports: SyncSender<Report>,
    entries: Arc<AtomicU64>,
    /// Stop flags and numbers of what runs; receivers and basebackups look at them.
    marks: BTreeMap<TaskId, Arc<Marks>>,
    tenant: Tenant,
    room: Room,
    pub front: Front,
    story: Story,
    published: Option<Instant>,
}

/// Files are looked after at most this often: the loop may turn hundreds of times a second.
const PUBLISH_EVERY: Duration = Duration::from_millis(250);

const SWITCH_DEADLINE: Duration = Duration::from_secs(20);

impl RealWorld {
    pub fn new(
        config: &Arc<Config>,
        sites: Sites,
        reports: SyncSender<Report>,
        (entries, identity): (Arc<AtomicU64>, Identity),
        front: Front,
    ) -> RealWorld {
        RealWorld {
            config: Arc::clone(config),
            sites,
            reports,
            entries,
            marks: BTreeMap::new(),
            tenant: Tenant::new(identity),
            room: Room::default(),
            front,
            story: Story::default(),
            published: None,
        }
    }

    /// Another configuration. What holds to something that changed ends in order, and decide begins
    /// it anew; everything else ends by what it began with, a basebackup above all.
    pub fn adopt(&mut self, config: &Arc<Config>, sites: Sites) {
        for (id, marks) in &self.marks {
            let both = self.sites.get(id.site()).zip(sites.get(id.site()));
            if both.is_some_and(|(old, new)| old.outdated(new, id)) {
                marks.stop.store(true, Ordering::SeqCst);
            }
        }
        self.config = Arc::clone(config);
        self.sites.extend(sites);
    }

    pub fn sites(&self) -> &Sites {
        &self.sites
    }

    /// Since when reception pauses for want of room, by site.
    pub fn cramped(&mut self) -> BTreeMap<Site, Millis> {
        self.room.cramped(&self.sites, clock::now())
    }

    /// Runs `job` on a thread of its own; what it answers closes the task, and so does a panic.
    fn spawn(
        &self,
        task: &Task,
        job: impl FnOnce(&mut dyn FnMut(Event)) -> Outcome<Vec<Event>> + Send + 'static,
    ) -> Outcome<()> {
        let (task, id) = (task.clone(), task.id());
        let reports = self.reports.clone();
        let thread = thread::Builder::new().name(id.name().into());
        let body = move || {
            // Sending fails only when the loop is gone, and the process with it.
            let mut emit = |event| drop(reports.send(Report::going(&id, event)));
            let ended = catch_unwind(AssertUnwindSafe(|| job(&mut emit)));
            let ended = ended.unwrap_or_else(|_| {
                Err(Failure::new(
                    Class::Internal,
                    "a task of ours panicked; please report it",
                ))
            });
            let events = ended
                .unwrap_or_else(|failure| vec![task.failed(failure.class, failure.to_string())]);
            drop(reports.send(Report::closing(&id, events)));
        };
        match thread.spawn(body) {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::io(&error, "no thread for a task")),
        }
    }

    fn mark(&mut self, id: &TaskId) -> Arc<Marks> {
        let marks = Arc::new(Marks::default());
        self.marks.insert(id.clone(), Arc::clone(&marks));
        marks
    }

    fn receive(
        &mut self,
        context: &SiteContext,
        task: &Task,
        node: u32,
        start: Start,
        site: &SiteState,
    ) -> Outcome<()> {
        let info = info(context, node)?;
        let marks = self.mark(&task.id());
        self.acknowledge(&task.id(), site);
        let receive = Receive {
            node,
            info,
            start,
            ack: match context.config.ack {
                config::Ack::Stored => Ack::Stored,
                config::Ack::Spooled => Ack::Spooled,
            },
            system_id: site.servers.system_id,
            spool: context.spool.clone(),
            marks,
            entries: Arc::clone(&self.entries),
        };
        self.spawn(task, move |emit| {
            let mut last = Vec::new();
            receive.run(&mut |event| match event {
                Event::StreamEnded { .. } => last.push(event),
                other => emit(other),
            });
            Ok(last)
        })
    }

    fn probe(
        &self,
        context: Arc<SiteContext>,
        task: &Task,
        node: u32,
        site: &SiteState,
    ) -> Outcome<()> {
        let info = info(&context, node)?;
        let entries = Arc::clone(&self.entries);
        let (held, timelines) = (histories(site), site.timelines.clone());
        let system_id = site.servers.system_id;
        self.spawn(task, move |_| {
            let probe = Probe {
                node,
                info: &info,
                system_id,
                spool: &context.spool,
                held,
                timelines,
                entries: &entries,
            };
            Ok(probe.run())
        })
    }

    fn take(
        &mut self,
        context: Arc<SiteContext>,
        task: &Task,
        (node, backup): (u32, BackupName),
        site: &SiteState,
    ) -> Outcome<()> {
        let marks = self.mark(&task.id());
        let system_id = site.servers.system_id;
        let decided = site.backups.all.get(&backup).cloned();
        let entries = Arc::clone(&self.entries);
        self.spawn(task, move |emit| {
            let entry = || entries.fetch_add(1, Ordering::SeqCst);
            let info = info(&context, node)?;
            let unknown = || Failure::new(Class::Internal, format!("no backup '{backup}'"));
            let take = Take {
                context: &context,
                info: &info,
                backup: &backup,
                decided: &decided.ok_or_else(unknown)?,
                marks: &marks,
                system_id,
            };
            take.run(entry, emit)
        })
    }

    /// The log is read beside the loop that writes it: a committed line never changes.
    fn export(
        &self,
        context: Arc<SiteContext>,
        task: &Task,
        (first, last): (u64, u64),
    ) -> Outcome<()> {
        let job = task.clone();
        let folder = self.config.backup_location.clone().unwrap_or_default();
        // What becomes of its history is told where the site's own life is.
        let history = self.config.history(&context.config).into_iter();
        let history = history.map(|older| Site(older.name.clone()));
        let mut sites: Vec<Site> = history.collect();
        sites.push(task.id().site().clone());
        self.spawn(task, move |_| {
            let lines = log::lines(&folder.join(log::FILE_NAME), first, last)?;
            let sealed = chunk::seal(&sites, &lines)?;
            let export = Export {
                first,
                last,
                object: sealed.object,
                events: sealed.events,
                content: sealed.content,
                metadata: sealed.metadata,
                identity: chunk::LAST_DIGEST,
            };
            collect(&job, |emit| export::run(&context.place, &export, emit))
        })
    }

    fn store(
        &self,
        context: Arc<SiteContext>,
        task: &Task,
        (file, entry): (File, u64),
        site: &SiteState,
    ) -> Outcome<()> {
        let size = site.ledger.segment_size.unwrap_or(SegmentSize::DEFAULT);
        let metadata = site::metadata(&context, site, &file, size);
        let damaged = site.ledger.damaged.get(&file).copied();
        let job = task.clone();
        self.spawn(task, move |_| {
            collect(&job, |emit| {
                verify::upload(&context, (&file, entry), size, damaged, metadata, emit)
            })
        })
    }

    fn delete_wal(&self, context: Arc<SiteContext>, task: &Task, size: SegmentSize) -> Outcome<()> {
        let job = task.clone();
        self.spawn(task, move |_| {
            let Task::DeleteWal {
                ranges,
                retire,
                forget,
                ..
            } = &job
            else {
                return Ok(Vec::new());
            };
            let wal = delete::Wal {
                ranges,
                retire,
                forget,
            };
            collect(&job, |emit| delete::wal(&context.place, wal, size, emit))
        })
    }

    fn delete_backup(
        &self,
        context: Arc<SiteContext>,
        task: &Task,
        size: SegmentSize,
    ) -> Outcome<()> {
        let Task::DeleteBackup {
            backup,
            object,
            unless_held_at,
            ..
        } = task.clone()
        else {
            return Err(Failure::new(
                Class::Internal,
                format!("not to be deleted: {task:?}"),
            ));
        };
        let job = task.clone();
        self.spawn(task, move |_| {
            let doomed = Doomed {
                name: &backup,
                object: object.as_deref(),
                unless_held_at,
            };
            collect(&job, |emit| {
                delete::backup(&context.place, doomed, size, emit)
            })
        })
    }

    fn fetch(
        &mut self,
        context: Arc<SiteContext>,
        task: &Task,
        means: Means,
        hole: Hole,
        site: &SiteState,
    ) -> Outcome<()> {
        let marks = self.mark(&task.id());
        let entries = Arc::clone(&self.entries);
        let system_id = site.servers.system_id;
        let size = site.ledger.segment_size.unwrap_or(SegmentSize::DEFAULT);
        self.spawn(task, move |emit| {
            let fetch = Fetch {
                means,
                hole,
                size,
                system_id,
                spool: &context.spool,
                entries: &entries,
                marks: &marks,
            };
            match (means, &context.config.pg_data_directory) {
                (Means::Server(node), _) => fetch.from_server(&info(&context, node)?, emit)?,
                (Means::Directory, Some(pgdata)) => fetch.from_directory(pgdata, emit)?,
                (Means::Directory, None) => {
                    let message = "pg_data_directory is not set";
                    return Err(Failure::new(Class::Config, message));
                }
            }
            Ok(Vec::new())
        })
    }

    /// Whoever takes a backup is told how far the stream has come, and, when it waits to make it
    /// visible, that the WAL it needs is there.
    fn release(&self, id: &TaskId, site: &SiteState) {
        let stream = self.marks.get(&TaskId::Receive(id.site().clone()));
        if let (Some(marks), Some(stream)) = (self.marks.get(id), stream) {
            let synced = stream.synced.load(Ordering::SeqCst);
            marks.synced.store(synced, Ordering::SeqCst);
        }
        let ready = site.backups.ready(&site.ledger);
        // Beside another daemon nothing more is stored.
        let ready = ready.filter(|_| site.tenure.foreign().is_none());
        let end = ready.and_then(|(_, content)| content.end_lsn);
        if let (Some(marks), Some(end)) = (self.marks.get(id), end) {
            marks.stored.store(end.0, Ordering::SeqCst);
        }
    }

    /// What the running stream may tell its server: the frontier as the state has it.
    fn acknowledge(&self, id: &TaskId, site: &SiteState) {
        let timeline = site
            .servers
            .stream
            .as_ref()
            .map(|stream| stream.next.timeline);
        if let (Some(marks), Some(timeline)) = (self.marks.get(id), timeline) {
            let stored = site.ledger.acknowledged(timeline, &site.timelines);
            marks.stored.store(stored.0, Ordering::SeqCst);
        }
    }
}

impl RealWorld {
    /// Alert files, the state file, metrics.
    pub fn show(&mut self, state: &State, policy: &Policy, busy: &Busy) {
        let live = self.live(clock::now());
        for event in self.front.show(state, policy, busy, &live) {
            drop(self.reports.try_send(Report::outside(None, event)));
        }
    }

    fn live(&mut self, now: Millis) -> Live {
        let receiving = self.marks.iter().filter_map(|(id, marks)| match id {
            TaskId::Receive(site) => Some((site.clone(), Lsn(marks.synced.load(Ordering::SeqCst)))),
            _ => None,
        });
        Live {
            received: receiving.collect(),
            space: self.room.look(&self.sites, now),
        }
    }
}

/// Collects a task's events; on failure what happened before it is told as well.
fn collect(
    task: &Task,
    job: impl FnOnce(&mut dyn FnMut(Event)) -> Outcome<()>,
) -> Outcome<Vec<Event>> {
    let mut events = Vec::new();
    if let Err(failure) = job(&mut |event| events.push(event)) {
        events.push(task.failed(failure.class, failure.to_string()));
    }
    Ok(events)
}

fn info(context: &SiteContext, node: u32) -> Outcome<Conninfo> {
    let found = usize::try_from(node)
        .ok()
        .and_then(|node| context.nodes.get(node));
    found
        .cloned()
        .ok_or_else(|| Failure::new(Class::Config, format!("node {node} is not configured")))
}

impl World for RealWorld {
    fn now(&mut self) -> Millis {
        clock::now()
    }

    fn start(&mut self, task: &Task, state: &State) -> Outcome<()> {
        let id = task.id();
        let context = self.sites.get(id.site()).cloned().ok_or_else(|| {
            Failure::new(
                Class::Config,
                format!("site '{}' is not configured", id.site()),
            )
        })?;
        // Each task takes a copy of what it needs and no more: a site's state may be large.
        let unknown = SiteState::default();
        let site = state.sites.get(id.site()).unwrap_or(&unknown);
        let size = site.ledger.segment_size.unwrap_or(SegmentSize::DEFAULT);
        ::log::debug!("starting {id}");
        let job = task.clone();
        match task.clone() {
            Task::Receive { node, start, .. } => self.receive(&context, task, node, start, site),
            Task::Probe { node, .. } => self.probe(context, task, node, site),
            Task::Store { file, entry, .. } => self.store(context, task, (file, entry), site),
            Task::Take { node, backup, .. } => self.take(context, task, (node, backup), site),
            Task::Switch { node, .. } => {
                let info = info(&context, node)?;
                self.spawn(task, move |_| {
                    let at = switch_wal(&info, Instant::now() + SWITCH_DEADLINE)?;
                    Ok(vec![Event::Switched { node, at }])
                })
            }
            Task::DeleteBackup { .. } => self.delete_backup(context, task, size),
            Task::DeleteWal { .. } => self.delete_wal(context, task, size),
            Task::Reconcile { .. } => {
                let known = Known {
                    ledger: site.ledger.clone(),
                    backups: site.backups.clone(),
                };
                self.spawn(task, move |_| {
                    collect(&job, |emit| reconcile::run(&context.place, &known, emit))
                })
            }
            Task::ReadMarks { .. } => {
                let known = site.marks.clone();
                self.spawn(task, move |_| {
                    collect(&job, |emit| marks::read(&context.place, &known, emit))
                })
            }
            Task::Lease { .. } => {
                let hold = self.tenant.hold(&id, context);
                let marks = self.mark(&id);
                self.spawn(task, move |emit| hold.run(&marks.stop, emit))
            }
            Task::Verify { what, .. } => {
                let marks = self.mark(&id);
                let facts = verify::Facts::of(site);
                self.spawn(task, move |emit| {
                    verify::scrub(&context, facts, &what, marks, emit).map(|()| Vec::new())
                })
            }
            Task::Export { first, last, .. } => self.export(context, task, (first, last)),
            Task::Fetch { means, hole, .. } => self.fetch(context, task, means, hole, site),
        }
    }

    fn stop(&mut self, id: &TaskId) {
        if let Some(marks) = self.marks.get(id) {
            marks.stop.store(true, Ordering::SeqCst);
        }
    }

    fn discard(&mut self, site: &Site, file: &File, state: &State) {
        let Some(context) = self.sites.get(site) else {
            return;
        };
        let size = state
            .sites
            .get(site)
            .and_then(|site| site.ledger.segment_size);
        let name = file.spool_name(size.unwrap_or(SegmentSize::DEFAULT));
        if let Err(failure) = context.spool.remove(&name) {
            // It is found again, and stored again, at the next start.
            ::log::warn!("{failure}");
        }
    }

    fn told(&mut self, envelope: &Envelope) {
        self.front.desk.told(envelope);
        self.story.learn(envelope);
        let site = envelope
            .site
            .as_ref()
            .map(|site| format!("{site}: "))
            .unwrap_or_default();
        ::log::log!(
            status::level(&envelope.event),
            "{site}{}",
            self.story.tell(envelope)
        );
    }

    fn publish(&mut self, state: &State, policy: &Policy, busy: &Busy) {
        self.marks.retain(|id, _| busy.contains_key(id));
        // What runs of a site that the configuration has no more needs it to its end.
        self.sites.retain(|name, _| {
            policy.sites.contains_key(name) || busy.keys().any(|id| id.site() == name)
        });
        for id in busy.keys() {
            match (id, state.sites.get(id.site())) {
                (TaskId::Receive(_), Some(site)) => self.acknowledge(id, site),
                (TaskId::Take(_), Some(site)) => self.release(id, site),
                _ => {}
            }
        }
        if self
            .published
            .is_none_or(|at| at.elapsed() >= PUBLISH_EVERY)
        {
            self.published = Some(Instant::now());
            self.front.desk.know(state);
            self.show(state, policy, busy);
        }
    }
}

fn histories(site: &SiteState) -> BTreeSet<Timeline> {
    let spooled = site.ledger.spool.keys().filter_map(|file| match file {
        File::History(timeline) => Some(*timeline),
        File::Wal(_) | File::Partial(_) | File::Part { .. } | File::Main(_) => None,
    });
    site.ledger
        .histories
        .iter()
        .copied()
        .chain(spooled)
        .collect()
}
