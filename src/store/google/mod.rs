//! Google Cloud Storage, by its JSON API. Authority: rohmu `object_storage/google.py`; Google's
//! "JSON API reference" and "Resumable uploads".
//!
//! `object_store` speaks Google's XML API to write, which cannot keep metadata as rohmu writes it,
//! nor is spoken by anything but Google itself: it is not used. Metadata is JSON here, so it comes
//! back as it is.
//!
//! An object up to a part is one request; a larger one a session of parts in their order, which
//! becomes an object with its last one. A session that nobody ends is forgotten after a week.
//!
//! Budget: one part of an object at a time, within the room for parts of the process.

mod session;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::Method;
use hyper::header::HeaderMap;
use machine::Class;
use md5::{Digest, Md5};
use object_store::client::{HttpRequest, HttpResponse};
use serde_json::{Value, json};

use super::choose::Missing;
use super::cloud::logins::Logins;
use super::cloud::own::{self, Slashes, encoded, hidden, insert};
use super::cloud::read::{Again, Resumed, Streamed, Sum};
use super::cloud::{exists, room, told};
use super::login::google::Bearer;
use super::login::{self, Environment};
use super::wire::{Wire, Words, fault, run};
use super::{Body, Entry, Metadata, Object, Put, Store, Upload, check_key};
use crate::config;
use crate::durable;
use crate::failure::{Failure, Outcome};
use session::{Growing, Session};

pub struct Google {
    config: config::Google,
    wire: Wire,
    credentials: Bearer,
    /// The bucket may be made: nothing was ever seen in it.
    may_make: AtomicBool,
}

impl Google {
    /// No request is made: a daemon has to start while its store is away.
    pub fn new(
        config: &config::Google,
        missing: Missing,
        environment: &Environment,
    ) -> Outcome<Google> {
        let plain = Wire::new(&config.net)?;
        let source = {
            let (config, environment) = (config.clone(), environment.clone());
            move || login::google::provider(&config, &environment)
        };
        let logins = Arc::new(Logins::new(source, bear)?);
        let wire = plain.renewing(Arc::<Logins<String>>::clone(&logins));
        Ok(Google {
            credentials: logins,
            config: config.clone(),
            wire,
            may_make: AtomicBool::new(missing == Missing::Create),
        })
    }

    /// The name of an object there.
    fn name_of(&self, key: &str) -> Outcome<String> {
        check_key(key)?;
        Ok(match self.config.prefix.as_str() {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        })
    }

    /// `/storage/v1/b/BUCKET` or `/upload/storage/v1/b/BUCKET`, and what follows it.
    fn url(&self, api: &str, rest: &str) -> String {
        let google = "https://storage.googleapis.com";
        let base = self.config.endpoint.as_deref().unwrap_or(google);
        let bucket = encoded(&self.config.bucket, Slashes::Go);
        format!("{base}{api}/b/{bucket}{rest}")
    }

    /// What stands in for Google names itself in its answers, not the way we came.
    fn at_endpoint(&self, url: &str) -> String {
        let Some(base) = &self.config.endpoint else {
            return url.to_owned();
        };
        let place = url.split_once("://").map_or(url, |(_, place)| place);
        let path = place.find('/').and_then(|at| place.get(at..));
        format!("{base}{}", path.unwrap_or_default())
    }

    fn object_url(&self, name: &str, query: &str) -> String {
        let name = encoded(name, Slashes::Go);
        self.url(STORAGE, &format!("/o/{name}{query}"))
    }

    fn ask(&self, method: Method, url: &str, body: Option<(&str, Bytes)>) -> Outcome<HttpResponse> {
        let mut headers = HeaderMap::new();
        let body = match body {
            Some((kind, bytes)) => {
                insert(&mut headers, "content-type", kind)?;
                bytes
            }
            None => Bytes::new(),
        };
        self.send(method, url, headers, body)
    }

