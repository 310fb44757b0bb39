//! PostgreSQL's `backup_manifest`: what every file of a backup must be.
//!
//! Authority: PostgreSQL documentation, "Backup Manifest Format"; checksums are hex of the bytes
//! in memory, so CRC-32C is little-endian. Other algorithms than CRC-32C are rare and verified by
//! reading the files again.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::corrupt;
use super::fetch::unpack::{CONTROL, CONTROL_UNFINISHED, Sum};
use crate::codec::digest::{Algorithm, Digest};
use crate::failure::{Failure, Outcome};

#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "Files")]
    files: Vec<Listed>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "Path")]
    path: Option<String>,
    /// In hex, for a name that is not UTF-8.
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size_bytes: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

/// Holds what was written against the manifest in `pgdata`, if there is one.
pub fn verify(pgdata: &Path, sums: &HashMap<PathBuf, Sum>) -> Outcome<()> {
    let path = pgdata.join("backup_manifest");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Failure::io(&e, path.display())),
    };
    check(&bytes, sums, &mut |name, algorithm| {
        let name = match name == Path::new(CONTROL) {
            true => Path::new(CONTROL_UNFINISHED),
            false => name,
        };
        digest(&pgdata.join(name), algorithm)
    })
}

/// Holds what was written against a manifest; `digest` tells of a file what its sum does not.
pub fn check(
    manifest: &[u8],
    sums: &HashMap<PathBuf, Sum>,
    digest: &mut dyn FnMut(&Path, Algorithm) -> Outcome<String>,
) -> Outcome<()> {
    for listed in parse(manifest)?.files {
        let name = listed.name()?;
        // Its content is the place of the tablespaces, which a restore decides anew.
        if name == Path::new("tablespace_map") {
            continue;
        }
        let shown = name.display();
        let Some(sum) = sums.get(&name) else {
            return Err(corrupt(format!(
                "{shown} is missing, backup_manifest lists it"
            )));
        };
        if sum.size_bytes != listed.size_bytes {
            let (found, listed) = (sum.size_bytes, listed.size_bytes);
            return Err(corrupt(format!(
                "{shown} has {found} bytes, backup_manifest says {listed}"
            )));
        }
        if !listed.matches(&name, sum, digest)? {
            return Err(corrupt(format!(
                "{shown} has another checksum than in backup_manifest"
            )));
        }
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> Outcome<Manifest> {
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|e| corrupt(format!("backup_manifest: {e}")))?;
    let label = b"\"Manifest-Checksum\"";
    let start = bytes
        .windows(label.len())
        .rposition(|window| window == label);
    let covered = bytes.get(..start.unwrap_or(0)).unwrap_or(&[]);
    match Algorithm::Sha256.hex(covered) == manifest.checksum {
        true => Ok(manifest),
        false => Err(corrupt("backup_manifest does not have its own checksum")),
    }
}

impl Listed {
    fn name(&self) -> Outcome<PathBuf> {
        let encoded = self.encoded_path.as_ref().map(hex::decode);
        match (&self.path, encoded) {
            (Some(path), _) => Ok(PathBuf::from(path)),
            (None, Some(Ok(bytes))) => Ok(PathBuf::from(OsString::from_vec(bytes))),
            (None, _) => Err(corrupt("backup_manifest: a file has no name")),
        }
    }

    fn matches(
        &self,
        name: &Path,
        sum: &Sum,
        digest: &mut dyn FnMut(&Path, Algorithm) -> Outcome<String>,
    ) -> Outcome<bool> {
        let (Some(algorithm), Some(checksum)) = (&self.algorithm, &self.checksum) else {
            return Ok(true);
        };
        if algorithm == "CRC32C" {
            return Ok(hex::encode(sum.crc32c.to_le_bytes()) == *checksum);
        }
        let algorithm = match algorithm.as_str() {
            "SHA224" => Algorithm::Sha224,
            "SHA256" => Algorithm::Sha256,
            "SHA384" => Algorithm::Sha384,
            "SHA512" => Algorithm::Sha512,
            other => {
                return Err(corrupt(format!(
                    "backup_manifest: unknown checksum {other}"
                )));
            }
        };
        Ok(digest(name, algorithm)? == *checksum)
    }
}

fn digest(path: &Path, algorithm: Algorithm) -> Outcome<String> {
    let told = |e: io::Error| Failure::io(&e, path.display());
    let mut file = File::open(path).map_err(told)?;
    let mut digest = Digest::new(algorithm);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer).map_err(told)?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else {
            return Ok(digest.hex());
        };
        digest.update(piece);
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    /// A manifest as PostgreSQL writes it, of one file `a` with content `123456789`.
    fn manifest(algorithm: &str, checksum: &str, size: u64) -> String {
        let start = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{{ \"Path\": \"a\", \
             \"Size\": {size}, \"Last-Modified\": \"2026-11-22 09:00:00 GMT\", \
             \"Checksum-Algorithm\": \"{algorithm}\", \"Checksum\": \"{checksum}\" }}\n],\n\
             \"WAL-Ranges\": [\n],\n"
        );
        let own = hex::encode(Sha256::digest(&start));
        format!("{start}\"Manifest-Checksum\": \"{own}\"}}\n")
    }

    fn said(text: &str, with_file: bool) -> String {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("backup_manifest"), text).unwrap();
        fs::write(folder.path().join("a"), b"123456789").unwrap();
        let sum = Sum {
            size_bytes: 9,
            crc32c: 0xE306_9283,
        };
        let files = with_file.then(|| (PathBuf::from("a"), sum));
        match verify(folder.path(), &files.into_iter().collect()) {
            Ok(()) => "ok".to_owned(),
            Err(failure) => failure.message,
        }
    }

    #[test]
    fn every_file_is_held_against_the_manifest() {
        let sha = "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225";
        assert_eq!(said(&manifest("CRC32C", "839206e3", 9), true), "ok");
        assert_eq!(said(&manifest("SHA256", sha, 9), true), "ok");
        assert_eq!(
            said(&manifest("CRC32C", "839206e4", 9), true),
            "a has another checksum than in backup_manifest"
        );
        assert_eq!(
            said(&manifest("CRC32C", "839206e3", 10), true),
            "a has 9 bytes, backup_manifest says 10"
        );
        assert_eq!(
            said(&manifest("CRC32C", "839206e3", 9), false),
            "a is missing, backup_manifest lists it"
        );
        assert_eq!(
            said(
                &manifest("CRC32C", "839206e3", 9).replace("\"a\"", "\"b\""),
                true
            ),
            "backup_manifest does not have its own checksum"
        );
    }
}
