//! Log lines to syslog: `<PRIORITY>pghoard[PID]: logger thread LEVEL: message`.
//!
//! The form is PGHoard's, behind the tag that syslog wants; without a time, as Python's handler:
//! the receiver stamps it. A thread of its own sends, and nobody waits for it: a syslog that is
//! down or slow costs lines, which is said on stderr when it begins and counted in syslog when it
//! ends.

use std::io::{self, Write};
use std::net::{ToSocketAddrs, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::{Syslog, To};

/// Lines that may wait for the thread.
const WAITING_MAX: usize = 1_024;
/// A socket that failed is tried again after so long; what comes meanwhile is lost.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// Longer than this nothing waits for a socket that takes nothing.
const SEND_WITHIN: Duration = Duration::from_secs(5);
const FLUSH_WITHIN: Duration = Duration::from_secs(1);
/// The longest line: a datagram of UDP that no network cuts (RFC 5424, section 6.1).
const LINE_MAX: usize = 2_048;

/// The one thing the log writer shares with who configures it, as `log` itself has its writer.
static COURIER: Mutex<Option<Courier>> = Mutex::new(None);

struct Courier {
    wanted: Syslog,
    lines: SyncSender<Job>,
    /// Lines that found no room.
    lost: u64,
}

enum Job {
    Line {
        priority: u8,
        text: String,
    },
    /// So many lines went before this one.
    Lost(u64),
    Done(SyncSender<()>),
}

/// From now on there, or nowhere. What goes to the same place already goes on.
pub fn send_to(wanted: Option<&Syslog>) {
    let mut courier = lock();
    if courier.as_ref().map(|courier| &courier.wanted) == wanted {
        return;
    }
    *courier = None;
    let Some(wanted) = wanted.cloned() else {
        return;
    };
    let (lines, waiting) = sync_channel(WAITING_MAX);
    let place = wanted.clone();
    let run = move || deliver(&place, &waiting);
    match thread::Builder::new().name("syslog".into()).spawn(run) {
        Ok(_) => {
            *courier = Some(Courier {
                wanted,
                lines,
                lost: 0,
            });
        }
        Err(error) => aside(&format!("no thread for syslog: {error}")),
    }
}

/// What `line` answers begins with its priority in angle brackets. Never waits.
pub(super) fn hand_over(line: impl FnOnce() -> String) {
    let mut courier = lock();
    let Some(courier) = courier.as_mut() else {
        return;
    };
    let line = line();
    let Some((priority, text)) = line.strip_prefix('<').and_then(|line| line.split_once('>'))
    else {
        return;
    };
    if courier.lost > 0 && courier.lines.try_send(Job::Lost(courier.lost)).is_ok() {
        courier.lost = 0;
    }
    let job = Job::Line {
        priority: priority.parse().unwrap_or_default(),
        text: text.trim_end().to_owned(),
    };
    match courier.lines.try_send(job) {
        Ok(()) => {}
        Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => courier.lost += 1,
    }
}

/// Until what was handed over is sent, for a short time.
pub(super) fn flush() {
    let lines = lock().as_ref().map(|courier| courier.lines.clone());
    let (done, heard) = sync_channel(1);
    if lines.is_some_and(|lines| lines.try_send(Job::Done(done)).is_ok()) {
        let _late_or_gone: Result<(), RecvTimeoutError> = heard.recv_timeout(FLUSH_WITHIN);
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Courier>> {
    COURIER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Trouble with syslog itself cannot go through the log.
fn aside(message: &str) {
    let _unsaid = writeln!(io::stderr().lock(), "syslog: {message}");
}

fn deliver(wanted: &Syslog, jobs: &Receiver<Job>) {
    let mut line = Line {
        wanted,
        socket: None,
        failed: None,
        lost: 0,
    };
    for job in jobs {
        match job {
            Job::Line { priority, text } => line.send(priority, &text),
            Job::Lost(count) => line.lost += count,
            Job::Done(done) => drop(done.try_send(())),
        }
    }
}

/// The way to syslog, and how it fares.
struct Line<'a> {
    wanted: &'a Syslog,
    socket: Option<Socket>,
    failed: Option<Instant>,
    lost: u64,
}

const WARNING: u8 = 4;

impl Line<'_> {
    fn send(&mut self, priority: u8, text: &str) {
        if self.failed.is_some_and(|at| at.elapsed() < REOPEN_AFTER) {
            self.lost += 1;
            return;
        }
        let mut sent = Ok(());
        if self.lost > 0 {
            let told = format!("report syslog WARNING: {} lines were lost", self.lost);
            sent = self.put(WARNING, &told);
        }
        if sent.is_ok() {
            self.lost = 0;
            sent = self.put(priority, text);
        }
        match sent {
            Ok(()) if self.failed.take().is_some() => aside("lines go there again"),
            Ok(()) => {}
            Err(error) => {
                if self.failed.is_none() {
                    aside(&format!("lines are lost: {}: {error}", place(self.wanted)));
                }
                self.lost += 1;
                self.socket = None;
                self.failed = Some(Instant::now());
            }
        }
    }

    /// A socket that was closed by a syslog that restarted is opened anew at once.
    fn put(&mut self, priority: u8, text: &str) -> io::Result<()> {
        let head = u32::from(self.wanted.facility) * 8 + u32::from(priority);
        let mut line = format!("<{head}>pghoard[{}]: {text}", process::id());
        let mut fits = (0..=LINE_MAX.min(line.len())).rev();
        let cut = fits.find(|at| line.is_char_boundary(*at));
        line.truncate(cut.unwrap_or_default());
        if let Some(socket) = &mut self.socket
            && socket.send(&line).is_ok()
        {
            return Ok(());
        }
        let mut socket = Socket::open(&self.wanted.to)?;
        socket.send(&line)?;
        self.socket = Some(socket);
        Ok(())
    }
}

fn place(wanted: &Syslog) -> String {
    match &wanted.to {
        To::Socket(path) => path.display().to_string(),
        To::Network { host, port } => format!("{host}:{port}"),
    }
}

enum Socket {
    Datagram(UnixDatagram),
    Stream(UnixStream),
    Network(UdpSocket),
}

impl Socket {
    /// Datagrams where the socket takes them, else a stream, as Python.
    fn open(to: &To) -> io::Result<Socket> {
        match to {
            To::Socket(path) => {
                let datagram = UnixDatagram::unbound()?;
                datagram.set_write_timeout(Some(SEND_WITHIN))?;
                if datagram.connect(path).is_ok() {
                    return Ok(Socket::Datagram(datagram));
                }
                let stream = UnixStream::connect(path)?;
                stream.set_write_timeout(Some(SEND_WITHIN))?;
                Ok(Socket::Stream(stream))
            }
            To::Network { host, port } => {
                let mut addresses = (host.as_str(), *port).to_socket_addrs()?;
                let address = addresses.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
                let any = if address.is_ipv4() {
                    "0.0.0.0:0"
                } else {
                    "[::]:0"
                };
                let socket = UdpSocket::bind(any)?;
                socket.connect(address)?;
                Ok(Socket::Network(socket))
            }
        }
    }

    fn send(&mut self, line: &str) -> io::Result<()> {
        match self {
            Socket::Datagram(socket) => socket.send(line.as_bytes()).map(drop),
            // As glibc ends a record of a stream.
            Socket::Stream(socket) => socket.write_all(format!("{line}\0").as_bytes()),
            Socket::Network(socket) => socket.send(line.as_bytes()).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::*;

    fn to(path: &Path) -> Syslog {
        let to = To::Socket(path.to_owned());
        Syslog { to, facility: 18 }
    }

    fn line(wanted: &Syslog) -> Line<'_> {
        Line {
            wanted,
            socket: None,
            failed: None,
            lost: 0,
        }
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 4_096];
        socket.set_read_timeout(Some(SEND_WITHIN)).unwrap();
        let size = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..size].to_vec()).unwrap()
    }

    #[test]
    fn a_line_is_a_datagram_with_priority_and_tag() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let socket = UnixDatagram::bind(&path).unwrap();
        let wanted = to(&path);
        let mut line = line(&wanted);
        line.send(6, "world receive INFO: ready");
        let tag = format!("pghoard[{}]", process::id());
        let expect = format!("<150>{tag}: world receive INFO: ready");
        assert_eq!(heard(&socket), expect);
        line.send(3, &"x".repeat(3_000));
        assert_eq!(heard(&socket).len(), LINE_MAX);
    }

    #[test]
    fn a_stream_gets_records_that_end_with_nul() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let listener = UnixListener::bind(&path).unwrap();
        let wanted = to(&path);
        let mut line = line(&wanted);
        line.send(6, "a");
        line.send(4, "b");
        drop(line);
        let mut text = String::new();
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_to_string(&mut text).unwrap();
        let lines: Vec<&str> = text.split_terminator('\0').collect();
        assert_eq!(lines.len(), 2, "{text:?}");
        assert!(lines[0].starts_with("<150>") && lines[0].ends_with(": a"));
        assert!(lines[1].starts_with("<148>") && lines[1].ends_with(": b"));
    }

    #[test]
    fn a_syslog_that_was_away_hears_how_many_lines_it_missed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let wanted = to(&path);
        let mut line = line(&wanted);
        line.send(6, "into the void");
        line.send(6, "not even tried");
        assert_eq!(line.lost, 2);
        let socket = UnixDatagram::bind(&path).unwrap();
        line.failed = Instant::now().checked_sub(REOPEN_AFTER);
        line.send(6, "back");
        assert!(heard(&socket).ends_with("WARNING: 2 lines were lost"));
        assert!(heard(&socket).ends_with(": back"));
        // It restarts: the old socket is dead, the new one is found without a loss.
        drop(socket);
        std::fs::remove_file(&path).unwrap();
        let socket = UnixDatagram::bind(&path).unwrap();
        line.send(6, "again");
        assert!(heard(&socket).ends_with(": again"));
        assert_eq!(line.lost, 0);
    }
}
