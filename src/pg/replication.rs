//! The replication commands, and the WAL stream.
//!
//! WAL is handed on as slices of the connection's buffer. The stream checks that every message
//! begins where the one before it ended, the first one where we asked: a gap is an error here and
//! can never become a gap in a segment.
//! postgres-protocol knows no CopyBoth, so its frames are read by tag.
//! Authority: PostgreSQL documentation, "Streaming Replication Protocol".

use std::time::Instant;

use machine::{Class, Lsn, SegmentSize, Timeline};
use postgres_protocol::message::frontend::{self, CopyData};

use super::connection::{Connection, Mode, Row};
use super::fault::{Answer, Fault, SqlState};
use super::files::History;
use super::input::Frame;
use crate::clock;

/// READ_REPLICATION_SLOT exists since 15.
const VERSION_READ_SLOT: u32 = 150_000;

/// Microseconds from 1970 to 2000, where PostgreSQL's clock starts.
const EPOCH_US: u64 = 946_684_800_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub system_id: u64,
    pub timeline: Timeline,
    /// Flushed so far.
    pub position: Lsn,
}

pub async fn identify(connection: &mut Connection, deadline: Instant) -> Answer<Identity> {
    let rows = connection.simple_query("IDENTIFY_SYSTEM", deadline).await?;
    let row = rows.first();
    let identity = row.and_then(|row| {
        Some(Identity {
            system_id: row.parse(0)?,
            timeline: row.parse(1).filter(|t| *t > 0).map(Timeline)?,
            position: row.parse(2)?,
        })
    });
    identity.ok_or_else(|| connection.violation("the answer to IDENTIFY_SYSTEM"))
}

pub async fn segment_size(connection: &mut Connection, deadline: Instant) -> Answer<SegmentSize> {
    let rows = connection
        .simple_query("SHOW wal_segment_size", deadline)
        .await?;
    let size = rows.first().and_then(|row| bytes_of(row.text(0)?));
    size.and_then(SegmentSize::new)
        .ok_or_else(|| connection.violation("a wal_segment_size"))
}

/// `16MB`, as SHOW prints it.
fn bytes_of(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(at)?;
    let shift = match unit {
        "B" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Absent,
    /// `restart` is the oldest position the server keeps for it; nothing before its first use.
    Present {
        restart: Option<Lsn>,
    },
}

/// Looks a physical slot up. A walsender before 15 cannot tell: give it a plain connection there.
pub async fn slot(connection: &mut Connection, name: &str, deadline: Instant) -> Answer<Slot> {
    slot_name(name)?;
    let sql = match connection.mode() {
        Mode::Plain => format!(
            "SELECT slot_type, restart_lsn FROM pg_catalog.pg_replication_slots \
             WHERE slot_name = '{name}'"
        ),
        Mode::Physical if connection.version() >= VERSION_READ_SLOT => {
            format!("READ_REPLICATION_SLOT \"{name}\"")
        }
        Mode::Physical => {
            let message = "before version 15 a slot is looked up over a plain connection";
            return Err(Fault::new(Class::Unsupported, message));
        }
    };
    let rows = connection.simple_query(&sql, deadline).await?;
    let found = rows.first().and_then(|row| Some((row.text(0)?, row)));
    match found {
        None => Ok(Slot::Absent),
        Some(("physical", row)) => Ok(Slot::Present {
            restart: row.parse(1),
        }),
        Some((other, _)) => Err(Fault::new(
            Class::Config,
            format!("replication slot \"{name}\" is {other}, expected a physical one"),
        )),
    }
}

/// Creates a physical slot that keeps WAL from now on; one that exists already is as good.
pub async fn create_slot(connection: &mut Connection, name: &str, deadline: Instant) -> Answer<()> {
    slot_name(name)?;
    let sql = format!("CREATE_REPLICATION_SLOT \"{name}\" PHYSICAL RESERVE_WAL");
    match connection.simple_query(&sql, deadline).await {
        Ok(_) => Ok(()),
        Err(fault) if fault.is(SqlState::DUPLICATE_OBJECT) => Ok(()),
        Err(fault) => Err(fault),
    }
}

/// Creates a slot that goes with this connection, and keeps all WAL since the last checkpoint until
/// then.
pub async fn hold_wal(connection: &mut Connection, deadline: Instant) -> Answer<()> {
    let process = connection.process();
    let sql = format!(
        "CREATE_REPLICATION_SLOT \"pghoard_hold_{process}\" TEMPORARY PHYSICAL RESERVE_WAL"
    );
    connection.simple_query(&sql, deadline).await.map(drop)
}

/// PostgreSQL's own rule; what passes needs no quoting.
fn slot_name(name: &str) -> Answer<()> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    let message = format!("replication slot \"{name}\": expected lower-case letters, digits and _");
    Err(Fault::new(Class::Config, message))
}

