//! Signatures, of two kinds that have nothing to do with each other: of update bundles, which the
//! appliance checks before it installs one, and of EFI programs, which the firmware checks before
//! it starts one (Secure Boot).

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bundle::key::{PublicKey, SecretKey};
use bundle::writer;

use crate::failure::{Failure, Outcome, failure, read, scratch, write};
use crate::run::beside;

/// A new key for bundles: the secret one in the file, the public one in `<file>.pub`, which
/// `compose --update-key` takes. Nothing that is there is replaced.
pub fn make_key(out: &Path) -> Outcome<PublicKey> {
    let about = |error| failure(format!("{}: {error}", out.display()));
    let (key, text) = SecretKey::generate().map_err(failure_of)?;
    let public = key.public().map_err(failure_of)?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)
        .map_err(about)?;
    file.write_all(text.as_bytes()).map_err(about)?;
    file.sync_all().map_err(about)?;
    write(&beside(out, ".pub"), format!("{public}\n").as_bytes())?;
    Ok(public)
}

/// Adds a signature to a bundle, in its place.
pub fn bundle(path: &Path, key: &Path) -> Outcome<()> {
    let about = |error| failure(format!("{}: {error}", key.display()));
    let text = fs::read_to_string(key).map_err(|error| about(error.to_string()))?;
    let key = SecretKey::parse(&text).map_err(|refused| about(refused.to_string()))?;
    let signed = writer::sign(&read(path)?, &key)
        .map_err(|refused| failure(format!("{}: {refused}", path.display())))?;
    let part = beside(path, ".part");
    write(&part, &signed)?;
    fs::rename(&part, path).map_err(|error| failure(format!("{}: {error}", path.display())))
}

/// The public key in a file, as the image carries it.
pub fn public(path: &Path) -> Outcome<PublicKey> {
    let text = read(path)?;
    PublicKey::parse(&String::from_utf8_lossy(&text))
        .map_err(|refused| failure(format!("{}: {refused}", path.display())))
}

pub fn failure_of(refused: bundle::Refused) -> Failure {
    failure(refused.to_string())
}

/// Who signs what the firmware starts.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SecureBoot {
    /// Sign the EFI programs for Secure Boot: the secret key (PEM)
    #[arg(long, value_name = "FILE", requires = "secure_boot_cert")]
    pub secure_boot_key: Option<PathBuf>,
    /// And its certificate (PEM), which the machine's firmware has to know
    #[arg(long, value_name = "FILE", requires = "secure_boot_key")]
    pub secure_boot_cert: Option<PathBuf>,
}

impl SecureBoot {
    /// The EFI program with a signature, or as it is where nobody signs.
    pub fn sign(&self, program: Vec<u8>) -> Outcome<Vec<u8>> {
        let (Some(key), Some(cert)) = (&self.secure_boot_key, &self.secure_boot_cert) else {
            return Ok(program);
        };
        let scratch = scratch()?;
        let (from, to) = (
            scratch.path().join("program"),
            scratch.path().join("signed"),
        );
        write(&from, &program)?;
        let told = Command::new("sbsign")
            .arg("--key")
            .arg(key)
            .arg("--cert")
            .arg(cert)
            .arg("--output")
            .args([&to, &from])
            .output()
            .map_err(|error| failure(format!("sbsign: {error}; it is Debian's sbsigntool")))?;
        // It ends well without having signed, too.
        if !told.status.success() || !to.exists() {
            let said = String::from_utf8_lossy(&told.stderr);
            return Err(failure(format!("sbsign: {}", said.trim())));
        }
        read(&to)
    }
}
