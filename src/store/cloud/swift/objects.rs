//! Objects of a container: what Swift answers, in the words of the library.
//!
//! An object is plain, a static large object (its manifest names the segments) or a dynamic one
//! (its segments are whatever has its prefix), which PGHoard wrote.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use hyper::Method;
use hyper::header::{HeaderMap, HeaderValue};
use machine::Class;
use md5::{Digest, Md5};
use object_store::client::{HttpRequestBody, HttpResponse};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use serde_json::Value;
use smol::stream::{Boxed, StreamExt, unfold};

use super::super::own::{Slashes, encoded, insert};
use super::super::read::{Answered, Resumed};
use super::account::Account;
use super::{segments, wrapped};
use crate::failure::{Failure, Outcome};
use crate::store::wire::fault;

#[derive(Clone, Debug)]
pub(super) struct Objects {
    pub account: Arc<Account>,
}

/// A line of a listing.
pub(super) struct Listed {
    pub name: String,
    pub size_bytes: u64,
    pub modified: std::time::SystemTime,
    /// MD5 of its bytes; of a large object the server's own affair.
    pub digest: String,
}

impl Listed {
    /// Swift lists a dynamic large object as empty. Ceph lists a static one with the size of its
    /// manifest, and with the digest of nothing.
    fn is_sized(&self) -> bool {
        self.size_bytes > 0 && self.digest != DIGEST_OF_NOTHING
    }
}

impl Objects {
    pub fn container(&self) -> String {
        format!("/{}", encoded(&self.account.config.container, Slashes::Go))
    }

    pub fn url(&self, name: &str) -> String {
        format!("{}/{}", self.container(), encoded(name, Slashes::Stay))
    }

