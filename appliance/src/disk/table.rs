//! The last partition of a disk takes what the disk has gained.
//!
//! The library computes both copies of the table in memory; they are written here, the one at the
//! end of the disk first, so that at any moment one of them is whole. The kernel looks at that one
//! where the first is broken because its command line says `gpt`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use pghoard::{Failure, Outcome};

use super::trouble;

const SECTOR: u64 = 512;
/// A table with its entries is 33 sectors; partitions begin and end at whole MiB.
const EDGE: u64 = 1 << 20;

/// In bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Grown {
    pub start: u64,
    pub length: u64,
}

/// Gives what the partition has become, or nothing where it has all of the disk already.
pub fn grow(disk: &Path, number: u32) -> Outcome<Option<Grown>> {
    let about = |e: io::Error| Failure::io(&e, disk.display());
    let wrong = |e: &dyn std::fmt::Display| trouble(format!("{}: {e}", disk.display()));
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(disk)
        .map_err(about)?;
    let size = file.seek(SeekFrom::End(0)).map_err(about)?;
    let edges = Edges::read(&file, size).map_err(about)?;
    let mut table = GptConfig::new()
        .writable(true)
        .only_valid_headers(false)
        .logical_block_size(LogicalBlockSize::Lb512)
        .open_from_device(edges)
        .map_err(|e| wrong(&e))?;
    let whole = table.primary_header().is_ok() && table.backup_header().is_ok();
    let mut all = table.partitions().clone();
    let last = (size / EDGE - 1) * EDGE / SECTOR - 1;
    let Some(mut partition) = all.remove(&number) else {
        return Err(wrong(&format!("no partition {number}")));
    };
    if all
        .values()
        .any(|other| other.last_lba > partition.last_lba)
    {
        return Err(wrong(&format!("partition {number} is not the last one")));
    }
    let grown = Grown {
        start: partition.first_lba * SECTOR,
        length: (last.max(partition.last_lba) + 1 - partition.first_lba) * SECTOR,
    };
    if whole && partition.last_lba >= last {
        return Ok(None);
    }
    partition.last_lba = partition.last_lba.max(last);
    all.insert(number, partition);
    table.update_partitions(all).map_err(|e| wrong(&e))?;
    let mut edges = table.write().map_err(|e| wrong(&e))?;
    let sectors = u32::try_from(size / SECTOR - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors)
        .update_conservative(&mut edges)
        .map_err(|e| wrong(&e))?;
    edges.write(&file).map_err(about)?;
    Ok(Some(grown))
}

/// The two ends of a disk, in memory, at their places.
#[derive(Debug)]
struct Edges {
    head: Vec<u8>,
    tail: Vec<u8>,
    size: u64,
    position: u64,
}

impl Edges {
    fn read(disk: &File, size: u64) -> io::Result<Edges> {
        if size < 4 * EDGE {
            return Err(io::Error::other("less than 4 MiB"));
        }
        let length = usize::try_from(EDGE).map_err(io::Error::other)?;
        let (mut head, mut tail) = (vec![0; length], vec![0; length]);
        disk.read_exact_at(&mut head, 0)?;
        disk.read_exact_at(&mut tail, size - EDGE)?;
        Ok(Edges {
            head,
            tail,
            size,
            position: 0,
        })
    }

    fn write(&self, disk: &File) -> io::Result<()> {
        disk.write_all_at(&self.tail, self.size - EDGE)?;
        disk.sync_all()?;
        disk.write_all_at(&self.head, 0)?;
        disk.sync_all()
    }

    /// What lies from the position on, as far as it is in memory.
    fn here(&mut self) -> io::Result<&mut [u8]> {
        let (edge, from) = match self.position.checked_sub(self.size - EDGE) {
            Some(from) => (&mut self.tail, from),
            None => (&mut self.head, self.position),
        };
        let from = usize::try_from(from).map_err(io::Error::other)?;
        edge.get_mut(from..)
            .ok_or_else(|| io::Error::other("the table lies in the middle of the disk"))
    }