/// A timeline's history file, byte for byte and parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    pub name: String,
    pub content: Vec<u8>,
    pub history: History,
}

pub async fn timeline_history(
    connection: &mut Connection,
    timeline: Timeline,
    deadline: Instant,
) -> Answer<HistoryFile> {
    let sql = format!("TIMELINE_HISTORY {timeline}");
    let rows = connection.simple_query(&sql, deadline).await?;
    let found = rows.first().and_then(|r| r.text(0).zip(r.bytes(1)));
    let Some((name, content)) = found.filter(|(n, _)| *n == timeline.history_name()) else {
        return Err(connection.violation("the answer to TIMELINE_HISTORY"));
    };
    Ok(HistoryFile {
        name: name.to_owned(),
        content: content.to_vec(),
        history: History::parse(timeline, content)?,
    })
}

#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    pub slot: Option<&'a str>,
    pub timeline: Timeline,
    pub at: Lsn,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Wal<'a> {
    /// Bytes of WAL from `start` on; `server_end` is the end of WAL on the server.
    Data {
        start: Lsn,
        server_end: Lsn,
        data: &'a [u8],
    },
    Keepalive {
        server_end: Lsn,
        reply: Reply,
    },
    /// This timeline ended at `at`; the connection is free to start on the next.
    TimelineEnd {
        next: Timeline,
        at: Lsn,
    },
    /// The server ends the stream, usually because it shuts down.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Wanted,
    Optional,
}

/// What we tell the server. Write is never below flush; apply means nothing to a backup and is
/// sent equal to flush, so that `remote_apply` never waits for or trusts more than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub write: Lsn,
    pub flush: Lsn,
    pub reply: Reply,
}

pub struct WalStream<'c> {
    connection: &'c mut Connection,
    /// Where the next byte must be.
    next: Lsn,
    /// Told at the start: the timeline ended exactly where we asked to begin.
    over: Option<(Timeline, Lsn)>,
}

impl<'c> WalStream<'c> {
    /// Starts streaming. An error of the server leaves the connection usable.
    pub async fn start(
        connection: &'c mut Connection,
        start: Start<'_>,
        deadline: Instant,
    ) -> Answer<WalStream<'c>> {
        let slot = match start.slot {
            Some(name) => {
                slot_name(name)?;
                format!("SLOT \"{name}\" ")
            }
            None => String::new(),
        };
        let (at, timeline) = (start.at, start.timeline);
        let sql = format!("START_REPLICATION {slot}PHYSICAL {at} TIMELINE {timeline}");
        connection.query(&sql, deadline).await?;
        let frame = connection.must(deadline).await?;
        match frame.tag {
            b'W' => {}
            b'E' => {
                let fault = connection.refusal(frame);
                return Err(connection.recover(fault, deadline).await);
            }
            b'T' => {
                let over = finish(connection, deadline).await?;
                return Ok(WalStream {
                    connection,
                    next: at,
                    over,
                });
            }
            _ => return Err(connection.violation("the start of a WAL stream")),
        }
        Ok(WalStream {
            connection,
            next: at,
            over: None,
        })
    }

    /// The next piece; `None` when nothing came before the deadline, which is no failure.
    pub async fn next(&mut self, deadline: Instant) -> Answer<Option<Wal<'_>>> {
        if let Some((next, at)) = self.over {
            return Ok(Some(Wal::TimelineEnd { next, at }));
        }
        let Some(frame) = self.connection.frame(deadline).await? else {
            return Ok(None);
        };
        match frame.tag {
            b'd' => self.copied(frame).map(Some),
            b'c' => self.end(deadline).await.map(Some),
            // A walsender that shuts down completes the command without leaving copy mode.
            b'C' => Ok(Some(Wal::Ended)),
            b'E' => Err(self.connection.refusal(frame)),
            _ => Err(self.connection.violation("WAL")),
        }
    }

    /// Whether more can be had without waiting: as long as it can, syncing may wait.
    pub async fn ready(&mut self) -> bool {
        self.connection.ready().await
    }

    /// Standby status update.
    pub async fn send_status(&mut self, status: Status, deadline: Instant) -> Answer<()> {
        let mut body = Vec::with_capacity(34);
        body.push(b'r');
        let write = status.write.max(status.flush);
        for position in [write, status.flush, status.flush] {
            body.extend(position.0.to_be_bytes());
        }
        body.extend(now_us().to_be_bytes());
        body.push(u8::from(status.reply == Reply::Wanted));
        self.connection.write(|output| {
            CopyData::new(body.as_slice())?.write(output);
            Ok(())
        })?;
        self.connection.flush(deadline).await
    }

    fn copied(&mut self, frame: Frame) -> Answer<Wal<'_>> {
        let body = self.connection.body(frame);
        let parsed = match body.split_first() {
            Some((b'w', rest)) => three(rest).map(|([start, end, _], data)| {
                let (start, server_end) = (Lsn(start), Lsn(end));
                Wal::Data {
                    start,
                    server_end,
                    data,
                }
            }),
            Some((b'k', rest)) => keepalive(rest),
            _ => None,
        };
        match parsed {
            Some(Wal::Data { start, data, .. }) if start != self.next => Err(Fault::new(
                Class::Corrupt,
                format!(
                    "postgres at {}: {} bytes of WAL came at {start}, expected {}",
                    self.connection.server(),
                    data.len(),
                    self.next
                ),
            )),
            Some(wal) => {
                if let Wal::Data { start, data, .. } = &wal {
                    let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    self.next = Lsn(start.0.saturating_add(length));
                }
                Ok(wal)
            }
            None => Err(self.connection.violation("WAL or a keepalive")),
        }
    }

    /// The server has left copy mode: so do we, and it says where the next timeline begins.
    async fn end(&mut self, deadline: Instant) -> Answer<Wal<'_>> {
        self.connection.write(|output| {
            frontend::copy_done(output);
            Ok(())
        })?;
        self.connection.flush(deadline).await?;
        self.over = finish(self.connection, deadline).await?;
        Ok(match self.over {
            Some((next, at)) => Wal::TimelineEnd { next, at },
            None => Wal::Ended,
        })
    }
}

