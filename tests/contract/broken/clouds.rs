//! Azure, Google and Swift.

use super::*;
use crate::support::stores::azure::azurite;
use crate::support::stores::google::Google;
use crate::support::stores::swift::swift;

#[test]
fn s18_s19_azure_every_fault_at_every_request() {
    let Some(azurite) = azurite() else { return };
    let container = azurite.container();
    every_fault_at_every_request(&Kind {
        storage: container.object_storage(),
        through: host_and_port,
        port: container.port,
        expired: Answer::s3(403, "AuthenticationFailed"),
        // The key of the account has no end.
        renews: false,
        compares: false,
        appends: false,
        notes_large: false,
        notes_small: false,
        has_words: false,
        // Azure forgets by itself.
        leaves_out: &["sweep"],
    });
}

#[test]
fn s18_s19_google_every_fault_at_every_request() {
    let Some(google) = Google::fake_gcs() else {
        return;
    };
    every_fault_at_every_request(&Kind {
        storage: google.object_storage(),
        through: host_and_port,
        port: google.proxy.port,
        expired: Answer::status(401),
        renews: true,
        // Google does; the emulator takes what it gets, and a part twice.
        compares: false,
        appends: true,
        notes_large: true,
        notes_small: true,
        has_words: true,
        // Google forgets by itself.
        leaves_out: &["sweep"],
    });
}

#[test]
fn s18_s19_swift_every_fault_at_every_request() {
    let Some(swift) = swift() else { return };
    every_fault_at_every_request(&Kind {
        storage: swift.object_storage(&swift.container()),
        through: |storage, port| {
            let url = format!("http://127.0.0.1:{port}/auth/v1.0");
            crate::s3::with(storage.clone(), json!({ "auth_url": url }))
        },
        port: swift.port,
        expired: Answer::status(401),
        renews: true,
        compares: true,
        appends: false,
        notes_large: false,
        notes_small: true,
        has_words: false,
        leaves_out: &[],
    });
}
