//! From inputs to an image and the list of what is in it.

use std::path::{Path, PathBuf};

use bundle::release::Release;
use bundle::{PROGRAM_MAX, Version, writer};
use sha2::{Digest, Sha256};

use crate::failure::{Outcome, failure, read, scratch, write};
use crate::inputs::{self, Inputs, Package, blank_file_system};
use crate::layers::disk::{self, Contents};
use crate::layers::initramfs::{self, Root};
use crate::layers::qcow2;
use crate::layers::uki::{self, Section};
use crate::manifest::{Manifest, Part, crates};
use crate::program::{Machine, Program};
use crate::run::beside;
use crate::sign::{self, SecureBoot, failure_of};

/// What is built, of what.
#[derive(Debug, clap::Args)]
pub struct Order {
    /// What firmware-image/inputs filled; without it that is done, in target/firmware-inputs
    #[arg(long, value_name = "DIR")]
    pub inputs: Option<PathBuf>,
    /// The static multi-call program; without it that is built, by cargo
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
    /// Of the image; a higher one is newer
    #[arg(long, value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    pub image_version: Version,
    /// Public key by which the appliance will know its updates
    #[arg(long, value_name = "FILE")]
    pub update_key: Option<PathBuf>,
    #[command(flatten)]
    pub secure_boot: SecureBoot,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Format {
    Raw,
    Qcow2,
}

/// What the boot loader starts, and what it is made of.
pub struct Built {
    pub version: Version,
    pub machine: Machine,
    pub unified: Vec<u8>,
    pub loader: Vec<u8>,
    parts: Vec<Part>,
    packages: Vec<Package>,
}

impl Built {
    pub fn of(order: &Order) -> Outcome<Built> {
        let program = match &order.program {
            Some(path) => Program::open(path)?,
            None => Program::open(&Program::build()?)?,
        };
        let folder = match &order.inputs {
            Some(folder) => folder.clone(),
            None => inputs::fetch()?,
        };
        let inputs = Inputs::open(&folder, program.machine)?;
        let update_key = order.update_key.as_deref().map(sign::public).transpose()?;
        let update_key = update_key.map(|key| format!("{key}\n"));
        let blank = blank_file_system()?;
        let release = Release {
            version: order.image_version.clone(),
            log: program.log,
        };
        let release = release.text();
        let initramfs = initramfs::build(&Root {
            program: &program.bytes,
            fsck: &inputs.fsck,
            blank: &blank,
            modules: &inputs.modules,
            os_release: &release,
            update_key: update_key.as_deref().map(str::as_bytes),
        })?;
        let section = |name, bytes| Section { name, bytes };
        let unified = uki::join(
            &inputs.stub,
            &[
                section(".osrel", release.as_bytes()),
                section(".cmdline", program.machine.command_line().as_bytes()),
                section(".linux", &inputs.kernel),
                section(".initrd", &initramfs),
            ],
        )?;
        let unified = order.secure_boot.sign(unified)?;
        let size = u64::try_from(unified.len()).unwrap_or(u64::MAX);
        if size > PROGRAM_MAX {
            return Err(failure(format!(
                "the EFI program has {size} bytes, at most {PROGRAM_MAX} fit into a slot"
            )));
        }
        let loader = order.secure_boot.sign(inputs.loader)?;
        let mut parts = vec![
            Part::of("pghoard", &program.bytes),
            Part::of("linux", &inputs.kernel),
            Part::of("e2fsck", &inputs.fsck),
            Part::of("data.ext4.zst", &blank),
            Part::of("initramfs", &initramfs),
            Part::of(program.machine.stub(), &inputs.stub),
            Part::of(program.machine.loader(), &loader),
            Part::of("program.efi", &unified),
        ];
        let modules = inputs.modules.iter();
        parts.extend(modules.map(|module| Part::of(format!("{}.ko", module.name), &module.bytes)));
        Ok(Built {
            version: order.image_version.clone(),
            machine: program.machine,
            unified,
            loader,
            parts,
            packages: inputs.packages,
        })
    }

    /// Writes the disk, and `<out>.manifest.json` beside it.
    pub fn disk(&self, out: &Path, format: Format) -> Outcome<()> {
        // Nothing to fall back to, so nothing is counted.
        let contents = Contents {
            machine: self.machine,
            loader: &self.loader,
            programs: &[(format!("pghoard-{}.efi", self.version), &self.unified)],
        };
        match format {
            Format::Raw => disk::write(out, &contents)?,
            Format::Qcow2 => {
                let scratch = scratch()?;
                let raw = scratch.path().join("disk.raw");
                disk::write(&raw, &contents)?;
                qcow2::write(&raw, out)?;
            }
        }
        self.manifest(out)
    }

    /// Writes an update bundle without a signature, and the manifest beside it.
    pub fn bundle(&self, out: &Path) -> Outcome<()> {
        let compatible = bundle::compatible(self.machine.name());
        let bytes = writer::write(compatible, &self.unified).map_err(failure_of)?;
        write(out, &bytes)?;
        self.manifest(out)
    }

    /// Of what lies in a file.
    fn manifest(&self, out: &Path) -> Outcome<()> {
        let manifest = Manifest {
            version: &self.version.to_string(),
            machine: self.machine.name(),
            sha256: hex::encode(Sha256::digest(read(out)?)),
            parts: &self.parts,
            packages: &self.packages,
            crates: crates(self.machine)?,
        };
        let mut text = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| failure(format!("manifest: {error}")))?;
        text.push(b'\n');
        write(&beside(out, ".manifest.json"), &text)
    }
}
