//! What S3 writes into URLs and XML, and what it answers to lists.

use std::ops::Range;

use regex_lite::Regex;

use super::{Object, Refusal, XML, refuse};
use crate::support::http::{Request, Response, respond};

/// The pairs of a URL, decoded.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub fn of(request: &Request) -> Query {
        let query = request.uri().query().unwrap_or_default();
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let halves = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Query(
            halves
                .map(|(name, value)| (decode(name), decode(value)))
                .collect(),
        )
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(have, _)| have == name)
    }

    /// Empty where it is not there.
    pub fn get(&self, name: &str) -> String {
        let found = self.0.iter().find(|(have, _)| have == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    }
}

pub(super) fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let code = code.and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

/// The texts of all elements of that name. Enough for what clients send, which has no attributes
/// and no elements of one name inside each other.
pub(super) fn elements(xml: &str, name: &str) -> Vec<String> {
    let pattern = Regex::new(&format!("<{name}>([^<]*)</{name}>")).expect("a regular expression");
    let plain = |text: &str| {
        let text = text.replace("&lt;", "<").replace("&gt;", ">");
        let text = text.replace("&quot;", "\"").replace("&apos;", "'");
        text.replace("&#34;", "\"")
            .replace("&#39;", "'")
            .replace("&amp;", "&")
    };
    pattern
        .captures_iter(xml)
        .map(|found| plain(&found[1]))
        .collect()
}

pub(super) fn entry(key: &str, object: &Object) -> String {
    let modified = jiff::fmt::rfc2822::parse(&object.modified).expect("its own time");
    let modified = modified.timestamp().strftime("%Y-%m-%dT%H:%M:%S.000Z");
    format!(
        "<Contents><Key>{}</Key><LastModified>{modified}</LastModified><ETag>&quot;{}&quot;</ETag>\
         <Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>",
        escaped(key),
        object.etag,
        object.body.len()
    )
}

/// `last` where more would follow.
pub(super) fn page(entries: &[String], groups: &[String], last: Option<&str>) -> Response {
    let groups = groups.iter().map(|group| {
        let group = escaped(group);
        format!("<CommonPrefixes><Prefix>{group}</Prefix></CommonPrefixes>")
    });
    let next = last.map_or(String::new(), |key| {
        let key = escaped(key);
        format!("<NextContinuationToken>after:{key}</NextContinuationToken>")
    });
    let count = entries.len() + groups.len();
    let (entries, groups) = (entries.concat(), groups.collect::<String>());
    let body = format!(
        "<ListBucketResult><KeyCount>{count}</KeyCount><IsTruncated>{}</IsTruncated>\
         {next}{entries}{groups}</ListBucketResult>",
        last.is_some()
    );
    respond(200, &[XML], body)
}

/// Of a Range header: one range of bytes.
pub(super) fn range(header: &str, length: usize) -> Result<Option<Range<usize>>, Refusal> {
    if header.is_empty() {
        return Ok(None);
    }
    let ends = header
        .strip_prefix("bytes=")
        .and_then(|ends| ends.split_once('-'));
    let range = match ends.map(|(from, to)| (from.parse::<usize>(), to.parse::<usize>())) {
        Some((Ok(from), Ok(to))) => from..length.min(to + 1),
        Some((Ok(from), Err(_))) => from..length,
        Some((Err(_), Ok(last))) => length.saturating_sub(last)..length,
        _ => return refuse(400, "InvalidArgument"),
    };
    match range.is_empty() {
        true => refuse(416, "InvalidRange"),
        false => Ok(Some(range)),
    }
}
