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

    /// With the known name that somebody may have meant by `word` as the hint, if there is one.
    pub fn meant<'a>(self, word: &str, known: impl Iterator<Item = &'a str>) -> Failure {
        match nearest(word, known) {
            Some(known) => self.hint(format!("did you mean {known}?")),
            None => self,
        }
    }

    /// The same failure with the thing it befell in front.
    pub fn about(mut self, thing: impl fmt::Display) -> Failure {
        self.message = format!("{thing}: {}", self.message);
        self
    }

    /// What a reader or writer of ours reported: the failure it wraps, wherever in the chain of
    /// causes, else an I/O error classified by its kind.
    pub fn from_io(error: &io::Error, thing: impl fmt::Display) -> Failure {
        match Failure::within(error) {
            Some(failure) => failure.about(thing),
            None => Failure::io(error, thing),
        }
    }

    /// The failure an I/O error wraps, if it does.
    pub fn within(error: &io::Error) -> Option<Failure> {
        error.get_ref().and_then(|inner| wrapped(inner)).cloned()
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
        let failure = Failure::new(class, format!("{thing}: {error}"));
        match class {
            Class::DiskFull => failure.hint("make room on that disk"),
            _ => failure,
        }
    }
}

/// The known name that is nearest to a word, if it is near enough to have been meant.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|known| (strsim::damerau_levenshtein(known, word), known))
        .filter(|(distance, known)| *distance <= known.len() / 3)
        .min()
        .map(|(_, known)| known)
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

/// So that a failure passes through `Read` and `Write`; [`Failure::from_io`] gets it back.
impl From<Failure> for io::Error {
    fn from(failure: Failure) -> io::Error {
        let kind = match failure.class {
            Class::Corrupt => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, failure)
    }
}

/// `io::Error` hides what it wraps from `source`, so each one on the way is opened by hand.
fn wrapped<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Failure> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return Some(failure);
    }
    match error.downcast_ref::<io::Error>() {
        Some(io) => io.get_ref().and_then(|inner| wrapped(inner)),
        None => error.source().and_then(wrapped),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_comes_back_from_an_io_error_however_deep() {
        let failure = Failure::new(Class::Quota, "the store is full").hint("buy a disk");
        let mut error = io::Error::from(failure);
        for _ in 0..3 {
            let back = Failure::from_io(&error, "main/xlog/1");
            assert_eq!(back.class, Class::Quota);
            assert_eq!(back.message, "main/xlog/1: the store is full");
            assert_eq!(back.hint.as_deref(), Some("buy a disk"));
            error = io::Error::other(error);
        }
    }

    #[test]
    fn any_other_io_error_is_classified_by_its_kind() {
        let error = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(Failure::from_io(&error, "x").class, Class::Network);
    }
}
