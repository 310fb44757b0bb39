//! The `time` object of the settings: `{ "servers": ["ntp.example.net", "10.0.0.4"] }`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use machine::Class;
use pghoard::{Failure, Outcome};
use serde::Deserialize;
use serde_json::Value;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// None: those of DHCP.
    pub servers: Vec<Server>,
}

/// A name or an address, with a port if it is another than NTP's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    pub host: String,
    pub port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    servers: Vec<String>,
}

const KEY: &str = "appliance.time";
const NTP_PORT: u16 = 123;
/// More only cost time: four already outvote one liar (RFC 5905 section 11.2.1).
const SERVERS_MAX: usize = 8;

impl Settings {
    /// Null, which an absent key is, means the defaults.
    pub fn parse(value: &Value) -> Outcome<Settings> {
        if value.is_null() {
            return Ok(Settings::default());
        }
        let wrong = |message: String| Failure::new(Class::Config, message);
        let document =
            Document::deserialize(value).map_err(|error| wrong(format!("{KEY}: {error}")))?;
        let mut servers: Vec<Server> = Vec::new();
        for word in &document.servers {
            let expected = "the name or address of a time server";
            let server: Server = word
                .parse()
                .map_err(|()| wrong(format!("{KEY}.servers: '{word}' is not {expected}")))?;
            if servers.contains(&server) {
                return Err(wrong(format!("{KEY}.servers: {word} is named twice")));
            }
            servers.push(server);
        }
        if servers.len() > SERVERS_MAX {
            let message = format!("{KEY}.servers: more than {SERVERS_MAX} servers");
            return Err(wrong(message));
        }
        Ok(Settings { servers })
    }
}

impl From<IpAddr> for Server {
    fn from(ip: IpAddr) -> Server {
        Server {
            host: ip.to_string(),
            port: NTP_PORT,
        }
    }
}

impl FromStr for Server {
    type Err = ();

    fn from_str(word: &str) -> Result<Server, ()> {
        if let Ok(ip) = word.parse::<IpAddr>() {
            return Ok(Server::from(ip));
        }
        if let Ok(address) = word.parse::<SocketAddr>() {
            let (host, port) = (address.ip().to_string(), address.port());
            return Ok(Server { host, port });
        }
        let (host, port) = match word.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_no_number| ())?),
            None => (word, NTP_PORT),
        };
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        match !host.is_empty() && host.len() <= 253 && host.chars().all(good) {
            true => Ok(Server {
                host: host.to_owned(),
                port,
            }),
            false => Err(()),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            NTP_PORT => f.write_str(&self.host),
            port => write!(f, "{}:{port}", self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_names_or_addresses() {
        let rows = [
            ("ntp.example.net", Some(("ntp.example.net", 123))),
            ("10.0.0.4", Some(("10.0.0.4", 123))),
            ("10.0.0.4:1123", Some(("10.0.0.4", 1123))),
            ("fd00::4", Some(("fd00::4", 123))),
            ("[fd00::4]:1123", Some(("fd00::4", 1123))),
            ("ntp:99999", None),
            ("a b", None),
            ("", None),
        ];
        for (word, expected) in rows {
            let server = word.parse::<Server>().ok();
            let found = server.as_ref().map(|s| (s.host.as_str(), s.port));
            assert_eq!(found, expected, "{word}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key() {
        let rows = [
            (
                r#"{"server": "a"}"#,
                "appliance.time: unknown field `server`",
            ),
            (r#"{"servers": "a"}"#, "appliance.time: invalid type"),
            (
                r#"{"servers": ["a b"]}"#,
                "appliance.time.servers: 'a b' is not the name",
            ),
            (
                r#"{"servers": ["a", "a"]}"#,
                "appliance.time.servers: a is named twice",
            ),
            (
                r#"{"servers": ["1","2","3","4","5","6","7","8","9"]}"#,
                "appliance.time.servers: more than 8",
            ),
        ];
        for (text, expected) in rows {
            let value: Value = serde_json::from_str(text).unwrap();
            let message = Settings::parse(&value).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
        assert_eq!(Settings::parse(&Value::Null).unwrap(), Settings::default());
    }
}
