//! Each event in a few words, for people. Programs read the JSON.

use std::collections::BTreeMap;

use machine::event::{How, Lease, Origin, Previous, Range, Reason, Sought, Why};
use machine::projection::marks::Mark;
use machine::{Envelope, Event, File, Segment, SegmentSize, Site, TaskId};

use crate::publish::text::{size, span, utc};

/// What a reader of the log from its beginning knows: the segment size, which WAL names need.
#[derive(Debug, Default)]
pub struct Story {
    sizes: BTreeMap<Site, SegmentSize>,
}

impl Story {
    pub fn learn(&mut self, envelope: &Envelope) {
        let size = match &envelope.event {
            Event::ServerSeen(server) => server.segment_size,
            Event::Found { segment_size, .. } => *segment_size,
            Event::Carried(site) => match site.ledger.segment_size {
                Some(size) => size,
                None => return,
            },
            _ => return,
        };
        if let Some(site) = &envelope.site {
            self.sizes.entry(site.clone()).or_insert(size);
        }
    }

    pub fn tell(&self, envelope: &Envelope) -> String {
        let size = envelope.site.as_ref().and_then(|site| self.sizes.get(site));
        let size = size.copied().unwrap_or(SegmentSize::DEFAULT);
        let told = Names { size }.event(&envelope.event);
        // What a server said must not move the cursor.
        let plain = told.chars().map(|c| if c.is_control() { ' ' } else { c });
        plain.collect()
    }
}

struct Names {
    size: SegmentSize,
}

impl Names {
    fn event(&self, event: &Event) -> String {
        match event {
            Event::Started { .. }
            | Event::Stopped { .. }
            | Event::ConfigLoaded { .. }
            | Event::ConfigRefused { .. } => running(event),
            Event::ServerSeen(_)
            | Event::ServerLost { .. }
            | Event::StreamStarted { .. }
            | Event::StreamEnded { .. }
            | Event::TimelineLearned { .. }
            | Event::ClusterLearned { .. }
            | Event::Switched { .. }
            | Event::LabelArchived { .. }
            | Event::WalPassed { .. } => self.server(event),
            Event::Spooled { .. }
            | Event::Stored { .. }
            | Event::Dropped { .. }
            | Event::Conflicted { .. }
            | Event::Found { .. }
            | Event::Missing { .. }
            | Event::Deleted { .. }
            | Event::DeletionRefused { .. }
            | Event::WalExpired { .. } => self.file(event),
            Event::BackupRequested { .. }
            | Event::BackupStarted { .. }
            | Event::BackupProgressed { .. }
            | Event::BackupFinished(_)
            | Event::BackupFailed { .. }
            | Event::BackupExpired { .. }
            | Event::BackupFound(_) => self.backup(event),
            Event::TaskFailed {
                task,
                class,
                message,
            } => format!("failed to {}, {class}: {message}", self.task(task)),
            Event::Reconciled {
                objects,
                bytes,
                found,
                missing,
                unknown,
                millis,
            } => format!(
                "listed the store: {objects} objects, {}; {found} found, {missing} missing, \
                 {unknown} unknown, in {millis} ms",
                size(*bytes)
            ),
            Event::Marked { key, mark } => self.mark(key, mark),
            Event::Unmarked { key } => format!("{key} is not in the store any more"),
            Event::ScrubStarted { .. }
            | Event::Verified { .. }
            | Event::Unverified { .. }
            | Event::FoundDamaged { .. } => self.verification(event),
            Event::MarksRead { marks } => format!("read {marks} marks in the store"),
            Event::HoleOpened { .. } | Event::HoleClosed { .. } | Event::HoleSought { .. } => {
                self.hole(event)
            }
            Event::AlertAcknowledged { .. } | Event::Operated { .. } => person(event),
            Event::ClockJumped { by_ms } => {
                let way = if *by_ms < 0 { "back" } else { "forward" };
                let by = span(by_ms.unsigned_abs());
                format!("the clock was moved {way} by {by}")
            }
            Event::LeaseSeen(lease) => holder(lease),
            Event::LogRebuilt { .. }
            | Event::Exported { .. }
            | Event::Compacted { .. }
            | Event::Carried(_)
            | Event::CompactionRefused { .. } => upkeep(event),
        }
    }

    fn mark(&self, key: &str, mark: &Mark) -> String {
        match mark {
            Mark::Hold {
                backup,
                reason,
                by,
                until,
            } => {
                let until = until.map_or("it is released".to_owned(), utc);
                format!("basebackup {backup} is held by {by} until {until}: {reason}")
            }
            Mark::HoleAcknowledged { reason, by, .. } => {
                format!("hole acknowledged by {by}: {reason} ({key})")
            }
            Mark::WalRetired { .. } => format!("WAL between backups was let go ({key})"),
            Mark::Damaged { detail, .. } => format!("damaged in the store: {detail} ({key})"),
        }
    }

