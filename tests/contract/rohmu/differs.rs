//! The stores, and what is another in each.

use std::process::Command;

use serde_json::{Value, json};

use super::{Pair, Whose, both_ways, known, labels, their_labels};
use crate::metadata;
use crate::s3::with;
use crate::support::process::hand_over;
use crate::support::stores::azure::azurite;
use crate::support::stores::google::Google;
use crate::support::stores::seaweed::seaweed;
use crate::support::stores::sshd::Sshd;
use crate::support::stores::swift::{swift, swift_by_keystone};
use pghoard::store::{Body, Put};

#[test]
fn s3_objects_of_pghoards_drivers_and_ours_are_one() {
    let Some(seaweed) = seaweed() else { return };
    both_ways(&seaweed.bucket().object_storage());
    let storage = seaweed.bucket().object_storage();
    odd_labels(&storage, &[Refused, Refused], true);
}

#[test]
fn azure_objects_of_pghoards_drivers_and_ours_are_one() {
    let Some(azurite) = azurite() else { return };
    both_ways(&azurite.container().object_storage());
    odd_labels(
        &azurite.container().object_storage(),
        &[Refused, Refused],
        true,
    );
}

#[test]
fn google_objects_of_pghoards_drivers_and_ours_are_one() {
    let Some(google) = Google::fake_gcs() else {
        return;
    };
    both_ways(&google.object_storage());
    odd_labels(&google.object_storage(), &[Kept, Kept], false);
}

#[test]
fn swift_objects_of_pghoards_drivers_and_ours_are_one() {
    let Some(swift) = swift() else { return };
    both_ways(&swift.object_storage(&swift.container()));
    odd_labels(
        &swift.object_storage(&swift.container()),
        &[Kept, Kept],
        true,
    );
}

#[test]
fn swift_objects_behind_keystone_are_one() {
    let Some(swift) = swift_by_keystone() else {
        return;
    };
    both_ways(&swift.object_storage(&swift.container()));
}

#[test]
fn sftp_objects_of_pghoards_drivers_and_ours_are_one() {
    let Some(sshd) = Sshd::start() else { return };
    let storage = by_rsa(&sshd);
    both_ways(&storage);
    odd_labels(&storage, &[Kept, Kept], false);
}

/// The one kind of key that rohmu reads.
fn by_rsa(sshd: &Sshd) -> Value {
    let key = sshd.folder.parent().unwrap().join("rsa");
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f"]);
    assert!(keygen.arg(&key).status().unwrap().success());
    sshd.authorize(&key.with_extension("pub"));
    hand_over(&key);
    with(sshd.object_storage(), json!({ "private_key": key }))
}

/// What becomes of a value that is not ASCII.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Their library refuses it.
    Refused,
    Kept,
}

use Fate::{Kept, Refused};

/// Names in capitals, and values beyond ASCII as far as each can; in headers or not.
fn odd_labels(storage: &Value, fates: &[Fate; 2], header: bool) {
    let odd = "h\u{f4}t \u{20ac}";
    for (whose, fate) in [Whose::Rohmu, Whose::Pghoard].into_iter().zip(fates) {
        let Some(pair) = Pair::of(whose, storage) else {
            continue;
        };
        let mixed = with(their_labels(), json!({ "Mixed-Case": "Yes" }));
        pair.theirs(&[pair.step_put(0, "s/m", b"12345", &mixed)]);
        let found = pair.ours.look("s/m").unwrap().unwrap().metadata;
        let name = if header { "mixed-case" } else { "Mixed-Case" };
        assert_eq!(found[name], "Yes", "{whose:?}");
        pair.ours.delete("s/m").unwrap();

        let asked = with(their_labels(), json!({ "host": odd, "Content-Length": 5 }));
        let file = pair.file("odd", b"12345");
        let answer = pair.they(&json!([
            { "step": "put", "key": "s/a", "file": file, "metadata": asked, "multipart": null },
        ]));
        let found = pair.ours.look("s/a").unwrap();
        let host = found.map(|found| found.metadata["host"].clone());
        match fate {
            Kept => assert_eq!(host.as_deref(), Some(odd), "{whose:?}"),
            Refused => {
                assert!(answer[0].get("error").is_some(), "{whose:?}: {answer:?}");
                assert_eq!(host, None, "{whose:?}");
            }
        }

        let ours = metadata(&[("host", odd)]);
        let put = pair.ours.put("s/b", Body::Bytes(b"x"), &ours, Put::Create);
        put.unwrap();
        let seen = pair.theirs(&[json!({ "step": "metadata", "key": "s/b" })]);
        let seen = known(&labels(&seen[0]["metadata"]));
        let expected = if header {
            "=?UTF-8?B?aMO0dCDigqw=?="
        } else {
            odd
        };
        assert_eq!(seen["host"], expected, "{whose:?}");
        pair.ours.delete("s/a").unwrap();
        pair.ours.delete("s/b").unwrap();
    }
}
