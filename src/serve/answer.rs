//! From a request to its answer: the body, the limits of both.
//!
//! What touches a store or a disk runs on blocking threads. A body is read only after its sender
//! was let in and its path takes one, so that a client that asks first (`Expect: 100-continue`)
//! sends nothing in vain.

use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderValue, SERVER,
    WWW_AUTHENTICATE,
};
use hyper::{Request, Response, StatusCode};
use sha2::{Digest, Sha256};
use smol::channel::Receiver;
use smol::future::FutureExt;
use smol::io::AsyncReadExt;
use smol::lock::SemaphoreGuardArc;

use super::appliance::BUNDLE_BYTES_MAX;
use super::connection::{STALL, Turn};
use super::routes::table::Takes;
use super::routes::{Asked, Found};
use super::{Server, appliance, archive, fetch};
use crate::failure::Failure;

/// A hold with its reason is far smaller.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// PostgreSQL's largest segment; which size is right for a file its first page says.
pub const FILE_BYTES_MAX: u64 = 1 << 30;
/// For an answer to begin; a file that PostgreSQL archives is waited for half of it.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// For a request that brings a file, or an answer that is one: a segment over a slow line.
const BODY_WITHIN: Duration = Duration::from_secs(600);
/// What is still read of a refused request, lest its sender lose the answer to a reset.
const DRAIN_BYTES_MAX: usize = 64 << 20;
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: String,
    /// Instead of `body`.
    pub file: Option<File>,
    /// Instead of `body`: of a length that nobody knows yet.
    pub stream: Option<Receiver<Piece>>,
    pub headers: Vec<(&'static str, String)>,
}

/// What a thread sends into an answer. One that ends without an `End` broke off.
#[derive(Debug)]
pub enum Piece {
    Block(Bytes),
    End,
}

impl Answer {
    pub fn new(status: StatusCode) -> Answer {
        Answer::text(status, "")
    }

    pub fn text(status: StatusCode, body: impl Into<String>) -> Answer {
        let content_type = match status.is_success() {
            true => "application/octet-stream",
            false => "text/plain",
        };
        Answer {
            status,
            content_type,
            body: body.into(),
            file: None,
            stream: None,
            headers: Vec::new(),
        }
    }

    pub fn json(status: StatusCode, text: &str) -> Answer {
        Answer {
            content_type: "application/json",
            ..Answer::text(status, text.trim_end())
        }
    }

    pub fn streamed(content_type: &'static str, stream: Receiver<Piece>) -> Answer {
        Answer {
            content_type,
            stream: Some(stream),
            ..Answer::new(StatusCode::OK)
        }
    }

    pub fn unauthorized() -> Answer {
        Answer {
            content_type: "text/html",
            headers: vec![(WWW_AUTHENTICATE.as_str(), "Basic realm=\"pghoard\"".into())],
            ..Answer::text(StatusCode::UNAUTHORIZED, "Authentication required")
        }
    }

    pub fn failed(failure: &Failure) -> Answer {
        // The hint is for the log: it may speak of settings.
        let message = format!("server failure: {}", failure.message);
        Answer::text(StatusCode::SERVICE_UNAVAILABLE, message)
    }
}

