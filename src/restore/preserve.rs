//! Preservation requests: an object that asks every daemon to keep a backup for a while.

use jiff::Timestamp;

use super::Backup;
use super::recovery::python_time;
use crate::failure::Outcome;
use crate::store::{Body, Metadata, Put, Store};

/// Asks for a backup to be kept, and says under which key.
pub fn request(store: &dyn Store, backup: &Backup<'_>, until: Timestamp) -> Outcome<String> {
    let name = backup.key().rsplit('/').next().unwrap_or(backup.key());
    let until = python_time(until);
    let key = format!("{}/preservation_request/{name}_{until}", backup.site.prefix);
    let metadata = Metadata::from([
        ("preserve-backup".to_owned(), name.to_owned()),
        ("preserve-until".to_owned(), until),
    ]);
    store.put(&key, Body::Bytes(b""), &metadata, Put::Replace)?;
    Ok(key)
}
