//! `object_storage`: one variant a storage type.

use std::path::{Path, PathBuf};

use machine::Class;
use serde_json::Value;

use super::keys::Level;
use super::read::{Found, Notes, Object, wrong};
use crate::failure::{Failure, Outcome};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    Local {
        directory: PathBuf,
        /// Put before every key.
        prefix: String,
    },
    /// A type that PGHoard has and this version cannot open.
    Other { storage_type: String },
}

impl Storage {
    /// Where the objects are, without what lets us in: two of one place hold the same objects.
    pub fn location(&self) -> String {
        match self {
            Storage::Local { directory, prefix } => {
                format!("local {}/{}", directory.display(), prefix.trim_matches('/'))
            }
            Storage::Other { storage_type } => storage_type.clone(),
        }
    }
}

/// The types PGHoard has besides `local`.
const OTHERS: &[&str] = &["s3", "google", "azure", "swift", "sftp"];

/// Nothing for a missing, null or empty `object_storage`.
pub(super) fn parse(
    site: &str,
    path: &str,
    value: &Value,
    spool: Option<&Path>,
    notes: &Notes,
) -> Outcome<Option<Storage>> {
    let map = value
        .as_object()
        .ok_or_else(|| wrong(path, "an object", value))?;
    if map.is_empty() {
        return Ok(None);
    }
    let refused = |text: String| Failure::new(Class::Config, text);
    let storage_type = match map.get("storage_type") {
        Some(Value::String(text)) => text.as_str(),
        Some(Value::Null) | None => {
            let text = format!("Site '{site}': storage_type not defined for object_storage");
            return Err(refused(text));
        }
        Some(other) => return Err(wrong(&format!("{path}.storage_type"), "a text", other)),
    };
    if OTHERS.contains(&storage_type) {
        let storage_type = storage_type.to_owned();
        return Ok(Some(Storage::Other { storage_type }));
    }
    if storage_type != "local" {
        return Err(refused(format!(
            "unsupported storage type '{storage_type}'"
        )));
    }
    let object = Object::new(Level::Local, path, value, notes)?;
    object.text("storage_type")?;
    let Found::Is(directory) = object.text("directory")? else {
        return Err(object.wrong("directory", "a text"));
    };
    let directory = PathBuf::from(directory);
    if spool == Some(directory.as_path()) {
        return Err(refused(format!(
            "Site '{site}': invalid 'local' target directory '{}', must be different from \
             'backup_location'",
            directory.display()
        )));
    }
    let prefix = object.text("prefix")?.or(String::new());
    Ok(Some(Storage::Local { directory, prefix }))
}