impl Server {
    pub async fn answer(&self, request: Request<Incoming>, turn: Turn) -> Response<Content> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let (answer, permit) = self.judge(request).await;
        log::debug!("{method} {path}: {}", answer.status);
        render(answer, (turn, permit))
    }

    async fn judge(&self, request: Request<Incoming>) -> (Answer, Option<SemaphoreGuardArc>) {
        let (parts, body) = request.into_parts();
        let wary = parts.headers.contains_key(EXPECT);
        let refused = async |answer: Answer, mut body: Incoming| {
            if !wary {
                drain(&mut body).await;
            }
            (answer, None)
        };
        let caller = match self.caller(parts.headers.get(AUTHORIZATION)) {
            Ok(caller) => caller,
            Err(answer) => return refused(answer, body).await,
        };
        let asked = Asked {
            caller,
            method: parts.method,
            path: parts
                .uri
                .path_and_query()
                .map_or_else(String::new, |path| path.as_str().to_owned()),
            version: parts.version,
            host: parts.headers.get(HOST).cloned(),
            target: parts.headers.get(fetch::TARGET_HEADER).cloned(),
            by: parts.headers.get(BY_HEADER).cloned(),
            bring: parts.headers.contains_key(fetch::BODY_HEADER),
            cluster: fetch::cluster(&parts.headers),
            body: Vec::new(),
        };
        let found = self.routes.find(&asked);
        let found = found.and_then(|found| asked.caller.may(&found, &asked).map(|()| found));
        let found = match found {
            Ok(found) => found,
            Err(answer) => return refused(answer, body).await,
        };
        let file = !body.is_end_stream();
        let (file, length_max) = match found.route.takes {
            Takes::File if file => (true, FILE_BYTES_MAX),
            Takes::Bundle if file => (true, BUNDLE_BYTES_MAX),
            _ => (false, u64::try_from(BODY_BYTES_MAX).unwrap_or(u64::MAX)),
        };
        if body.size_hint().lower() > length_max {
            return refused(too_large(), body).await;
        }
        let permit = match found.route.act.is_light() {
            true => None,
            false => match self.work.try_acquire_arc() {
                Some(permit) => Some(permit),
                None => {
                    let message = "too much is going on, ask again";
                    let answer = Answer::text(StatusCode::SERVICE_UNAVAILABLE, message);
                    return refused(answer, body).await;
                }
            },
        };
        let answered = async {
            match file {
                true => self.receive(asked, found, body, wary).await,
                false => self.small(asked, found, body).await,
            }
        };
        let within = if file { BODY_WITHIN } else { ANSWER_WITHIN };
        let late = async {
            smol::Timer::after(within).await;
            let seconds = within.as_secs();
            let message = format!("not done within {seconds} seconds; it goes on, ask again");
            Answer::text(StatusCode::SERVICE_UNAVAILABLE, message)
        };
        (answered.or(late).await, permit)
    }

    async fn small(&self, mut asked: Asked, found: Found, body: Incoming) -> Answer {
        match Limited::new(body, BODY_BYTES_MAX).collect().await {
            Ok(body) => asked.body = body.to_bytes().to_vec(),
            Err(_) => return too_large(),
        }
        let routes = self.routes.clone();
        match found.route.act.is_light() {
            true => routes.answer(&asked, &found),
            false => smol::unblock(move || routes.answer(&asked, &found)).await,
        }
    }

    /// A file that comes as the body: what has arrived is on disk, not in memory.
    async fn receive(&self, asked: Asked, found: Found, mut body: Incoming, wary: bool) -> Answer {
        let routes = self.routes.clone();
        let takes = found.route.takes;
        let mut arrival = match smol::unblock(move || routes.begin(&asked, &found)).await {
            Ok(begun) => begun,
            Err(answer) => {
                if !wary {
                    drain(&mut body).await;
                }
                return answer;
            }
        };
        loop {
            let late = async {
                smol::Timer::after(STALL).await;
                Some(Err(()))
            };
            let frame = async { body.frame().await.map(|frame| frame.map_err(|_| ())) };
            let data = match frame.or(late).await {
                None => break,
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(())) => {
                    let message = "the file did not arrive whole";
                    return Answer::text(StatusCode::BAD_REQUEST, message);
                }
            };
            let written = smol::unblock(move || arrival.write(&data).map(|()| arrival)).await;
            match written {
                Ok(back) => arrival = back,
                Err(failure) => {
                    drain(&mut body).await;
                    return match takes {
                        Takes::Bundle => appliance::refused(&failure),
                        _ => archive::answer(Err(failure)),
                    };
                }
            }
        }
        let routes = self.routes.clone();
        smol::unblock(move || routes.finish(arrival)).await
    }
}

fn too_large() -> Answer {
    Answer::text(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large")
}

async fn drain(body: &mut Incoming) {
    let read = async {
        let mut left = DRAIN_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    let late = async {
        smol::Timer::after(DRAIN_WITHIN).await;
    };
    read.or(late).await;
}

fn render(answer: Answer, held: (Turn, Option<SemaphoreGuardArc>)) -> Response<Content> {
    let length = answer
        .file
        .as_ref()
        .map(|file| file.metadata().map(|m| m.len()));
    let content = match (answer.stream, answer.file) {
        (Some(pieces), _) => streamed(pieces),
        (None, Some(file)) => lying(file),
        (None, None) => Full::new(Bytes::from(answer.body))
            .map_err(|never| match never {})
            .boxed_unsync(),
    };
    let mut response = Response::new(Content {
        content,
        _held: held,
    });
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    if let Some(Ok(length)) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    headers.insert(SERVER, HeaderValue::from_static(SERVER_NAME));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    for (name, value) in answer.headers {
        // Only what came out of a store's metadata can be unfit, and is left out.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    response
}

type Blocks = UnsyncBoxBody<Bytes, std::io::Error>;

/// The body of an answer, and what its request holds until it was sent.
pub struct Content {
    content: Blocks,
    _held: (Turn, Option<SemaphoreGuardArc>),
}

impl Body for Content {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Pin::new(&mut self.content).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

/// A file block by block; one that cannot be read to its end, or is taken too slowly, breaks the
/// connection off, which the client sees by the length.
fn lying(file: File) -> Blocks {
    let (reader, begun) = (smol::Unblock::with_capacity(BLOCK, file), Instant::now());
    let blocks = smol::stream::unfold(Some(reader), move |reader| async move {
        let mut reader = reader?;
        if begun.elapsed() > BODY_WITHIN {
            return Some((Err(std::io::ErrorKind::TimedOut.into()), None));
        }
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

/// What a thread sends; a thread that fails breaks the connection off before the last chunk.
fn streamed(pieces: Receiver<Piece>) -> Blocks {
    let blocks = smol::stream::unfold(Some(pieces), |pieces| async {
        let pieces = pieces?;
        match pieces.recv().await {
            Ok(Piece::Block(block)) => Some((Ok(Frame::data(block)), Some(pieces))),
            Ok(Piece::End) => None,
            Err(_) => Some((Err(std::io::Error::other("it broke off")), None)),
        }
    });
    StreamBody::new(blocks).boxed_unsync()
}

const BLOCK: usize = 64 << 10;

const SERVER_NAME: &str = concat!("pghoard/", env!("CARGO_PKG_VERSION"));

/// Digests are compared, so that the time taken tells nothing of the text.
pub fn authorization(login: &str) -> [u8; 32] {
    Sha256::digest(format!("Basic {login}")).into()
}

/// Who sends a body that is no JSON.
pub const BY_HEADER: &str = "x-pghoard-by";

/// What may be under way at once.
pub type Work = Arc<smol::lock::Semaphore>;
