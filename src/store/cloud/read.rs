//! A body on its way out of the store.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use machine::Class;
use object_store::GetResult;
use sha2::{Digest, Sha256};
use smol::stream::StreamExt;

use super::told;
use crate::failure::{Failure, Outcome};
use crate::store::wire::{Announced, run};

/// Exactly the announced bytes, with the announced digest if there is one; else it fails.
pub(super) struct Streamed {
    key: String,
    stream: Pieces,
    piece: Bytes,
    left_bytes: u64,
    digest: Option<(Sha256, Announced)>,
}

type Pieces = smol::stream::Boxed<object_store::Result<Bytes>>;

impl Streamed {
    pub fn new(key: &str, found: GetResult) -> Streamed {
        let announced = found.extensions.get::<Announced>().copied();
        Streamed {
            key: key.to_owned(),
            left_bytes: found.meta.size,
            digest: announced.map(|announced| (Sha256::new(), announced)),
            stream: found.into_stream(),
            piece: Bytes::new(),
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
            self.piece = piece.map_err(|e| told(&e).about(&self.key))?;
            let count = u64::try_from(self.piece.len()).unwrap_or(u64::MAX);
            let left = self.left_bytes.checked_sub(count);
            let left = left.ok_or_else(|| self.wrong("the object is longer than announced"));
            self.left_bytes = left?;
            if let Some((digest, _)) = &mut self.digest {
                digest.update(&self.piece);
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Outcome<()> {
        if self.left_bytes > 0 {
            return Err(self.wrong("the object ends early"));
        }
        let Some((digest, Announced(announced))) = self.digest.take() else {
            return Ok(());
        };
        let found: [u8; 32] = digest.finalize().into();
        match found == announced {
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
