//! An object in, plain bytes out, and nothing believed.

use std::io::{self, BufRead, BufReader, Read};

use machine::Class;
use snap::read::FrameDecoder;
use xz2::bufread::XzDecoder;
use xz2::stream::{CONCATENATED, Stream};

use super::digest::{Algorithm, Digest};
use super::keys::{Keyring, PrivateKey};
use super::{Compression, count, damaged, gcm, pghoa1};
use crate::failure::{Failure, Outcome};
use crate::store::Metadata;

/// One read of the source; the envelopes work in pieces of the same size.
const BUFFER_BYTES: usize = 64 * 1024;
/// xz preset 9, the largest PGHoard can write, needs 65 MiB; a damaged header may ask for 4 GiB.
const LZMA_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// A reader of the plain bytes of an object of `stored_size` bytes.
///
/// Reading to end of file without an error means that every byte was authentic, the compressed
/// stream was seen to its end, nothing trailed it, exactly `stored_size` bytes were there, and
/// the plain bytes have the size and digest that the metadata announces (`original-file-size`,
/// `hash` with `hash-algorithm`), where it does. Any violation is an error that wraps a failure of
/// class corrupt; [`Failure::from_io`] gets it back. An error is final: later reads repeat it.
///
/// Before end of file nothing is proved. In PGHoard's envelope the authentication code comes
/// last, and size and digest always do: a caller must not commit what it made of the bytes before
/// it saw the end.
///
/// Here already, before anything is returned: the key must be there, the header be sound and the
/// first bytes be authentic (for `pghoa1` only if they are the last as well). The failures do not
/// name the object, which the codec does not know: [`Failure::about`] does.
pub fn decoder(
    source: impl Read + Send + 'static,
    stored_size: u64,
    metadata: &Metadata,
    keys: &Keyring,
) -> Outcome<Box<dyn Read + Send>> {
    let compression = match metadata.get("compression-algorithm") {
        Some(name) => Some(name.parse::<Compression>()?),
        None => None,
    };
    let key = match metadata.get("encryption-key-id") {
        Some(id) => Some(keys.private(id)?),
        None => None,
    };
    let announced = Announced::new(metadata)?;
    let source = Exact {
        source,
        stored_bytes: stored_size,
        left_bytes: stored_size,
    };
    let stream = unseal(source, stored_size, key)
        .and_then(|sealed| Stage::new(sealed, compression))
        .map_err(|error| classify(&error, compression))?;
    Ok(Box::new(Verified {
        stream,
        compression,
        announced,
        plain_bytes: 0,
        state: State::Reading,
    }))
}

type Source = Box<dyn BufRead + Send>;

fn unseal(
    mut source: impl Read + Send + 'static,
    stored_bytes: u64,
    key: Option<&PrivateKey>,
) -> io::Result<Source> {
    // PGHoard stores an empty snappy stream as nothing at all, encrypted or not.
    let (Some(key), 1..) = (key, stored_bytes) else {
        return Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, source)));
    };
    let mut magic = [0; 6];
    source.read_exact(&mut magic)?;
    match &magic {
        pghoa1::MAGIC => Ok(Box::new(pghoa1::Reader::open(source, stored_bytes, key)?)),
        gcm::MAGIC => Ok(Box::new(gcm::Reader::open(source, stored_bytes, key)?)),
        _ => Err(damaged(
            "not an encrypted object: it starts with neither 'pghoa1' nor 'pghgcm'",
        )),
    }
}

enum Stage {
    Plain(Source),
    Snappy(Box<FrameDecoder<Source>>),
    Zstd(zstd::stream::read::Decoder<'static, Source>),
    Lzma(XzDecoder<Source>),
}

impl Stage {
    fn new(mut source: Source, compression: Option<Compression>) -> io::Result<Stage> {
        let empty = source.fill_buf()?.is_empty();
        match compression {
            None => Ok(Stage::Plain(source)),
            Some(Compression::Snappy) => Ok(Stage::Snappy(Box::new(FrameDecoder::new(source)))),
            // Only snappy turns nothing into nothing; the others would take it for an end.
            Some(other) if empty => Err(damaged(format!("it is empty, expected a {other} stream"))),
            Some(Compression::Zstd) => {
                zstd::stream::read::Decoder::with_buffer(source).map(Stage::Zstd)
            }
            Some(Compression::Lzma) => {
                let stream = Stream::new_auto_decoder(LZMA_BYTES_MAX, CONCATENATED)?;
                Ok(Stage::Lzma(XzDecoder::new_stream(source, stream)))
            }
        }
    }

