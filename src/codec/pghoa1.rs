//! PGHoard's envelope: AES-128-CTR under a fresh key, HMAC-SHA256 behind it.
//!
//! ```text
//! 0        6   "pghoa1"
//! 6        2   K, big-endian: length of the wrapped key, which is that of the RSA modulus
//! 8        K   RSA-OAEP (SHA-1, MGF1 with SHA-1, no label) of 64 bytes:
//!              16 AES key | 16 first counter block | 32 HMAC key
//! 8+K      N   AES-128-CTR of the compressed stream; the whole block counts, big-endian
//! 8+K+N    32  HMAC-SHA256 over the N bytes of ciphertext, header not included
//! ```
//!
//! An envelope into which nothing was ever written is 0 bytes, header and all: so PGHoard does.
//! Authority: rohmu/encryptor.py in Aiven's rohmu.
//!
//! The MAC comes last. A reader gives out bytes that are not yet authentic, and only end of file
//! without an error proves them: nothing may be committed before.

use std::io::{self, BufRead, Read, Write};

use aes::Aes128;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use hmac::{Hmac, KeyInit, Mac};
use machine::Class;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::keys::{Padding, PrivateKey, PublicKey};
use super::{count, damaged};
use crate::failure::{Failure, Outcome};

pub const MAGIC: &[u8; 6] = b"pghoa1";
const SECRET_BYTES: usize = 64;
const MAC_BYTES: usize = 32;
/// Pieces small enough for the second-level cache, large enough to hide the call per piece.
const PIECE_BYTES: usize = 64 * 1024;

type Secret = Zeroizing<[u8; SECRET_BYTES]>;

/// Encrypts what is written to it.
pub struct Writer<W> {
    sink: W,
    header: Option<Vec<u8>>,
    cipher: Ctr128BE<Aes128>,
    mac: Hmac<Sha256>,
    piece: Box<[u8]>,
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
        let wrapped = key.wrap(Padding::OaepSha1, secret.as_slice())?;
        Ok(Writer::with_secret(sink, &secret, &wrapped))
    }

    fn with_secret(sink: W, secret: &Secret, wrapped: &[u8]) -> Writer<W> {
        let length = u16::try_from(wrapped.len()).expect("an RSA modulus is at most 4096 bits");
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&length.to_be_bytes());
        header.extend_from_slice(wrapped);
        let (cipher, mac) = primitives(secret);
        Writer {
            sink,
            header: Some(header),
            cipher,
            mac,
            piece: vec![0; PIECE_BYTES].into_boxed_slice(),
        }
    }

    pub fn finish(mut self) -> io::Result<W> {
        if self.header.is_none() {
            self.sink.write_all(&self.mac.finalize().into_bytes())?;
        }
        Ok(self.sink)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, plain: &[u8]) -> io::Result<usize> {
        let length = plain.len().min(self.piece.len());
        let (Some(plain), Some(piece)) = (plain.get(..length), self.piece.get_mut(..length)) else {
            return Ok(0);
        };
        if length == 0 {
            return Ok(0);
        }
        if let Some(header) = self.header.take() {
            self.sink.write_all(&header)?;
        }
        self.cipher.apply_keystream_b2b(plain, piece);
        self.mac.update(piece);
        self.sink.write_all(piece)?;
        Ok(length)
    }

    /// Nothing is held back but the MAC, which only the end can give.
    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Decrypts a source whose length is known; [`BufRead`] so that decompressors copy nothing.
