//! SFTP, on OpenSSH's server.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use machine::Class;
use pghoard::store::choose::Missing;
use pghoard::store::{Body, Metadata, Put, Store};
use serde_json::{Value, json};

use super::s3::{open, with};
use super::{contract, list_all, metadata, read};
use crate::support::faults::tcp::{TcpFault, TcpProxy, Way};
use crate::support::stores::sshd::Sshd;
use crate::support::{PATIENCE, wait_until};

fn store(sshd: &Sshd) -> Box<dyn Store> {
    open(sshd.object_storage(), Missing::Create)
}

/// Through something that stands in between, whose key nobody can know.
fn through(sshd: &Sshd, proxy: &TcpProxy) -> Box<dyn Store> {
    let more = json!({ "port": proxy.port, "is_verify_host_key": false });
    open(with(sshd.object_storage(), more), Missing::Create)
}

#[test]
fn sftp() {
    let Some(sshd) = Sshd::start() else { return };
    let prefix = sshd.folder.join("deep/down");
    let storage = with(sshd.object_storage(), json!({ "prefix": prefix }));
    let store = open(storage, Missing::Create);
    contract(&*store);
    assert_eq!(store.sweep("grow", i64::MAX).unwrap(), 0);
    assert!(
        fs::read_dir(&prefix).unwrap().count() > 0,
        "an absolute prefix"
    );
    fs::rename(&prefix, sshd.folder.join("elsewhere")).unwrap();
    assert_eq!(store.look("p/x").unwrap_err().class, Class::Config);
    let lost = store.put("p/x", Body::Bytes(b"x"), &Metadata::new(), Put::Create);
    assert_eq!(lost.unwrap_err().class, Class::Config);
}

