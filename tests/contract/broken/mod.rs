//! Real servers behind the fault proxy: each call that a backup or a restore makes of a store, with
//! each fault at each of the requests it takes.
//!
//! A call either succeeds, and then it is so, or fails with the class of the fault; repeated it
//! succeeds. What is in the store is there once and whole, looked at past the proxy.

mod calls;
mod clouds;
mod lasting;
mod s3;
mod sftp;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use machine::Class;
use pghoard::config::Storage;
use pghoard::store::choose::{self, Missing};
use pghoard::store::{Body, Metadata, Put, Store};
use serde_json::{Value, json};

use self::calls::{CALLS, Call, Trial};
use crate::support::faults::{Answer, Fault, Pick, Proxy};
use crate::support::scale;

/// Long for a server that answers, short for one that does not.
const SILENCE: Duration = Duration::from_secs(4);
const WORKERS: usize = 8;

/// What is special in a kind of store.
struct Kind {
    /// Past the proxy.
    storage: Value,
    /// The same through a proxy: what has to be told of its port.
    through: fn(&Value, u16) -> Value,
    port: u16,
    /// How it says that a login ran out.
    expired: Answer,
    /// Such a login is replaced.
    renews: bool,
    /// It compares what it gets with what was announced.
    compares: bool,
    /// A part that comes twice is there twice: which our sums then say.
    appends: bool,
    /// It notes what parts add up to, or what a small object does.
    notes_large: bool,
    notes_small: bool,
    /// Reading is two requests: for words about the object, whose sum nobody notes, and its bytes.
    has_words: bool,
    leaves_out: &'static [&'static str],
}

fn host_and_port(storage: &Value, port: u16) -> Value {
    super::s3::with(storage.clone(), json!({ "port": port }))
}

/// With little patience for silence.
fn open(storage: &Value) -> Box<dyn Store> {
    let site = json!({ "object_storage": storage });
    let config = json!({ "backup_sites": { "a": site } });
    let (config, _) = pghoard::config::parse(&config).unwrap();
    let mut storage = config.sites["a"].storage().unwrap().clone();
    let net = match &mut storage {
        Storage::S3(config) => Some(&mut config.net),
        Storage::Google(config) => Some(&mut config.net),
        Storage::Azure(config) => Some(&mut config.net),
        Storage::Swift(config) => Some(&mut config.net),
        Storage::Sftp(config) => {
            config.silence = 2 * SILENCE;
            None
        }
        Storage::Local { .. } => None,
    };
    if let Some(net) = net {
        net.read_timeout = SILENCE;
        net.bytes_per_second_min = 1 << 20;
    }
    choose::store(&storage, Missing::Refuse).unwrap()
}

/// What may come of a fault. What is wrong for a moment only must not be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Passes,
    /// The server has done it, so a repetition meets what it made itself.
    PassesOrConflict,
    Fails(Class),
    /// Whatever was changed on its way: success if it did not matter, else any error.
    Told,
}

fn faults(kind: &Kind) -> Vec<(Fault, End)> {
    let refused = Answer::s3(403, "AccessDenied");
    let renewed = match kind.renews {
        true => End::Passes,
        false => End::Fails(Class::Auth),
    };
    let busy = Answer::status(503).header("Retry-After", "1");
    let mut all = vec![
        (Fault::Refused(Duration::from_millis(150)), End::Passes),
        (Fault::ResetBefore, End::Passes),
        (Fault::ResetInRequest, End::Passes),
        (Fault::ResetAfterRequest, End::PassesOrConflict),
        (Fault::ResetInResponse, End::PassesOrConflict),
        (Fault::EndsInResponse, End::PassesOrConflict),
        (Fault::Stall, End::Passes),
        (Fault::StallInResponse, End::PassesOrConflict),
        (Fault::Answer(Answer::status(500)), End::Passes),
        (Fault::Answer(busy), End::Passes),
        (Fault::Answer(refused.clone()), End::Fails(Class::Denied)),
        (Fault::Answer(kind.expired.clone()), renewed),
        (Fault::DoneBut(Answer::status(500)), End::PassesOrConflict),
        (Fault::DoneBut(refused), End::Fails(Class::Denied)),
        (Fault::Truncated, End::Told),
        (Fault::Lengthened, End::Told),
        (Fault::FlippedResponse, End::Told),
    ];
    if kind.compares {
        all.push((Fault::FlippedRequest, End::Told));
    }
    all
}

/// One call with one fault at one of its requests.
struct Job {
    call: &'static Call,
    request: usize,
    fault: Fault,
    end: End,
}

fn every_fault_at_every_request(kind: &Kind) {
    let plain = open(&kind.storage);
    calls::stock(&*plain);
    let counted = Trial::of(kind, "counted");
    let mut jobs = VecDeque::new();
    for call in CALLS
        .iter()
        .filter(|call| !kind.leaves_out.contains(&call.name))
    {
        let requests = counted.requests(call);
        for request in 0..requests {
            for (number, (fault, end)) in faults(kind).into_iter().enumerate() {
                // Each request meets some of the faults, and each fault some of the requests.
                let step = scale().pick(if call.is_large() { 9 } else { 4 }, 1);
                if (number + request) % step == 0 {
                    jobs.push_back(Job {
                        call,
                        request,
                        fault,
                        end,
                    });
                }
            }
        }
    }
    let total = jobs.len();
    assert!(total > 60, "{total} faults");
    let jobs = Mutex::new(jobs);
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let jobs = &jobs;
            scope.spawn(move || {
                let trial = Trial::of(kind, &format!("w{worker}"));
                loop {
                    let Some(job) = jobs.lock().unwrap().pop_front() else {
                        return;
                    };
                    trial.run(&job, kind);
                }
            });
        }
    });
    calls::stock_is_whole(&*plain);
}
