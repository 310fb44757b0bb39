//! The metadata of a backup's main object, both ways: PGHoard's keys, and the times as it writes
//! them (`isoformat()` with a `T`, `str()` with a blank).

use jiff::Timestamp;
use machine::event::{Adopted, WalIn, Why};
use machine::projection::backups::{Backup, Content};
use machine::{BackupName, Lsn, Millis, Segment, SegmentSize};

use crate::store::Metadata;

/// Beside WAL and histories, ours: `system_identifier` of the cluster, in digits.
pub const SYSTEM_ID: &str = "system-identifier";

/// Ours: bytes of a WAL segment, where they are not 16 MiB. Without WAL beside it only the backup
/// itself can tell what the names of its segments mean.
pub const SEGMENT_SIZE: &str = "wal-segment-size";

/// The `active-backup-mode` of backups with their WAL inside.
pub const STANDALONE: &str = "standalone_hot_backup";

/// What the site's configuration adds.
pub struct Modes<'a> {
    pub active_backup: &'a str,
    pub basebackup: &'a str,
}

/// What is known of a backup when it has begun.
pub struct Begun {
    pub start: Segment,
    pub started_at: Millis,
    pub pg_version: Option<u32>,
    pub size: SegmentSize,
}

/// Of a backup in one object: all that is known before its end.
pub fn begun(site: &str, modes: &Modes<'_>, backup: &Backup, begun: &Begun) -> Metadata {
    let mut metadata = Metadata::new();
    let mut add = |key: &str, value: String| metadata.insert(key.into(), value);
    add("site", site.into());
    add("active-backup-mode", modes.active_backup.into());
    add("basebackup-mode", modes.basebackup.into());
    add("backup-decision-time", iso(backup.decided_at));
    add("backup-reason", reason(backup.reason).into());
    if let Some(at) = backup.normalized_at {
        add("normalized-backup-time", iso(at));
    }
    add("start-time", iso(begun.started_at));
    add("start-wal-segment", begun.start.name(begun.size));
    if let Some(version) = begun.pg_version {
        add("pg-version", version.to_string());
    }
    if begun.size != SegmentSize::DEFAULT {
        add(SEGMENT_SIZE, begun.size.bytes().to_string());
    }
    metadata
}

/// What its end adds, in every form.
pub fn ended(
    at: Option<Millis>,
    end: Option<Segment>,
    lsn: Option<Lsn>,
    size: SegmentSize,
) -> Metadata {
    let at = at.map(|at| ("end-time", iso(at).replace('T', " ")));
    let end = end.map(|end| ("end-wal-segment", end.name(size)));
    let lsn = lsn.map(|lsn| ("end-lsn", lsn.to_string()));
    let known = [at, end, lsn].into_iter().flatten();
    known.map(|(key, value)| (key.into(), value)).collect()
}

pub fn write(
    site: &str,
    modes: &Modes<'_>,
    backup: &Backup,
    content: &Content,
    pg_version: Option<u32>,
    size: SegmentSize,
) -> Metadata {
    let beginning = Begun {
        start: content.start,
        started_at: content.started_at,
        pg_version,
        size,
    };
    let mut metadata = begun(site, modes, backup, &beginning);
    let (at, end, lsn) = (content.ended_at, content.end, content.end_lsn);
    metadata.extend(ended(at, end, lsn, size));
    let mut add = |key: &str, value: String| metadata.insert(key.into(), value);
    add("format", content.format.clone());
    add("parts", content.parts.to_string());
    add("total-size-plain", content.bytes_in.to_string());
    add("total-size-enc", content.bytes_out.to_string());
    metadata
}

/// A backup as its main object's metadata describes it; `None` if it does not say where it starts.
/// `parts` is what a listing showed, for objects that do not say themselves.
pub fn read(
    object: &str,
    metadata: &Metadata,
    parts: u32,
    size: SegmentSize,
    modified: Millis,
) -> Option<Adopted> {
    let text = |key: &str| metadata.get(key).map(String::as_str);
    let segment = |key: &str| text(key).and_then(|name| Segment::from_name(name, size));
    let number = |key: &str| text(key).and_then(|n| n.parse::<u64>().ok());
    let started_at = text("start-time").and_then(millis).unwrap_or(modified);
    let decided_at = text("backup-decision-time")
        .and_then(millis)
        .unwrap_or(started_at);
    Some(Adopted {
        backup: backup_name(object),
        object: object.into(),
        format: text("format").unwrap_or_default().into(),
        start: segment("start-wal-segment")?,
        end: segment("end-wal-segment"),
        started_at,
        decided_at,
        normalized_at: text("normalized-backup-time").and_then(millis),
        reason: match text("backup-reason") {
            Some("requested") => Why::Operator,
            _ => Why::Schedule,
        },
        parts: text("parts").and_then(|n| n.parse().ok()).unwrap_or(parts),
        bytes_in: number("total-size-plain")
            .or(number("original-file-size"))
            .unwrap_or(0),
        bytes_out: number("total-size-enc")
            .or(number("Content-Length"))
            .unwrap_or(0),
        ended_at: text("end-time").and_then(millis),
        end_lsn: text("end-lsn").and_then(|lsn| lsn.parse().ok()),
        wal: wal(metadata),
    })
}

/// PGHoard's modes that read the server's files leave WAL out, whatever the active mode.
fn wal(metadata: &Metadata) -> WalIn {
    let text = |key: &str| metadata.get(key).map(String::as_str);
    let streamed = text("format").is_none() || text("basebackup-mode") == Some("stream");
    match text("active-backup-mode") {
        Some(STANDALONE) if streamed => WalIn::Backup,
        _ => WalIn::Archive,
    }
}

