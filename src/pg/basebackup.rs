//! BASE_BACKUP: a whole cluster as tar, over the replication protocol.
//!
//! Two wire forms. Before 15: one COPY for each archive, in the order of the list of tablespaces,
//! then one for the manifest. Since 15: a single COPY whose messages carry a kind. Both come out
//! as the same events, data as slices of the connection's buffer.
//! Authority: PostgreSQL documentation, "Streaming Replication Protocol", BASE_BACKUP.

use std::path::PathBuf;
use std::time::Instant;

use machine::event::WalIn;
use machine::{Lsn, Timeline};

use super::connection::{Connection, Row};
use super::fault::Answer;
use super::input::Frame;

/// backup_manifest exists since 13.
const VERSION_MANIFEST: u32 = 130_000;

/// One COPY for everything, and options in parentheses, since 15.
const VERSION_ONE_COPY: u32 = 150_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub lsn: Lsn,
    pub timeline: Timeline,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    pub oid: u32,
    /// Where it lives on the server.
    pub path: PathBuf,
    /// The server's estimate.
    pub size_bytes: u64,
}

/// What the server says before the first byte of data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    pub start: Position,
    pub tablespaces: Vec<Tablespace>,
    /// The server's estimate of the cluster itself, tablespaces not counted.
    pub main_size_bytes: u64,
    pub manifest: Manifest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manifest {
    Expected,
    /// The server is too old to make one.
    Never,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A tar begins: of the tablespace with this oid, or of the cluster itself.
    Archive(Option<u32>),
    Data(&'a [u8]),
    /// The manifest begins.
    ManifestBegin,
    Manifest(&'a [u8]),
    /// Everything was sent.
    End(Position),
}

pub struct BaseBackup<'c> {
    connection: &'c mut Connection,
    begin: Begin,
    /// Archives still to come, before 15; the order is the server's.
    pending: Vec<Part>,
    part: Part,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Nothing,
    Archive(Option<u32>),
    Manifest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Between,
    Copying,
    Over,
}

impl<'c> BaseBackup<'c> {
    /// Asks for the backup, with the WAL from its start to its end inside or without it. The answer
    /// waits for the server's checkpoint, which `fast` makes
    /// quick but not instant: give it minutes.
    pub async fn start(
        connection: &'c mut Connection,
        label: &str,
        wal: WalIn,
        deadline: Instant,
    ) -> Answer<BaseBackup<'c>> {
        let manifest = match connection.version() >= VERSION_MANIFEST {
            true => Manifest::Expected,
            false => Manifest::Never,
        };
        let sql = command(connection.version(), label, manifest, wal);
        connection.query(&sql, deadline).await?;
        let start = position(connection, deadline).await?;
        let rows = result(connection, deadline).await?;
        let mut begin = Begin {
            start,
            tablespaces: Vec::new(),
            main_size_bytes: 0,
            manifest,
        };
        let mut pending = Vec::new();
        for row in &rows {
            let size_bytes = row.parse::<u64>(2).unwrap_or(0).saturating_mul(1024);
            let Some(oid) = row.text(0) else {
                begin.main_size_bytes = size_bytes;
                pending.push(Part::Archive(None));
                continue;
            };
            let (oid, path) = oid
                .parse()
                .ok()
                .zip(row.text(1))
                .ok_or_else(|| connection.violation("a list of tablespaces"))?;
            begin.tablespaces.push(Tablespace {
                oid,
                path: path.into(),
                size_bytes,
            });
            pending.push(Part::Archive(Some(oid)));
        }
        if manifest == Manifest::Expected {
            pending.push(Part::Manifest);
        }
        pending.reverse();
        Ok(BaseBackup {
            connection,
            begin,
            pending,
            part: Part::Nothing,
            state: State::Between,
        })
    }

    pub fn begin(&self) -> &Begin {
        &self.begin
    }

    /// The next event. The deadline is for this one alone: it guards against a stream that stalls.
    pub async fn next(&mut self, deadline: Instant) -> Answer<Event<'_>> {
        loop {
            if self.state == State::Over {
                return Err(self
                    .connection
                    .violation("no more than the end of the backup"));
            }
            let frame = self.connection.must(deadline).await?;
            match (frame.tag, self.state) {
                (b'H', State::Between) => {
                    self.state = State::Copying;
                    if !self.one_copy() {
                        let part = self.pending.pop();
                        self.part = part.ok_or_else(|| self.violation())?;
                        return Ok(self.begun());
                    }
                }
                (b'd', State::Copying) if !self.one_copy() => return self.data(frame, 0),
                (b'd', State::Copying) => match self.kind(frame)? {
                    b'n' | b'm' => return Ok(self.begun()),
                    b'd' => return self.data(frame, 1),
                    // Progress: we count what arrives.
                    _ => {}
                },
                (b'c', State::Copying) => self.state = State::Between,
                // A row description: the positions at the end.
                (b'T', State::Between) => {
                    let row = self
                        .connection
                        .expect(b'D', "an end position", deadline)
                        .await?;
                    let row = self.connection.row(row)?;
                    let end = parsed(&row).ok_or_else(|| self.violation())?;
                    self.drain(deadline).await?;
                    self.state = State::Over;
                    return Ok(Event::End(end));
                }
                (b'E', _) => {
                    let fault = self.connection.refusal(frame);
                    return Err(self.connection.recover(fault, deadline).await);
                }
                _ => return Err(self.violation()),
            }
        }
    }

    fn one_copy(&self) -> bool {
        self.connection.version() >= VERSION_ONE_COPY
    }

    fn violation(&self) -> super::Fault {
        self.connection.violation("a base backup")
    }

    /// Reads the kind of a message since 15 and notes what begins.
    fn kind(&mut self, frame: Frame) -> Answer<u8> {
        let body = self.connection.body(frame);
        let part = match body.split_first() {
            Some((b'n', names)) => {
                let name = names.split(|b| *b == 0).next();
                name.and_then(archive_oid).map(Part::Archive)
            }
            Some((b'm', _)) => Some(Part::Manifest),
            Some((b'd' | b'p', _)) => Some(self.part),
            _ => None,
        };
        let kind = body.first().copied();
        self.part = part.ok_or_else(|| self.violation())?;
        kind.ok_or_else(|| self.violation())
    }

    fn begun(&self) -> Event<'static> {
        match self.part {
            Part::Archive(oid) => Event::Archive(oid),
            Part::Manifest | Part::Nothing => Event::ManifestBegin,
        }
    }

    fn data(&self, frame: Frame, skip: usize) -> Answer<Event<'_>> {
        let body = self.connection.body(frame).get(skip..).unwrap_or(&[]);
        match self.part {
            Part::Archive(_) => Ok(Event::Data(body)),
            Part::Manifest => Ok(Event::Manifest(body)),
            Part::Nothing => Err(self.violation()),
        }
    }

    async fn drain(&mut self, deadline: Instant) -> Answer<()> {
        loop {
            let frame = self.connection.must(deadline).await?;
            match frame.tag {
                b'Z' => return Ok(()),
                b'C' => {}
                // Damaged pages are reported here, after all data was sent.
                b'E' => {
                    let fault = self.connection.refusal(frame);
                    return Err(self.connection.recover(fault, deadline).await);
                }
                _ => return Err(self.violation()),
            }
        }
    }
}

