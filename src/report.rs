//! Log lines: one a fact, on stderr, with a level that systemd and syslog understand.

/// Something a person should know of now.
pub fn error(message: &str) {
    log::error!("{message}");
}