/// The backup that a main object's base name stands for.
pub fn backup_name(object: &str) -> BackupName {
    BackupName(
        object
            .strip_suffix(".00000000.pghoard")
            .unwrap_or(object)
            .into(),
    )
}

fn reason(why: Why) -> &'static str {
    match why {
        Why::Schedule => "scheduled",
        Why::Operator | Why::Hole => "requested",
    }
}

/// `2026-11-22T09:28:13.130000+00:00`
pub fn iso(at: Millis) -> String {
    let at = i64::try_from(at.0)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let at = at.unwrap_or(Timestamp::MAX);
    let fraction = if at.subsec_nanosecond() == 0 {
        ""
    } else {
        "%.6f"
    };
    at.strftime(&format!("%Y-%m-%dT%H:%M:%S{fraction}+00:00"))
        .to_string()
}

/// Any ISO form with an offset, blank or `T`; without an offset it is UTC.
pub fn millis(text: &str) -> Option<Millis> {
    let text = text.trim().replacen(' ', "T", 1);
    let at = text
        .parse::<Timestamp>()
        .or_else(|_| format!("{text}Z").parse::<Timestamp>())
        .ok()?;
    u64::try_from(at.as_millisecond()).ok().map(Millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_as_pghoard_does() {
        for (text, ms, back) in [
            (
                "2026-11-22T09:27:26+00:00",
                1_795_339_646_000,
                "2026-11-22T09:27:26+00:00",
            ),
            (
                "2026-11-22 09:28:18.467505+00:00",
                1_795_339_698_467,
                "2026-11-22T09:28:18.467000+00:00",
            ),
            (
                "2026-11-22T11:27:26.717615+02:00",
                1_795_339_646_717,
                "2026-11-22T09:27:26.717000+00:00",
            ),
            (
                "2026-11-22T09:27:26Z",
                1_795_339_646_000,
                "2026-11-22T09:27:26+00:00",
            ),
            (
                "2026-11-22T09:27:26",
                1_795_339_646_000,
                "2026-11-22T09:27:26+00:00",
            ),
        ] {
            assert_eq!(millis(text), Some(Millis(ms)), "{text}");
            assert_eq!(iso(Millis(ms)), back);
        }
        assert_eq!(millis("yesterday"), None);
    }

    #[test]
    fn a_listing_tells_all_that_was_known_of_a_backup_when_it_was_taken() {
        let segment = |number| Segment::new(machine::Timeline(2), number);
        let content = Content {
            object: None,
            format: "pghoard-bb-v2".into(),
            start: segment(7),
            end: Some(segment(9)),
            end_lsn: Some(machine::Lsn(0x0900_0128)),
            started_at: Millis(1_795_339_646_717),
            ended_at: Some(Millis(1_795_339_698_467)),
            parts: 3,
            bytes_in: 5,
            bytes_out: 4,
            wal: WalIn::Archive,
        };
        let backup = Backup {
            phase: machine::projection::backups::Phase::Finished,
            run: 1,
            node: Some(0),
            decided_at: Millis(1_795_339_646_001),
            normalized_at: Some(Millis(1_795_339_620_000)),
            reason: Why::Operator,
            content: None,
            progress: (0, 0),
            expired: None,
        };
        let modes = Modes {
            active_backup: "walreceiver",
            basebackup: "stream",
        };
        let size = SegmentSize::DEFAULT;
        let metadata = write("main", &modes, &backup, &content, Some(180_000), size);
        let name = "2026-11-22_09-27_0";
        let found = read(name, &metadata, 0, size, Millis(1));
        let expect = Adopted {
            backup: BackupName(name.into()),
            object: name.into(),
            format: content.format,
            start: content.start,
            end: content.end,
            started_at: content.started_at,
            decided_at: backup.decided_at,
            normalized_at: backup.normalized_at,
            reason: backup.reason,
            parts: content.parts,
            bytes_in: content.bytes_in,
            bytes_out: content.bytes_out,
            ended_at: content.ended_at,
            end_lsn: content.end_lsn,
            wal: content.wal,
        };
        assert_eq!(found, Some(expect));
    }

    #[test]
    fn a_backup_with_its_wal_inside_says_so_by_its_modes() {
        for (format, mode, active, expect) in [
            (None, Some("basic"), "standalone_hot_backup", WalIn::Backup),
            (None, Some("pipe"), "standalone_hot_backup", WalIn::Backup),
            (None, None, "standalone_hot_backup", WalIn::Backup),
            (
                Some("pghoard-bb-v2"),
                Some("stream"),
                STANDALONE,
                WalIn::Backup,
            ),
            (
                Some("pghoard-bb-v2"),
                Some("local-tar"),
                STANDALONE,
                WalIn::Archive,
            ),
            (
                Some("pghoard-delta-v2"),
                Some("delta"),
                STANDALONE,
                WalIn::Archive,
            ),
            (None, Some("basic"), "basic", WalIn::Archive),
            (None, Some("pipe"), "pg_receivexlog", WalIn::Archive),
        ] {
            let mut metadata = Metadata::new();
            let mut add = |key: &str, value: &str| metadata.insert(key.into(), value.into());
            add("active-backup-mode", active);
            format.map(|format| add("format", format));
            mode.map(|mode| add("basebackup-mode", mode));
            assert_eq!(wal(&metadata), expect, "{metadata:?}");
        }
    }
}
