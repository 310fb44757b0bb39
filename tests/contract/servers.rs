//! The servers themselves, asked by other clients than ours: each starts, keeps what it is given
//! and refuses a wrong password. When one of these fails, look at the machine, not at the product.

use crate::support::faults::{Fault, Pick, Proxy as Faulty};
use crate::support::stores::azure::azurite;
use crate::support::stores::ceph::ceph;
use crate::support::stores::google::Google;
use crate::support::stores::proxies::Proxy;
use crate::support::stores::s3::{Bucket, Keys};
use crate::support::stores::seaweed::{SFTP_PASSWORD, Seaweed, seaweed};
use crate::support::stores::sshd::{Sshd, keygen};
use crate::support::stores::strict::Strict;
use crate::support::stores::swift::{Swift, swift, swift_by_keystone};
use crate::support::stores::{Reply, curl};

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

#[test]
fn seaweed_speaks_sftp_to_whom_knows_the_password() {
    let Some(seaweed) = seaweed() else { return };
    let path = format!("/test-{:016x}/kept", fastrand::u64(..));
    let put = ["-T", "/etc/hostname", "--ftp-create-dirs"];
    assert_eq!(seaweed.sftp(SFTP_PASSWORD, &put, &path).exit, 0);
    let content = std::fs::read("/etc/hostname").unwrap();
    assert_eq!(seaweed.sftp(SFTP_PASSWORD, &[], &path).body, content);
    assert_eq!(seaweed.sftp("wrong", &[], &path).exit, 67);
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

#[test]
fn the_strict_server_speaks_s3() {
    let strict = Strict::start();
    let bucket = strict.bucket();
    s3(&bucket);
    let code = |reply: Reply, code: &str| {
        let text = reply.text();
        assert!(text.contains(&format!("<Code>{code}</Code>")), "{text}");
    };
    // Changed on the way, in a place that is signed.
    let faulty = Faulty::to(bucket.port);
    faulty.plan(Pick::Nth(0), Fault::FlippedRequest);
    let on_the_way = Bucket {
        port: faulty.port,
        ..bucket.clone()
    };
    let put = |bucket: &Bucket, key: &str, header: &str| bucket.ask("PUT", key, "x", &[header]);
    let plain = "Content-Type: text/plain";
    code(put(&on_the_way, "way", plain), "XAmzContentSHA256Mismatch");
    assert_eq!(put(&on_the_way, "way", plain).status, 200);

    code(put(&bucket, "sum", "Content-MD5: AAAA"), "BadDigest");
    code(
        put(&bucket, "sum", "x-amz-checksum-sha256: AAAA"),
        "BadDigest",
    );
    code(
        put(&bucket, "sum", "x-amz-checksum-crc32: AAAA"),
        "NotImplemented",
    );
    assert_eq!(put(&bucket, "once", "If-None-Match: *").status, 200);
    code(
        put(&bucket, "once", "If-None-Match: *"),
        "PreconditionFailed",
    );
    assert_eq!(put(&bucket, "meta", "x-amz-meta-a-b: C d").status, 200);
    assert!(
        bucket
            .ask("HEAD", "meta", "", &[])
            .text()
            .contains("x-amz-meta-a-b: C d")
    );
    assert_eq!(
        bucket.ask("GET", "kept", "", &["Range: bytes=1-3"]).text(),
        "ont"
    );
    assert_eq!(bucket.ask("DELETE", "once", "", &[]).status, 204);
    assert_eq!(bucket.ask("DELETE", "once", "", &[]).status, 204);
    assert_eq!(bucket.ask("HEAD", "once", "", &[]).status, 404);
    assert_eq!(
        strict
            .refused()
            .iter()
            .filter(|line| line.contains("BadDigest"))
            .count(),
        2
    );
    parts_and_pages(&strict, &bucket);
}

fn parts_and_pages(strict: &Strict, bucket: &Bucket) {
    let begun = bucket.ask("POST", "parted?uploads=", "", &[]).text();
    let id = begun
        .split("UploadId>")
        .nth(1)
        .unwrap()
        .trim_end_matches("</");
    let small = bucket.ask(
        "PUT",
        &format!("parted?partNumber=1&uploadId={id}"),
        "1",
        &[],
    );
    assert_eq!((small.status, strict.unfinished()), (200, 1));
    // MD5 of "1".
    let tag = "c4ca4238a0b923820dcc509a6f75849b";
    let complete = |tag: &str| {
        let part = format!("<Part><ETag>{tag}</ETag><PartNumber>1</PartNumber></Part>");
        let xml = format!("<CompleteMultipartUpload>{part}</CompleteMultipartUpload>");
        bucket.ask("POST", &format!("parted?uploadId={id}"), &xml, &[])
    };
    assert_eq!(complete("0").status, 400);
    assert_eq!(complete(tag).status, 200);
    assert_eq!(complete(tag).status, 404);
    assert_eq!(bucket.ask("GET", "parted", "", &[]).text(), "1");
    assert_eq!(strict.unfinished(), 0);

    strict.page(2);
    // In the order of signatures, which curl does not bring about.
    let list = |query: &str| bucket.ask("GET", query, "", &[]).text();
    let first = list("?list-type=2");
    assert!(
        first.contains("<Key>kept</Key>") && first.contains("<Key>meta</Key>"),
        "{first}"
    );
    assert!(first.contains("<IsTruncated>true</IsTruncated>"), "{first}");
    let second = list("?continuation-token=after%3Ameta&list-type=2");
    assert!(second.contains("<Key>parted</Key>") && !second.contains("<Key>meta</Key>"));
    assert!(list("?list-type=2&prefix=wa").contains("<Key>way</Key>"));
    let batch = "<Delete><Object><Key>kept</Key></Object><Object><Key>no</Key></Object></Delete>";
    assert_eq!(bucket.ask("POST", "?delete=", batch, &[]).status, 400);
    // MD5 of the batch.
    let md5 = "Content-MD5: 42fS9T8SC/Q/9Xw8E1M+qA==";
    assert_eq!(bucket.ask("POST", "?delete=", batch, &[md5]).status, 200);
    assert_eq!(bucket.ask("GET", "kept", "", &[]).status, 404);
}

#[test]
fn ceph_speaks_s3_and_swift() {
    let Some(ceph) = ceph() else { return };
    s3(&ceph.bucket());
    assert!(ceph.right_login().text().contains("X-Storage-Url"));
    assert_eq!(ceph.login("wrong").status, 401);
}

#[test]
fn swift_takes_its_own_users() {
    speaks_swift(swift());
}

#[test]
fn swift_takes_users_of_keystone() {
    speaks_swift(swift_by_keystone());
}

fn speaks_swift(swift: Option<&Swift>) {
    let Some(swift) = swift else { return };
    let object = format!("{}/a/kept", swift.container());
    let put = swift.ask(&["-X", "PUT", "-d", "content"], &object);
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!(swift.ask(&[], &object).text(), "content");
    assert_eq!(swift.login("wrong", "wrong"), None);
}

#[test]
fn azurite_speaks_azure() {
    let Some(azurite) = azurite() else { return };
    let container = azurite.container();
    let put = container.put("a/kept", "content");
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!(container.get("a/kept").text(), "content");
    assert_eq!(container.get("absent").status, 404);
    let stranger = container.ask("GET", "a/kept", "", "", "d3Jvbmc=");
    assert_eq!(stranger.status, 403);
}

#[test]
fn fake_gcs_server_speaks_google() {
    google(Google::fake_gcs());
}

#[test]
fn gcp_storage_emulator_speaks_google() {
    google(Google::gcp_storage());
}

fn google(google: Option<Google>) {
    let Some(google) = google else { return };
    let (bucket, token) = (&google.bucket, google.token());
    let upload = format!("/upload/storage/v1/b/{bucket}/o?uploadType=media&name=a%2Fkept");
    let put = google.ask(&token, &upload, &["--data-binary", "content"]);
    assert_eq!(put.status, 200, "{}", put.text());
    let object = format!("/storage/v1/b/{bucket}/o/a%2Fkept?alt=media");
    assert_eq!(google.ask(&token, &object, &[]).text(), "content");
    assert_eq!(google.ask("wrong", &object, &[]).status, 401);
    google.expire();
    assert_eq!(google.ask(&token, &object, &[]).status, 401);

    let credentials = &google.object_storage()["credentials"];
    let url = credentials["token_uri"].as_str().unwrap();
    let refused = curl(&["-d", "assertion=a.b.c", url]);
    assert_eq!((refused.status, refused.exit), (400, 0));
}

#[test]
fn sshd_speaks_sftp_to_whom_has_the_key() {
    let Some(sshd) = Sshd::start() else { return };
    let put = sshd.batch(&sshd.private_key, "put /etc/hostname kept\nls -l\n");
    assert!(
        put.as_ref().is_ok_and(|list| list.contains("kept")),
        "{put:?}"
    );
    assert!(sshd.folder.join("kept").exists());
    let scratch = crate::support::process::Scratch::new();
    let other = keygen(std::process::Command::new("ssh-keygen"), &scratch, "other");
    let refused = sshd.batch(&other, "ls\n").unwrap_err();
    assert!(refused.contains("Permission denied"), "{refused}");
}

#[test]
fn proxies_want_a_password() {
    for proxy in [Proxy::socks5(), Proxy::http()].into_iter().flatten() {
        let target = crate::support::http::Endpoint::start(|_| {
            crate::support::http::respond(200, &[], "reached")
        });
        let url = format!("http://127.0.0.1:{}/", target.port);
        // Through CONNECT, as for HTTPS, and as a plain request.
        for tunnel in [&["-p"][..], &[]] {
            let ask = |proxy: &str| curl(&[tunnel, &["-x", proxy, &url]].concat()).text();
            assert_eq!(ask(&proxy.right_url()), "reached");
            assert_ne!(ask(&proxy.url("wrong")), "reached");
        }
    }
}
