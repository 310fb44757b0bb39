//! Static large objects: segments under names that no listing shows, and a manifest.
//!
//! Segments of `a/b/name` are `a/b_segments/name/<upload>/<number>` in the same container, one
//! level below where rohmu has those of its dynamic ones. A manifest names 1,000 at most; longer
//! ones name manifests.

use std::collections::BTreeMap;

use async_trait::async_trait;
use hyper::Method;
use hyper::header::HeaderMap;
use machine::Class;
use md5::{Digest, Md5};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, PutMultipartOptions, PutPayload, PutResult, Result};
use serde_json::{Value, json};

use super::objects::{Objects, etag, length, refuse_late, text};
use crate::failure::{Failure, Outcome};

/// The folder of all segments of an object, without a slash at its end.
pub(super) fn folder(name: &str) -> String {
    match name.rsplit_once('/') {
        Some((folder, base)) => format!("{folder}_segments/{base}"),
        None => format!("_segments/{name}"),
    }
}

/// Whether a name is a segment of ours or of rohmu's, and no object.
pub(super) fn is_segment(name: &str) -> bool {
    let mut parts = name.rsplit('/');
    let hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let Some(number) = parts.next() else {
        return false;
    };
    let mut above: Vec<&str> = parts.take(3).collect();
    if above
        .first()
        .is_some_and(|upload| hex(upload, UPLOAD_DIGITS))
    {
        above.remove(0);
    }
    let in_segments = above
        .get(1)
        .is_some_and(|folder| folder.ends_with("_segments"));
    let number = number.strip_prefix(LIST).unwrap_or(number);
    in_segments && hex(number, NUMBER_DIGITS)
}

/// The upload and the object of a segment of ours.
pub(super) fn upload_of(name: &str) -> Option<(&str, &str)> {
    let (upload, _) = name.rsplit_once('/')?;
    let (_, id) = upload.rsplit_once('/')?;
    (is_segment(name) && id.len() == UPLOAD_DIGITS).then_some((upload, id))
}

/// The names in a manifest and in the manifests that it names.
pub(super) async fn of_manifest(objects: &Objects, name: &str) -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    let mut manifests = vec![name.to_owned()];
    while let Some(manifest) = manifests.pop() {
        let path = format!("{}?multipart-manifest=get", objects.url(&manifest));
        let body = String::new().into();
        let answer = objects
            .ask(Method::GET, &path, &HeaderMap::new(), body)
            .await?;
        let odd = || {
            let message = format!("{manifest}: its manifest names no segments");
            Failure::new(Class::Corrupt, message)
        };
        let text = text(answer).await?;
        if text.is_empty() {
            return by_digest(objects, name).await?.ok_or_else(odd);
        }
        let lines: Vec<Value> = serde_json::from_str(&text).map_err(|_| odd())?;
        let container = format!("/{}/", objects.account.config.container);
        for line in &lines {
            let segment = line.get("name").and_then(Value::as_str);
            let segment = segment.ok_or_else(odd)?;
            let Some(segment) = segment.strip_prefix(&container) else {
                let message = format!("{manifest}: a segment is elsewhere, {segment}");
                return Err(Failure::new(Class::Denied, message).hint("delete it by hand"));
            };
            if line.get("sub_slo").and_then(Value::as_bool) == Some(true) {
                manifests.push(segment.to_owned());
            }
            names.push(segment.to_owned());
        }
    }
    Ok(names)
}

/// Ceph shows no manifest. The digest of a large object is that of its segments' digests: what it
/// is made of are the uploads that it fits.
async fn by_digest(objects: &Objects, name: &str) -> Outcome<Option<Vec<String>>> {
    let tag = etag(&objects.head(name).await?);
    let start = format!("{}/", folder(name));
    let mut uploads: BTreeMap<String, (Md5, Vec<String>)> = BTreeMap::new();
    let mut after = String::new();
    loop {
        let page = objects.page(&start, &after).await?;
        let Some(last) = page.last() else {
            break;
        };
        after = last.name.clone();
        for listed in page {
            if let Some((upload, _)) = upload_of(&listed.name) {
                let (digest, names) = uploads.entry(upload.to_owned()).or_default();
                digest.update(&listed.digest);
                names.push(listed.name);
            }
        }
    }
    let fits = |digest: Md5| Some(hex::encode(digest.finalize())) == tag;
    let all = uploads
        .into_values()
        .filter_map(|(digest, names)| fits(digest).then_some(names));
    let names: Vec<String> = all.flatten().collect();
    Ok(Some(names).filter(|names| !names.is_empty()))
}

