//! RSA keys: PEM in, PEM out, wrapping and unwrapping of file keys.
//!
//! Private operations are blinded: the `rsa` crate's arithmetic is not constant in time
//! (RUSTSEC-2023-0071). We only unwrap file keys of objects we fetched ourselves, so nobody on a
//! network can time us; blinding covers the rest. The old generation of digests lives here alone.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use machine::Class;
use rsa::pkcs1::{DecodeRsaPrivateKey, DecodeRsaPublicKey};
use rsa::pkcs8::{
    DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, LineEnding,
};
use rsa::rand_core::OsRng;
use rsa::traits::PublicKeyParts;
use rsa::{Oaep, RsaPrivateKey, RsaPublicKey};
use zeroize::Zeroizing;

use crate::failure::{Failure, Outcome};

/// Reading takes what PGHoard could have made; below this OAEP has no room for pghoa1's 64 bytes.
const READ_BITS_MIN: usize = 1024;
/// The `rsa` crate takes no larger public key.
const BITS_MAX: usize = 4096;
/// New keys keep data for years: NIST SP 800-57 allows no less.
const MAKE_BITS_MIN: usize = 2048;

/// Writes objects: wraps their file keys.
#[derive(Clone)]
pub struct PublicKey(Arc<RsaPublicKey>);

/// Reads objects: unwraps their file keys. The key's memory is wiped with its last owner.
#[derive(Clone)]
pub struct PrivateKey(Arc<RsaPrivateKey>);

/// What [`PrivateKey`] says of an object whose header it does not open. Nobody can tell by it
/// whether the object is damaged.
pub const UNOPENED: &str = "the file key cannot be unwrapped: wrong private key or damaged header";

/// The hash of OAEP and of its mask: PGHoard's envelope uses SHA-1, ours SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    OaepSha1,
    OaepSha256,
}

/// What `encryption_keys` of a site holds: an id, and either half or both.
#[derive(Clone, Debug, Default)]
pub struct Keyring(BTreeMap<String, Pair>);

#[derive(Clone, Debug, Default)]
struct Pair {
    public: Option<PublicKey>,
    private: Option<PrivateKey>,
}

/// A new pair as PEM: the private part in PKCS#8, the public one in SubjectPublicKeyInfo.
pub fn generate(bits: usize) -> Outcome<(Zeroizing<String>, String)> {
    if !(MAKE_BITS_MIN..=BITS_MAX).contains(&bits) {
        return Err(Failure::new(
            Class::Config,
            format!("a key of {bits} bits: expected {MAKE_BITS_MIN} to {BITS_MAX}"),
        ));
    }
    let failed = |error: &dyn fmt::Display| {
        Failure::new(
            Class::Internal,
            format!("making an RSA key of {bits} bits: {error}"),
        )
    };
    let private = RsaPrivateKey::new(&mut OsRng, bits).map_err(|error| failed(&error))?;
    let public = private.to_public_key();
    Ok((
        private
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| failed(&error))?,
        public
            .to_public_key_pem(LineEnding::LF)
            .map_err(|error| failed(&error))?,
    ))
}

/// The public part of a private one, both as PEM.
pub fn public_of(private_pem: &str) -> Outcome<String> {
    let public = PrivateKey::from_pem(private_pem)?.0.to_public_key();
    public.to_public_key_pem(LineEnding::LF).map_err(|error| {
        let message = format!("writing a public key: {error}");
        Failure::new(Class::Internal, message)
    })
}

impl PublicKey {
    /// From SubjectPublicKeyInfo (`BEGIN PUBLIC KEY`) or PKCS#1 (`BEGIN RSA PUBLIC KEY`).
    pub fn from_pem(pem: &str) -> Outcome<PublicKey> {
        let key = match label(pem) {
            "RSA PUBLIC KEY" => RsaPublicKey::from_pkcs1_pem(pem).map_err(|e| e.to_string()),
            "PUBLIC KEY" => RsaPublicKey::from_public_key_pem(pem).map_err(|e| e.to_string()),
            found => Err(mislabelled(found, "PUBLIC KEY")),
        };
        let key = key.map_err(|why| unreadable("public", &why))?;
        check_bits("public", key.n().bits())?;
        Ok(PublicKey(Arc::new(key)))
    }

