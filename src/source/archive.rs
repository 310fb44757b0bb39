//! What PostgreSQL's `archive_command` hands over, into the spool.
//!
//! A segment is judged by its size and first page before it gets its name: address, timeline and
//! cluster have to be those of the name and the site (S-15, S-30). A file is read in `pg_wal` and
//! nowhere else, and no link is followed; or it comes as the body of a request.
//!
//! Budget: one block a file; a history file whole.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use machine::event::Origin;
use machine::{Class, Event, File, Segment, SegmentSize, Timeline};
use nix::fcntl::OFlag;

use crate::failure::{Failure, Outcome};
use crate::pg::files::{History, WAL_HEADER_BYTES, WalHeader};
use crate::spool::lent::{Loan, Lying};
use crate::spool::{Partial, Readable, Sealed, Spool};

/// PostgreSQL's largest segment.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// A line a promotion.
const HISTORY_BYTES_MAX: usize = 1 << 20;
const BLOCK: usize = 256 << 10;

/// Opens a regular file of `pg_wal`; anything else of that name is as good as absent.
pub fn lying(pg_wal: &Path, name: &str) -> Outcome<Lying> {
    let absent = || Failure::new(Class::NotFound, "N/A");
    if kind(name).is_none() {
        return Err(absent());
    }
    let path = pg_wal.join(name);
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let disk = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(&path)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => Failure::io(&error, path.display()),
            _ => absent(),
        })?;
    Lying::new(disk, path)?.ok_or_else(absent)
}

/// The segments and histories that are complete and wait for `archive_command`, in PostgreSQL's
/// order: histories first, then by name (`pgarch.c`, `pgarch_readyXlog`).
pub fn ready(pg_wal: &Path) -> Vec<String> {
    let folder = std::fs::read_dir(pg_wal.join("archive_status"));
    let entries = folder.into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let name = name.strip_suffix(".ready")?;
        kind(name).is_some().then(|| name.to_owned())
    });
    let mut names: Vec<String> = names.collect();
    names.sort_by_key(|name| (!name.ends_with(".history"), name.clone()));
    names
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Segment,
    /// The unfinished end of a timeline, archived at its promotion.
    Partial,
    History(Timeline),
}

fn kind(name: &str) -> Option<Kind> {
    if let Some(timeline) = Timeline::from_history_name(name) {
        return Some(Kind::History(timeline));
    }
    let (segment, kind) = match name.strip_suffix(".partial") {
        Some(segment) => (segment, Kind::Partial),
        None => (name, Kind::Segment),
    };
    Segment::is_name(segment).then_some(kind)
}

/// Whether `archive_command` may hand over a file of this name.
pub fn is_archived(name: &str) -> bool {
    kind(name).is_some()
}

/// A file on its way in; one that is dropped leaves nothing that counts.
pub struct Intake {
    spool: Spool,
    name: String,
    kind: Kind,
    /// A history's content stays here; of a segment the first page's header.
    head: Vec<u8>,
    content: Content,
    bytes: u64,
    /// Known once the first page's header is there.
    bytes_max: Option<u64>,
}

enum Content {
    /// In the head.
    Here,
    Copied(Partial),
    /// Where PostgreSQL keeps it.
    Lying(Arc<Lying>),
}

/// It is what its name says, and still to get it.
pub struct Judged {
    pub file: File,
    intake: Intake,
}

/// It has its name.
pub struct Taken {
    /// For the log; there is none where the spool has the same already.
    pub event: Option<Event>,
    /// The entry under which it is read where it lies.
    pub lent: Option<u64>,
}

impl Intake {
    pub fn new(spool: &Spool, name: &str) -> Outcome<Intake> {
        let unknown = || Failure::new(Class::Config, format!("'{name}' is no file of the archive"));
        let kind = kind(name).ok_or_else(unknown)?;
        let content = match kind {
            Kind::History(_) => Content::Here,
            Kind::Segment => Content::Copied(spool.placing(name)?),
            Kind::Partial => Content::Copied(spool.placing(&ended(name))?),
        };
        Ok(Intake::with(spool, name, kind, content))
    }

    fn with(spool: &Spool, name: &str, kind: Kind, content: Content) -> Intake {
        Intake {
            spool: spool.clone(),
            name: name.to_owned(),
            kind,
            head: Vec::new(),
            content,
            bytes: 0,
            bytes_max: None,
        }
    }

    /// A file in `pg_wal`, copied.
    pub fn copied(spool: &Spool, name: &str, from: Lying) -> Outcome<Intake> {
        let mut intake = Intake::new(spool, name)?;
        let from = Arc::new(from);
        let mut block = vec![0; BLOCK];
        loop {
            let n = from.read_at(intake.bytes, &mut block);
            let n = n.map_err(|e| Failure::io(&e, name))?;
            let Some(bytes) = block.get(..n).filter(|bytes| !bytes.is_empty()) else {
                return Ok(intake);
            };
            intake.write(bytes)?;
        }
    }

    /// A segment in `pg_wal` that stays there until it is stored; what is not one is copied.
    pub fn lying(spool: &Spool, name: &str, from: Lying) -> Outcome<Intake> {
        if kind(name) != Some(Kind::Segment) {
            return Intake::copied(spool, name, from);
        }
        let from = Arc::new(from);
        let mut head = vec![0; WAL_HEADER_BYTES];
        let n = from.read_at(0, &mut head);
        head.truncate(n.map_err(|e| Failure::io(&e, name))?);
        let bytes = from.stamp.bytes;
        let mut intake = Intake::with(spool, name, Kind::Segment, Content::Lying(from));
        (intake.head, intake.bytes) = (head, bytes);
        Ok(intake)
    }

