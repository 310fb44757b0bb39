//! The servers themselves, asked by other clients than ours: each starts, keeps what it is given
//! and refuses a wrong password. When one of these fails, look at the machine, not at the product.

use crate::support::stores::azure::azurite;
use crate::support::stores::curl;
use crate::support::stores::google::Google;
use crate::support::stores::proxies::Proxy;
use crate::support::stores::s3::{Bucket, Keys};
use crate::support::stores::seaweed::{Seaweed, seaweed};
use crate::support::stores::sshd::{Sshd, keygen};

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
