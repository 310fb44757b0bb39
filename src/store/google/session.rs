//! An object in the making: parts in their order, in a session that the store keeps.

use std::io::{self, Write};

use bytes::Bytes;
use hyper::Method;
use hyper::header::{HeaderMap, LOCATION};
use machine::Class;
use object_store::client::HttpResponse;
use serde_json::{Value, json};

use super::{CONTENT_LENGTH, Google, JSON, OCTETS, PART_BYTES, UPLOAD, condition, noted, refused};
use crate::failure::{Failure, Outcome};
use crate::store::cloud::own::insert;
use crate::store::{Metadata, Object, Put, Upload, Written};

/// How far the store got.
enum State {
    Done(HttpResponse),
    /// So many bytes.
    Has(u64),
}

/// Taken back when it is dropped before its last part.
pub(super) struct Session<'a> {
    google: &'a Google,
    key: String,
    metadata: Metadata,
    url: String,
    mode: Put,
    sent: u64,
    crc32c: u32,
    ended: bool,
}

impl<'a> Session<'a> {
    pub fn begin(
        google: &'a Google,
        key: &str,
        metadata: &Metadata,
        mode: Put,
    ) -> Outcome<Session<'a>> {
        let name = google.name_of(key)?;
        let head = json!({ "name": name, "metadata": metadata, "contentType": OCTETS });
        let name = super::encoded(&name, super::Slashes::Go);
        let rest = format!("/o?uploadType=resumable&name={name}{}", condition(mode));
        let url = google.url(UPLOAD, &rest);
        let body = Bytes::from(head.to_string());
        let begun = google.ask(Method::POST, &url, Some((JSON, body)));
        let begun = begun.map_err(|failure| refused(failure, key, mode))?;
        let place = begun
            .headers()
            .get(LOCATION)
            .and_then(|url| url.to_str().ok());
        let place = place.ok_or_else(|| {
            Failure::new(Class::Corrupt, format!("{key}: the upload has no place"))
        })?;
        Ok(Session {
            google,
            key: key.to_owned(),
            metadata: metadata.clone(),
            url: google.at_endpoint(place),
            mode,
            sent: 0,
            crc32c: 0,
            ended: false,
        })
    }

    /// The last part says how much it all is. Where it breaks off, the store is asked how far it
    /// got, and the rest is sent.
    pub fn send(&mut self, bytes: Bytes, total: Option<u64>) -> Outcome<()> {
        match (self.part(bytes, total), total) {
            (Err(failure), Some(total)) => self.settle(failure, total),
            (sent, _) => sent,
        }
    }

    fn part(&mut self, bytes: Bytes, total: Option<u64>) -> Outcome<()> {
        self.crc32c = crc32c::crc32c_append(self.crc32c, &bytes);
        let end = self.sent.saturating_add(length(&bytes));
        let mut breaks = 0;
        loop {
            let state = match self.rest(&bytes, end, total) {
                Err(failure) if may_go_on(&failure) && breaks < BREAKS_MAX => {
                    breaks += 1;
                    // Who does not answer this either has said enough.
                    self.ask_state(total).map_err(|_| failure)?
                }
                state => state?,
            };
            match state {
                State::Done(answer) => {
                    self.ended = true;
                    return self.check(answer);
                }
                State::Has(there) if there == end && total.is_none() => {
                    self.sent = end;
                    return Ok(());
                }
                State::Has(there) if there == end && end > 0 && breaks == 0 => {
                    return Err(self.odd("the store waits for more"));
                }
                State::Has(there) if there > end || there < end.saturating_sub(length(&bytes)) => {
                    return Err(self.odd("the store has another part of it"));
                }
                State::Has(there) => {
                    // It may keep less than it was sent, but not nothing for ever.
                    if there <= self.sent {
                        breaks += 1;
                    }
                    if breaks > BREAKS_MAX {
                        return Err(self.odd("the store does not keep what it is sent"));
                    }
                    self.sent = there;
                }
            }
        }
    }

    /// Sends of bytes that end there those that the store does not have.
    fn rest(&self, bytes: &Bytes, end: u64, total: Option<u64>) -> Outcome<State> {
        let missing = usize::try_from(end - self.sent).unwrap_or(usize::MAX);
        let rest = bytes.slice(bytes.len().saturating_sub(missing)..);
        let total = total.map_or("*".to_owned(), |total| total.to_string());
        let range = match rest.len() {
            0 => format!("bytes */{total}"),
            _ => format!("bytes {}-{}/{total}", self.sent, end - 1),
        };
        self.put(&range, rest)
    }

    fn ask_state(&self, total: Option<u64>) -> Outcome<State> {
        let total = total.map_or("*".to_owned(), |total| total.to_string());
        self.put(&format!("bytes */{total}"), Bytes::new())
    }

    fn put(&self, range: &str, bytes: Bytes) -> Outcome<State> {
        let mut headers = HeaderMap::new();
        insert(&mut headers, "content-range", range)?;
        let answer = self.google.send(Method::PUT, &self.url, headers, bytes);
        let answer = answer.map_err(|failure| match failure.class {
            // It is the session that is gone: a new one may go well.
            Class::NotFound => self.odd(&format!("the upload is gone: {}", failure.message)),
            _ => refused(failure, &self.key, self.mode),
        })?;
        if answer.status().is_success() {
            return Ok(State::Done(answer));
        }
        let there = answer.headers().get("range");
        let there = match there.and_then(|range| range.to_str().ok()) {
            // Nothing is there yet.
            None => Some(0),
            Some(range) => range
                .strip_prefix("bytes=0-")
                .and_then(|last| last.parse::<u64>().ok()?.checked_add(1)),
        };
        there
            .map(State::Has)
            .ok_or_else(|| self.odd("the store does not say what it has"))
    }

    /// An answer that got lost is settled by looking.
    fn settle(&mut self, failure: Failure, total: u64) -> Outcome<()> {
        match self.google.found(&self.key) {
            Ok(Some((there, value))) if self.is_ours(&there, &value, total) => {
                self.ended = true;
                Ok(())
            }
            Ok(_) | Err(_) => Err(failure),
        }
    }

    fn is_ours(&self, there: &Object, value: &Value, total: u64) -> bool {
        let sum = noted(self.crc32c);
        let mut ours = self.metadata.iter();
        there.entry.size_bytes == total
            && value.get("crc32c").and_then(Value::as_str) == Some(&sum)
            && ours.all(|(name, text)| there.metadata.get(name) == Some(text))
    }

    /// What arrived damaged does not stay.
    fn check(&self, answer: HttpResponse) -> Outcome<()> {
        let value = self.google.json(answer)?;
        self.google.compare(&self.key, &value, self.crc32c)
    }

    fn odd(&self, text: &str) -> Failure {
        Failure::new(Class::Network, format!("{}: {text}", self.key))
    }
}

