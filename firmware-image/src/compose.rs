//! From inputs to an image and the list of what is in it.

use std::path::{Path, PathBuf};

use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::failure::{Outcome, failure, read, write};
use crate::inputs::{Inputs, Package, blank_file_system};
use crate::layers::disk::{self, Contents};
use crate::layers::initramfs::{self, Root};
use crate::layers::uki::{self, Section};

/// Serial and virtio consoles and the screen; the last one is `/dev/console`. A kernel that panics
/// starts again, and the boot loader counts its tries.
const COMMAND_LINE: &str = "console=tty0 console=hvc0 console=ttyS0,115200 panic=5 quiet\0";

/// Everything inside, for an inventory (SBOM) and to compare two images by.
#[derive(Debug, Serialize)]
struct Manifest<'a> {
    version: &'a str,
    image_sha256: String,
    parts: Vec<Part>,
    packages: &'a [Package],
}

#[derive(Debug, Serialize)]
struct Part {
    name: String,
    bytes: usize,
    sha256: String,
}

impl Part {
    fn of(name: impl Into<String>, bytes: &[u8]) -> Part {
        Part {
            name: name.into(),
            bytes: bytes.len(),
            sha256: hex::encode(Sha256::digest(bytes)),
        }
    }
}

pub struct Order {
    pub inputs: PathBuf,
    pub program: PathBuf,
    pub version: String,
    pub out: PathBuf,
}

/// Writes the raw disk, and `<out>.manifest.json` beside it.
pub fn compose(order: &Order) -> Outcome<()> {
    check_version(&order.version)?;
    let inputs = Inputs::open(&order.inputs)?;
    let program = read(&order.program)?;
    check_static(&program, &order.program)?;
    let scratch = order.out.parent().unwrap_or(Path::new("."));
    let blank = blank_file_system(scratch)?;
    let release = release(&order.version);
    let initramfs = initramfs::build(&Root {
        program: &program,
        fsck: &inputs.fsck,
        blank: &blank,
        modules: &inputs.modules,
        os_release: &release,
    })?;
    let section = |name, bytes| Section { name, bytes };
    let unified = uki::join(
        &inputs.stub,
        &[
            section(".osrel", release.as_bytes()),
            section(".cmdline", COMMAND_LINE.as_bytes()),
            section(".linux", &inputs.kernel),
            section(".initrd", &initramfs),
        ],
    )?;
    let mut parts = vec![
        Part::of("pghoard", &program),
        Part::of("linux", &inputs.kernel),
        Part::of("e2fsck", &inputs.fsck),
        Part::of("data.ext4.zst", &blank),
        Part::of("initramfs", &initramfs),
        Part::of("systemd-bootx64.efi", &inputs.loader),
        Part::of("program.efi", &unified),
    ];
    let modules = inputs.modules.iter();
    parts.extend(modules.map(|module| Part::of(format!("{}.ko", module.name), &module.bytes)));
    // Nothing to fall back to, so nothing is counted.
    let contents = Contents {
        loader: &inputs.loader,
        programs: &[(format!("pghoard-{}.efi", order.version), unified)],
    };
    disk::write(&order.out, &contents)?;
    let manifest = Manifest {
        version: &order.version,
        image_sha256: hex::encode(Sha256::digest(read(&order.out)?)),
        parts,
        packages: &inputs.packages,
    };
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| failure(format!("manifest: {error}")))?;
    let mut beside = order.out.clone().into_os_string();
    beside.push(".manifest.json");
    write(Path::new(&beside), &text)
}

/// The boot loader orders by it, and it is part of a file name.
fn check_version(version: &str) -> Outcome<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '~' | '-');
    if version.is_empty() || version.len() > 32 || !version.chars().all(plain) {
        return Err(failure(format!(
            "version '{version}': expected at most 32 letters, digits, dots, dashes and tildes"
        )));
    }
    Ok(())
}

fn release(version: &str) -> String {
    format!(
        "ID=pghoard\nNAME=\"PGHoard appliance\"\nPRETTY_NAME=\"PGHoard appliance {version}\"\n\
         VERSION_ID={version}\n"
    )
}

/// There is no loader of shared libraries in the image: the kernel would only say "error -2".
fn check_static(program: &[u8], path: &Path) -> Outcome<()> {
    let wrong = |what: &str| failure(format!("{}: {what}", path.display()));
    let header = elf::FileHeader64::<Endianness>::parse(program)
        .map_err(|_| wrong("is no 64-bit program (ELF)"))?;
    let endian = header.endian().map_err(|_| wrong("is damaged"))?;
    let segments = header
        .program_headers(endian, program)
        .map_err(|_| wrong("is damaged"))?;
    if segments
        .iter()
        .any(|segment| segment.p_type(endian) == elf::PT_INTERP)
    {
        return Err(wrong(
            "is linked dynamically; build it with RUSTFLAGS='-C target-feature=+crt-static' and \
             --target x86_64-unknown-linux-gnu",
        ));
    }
    Ok(())
}
