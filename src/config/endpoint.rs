//! A URL that something is sent to: `http[s]://[USER:PASSWORD@]HOST[:PORT][/PATH]`.

use super::Secret;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub scheme: Scheme,
    pub host: String,
    pub port: u16,
    /// Empty, or from its slash on.
    pub path: String,
    /// Name and password with a colon between them.
    pub login: Option<Secret>,
}

impl Endpoint {
    /// `None` for anything else: query, fragment, other schemes, what does not fit into a request.
    pub(super) fn parse(url: &str) -> Option<Endpoint> {
        let unfit = |c: char| c.is_control() || matches!(c, ' ' | '?' | '#');
        let (scheme, default, rest) =
            match url.split_once("://").filter(|_| !url.contains(unfit))? {
                ("http", rest) => (Scheme::Http, 80, rest),
                ("https", rest) => (Scheme::Https, 443, rest),
                _ => return None,
            };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (login, place) = match authority.rsplit_once('@') {
            Some((login, place)) => (Some(Secret::new(decoded(login)?)), place),
            None => (None, authority),
        };
        let (host, port) = match place.strip_prefix('[') {
            Some(ipv6) => ipv6.split_once(']')?,
            None => place.split_at(place.find(':').unwrap_or(place.len())),
        };
        let port = match port {
            "" => default,
            port => port.strip_prefix(':')?.parse().ok()?,
        };
        (!host.is_empty()).then(|| Endpoint {
            scheme,
            host: host.to_owned(),
            port,
            path: path.to_owned(),
            login,
        })
    }
}

/// RFC 3986, section 2.1. A plus stays one: it is in times.
pub fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_place_a_path_and_perhaps_a_login() {
        for (url, host, port, path, login) in [
            ("http://gate:9091", "gate", 9091, "", None),
            ("http://gate", "gate", 80, "", None),
            ("https://gate", "gate", 443, "", None),
            ("https://gate:9091/x", "gate", 9091, "/x", None),
            ("http://[::1]:9091/a/b/", "::1", 9091, "/a/b/", None),
            ("http://[::1]", "::1", 80, "", None),
            ("http://u:p%40%3a@gate:1/x", "gate", 1, "/x", Some("u:p@:")),
        ] {
            let found = Endpoint::parse(url).unwrap();
            let https = found.scheme == Scheme::Https;
            assert_eq!(https, url.starts_with("https"), "{url}");
            let told = found.login.as_ref().map(Secret::reveal);
            assert_eq!(
                (found.host.as_str(), found.port, found.path.as_str(), told),
                (host, port, path, login)
            );
            assert!(!format!("{found:?}").contains("p@"));
        }
    }

    #[test]
    fn what_is_no_such_url_is_none() {
        for url in [
            "",
            "gate:9091",
            "ftp://gate",
            "http://",
            "http://:80",
            "http://gate:port",
            "http://gate:99999",
            "http://gate/a b",
            "http://gate/\r\nx: y",
            "http://gate/?q",
            "http://u%@gate",
            "http://[::1",
            "http://[::1]x",
        ] {
            assert_eq!(Endpoint::parse(url), None, "{url}");
        }
    }
}
