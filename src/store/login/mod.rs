//! Who we are to a store, where the configuration leaves that to the environment, to the machine
//! or to a service that hands out tokens.
//!
//! What is lent to us is kept and renewed before it ends. A renewal that fails does no harm while
//! what we have is still good.

pub mod aws;
pub mod azure;
pub mod google;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hyper::Method;
use hyper::header::HeaderMap;
use machine::Class;
use object_store::CredentialProvider;
use serde_json::Value;
use smol::lock::Mutex;

use super::cloud::own::{self, Slashes, encoded, insert};
use super::wire::Wire;
use crate::config::{Authority, BYTES_PER_SECOND_MIN, Net};
use crate::failure::{Failure, Outcome};

/// What the environment says. The process's own, but for tests.
#[derive(Clone)]
pub struct Environment(Arc<Variables>);

type Variables = dyn Fn(&str) -> Option<String> + Send + Sync;

impl Environment {
    pub fn of_process() -> Environment {
        Environment(Arc::new(|name| std::env::var(name).ok()))
    }

    pub fn of(pairs: BTreeMap<String, String>) -> Environment {
        Environment(Arc::new(move |name| pairs.get(name).cloned()))
    }

    /// What is empty is not set.
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn is_true(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    fn below_home(&self, path: &str) -> Option<PathBuf> {
        self.path("HOME").map(|home| home.join(path))
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}

/// What was handed out, and how long it is good.
pub(super) struct Lent<T> {
    pub credential: T,
    pub life: Option<Duration>,
}

/// Whoever hands it out.
#[async_trait]
pub(super) trait Source<T>: fmt::Debug + Send + Sync {
    async fn fetch(&self) -> Outcome<Lent<T>>;
}

/// What was lent to us, as long as it is good.
#[derive(Debug)]
pub(super) struct Renewed<T> {
    source: Box<dyn Source<T>>,
    kept: Mutex<Option<Kept<T>>>,
}

#[derive(Debug)]
struct Kept<T> {
    credential: Arc<T>,
    until: Option<Instant>,
    /// Until then it is good enough, if it lives.
    rest: Instant,
}

impl<T> Kept<T> {
    fn is_fresh(&self) -> bool {
        let rests = Instant::now() < self.rest;
        self.lives(if rests { Duration::ZERO } else { MARGIN })
    }

    /// For longer than that.
    fn lives(&self, margin: Duration) -> bool {
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        self.until.is_none_or(|until| left(until) > margin)
    }
}

impl<T> Renewed<T> {
    pub fn new(source: Box<dyn Source<T>>) -> Renewed<T> {
        Renewed {
            source,
            kept: Mutex::new(None),
        }
    }

    pub async fn get(&self) -> Outcome<Arc<T>> {
        let mut kept = self.kept.lock().await;
        if let Some(known) = kept.as_ref().filter(|known| known.is_fresh()) {
            return Ok(Arc::clone(&known.credential));
        }
        let asked = Instant::now();
        match self.source.fetch().await.map_err(ours) {
            Ok(lent) => {
                let known = kept.insert(Kept {
                    credential: Arc::new(lent.credential),
                    until: lent.life.and_then(|life| asked.checked_add(life)),
                    rest: asked + ASK_AGAIN,
                });
                Ok(Arc::clone(&known.credential))
            }
            Err(failure) => match kept.as_mut().filter(|known| known.lives(Duration::ZERO)) {
                Some(known) => {
                    log::warn!("credentials are not renewed yet: {failure}");
                    known.rest = Instant::now() + TRY_AGAIN;
                    Ok(Arc::clone(&known.credential))
                }
                None => Err(failure),
            },
        }
    }
}

/// Who hands out credentials says nothing of objects: that it has none for us must not pass for an
/// absent object.
fn ours(failure: Failure) -> Failure {
    let class = match failure.class {
        Class::NotFound | Class::Denied | Class::Conflict | Class::Unsupported => Class::Auth,
        class => class,
    };
    Failure { class, ..failure }
}

#[async_trait]
impl<T: fmt::Debug + Send + Sync + 'static> CredentialProvider for Renewed<T> {
    type Credential = T;

    async fn get_credential(&self) -> object_store::Result<Arc<T>> {
        let got = self.get().await;
        got.map_err(|failure| object_store::Error::Generic {
            store: "login",
            source: Box::new(failure),
        })
    }
}

/// The ways to who hands out credentials.
#[derive(Clone, Debug)]
pub(super) struct Ways {
    net: Net,
    /// URL of a store of one's own.
    store: Option<String>,
}

impl Ways {
    pub fn new(net: &Net, store: Option<&str>) -> Ways {
        Ways {
            net: net.clone(),
            store: store.map(str::to_owned),
        }
    }

