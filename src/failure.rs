//! The one error of the shell: a class for the machine, a line for the human.
//!
//! Messages are lower case without a full stop, name the thing and what was expected; a hint says
//! what to do. A failure never carries a secret.

use std::fmt;
use std::io;

use machine::Class;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub class: Class,
    pub message: String,
    pub hint: Option<String>,
}

pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub fn new(class: Class, message: impl Into<String>) -> Failure {
        Failure {
            class,
            message: message.into(),
            hint: None,
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// An I/O error on the thing named, classified by its kind.
    pub fn io(error: &io::Error, thing: impl fmt::Display) -> Failure {
        use io::ErrorKind as Kind;
        let class = match error.kind() {
            Kind::NotFound => Class::NotFound,
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Class::Denied,
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Class::DiskFull,
            Kind::TimedOut | Kind::WouldBlock => Class::Timeout,
            Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::ConnectionAborted
            | Kind::NotConnected
            | Kind::BrokenPipe
            | Kind::HostUnreachable
            | Kind::NetworkUnreachable
            | Kind::NetworkDown
            | Kind::AddrNotAvailable => Class::Network,
            Kind::UnexpectedEof | Kind::InvalidData => Class::Corrupt,
            Kind::Unsupported => Class::Unsupported,
            _ => Class::Internal,
        };
        Failure::new(class, format!("{thing}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}
