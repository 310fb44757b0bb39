//! What we write: read back by us, byte for byte where it is fixed, and by OpenSSL.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use machine::Class;
use pghoard::codec::encode::WHOLE_MAX;
use pghoard::codec::keys::Keyring;
use pghoard::codec::{Compression, Encoded, Encoder, Encoding, Encryption, Envelope};
use pghoard::store::Metadata;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use sha2::{Digest, Sha256};

use crate::{SMALL_KEY, decode, keyring, path, says};

const HELLO: &[u8] = b"hello, pghoard\n";
const ALGORITHMS: [Compression; 3] = [Compression::Snappy, Compression::Zstd, Compression::Lzma];

pub fn encoding(compression: Compression, envelope: Option<Envelope>, keys: &Keyring) -> Encoding {
    Encoding {
        compression,
        level: 1,
        threads: 1,
        encryption: envelope.map(|envelope| Encryption {
            key_id: SMALL_KEY.to_owned(),
            key: keys.public(SMALL_KEY).unwrap().clone(),
            envelope,
        }),
    }
}

/// The object, and the metadata a reader needs.
pub fn encode(plain: &[u8], write_bytes: usize, encoding: &Encoding) -> (Vec<u8>, Metadata) {
    let mut encoder = Encoder::new(Vec::new(), encoding).unwrap();
    for piece in plain.chunks(write_bytes) {
        encoder.write_all(piece).unwrap();
        encoder.flush().unwrap();
    }
    let (stored, encoded) = encoder.finish().unwrap();
    let [bytes_in, bytes_out] = [plain, &stored].map(|bytes| bytes.len().try_into().unwrap());
    assert_eq!(
        encoded,
        Encoded {
            bytes_in,
            bytes_out,
            sha256: Sha256::digest(&stored).into(),
        }
    );
    let mut metadata = says(&[
        ("compression-algorithm", encoding.compression.name()),
        ("original-file-size", &plain.len().to_string()),
    ]);
    if let Some(encryption) = &encoding.encryption {
        metadata.insert("encryption-key-id".to_owned(), encryption.key_id.clone());
    }
    (stored, metadata)
}

/// Appendix A of the compatibility reference; zstd differs by its checksum and is read back.
#[test]
fn fixed_encodings_are_pghoards_byte_for_byte() {
    let lzma_hello = "fd377a585a000004e6d6b446020021010c0000008f98419c01000e68656c6c6f2c207067686f\
                      6172640a0000f4761c616abc57500001270fdf1afc6a1fb6f37d010000000004595a";
    let lzma_empty = "fd377a585a000004e6d6b446000000001cdf44211fb6f37d010000000004595a";
    let snappy_hello = "ff060000734e6150705901130000dbac5a1368656c6c6f2c207067686f6172640a";
    let keys = keyring();
    for (compression, level, plain, expected) in [
        (Compression::Snappy, 0, HELLO, snappy_hello),
        (Compression::Snappy, 9, b"", ""),
        (Compression::Lzma, 0, HELLO, lzma_hello),
        (Compression::Lzma, 0, b"", lzma_empty),
    ] {
        let encoding = Encoding {
            level,
            ..encoding(compression, None, &keys)
        };
        let (stored, _) = encode(plain, 4, &encoding);
        assert_eq!(hex::encode(stored), expected, "{compression}");
    }
}

#[test]
fn a_zstd_object_is_one_frame_with_a_checksum() {
    let plain = vec![7; 3_000_000];
    for threads in [0, 1, 2, 4] {
        let encoding = Encoding {
            threads,
            ..encoding(Compression::Zstd, None, &keyring())
        };
        let (stored, metadata) = encode(&plain, 100_000, &encoding);
        assert_eq!(stored[..4], [0x28, 0xb5, 0x2f, 0xfd]);
        assert_eq!(stored[4] & 0b100, 0b100, "content checksum flag");
        let frame = zstd::zstd_safe::find_frame_compressed_size(&stored).unwrap();
        assert_eq!(frame, stored.len(), "{threads} threads");
        assert_eq!(decode(stored, &metadata, &keyring()).unwrap(), plain);
    }
}

