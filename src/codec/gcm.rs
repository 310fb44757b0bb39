//! Our envelope: AES-256-GCM in segments under a fresh key.
//!
//! ```text
//! 0        6   "pghgcm"
//! 6        1   version, 1
//! 7        2   K, big-endian: length of the wrapped key, which is that of the RSA modulus
//! 9        K   RSA-OAEP (SHA-256, MGF1 with SHA-256, no label) of 39 bytes:
//!              32 AES key | 7 nonce prefix
//! 9+K          segments, each the ciphertext of 65536 plain bytes and its 16-byte tag;
//!              the last one holds 0 to 65536 plain bytes and is always there
//! ```
//!
//! Nonce of segment i: 7 prefix | 4 i, big-endian, from 0 | 1 (last segment) or 0. Associated
//! data: the whole header for segment 0, none for the others (the key alone ties them to it).
//! This is STREAM (Hoang, Reyhanitabar, Rogaway, Vizar 2015): a segment that is changed, moved,
//! repeated, dropped or appended fails its tag, and so does an end at a segment boundary, because
//! only the true end was sealed with the last flag.
//!
//! Unlike PGHoard's envelope, every byte given out is authentic already; that nothing is missing
//! is still known only at end of file. Absent: any tie to the object's name, which the codec does
//! not know; a store that swaps two objects is caught by the digests above it.
//!
//! The largest object is 2^32 segments, 256 TiB.

use std::io::{self, BufRead, Read, Write};

use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit, Tag};
use machine::Class;
use zeroize::Zeroizing;

use super::keys::{Padding, PrivateKey, PublicKey};
use super::{count, damaged};
use crate::failure::{Failure, Outcome};

pub const MAGIC: &[u8; 6] = b"pghgcm";
const VERSION: u8 = 1;
const SEGMENT_BYTES: usize = 64 * 1024;
const TAG_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
const PREFIX_BYTES: usize = 7;
const SECRET_BYTES: usize = KEY_BYTES + PREFIX_BYTES;

type Secret = Zeroizing<[u8; SECRET_BYTES]>;

/// Encrypts what is written to it.
pub struct Writer<W> {
    sink: W,
    stream: Stream,
    /// Plain bytes of the segment being filled; sealed only when more come or the end does.
    segment: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub fn new(sink: W, key: &PublicKey) -> Outcome<Writer<W>> {
        let mut secret = Secret::new([0; SECRET_BYTES]);
        getrandom::fill(secret.as_mut()).map_err(|error| {
            Failure::new(
                Class::Internal,
                format!("no randomness for a file key: {error}"),
            )
        })?;
        let wrapped = key.wrap(Padding::OaepSha256, secret.as_slice())?;
        Ok(Writer {
            sink,
            stream: Stream::new(&secret, header(&wrapped)),
            segment: Vec::with_capacity(SEGMENT_BYTES + TAG_BYTES),
        })
    }

    pub fn finish(mut self) -> io::Result<W> {
        self.seal(Place::Last)?;
        Ok(self.sink)
    }

