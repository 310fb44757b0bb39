//! The data partition, the only thing that stays: found by its name, grown to its disk, formatted
//! when it is blank and never otherwise, checked, mounted.
//!
//! Power may go at any moment. The partition table is written back to front ([`table`]), so that
//! one of its two copies is whole, and a format ([`blank`]) that was cut begins anew.

mod blank;
mod table;

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use machine::Class;
use nix::mount::{MsFlags, mount};
use pghoard::{Failure, Outcome};

use crate::children::Children;
use crate::sys;

/// The name in the partition table.
pub const PARTITION: &str = "pghoard-data";
const PROGRAM: &str = "/bin/e2fsck";
/// A disk may take its time to appear.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// ext4's superblock (kernel documentation, `ext4/super.rst`).
const SUPERBLOCK: u64 = 1_024;
const MAGIC: [u8; 2] = [0x53, 0xef];

/// A block device and where the kernel tells about it.
#[derive(Clone, Debug)]
pub struct Device {
    /// As in `/sys/class/block`.
    pub name: String,
}

impl Device {
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    fn told(&self, what: &str) -> Outcome<String> {
        let path = Path::new("/sys/class/block").join(&self.name).join(what);
        let text = fs::read_to_string(&path).map_err(|e| Failure::io(&e, path.display()))?;
        Ok(text.trim().to_owned())
    }

    fn number(&self, what: &str) -> Outcome<u64> {
        let text = self.told(what)?;
        text.parse().map_err(|_| {
            trouble(format!(
                "/sys/class/block/{}/{what} says '{text}'",
                self.name
            ))
        })
    }

    /// In bytes; the kernel counts in 512 whatever the disk does.
    fn bytes(&self) -> Outcome<u64> {
        Ok(self.number("size")?.saturating_mul(512))
    }

    fn whole(&self) -> Outcome<Device> {
        let link = Path::new("/sys/class/block").join(&self.name);
        let place = fs::canonicalize(&link).map_err(|e| Failure::io(&e, link.display()))?;
        let disk = place.parent().and_then(Path::file_name);
        let name = disk.and_then(|name| name.to_str());
        let name = name.ok_or_else(|| trouble(format!("{} is on no disk", self.name)))?;
        Ok(Device {
            name: name.to_owned(),
        })
    }
}

/// The only partition of that name. With a second one, of a clone or of another appliance's disk,
/// nobody can say which is this machine's.
pub fn partition(name: &str) -> Outcome<Option<Device>> {
    let wanted = format!("PARTNAME={name}");
    let named = |device: &Device| {
        let told = device.told("uevent").unwrap_or_default();
        told.lines().any(|line| line == wanted)
    };
    let found: Vec<Device> = all().filter(named).collect();
    match found.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(only.clone())),
        [..] => {
            let names: Vec<&str> = found.iter().map(|device| device.name.as_str()).collect();
            let message = format!("{} are all named '{name}'", names.join(", "));
            Err(trouble(message).hint("detach the disk that is not this machine's"))
        }
    }
}

/// Every block device there is now.
pub fn all() -> impl Iterator<Item = Device> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.map(|name| Device { name })
}

/// Waits for the partition, and gives it grown, checked and mounted at `place`.
pub fn open(place: &Path, children: &Children) -> Outcome<Device> {
    let began = Instant::now();
    let device = loop {
        match partition(PARTITION)? {
            Some(device) => break device,
            None if began.elapsed() > APPEARS_WITHIN => {
                let message = format!("no disk has a partition named '{PARTITION}'");
                return Err(trouble(message).hint("attach the appliance's own disk"));
            }
            None => thread::sleep(LOOK_EVERY),
        }
    };
    if let Err(failure) = take_the_disk(&device) {
        log::warn!("the data partition keeps its size: {failure}");
    }
    prepare(&device, children)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    mount(
        Some(&device.node()),
        place,
        Some("ext4"),
        flags,
        Some("errors=remount-ro"),
    )
    .map_err(|e| Failure::io(&e.into(), format!("mount {}", device.node().display())))?;
    Ok(device)
}