#[test]
fn a_level_that_does_not_exist_is_a_configuration_error() {
    for (compression, level, expected) in [
        (
            Compression::Zstd,
            23,
            "zstd has no compression level 23: expected ",
        ),
        (
            Compression::Lzma,
            10,
            "lzma has no compression level 10: expected 0 to 9",
        ),
        (
            Compression::Lzma,
            -1,
            "lzma has no compression level -1: expected 0 to 9",
        ),
    ] {
        let encoding = Encoding {
            level,
            ..encoding(compression, None, &keyring())
        };
        let failure = Encoder::new(Vec::new(), &encoding).err().unwrap();
        assert_eq!(failure.class, Class::Config);
        assert!(failure.message.starts_with(expected), "{failure}");
    }
}

#[test]
fn names_are_parsed_as_they_are_written() {
    for compression in ALGORITHMS {
        assert_eq!(compression.name().parse(), Ok(compression));
    }
    for envelope in [Envelope::AesGcm, Envelope::Pghoa1] {
        assert_eq!(envelope.name().parse(), Ok(envelope));
    }
    assert!(
        "lz4"
            .parse::<Compression>()
            .unwrap_err()
            .message
            .contains("'lz4'")
    );
    assert!(
        "aes"
            .parse::<Envelope>()
            .unwrap_err()
            .message
            .contains("'aes'")
    );
}

/// Sizes around the edges of pieces, segments, snappy blocks and their buffers.
fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..200_usize,
        (1..4_usize, 0..100_usize).prop_map(|(n, more)| n * 65536 - 50 + more),
        0..300_000_usize,
    ]
}

fn encodings() -> impl Strategy<Value = (Compression, Option<Envelope>, u32)> {
    let compression = prop_oneof![
        Just(Compression::Snappy),
        Just(Compression::Zstd),
        Just(Compression::Lzma),
    ];
    let envelope = prop_oneof![
        Just(None),
        Just(Some(Envelope::AesGcm)),
        Just(Some(Envelope::Pghoa1)),
    ];
    (compression, envelope, 0..3_u32)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 120,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn what_is_written_reads_back_the_same(
        (compression, envelope, threads) in encodings(),
        size in sizes(),
        write_bytes in prop_oneof![1..100_usize, 1000..100_000_usize],
        seed in any::<u64>(),
        random in any::<bool>(),
    ) {
        let keys = keyring();
        let mut plain = vec![b'p'; size];
        if random {
            // Incompressible, so that the envelope sees the edges that the plain bytes have.
            fastrand::Rng::with_seed(seed).fill(&mut plain);
        }
        let encoding = Encoding { threads, ..encoding(compression, envelope, &keys) };
        let (stored, metadata) = encode(&plain, write_bytes.max(size / 1000), &encoding);
        assert!(decode(stored, &metadata, &keys).unwrap() == plain);
    }
}

/// Content of a known size is compressed in one go, and read as any other; also where more of it
/// came than was said.
#[test]
fn content_of_a_known_size_reads_back_the_same() {
    let keys = keyring();
    let whole = usize::try_from(WHOLE_MAX).unwrap();
    for size in [0, 1, 70_000, whole, whole + 1] {
        let mut plain = vec![b'p'; size];
        fastrand::Rng::with_seed(7).fill(&mut plain[size / 2..]);
        for envelope in [None, Some(Envelope::AesGcm)] {
            for said in [0, size / 2, size] {
                let encoding = encoding(Compression::Zstd, envelope, &keys);
                let said = said.try_into().unwrap();
                let mut encoder = Encoder::sized(Vec::new(), &encoding, said).unwrap();
                for piece in plain.chunks(100_000) {
                    encoder.write_all(piece).unwrap();
                }
                let (stored, encoded) = encoder.finish().unwrap();
                assert_eq!(encoded.bytes_in, u64::try_from(size).unwrap());
                let mut metadata = says(&[("compression-algorithm", "zstd")]);
                if envelope.is_some() {
                    metadata.insert("encryption-key-id".into(), SMALL_KEY.into());
                }
                assert!(
                    decode(stored, &metadata, &keys).unwrap() == plain,
                    "{size} {said}"
                );
            }
        }
    }
    let mut encoding = encoding(Compression::Zstd, None, &keys);
    encoding.level = 99;
    let refused = Encoder::sized(Vec::new(), &encoding, 1).err().unwrap();
    assert_eq!(refused.class, Class::Config);
}

