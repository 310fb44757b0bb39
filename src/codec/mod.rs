//! Compress and encrypt, both ways.
//!
//! A stored object is: plain bytes -> compression -> envelope (when a key is configured), and
//! nothing else. Which steps apply is known only from its metadata (`compression-algorithm`,
//! `encryption-key-id`); which envelope, from its first bytes. Writing goes through [`Encoder`],
//! reading through [`decoder`], both streaming: no object is ever held whole.
//!
//! What is written is what PGHoard's own readers can take: one zstd frame, one xz stream, one
//! snappy stream; envelopes are [`pghoa1`] (PGHoard's) and [`gcm`] (ours). The zstd frame carries
//! its content checksum, which PGHoard leaves out and its readers accept: it is the only end to
//! end check of an object that is neither encrypted nor hashed.
//!
//! Budget: an encoder at zstd level 3 holds 4 MB, with two workers 13 MB and 2 MB for each more;
//! snappy 1 MB; lzma what its preset asks for (6: 94 MB). A decoder holds 200 KiB and the window
//! that the writer chose (zstd 3: 2 MiB, 19: 8 MiB; lzma at most 128 MiB).

use std::fmt;
use std::io;
use std::str::FromStr;

use machine::Class;

use crate::failure::Failure;

mod decode;
pub mod digest;
pub mod encode;
pub mod gcm;
pub mod keys;
pub mod pghoa1;
pub mod slots;

pub use decode::decoder;
pub use encode::{Encoded, Encoder};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Snappy,
    Zstd,
    Lzma,
}

/// How to turn plain bytes into an object.
#[derive(Clone, Debug)]
pub struct Encoding {
    pub compression: Compression,
    /// Snappy has none; zstd knows 0 (its default) to 22 and negative ones, lzma 0 to 9.
    pub level: i32,
    /// Workers of one zstd frame; 0 and 1 compress on the caller's thread.
    pub threads: u32,
    pub encryption: Option<Encryption>,
}

#[derive(Clone, Debug)]
pub struct Encryption {
    /// What the object's `encryption-key-id` will say.
    pub key_id: String,
    pub key: keys::PublicKey,
    pub envelope: Envelope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Envelope {
    AesGcm,
    Pghoa1,
}

impl Compression {
    /// As in `compression-algorithm` and the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Snappy => "snappy",
            Compression::Zstd => "zstd",
            Compression::Lzma => "lzma",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compression {
    type Err = Failure;

    fn from_str(name: &str) -> Result<Compression, Failure> {
        match name {
            "snappy" => Ok(Compression::Snappy),
            "zstd" => Ok(Compression::Zstd),
            "lzma" => Ok(Compression::Lzma),
            _ => Err(Failure::new(
                Class::Config,
                format!("compression algorithm '{name}' is not snappy, zstd or lzma"),
            )),
        }
    }
}

impl Envelope {
    /// As in the configuration's `encryption_format`.
    pub fn name(self) -> &'static str {
        match self {
            Envelope::AesGcm => "aes-gcm",
            Envelope::Pghoa1 => "pghoa1",
        }
    }
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Envelope {
    type Err = Failure;

    fn from_str(name: &str) -> Result<Envelope, Failure> {
        match name {
            "aes-gcm" => Ok(Envelope::AesGcm),
            "pghoa1" => Ok(Envelope::Pghoa1),
            _ => Err(Failure::new(
                Class::Config,
                format!("encryption format '{name}' is not aes-gcm or pghoa1"),
            )),
        }
    }
}

/// Bytes are not what they claim to be, on the way up through `Read`.
fn damaged(why: impl Into<String>) -> io::Error {
    Failure::new(Class::Corrupt, why).into()
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("a length in memory fits 64 bits")
}
