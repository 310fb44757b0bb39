//! Plain bytes in, an object out.
//!
//! The hot path of a base backup: bytes go from the caller's buffer into the compressor, from its
//! output buffer into the envelope, from there into the sink, and are copied nowhere else.

use std::io::{self, Write};

use machine::Class;
use sha2::{Digest, Sha256};
use snap::write::FrameEncoder;
use xz2::stream::{Check, Stream};
use xz2::write::XzEncoder;
use zstd::zstd_safe::CParameter;

use super::{Compression, Encoding, Envelope, count, gcm, pghoa1};
use crate::failure::{Failure, Outcome};

/// A frame of several workers is cut into jobs of this size, each of which is buffered. Measured
/// with two workers at level 3: 13 MB with these, 74 MB with zstd's own choice of four windows (8
/// MiB), for 0.7 % of ratio and the same CPU.
const JOB_BYTES: u32 = 1024 * 1024;

/// Content up to this size is compressed in one go: a WAL segment of the default size. Measured
/// with zstd 3: 37 ms of CPU a segment, 50 through a window that moves. It is held in memory for
/// that, and so is what comes out.
pub const WHOLE_MAX: u64 = 16 * 1024 * 1024;

/// What passed through an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Of the bytes that came out: stores keep it, and need not read a large object for it.
    pub sha256: [u8; 32],
}

/// Compresses and encrypts what is written to it. The object is complete only after
/// [`Encoder::finish`]: what a dropped encoder leaves in the sink is rubbish.
pub struct Encoder<W: Write> {
    compressor: Compressor<Sealer<Summed<W>>>,
    bytes_in: u64,
}

impl<W: Write> Encoder<W> {
    /// For content of any size.
    pub fn new(sink: W, encoding: &Encoding) -> Outcome<Encoder<W>> {
        Encoder::sized(sink, encoding, u64::MAX)
    }

    /// For content of at most so many bytes: cheaper up to [`WHOLE_MAX`].
    pub fn sized(sink: W, encoding: &Encoding, bytes_max: u64) -> Outcome<Encoder<W>> {
        let summed = Summed {
            sink,
            bytes: 0,
            sha256: Sha256::new(),
        };
        let sealer = Sealer::new(summed, encoding)?;
        Ok(Encoder {
            compressor: Compressor::new(sealer, encoding, bytes_max)?,
            bytes_in: 0,
        })
    }

    pub fn finish(self) -> Outcome<(W, Encoded)> {
        let summed = self
            .compressor
            .finish()
            .and_then(Sealer::finish)
            .map_err(|error| Failure::from_io(&error, "finishing an encoded object"))?;
        let encoded = Encoded {
            bytes_in: self.bytes_in,
            bytes_out: summed.bytes,
            sha256: summed.sha256.finalize().into(),
        };
        Ok((summed.sink, encoded))
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, plain: &[u8]) -> io::Result<usize> {
        let taken = self.compressor.writer().write(plain)?;
        self.bytes_in += count(taken);
        Ok(taken)
    }

    /// Does nothing: a compressor that is flushed early compresses badly, and an object is of no
    /// use before its end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Compressor<W: Write> {
    Snappy(Box<FrameEncoder<W>>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
    Whole(Whole<W>),
    Lzma(XzEncoder<W>),
}

impl<W: Write> Compressor<W> {
    fn new(sink: W, encoding: &Encoding, bytes_max: u64) -> Outcome<Compressor<W>> {
        let whole = bytes_max <= WHOLE_MAX && encoding.threads <= 1;
        match encoding.compression {
            Compression::Snappy => Ok(Compressor::Snappy(Box::new(FrameEncoder::new(sink)))),
            Compression::Zstd if whole => {
                Whole::new(sink, encoding, bytes_max).map(Compressor::Whole)
            }
            Compression::Zstd => zstd(sink, encoding).map(Compressor::Zstd),
            Compression::Lzma => lzma(sink, encoding).map(Compressor::Lzma),
        }
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Compressor::Snappy(snappy) => snappy,
            Compressor::Zstd(zstd) => zstd,
            Compressor::Whole(whole) => whole,
            Compressor::Lzma(lzma) => lzma,
        }
    }

    fn finish(self) -> io::Result<W> {
        match self {
            Compressor::Snappy(mut snappy) => {
                snappy.flush()?;
                snappy
                    .into_inner()
                    .map_err(|error| error.error().kind().into())
            }
            Compressor::Zstd(zstd) => zstd.finish(),
            Compressor::Whole(whole) => whole.finish(),
            Compressor::Lzma(lzma) => lzma.finish(),
        }
    }
}

/// A zstd frame made when all of its content is there.
struct Whole<W> {
    sink: W,
    compressor: zstd::bulk::Compressor<'static>,
    plain: Vec<u8>,
}