    /// Asks for an object; a container that is not there is no missing object.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: HttpRequestBody,
    ) -> Outcome<HttpResponse> {
        let request = |login: &super::account::Login| {
            login.request(method.clone(), path, headers.clone(), body.clone())
        };
        match self.account.ask(request).await {
            Err(failure) if failure.class == Class::NotFound => {
                self.confirm_container().await?;
                Err(failure)
            }
            answer => answer,
        }
    }

    async fn confirm_container(&self) -> Outcome<()> {
        let path = self.container();
        let request = |login: &super::account::Login| {
            login.request(Method::HEAD, &path, HeaderMap::new(), String::new().into())
        };
        match self.account.ask(request).await {
            Err(failure) if failure.class == Class::NotFound => {
                let name = &self.account.config.container;
                let message = format!("container '{name}' does not exist (ContainerNotFound)");
                let hint = "make it, or correct its name";
                Err(Failure::new(Class::Config, message).hint(hint))
            }
            answer => answer.map(drop),
        }
    }

    /// Stores bytes under a name; the server compares them with their MD5.
    pub async fn store(
        &self,
        path: &str,
        mut headers: HeaderMap,
        payload: PutPayload,
    ) -> Outcome<String> {
        let mut digest = Md5::new();
        payload.iter().for_each(|piece| digest.update(piece));
        let digest = hex::encode(digest.finalize());
        insert(&mut headers, "etag", &digest)?;
        insert(&mut headers, "content-type", "application/octet-stream")?;
        let answer = self
            .ask(Method::PUT, path, &headers, payload.into())
            .await?;
        refuse_late(&answer, path)?;
        match etag(answer.headers()) {
            Some(stored) if stored != digest => {
                let message = format!("{path}: stored with MD5 {stored} instead of {digest}");
                Err(Failure::new(Class::Corrupt, message))
            }
            Some(_) | None => Ok(digest),
        }
    }

    pub async fn head(&self, name: &str) -> Outcome<HeaderMap> {
        let path = self.url(name);
        let body = HttpRequestBody::from(String::new());
        let answer = self
            .ask(Method::HEAD, &path, &HeaderMap::new(), body)
            .await?;
        Ok(answer.headers().clone())
    }

    /// Deletes what has this name; fine if it is not there.
    async fn delete_one(&self, name: &str) -> Outcome<()> {
        let path = self.url(name);
        let body = HttpRequestBody::from(String::new());
        match self
            .ask(Method::DELETE, &path, &HeaderMap::new(), body)
            .await
        {
            Err(failure) if failure.class != Class::NotFound => Err(failure),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// An object with its segments, the object first: what is left after a crash is invisible.
    pub async fn delete(&self, name: &str) -> Outcome<()> {
        let head = match self.head(name).await {
            Ok(head) => head,
            Err(failure) if failure.class == Class::NotFound => return Ok(()),
            Err(failure) => return Err(failure),
        };
        if head.contains_key("x-static-large-object") {
            let names = segments::of_manifest(self, name).await?;
            self.delete_one(name).await?;
            return self.delete_names(&names).await;
        }
        self.delete_one(name).await?;
        let Some(manifest) = head.get("x-object-manifest").and_then(|v| v.to_str().ok()) else {
            return Ok(());
        };
        let manifest = crate::config::decoded(manifest).unwrap_or_else(|| manifest.to_owned());
        let Some((container, prefix)) = manifest.split_once('/') else {
            return Ok(());
        };
        if container != self.account.config.container || prefix.is_empty() {
            let message = format!("{name}: its segments are elsewhere, in {manifest}");
            return Err(Failure::new(Class::Denied, message).hint("delete them by hand"));
        }
        let names = self.names(prefix).await?;
        self.delete_names(&names).await
    }

    pub async fn delete_names(&self, names: &[String]) -> Outcome<()> {
        for name in names {
            self.delete_one(name).await?;
        }
        Ok(())
    }

    /// Every name with a prefix.
    pub async fn names(&self, prefix: &str) -> Outcome<Vec<String>> {
        let mut names = Vec::new();
        let mut after = String::new();
        loop {
            let page = self.page(prefix, &after).await?;
            let Some(last) = page.last() else {
                return Ok(names);
            };
            after = last.name.clone();
            names.extend(page.into_iter().map(|listed| listed.name));
        }
    }

    /// The names behind `after`; an empty page is the end.
    pub async fn page(&self, prefix: &str, after: &str) -> Outcome<Vec<Listed>> {
        let (prefix, marker) = (encoded(prefix, Slashes::Go), encoded(after, Slashes::Go));
        let query = format!("?format=json&limit={PAGE_NAMES}&prefix={prefix}&marker={marker}");
        let path = format!("{}{query}", self.container());
        let body = HttpRequestBody::from(String::new());
        let answer = self
            .ask(Method::GET, &path, &HeaderMap::new(), body)
            .await?;
        // 204 is how an empty one may be said.
        let empty = answer.status().as_u16() == 204;
        let text = text(answer).await?;
        if empty {
            return Ok(Vec::new());
        }
        let odd = |why: &str| Failure::new(Class::Corrupt, format!("no listing: {why}"));
        let items: Vec<Value> = serde_json::from_str(&text).map_err(|e| odd(&e.to_string()))?;
        let page: Option<Vec<Listed>> = items.iter().map(listed).collect();
        let page = page.ok_or_else(|| odd("an entry without name, size or time"))?;
        match page.first() {
            Some(first) if first.name.as_str() <= after => Err(odd("it goes on where it began")),
            Some(_) | None => Ok(page),
        }
    }

    async fn meta(&self, listed: Listed) -> Outcome<Option<ObjectMeta>> {
        // A name with a slash at its end is how some programs make a folder.
        if segments::is_segment(&listed.name) || listed.name.ends_with('/') {
            return Ok(None);
        }
        let mut size_bytes = listed.size_bytes;
        if !listed.is_sized() {
            match self.head(&listed.name).await {
                Ok(head) => size_bytes = length(&head).unwrap_or(0),
                Err(failure) if failure.class == Class::NotFound => return Ok(None),
                Err(failure) => return Err(failure),
            }
        }
        let location = Path::parse(&listed.name);
        let wrong = |e: object_store::path::Error| Failure::new(Class::Corrupt, e.to_string());
        Ok(Some(ObjectMeta {
            location: location.map_err(wrong)?,
            last_modified: listed.modified.into(),
            size: size_bytes,
            e_tag: None,
            version: None,
        }))
    }

    async fn read(&self, path: &Path, options: GetOptions) -> Outcome<GetResult> {
        let name = path.as_ref();
        let method = if options.head {
            Method::HEAD
        } else {
            Method::GET
        };
        let headers = HeaderMap::new();
        let body = HttpRequestBody::from(String::new());
        let answer = self.ask(method, &self.url(name), &headers, body).await?;
        let head = answer.headers().clone();
        let odd =
            |what: &str| Failure::new(Class::Corrupt, format!("{name}: answer without {what}"));
        let size = length(&head).ok_or_else(|| odd("Content-Length"))?;
        let meta = ObjectMeta {
            location: path.clone(),
            last_modified: modified(&head).ok_or_else(|| odd("a time"))?.into(),
            size,
            e_tag: etag(&head),
            version: None,
        };
        let large = ["x-static-large-object", "x-object-manifest"];
        let large = large.iter().any(|name| head.contains_key(*name));
        let digest = meta.e_tag.clone().filter(|tag| tag.len() == 32 && !large);
        let stream = match options.head {
            true => smol::stream::empty().boxed(),
            false => Body {
                resumed: self.resumed(name, size, answer, head.get("etag")),
                name: name.to_owned(),
                digest: digest.map(|digest| (Md5::new(), digest)),
            }
            .stream(),
        };
        Ok(GetResult {
            range: Range {
                start: 0,
                end: size,
            },
            payload: GetResultPayload::Stream(stream),
            attributes: attributes(&head),
            meta,
            extensions: Default::default(),
        })
    }

    /// What replaced the object meanwhile is another.
    fn resumed(
        &self,
        name: &str,
        size: u64,
        first: HttpResponse,
        tag: Option<&HeaderValue>,
    ) -> Resumed {
        let (objects, path, tag) = (self.clone(), self.url(name), tag.cloned());
        let again = move |from: u64| -> Answered {
            let (objects, path, tag) = (objects.clone(), path.clone(), tag.clone());
            Box::pin(async move {
                let mut headers = HeaderMap::new();
                insert(&mut headers, "range", &format!("bytes={from}-"))?;
                if let Some(tag) = tag {
                    headers.insert("if-match", tag);
                }
                let body = HttpRequestBody::from(String::new());
                objects.ask(Method::GET, &path, &headers, body).await
            })
        };
        Resumed::new(name, size, first, Box::new(again))
    }
}

/// A body with the MD5 that the server noted.
struct Body {
    resumed: Resumed,
    name: String,
    digest: Option<(Md5, String)>,
}

impl Body {
    fn stream(self) -> Boxed<Result<Bytes>> {
        unfold(Some(self), |body| async move {
            let mut body = body?;
            match body.next().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(body))),
                Ok(None) => None,
                Err(failure) => Some((Err(wrapped(failure)), None)),
            }
        })
        .boxed()
    }

    async fn next(&mut self) -> Outcome<Option<Bytes>> {
        let Some(piece) = self.resumed.next().await? else {
            return self.end().map(|()| None);
        };
        if let Some((digest, _)) = &mut self.digest {
            digest.update(&piece);
        }
        Ok(Some(piece))
    }

    fn end(&mut self) -> Outcome<()> {
        let Some((digest, noted)) = self.digest.take() else {
            return Ok(());
        };
        match hex::encode(digest.finalize()) == noted {
            true => Ok(()),
            false => {
                let message = format!("{}: the bytes do not have the noted MD5", self.name);
                Err(Failure::new(Class::Corrupt, message))
            }
        }
    }
}

