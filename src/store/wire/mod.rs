//! HTTP to a store: one client behind everything that travels there.
//!
//! It knows what all of them have in common: proxy and authorities, deadlines, what is tried again
//! and when, what an answer means. A login that is refused is replaced once ([`Renew`]). A request
//! that failed comes out as a [`Failure`] with its class, also where it is wrapped by the library
//! that made it ([`fault::failure`]). An error in an answer that says 200 (S-19) is one here, and
//! what is no listing does not pass for an empty one.
//!
//! Async ends here: [`run`] blocks, on a private current-thread runtime. Nobody outside `store`
//! sees it.
//!
//! Budget: an attempt has the time its bytes need at the slowest rate that is allowed besides the
//! silence that is; a new one begins within [`PATIENCE`] of the first, but for the second.

mod body;
pub mod fault;
mod proxy;

use std::fmt;
use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_compat::Compat;
use async_trait::async_trait;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, StatusCode};
use machine::Class;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder};

use crate::clock;
use crate::config::{Authority, Net};
use crate::failure::{Failure, Outcome};

/// Runs a future of this runtime's to its end.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    smol::block_on(Compat::new(future))
}

/// What a whole body adds up to, as it was announced: among the extensions of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    Sha256([u8; 32]),
    Md5([u8; 16]),
}

/// Among the extensions of a request: its answer is no object, and is asked for until it is whole.
#[derive(Clone, Copy, Debug)]
pub struct Words;

/// Who can give a request another login than the one that was refused.
#[async_trait]
pub trait Renew: fmt::Debug + Send + Sync {
    /// `signed`: when it had its login already.
    async fn renew(&self, request: &mut HttpRequest, signed: Instant) -> Outcome<()>;
}

/// One client, for all requests to one store.
#[derive(Clone, Debug)]
pub struct Wire {
    client: Client,
    silence: Duration,
    /// A proxy may be who answers.
    proxied: bool,
    bytes_per_second_min: u64,
    renew: Option<Arc<dyn Renew>>,
}

impl Wire {
    /// Opens the files that the configuration names.
    pub fn new(net: &Net) -> Outcome<Wire> {
        Wire::with(net, ClientBuilder::tls_certs_only)
    }

    /// To others than the store: whom the configuration's authorities vouch for is believed, and
    /// whom the system's do.
    pub fn elsewhere(net: &Net) -> Outcome<Wire> {
        Wire::with(net, ClientBuilder::tls_certs_merge)
    }

    fn with(
        net: &Net,
        trust: impl FnOnce(ClientBuilder, Vec<Certificate>) -> ClientBuilder,
    ) -> Outcome<Wire> {
        let mut agent = concat!("pghoard/", env!("CARGO_PKG_VERSION")).to_owned();
        if let Some(extra) = &net.user_agent_extra {
            agent = format!("{agent} {extra}");
        }
        // What the environment says about proxies is meant for others.
        let mut builder = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .http1_only()
            .connect_timeout(net.connect_timeout)
            .user_agent(agent);
        match &net.tls {
            Authority::System => {}
            Authority::Unchecked => builder = builder.tls_danger_accept_invalid_certs(true),
            Authority::File(path) => {
                let pem = fs::read(path).map_err(|e| Failure::io(&e, path.display()))?;
                let certificates = Certificate::from_pem_bundle(&pem).ok();
                let certificates = certificates.filter(|found| !found.is_empty());
                let certificates = certificates.ok_or_else(|| {
                    let message = format!("{}: expected certificates in PEM", path.display());
                    Failure::new(Class::Config, message)
                })?;
                builder = trust(builder, certificates);
            }
        }
        if let Some(proxy) = &net.proxy {
            builder = builder.proxy(proxy::of(proxy)?);
        }
        let refused = |e| Failure::new(Class::Config, format!("HTTP client: {}", fault::root(&e)));
        Ok(Wire {
            client: builder.build().map_err(refused)?,
            silence: net.read_timeout,
            proxied: net.proxy.is_some(),
            bytes_per_second_min: net.bytes_per_second_min.max(1),
            renew: None,
        })
    }

