//! Whether the backup fits where it is to go, asked before anything is changed.
//!
//! Only a backup that cannot possibly fit is refused: more plain bytes than all file systems it
//! goes to have room for together. A file system that compresses is taken at its word.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use machine::Class;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, FsType, statfs};

use super::Existing;
use crate::durable;
use crate::failure::{Failure, Outcome};

/// `spaces`: directories of tablespaces.
pub fn check<'a>(
    needed_bytes: u64,
    target: &'a Path,
    already: Existing,
    spaces: impl Iterator<Item = &'a Path>,
) -> Outcome<()> {
    let mut free = BTreeMap::new();
    for path in spaces.chain([target]) {
        let path = existing(path);
        let told = |e: io::Error| Failure::io(&e, path.display());
        let device = fs::metadata(path).map_err(told)?.dev();
        if compresses(path) {
            return Ok(());
        }
        free.insert(device, durable::free_bytes(path)?);
    }
    let room = free
        .values()
        .fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
    if room >= needed_bytes {
        return Ok(());
    }
    let given_back = match already {
        Existing::Overwrite => held(target, 0),
        Existing::Refuse => 0,
    };
    if room.saturating_add(given_back) >= needed_bytes {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(Failure::new(
        Class::DiskFull,
        format!(
            "$PGDATA target directory '{}': the basebackup needs {} MiB, {} MiB are free",
            target.display(),
            mib(needed_bytes),
            room.saturating_add(given_back) >> 20
        ),
    )
    .hint("make room, or choose another --target-dir"))
}

/// The directory itself, or the one it will be made in.
fn existing(path: &Path) -> &Path {
    let there = path.ancestors().find(|path| path.exists());
    match there {
        Some(there) => there,
        None if path.is_relative() => Path::new("."),
        None => Path::new("/"),
    }
}

/// OpenZFS `module/os/linux/zfs/zfs_vfsops.c`.
const ZFS: FsType = FsType(0x2fc1_2fc1);

fn compresses(path: &Path) -> bool {
    let kind = statfs(path).map(|stat| stat.filesystem_type());
    kind.is_ok_and(|kind| kind == BTRFS_SUPER_MAGIC || kind == ZFS)
}

/// What emptying the directory gives back; what cannot be read gives nothing.
fn held(folder: &Path, depth: u32) -> u64 {
    let items = fs::read_dir(folder).into_iter().flatten().flatten();
    items.fold(0, |sum: u64, item| {
        let Ok(found) = item.metadata() else {
            return sum;
        };
        let below = match found.is_dir() && depth < DEPTH_MAX {
            true => held(&item.path(), depth + 1),
            false => 0,
        };
        let own = found.blocks().saturating_mul(512);
        sum.saturating_add(own).saturating_add(below)
    })
}

/// PGDATA has five levels.
const DEPTH_MAX: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_fit_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("not/there/yet");
        let check = |bytes| check(bytes, &target, Existing::Refuse, [root.path()].into_iter());
        check(1 << 20).unwrap();
        if compresses(root.path()) {
            return;
        }
        let failure = check(1 << 60).unwrap_err();
        assert_eq!(failure.class, Class::DiskFull);
        let expected = format!(
            "$PGDATA target directory '{}': the basebackup needs 1099511627776 MiB, ",
            target.display()
        );
        assert!(failure.message.starts_with(&expected), "{failure}");
    }

    #[test]
    fn what_overwriting_gives_back_counts() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/c"), vec![1; 100 << 10]).unwrap();
        assert!(held(root.path(), 0) >= 100 << 10);
        assert_eq!(held(&root.path().join("nowhere"), 0), 0);
    }
}