/// 202 says that something newer is there: what was sent is not.
pub(super) fn refuse_late(answer: &HttpResponse, path: &str) -> Outcome<()> {
    match answer.status().as_u16() {
        202 => {
            let message = format!("PUT {path}: somebody else wrote it at the same time");
            Err(Failure::new(Class::Conflict, message))
        }
        _ => Ok(()),
    }
}

pub(super) async fn text(answer: HttpResponse) -> Outcome<String> {
    let bytes = answer
        .into_body()
        .bytes()
        .await
        .map_err(|e| fault::broken(&e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn unsupported<T>(what: &str) -> Result<T> {
    Err(object_store::Error::NotImplemented {
        operation: what.to_owned(),
        implementer: "Swift".to_owned(),
    })
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Swift container {}", self.account.config.container)
    }
}

#[async_trait]
impl ObjectStore for Objects {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let mut headers = labels(&options.attributes).map_err(wrapped)?;
        if options.mode == PutMode::Create {
            headers.insert("if-none-match", HeaderValue::from_static("*"));
        }
        let path = self.url(location.as_ref());
        let stored = self.store(&path, headers, payload).await.map_err(wrapped)?;
        Ok(PutResult {
            e_tag: Some(stored),
            version: None,
            extensions: Default::default(),
        })
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        unsupported("put_multipart_opts")
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.read(location, options).await.map_err(wrapped)
    }

    fn delete_stream(&self, locations: Boxed<Result<Path>>) -> Boxed<Result<Path>> {
        let objects = self.clone();
        locations
            .then(move |location| {
                let objects = objects.clone();
                async move {
                    let location = location?;
                    objects.delete(location.as_ref()).await.map_err(wrapped)?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> Boxed<Result<ObjectMeta>> {
        let prefix = match prefix.map(Path::as_ref) {
            None | Some("") => String::new(),
            Some(prefix) => format!("{prefix}/"),
        };
        let state = (self.clone(), prefix, Some(String::new()));
        unfold(state, |(objects, prefix, after)| async move {
            let after = after?;
            let found = entries(&objects, &prefix, &after).await;
            match found {
                Ok((_, None)) => None,
                Ok((metas, last)) => {
                    let metas: Vec<Result<ObjectMeta>> = metas.into_iter().map(Ok).collect();
                    Some((metas, (objects, prefix, last)))
                }
                Err(failure) => Some((vec![Err(wrapped(failure))], (objects, prefix, None))),
            }
        })
        .flat_map(smol::stream::iter)
        .boxed()
    }

    async fn list_with_delimiter(&self, _prefix: Option<&Path>) -> Result<ListResult> {
        unsupported("list_with_delimiter")
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        unsupported("copy_opts")
    }
}

/// A page of objects, and the last name of it: None behind the end.
async fn entries(
    objects: &Objects,
    prefix: &str,
    after: &str,
) -> Outcome<(Vec<ObjectMeta>, Option<String>)> {
    let page = objects.page(prefix, after).await?;
    let last = page.last().map(|listed| listed.name.clone());
    let mut metas = Vec::new();
    for listed in page {
        metas.extend(objects.meta(listed).await?);
    }
    Ok((metas, last))
}

fn listed(item: &Value) -> Option<Listed> {
    let time = item.get("last_modified")?.as_str()?;
    // UTC, which is not said.
    let time: jiff::Timestamp = format!("{}Z", time.trim_end_matches('Z')).parse().ok()?;
    Some(Listed {
        name: item.get("name")?.as_str()?.to_owned(),
        size_bytes: item.get("bytes")?.as_u64()?,
        modified: time.into(),
        digest: item.get("hash")?.as_str()?.to_owned(),
    })
}

pub(super) fn labels(attributes: &Attributes) -> Outcome<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (attribute, value) in attributes {
        if let Attribute::Metadata(name) = attribute {
            insert(&mut headers, &format!("{META}{name}"), value.as_ref())?;
        }
    }
    Ok(headers)
}

fn attributes(headers: &HeaderMap) -> Attributes {
    let pairs = headers.iter().filter_map(|(name, value)| {
        let name = name.as_str().strip_prefix(META)?.to_owned();
        if name == CEPHS_OWN {
            return None;
        }
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        Some((Attribute::Metadata(name.into()), value))
    });
    pairs.collect()
}

pub(super) fn etag(headers: &HeaderMap) -> Option<String> {
    let tag = headers.get("etag")?.to_str().ok()?;
    Some(tag.trim_matches('"').to_ascii_lowercase())
}

pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get("content-length")?.to_str().ok()?.parse().ok()
}

/// `X-Timestamp` is finer than `Last-Modified`, and not everywhere.
fn modified(headers: &HeaderMap) -> Option<std::time::SystemTime> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|v: &HeaderValue| v.to_str().ok())
    };
    if let Some(seconds) = text("x-timestamp").and_then(|t| t.parse::<f64>().ok())
        && seconds >= 0.0
    {
        let since = std::time::Duration::try_from_secs_f64(seconds).ok()?;
        return std::time::UNIX_EPOCH.checked_add(since);
    }
    let time = jiff::fmt::rfc2822::parse(text("last-modified")?).ok()?;
    Some(time.timestamp().into())
}

const META: &str = "x-object-meta-";
/// Ceph shows it among the metadata.
const CEPHS_OWN: &str = "static-large-object";
const DIGEST_OF_NOTHING: &str = "d41d8cd98f00b204e9800998ecf8427e";
/// Of Swift's own limit of 10,000 a tenth: a page is in memory.
const PAGE_NAMES: u32 = 1_000;
