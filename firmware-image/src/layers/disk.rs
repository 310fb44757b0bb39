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

fn esp(contents: &Contents<'_>) -> Outcome<Vec<u8>> {
    let wrong = |error: std::io::Error| failure(format!("EFI system partition: {error}"));
    let size = usize::try_from(ESP_MIB * MIB).map_err(|error| failure(error.to_string()))?;
    let mut bytes = vec![0; size];
    let format = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .volume_id(VOLUME_ID)
        .volume_label(*b"PGHOARD_ESP");
    fatfs::format_volume(Cursor::new(&mut bytes), format).map_err(wrong)?;
    {
        let system = FileSystem::new(Cursor::new(&mut bytes), FsOptions::new()).map_err(wrong)?;
        let root = system.root_dir();
        for folder in ["EFI", "EFI/BOOT", "EFI/Linux", "loader"] {
            root.create_dir(folder).map_err(wrong)?;
        }
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
        drop(root);
        system.unmount().map_err(wrong)?;
    }
    Ok(bytes)
}