    fn reader(&mut self) -> &mut dyn Read {
        match self {
            Stage::Plain(source) => source,
            Stage::Snappy(snappy) => snappy,
            Stage::Zstd(zstd) => zstd,
            Stage::Lzma(lzma) => lzma,
        }
    }

    fn source(&mut self) -> &mut Source {
        match self {
            Stage::Plain(source) => source,
            Stage::Snappy(snappy) => snappy.get_mut(),
            Stage::Zstd(zstd) => zstd.get_mut(),
            Stage::Lzma(lzma) => lzma.get_mut(),
        }
    }
}

/// What the metadata says about the plain bytes.
struct Announced {
    size: Option<u64>,
    hash: Option<(Algorithm, Digest, String)>,
}

impl Announced {
    fn new(metadata: &Metadata) -> Outcome<Announced> {
        let size = match metadata.get("original-file-size") {
            Some(text) => Some(text.parse().map_err(|_| {
                Failure::new(
                    Class::Corrupt,
                    format!("metadata 'original-file-size' is '{text}', expected a number"),
                )
            })?),
            None => None,
        };
        let hash = match (metadata.get("hash"), metadata.get("hash-algorithm")) {
            (Some(hash), Some(name)) => {
                let algorithm: Algorithm = name.parse()?;
                Some((algorithm, Digest::new(algorithm), hash.to_ascii_lowercase()))
            }
            _ => None,
        };
        Ok(Announced { size, hash })
    }
}

struct Verified {
    stream: Stage,
    compression: Option<Compression>,
    announced: Announced,
    plain_bytes: u64,
    state: State,
}

enum State {
    Reading,
    Ended,
    Failed(Failure),
}

impl Verified {
    fn advance(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.stream.reader().read(buffer)?;
        if got == 0 {
            self.conclude()?;
            self.state = State::Ended;
            return Ok(0);
        }
        self.plain_bytes += count(got);
        if let Some((_, digest, _)) = &mut self.announced.hash {
            digest.update(buffer.get(..got).unwrap_or_default());
        }
        match self.announced.size {
            // A bomb or another object: said at once, not after filling the disk.
            Some(size) if self.plain_bytes > size => Err(damaged(format!(
                "it holds more than the announced {size} bytes"
            ))),
            _ => Ok(got),
        }
    }

    fn conclude(&mut self) -> io::Result<()> {
        if !self.stream.source().fill_buf()?.is_empty() {
            return Err(damaged("bytes follow the end of the compressed stream"));
        }
        if let Some(size) = self.announced.size
            && size != self.plain_bytes
        {
            return Err(damaged(format!(
                "it holds {} bytes, expected the announced {size}",
                self.plain_bytes
            )));
        }
        if let Some((algorithm, digest, expected)) = self.announced.hash.take() {
            let found = digest.hex();
            if found != expected {
                return Err(damaged(format!(
                    "its {algorithm} digest is {found}, expected the announced {expected}"
                )));
            }
        }
        Ok(())
    }
}

impl Read for Verified {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.state {
            State::Ended => return Ok(0),
            State::Failed(failure) => return Err(failure.clone().into()),
            State::Reading if buffer.is_empty() => return Ok(0),
            State::Reading => {}
        }
        self.advance(buffer).map_err(|error| {
            let failure = classify(&error, self.compression);
            self.state = State::Failed(failure.clone());
            failure.into()
        })
    }
}

/// The source's errors arrive wrapped (see [`Exact`]) and so do ours: what is left is a
/// decompressor's complaint about its input.
fn classify(error: &io::Error, compression: Option<Compression>) -> Failure {
    let stream = compression.map_or("plain", Compression::name);
    let why = match error.kind() {
        io::ErrorKind::UnexpectedEof => format!("the {stream} stream ends early"),
        _ => format!("the {stream} stream is damaged: {error}"),
    };
    Failure::within(error).unwrap_or_else(|| Failure::new(Class::Corrupt, why))
}

/// Exactly the announced bytes of a source, whose errors it wraps. Interruptions end here, so that
/// nobody above takes one for damage.
struct Exact<R> {
    source: R,
    stored_bytes: u64,
    left_bytes: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let got = loop {
            match self.source.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(Failure::from_io(&error, "reading the stored bytes").into());
                }
                Ok(got) => break got,
            }
        };
        let stored = self.stored_bytes;
        match self.left_bytes.checked_sub(count(got)) {
            None => Err(damaged(format!(
                "more than the expected {stored} bytes are stored"
            ))),
            Some(left) if got == 0 && left > 0 => Err(damaged(format!(
                "only {} of the expected {stored} bytes are stored",
                stored - left
            ))),
            Some(left) => {
                self.left_bytes = left;
                Ok(got)
            }
        }
    }
}
