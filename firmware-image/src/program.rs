//! The one program of the image, and the machine it is for.

use std::path::{Path, PathBuf};
use std::process::Command;

use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

use crate::failure::{Outcome, failure, read};
use crate::inputs::workspace;

/// What differs from machine to machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    X86_64,
    Aarch64,
}

impl Machine {
    /// As `std::env::consts::ARCH` has it in the program.
    pub fn name(self) -> &'static str {
        match self {
            Machine::X86_64 => "x86_64",
            Machine::Aarch64 => "aarch64",
        }
    }

    /// systemd's stub, by its name in its package.
    pub fn stub(self) -> &'static str {
        match self {
            Machine::X86_64 => "linuxx64.efi.stub",
            Machine::Aarch64 => "linuxaa64.efi.stub",
        }
    }

    pub fn loader(self) -> &'static str {
        match self {
            Machine::X86_64 => "systemd-bootx64.efi",
            Machine::Aarch64 => "systemd-bootaa64.efi",
        }
    }

    /// What the firmware starts from a disk that it knows nothing of (UEFI 2.10, 3.5.1.1).
    pub fn removable(self) -> &'static str {
        match self {
            Machine::X86_64 => "BOOTX64.EFI",
            Machine::Aarch64 => "BOOTAA64.EFI",
        }
    }

    /// Screen, virtio and serial consoles; the last one is `/dev/console`. `gpt` has the kernel
    /// look at the second partition table where the first is broken. A kernel that panics starts
    /// again, and the boot loader counts its tries.
    pub fn command_line(self) -> &'static str {
        match self {
            Machine::X86_64 => "console=tty0 console=hvc0 console=ttyS0,115200 gpt panic=5 quiet\0",
            Machine::Aarch64 => {
                "console=tty0 console=hvc0 console=ttyAMA0,115200 gpt panic=5 quiet\0"
            }
        }
    }
}

#[derive(Debug)]
pub struct Program {
    pub bytes: Vec<u8>,
    pub machine: Machine,
    /// The number of the log format that it writes.
    pub log: u32,
}

impl Program {
    /// There is no loader of shared libraries in the image: the kernel would only say "error -2".
    pub fn open(path: &Path) -> Outcome<Program> {
        let wrong = |what: &str| failure(format!("{}: {what}", path.display()));
        let bytes = read(path)?;
        let header = elf::FileHeader64::<Endianness>::parse(bytes.as_slice())
            .map_err(|_| wrong("is no 64-bit program (ELF)"))?;
        let endian = header.endian().map_err(|_| wrong("is damaged"))?;
        let machine = match header.e_machine(endian) {
            elf::EM_X86_64 => Machine::X86_64,
            elf::EM_AARCH64 => Machine::Aarch64,
            _ => return Err(wrong("is a program for neither x86-64 nor arm64")),
        };
        let segments = header
            .program_headers(endian, bytes.as_slice())
            .map_err(|_| wrong("is damaged"))?;
        let dynamic = |segment: &elf::ProgramHeader64<_>| segment.p_type(endian) == elf::PT_INTERP;
        if segments.iter().any(dynamic) {
            return Err(wrong(&format!(
                "is linked dynamically; build it with RUSTFLAGS='{STATIC}' and --target {TARGET}"
            )));
        }
        let log = log_format(&bytes).ok_or_else(|| {
            wrong("does not say which log format it writes; it is no PGHoard of the appliance")
        })?;
        Ok(Program {
            bytes,
            machine,
            log,
        })
    }

    /// Builds the appliance's program out of the sources that this builder came from.
    pub fn build() -> Outcome<PathBuf> {
        let about = |what: String| failure(format!("cargo build -p {PACKAGE}: {what}"));
        let target = workspace().join("target");
        let status = Command::new("cargo")
            .args(["build", "--release", "--locked", "-p", PACKAGE])
            .args(["--target", TARGET])
            .arg("--target-dir")
            .arg(&target)
            .env("RUSTFLAGS", STATIC)
            .current_dir(workspace())
            .status()
            .map_err(|error| about(error.to_string()))?;
        if !status.success() {
            return Err(about(format!("ended with {status}")));
        }
        Ok(target.join(TARGET).join("release").join(PACKAGE))
    }
}

/// What `pghoard log-format` would say: looked up instead of asked, for the program may be one for
/// another kind of machine.
fn log_format(program: &[u8]) -> Option<u32> {
    let rest = find(program, LOG_TOLD.as_bytes())?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
    let digits: Vec<u8> = digits.take(10).copied().collect();
    String::from_utf8(digits).ok()?.parse().ok()
}

/// What follows the words where they first are.
fn find<'a>(bytes: &'a [u8], words: &[u8]) -> Option<&'a [u8]> {
    let (first, _) = words.split_first()?;
    let mut rest = bytes;
    loop {
        let at = rest.iter().position(|byte| byte == first)?;
        let here = rest.get(at..)?;
        if let Some(after) = here.strip_prefix(words) {
            return Some(after);
        }
        rest = here.get(1..)?;
    }
}

/// How the sentence begins that has the number (`journal::upcast::LOG_TOLD`).
const LOG_TOLD: &str = "pghoard writes logs of format ";

pub const PACKAGE: &str = "pghoard-appliance";
pub const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str = "-C target-feature=+crt-static";