    /// The wrapped key is as long as the modulus.
    pub(super) fn wrap(&self, padding: Padding, secret: &[u8]) -> Outcome<Vec<u8>> {
        self.0
            .encrypt(&mut OsRng, padding.oaep(), secret)
            .map_err(|error| Failure::new(Class::Internal, format!("wrapping a file key: {error}")))
    }
}

impl PrivateKey {
    /// From PKCS#8 (`BEGIN PRIVATE KEY`) or PKCS#1 (`BEGIN RSA PRIVATE KEY`), not encrypted.
    pub fn from_pem(pem: &str) -> Outcome<PrivateKey> {
        let key = match label(pem) {
            "RSA PRIVATE KEY" => RsaPrivateKey::from_pkcs1_pem(pem).map_err(|e| e.to_string()),
            "PRIVATE KEY" => RsaPrivateKey::from_pkcs8_pem(pem).map_err(|e| e.to_string()),
            found => Err(mislabelled(found, "PRIVATE KEY")),
        };
        let key = key.map_err(|why| unreadable("private", &why))?;
        check_bits("private", key.n().bits())?;
        Ok(PrivateKey(Arc::new(key)))
    }

    /// A wrong key and a damaged one look the same, so the failure names both.
    pub(super) fn unwrap(&self, padding: Padding, wrapped: &[u8]) -> Outcome<Zeroizing<Vec<u8>>> {
        let secret = match wrapped.len() == self.0.size() {
            true => self
                .0
                .decrypt_blinded(&mut OsRng, padding.oaep(), wrapped)
                .ok(),
            false => None,
        };
        secret.map(Zeroizing::new).ok_or_else(|| {
            Failure::new(Class::Corrupt, UNOPENED).hint(
                "compare the configured private key with the one the object was encrypted for",
            )
        })
    }
}

impl Padding {
    fn oaep(self) -> Oaep {
        match self {
            Padding::OaepSha1 => Oaep::new::<sha1_10::Sha1>(),
            Padding::OaepSha256 => Oaep::new::<sha2_10::Sha256>(),
        }
    }
}

impl Keyring {
    /// Parses and keeps both halves; a key that cannot be read is refused by its id.
    pub fn insert(
        &mut self,
        id: &str,
        public_pem: Option<&str>,
        private_pem: Option<&str>,
    ) -> Outcome<()> {
        let named = |failure: Failure| failure.about(format!("encryption key '{id}'"));
        let pair = Pair {
            public: public_pem
                .map(PublicKey::from_pem)
                .transpose()
                .map_err(named)?,
            private: private_pem
                .map(PrivateKey::from_pem)
                .transpose()
                .map_err(named)?,
        };
        if let (Some(public), Some(private)) = (&pair.public, &pair.private)
            && private.0.to_public_key() != *public.0
        {
            return Err(Failure::new(
                Class::Config,
                format!(
                    "encryption key '{id}': the public and private parts do not belong together"
                ),
            )
            .hint(
                "what is written with this public key could never be read with this private key",
            ));
        }
        self.0.insert(id.to_owned(), pair);
        Ok(())
    }

    /// What writing needs.
    pub fn public(&self, id: &str) -> Outcome<&PublicKey> {
        self.0
            .get(id)
            .and_then(|pair| pair.public.as_ref())
            .ok_or_else(|| {
                Failure::new(
                    Class::Config,
                    format!(
                        "encryption_key_id is '{id}' but that key's public part is not configured"
                    ),
                )
                .hint(format!(
                    "add \"encryption_keys\": {{\"{id}\": {{\"public\": ...}}}} to the site"
                ))
            })
    }

    /// What reading needs.
    pub fn private(&self, id: &str) -> Outcome<&PrivateKey> {
        self.0
            .get(id)
            .and_then(|pair| pair.private.as_ref())
            .ok_or_else(|| {
                Failure::new(
                    Class::Config,
                    format!(
                        "file is encrypted with key '{id}' but that key's private part is not \
                     configured"
                    ),
                )
                .hint(format!(
                    "add \"encryption_keys\": {{\"{id}\": {{\"private\": ...}}}} to the site"
                ))
            })
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} bits)", self.0.n().bits())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// The label of the first PEM block, empty when there is none.
fn label(pem: &str) -> &str {
    pem.split_once("-----BEGIN ")
        .and_then(|(_, rest)| rest.split_once("-----"))
        .map_or("", |(label, _)| label)
}