    fn send(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Outcome<HttpResponse> {
        let request = own::request(method, url, headers, body.into())?;
        run(sent(&self.wire, &self.credentials, request))
    }

    /// Of an object's bytes what is behind those that came.
    fn again(&self, url: String) -> Again {
        let (wire, credentials) = (self.wire.clone(), Arc::clone(&self.credentials));
        Box::new(move |from| {
            let (wire, credentials, url) = (wire.clone(), Arc::clone(&credentials), url.clone());
            Box::pin(async move {
                let mut headers = HeaderMap::new();
                insert(&mut headers, "range", &format!("bytes={from}-"))?;
                let request = own::request(Method::GET, &url, headers, Bytes::new().into())?;
                sent(&wire, &credentials, request).await
            })
        })
    }

    fn json(&self, answer: HttpResponse) -> Outcome<Value> {
        let bytes = run(answer.into_body().bytes());
        let bytes = bytes.map_err(|e| fault::broken(&e))?;
        let odd = |e| Failure::new(Class::Corrupt, format!("Google's answer is no JSON: {e}"));
        serde_json::from_slice(&bytes).map_err(odd)
    }

    /// What is said of an object; `None` if there is none, in a bucket that is there.
    fn found(&self, key: &str) -> Outcome<Option<(Object, Value)>> {
        let name = self.name_of(key)?;
        let answer = self.ask(Method::GET, &self.object_url(&name, ""), None);
        let value = match answer {
            Ok(answer) => self.json(answer)?,
            Err(failure) if failure.class == Class::NotFound => {
                self.page(&name, None, 1)
                    .map_err(|failure| failure.about(key))?;
                return Ok(None);
            }
            Err(failure) => return Err(failure.about(key)),
        };
        let entry = entry(&value, key.to_owned())?;
        let map = value.get("metadata").and_then(Value::as_object);
        let pairs = map.into_iter().flatten().map(|(name, value)| {
            let name = match name.eq_ignore_ascii_case(CONTENT_LENGTH) {
                true => CONTENT_LENGTH.to_owned(),
                false => name.clone(),
            };
            (name, value.as_str().unwrap_or_default().to_owned())
        });
        let mut metadata: Metadata = pairs.collect();
        let size = entry.size_bytes.to_string();
        if let Some(told) = metadata.get(CONTENT_LENGTH).filter(|told| **told != size) {
            let message = format!("{key} has {size} bytes instead of {told}");
            return Err(Failure::new(Class::Corrupt, message));
        }
        metadata.insert(CONTENT_LENGTH.to_owned(), size);
        Ok(Some((Object { entry, metadata }, value)))
    }

    /// Names that begin alike.
    fn page(&self, start: &str, token: Option<&str>, most: u32) -> Outcome<Value> {
        let start = encoded(start, Slashes::Go);
        let fields = "items(name,size,updated),nextPageToken";
        let mut rest = format!("/o?prefix={start}&maxResults={most}&fields={fields}");
        if let Some(token) = token {
            rest = format!("{rest}&pageToken={}", encoded(token, Slashes::Go));
        }
        let answer = self.ask(Method::GET, &self.url(STORAGE, &rest), None);
        let answer = answer.map_err(|failure| match failure.class {
            // A listing of nothing is an empty one; it is the bucket that is not there.
            Class::NotFound => Failure {
                class: Class::Config,
                message: format!("{NO_BUCKET}: {}", failure.message),
                hint: Some("make it, or correct its name".to_owned()),
            },
            _ => failure,
        })?;
        let value = self.json(answer)?;
        match value.is_object() && value.get("error").is_none() {
            true => Ok(value),
            false => Err(Failure::new(Class::Corrupt, "the answer is no listing")),
        }
    }

    fn in_bucket<T>(&self, mut work: impl FnMut() -> Outcome<T>) -> Outcome<T> {
        let absent = |failure: &Failure| failure.message.contains(NO_BUCKET);
        let outcome = match work() {
            Err(failure) if absent(&failure) && self.may_make.load(Ordering::Relaxed) => {
                self.make()?;
                work()
            }
            outcome => outcome,
        };
        if outcome.is_ok() {
            self.may_make.store(false, Ordering::Relaxed);
        }
        outcome
    }

    fn make(&self) -> Outcome<()> {
        let Some(project) = &self.config.project_id else {
            let message = format!("bucket {} does not exist", self.config.bucket);
            let hint = "make it, or name the project to make it in by project_id";
            return Err(Failure::new(Class::Config, message).hint(hint));
        };
        let google = "https://storage.googleapis.com";
        let base = self.config.endpoint.as_deref().unwrap_or(google);
        let project = encoded(project, Slashes::Go);
        let url = format!("{base}{STORAGE}/b?project={project}");
        let body = Bytes::from(json!({ "name": self.config.bucket }).to_string());
        match self.ask(Method::POST, &url, Some((JSON, body))) {
            Err(failure) if failure.class == Class::Conflict => Ok(()),
            made => made
                .map(drop)
                .map_err(|failure| failure.about("making the bucket")),
        }
    }

    fn refuse_existing(&self, key: &str) -> Outcome<()> {
        match self.found(key)? {
            Some(_) => Err(exists(key)),
            None => Ok(()),
        }
    }

    /// In one request, checked by its MD5 there.
    fn put_whole(&self, key: &str, bytes: &[u8], metadata: &Metadata, mode: Put) -> Outcome<()> {
        let name = self.name_of(key)?;
        let md5 = STANDARD.encode(Md5::digest(bytes));
        let head = json!({ "name": name, "metadata": metadata, "md5Hash": md5,
            "contentType": OCTETS });
        let mut body = format!(
            "--{BOUNDARY}\r\nContent-Type: {JSON}\r\n\r\n{head}\r\n--{BOUNDARY}\r\nContent-Type: \
             {OCTETS}\r\n\r\n"
        )
        .into_bytes();
        body.extend_from_slice(bytes);
        body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
        let url = self.url(
            UPLOAD,
            &format!("/o?uploadType=multipart{}", condition(mode)),
        );
        let kind = format!("multipart/related; boundary={BOUNDARY}");
        let put = self.ask(Method::POST, &url, Some((&kind, Bytes::from(body))));
        let answer = put.map_err(|failure| refused(failure, key, mode))?;
        self.compare(key, &self.json(answer)?, crc32c::crc32c(bytes))
    }

    /// What the store says of an object that it just made: what arrived damaged does not stay.
    fn compare(&self, key: &str, value: &Value, crc32c: u32) -> Outcome<()> {
        let told = value.get("crc32c").and_then(Value::as_str);
        if told.is_none_or(|told| told == noted(crc32c)) {
            return Ok(());
        }
        self.delete(key)?;
        let message = format!("{key}: the store has other bytes than it was sent");
        Err(Failure::new(Class::Corrupt, message))
    }
}

impl Store for Google {
    fn name(&self) -> String {
        let config::Google { bucket, prefix, .. } = &self.config;
        match &self.config.endpoint {
            Some(url) => format!("Google {url}/{bucket}/{prefix}"),
            None => format!("Google bucket {bucket}/{prefix}"),
        }
    }

