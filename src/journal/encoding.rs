//! One log line as bytes, and back. The only file that names serde_cbor.
//!
//! A value in the log is `digest (32 bytes) | CBOR map`. The map has text keys, so that any CBOR
//! reader understands it: `seq`, `at`, `run`, `site`, `version`, `critical`, `event {kind, body}`.
//! `digest` is SHA-256 over the predecessor's digest and the CBOR bytes: a changed, lost or
//! exchanged line breaks the chain from there on.

use machine::{Envelope, Event, Millis, Site};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_cbor::Value;
use sha2::{Digest, Sha256};

use crate::failure::{Failure, Outcome};
use crate::journal::upcast::{VERSION, upcast};

pub type Chain = [u8; 32];

/// The digest before the first line.
pub const GENESIS: Chain = [0; 32];

#[derive(Serialize, Deserialize)]
struct Line<E> {
    seq: u64,
    at: Millis,
    run: u64,
    site: Option<Site>,
    version: u32,
    critical: bool,
    event: E,
}

/// The value to store, and the digest that the next line continues.
pub fn encode(envelope: &Envelope, before: &Chain) -> Outcome<(Vec<u8>, Chain)> {
    let line = Line {
        seq: envelope.seq,
        at: envelope.at,
        run: envelope.run,
        site: envelope.site.clone(),
        version: VERSION,
        critical: envelope.event.critical(),
        event: &envelope.event,
    };
    let cbor = serde_cbor::to_vec(&line).map_err(|e| {
        Failure::new(
            machine::Class::Internal,
            format!("event {}: {e}", envelope.seq),
        )
    })?;
    let digest = link(before, &cbor);
    let mut value = Vec::with_capacity(digest.len() + cbor.len());
    value.extend_from_slice(&digest);
    value.extend_from_slice(&cbor);
    Ok((value, digest))
}

/// The line that a stored value holds, if its digest continues `before`. `None` for a line of a
/// kind we do not know that says of itself that it may be skipped.
pub fn decode(value: &[u8], before: &Chain) -> Outcome<(Option<Envelope>, Chain)> {
    let (cbor, digest) = prove(value, before)?;
    Ok((parse(cbor)?, digest))
}

/// A stored value's line and its digest, if that continues `before`.
pub fn prove<'a>(value: &'a [u8], before: &Chain) -> Outcome<(&'a [u8], Chain)> {
    let Some((digest, cbor)) = value.split_first_chunk::<32>() else {
        return Err(corrupt("a line is shorter than its digest"));
    };
    if link(before, cbor) != *digest {
        return Err(corrupt("a line does not continue the digest chain"));
    }
    Ok((cbor, *digest))
}

/// A line without its digest. Today's form is read straight; anything else by way of upcasts.
pub fn parse(cbor: &[u8]) -> Outcome<Option<Envelope>> {
    if let Ok(line) = serde_cbor::from_slice::<Line<Event>>(cbor)
        && line.version == VERSION
    {
        let Line {
            seq,
            at,
            run,
            site,
            event,
            ..
        } = line;
        return Ok(Some(Envelope {
            seq,
            at,
            run,
            site,
            event,
        }));
    }
    let line: Line<Value> = serde_cbor::from_slice(cbor)
        .map_err(|e| corrupt(format!("a line is not readable: {e}")))?;
    match upcast(line.version, line.event) {
        Some(value) => {
            let event = serde_cbor::value::from_value(value)
                .map_err(|e| corrupt(format!("event {}: {e}", line.seq)))?;
            let Line {
                seq, at, run, site, ..
            } = line;
            Ok(Some(Envelope {
                seq,
                at,
                run,
                site,
                event,
            }))
        }
        None if line.critical => Err(Failure::new(
            machine::Class::Unsupported,
            format!(
                "event {} was written by a newer version and may not be skipped",
                line.seq
            ),
        )
        .hint("install the version that wrote the log, or a later one")),
        None => Ok(None),
    }
}

/// The digest that is all that is left of a line; `None` for a whole one.
pub fn digest_of(value: &[u8]) -> Option<Chain> {
    value.try_into().ok()
}

/// What every line tells whatever its kind.
pub struct Glance {
    pub seq: u64,
    pub at: Millis,
    pub site: Option<Site>,
}

/// At a stored value, without looking at its event or its digest.
pub fn glance(value: &[u8]) -> Outcome<Glance> {
    let cbor = value.get(GENESIS.len()..).unwrap_or_default();
    let line: Line<IgnoredAny> = serde_cbor::from_slice(cbor)
        .map_err(|e| corrupt(format!("a line is not readable: {e}")))?;
    let Line { seq, at, site, .. } = line;
    Ok(Glance { seq, at, site })
}

pub fn digest_of_line(value: &[u8]) -> Outcome<Chain> {
    let digest = value.first_chunk().copied();
    digest.ok_or_else(|| corrupt("a line is shorter than its digest"))
}

fn link(before: &Chain, cbor: &[u8]) -> Chain {
    Sha256::new()
        .chain_update(before)
        .chain_update(cbor)
        .finalize()
        .into()
}

fn corrupt(message: impl Into<String>) -> Failure {
    Failure::new(
        machine::Class::Corrupt,
        format!("event log: {}", message.into()),
    )
}
