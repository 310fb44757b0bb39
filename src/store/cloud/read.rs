//! A body on its way out of the store.

use std::io::{self, Read};
use std::pin::Pin;

use bytes::{Buf, Bytes};
use machine::Class;
use md5::Md5;
use object_store::GetResult;
use object_store::client::HttpResponse;
use sha2::{Digest, Sha256};
use smol::stream::StreamExt;

use super::told;
use crate::failure::{Failure, Outcome};
use crate::store::wire::{Announced, fault, run};

/// What the bytes of an object add up to, as the store noted it.
#[derive(Clone, Copy)]
pub(in crate::store) enum Sum {
    Sha256([u8; 32]),
    Md5([u8; 16]),
    Crc32c(u32),
}

enum Adding {
    Sha256(Sha256, [u8; 32]),
    Md5(Md5, [u8; 16]),
    Crc32c(u32, u32),
}

impl Adding {
    fn new(sum: Sum) -> Adding {
        match sum {
            Sum::Sha256(announced) => Adding::Sha256(Sha256::new(), announced),
            Sum::Md5(announced) => Adding::Md5(Md5::new(), announced),
            Sum::Crc32c(announced) => Adding::Crc32c(0, announced),
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        match self {
            Adding::Sha256(digest, _) => digest.update(bytes),
            Adding::Md5(digest, _) => digest.update(bytes),
            Adding::Crc32c(crc, _) => *crc = crc32c::crc32c_append(*crc, bytes),
        }
    }

    fn agrees(self) -> bool {
        match self {
            Adding::Sha256(digest, announced) => announced == *digest.finalize(),
            Adding::Md5(digest, announced) => announced == *digest.finalize(),
            Adding::Crc32c(crc, announced) => crc == announced,
        }
    }
}

/// Exactly the announced bytes, with the announced sum if there is one; else it fails.
pub(in crate::store) struct Streamed {
    key: String,
    stream: Pieces,
    piece: Bytes,
    left_bytes: u64,
    sum: Option<Adding>,
}

type Pieces = smol::stream::Boxed<Outcome<Bytes>>;

impl Streamed {
    pub fn of(key: &str, found: GetResult) -> Streamed {
        let announced = found.extensions.get::<Announced>().copied();
        let sum = announced.map(|announced| match announced {
            Announced::Sha256(sum) => Sum::Sha256(sum),
            Announced::Md5(sum) => Sum::Md5(sum),
        });
        let size_bytes = found.meta.size;
        let pieces = found.into_stream().map(|piece| piece.map_err(|e| told(&e)));
        Streamed::from(key, size_bytes, pieces.boxed(), sum)
    }

    pub fn new(key: &str, size_bytes: u64, body: Resumed, sum: Option<Sum>) -> Streamed {
        Streamed::from(key, size_bytes, body.stream(), sum)
    }

    fn from(key: &str, left_bytes: u64, stream: Pieces, sum: Option<Sum>) -> Streamed {
        Streamed {
            key: key.to_owned(),
            // Whoever has read to the end may ask once more, which not every stream bears.
            stream: stream.fuse().boxed(),
            piece: Bytes::new(),
            left_bytes,
            sum: sum.map(Adding::new),
        }
    }

    fn wrong(&self, text: &str) -> Failure {
        Failure::new(Class::Corrupt, format!("{}: {text}", self.key))
    }

    fn next(&mut self) -> Outcome<()> {
        while self.piece.is_empty() {
            let Some(piece) = run(self.stream.next()) else {
                return self.end();
            };
            self.piece = piece.map_err(|failure| failure.about(&self.key))?;
            let count = u64::try_from(self.piece.len()).unwrap_or(u64::MAX);
            let left = self.left_bytes.checked_sub(count);
            let left = left.ok_or_else(|| self.wrong("the object is longer than announced"));
            self.left_bytes = left?;
            if let Some(sum) = &mut self.sum {
                sum.add(&self.piece);
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Outcome<()> {
        if self.left_bytes > 0 {
            return Err(self.wrong("the object ends early"));
        }
        match self.sum.take().is_none_or(Adding::agrees) {
            true => Ok(()),
            false => Err(self.wrong("the bytes do not have the checksum that the store noted")),
        }
    }
}

impl Read for Streamed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.next()?;
        let count = buffer.len().min(self.piece.len());
        let target = buffer.get_mut(..count).unwrap_or_default();
        self.piece.copy_to_slice(target);
        Ok(count)
    }
}

/// The answer to a question for all bytes from one on.
pub(in crate::store) type Again = Box<dyn Fn(u64) -> Answered + Send>;
pub(in crate::store) type Answered = Pin<Box<dyn Future<Output = Outcome<HttpResponse>> + Send>>;

/// A body, from where it broke off if it does.
pub(in crate::store) struct Resumed {
    what: String,
    again: Again,
    at: u64,
    size_bytes: u64,
    pieces: Pieces,
    resumes: u32,
}

impl Resumed {
    pub fn new(what: &str, size_bytes: u64, first: HttpResponse, again: Again) -> Resumed {
        Resumed {
            what: what.to_owned(),
            again,
            at: 0,
            size_bytes,
            pieces: pieces(first),
            resumes: 0,
        }
    }

    pub async fn next(&mut self) -> Outcome<Option<Bytes>> {
        loop {
            match self.pieces.next().await {
                Some(Ok(piece)) => {
                    self.at += u64::try_from(piece.len()).unwrap_or(u64::MAX);
                    return Ok(Some(piece));
                }
                Some(Err(failure)) => self.resume(failure).await?,
                None if self.at < self.size_bytes => {
                    let message = format!("{}: the object ends early", self.what);
                    self.resume(Failure::new(Class::Corrupt, message)).await?;
                }
                None => return Ok(None),
            }
        }
    }

    async fn resume(&mut self, failure: Failure) -> Outcome<()> {
        self.resumes += 1;
        if self.resumes > RESUMES_MAX {
            return Err(failure);
        }
        let answer = (self.again)(self.at).await?;
        // Whoever answers with the whole has not understood the question.
        if self.at > 0 && answer.status().as_u16() != 206 {
            return Err(failure);
        }
        self.pieces = pieces(answer);
        Ok(())
    }

    fn stream(self) -> Pieces {
        smol::stream::unfold(Some(self), |body| async move {
            let mut body = body?;
            match body.next().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(body))),
                Ok(None) => None,
                Err(failure) => Some((Err(failure), None)),
            }
        })
        .boxed()
    }
}

fn pieces(answer: HttpResponse) -> Pieces {
    let stream = answer.into_body().bytes_stream();
    stream
        .map(|piece| piece.map_err(|e| fault::broken(&e)))
        .boxed()
}

const RESUMES_MAX: u32 = 5;