pub struct Reader<R> {
    source: R,
    cipher: Ctr128BE<Aes128>,
    mac: Hmac<Sha256>,
    /// Ciphertext not yet read.
    left_bytes: u64,
    verified: bool,
    piece: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<R: Read> Reader<R> {
    /// The source stands behind the magic of an object of `stored_bytes`.
    pub fn open(mut source: R, stored_bytes: u64, key: &PrivateKey) -> io::Result<Reader<R>> {
        let mut length = [0; 2];
        source.read_exact(&mut length)?;
        let length = u16::from_be_bytes(length);
        let around = count(MAGIC.len() + 2 + MAC_BYTES) + u64::from(length);
        let left_bytes = stored_bytes
            .checked_sub(around)
            .ok_or_else(|| damaged(format!("{stored_bytes} bytes are too few for pghoa1")))?;
        let mut wrapped = vec![0; usize::from(length)];
        source.read_exact(&mut wrapped)?;
        let unwrapped = key.unwrap(Padding::OaepSha1, &wrapped)?;
        let secret: [u8; SECRET_BYTES] = unwrapped
            .as_slice()
            .try_into()
            .map_err(|_| damaged("the unwrapped file key is not 64 bytes"))?;
        let (cipher, mac) = primitives(&Zeroizing::new(secret));
        Ok(Reader {
            source,
            cipher,
            mac,
            left_bytes,
            verified: false,
            piece: vec![0; PIECE_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
        })
    }

    fn fill(&mut self) -> io::Result<()> {
        let most = usize::try_from(self.left_bytes).map_or(PIECE_BYTES, |n| n.min(PIECE_BYTES));
        let room = self
            .piece
            .get_mut(..most)
            .expect("at most the piece's length");
        let got = match most {
            0 => 0,
            _ => match self.source.read(room)? {
                0 => return Err(damaged("the encrypted stream ends early")),
                got => got,
            },
        };
        let piece = room
            .get_mut(..got)
            .expect("a read gives at most the room it was given");
        self.mac.update(piece);
        self.cipher.apply_keystream(piece);
        self.left_bytes -= count(got);
        if self.left_bytes == 0 {
            self.verify()?;
        }
        (self.start, self.end) = (0, got);
        Ok(())
    }

    /// Before the last piece is given out, so that a reader who stops there is safe as well.
    fn verify(&mut self) -> io::Result<()> {
        let mut footer = [0; MAC_BYTES];
        self.source.read_exact(&mut footer)?;
        self.mac
            .clone()
            .verify_slice(&footer)
            .map_err(|_| damaged("the message authentication code does not match"))?;
        if self.source.read(&mut [0])? != 0 {
            return Err(damaged("bytes follow the message authentication code"));
        }
        self.verified = true;
        Ok(())
    }
}

impl<R: Read> BufRead for Reader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end && !self.verified {
            self.fill()?;
        }
        Ok(self.piece.get(self.start..self.end).unwrap_or_default())
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

fn primitives(secret: &Secret) -> (Ctr128BE<Aes128>, Hmac<Sha256>) {
    let (aes_key, rest) = secret.split_first_chunk::<16>().expect("64 bytes hold 16");
    let (counter, mac_key) = rest.split_first_chunk::<16>().expect("48 bytes hold 16");
    let mac = Hmac::new_from_slice(mac_key).expect("HMAC takes a key of any length");
    (Ctr128BE::new(aes_key.into(), counter.into()), mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: &str = include_str!("../../tests/golden/worked-example-1024/private.pem");
    const EXAMPLE: &[u8] =
        include_bytes!("../../tests/golden/worked-example-1024/hello.snappy.enc");
    /// Appendix A.1 of the compatibility reference: "hello, pghoard\n" in snappy framing.
    const SNAPPY: &[u8] = b"\xff\x06\x00\x00sNaPpY\x01\x13\x00\x00\xdb\xac\x5a\x13hello, pghoard\n";

    #[test]
    fn fixed_randomness_gives_pghoards_bytes() {
        let mut secret = Secret::new([0; SECRET_BYTES]);
        for (at, byte) in secret.iter_mut().enumerate() {
            *byte = u8::try_from(at).unwrap();
        }
        let mut writer = Writer::with_secret(Vec::new(), &secret, &EXAMPLE[8..0x88]);
        for byte in SNAPPY {
            writer.write_all(&[*byte]).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), EXAMPLE);
    }

    #[test]
    fn pghoards_bytes_are_read_in_pieces_of_any_size() {
        let key = PrivateKey::from_pem(PRIVATE).unwrap();
        for size in [1, 7, 33, 100] {
            let source = &EXAMPLE[MAGIC.len()..];
            let mut reader = Reader::open(source, count(EXAMPLE.len()), &key).unwrap();
            let mut plain = Vec::new();
            let mut buffer = vec![0; size];
            loop {
                match reader.read(&mut buffer).unwrap() {
                    0 => break,
                    got => plain.extend_from_slice(&buffer[..got]),
                }
            }
            assert_eq!(plain, SNAPPY);
        }
    }

    #[test]
    fn nothing_written_is_nothing_stored() {
        let public = include_str!("../../tests/golden/worked-example-1024/public.pem");
        let mut writer = Writer::new(Vec::new(), &PublicKey::from_pem(public).unwrap()).unwrap();
        writer.write_all(b"").unwrap();
        assert!(writer.finish().unwrap().is_empty());
    }
}