    /// Somewhere in the network, as the store is reached. That nobody looks at the certificate of
    /// a store of one's own means no one else.
    fn far(&self, url: &str) -> Outcome<Wire> {
        let mut net = self.net.clone();
        let theirs = self.store.as_deref().map(host);
        if net.tls == Authority::Unchecked && theirs.is_some_and(|theirs| theirs != host(url)) {
            net.tls = Authority::System;
        }
        Wire::elsewhere(&net)
    }

    /// On this machine or beside it, where no proxy leads.
    fn near() -> Outcome<Wire> {
        Wire::elsewhere(&Net {
            tls: Authority::System,
            proxy: None,
            connect_timeout: NEAR_CONNECT,
            read_timeout: NEAR_READ,
            user_agent_extra: None,
            bytes_per_second_min: BYTES_PER_SECOND_MIN,
        })
    }
}

/// The host in a URL.
fn host(url: &str) -> &str {
    let place = url.split_once("://").map_or(url, |(_, place)| place);
    let place = place.split('/').next().unwrap_or_default();
    match place.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => place.split(':').next().unwrap_or_default(),
    }
}

async fn get(wire: &Wire, url: &str, headers: HeaderMap) -> Outcome<String> {
    let request = own::request(Method::GET, url, headers, String::new().into())?;
    own::send(wire, request).await
}

/// Posts a form.
async fn post(wire: &Wire, url: &str, pairs: &[(&str, &str)]) -> Outcome<String> {
    let pair = |(name, value): &(&str, &str)| format!("{name}={}", encoded(value, Slashes::Go));
    let body = pairs.iter().map(pair).collect::<Vec<_>>().join("&");
    let mut headers = HeaderMap::new();
    insert(&mut headers, "accept", "application/json")?;
    insert(
        &mut headers,
        "content-type",
        "application/x-www-form-urlencoded",
    )?;
    let request = own::request(Method::POST, url, headers, body.into())?;
    own::send(wire, request).await
}

/// What a file says now: who put it there renews it.
fn read(path: &std::path::Path) -> Outcome<String> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::io(&e, path.display()))?;
    Ok(text.trim().to_owned())
}

fn json(text: &str, from: &str) -> Outcome<Value> {
    // The answer itself may be a secret.
    let odd = |_| Failure::new(Class::Corrupt, format!("{from}: the answer is no JSON"));
    serde_json::from_str(text).map_err(odd)
}

/// The answer of OAuth: a token, and for how many seconds or until when.
fn bearer(text: &str, from: &str) -> Outcome<Lent<String>> {
    let value = json(text, from)?;
    let token = value.get("access_token").and_then(Value::as_str);
    let token = token
        .ok_or_else(|| Failure::new(Class::Corrupt, format!("{from}: the answer has no token")))?;
    let number = |name: &str| {
        let value = value.get(name)?;
        let text = value.as_str().and_then(|text| text.parse().ok());
        value.as_i64().or(text)
    };
    let left = || Some(number("expires_on")?.saturating_sub(seconds()));
    let life = number("expires_in").or_else(left);
    Ok(Lent {
        credential: token.to_owned(),
        life: life.map(|life| Duration::from_secs(u64::try_from(life).unwrap_or(0))),
    })
}

/// From now until a moment as ISO 8601 writes it.
fn life(until: &str) -> Option<Duration> {
    let until: jiff::Timestamp = until.parse().ok()?;
    let left = until.as_second().saturating_sub(seconds());
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
}

/// Since 1970.
fn seconds() -> i64 {
    i64::try_from(crate::clock::now().0 / 1_000).unwrap_or(i64::MAX)
}

/// Before its end a credential is renewed; what is signed with it has some time to arrive.
const MARGIN: Duration = Duration::from_secs(300);
/// Nobody is asked more often while there is something to go on with.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// After who was asked did not answer, which costs time.
const TRY_AGAIN: Duration = Duration::from_secs(30);
const NEAR_CONNECT: Duration = Duration::from_secs(2);
const NEAR_READ: Duration = Duration::from_secs(10);
