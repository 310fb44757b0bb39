//! `object_storage`: one variant a storage type, one file a type.
//!
//! Keys, defaults and what goes together are rohmu's; keys of our own fill what it has none for.
//! Files that a key names are opened with the store, not here: who only reads the configuration
//! need not have them.

mod azure;
mod google;
mod net;
mod s3;
mod sftp;
mod swift;

use std::path::{Path, PathBuf};

use machine::Class;
use serde_json::Value;

use super::Secret;
use super::keys::Level;
use super::read::{Found, Notes, Object, wrong};
use crate::failure::{Failure, Outcome};

pub use azure::{Azure, AzureLogin};
pub use google::{Google, GoogleLogin};
pub use net::{Authority, BYTES_PER_SECOND_MIN, Net, Proxy, ProxyKind};
pub use s3::{Addressing, Encryption, Lock, LockMode, S3, S3Login};
pub use sftp::{Sftp, SftpLogin};
pub use swift::{AuthVersion, Swift};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    Local {
        directory: PathBuf,
        /// Put before every key.
        prefix: String,
    },
    S3(Box<S3>),
    Google(Box<Google>),
    Azure(Box<Azure>),
    Swift(Box<Swift>),
    Sftp(Box<Sftp>),
}

impl Storage {
    /// Its `storage_type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Storage::Local { .. } => "local",
            Storage::S3(_) => "s3",
            Storage::Google(_) => "google",
            Storage::Azure(_) => "azure",
            Storage::Swift(_) => "swift",
            Storage::Sftp(_) => "sftp",
        }
    }

    /// Put before every key.
    pub fn prefix(&self) -> &str {
        match self {
            Storage::Local { prefix, .. } => prefix.trim_matches('/'),
            Storage::S3(s3) => &s3.prefix,
            Storage::Google(google) => &google.prefix,
            Storage::Azure(azure) => &azure.prefix,
            Storage::Swift(swift) => &swift.prefix,
            Storage::Sftp(sftp) => &sftp.prefix,
        }
    }

    /// Where the objects are, without what lets us in: two of one place hold the same objects.
    pub fn location(&self) -> String {
        match self {
            Storage::Local { directory, .. } => {
                format!("local {}/{}", directory.display(), self.prefix())
            }
            _ => self.place(""),
        }
    }

    /// The place of what begins with a prefix: of two sites it may not be one.
    pub(super) fn place(&self, prefix: &str) -> String {
        let root = match self {
            Storage::Local { directory, .. } => {
                // By components: neither `//` nor `/./` tells two folders apart.
                let path = directory.join(self.prefix()).join(prefix);
                return path.components().collect::<PathBuf>().display().to_string();
            }
            Storage::S3(s3) => s3.root(),
            Storage::Google(google) => google.root(),
            Storage::Azure(azure) => azure.root(),
            Storage::Swift(swift) => swift.root(),
            Storage::Sftp(sftp) => sftp.root(),
        };
        let parts = [self.prefix(), prefix].into_iter();
        let parts = parts.filter(|part| !part.is_empty());
        let path = parts.fold(root, |path, part| format!("{path}/{part}"));
        format!("{} {path}", self.kind())
    }
}

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
    let object = |level| -> Outcome<Object<'_>> {
        let object = Object::new(level, path, value, notes)?;
        object.text("storage_type")?;
        Ok(object)
    };
    let storage = match storage_type {
        "local" => local(site, &object(Level::Local)?, spool)?,
        "s3" => Storage::S3(Box::new(s3::parse(&object(Level::S3)?)?)),
        "google" => Storage::Google(Box::new(google::parse(&object(Level::Google)?)?)),
        "azure" => Storage::Azure(Box::new(azure::parse(&object(Level::Azure)?)?)),
        "swift" => Storage::Swift(Box::new(swift::parse(&object(Level::Swift)?)?)),
        "sftp" => Storage::Sftp(Box::new(sftp::parse(&object(Level::Sftp)?)?)),
        _ => {
            return Err(refused(format!(
                "unsupported storage type '{storage_type}'"
            )));
        }
    };
    Ok(Some(storage))
}

fn local(site: &str, object: &Object<'_>, spool: Option<&Path>) -> Outcome<Storage> {
    let Found::Is(directory) = object.text("directory")? else {
        return Err(object.wrong("directory", "a text"));
    };
    let directory = PathBuf::from(directory);
    if spool == Some(directory.as_path()) {
        let text = format!(
            "Site '{site}': invalid 'local' target directory '{}', must be different from \
             'backup_location'",
            directory.display()
        );
        return Err(Failure::new(Class::Config, text));
    }
    let prefix = object.text("prefix")?.or(String::new());
    Ok(Storage::Local { directory, prefix })
}

/// A text that must be there.
fn required(object: &Object<'_>, name: &'static str) -> Outcome<String> {
    text(object, name)?.ok_or_else(|| object.wrong(name, "a text"))
}

/// An empty text is none.
fn text(object: &Object<'_>, name: &'static str) -> Outcome<Option<String>> {
    Ok(object.text(name)?.option().filter(|text| !text.is_empty()))
}

fn secret(object: &Object<'_>, name: &'static str) -> Outcome<Option<Secret>> {
    Ok(text(object, name)?.map(Secret::new))
}

fn file(object: &Object<'_>, name: &'static str) -> Outcome<Option<PathBuf>> {
    Ok(text(object, name)?.map(PathBuf::from))
}

/// With the slash at its beginning, where that means something.
fn rooted(object: &Object<'_>) -> Outcome<String> {
    let below = prefix(object)?;
    let rooted = object.text("prefix")?.or(String::new()).starts_with('/');
    Ok(if rooted { format!("/{below}") } else { below })
}

/// Without slashes at its ends.
fn prefix(object: &Object<'_>) -> Outcome<String> {
    let prefix = object.text("prefix")?.or(String::new());
    let prefix = prefix.trim_matches('/');
    let hostile = |part: &str| part.is_empty() || part == "." || part == "..";
    if !prefix.is_empty() && prefix.split('/').any(hostile) {
        return Err(object.wrong("prefix", "folder names between single slashes"));
    }
    Ok(prefix.to_owned())
}

/// A number of bytes of at least 1, if there is one; 0 is none, as in PGHoard.
fn bytes(object: &Object<'_>, name: &'static str) -> Outcome<Option<u64>> {
    let found: Option<u64> = object.whole(name, "a number of bytes")?.option();
    Ok(found.filter(|bytes| *bytes > 0))
}

#[cfg(test)]
mod tests;
