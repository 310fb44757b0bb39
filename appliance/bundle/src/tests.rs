//! Whatever is brought as a bundle is taken whole or refused in one sentence.

use std::fs;
use std::path::PathBuf;

use crate::key::{PublicKey, SecretKey};
use crate::reader::Bundle;
use crate::testing::program;
use crate::{MAGIC, PIECE, Refused, compatible, writer};

/// A folder for bundles, and who signs them.
struct Scene {
    folder: tempfile::TempDir,
    key: SecretKey,
    keys: Vec<PublicKey>,
}

impl Scene {
    fn new() -> Scene {
        let (key, _) = SecretKey::generate().unwrap();
        Scene {
            folder: tempfile::tempdir().unwrap(),
            keys: vec![key.public().unwrap()],
            key,
        }
    }

    fn signed(&self, program: &[u8]) -> Vec<u8> {
        let bundle = writer::write(compatible("x86_64"), program).unwrap();
        writer::sign(&bundle, &self.key).unwrap()
    }

    /// Signed by us, with other words in its manifest and another program behind it.
    fn forged(&self, bundle: &[u8], from: &str, to: &str) -> Vec<u8> {
        let (head, rest) = parts(bundle);
        let manifest = String::from_utf8(head[20..].to_vec()).unwrap();
        let manifest = manifest.replace(from, to);
        let length = u32::try_from(manifest.len()).unwrap();
        let unsigned = [
            MAGIC.as_slice(),
            &length.to_le_bytes(),
            manifest.as_bytes(),
            &[0],
            &rest[1 + 64..],
        ];
        writer::sign(&unsigned.concat(), &self.key).unwrap()
    }

    fn put(&self, bundle: &[u8]) -> PathBuf {
        let path = self.folder.path().join("bundle");
        fs::write(&path, bundle).unwrap();
        path
    }

    fn read(&self, bundle: &[u8]) -> Result<Vec<u8>, Refused> {
        let opened = Bundle::open(&self.put(bundle), &self.keys, &compatible("x86_64"))?;
        let mut program = Vec::new();
        opened.unpack(|piece| {
            assert!(piece.len() <= PIECE);
            program.extend(piece);
            Ok::<(), Refused>(())
        })?;
        Ok(program)
    }

    fn refusal(&self, bundle: &[u8]) -> String {
        self.read(bundle).map(|_| "taken").unwrap_err().to_string()
    }
}

/// What is signed, and the rest.
fn parts(bundle: &[u8]) -> (&[u8], &[u8]) {
    let length = u32::from_le_bytes(bundle[16..20].try_into().unwrap());
    bundle.split_at(20 + usize::try_from(length).unwrap())
}

#[test]
fn a_bundle_gives_back_its_program_and_is_twice_the_same() {
    let scene = Scene::new();
    for bytes in [1000, 3 * PIECE + 17] {
        let program = program("1.2", 49, bytes);
        let bundle = scene.signed(&program);
        assert_eq!(bundle, scene.signed(&program));
        assert!(scene.read(&bundle).unwrap() == program);
        let path = scene.put(&bundle);
        let opened = Bundle::open(&path, &scene.keys, &compatible("x86_64")).unwrap();
        let manifest = opened.manifest;
        assert_eq!(
            (manifest.version.to_string().as_str(), manifest.log),
            ("1.2", 49)
        );
    }
}

#[test]
fn one_signature_of_several_is_enough() {
    let mut scene = Scene::new();
    let bundle = scene.signed(&program("1", 1, 1000));
    let (other, _) = SecretKey::generate().unwrap();
    let both = writer::sign(&bundle, &other).unwrap();
    assert_eq!(both.len(), bundle.len() + 64);
    assert_eq!(
        writer::sign(&both, &scene.key).unwrap(),
        both,
        "signed by it already"
    );
    scene.read(&both).unwrap();
    scene.keys = vec![other.public().unwrap()];
    scene.read(&both).unwrap();
    assert!(
        scene
            .refusal(&bundle)
            .contains("not signed by a key that this appliance trusts")
    );
    let mut many = both;
    for _ in 2..8 {
        many = writer::sign(&many, &SecretKey::generate().unwrap().0).unwrap();
    }
    let told = writer::sign(&many, &SecretKey::generate().unwrap().0).unwrap_err();
    assert!(told.to_string().contains("8 signatures already"), "{told}");
    scene.read(&many).unwrap();
}

