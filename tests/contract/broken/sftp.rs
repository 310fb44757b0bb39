//! SFTP: each call with its connection cut, silent or damaged at every place of it.

use super::*;
use crate::support::faults::tcp::{Passed, TcpFault, TcpProxy, Way};
use crate::support::stores::sshd::Sshd;
use crate::{list_all, read};

const BYTES: usize = 3_000_000;

fn body() -> &'static [u8] {
    calls::body(BYTES)
}

fn through(sshd: &Sshd, proxy: &TcpProxy) -> Box<dyn Store> {
    let more = json!({ "port": proxy.port, "is_verify_host_key": false });
    open(&crate::s3::with(sshd.object_storage(), more))
}

type Ask = fn(&dyn Store, &str) -> Result<(), pghoard::Failure>;

const ASKS: &[(&str, Ask)] = &[
    ("put", |store, key| {
        let labels = crate::metadata(&[("start-time", "x")]);
        store.put(key, Body::Bytes(body()), &labels, Put::Create)
    }),
    ("get", |store, _| {
        let (_, mut stream) = store.get("stock/large")?;
        let mut got = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut got)
            .map_err(|e| pghoard::Failure::from_io(&e, "stock/large"))?;
        assert!(got == body(), "wrong bytes are no success");
        Ok(())
    }),
    ("list", |store, _| {
        let mut keys = Vec::new();
        let visited = store.list("stock/list", &mut |entry| {
            keys.push(entry.key);
            Ok(())
        });
        visited?;
        assert_eq!(keys, listed());
        Ok(())
    }),
    ("look", |store, _| {
        assert!(store.look("stock/large")?.is_some());
        assert!(store.look("stock/absent")?.is_none());
        Ok(())
    }),
    ("delete", |store, _| store.delete("stock/absent")),
];

fn listed() -> Vec<String> {
    (0..60).map(|n| format!("stock/list/{n:02}")).collect()
}

/// Beginning, greeting, keys, login and all that follows.
fn places(bytes: u64) -> Vec<u64> {
    let parts = scale().pick(4, 16);
    let mut places: Vec<u64> = (0..parts).map(|n| bytes * n / parts).collect();
    places.extend([10, bytes.saturating_sub(10)]);
    places
}

/// What a whole call has on its connection.
fn passed(sshd: &Sshd, ask: Ask, plain: &dyn Store) -> Passed {
    let proxy = TcpProxy::to(sshd.port);
    ask(&*through(sshd, &proxy), "w/counted").unwrap();
    plain.delete("w/counted").unwrap();
    proxy.passed()[0]
}

#[test]
fn s18_s19_sftp_every_fault_at_every_place_of_a_connection() {
    let Some(sshd) = Sshd::start() else { return };
    let plain = open(&sshd.object_storage());
    let put = |key: &str, body: &[u8]| {
        let put = plain.put(key, Body::Bytes(body), &Metadata::new(), Put::Create);
        put.unwrap();
    };
    put("stock/large", body());
    listed().iter().for_each(|key| put(key, b"x"));
    let mut jobs = VecDeque::new();
    for (name, ask) in ASKS {
        let whole = passed(&sshd, *ask, &*plain);
        jobs.push_back((*name, *ask, TcpFault::Refused(Duration::from_millis(300))));
        for (way, bytes) in [
            (Way::ToServer, whole.to_server),
            (Way::ToClient, whole.to_client),
        ] {
            for (number, place) in places(bytes).into_iter().enumerate() {
                jobs.push_back((*name, *ask, TcpFault::Reset(way, place)));
                jobs.push_back((*name, *ask, TcpFault::Flip(way, place)));
                // Each of these costs its silence.
                if number % scale().pick(3, 1) == 1 {
                    jobs.push_back((*name, *ask, TcpFault::Stall(way, place)));
                }
            }
        }
    }
    let jobs = Mutex::new(jobs);
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (jobs, sshd, plain) = (&jobs, &sshd, &*plain);
            scope.spawn(move || {
                let mut round = 0;
                loop {
                    let Some((name, ask, fault)) = jobs.lock().unwrap().pop_front() else {
                        return;
                    };
                    round += 1;
                    one(
                        sshd,
                        plain,
                        (name, ask, fault),
                        &format!("w/{worker}-{round}"),
                    );
                }
            });
        }
    });
    assert_eq!(list_all(&*plain, "w"), [""; 0]);
}

fn one(sshd: &Sshd, plain: &dyn Store, job: (&str, Ask, TcpFault), key: &str) {
    let (name, ask, fault) = job;
    let proxy = TcpProxy::to(sshd.port);
    proxy.plan(0, fault);
    let store = through(sshd, &proxy);
    let outcome = ask(&*store, key);
    let what = format!("{name}, {fault:?}: {outcome:?}");
    match (&outcome, name) {
        (Ok(()), _) => {}
        // What was changed before there were keys to see it by makes another greeting.
        (Err(failure), _) if matches!(fault, TcpFault::Flip(..)) => {
            assert_ne!(failure.class, Class::NotFound, "{what}");
        }
        // Between the renames of its files nobody but a repetition can know how far it came.
        (Err(failure), "put") => {
            let known = [Class::Conflict, Class::Network, Class::Timeout];
            assert!(known.contains(&failure.class), "{what}");
        }
        (Err(_), _) => panic!("{what}"),
    }
    if name == "put" {
        if outcome.is_err() {
            let again = ask(plain, key);
            let there = again.as_ref().is_err_and(|f| f.class == Class::Conflict);
            assert!(again.is_ok() || there, "{what}, then {again:?}");
        }
        assert!(read(plain, key) == body(), "{what}");
        let found = plain.look(key).unwrap().unwrap();
        assert_eq!(found.metadata["start-time"], "x", "{what}");
        plain.delete(key).unwrap();
    }
}