    fn verification(&self, event: &Event) -> String {
        match event {
            Event::ScrubStarted { objects } => format!("verifying all {objects} stored objects"),
            Event::Verified {
                wal,
                files,
                bytes,
                partly,
            } => {
                let partly = match partly {
                    0 => String::new(),
                    some => format!(", {some} of them without the private key"),
                };
                format!("good: {}, {}{partly}", self.all(wal, files), size(*bytes))
            }
            Event::Unverified {
                wal,
                files,
                class,
                message,
            } => format!(
                "could not verify {}, {class}: {message}",
                self.all(wal, files)
            ),
            Event::FoundDamaged { file, detail } => {
                format!("DAMAGED in the store: {}: {detail}", self.key(file))
            }
            _ => String::new(),
        }
    }

    fn hole(&self, event: &Event) -> String {
        match event {
            Event::HoleOpened { hole } => {
                format!("HOLE: a restore would miss {}", hole.name(self.size))
            }
            Event::HoleClosed { hole } => {
                let name = hole.name(self.size);
                format!("no restore misses {name} any more: it is back, or nothing needs it")
            }
            Event::HoleSought {
                hole,
                means,
                outcome,
            } => {
                let name = hole.name(self.size);
                match outcome {
                    Sought::Fetched => format!("fetched {name} from {means}"),
                    Sought::Absent { message } => format!("{means} has no {name}: {message}"),
                }
            }
            _ => String::new(),
        }
    }

    fn server(&self, event: &Event) -> String {
        match event {
            Event::ServerSeen(server) => {
                let role = match server.in_recovery {
                    true => "standby",
                    false => "primary",
                };
                let (node, timeline, lsn) = (server.node, server.timeline, server.lsn);
                format!("saw server {node}: {role}, timeline {timeline}, at {lsn}")
            }
            Event::ServerLost {
                node,
                class,
                message,
            } => format!("lost server {node}, {class}: {message}"),
            Event::StreamStarted { node, from, .. } => {
                format!("streaming from server {node} at {}", self.name(*from))
            }
            Event::StreamEnded {
                at, class, message, ..
            } => format!("stream ended at {at}, {class}: {message}"),
            Event::TimelineLearned {
                timeline,
                ancestors,
            } => {
                let left = |b: &machine::event::Branch| format!("{} to {}", b.timeline, b.switch);
                let path: Vec<String> = ancestors.iter().map(left).collect();
                format!("learned timeline {timeline}, after {}", path.join(", "))
            }
            Event::ClusterLearned { system_id, segment } => {
                let segment = self.name(*segment);
                format!("the store holds WAL of cluster {system_id}, says {segment}")
            }
            Event::Switched { node, at } => {
                format!("asked server {node} to finish its segment, at {at}")
            }
            Event::LabelArchived { name } => format!("not kept: {name}, a backup's label"),
            Event::WalPassed { wal } => {
                let wal = self.all(std::slice::from_ref(wal), &[]);
                format!("archive_command went on beyond {wal}")
            }
            _ => String::new(),
        }
    }

    fn file(&self, event: &Event) -> String {
        match event {
            Event::Spooled {
                file,
                bytes,
                origin,
                ..
            } => {
                let origin = match origin {
                    Origin::Stream => "",
                    Origin::Archive => " from archive_command",
                    Origin::Backup => " of a basebackup",
                    Origin::Adopted => " found in the spool",
                    Origin::Fetched => " for a hole",
                };
                format!("spooled {}, {}{origin}", self.key(file), size(*bytes))
            }
            Event::Stored {
                file,
                bytes_in,
                bytes_out,
                how,
                ..
            } => {
                let (plain, stored) = (size(*bytes_in), size(*bytes_out));
                match how {
                    How::Written => format!("stored {}, {plain} in {stored}", self.key(file)),
                    How::Replaced => format!("replaced the damaged {}", self.key(file)),
                    How::AlreadyThere => format!("{} was stored already", self.key(file)),
                }
            }
            Event::Dropped { file, reason, .. } => {
                let reason = match reason {
                    Reason::Unwanted => "nobody needs it",
                    Reason::Duplicate => "the store has it",
                    Reason::Vanished => "the spool lost it",
                };
                format!("dropped {}: {reason}", self.key(file))
            }
            Event::Conflicted { file, .. } => {
                format!("CONFLICT: {} is stored with other content", self.key(file))
            }
            Event::Found { wal, files, .. } => format!("found {}", self.all(wal, files)),
            Event::Missing { wal, files } => format!("MISSING {}", self.all(wal, files)),
            Event::Deleted { wal, files } => format!("deleted {}", self.all(wal, files)),
            Event::DeletionRefused {
                wal,
                files,
                marks,
                class,
                message,
            } => {
                let marks: String = marks.iter().map(|key| format!(", {key}")).collect();
                let all = self.all(wal, files);
                format!("the store REFUSES to delete {all}{marks}, {class}: {message}")
            }
            Event::WalExpired { wal } => format!("no backup needs {}", self.all(wal, &[])),
            _ => String::new(),
        }
    }

