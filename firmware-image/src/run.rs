//! A virtual machine on an image, as a person tries it and the tests drive it: QEMU on x86-64 with
//! UEFI, one disk, one network card, a source of entropy and a serial line.
//!
//! The processor is emulated unless KVM is asked for: a `/dev/kvm` that opens may still not run a
//! guest. The guest reaches this machine's loopback as 10.0.2.2.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Outcome, failure};

const QEMU: &str = "qemu-system-x86_64";
/// Where Debian's and Ubuntu's package `ovmf` puts its files.
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// With Secure Boot: one that keeps its variables from the guest, and keys for trying out.
const FIRMWARE_SECURE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
const VARIABLES_SECURE: &str = "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd";

#[derive(Clone, Debug, clap::Args)]
pub struct Virtual {
    /// The image, raw or qcow2; FILE.vars beside it keeps what the firmware remembers
    #[arg(value_name = "FILE")]
    pub image: PathBuf,
    /// MiB of memory
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub memory: u32,
    /// The serial line: a unix socket to listen on instead of this terminal (where Ctrl-A X ends
    /// the machine)
    #[arg(long, value_name = "SOCKET")]
    pub serial: Option<PathBuf>,
    /// A unix socket for QEMU's own protocol: power button, reset
    #[arg(long, value_name = "SOCKET")]
    pub qmp: Option<PathBuf>,
    /// How the disk is attached
    #[arg(long, value_enum, default_value_t)]
    pub bus: Bus,
    /// A port of 127.0.0.1 that leads to one of the guest (16000:16000)
    #[arg(long, value_name = "HOST:GUEST", value_parser = forward)]
    pub forward: Vec<(u16, u16)>,
    /// A further disk that is only read: a configuration drive, an update
    #[arg(long, value_name = "FILE")]
    pub drive: Vec<PathBuf>,
    /// Use this machine's processor instead of emulating one
    #[arg(long)]
    pub kvm: bool,
    /// Start only what is signed with a key that --variables knows; without it, the well-known one
    /// for trying out that comes with OVMF
    #[arg(long)]
    pub secure_boot: bool,
    /// UEFI
    #[arg(long, value_name = "FILE")]
    pub firmware: Option<PathBuf>,
    /// What UEFI begins with; copied to FILE.vars the first time
    #[arg(long, value_name = "FILE")]
    pub variables: Option<PathBuf>,
    /// More for QEMU, as it is
    #[arg(last = true, value_name = "ARGUMENT")]
    pub more: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Bus {
    #[default]
    Virtio,
    Scsi,
    Nvme,
}

fn forward(text: &str) -> Result<(u16, u16), String> {
    let ports = text.split_once(':');
    let ports = ports.and_then(|(host, guest)| Some((host.parse().ok()?, guest.parse().ok()?)));
    ports.ok_or_else(|| "expected two ports, as in 16000:16000".to_owned())
}

impl Virtual {
    /// With 512 MiB, its serial line on standard input and output, and nothing else.
    pub fn new(image: impl Into<PathBuf>) -> Virtual {
        Virtual {
            image: image.into(),
            memory: 512,
            serial: None,
            qmp: None,
            bus: Bus::Virtio,
            forward: Vec::new(),
            drive: Vec::new(),
            kvm: false,
            secure_boot: false,
            firmware: None,
            variables: None,
            more: Vec::new(),
        }
    }

    /// What starts it. Makes the file of the firmware's variables if it is not there.
    pub fn command(&self) -> Outcome<Command> {
        let mut command = Command::new(QEMU);
        command.args(["-accel", if self.kvm { "kvm" } else { "tcg" }]);
        command.args([
            "-machine",
            if self.secure_boot {
                "q35,smm=on"
            } else {
                "q35"
            },
        ]);
        command.arg("-m").arg(self.memory.to_string());
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        self.firmware(&mut command)?;
        self.disks(&mut command)?;
        let ports = self.forward.iter();
        let ports: String = ports
            .map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"))
            .collect();
        command.arg("-netdev").arg(format!("user,id=net{ports}"));
        // No firmware for booting from the network: it would be tried and waited for.
        command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        command.args(["-device", "virtio-rng-pci"]);
        match &self.serial {
            Some(path) => command.arg("-serial").arg(listening(path)?),
            None => command.args(["-serial", "mon:stdio"]),
        };
        if let Some(path) = &self.qmp {
            command.arg("-qmp").arg(listening(path)?);
        }
        command.args(&self.more);
        Ok(command)
    }

    fn firmware(&self, command: &mut Command) -> Outcome<()> {
        let (code, variables) = match self.secure_boot {
            true => (FIRMWARE_SECURE, VARIABLES_SECURE),
            false => (FIRMWARE, VARIABLES),
        };
        let code = self.firmware.as_deref().unwrap_or(Path::new(code));
        let variables = self.variables.as_deref().unwrap_or(Path::new(variables));
        let kept = beside(&self.image, ".vars");
        if !kept.exists() {
            fs::copy(variables, &kept).map_err(|error| {
                failure(format!(
                    "{}: {error}; UEFI for QEMU is Debian's package ovmf, or say --firmware and \
                     --variables",
                    variables.display()
                ))
            })?;
        }
        if self.secure_boot {
            command.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
        }
        let code = escaped(code)?;
        command.arg("-drive").arg(format!(
            "if=pflash,format=raw,unit=0,readonly=on,file={code}"
        ));
        let kept = escaped(&kept)?;
        command
            .arg("-drive")
            .arg(format!("if=pflash,format=raw,unit=1,file={kept}"));
        Ok(())
    }

    fn disks(&self, command: &mut Command) -> Outcome<()> {
        let image = escaped(&self.image)?;
        let format = format_of(&self.image)?;
        command.arg("-drive").arg(format!(
            "if=none,id=disk,format={format},discard=unmap,file={image}"
        ));
        command.args(match self.bus {
            Bus::Virtio => &["-device", "virtio-blk-pci,drive=disk,bootindex=1"][..],
            Bus::Scsi => &[
                "-device",
                "virtio-scsi-pci",
                "-device",
                "scsi-hd,drive=disk,bootindex=1",
            ],
            Bus::Nvme => &["-device", "nvme,drive=disk,serial=pghoard,bootindex=1"],
        });
        for (number, path) in self.drive.iter().enumerate() {
            let (format, path) = (format_of(path)?, escaped(path)?);
            command.arg("-drive").arg(format!(
                "if=none,id=drive{number},format={format},readonly=on,file={path}"
            ));
            command
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive=drive{number}"));
        }
        Ok(())
    }
}

fn listening(path: &Path) -> Outcome<String> {
    Ok(format!("unix:{},server=on,wait=off", escaped(path)?))
}

/// As a value in QEMU's lists, where a comma is written twice.
fn escaped(path: &Path) -> Outcome<String> {
    let text = path
        .to_str()
        .ok_or_else(|| failure(format!("{}: QEMU wants names in UTF-8", path.display())))?;
    Ok(text.replace(',', ",,"))
}

fn format_of(path: &Path) -> Outcome<&'static str> {
    use std::io::Read;
    let about = |error| failure(format!("{}: {error}", path.display()));
    let mut magic = Vec::new();
    let file = fs::File::open(path).map_err(about)?;
    file.take(4).read_to_end(&mut magic).map_err(about)?;
    Ok(if magic == b"QFI\xfb" { "qcow2" } else { "raw" })
}

pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// The command as a line for a shell.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@".contains(c);
        match !word.is_empty() && word.chars().all(plain) {
            true => word.into_owned(),
            false => format!("'{}'", word.replace('\'', "'\\''")),
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}
