//! One SSH connection with an SFTP session on it, shared by all threads of a store.
//!
//! Whatever is no answer of the server's ends the session for everybody: the next call makes a new
//! one. A server that falls silent is noticed by keepalives, one that hangs by the deadline of
//! each request.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use machine::Class;
use russh::client::{self, AuthResult, Handle, KeyboardInteractiveAuthResponse};
use russh::keys::{PrivateKeyWithHashAlg, load_secret_key};
use russh_sftp::client::RawSftpSession;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::client::rawsession::Limits;
use russh_sftp::protocol::{FileAttributes, OpenFlags, StatusCode};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::hosts::{Gate, Known, Refusal};
use crate::config::{Sftp, SftpLogin};
use crate::failure::{Failure, Outcome};

pub(super) struct Session {
    ssh: Handle<Gate>,
    pub sftp: RawSftpSession,
    extensions: HashMap<String, String>,
    /// Bytes of one read or write.
    pub block_bytes: usize,
    broken: AtomicBool,
    silence: Duration,
}

/// Extensions of OpenSSH that other servers have as well.
pub(super) const FSYNC: &str = "fsync@openssh.com";
pub(super) const POSIX_RENAME: &str = "posix-rename@openssh.com";
pub(super) const STATVFS: &str = "statvfs@openssh.com";
const LIMITS: &str = "limits@openssh.com";

impl Session {
    pub async fn open(config: &Sftp) -> Outcome<Session> {
        // For TCP, keys and login together.
        let most = config.silence / 2;
        let opened = timeout(most, Session::connect(config)).await;
        opened.unwrap_or_else(|_| {
            let seconds = most.as_secs();
            let message = format!("{}: no connection within {seconds} s", server(config));
            Err(Failure::new(Class::Timeout, message))
        })
    }

    async fn connect(config: &Sftp) -> Outcome<Session> {
        let told = |e: russh::Error| ssh_failure(&e, config);
        let known = Known::read(config)?;
        let refusal = Refusal::default();
        let gate = Gate {
            known: known.clone(),
            server: server(config),
            refusal: refusal.clone(),
        };
        let socket = TcpStream::connect((config.server.as_str(), config.port))
            .await
            .map_err(|e| unreachable(&e, config))?;
        // A request must not wait for the answer to the one before.
        let _slower_at_worst = socket.set_nodelay(true);
        let connected =
            client::connect_stream(Arc::new(settings(&known, config)), socket, gate).await;
        let mut ssh = connected.map_err(|e| refusal.take().unwrap_or_else(|| told(e)))?;
        log_in(&mut ssh, config).await?;
        let channel = ssh.channel_open_session().await.map_err(told)?;
        channel
            .request_subsystem(true, "sftp")
            .await
            .map_err(told)?;
        let settings = russh_sftp::client::Config {
            request_timeout_secs: config.silence.as_secs(),
            ..Default::default()
        };
        let mut sftp = RawSftpSession::new_with_config(channel.into_stream(), settings);
        let no_sftp = |e: SftpError| {
            let server = server(config);
            let (class, what) = match e {
                SftpError::Timeout => (Class::Timeout, "has no answer"),
                // As it is where the server ends the channel, which it does without an SFTP, too.
                SftpError::IO(_) | SftpError::UnexpectedBehavior(_) => {
                    (Class::Network, "ends the connection before it speaks SFTP")
                }
                _ => (Class::Unsupported, "does not speak SFTP"),
            };
            Failure::new(class, format!("{server} {what}: {e}"))
        };
        let extensions = sftp.init().await.map_err(no_sftp)?.extensions;
        let limits = match extensions.contains_key(LIMITS) {
            true => Limits::from(sftp.limits().await.map_err(no_sftp)?),
            false => Limits::default(),
        };
        sftp.set_limits(limits);
        Ok(Session {
            ssh,
            sftp,
            extensions,
            block_bytes: block_bytes(limits),
            broken: AtomicBool::new(false),
            silence: config.silence,
        })
    }

    pub fn has(&self, extension: &str) -> bool {
        self.extensions.contains_key(extension)
    }

