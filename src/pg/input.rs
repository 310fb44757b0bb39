//! The read buffer of a connection: 256 KiB that live as long as it does.
//!
//! A frame is a pair of offsets into the buffer, valid until room for more is asked for. The
//! buffer grows only for a single message that is larger, and shrinks again after it.

use std::io;

use postgres_protocol::message::backend::Header;

use super::fault::{Answer, Fault};

/// WAL comes in messages of at most 128 KiB, a base backup in 32 KiB: two of the former fit.
const BUFFER_BYTES: usize = 256 << 10;

/// No message we ask for comes near this: the largest, a timeline history, is kilobytes. A length
/// beyond it means that the peer is no PostgreSQL, and must not make us allocate it.
const MESSAGE_MAX_BYTES: usize = 64 << 20;

/// A message in the buffer: its tag and where its body lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub tag: u8,
    start: usize,
    end: usize,
}

/// Tag and length.
const HEADER_BYTES: usize = 5;

pub(super) struct Input {
    bytes: Vec<u8>,
    head: usize,
    tail: usize,
}

impl Input {
    pub(super) fn new() -> Input {
        Input {
            bytes: vec![0; BUFFER_BYTES],
            head: 0,
            tail: 0,
        }
    }

    fn unread(&self) -> &[u8] {
        self.bytes.get(self.head..self.tail).unwrap_or(&[])
    }

    /// The bytes the first message takes in all, once its header is here.
    fn needed(&self) -> io::Result<Option<(u8, usize)>> {
        let Some(header) = Header::parse(self.unread())? else {
            return Ok(None);
        };
        match usize::try_from(header.len()) {
            Ok(length) if length < MESSAGE_MAX_BYTES => Ok(Some((header.tag(), length + 1))),
            _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }

    pub(super) fn complete(&self) -> bool {
        // A header that is no header is for the next reader to find.
        let needed = self.needed().unwrap_or(Some((0, 0)));
        needed.is_some_and(|(_, size)| size <= self.unread().len())
    }

    pub(super) fn frame(&mut self, server: &str) -> Answer<Option<Frame>> {
        let needed = self.needed();
        let needed = needed.map_err(|_| Fault::protocol(server, "a message of at most 64 MiB"))?;
        let Some((tag, size)) = needed.filter(|(_, size)| *size <= self.unread().len()) else {
            return Ok(None);
        };
        let start = self.head + HEADER_BYTES;
        self.head += size;
        Ok(Some(Frame {
            tag,
            start,
            end: self.head,
        }))
    }

    /// Where to read to: never empty, and large enough for the message that has begun. Called
    /// only between whole messages, so what is moved to the front is less than one.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.head..self.tail, 0);
        (self.head, self.tail) = (0, self.tail - self.head);
        let size = self.needed().ok().flatten().map_or(0, |(_, size)| size);
        let target = size.max(BUFFER_BYTES).max(self.tail + 1);
        if self.bytes.len() != target {
            self.bytes.resize(target, 0);
            self.bytes.shrink_to(target);
        }
        self.bytes.get_mut(self.tail..).unwrap_or(&mut [])
    }

    pub(super) fn filled(&mut self, count: usize) {
        self.tail = self.tail.saturating_add(count).min(self.bytes.len());
    }

    /// Valid until [`Input::room`] is asked for.
    pub(super) fn body(&self, frame: Frame) -> &[u8] {
        self.bytes.get(frame.start..frame.end).unwrap_or(&[])
    }

    /// With tag and length, as the library wants it.
    pub(super) fn whole(&self, frame: Frame) -> &[u8] {
        let start = frame.start.saturating_sub(HEADER_BYTES);
        self.bytes.get(start..frame.end).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use machine::Class;

    use super::*;

    /// Messages of many sizes, delivered in pieces of many sizes, come out whole and in order.
    #[test]
    fn frames_survive_any_cut() {
        let sizes = [
            0,
            1,
            100,
            40_000,
            BUFFER_BYTES,
            300_000,
            7,
            BUFFER_BYTES - 5,
            131_072,
            3,
        ];
        let mut wire = Vec::new();
        for (at, size) in sizes.iter().enumerate() {
            wire.push(b'd');
            wire.extend(u32::try_from(size + 4).unwrap().to_be_bytes());
            wire.resize(wire.len() + size, u8::try_from(at).unwrap());
        }
        for piece in [1_usize, 3, 1000, 65_536, usize::MAX] {
            let mut input = Input::new();
            let (mut rest, mut found) = (&wire[..], Vec::new());
            loop {
                while let Some(frame) = input.frame("test").unwrap() {
                    let body = &input.bytes[frame.start..frame.end];
                    let value = u8::try_from(found.len()).unwrap();
                    assert!(body.iter().all(|b| *b == value));
                    found.push(body.len());
                }
                if rest.is_empty() {
                    break;
                }
                let room = input.room();
                let count = piece.min(room.len()).min(rest.len());
                assert!(count > 0);
                let (now, later) = rest.split_at(count);
                room[..count].copy_from_slice(now);
                input.filled(count);
                rest = later;
            }
            assert_eq!(found, sizes, "pieces of {piece}");
            input.room();
            assert_eq!(input.bytes.len(), BUFFER_BYTES);
        }
    }

    #[test]
    fn a_length_beyond_reason_is_refused() {
        for header in [
            [b'd', 0x7f, 0, 0, 0],
            [b'd', 0xff, 0, 0, 0],
            [b'd', 0, 0, 0, 3],
        ] {
            let mut input = Input::new();
            input.room()[..5].copy_from_slice(&header);
            input.filled(5);
            let fault = input.frame("test").unwrap_err();
            assert_eq!(fault.failure.class, Class::Corrupt);
        }
    }
}
