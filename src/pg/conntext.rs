//! The two texts of a connection: `host=a port=5433` and `postgres://user@a:5433/db?k=v`.
//!
//! Both become keyword and value pairs, checked later. The grammar is libpq's
//! (`src/interfaces/libpq/fe-connect.c`: `conninfo_parse`, `conninfo_uri_parse_options`), with
//! percent decoding. Messages never quote the text: it may hold a password.

use std::iter::Peekable;
use std::str::Chars;

use machine::Class;

use crate::failure::{Failure, Outcome};

pub(super) type Pairs = Vec<(String, String)>;

pub(super) fn pairs(text: &str) -> Outcome<Pairs> {
    match ["postgres://", "postgresql://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
    {
        Some(rest) => uri(rest),
        None => keywords(text),
    }
}

fn wrong(what: &str) -> Failure {
    Failure::new(Class::Config, format!("connection string: {what}"))
}

fn keywords(text: &str) -> Outcome<Pairs> {
    let mut pairs = Pairs::new();
    let mut chars = text.chars().peekable();
    loop {
        skip_blanks(&mut chars);
        if chars.peek().is_none() {
            return Ok(pairs);
        }
        let mut keyword = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_ascii_whitespace()) {
            keyword.push(c);
        }
        skip_blanks(&mut chars);
        if chars.next_if_eq(&'=').is_none() {
            return Err(wrong("expected '=' after each keyword")
                .hint("write keyword=value pairs, or a URI that begins with postgres://"));
        }
        skip_blanks(&mut chars);
        let value = value(&mut chars)
            .ok_or_else(|| wrong(&format!("the quoted value of '{keyword}' has no end")))?;
        pairs.push((keyword, value));
    }
}

fn skip_blanks(chars: &mut Peekable<Chars<'_>>) {
    while chars.next_if(char::is_ascii_whitespace).is_some() {}
}

/// One value, quoted or bare; a backslash takes the next character as it is.
fn value(chars: &mut Peekable<Chars<'_>>) -> Option<String> {
    let quoted = chars.next_if_eq(&'\'').is_some();
    let mut value = String::new();
    loop {
        match chars.peek() {
            None if quoted => return None,
            None => return Some(value),
            Some('\'') if quoted => {
                chars.next();
                return Some(value);
            }
            Some(c) if !quoted && c.is_ascii_whitespace() => return Some(value),
            Some(_) => {}
        }
        match chars.next() {
            Some('\\') => value.extend(chars.next()),
            other => value.extend(other),
        }
    }
}

fn uri(rest: &str) -> Outcome<Pairs> {
    let mut pairs = Pairs::new();
    let (main, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, dbname) = main.split_once('/').unwrap_or((main, ""));
    let (user, hosts) = match authority.split_once('@') {
        Some((user, hosts)) => (user, hosts),
        None => ("", authority),
    };
    let (user, password) = match user.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (user, None),
    };
    let (hosts, ports) = host_list(hosts)?;
    for (keyword, text) in [
        ("user", Some(user)),
        ("password", password),
        ("host", Some(hosts.as_str())),
        ("port", Some(ports.as_str())),
        ("dbname", Some(dbname)),
    ] {
        if let Some(text) = text.filter(|t| !t.is_empty()) {
            pairs.push((keyword.to_owned(), decoded(text)?));
        }
    }
    for parameter in query.split('&').filter(|p| !p.is_empty()) {
        let (keyword, text) = parameter
            .split_once('=')
            .ok_or_else(|| wrong("expected '=' in each query parameter of the URI"))?;
        match (decoded(keyword)?.as_str(), decoded(text)?) {
            ("ssl", on) if on == "true" => pairs.push(("sslmode".into(), "require".into())),
            (keyword, text) => pairs.push((keyword.to_owned(), text)),
        }
    }
    Ok(pairs)
}

/// `a:1,[::1]:2` as two lists, `a,::1` and `1,2`; the port list is empty when no port is given.
fn host_list(text: &str) -> Outcome<(String, String)> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for entry in text.split(',') {
        let (host, rest) = match entry.strip_prefix('[') {
            Some(inner) => inner
                .split_once(']')
                .ok_or_else(|| wrong("an IPv6 address of the URI lacks its ']'"))?,
            None => entry.split_at(entry.find(':').unwrap_or(entry.len())),
        };
        let port = match rest {
            "" => "",
            rest => rest
                .strip_prefix(':')
                .ok_or_else(|| wrong("expected ':' and a port after an IPv6 address"))?,
        };
        hosts.push(host);
        ports.push(port);
    }
    let named = ports.iter().any(|p| !p.is_empty());
    Ok((
        hosts.join(","),
        if named {
            ports.join(",")
        } else {
            String::new()
        },
    ))
}

fn decoded(text: &str) -> Outcome<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|d| char::from(d).to_digit(16));
        let value = digit().zip(digit()).and_then(|(high, low)| {
            let value = u8::try_from(high * 16 + low).ok()?;
            (value != 0).then_some(value)
        });
        bytes.push(value.ok_or_else(|| {
            wrong("'%' in the URI is not followed by two hexadecimal digits")
                .hint("write a literal percent sign as %25")
        })?);
    }
    String::from_utf8(bytes).map_err(|_| wrong("percent escapes of the URI do not spell UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let found = pairs(text).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn both_forms_are_read_as_libpq_reads_them() {
        check("", &[]);
        check("  host = a  port=1 ", &[("host", "a"), ("port", "1")]);
        check(
            r"password='it\'s \\ here' user=a\ b x=''",
            &[("password", r"it's \ here"), ("user", "a b"), ("x", "")],
        );
        check("postgres://", &[]);
        check("postgresql:///db", &[("dbname", "db")]);
        check(
            "postgres://u%40x:p%3A%2F@h:5433/d%20b?application_name=a%26b&sslmode=require",
            &[
                ("user", "u@x"),
                ("password", "p:/"),
                ("host", "h"),
                ("port", "5433"),
                ("dbname", "d b"),
                ("application_name", "a&b"),
                ("sslmode", "require"),
            ],
        );
        check(
            "postgres://a:1,[::1]:2,c/",
            &[("host", "a,::1,c"), ("port", "1,2,")],
        );
        check(
            "postgres://%2Frun%2Fpg/x?ssl=true",
            &[("host", "/run/pg"), ("dbname", "x"), ("sslmode", "require")],
        );
    }

    #[test]
    fn broken_texts_are_refused_without_quoting_them() {
        for text in [
            "secret",
            "password='secret",
            "host a password=secret",
            "postgres://u:secret%zz@h",
            "postgres://u:secret%0@h",
            "postgres://u:secret%00@h",
            "postgres://u:secret%ff@h",
            "postgres://u:secret@[::1",
            "postgres://u:secret@[::1]5",
            "postgres://u:secret@h/db?flag",
        ] {
            let failure = pairs(text).unwrap_err();
            assert_eq!(failure.class, Class::Config, "{text}");
            assert!(!failure.to_string().contains("secret"), "{failure}");
        }
    }
}
