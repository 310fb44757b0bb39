//! The 512 bytes that describe one member of a tar archive, field by field.
//!
//! Authority: POSIX ustar; base 256 and `././@LongLink` are GNU's.

pub const BLOCK: usize = 512;

pub const NAME_BYTES: usize = 100;
const PREFIX_BYTES: usize = 155;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header(pub [u8; BLOCK]);

/// Where a field lies.
pub type Field = std::ops::Range<usize>;

pub const NAME: Field = 0..NAME_BYTES;
pub const MODE: Field = 100..108;
pub const SIZE: Field = 124..136;
pub const CHECKSUM: Field = 148..156;
pub const KIND: Field = 156..157;
pub const MAGIC: Field = 257..265;
pub const PREFIX: Field = 345..345 + PREFIX_BYTES;

impl Header {
    /// Of a folder, without a name.
    pub fn folder() -> Header {
        let mut header = Header([0; BLOCK]);
        header.set(MODE, b"0000700");
        for zero in [108..116, 116..124] {
            header.set(zero, b"0000000");
        }
        header.set(SIZE, b"00000000000");
        header.set(136..148, b"00000000000");
        header.set(KIND, b"5");
        header
    }

    /// Of a file, without a name, as pg_basebackup makes it (`astreamer_inject.c`,
    /// `tarCreateHeader`).
    pub fn file(size_bytes: u64, modified_s: u64) -> Header {
        let mut header = Header([0; BLOCK]);
        header.set(MODE, b"0000600 ");
        header.set(108..116, b"0004000 ");
        header.set(116..124, b"0002000 ");
        header.set(SIZE, format!("{size_bytes:011o} ").as_bytes());
        header.set(136..148, format!("{modified_s:011o} ").as_bytes());
        header.set(KIND, b"0");
        header.set(MAGIC, b"ustar\x0000");
        for name in [265..297, 297..329] {
            header.set(name, b"postgres");
        }
        for zero in [329..337, 337..345] {
            header.set(zero, b"0000000 ");
        }
        header
    }

    pub fn field(&self, field: Field) -> &[u8] {
        self.0.get(field).unwrap_or(&[])
    }

    pub fn set(&mut self, field: Field, value: &[u8]) {
        let room = self.0.get_mut(field).into_iter().flatten();
        let padded = value.iter().copied().chain(std::iter::repeat(0));
        for (place, byte) in room.zip(padded) {
            *place = byte;
        }
    }

    pub fn kind(&self) -> u8 {
        self.field(KIND).first().copied().unwrap_or(0)
    }

    /// Describes the member that follows.
    pub fn extends(&self) -> bool {
        matches!(self.kind(), b'x' | b'g' | b'L' | b'K')
    }

    pub fn path(&self) -> Vec<u8> {
        let text = |bytes: &[u8]| bytes.split(|b| *b == 0).next().map(<[u8]>::to_vec);
        let name = text(self.field(NAME)).unwrap_or_default();
        // Old GNU headers say `ustar` and a blank, and keep other things where the prefix is.
        let prefixed = self.field(MAGIC).starts_with(b"ustar\0");
        let prefix = text(self.field(PREFIX)).filter(|p| prefixed && !p.is_empty());
        match prefix {
            Some(prefix) => [prefix, name].join(&b'/'),
            None => name,
        }
    }

    /// Octal digits, or base 256 when the first bit is set.
    pub fn number(&self, field: Field) -> Option<u64> {
        let bytes = self.field(field);
        let (first, rest) = bytes.split_first()?;
        if first & 0x80 != 0 {
            let start = Some(u64::from(first & 0x7f));
            return rest.iter().fold(start, |sum, b| {
                sum?.checked_mul(256)?.checked_add(u64::from(*b))
            });
        }
        let text = std::str::from_utf8(bytes).ok()?;
        let digits = text.trim_matches(|c| c == ' ' || c == '\0');
        u64::from_str_radix(digits, 8).ok()
    }

    /// The sum of all bytes, those of the checksum itself counted as blanks.
    pub fn checksum(&self) -> u64 {
        let all: u64 = self.0.iter().map(|b| u64::from(*b)).sum();
        let own: u64 = self.field(CHECKSUM).iter().map(|b| u64::from(*b)).sum();
        all - own + 8 * u64::from(b' ')
    }

    pub fn seal(&mut self) {
        let sum = format!("{:06o}\0 ", self.checksum());
        self.set(CHECKSUM, sum.as_bytes());
    }
}

/// Prefix and name of ustar, if the path fits; the prefix is empty when the name alone does.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= NAME_BYTES {
        return Some((&[], path));
    }
    let cuts = path.iter().enumerate().filter(|(_, b)| **b == b'/');
    let mut halves = cuts.filter_map(|(at, _)| Some((path.get(..at)?, path.get(at + 1..)?)));
    halves.find(|(prefix, name)| {
        !prefix.is_empty()
            && prefix.len() <= PREFIX_BYTES
            && !name.is_empty()
            && name.len() <= NAME_BYTES
    })
}

/// GNU's header for a name that fits nowhere: a member of type `L` with the name as its body.
pub fn long_name(name: &[u8]) -> Vec<u8> {
    let mut carrier = Header::folder();
    let size = name.len() + 1;
    carrier.set(NAME, b"././@LongLink");
    carrier.set(MAGIC, b"ustar  \0");
    carrier.set(MODE, b"0000000");
    carrier.set(SIZE, format!("{size:011o}").as_bytes());
    carrier.set(KIND, b"L");
    carrier.seal();
    let mut blocks = carrier.0.to_vec();
    blocks.extend_from_slice(name);
    blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
    if name.len().is_multiple_of(BLOCK) {
        blocks.resize(blocks.len() + BLOCK, 0);
    }
    blocks
}