    fn put(&self, key: &str, body: Body<'_>, metadata: &Metadata, mode: Put) -> Outcome<()> {
        let size_bytes = body.size_bytes()?;
        self.name_of(key)?;
        let mut metadata = metadata.clone();
        metadata.insert(CONTENT_LENGTH.to_owned(), size_bytes.to_string());
        self.in_bucket(|| {
            // What stands in for Google knows conditions for small ones alone; and nobody wants
            // to send a large one to be told.
            if mode == Put::Create {
                self.refuse_existing(key)?;
            }
            let source = body.open()?;
            if size_bytes <= PART_BYTES {
                let _room = room::take(size_bytes);
                let bytes = source.read(0, size_bytes)?;
                return self.put_whole(key, &bytes, &metadata, mode);
            }
            let mut session = Session::begin(self, key, &metadata, mode)?;
            let mut at = 0;
            while at < size_bytes {
                let _room = room::take(PART_BYTES);
                let bytes = source.read(at, PART_BYTES.min(size_bytes - at))?;
                at += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                session.send(
                    Bytes::from(bytes),
                    Some(size_bytes).filter(|size| at == *size),
                )?;
            }
            Ok(())
        })?;
        match body {
            Body::Bytes(_) => Ok(()),
            Body::Scratch(scratch) => durable::remove(scratch.path),
        }
    }

    fn begin(&self, key: &str, metadata: &Metadata) -> Outcome<Box<dyn Upload + '_>> {
        self.in_bucket(|| self.refuse_existing(key))?;
        Ok(Box::new(Growing::new(self, key, metadata)))
    }

    fn get(&self, key: &str) -> Outcome<(Object, Box<dyn Read + Send>)> {
        let Some((object, value)) = self.found(key)? else {
            let message = format!("{key} not found in {}", self.name());
            return Err(Failure::new(Class::NotFound, message));
        };
        let generation = value.get("generation").and_then(Value::as_str);
        let query = match generation {
            // The bytes of what was just described, not of what replaced it.
            Some(generation) => format!("?{MEDIA}&generation={generation}"),
            None => format!("?{MEDIA}"),
        };
        let url = self.object_url(&self.name_of(key)?, &query);
        let answer = self.ask(Method::GET, &url, None);
        let answer = answer.map_err(|failure| failure.about(key))?;
        let sum = value.get("crc32c").and_then(Value::as_str);
        let sum = sum.and_then(|text| STANDARD.decode(text).ok());
        let sum =
            sum.and_then(|bytes| Some(Sum::Crc32c(u32::from_be_bytes(bytes.try_into().ok()?))));
        let size_bytes = object.entry.size_bytes;
        let body = Resumed::new(key, size_bytes, answer, self.again(url));
        let body = Streamed::new(key, size_bytes, body, sum);
        Ok((object, Box::new(body)))
    }

