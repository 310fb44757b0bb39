//! Images and updates under test, made by the builder's own library.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use firmware_image::compose::{Built, Format, Order};
use firmware_image::program::Program;
use firmware_image::sign::{self, SecureBoot};

use crate::support::skip;

/// Of the image that machines begin with.
pub const VERSION: &str = "1.0.0";

/// Where images lie, and how this machine makes them.
pub struct Bench {
    pub folder: PathBuf,
    pub image: PathBuf,
    program: PathBuf,
}

/// `None` where this machine has no QEMU, which was said aloud.
pub fn bench() -> Option<&'static Bench> {
    static BENCH: OnceLock<Option<Bench>> = OnceLock::new();
    BENCH.get_or_init(make).as_ref()
}

/// The disk image of [`VERSION`].
pub fn image() -> Option<&'static Path> {
    Some(&bench()?.image)
}

fn make() -> Option<Bench> {
    let there = Command::new("qemu-system-x86_64").arg("--version").output();
    let there = there.is_ok_and(|answer| answer.status.success());
    if !there || !Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd").exists() {
        skip("appliance", "no QEMU with UEFI: run tests/support/install");
        return None;
    }
    let program = env::current_exe().unwrap();
    // target/debug/deps/appliance-...
    let folder = program.ancestors().nth(3).unwrap().join("appliance");
    fs::create_dir_all(&folder).unwrap();
    let key = folder.join("update.key");
    if !key.exists() {
        sign::make_key(&key).unwrap_or_else(|failure| panic!("{failure}"));
    }
    let program = Program::build().unwrap_or_else(|failure| panic!("{failure}"));
    let mut bench = Bench {
        image: folder.join("pghoard.raw"),
        folder,
        program,
    };
    let built = bench.built(VERSION, &bench.program, SecureBoot::default());
    built
        .disk(&bench.image, Format::Raw)
        .unwrap_or_else(|failure| panic!("{failure}"));
    bench.image = bench.folder.join("pghoard.raw");
    Some(bench)
}

impl Bench {
    fn built(&self, version: &str, program: &Path, secure_boot: SecureBoot) -> Built {
        let order = Order {
            inputs: None,
            program: Some(program.to_owned()),
            image_version: version.parse().unwrap(),
            update_key: Some(self.folder.join("update.key.pub")),
            secure_boot,
        };
        Built::of(&order).unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// A bundle of a version, signed by whom the image trusts; `change` makes its program another.
    pub fn bundle(&self, version: &str, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        self.bundle_by(&self.folder.join("update.key"), version, change)
    }

    pub fn bundle_by(
        &self,
        key: &Path,
        version: &str,
        change: impl FnOnce(&mut Vec<u8>),
    ) -> Vec<u8> {
        let scratch = tempfile::tempdir().unwrap();
        let mut bytes = fs::read(&self.program).unwrap();
        change(&mut bytes);
        let program = scratch.path().join("program");
        fs::write(&program, bytes).unwrap();
        let out = scratch.path().join("update.bundle");
        let built = self.built(version, &program, SecureBoot::default());
        let told = built.bundle(&out);
        told.and_then(|()| sign::bundle(&out, key))
            .unwrap_or_else(|failure| panic!("{failure}"));
        fs::read(&out).unwrap()
    }

    /// The same image, signed with the well-known key that comes with OVMF.
    pub fn signed(&self) -> PathBuf {
        let key = self.folder.join("snakeoil.key");
        let plain = Command::new("openssl")
            .args(["rsa", "-in", "/usr/share/ovmf/PkKek-1-snakeoil.key"])
            .args(["-passin", "pass:snakeoil", "-out"])
            .arg(&key)
            .output();
        assert!(plain.unwrap().status.success(), "openssl opens the key");
        let secure_boot = SecureBoot {
            secure_boot_key: Some(key),
            secure_boot_cert: Some("/usr/share/ovmf/PkKek-1-snakeoil.pem".into()),
        };
        let image = self.folder.join("signed.raw");
        let built = self.built(VERSION, &self.program, secure_boot);
        built
            .disk(&image, Format::Raw)
            .unwrap_or_else(|failure| panic!("{failure}"));
        image
    }

    /// A key that no image knows.
    pub fn strangers_key(&self) -> PathBuf {
        let key = self.folder.join("stranger.key");
        if !key.exists() {
            sign::make_key(&key).unwrap_or_else(|failure| panic!("{failure}"));
        }
        key
    }
}

/// Another text of the same length, wherever the program has it.
pub fn replace(program: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut found = 0;
    let mut at = 0;
    while at + from.len() <= program.len() {
        if program[at..].starts_with(from.as_bytes()) {
            program[at..at + to.len()].copy_from_slice(to.as_bytes());
            found += 1;
        }
        at += 1;
    }
    assert!(found > 0, "the program has no '{from}'");
}