/// What it may hold: nothing, half a format of ours, a file system. All else is somebody's.
fn prepare(device: &Device, children: &Children) -> Outcome<()> {
    let node = device.node();
    let about = |e: io::Error| Failure::io(&e, node.display());
    let mut file = File::open(&node).map_err(about)?;
    if blank::is_blank(&mut file).map_err(about)? {
        log::info!("{} is blank: formatting it", node.display());
        return blank::format(&node, device.bytes()?);
    }
    let mut magic = [0; 2];
    file.seek(SeekFrom::Start(SUPERBLOCK + 56)).map_err(about)?;
    file.read_exact(&mut magic).map_err(about)?;
    if magic != MAGIC {
        let message = format!(
            "{} is neither blank nor ext4: left as it is",
            node.display()
        );
        return Err(trouble(message).hint("clear its first MiB elsewhere if nobody needs it"));
    }
    check(&node, "-p", children)
}

/// `-p` mends what is safe to mend; `-y` everything, when a person asks for it.
pub fn check(node: &Path, how: &str, children: &Children) -> Outcome<()> {
    let mut command = Command::new(PROGRAM);
    command.arg(how).arg(node);
    let (code, said) = children.output(&mut command)?;
    match code {
        Some(0) => Ok(()),
        // e2fsck(8): a sum, of which 1 and 2 are errors that were corrected.
        Some(1..=3) => {
            log::warn!("{}: errors were corrected: {said}", node.display());
            Ok(())
        }
        _ => {
            let message = format!("e2fsck {how} {}: {said}", node.display());
            Err(trouble(message).hint("'disk repair' at the console mends what can be mended"))
        }
    }
}

/// The partition is the last of its disk, which may have become larger.
fn take_the_disk(device: &Device) -> Outcome<()> {
    let disk = device.whole()?;
    let number = u32::try_from(device.number("partition")?)
        .map_err(|_| trouble(format!("{}: no number of a partition", device.name)))?;
    let Some(grown) = table::grow(&disk.node(), number)? else {
        return Ok(());
    };
    let node = disk.node();
    let about = |e: io::Error| Failure::io(&e, format!("{}: new size", node.display()));
    let file = File::open(&node).map_err(about)?;
    let wide = |n: u64| i64::try_from(n).map_err(|_| trouble("a disk beyond 8 EiB"));
    let number = i32::try_from(number).map_err(|_| trouble("a number of a partition"))?;
    sys::resize_partition(&file, number, wide(grown.start)?, wide(grown.length)?).map_err(about)?;
    log::info!(
        "{} is {} MiB now",
        device.node().display(),
        grown.length >> 20
    );
    Ok(())
}

/// Makes the mounted file system as large as its partition, which takes 12 s a TiB.
pub fn grow(device: &Device, place: &Path) -> Outcome<()> {
    let node = device.node();
    let about = |e: io::Error| Failure::io(&e, format!("{}: grow", node.display()));
    let mut file = File::open(&node).map_err(about)?;
    let mut superblock = [0; 1_024];
    file.seek(SeekFrom::Start(SUPERBLOCK)).map_err(about)?;
    file.read_exact(&mut superblock).map_err(about)?;
    let block = blank::block_bytes(&superblock);
    let (wanted, now) = (device.bytes()? / block, blank::blocks(&superblock));
    // Less than a group of blocks may not be worth a group's tables.
    if wanted <= now.saturating_add(32_768) {
        return Ok(());
    }
    let root = File::open(place).map_err(about)?;
    sys::grow_ext4(&root, wanted).map_err(about)?;
    log::info!("the data partition has {} MiB now", (wanted * block) >> 20);
    Ok(())
}

pub fn trouble(message: impl Into<String>) -> Failure {
    Failure::new(Class::Config, message)
}
