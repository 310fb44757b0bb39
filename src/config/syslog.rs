//! `syslog`, `syslog_address`, `syslog_facility`: where log lines go besides standard error.

use std::path::PathBuf;

use machine::Class;
use serde_json::Value;

use super::read::{Found, Object};
use crate::failure::{Failure, Outcome};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syslog {
    pub to: To,
    /// Syslog's number of the facility, from 0.
    pub facility: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// A unix socket, of datagrams or a stream.
    Socket(PathBuf),
    /// Datagrams of UDP.
    Network { host: String, port: u16 },
}

/// The numbers of RFC 5424, section 6.2.1, under the names that Python knows.
const FACILITIES: &[(&str, u8)] = &[
    ("kern", 0),
    ("user", 1),
    ("mail", 2),
    ("daemon", 3),
    ("auth", 4),
    ("security", 4),
    ("syslog", 5),
    ("lpr", 6),
    ("news", 7),
    ("uucp", 8),
    ("cron", 9),
    ("authpriv", 10),
    ("ftp", 11),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];
const LOCAL2: u8 = 18;

/// Checked where it is switched off as well: a typo shows before the day it is needed.
pub(super) fn parse(global: &Object<'_>) -> Outcome<Option<Syslog>> {
    let facility = global.one_of("syslog_facility", FACILITIES)?.or(LOCAL2);
    let to = match global.value("syslog_address") {
        Found::Unset | Found::Null => To::Socket(PathBuf::from("/dev/log")),
        Found::Is(value) => address(value).ok_or_else(|| {
            let expected = "syslog_address: expected a path, as /dev/log, or HOST:PORT";
            Failure::new(Class::Config, expected)
        })?,
    };
    let wanted = global.flag("syslog")?.or(false);
    Ok(wanted.then_some(Syslog { to, facility }))
}

/// PGHoard hands it to Python's `SysLogHandler`: a text is a path, a list is host and port. Ours
/// as well: `HOST:PORT`.
fn address(value: &Value) -> Option<To> {
    let (host, port) = match value {
        Value::String(path) if path.starts_with('/') => {
            return Some(To::Socket(PathBuf::from(path)));
        }
        Value::String(text) => {
            let (host, port) = text.rsplit_once(':')?;
            let host = host.strip_prefix('[').unwrap_or(host);
            let host = host.strip_suffix(']').unwrap_or(host);
            (host, port.parse().ok()?)
        }
        Value::Array(pair) => {
            let [host, port] = pair.as_slice() else {
                return None;
            };
            (host.as_str()?, u16::try_from(port.as_u64()?).ok()?)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => return None,
    };
    let host = host.to_owned();
    (!host.is_empty()).then_some(To::Network { host, port })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_is_a_path_or_a_host_with_its_port() {
        let network = |host: &str, port| {
            let host = host.to_owned();
            Some(To::Network { host, port })
        };
        for (value, expect) in [
            (json!("/dev/log"), Some(To::Socket("/dev/log".into()))),
            (
                json!("logs.example.com:514"),
                network("logs.example.com", 514),
            ),
            (json!("[::1]:5514"), network("::1", 5514)),
            (json!(["logs", 514]), network("logs", 514)),
            (json!("dev/log"), None),
            (json!("logs:port"), None),
            (json!(":514"), None),
            (json!(["logs"]), None),
            (json!(["logs", 70_000]), None),
            (json!(514), None),
        ] {
            assert_eq!(address(&value), expect, "{value}");
        }
    }

    #[test]
    fn a_facility_has_a_name_that_syslog_knows() {
        let parse = |value| crate::config::parse(&value).map(|(config, _)| config.syslog);
        assert_eq!(parse(json!({})).unwrap(), None);
        let on = parse(json!({ "syslog": true, "syslog_facility": "daemon" }));
        assert_eq!(on.unwrap().unwrap().facility, 3);
        let on = parse(json!({ "syslog": true })).unwrap().unwrap();
        assert_eq!((on.facility, on.to), (18, To::Socket("/dev/log".into())));
        for wrong in [
            json!({ "syslog_facility": "local8" }),
            json!({ "syslog_address": 514 }),
        ] {
            let failure = parse(wrong).unwrap_err();
            assert!(failure.message.starts_with("syslog_"), "{failure}");
        }
    }
}
