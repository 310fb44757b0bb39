//! Everything that can be spooled or stored, and the object key each has below its site's prefix.
//!
//! The layout is PGHoard's: `xlog/`, `timeline/`, `basebackup/`, `basebackup_chunk/`. Ours is
//! `xlog_partial/`: the unfinished last segment of a timeline that a promotion ended.

use alloc::format;
use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::event::Millis;
use crate::wal::{Segment, SegmentSize, Timeline};

/// A site: the name of one backed-up cluster in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Site(pub String);

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A backup: `YYYY-MM-DD_HH-MM_I`, UTC, decided when it starts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BackupName(pub String);

impl BackupName {
    /// How the name of a backup begins: `YYYY-MM-DD_HH-MM`, UTC.
    pub fn minute(at: Millis) -> String {
        let minutes = at.0 / 60_000;
        let (days, minute) = (minutes / 1440, minutes % 1440);
        let (year, month, day) = civil(days);
        format!(
            "{year:04}-{month:02}-{day:02}_{:02}-{:02}",
            minute / 60,
            minute % 60
        )
    }
}

/// Year, month and day of a number of days since 1970, as in Howard Hinnant's `civil_from_days`.
pub(crate) fn civil(days: u64) -> (u64, u64, u64) {
    let z = days.saturating_add(719_468);
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, day)
}

/// `2026-11-22 09:27 UTC`
pub(crate) fn utc(at: Millis) -> String {
    let minutes = at.0 / 60_000;
    let (year, month, day) = civil(minutes / 1440);
    let (hour, minute) = (minutes % 1440 / 60, minutes % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

impl fmt::Display for BackupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum File {
    /// A full WAL segment.
    Wal(Segment),
    /// The unfinished last segment of a timeline that ended.
    Partial(Segment),
    /// A timeline history file.
    History(Timeline),
    /// Chunk `number`, from 1, of a backup.
    Part { backup: BackupName, number: u32 },
    /// The main object of a backup: written last, deleted first.
    Main(BackupName),
}

impl File {
    /// The object key below the site's prefix.
    pub fn key(&self, size: SegmentSize) -> String {
        match self {
            File::Wal(segment) => format!("xlog/{}", segment.name(size)),
            File::Partial(segment) => format!("xlog_partial/{}", segment.name(size)),
            File::History(timeline) => format!("timeline/{}", timeline.history_name()),
            File::Part { backup, number } => {
                format!("basebackup_chunk/{backup}/{backup}.{number:08}.pghoard")
            }
            File::Main(backup) => format!("basebackup/{backup}.00000000.pghoard"),
        }
    }

    /// The name in the spool. Parts never pass through it: they go from the stream to the store.
    pub fn spool_name(&self, size: SegmentSize) -> String {
        match self {
            File::Wal(segment) => segment.name(size),
            File::Partial(segment) => format!("{}.ended", segment.name(size)),
            File::History(timeline) => timeline.history_name(),
            File::Part { backup, number } => format!("{backup}.{number:08}.part"),
            File::Main(backup) => format!("{backup}.main"),
        }
    }

    /// What a spool name stands for; `None` for names that are not ours.
    pub fn from_spool_name(name: &str, size: SegmentSize) -> Option<File> {
        if let Some(timeline) = Timeline::from_history_name(name) {
            return Some(File::History(timeline));
        }
        if let Some(segment) = name.strip_suffix(".ended") {
            return Segment::from_name(segment, size).map(File::Partial);
        }
        if let Some(backup) = name.strip_suffix(".main") {
            return Some(File::Main(BackupName(backup.into())));
        }
        Segment::from_name(name, size).map(File::Wal)
    }

    /// PGHoard's file type, as its statistics and metrics name it.
    pub fn kind(&self) -> &'static str {
        match self {
            File::Wal(_) | File::Partial(_) => "xlog",
            File::History(_) => "timeline",
            File::Part { .. } => "basebackup_chunk",
            File::Main(_) => "basebackup",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spooled_file_is_known_by_its_name() {
        let size = SegmentSize::DEFAULT;
        let segment = Segment::new(Timeline(2), 300);
        let backup = BackupName("2026-11-22_09-27_0".into());
        for (file, key) in [
            (File::Wal(segment), "xlog/00000002000000010000002C"),
            (
                File::Partial(segment),
                "xlog_partial/00000002000000010000002C",
            ),
            (File::History(Timeline(2)), "timeline/00000002.history"),
            (
                File::Main(backup),
                "basebackup/2026-11-22_09-27_0.00000000.pghoard",
            ),
        ] {
            assert_eq!(file.key(size), key);
            assert_eq!(
                File::from_spool_name(&file.spool_name(size), size),
                Some(file)
            );
        }
        assert_eq!(File::from_spool_name("core.1234", size), None);
    }

    #[test]
    fn names_are_civil_utc_minutes() {
        for (at, name) in [
            (0, "1970-01-01_00-00"),
            (951_782_400_000, "2000-02-29_00-00"),
            (1_795_339_646_717, "2026-11-22_09-27"),
            (4_102_444_799_000, "2099-12-31_23-59"),
        ] {
            assert_eq!(BackupName::minute(Millis(at)), name);
        }
    }
}
