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

const IMAGE: &str = "/lib/data.ext4.zst";
/// File systems and volume managers have their signatures below this.
const LOOKED_AT: usize = 1 << 20;
const CHUNK: usize = 64 << 10;
const UNDER_WAY: &[u8] = b"pghoard-appliance: formatting";

pub fn is_blank(device: &mut (impl Read + Seek)) -> io::Result<bool> {
    device.seek(SeekFrom::Start(0))?;
    let mut head = Vec::with_capacity(LOOKED_AT);
    let limit = u64::try_from(LOOKED_AT).map_err(io::Error::other)?;
    device.by_ref().take(limit).read_to_end(&mut head)?;
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

/// Writes what is not zero; the device may hold half an earlier format, so zeros are written over
/// what is there.
fn fill(device: &File, bytes: u64, mut image: impl Read) -> Outcome<()> {
    let about = |e: io::Error| Failure::io(&e, "format");
    let mut first = vec![0; CHUNK];
    image.read_exact(&mut first).map_err(about)?;
    let needed = blocks(first.get(1_024..).unwrap_or_default())
        .saturating_mul(block_bytes(first.get(1_024..).unwrap_or_default()));
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
    let mut at = u64::try_from(CHUNK).unwrap_or_default();
    let (mut chunk, mut there) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let length = read_full(&mut image, &mut chunk).map_err(about)?;
        let (Some(chunk), Some(there)) = (chunk.get(..length), there.get_mut(..length)) else {
            break;
        };
        if length == 0 {
            break;
        }
        device.read_exact_at(there, at).map_err(about)?;
        if chunk != there {
            device.write_all_at(chunk, at).map_err(about)?;
        }
        at += u64::try_from(length).unwrap_or_default();
    }
    device.sync_all().map_err(about)?;
    // Behind the block that says so much, then that one.
    let (head, rest) = first.split_at(4_096);
    device.write_all_at(rest, 4_096).map_err(about)?;
    device.sync_all().map_err(about)?;
    device.write_all_at(head, 0).map_err(about)?;
    device.sync_all().map_err(about)
}

fn read_full(from: &mut impl Read, chunk: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = chunk.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match from.read(rest)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
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

    /// 1 MiB of blocks of 4 KiB that say it, and something in the middle.
    fn image() -> Vec<u8> {
        let mut image = vec![0; 1 << 20];
        image[1_024 + 4] = 0;
        image[1_024 + 5] = 1;
        image[1_024 + 24] = 2;
        image[1_024 + 56..1_024 + 58].copy_from_slice(&super::super::MAGIC);
        image[300_000] = 7;
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
        assert!(written == image());
    }

    #[test]
    fn a_partition_that_is_too_small_is_left_blank() {
        let mut disk = disk(512 << 10);
        let failure = fill(&disk, 512 << 10, &image()[..]).unwrap_err();
        assert!(failure.to_string().contains("makes") || failure.to_string().contains("takes 1"));
        assert!(is_blank(&mut disk).unwrap());
    }
}
