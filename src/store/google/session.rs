//! An object in the making: parts in their order, in a session that the store keeps.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::Method;
use hyper::header::{HeaderMap, LOCATION};
use machine::Class;
use object_store::client::HttpResponse;
use serde_json::{Value, json};

use super::{Google, JSON, OCTETS, PART_BYTES, UPLOAD, condition, refused};
use crate::failure::{Failure, Outcome};
use crate::store::cloud::own::insert;
use crate::store::{Metadata, Object, Put, Store, Upload, Written};

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

    /// The last part says how much it all is.
    pub fn send(&mut self, bytes: Bytes, total: Option<u64>) -> Outcome<()> {
        let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.crc32c = crc32c::crc32c_append(self.crc32c, &bytes);
        let end = self.sent.saturating_add(count);
        let total_text = total.map_or("*".to_owned(), |total| total.to_string());
        let range = match count {
            0 => format!("bytes */{total_text}"),
            _ => format!("bytes {}-{}/{total_text}", self.sent, end - 1),
        };
        let mut headers = HeaderMap::new();
        insert(&mut headers, "content-range", &range)?;
        let answer = self.google.send(Method::PUT, &self.url, headers, bytes);
        let answer = answer.map_err(|failure| match failure.class {
            // It is the session that is gone: a new one may go well.
            Class::NotFound => self.odd(&format!("the upload is gone: {}", failure.message)),
            _ => refused(failure, &self.key, self.mode),
        });
        if let Some(total) = total {
            return self.end(answer, total);
        }
        let answer = answer?;
        let there = answer
            .headers()
            .get("range")
            .and_then(|range| range.to_str().ok());
        let there = there.and_then(|range| range.strip_prefix("bytes=0-")?.parse::<u64>().ok());
        match there == Some(end - 1) {
            true => {
                self.sent = end;
                Ok(())
            }
            false => Err(self.odd("the store did not keep all of a part")),
        }
    }

    /// An answer that got lost is settled by looking.
    fn end(&mut self, answer: Outcome<HttpResponse>, total: u64) -> Outcome<()> {
        let done = answer.and_then(|answer| {
            self.ended = answer.status().is_success();
            match self.ended {
                true => self.check(answer),
                false => Err(self.odd("the store waits for more")),
            }
        });
        let Err(failure) = done else {
            return Ok(());
        };
        match self.google.found(&self.key) {
            Ok(Some((there, value))) if self.is_ours(&there, &value, total) => {
                self.ended = true;
                Ok(())
            }
            Ok(_) | Err(_) => Err(failure),
        }
    }

    fn is_ours(&self, there: &Object, value: &Value, total: u64) -> bool {
        let sum = STANDARD.encode(self.crc32c.to_be_bytes());
        let mut ours = self.metadata.iter();
        there.entry.size_bytes == total
            && value.get("crc32c").and_then(Value::as_str) == Some(&sum)
            && ours.all(|(name, text)| there.metadata.get(name) == Some(text))
    }

    /// What arrived damaged does not stay.
    fn check(&self, answer: HttpResponse) -> Outcome<()> {
        let value = self.google.json(answer)?;
        let told = value.get("crc32c").and_then(Value::as_str);
        let ours = STANDARD.encode(self.crc32c.to_be_bytes());
        match told.is_none_or(|told| told == ours) {
            true => Ok(()),
            false => {
                self.google.delete(&self.key)?;
                let message = format!("{}: the store has other bytes than it was sent", self.key);
                Err(Failure::new(Class::Corrupt, message))
            }
        }
    }

    fn odd(&self, text: &str) -> Failure {
        Failure::new(Class::Network, format!("{}: {text}", self.key))
    }
}

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
        self.google
            .put_whole(&self.key, &self.buffer, &metadata, Put::Create)
    }
}
