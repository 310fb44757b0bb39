//! A failure of a PostgreSQL conversation: the shell's [`Failure`] plus the SQLSTATE the server
//! gave, because some callers must tell "exists already" from "in use" from "gone".
//!
//! Both directions convert by `?`, so only those who look at the SQLSTATE name this type.

use std::fmt;
use std::io;

use fallible_iterator::FallibleIterator;
use machine::Class;
use postgres_protocol::message::backend::ErrorFields;

use crate::failure::Failure;

pub type Answer<T> = Result<T, Fault>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub failure: Failure,
    /// Absent when the fault is not an answer of the server.
    pub sqlstate: Option<SqlState>,
}

impl Fault {
    pub fn new(class: Class, message: impl Into<String>) -> Fault {
        Fault::from(Failure::new(class, message))
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Fault {
        self.failure = self.failure.hint(hint);
        self
    }

    pub fn is(&self, sqlstate: SqlState) -> bool {
        self.sqlstate == Some(sqlstate)
    }

    /// An I/O error of the conversation with `server`; TLS hides its own errors inside.
    pub(super) fn io(error: &io::Error, server: &str) -> Fault {
        let tls = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        match (tls, error.kind()) {
            (Some(rustls::Error::InvalidCertificate(why)), _) => Fault::new(
                Class::Auth,
                format!("postgres at {server}: the server's certificate is not trusted: {why}"),
            )
            .hint("check sslrootcert and, with sslmode=verify-full, the names in the certificate"),
            (Some(rustls::Error::AlertReceived(alert)), _) => Fault::new(
                Class::Auth,
                format!("postgres at {server}: the server refused the TLS session: {alert:?}"),
            )
            .hint("check sslcert and sslkey, and what clientcert says in its pg_hba.conf"),
            (Some(other), _) => Fault::new(
                Class::Unsupported,
                format!("postgres at {server}: no TLS session: {other}"),
            ),
            (None, io::ErrorKind::UnexpectedEof) => Fault::hung_up(server),
            (None, io::ErrorKind::NotFound) => {
                Fault::new(Class::Network, format!("postgres at {server}: {error}"))
                    .hint("no socket of that name: the server is down or listens elsewhere")
            }
            _ => Failure::io(error, format!("postgres at {server}")).into(),
        }
    }

    pub(super) fn hung_up(server: &str) -> Fault {
        Fault::new(
            Class::Network,
            format!("postgres at {server}: the server closed the connection"),
        )
    }

    /// Bytes that no PostgreSQL sends.
    pub(super) fn protocol(server: &str, expected: &str) -> Fault {
        Fault::new(
            Class::Corrupt,
            format!("postgres at {server}: protocol violation: expected {expected}"),
        )
    }

    /// The server's ErrorResponse.
    pub(super) fn refusal(mut fields: ErrorFields<'_>, server: &str) -> Fault {
        let (mut state, mut message, mut detail, mut hint) = (None, None, None, None);
        while let Ok(Some(field)) = fields.next() {
            let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => state = SqlState::new(&text),
                b'M' => message = Some(text),
                b'D' => detail = Some(text),
                b'H' => hint = Some(text),
                _ => {}
            }
        }
        let mut line = format!(
            "postgres at {server}: {}",
            message.as_deref().unwrap_or("an error without a message")
        );
        if let Some(detail) = detail {
            line.push_str(&format!(" ({detail})"));
        }
        if let Some(state) = state {
            line.push_str(&format!(" [{state}]"));
        }
        let mut failure = Failure::new(state.map_or(Class::Network, SqlState::class), line);
        failure.hint = hint;
        Fault {
            failure,
            sqlstate: state,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl std::error::Error for Fault {}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Fault {
        Fault {
            failure,
            sqlstate: None,
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        fault.failure
    }
}

/// Five characters, PostgreSQL's Appendix A.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SqlState([u8; 5]);

impl SqlState {
    pub const DENIED_AT_THE_DOOR: SqlState = SqlState(*b"28000");
    pub const WRONG_PASSWORD: SqlState = SqlState(*b"28P01");
    pub const DUPLICATE_OBJECT: SqlState = SqlState(*b"42710");
    pub const UNDEFINED_OBJECT: SqlState = SqlState(*b"42704");
    pub const NOT_IN_PREREQUISITE_STATE: SqlState = SqlState(*b"55000");
    pub const OBJECT_IN_USE: SqlState = SqlState(*b"55006");
    pub const UNDEFINED_FILE: SqlState = SqlState(*b"58P01");
    pub const INTERNAL_ERROR: SqlState = SqlState(*b"XX000");
    pub const NO_SUCH_DATABASE: SqlState = SqlState(*b"3D000");

    fn new(text: &str) -> Option<SqlState> {
        let code = <[u8; 5]>::try_from(text.as_bytes()).ok()?;
        code.iter()
            .all(u8::is_ascii_alphanumeric)
            .then_some(SqlState(code))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("?????")
    }

    /// What a refusal means for us. Whatever is not ours to change (a restart, a server short of
    /// something, a slot still held by our dead predecessor) counts as the network: try again.
    fn class(self) -> Class {
        match self.as_str() {
            "28P01" => Class::Auth,
            "42501" => Class::Denied,
            "3D000" | "22023" | "55000" => Class::Config,
            "58P01" | "42704" | "42P01" => Class::NotFound,
            "42710" => Class::Conflict,
            "57014" => Class::Interrupted,
            "0A000" | "42601" => Class::Unsupported,
            "XX001" | "XX002" => Class::Corrupt,
            code if code.starts_with("28") => Class::Denied,
            code if code.starts_with("53") => Class::Quota,
            _ => Class::Network,
        }
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