/// In rohmu's layout, both ways.
#[test]
fn sftp_files_are_rohmus() {
    let Some(sshd) = Sshd::start() else { return };
    let store = store(&sshd);
    let labels = metadata(&[("host", "\u{e9}"), ("start-time", "x")]);
    let put = store.put("s/xlog/x", Body::Bytes(b"12345"), &labels, Put::Create);
    put.unwrap();
    let folder = sshd.folder.join("s/xlog");
    assert_eq!(fs::read(folder.join("x")).unwrap(), b"12345");
    let sidecar = fs::read(folder.join("x.metadata")).unwrap();
    let sidecar: Value = serde_json::from_slice(&sidecar).unwrap();
    assert_eq!(sidecar["Content-Length"], "5");
    assert_eq!(sidecar["host"], "\u{e9}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "no drafts");

    fs::write(folder.join("y"), b"theirs").unwrap();
    assert_eq!(list_all(&*store, "s"), ["s/xlog/x"]);
    let theirs = r#"{"pg-version": "150018", "Content-Length": "6", "hash-algorithm": "sha1"}"#;
    fs::write(folder.join("y.metadata"), theirs).unwrap();
    assert_eq!(list_all(&*store, "s"), ["s/xlog/x", "s/xlog/y"]);
    assert_eq!(read(&*store, "s/xlog/y"), b"theirs");
    let found = store.look("s/xlog/y").unwrap().unwrap();
    assert_eq!(found.metadata["pg-version"], "150018");
    fs::write(folder.join("y"), b"cut").unwrap();
    assert_eq!(store.look("s/xlog/y").unwrap_err().class, Class::Corrupt);
    fs::remove_file(folder.join("y")).unwrap();
    assert_eq!(store.look("s/xlog/y").unwrap_err().class, Class::Corrupt);
    store.delete("s/xlog/y").unwrap();
    assert_eq!(store.look("s/xlog/y").unwrap(), None);
}

#[test]
fn sftp_servers_that_nobody_vouched_for_are_refused() {
    let Some(sshd) = Sshd::start() else { return };
    let ask = |more: Value| {
        let store = open(with(sshd.object_storage(), more), Missing::Create);
        store.look("p/x").map(drop)
    };
    ask(json!({})).unwrap();
    let refused = |more: Value, text: &str| {
        let failure = ask(more).unwrap_err();
        assert_eq!(failure.class, Class::Auth, "{failure}");
        assert!(failure.message.contains(text), "{failure}");
        assert!(failure.message.contains("SHA256:"), "{failure}");
    };
    refused(json!({ "server": "localhost" }), "is not known");
    let known = fs::read_to_string(&sshd.known_hosts).unwrap();
    let public = fs::read_to_string(sshd.private_key.with_extension("pub")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        json!({ "known_hosts": path })
    };
    let host = known.split(' ').next().unwrap();
    refused(file("other", &format!("{host} {public}")), "is another");
    refused(file("empty", ""), "is not known");
    refused(
        file(
            "revoked",
            &format!("{known}@revoked * {}", &known[host.len()..]),
        ),
        "not known",
    );
    let absent = ask(json!({ "known_hosts": folder.path().join("absent") }));
    assert_eq!(absent.unwrap_err().class, Class::Config);
    ask(json!({ "server": "localhost", "is_verify_host_key": false })).unwrap();
}

#[test]
fn sftp_keys_of_every_format_log_in() {
    let Some(sshd) = Sshd::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let ask = |more: Value| {
        let store = open(with(sshd.object_storage(), more), Missing::Create);
        store.look("p/x").map(drop)
    };
    for (name, words) in [
        ("rsa", &["-t", "rsa", "-b", "2048"][..]),
        ("pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
        ("pkcs8", &["-t", "rsa", "-b", "2048", "-m", "PKCS8"]),
        ("ecdsa", &["-t", "ecdsa"]),
    ] {
        let key = folder.path().join(name);
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-N", "", "-f"]).arg(&key).args(words);
        assert!(keygen.status().unwrap().success());
        let stranger = ask(json!({ "private_key": key })).unwrap_err();
        assert_eq!(stranger.class, Class::Auth, "{stranger}");
        sshd.authorize(&key.with_extension("pub"));
        ask(json!({ "private_key": key })).unwrap();
    }
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-p", "-P", "", "-N", "hush", "-f"]);
    assert!(
        keygen
            .arg(folder.path().join("rsa"))
            .status()
            .unwrap()
            .success()
    );
    let key = folder.path().join("rsa");
    let closed = ask(json!({ "private_key": key })).unwrap_err();
    assert_eq!(closed.class, Class::Config, "{closed}");
    ask(json!({ "private_key": key, "private_key_passphrase": "hush" })).unwrap();
}

#[test]
fn sftp_what_a_crash_left_gives_way_and_what_is_being_written_does_not() {
    let Some(sshd) = Sshd::start() else { return };
    let store = store(&sshd);
    let put =
        |key: &str, body: &[u8]| store.put(key, Body::Bytes(body), &Metadata::new(), Put::Create);
    put("s/a", b"first").unwrap();
    let path = |name: &str| sshd.folder.join("s").join(name);
    let old = SystemTime::now() - Duration::from_secs(3_600);
    let half = fs::File::create(path("b")).unwrap();
    half.set_modified(old).unwrap();
    assert_eq!(store.look("s/b").unwrap(), None);
    put("s/b", b"whole").unwrap();
    assert_eq!(read(&*store, "s/b"), b"whole");

    fs::write(path("c"), b"theirs").unwrap();
    let (sidecar, done) = (path("c.metadata"), path("c.done"));
    let other = thread::spawn(move || {
        wait_until("our put to begin", PATIENCE, || {
            let names = fs::read_dir(done.parent().unwrap()).unwrap().flatten();
            let mut names = names.map(|entry| entry.file_name().into_string().unwrap());
            names.any(|name| name.starts_with(".draft-"))
        });
        fs::write(&done, r#"{"Content-Length": "6"}"#).unwrap();
        fs::rename(done, sidecar).unwrap();
    });
    assert_eq!(put("s/c", b"ours").unwrap_err().class, Class::Conflict);
    other.join().unwrap();
    assert_eq!(read(&*store, "s/c"), b"theirs");

    let draft = fs::File::create(path(".draft-0123456789abcdef.tmp")).unwrap();
    draft.set_modified(old).unwrap();
    assert_eq!(list_all(&*store, "s"), ["s/a", "s/b", "s/c"]);
    let ago = |seconds: u64| {
        let time = SystemTime::now() - Duration::from_secs(seconds);
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        i64::try_from(since.as_millis()).unwrap()
    };
    assert_eq!(store.sweep("s", ago(7_200)).unwrap(), 0);
    assert_eq!(store.sweep("s", ago(60)).unwrap(), 1);
    assert_eq!(store.sweep("s", ago(60)).unwrap(), 0);
}

#[test]
fn sftp_a_connection_that_breaks_is_made_anew() {
    let Some(sshd) = Sshd::start() else { return };
    let body: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let plain = store(&sshd);
    plain
        .put("s/big", Body::Bytes(&body), &Metadata::new(), Put::Create)
        .unwrap();

    // While it is read, and before and while it is written.
    for fault in [
        TcpFault::Reset(Way::ToClient, 2_000_000),
        TcpFault::Flip(Way::ToClient, 2_000_000),
        TcpFault::Refused(Duration::from_millis(500)),
    ] {
        let proxy = TcpProxy::to(sshd.port);
        proxy.plan(0, fault);
        let store = through(&sshd, &proxy);
        assert!(read(&*store, "s/big") == body, "{fault:?}");
        assert!(proxy.passed().len() > 1, "{fault:?}");
    }
    for fault in [
        TcpFault::Reset(Way::ToServer, 2_000_000),
        TcpFault::Flip(Way::ToServer, 2_000_000),
    ] {
        let proxy = TcpProxy::to(sshd.port);
        proxy.plan(0, fault);
        let store = through(&sshd, &proxy);
        let labels = metadata(&[("start-time", "x")]);
        store
            .put("s/up", Body::Bytes(&body), &labels, Put::Create)
            .unwrap();
        assert!(read(&*plain, "s/up") == body, "{fault:?}");
        plain.delete("s/up").unwrap();
    }
    assert_eq!(list_all(&*plain, "s"), ["s/big"]);
}
