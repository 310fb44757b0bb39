//! The disk: a partition table, the EFI system partition with the boot loader and the programs it
//! starts, and the blank data partition, which the appliance formats and grows when it starts.
//!
//! ```text
//! 1 MiB  esp   FAT32: EFI/BOOT/BOOTX64.EFI, loader/loader.conf, EFI/Linux/pghoard-<version>.efi
//! ...    data  blank, to the end
//! ```
//!
//! The loader starts the newest version that has tries left; an update is a second file beside the
//! first. Every identifier is fixed: two images of the same inputs are the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::path::Path;

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use gpt::disk::LogicalBlockSize;
use gpt::partition::Partition;
use gpt::partition_types::{EFI, LINUX_FS, Type};

use crate::failure::{Failure, Outcome, failure};
use crate::layers::qcow2::is_empty;
use crate::program::Machine;

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Room for the running program, the one before it and one that is being written, each of 64 MiB at
/// most.
const ESP_MIB: u64 = 200;
/// The least that can be formatted; the appliance takes the rest of a larger disk.
const DATA_MIB: u64 = 64;
/// In front and behind: the two partition tables.
const EDGE_MIB: u64 = 1;

const VOLUME_ID: u32 = 0x5047_484f;
const DISK_GUID: &str = "50474850-4f41-4244-8000-000000000000";
const ESP_GUID: &str = "50474850-4f41-4244-8000-000000000001";
const DATA_GUID: &str = "50474850-4f41-4244-8000-0000000000da";

/// No menu, no editor: what starts is what was signed.
const LOADER: &str = "timeout 0\nconsole-mode keep\neditor no\n";

/// The name by which PID 1 finds the partition it may format.
pub const DATA_NAME: &str = "pghoard-data";

pub struct Contents<'a> {
    pub machine: Machine,
    pub loader: &'a [u8],
    /// File names below `EFI/Linux`, and what they hold.
    pub programs: &'a [(String, &'a [u8])],
}

/// Writes the raw disk, sparse where it is empty.
pub fn write(path: &Path, contents: &Contents<'_>) -> Outcome<()> {
    let about = |error: std::io::Error| failure(format!("{}: {error}", path.display()));
    let esp = esp(contents)?;
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(about)?;
    file.set_len((2 * EDGE_MIB + ESP_MIB + DATA_MIB) * MIB)
        .map_err(about)?;
    table(&mut file)?;
    for (number, block) in (0_u64..).zip(esp.chunks(64 << 10)) {
        if !is_empty(block) {
            let at = EDGE_MIB * MIB + number * (64 << 10);
            file.seek(SeekFrom::Start(at)).map_err(about)?;
            file.write_all(block).map_err(about)?;
        }
    }
    file.sync_all().map_err(about)
}

fn table(file: &mut File) -> Outcome<()> {
    let wrong = |error: &dyn std::fmt::Display| failure(format!("partition table: {error}"));
    let size = (2 * EDGE_MIB + ESP_MIB + DATA_MIB) * MIB;
    let sectors = u32::try_from(size / SECTOR - 1).map_err(|error| wrong(&error))?;
    let protective = gpt::mbr::ProtectiveMBR::with_lb_size(sectors);
    protective
        .overwrite_lba0(file)
        .map_err(|error| wrong(&error))?;
    let config = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512);
    let guid = DISK_GUID.parse().map_err(|error| wrong(&error))?;
    let mut disk = config
        .create_from_device(file, Some(guid))
        .map_err(|error| wrong(&error))?;
    let mut all = BTreeMap::new();
    all.insert(1, partition("esp", EFI, ESP_GUID, EDGE_MIB, ESP_MIB)?);
    let data = partition(DATA_NAME, LINUX_FS, DATA_GUID, EDGE_MIB + ESP_MIB, DATA_MIB)?;
    all.insert(2, data);
    disk.update_partitions(all).map_err(|error| wrong(&error))?;
    disk.write().map_err(|error| wrong(&error))?;
    Ok(())
}

fn partition(name: &str, kind: Type, guid: &str, from: u64, length: u64) -> Outcome<Partition> {
    let guid = guid
        .parse()
        .map_err(|error| failure(format!("{guid}: {error}")))?;
    Ok(Partition {
        part_type_guid: kind,
        part_guid: guid,
        first_lba: from * MIB / SECTOR,
        last_lba: (from + length) * MIB / SECTOR - 1,
        flags: 0,
        name: name.to_owned(),
    })
}

/// The folders of the ESP, and in which cluster of an empty one each begins.
const FOLDERS: [(&str, usize); 4] = [("EFI", 3), ("EFI/BOOT", 4), ("EFI/Linux", 5), ("loader", 6)];

