//! What PostgreSQL writes and we must judge: WAL page headers, backup_label, timeline history.
//! Parse only; nothing is believed that does not fit.

use std::fmt;

use machine::{Class, Lsn, Segment, SegmentSize, Timeline};

use crate::failure::{Failure, Outcome};

/// The bytes at the beginning of a segment that [`WalHeader::parse`] needs.
pub const WAL_HEADER_BYTES: usize = 40;

/// `XLP_LONG_HEADER`: the first page of a segment carries more.
const LONG: u16 = 0x0002;

/// `XLOG_PAGE_MAGIC` of each major version (PostgreSQL `src/include/access/xlog_internal.h`).
const MAGICS: [(u16, u32); 9] = [
    (0xD097, 10),
    (0xD098, 11),
    (0xD101, 12),
    (0xD106, 13),
    (0xD10D, 14),
    (0xD110, 15),
    (0xD113, 16),
    (0xD116, 17),
    (0xD118, 18),
];

/// What all of them have begun with since 9.0.
const FAMILY: std::ops::RangeInclusive<u16> = 0xD060..=0xD1FF;

/// The magic of WAL that begins as that of a PostgreSQL older or newer than this program knows.
pub fn foreign_magic(bytes: &[u8]) -> Option<u16> {
    let magic = bytes.first_chunk().copied().map(u16::from_ne_bytes)?;
    let known = MAGICS.iter().any(|(known, _)| *known == magic);
    (FAMILY.contains(&magic) && !known).then_some(magic)
}

/// The first page header of a segment, in the byte order of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalHeader {
    pub version_major: u32,
    /// Of the page: a segment switched to a new timeline may begin with the old one.
    pub timeline: Timeline,
    pub address: Lsn,
    pub system_id: u64,
    pub segment_size: SegmentSize,
}

impl WalHeader {
    pub fn parse(bytes: &[u8]) -> Outcome<WalHeader> {
        let wrong = |what: String| Failure::new(Class::Corrupt, format!("WAL header: {what}"));
        let (head, _) = bytes
            .split_first_chunk::<WAL_HEADER_BYTES>()
            .ok_or_else(|| {
                wrong(format!(
                    "{} bytes, expected {WAL_HEADER_BYTES}",
                    bytes.len()
                ))
            })?;
        let mut fields = Fields(head);
        let magic = u16::from_ne_bytes(fields.take());
        let version = MAGICS.iter().find(|(m, _)| *m == magic);
        let (_, version_major) = *version.ok_or_else(|| wrong(format!("magic {magic:04X}")))?;
        let info = u16::from_ne_bytes(fields.take());
        let timeline = Timeline(u32::from_ne_bytes(fields.take()));
        let address = Lsn(u64::from_ne_bytes(fields.take()));
        let _remaining_and_padding: [u8; 8] = fields.take();
        let system_id = u64::from_ne_bytes(fields.take());
        let size = u32::from_ne_bytes(fields.take());
        let page = u32::from_ne_bytes(fields.take());
        if info & LONG == 0 {
            return Err(wrong("not the first page of a segment".to_owned()));
        }
        if !page.is_power_of_two() {
            return Err(wrong(format!("page size {page}")));
        }
        let segment_size = SegmentSize::new(u64::from(size))
            .ok_or_else(|| wrong(format!("segment size {size}")))?;
        Ok(WalHeader {
            version_major,
            timeline,
            address,
            system_id,
            segment_size,
        })
    }

    /// Whether these are the first bytes of that segment, of that cluster where it is known. The
    /// timeline may be older than the name's, never newer.
    pub fn check(
        &self,
        segment: Segment,
        size: SegmentSize,
        system_id: Option<u64>,
    ) -> Outcome<()> {
        let name = segment.name(size);
        let wrong = |what: &str, expected: &dyn fmt::Display, found: &dyn fmt::Display| {
            let message = format!("WAL file '{name}': expected {what} {expected}, found {found}");
            Err(Failure::new(Class::Corrupt, message))
        };
        let start = segment.start(size);
        if self.segment_size != size {
            return wrong("segment size", &size.bytes(), &self.segment_size.bytes());
        }
        if self.address != start {
            return wrong("LSN", &start, &self.address);
        }
        if self.timeline > segment.timeline {
            return wrong("timeline", &segment.timeline, &self.timeline);
        }
        match system_id.filter(|id| *id != self.system_id) {
            Some(id) => wrong("system identifier", &id, &self.system_id),
            None => Ok(()),
        }
    }
}

