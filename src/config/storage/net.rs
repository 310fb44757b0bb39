//! What the stores that are reached by HTTP have in common: endpoint, TLS, proxy, deadlines.

use std::path::PathBuf;
use std::time::Duration;

use super::{Object, Secret, file, required, secret, text};
use crate::config::keys::Level;
use crate::failure::Outcome;

/// How requests travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    pub tls: Authority,
    pub proxy: Option<Proxy>,
    pub connect_timeout: Duration,
    /// The longest silence of a peer.
    pub read_timeout: Duration,
    /// Bodies have so much more time; who is slower is as good as broken.
    pub bytes_per_second_min: u64,
    pub user_agent_extra: Option<String>,
}

/// Who is believed to be the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// Whoever the authorities of the system vouch for.
    System,
    /// Whoever the authorities in this PEM file vouch for.
    File(PathBuf),
    /// Anybody.
    Unchecked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    Http,
    Socks5,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    pub kind: ProxyKind,
    pub host: String,
    pub port: u16,
    /// Name and password.
    pub login: Option<(String, Secret)>,
}

/// A server of one's own: `host` and `port`, which go together, and whether TLS is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub host: String,
    pub port: u16,
}

pub(super) fn server(object: &Object<'_>) -> Outcome<Option<Server>> {
    let port = object.whole("port", "a port number")?.option();
    match (text(object, "host")?, port) {
        (Some(host), Some(port)) => Ok(Some(Server { host, port })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(object.wrong("port", "a port number, as there is a host")),
        (None, Some(_)) => Err(object.wrong("host", "a host, as there is a port")),
    }
}

/// `url` of the server, without a slash at its end.
pub(super) fn url(server: &Server, secure: bool) -> String {
    let scheme = if secure { "https" } else { "http" };
    // An IPv6 address has brackets in a URL.
    match server.host.contains(':') && !server.host.starts_with('[') {
        true => format!("{scheme}://[{}]:{}", server.host, server.port),
        false => format!("{scheme}://{}:{}", server.host, server.port),
    }
}

/// `is_verify_tls` and `cert_path`, which is nothing without the former.
pub(super) fn authority(object: &Object<'_>, verify_default: bool) -> Outcome<Authority> {
    let verify = object
        .flag("is_verify_tls")?
        .or_none(verify_default)
        .unwrap_or(verify_default);
    match (verify, file(object, "cert_path")?) {
        (true, None) => Ok(Authority::System),
        (true, Some(path)) => Ok(Authority::File(path)),
        (false, None) => Ok(Authority::Unchecked),
        (false, Some(_)) => Err(object.wrong("is_verify_tls", "true, as there is a cert_path")),
    }
}

/// With the default deadlines.
pub(super) fn net(object: &Object<'_>, tls: Authority) -> Outcome<Net> {
    Ok(Net {
        tls,
        proxy: proxy(object)?,
        connect_timeout: CONNECT_TIMEOUT,
        read_timeout: READ_TIMEOUT,
        bytes_per_second_min: BYTES_PER_SECOND_MIN,
        user_agent_extra: None,
    })
}

pub(super) fn proxy(object: &Object<'_>) -> Outcome<Option<Proxy>> {
    object.section("proxy_info", Level::Proxy, |section| {
        let kind = section.one_of("type", KINDS)?.option();
        let port = section.whole("port", "a port number")?.option();
        let user = text(section, "user")?;
        let password = secret(section, "pass")?;
        Ok(Proxy {
            kind: kind.ok_or_else(|| section.wrong("type", "one of http, socks5"))?,
            host: required(section, "host")?,
            port: port.ok_or_else(|| section.wrong("port", "a port number"))?,
            login: user.map(|user| (user, password.unwrap_or_else(|| Secret::new("")))),
        })
    })
}

const KINDS: &[(&str, ProxyKind)] = &[("http", ProxyKind::Http), ("socks5", ProxyKind::Socks5)];

/// botocore's own default is a minute for both; nobody should wait that long for a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// 256 kbit/s.
pub const BYTES_PER_SECOND_MIN: u64 = 32 << 10;