    fn moved(&mut self, by: usize) -> usize {
        self.position = self
            .position
            .saturating_add(u64::try_from(by).unwrap_or(u64::MAX));
        by
    }
}

impl Read for Edges {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut here: &[u8] = self.here()?;
        let read = here.read(buffer)?;
        Ok(self.moved(read))
    }
}

impl Write for Edges {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut here = self.here()?;
        let written = here.write(bytes)?;
        Ok(self.moved(written))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Edges {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| io::Error::other("before the disk"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gpt::partition::Partition;
    use gpt::partition_types::{EFI, LINUX_FS};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn part(name: &str, from: u64, to: u64) -> Partition {
        Partition {
            part_type_guid: if name == "esp" { EFI } else { LINUX_FS },
            part_guid: gpt::partition::Partition::zero().part_guid,
            first_lba: from * MIB / SECTOR,
            last_lba: to * MIB / SECTOR - 1,
            flags: 0,
            name: name.to_owned(),
        }
    }

    /// A disk of 16 MiB: the partitions, from and to in MiB.
    fn disk(partitions: &[(&str, u64, u64)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16 * MIB).unwrap();
        let mut device = file.reopen().unwrap();
        ProtectiveMBR::with_lb_size(32_767)
            .overwrite_lba0(&mut device)
            .unwrap();
        let config = GptConfig::new().writable(true);
        let mut table = config.create_from_device(device, None).unwrap();
        let all: BTreeMap<u32, Partition> = (1..)
            .zip(partitions.iter().map(|(n, a, b)| part(n, *a, *b)))
            .collect();
        table.update_partitions(all).unwrap();
        table.write().unwrap();
        file
    }

    fn ends(path: &Path) -> Vec<(String, u64)> {
        let table = GptConfig::new().open(path).unwrap();
        let all = table.partitions().values();
        all.map(|p| (p.name.clone(), (p.last_lba + 1) * SECTOR / MIB))
            .collect()
    }

    #[test]
    fn a_larger_disk_is_taken_whole_and_once() {
        let file = disk(&[("esp", 1, 8), ("data", 8, 15)]);
        let path = file.path();
        assert_eq!(grow(path, 2).unwrap(), None);
        file.as_file().set_len(64 * MIB).unwrap();
        let grown = Grown {
            start: 8 * MIB,
            length: 55 * MIB,
        };
        assert_eq!(grow(path, 2).unwrap(), Some(grown));
        assert_eq!(ends(path), [("esp".into(), 8), ("data".into(), 63)]);
        assert_eq!(grow(path, 2).unwrap(), None);
    }

    #[test]
    fn a_table_with_one_whole_copy_is_mended() {
        for broken in [0, 16 * MIB - EDGE] {
            let file = disk(&[("esp", 1, 8), ("data", 8, 15)]);
            // Everything but the protective record.
            file.as_file()
                .write_all_at(&[0; 512 << 10], broken.max(512))
                .unwrap();
            if broken > 0 {
                file.as_file().write_all_at(&[0; 1 << 20], broken).unwrap();
            }
            assert!(grow(file.path(), 2).unwrap().is_some());
            assert_eq!(ends(file.path()), [("esp".into(), 8), ("data".into(), 15)]);
        }
    }

    #[test]
    fn what_cannot_be_grown_is_said_and_left() {
        for (partitions, number, why) in [
            (
                &[("data", 1, 4), ("other", 4, 8)][..],
                1,
                "is not the last one",
            ),
            (&[("data", 1, 4)], 2, "no partition 2"),
        ] {
            let file = disk(partitions);
            file.as_file().set_len(64 * MIB).unwrap();
            let failure = grow(file.path(), number).unwrap_err().to_string();
            assert!(failure.contains(why), "{failure}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 * MIB).unwrap();
        assert!(grow(file.path(), 1).is_err());
    }
}
