//! A format without mkfs: the image carries an empty ext4, which is written where nothing is.
//!
//! The block with the superblock goes last. Until then its place says that a format is under way,
//! so one that was cut begins anew, and nothing else is ever taken for blank than zeros.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use pghoard::{Failure, Outcome};

use super::trouble;
use crate::sys;

const IMAGE: &str = "/lib/data.ext4.zst";
/// File systems and volume managers have their signatures below this.
const LOOKED_AT: u64 = 1 << 20;
const BLOCK: usize = 4_096;
/// Where the kernel cannot clear a stretch of the disk, it is written in pieces of so many blocks.
const CLEARED: usize = 256;
const UNDER_WAY: &[u8] = b"pghoard-appliance: formatting";

pub fn is_blank(device: &mut (impl Read + Seek)) -> io::Result<bool> {
    device.seek(SeekFrom::Start(0))?;
    let mut head = Vec::new();
    device.by_ref().take(LOOKED_AT).read_to_end(&mut head)?;
    Ok(head.starts_with(UNDER_WAY) || head.iter().all(|byte| *byte == 0))
}

pub fn format(node: &Path, bytes: u64) -> Outcome<()> {
    let about = |e: io::Error| Failure::io(&e, format!("format {}", node.display()));
    let image = File::open(IMAGE).map_err(|e| Failure::io(&e, IMAGE))?;
    let image = zstd::Decoder::new(image).map_err(|e| Failure::io(&e, IMAGE))?;
    let device = File::options()
        .read(true)
        .write(true)
        .open(node)
        .map_err(about)?;
    fill(&device, bytes, image)
}

/// The image is the length of the file system and then, for each block that is not zero, its
/// number and its bytes; numbers are 64 bits, little endian.
fn fill(device: &File, bytes: u64, mut image: impl Read) -> Outcome<()> {
    let about = |e: io::Error| Failure::io(&e, "format");
    let needed = number(&mut image).map_err(about)?.unwrap_or_default();
    if bytes < needed {
        let message = format!(
            "the data partition has {} MiB, an empty one takes {}",
            bytes >> 20,
            needed >> 20
        );
        return Err(trouble(message).hint("make the disk larger; the partition grows by itself"));
    }
    device.write_all_at(UNDER_WAY, 0).map_err(about)?;
    device.sync_all().map_err(about)?;
    clear(device, at(1), needed).map_err(about)?;
    let mut first = None;
    let mut block = vec![0; BLOCK];
    while let Some(number) = number(&mut image).map_err(about)? {
        image.read_exact(&mut block).map_err(about)?;
        match number {
            0 => first = Some(block.clone()),
            number => device.write_all_at(&block, at(number)).map_err(about)?,
        }
    }
    device.sync_all().map_err(about)?;
    let first = first.ok_or_else(|| trouble("the image's empty file system has no beginning"))?;
    // The first sector, which a disk writes whole or not at all, goes last: it says so until then.
    let (sector, rest) = first.split_at(512);
    device.write_all_at(rest, 512).map_err(about)?;
    device.sync_all().map_err(about)?;
    device.write_all_at(sector, 0).map_err(about)?;
    device.sync_all().map_err(about)
}

fn at(number: u64) -> u64 {
    number.saturating_mul(4_096)
}

fn number(image: &mut impl Read) -> io::Result<Option<u64>> {
    let mut bytes = [0; 8];
    match image.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(u64::from_le_bytes(bytes))),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

/// What an earlier owner left must not show through where the image says nothing.
fn clear(device: &File, from: u64, to: u64) -> io::Result<()> {
    if sys::clear(device, from, to.saturating_sub(from)).is_ok() {
        return Ok(());
    }
    let zeros = vec![0; BLOCK * CLEARED];
    let mut at = from;
    while at < to {
        let rest = usize::try_from(to - at).unwrap_or(usize::MAX);
        let piece = zeros.get(..rest.min(zeros.len())).unwrap_or_default();
        device.write_all_at(piece, at)?;
        at = at.saturating_add(u64::try_from(piece.len()).map_err(io::Error::other)?);
    }
    Ok(())
}

/// Of a superblock (kernel documentation, `ext4/super.rst`): `s_log_block_size`.
pub fn block_bytes(superblock: &[u8]) -> u64 {
    1_024 << word(superblock, 24).min(6)
}

/// `s_blocks_count`.
pub fn blocks(superblock: &[u8]) -> u64 {
    u64::from(word(superblock, 4)) | u64::from(word(superblock, 0x150)) << 32
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..).and_then(|rest| rest.first_chunk());
    four.copied().map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 MiB with a first block and one in the middle.
    fn image() -> Vec<u8> {
        let mut image = Vec::from((1_u64 << 20).to_le_bytes());
        for (number, byte) in [(0_u64, 1), (70, 7)] {
            image.extend(number.to_le_bytes());
            image.extend([byte; BLOCK]);
        }
        image
    }

    fn disk(bytes: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        file
    }

    #[test]
    fn zeros_are_blank_and_so_is_a_format_that_was_cut() {
        for (at, byte, blank) in [(0, 0, true), (70_000, 1, false), (510, 0x55, false)] {
            let mut disk = disk(2 << 20);
            disk.write_all_at(&[byte], at).unwrap();
            assert_eq!(is_blank(&mut disk).unwrap(), blank, "{at}");
        }
        let mut disk = disk(2 << 20);
        fill(&disk, 2 << 20, &image()[..]).unwrap();
        assert!(!is_blank(&mut disk).unwrap());
        // Cut before the last block: other bytes of an earlier try are overwritten.
        disk.write_all_at(UNDER_WAY, 0).unwrap();
        disk.write_all_at(&[9; 5_000], 200_000).unwrap();
        assert!(is_blank(&mut disk).unwrap());
        fill(&disk, 2 << 20, &image()[..]).unwrap();
        let mut written = vec![0; 1 << 20];
        disk.read_exact_at(&mut written, 0).unwrap();
        let mut wanted = vec![0; 1 << 20];
        wanted[..BLOCK].fill(1);
        wanted[70 * BLOCK..71 * BLOCK].fill(7);
        assert!(written == wanted);
    }

    #[test]
    fn a_partition_that_is_too_small_is_left_blank() {
        let mut disk = disk(512 << 10);
        let failure = fill(&disk, 512 << 10, &image()[..]).unwrap_err();
        assert!(failure.to_string().contains("takes 1"), "{failure}");
        assert!(is_blank(&mut disk).unwrap());
    }
}
