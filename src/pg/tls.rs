//! TLS in front of a connection, with the meanings libpq gives to sslmode.
//!
//! A certificate is verified whenever there are roots to verify it against (so `require` with a
//! root file behaves like `verify-ca`); the name counts only with `verify-full`. Without roots
//! nothing is verified, as in libpq: that keeps listeners out and nobody else.
//! Unlike libpq the name must be in the certificate's subject alternative names: the common name
//! is not looked at (RFC 9525).

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use futures_rustls::TlsConnector;
use machine::Class;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use sha2::{Digest, Sha256, Sha384, Sha512};
use smol::net::TcpStream;

use super::connection::Socket;
use super::conninfo::{Conninfo, Host, SslMode};
use super::fault::{Answer, Fault};
use crate::failure::{Failure, Outcome};
use crate::tls::{self, Name, Verifier};

/// A socket behind TLS, and the hash SCRAM's channel binding ties the login to.
pub(super) struct Wrapped {
    pub socket: Box<dyn Socket>,
    pub end_point: Option<Vec<u8>>,
}

pub(super) async fn wrap(plain: TcpStream, info: &Conninfo, host: &Host) -> Answer<Wrapped> {
    let server = host.to_string();
    let peer = plain.peer_addr().map_err(|e| Fault::io(&e, &server))?.ip();
    let name = server_name(host, peer, info.sslmode)?;
    let config = client_config(info)?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, plain)
        .await
        .map_err(|e| Fault::io(&e, &server))?;
    let end_point = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|certificate| end_point(certificate));
    Ok(Wrapped {
        socket: Box::new(stream),
        end_point,
    })
}

/// The name to look for; where it does not count, a host name TLS cannot spell is no obstacle.
fn server_name(host: &Host, peer: IpAddr, mode: SslMode) -> Outcome<ServerName<'static>> {
    match ServerName::try_from(host.name.clone()) {
        Ok(name) => Ok(name),
        Err(_) if mode != SslMode::VerifyFull => Ok(ServerName::from(peer)),
        Err(_) => Err(Failure::new(
            Class::Config,
            format!("'{}' is not a name a certificate can carry", host.name),
        )
        .hint("use a DNS name or an address, or sslmode=verify-ca")),
    }
}

fn client_config(info: &Conninfo) -> Outcome<ClientConfig> {
    let roots = info.sslrootcert.as_ref();
    let verifier = Verifier {
        anchors: roots.map(|r| tls::anchors(r, "sslrootcert")).transpose()?,
        name: match info.sslmode {
            SslMode::VerifyFull => Name::Counts,
            _ => Name::Ignored,
        },
        provider: tls::provider(),
    };
    let config = verifier.into_client()?;
    let Some((certificate, key)) = &info.identity else {
        return Ok(config.with_no_client_auth());
    };
    let chain = tls::certificates(certificate)?;
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|e| Failure::new(Class::Config, format!("sslkey {}: {e}", key.display())))?;
    config.with_client_auth_cert(chain, secret).map_err(|e| {
        let path = certificate.display();
        Failure::new(Class::Config, format!("sslcert {path}: {e}"))
    })
}

/// `tls-server-end-point` (RFC 5929, section 4.1): the certificate hashed with the hash of its own
/// signature algorithm, SHA-256 in place of MD5 and SHA-1; nothing where that is not defined.
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, whole, _) = der(certificate)?;
    let (_, _, after_body) = der(whole)?;
    let (_, algorithm, _) = der(after_body)?;
    let (_, oid, _) = der(algorithm)?;
    let hash = match oid {
        // PKCS #1: MD5, SHA-1 and SHA-256, SHA-384, SHA-512 with RSA.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last] => *last,
        // ECDSA with SHA-1, SHA-256, SHA-384, SHA-512, as the numbers above.
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1] => 5,
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, last] => last.saturating_add(9),
        _ => return None,
    };
    match hash {
        4 | 5 | 11 => Some(Sha256::digest(certificate).to_vec()),
        12 => Some(Sha384::digest(certificate).to_vec()),
        13 => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// The first DER element: its tag, its content, what follows it.
fn der(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, short], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match short {
        0..=0x7f => (usize::from(short), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
            let length = digits.iter().fold(0, |n, d| n << 8 | usize::from(*d));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// What the server says to an SSLRequest.
pub(super) fn accepted(reply: u8, server: &str) -> Answer<bool> {
    match reply {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(Fault::io(
            &io::Error::new(
                io::ErrorKind::InvalidData,
                "neither S nor N to an SSLRequest",
            ),
            server,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate that is nothing but its signature algorithm.
    fn certificate(oid: &[u8]) -> Vec<u8> {
        let element = |tag: u8, content: &[u8]| {
            let length = u8::try_from(content.len()).unwrap();
            [&[tag, 0x81, length], content].concat()
        };
        let algorithm = element(0x30, &element(0x06, oid));
        element(0x30, &[element(0x30, &[0; 130]), algorithm].concat())
    }

    #[test]
    fn the_end_point_is_hashed_as_the_certificate_is_signed() {
        const RSA: [u8; 8] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1];
        const ECDSA: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3];
        for (oid, bytes) in [
            ([&RSA[..], &[5]].concat(), Some(32)),
            ([&RSA[..], &[11]].concat(), Some(32)),
            ([&RSA[..], &[12]].concat(), Some(48)),
            ([&RSA[..], &[13]].concat(), Some(64)),
            ([&RSA[..], &[10]].concat(), None),
            ([&ECDSA[..], &[2]].concat(), Some(32)),
            ([&ECDSA[..], &[3]].concat(), Some(48)),
            ([&ECDSA[..], &[4]].concat(), Some(64)),
            (vec![0x2b, 0x65, 0x70], None),
        ] {
            let found = end_point(&certificate(&oid)).map(|hash| hash.len());
            assert_eq!(found, bytes, "{oid:x?}");
        }
        let whole = certificate(&[1]);
        for cut in 0..whole.len() {
            assert_eq!(end_point(&whole[..cut]), None);
        }
    }
}
