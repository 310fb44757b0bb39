//! From configuration to the store it describes.

use machine::Class;

use super::Store;
use super::local::Local;
use crate::config::Storage;
use crate::failure::{Failure, Outcome};

/// What to do about a local folder that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// For the daemon, which fills it.
    Create,
    /// For tools that read: an unmounted disk must not look like an empty store.
    Refuse,
}

pub fn store(storage: &Storage, missing: Missing) -> Outcome<Box<dyn Store>> {
    match storage {
        Storage::Local { directory, prefix } => {
            let root = match prefix.trim_matches('/') {
                "" => directory.clone(),
                prefix => directory.join(prefix),
            };
            let local = match missing {
                Missing::Create => Local::create(&root)?,
                Missing::Refuse => Local::open(&root)?,
            };
            Ok(Box::new(local))
        }
        Storage::Other { storage_type } => Err(Failure::new(
            Class::Unsupported,
            format!("storage type '{storage_type}' is not supported by this version"),
        )
        .hint("the only storage type so far is 'local'")),
    }
}
