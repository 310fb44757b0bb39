//! Which kernel modules the image carries, and in which order they load.
//!
//! There is no modprobe in the image: PID 1 loads the list from top to bottom. What a module
//! depends on is said by the module itself (`depends=` in its section `.modinfo`), so no index of
//! the kernel package is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection};

use crate::failure::{Outcome, failure, read};

/// What a virtual machine has to have: disks, network, consoles, entropy, a clock that bites.
pub const REQUIRED: [&str; 16] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "sr_mod",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "isofs",
    "efivarfs",
    "button",
    "evdev",
    "softdog",
];

/// Of other hypervisors, and watchdogs of hardware, where the kernel has them as modules.
const OPTIONAL: [&str; 12] = [
    "vmw_pvscsi",
    "vmxnet3",
    "hv_vmbus",
    "hv_storvsc",
    "hv_netvsc",
    "hv_utils",
    "ena",
    "gve",
    "qemu_fw_cfg",
    "i6300esb",
    "iTCO_wdt",
    "sp5100_tco",
];

/// A module's file and its bytes, by the order in which they load.
pub struct Module {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// The modules of the image out of a kernel's folder. A required one that is neither there nor
/// named in `modules.builtin` is an error: an image without its disk is found out too late.
pub fn collect(folder: &Path) -> Outcome<Vec<Module>> {
    let mut found = BTreeMap::new();
    find(folder, &mut found)?;
    let builtin = builtin(folder, &found)?;
    let mut picked = Picked {
        found: &found,
        builtin: &builtin,
        seen: BTreeSet::new(),
        modules: Vec::new(),
    };
    for name in REQUIRED {
        picked.add(name)?;
    }
    for name in OPTIONAL
        .into_iter()
        .filter(|name| found.contains_key(*name))
    {
        picked.add(name)?;
    }
    Ok(picked.modules)
}

struct Picked<'a> {
    found: &'a BTreeMap<String, PathBuf>,
    builtin: &'a BTreeSet<String>,
    seen: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Picked<'_> {
    /// After what it depends on.
    fn add(&mut self, name: &str) -> Outcome<()> {
        if self.builtin.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.found.get(name).ok_or_else(|| {
            failure(format!(
                "the kernel has no module '{name}', neither as a file nor built in"
            ))
        })?;
        let bytes = read(path)?;
        for needed in depends(&bytes, path)? {
            self.add(&needed)?;
        }
        self.modules.push(Module {
            name: name.to_owned(),
            bytes,
        });
        Ok(())
    }
}

/// Names as the kernel has them: with underscores.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    Some(file.strip_suffix(".ko")?.replace('-', "_"))
}

fn find(folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> Outcome<()> {
    let cannot = |error| failure(format!("{}: {error}", folder.display()));
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(cannot)?);
        if kind.is_dir() {
            find(&path, found)?;
        } else if let Some(name) = name_of(&path) {
            found.insert(name, path);
        }
    }
    Ok(())
}

/// The list lies beside the folder `kernel`, wherever that is below the given one. A kernel without
/// any module has it, too.
fn builtin(folder: &Path, found: &BTreeMap<String, PathBuf>) -> Outcome<BTreeSet<String>> {
    let any = found
        .values()
        .next()
        .map(PathBuf::as_path)
        .unwrap_or(folder);
    let list = any
        .ancestors()
        .map(|above| above.join("modules.builtin"))
        .find(|path| path.exists());
    let Some(list) = list else {
        return Ok(BTreeSet::new());
    };
    let text = String::from_utf8_lossy(&read(&list)?).into_owned();
    Ok(text
        .lines()
        .filter_map(|line| name_of(Path::new(line)))
        .collect())
}

fn depends(module: &[u8], path: &Path) -> Outcome<Vec<String>> {
    let wrong = |what: &str| failure(format!("{}: {what}", path.display()));
    let file = object::File::parse(module).map_err(|_| wrong("is no kernel module (ELF)"))?;
    let section = file
        .section_by_name(".modinfo")
        .ok_or_else(|| wrong("has no .modinfo"))?;
    let facts = section
        .data()
        .map_err(|_| wrong("its .modinfo is damaged"))?;
    let texts = facts.split(|byte| *byte == 0);
    let mut lists = texts.filter_map(|text| text.strip_prefix(b"depends="));
    let list = lists.next().unwrap_or_default();
    let list = String::from_utf8_lossy(list).replace('-', "_");
    let names = list.split(',').filter(|name| !name.is_empty());
    Ok(names.map(str::to_owned).collect())
}
