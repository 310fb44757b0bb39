//! The HTTP API: PGHoard's paths, for PostgreSQL's commands and for operators.
//!
//! One thread with a smol executor accepts and parses; what touches a store or a disk runs on
//! blocking threads. Limits come first: connections, header and body sizes, a deadline for each
//! request; one request a connection, as PGHoard. Nothing is served beyond loopback without
//! authentication unless the configuration says so. No TLS: put a proxy before it.
//!
//! - [`routes`]: which path means what, and the answers that need no WAL.
//! - [`hold`]: backups that must not go.
//! - [`holes`]: a person takes note of what is lost.
//! - [`fetch`]: WAL and history files for a recovering server.
//! - [`archive`]: WAL and history files from one that archives.
//!
//! Budget: 64 connections of 16 KiB each; as many blocking threads at most.

pub mod archive;
mod fetch;
mod hold;
pub mod holes;
mod routes;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, SERVER, WWW_AUTHENTICATE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use machine::Class;
use sha2::{Digest, Sha256};
use smol::Async;
use smol::channel::{Receiver, Sender};
use smol::io::AsyncReadExt;
use smol::lock::Semaphore;
use smol_hyper::rt::{FuturesIo, SmolTimer};

use crate::config::{Anonymous, Config, Credentials};
use crate::failure::{Failure, Outcome};
use crate::journal::run::Report;
use crate::publish::metrics::send::Exposition;
pub use fetch::{ABSENT_HEADER, BODY_HEADER};
use routes::{Answer, Asked};

/// What the API needs of the daemon.
#[derive(Clone)]
pub struct Context {
    pub config: Arc<Config>,
    /// The state document as it was last written.
    pub document: Arc<Mutex<Arc<str>>>,
    /// The metrics as they were last looked at.
    pub metrics: Exposition,
    /// To the loop.
    pub reports: SyncSender<Report>,
    pub desk: Arc<archive::Desk>,
}

/// More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
const HEADERS_MAX: usize = 64;
/// Request line and headers together.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// A hold with its reason is far smaller.
const BODY_BYTES_MAX: usize = 64 << 10;
const HEAD_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// For a request that brings a file, or an answer that is one: a segment over a slow line.
const BODY_WITHIN: Duration = Duration::from_secs(600);
/// No byte of a body for so long.
const STALL: Duration = Duration::from_secs(30);
/// Sending the answer to a client that does not read.
const SEND_WITHIN: Duration = Duration::from_secs(30);

/// The running API; it ends when this is dropped.
#[derive(Debug)]
pub struct Handle {
    address: SocketAddr,
    stop: Sender<Infallible>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Handle {
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.close();
        if let Some(thread) = self.thread.take() {
            // A panic on that thread was printed when it happened.
            let _ended = thread.join();
        }
    }
}

/// Listens where the configuration says; refusing to is an error now, not later.
pub fn start(context: Context) -> Outcome<Handle> {
    let config = &context.config;
    let listener = bind(config)?;
    let told = |e: std::io::Error| Failure::io(&e, "HTTP server");
    let address = listener.local_addr().map_err(told)?;
    let listener = Async::new(listener).map_err(told)?;
    let authorization = config.webserver.as_ref().map(authorization);
    let server = Arc::new(Server {
        routes: routes::Routes::new(context),
        authorization,
    });
    let (stop, stopped) = smol::channel::bounded(1);
    let run = move || smol::block_on(accept(&listener, &server, &stopped));
    let thread = thread::Builder::new().name("http".into()).spawn(run);
    Ok(Handle {
        address,
        stop,
        thread: Some(thread.map_err(told)?),
    })
}

fn bind(config: &Config) -> Outcome<TcpListener> {
    let (host, port) = (config.http_address.as_str(), config.http_port);
    TcpListener::bind(&*addresses(config)?)
        .map_err(|e| Failure::io(&e, format!("cannot listen on {host}:{port} (http_address)")))
}

