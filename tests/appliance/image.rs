//! The image under test: built once, by the builder itself.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::support::skip;

/// The top of the project.
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn target() -> PathBuf {
    let program = env::current_exe().unwrap();
    // target/debug/deps/appliance-...
    program.ancestors().nth(3).unwrap().to_owned()
}

/// The disk image, or `None` where this machine has no QEMU, which was said aloud.
pub fn image() -> Option<&'static Path> {
    static IMAGE: OnceLock<Option<PathBuf>> = OnceLock::new();
    IMAGE.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let there = |program: &str| {
        let found = Command::new(program).arg("--version").output();
        found.is_ok_and(|answer| answer.status.success())
    };
    let firmware = Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd").exists();
    if !there("qemu-system-x86_64") || !firmware {
        skip("appliance", "no QEMU with UEFI: run tests/support/install");
        return None;
    }
    let folder = target().join("appliance");
    std::fs::create_dir_all(&folder).unwrap();
    let out = folder.join("pghoard.raw");
    let done = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--locked", "--package", "firmware-image", "--", "compose"])
        .arg("--inputs")
        .arg(target().join("firmware-inputs"))
        .arg("--program")
        .arg(target().join("x86_64-unknown-linux-gnu/release/pghoard-appliance"))
        .arg("--out")
        .arg(&out)
        .current_dir(top())
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    Some(out)
}
