//! The servers themselves, asked by curl: each starts, keeps what it is given and refuses a wrong
//! password. When one of these fails, look at the machine, not at the product.

use crate::support::stores::s3::{Bucket, Keys};
use crate::support::stores::seaweed::{Seaweed, seaweed};

#[test]
fn seaweed_speaks_s3() {
    let Some(seaweed) = seaweed() else { return };
    let bucket = seaweed.bucket();
    s3(&bucket);
    s3(&seaweed.secure(&bucket));
    let reader = Seaweed::reader(&bucket);
    assert_eq!(reader.ask("GET", "kept", "", &[]).text(), "content");
    assert_eq!(reader.ask("PUT", "other", "x", &[]).status, 403);
    let mut distrustful = seaweed.secure(&bucket);
    distrustful.authority = Some("/etc/ssl/certs/ca-certificates.crt".into());
    assert_eq!(distrustful.ask("GET", "kept", "", &[]).status, 0);
}

fn s3(bucket: &Bucket) {
    let put = bucket.ask("PUT", "kept", "content", &[]);
    assert_eq!(put.status, 200, "{}", put.text());
    let got = bucket.ask("GET", "kept", "", &[]);
    assert_eq!((got.status, got.text().as_str()), (200, "content"));
    assert_eq!(bucket.ask("GET", "absent", "", &[]).status, 404);
    let keys = Keys {
        secret: "wrong",
        ..bucket.keys
    };
    let stranger = Bucket {
        name: bucket.name.clone(),
        authority: bucket.authority.clone(),
        keys,
        ..*bucket
    };
    assert_eq!(stranger.ask("GET", "kept", "", &[]).status, 403);
}
