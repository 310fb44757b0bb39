//! From configuration to the store it describes.

use super::Store;
use super::cloud::Cloud;
use super::cloud::azure::Container;
use super::cloud::{s3, swift};
use super::google::Google;
use super::local::Local;
use super::login::Environment;
use super::sftp::Sftp;
use crate::config::Storage;
use crate::failure::Outcome;

/// What to do about a local folder or a bucket that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// For the daemon, which fills it.
    Create,
    /// For tools that read: an unmounted disk must not look like an empty store.
    Refuse,
}

pub fn store(storage: &Storage, missing: Missing) -> Outcome<Box<dyn Store>> {
    store_of(storage, missing, &Environment::of_process())
}

/// As somebody whom an environment names, where the configuration does not.
pub fn store_of(
    storage: &Storage,
    missing: Missing,
    environment: &Environment,
) -> Outcome<Box<dyn Store>> {
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
        Storage::S3(config) => {
            let bucket = Box::new(s3::Bucket::new(config, environment)?);
            let cloud = Cloud::new(bucket, &config.prefix, config.part_bytes, missing);
            Ok(Box::new(cloud))
        }
        Storage::Google(config) => Ok(Box::new(Google::new(config, missing, environment)?)),
        Storage::Azure(config) => {
            let container = Box::new(Container::new(config, environment)?);
            Ok(Box::new(Cloud::new(
                container,
                &config.prefix,
                None,
                missing,
            )))
        }
        Storage::Swift(config) => {
            let container = Box::new(swift::Container::new(config)?);
            let part_bytes = swift::part_bytes(config);
            let cloud = Cloud::new(container, &config.prefix, Some(part_bytes), missing);
            Ok(Box::new(cloud))
        }
        Storage::Sftp(config) => Ok(Box::new(Sftp::new((**config).clone(), missing))),
    }
}
