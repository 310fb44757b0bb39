//! The script that fetches WAL with curl alone, for the way to this daemon that a client has.

use machine::Class;

use crate::config::Secret;
use crate::failure::{Failure, Outcome};

/// Its name in a data directory.
pub const NAME: &str = "pghoard_restore_command.sh";

/// How a client reaches the daemon; an empty file is curl's default.
#[derive(Clone, Debug, Default)]
pub struct Way {
    pub url: String,
    pub netrc: String,
    pub cacert: String,
    /// Of a hand-out, instead of name and password.
    pub token: Option<Secret>,
}

const TEXT: &str = include_str!("restore-command.sh");

/// Values are quoted for the shell; what cannot be is refused.
pub fn render(site: &str, way: &Way) -> Outcome<String> {
    let mut text = TEXT.to_owned();
    let token = way.token.as_ref().map_or("", Secret::reveal);
    for (mark, value) in [
        ("@URL@", &*way.url),
        ("@SITE@", site),
        ("@NETRC@", &way.netrc),
        ("@CACERT@", &way.cacert),
        ("@TOKEN@", token),
    ] {
        if value.contains(|c: char| c.is_control()) {
            let message = format!("{value:?} does not fit into a script");
            return Err(Failure::new(Class::Config, message));
        }
        let quoted = format!("'{}'", value.replace('\'', "'\\''"));
        text = text.replacen(mark, &quoted, 1);
    }
    Ok(text)
}