/// Without TABLESPACE_MAP: the archive then holds the links themselves instead of a file that a
/// starting server would obey, whatever tablespaces the restore had mapped elsewhere.
fn command(version: u32, label: &str, manifest: Manifest, wal: WalIn) -> String {
    let label = label.replace('\'', "''");
    if version >= VERSION_ONE_COPY {
        let wal = match wal {
            WalIn::Archive => "",
            WalIn::Backup => ", WAL true",
        };
        return format!(
            "BASE_BACKUP (LABEL '{label}', PROGRESS true, CHECKPOINT 'fast', WAIT false, \
             MANIFEST 'yes'{wal})"
        );
    }
    let manifest = match manifest {
        Manifest::Expected => " MANIFEST 'yes'",
        Manifest::Never => "",
    };
    let wal = match wal {
        WalIn::Archive => "",
        WalIn::Backup => " WAL",
    };
    format!("BASE_BACKUP LABEL '{label}' PROGRESS FAST{wal} NOWAIT{manifest}")
}

/// `base.tar` is the cluster, `16384.tar` a tablespace.
fn archive_oid(name: &[u8]) -> Option<Option<u32>> {
    let stem = std::str::from_utf8(name).ok()?.strip_suffix(".tar")?;
    match stem {
        "base" => Some(None),
        oid => oid.parse().ok().map(Some),
    }
}

/// One result set: row description, rows, command complete.
async fn result(connection: &mut Connection, deadline: Instant) -> Answer<Vec<Row>> {
    connection.expect(b'T', "a result", deadline).await?;
    let mut rows = Vec::new();
    loop {
        let frame = connection.must(deadline).await?;
        match frame.tag {
            b'D' => rows.push(connection.row(frame)?),
            b'C' => return Ok(rows),
            _ => return Err(connection.violation("rows and their end")),
        }
    }
}

async fn position(connection: &mut Connection, deadline: Instant) -> Answer<Position> {
    let rows = result(connection, deadline).await?;
    let found = rows.first().and_then(parsed);
    found.ok_or_else(|| connection.violation("a start position"))
}

fn parsed(row: &Row) -> Option<Position> {
    Some(Position {
        lsn: row.parse(0)?,
        timeline: row.parse(1).filter(|t| *t > 0).map(Timeline)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_fits_the_version() {
        use Manifest::{Expected, Never};
        use WalIn::{Archive, Backup};
        for (version, manifest, wal, expected) in [
            (
                120_022,
                Never,
                Archive,
                "LABEL 'it''s' PROGRESS FAST NOWAIT",
            ),
            (120_022, Never, Backup, "PROGRESS FAST WAL NOWAIT"),
            (
                130_014,
                Expected,
                Archive,
                "PROGRESS FAST NOWAIT MANIFEST 'yes'",
            ),
            (
                150_018,
                Expected,
                Archive,
                "(LABEL 'it''s', PROGRESS true, CHECKPOINT 'fast', WAIT false, MANIFEST 'yes')",
            ),
            (150_018, Expected, Backup, "MANIFEST 'yes', WAL true)"),
        ] {
            let command = command(version, "it's", manifest, wal);
            assert!(command.ends_with(expected), "{command}");
        }
    }

    #[test]
    fn archives_are_known_by_name() {
        for (name, oid) in [
            ("base.tar", Some(None)),
            ("16384.tar", Some(Some(16_384))),
            ("x.tar", None),
            ("base", None),
        ] {
            assert_eq!(archive_oid(name.as_bytes()), oid, "{name}");
        }
    }
}
