//! A proxy between a client and a real server that goes wrong where a test tells it to.
//!
//! It speaks plain HTTP/1 and answers one request a connection, so that every request of a client
//! is one place for a fault. A test counts the requests of a whole run first (`seen`), then repeats
//! the run with a fault at each. `tcp` is the same for protocols that are not HTTP.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use regex_lite::Regex;

use self::listen::Door;
use self::wire::{Head, Reply, reset};

mod listen;
pub mod tcp;
mod wire;

/// What goes wrong with a request. "The server" is the real one.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// This connection is reset, and those of the given time after it are refused.
    Refused(Duration),
    /// The server hears nothing of it.
    ResetBefore,
    /// The server gets half of the body.
    ResetInRequest,
    /// The server gets all of it and answers; the client hears nothing.
    ResetAfterRequest,
    /// The client gets the head and half of the body.
    ResetInResponse,
    /// As before, but with an orderly end of the connection.
    EndsInResponse,
    /// The server hears nothing of it, and the client nothing until it gives up.
    Stall,
    /// The client gets the head and half of the body, then nothing until it gives up.
    StallInResponse,
    /// The server hears nothing of it.
    Answer(Answer),
    /// The server does what it was asked; the client is told otherwise.
    DoneBut(Answer),
    /// Half of the body, announced as all of it.
    Truncated,
    /// Some bytes more than the server sent, announced as such.
    Lengthened,
    /// One bit of the middle of the request's body.
    FlippedRequest,
    /// One bit of the middle of the response's body.
    FlippedResponse,
    /// What the server said to the same request when it was made first; see `Proxy::remember`.
    Stale,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn status(status: u16) -> Answer {
        Answer {
            status,
            headers: Vec::new(),
            body: String::new(),
        }
    }

    /// An error as S3 tells it.
    pub fn s3(status: u16, code: &str) -> Answer {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
             <Message>a fault of the test</Message></Error>"
        );
        Answer {
            body,
            ..Answer::status(status).header("Content-Type", "application/xml")
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// 503 with a time to wait.
    pub fn slow_down(after_s: u32) -> Answer {
        Answer::s3(503, "SlowDown").header("Retry-After", &after_s.to_string())
    }

    pub fn expired_token() -> Answer {
        Answer::s3(403, "ExpiredToken")
    }
}

/// Which request.
pub enum Pick {
    /// By its place in `seen`, from 0.
    Nth(usize),
    /// By a pattern for `METHOD /path?query`.
    Line(Regex),
}

impl Pick {
    pub fn line(pattern: &str) -> Pick {
        Pick::Line(Regex::new(pattern).expect("a regular expression"))
    }
}

struct Rule {
    pick: Pick,
    times: usize,
    fault: Fault,
}

/// A request that came.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Bytes of the body that came from the client.
    pub request_bytes: u64,
    /// Bytes of the body that went to the client.
    pub response_bytes: u64,
    /// What the client was told; 0 for nothing.
    pub status: u16,
    pub fault: Option<Fault>,
}

type Guard = Box<dyn Fn(&str) -> bool + Send + Sync>;

struct Shared {
    /// On 127.0.0.1.
    upstream: u16,
    port: u16,
    state: Mutex<State>,
    /// What the Authorization header must be, if anything.
    guard: Option<Guard>,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    keep: Option<Regex>,
    /// First answers by request.
    kept: BTreeMap<String, Reply>,
}

/// Ends with its owner; connections end with their clients.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    door: Door,
}

impl Proxy {
    pub fn to(upstream: u16) -> Proxy {
        Proxy::guarded(upstream, None)
    }

    /// Answers 401 to whom the guard does not let in; for servers that do not look.
    pub fn guarded(upstream: u16, guard: Option<Guard>) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            upstream,
            port,
            state: Mutex::default(),
            guard,
        });
        let door = Door::open(listener, {
            let shared = Arc::clone(&shared);
            move |stream, door| {
                let (shared, door) = (Arc::clone(&shared), door.clone());
                // What a client does to its connection is its own business.
                thread::spawn(move || drop(shared.serve(&stream, &door)));
            }
        });
        Proxy { port, shared, door }
    }

    /// A fault for one request. Of several plans for a request the oldest counts.
    pub fn plan(&self, pick: Pick, fault: Fault) {
        self.plan_times(pick, 1, fault);
    }

    pub fn plan_times(&self, pick: Pick, times: usize, fault: Fault) {
        let rule = Rule { pick, times, fault };
        self.shared.state().rules.push(rule);
    }

    /// Keeps the first answer to each request that matches, for `Fault::Stale`. Signed requests are
    /// the same if method, path and query are.
    pub fn remember(&self, pattern: &str) {
        let pattern = Regex::new(pattern).expect("a regular expression");
        self.shared.state().keep = Some(pattern);
    }

    /// All requests so far, in the order in which they came.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }

    /// How many faults have not happened yet.
    pub fn pending(&self) -> usize {
        self.shared
            .state()
            .rules
            .iter()
            .map(|rule| rule.times)
            .sum()
    }

    /// Forgets plans, requests and remembered answers: the next request is the first.
    pub fn clear(&self) {
        *self.shared.state() = State::default();
    }

    /// Refuses connections until `up`.
    pub fn down(&self) {
        self.door.close();
    }

    pub fn up(&self) {
        self.door.reopen();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The number of the request and what is planned for it.
    fn arrived(&self, head: &Head) -> (usize, Option<Fault>) {
        let mut state = self.state();
        let number = state.seen.len();
        let line = head.line();
        let rule = state.rules.iter_mut().find(|rule| {
            let picked = match &rule.pick {
                Pick::Nth(nth) => *nth == number,
                Pick::Line(pattern) => pattern.is_match(&line),
            };
            picked && rule.times > 0
        });
        let fault = rule.map(|rule| {
            rule.times -= 1;
            rule.fault.clone()
        });
        state.seen.push(Seen {
            method: head.method.clone(),
            path: head.path.clone(),
            fault: fault.clone(),
            ..Seen::default()
        });
        (number, fault)
    }

    fn note(&self, number: usize, change: impl FnOnce(&mut Seen)) {
        // A request of before `clear` has no place any more.
        self.state().seen.get_mut(number).map(change);
    }

    fn serve(&self, client: &TcpStream, door: &listen::Handle) -> std::io::Result<()> {
        let mut input = BufReader::new(client);
        let Some(head) = Head::read(&mut input)? else {
            return Ok(());
        };
        let (number, fault) = self.arrived(&head);
        let exchange = Exchange {
            shared: self,
            client,
            head,
            number,
        };
        match fault {
            Some(Fault::Refused(time)) => {
                door.close_for(time);
                reset(client)
            }
            Some(Fault::ResetBefore) => reset(client),
            fault => exchange.pass(&mut input, fault),
        }
    }
}

