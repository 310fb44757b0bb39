//! Whose server it is: its host key against `known_hosts` files.
//!
//! PGHoard takes any key, so that whoever answers gets the password and the backups. Here a key
//! that nobody vouched for is refused, unless the configuration says otherwise.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use machine::Class;
use russh::client;
use russh::keys::known_hosts::known_host_keys_path;
use russh::keys::{Algorithm, HashAlg, PublicKey, PublicKeyOrCertificate};

use crate::config::Sftp;
use crate::failure::{Failure, Outcome};

/// What is known of a server before it answers.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// Any key will do.
    Unchecked,
    Keys(Vec<PublicKey>),
}

impl Known {
    pub fn read(config: &Sftp) -> Outcome<Known> {
        if !config.verify_host_key {
            return Ok(Known::Unchecked);
        }
        let mut keys = Vec::new();
        for path in files(config) {
            keys.extend(recorded(config, &path)?);
        }
        Ok(Known::Keys(keys))
    }

    /// The algorithms to ask the server for: those of the known keys come first, because a server
    /// shows one key alone.
    pub fn algorithms(&self, usual: &[Algorithm]) -> Cow<'static, [Algorithm]> {
        let mut usual = usual.to_vec();
        if let Known::Keys(keys) = self {
            let known = |algorithm: &Algorithm| keys.iter().any(|key| same_kind(key, algorithm));
            // Stable: the usual order within each half.
            usual.sort_by_key(|algorithm| !known(algorithm));
        }
        Cow::Owned(usual)
    }

    fn judge(&self, shown: &PublicKey, server: &str) -> Outcome<()> {
        let Known::Keys(keys) = self else {
            return Ok(());
        };
        if keys.contains(shown) {
            return Ok(());
        }
        let print = shown.fingerprint(HashAlg::Sha256);
        let changed = keys.iter().any(|key| key.algorithm() == shown.algorithm());
        let message = match changed {
            true => format!("the host key of {server} is another than the known one: {print}"),
            false => format!("the host key of {server} is not known: {print}"),
        };
        let hint = match changed {
            true => {
                "somebody may be in between; if the server has a new key, replace it in the \
                     known_hosts file"
            }
            false => {
                "compare it with the server's, then add it to the known_hosts file of the \
                      daemon's user, or name another file as known_hosts"
            }
        };
        Err(Failure::new(Class::Auth, message).hint(hint))
    }
}

/// RSA keys sign with several hashes; it is one kind of key.
fn same_kind(key: &PublicKey, algorithm: &Algorithm) -> bool {
    match algorithm {
        Algorithm::Rsa { .. } => matches!(key.algorithm(), Algorithm::Rsa { .. }),
        other => key.algorithm() == *other,
    }
}

/// The file that is configured, or the two that OpenSSH reads.
fn files(config: &Sftp) -> Vec<PathBuf> {
    if let Some(path) = &config.known_hosts {
        return vec![path.clone()];
    }
    let own = std::env::home_dir().map(|home| home.join(".ssh/known_hosts"));
    own.into_iter()
        .chain([PathBuf::from("/etc/ssh/ssh_known_hosts")])
        .filter(|path| path.exists())
        .collect()
}

fn recorded(config: &Sftp, path: &Path) -> Outcome<Vec<PublicKey>> {
    // The library takes a file that it cannot read for an empty one.
    let text = std::fs::read_to_string(path).map_err(|e| {
        let mut failure = Failure::io(&e, path.display()).about("known_hosts");
        failure.class = Class::Config;
        failure
    })?;
    let found = known_host_keys_path(&config.server, config.port, path).map_err(|e| {
        let message = format!("known_hosts '{}': {e}", path.display());
        Failure::new(Class::Config, message)
    })?;
    let revoked = |key: &PublicKey| {
        let base64 = key.to_openssh().unwrap_or_default();
        let base64 = base64.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut lines = text.lines();
        lines.any(|line| line.starts_with("@revoked") && line.contains(&base64))
    };
    Ok(found
        .into_iter()
        .map(|(_line, key)| key)
        .filter(|key| !revoked(key))
        .collect())
}

/// Answers the library's question, and keeps what was wrong, for which it has no words.
pub(super) struct Gate {
    pub known: Known,
    pub server: String,
    pub refusal: Refusal,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Refusal(Arc<Mutex<Option<Failure>>>);

impl Refusal {
    pub fn take(&self) -> Option<Failure> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.take()
    }
}

impl client::Handler for Gate {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else {
            // None was asked for.
            return Ok(false);
        };
        let judged = self.known.judge(key, &self.server);
        let allowed = judged.is_ok();
        let mut slot = self
            .refusal
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *slot = judged.err();
        Ok(allowed)
    }
}