/// The result that follows a stream: the next timeline and where it begins, if there is one.
async fn finish(connection: &mut Connection, deadline: Instant) -> Answer<Option<(Timeline, Lsn)>> {
    let mut switch: Option<Row> = None;
    loop {
        let frame = connection.must(deadline).await?;
        match frame.tag {
            b'D' => switch = Some(connection.row(frame)?),
            // WAL may still be under way when both sides end at once.
            b'T' | b'C' | b'd' | b'c' => {}
            b'E' => return Err(connection.refusal(frame)),
            b'Z' => break,
            _ => return Err(connection.violation("the end of a timeline")),
        }
    }
    let Some(row) = switch else {
        return Ok(None);
    };
    let timeline = row.parse(0).filter(|t| *t > 0).map(Timeline);
    match timeline.zip(row.parse(1)) {
        Some(switch) => Ok(Some(switch)),
        None => Err(connection.violation("the next timeline and its start")),
    }
}

fn keepalive(body: &[u8]) -> Option<Wal<'_>> {
    let (end, rest) = body.split_first_chunk()?;
    let (_sent_us, rest) = rest.split_first_chunk::<8>()?;
    let [reply] = rest else { return None };
    Some(Wal::Keepalive {
        server_end: Lsn(u64::from_be_bytes(*end)),
        reply: if *reply == 0 {
            Reply::Optional
        } else {
            Reply::Wanted
        },
    })
}

fn three(body: &[u8]) -> Option<([u64; 3], &[u8])> {
    let (a, rest) = body.split_first_chunk()?;
    let (b, rest) = rest.split_first_chunk()?;
    let (c, rest) = rest.split_first_chunk()?;
    Some(([a, b, c].map(|n| u64::from_be_bytes(*n)), rest))
}

/// For the server's `reply_time` column only; nothing is decided by it.
fn now_us() -> u64 {
    let us = clock::now().0.saturating_mul(1000);
    us.saturating_sub(EPOCH_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_show_prints_them() {
        for (text, bytes) in [
            ("16MB", Some(16 << 20)),
            ("1GB", Some(1 << 30)),
            ("1MB", Some(1 << 20)),
            ("MB", None),
            ("16", None),
            ("16TB", None),
        ] {
            assert_eq!(bytes_of(text), bytes, "{text}");
        }
    }

    #[test]
    fn only_names_that_need_no_quoting_are_slots() {
        for (name, fits) in [
            ("pghoard_1", true),
            ("", false),
            ("Slot", false),
            ("a\"; DROP", false),
            ("a-b", false),
        ] {
            assert_eq!(slot_name(name).is_ok(), fits, "{name}");
        }
        assert!(slot_name(&"a".repeat(64)).is_err());
    }

    #[test]
    fn keepalives_are_whole_or_nothing() {
        let mut body = vec![0; 17];
        body[7] = 5;
        body[16] = 1;
        let expected = Wal::Keepalive {
            server_end: Lsn(5),
            reply: Reply::Wanted,
        };
        assert_eq!(keepalive(&body), Some(expected));
        assert_eq!(keepalive(&body[..16]), None);
        body.push(0);
        assert_eq!(keepalive(&body), None);
    }
}
