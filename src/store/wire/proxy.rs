//! The proxy to a store, as `proxy_info` has it.

use machine::Class;
use reqwest::NoProxy;

use super::fault;
use crate::config::{Proxy, ProxyKind};
use crate::failure::{Failure, Outcome};

pub(super) fn of(proxy: &Proxy) -> Outcome<reqwest::Proxy> {
    let scheme = match proxy.kind {
        ProxyKind::Http => "http",
        // Names are resolved where they are known: at the other end.
        ProxyKind::Socks5 => "socks5h",
    };
    let login = proxy
        .login
        .as_ref()
        .map(|(user, password)| format!("{}:{}@", encoded(user), encoded(password.reveal())));
    let (login, host, port) = (login.unwrap_or_default(), &proxy.host, proxy.port);
    let host = match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]"),
        false => host.clone(),
    };
    let made = reqwest::Proxy::all(format!("{scheme}://{login}{host}:{port}"));
    let made = made.map_err(|e| {
        let why = fault::root(&e.without_url());
        Failure::new(Class::Config, format!("proxy {}:{port}: {why}", proxy.host))
    })?;
    // A machine's own metadata is asked on the machine.
    Ok(made.no_proxy(NoProxy::from_string(METADATA)))
}

/// RFC 3986, section 2.1.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let bytes = text.bytes().map(|byte| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    bytes.collect()
}

const METADATA: &str =
    "169.254.169.254,169.254.170.2,169.254.170.23,metadata.google.internal,metadata";
