//! Digests by the names PGHoard's `hash_algorithm` uses.
//!
//! The names are those of Python's hashlib, as found in `hash-algorithm` metadata. Absent: SHA-3
//! and the variable-length ones.

use std::fmt;
use std::str::FromStr;

use machine::Class;
use sha2::digest::DynDigest;

use crate::failure::Failure;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Md5,
    Blake2b,
    Blake2s,
}

/// A digest being computed.
pub struct Digest(Box<dyn DynDigest + Send>);

impl Digest {
    pub fn new(algorithm: Algorithm) -> Digest {
        Digest(match algorithm {
            Algorithm::Sha1 => Box::new(sha1::Sha1::default()),
            Algorithm::Sha224 => Box::new(sha2::Sha224::default()),
            Algorithm::Sha256 => Box::new(sha2::Sha256::default()),
            Algorithm::Sha384 => Box::new(sha2::Sha384::default()),
            Algorithm::Sha512 => Box::new(sha2::Sha512::default()),
            Algorithm::Md5 => Box::new(md5::Md5::default()),
            Algorithm::Blake2b => Box::new(blake2::Blake2b512::default()),
            Algorithm::Blake2s => Box::new(blake2::Blake2s256::default()),
        })
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Lower-case hexadecimal, as in metadata and delta object names.
    pub fn hex(self) -> String {
        hex::encode(self.0.finalize())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(..)")
    }
}

impl Algorithm {
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha1 => "sha1",
            Algorithm::Sha224 => "sha224",
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha384 => "sha384",
            Algorithm::Sha512 => "sha512",
            Algorithm::Md5 => "md5",
            Algorithm::Blake2b => "blake2b",
            Algorithm::Blake2s => "blake2s",
        }
    }

    /// The digest of bytes at hand, in hexadecimal.
    pub fn hex(self, bytes: &[u8]) -> String {
        let mut digest = Digest::new(self);
        digest.update(bytes);
        digest.hex()
    }
}

const ALL: [Algorithm; 8] = [
    Algorithm::Sha1,
    Algorithm::Sha224,
    Algorithm::Sha256,
    Algorithm::Sha384,
    Algorithm::Sha512,
    Algorithm::Md5,
    Algorithm::Blake2b,
    Algorithm::Blake2s,
];

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = Failure;

    fn from_str(name: &str) -> Result<Algorithm, Failure> {
        ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| {
            let known = ALL.map(Algorithm::name).join(", ");
            Failure::new(
                Class::Config,
                format!("hash algorithm '{name}' is not one of {known}"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The digests of "abc", from FIPS 180-2, RFC 1321 and RFC 7693.
    const ABC: [(&str, &str); 8] = [
        ("sha1", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        (
            "sha224",
            "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
        ),
        (
            "sha256",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ),
        (
            "sha384",
            "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baec\
             a134c825a7",
        ),
        (
            "sha512",
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c\
             23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
        ("md5", "900150983cd24fb0d6963f7d28e17f72"),
        (
            "blake2b",
            "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d17d87c5392aab792dc252d5\
             de4533cc9518d38aa8dbf1925ab92386edd4009923",
        ),
        (
            "blake2s",
            "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982",
        ),
    ];

    #[test]
    fn every_name_gives_its_published_digest() {
        for (name, expected) in ABC {
            let algorithm: Algorithm = name.parse().unwrap();
            assert_eq!(algorithm.name(), name);
            let mut digest = Digest::new(algorithm);
            digest.update(b"a");
            digest.update(b"bc");
            assert_eq!(digest.hex(), expected, "{name}");
        }
    }

    #[test]
    fn an_unknown_name_is_a_configuration_error_that_lists_the_known() {
        let error = "crc32".parse::<Algorithm>().unwrap_err();
        assert_eq!(error.class, Class::Config);
        assert!(error.message.contains("'crc32'"), "{error}");
        assert!(error.message.contains("blake2s"), "{error}");
    }
}
