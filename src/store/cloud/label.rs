//! Metadata in headers: as rohmu writes it, and what it could not write so that it comes back.
//!
//! Names are PGHoard's: lower-case letters, digits and hyphens, and `Content-Length`. A value of
//! plain ASCII is written as it is. Any other is an encoded word of RFC 2047, as S3 itself makes of
//! such values; rohmu cannot write any.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use object_store::{Attribute, Attributes};

use crate::store::Metadata;

pub(super) fn write(metadata: &Metadata, name_out: impl Fn(&str) -> String) -> Attributes {
    let pairs = metadata.iter().map(|(name, value)| {
        let attribute = Attribute::Metadata(name_out(name).into());
        (attribute, encoded(value))
    });
    pairs.collect()
}

pub(super) fn read(attributes: &Attributes, name_in: impl Fn(&str) -> String) -> Metadata {
    let pairs = attributes.into_iter().filter_map(|(attribute, value)| {
        let Attribute::Metadata(name) = attribute else {
            return None;
        };
        let name = match name_in(name) {
            name if name.eq_ignore_ascii_case("content-length") => "Content-Length".to_owned(),
            name => name,
        };
        Some((name, decoded(value.as_ref())))
    });
    pairs.collect()
}

fn encoded(value: &str) -> String {
    let plain = value.bytes().all(|b| (b' '..0x7f).contains(&b));
    // A header has no spaces at its ends, and a signature none beside one another.
    if plain && value.trim() == value && !value.contains("  ") && !value.contains("=?") {
        return value.to_owned();
    }
    format!("=?UTF-8?B?{}?=", STANDARD.encode(value))
}

/// Every encoded word of a text; what is none stays.
fn decoded(value: &str) -> String {
    let mut out = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once("=?") {
        let Some((word, end)) = word(after) else {
            break;
        };
        // Spaces between two words are none.
        if out.is_empty() || !before.trim().is_empty() {
            out.push_str(before);
        }
        out.push_str(&word);
        rest = end;
    }
    out.push_str(rest);
    out
}

/// The first one, after its `=?`, and what follows it.
fn word(text: &str) -> Option<(String, &str)> {
    let (charset, rest) = text.split_once('?')?;
    let (encoding, rest) = rest.split_once('?')?;
    let (inner, rest) = rest.split_once("?=")?;
    let bytes = match encoding {
        "B" | "b" => STANDARD.decode(inner).ok()?,
        "Q" | "q" => {
            let spaced = inner
                .replace('_', " ")
                .replace('%', "%25")
                .replace('=', "%");
            return Some((crate::config::decoded(&spaced)?, rest));
        }
        _ => return None,
    };
    let utf8 = charset.eq_ignore_ascii_case("utf-8");
    Some((String::from_utf8(bytes).ok().filter(|_| utf8)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_plain_ones_are_written_as_they_are() {
        let time = "2026-11-22 09:16:40.468438+00:00";
        for (value, plain) in [
            ("host", true),
            (time, true),
            ("a=b?c", true),
            ("\u{e9}t\u{e9}'\"\\", false),
            (" x ", false),
            ("a  b", false),
            ("=?UTF-8?B?eA==?=", false),
            ("tab\t", false),
        ] {
            let written = encoded(value);
            assert_eq!(written == value, plain, "{written}");
            assert!(written.is_ascii());
            assert_eq!(decoded(&written), value);
        }
    }

    #[test]
    fn words_that_a_server_made_are_read() {
        for (written, value) in [
            ("=?UTF-8?Q?caf=C3=A9_au_lait?=", "caf\u{e9} au lait"),
            ("=?utf-8?b?w6k=?= =?utf-8?q?=C3=A9?=", "\u{e9}\u{e9}"),
            ("x =?UTF-8?B?w6k=?= y", "x \u{e9} y"),
            ("=?UTF-8?B?not base64?=", "=?UTF-8?B?not base64?="),
            ("=?", "=?"),
        ] {
            assert_eq!(decoded(written), value);
        }
    }
}