    pub fn alive(&self) -> bool {
        !self.broken.load(Ordering::Relaxed) && !self.ssh.is_closed()
    }

    /// The answer to a request about `path`.
    pub async fn ask<T>(
        &self,
        path: &str,
        answer: impl Future<Output = Result<T, SftpError>>,
    ) -> Outcome<T> {
        answer.await.map_err(|e| self.failure(&e, path))
    }

    /// None where the server says that there is no such file.
    pub async fn seek<T>(
        &self,
        path: &str,
        answer: impl Future<Output = Result<T, SftpError>>,
    ) -> Outcome<Option<T>> {
        match answer.await {
            Ok(found) => Ok(Some(found)),
            Err(SftpError::Status(s)) if s.status_code == StatusCode::NoSuchFile => Ok(None),
            Err(e) => Err(self.failure(&e, path)),
        }
    }

    pub async fn stat(&self, path: &str) -> Outcome<Option<FileAttributes>> {
        let found = self.seek(path, self.sftp.stat(path)).await?;
        Ok(found.map(|found| found.attrs))
    }

    pub async fn open_file(&self, path: &str, flags: OpenFlags) -> Outcome<Option<String>> {
        let opened = self.sftp.open(path, flags, FileAttributes::empty());
        Ok(self.seek(path, opened).await?.map(|opened| opened.handle))
    }

    /// A handle that is read no more: whatever becomes of it changes nothing.
    pub async fn close(&self, handle: String) {
        let _lost_with_the_session = self.sftp.close(handle).await;
    }

    /// What the server was asked for and has no answer to.
    pub fn failure(&self, error: &SftpError, path: &str) -> Failure {
        if !matches!(error, SftpError::Status(_) | SftpError::Limited(_)) {
            self.broken.store(true, Ordering::Relaxed);
        }
        let class = match error {
            SftpError::Status(status) => match status.status_code {
                StatusCode::NoSuchFile => Class::NotFound,
                StatusCode::PermissionDenied => Class::Denied,
                StatusCode::NoConnection | StatusCode::ConnectionLost => Class::Network,
                StatusCode::OpUnsupported => Class::Unsupported,
                StatusCode::Eof => Class::Corrupt,
                StatusCode::Ok | StatusCode::Failure | StatusCode::BadMessage => Class::Internal,
            },
            SftpError::Timeout => Class::Timeout,
            SftpError::IO(_) | SftpError::UnexpectedBehavior(_) => Class::Network,
            SftpError::UnexpectedPacket => Class::Corrupt,
            SftpError::Limited(_) => Class::Quota,
        };
        let text = match error {
            SftpError::Status(status) => status.error_message.clone(),
            SftpError::Timeout => format!("no answer within {} s", self.silence.as_secs()),
            SftpError::UnexpectedBehavior(_) => "the connection was lost".into(),
            other => other.to_string(),
        };
        Failure::new(class, format!("{path}: {text}"))
    }
}

fn settings(known: &Known, config: &Sftp) -> client::Config {
    let mut settings = client::Config {
        keepalive_interval: Some(config.silence / 4),
        keepalive_max: KEEPALIVES_MAX,
        window_size: WINDOW_BYTES,
        ..Default::default()
    };
    settings.preferred.key = known.algorithms(&settings.preferred.key);
    settings
}

/// As large as the server allows, and as fits into a packet of the library's.
fn block_bytes(limits: Limits) -> usize {
    let least = u64::try_from(BLOCK_BYTES).unwrap_or(u64::MAX);
    let allowed = match (limits.read_len, limits.write_len) {
        (Some(read), Some(write)) => read.min(write),
        (None, _) | (_, None) => least,
    };
    usize::try_from(allowed).map_or(BLOCK_BYTES, |allowed| allowed.clamp(1024, BLOCK_BYTES_MAX))
}

