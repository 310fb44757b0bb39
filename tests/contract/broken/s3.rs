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