fn length(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Whether the session may be there still.
fn may_go_on(failure: &Failure) -> bool {
    matches!(
        failure.class,
        Class::Network | Class::Timeout | Class::Quota
    )
}

/// Of one part.
const BREAKS_MAX: u32 = 3;

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // Google forgets it in a week, too.
            let _left = self.google.ask(Method::DELETE, &self.url, None);
        }
    }
}

/// Up to a part it waits in memory and is one request.
pub(super) struct Growing<'a> {
    google: &'a Google,
    key: String,
    metadata: Metadata,
    buffer: Vec<u8>,
    bytes: u64,
    session: Option<Session<'a>>,
}

impl<'a> Growing<'a> {
    pub fn new(google: &'a Google, key: &str, metadata: &Metadata) -> Growing<'a> {
        Growing {
            google,
            key: key.to_owned(),
            metadata: metadata.clone(),
            buffer: Vec::new(),
            bytes: 0,
            session: None,
        }
    }

    fn send(&mut self, total: Option<u64>) -> Outcome<()> {
        let session = match &mut self.session {
            Some(session) => session,
            None => {
                let begun = Session::begin(self.google, &self.key, &self.metadata, Put::Create)?;
                self.session.insert(begun)
            }
        };
        session.send(Bytes::from(std::mem::take(&mut self.buffer)), total)
    }
}

impl Write for Growing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let wanted = usize::try_from(PART_BYTES).unwrap_or(usize::MAX);
        // Only more than a part makes parts of it.
        if self.buffer.len() >= wanted && !bytes.is_empty() {
            self.send(None)?;
        }
        let count = bytes.len().min(wanted.saturating_sub(self.buffer.len()));
        self.buffer
            .extend_from_slice(bytes.get(..count).unwrap_or_default());
        self.bytes += u64::try_from(count).unwrap_or(0);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for Growing<'_> {
    fn finish(mut self: Box<Self>, written: Written, late: &Metadata) -> Outcome<()> {
        written.is_all(&self.key, self.bytes)?;
        self.google.refuse_existing(&self.key)?;
        if self.session.is_some() {
            return self.send(Some(written.size_bytes));
        }
        let mut metadata = self.metadata.clone();
        metadata.extend(late.clone());
        let size = written.size_bytes.to_string();
        metadata.insert(CONTENT_LENGTH.to_owned(), size);
        self.google
            .put_whole(&self.key, &self.buffer, &metadata, Put::Create)
    }
}
