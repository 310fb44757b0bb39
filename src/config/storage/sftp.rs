//! `sftp`: files of an SSH server. Authority: rohmu `object_storage/config.py`, `sftp.py`.

use std::path::PathBuf;

use super::{Object, Secret, file, prefix, required, secret};
use crate::failure::Outcome;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sftp {
    pub server: String,
    pub port: u16,
    pub username: String,
    pub login: SftpLogin,
    /// Put before every key, without slashes at its ends.
    pub prefix: String,
    /// Keys of the servers we know; None is the user's own file.
    pub known_hosts: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SftpLogin {
    Password(Secret),
    /// A file of a private key, and what opens it.
    Key {
        path: PathBuf,
        passphrase: Option<Secret>,
    },
}

impl Sftp {
    pub(super) fn root(&self) -> String {
        format!("{}@{}:{}", self.username, self.server, self.port)
    }
}

pub(super) fn parse(object: &Object<'_>) -> Outcome<Sftp> {
    let passphrase = secret(object, "private_key_passphrase")?;
    // As rohmu has it, the password counts where there are both.
    let login = match (secret(object, "password")?, file(object, "private_key")?) {
        (Some(password), _) => SftpLogin::Password(password),
        (None, Some(path)) => SftpLogin::Key { path, passphrase },
        (None, None) => return Err(object.wrong("password", "a text, or a private_key")),
    };
    Ok(Sftp {
        server: required(object, "server")?,
        port: object.whole("port", "a port number")?.or(22),
        username: required(object, "username")?,
        login,
        prefix: prefix(object)?,
        known_hosts: file(object, "known_hosts")?,
    })
}
