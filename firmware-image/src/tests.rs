//! Each layer is read back by another reader than its writer.

use std::fs;
use std::path::Path;
use std::process::Command;

use bundle::reader::Bundle;
use bundle::release::Release;
use object::{Object, ObjectSection};

use crate::compose::{Built, Format, Order};
use crate::layers::disk::{self, Contents};
use crate::layers::initramfs::{self, Root};
use crate::layers::modules::{self, Module};
use crate::layers::qcow2;
use crate::layers::uki::{self, Section};
use crate::program::Machine;
use crate::run::{self, Virtual, beside};
use crate::sign::{self, SecureBoot};

#[path = "../../tests/support/skip.rs"]
mod skip;

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
        update_key: Some(b"a key"),
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
    assert_eq!(of("etc/update.pub"), (0o100_644, "a key"));
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
        machine: Machine::X86_64,
        loader: b"loader",
        programs: &[("pghoard-1.efi".to_owned(), &program)],
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
    // Firmware renames only what has a date.
    let esp = esp(&path, partitions[0]);
    let system = fatfs::FileSystem::new(std::io::Cursor::new(esp.clone()), fatfs::FsOptions::new());
    let system = system.unwrap();
    let programs = system.root_dir().open_dir("EFI/Linux").unwrap();
    let names: Vec<(String, u16)> = programs
        .iter()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name(), entry.modified().date.day))
        .collect();
    let named = |name: &str| (name.to_owned(), 1);
    assert_eq!(names, [".", "..", "pghoard-1.efi"].map(named));
    let alone = folder.path().join("esp");
    fs::write(&alone, esp).unwrap();
    if let Ok(told) = Command::new("/sbin/fsck.fat")
        .arg("-n")
        .arg(&alone)
        .output()
    {
        assert!(told.status.success(), "{told:?}");
    }
}

/// What the guest sees, by the tables of the file.
fn through_qcow2(file: &[u8]) -> Vec<u8> {
    let at = |at: usize, bytes: usize| {
        let field = &file[at..at + bytes];
        field.iter().fold(0, |n, byte| n << 8 | usize::from(*byte))
    };
    let address = |place: usize| at(place, 8) & !(1 << 63);
    assert_eq!((&file[..4], at(4, 4)), (&b"QFI\xfb"[..], 3));
    let (cluster, size) = (1 << at(20, 4), at(24, 8));
    let mut disk = Vec::new();
    while disk.len() < size {
        let number = disk.len() / cluster;
        let second = address(at(40, 8) + number / (cluster / 8) * 8);
        match address(second + number % (cluster / 8) * 8) {
            0 => disk.resize(disk.len() + cluster, 0),
            content => disk.extend(&file[content..content + cluster]),
        }
    }
    let counts = address(at(48, 8));
    for number in 0..file.len() / cluster {
        assert_eq!(
            at(counts + 2 * number, 2),
            1,
            "cluster {number} is used once"
        );
    }
    disk.truncate(size);
    disk
}

#[test]
fn a_qcow2_file_holds_what_is_not_empty_and_is_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, out) = (folder.path().join("raw"), folder.path().join("qcow2"));
    let cluster = 64 << 10;
    for (name, disk, clusters) in [
        ("nothing", Vec::new(), 5 - 2),
        ("empty", vec![0; 5 * cluster], 5),
        (
            "odd end",
            [vec![0; 3 * cluster], vec![1; 7 * 512]].concat(),
            5 + 1,
        ),
        (
            "two tables",
            [vec![0; 8192 * cluster], vec![2; cluster]].concat(),
            6 + 1,
        ),
    ] {
        fs::write(&raw, &disk).unwrap();
        qcow2::write(&raw, &out).unwrap();
        let file = fs::read(&out).unwrap();
        assert_eq!(file.len(), clusters * cluster, "{name}");
        assert!(through_qcow2(&file) == disk, "{name}");
        let mut check = Command::new("qemu-img");
        if let Ok(told) = check.arg("check").arg(&out).output() {
            assert!(told.status.success(), "{name}: {told:?}");
        }
    }
}

/// A folder as `firmware-image/inputs` fills it, of a kernel without modules, and a program.
fn inputs(folder: &Path) {
    let put = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
    put("packages.json", b"[]");
    put("vmlinuz", b"the kernel");
    put("e2fsck", b"fsck");
    put("linuxx64.efi.stub", &stub());
    put("systemd-bootx64.efi", b"the loader");
    fs::create_dir(folder.join("modules")).unwrap();
    let builtin = modules::REQUIRED.map(|name| format!("kernel/{name}.ko\n"));
    put("modules/modules.builtin", builtin.concat().as_bytes());
    put("program", &program());
}

