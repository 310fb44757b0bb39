//! The one classification of failures: it alone decides retry, backoff and alert.

use core::fmt;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Credentials are wrong or missing.
    Auth,
    /// Credentials are fine, the right is lacking.
    Denied,
    /// Our own settings are wrong.
    Config,
    /// The peer cannot be reached or hung up.
    Network,
    /// A deadline passed.
    Timeout,
    /// The thing asked for is confirmed to be absent.
    NotFound,
    /// The store refuses for lack of room or rate.
    Quota,
    /// A local disk is full.
    DiskFull,
    /// Bytes are not what they claim to be.
    Corrupt,
    /// The same name holds other content.
    Conflict,
    /// Stopped on purpose before the end.
    Interrupted,
    /// The peer is of a kind or version we do not serve.
    Unsupported,
    /// A mistake of ours.
    Internal,
}

impl Class {
    pub fn name(self) -> &'static str {
        match self {
            Class::Auth => "auth",
            Class::Denied => "denied",
            Class::Config => "config",
            Class::Network => "network",
            Class::Timeout => "timeout",
            Class::NotFound => "not_found",
            Class::Quota => "quota",
            Class::DiskFull => "disk_full",
            Class::Corrupt => "corrupt",
            Class::Conflict => "conflict",
            Class::Interrupted => "interrupted",
            Class::Unsupported => "unsupported",
            Class::Internal => "internal",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
