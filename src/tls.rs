//! TLS of whoever speaks it: certificates and keys from PEM files, and how a peer is verified.
//!
//! What libpq's modes ask for is in `pg::tls`. Our own HTTP clients always verify: against an
//! authority and by name, or as the very certificate of a configuration. TLS 1.2 and 1.3, one
//! provider.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use machine::Class;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::failure::{Failure, Outcome};

/// Whom to believe that signs certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    File(PathBuf),
    /// The bundle of the operating system.
    System,
}

/// Whom an HTTP client believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// What these signed for the name that is asked for.
    Roots(Roots),
    /// The first certificate of this file and no other, whatever its names.
    Own(PathBuf),
}

/// The bundles of the common distributions, first one found.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Settings of a client that verifies as it is told and shows no certificate of its own.
pub fn client(trust: &Trust) -> Outcome<ClientConfig> {
    let (anchors, name) = match trust {
        Trust::Roots(source) => (anchors(source, "certificate authority")?, Name::Counts),
        Trust::Own(path) => {
            let mut certificates = certificates(path)?;
            certificates.truncate(1);
            let store = RootCertStore::empty();
            let anchors = Anchors {
                store,
                certificates,
            };
            (anchors, Name::Ignored)
        }
    };
    let verifier = Verifier {
        anchors: Some(anchors),
        name,
        provider: provider(),
    };
    Ok(verifier.into_client()?.with_no_client_auth())
}

pub struct Anchors {
    store: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

/// `about` says in an error what the roots are for.
pub fn anchors(source: &Roots, about: &str) -> Outcome<Anchors> {
    let wrong = |what: String| Failure::new(Class::Config, what);
    let path = match source {
        Roots::File(path) => path.as_path(),
        Roots::System => SYSTEM_BUNDLES
            .map(Path::new)
            .into_iter()
            .find(|path| path.exists())
            .ok_or_else(|| wrong(format!("{about}: the system has no bundle of certificates")))?,
    };
    let certificates = certificates(path)?;
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(certificates.iter().cloned());
    if added == 0 {
        let path = path.display();
        return Err(wrong(format!(
            "{about} {path}: no usable certificate in it"
        )));
    }
    Ok(Anchors {
        store,
        certificates,
    })
}

pub fn certificates(path: &Path) -> Outcome<Vec<CertificateDer<'static>>> {
    let wrong = |why: &dyn fmt::Display| {
        Failure::new(
            Class::Config,
            format!("certificate {}: {why}", path.display()),
        )
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|e| wrong(&e))?
        .collect();
    let found = found.map_err(|e| wrong(&e))?;
    match found.is_empty() {
        true => Err(wrong(&"no certificate in PEM form")),
        false => Ok(found),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Counts,
    Ignored,
}

/// Verifies what it has anchors for. Without any the handshake's signature proves nothing about
/// who signed it, so it is not checked either: that lets certificates of X.509 version 1 pass,
/// which old recipes for a self-signed server certificate make.
#[derive(Debug)]
pub struct Verifier {
    pub anchors: Option<Anchors>,
    pub name: Name,
    pub provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Anchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} roots", self.certificates.len())
    }
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

impl Verifier {
    /// Settings of a client that lack only its own certificate.
    pub fn into_client(self) -> Outcome<Builder> {
        let provider = Arc::clone(&self.provider);
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(versions)?;
        let verifier = Arc::new(self);
        Ok(config
            .dangerous()
            .with_custom_certificate_verifier(verifier))
    }
}

fn versions(error: rustls::Error) -> Failure {
    Failure::new(Class::Internal, format!("TLS versions: {error}"))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(anchors) = &self.anchors {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            // A self-signed server certificate used as its own root, the first recipe of
            // PostgreSQL's manual, is trusted because it is that very file; webpki would call it
            // an authority misused as a server.
            if !anchors.certificates.contains(end_entity) {
                verify_server_cert_signed_by_trust_anchor(
                    &certificate,
                    &anchors.store,
                    intermediates,
                    now,
                    self.provider.signature_verification_algorithms.all,
                )?;
            }
            if self.name == Name::Counts {
                verify_server_name(&certificate, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        match self.anchors {
            Some(_) => verify_tls12_signature(message, certificate, signature, algorithms),
            None => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        match self.anchors {
            Some(_) => verify_tls13_signature(message, certificate, signature, algorithms),
            None => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Settings of a server whose certificate is read anew when its files change on disk. Files that
/// cannot be used are an error now; later they are a warning, and the old ones stay in use.
pub fn server(certificate: &Path, key: &Path) -> Outcome<ServerConfig> {
    let seen = stamps(certificate, key);
    let identity = identity(certificate, key)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(versions)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Shown {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            now: Mutex::new((seen, identity)),
        }));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificate that a server shows.
#[derive(Debug)]
struct Shown {
    certificate: PathBuf,
    key: PathBuf,
    now: Mutex<(Stamps, Arc<CertifiedKey>)>,
}

/// What a file that was replaced or rewritten differs in, for both files.
type Stamps = [Option<(u64, u64, i64, i64)>; 2];

fn stamps(certificate: &Path, key: &Path) -> Stamps {
    [certificate, key].map(|path| {
        let found = fs::metadata(path).ok()?;
        Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
    })
}

impl ResolvesServerCert for Shown {
    /// Two looks at the disk a handshake, which costs far more itself.
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let seen = stamps(&self.certificate, &self.key);
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.0 != seen {
            now.0 = seen;
            match identity(&self.certificate, &self.key) {
                Ok(identity) => {
                    now.1 = identity;
                    log::info!("{}: read anew", self.certificate.display());
                }
                // A certificate without its new key yet, most likely: the key's change is seen too.
                Err(failure) => log::warn!("{failure}; the certificate before stays in use"),
            }
        }
        Some(Arc::clone(&now.1))
    }
}

fn identity(certificate: &Path, key: &Path) -> Outcome<Arc<CertifiedKey>> {
    let chain = certificates(certificate)?;
    let wrong = |why: &dyn fmt::Display| {
        let (certificate, key) = (certificate.display(), key.display());
        let message = format!("certificate {certificate} with key {key}: {why}");
        Failure::new(Class::Config, message)
    };
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| {
        let message = format!("key {}: {e}", key.display());
        Failure::new(Class::Config, message)
    })?;
    let identity = CertifiedKey::from_der(chain, secret, &provider());
    identity.map(Arc::new).map_err(|e| wrong(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_identity_are_one_clear_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("empty"), "").unwrap();
        fs::write(path("junk"), "junk\n").unwrap();
        for (certificate, key, says) in [
            ("none", "none", "none: "),
            ("empty", "empty", "empty: no certificate in PEM form"),
            ("junk", "junk", "junk: no certificate in PEM form"),
        ] {
            let failure = server(&path(certificate), &path(key)).unwrap_err();
            assert_eq!(failure.class, Class::Config);
            assert!(failure.message.starts_with("certificate /"), "{failure}");
            assert!(failure.message.contains(says), "{failure}");
        }
    }
}
