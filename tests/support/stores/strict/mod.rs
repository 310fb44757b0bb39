//! An S3 server of the tests' own, in memory, that is as strict as none of the light ones is: it
//! checks signatures, clocks, payload hashes, MD5 and SHA-256 checksums, knows create-only writes,
//! parts and pages, and refuses what it does not know instead of passing over it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use md5::Md5;
use sha2::{Digest, Sha256};

use self::query::Query;
use self::signature::text;
use super::s3::{ADMIN, Bucket};
use crate::support::http::{Endpoint, Request, Response, respond};

mod parts;
mod query;
mod signature;

const XML: (&str, &str) = ("Content-Type", "application/xml");

/// In the middle of an upload no part may be smaller. Amazon's number.
const PART_MIN_BYTES: usize = 5 << 20;

pub struct Strict {
    endpoint: Endpoint,
    state: Arc<Mutex<State>>,
}

/// Who is let in, with the token of a session if the keys are of one.
#[derive(Clone)]
pub struct Login {
    pub access: String,
    pub secret: String,
    pub token: Option<String>,
}

/// A request that came, refused or not.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `METHOD URI`.
    pub line: String,
    pub headers: BTreeMap<String, String>,
}

#[derive(Default)]
struct State {
    logins: Vec<Login>,
    seen: Vec<Seen>,
    buckets: BTreeMap<String, BTreeMap<String, Object>>,
    uploads: BTreeMap<String, parts::Upload>,
    refused: Vec<String>,
    page_max: Option<usize>,
    session: Option<String>,
}

#[derive(Clone, Default)]
struct Object {
    body: Bytes,
    etag: String,
    modified: String,
    /// Those that come back as they were given.
    headers: Vec<(String, String)>,
    /// Base64 of the SHA-256, for an upload in parts of those of its parts.
    checksum: Option<String>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal {
    status: u16,
    code: &'static str,
}

type Answer = Result<Response, Refusal>;

fn refuse<T>(status: u16, code: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, code })
}

impl Strict {
    pub fn start() -> Strict {
        let state = Arc::<Mutex<State>>::default();
        state.lock().unwrap().logins.push(Login {
            access: ADMIN.access.to_owned(),
            secret: ADMIN.secret.to_owned(),
            token: None,
        });
        let own = Arc::clone(&state);
        let endpoint = Endpoint::start(move |request| {
            let mut state = own.lock().unwrap();
            state.seen.push(Seen::of(request));
            let answer = signature::check(request, &state.logins, state.session.is_some())
                .and_then(|()| state.in_session(request))
                .and_then(|()| state.answer(request));
            answer.unwrap_or_else(|refusal| {
                let line = format!("{} {}: {}", request.method(), request.uri(), refusal.code);
                state.refused.push(line);
                let body = format!("<Error><Code>{}</Code></Error>", refusal.code);
                respond(refusal.status, &[XML], body)
            })
        });
        Strict { endpoint, state }
    }

    pub fn bucket(&self) -> Bucket {
        Bucket::make(self.endpoint.port, ADMIN)
    }

    /// These keys are let in, too.
    pub fn admit(&self, login: Login) {
        self.state().logins.push(login);
    }

    /// All requests since it was asked last.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    /// The port it listens at.
    pub fn port(&self) -> u16 {
        self.endpoint.port
    }

    /// `METHOD URI: CODE` of all that it refused so far, 404 included.
    pub fn refused(&self) -> Vec<String> {
        self.state().refused.clone()
    }

    /// Uploads in parts that were neither completed nor aborted.
    pub fn unfinished(&self) -> usize {
        self.state().uploads.len()
    }

    /// Lists in pages of at most so many keys.
    pub fn page(&self, keys: usize) {
        self.state().page_max = Some(keys);
    }

