//! A listening socket that can be closed for a while, so that connections are refused.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::support::{PATIENCE, wait_until};

/// How soon a door notices that it is to be closed or opened; connections it notices at once.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Clone, Default)]
pub struct Handle {
    closed_until: Arc<Mutex<Option<Instant>>>,
    is_open: Arc<AtomicBool>,
}

impl Handle {
    /// Returns when connections are refused.
    pub fn close_for(&self, time: Duration) {
        const FAR: Duration = Duration::from_secs(1_000_000);
        *self.closed_until.lock().unwrap() = Some(Instant::now() + time.min(FAR));
        wait_until("a closed door", PATIENCE, || {
            !self.is_open.load(Ordering::SeqCst) || !self.is_to_be_closed()
        });
    }

    fn is_to_be_closed(&self) -> bool {
        let until = *self.closed_until.lock().unwrap();
        until.is_some_and(|until| until > Instant::now())
    }
}

pub struct Door {
    handle: Handle,
    /// Its end is the end of the thread.
    alive: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    pub fn open(
        listener: TcpListener,
        mut enter: impl FnMut(TcpStream, &Handle) + Send + 'static,
    ) -> Door {
        let handle = Handle::default();
        handle.is_open.store(true, Ordering::SeqCst);
        let (alive, owner) = mpsc::channel();
        let own = handle.clone();
        let look = PollTimeout::try_from(LOOK).expect("a short time");
        let thread = thread::spawn(move || {
            let mut listener = Some(listener);
            let address = listener.as_ref().unwrap().local_addr().unwrap();
            loop {
                let closed = own.is_to_be_closed();
                if closed {
                    listener = None;
                    own.is_open.store(false, Ordering::SeqCst);
                }
                let wait = if listener.is_none() {
                    LOOK
                } else {
                    Duration::ZERO
                };
                if owner.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                    break;
                }
                if closed {
                    continue;
                }
                // A connection to elsewhere may have got the port for a moment.
                let Some(open) = listener.take().or_else(|| TcpListener::bind(address).ok()) else {
                    continue;
                };
                let open = listener.insert(open);
                own.is_open.store(true, Ordering::SeqCst);
                let mut ready = [PollFd::new(open.as_fd(), PollFlags::POLLIN)];
                if poll(&mut ready, look).is_ok_and(|count| count > 0)
                    && let Ok((stream, _)) = open.accept()
                {
                    enter(stream, &own);
                }
            }
        });
        Door {
            handle,
            alive: Some(alive),
            thread: Some(thread),
        }
    }

    pub fn close(&self) {
        self.handle.close_for(Duration::MAX);
    }

    /// Returns when connections are accepted.
    pub fn reopen(&self) {
        *self.handle.closed_until.lock().unwrap() = None;
        wait_until("an open door", PATIENCE, || {
            self.handle.is_open.load(Ordering::SeqCst)
        });
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            let _its_panic_is_said = thread.join();
        }
    }
}
