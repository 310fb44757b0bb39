//! The replication stream into the spool, and what the server may be told of it.
//!
//! One thread a stream. Bytes go into `NAME.partial` as they come; a full segment is synced and
//! sealed, then told. What is acknowledged: with `ack: "stored"` the frontier, a number the loop
//! folds; with `"spooled"` the byte up to which the partial file is synced. Idle time never seals
//! a half segment (S-02), and write and apply are never reported beyond flush (S-03).
//!
//! Budget: one fsync and one rename a segment, one fsync a second of a partial in between (with
//! `"spooled"` one whenever the socket runs dry), 256 KiB of buffer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use machine::event::Origin;
use machine::policy::Ack;
use machine::task::Start;
use machine::{Class, Event, File, Lsn, Segment, SegmentSize, Timeline};

use crate::failure::{Failure, Outcome};
use crate::pg::connection::{Connection, Mode};
use crate::pg::conninfo::Conninfo;
use crate::pg::fault::{Answer, Fault, SqlState};
use crate::pg::files::{WAL_HEADER_BYTES, WalHeader};
use crate::pg::replication::{self, Identity, Reply, Slot, Status, Wal, WalStream};
use crate::spool::{Partial, Sealed, Spool};

/// Numbers shared with the loop while the stream runs.
#[derive(Debug, Default)]
pub struct Marks {
    pub stop: AtomicBool,
    /// Up to where the store holds WAL, as the folded state says; for who takes a basebackup where
    /// that ends, once nothing but its object is missing.
    pub stored: AtomicU64,
    /// Up to where the spool's files are synced; for who takes a basebackup those of the stream.
    pub synced: AtomicU64,
    /// What the server was last told.
    pub told: AtomicU64,
}

pub struct Receive {
    pub node: u32,
    pub info: Conninfo,
    pub start: Start,
    pub ack: Ack,
    pub system_id: Option<u64>,
    pub spool: Spool,
    pub marks: Arc<Marks>,
    /// Numbers of spool entries, shared by all who spool.
    pub entries: Arc<AtomicU64>,
}

/// Connecting, and every answer that is not the stream itself.
const ANSWER: Duration = Duration::from_secs(30);
/// How often marks are looked at while the server is silent.
const TICK: Duration = Duration::from_millis(200);
/// A partial file is synced this often although nobody asked.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// PostgreSQL's own wal_receiver_status_interval.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// After this silence the server is asked for a sign of life, after twice of it it is gone.
const SILENCE: Duration = Duration::from_secs(30);

/// So many demands for an answer within so long come only from a server that shuts down: one that
/// is merely anxious asks twice in its wal_sender_timeout.
const PRESSED_TIMES: u32 = 5;
const PRESSED_WITHIN: Duration = Duration::from_secs(1);

impl Receive {
    /// Streams until told to stop, the timeline ends or something fails: the answer says which.
    /// The last event is always `StreamEnded`.
    pub fn run(self, emit: &mut dyn FnMut(Event)) {
        let node = self.node;
        let marks = Arc::clone(&self.marks);
        let ended = smol::block_on(self.stream(emit));
        let (class, message) = match ended {
            Ok(reason) => (Class::Interrupted, reason),
            Err(failure) => (failure.class, failure.to_string()),
        };
        let at = Lsn(marks.synced.load(Ordering::SeqCst));
        emit(Event::StreamEnded {
            node,
            at,
            class,
            message,
        });
    }

    async fn stream(self, emit: &mut dyn FnMut(Event)) -> Outcome<String> {
        let mut connection = Connection::connect(&self.info, Mode::Physical, soon())
            .await
            .map_err(outcome)?;
        let identity = replication::identify(&mut connection, soon())
            .await
            .map_err(outcome)?;
        if let Some(ours) = self.system_id.filter(|ours| *ours != identity.system_id) {
            return Err(Failure::new(
                Class::Conflict,
                format!(
                    "postgres at {}: system identifier is {}, this site's is {ours}",
                    connection.server(),
                    identity.system_id
                ),
            )
            .hint("another cluster needs a site of its own"));
        }
        let size = replication::segment_size(&mut connection, soon())
            .await
            .map_err(outcome)?;
        let from = self
            .from(&mut connection, identity, size)
            .await
            .map_err(outcome)?;
        let slot = self.info.slot.as_deref();
        let start = replication::Start {
            slot,
            timeline: from.timeline,
            at: from.start(size),
        };
        let wal = WalStream::start(&mut connection, start, soon())
            .await
            .map_err(outcome)?;
        let system_id = self.system_id.or(Some(identity.system_id));
        let mut writer = Writer {
            request: &self,
            size,
            system_id,
            segment: from,
            partial: None,
            head: Vec::new(),
            filled: 0,
            synced: from.start(size),
            dirty: false,
            synced_at: Instant::now(),
        };
        self.marks.synced.store(writer.synced.0, Ordering::SeqCst);
        self.follow(wal, &mut writer, emit).await
    }

