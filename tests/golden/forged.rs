//! What must not pass: every damage to an encrypted object, the damages the metadata gives away,
//! and wrong keys; each with one clear line.

use std::fs;
use std::io::{self, Read};

use machine::Class;
use pghoard::codec::keys::Keyring;
use pghoard::codec::{self, Compression, Envelope};
use pghoard::store::Metadata;

use crate::written::{encode, encoding};
use crate::{SMALL_KEY, decode, decode_as, keyring, metadata, path, says};

const ENVELOPES: [Envelope; 2] = [Envelope::AesGcm, Envelope::Pghoa1];

/// Metadata that gives nothing away: the envelope alone must notice.
fn mute(compression: Compression, key_id: &str) -> Metadata {
    says(&[
        ("compression-algorithm", compression.name()),
        ("encryption-key-id", key_id),
    ])
}

fn refused(stored: Vec<u8>, announced: u64, metadata: &Metadata, keys: &Keyring, what: &str) {
    match decode_as(stored, announced, metadata, keys) {
        Ok(_) => panic!("accepted: {what}"),
        // One byte of our envelope is a version number, and any other is not ours to judge.
        Err(failure) => assert!(
            matches!(failure.class, Class::Corrupt | Class::Unsupported),
            "{what}: {failure}"
        ),
    }
}

#[test]
fn every_changed_bit_of_a_small_encrypted_object_is_refused() {
    let keys = keyring();
    for (name, stored, metadata) in small_objects(&keys) {
        let size = stored.len().try_into().unwrap();
        assert!(decode(stored.clone(), &metadata, &keys).is_ok(), "{name}");
        for at in 0..stored.len() {
            for bit in 0..8 {
                let mut forged = stored.clone();
                forged[at] ^= 1 << bit;
                refused(
                    forged,
                    size,
                    &metadata,
                    &keys,
                    &format!("{name}: bit {bit} of {at}"),
                );
            }
        }
    }
}

#[test]
fn s18_every_missing_or_added_end_of_a_small_encrypted_object_is_refused() {
    let keys = keyring();
    for (name, stored, metadata) in small_objects(&keys) {
        let size: u64 = stored.len().try_into().unwrap();
        // At 0 announced bytes nothing is left to tell an emptied object from an empty one.
        for left in 1..stored.len() {
            let what = format!("{name}: {left} of {size} bytes");
            let cut = stored[..left].to_vec();
            refused(
                cut.clone(),
                left.try_into().unwrap(),
                &metadata,
                &keys,
                &what,
            );
            refused(cut, size, &metadata, &keys, &what);
        }
        refused(Vec::new(), size, &metadata, &keys, &name);
        for added in [1, 16, 32, 200] {
            let long = [&stored[..], &vec![0; added]].concat();
            let what = format!("{name}: {added} more bytes");
            refused(
                long.clone(),
                long.len().try_into().unwrap(),
                &metadata,
                &keys,
                &what,
            );
            refused(long, size, &metadata, &keys, &what);
        }
    }
}

/// PGHoard's worked example, and one object of each envelope and compression.
fn small_objects(keys: &Keyring) -> Vec<(String, Vec<u8>, Metadata)> {
    let example = fs::read(path("worked-example-1024/hello.snappy.enc")).unwrap();
    let name = "worked example".to_owned();
    let mut objects = vec![(name, example, mute(Compression::Snappy, SMALL_KEY))];
    for envelope in ENVELOPES {
        for compression in [Compression::Snappy, Compression::Zstd] {
            let encoding = encoding(compression, Some(envelope), keys);
            let (stored, _) = encode(b"some plain bytes", 100, &encoding);
            let metadata = mute(compression, SMALL_KEY);
            objects.push((format!("{envelope} {compression}"), stored, metadata));
        }
    }
    objects
}

