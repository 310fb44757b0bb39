//! The root of the appliance, which is the initramfs itself: one program, the kernel's modules and
//! a handful of files. Same inputs, same bytes: entries are sorted, times are 0, owner is root.

use std::collections::BTreeMap;
use std::io::Write;

use cpio::newc::{Builder, ModeFileType, trailer};

use crate::failure::{Outcome, failure};
use crate::layers::modules::Module;

/// What zstd is told: slow here, fast where it boots.
const LEVEL: i32 = 19;

/// Mount points and places that the running system fills.
const FOLDERS: [&str; 11] = [
    "bin",
    "data",
    "dev",
    "etc",
    "lib",
    "lib/modules",
    "proc",
    "run",
    "sys",
    "tmp",
    "usr",
];

/// The resolver of the C library looks at these and nothing else.
const FILES: [(&str, &str); 4] = [
    ("etc/group", "root:x:0:\npghoard:x:100:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/nsswitch.conf", "hosts: files dns\n"),
    (
        "etc/passwd",
        "root:x:0:0::/:/bin/false\npghoard:x:100:100::/data:/bin/false\n",
    ),
];

/// Where PID 1 finds the order in which modules load.
const ORDER: &str = "lib/modules/order";

enum Content {
    Folder,
    File { bytes: Vec<u8>, mode: u32 },
    Link(&'static str),
}

pub struct Root<'a> {
    /// The multi-call program, static.
    pub program: &'a [u8],
    /// `e2fsck`, static, which looks at the data partition before it is mounted.
    pub fsck: &'a [u8],
    /// An empty file system, written to a blank data partition.
    pub blank: &'a [u8],
    pub modules: &'a [Module],
    pub os_release: &'a str,
    /// Who may sign updates.
    pub update_key: Option<&'a [u8]>,
}

/// A compressed archive in cpio's newc format.
pub fn build(root: &Root<'_>) -> Outcome<Vec<u8>> {
    let mut archive = Vec::new();
    for (number, (name, content)) in (1..).zip(tree(root)) {
        add(&mut archive, number, &name, &content)?;
    }
    trailer(&mut archive).map_err(|error| failure(format!("initramfs: {error}")))?;
    zstd::bulk::compress(&archive, LEVEL).map_err(|error| failure(format!("initramfs: {error}")))
}

/// By name, so that a folder comes before what lies in it.
fn tree(root: &Root<'_>) -> BTreeMap<String, Content> {
    let file = |bytes: &[u8], mode| Content::File {
        bytes: bytes.to_vec(),
        mode,
    };
    let mut tree: BTreeMap<String, Content> = BTreeMap::new();
    for folder in FOLDERS {
        tree.insert(folder.to_owned(), Content::Folder);
    }
    for (name, text) in FILES {
        tree.insert(name.to_owned(), file(text.as_bytes(), 0o644));
    }
    tree.insert("bin/pghoard".into(), file(root.program, 0o755));
    tree.insert("bin/e2fsck".into(), file(root.fsck, 0o755));
    tree.insert("init".into(), Content::Link("bin/pghoard"));
    tree.insert(
        "etc/os-release".into(),
        file(root.os_release.as_bytes(), 0o644),
    );
    if let Some(key) = root.update_key {
        tree.insert("etc/update.pub".into(), file(key, 0o644));
    }
    tree.insert("etc/resolv.conf".into(), Content::Link("/run/resolv.conf"));
    tree.insert("lib/data.ext4.zst".into(), file(root.blank, 0o644));
    let mut order = String::new();
    for module in root.modules {
        let name = format!("lib/modules/{}.ko", module.name);
        tree.insert(name, file(&module.bytes, 0o644));
        order.push_str(&module.name);
        order.push('\n');
    }
    tree.insert(ORDER.into(), file(order.as_bytes(), 0o644));
    tree
}

fn add(archive: &mut Vec<u8>, number: u32, name: &str, content: &Content) -> Outcome<()> {
    let (kind, mode, bytes): (_, _, &[u8]) = match content {
        Content::Folder => (ModeFileType::Directory, 0o755, &[]),
        Content::File { bytes, mode } => (ModeFileType::Regular, *mode, bytes),
        Content::Link(to) => (ModeFileType::Symlink, 0o777, to.as_bytes()),
    };
    let size = u32::try_from(bytes.len())
        .map_err(|_| failure(format!("initramfs: '{name}' is larger than 4 GiB")))?;
    let entry = Builder::new(name).ino(number).mode(mode);
    let mut writer = entry.set_mode_file_type(kind).write(archive, size);
    let written = writer.write_all(bytes).and_then(|()| writer.finish());
    written.map_err(|error| failure(format!("initramfs: '{name}': {error}")))?;
    Ok(())
}