/// Where to listen, unless strangers could come in.
pub fn addresses(config: &Config) -> Outcome<Vec<SocketAddr>> {
    let host = config.http_address.as_str();
    let addresses = resolve(host, config.http_port)?;
    let open = addresses.iter().any(|address| !address.ip().is_loopback());
    if open && config.webserver.is_none() && config.http_anonymous == Anonymous::Loopback {
        let message = format!(
            "http_address '{host}' is reachable from other machines, and no authentication is set"
        );
        return Err(Failure::new(Class::Config, message).hint(
            "set webserver_username and webserver_password, or \"http_allow_unauthenticated\": \
             true where the network keeps strangers out",
        ));
    }
    Ok(addresses)
}

/// As PGHoard: empty is every IPv4 address, a name is looked up as IPv4.
fn resolve(host: &str, port: u16) -> Outcome<Vec<SocketAddr>> {
    if host.is_empty() {
        return Ok(vec![SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)]);
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let about = format!("http_address '{host}'");
    let found = (host, port).to_socket_addrs();
    let found = found.map_err(|e| Failure::io(&e, &about))?;
    let found: Vec<SocketAddr> = found.filter(SocketAddr::is_ipv4).collect();
    match found.is_empty() {
        true => Err(Failure::new(
            Class::Config,
            format!("{about} has no IPv4 address"),
        )),
        false => Ok(found),
    }
}

struct Server {
    routes: routes::Routes,
    /// Digest of the one `Authorization` that is let in.
    authorization: Option<[u8; 32]>,
}

/// Digests are compared, so that the time taken tells nothing of the text.
fn authorization(webserver: &Credentials) -> [u8; 32] {
    let login = format!("{}:{}", webserver.username, webserver.password.reveal());
    Sha256::digest(format!("Basic {}", STANDARD.encode(login))).into()
}

async fn accept(listener: &Async<TcpListener>, server: &Arc<Server>, stop: &Receiver<Infallible>) {
    let executor = smol::LocalExecutor::new();
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let serving = async {
        loop {
            let seat = seats.acquire_arc().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = Arc::clone(server);
                    let connection = async move {
                        converse(stream, server).await;
                        drop(seat);
                    };
                    executor.spawn(connection).detach();
                }
                Err(error) => {
                    // Out of descriptors, most likely; it passes when connections end.
                    log::warn!("HTTP server: accept: {error}");
                    smol::Timer::after(Duration::from_secs(1)).await;
                }
            }
        }
    };
    let stopped = async {
        // Nothing is ever sent: an answer means that the channel was closed.
        let _closed = stop.recv().await;
    };
    smol::future::or(stopped, executor.run(serving)).await;
}

