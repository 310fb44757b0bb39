//! Small disks that a test may fill.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use super::skip;

/// A small disk of its own, gone with the test.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None` has been said aloud as a skip: only root may mount, and not everywhere.
    pub fn mount(test: &str, at: PathBuf, mib: u32) -> Option<Tmpfs> {
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={mib}m,mode=0777"));
        let mounted = mount.arg("pghoard-test").arg(&at).output().unwrap();
        if mounted.status.success() {
            return Some(Tmpfs(at));
        }
        skip(test, "cannot mount a small disk here");
        None
    }

    /// Not a byte is left.
    pub fn fill(&self) {
        let mut file = fs::File::options()
            .append(true)
            .create(true)
            .open(self.filler())
            .unwrap();
        let block = vec![1; 64 << 10];
        while file.write_all(&block).is_ok() {}
        while file.write_all(&[1]).is_ok() {}
    }

    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    pub fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the daemon may have files open on it.
        let _gone = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