#[test]
fn sampled_damage_to_large_encrypted_objects_is_refused() {
    let keys = keyring();
    let mut plain = vec![0; 400_000];
    fastrand::Rng::with_seed(1).fill(&mut plain);
    let mut objects: Vec<(String, Vec<u8>, Metadata)> = ENVELOPES
        .map(|envelope| {
            let encoding = encoding(Compression::Zstd, Some(envelope), &keys);
            let (stored, _) = encode(&plain, 65536, &encoding);
            (
                format!("{envelope}"),
                stored,
                mute(Compression::Zstd, SMALL_KEY),
            )
        })
        .into();
    for compression in [Compression::Snappy, Compression::Zstd, Compression::Lzma] {
        let name = format!("units/{compression}-enc/mixed.bin");
        let stored = fs::read(path(&name)).unwrap();
        objects.push((name, stored, mute(compression, "goldenkey3072")));
    }
    let mut random = fastrand::Rng::with_seed(2);
    for (name, stored, metadata) in objects {
        let size = stored.len().try_into().unwrap();
        for _ in 0..60 {
            let at = random.usize(0..stored.len());
            let mut forged = stored.clone();
            forged[at] ^= 1 << random.u8(0..8);
            refused(
                forged,
                size,
                &metadata,
                &keys,
                &format!("{name}: changed at {at}"),
            );
            let cut = stored[..at].to_vec();
            refused(
                cut,
                at.max(1).try_into().unwrap(),
                &metadata,
                &keys,
                &format!("{name}: {at}"),
            );
        }
    }
}

#[test]
fn an_emptied_object_is_refused_when_anything_tells() {
    let keys = keyring();
    let mut metadata = mute(Compression::Snappy, SMALL_KEY);
    assert_eq!(decode(Vec::new(), &metadata, &keys).unwrap(), b"");
    metadata.insert("original-file-size".to_owned(), "0".to_owned());
    assert_eq!(decode(Vec::new(), &metadata, &keys).unwrap(), b"");
    metadata.insert("original-file-size".to_owned(), "1".to_owned());
    refused(Vec::new(), 0, &metadata, &keys, "announced 1");
    for compression in [Compression::Zstd, Compression::Lzma] {
        refused(
            Vec::new(),
            0,
            &mute(compression, SMALL_KEY),
            &keys,
            compression.name(),
        );
        let plain = says(&[("compression-algorithm", compression.name())]);
        refused(Vec::new(), 0, &plain, &keys, compression.name());
    }
}

/// Without encryption the codecs' own checks and the metadata are what there is.
#[test]
fn s18_a_plain_object_that_ends_early_or_goes_on_is_refused() {
    let keys = keyring();
    for compression in ["snappy", "zstd", "lzma"] {
        let object = path(&format!("units/{compression}/mixed.bin"));
        let stored = fs::read(&object).unwrap();
        let full = metadata(&object);
        let bare = says(&[("compression-algorithm", compression)]);
        for left in (1..stored.len())
            .step_by(997)
            .chain([1, 2, 3, 4, 9, stored.len() - 1])
        {
            let cut = stored[..left].to_vec();
            let size = left.try_into().unwrap();
            refused(
                cut.clone(),
                size,
                &full,
                &keys,
                &format!("{compression}: {left}"),
            );
            // Snappy has no end mark: cut between blocks it is whole, and only the size tells.
            if compression != "snappy" {
                refused(
                    cut,
                    size,
                    &bare,
                    &keys,
                    &format!("{compression} alone: {left}"),
                );
            }
        }
        for tail in [&b"x"[..], b"xyz", b"more bytes", &[0; 3]] {
            let long = [&stored[..], tail].concat();
            let size = long.len().try_into().unwrap();
            refused(
                long,
                size,
                &bare,
                &keys,
                &format!("{compression} and {tail:?}"),
            );
        }
    }
}

/// Older writers and other tools cut streams in pieces; PGHoard's reader takes them.
#[test]
fn streams_in_several_pieces_are_read_through() {
    let keys = keyring();
    for compression in ["snappy", "zstd", "lzma"] {
        let stored = fs::read(path(&format!("units/{compression}/mixed.bin"))).unwrap();
        let plain = fs::read(path("plain/mixed.bin")).unwrap();
        let bare = says(&[("compression-algorithm", compression)]);
        let twice = decode([&stored[..], &stored].concat(), &bare, &keys).unwrap();
        assert!(twice == [&plain[..], &plain].concat(), "{compression}");
    }
    let unknown = b"\xff\x06\x00\x00sNaPpY\x80\x03\x00\x00abc\x01\x05\x00\x00";
    let mut skipping = unknown.to_vec();
    let sum = crc32c::crc32c(b"x")
        .rotate_right(15)
        .wrapping_add(0xa282_ead8);
    skipping.extend_from_slice(&sum.to_le_bytes());
    skipping.push(b'x');
    let bare = says(&[("compression-algorithm", "snappy")]);
    assert_eq!(decode(skipping, &bare, &keys).unwrap(), b"x");
}