/// One request and its answer.
async fn converse(stream: Async<std::net::TcpStream>, server: Arc<Server>) {
    let service = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .timer(SmolTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(FuturesIo::new(stream), service);
    let served = async {
        if let Err(error) = connection.await {
            log::debug!("HTTP server: {error}");
        }
    };
    let late = async {
        smol::Timer::after(HEAD_WITHIN + BODY_WITHIN + SEND_WITHIN).await;
    };
    smol::future::or(served, late).await;
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Response<Content> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let within = match request.body().is_end_stream() {
            true => ANSWER_WITHIN,
            false => BODY_WITHIN,
        };
        let answered = async { self.judge(request).await };
        let late = async {
            smol::Timer::after(within).await;
            let seconds = within.as_secs();
            let message = format!("not done within {seconds} seconds; it goes on, ask again");
            Answer::text(StatusCode::SERVICE_UNAVAILABLE, message)
        };
        let answer = smol::future::or(answered, late).await;
        log::debug!("{method} {path}: {}", answer.status);
        render(answer)
    }

    async fn judge(&self, request: Request<Incoming>) -> Answer {
        if !self.allowed(request.headers().get(AUTHORIZATION)) {
            return Answer::unauthorized();
        }
        let mut asked = Asked {
            method: request.method().clone(),
            path: request
                .uri()
                .path_and_query()
                .map_or_else(String::new, |path| path.as_str().to_owned()),
            target: request.headers().get(fetch::TARGET_HEADER).cloned(),
            bring: request.headers().contains_key(fetch::BODY_HEADER),
            body: Vec::new(),
        };
        // Read where it does not matter, too: a client that still sends would lose the answer to
        // a reset.
        if !asked.is_small() && !request.body().is_end_stream() {
            return self.receive(asked, request.into_body()).await;
        }
        if asked.is_small() {
            let body = Limited::new(request.into_body(), BODY_BYTES_MAX);
            match body.collect().await {
                Ok(body) => asked.body = body.to_bytes().to_vec(),
                Err(_) => {
                    let message = "the request is too large";
                    return Answer::text(StatusCode::PAYLOAD_TOO_LARGE, message);
                }
            }
        }
        let routes = self.routes.clone();
        smol::unblock(move || routes.answer(&asked)).await
    }

    /// A file that comes as the body: what has arrived is on disk, not in memory.
    async fn receive(&self, asked: Asked, mut body: Incoming) -> Answer {
        let routes = self.routes.clone();
        let (file, mut intake) = match smol::unblock(move || routes.begin(&asked)).await {
            Ok(begun) => begun,
            Err(answer) => return answer,
        };
        loop {
            let late = async {
                smol::Timer::after(STALL).await;
                Some(Err(()))
            };
            let frame = async { body.frame().await.map(|frame| frame.map_err(|_| ())) };
            let data = match smol::future::or(frame, late).await {
                None => break,
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(())) => {
                    let message = "the file did not arrive whole";
                    return Answer::text(StatusCode::BAD_REQUEST, message);
                }
            };
            let written = smol::unblock(move || intake.write(&data).map(|()| intake)).await;
            match written {
                Ok(back) => intake = back,
                Err(failure) => return archive::answer(Err(failure)),
            }
        }
        let routes = self.routes.clone();
        smol::unblock(move || routes.finish(&file, intake)).await
    }

    fn allowed(&self, given: Option<&HeaderValue>) -> bool {
        let given = given.map(|given| <[u8; 32]>::from(Sha256::digest(given.as_bytes())));
        self.authorization.is_none() || self.authorization == given
    }
}

fn render(answer: Answer) -> Response<Content> {
    let length = answer
        .file
        .as_ref()
        .map(|file| file.metadata().map(|m| m.len()));
    let content = match answer.file {
        Some(file) => streamed(file),
        None => Full::new(Bytes::from(answer.body))
            .map_err(|never| match never {})
            .boxed_unsync(),
    };
    let mut response = Response::new(content);
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    if let Some(Ok(length)) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    headers.insert(SERVER, HeaderValue::from_static(SERVER_NAME));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    if answer.status == StatusCode::UNAUTHORIZED {
        let realm = HeaderValue::from_static("Basic realm=\"pghoard\"");
        headers.insert(WWW_AUTHENTICATE, realm);
    }
    for (name, value) in answer.headers {
        // Only what came out of a store's metadata can be unfit, and is left out.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    response
}

type Content = UnsyncBoxBody<Bytes, std::io::Error>;

/// A file block by block; one that cannot be read to its end breaks the connection off, which
/// the client sees by the length.
fn streamed(file: File) -> Content {
    let reader = smol::Unblock::with_capacity(BLOCK, file);
    let blocks = smol::stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        let mut block = vec![0; BLOCK];
        match reader.read(&mut block).await {
            Ok(0) => None,
            Ok(n) => {
                block.truncate(n);
                Some((Ok(Frame::data(Bytes::from(block))), Some(reader)))
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    StreamBody::new(blocks).boxed_unsync()
}

const BLOCK: usize = 64 << 10;

const SERVER_NAME: &str = concat!("pghoard/", env!("CARGO_PKG_VERSION"));
