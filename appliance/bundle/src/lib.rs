//! The update bundle of the appliance: one EFI program, what it is, and who says so.
//!
//! ```text
//! offset  bytes  what
//! 0       16     "pghoard update 1", in ASCII: what the file is, and the version of this form
//! 16      4      n, the length of the manifest; little-endian, at most 4096
//! 20      n      the manifest: JSON in UTF-8
//! 20+n    1      s, the number of signatures; at most 8
//! 21+n    64*s   signatures (Ed25519, RFC 8032), each over the bytes 0 to 20+n of the file
//! ...            the EFI program, one frame of zstd (RFC 8878), to the end of the file
//! ```
//!
//! The manifest has these keys, all required; a reader ignores others:
//!
//! ```text
//! compatible  "pghoard-appliance-x86_64": the kind of machine
//! version     "1.2.0": of the program; how versions are ordered: [`Version`]
//! log         49: the number of the log format that the program writes (`journal::upcast::LOG`)
//! size        of the EFI program unpacked, in bytes; at most 64 MiB
//! sha256      of the EFI program unpacked, 64 hexadecimal digits
//! ```
//!
//! There is no time in it: the same program gives the same bundle. Who reads one believes nothing
//! of the manifest before one of the signatures holds for one of the keys he trusts, and nothing
//! of the program before its size and digest were right. Several signatures let a key be replaced:
//! a bundle signed by both is taken by appliances that know either.
//!
//! A reader holds the manifest, a piece of [`PIECE`] bytes and zstd's window (at most 8 MiB).
//!
//! - [`key`]: keys and signatures. [`version`]: versions and their order. [`release`]: what an EFI
//!   program says about itself. [`reader`] and [`writer`]: the two ends.

use std::fmt;

use serde::{Deserialize, Serialize};

pub mod key;
pub mod reader;
pub mod release;
#[cfg(feature = "testing")]
pub mod testing;
pub mod version;
pub mod writer;

#[cfg(test)]
mod tests;

pub use version::Version;

pub const MAGIC: &[u8; 16] = b"pghoard update 1";
/// Today's takes 200.
pub const MANIFEST_MAX: usize = 4096;
/// Two keys while one is replaced, and a few people who have to agree.
pub const SIGNATURES_MAX: usize = 8;
pub const SIGNATURE_BYTES: usize = 64;
/// Three of them have to fit into the EFI system partition.
pub const PROGRAM_MAX: u64 = 64 << 20;
/// What is unpacked and written at a time.
pub const PIECE: usize = 256 << 10;
/// As a power of two; a frame that wants a larger window is refused.
pub(crate) const WINDOW_LOG: u32 = 23;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub compatible: String,
    pub version: Version,
    pub log: u32,
    pub size: u64,
    pub sha256: String,
}

/// The kind of machine: `arch` as Rust's `std::env::consts::ARCH` has it.
pub fn compatible(arch: &str) -> String {
    format!("pghoard-appliance-{arch}")
}

/// One sentence for the person who brought the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(String);

pub type Outcome<T> = Result<T, Refused>;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

pub fn refused(sentence: impl Into<String>) -> Refused {
    Refused(sentence.into())
}