    /// The segment to begin with. Makes the slot where one is configured and missing.
    async fn from(
        &self,
        connection: &mut Connection,
        identity: Identity,
        size: SegmentSize,
    ) -> Answer<Segment> {
        let mut anchor = match self.start {
            Start::Checkpoint => match super::redo(&self.info, soon()).await {
                // A server that does not tell is received from all the same.
                Err(fault) if fault.failure.class == Class::Denied => identity.position,
                other => other?,
            },
            Start::At(_) | Start::Anchor => identity.position,
        };
        if let Some(name) = &self.info.slot {
            let mut found = self.slot(connection, name).await?;
            if found == Slot::Absent {
                replication::create_slot(connection, name, soon()).await?;
                found = self.slot(connection, name).await?;
            }
            if let Slot::Present {
                restart: Some(restart),
            } = found
            {
                anchor = restart;
            }
        }
        if let Start::At(segment) = self.start {
            return Ok(segment);
        }
        let mut timeline = identity.timeline;
        if timeline > Timeline(1) {
            let file = replication::timeline_history(connection, timeline, soon()).await?;
            timeline = file.history.timeline_at(anchor);
        }
        Ok(Segment::at(timeline, anchor, size))
    }

    /// A walsender can tell of a slot since 15; before, a plain connection has to.
    async fn slot(&self, connection: &mut Connection, name: &str) -> Answer<Slot> {
        if connection.version() >= 150_000 {
            return replication::slot(connection, name, soon()).await;
        }
        let mut plain = super::plain(&self.info, soon()).await?;
        replication::slot(&mut plain, name, soon()).await
    }

    async fn follow(
        &self,
        mut wal: WalStream<'_>,
        writer: &mut Writer<'_>,
        emit: &mut dyn FnMut(Event),
    ) -> Outcome<String> {
        let mut beat = Beat::new();
        // Ask for an answer at once: it proves that the server still has what we asked for.
        beat.tell(&mut wal, self.flushed(writer), Reply::Wanted)
            .await?;
        let mut announced = false;
        loop {
            if self.marks.stop.load(Ordering::SeqCst) {
                writer.sync()?;
                beat.tell(&mut wal, self.flushed(writer), Reply::Optional)
                    .await?;
                return Ok("stopped".into());
            }
            let message = wal.next(Instant::now() + TICK).await.map_err(outcome)?;
            let mut answer = Reply::Optional;
            if let Some(message) = &message {
                beat.heard();
                if !announced && !matches!(message, Wal::TimelineEnd { .. } | Wal::Ended) {
                    announced = true;
                    let (node, from) = (self.node, writer.segment);
                    emit(Event::StreamStarted {
                        node,
                        from,
                        slot: self.info.slot.clone(),
                        anchored: self.start.is_anchored(),
                    });
                    self.close_older(from.timeline, writer.size, emit)?;
                }
            }
            match message {
                Some(Wal::Data { start, data, .. }) => writer.write(start, data, emit)?,
                Some(Wal::Keepalive { server_end, reply }) => {
                    answer = reply;
                    let waits = reply == Reply::Wanted && server_end > self.flushed(writer);
                    if waits && beat.pressed() {
                        writer.sync()?;
                        return Ok("the server shuts down; it is not kept from it".into());
                    }
                }
                Some(Wal::TimelineEnd { next, at }) => {
                    writer.end_timeline(emit)?;
                    return Ok(format!("the timeline ended at {at}, {next} follows"));
                }
                Some(Wal::Ended) => {
                    writer.sync()?;
                    return Ok("the server ended the stream".into());
                }
                None => {}
            }
            let dry = !wal.ready().await;
            if writer.due(self.ack, dry) {
                writer.sync()?;
            }
            let flushed = self.flushed(writer);
            if flushed != beat.flushed || answer == Reply::Wanted || beat.overdue() {
                let reply = beat.ask()?;
                beat.tell(&mut wal, flushed, reply).await?;
                self.marks.told.store(flushed.0, Ordering::SeqCst);
            }
        }
    }