    pub fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        let wanted = match self.kind {
            Kind::History(_) => HISTORY_BYTES_MAX.saturating_add(1),
            Kind::Segment | Kind::Partial => WAL_HEADER_BYTES,
        };
        let missing = wanted.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend(bytes.get(..missing).unwrap_or_default());
        let at = self.bytes;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(length);
        if self.bytes > SEGMENT_BYTES_MAX {
            return wrong(format!("'{}' is larger than any segment", self.name));
        }
        // What cannot become a segment does not fill the disk first.
        let copied = matches!(self.content, Content::Copied(_));
        if copied && self.bytes_max.is_none() && self.head.len() == WAL_HEADER_BYTES {
            let header = WalHeader::parse(&self.head).map_err(|f| f.about(&self.name))?;
            self.bytes_max = Some(header.segment_size.bytes());
        }
        if let Some(max) = self.bytes_max.filter(|max| self.bytes > *max) {
            let name = &self.name;
            return wrong(format!(
                "'{name}' is larger than the {max} bytes of its segment"
            ));
        }
        match &mut self.content {
            Content::Copied(file) => file.write(at, bytes),
            Content::Here | Content::Lying(_) => Ok(()),
        }
    }

    /// Whether it is what its name says, of the site's cluster where that is known.
    pub fn judge(self, system_id: Option<u64>) -> Outcome<Judged> {
        let name = &self.name;
        let file = match self.kind {
            Kind::History(timeline) => {
                if self.head.len() > HISTORY_BYTES_MAX {
                    return wrong(format!("'{name}' is larger than any history"));
                }
                History::parse(timeline, &self.head)?;
                File::History(timeline)
            }
            Kind::Segment | Kind::Partial => {
                let header = WalHeader::parse(&self.head).map_err(|f| f.about(name))?;
                let segment = self.segment(header.segment_size)?;
                header.check(segment, header.segment_size, system_id)?;
                let expected = header.segment_size.bytes();
                if self.bytes != expected {
                    let bytes = self.bytes;
                    return wrong(format!("'{name}' has {bytes} bytes, expected {expected}"));
                }
                match self.kind {
                    Kind::Partial => File::Partial(segment),
                    _ => File::Wal(segment),
                }
            }
        };
        Ok(Judged { file, intake: self })
    }

    fn segment(&self, size: SegmentSize) -> Outcome<Segment> {
        let name = self.name.strip_suffix(".partial").unwrap_or(&self.name);
        Segment::from_name(name, size).map_or_else(
            || wrong(format!("'{name}' is no segment of {} bytes", size.bytes())),
            Ok,
        )
    }
}

impl Judged {
    /// Gives it its name, durably, or lends it. `entry` numbers what is new.
    pub fn take(mut self, entry: impl Fn() -> u64) -> Outcome<Taken> {
        let content = std::mem::replace(&mut self.intake.content, Content::Here);
        let (spool, name) = (&self.intake.spool, &self.intake.name);
        let sealed = match content {
            Content::Here => spool.place(name, &self.intake.head)?,
            Content::Copied(file) => file.seal()?,
            Content::Lying(lying) => match spool.lend(name, &lying, &entry)? {
                Loan::New(entry) => {
                    let event = Some(self.spooled(entry));
                    let lent = Some(entry);
                    return Ok(Taken { event, lent });
                }
                Loan::Known(entry) => {
                    let lent = Some(entry);
                    return Ok(Taken { event: None, lent });
                }
                Loan::Occupied => {
                    let mut file = spool.placing(name)?;
                    match file.fill(&lying) {
                        Ok(()) => file.seal()?,
                        Err(failure) => {
                            file.abandon();
                            return Err(failure);
                        }
                    }
                }
            },
        };
        let event = match sealed {
            Sealed::New => Some(self.spooled(entry())),
            Sealed::Duplicate => None,
            Sealed::Conflict { kept_as } => Some(Event::Conflicted {
                file: self.file.clone(),
                ours: format!("kept in the spool as '{kept_as}'"),
                theirs: "sealed in the spool before".into(),
            }),
        };
        Ok(Taken { event, lent: None })
    }

    fn spooled(&self, entry: u64) -> Event {
        Event::Spooled {
            file: self.file.clone(),
            entry,
            bytes: self.intake.bytes,
            origin: Origin::Archive,
        }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        if let Content::Copied(file) = std::mem::replace(&mut self.content, Content::Here) {
            file.abandon();
        }
    }
}

/// The spool's name of a timeline's unfinished end.
fn ended(name: &str) -> String {
    format!("{}.ended", name.strip_suffix(".partial").unwrap_or(name))
}

fn wrong<T>(what: String) -> Outcome<T> {
    Err(Failure::new(Class::Corrupt, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_files_come_in_postgresqls_order() {
        let folder = tempfile::tempdir().unwrap();
        assert!(ready(folder.path()).is_empty());
        let status = folder.path().join("archive_status");
        std::fs::create_dir(&status).unwrap();
        for name in [
            "000000020000000000000004.ready",
            "000000010000000000000003.ready",
            "000000010000000000000003.partial.ready",
            "000000010000000000000002.done",
            "00000002.history.ready",
            "000000010000000000000002.00000028.backup.ready",
            "junk.ready",
        ] {
            std::fs::write(status.join(name), b"").unwrap();
        }
        let expected = [
            "00000002.history",
            "000000010000000000000003",
            "000000010000000000000003.partial",
            "000000020000000000000004",
        ];
        assert_eq!(ready(folder.path()), expected);
    }
}
