//! Names and arithmetic of write-ahead log: positions, timelines, segments of any size.
//!
//! Authority: PostgreSQL `src/include/access/xlog_internal.h` (`XLogFileName`, `XLByteToSeg`).
//! A [`Segment`] is a (timeline, number) pair; its file name needs the cluster's [`SegmentSize`],
//! because the name splits the number at 4 GiB of WAL.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// A position in the WAL, in bytes since the beginning of the cluster. Text form `16/B374D848`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    pub fn checked_add(self, bytes: u64) -> Option<Lsn> {
        self.0.checked_add(bytes).map(Lsn)
    }

    /// Bytes from `earlier` to here; 0 if it lies behind us.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// Why a text is not a WAL position, timeline or file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed")
    }
}

impl core::error::Error for Malformed {}

impl FromStr for Lsn {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Lsn, Malformed> {
        let (high, low) = text.split_once('/').ok_or(Malformed)?;
        Ok(Lsn(u64::from(hex32(high)?) << 32 | u64::from(hex32(low)?)))
    }
}

/// One to eight hexadecimal digits of either case, without a sign.
fn hex32(text: &str) -> Result<u32, Malformed> {
    let plain = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !plain {
        return Err(Malformed);
    }
    u32::from_str_radix(text, 16).map_err(|_| Malformed)
}