/// Takes fixed-size fields off the front of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self
            .0
            .split_first_chunk::<N>()
            .expect("the fields of a WAL header sum up to WAL_HEADER_BYTES");
        self.0 = rest;
        *field
    }
}

/// The lines of backup_label that we need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    pub start: Lsn,
    pub checkpoint: Lsn,
    pub timeline: Timeline,
    pub from: Origin,
    /// As written, in the server's log_timezone: `2026-11-22 09:27:26 UTC`.
    pub start_time: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Primary,
    Standby,
}

impl BackupLabel {
    pub fn parse(bytes: &[u8]) -> Outcome<BackupLabel> {
        let text = std::str::from_utf8(bytes).ok();
        let line = |key: &'static str| {
            let lines = text.into_iter().flat_map(str::lines);
            let mut values = lines.filter_map(|l| l.strip_prefix(key)?.strip_prefix(": "));
            values.next().ok_or_else(|| missing(key))
        };
        let position = |key: &'static str| {
            let first = line(key)?.split_ascii_whitespace().next();
            first
                .and_then(|t| t.parse().ok())
                .ok_or_else(|| missing(key))
        };
        let timeline = line("START TIMELINE")?.trim().parse();
        Ok(BackupLabel {
            start: position("START WAL LOCATION")?,
            checkpoint: position("CHECKPOINT LOCATION")?,
            timeline: timeline
                .ok()
                .filter(|t| *t > 0)
                .map(Timeline)
                .ok_or_else(|| missing("START TIMELINE"))?,
            from: match line("BACKUP FROM")?.trim() {
                "primary" | "master" => Origin::Primary,
                "standby" => Origin::Standby,
                _ => return Err(missing("BACKUP FROM")),
            },
            start_time: line("START TIME")?.trim().to_owned(),
        })
    }
}

fn missing(key: &str) -> Failure {
    Failure::new(
        Class::Corrupt,
        format!("backup_label: no line '{key}: ..' in the form PostgreSQL writes"),
    )
}

/// A timeline history file: where each ancestor was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    pub timeline: Timeline,
    /// Oldest first.
    pub ancestors: Vec<Ancestor>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    pub timeline: Timeline,
    /// WAL of this timeline is valid up to here.
    pub end: Lsn,
}

