//! Connections: how many, how long, and who has to go when there are too many.
//!
//! A connection that waits for a request, in the middle of its head too, gives way to a newcomer,
//! the longest waiting first: however many clients connect and say nothing, one that asks is
//! heard. Those with a request under way never have to go; [`WORK_MAX`] bounds them, but for the
//! ones that are answered from memory.
//!
//! Deadlines: for the head of a request, which is the idle time of a connection that is kept
//! alive; and for a client that does not read.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{collections::BTreeMap, net::TcpListener, net::TcpStream};

use futures_rustls::TlsAcceptor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use smol::Async;
use smol::channel::{Receiver, Sender};
use smol::future::FutureExt;
use smol::io::{AsyncRead, AsyncWrite};
use smol_hyper::rt::{FuturesIo, SmolTimer};

use super::Current;

/// A descriptor each: half of the 1,024 that a process may have open by default.
pub const CONNECTIONS_MAX: usize = 512;
/// Requests that touch a disk or a store, with their answers: as many blocking threads at most.
pub const WORK_MAX: usize = 64;
/// A browser sends twenty.
pub const HEADERS_MAX: usize = 64;
/// Request line and headers together; also what hyper holds of a body.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// From the beginning of a connection, or of waiting for its next request, to the end of a head.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// No byte of a body, or of an answer, for so long.
pub const STALL: Duration = Duration::from_secs(30);

