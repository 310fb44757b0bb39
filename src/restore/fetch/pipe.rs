//! A reader run ahead by a thread of its own, so that decoding and writing overlap.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// One piece of plain data.
const PIECE_BYTES: usize = 256 << 10;

/// Pieces decoded ahead: enough to bridge a slow write, small beside the decoder's window.
pub const PIECES_MAX: usize = 8;

/// The receiving end: reads what the thread has read.
pub struct Pipe {
    full: Receiver<io::Result<Vec<u8>>>,
    empty: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    start: usize,
}

/// Starts reading ahead. The thread ends with its source, at an error, or when the pipe is gone.
pub fn ahead(mut source: impl Read + Send + 'static) -> Pipe {
    let (send_full, full) = sync_channel(PIECES_MAX);
    let (empty, take_empty) = sync_channel::<Vec<u8>>(PIECES_MAX + 1);
    thread::spawn(move || {
        loop {
            let mut piece = take_empty.try_recv().unwrap_or_default();
            piece.clear();
            let limit = u64::try_from(PIECE_BYTES).unwrap_or(u64::MAX);
            let outcome = source.by_ref().take(limit).read_to_end(&mut piece);
            let last = !matches!(outcome, Ok(1..));
            if send_full.send(outcome.map(|_| piece)).is_err() || last {
                return;
            }
        }
    });
    Pipe {
        full,
        empty,
        piece: Vec::new(),
        start: 0,
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.start >= self.piece.len() {
            let lost = || io::Error::other("the decoding thread died");
            // Every piece is followed by another, an empty one at the end, or an error.
            let next = self.full.recv().map_err(|_| lost())??;
            let used = std::mem::replace(&mut self.piece, next);
            self.start = 0;
            // A full queue of empty pieces only means that this one is not used again.
            let _kept = self.empty.try_send(used);
        }
        let mut rest = self.piece.get(self.start..).unwrap_or(&[]);
        let count = rest.read(buffer)?;
        self.start += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_comes_in_order_and_then_the_end() {
        let bytes: Vec<u8> = (0u32..3_000_000).flat_map(u32::to_le_bytes).collect();
        let mut got = Vec::new();
        let mut pipe = ahead(io::Cursor::new(bytes.clone()));
        pipe.read_to_end(&mut got).unwrap();
        assert!(got == bytes);
    }

    #[test]
    fn an_error_comes_after_what_was_read() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let mut got = Vec::new();
        let source = io::Cursor::new(vec![1; PIECE_BYTES]).chain(Broken);
        let error = ahead(source).read_to_end(&mut got).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), got.len()),
            ("broken", PIECE_BYTES)
        );
    }
}
