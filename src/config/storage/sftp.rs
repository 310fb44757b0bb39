//! `sftp`: files of an SSH server. Authority: rohmu `object_storage/config.py`, `sftp.py`.

use std::path::PathBuf;
use std::time::Duration;

use super::{Object, Secret, file, required, rooted, secret};
use crate::failure::Outcome;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sftp {
    pub server: String,
    pub port: u16,
    pub username: String,
    pub login: SftpLogin,
    /// Put before every key, without a slash at its end; one at its beginning is the server's root.
    pub prefix: String,
    /// Keys of the servers we know; None is the user's own file and the system's.
    pub known_hosts: Option<PathBuf>,
    /// Whether a server needs to be known.
    pub verify_host_key: bool,
    /// The longest silence of the server: for the answer to one request, the ones of others in
    /// front of it included. A connection has half of it.
    pub silence: Duration,
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
    // As rohmu has it, the key counts where there are both.
    let login = match (file(object, "private_key")?, secret(object, "password")?) {
        (Some(path), _) => SftpLogin::Key { path, passphrase },
        (None, Some(password)) => SftpLogin::Password(password),
        (None, None) => return Err(object.wrong("password", "a text, or a private_key")),
    };
    Ok(Sftp {
        server: required(object, "server")?,
        port: object.whole("port", "a port number")?.or(22),
        username: required(object, "username")?,
        login,
        // A path of the server, or one below the folder of the login.
        prefix: rooted(object)?,
        known_hosts: file(object, "known_hosts")?,
        verify_host_key: object.flag("is_verify_host_key")?.or(true),
        silence: SILENCE,
    })
}

const SILENCE: Duration = Duration::from_secs(60);
