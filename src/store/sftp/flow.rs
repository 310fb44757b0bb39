//! The bytes of one file with several requests on their way at a time, so that a long line costs
//! its round trip once and not for every block.
//!
//! Budget: [`WINDOW_BYTES`] and one block a file that is open.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use machine::Class;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::protocol::StatusCode;

use super::session::Session;
use crate::failure::{Failure, Outcome};
use crate::store::wire::run;

/// What OpenSSH's own client has on its way.
const WINDOW_BYTES: usize = 2 << 20;

/// Writes from the beginning to the end.
pub(super) struct Outflow {
    session: Arc<Session>,
    handle: String,
    path: String,
    block: Vec<u8>,
    sent_bytes: u64,
    flights: VecDeque<Flight<Outcome<()>>>,
}

impl Outflow {
    pub fn new(session: Arc<Session>, handle: String, path: String) -> Outflow {
        Outflow {
            block: Vec::with_capacity(session.block_bytes),
            session,
            handle,
            path,
            sent_bytes: 0,
            flights: VecDeque::new(),
        }
    }

    /// The last block stays here until [`Outflow::drain`]: what was written last tells the server
    /// when the file was finished.
    pub fn write(&mut self, mut bytes: &[u8]) -> Outcome<()> {
        while !bytes.is_empty() {
            if self.block.len() >= self.session.block_bytes {
                self.send()?;
            }
            let room = self.session.block_bytes.saturating_sub(self.block.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Returns when the server has everything.
    pub fn drain(&mut self) -> Outcome<()> {
        if !self.block.is_empty() {
            self.send()?;
        }
        while let Some(flight) = self.flights.pop_front() {
            landed(flight)?;
        }
        Ok(())
    }

    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    fn send(&mut self) -> Outcome<()> {
        while self.flights.len() >= in_flight(&self.session) {
            match self.flights.pop_front() {
                Some(flight) => landed(flight)?,
                None => break,
            }
        }
        let next = Vec::with_capacity(self.session.block_bytes);
        let block = std::mem::replace(&mut self.block, next);
        let at = self.sent_bytes;
        self.sent_bytes += length(&block);
        let (session, handle) = (Arc::clone(&self.session), self.handle.clone());
        let path = self.path.clone();
        self.flights.push_back(spawn(async move {
            let written = session.sftp.write(handle, at, block);
            session.ask(&path, written).await.map(drop)
        }));
        Ok(())
    }
}

/// Reads from a position to the known end; a file that ends elsewhere is an error.
pub(super) struct Inflow {
    session: Arc<Session>,
    handle: String,
    path: String,
    size_bytes: u64,
    asked_bytes: u64,
    flights: VecDeque<Asked>,
    piece: Vec<u8>,
    used: usize,
}

struct Asked {
    at: u64,
    count: usize,
    flight: Flight<Outcome<Vec<u8>>>,
}

impl Inflow {
    pub fn new(
        session: Arc<Session>,
        handle: String,
        path: String,
        from: u64,
        size_bytes: u64,
    ) -> Inflow {
        Inflow {
            session,
            handle,
            path,
            size_bytes,
            asked_bytes: from,
            flights: VecDeque::new(),
            piece: Vec::new(),
            used: 0,
        }
    }

    pub fn read(&mut self, buffer: &mut [u8]) -> Outcome<usize> {
        while self.used >= self.piece.len() {
            self.ask_ahead();
            let Some(asked) = self.flights.pop_front() else {
                return Ok(0);
            };
            self.piece = landed(asked.flight)?;
            self.used = 0;
            self.judge(asked.at, asked.count)?;
        }
        let rest = self.piece.get(self.used..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.used += count;
        Ok(count)
    }

    /// The byte behind the end is asked for as well: there must be none.
    fn ask_ahead(&mut self) {
        let block = u64::try_from(self.session.block_bytes).unwrap_or(u64::MAX);
        while self.asked_bytes <= self.size_bytes && self.flights.len() < in_flight(&self.session) {
            let at = self.asked_bytes;
            let count = (self.size_bytes - at).min(block).max(1);
            self.asked_bytes += count;
            let asked = self.ask(at, usize::try_from(count).unwrap_or(1));
            self.flights.push_back(asked);
        }
    }

    fn ask(&self, at: u64, count: usize) -> Asked {
        let (session, handle) = (Arc::clone(&self.session), self.handle.clone());
        let path = self.path.clone();
        let length = u32::try_from(count).unwrap_or(u32::MAX);
        let flight = spawn(async move {
            match session.sftp.read(handle, at, length).await {
                Ok(data) => Ok(data.data),
                Err(SftpError::Status(s)) if s.status_code == StatusCode::Eof => Ok(Vec::new()),
                Err(e) => Err(session.failure(&e, &path)),
            }
        });
        Asked { at, count, flight }
    }

    /// A server may send less than it was asked for, but not nothing and not more.
    fn judge(&mut self, at: u64, count: usize) -> Outcome<()> {
        let (path, got) = (&self.path, self.piece.len());
        let beyond = at >= self.size_bytes;
        let wrong = |text: &str| Err(Failure::new(Class::Corrupt, format!("{path}: {text}")));
        match got {
            0 if beyond => Ok(()),
            0 => wrong("the object ends early"),
            _ if beyond || got > count => wrong("the object is longer than announced"),
            _ if got < count => {
                let rest = self.ask(at + length(&self.piece), count - got);
                self.flights.push_front(rest);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Inflow {
    fn drop(&mut self) {
        let (session, handle) = (Arc::clone(&self.session), std::mem::take(&mut self.handle));
        drop(spawn(async move { session.close(handle).await }));
    }
}

/// Runs on without anybody waiting for it.
#[allow(
    clippy::async_yields_async,
    reason = "spawning needs the runtime, waiting is for whoever has the flight"
)]
pub(super) fn spawn<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Flight<T> {
    run(async { tokio::spawn(work) })
}

type Flight<T> = tokio::task::JoinHandle<T>;

fn landed<T>(flight: Flight<Outcome<T>>) -> Outcome<T> {
    run(flight).map_err(|e| Failure::new(Class::Internal, format!("SFTP: {e}")))?
}

fn in_flight(session: &Session) -> usize {
    (WINDOW_BYTES / session.block_bytes.max(1)).max(2)
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