impl History {
    /// Parses as PostgreSQL's `readTimeLineHistory` does: comments and blank lines are nothing,
    /// timelines rise, and nothing else is accepted. Positions may go back: recovery to a target
    /// before the switch to its own timeline writes that. What follows an earlier end was left.
    pub fn parse(timeline: Timeline, bytes: &[u8]) -> Outcome<History> {
        let name = timeline.history_name();
        let wrong = |what: &str| Failure::new(Class::Corrupt, format!("{name}: {what}"));
        let text = std::str::from_utf8(bytes).map_err(|_| wrong("not text"))?;
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_ascii_whitespace();
            let id = words.next().and_then(|w| w.parse().ok());
            let end = words.next().and_then(|w| w.parse().ok());
            let found = id.filter(|id| *id > 0).map(Timeline).zip(end);
            let (id, end) = found.ok_or_else(|| wrong("expected a timeline and a position"))?;
            let last = ancestors.last();
            if last.is_some_and(|a| a.timeline >= id) || id >= timeline {
                return Err(wrong("timelines do not rise"));
            }
            ancestors.push(Ancestor { timeline: id, end });
        }
        let mut bound = Lsn(u64::MAX);
        for ancestor in ancestors.iter_mut().rev() {
            bound = bound.min(ancestor.end);
            ancestor.end = bound;
        }
        Ok(History {
            timeline,
            ancestors,
        })
    }

    /// The timeline whose WAL holds the byte at `lsn`.
    pub fn timeline_at(&self, lsn: Lsn) -> Timeline {
        let holder = self.ancestors.iter().find(|a| lsn < a.end);
        holder.map_or(self.timeline, |a| a.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: u64 = 7_300_000_000_000_000_001;

    fn header(timeline: u32, address: u64, size: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(0xD110_u16.to_ne_bytes());
        bytes.extend(LONG.to_ne_bytes());
        bytes.extend(timeline.to_ne_bytes());
        bytes.extend(address.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(SYSTEM.to_ne_bytes());
        bytes.extend(size.to_ne_bytes());
        bytes.extend(8192_u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn s30_a_segment_must_be_what_its_name_says() {
        let mib = |n: u64| SegmentSize::new(n << 20).unwrap();
        for (timeline, address, size, name, system_id, accepted) in [
            (
                1,
                0x2500_0000,
                16 << 20,
                "000000010000000000000025",
                Some(SYSTEM),
                true,
            ),
            (
                1,
                0x2500_0000,
                16 << 20,
                "000000010000000000000025",
                None,
                true,
            ),
            (
                1,
                0x2500_0000,
                16 << 20,
                "000000020000000000000025",
                None,
                true,
            ),
            (
                2,
                0x2500_0000,
                16 << 20,
                "000000010000000000000025",
                None,
                false,
            ),
            (
                1,
                0x2500_0000,
                16 << 20,
                "000000010000000000000025",
                Some(1),
                false,
            ),
            (
                1,
                0x2500_0000,
                16 << 20,
                "000000010000000000000026",
                None,
                false,
            ),
            (
                1,
                0x2500_0000,
                1 << 20,
                "000000010000000000000025",
                None,
                false,
            ),
        ] {
            let header = WalHeader::parse(&header(timeline, address, size)).unwrap();
            let segment = Segment::from_name(name, mib(16)).unwrap();
            let verdict = header.check(segment, mib(16), system_id);
            assert_eq!(verdict.is_ok(), accepted, "{name} {timeline} {verdict:?}");
        }
    }

    #[test]
    fn what_is_no_wal_header_is_corrupt() {
        let good = header(1, 0, 16 << 20);
        assert!(WalHeader::parse(&good).is_ok());
        for (at, value) in [(0, 0x11), (2, 0), (32, 1), (36, 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            if at == 36 {
                bad[37] = 1;
            }
            let failure = WalHeader::parse(&bad).unwrap_err();
            assert_eq!(failure.class, Class::Corrupt, "{failure}");
        }
        assert!(WalHeader::parse(&good[..39]).is_err());
    }

    #[test]
    fn backup_label_is_read() {
        let text = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
            CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
            START TIME: 2026-11-22 09:27:26 UTC\nLABEL: pghoard_base_backup\nSTART TIMELINE: 1\n";
        let label = BackupLabel::parse(text.as_bytes()).unwrap();
        assert_eq!(label.start, Lsn(0x200_0028));
        assert_eq!(label.checkpoint, Lsn(0x200_0060));
        assert_eq!((label.timeline, label.from), (Timeline(1), Origin::Primary));
        assert_eq!(label.start_time, "2026-11-22 09:27:26 UTC");
        for missing in [
            "START WAL",
            "CHECKPOINT",
            "BACKUP FROM",
            "START TIME:",
            "START TIMELINE",
        ] {
            let cut = text.replace(missing, "X");
            assert!(BackupLabel::parse(cut.as_bytes()).is_err(), "{missing}");
        }
    }

    /// PostgreSQL 15 wrote this after recovery to 0/4000000 with `latest`, which was 2 then.
    #[test]
    fn positions_that_go_back_end_the_older_timelines_too() {
        let text = "1\t0/5000000\tbefore\n2\t0/4000000\tbefore\n";
        let history = History::parse(Timeline(3), text.as_bytes()).unwrap();
        let ends = history.ancestors.iter().map(|a| (a.timeline.0, a.end.0));
        assert!(ends.eq([(1, 0x400_0000), (2, 0x400_0000)]));
        let at = |lsn| history.timeline_at(Lsn(lsn)).0;
        assert_eq!([at(0x3FF_FFFF), at(0x400_0000), at(0x600_0000)], [1, 3, 3]);
    }

    #[test]
    fn history_names_its_ancestors_or_is_corrupt() {
        let text = "1\t0/5000000\tno recovery target specified\n\n# note\n3\t0/7000000\n";
        let history = History::parse(Timeline(4), text.as_bytes()).unwrap();
        let at = |lsn| history.timeline_at(Lsn(lsn)).0;
        assert_eq!(
            [at(0), at(0x4FF_FFFF), at(0x500_0000), at(0x700_0000)],
            [1, 1, 3, 4]
        );
        for bad in [
            "x\t0/1\n",
            "1\n",
            "1 zero\n",
            "0\t0/1\n",
            "4\t0/1\n",
            "2\t0/1\n1\t0/2\n",
            "\u{fffd}",
        ] {
            let failure = History::parse(Timeline(4), bad.as_bytes()).unwrap_err();
            assert_eq!(failure.class, Class::Corrupt, "{bad}");
        }
    }
}