fn esp(contents: &Contents<'_>) -> Outcome<Vec<u8>> {
    let wrong = |error: std::io::Error| failure(format!("EFI system partition: {error}"));
    let size = usize::try_from(ESP_MIB * MIB).map_err(|error| failure(error.to_string()))?;
    let mut bytes = vec![0; size];
    let format = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .volume_id(VOLUME_ID)
        .volume_label(*b"PGHOARD_ESP");
    fatfs::format_volume(Cursor::new(&mut bytes), format).map_err(wrong)?;
    fill(&mut bytes, |root| {
        for (folder, _) in FOLDERS {
            root.create_dir(folder).map_err(wrong)?;
        }
        Ok(())
    })?;
    for (folder, cluster) in FOLDERS {
        mend(&mut bytes, cluster, !folder.contains('/'))?;
    }
    fill(&mut bytes, |root| {
        let put = |name: &str, content: &[u8]| -> Result<(), Failure> {
            let about = |error| failure(format!("EFI system partition: '{name}': {error}"));
            let mut file = root.create_file(name).map_err(about)?;
            file.write_all(content)
                .and_then(|()| file.flush())
                .map_err(about)
        };
        let removable = contents.machine.removable();
        put(&format!("EFI/BOOT/{removable}"), contents.loader)?;
        put("loader/loader.conf", LOADER.as_bytes())?;
        for (name, program) in contents.programs {
            put(&format!("EFI/Linux/{name}"), program)?;
        }
        Ok(())
    })?;
    Ok(bytes)
}

type Root<'a, 'b> = fatfs::Dir<'a, Cursor<&'b mut Vec<u8>>>;

fn fill(bytes: &mut Vec<u8>, with: impl FnOnce(&Root<'_, '_>) -> Outcome<()>) -> Outcome<()> {
    let wrong = |error: std::io::Error| failure(format!("EFI system partition: {error}"));
    let options = FsOptions::new().time_provider(&TIME);
    let system = FileSystem::new(Cursor::new(bytes), options).map_err(wrong)?;
    let root = system.root_dir();
    with(&root)?;
    drop(root);
    system.unmount().map_err(wrong)
}

/// A folder begins with the entries `.` and `..`. The crate gives them long names, too, which no
/// other system does, and has `..` of the first level lead to the root's cluster instead of 0
/// (Microsoft's FAT specification, section 6.5); `fsck.fat` would "repair" both.
fn mend(bytes: &mut [u8], cluster: usize, first_level: bool) -> Outcome<()> {
    const ENTRY: usize = 32;
    let wrong = || failure("EFI system partition: a folder is not where it was expected");
    let field = |at: usize, length: usize| {
        let field = bytes.get(at..at + length)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |n, byte| n << 8 | usize::from(*byte)),
        )
    };
    let start = || {
        let (sector, tables) = (field(11, 2)?, field(16, 1)? * field(36, 4)?);
        let ahead = field(14, 2)? + tables + (cluster - 2) * field(13, 1)?;
        Some(ahead * sector)
    };
    let start = start().ok_or_else(wrong)?;
    let entries = bytes.get_mut(start..start + 4 * ENTRY).ok_or_else(wrong)?;
    let (_, rest) = entries.split_at_mut(ENTRY);
    let (dot, rest) = rest.split_at_mut(ENTRY);
    let (_, dots) = rest.split_at_mut(ENTRY);
    if !dot.starts_with(b".  ") || !dots.starts_with(b".. ") {
        return Err(wrong());
    }
    if first_level {
        for (from, to) in [(20, 22), (26, 28)] {
            dots.get_mut(from..to).ok_or_else(wrong)?.fill(0);
        }
    }
    let kept = [&*dot, &*dots].concat();
    entries.fill(0);
    let place = entries.get_mut(..kept.len()).ok_or_else(wrong)?;
    place.copy_from_slice(&kept);
    // Free, with more behind it.
    for free in [2 * ENTRY, 3 * ENTRY] {
        *entries.get_mut(free).ok_or_else(wrong)? = 0xe5;
    }
    Ok(())
}

/// The first day that FAT knows: firmware refuses to rename a file without a date, and a boot
/// loader that cannot rename counts no tries.
#[derive(Debug)]
struct Time;

static TIME: Time = Time;

impl fatfs::TimeProvider for Time {
    fn get_current_date(&self) -> fatfs::Date {
        fatfs::Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> fatfs::DateTime {
        fatfs::DateTime {
            date: self.get_current_date(),
            time: fatfs::Time {
                hour: 0,
                min: 0,
                sec: 0,
                millis: 0,
            },
        }
    }
}