/// A key of the metadata of `units/zstd-enc/hello.txt` with another value, and what comes of it.
const WRONG_METADATA: [((&str, &str), Class, &str); 8] = [
    (
        ("encryption-key-id", "gone"),
        Class::Config,
        "file is encrypted with key 'gone' but that key's private part is not configured",
    ),
    (
        ("encryption-key-id", SMALL_KEY),
        Class::Corrupt,
        "the file key cannot be unwrapped: wrong private key or damaged header",
    ),
    (
        ("compression-algorithm", "lz4"),
        Class::Config,
        "compression algorithm 'lz4' is not snappy, zstd or lzma",
    ),
    (
        ("original-file-size", "big"),
        Class::Corrupt,
        "metadata 'original-file-size' is 'big', expected a number",
    ),
    (
        ("original-file-size", "14"),
        Class::Corrupt,
        "object: it holds more than the announced 14 bytes",
    ),
    (
        ("original-file-size", "16"),
        Class::Corrupt,
        "object: it holds 15 bytes, expected the announced 16",
    ),
    (
        ("hash", "00"),
        Class::Corrupt,
        "object: its sha1 digest is dbd9c17c41c9c1e5846de1a19b74af9f65f1db71, expected the \
         announced 00",
    ),
    (
        ("hash-algorithm", "crc32"),
        Class::Config,
        "hash algorithm 'crc32' is not one of sha1, sha224, sha256, sha384, sha512, md5, \
         blake2b, blake2s",
    ),
];

/// What is wrong, in one line that names it.
#[test]
fn every_refusal_says_what_is_wrong() {
    let keys = keyring();
    let object = path("units/zstd-enc/hello.txt");
    let (stored, good) = (fs::read(&object).unwrap(), metadata(&object));
    for ((key, value), class, message) in WRONG_METADATA {
        let mut metadata = good.clone();
        metadata.insert(key.to_owned(), value.to_owned());
        let failure = decode(stored.clone(), &metadata, &keys).unwrap_err();
        assert_eq!(failure.message, message);
        assert_eq!(failure.class, class, "{message}");
    }
    let failure = decode(b"plain text".to_vec(), &good, &keys).unwrap_err();
    assert!(
        failure.message.starts_with("not an encrypted object"),
        "{failure}"
    );
    let failure = decode_as(stored.clone(), 449, &good, &keys).unwrap_err();
    assert_eq!(
        failure.message,
        "only 448 of the expected 449 bytes are stored"
    );
    let failure = decode_as(stored, 400, &good, &keys).unwrap_err();
    assert_eq!(failure.class, Class::Corrupt, "{failure}");
    let upper = good["hash"].to_uppercase();
    let mut shouting = good;
    shouting.insert("hash".to_owned(), upper);
    let stored = fs::read(&object).unwrap();
    assert!(
        decode(stored, &shouting, &keys).is_ok(),
        "digests compare without case"
    );
}

/// A store that hangs up is a matter for another try, not a damaged object.
#[test]
fn an_error_of_the_source_keeps_its_class() {
    struct HangsUp(io::Cursor<Vec<u8>>);
    impl Read for HangsUp {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                got => Ok(got),
            }
        }
    }
    let object = path("units/snappy-enc/mixed.bin");
    let stored = fs::read(&object).unwrap();
    let size = stored.len().try_into().unwrap();
    for left in [3, 100, 1000, 70_000] {
        let source = HangsUp(io::Cursor::new(stored[..left].to_vec()));
        let ended =
            codec::decoder(source, size, &metadata(&object), &keyring()).and_then(|mut reader| {
                io::copy(&mut reader, &mut io::sink())
                    .map_err(|error| pghoard::Failure::from_io(&error, "object"))
            });
        assert_eq!(ended.unwrap_err().class, Class::Network, "{left}");
    }
}
