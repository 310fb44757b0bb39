//! Faults that do not pass: told with their class, in bounded time.

use std::time::Instant;

use pghoard::Failure;

use super::*;
use crate::support::stores::azure::azurite;
use crate::support::stores::google::Google;
use crate::support::stores::seaweed::seaweed;
use crate::support::stores::swift::swift;

/// Of every call, whatever else it could make of it.
const LASTING: &[(&str, Class)] = &[
    ("reset", Class::Network),
    ("silence", Class::Timeout),
    ("500", Class::Network),
    ("503", Class::Quota),
    ("403", Class::Denied),
    ("401", Class::Auth),
    ("closed", Class::Network),
];

type Ask = fn(&dyn Store) -> Result<(), Failure>;

const ASKS: &[(&str, Ask)] = &[
    ("put", |store| {
        store.put("p/x", Body::Bytes(b"x"), &Metadata::new(), Put::Create)
    }),
    ("look", |store| store.look("p/x").map(drop)),
    ("get", |store| store.get("p/x").map(drop)),
    ("list", |store| store.list("p", &mut |_| Ok(()))),
    ("delete", |store| store.delete("p/x")),
    ("begin", |store| {
        store.begin("p/x", &Metadata::new()).map(drop)
    }),
];

fn told(storage: &Value, port: u16, through: fn(&Value, u16) -> Value) {
    thread::scope(|scope| {
        for (fault, class) in LASTING {
            for (name, ask) in ASKS {
                scope.spawn(move || {
                    let proxy = Proxy::to(port);
                    let store = open(&through(storage, proxy.port));
                    store.look("p/x").unwrap();
                    lasts(&proxy, fault);
                    let began = Instant::now();
                    let failure = ask(&*store).unwrap_err();
                    assert_eq!(failure.class, *class, "{name}, {fault}: {failure}");
                    let seconds = began.elapsed().as_secs();
                    assert!(seconds < 90, "{name}, {fault}: {seconds} s");
                });
            }
        }
    });
    let there = open(storage).look("p/x").unwrap();
    assert_eq!(there, None, "what failed is not there");
}

fn lasts(proxy: &Proxy, fault: &str) {
    let fault = match fault {
        "reset" => Fault::ResetBefore,
        "silence" => Fault::Stall,
        "503" => Fault::Answer(Answer::status(503).header("Retry-After", "1")),
        "closed" => return proxy.down(),
        status => Fault::Answer(Answer::status(status.parse().unwrap())),
    };
    proxy.plan_times(Pick::line("."), usize::MAX, fault);
}

#[test]
fn s19_s3_what_lasts_is_told_with_its_class() {
    let Some(seaweed) = seaweed() else { return };
    let bucket = seaweed.bucket();
    told(&bucket.object_storage(), bucket.port, host_and_port);
}

#[test]
fn s19_azure_what_lasts_is_told_with_its_class() {
    let Some(azurite) = azurite() else { return };
    let container = azurite.container();
    told(&container.object_storage(), container.port, host_and_port);
}

#[test]
fn s19_google_what_lasts_is_told_with_its_class() {
    let Some(google) = Google::fake_gcs() else {
        return;
    };
    told(&google.object_storage(), google.proxy.port, host_and_port);
}

#[test]
fn s19_swift_what_lasts_is_told_with_its_class() {
    let Some(swift) = swift() else { return };
    let storage = swift.object_storage(&swift.container());
    told(&storage, swift.port, |storage, port| {
        let url = format!("http://127.0.0.1:{port}/auth/v1.0");
        crate::s3::with(storage.clone(), json!({ "auth_url": url }))
    });
}
