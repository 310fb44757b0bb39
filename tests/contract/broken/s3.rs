//! S3: a real server, and one that compares everything.

use super::*;
use crate::support::stores::s3::Bucket;
use crate::support::stores::seaweed::seaweed;
use crate::support::stores::strict::Strict;

fn kind(bucket: &Bucket) -> Kind {
    Kind {
        storage: bucket.object_storage(),
        through: host_and_port,
        port: bucket.port,
        // Of AWS.
        expired: Answer::s3(400, "ExpiredToken"),
        renews: false,
        compares: false,
        appends: false,
        notes_large: false,
        notes_small: false,
        has_words: false,
        leaves_out: &[],
    }
}

#[test]
fn s18_s19_s3_every_fault_at_every_request() {
    let Some(seaweed) = seaweed() else { return };
    every_fault_at_every_request(&kind(&seaweed.bucket()));
}

/// Who lists by few, and has checksums of what is not in parts.
#[test]
fn s18_s19_s3_strict_every_fault_at_every_request() {
    let strict = Strict::start();
    strict.page(3);
    let kind = Kind {
        compares: true,
        notes_small: true,
        ..kind(&strict.bucket())
    };
    every_fault_at_every_request(&kind);
    assert_eq!(strict.unfinished(), 0);
}

/// What is to be replaced has the size and the metadata of what replaces it, and is damaged: it is
/// not to be taken for a success whose answer was lost.
#[test]
fn s18_a_replacement_that_was_refused_is_no_success() {
    let Some(seaweed) = seaweed() else { return };
    let bucket = seaweed.bucket();
    let proxy = Proxy::to(bucket.port);
    let store = open(&host_and_port(&bucket.object_storage(), proxy.port));
    let labels = crate::metadata(&[("hash", "of the good one")]);
    let damaged = vec![0; 9 << 20];
    let good = vec![1; 9 << 20];
    let put = |body: &[u8], mode| store.put("p/x", Body::Bytes(body), &labels, mode);
    put(&damaged, Put::Create).unwrap();
    let refused = Fault::Answer(Answer::s3(403, "AccessDenied"));
    proxy.plan(Pick::line("^POST .*uploadId="), refused);
    assert_eq!(put(&good, Put::Replace).unwrap_err().class, Class::Denied);
    assert!(crate::read(store.as_ref(), "p/x") == damaged);
    put(&good, Put::Replace).unwrap();
    assert!(crate::read(store.as_ref(), "p/x") == good);
}