async fn log_in(ssh: &mut Handle<Gate>, config: &Sftp) -> Outcome<()> {
    let told = |e: russh::Error| ssh_failure(&e, config);
    let user = config.username.as_str();
    let answer = match &config.login {
        SftpLogin::Key { path, passphrase } => {
            let passphrase = passphrase.as_ref().map(|secret| secret.reveal());
            let key = load_secret_key(path, passphrase).map_err(|e| {
                let message = format!("private_key '{}': {e}", path.display());
                Failure::new(Class::Config, message).hint("it must be a private key file of SSH")
            })?;
            // SHA-1 signatures are refused by every server of today.
            let hash = match key.algorithm().is_rsa() {
                true => ssh.best_supported_rsa_hash().await.map_err(told)?,
                false => None,
            };
            let hash = hash.unwrap_or(Some(russh::keys::HashAlg::Sha512));
            let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
            ssh.authenticate_publickey(user, key).await.map_err(told)?
        }
        SftpLogin::Password(password) => {
            let password = password.reveal();
            let answer = ssh.authenticate_password(user, password).await;
            match answer.map_err(told)? {
                AuthResult::Success => AuthResult::Success,
                refused => match answer_questions(ssh, user, password).await.map_err(told)? {
                    true => AuthResult::Success,
                    false => refused,
                },
            }
        }
    };
    let AuthResult::Failure {
        remaining_methods, ..
    } = answer
    else {
        return Ok(());
    };
    // So the library answers where the connection ended before the server did.
    if remaining_methods.is_empty() && timeout(HANGING_UP, &mut *ssh).await.is_ok() {
        let message = format!("{}: the connection ended during the login", server(config));
        return Err(Failure::new(Class::Network, message));
    }
    let methods: Vec<&str> = remaining_methods.iter().map(Into::into).collect();
    let message = format!("{} refuses user '{user}'", server(config));
    let hint = format!("it would take: {}", methods.join(", "));
    Err(Failure::new(Class::Auth, message).hint(hint))
}

/// Servers that ask for the password in words rather than by the method of that name.
async fn answer_questions(
    ssh: &mut Handle<Gate>,
    user: &str,
    password: &str,
) -> Result<bool, russh::Error> {
    let mut answer = ssh
        .authenticate_keyboard_interactive_start(user, None::<String>)
        .await?;
    for _ in 0..QUESTIONS_MAX {
        let prompts = match answer {
            KeyboardInteractiveAuthResponse::Success => return Ok(true),
            KeyboardInteractiveAuthResponse::Failure { .. } => return Ok(false),
            KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => prompts,
        };
        let words = prompts.iter().map(|_| password.to_owned()).collect();
        answer = ssh.authenticate_keyboard_interactive_respond(words).await?;
    }
    Ok(false)
}

pub(super) fn server(config: &Sftp) -> String {
    format!("{}:{}", config.server, config.port)
}

fn unreachable(error: &std::io::Error, config: &Sftp) -> Failure {
    let mut failure = Failure::io(error, server(config));
    if failure.class == Class::Internal {
        // Names that do not resolve have no kind of their own.
        failure.class = Class::Network;
    }
    failure
}

fn ssh_failure(error: &russh::Error, config: &Sftp) -> Failure {
    let class = match error {
        russh::Error::IO(e) => return unreachable(e, config),
        russh::Error::NoCommonAlgo { .. } | russh::Error::Version => Class::Unsupported,
        russh::Error::ConnectionTimeout
        | russh::Error::KeepaliveTimeout
        | russh::Error::InactivityTimeout => Class::Timeout,
        russh::Error::ChannelOpenFailure(_) | russh::Error::RequestDenied => Class::Denied,
        _ => Class::Network,
    };
    Failure::new(class, format!("{}: {error}", server(config)))
}

const KEEPALIVES_MAX: usize = 3;
const QUESTIONS_MAX: u32 = 3;
const HANGING_UP: Duration = Duration::from_secs(1);

/// What may be on its way to us: a few megabytes hide the round trips of a long line.
const WINDOW_BYTES: u32 = 8 << 20;
/// Every server takes this much at once.
const BLOCK_BYTES: usize = 32 << 10;
/// OpenSSH takes 255 KiB.
const BLOCK_BYTES_MAX: usize = 255 << 10;