    /// The same, with a new login for requests whose own is refused.
    pub fn renewing(&self, renew: Arc<dyn Renew>) -> Wire {
        Wire {
            renew: Some(renew),
            ..self.clone()
        }
    }

    /// Sends a request, again if that may help; any answer but a success is a failure.
    pub async fn ask(&self, mut request: HttpRequest) -> Outcome<HttpResponse> {
        let began = Instant::now();
        let mut attempt = 0;
        let mut renew = self.renew.as_ref();
        loop {
            let refused = match self.once(request.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(refused) => refused,
            };
            if refused.failure.class == Class::Auth
                && let Some(renew) = renew.take()
            {
                let renewed = renew.renew(&mut request, began).await;
                renewed.map_err(|failure| failure.about("new credentials"))?;
                continue;
            }
            attempt += 1;
            let wait = refused.wait.unwrap_or_else(|| backoff(attempt));
            // A large part that meets silence has waited for long, and deserves another way.
            let late = attempt > 1 && began.elapsed().saturating_add(wait) > PATIENCE;
            if !refused.again || attempt >= ATTEMPTS_MAX || late {
                return Err(refused.failure);
            }
            smol::Timer::after(wait).await;
        }
    }

    async fn once(&self, request: HttpRequest) -> Result<HttpResponse, Refused> {
        let sent = u64::try_from(request.body().content_length()).unwrap_or(u64::MAX);
        let seconds = Duration::from_secs(sent / self.bytes_per_second_min);
        let method = request.method().clone();
        let what = format!("{method} {}", place(&request));
        let list = is_list(&request);
        let words = list || method == Method::POST || request.extensions().get::<Words>().is_some();
        let in_session = request.headers().contains_key(CONTENT_RANGE);
        let limit = self.silence.saturating_add(seconds);
        let answer = within(limit, HttpService::call(&self.client, request)).await;
        let answer = answer.map_err(|error| Refused::sent(&error, &what))?;
        let (mut parts, stream) = answer.into_parts();
        let stream = HttpResponseBody::new(body::Watched::new(stream, self.silence));
        // So says a session that waits for more.
        let goes_on = in_session && parts.status == StatusCode::PERMANENT_REDIRECT;
        if !parts.status.is_success() && !goes_on {
            let wait = retry_after(parts.headers.get(RETRY_AFTER));
            let skew = parts.headers.get(DATE).and_then(skew_seconds);
            // HEAD has none, whatever is announced.
            let text = match method == Method::HEAD {
                true => String::new(),
                false => body::text(stream, body::TEXT_MAX).await.unwrap_or_default(),
            };
            let fault = fault::Fault::read(parts.status.as_u16(), &text);
            return Err(Refused {
                again: fault.again(),
                failure: fault.failure(&what, skew, self.proxied),
                wait,
            });
        }
        if let Some(announced) = announced(parts.status, &parts.headers) {
            parts.extensions.insert(announced);
        }
        if !words {
            return Ok(HttpResponse::from_parts(parts, stream));
        }
        let text = body::text(stream, body::TEXT_MAX).await;
        let text = text.map_err(|failure| Refused::of(failure.about(&what)))?;
        if let Some(fault) = fault::Fault::within(parts.status.as_u16(), &text, list) {
            return Err(Refused {
                again: fault.again(),
                failure: fault.failure(&what, None, false),
                wait: None,
            });
        }
        parts.headers.insert(CONTENT_LENGTH, text.len().into());
        Ok(HttpResponse::from_parts(parts, text.into()))
    }
}

/// A failure and whether the next attempt may end better.
struct Refused {
    failure: Failure,
    again: bool,
    /// As the server wants it.
    wait: Option<Duration>,
}