    /// A timeline that ended while nobody streamed left its unfinished segment behind.
    fn close_older(
        &self,
        timeline: Timeline,
        size: SegmentSize,
        emit: &mut dyn FnMut(Event),
    ) -> Outcome<()> {
        for found in self.spool.scan().map_err(ours)? {
            let name = found.name.strip_suffix(".partial").unwrap_or_default();
            let segment = Segment::from_name(name, size).filter(|s| s.timeline < timeline);
            if let Some(segment) = segment
                && self.spool.end(name).map_err(ours)?
            {
                emit(self.partial(segment, found.bytes));
            }
        }
        Ok(())
    }

    fn partial(&self, segment: Segment, bytes: u64) -> Event {
        Event::Spooled {
            file: File::Partial(segment),
            entry: self.entries.fetch_add(1, Ordering::SeqCst),
            bytes,
            origin: Origin::Stream,
        }
    }

    /// What the server may forget.
    fn flushed(&self, writer: &Writer<'_>) -> Lsn {
        match self.ack {
            Ack::Stored => Lsn(self.marks.stored.load(Ordering::SeqCst)),
            Ack::Spooled => writer.synced,
        }
    }
}

fn soon() -> Instant {
    Instant::now() + ANSWER
}

/// "Not found" is said of one thing only: WAL that the server has not any more.
fn outcome(fault: Fault) -> Failure {
    match fault.failure.class {
        Class::NotFound if !fault.is(SqlState::UNDEFINED_FILE) => Failure {
            class: Class::Config,
            ..fault.failure
        },
        _ => fault.failure,
    }
}

/// The same of our own files.
fn ours(failure: Failure) -> Failure {
    match failure.class {
        Class::NotFound => Failure {
            class: Class::Internal,
            ..failure
        },
        _ => failure,
    }
}

/// When to speak to the server, and when to give it up.
struct Beat {
    heard: Instant,
    told: Instant,
    flushed: Lsn,
    /// The server's demands for an answer in the running window.
    demands: u32,
    demanded: Instant,
}

impl Beat {
    fn new() -> Beat {
        Beat {
            heard: Instant::now(),
            told: Instant::now(),
            flushed: Lsn::default(),
            demands: 0,
            demanded: Instant::now(),
        }
    }

    /// Whether the server presses for an answer: a walsender that shuts down asks again after
    /// every one until all it sent is flushed. With `ack: "stored"` that would be never, and the
    /// shutdown would hang; leaving lets it end, and the slot keeps what is not acknowledged
    /// (S-27).
    fn pressed(&mut self) -> bool {
        if self.demanded.elapsed() > PRESSED_WITHIN {
            (self.demands, self.demanded) = (0, Instant::now());
        }
        self.demands = self.demands.saturating_add(1);
        self.demands >= PRESSED_TIMES
    }

    fn heard(&mut self) {
        self.heard = Instant::now();
    }

    fn overdue(&self) -> bool {
        self.told.elapsed() >= STATUS_EVERY
    }

    /// Whether the next status asks for an answer; an error once silence lasted too long (S-22).
    fn ask(&self) -> Outcome<Reply> {
        match self.heard.elapsed() {
            silence if silence >= SILENCE * 2 => Err(Failure::new(
                Class::Timeout,
                format!("the server has been silent for {} s", silence.as_secs()),
            )),
            silence if silence >= SILENCE => Ok(Reply::Wanted),
            _ => Ok(Reply::Optional),
        }
    }

    async fn tell(&mut self, wal: &mut WalStream<'_>, flushed: Lsn, reply: Reply) -> Outcome<()> {
        // A status of 0/0 says nothing at all: the slot stays where it is.
        let status = Status {
            write: flushed,
            flush: flushed,
            reply,
        };
        wal.send_status(status, soon()).await.map_err(outcome)?;
        self.told = Instant::now();
        self.flushed = flushed;
        Ok(())
    }
}

