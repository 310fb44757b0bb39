//! A stretch of the log as one sealed piece: what a site's store keeps of it.
//!
//! The content is line after line as the log stores them, digest included, each after its length
//! in four bytes, most significant first: the lines of that site and its history, and those of no
//! site. Lines of other sites are left out, so the chain can be followed where two numbers follow
//! each other.

use std::collections::BTreeMap;

use machine::{Class, Envelope, Millis, Site};

use crate::failure::{Failure, Outcome};
use crate::journal::encoding::{Chain, decode, digest_of_line, glance, parse};

/// Of every site, below its prefix.
pub const FOLDER: &str = "event_log";

/// Metadata of a chunk by which a reader orders them without opening any.
pub const FIRST_AT: &str = "event-log-first-at";
pub const FIRST: &str = "event-log-first";
pub const LAST: &str = "event-log-last";
/// Tells two chunks of the same name apart, whatever they are encrypted with.
pub const LAST_DIGEST: &str = "event-log-last-digest";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Below the site's prefix: `FIRST-LAST`, and a few digits of the last line's digest, because
    /// a log that was lost and begun anew counts from 1 again.
    pub object: String,
    pub first: u64,
    pub last: u64,
    /// Lines in it.
    pub events: u64,
    pub content: Vec<u8>,
    /// What the object says of itself in the clear: numbers, moments and digests.
    pub metadata: BTreeMap<String, String>,
}

/// The chunk of a site and its history from all lines of a stretch.
pub fn seal(sites: &[Site], lines: &[(u64, Vec<u8>)]) -> Outcome<Chunk> {
    let (Some((first, begin)), Some((last, end))) = (lines.first(), lines.last()) else {
        return Err(Failure::new(Class::Internal, "no events to export"));
    };
    let (mut content, mut events) = (Vec::new(), 0_u64);
    for (_, line) in lines {
        if glance(line)?.site.is_none_or(|of| sites.contains(&of)) {
            let length = u32::try_from(line.len())
                .map_err(|_| Failure::new(Class::Internal, "an event of over 4 GiB"))?;
            content.extend_from_slice(&length.to_be_bytes());
            content.extend_from_slice(line);
            events = events.saturating_add(1);
        }
    }
    let (begins, ends) = (glance(begin)?, glance(end)?);
    let (begin, end) = (digest_of_line(begin)?, digest_of_line(end)?);
    let last_digest = hex::encode(end);
    let short = last_digest.get(..12).unwrap_or_default();
    let metadata = [
        (FIRST, first.to_string()),
        (LAST, last.to_string()),
        ("event-log-events", events.to_string()),
        (FIRST_AT, begins.at.0.to_string()),
        ("event-log-last-at", ends.at.0.to_string()),
        ("event-log-first-digest", hex::encode(begin)),
        (LAST_DIGEST, last_digest.clone()),
    ];
    Ok(Chunk {
        object: format!("{FOLDER}/{first:012}-{last:012}-{short}"),
        first: *first,
        last: *last,
        events,
        content,
        metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
    })
}

/// The events of a chunk's content, in order. A line of a kind we do not know that may be skipped
/// is skipped here too.
pub fn open(content: &[u8], visit: &mut dyn FnMut(&Envelope)) -> Outcome<()> {
    let mut rest = content;
    let mut before: Option<(u64, Chain)> = None;
    while !rest.is_empty() {
        let Some((line, after)) = next(rest) else {
            return Err(Failure::new(
                Class::Corrupt,
                "a chunk of the log ends early",
            ));
        };
        rest = after;
        let seq = glance(line)?.seq;
        let envelope = match before {
            Some((last, chain)) if last.checked_add(1) == Some(seq) => decode(line, &chain)?.0,
            Some((last, _)) if last >= seq => {
                let message = format!("event {last} is followed by {seq} in a chunk of the log");
                return Err(Failure::new(Class::Corrupt, message));
            }
            _ => parse(line.get(32..).unwrap_or_default())?,
        };
        before = Some((seq, digest_of_line(line)?));
        if let Some(envelope) = envelope {
            visit(&envelope);
        }
    }
    Ok(())
}

fn next(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    rest.split_at_checked(length)
}

/// When a chunk's first event happened, for the order of chunks.
pub fn first_at(metadata: &BTreeMap<String, String>) -> Option<Millis> {
    let at = metadata.get(FIRST_AT)?;
    at.parse().ok().map(Millis)
}

#[cfg(test)]
mod tests {
    use machine::Event;

    use super::*;
    use crate::journal::encoding::{GENESIS, encode};

    fn lines(sites: &[Option<&str>]) -> Vec<(u64, Vec<u8>)> {
        let mut chain = GENESIS;
        let numbered = sites.iter().zip(1..);
        let line = |(site, seq): (&Option<&str>, u64)| {
            let envelope = Envelope {
                seq,
                at: Millis(seq * 10),
                run: 1,
                site: site.map(|name| Site(name.into())),
                event: Event::BackupProgressed {
                    backup: machine::BackupName("b".into()),
                    bytes: seq,
                    total: 9,
                },
            };
            let (value, next) = encode(&envelope, &chain).unwrap();
            chain = next;
            (seq, value)
        };
        numbered.map(line).collect()
    }

    #[test]
    fn a_chunk_holds_its_sites_lines_and_those_of_none() {
        let lines = lines(&[Some("a"), None, Some("b"), Some("a"), Some("b")]);
        let chunk = seal(&[Site("a".into())], &lines).unwrap();
        assert_eq!((chunk.first, chunk.last, chunk.events), (1, 5, 3));
        let digits = &hex::encode(&lines[4].1[..32])[..12];
        let expect = format!("event_log/000000000001-000000000005-{digits}");
        assert_eq!(chunk.object, expect);
        assert_eq!(first_at(&chunk.metadata), Some(Millis(10)));
        let mut seen = Vec::new();
        open(&chunk.content, &mut |envelope| seen.push(envelope.seq)).unwrap();
        assert_eq!(seen, [1, 2, 4]);
    }

    #[test]
    fn a_damaged_chunk_is_refused() {
        let lines = lines(&[Some("a"), Some("a"), Some("a")]);
        let content = seal(&[Site("a".into())], &lines).unwrap().content;
        let open = |content: &[u8]| open(content, &mut |_| ());
        open(&content).unwrap();
        let cut = &content[..content.len() - 1];
        let mut changed = content.clone();
        *changed.last_mut().unwrap() ^= 1;
        let twice = [&content[..], &content[..]].concat();
        for bad in [cut, &changed, &twice] {
            assert_eq!(open(bad).unwrap_err().class, Class::Corrupt);
        }
    }
}
