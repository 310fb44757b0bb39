//! Writing and signing a bundle: where there is memory for all of it.

use aws_lc_rs::digest::{SHA256, digest};

use crate::key::SecretKey;
use crate::reader::Head;
use crate::release::Release;
use crate::{
    MAGIC, MANIFEST_MAX, Manifest, Outcome, PROGRAM_MAX, SIGNATURES_MAX, WINDOW_LOG, refused,
};

/// Slow here, small on its way.
const LEVEL: i32 = 19;

/// An unsigned bundle of the EFI program, which says itself what it is.
pub fn write(compatible: String, program: &[u8]) -> Outcome<Vec<u8>> {
    let size = u64::try_from(program.len()).unwrap_or(u64::MAX);
    if size > PROGRAM_MAX {
        return Err(refused(format!(
            "the EFI program has {size} bytes, at most {PROGRAM_MAX} fit into a slot"
        )));
    }
    let Release { version, log } = Release::of(&mut std::io::Cursor::new(program))?;
    let manifest = Manifest {
        compatible,
        version,
        log,
        size,
        sha256: hex::encode(digest(&SHA256, program)),
    };
    let manifest = serde_json::to_vec(&manifest).map_err(|error| refused(error.to_string()))?;
    let length = u32::try_from(manifest.len()).ok();
    let length = length.filter(|_| manifest.len() <= MANIFEST_MAX);
    let length = length.ok_or_else(|| refused("the manifest is too long"))?;
    let mut bundle = MAGIC.to_vec();
    bundle.extend(length.to_le_bytes());
    bundle.extend(manifest);
    // No signature yet.
    bundle.push(0);
    bundle.extend(packed(program).map_err(|error| refused(format!("zstd: {error}")))?);
    Ok(bundle)
}

fn packed(program: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut packer = zstd::bulk::Compressor::new(LEVEL)?;
    packer.window_log(WINDOW_LOG)?;
    packer.compress(program)
}

/// The bundle with one signature more; the same again if the key has signed it.
pub fn sign(bundle: &[u8], key: &SecretKey) -> Outcome<Vec<u8>> {
    let mut rest = bundle;
    let mut head = Head::read(&mut rest)?;
    let signature = key.sign(&head.signed)?;
    if !head.signatures.contains(&signature) {
        head.signatures.push(signature);
    }
    let count = u8::try_from(head.signatures.len()).ok();
    let count = count.filter(|_| head.signatures.len() <= SIGNATURES_MAX);
    let count = count.ok_or_else(|| {
        refused(format!(
            "the bundle has {SIGNATURES_MAX} signatures already, which is the most"
        ))
    })?;
    let mut signed = head.signed;
    signed.push(count);
    signed.extend(head.signatures.as_flattened());
    signed.extend(rest);
    Ok(signed)
}