/// The segment being filled.
struct Writer<'a> {
    request: &'a Receive,
    size: SegmentSize,
    system_id: Option<u64>,
    segment: Segment,
    partial: Option<Partial>,
    /// The first bytes of the segment, until its header could be checked.
    head: Vec<u8>,
    filled: u64,
    /// Everything below is on our disk.
    synced: Lsn,
    dirty: bool,
    synced_at: Instant,
}

impl Writer<'_> {
    /// A message may straddle segments, or be larger than one (S-04).
    fn write(&mut self, start: Lsn, data: &[u8], emit: &mut dyn FnMut(Event)) -> Outcome<()> {
        let expected = self.position();
        if start != expected {
            return Err(Failure::new(
                Class::Corrupt,
                format!("the stream goes on at {start}, expected {expected}"),
            ));
        }
        let mut rest = data;
        while !rest.is_empty() {
            let room = self.size.bytes().saturating_sub(self.filled);
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_checked(room).unwrap_or((rest, &[]));
            self.fill(now)?;
            rest = later;
            if self.filled == self.size.bytes() {
                self.seal(emit)?;
            }
        }
        Ok(())
    }

    fn position(&self) -> Lsn {
        Lsn(self.segment.start(self.size).0.saturating_add(self.filled))
    }

    fn fill(&mut self, bytes: &[u8]) -> Outcome<()> {
        if self.head.len() < WAL_HEADER_BYTES {
            let lacking = WAL_HEADER_BYTES - self.head.len();
            self.head
                .extend_from_slice(bytes.get(..lacking).unwrap_or(bytes));
            if self.head.len() == WAL_HEADER_BYTES {
                let header = WalHeader::parse(&self.head)?;
                header.check(self.segment, self.size, self.system_id)?;
            }
        }
        let partial = match &mut self.partial {
            Some(partial) => partial,
            None => self.partial.insert(
                self.request
                    .spool
                    .partial(&self.segment.name(self.size))
                    .map_err(ours)?,
            ),
        };
        partial.write(self.filled, bytes).map_err(ours)?;
        self.filled = self
            .filled
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
        self.dirty = true;
        Ok(())
    }

    fn due(&self, ack: Ack, dry: bool) -> bool {
        match ack {
            Ack::Spooled => self.dirty && dry,
            Ack::Stored => self.dirty && self.synced_at.elapsed() >= SYNC_EVERY,
        }
    }

    fn sync(&mut self) -> Outcome<()> {
        if let Some(partial) = self.partial.as_mut().filter(|_| self.dirty) {
            partial.sync().map_err(ours)?;
            self.dirty = false;
        }
        self.reached(self.position());
        Ok(())
    }

    fn reached(&mut self, position: Lsn) {
        self.synced = position;
        self.synced_at = Instant::now();
        self.request
            .marks
            .synced
            .store(position.0, Ordering::SeqCst);
    }

    fn seal(&mut self, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
        let Some(partial) = self.partial.take() else {
            return Ok(());
        };
        let file = File::Wal(self.segment);
        match partial.seal().map_err(ours)? {
            // Whoever sealed a duplicate may have failed before it could say so.
            Sealed::New | Sealed::Duplicate => emit(Event::Spooled {
                file,
                entry: self.request.entries.fetch_add(1, Ordering::SeqCst),
                bytes: self.size.bytes(),
                origin: Origin::Stream,
            }),
            Sealed::Conflict { kept_as } => emit(Event::Conflicted {
                file,
                ours: format!("kept in the spool as '{kept_as}'"),
                theirs: "sealed in the spool before".into(),
            }),
        }
        self.segment = self.segment.next();
        self.filled = 0;
        self.head.clear();
        self.dirty = false;
        self.reached(self.segment.start(self.size));
        Ok(())
    }

    /// The unfinished last segment of a timeline is kept under a name of its own.
    fn end_timeline(&mut self, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
        self.sync()?;
        self.partial = None;
        let name = self.segment.name(self.size);
        if self.filled > 0 && self.request.spool.end(&name).map_err(ours)? {
            emit(self.request.partial(self.segment, self.filled));
        }
        Ok(())
    }
}