    fn backup(&self, event: &Event) -> String {
        match event {
            Event::BackupRequested { reason } => format!("basebackup asked for by {}", why(reason)),
            Event::BackupStarted {
                backup,
                node,
                reason,
                ..
            } => format!(
                "basebackup {backup} of server {node} begun by {}",
                why(reason)
            ),
            Event::BackupProgressed {
                backup,
                bytes,
                total,
            } => format!("basebackup {backup}: {} of {}", size(*bytes), size(*total)),
            Event::BackupFinished(done) => format!(
                "basebackup {} taken: {} in {}, WAL {} to {}",
                done.backup,
                size(done.bytes_in),
                size(done.bytes_out),
                self.name(done.start),
                self.name(done.end)
            ),
            Event::BackupFailed {
                backup,
                class,
                message,
            } => format!("basebackup {backup} FAILED, {class}: {message}"),
            Event::BackupExpired { backup, rule } => {
                format!("basebackup {backup} expired by {rule}")
            }
            Event::BackupFound(found) => format!("basebackup {} found in the store", found.backup),
            _ => String::new(),
        }
    }

    fn task(&self, task: &TaskId) -> String {
        match task {
            TaskId::Store(_, file) => format!("store {}", self.key(file)),
            TaskId::Probe(_, node) => format!("probe server {node}"),
            TaskId::Fetch(_, means) => format!("fetch WAL from {means}"),
            TaskId::Receive(_)
            | TaskId::Take(_)
            | TaskId::Switch(_)
            | TaskId::Delete(_)
            | TaskId::Reconcile(_)
            | TaskId::Marks(_)
            | TaskId::Lease(_)
            | TaskId::Verify(_)
            | TaskId::Export(_) => task.name().to_owned(),
        }
    }

    fn all(&self, wal: &[Range], files: &[File]) -> String {
        let ranges = wal.iter().map(|range| {
            let at = |number| self.name(Segment::new(range.timeline, number));
            format!("WAL {} to {}", at(range.first), at(range.last))
        });
        let files = files.iter().map(|file| self.key(file));
        let all: Vec<String> = ranges.chain(files).collect();
        match all.is_empty() {
            true => "nothing".to_owned(),
            false => all.join(", "),
        }
    }

    fn key(&self, file: &File) -> String {
        file.key(self.size)
    }

    fn name(&self, segment: Segment) -> String {
        segment.name(self.size)
    }
}

fn upkeep(event: &Event) -> String {
    match event {
        Event::LogRebuilt { reason } => format!("log rebuilt: {reason}"),
        Event::Exported {
            first,
            last,
            events,
            ..
        } => format!("events {first} to {last} are in the store, {events} of this site"),
        Event::Compacted { upto, removed, .. } => {
            format!("{removed} events up to {upto} gave way to a summary")
        }
        Event::Carried(_) => "summary: the rest of the site's state".to_owned(),
        Event::CompactionRefused { reason } => format!("log not compacted: {reason}"),
        _ => String::new(),
    }
}

/// What people did.
fn person(event: &Event) -> String {
    match event {
        Event::AlertAcknowledged { alert } => format!("alert {alert} acknowledged"),
        Event::Operated {
            who,
            command,
            detail,
        } => {
            let colon = if detail.is_empty() { "" } else { ": " };
            format!("{who}: {command}{colon}{detail}")
        }
        _ => String::new(),
    }
}

fn holder(lease: &Lease) -> String {
    match lease.ours {
        true => "this daemon holds the prefix".to_owned(),
        false => format!("ANOTHER DAEMON holds the prefix, on host {}", lease.host),
    }
}

fn running(event: &Event) -> String {
    match event {
        Event::Started {
            version,
            host,
            previous,
            ..
        } => {
            let previous = match previous {
                Previous::Clean => "",
                Previous::Crashed => "; the run before it was cut off",
                Previous::Unknown => ", with a new log",
            };
            format!("started {version} on {host}{previous}")
        }
        Event::Stopped { reason } => format!("stopped: {reason}"),
        Event::ConfigLoaded {
            sites,
            changed,
            kept,
            ..
        } => loaded(sites, changed, kept),
        Event::ConfigRefused { message } => {
            format!("configuration not taken, the one before stays in force: {message}")
        }
        _ => String::new(),
    }
}

fn loaded(sites: &[String], changed: &[String], kept: &[String]) -> String {
    let list = |before: &str, names: &[String], between: &str| match names {
        [] => String::new(),
        names => format!("; {before}: {}", names.join(between)),
    };
    format!(
        "read the configuration: {}{}{}",
        sites.join(", "),
        list("new", changed, ", "),
        list("needs a restart", kept, "; ")
    )
}

fn why(reason: &Why) -> &'static str {
    match reason {
        Why::Schedule => "the schedule",
        Why::Operator => "an operator",
        Why::Hole => "a hole in the WAL",
    }
}