    /// Of temporary credentials those with another token have expired.
    pub fn session(&self, token: &str) {
        self.state().session = Some(token.to_owned());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Seen {
    fn of(request: &Request) -> Seen {
        let names = request.headers().keys();
        Seen {
            line: format!("{} {}", request.method(), request.uri()),
            headers: names
                .map(|name| (name.to_string(), text(request, name.as_str())))
                .collect(),
        }
    }
}

/// Below it buckets are hosts. Who comes by this name uses the server as a proxy.
pub const DOMAIN: &str = "s3.example.com";

impl State {
    fn in_session(&self, request: &Request) -> Result<(), Refusal> {
        let token = text(request, "x-amz-security-token");
        match &self.session {
            Some(session) if !token.is_empty() && token != *session => refuse(400, "ExpiredToken"),
            Some(_) | None => Ok(()),
        }
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let query = Query::of(request);
        let mut path = query::decode(request.uri().path());
        let host = text(request, "host");
        let host = host.split(':').next().unwrap_or_default();
        if let Some(bucket) = host.strip_suffix(DOMAIN).and_then(|b| b.strip_suffix('.')) {
            path = format!("/{bucket}{path}");
        }
        let (bucket, key) = match path.trim_start_matches('/').split_once('/') {
            Some((bucket, key)) => (bucket.to_owned(), key.to_owned()),
            None => (path.trim_start_matches('/').to_owned(), String::new()),
        };
        checksums(request)?;
        let method = request.method().as_str();
        if key.is_empty() && method == "PUT" {
            self.buckets.entry(bucket).or_default();
            return Ok(respond(200, &[], ""));
        }
        if !self.buckets.contains_key(&bucket) {
            return refuse(404, "NoSuchBucket");
        }
        match (method, key.is_empty()) {
            ("HEAD", true) => Ok(respond(200, &[], "")),
            ("GET", true) if query.has("uploads") => self.list_uploads(&bucket, &query),
            ("GET", true) if query.get("list-type") == "2" => self.list(&bucket, &query),
            ("POST", true) if query.has("delete") => self.delete_many(&bucket, request),
            ("POST", false) if query.has("uploads") => self.begin(&bucket, &key, request),
            ("PUT", false) if query.has("uploadId") => self.part(&query, request),
            ("POST", false) if query.has("uploadId") => {
                self.complete(&bucket, &key, &query, request)
            }
            ("DELETE", false) if query.has("uploadId") => self.abort(&query),
            ("PUT", false) => self.put(&bucket, &key, request),
            ("GET" | "HEAD", false) => self.get(&bucket, &key, request),
            ("DELETE", false) => {
                self.objects(&bucket).remove(&key);
                Ok(respond(204, &[], ""))
            }
            _ => refuse(501, "NotImplemented"),
        }
    }

    fn objects(&mut self, bucket: &str) -> &mut BTreeMap<String, Object> {
        self.buckets.get_mut(bucket).expect("asked for before")
    }

    fn put(&mut self, bucket: &str, key: &str, request: &Request) -> Answer {
        self.may_create(bucket, key, request)?;
        let body = request.body().clone();
        let etag = hex::encode(Md5::digest(&body));
        let checksum = request.headers().contains_key("x-amz-checksum-sha256");
        let object = Object {
            checksum: checksum.then(|| STANDARD.encode(Sha256::digest(&body))),
            headers: kept(request),
            ..Object::new(body, etag)
        };
        let tag = format!("\"{}\"", object.etag);
        self.objects(bucket).insert(key.to_owned(), object);
        Ok(respond(200, &[("ETag", &tag)], ""))
    }

    /// `If-None-Match: *` is all that is known.
    fn may_create(&mut self, bucket: &str, key: &str, request: &Request) -> Result<(), Refusal> {
        if request.headers().contains_key("if-match") {
            return refuse(501, "NotImplemented");
        }
        match text(request, "if-none-match").as_str() {
            "" => Ok(()),
            "*" if !self.objects(bucket).contains_key(key) => Ok(()),
            "*" => refuse(412, "PreconditionFailed"),
            _ => refuse(501, "NotImplemented"),
        }
    }

    fn get(&mut self, bucket: &str, key: &str, request: &Request) -> Answer {
        let Some(object) = self.objects(bucket).get(key) else {
            return refuse(404, "NoSuchKey");
        };
        let tag = format!("\"{}\"", object.etag);
        if !["", tag.as_str()].contains(&text(request, "if-match").as_str()) {
            return refuse(412, "PreconditionFailed");
        }
        let mut headers = vec![
            ("ETag", tag.as_str()),
            ("Last-Modified", object.modified.as_str()),
            ("Accept-Ranges", "bytes"),
        ];
        let own = object.headers.iter();
        headers.extend(own.map(|(name, value)| (name.as_str(), value.as_str())));
        let (status, range) = match query::range(&text(request, "range"), object.body.len())? {
            Some(range) => (206, range),
            None => (200, 0..object.body.len()),
        };
        let asked = text(request, "x-amz-checksum-mode").eq_ignore_ascii_case("enabled");
        if let (Some(checksum), 200, true) = (&object.checksum, status, asked) {
            headers.push(("x-amz-checksum-sha256", checksum));
        }
        let place = format!(
            "bytes {}-{}/{}",
            range.start,
            range.end.saturating_sub(1),
            object.body.len()
        );
        if status == 206 {
            headers.push(("Content-Range", &place));
        }
        // hyper leaves it out of an answer to HEAD whose body is empty.
        let length = range.len().to_string();
        headers.push(("Content-Length", &length));
        Ok(respond(status, &headers, object.body.slice(range)))
    }

    fn list(&mut self, bucket: &str, query: &Query) -> Answer {
        const MAX: usize = 1000;
        let (prefix, delimiter) = (query.get("prefix"), query.get("delimiter"));
        let wanted = query.get("max-keys").parse().unwrap_or(MAX);
        let most = wanted.min(self.page_max.unwrap_or(MAX));
        let token = query.get("continuation-token");
        let after = match token.as_str() {
            "" => query.get("start-after"),
            token => token
                .strip_prefix("after:")
                .map_or_else(|| refuse(400, "InvalidArgument"), |key| Ok(key.to_owned()))?,
        };
        let (mut entries, mut last, mut more) = (Vec::new(), String::new(), false);
        let mut groups: Vec<String> = Vec::new();
        for (key, object) in self.objects(bucket).iter() {
            let Some(rest) = key.strip_prefix(&prefix) else {
                continue;
            };
            let end = (!delimiter.is_empty())
                .then(|| rest.find(&delimiter))
                .flatten();
            let group = end.map(|end| format!("{prefix}{}{delimiter}", &rest[..end]));
            let name = group.as_ref().unwrap_or(key);
            if *name <= after || groups.last() == Some(name) {
                continue;
            }
            if entries.len() + groups.len() == most {
                more = true;
                break;
            }
            last.clone_from(name);
            match group {
                Some(group) => groups.push(group),
                None => entries.push(query::entry(key, object)),
            }
        }
        Ok(query::page(&entries, &groups, more.then_some(&*last)))
    }

    /// Amazon wants an integrity header here.
    fn delete_many(&mut self, bucket: &str, request: &Request) -> Answer {
        let checked = ["content-md5", "x-amz-checksum-sha256"];
        if !checked
            .iter()
            .any(|name| request.headers().contains_key(*name))
        {
            return refuse(400, "InvalidRequest");
        }
        let body = String::from_utf8_lossy(request.body()).into_owned();
        let keys = query::elements(&body, "Key");
        if keys.is_empty() || keys.len() > 1000 {
            return refuse(400, "MalformedXML");
        }
        let quiet = query::elements(&body, "Quiet") == ["true"];
        let mut done = String::new();
        for key in keys {
            self.objects(bucket).remove(&key);
            if !quiet {
                let key = query::escaped(&key);
                done += &format!("<Deleted><Key>{key}</Key></Deleted>");
            }
        }
        Ok(respond(
            200,
            &[XML],
            format!("<DeleteResult>{done}</DeleteResult>"),
        ))
    }
}

impl Object {
    fn new(body: Bytes, etag: String) -> Object {
        let now = jiff::Timestamp::now();
        Object {
            body,
            etag,
            modified: now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(),
            ..Object::default()
        }
    }
}

/// What the client said of the body must be so.
fn checksums(request: &Request) -> Result<(), Refusal> {
    let body = request.body();
    let md5 = text(request, "content-md5");
    if !md5.is_empty() && md5 != STANDARD.encode(Md5::digest(body)) {
        return refuse(400, "BadDigest");
    }
    for name in request.headers().keys() {
        match name.as_str() {
            name @ "x-amz-checksum-sha256"
                if text(request, name) != STANDARD.encode(Sha256::digest(body)) =>
            {
                return refuse(400, "BadDigest");
            }
            "x-amz-checksum-sha256" => {}
            "x-amz-checksum-mode" | "x-amz-checksum-algorithm" | "x-amz-checksum-type" => {}
            other if other.starts_with("x-amz-checksum-") => return refuse(501, "NotImplemented"),
            _ => {}
        }
    }
    Ok(())
}

fn kept(request: &Request) -> Vec<(String, String)> {
    let mut kept = Vec::new();
    for name in request.headers().keys() {
        let same = [
            "content-type",
            "x-amz-storage-class",
            "x-amz-server-side-encryption",
            "x-amz-server-side-encryption-aws-kms-key-id",
            "x-amz-object-lock-mode",
            "x-amz-object-lock-retain-until-date",
        ];
        if name.as_str().starts_with("x-amz-meta-") || same.contains(&name.as_str()) {
            kept.push((name.as_str().to_owned(), text(request, name.as_str())));
        }
    }
    kept
}