fn mislabelled(found: &str, expected: &str) -> String {
    match found {
        "" => format!("no PEM block found, expected '-----BEGIN {expected}-----'"),
        found => format!("found a PEM block '{found}', expected '{expected}'"),
    }
}

fn unreadable(part: &str, why: &str) -> Failure {
    Failure::new(
        Class::Config,
        format!("the {part} part is not a usable RSA key: {why}"),
    )
}

fn check_bits(part: &str, bits: usize) -> Outcome<()> {
    match (READ_BITS_MIN..=BITS_MAX).contains(&bits) {
        true => Ok(()),
        false => Err(unreadable(
            part,
            &format!("it has {bits} bits, expected {READ_BITS_MIN} to {BITS_MAX}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: &str = include_str!("../../tests/golden/worked-example-1024/private.pem");
    const PUBLIC: &str = include_str!("../../tests/golden/worked-example-1024/public.pem");

    #[test]
    fn a_wrapped_secret_comes_back_under_either_padding() {
        let public = PublicKey::from_pem(PUBLIC).unwrap();
        let private = PrivateKey::from_pem(PRIVATE).unwrap();
        for (padding, other) in [
            (Padding::OaepSha1, Padding::OaepSha256),
            (Padding::OaepSha256, Padding::OaepSha1),
        ] {
            let wrapped = public.wrap(padding, b"secret").unwrap();
            assert_eq!(wrapped.len(), 128);
            assert_eq!(
                private.unwrap(padding, &wrapped).unwrap().as_slice(),
                b"secret"
            );
            assert_eq!(
                private.unwrap(other, &wrapped).unwrap_err().class,
                Class::Corrupt
            );
            let shorter = &wrapped[1..];
            assert_eq!(
                private.unwrap(padding, shorter).unwrap_err().class,
                Class::Corrupt
            );
        }
    }

    #[test]
    fn generated_keys_have_pghoards_form_and_belong_together() {
        let (private, public) = generate(2048).unwrap();
        assert!(private.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert!(private.ends_with("-----END PRIVATE KEY-----\n"));
        assert!(public.starts_with("-----BEGIN PUBLIC KEY-----\n"));
        assert!(public.ends_with("-----END PUBLIC KEY-----\n"));
        assert_eq!(public_of(&private).unwrap(), public);
        Keyring::default()
            .insert("new", Some(&public), Some(&private))
            .unwrap();

        let mut ring = Keyring::default();
        let error = ring
            .insert("mixed", Some(PUBLIC), Some(&private))
            .unwrap_err();
        assert!(error.message.contains("do not belong together"), "{error}");
    }

    #[test]
    fn sizes_outside_the_sane_range_are_refused() {
        for bits in [0, 512, 1024, 2047, 4097, usize::MAX] {
            assert_eq!(generate(bits).unwrap_err().class, Class::Config, "{bits}");
        }
    }

    #[test]
    fn an_unreadable_key_says_what_was_found() {
        let cases = [
            ("", "no PEM block found"),
            (
                PUBLIC,
                "found a PEM block 'PUBLIC KEY', expected 'PRIVATE KEY'",
            ),
            (
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\n",
                "'ENCRYPTED PRIVATE KEY'",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "not a usable",
            ),
        ];
        for (pem, expected) in cases {
            let error = Keyring::default()
                .insert("k1", None, Some(pem))
                .unwrap_err();
            assert_eq!(error.class, Class::Config);
            assert!(
                error.message.starts_with("encryption key 'k1': "),
                "{error}"
            );
            assert!(error.message.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_missing_half_is_named_with_its_cure() {
        let mut ring = Keyring::default();
        ring.insert("k1", Some(PUBLIC), None).unwrap();
        assert!(ring.public("k1").is_ok());
        let expected =
            "file is encrypted with key 'k1' but that key's private part is not configured";
        assert_eq!(ring.private("k1").unwrap_err().message, expected);
        assert!(ring.private("k2").unwrap_err().hint.unwrap().contains("k2"));
        assert!(ring.public("k2").unwrap_err().message.contains("'k2'"));
    }

    #[test]
    fn debug_shows_no_key_material() {
        let mut ring = Keyring::default();
        ring.insert("k1", Some(PUBLIC), Some(PRIVATE)).unwrap();
        let text = format!("{ring:?}");
        assert!(text.contains("PrivateKey(..)"), "{text}");
        assert!(text.len() < 200, "{text}");
    }
}
