//! The proxy for protocols that it cannot read: faults by connection and count of bytes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use super::listen::{Door, Handle};
use super::wire::reset;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpFault {
    /// This connection is reset, and those of the given time after it are refused.
    Refused(Duration),
    /// Both sides are reset after that many bytes.
    Reset(Way, u64),
    /// Nothing passes that way after that many bytes.
    Stall(Way, u64),
    /// The byte of that number changes, from 0.
    Flip(Way, u64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    pub to_server: u64,
    pub to_client: u64,
}

#[derive(Default)]
struct State {
    /// The connection whose server is not listened to.
    held: Option<usize>,
    plans: Vec<(usize, TcpFault)>,
    passed: Vec<Passed>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    let_go: Condvar,
}

/// Ends with its owner; connections end with their clients.
pub struct TcpProxy {
    pub port: u16,
    shared: Arc<Shared>,
    door: Door,
}

impl TcpProxy {
    /// To a port of 127.0.0.1.
    pub fn to(upstream: u16) -> TcpProxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        let door = Door::open(listener, move |client, door| {
            let mut state = own.state.lock().unwrap();
            let number = state.passed.len();
            state.passed.push(Passed::default());
            let planned = state.plans.iter().find(|(nth, _)| *nth == number);
            let fault = planned.map(|(_, fault)| *fault);
            let (shared, door) = (Arc::clone(&own), door.clone());
            thread::spawn(move || {
                let passing = Connection {
                    shared,
                    number,
                    fault,
                    cut: Arc::default(),
                };
                passing.run(client, upstream, &door)
            });
        });
        TcpProxy { port, shared, door }
    }

    /// For the connection of that number, from 0.
    pub fn plan(&self, nth: usize, fault: TcpFault) {
        self.shared.state.lock().unwrap().plans.push((nth, fault));
    }

    /// Holds up what the server sends on the connection of that number, or lets it go on.
    pub fn hold(&self, nth: Option<usize>) {
        self.shared.state.lock().unwrap().held = nth;
        self.shared.let_go.notify_all();
    }

    /// What has passed on every connection so far.
    pub fn passed(&self) -> Vec<Passed> {
        self.shared.state.lock().unwrap().passed.clone()
    }

    /// Forgets plans and connections: the next one is the first.
    pub fn clear(&self) {
        *self.shared.state.lock().unwrap() = State::default();
    }

    /// Refuses connections until `up`.
    pub fn down(&self) {
        self.door.close();
    }

    pub fn up(&self) {
        self.door.reopen();
    }
}

#[derive(Clone)]
struct Connection {
    shared: Arc<Shared>,
    number: usize,
    fault: Option<TcpFault>,
    /// It was reset.
    cut: Arc<AtomicBool>,
}

impl Connection {
    fn run(self, client: TcpStream, upstream: u16, door: &Handle) -> io::Result<()> {
        if let Some(TcpFault::Refused(time)) = self.fault {
            door.close_for(time);
            return reset(&client);
        }
        let server = TcpStream::connect(("127.0.0.1", upstream))?;
        let (other_client, other_server) = (client.try_clone()?, server.try_clone()?);
        let back = self.clone();
        let answers = thread::spawn(move || back.pass(Way::ToClient, &other_server, &other_client));
        self.pass(Way::ToServer, &client, &server)?;
        answers.join().expect("copying does not panic")
    }

    fn pass(&self, way: Way, mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
        let mut block = vec![0; 32 << 10];
        let mut passed = 0;
        loop {
            let until = match self.fault {
                Some(TcpFault::Reset(w, n) | TcpFault::Stall(w, n)) if w == way => n,
                _ => u64::MAX,
            };
            if passed == until {
                break;
            }
            let wanted =
                usize::try_from(until - passed).map_or(block.len(), |n| n.min(block.len()));
            let got = match from.read(&mut block[..wanted]) {
                Ok(0) | Err(_) if self.cut.load(Ordering::SeqCst) => return Ok(()),
                Ok(0) | Err(_) => return to.shutdown(Shutdown::Write),
                Ok(got) => got,
            };
            let length = u64::try_from(got).unwrap();
            if let Some(TcpFault::Flip(w, n)) = self.fault
                && w == way
                && (passed..passed + length).contains(&n)
            {
                block[usize::try_from(n - passed).unwrap()] ^= 0x10;
            }
            if way == Way::ToClient {
                let state = self.shared.state.lock().unwrap();
                let held = |state: &mut State| state.held == Some(self.number);
                drop(self.shared.let_go.wait_while(state, held).unwrap());
            }
            to.write_all(&block[..got])?;
            passed += length;
            self.note(way, passed);
        }
        if let Some(TcpFault::Reset(..)) = self.fault {
            self.cut.store(true, Ordering::SeqCst);
            for stream in [from, to] {
                reset(stream)?;
                // The other direction holds it, too, and lets go of it then: nothing is sent.
                stream.shutdown(Shutdown::Read)?;
            }
            return Ok(());
        }
        io::copy(&mut from, &mut io::sink()).map(drop)
    }

    fn note(&self, way: Way, bytes: u64) {
        let mut state = self.shared.state.lock().unwrap();
        if let Some(passed) = state.passed.get_mut(self.number) {
            match way {
                Way::ToServer => passed.to_server = bytes,
                Way::ToClient => passed.to_client = bytes,
            }
        }
    }
}