/// Puts a manifest in place; `condition` goes with it.
pub(super) async fn complete(
    objects: &Objects,
    name: &str,
    id: &str,
    parts: Vec<PartId>,
    headers: HeaderMap,
) -> Outcome<()> {
    let folder = folder(name);
    let line = |(number, part): (usize, &PartId)| {
        let (digest, size) = part.content_id.split_once(':').unwrap_or_default();
        let size: u64 = size.parse().unwrap_or(0);
        let path = segment(&folder, id, number);
        let path = format!("/{}/{path}", objects.account.config.container);
        json!({ "path": path, "etag": digest, "size_bytes": size })
    };
    let mut lines: Vec<Value> = parts.iter().enumerate().map(line).collect();
    let nested = lines.len() > LINES_MAX;
    if nested {
        let mut lists = Vec::new();
        for (number, some) in lines.chunks(LINES_MAX).enumerate() {
            let name = format!("{folder}/{id}/{LIST}{number:08x}");
            put(objects, &name, &json!(some), &HeaderMap::new()).await?;
            let path = format!("/{}/{name}", objects.account.config.container);
            lists.push(json!({ "path": path }));
        }
        lines = lists;
    }
    put(objects, name, &json!(lines), &headers).await?;
    if nested && length(&objects.head(name).await?) == Some(0) {
        // Ceph takes manifests of manifests, and makes nothing of them.
        objects.delete_names(&[name.to_owned()]).await?;
        let message =
            format!("{name} has more than {LINES_MAX} parts, and the server takes no more");
        let hint = "set basebackup_mode to \"stream\"";
        return Err(Failure::new(Class::Unsupported, message).hint(hint));
    }
    Ok(())
}

async fn put(objects: &Objects, name: &str, lines: &Value, headers: &HeaderMap) -> Outcome<()> {
    let path = format!("{}?multipart-manifest=put", objects.url(name));
    let body = lines.to_string().into();
    let answer = objects.ask(Method::PUT, &path, headers, body).await?;
    refuse_late(&answer, name)
}

fn segment(folder: &str, id: &str, number: usize) -> String {
    format!("{folder}/{id}/{number:08x}")
}

#[async_trait]
impl MultipartStore for Objects {
    async fn create_multipart(&self, _path: &Path) -> Result<MultipartId> {
        let mut random = [0; UPLOAD_DIGITS / 2];
        getrandom::fill(&mut random).map_err(|e| {
            let message = format!("no randomness: {e}");
            super::wrapped(Failure::new(Class::Internal, message))
        })?;
        Ok(hex::encode(random))
    }

    /// The attributes come with the manifest.
    async fn create_multipart_opts(
        &self,
        path: &Path,
        _options: PutMultipartOptions,
    ) -> Result<MultipartId> {
        self.create_multipart(path).await
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        number: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        let size = data.content_length();
        let name = segment(&folder(path.as_ref()), id, number);
        let stored = self.store(&self.url(&name), HeaderMap::new(), data).await;
        let digest = stored.map_err(super::wrapped)?;
        let content_id = format!("{digest}:{size}");
        Ok(PartId { content_id })
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        let done = complete(self, path.as_ref(), id, parts, HeaderMap::new()).await;
        done.map_err(super::wrapped)?;
        Ok(PutResult {
            e_tag: None,
            version: None,
            extensions: Default::default(),
        })
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        let folder = format!("{}/{id}/", folder(path.as_ref()));
        let taken = async {
            let names = self.names(&folder).await?;
            self.delete_names(&names).await
        };
        taken.await.map_err(super::wrapped)
    }
}

const UPLOAD_DIGITS: usize = 16;
const NUMBER_DIGITS: usize = 8;
/// Before the number of a manifest that another manifest names.
const LIST: &str = "list-";
/// Swift's limit for a manifest, unless it is configured otherwise.
const LINES_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_told_from_objects() {
        for name in [
            "p/main/basebackup_segments/2026-11-22_09-27_0/00000001",
            "main/basebackup_segments/b/0123456789abcdef/00000000",
            "main/basebackup_segments/b/0123456789abcdef/list-00000000",
        ] {
            assert!(is_segment(name), "{name}");
        }
        for name in [
            "main/xlog/000000010000000000000001",
            "my_segments/xlog/000000010000000000000001",
            "my_segments/timeline/00000002.history",
            "a_segments/00000001",
        ] {
            assert!(!is_segment(name), "{name}");
        }
        assert!(is_segment(&segment(&folder("a/b"), "0123456789abcdef", 7)));
    }
}