/// The head of a static program (ELF, 64 bits) without a segment, and what it would say.
fn program() -> Vec<u8> {
    let mut head = vec![0; 64];
    head[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    head[18] = 62;
    head[52] = 64;
    head.extend(b"not to print, pghoard writes logs of format 49\n");
    head
}

fn order(folder: &Path) -> Order {
    Order {
        inputs: Some(folder.to_owned()),
        program: Some(folder.join("program")),
        image_version: "7".parse().unwrap(),
        update_key: None,
        secure_boot: SecureBoot::default(),
    }
}

#[test]
fn the_same_inputs_are_the_same_bytes_in_either_format() {
    let folder = tempfile::tempdir().unwrap();
    inputs(folder.path());
    for format in [Format::Raw, Format::Qcow2] {
        let compose = |name: &str| {
            let out = folder.path().join(name);
            let built = Built::of(&order(folder.path())).unwrap();
            built.disk(&out, format).unwrap();
            let manifest = fs::read_to_string(beside(&out, ".manifest.json")).unwrap();
            (fs::read(out).unwrap(), manifest)
        };
        let (one, manifest) = compose("one");
        assert!(
            (one, manifest.clone()) == compose("two"),
            "two images of the same inputs differ: {format:?}"
        );
        for told in ["\"initramfs\"", "\"machine\": \"x86_64\"", "\"zstd\""] {
            assert!(manifest.contains(told), "{told}: {manifest}");
        }
    }
}

#[test]
fn an_order_that_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    inputs(folder.path());
    let refused = |change: &dyn Fn(&mut Order)| {
        let mut order = order(folder.path());
        change(&mut order);
        match Built::of(&order) {
            Ok(_) => panic!("taken: {order:?}"),
            Err(failure) => failure.to_string(),
        }
    };
    let program = |bytes: Vec<u8>| {
        let path = folder.path().join("other");
        fs::write(&path, bytes).unwrap();
        refused(&|order| order.program = Some(path.clone()))
    };
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = super::tests::program();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    assert!(program(b"#!/bin/sh\n".to_vec()).contains("no 64-bit program"));
    assert!(program(changed(18, &[8])).contains("neither x86-64 nor arm64"));
    // One segment, which names a loader of shared libraries.
    let mut dynamic = changed(32, &[64]);
    dynamic[54] = 56;
    dynamic[56] = 1;
    dynamic.truncate(64);
    dynamic.extend([3, 0, 0, 0]);
    dynamic.extend([0; 52]);
    assert!(program(dynamic).contains("is linked dynamically"));
    // There is no stub for the machine of this program.
    assert!(program(changed(18, &[183])).contains("linuxaa64.efi.stub"));
    assert!(program(super::tests::program()[..70].to_vec()).contains("which log format"));
    let key = refused(&|order| order.update_key = Some(folder.path().join("vmlinuz")));
    assert!(
        key.contains("vmlinuz: update key: expected 32 bytes"),
        "{key}"
    );
}

/// The whole way: a key, an image that knows it, a bundle, its signature, and what an appliance
/// then reads.
#[test]
fn a_signed_bundle_holds_the_program_that_the_image_would() {
    let folder = tempfile::tempdir().unwrap();
    inputs(folder.path());
    let at = |name: &str| folder.path().join(name);
    let public = sign::make_key(&at("key")).unwrap();
    assert_eq!(sign::public(&at("key.pub")).unwrap(), public);
    let mode = std::os::unix::fs::PermissionsExt::mode;
    assert_eq!(
        mode(&fs::metadata(at("key")).unwrap().permissions()) & 0o777,
        0o600
    );
    let again = sign::make_key(&at("key")).unwrap_err().to_string();
    assert!(again.contains("File exists"), "{again}");

    let mut order = order(folder.path());
    order.update_key = Some(at("key.pub"));
    let built = Built::of(&order).unwrap();
    built.bundle(&at("bundle")).unwrap();
    Built::of(&order).unwrap().bundle(&at("twice")).unwrap();
    let unsigned = fs::read(at("bundle")).unwrap();
    assert!(
        unsigned == fs::read(at("twice")).unwrap(),
        "two bundles of the same inputs differ"
    );
    sign::bundle(&at("bundle"), &at("key")).unwrap();
    let refused = sign::bundle(&at("program"), &at("key"))
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("program: is no update bundle"),
        "{refused}"
    );
    let refused = sign::bundle(&at("bundle"), &at("key.pub"))
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("key.pub: secret key: expected"),
        "{refused}"
    );

    let compatible = "pghoard-appliance-x86_64";
    let bundle = Bundle::open(&at("bundle"), &[public], compatible).unwrap();
    assert_eq!(
        (
            bundle.manifest.version.to_string().as_str(),
            bundle.manifest.log
        ),
        ("7", 49)
    );
    let mut program = Vec::new();
    bundle
        .unpack(|piece| {
            program.extend(piece);
            Ok::<(), bundle::Refused>(())
        })
        .unwrap();
    assert!(program == built.unified);
    let release = Release::of(&mut std::io::Cursor::new(&program)).unwrap();
    assert_eq!((release.version, release.log), (order.image_version, 49));
}

