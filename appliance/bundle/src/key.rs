//! Keys that sign bundles: Ed25519. A public one is 32 bytes in base64, on one line; a secret one
//! is a key file as OpenSSL has them (PKCS #8 in PEM; `openssl genpkey -algorithm ed25519`).

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

use crate::{Outcome, SIGNATURE_BYTES, refused};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    pub fn parse(text: &str) -> Outcome<PublicKey> {
        let bytes = STANDARD.decode(text.trim()).ok();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(PublicKey).ok_or_else(|| {
            refused("update key: expected 32 bytes in base64, as 'firmware-image keygen' writes it")
        })
    }

    pub(crate) fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.0);
        key.verify(signed, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

pub struct SecretKey(Ed25519KeyPair);

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

impl SecretKey {
    /// A new one, and the text of its file.
    pub fn generate() -> Outcome<(SecretKey, String)> {
        let failed = |_| refused("no key could be made: the system gives no randomness");
        let pair = Ed25519KeyPair::generate().map_err(failed)?;
        let packed = pair.to_pkcs8v1().map_err(failed)?;
        let text = STANDARD.encode(packed.as_ref());
        // 48 bytes: one line.
        let text = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
        Ok((SecretKey(pair), text))
    }

    pub fn parse(text: &str) -> Outcome<SecretKey> {
        let wrong = || {
            refused(
                "secret key: expected an Ed25519 key (PKCS #8, PEM, no passphrase), as \
                 'firmware-image keygen' writes it",
            )
        };
        let packed = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| wrong())?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(packed.secret_pkcs8_der());
        pair.map(SecretKey).map_err(|_| wrong())
    }

    pub fn public(&self) -> Outcome<PublicKey> {
        let bytes = self.0.public_key().as_ref().try_into();
        bytes
            .map(PublicKey)
            .map_err(|_| refused("the key's public part is not 32 bytes"))
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> Outcome<[u8; SIGNATURE_BYTES]> {
        let signature = self
            .0
            .try_sign(bytes)
            .map_err(|_| refused("signing failed"))?;
        let signature = signature.as_ref().try_into();
        signature.map_err(|_| refused("the signature is not 64 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410, section 10.3: the key and what `openssl pkey -pubout` makes of it.
    const KNOWN: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    const KNOWN_PUBLIC: &str = "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";

    #[test]
    fn keys_come_back_from_their_text() {
        let (key, text) = SecretKey::generate().unwrap();
        let again = SecretKey::parse(&text).unwrap();
        let public = again.public().unwrap();
        assert_eq!(public, key.public().unwrap());
        assert_eq!(PublicKey::parse(&format!("{public}\n")).unwrap(), public);
        let signature = again.sign(b"words").unwrap();
        assert!(public.verifies(b"words", &signature));
        assert!(!public.verifies(b"word", &signature));
        assert!(!format!("{key:?}").contains(&text[30..40]));
        let known = SecretKey::parse(KNOWN).unwrap();
        assert_eq!(known.public().unwrap().to_string(), KNOWN_PUBLIC);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "abc", "AAAA", &KNOWN_PUBLIC[..40], KNOWN] {
            let told = PublicKey::parse(text).unwrap_err().to_string();
            assert!(told.contains("expected 32 bytes in base64"), "{told}");
        }
        for text in [
            "",
            KNOWN_PUBLIC,
            &KNOWN[..60],
            &KNOWN.replace("BCIE", "BCIF"),
        ] {
            let told = SecretKey::parse(text).unwrap_err().to_string();
            assert!(told.contains("expected an Ed25519 key"), "{told}");
        }
    }
}
