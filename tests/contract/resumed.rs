//! Google's resumable uploads that break off: the store keeps what it wants of a part, answers
//! nothing for a while, and is asked how far it got. No emulator does all of it, so a server of the
//! tests' own keeps one session.

use std::sync::{Arc, Mutex};

use machine::Class;
use pghoard::store::choose::Missing;
use pghoard::store::{Body, Metadata, Put};
use serde_json::{Value, json};

use super::grow;
use super::s3::open;
use crate::support::http::{Endpoint, Request, Response, respond};

const SIZE: usize = (20 << 20) + 1;
/// Sessions keep multiples of it.
const STEP: usize = 256 << 10;

#[derive(Default)]
struct Session {
    bytes: Vec<u8>,
    done: bool,
    /// What to do with the next requests that have bytes, in their order.
    plan: Vec<Plan>,
    asked_state: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Plan {
    /// Keeps half of it and says so.
    Half,
    /// Keeps half of it and answers 503, as often.
    Breaks(u32),
    /// Keeps nothing, and says so.
    Nothing,
    /// Keeps it all and answers 503, as often.
    Lost(u32),
}

impl Session {
    fn answer(&mut self, request: &Request) -> Response {
        let path = request.uri().path();
        match request.method().as_str() {
            "POST" => return respond(200, &[("Location", "http://google/upload/session")], ""),
            "DELETE" => return respond(499, &[], ""),
            "PUT" => {}
            _ if path.contains("/o/") => return respond(404, &[], "{}"),
            _ => return respond(200, &[], "{}"),
        }
        let range = request.headers()["content-range"].to_str().unwrap();
        let (part, total) = range
            .strip_prefix("bytes ")
            .unwrap()
            .split_once('/')
            .unwrap();
        if let Some((from, _)) = part.split_once('-') {
            let from: usize = from.parse().unwrap();
            if let Some(answer) = self.keep(from, request.body()) {
                return answer;
            }
        } else {
            self.asked_state += 1;
        }
        if total.parse() == Ok(self.bytes.len()) {
            self.done = true;
            let crc = crc32c::crc32c(&self.bytes).to_be_bytes();
            return respond(200, &[], json!({ "crc32c": base64(&crc) }).to_string());
        }
        match self.bytes.len() {
            0 => respond(308, &[], ""),
            count => respond(308, &[("Range", &format!("bytes=0-{}", count - 1))], ""),
        }
    }

    /// As Google does: what it has already is passed over.
    fn keep(&mut self, from: usize, body: &[u8]) -> Option<Response> {
        assert!(from <= self.bytes.len(), "a gap before {from}");
        let new = body.get(self.bytes.len() - from..).unwrap_or_default();
        let half = new.len() / 2 / STEP * STEP;
        let plan = self.plan.first().copied();
        let (kept, again) = match plan {
            Some(Plan::Half) => (half, None),
            Some(Plan::Nothing) => (0, None),
            Some(Plan::Breaks(count)) => (half, Some((count, Plan::Breaks(count - 1)))),
            Some(Plan::Lost(count)) => (new.len(), Some((count, Plan::Lost(count - 1)))),
            None => (new.len(), None),
        };
        self.bytes.extend_from_slice(&new[..kept]);
        match again {
            Some((2.., next)) => self.plan[0] = next,
            _ if plan.is_some() => drop(self.plan.remove(0)),
            _ => {}
        }
        again.map(|_| respond(503, &[], ""))
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn start(plan: &[Plan]) -> (Endpoint, Arc<Mutex<Session>>, Value) {
    let session = Arc::new(Mutex::new(Session {
        plan: plan.to_vec(),
        ..Session::default()
    }));
    let own = Arc::clone(&session);
    let endpoint = Endpoint::start(move |request| own.lock().unwrap().answer(request));
    let token = json!({ "type": "access_token", "access_token": "t" });
    let storage = json!({ "storage_type": "google", "bucket_name": "b", "host": "127.0.0.1",
        "port": endpoint.port, "is_secure": false, "credentials": token });
    (endpoint, session, storage)
}

fn body() -> Vec<u8> {
    (0..u32::try_from(SIZE).unwrap())
        .map(|n| n.to_le_bytes()[1])
        .collect()
}

#[test]
fn google_a_session_goes_on_where_it_broke_off() {
    let body = body();
    // Six attempts are one request of ours.
    for (plan, asked) in [
        (&[][..], 0),
        (&[Plan::Half, Plan::Half, Plan::Nothing], 0),
        (&[Plan::Breaks(6)], 1),
        (&[Plan::Lost(6)], 1),
    ] {
        let (_endpoint, session, storage) = start(plan);
        let store = open(storage, Missing::Refuse);
        let none = Metadata::new();
        store
            .put("p/x", Body::Bytes(&body), &none, Put::Create)
            .unwrap();
        let kept = session.lock().unwrap();
        assert!(kept.done && kept.bytes == body, "{}", kept.bytes.len());
        assert_eq!((kept.asked_state, kept.plan.len()), (asked, 0));
    }
    // One that grows, with its last part broken.
    let (_endpoint, session, storage) = start(&[Plan::Half]);
    let store = open(storage, Missing::Refuse);
    let (upload, written) = grow(&*store, "p/x", &body);
    session.lock().unwrap().plan = vec![Plan::Lost(6)];
    upload.finish(written, &Metadata::new()).unwrap();
    let kept = session.lock().unwrap();
    assert!(kept.done && kept.bytes == body, "{}", kept.bytes.len());
}

#[test]
fn google_a_session_that_keeps_nothing_ends() {
    let (_endpoint, session, storage) = start(&[Plan::Nothing; 100]);
    let store = open(storage, Missing::Refuse);
    let none = Metadata::new();
    let put = store.put("p/x", Body::Bytes(&body()), &none, Put::Create);
    let failure = put.unwrap_err();
    assert_eq!(failure.class, Class::Network, "{failure}");
    assert!(!session.lock().unwrap().done);
}
