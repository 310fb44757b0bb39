//! Objects that PGHoard made must read, objects that we make must read elsewhere, and nothing
//! that was damaged may pass. What the files are: `README.md` beside this one.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test binary: a panic is how it reports"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use pghoard::Failure;
use pghoard::codec;
use pghoard::codec::digest::Algorithm;
use pghoard::codec::keys::Keyring;
use pghoard::store::Metadata;
use serde_json::Value;

mod commands;
mod events;
mod forged;
mod restore;
mod verify;
mod written;

/// Of `worked-example-1024/`; small, so that exhaustive tests are quick.
const SMALL_KEY: &str = "small";

#[test]
fn every_object_decodes_to_its_recorded_plain_bytes() {
    let keys = keyring();
    let table = fs::read_to_string(path("objects.tsv")).unwrap();
    let mut seen = 0;
    for row in table.lines().skip(1) {
        let [name, compression, encrypted, stored, _, size, digest] =
            row.split('\t').collect::<Vec<_>>()[..]
        else {
            panic!("seven columns: {row}")
        };
        let metadata = metadata(&path(name));
        assert_eq!(metadata["compression-algorithm"], compression, "{name}");
        let key = metadata.contains_key("encryption-key-id");
        assert_eq!(key, encrypted == "yes", "{name}");
        let bytes = fs::read(path(name)).unwrap();
        assert_eq!(bytes.len().to_string(), stored, "{name}");
        let plain = decode(bytes, &metadata, &keys).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(plain.len().to_string(), size, "{name}");
        assert_eq!(Algorithm::Sha256.hex(&plain), digest, "{name}");
        if name.contains("/basebackup_delta/") {
            let (_, own_name) = name.rsplit_once('/').unwrap();
            assert_eq!(Algorithm::Blake2s.hex(&plain), own_name);
        }
        seen += 1;
    }
    assert_eq!(seen, 66, "every row was looked at");
}

#[test]
fn every_unit_decodes_to_its_plain_file() {
    let keys = keyring();
    for folder in fs::read_dir(path("units")).unwrap() {
        for plain in fs::read_dir(path("plain")).unwrap() {
            let plain = plain.unwrap().path();
            let unit = folder
                .as_ref()
                .unwrap()
                .path()
                .join(plain.file_name().unwrap());
            let decoded = decode(fs::read(&unit).unwrap(), &metadata(&unit), &keys);
            assert_eq!(
                decoded.unwrap(),
                fs::read(&plain).unwrap(),
                "{}",
                unit.display()
            );
        }
    }
}

#[test]
fn the_worked_example_decodes_with_its_small_key() {
    let stored = fs::read(path("worked-example-1024/hello.snappy.enc")).unwrap();
    let metadata = says(&[
        ("compression-algorithm", "snappy"),
        ("encryption-key-id", SMALL_KEY),
    ]);
    assert_eq!(
        decode(stored, &metadata, &keyring()).unwrap(),
        b"hello, pghoard\n"
    );
}

/// Chunk 0 names every other object of its backup and what is in it.
#[test]
fn chunks_are_tars_that_hold_what_their_main_object_lists() {
    let keys = keyring();
    let mut chunks = 0;
    for expected in fs::read_dir(path("tar-metadata")).unwrap() {
        let expected = expected.unwrap().path();
        let stem = expected.file_stem().unwrap().to_str().unwrap();
        let (run, name) = stem.split_once("__").unwrap();
        let site = path("storage").join(run).join("golden");
        let listed: Value = serde_json::from_slice(&fs::read(&expected).unwrap()).unwrap();

        let main = untar(&site.join("basebackup").join(name), &keys);
        let found: Value = serde_json::from_slice(&main[".pghoard_tar_metadata.json"]).unwrap();
        assert_eq!(found, listed, "{stem}");
        assert!(main.contains_key("pgdata/backup_label"), "{stem}");

        for chunk in listed["chunks"].as_array().unwrap() {
            let key = chunk["chunk_filename"].as_str().unwrap();
            let folder = match run {
                "delta-zstd-enc" => "basebackup_delta_chunk",
                _ => "basebackup_chunk",
            };
            let held = untar(&site.join(folder).join(key), &keys);
            let mut files: Vec<&str> = chunk["files"]
                .as_array()
                .unwrap()
                .iter()
                .map(|f| f.as_str().unwrap())
                .collect();
            files.sort_unstable();
            let held: Vec<&str> = held.keys().map(String::as_str).collect();
            assert_eq!(held, files, "{key}");
            chunks += 1;
        }
    }
    assert!(chunks >= 10, "{chunks}");
}

/// The files of a stored tar by name, without a directory's trailing slash.
fn untar(object: &Path, keys: &Keyring) -> BTreeMap<String, Vec<u8>> {
    let stored = fs::read(object).unwrap();
    let metadata = metadata(object);
    let size = stored.len().try_into().unwrap();
    let reader = codec::decoder(Cursor::new(stored), size, &metadata, keys).unwrap();
    let mut archive = tar::Archive::new(reader);
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry
            .path()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches('/')
            .to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(name, content);
    }
    // Beyond the end mark of the tar there is padding, and beyond that the proof.
    archive.into_inner().read_to_end(&mut Vec::new()).unwrap();
    files
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn metadata(object: &Path) -> Metadata {
    let mut name = object.as_os_str().to_owned();
    name.push(".metadata");
    serde_json::from_slice(&fs::read(name).unwrap()).unwrap()
}

fn says(pairs: &[(&str, &str)]) -> Metadata {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

/// Both test keys.
fn keyring() -> Keyring {
    let file: Value = serde_json::from_slice(&fs::read(path("keys.json")).unwrap()).unwrap();
    let pair = &file["backup_sites"]["golden"]["encryption_keys"]["goldenkey3072"];
    let mut keys = Keyring::default();
    keys.insert(
        "goldenkey3072",
        pair["public"].as_str(),
        pair["private"].as_str(),
    )
    .unwrap();
    let [public, private] = ["public", "private"]
        .map(|half| fs::read_to_string(path(&format!("worked-example-1024/{half}.pem"))).unwrap());
    keys.insert(SMALL_KEY, Some(&public), Some(&private))
        .unwrap();
    keys
}

fn decode(stored: Vec<u8>, metadata: &Metadata, keys: &Keyring) -> Result<Vec<u8>, Failure> {
    let size = stored.len().try_into().unwrap();
    decode_as(stored, size, metadata, keys)
}

/// As a store would that announces another size than it sends.
fn decode_as(
    stored: Vec<u8>,
    announced: u64,
    metadata: &Metadata,
    keys: &Keyring,
) -> Result<Vec<u8>, Failure> {
    let mut reader = codec::decoder(Cursor::new(stored), announced, metadata, keys)?;
    let mut plain = Vec::new();
    let ended = reader.read_to_end(&mut plain);
    if ended.is_err() {
        let again = reader.read(&mut [0]);
        assert!(again.is_err(), "an error is final");
    }
    ended.map_err(|error| Failure::from_io(&error, "object"))?;
    Ok(plain)
}
