//! A server of the tests' own: answers HTTP requests by a function, each connection a thread.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use smol_hyper::rt::FuturesIo;

pub type Request = hyper::Request<Bytes>;
pub type Response = hyper::Response<Bytes>;

/// Accepts until it is dropped; connections end with their clients.
pub struct Endpoint {
    /// On 127.0.0.1.
    pub port: u16,
    over: Arc<AtomicBool>,
}

impl Endpoint {
    pub fn start(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Endpoint {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let over = Arc::new(AtomicBool::new(false));
        let (answer, ended) = (Arc::new(answer), Arc::clone(&over));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let (Ok(stream), answer) = (stream, Arc::clone(&answer)) else {
                    continue;
                };
                thread::spawn(move || serve(stream, &*answer));
            }
        });
        Endpoint { port, over }
    }
}

fn serve(stream: TcpStream, answer: &(impl Fn(&Request) -> Response + ?Sized)) {
    let service = service_fn(|request: hyper::Request<Incoming>| async {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let response = answer(&Request::from_parts(head, body));
        Ok::<_, hyper::Error>(response.map(Full::new))
    });
    let stream = smol::Async::new(stream).unwrap();
    let serving = http1::Builder::new().serve_connection(FuturesIo::new(stream), service);
    // What a client does to its connection is its own business.
    let _ended = smol::block_on(serving);
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _wakes_it = TcpStream::connect(("127.0.0.1", self.port));
    }
}

pub fn respond(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response {
    let mut response = hyper::Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).expect("a valid response")
}
