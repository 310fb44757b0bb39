//! What an image is made of: files of the distribution, in one folder, and what they are.
//!
//! `firmware-image/inputs DIR` fills the folder; a Buildroot fills one of the same form.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::failure::{Outcome, failure, read, scratch};
use crate::layers::modules::{self, Module};
use crate::program::Machine;

/// Of a package that a file of the folder comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub licence: String,
    /// Of the package's file.
    pub sha256: String,
}

pub struct Inputs {
    pub kernel: Vec<u8>,
    pub modules: Vec<Module>,
    pub stub: Vec<u8>,
    pub loader: Vec<u8>,
    pub fsck: Vec<u8>,
    pub packages: Vec<Package>,
}

impl Inputs {
    pub fn open(folder: &Path, machine: Machine) -> Outcome<Inputs> {
        let file = |name: &str| {
            read(&folder.join(name))
                .map_err(|error| failure(format!("{error}; firmware-image/inputs makes it")))
        };
        let packages = file("packages.json")?;
        let packages = serde_json::from_slice(&packages)
            .map_err(|error| failure(format!("packages.json: {error}")))?;
        Ok(Inputs {
            kernel: file("vmlinuz")?,
            modules: modules::collect(&folder.join("modules"))?,
            stub: file(machine.stub())?,
            loader: file(machine.loader())?,
            fsck: file("e2fsck")?,
            packages,
        })
    }
}

/// Fills the folder that is taken when none is named, out of the distribution's packages; a filled
/// one stays.
pub fn fetch() -> Outcome<PathBuf> {
    let folder = workspace().join("target/firmware-inputs");
    let script = workspace().join("firmware-image/inputs");
    let about = |what: String| failure(format!("{}: {what}", script.display()));
    let status = Command::new(&script)
        .arg(&folder)
        .status()
        .map_err(|error| about(error.to_string()))?;
    match status.success() {
        true => Ok(folder),
        false => Err(about(format!("ended with {status}"))),
    }
}

/// The sources that this builder came from.
pub fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// In bytes: as large as the largest disk wants its groups and its journal, and sparse.
const BLANK_BYTES: u64 = 1 << 30;

/// An empty ext4, compressed. Its identifiers and times are fixed, so that two are the same bytes.
pub fn blank_file_system() -> Outcome<Vec<u8>> {
    let scratch = scratch()?;
    let path = scratch.path().join("data.ext4");
    let about = |error: &dyn std::fmt::Display| failure(format!("mkfs.ext4: {error}"));
    let file = std::fs::File::create(&path).map_err(|error| about(&error))?;
    file.set_len(BLANK_BYTES).map_err(|error| about(&error))?;
    let told = Command::new("mkfs.ext4")
        .args([
            "-q",
            "-F",
            "-b",
            "4096",
            "-i",
            "65536",
            // Of the whole for root alone, who must be able to write settings on a full disk.
            "-m",
            "1",
            "-L",
            "pghoard-data",
        ])
        .args([
            "-U",
            "50474850-4f41-4244-8000-0000000000db",
            "-J",
            "size=64",
        ])
        .args(["-O", "^resize_inode,meta_bg,64bit,metadata_csum"])
        .arg("-E")
        .arg(
            "hash_seed=50474850-4f41-4244-8000-0000000000dc,lazy_itable_init=1,\
             lazy_journal_init=1,nodiscard",
        )
        .arg(&path)
        // The one for reproducible builds is heeded by later versions, the other by all.
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .env("E2FSPROGS_FAKE_TIME", "1700000000")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .map_err(|error| about(&error))?;
    if !told.status.success() {
        return Err(about(&String::from_utf8_lossy(&told.stderr).trim()));
    }
    let mut image = std::fs::File::open(&path).map_err(|error| about(&error))?;
    let blocks = blocks(&mut image).map_err(|error| about(&error))?;
    zstd::encode_all(blocks.as_slice(), 19).map_err(|error| about(&error))
}

/// Its length, and the blocks that are not zero, each after its number: what PID 1 writes to a
/// blank data partition (`appliance/src/disk/blank.rs`), where a whole GiB would take its time.
fn blocks(image: &mut impl Read) -> std::io::Result<Vec<u8>> {
    const BLOCK: usize = 4_096;
    let zeros = [0; BLOCK];
    let mut block = [0; BLOCK];
    let mut found = Vec::from(BLANK_BYTES.to_le_bytes());
    for number in 0..BLANK_BYTES / 4_096 {
        image.read_exact(&mut block)?;
        if block != zeros {
            found.extend(number.to_le_bytes());
            found.extend(block);
        }
    }
    Ok(found)
}
