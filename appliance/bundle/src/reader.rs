//! Reading a bundle, which may be anything.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};

use crate::key::PublicKey;
use crate::{
    MAGIC, MANIFEST_MAX, Manifest, Outcome, PIECE, PROGRAM_MAX, Refused, SIGNATURE_BYTES,
    SIGNATURES_MAX, WINDOW_LOG, refused,
};

/// Everything in front of the program, not believed yet.
pub(crate) struct Head {
    /// From the first byte to the end of the manifest.
    pub signed: Vec<u8>,
    manifest_at: usize,
    pub signatures: Vec<[u8; SIGNATURE_BYTES]>,
}

impl Head {
    pub fn read(from: &mut impl Read) -> Outcome<Head> {
        let mut magic = [0; MAGIC.len()];
        from.read_exact(&mut magic).map_err(unread)?;
        if magic != *MAGIC {
            return Err(refused("is no update bundle, or one of a later form"));
        }
        let mut length = [0; 4];
        from.read_exact(&mut length).map_err(unread)?;
        let size = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if size > MANIFEST_MAX {
            return Err(refused(format!(
                "the bundle's manifest has {size} bytes, at most {MANIFEST_MAX} are expected"
            )));
        }
        let mut manifest = vec![0; size];
        from.read_exact(&mut manifest).map_err(unread)?;
        let mut count = [0; 1];
        from.read_exact(&mut count).map_err(unread)?;
        let count = usize::from(u8::from_le_bytes(count));
        if count > SIGNATURES_MAX {
            return Err(refused(format!(
                "the bundle has {count} signatures, at most {SIGNATURES_MAX} are expected"
            )));
        }
        let mut signatures = vec![[0; SIGNATURE_BYTES]; count];
        from.read_exact(signatures.as_flattened_mut())
            .map_err(unread)?;
        let mut signed = [magic.as_slice(), &length].concat();
        let manifest_at = signed.len();
        signed.extend(manifest);
        Ok(Head {
            signed,
            manifest_at,
            signatures,
        })
    }

    /// What is said in it, once one of the keys has said it.
    fn believed(&self, keys: &[PublicKey]) -> Outcome<Manifest> {
        if keys.is_empty() {
            return Err(refused(
                "no update key is set, so no bundle can be trusted; set appliance.update.key",
            ));
        }
        if self.signatures.is_empty() {
            return Err(refused(
                "the bundle is not signed; 'firmware-image sign' does that",
            ));
        }
        let mut signatures = self.signatures.iter();
        let holds = |signature: &[u8; SIGNATURE_BYTES]| {
            keys.iter().any(|key| key.verifies(&self.signed, signature))
        };
        if !signatures.any(holds) {
            return Err(refused(
                "the bundle is not signed by a key that this appliance trusts, or was changed \
                 after signing",
            ));
        }
        let text = self.signed.get(self.manifest_at..).unwrap_or_default();
        serde_json::from_slice(text)
            .map_err(|error| refused(format!("the bundle's manifest cannot be read: {error}")))
    }
}

/// A bundle whose signature held and which is for this kind of machine. Its program is unread.
#[derive(Debug)]
pub struct Bundle {
    pub manifest: Manifest,
    file: BufReader<File>,
}

impl Bundle {
    pub fn open(path: &Path, keys: &[PublicKey], compatible: &str) -> Outcome<Bundle> {
        let file = File::open(path).map_err(unread)?;
        let mut file = BufReader::new(file);
        let manifest = Head::read(&mut file)?.believed(keys)?;
        if manifest.compatible != compatible {
            return Err(refused(format!(
                "the bundle is for '{}', this machine is '{compatible}'",
                manifest.compatible.escape_default()
            )));
        }
        if manifest.size > PROGRAM_MAX {
            return Err(refused(format!(
                "the bundle's program has {} bytes, at most {PROGRAM_MAX} fit into a slot",
                manifest.size
            )));
        }
        Ok(Bundle { manifest, file })
    }

    /// Gives the program piece by piece. What was given is right only if this ends well.
    pub fn unpack<E: From<Refused>>(
        self,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let unpacked = |error| damaged(&error);
        let mut from = zstd::Decoder::with_buffer(self.file)
            .map_err(unpacked)?
            .single_frame();
        from.window_log_max(WINDOW_LOG).map_err(unpacked)?;
        let mut digest = Context::new(&SHA256);
        let mut left = self.manifest.size;
        let mut piece = vec![0; PIECE];
        loop {
            let count = match from.read(&mut piece) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(damaged(&error).into()),
                Ok(0) => break,
                Ok(count) => count,
            };
            let bytes = piece.get(..count).unwrap_or_default();
            left = u64::try_from(count)
                .ok()
                .and_then(|count| left.checked_sub(count))
                .ok_or_else(|| refused("the bundle's program is longer than its manifest says"))?;
            digest.update(bytes);
            each(bytes)?;
        }
        if left > 0 {
            return Err(refused("the bundle's program is shorter than its manifest says").into());
        }
        if hex::encode(digest.finish()) != self.manifest.sha256 {
            return Err(refused(
                "the bundle's program is not the one that was signed (its digest differs)",
            )
            .into());
        }
        let mut rest = from.finish();
        match rest.read(&mut [0; 1]).map_err(unread)? {
            0 => Ok(()),
            _ => Err(refused("the bundle goes on after its program").into()),
        }
    }
}

fn unread(error: std::io::Error) -> Refused {
    match error.kind() {
        ErrorKind::UnexpectedEof => refused("is no update bundle, or is cut off"),
        _ => refused(error.to_string()),
    }
}

fn damaged(error: &std::io::Error) -> Refused {
    match error.kind() {
        ErrorKind::UnexpectedEof => refused("the bundle is cut off"),
        _ => refused(format!("the bundle's program cannot be unpacked: {error}")),
    }
}