    fn look(&self, key: &str) -> Outcome<Option<Object>> {
        Ok(self.found(key)?.map(|(object, _)| object))
    }

    fn list(&self, folder: &str, visit: &mut dyn FnMut(Entry) -> Outcome<()>) -> Outcome<()> {
        let folder = folder.trim_end_matches('/');
        let root = match self.config.prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let start = match folder {
            "" => root.clone(),
            folder => format!("{}/", self.name_of(folder)?),
        };
        let mut token: Option<String> = None;
        loop {
            let page = self.in_bucket(|| self.page(&start, token.as_deref(), PAGE));
            let page = page.map_err(|failure| failure.about(folder))?;
            let items = page.get("items").and_then(Value::as_array);
            for item in items.into_iter().flatten() {
                let name = item.get("name").and_then(Value::as_str).unwrap_or_default();
                // A folder that somebody made by hand is no object.
                let key = name.strip_prefix(&root).filter(|key| !key.ends_with('/'));
                if let Some(key) = key {
                    visit(entry(item, key.to_owned())?)?;
                }
            }
            match page.get("nextPageToken").and_then(Value::as_str) {
                Some(next) if token.as_deref() != Some(next) => token = Some(next.to_owned()),
                Some(_) => {
                    let message = "the listing goes on where it began";
                    return Err(Failure::new(Class::Corrupt, message));
                }
                None => return Ok(()),
            }
        }
    }

    fn delete(&self, key: &str) -> Outcome<()> {
        let name = self.name_of(key)?;
        match self.ask(Method::DELETE, &self.object_url(&name, ""), None) {
            Ok(_) => Ok(()),
            Err(failure) if failure.class == Class::NotFound => Ok(()),
            Err(failure) => Err(failure.about(key)),
        }
    }
}

fn condition(mode: Put) -> &'static str {
    match mode {
        Put::Create => "&ifGenerationMatch=0",
        Put::Replace => "",
    }
}

fn refused(failure: Failure, key: &str, mode: Put) -> Failure {
    match failure.class == Class::Conflict && mode == Put::Create {
        true => exists(key),
        false => match failure.class {
            // Nothing else is asked for by a name.
            Class::NotFound => Failure {
                class: Class::Config,
                message: format!("{key}: {NO_BUCKET}: {}", failure.message),
                hint: Some("make it, or correct its name".to_owned()),
            },
            _ => failure.about(key),
        },
    }
}

fn entry(value: &Value, key: String) -> Outcome<Entry> {
    let text = |name| value.get(name).and_then(Value::as_str);
    let size = text("size").and_then(|size| size.parse().ok());
    let time: Option<jiff::Timestamp> = text("updated").and_then(|time| time.parse().ok());
    match (size, time) {
        (Some(size_bytes), Some(time)) => Ok(Entry {
            key,
            size_bytes,
            modified_ms: time.as_millisecond(),
        }),
        _ => Err(Failure::new(
            Class::Corrupt,
            format!("{key} has no size or no time"),
        )),
    }
}

/// As Google writes a CRC-32C.
fn noted(crc32c: u32) -> String {
    STANDARD.encode(crc32c.to_be_bytes())
}

/// With a token that is good now.
async fn sent(
    wire: &Wire,
    credentials: &Bearer,
    mut request: HttpRequest,
) -> Outcome<HttpResponse> {
    let token = credentials.get_credential().await;
    let token = token.map_err(|e| told(&e))?;
    bear(&token, &mut request)?;
    let media = request
        .uri()
        .query()
        .is_some_and(|query| query.contains(MEDIA));
    if request.method() == Method::GET && !media {
        request.extensions_mut().insert(Words);
    }
    wire.ask(request).await
}

fn bear(token: &String, request: &mut HttpRequest) -> Outcome<()> {
    let bearer = format!("Bearer {token}");
    hidden(request.headers_mut(), "authorization", &bearer)
}

const STORAGE: &str = "/storage/v1";
const MEDIA: &str = "alt=media";
const UPLOAD: &str = "/upload/storage/v1";
const JSON: &str = "application/json; charset=UTF-8";
const OCTETS: &str = "application/octet-stream";
const BOUNDARY: &str = "7d1f0c6a9e8b4e2f-part-of-an-object";
const CONTENT_LENGTH: &str = "Content-Length";
const NO_BUCKET: &str = "no such bucket";
const PAGE: u32 = 1_000;
/// A multiple of 256 KiB, as sessions want it.
const PART_BYTES: u64 = 8 << 20;