/// A branch of history; 1 for a cluster that was never promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl Timeline {
    /// `00000002.history`
    pub fn history_name(self) -> String {
        format!("{:08X}.history", self.0)
    }

    pub fn from_history_name(name: &str) -> Option<Timeline> {
        let digits = name.strip_suffix(".history")?;
        upper8(digits).map(Timeline).filter(|t| t.0 > 0)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn upper(digit: u8) -> bool {
    matches!(digit, b'0'..=b'9' | b'A'..=b'F')
}

/// Exactly eight upper-case hexadecimal digits.
fn upper8(text: &str) -> Option<u32> {
    let plain = text.len() == 8 && text.bytes().all(upper);
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

/// Bytes in one WAL segment: a power of two from 1 MiB to 1 GiB (`initdb --wal-segsize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SegmentSize(u32);

impl SegmentSize {
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    /// A power of two from 1 MiB to 1 GiB, as `initdb --wal-segsize` takes it.
    pub fn new(bytes: u64) -> Option<SegmentSize> {
        let bytes = u32::try_from(bytes).ok()?;
        let fits = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        fits.then_some(SegmentSize(bytes))
    }

    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// Segments in 4 GiB: the step between the middle and the last part of a file name.
    fn per_id(self) -> u64 {
        (1 << 32) / u64::from(self.0)
    }
}

impl TryFrom<u32> for SegmentSize {
    type Error = Malformed;

    fn try_from(bytes: u32) -> Result<SegmentSize, Malformed> {
        SegmentSize::new(u64::from(bytes)).ok_or(Malformed)
    }
}

impl From<SegmentSize> for u32 {
    fn from(size: SegmentSize) -> u32 {
        size.0
    }
}

/// One WAL segment: its timeline and its number, the position of its first byte over the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Segment {
    pub timeline: Timeline,
    pub number: u64,
}

impl Segment {
    pub fn new(timeline: Timeline, number: u64) -> Segment {
        Segment { timeline, number }
    }

    /// The segment that holds the byte at `lsn`.
    pub fn at(timeline: Timeline, lsn: Lsn, size: SegmentSize) -> Segment {
        Segment {
            timeline,
            number: lsn.0 / size.bytes(),
        }
    }

    /// The segment that holds the last byte before `lsn`, as PostgreSQL's `XLByteToPrevSeg`.
    pub fn before(timeline: Timeline, lsn: Lsn, size: SegmentSize) -> Segment {
        Segment {
            timeline,
            number: lsn.0.saturating_sub(1) / size.bytes(),
        }
    }

    pub fn start(self, size: SegmentSize) -> Lsn {
        Lsn(self.number.saturating_mul(size.bytes()))
    }

    /// The first byte after it.
    pub fn end(self, size: SegmentSize) -> Lsn {
        Lsn(self.number.saturating_add(1).saturating_mul(size.bytes()))
    }

    pub fn next(self) -> Segment {
        Segment {
            number: self.number.saturating_add(1),
            ..self
        }
    }

    /// The segment of the same number on another timeline.
    pub fn on(self, timeline: Timeline) -> Segment {
        Segment { timeline, ..self }
    }

    /// `000000010000000000000025`
    pub fn name(self, size: SegmentSize) -> String {
        let (id, seg) = (self.number / size.per_id(), self.number % size.per_id());
        format!("{:08X}{:08X}{:08X}", self.timeline.0, id, seg)
    }

    /// Whether it is the name of a segment of some size: 24 upper-case hexadecimal digits.
    pub fn is_name(name: &str) -> bool {
        name.len() == 24 && name.bytes().all(upper)
    }

    /// Parses a 24-digit upper-case name; a last part beyond the size's range is refused.
    pub fn from_name(name: &str, size: SegmentSize) -> Option<Segment> {
        if name.len() != 24 || !name.is_ascii() {
            return None;
        }
        let (timeline, rest) = name.split_at(8);
        let (id, seg) = rest.split_at(8);
        let (timeline, id, seg) = (upper8(timeline)?, upper8(id)?, upper8(seg)?);
        let (id, seg) = (u64::from(id), u64::from(seg));
        let number = id.checked_mul(size.per_id())?.checked_add(seg)?;
        (timeline > 0 && seg < size.per_id()).then_some(Segment {
            timeline: Timeline(timeline),
            number,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(mib: u64) -> SegmentSize {
        SegmentSize::new(mib << 20).unwrap()
    }

    #[test]
    fn s31_names_follow_the_segment_size() {
        for (lsn, mib, name) in [
            ("0/25000000", 16, "000000010000000000000025"),
            ("0/FF000000", 16, "0000000100000000000000FF"),
            ("1/0", 16, "000000010000000100000000"),
            ("11/9C000000", 16, "00000001000000110000009C"),
            ("0/FFF00000", 1, "000000010000000000000FFF"),
            ("1/0", 1, "000000010000000100000000"),
            ("0/FC000000", 64, "00000001000000000000003F"),
            ("2/40000000", 1024, "000000010000000200000001"),
        ] {
            let segment = Segment::at(Timeline(1), lsn.parse().unwrap(), size(mib));
            assert_eq!(segment.name(size(mib)), name);
            assert_eq!(Segment::from_name(name, size(mib)), Some(segment));
            assert_eq!(segment.start(size(mib)).0, lsn.parse::<Lsn>().unwrap().0);
        }
    }

    #[test]
    fn s31_every_size_and_number_round_trips() {
        for shift in 20..=30 {
            let size = SegmentSize::new(1 << shift).unwrap();
            for number in [
                0,
                1,
                62,
                63,
                64,
                254,
                255,
                256,
                4094,
                4095,
                4096,
                u64::from(u32::MAX),
            ] {
                for timeline in [1, 9, 10, 0x10, u32::MAX] {
                    let segment = Segment::new(Timeline(timeline), number);
                    assert_eq!(Segment::from_name(&segment.name(size), size), Some(segment));
                }
            }
        }
    }

    #[test]
    fn wrong_names_are_refused() {
        for name in [
            "",
            "00000001000000000000002",
            "0000000100000000000000025",
            "00000001000000000000002a",
            "000000000000000000000025",
            "000000010000000000000100",
            "00000001000000000000002\u{e9}",
            "+00000010000000000000025",
        ] {
            assert_eq!(
                Segment::from_name(name, SegmentSize::DEFAULT),
                None,
                "{name}"
            );
        }
        for text in [
            "",
            "0",
            "/",
            "0/",
            "/0",
            "0/123456789",
            "0/-1",
            "0/+1",
            "x/y",
        ] {
            assert_eq!(text.parse::<Lsn>(), Err(Malformed), "{text}");
        }
        for bytes in [0, 1, 1 << 19, 3 << 20, 1 << 31] {
            assert_eq!(SegmentSize::new(bytes), None);
        }
    }

    #[test]
    fn the_end_of_a_segment_belongs_to_it() {
        let size = SegmentSize::DEFAULT;
        let end = Lsn(0x2600_0000);
        assert_eq!(Segment::before(Timeline(1), end, size).number, 0x25);
        assert_eq!(Segment::at(Timeline(1), end, size).number, 0x26);
        assert_eq!(
            Timeline::from_history_name("0000000A.history"),
            Some(Timeline(10))
        );
        assert_eq!(Timeline::from_history_name("0000000a.history"), None);
    }
}