/// By the tool that a firmware's maker would ask.
#[test]
fn programs_are_signed_for_secure_boot() {
    let run = |program: &str, arguments: &[&str]| {
        let told = Command::new(program).args(arguments).output();
        told.is_ok_and(|told| told.status.success())
    };
    if !run("sbsign", &["--help"]) || !run("openssl", &["version"]) {
        skip::skip(
            "secure-boot",
            "no sbsign or no openssl: run tests/support/install",
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    inputs(folder.path());
    fs::write(folder.path().join("systemd-bootx64.efi"), stub()).unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for who in ["ours", "other"] {
        let (key, cert) = (at(&format!("{who}.key")), at(&format!("{who}.pem")));
        let new = [
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x",
        ];
        assert!(run(
            "openssl",
            &[&new[..], &["-keyout", &key, "-out", &cert]].concat()
        ));
    }
    let mut order = order(folder.path());
    order.secure_boot = SecureBoot {
        secure_boot_key: Some(at("ours.key").into()),
        secure_boot_cert: Some(at("ours.pem").into()),
    };
    let built = Built::of(&order).unwrap();
    for (name, program) in [("unified", &built.unified), ("loader", &built.loader)] {
        fs::write(at(name), program).unwrap();
        assert!(
            run("sbverify", &["--cert", &at("ours.pem"), &at(name)]),
            "{name}"
        );
        assert!(
            !run("sbverify", &["--cert", &at("other.pem"), &at(name)]),
            "{name}"
        );
    }
    order.secure_boot.secure_boot_key = Some(at("other.pem").into());
    let refused = Built::of(&order).map(drop).unwrap_err().to_string();
    assert!(refused.contains("sbsign: "), "{refused}");
}

#[test]
fn a_virtual_machine_is_told_what_it_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("a,b.img"), b"raw").unwrap();
    fs::write(at("drive"), b"QFI\xfb...").unwrap();
    fs::write(at("begin"), b"variables").unwrap();
    let mut machine = Virtual::new(at("a,b.img"));
    machine.serial = Some(at("serial"));
    machine.forward = vec![(16000, 80)];
    machine.drive = vec![at("drive")];
    machine.variables = Some(at("begin"));
    machine.more = vec!["-device".into(), "two words".into()];
    let line = run::line(&machine.command().unwrap());
    let folder = folder.path().display();
    for told in [
        "qemu-system-x86_64 -accel tcg -machine q35 -m 512 ",
        &format!("format=raw,discard=unmap,file={folder}/a,,b.img "),
        &format!("format=qcow2,readonly=on,file={folder}/drive "),
        &format!("unit=1,file={folder}/a,,b.img.vars "),
        "user,id=net,hostfwd=tcp:127.0.0.1:16000-:80 ",
        &format!("-serial unix:{folder}/serial,server=on,wait=off "),
        " -device 'two words'",
    ] {
        assert!(line.contains(told), "{told}: {line}");
    }
    assert_eq!(fs::read(at("a,b.img.vars")).unwrap(), b"variables");
    machine.secure_boot = true;
    machine.kvm = true;
    let line = run::line(&machine.command().unwrap());
    assert!(line.contains("-accel kvm -machine q35,smm=on "), "{line}");
    assert!(line.contains("property=secure,value=on"), "{line}");
}

fn esp(path: &Path, esp: &gpt::partition::Partition) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let at = |lba: u64| usize::try_from(lba * 512).unwrap();
    bytes[at(esp.first_lba)..at(esp.last_lba + 1)].to_vec()
}

fn in_esp(path: &Path, partition: &gpt::partition::Partition, name: &str) -> Vec<u8> {
    let esp = esp(path, partition);
    let system = fatfs::FileSystem::new(std::io::Cursor::new(esp), fatfs::FsOptions::new());
    let system = system.unwrap();
    let mut file = system.root_dir().open_file(name).unwrap();
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut content).unwrap();
    content
}