impl Refused {
    fn sent(error: &HttpError, what: &str) -> Refused {
        Refused::of(fault::transport(error, what))
    }

    fn of(failure: Failure) -> Refused {
        Refused {
            again: matches!(failure.class, Class::Network | Class::Timeout),
            failure,
            wait: None,
        }
    }
}

/// For the library, whose own attempts are not wanted: what it is handed is final.
impl HttpService for Wire {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let answer = self.ask(request).await;
            answer.map_err(|failure| HttpError::new(HttpErrorKind::Unknown, failure))
        })
    }
}

impl HttpConnector for Wire {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

async fn within(
    limit: Duration,
    answer: impl Future<Output = Result<HttpResponse, HttpError>>,
) -> Result<HttpResponse, HttpError> {
    smol::future::or(answer, async {
        smol::Timer::after(limit).await;
        Err(late(limit))
    })
    .await
}

fn late(limit: Duration) -> HttpError {
    let text = format!("no answer in {} seconds", limit.as_secs());
    HttpError::new(HttpErrorKind::Timeout, Failure::new(Class::Timeout, text))
}

/// Scheme, host and path: a query may hold a signature.
fn place(request: &HttpRequest) -> impl fmt::Display {
    let uri = request.uri();
    let authority = uri.authority().map_or("", |found| found.as_str());
    let authority = authority.rsplit('@').next().unwrap_or_default();
    format!("{authority}{}", uri.path())
}

/// Of objects or of uploads.
fn is_list(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let mut parts = query.split('&');
    request.method() == Method::GET
        && parts.any(|part| part.starts_with("list-type=") || part == "comp=list")
}

/// Doubled each time, with half of it by chance, so that many do not come at once.
fn backoff(attempt: u32) -> Duration {
    let most = FIRST_WAIT.saturating_mul(1 << attempt.min(8)).min(WAIT_MAX);
    let mut byte = [0];
    let chance =
        getrandom::fill(&mut byte).map_or(u8::MAX, |()| byte.first().copied().unwrap_or(0));
    most / 2 + most / 2 * u32::from(chance) / 255
}

/// Seconds; a date is as good as nothing, nobody sends one.
fn retry_after(value: Option<&HeaderValue>) -> Option<Duration> {
    let seconds = value?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// How far our clock is ahead of the peer's, which says it in every answer.
fn skew_seconds(date: &HeaderValue) -> Option<i64> {
    let theirs = jiff::fmt::rfc2822::parse(date.to_str().ok()?).ok()?;
    let ours = i64::try_from(clock::now().0 / 1_000).ok()?;
    Some(ours.saturating_sub(theirs.timestamp().as_second()))
}

fn announced(status: StatusCode, headers: &HeaderMap) -> Option<Announced> {
    use base64::Engine;
    let bytes = |name: &str| {
        let value = headers.get(name)?;
        base64::engine::general_purpose::STANDARD.decode(value).ok()
    };
    // `...-N` is a digest of digests of parts, which nobody can compute from the body.
    if let Some(bytes) = bytes("x-amz-checksum-sha256") {
        return Some(Announced::Sha256(bytes.try_into().ok()?));
    }
    // Of a part of the body it would be that part's.
    let bytes = bytes("content-md5").filter(|_| status == StatusCode::OK)?;
    Some(Announced::Md5(bytes.try_into().ok()?))
}

const ATTEMPTS_MAX: u32 = 6;
/// What is wrong for longer is for the caller, who has more patience and tells somebody.
const PATIENCE: Duration = Duration::from_secs(90);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(15);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_differ_by_chance() {
        for attempt in 1..12 {
            let most = (FIRST_WAIT * (1 << attempt.min(8))).min(WAIT_MAX);
            let waits: Vec<Duration> = (0..64).map(|_| backoff(attempt)).collect();
            assert!(waits.iter().all(|wait| (most / 2..=most).contains(wait)));
            assert!(waits.iter().any(|wait| *wait != waits[0]), "{attempt}");
        }
    }
}