impl<W: Write> Whole<W> {
    fn new(sink: W, encoding: &Encoding, bytes_max: u64) -> Outcome<Whole<W>> {
        check_level(encoding)?;
        let prepare = || {
            let mut compressor = zstd::bulk::Compressor::new(encoding.level)?;
            compressor.include_checksum(true)?;
            Ok(compressor)
        };
        Ok(Whole {
            sink,
            compressor: prepare().map_err(|error| cannot_start(encoding, &error))?,
            plain: Vec::with_capacity(room(usize::try_from(bytes_max).unwrap_or(usize::MAX))),
        })
    }

    fn finish(mut self) -> io::Result<W> {
        let mut frame = Vec::with_capacity(room(self.plain.len()));
        self.compressor
            .compress_to_buffer(&self.plain, &mut frame)?;
        self.sink.write_all(&frame)?;
        Ok(self.sink)
    }
}

impl<W> Write for Whole<W> {
    fn write(&mut self, plain: &[u8]) -> io::Result<usize> {
        self.plain.extend_from_slice(plain);
        Ok(plain.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// glibc keeps blocks of a size that was freed once, up to this one (`DEFAULT_MMAP_THRESHOLD_MAX`):
/// 45 MB for two encoders at rest. Larger ones go back at once, and pages that nobody touches cost
/// nothing.
const KEPT_MAX: usize = 32 * 1024 * 1024;
/// Of that little may be kept.
const LITTLE: usize = 1024 * 1024;

/// In bytes, for content of that size and for its frame.
fn room(bytes: usize) -> usize {
    let bound = zstd::zstd_safe::compress_bound(bytes);
    match bytes > LITTLE {
        true => bound.max(KEPT_MAX + 1),
        false => bound,
    }
}

fn check_level(encoding: &Encoding) -> Outcome<()> {
    let levels = zstd::compression_level_range();
    match levels.contains(&encoding.level) {
        true => Ok(()),
        false => Err(no_such_level(encoding, *levels.start(), *levels.end())),
    }
}

fn zstd<W: Write>(
    sink: W,
    encoding: &Encoding,
) -> Outcome<zstd::stream::write::Encoder<'static, W>> {
    check_level(encoding)?;
    let prepare = || {
        let mut encoder = zstd::stream::write::Encoder::new(sink, encoding.level)?;
        encoder.include_checksum(true)?;
        if encoding.threads > 1 {
            encoder.multithread(encoding.threads)?;
            encoder.set_parameter(CParameter::JobSize(JOB_BYTES))?;
        }
        Ok(encoder)
    };
    prepare().map_err(|error| cannot_start(encoding, &error))
}

fn cannot_start(encoding: &Encoding, error: &io::Error) -> Failure {
    let (level, threads) = (encoding.level, encoding.threads);
    Failure::new(
        Class::Internal,
        format!("starting zstd at level {level} with {threads} threads: {error}"),
    )
}

fn lzma<W: Write>(sink: W, encoding: &Encoding) -> Outcome<XzEncoder<W>> {
    let preset = u32::try_from(encoding.level)
        .ok()
        .filter(|preset| *preset <= 9)
        .ok_or_else(|| no_such_level(encoding, 0, 9))?;
    let stream = Stream::new_easy_encoder(preset, Check::Crc64).map_err(|error| {
        Failure::new(
            Class::Internal,
            format!("starting lzma at level {preset}: {error}"),
        )
    })?;
    Ok(XzEncoder::new_stream(sink, stream))
}

fn no_such_level(encoding: &Encoding, low: i32, high: i32) -> Failure {
    Failure::new(
        Class::Config,
        format!(
            "{} has no compression level {}: expected {low} to {high}",
            encoding.compression, encoding.level
        ),
    )
}

enum Sealer<W> {
    Plain(W),
    Gcm(gcm::Writer<W>),
    Pghoa1(pghoa1::Writer<W>),
}

impl<W: Write> Sealer<W> {
    fn new(sink: W, encoding: &Encoding) -> Outcome<Sealer<W>> {
        let Some(encryption) = &encoding.encryption else {
            return Ok(Sealer::Plain(sink));
        };
        match encryption.envelope {
            Envelope::AesGcm => gcm::Writer::new(sink, &encryption.key).map(Sealer::Gcm),
            Envelope::Pghoa1 => pghoa1::Writer::new(sink, &encryption.key).map(Sealer::Pghoa1),
        }
    }

    fn finish(self) -> io::Result<W> {
        match self {
            Sealer::Plain(sink) => Ok(sink),
            Sealer::Gcm(writer) => writer.finish(),
            Sealer::Pghoa1(writer) => writer.finish(),
        }
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sealer::Plain(sink) => sink.write(bytes),
            Sealer::Gcm(writer) => writer.write(bytes),
            Sealer::Pghoa1(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sealer::Plain(sink) => sink.flush(),
            Sealer::Gcm(writer) => writer.flush(),
            Sealer::Pghoa1(writer) => writer.flush(),
        }
    }
}

struct Summed<W> {
    sink: W,
    bytes: u64,
    sha256: Sha256,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.sink.write(bytes)?;
        self.sha256.update(bytes.get(..taken).unwrap_or_default());
        self.bytes += count(taken);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
