//! Faults that do not pass: told with their class, in bounded time.

use std::time::Instant;

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

fn told(storage: &Value, port: u16, through: fn(&Value, u16) -> Value) {
    open(storage).look("p/x").unwrap();
    thread::scope(|scope| {
        for (name, class) in LASTING {
            scope.spawn(move || {
                let proxy = Proxy::to(port);
                let store = open(&through(storage, proxy.port));
                store.look("p/x").unwrap();
                let fault = match *name {
                    "reset" => Fault::ResetBefore,
                    "silence" => Fault::Stall,
                    "503" => Fault::Answer(Answer::status(503).header("Retry-After", "1")),
                    "closed" => {
                        proxy.down();
                        Fault::ResetBefore
                    }
                    status => Fault::Answer(Answer::status(status.parse().unwrap())),
                };
                proxy.plan_times(Pick::line("."), usize::MAX, fault);
                let began = Instant::now();
                let put = store.put("p/x", Body::Bytes(b"x"), &Metadata::new(), Put::Create);
                let told = [
                    ("put", put.unwrap_err()),
                    ("look", store.look("p/x").unwrap_err()),
                    ("get", store.get("p/x").err().unwrap()),
                    ("list", store.list("p", &mut |_| Ok(())).unwrap_err()),
                    ("delete", store.delete("p/x").unwrap_err()),
                    ("begin", store.begin("p/x", &Metadata::new()).err().unwrap()),
                ];
                for (call, failure) in told {
                    assert_eq!(failure.class, *class, "{name}, {call}: {failure}");
                    assert!(!failure.message.is_empty());
                }
                let seconds = began.elapsed().as_secs();
                assert!(seconds < 240, "{name}: {seconds} s");
            });
        }
    });
    let there = open(storage).look("p/x").unwrap();
    assert_eq!(there, None, "what failed is not there");
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
