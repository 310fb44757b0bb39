//! The sidecar `<file>.metadata` of rohmu's drivers for folders: it makes a file an object.
//!
//! It is a JSON object of the caller's metadata, `Content-Length` and `_hash`, the SHA-256 of the
//! stored bytes, which is ours and the local driver's, and hidden from readers.
//! Authority: rohmu `object_storage/local.py`, `sftp.py`.

use std::collections::BTreeMap;

use machine::Class;

use super::{Entry, Metadata, Object};
use crate::failure::{Failure, Outcome};

pub(super) const END: &str = ".metadata";
const DRAFT: &[u8] = b".metadata_tmp";
const CONTENT_LENGTH: &str = "Content-Length";
const HASH: &str = "_hash";

pub(super) fn render(metadata: &Metadata, size_bytes: u64, hash: &str) -> Outcome<Vec<u8>> {
    let mut all: BTreeMap<&str, &str> = metadata
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let size = size_bytes.to_string();
    all.insert(CONTENT_LENGTH, &size);
    all.insert(HASH, hash);
    serde_json::to_vec(&all).map_err(|e| Failure::new(Class::Internal, format!("metadata: {e}")))
}

pub(super) fn parse(bytes: &[u8], key: &str) -> Outcome<Metadata> {
    let text = |value| match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text),
        // Old PGHoard versions stored numbers.
        other => Some(other.to_string()),
    };
    Ok(raw(bytes, key)?
        .into_iter()
        .filter(|(name, _)| name != HASH)
        .filter_map(|(name, value)| Some((name, text(value)?)))
        .collect())
}

/// SHA-256 of the stored bytes in hexadecimal, if the writer noted it.
pub(super) fn noted_sha256(bytes: &[u8], key: &str) -> Outcome<Option<String>> {
    let raw = raw(bytes, key)?;
    let noted = raw.get(HASH).and_then(serde_json::Value::as_str);
    Ok(noted.map(str::to_ascii_lowercase))
}

fn raw(bytes: &[u8], key: &str) -> Outcome<BTreeMap<String, serde_json::Value>> {
    serde_json::from_slice(bytes)
        .map_err(|e| Failure::new(Class::Corrupt, format!("metadata of {key} is damaged: {e}")))
}

/// The object, unless its size is not the announced one.
pub(super) fn object(entry: Entry, metadata: Metadata) -> Outcome<Object> {
    let announced = metadata.get(CONTENT_LENGTH);
    if let Some(announced) = announced.filter(|text| **text != entry.size_bytes.to_string()) {
        let Entry {
            key, size_bytes, ..
        } = entry;
        let message = format!("{key} has {size_bytes} bytes instead of {announced}");
        return Err(Failure::new(Class::Corrupt, message));
    }
    Ok(Object { entry, metadata })
}

/// Names that rohmu never lists: they cannot be objects.
pub(super) fn hidden(name: &[u8]) -> bool {
    name.starts_with(b".")
        || name.ends_with(END.as_bytes())
        || name.windows(DRAFT.len()).any(|w| w == DRAFT)
}

/// A key must stay below the root and be listable.
pub(super) fn check_key(key: &str) -> Outcome<()> {
    let wrong = key
        .split('/')
        .any(|part| part.is_empty() || hidden(part.as_bytes()) || part.contains('\0'));
    if wrong {
        let message = format!("{key:?} cannot be the key of an object");
        return Err(Failure::new(Class::Config, message));
    }
    Ok(())
}
