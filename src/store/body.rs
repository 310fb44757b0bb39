//! What is to be stored, part by part.

use std::fs::File;
use std::os::unix::fs::FileExt;

use machine::Class;

use super::Body;
use crate::failure::{Failure, Outcome};

impl<'a> Body<'a> {
    /// A scratch file has to be as long as its writer says.
    pub(super) fn size_bytes(&self) -> Outcome<u64> {
        let scratch = match self {
            Body::Bytes(bytes) => return Ok(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Body::Scratch(scratch) => scratch,
        };
        let (shown, written) = (scratch.path.display(), scratch.size_bytes);
        let found = scratch.path.metadata();
        match found.map_err(|e| Failure::io(&e, &shown))?.len() {
            found if found == written => Ok(found),
            found => {
                let message = format!("{shown} has {found} bytes, its writer wrote {written}");
                Err(Failure::new(Class::Internal, message))
            }
        }
    }

    pub(super) fn open(&self) -> Outcome<Source<'a>> {
        Ok(match self {
            Body::Bytes(bytes) => Source::Bytes(bytes),
            Body::Scratch(scratch) => {
                let shown = scratch.path.display();
                let file = File::open(scratch.path).map_err(|e| Failure::io(&e, &shown))?;
                Source::File(file, shown.to_string())
            }
        })
    }
}

/// Read from several threads at a time.
pub(super) enum Source<'a> {
    Bytes(&'a [u8]),
    File(File, String),
}

impl Source<'_> {
    /// All of these bytes.
    pub fn read(&self, from: u64, count: u64) -> Outcome<Vec<u8>> {
        let length = usize::try_from(count).unwrap_or(usize::MAX);
        match self {
            Source::Bytes(bytes) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                let part = bytes.get(from..).and_then(|rest| rest.get(..length));
                Ok(part.unwrap_or_default().to_vec())
            }
            Source::File(file, shown) => {
                let mut bytes = vec![0; length];
                let read = file.read_exact_at(&mut bytes, from);
                read.map_err(|e| Failure::io(&e, shown))?;
                Ok(bytes)
            }
        }
    }
}