    fn seal(&mut self, place: Place) -> io::Result<()> {
        if self.stream.index == 0 {
            self.sink.write_all(&self.stream.header)?;
        }
        let tag = self.stream.seal(&mut self.segment, place)?;
        self.segment.extend_from_slice(&tag);
        self.sink.write_all(&self.segment)?;
        self.segment.clear();
        Ok(())
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, plain: &[u8]) -> io::Result<usize> {
        if self.segment.len() == SEGMENT_BYTES && !plain.is_empty() {
            self.seal(Place::Inner)?;
        }
        let taken = plain.len().min(SEGMENT_BYTES - self.segment.len());
        self.segment
            .extend_from_slice(plain.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    /// A segment is sealed when it is full or the last: flushing earlier would change the format.
    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Decrypts a source whose length is known; [`BufRead`] so that decompressors copy nothing.
pub struct Reader<R> {
    source: R,
    stream: Stream,
    /// Stored bytes not yet read; the end of them makes a segment the last.
    left_bytes: u64,
    segment: Box<[u8]>,
    start: usize,
    end: usize,
    finished: bool,
}

impl<R: Read> Reader<R> {
    /// The source stands behind the magic of an object of `stored_bytes`.
    pub fn open(mut source: R, stored_bytes: u64, key: &PrivateKey) -> io::Result<Reader<R>> {
        let mut fixed = [0; 3];
        source.read_exact(&mut fixed)?;
        let [version, high, low] = fixed;
        if version != VERSION {
            return Err(Failure::new(
                Class::Unsupported,
                format!("encrypted in version {version} of pghgcm, expected {VERSION}"),
            )
            .into());
        }
        let mut wrapped = vec![0; usize::from(u16::from_be_bytes([high, low]))];
        source.read_exact(&mut wrapped)?;
        let unwrapped = key.unwrap(Padding::OaepSha256, &wrapped)?;
        let secret: [u8; SECRET_BYTES] = unwrapped
            .as_slice()
            .try_into()
            .map_err(|_| damaged("the unwrapped file key is not 39 bytes"))?;
        let header = header(&wrapped);
        Ok(Reader {
            left_bytes: stored_bytes.saturating_sub(count(header.len())),
            source,
            stream: Stream::new(&Zeroizing::new(secret), header),
            segment: vec![0; SEGMENT_BYTES + TAG_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            finished: false,
        })
    }

    fn fill(&mut self) -> io::Result<()> {
        let full = self.segment.len();
        let stored = usize::try_from(self.left_bytes).map_or(full, |left| left.min(full));
        let sealed = self
            .segment
            .get_mut(..stored)
            .expect("at most the segment's length");
        self.source.read_exact(sealed)?;
        let (cipher, tag) = sealed
            .split_last_chunk_mut::<TAG_BYTES>()
            .ok_or_else(|| damaged("the encrypted stream ends early"))?;
        self.left_bytes -= count(stored);
        let place = match self.left_bytes {
            0 => Place::Last,
            _ => Place::Inner,
        };
        let plain_bytes = cipher.len();
        self.stream.open(cipher, place, tag)?;
        if place == Place::Last {
            if self.source.read(&mut [0])? != 0 {
                return Err(damaged("bytes follow the last encrypted segment"));
            }
            self.finished = true;
        }
        (self.start, self.end) = (0, plain_bytes);
        Ok(())
    }
}

impl<R: Read> BufRead for Reader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end && !self.finished {
            self.fill()?;
        }
        Ok(self.segment.get(self.start..self.end).unwrap_or_default())
    }

    fn consume(&mut self, bytes: usize) {
        self.start = self.end.min(self.start.saturating_add(bytes));
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.fill_buf()?.read(buffer)?;
        self.consume(got);
        Ok(got)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Inner,
    Last,
}

/// The construction itself, the same in both directions.
struct Stream {
    cipher: Aes256Gcm,
    prefix: [u8; PREFIX_BYTES],
    header: Vec<u8>,
    index: u64,
}

impl Stream {
    fn new(secret: &Secret, header: Vec<u8>) -> Stream {
        let (key, rest) = secret
            .split_first_chunk::<KEY_BYTES>()
            .expect("39 bytes hold 32");
        let prefix = *rest
            .first_chunk::<PREFIX_BYTES>()
            .expect("7 bytes are left");
        Stream {
            cipher: Aes256Gcm::new(key.into()),
            prefix,
            header,
            index: 0,
        }
    }

    fn seal(&mut self, plain: &mut [u8], place: Place) -> io::Result<[u8; TAG_BYTES]> {
        let nonce = self.nonce(place)?;
        let tag = self
            .cipher
            .encrypt_inout_detached(&nonce.into(), self.associated(), plain.into())
            .map_err(|_| Failure::new(Class::Internal, "a segment is too long for AES-GCM"))?;
        self.index += 1;
        Ok(tag.into())
    }

    fn open(&mut self, cipher: &mut [u8], place: Place, tag: &[u8; TAG_BYTES]) -> io::Result<()> {
        let nonce = self.nonce(place)?;
        self.cipher
            .decrypt_inout_detached(
                &nonce.into(),
                self.associated(),
                cipher.into(),
                &Tag::from(*tag),
            )
            .map_err(|_| damaged(format!("encrypted segment {} is not authentic", self.index)))?;
        self.index += 1;
        Ok(())
    }

    fn associated(&self) -> &[u8] {
        match self.index {
            0 => &self.header,
            _ => &[],
        }
    }

    fn nonce(&self, place: Place) -> io::Result<[u8; 12]> {
        let index = u32::try_from(self.index)
            .map_err(|_| Failure::new(Class::Unsupported, "an object of more than 256 TiB"))?;
        let mut nonce = [0; 12];
        let (prefix, rest) = nonce.split_at_mut(PREFIX_BYTES);
        let (counter, last) = rest.split_at_mut(4);
        prefix.copy_from_slice(&self.prefix);
        counter.copy_from_slice(&index.to_be_bytes());
        last.fill(u8::from(place == Place::Last));
        Ok(nonce)
    }
}

fn header(wrapped: &[u8]) -> Vec<u8> {
    let length = u16::try_from(wrapped.len()).expect("a wrapped key's length is 16 bits");
    let mut header = MAGIC.to_vec();
    header.push(VERSION);
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(wrapped);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: &str = include_str!("../../tests/golden/worked-example-1024/private.pem");
    const PUBLIC: &str = include_str!("../../tests/golden/worked-example-1024/public.pem");
    const HEADER: usize = 9 + 128;
    const SEALED: usize = SEGMENT_BYTES + TAG_BYTES;

    fn seal(plain: &[u8]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), &PublicKey::from_pem(PUBLIC).unwrap()).unwrap();
        writer.write_all(plain).unwrap();
        writer.finish().unwrap()
    }

    fn open(stored: &[u8]) -> io::Result<Vec<u8>> {
        let key = PrivateKey::from_pem(PRIVATE).unwrap();
        let mut plain = Vec::new();
        Reader::open(&stored[MAGIC.len()..], count(stored.len()), &key)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    fn pattern(bytes: usize) -> Vec<u8> {
        (0..=250).cycle().take(bytes).collect()
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        for (plain, segments) in [
            (0, 1),
            (1, 1),
            (SEGMENT_BYTES, 1),
            (SEGMENT_BYTES + 1, 2),
            (3 * SEGMENT_BYTES, 3),
        ] {
            let stored = seal(&pattern(plain));
            assert_eq!(
                stored.len(),
                HEADER + plain + segments * TAG_BYTES,
                "{plain}"
            );
            assert_eq!(stored[..9], *b"pghgcm\x01\x00\x80");
            assert_eq!(open(&stored).unwrap(), pattern(plain));
        }
    }

    /// Against the bare primitives, so that writer and reader cannot be wrong together.
    #[test]
    fn each_segment_opens_alone_under_its_documented_nonce() {
        use aes_gcm::aead::{Aead, Payload};
        let plain = pattern(SEGMENT_BYTES + 10);
        let stored = seal(&plain);
        let key = PrivateKey::from_pem(PRIVATE).unwrap();
        let secret = key.unwrap(Padding::OaepSha256, &stored[9..HEADER]).unwrap();
        let cipher = Aes256Gcm::new_from_slice(&secret[..32]).unwrap();
        let cut = HEADER + SEALED;
        for (msg, aad, place, expected) in [
            (
                &stored[HEADER..cut],
                &stored[..HEADER],
                [0, 0, 0, 0, 0],
                &plain[..SEGMENT_BYTES],
            ),
            (
                &stored[cut..],
                &[][..],
                [0, 0, 0, 1, 1],
                &plain[SEGMENT_BYTES..],
            ),
        ] {
            let nonce: [u8; 12] = [&secret[32..], &place].concat().try_into().unwrap();
            let opened = cipher.decrypt(&nonce.into(), Payload { msg, aad }).unwrap();
            assert_eq!(opened, expected);
        }
    }

    #[test]
    fn segments_cannot_be_dropped_repeated_moved_or_added() {
        let stored = seal(&pattern(3 * SEGMENT_BYTES + 5));
        let header = &stored[..HEADER];
        let segments: Vec<&[u8]> = stored[HEADER..].chunks(SEALED).collect();
        let [first, second, third, last] = segments[..] else {
            panic!("four segments")
        };
        let foreign = seal(b"another object");
        assert!(open(&[header, first, second, third, last].concat()).is_ok());
        for wrong in [
            vec![header],
            vec![header, first],
            vec![header, first, second, third],
            vec![header, first, second, last],
            vec![header, second, first, third, last],
            vec![header, first, first, second, third, last],
            vec![header, first, second, third, last, last],
            vec![header, first, second, third, last, &foreign[HEADER..]],
            vec![&foreign[..HEADER], first, second, third, last],
        ] {
            let sizes: Vec<usize> = wrong.iter().map(|part| part.len()).collect();
            let error = open(&wrong.concat()).unwrap_err();
            assert_eq!(
                Failure::from_io(&error, "").class,
                Class::Corrupt,
                "{sizes:?}"
            );
        }
    }

    #[test]
    fn a_later_version_is_refused_by_number() {
        let mut stored = seal(b"x");
        stored[6] = 2;
        let failure = Failure::from_io(&open(&stored).unwrap_err(), "main/xlog/1");
        assert_eq!(failure.class, Class::Unsupported);
        assert_eq!(
            failure.message,
            "main/xlog/1: encrypted in version 2 of pghgcm, expected 1"
        );
    }
}
