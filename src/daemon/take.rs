//! One basebackup: from the stream to the facts that the log keeps of it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use machine::event::{Finished, How, Origin};
use machine::projection::backups::Backup;
use machine::{BackupName, Class, Event, File, Segment, SegmentSize};

use crate::clock;
use crate::config::BasebackupMode;
use crate::daemon::site::SiteContext;
use crate::durable;
use crate::failure::{Failure, Outcome};
use crate::pg::conninfo::Conninfo;
use crate::pg::files;
use crate::source::chunks::Chunk;
use crate::source::receive::Marks;
use crate::source::stream::whole::Tail;
use crate::source::stream::{self, Chunking, Patience, Progress, Request, Taken};

mod whole;

pub struct Take<'a> {
    pub context: &'a SiteContext,
    pub info: &'a Conninfo,
    pub backup: &'a BackupName,
    /// What the log says of it.
    pub decided: &'a Backup,
    pub marks: &'a Marks,
    pub system_id: Option<u64>,
}

/// A running backup is heard of at most this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

impl Take<'_> {
    /// Takes it; the facts that are not told on the way are to be told together.
    pub fn run(&self, entry: impl Fn() -> u64, emit: &mut dyn FnMut(Event)) -> Outcome<Vec<Event>> {
        let (place, config) = (&self.context.place, &self.context.config);
        if let Some(events) = self.taken_name()? {
            return Ok(events);
        }
        let slotless = config.active_backup_mode.streams() && self.info.slot.is_none();
        let request = Request {
            conninfo: self.info,
            store: &*place.store,
            prefix: &place.prefix,
            backup: self.backup,
            encoding: &self.context.chunk_encoding,
            wal: config.active_backup_mode.wal(),
            scratch: &place.scratch.join(&self.backup.0),
            host: &place.host,
            pgdata: config.pg_data_directory.as_deref().unwrap_or("".as_ref()),
            patience: Patience::DEFAULT,
            slotless: slotless.then_some(&self.marks.synced),
            stop: &self.marks.stop,
            clock: &clock::now,
        };
        match config.basebackup_mode {
            BasebackupMode::Basic => self.whole(&request, Tail::Nothing, emit),
            BasebackupMode::Pipe => self.whole(&request, Tail::Manifest, emit),
            BasebackupMode::Stream
            | BasebackupMode::LocalTar
            | BasebackupMode::Delta
            | BasebackupMode::LocalTarDeltaStats => self.chunks(&request, entry, emit),
        }
    }

    /// Chunks into the store; the main object's tar waits in the spool.
    fn chunks(
        &self,
        request: &Request<'_>,
        entry: impl Fn() -> u64,
        emit: &mut dyn FnMut(Event),
    ) -> Outcome<Vec<Event>> {
        let config = &self.context.config;
        let draft = format!("{}.main", self.backup);
        let draft = self.context.place.scratch.join(draft);
        let in_progress = usize::try_from(config.basebackup_chunks_in_progress);
        let chunking = Chunking {
            chunk_size_bytes: config.basebackup_chunk_size_bytes,
            chunks_in_progress: in_progress.unwrap_or(usize::MAX),
            main: &draft,
        };
        let taken = stream::take(request, &chunking, &mut self.progress(emit))?;
        self.same_cluster(&taken)?;
        let (file, bytes) = self.spool(&draft)?;
        let mut events = self.parts(&taken);
        events.push(Event::Spooled {
            file,
            entry: entry(),
            bytes,
            origin: Origin::Backup,
        });
        let sum =
            |bytes: fn(&Chunk) -> u64| taken.chunks.iter().map(bytes).fold(0, u64::saturating_add);
        let sizes = (sum(|chunk| chunk.bytes_in), sum(|chunk| chunk.bytes_out));
        events.push(Event::BackupFinished(self.finished(&taken, sizes, None)));
        Ok(events)
    }

    fn progress<'e>(&'e self, emit: &'e mut dyn FnMut(Event)) -> impl FnMut(Progress) + 'e {
        let mut told = Instant::now();
        move |progress| {
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                emit(Event::BackupProgressed {
                    backup: self.backup.clone(),
                    bytes: progress.bytes,
                    total: progress.total_bytes,
                });
            }
        }
    }

    fn same_cluster(&self, taken: &Taken) -> Outcome<()> {
        let theirs = taken.system_id;
        match self.system_id.filter(|ours| *ours != theirs) {
            None => Ok(()),
            Some(ours) => Err(Failure::new(
                Class::Conflict,
                format!("the server's system identifier is {theirs}, this site's is {ours}"),
            )
            .hint("another cluster needs a site of its own")),
        }
    }

    /// Moves the finished main object into the spool. Gives its name there and its size in bytes.
    fn spool(&self, draft: &Path) -> Outcome<(File, u64)> {
        let main = File::Main(self.backup.clone());
        let name = main.spool_name(SegmentSize::DEFAULT);
        let about = fs::metadata(draft).map_err(|e| Failure::io(&e, draft.display()))?;
        durable::sync_file(draft)?;
        durable::rename_new(draft, &self.context.spool_directory.join(name))?;
        Ok((main, about.len()))
    }

    /// Another's backup under our name (PGHoard on the same prefix, say) fails ours before it
    /// begins; said to be removed at once, so that nothing is.
    fn taken_name(&self) -> Outcome<Option<Vec<Event>>> {
        let place = &self.context.place;
        let main = File::Main(self.backup.clone());
        let mut there = false;
        for key in [main.key(SegmentSize::DEFAULT), self.object()] {
            there |= place.store.look(&place.key(&key))?.is_some();
        }
        place.store.list(
            &place.key(&format!("basebackup_chunk/{}", self.backup)),
            &mut |_| {
                there = true;
                Ok(())
            },
        )?;
        let failed = Event::BackupFailed {
            backup: self.backup.clone(),
            class: Class::Conflict,
            message: "the store holds objects of a backup of that name".into(),
        };
        let nothing = Event::Deleted {
            wal: Vec::new(),
            files: vec![main],
        };
        Ok(there.then(|| vec![failed, nothing]))
    }

    fn parts(&self, taken: &Taken) -> Vec<Event> {
        let stored = |chunk: &Chunk| Event::Stored {
            file: File::Part {
                backup: self.backup.clone(),
                number: chunk.number,
            },
            entry: None,
            bytes_in: chunk.bytes_in,
            bytes_out: chunk.bytes_out,
            digest: String::new(),
            millis: 0,
            how: How::Written,
        };
        taken.chunks.iter().map(stored).collect()
    }

    /// `sizes` before and after encoding.
    fn finished(&self, taken: &Taken, sizes: (u64, u64), object: Option<String>) -> Finished {
        let size = taken.segment_size;
        Finished {
            backup: self.backup.clone(),
            start: Segment::at(taken.start.timeline, taken.start.lsn, size),
            end: Segment::before(taken.end.timeline, taken.end.lsn, size),
            start_lsn: taken.start.lsn,
            end_lsn: taken.end.lsn,
            started_at: taken.started_at,
            ended_at: taken.ended_at,
            parts: u32::try_from(taken.chunks.len()).unwrap_or(u32::MAX),
            bytes_in: sizes.0,
            bytes_out: sizes.1,
            from_standby: taken.from == files::Origin::Standby,
            object,
            wal: self.context.config.active_backup_mode.wal(),
        }
    }
}
