//! Tasks that touch the world, once each. Every one may run twice, be killed anywhere, or have
//! succeeded while reporting failure; it reports what it did by events and nothing else.

use std::path::PathBuf;
use std::sync::Arc;

use crate::codec::digest::Algorithm;
use crate::codec::keys::Keyring;
use crate::codec::slots::Slots;
use crate::codec::{Compression, Encoding};
use crate::store::Store;

pub mod delete;
pub mod export;
pub mod label;
pub mod lease;
pub mod marks;
pub mod pace;
pub mod reconcile;
pub mod scrub;
#[cfg(test)]
pub mod testing;
pub mod upload;
pub mod verify;

/// Where a site's objects go, and in which form.
#[derive(Clone)]
pub struct Place {
    pub site: String,
    /// First part of every key, without a slash at its end.
    pub prefix: String,
    pub store: Arc<dyn Store>,
    pub encoding: Encoding,
    pub keys: Keyring,
    pub hash: Algorithm,
    /// This machine's name, for the metadata.
    pub host: String,
    /// Encoded files on their way; emptied at every start.
    pub scratch: PathBuf,
    /// All sites' uploads share them.
    pub encoders: Slots,
}

impl Place {
    /// For those that store nothing but marks.
    pub fn to_read(site: &str, prefix: &str, store: Arc<dyn Store>, keys: Keyring) -> Place {
        Place {
            site: site.into(),
            prefix: prefix.into(),
            store,
            encoding: Encoding {
                compression: Compression::Snappy,
                level: 0,
                threads: 0,
                encryption: None,
            },
            keys,
            hash: Algorithm::Sha1,
            host: String::new(),
            scratch: PathBuf::new(),
            encoders: Slots::new(1),
        }
    }

    pub fn key(&self, below: &str) -> String {
        format!("{}/{below}", self.prefix)
    }
}