pub async fn accept(
    listener: &Async<TcpListener>,
    current: &Arc<Current>,
    stop: &Receiver<Infallible>,
) {
    let executor = smol::LocalExecutor::new();
    let seats = Arc::new(Seats::default());
    let serving = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let tls = current.server().tls.clone();
                    let Some((seat, gone)) = seats.take() else {
                        refuse(&stream, tls.is_some());
                        continue;
                    };
                    let current = Arc::clone(current);
                    let until_gone = async move {
                        // Nothing is ever sent: an answer means that the seat is wanted.
                        let _closed = gone.recv().await;
                    };
                    let connection = async move {
                        match tls {
                            None => converse(stream, current, seat).await,
                            Some(tls) => secured(stream, &tls, current, seat).await,
                        }
                    };
                    executor.spawn(connection.or(until_gone)).detach();
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

/// All seats are taken by requests under way. A word that fits the socket's buffer, or none.
fn refuse(stream: &Async<TcpStream>, secured: bool) {
    const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
        content-type: text/plain\r\ncontent-length: 31\r\n\r\ntoo many connections, ask again";
    if !secured {
        let _unheard = io::Write::write(&mut stream.get_ref(), FULL);
    }
}

async fn secured(
    stream: Async<TcpStream>,
    tls: &TlsAcceptor,
    current: Arc<Current>,
    seat: Arc<Seat>,
) {
    let late = async {
        smol::Timer::after(HEAD_WITHIN).await;
        Err(io::Error::from(io::ErrorKind::TimedOut))
    };
    match tls.accept(stream).or(late).await {
        Ok(stream) => converse(stream, current, seat).await,
        Err(error) => log::debug!("HTTP server: TLS: {error}"),
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    current: Arc<Current>,
    seat: Arc<Seat>,
) {
    let service = service_fn(move |request| {
        let (server, turn) = (current.server(), Turn::begin(&seat));
        async move { Ok::<_, Infallible>(server.answer(request, turn).await) }
    });
    let connection = http1::Builder::new()
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .timer(SmolTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(FuturesIo::new(Paced::new(stream)), service);
    if let Err(error) = connection.await {
        log::debug!("HTTP server: {error}");
    }
}

/// The seats of connections.
#[derive(Debug, Default)]
struct Seats(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    busy: usize,
    /// By when they began to wait; a connection ends when its sender is dropped.
    waiting: BTreeMap<u64, Sender<Infallible>>,
    last: u64,
}

/// One connection's seat, until it is dropped.
#[derive(Debug)]
struct Seat {
    seats: Arc<Seats>,
    now: Mutex<Now>,
}

#[derive(Debug)]
enum Now {
    Waiting(u64),
    Busy(Option<Sender<Infallible>>),
}

impl Seats {
    /// A seat, and what tells its connection to go; `None` where all are busy.
    fn take(self: &Arc<Self>) -> Option<(Arc<Seat>, Receiver<Infallible>)> {
        let mut taken = hold(&self.0);
        if taken.busy + taken.waiting.len() >= CONNECTIONS_MAX {
            taken.waiting.pop_first()?;
        }
        let (sender, gone) = smol::channel::bounded(1);
        let number = taken.wait(sender);
        let seat = Seat {
            seats: Arc::clone(self),
            now: Mutex::new(Now::Waiting(number)),
        };
        Some((Arc::new(seat), gone))
    }
}

impl Taken {
    fn wait(&mut self, sender: Sender<Infallible>) -> u64 {
        self.last += 1;
        self.waiting.insert(self.last, sender);
        self.last
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = hold(&self.seats.0);
        match &*hold(&self.now) {
            Now::Waiting(number) => drop(taken.waiting.remove(number)),
            Now::Busy(_) => taken.busy -= 1,
        }
    }
}

/// A request under way, until its answer was sent.
#[derive(Debug)]
pub struct Turn(Arc<Seat>);

impl Turn {
    fn begin(seat: &Arc<Seat>) -> Turn {
        let mut taken = hold(&seat.seats.0);
        let mut now = hold(&seat.now);
        if let Now::Waiting(number) = *now {
            taken.busy += 1;
            *now = Now::Busy(taken.waiting.remove(&number));
        }
        drop(now);
        Turn(Arc::clone(seat))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut taken = hold(&self.0.seats.0);
        let mut now = hold(&self.0.now);
        // Without a sender it was told to go meanwhile.
        if let Now::Busy(sender) = &mut *now
            && let Some(sender) = sender.take()
        {
            taken.busy -= 1;
            *now = Now::Waiting(taken.wait(sender));
        }
    }
}

fn hold<T>(all: &Mutex<T>) -> MutexGuard<'_, T> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream whose writes fail when the client takes nothing for [`STALL`].
struct Paced<S> {
    stream: S,
    stalled: Option<smol::Timer>,
}

impl<S: AsyncWrite + Unpin> Paced<S> {
    fn new(stream: S) -> Paced<S> {
        Paced {
            stream,
            stalled: None,
        }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, did: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if did.is_ready() {
            self.stalled = None;
            return did;
        }
        let timer = self
            .stalled
            .get_or_insert_with(|| smol::Timer::after(STALL));
        match Pin::new(timer).poll(cx) {
            Poll::Ready(_) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let did = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, did)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let did = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, did)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let did = Pin::new(&mut self.stream).poll_close(cx);
        self.watch(cx, did)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_longest_gives_way_and_who_works_stays() {
        let seats = Arc::new(Seats::default());
        let mut all: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|_| seats.take().unwrap())
            .collect();
        let first = Turn::begin(&all[0].0);
        let newcomer = seats.take().unwrap();
        let told = |gone: &Receiver<Infallible>| gone.is_closed();
        assert_eq!([told(&all[0].1), told(&all[1].1)], [false, true]);
        assert!(!told(&all[2].1) && !told(&newcomer.1));
        // Served, it waits again, as the last of all.
        drop(first);
        let second = seats.take().unwrap();
        assert_eq!([told(&all[0].1), told(&all[2].1)], [false, true]);
        let turns: Vec<_> = all.iter().map(|(seat, _)| Turn::begin(seat)).collect();
        let more = [Turn::begin(&newcomer.0), Turn::begin(&second.0)];
        assert!(seats.take().is_none(), "everybody works");
        drop(more);
        assert!(seats.take().is_some());
        drop(turns);
        all.clear();
        drop((newcomer, second));
        let taken = hold(&seats.0);
        assert_eq!((taken.busy, taken.waiting.len()), (0, 0));
    }
}
