//! Each layer is read back by another reader than its writer.

use std::fs;
use std::path::Path;

use object::{Object, ObjectSection};

use crate::layers::disk::{self, Contents};
use crate::layers::initramfs::{self, Root};
use crate::layers::modules::Module;
use crate::layers::uki::{self, Section};

fn module(name: &str) -> Module {
    Module {
        name: name.to_owned(),
        bytes: name.as_bytes().to_vec(),
    }
}

fn root(modules: &[Module]) -> Vec<u8> {
    initramfs::build(&Root {
        program: b"the program",
        fsck: b"fsck",
        blank: b"blank",
        modules,
        os_release: "ID=pghoard\n",
    })
    .unwrap()
}

#[test]
fn the_initramfs_is_what_it_is_made_of_and_twice_the_same() {
    let modules = [module("virtio"), module("virtio_blk")];
    let packed = root(&modules);
    assert_eq!(packed, root(&modules));
    let archive = zstd::decode_all(packed.as_slice()).unwrap();
    let mut found = Vec::new();
    let mut rest = archive.as_slice();
    loop {
        let mut entry = cpio::newc::Reader::new(rest).unwrap();
        if entry.entry().is_trailer() {
            break;
        }
        let (name, mode) = (entry.entry().name().to_owned(), entry.entry().mode());
        assert_eq!((entry.entry().mtime(), entry.entry().uid()), (0, 0));
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        found.push((name, mode, String::from_utf8(content).unwrap()));
        rest = entry.finish().unwrap();
    }
    let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(names, sorted, "a folder comes before what lies in it");
    let of = |name: &str| {
        let (_, mode, content) = found.iter().find(|(found, ..)| found == name).unwrap();
        (*mode, content.as_str())
    };
    assert_eq!(of("init"), (0o120_777, "bin/pghoard"));
    assert_eq!(of("bin/pghoard"), (0o100_755, "the program"));
    assert_eq!(of("data"), (0o40_755, ""));
    assert_eq!(of("lib/modules/order"), (0o100_644, "virtio\nvirtio_blk\n"));
}

/// A stub of two sections and room for three more.
fn stub() -> Vec<u8> {
    let mut stub = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| stub[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x80_u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    put(0x84, &0x8664_u16.to_le_bytes());
    put(0x86, &2_u16.to_le_bytes());
    put(0x94, &240_u16.to_le_bytes());
    put(0x98, &0x20b_u16.to_le_bytes());
    put(0x98 + 32, &0x1000_u32.to_le_bytes());
    put(0x98 + 36, &0x200_u32.to_le_bytes());
    put(0x98 + 56, &0x3000_u32.to_le_bytes());
    put(0x98 + 60, &0x280_u32.to_le_bytes());
    put(0x98 + 108, &16_u32.to_le_bytes());
    for (number, name) in [b".text\0\0\0", b".data\0\0\0"].into_iter().enumerate() {
        let header = 0x98 + 240 + number * 40;
        put(header, name);
        put(header + 8, &0x10_u32.to_le_bytes());
        let address = 0x1000 * (u32::try_from(number).unwrap() + 1);
        put(header + 12, &address.to_le_bytes());
        put(header + 16, &0x80_u32.to_le_bytes());
        put(header + 20, &0x300_u32.to_le_bytes());
    }
    stub
}

#[test]
fn sections_are_appended_where_a_reader_of_efi_programs_finds_them() {
    let kernel = vec![7; 0x1234];
    let sections = [
        Section {
            name: ".cmdline",
            bytes: b"quiet",
        },
        Section {
            name: ".linux",
            bytes: &kernel,
        },
    ];
    let program = uki::join(&stub(), &sections).unwrap();
    let file = object::File::parse(program.as_slice()).unwrap();
    let of = |name: &str| {
        let section = file.section_by_name(name).unwrap();
        (section.address(), section.data().unwrap().to_vec())
    };
    assert_eq!(of(".cmdline"), (0x3000, b"quiet".to_vec()));
    assert_eq!(of(".linux"), (0x4000, kernel));
    assert_eq!(file.sections().count(), 4);
}

#[test]
fn a_stub_that_is_none_or_full_is_refused() {
    let section = || Section {
        name: ".osrel",
        bytes: b"x",
    };
    for (stub, says) in [
        (b"no program".to_vec(), "cut off"),
        (vec![0; 4096], "no EFI program"),
        (stub()[..0x1a0].to_vec(), "cut off"),
    ] {
        let refused = uki::join(&stub, &[section()]).unwrap_err();
        assert!(refused.to_string().contains(says), "{refused}");
    }
    let many: Vec<Section<'_>> = (0..9).map(|_| section()).collect();
    let refused = uki::join(&stub(), &many).unwrap_err();
    assert!(refused.to_string().contains("no room"), "{refused}");
}

#[test]
fn the_disk_holds_what_the_firmware_looks_for_and_is_twice_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let program = vec![9; 3 << 20];
    let contents = Contents {
        loader: b"loader",
        programs: &[("pghoard-1.efi".to_owned(), program.clone())],
    };
    let write = |name: &str| {
        let path = folder.path().join(name);
        disk::write(&path, &contents).unwrap();
        fs::read(path).unwrap()
    };
    let bytes = write("one.raw");
    assert!(
        bytes == write("two.raw"),
        "two images of the same inputs differ"
    );
    let path = folder.path().join("one.raw");
    let table = gpt::GptConfig::new().open(&path).unwrap();
    let partitions: Vec<_> = table.partitions().values().collect();
    assert_eq!(partitions.len(), 2);
    assert_eq!(partitions[1].name, disk::DATA_NAME);
    assert!(table.primary_header().is_ok() && table.backup_header().is_ok());
    assert_eq!(
        in_esp(&path, partitions[0], "EFI/BOOT/BOOTX64.EFI"),
        b"loader"
    );
    assert!(in_esp(&path, partitions[0], "EFI/Linux/pghoard-1.efi") == program);
}

fn in_esp(path: &Path, esp: &gpt::partition::Partition, name: &str) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let at = |lba: u64| usize::try_from(lba * 512).unwrap();
    let esp = bytes[at(esp.first_lba)..at(esp.last_lba + 1)].to_vec();
    let system = fatfs::FileSystem::new(std::io::Cursor::new(esp), fatfs::FsOptions::new());
    let system = system.unwrap();
    let mut file = system.root_dir().open_file(name).unwrap();
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut content).unwrap();
    content
}
