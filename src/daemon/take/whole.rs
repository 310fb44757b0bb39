//! A backup in one object: it becomes visible only once the WAL that makes it consistent is
//! stored, so that a listing never shows one that a restore could not use.
//!
//! Meanwhile nothing but this task holds it: a daemon that stops before takes it anew.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use machine::event::How;
use machine::{Class, Event, File};

use super::Take;
use crate::daemon::site;
use crate::failure::{Failure, Outcome};
use crate::source::stream::Request;
use crate::source::stream::whole::{self, Begun, Pending, Tail};
use crate::store::Metadata;
use crate::work::label;

/// How often a finished backup looks whether its WAL has come.
const GLANCE: Duration = Duration::from_millis(100);

impl Take<'_> {
    pub(super) fn whole(
        &self,
        request: &Request<'_>,
        tail: Tail,
        emit: &mut dyn FnMut(Event),
    ) -> Outcome<Vec<Event>> {
        let began = Instant::now();
        let key = self.context.place.key(&self.object());
        let describe = |begun| self.describe(begun, tail);
        let pending = whole::take(request, &key, tail, &describe, &mut self.progress(emit))?;
        self.same_cluster(&pending.taken)?;
        let (bytes_in, bytes_out) = (pending.encoded.bytes_in, pending.encoded.bytes_out);
        let stored = Event::Stored {
            file: File::Main(self.backup.clone()),
            entry: None,
            bytes_in,
            bytes_out,
            digest: String::new(),
            millis: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            how: How::Written,
        };
        let name = Some(self.backup.0.clone());
        let finished = self.finished(&pending.taken, (bytes_in, bytes_out), name);
        let (at, end, lsn) = (finished.ended_at, finished.end, finished.end_lsn);
        let size = pending.taken.segment_size;
        let mut late = label::ended(Some(at), Some(end), Some(lsn), size);
        late.insert("original-file-size".into(), bytes_in.to_string());
        emit(Event::BackupFinished(finished));
        self.wait(&pending)?;
        pending.finish(&late)?;
        Ok(vec![stored])
    }

    /// Its key below the site's prefix, as PGHoard's modes `basic` and `pipe` give it.
    pub(super) fn object(&self) -> String {
        format!("basebackup/{}", self.backup)
    }

    fn describe(&self, begun: Begun, tail: Tail) -> Metadata {
        let (site, modes) = (&self.context.place.site, site::modes(&self.context.config));
        let known = label::Begun {
            start: begun.start,
            started_at: begun.started_at,
            pg_version: Some(begun.version),
            size: begun.size,
        };
        let mut metadata = label::begun(site, &modes, self.decided, &known);
        // As PGHoard has it: of `pipe` it never tells the level.
        if tail == Tail::Nothing {
            let level = self.context.chunk_encoding.level;
            metadata.insert("compression-level".into(), level.to_string());
        }
        metadata
    }

    /// Until nothing but the object is missing.
    fn wait(&self, pending: &Pending<'_>) -> Outcome<()> {
        while self.marks.stored.load(Ordering::SeqCst) < pending.taken.end.lsn.0 {
            if self.marks.stop.load(Ordering::SeqCst) {
                let message = "the backup was told to stop before its WAL was stored";
                return Err(Failure::new(Class::Interrupted, message));
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }
}