#[test]
fn what_is_wrong_with_a_bundle_is_told() {
    let scene = Scene::new();
    let good = scene.signed(&program("1.2", 49, 5000));
    let other = scene.signed(&program("1.2", 49, 5004));
    let (head, rest) = parts(&good);
    let longer = parts(&other).1;
    let with = |at: usize, bytes: &[u8]| {
        let mut bundle = good.clone();
        bundle[at..at + bytes.len()].copy_from_slice(bytes);
        bundle
    };
    let forged = |from: &str, to: &str| scene.forged(&good, from, to);
    for (bundle, says) in [
        (Vec::new(), "is no update bundle, or is cut off"),
        (
            b"\x7fELF, say, of some length".to_vec(),
            "is no update bundle",
        ),
        (with(15, b"2"), "or one of a later form"),
        (with(16, &[0, 0, 1, 0]), "65536 bytes, at most 4096"),
        (with(head.len(), &[9]), "9 signatures, at most 8"),
        ([head, &[0], &rest[65..]].concat(), "is not signed"),
        (with(30, b"x"), "or was changed after signing"),
        (
            [head, &rest[..65], &longer[65..]].concat(),
            "longer than its manifest says",
        ),
        (
            scene.forged(&other, "5004", "5008"),
            "shorter than its manifest says",
        ),
        (
            forged("\"sha256\":\"", "\"sha256\":\"0"),
            "its digest differs",
        ),
        (
            forged("x86_64", "aarch64"),
            "is for 'pghoard-appliance-aarch64', this machine is",
        ),
        (
            forged("5000", "67108865"),
            "67108865 bytes, at most 67108864",
        ),
        (
            forged("\"version\":\"1.2\"", "\"version\":\"../1\""),
            "version '../1'",
        ),
        (forged("\"log\":", "\"lag\":"), "missing field `log`"),
        (good[..good.len() - 1].to_vec(), "is cut off"),
        (
            [good.as_slice(), b"x"].concat(),
            "goes on after its program",
        ),
    ] {
        let told = scene.refusal(&bundle);
        assert!(told.contains(says), "'{says}' is not in '{told}'");
    }
    let none = Bundle::open(&scene.put(&good), &[], &compatible("x86_64")).unwrap_err();
    assert!(none.to_string().contains("no update key is set"), "{none}");
    let none = Bundle::open(&scene.folder.path().join("none"), &scene.keys, "").unwrap_err();
    assert!(none.to_string().contains("No such file"), "{none}");
}

/// Every byte in front of the program, and many of it, wholly and in one bit; and many lengths.
#[test]
fn no_change_of_a_bundle_passes() {
    let scene = Scene::new();
    let program = program("1.2", 49, 3000);
    let good = scene.signed(&program);
    let packed = good.len() - parts(&good).1.len() + 65;
    for at in (0..packed)
        .chain((packed..good.len()).step_by(7))
        .chain(packed..packed + 20)
    {
        for bits in [0xff, 1 << (at % 8)] {
            let mut bundle = good.clone();
            bundle[at] ^= bits;
            match scene.read(&bundle) {
                Err(_) => {}
                // A bit that zstd does not need.
                Ok(read) => assert!(at >= packed && read == program, "byte {at}, bits {bits}"),
            }
        }
    }
    for length in (0..good.len()).step_by(3) {
        assert!(scene.read(&good[..length]).is_err(), "{length}");
    }
}

#[test]
fn a_program_that_does_not_fit_or_says_nothing_is_not_packed() {
    let told = writer::write(compatible("x86_64"), b"MZ and no more").unwrap_err();
    assert!(told.to_string().contains("no EFI program"), "{told}");
    let told = writer::write(compatible("x86_64"), &vec![0; (64 << 20) + 1]).unwrap_err();
    assert!(
        told.to_string().contains("67108865 bytes, at most"),
        "{told}"
    );
}
