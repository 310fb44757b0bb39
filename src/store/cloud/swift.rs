//! OpenStack's Swift, and Ceph's. Authority: rohmu `object_storage/swift.py`, Swift's API.
//!
//! `object_store` has no client for it: this one has its shape, so that parts, metadata and bodies
//! are the affair of [`super::Cloud`] as they are for the others.

mod account;
mod objects;
mod segments;

use std::collections::BTreeSet;
use std::sync::Arc;

use hyper::Method;
use hyper::header::{HeaderMap, HeaderValue};
use machine::Class;
use object_store::multipart::PartId;
use object_store::path::Path;

use super::parts::PART_BYTES;
use super::{Client, Multipart, Service};
use crate::config::Swift;
use crate::failure::{Failure, Outcome};
use crate::store::Put;
use crate::store::wire::run;
use account::Account;
use objects::{Objects, labels};

pub struct Container {
    objects: Objects,
}

impl Container {
    /// No request is made: a daemon has to start while its store is away.
    pub fn new(config: &Swift) -> Outcome<Container> {
        let account = Arc::new(Account::new(config)?);
        let objects = Objects { account };
        Ok(Container { objects })
    }
}

/// Segments as large as rohmu's would not fit into memory.
pub fn part_bytes(config: &Swift) -> u64 {
    config.segment_bytes.min(PART_BYTES)
}

impl Service for Container {
    fn place(&self) -> String {
        let config = &self.objects.account.config;
        format!("Swift {}/{}", config.auth_url, config.container)
    }

    fn client(&self) -> Arc<dyn Client> {
        Arc::new(self.objects.clone())
    }

    fn writer(&self) -> Outcome<Arc<dyn Client>> {
        Ok(self.client())
    }

    fn name_out(&self, name: &str) -> String {
        name.to_ascii_lowercase()
    }

    fn name_in(&self, name: &str) -> String {
        name.to_owned()
    }

    /// Swift does, Ceph does not; which it is cannot be asked.
    fn refuses_existing(&self) -> bool {
        false
    }

    fn labels_come_last(&self) -> bool {
        true
    }

    fn complete(&self, upload: &Multipart, parts: Vec<PartId>, mode: Put) -> Outcome<()> {
        let mut headers = labels(&upload.attributes)?;
        if mode == Put::Create {
            headers.insert("if-none-match", HeaderValue::from_static("*"));
        }
        let (name, id) = (upload.path.as_ref(), upload.id.as_str());
        run(segments::complete(&self.objects, name, id, parts, headers))
    }

    fn make(&self) -> Outcome<()> {
        let path = self.objects.container();
        run(self
            .objects
            .account
            .ask(|login| login.request(Method::PUT, &path, HeaderMap::new(), String::new().into())))
        .map(drop)
        .map_err(|failure| failure.about("making the container"))
    }

    /// Segments of uploads that no manifest names.
    fn sweep(&self, folder: &Path, before_ms: i64) -> Outcome<u64> {
        run(sweep(&self.objects, folder.as_ref(), before_ms))
    }
}

async fn sweep(objects: &Objects, folder: &str, before_ms: i64) -> Outcome<u64> {
    let old = |listed: &objects::Listed| {
        let since = listed.modified.duration_since(std::time::UNIX_EPOCH);
        since.is_ok_and(|since| i64::try_from(since.as_millis()).is_ok_and(|ms| ms < before_ms))
    };
    let (mut uploads, mut young) = (BTreeSet::new(), BTreeSet::new());
    let mut after = String::new();
    loop {
        let page = objects.page(&format!("{folder}/"), &after).await?;
        let Some(last) = page.last() else {
            break;
        };
        after = last.name.clone();
        for listed in &page {
            if let Some((upload, _)) = segments::upload_of(&listed.name) {
                let seen = if old(listed) {
                    &mut uploads
                } else {
                    &mut young
                };
                seen.insert(upload.to_owned());
            }
        }
    }
    let mut gone = 0;
    for upload in uploads.difference(&young) {
        if !is_used(objects, upload).await? {
            let names = objects.names(&format!("{upload}/")).await?;
            objects.delete_names(&names).await?;
            gone += 1;
        }
    }
    Ok(gone)
}

/// Whether the object of an upload is there and made of it.
async fn is_used(objects: &Objects, upload: &str) -> Outcome<bool> {
    let Some((folder, _id)) = upload.rsplit_once('/') else {
        return Ok(true);
    };
    let Some((above, base)) = folder.rsplit_once("_segments/") else {
        return Ok(true);
    };
    let name = match above {
        "" => base.to_owned(),
        above => format!("{above}/{base}"),
    };
    let large = match objects.head(&name).await {
        Ok(head) => head.contains_key("x-static-large-object"),
        Err(failure) if failure.class == Class::NotFound => false,
        Err(failure) => return Err(failure),
    };
    if !large {
        return Ok(false);
    }
    let names = segments::of_manifest(objects, &name).await?;
    Ok(names.iter().any(|name| name.starts_with(upload)))
}

/// For the library; the failure comes out of it as it was.
fn wrapped(failure: Failure) -> object_store::Error {
    object_store::Error::Generic {
        store: "Swift",
        source: Box::new(failure),
    }
}
