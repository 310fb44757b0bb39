//! A body on its way out of the store.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use machine::Class;
use md5::Md5;
use object_store::GetResult;
use object_store::client::HttpResponseBody;
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

    pub fn new(key: &str, size_bytes: u64, body: HttpResponseBody, sum: Option<Sum>) -> Streamed {
        let pieces = body.bytes_stream().map(|piece| {
            piece.map_err(|e| match fault::failure(&e) {
                Some(failure) => failure,
                None => Failure::new(Class::Network, fault::root(&e)),
            })
        });
        Streamed::from(key, size_bytes, pieces.boxed(), sum)
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