/// One request and what becomes of it.
struct Exchange<'a> {
    shared: &'a Shared,
    client: &'a TcpStream,
    head: Head,
    number: usize,
}

impl Exchange<'_> {
    fn pass(&self, input: &mut BufReader<&TcpStream>, fault: Option<Fault>) -> std::io::Result<()> {
        self.head.invite_body(self.client)?;
        if let Some(refusal) = self.refusal() {
            self.head.skip_body(input)?;
            return self.say(&refusal);
        }
        match &fault {
            Some(Fault::Answer(answer)) => {
                self.count(self.head.skip_body(input)?);
                return self.say(&Reply::from(answer));
            }
            Some(Fault::Stall) => {
                self.count(self.head.skip_body(input)?);
                return wire::wait_for_end(input);
            }
            _ => {}
        }
        let server = TcpStream::connect(("127.0.0.1", self.shared.upstream))?;
        self.head.forward(&server)?;
        if fault == Some(Fault::ResetInRequest) {
            self.count(self.head.forward_half(input, &server)?);
            reset(&server)?;
            return reset(self.client);
        }
        let flip = fault == Some(Fault::FlippedRequest);
        self.count(self.head.forward_body(input, &server, flip)?);
        let mut answer = BufReader::new(&server);
        let own = format!("127.0.0.1:{}", self.shared.port);
        let real = format!("127.0.0.1:{}", self.shared.upstream);
        let mut reply = Reply::read_head(&mut answer)?;
        reply.rename(&real, &own);
        let keep = self.keeps();
        if matches!(fault, None | Some(Fault::FlippedRequest)) && !keep {
            self.told(reply.status);
            reply.send_head(self.client)?;
            let sent = std::io::copy(&mut answer, &mut &*self.client)?;
            self.shared
                .note(self.number, |seen| seen.response_bytes = sent);
            return Ok(());
        }
        reply.read_body(&mut answer, &self.head.method)?;
        if keep {
            let mut state = self.shared.state();
            state
                .kept
                .entry(self.head.line())
                .or_insert_with(|| reply.clone());
        }
        match fault {
            Some(fault) => self.spoil(input, reply, &fault),
            None => self.say(&reply),
        }
    }

    /// The server has answered.
    fn spoil(
        &self,
        input: &mut BufReader<&TcpStream>,
        mut reply: Reply,
        fault: &Fault,
    ) -> std::io::Result<()> {
        let half = reply.body.len() / 2;
        match fault {
            Fault::ResetAfterRequest => return reset(self.client),
            Fault::DoneBut(answer) => return self.say(&Reply::from(answer)),
            Fault::ResetInResponse | Fault::EndsInResponse | Fault::StallInResponse => {
                self.told(reply.status);
                reply.send(self.client, half)?;
                return match fault {
                    Fault::ResetInResponse => reset(self.client),
                    Fault::StallInResponse => wire::wait_for_end(input),
                    _ => Ok(()),
                };
            }
            Fault::Truncated => reply.resize(half),
            Fault::Lengthened => reply.resize(reply.body.len() + 1000),
            Fault::FlippedResponse => {
                if let Some(byte) = reply.body.get_mut(half) {
                    *byte ^= 0x10;
                }
            }
            Fault::Stale => {
                let kept = self.shared.state().kept.get(&self.head.line()).cloned();
                reply = kept.unwrap_or(reply);
            }
            other => unreachable!("{other:?} happens before the server answers"),
        }
        self.say(&reply)
    }

    fn say(&self, reply: &Reply) -> std::io::Result<()> {
        self.told(reply.status);
        let length = reply.body.len();
        self.shared.note(self.number, |seen| {
            seen.response_bytes = u64::try_from(length).unwrap();
        });
        reply.send(self.client, length)
    }

    fn told(&self, status: u16) {
        self.shared.note(self.number, |seen| seen.status = status);
    }

    fn count(&self, bytes: u64) {
        self.shared
            .note(self.number, |seen| seen.request_bytes = bytes);
    }

    fn keeps(&self) -> bool {
        let state = self.shared.state();
        let line = self.head.line();
        state.keep.as_ref().is_some_and(|keep| keep.is_match(&line))
    }

    fn refusal(&self) -> Option<Reply> {
        let guard = self.shared.guard.as_ref()?;
        let login = self.head.header("authorization").unwrap_or_default();
        (!guard(&login)).then(|| Reply::from(&Answer::status(401)))
    }
}