/// The envelope taken apart by OpenSSL's command line, which shares no code with us.
#[test]
fn openssl_opens_what_we_write_in_pghoards_envelope() {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("SKIPPED: there is no openssl command here");
        return;
    }
    let plain: Vec<u8> = (0..=255).cycle().take(200_000).collect();
    let encoding = encoding(Compression::Snappy, Some(Envelope::Pghoa1), &keyring());
    let (stored, _) = encode(&plain, 10_000, &encoding);
    let (header, rest) = stored.split_at(8 + 128);
    assert_eq!(header[..8], *b"pghoa1\x00\x80");
    let (cipher, mac) = rest.split_last_chunk::<32>().unwrap();

    let secret = openssl(&unwrap_words("sha1"), &header[8..]);
    assert_eq!(secret.len(), 64);
    let [key, counter, mac_key] = [&secret[..16], &secret[16..32], &secret[32..]].map(hex::encode);
    let compressed = openssl(
        &["enc", "-d", "-aes-128-ctr", "-K", &key, "-iv", &counter],
        cipher,
    );
    let mut reader = snap::read::FrameDecoder::new(&compressed[..]);
    let mut found = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut found).unwrap();
    assert!(found == plain);
    let option = format!("hexkey:{mac_key}");
    let words = [
        "dgst", "-sha256", "-mac", "HMAC", "-macopt", &option, "-binary",
    ];
    assert_eq!(openssl(&words, cipher), mac);
}

#[test]
fn openssl_unwraps_the_key_of_our_envelope() {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("SKIPPED: there is no openssl command here");
        return;
    }
    let encoding = encoding(Compression::Snappy, Some(Envelope::AesGcm), &keyring());
    let (stored, _) = encode(HELLO, 100, &encoding);
    assert_eq!(stored[..9], *b"pghgcm\x01\x00\x80");
    assert_eq!(
        openssl(&unwrap_words("sha256"), &stored[9..9 + 128]).len(),
        39
    );
}

fn unwrap_words(hash: &str) -> Vec<String> {
    let key = path("worked-example-1024/private.pem")
        .to_str()
        .unwrap()
        .to_owned();
    let options = [
        "rsa_padding_mode:oaep".to_owned(),
        format!("rsa_oaep_md:{hash}"),
        format!("rsa_mgf1_md:{hash}"),
    ];
    let mut words = ["pkeyutl", "-decrypt", "-inkey"]
        .map(str::to_owned)
        .to_vec();
    words.push(key);
    for option in options {
        words.extend(["-pkeyopt".to_owned(), option]);
    }
    words
}

fn openssl(words: &[impl AsRef<str>], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(words.iter().map(AsRef::as_ref))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// The keys of a user must be those of PGHoard's own file, under either name of the block.
#[test]
fn keys_made_by_openssl_in_the_old_form_are_read() {
    let key = path("worked-example-1024/private.pem");
    let words = ["rsa", "-traditional", "-in", key.to_str().unwrap()];
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("SKIPPED: there is no openssl command here");
        return;
    }
    let old = String::from_utf8(openssl(&words, b"")).unwrap();
    assert!(old.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    let public = fs::read_to_string(Path::new(&key).with_file_name("public.pem")).unwrap();
    Keyring::default()
        .insert("old", Some(&public), Some(&old))
        .unwrap();
}
