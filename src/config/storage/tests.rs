//! What storages mean, and what is said about wrong ones.

use serde_json::{Value, json};

use super::*;
use crate::config::{Warning, parse};

fn read(storage: Value) -> Outcome<(Storage, Vec<Warning>)> {
    let site = json!({ "object_storage": storage });
    let (mut config, warnings) = parse(&json!({ "backup_sites": { "a": site } }))?;
    let site = config.sites.remove("a").unwrap();
    Ok((site.object_storage.unwrap(), warnings))
}

fn with(mut base: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    base.as_object_mut().unwrap().extend(more);
    base
}

fn s3(more: Value) -> Value {
    let base = json!({ "storage_type": "s3", "region": "r", "bucket_name": "b" });
    with(base, more)
}

fn azure(more: Value) -> Value {
    let base = json!({ "storage_type": "azure", "account_name": "acc", "bucket_name": "b" });
    with(base, more)
}

fn swift(more: Value) -> Value {
    let base = json!({ "storage_type": "swift", "auth_url": "http://k:5000/v3/", "user": "u",
        "key": "hush", "container_name": "c" });
    with(base, more)
}

fn sftp(more: Value) -> Value {
    let base = json!({ "storage_type": "sftp", "server": "h", "username": "u" });
    with(base, more)
}

#[test]
fn each_type_has_pghoards_defaults_and_a_place() {
    for (storage, location) in [
        (s3(json!({})), "s3 aws/b"),
        (s3(json!({ "prefix": "/x/y/" })), "s3 aws/b/x/y"),
        (s3(json!({ "host": "h", "port": 9 })), "s3 h:9/b"),
        (s3(json!({ "host": "::1", "port": 9 })), "s3 [::1]:9/b"),
        (
            json!({ "storage_type": "google", "bucket_name": "b", "prefix": "p" }),
            "google b/p",
        ),
        (
            azure(json!({ "account_key": "hush" })),
            "azure acc.blob.core.windows.net/b",
        ),
        (
            azure(json!({ "azure_cloud": "china", "sas_token": "hush" })),
            "azure acc.blob.core.chinacloudapi.cn/b",
        ),
        (azure(json!({ "host": "h", "port": 9 })), "azure h:9/acc/b"),
        (swift(json!({})), "swift http://k:5000/v3 u/c"),
        (
            swift(json!({ "tenant_name": "t" })),
            "swift http://k:5000/v3 t/c",
        ),
        (sftp(json!({ "password": "hush" })), "sftp u@h:22"),
        (
            sftp(json!({ "private_key": "/nowhere", "port": 2222, "prefix": "x" })),
            "sftp u@h:2222/x",
        ),
    ] {
        let (found, warnings) = read(storage).unwrap();
        assert_eq!(found.location(), location);
        assert_eq!(warnings, [], "{location}");
    }
    let (Storage::S3(s3), _) = read(s3(json!({}))).unwrap() else {
        panic!()
    };
    assert!(s3.dualstack && s3.login.is_none() && s3.lock.is_none());
    assert_eq!(s3.net.tls, Authority::System);
    assert_eq!(s3.encryption, Encryption::Default);
}

#[test]
fn the_bucket_is_in_the_hosts_name_where_it_can_be() {
    let bucket = |name: &str, more: Value| {
        let (found, _) = read(with(s3(more), json!({ "bucket_name": name }))).unwrap();
        match found {
            Storage::S3(s3) => s3.addressing,
            _ => panic!(),
        }
    };
    let there = |host: &str, style: &str| {
        let more = json!({ "host": host, "port": 80, "addressing_style": style });
        bucket("b", more)
    };
    assert_eq!(bucket("b", json!({})), Addressing::Virtual);
    assert_eq!(bucket("b.c", json!({})), Addressing::Path);
    assert_eq!(there("s3.example.com", "path"), Addressing::Path);
    assert_eq!(there("s3.example.com", "auto"), Addressing::Virtual);
    assert_eq!(there("127.0.0.1", "auto"), Addressing::Path);
    assert_eq!(there("127.0.0.1", "virtual"), Addressing::Virtual);
}

/// PGHoard's storages take them all; here they do nothing, and nobody is told to correct them.
#[test]
fn what_has_no_effect_is_taken_in_silence() {
    let idle = json!({ "statsd_info": { "host": "h", "port": 1 }, "notifier": null });
    for storage in [
        json!({ "storage_type": "local", "directory": "/x" }),
        s3(json!({})),
        json!({ "storage_type": "google", "bucket_name": "b" }),
        azure(json!({ "account_key": "k" })),
        swift(json!({})),
        sftp(json!({ "password": "p" })),
    ] {
        let (plain, _) = read(storage.clone()).unwrap();
        let (found, warnings) = read(with(storage, idle.clone())).unwrap();
        assert_eq!(warnings, [], "{}", found.kind());
        assert_eq!(found, plain);
    }
    let odd = json!({ "storage_type": "local", "directory": "/x", "proxy_info": {} });
    let (_, warnings) = read(odd).unwrap();
    assert!(warnings[0].path.ends_with("object_storage.proxy_info"));
}

#[test]
fn a_certificate_that_is_not_looked_at_is_warned_about() {
    let server = |more: Value| {
        let base = json!({ "host": "h", "port": 443, "is_secure": true });
        s3(with(base, more))
    };
    let (_, warnings) = read(server(json!({}))).unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].path.ends_with("is_verify_tls"));
    let (_, warnings) = read(server(json!({ "is_verify_tls": true }))).unwrap();
    assert_eq!(warnings, []);
    let (found, _) = read(server(json!({ "is_verify_tls": true, "cert_path": "/ca" }))).unwrap();
    let Storage::S3(s3) = found else { panic!() };
    assert_eq!(s3.net.tls, Authority::File("/ca".into()));
}

#[test]
fn what_does_not_go_together_is_one_error_with_its_path() {
    let text = "found null";
    refused(&[
        (json!({ "storage_type": "s3" }), "bucket_name", text),
        (
            json!({ "storage_type": "s3", "bucket_name": "b" }),
            "region",
            text,
        ),
        (s3(json!({ "host": "h" })), "port", "as there is a host"),
        (s3(json!({ "port": 9 })), "host", "as there is a port"),
        (
            s3(json!({ "aws_access_key_id": "x" })),
            "aws_secret_access_key",
            text,
        ),
        (
            s3(json!({ "aws_secret_access_key": "x" })),
            "aws_access_key_id",
            text,
        ),
        (
            s3(json!({ "cert_path": "/x", "host": "h", "port": 1 })),
            "is_verify_tls",
            "true, as there is a cert_path",
        ),
        (
            s3(json!({ "object_lock_mode": "COMPLIANCE" })),
            "object_lock_days",
            "from 1 to",
        ),
        (
            s3(json!({ "object_lock_days": 3 })),
            "object_lock_mode",
            "GOVERNANCE",
        ),
        (
            s3(json!({ "object_lock_mode": "x" })),
            "object_lock_mode",
            "one of",
        ),
        (
            s3(json!({ "addressing_style": "x" })),
            "addressing_style",
            "one of auto",
        ),
    ]);
}

#[test]
fn wrong_values_of_a_storage_are_errors_with_their_path() {
    let text = "found null";
    refused(&[
        (s3(json!({ "prefix": "a/../b" })), "prefix", "folder names"),
        (s3(json!({ "port": "x" })), "port", "a port number"),
        (
            s3(json!({ "proxy_info": { "type": "ftp" } })),
            "proxy_info.type",
            "one of",
        ),
        (
            s3(json!({ "proxy_info": { "type": "http", "host": "h" } })),
            "proxy_info.port",
            "a port number",
        ),
        (json!({ "storage_type": "google" }), "bucket_name", "a text"),
        (
            json!({ "storage_type": "azure", "bucket_name": "b" }),
            "account_name",
            text,
        ),
        (azure(json!({ "host": "h" })), "port", "as there is a host"),
        (
            swift(json!({ "auth_version": "4" })),
            "auth_version",
            "one of",
        ),
        (sftp(json!({})), "password", "or a private_key"),
    ]);
}

fn refused(rows: &[(Value, &str, &str)]) {
    for (storage, key, expected) in rows {
        let told = read(storage.clone()).unwrap_err().message;
        let start = format!("backup_sites.a.object_storage.{key}: expected ");
        assert!(
            told.starts_with(&start) && told.contains(*expected),
            "{told}"
        );
    }
}

#[test]
fn secrets_are_in_no_text() {
    let proxy = json!({ "type": "socks5", "host": "h", "port": 1, "user": "u", "pass": "hush" });
    for storage in [
        s3(
            json!({ "aws_access_key_id": "id", "aws_secret_access_key": "hush",
            "aws_session_token": "hush", "proxy_info": proxy.clone() }),
        ),
        azure(json!({ "account_key": "hush", "proxy_info": proxy })),
        azure(json!({ "sas_token": "hush" })),
        json!({ "storage_type": "google", "bucket_name": "b",
            "credentials": { "private_key": "hush" } }),
        swift(json!({})),
        sftp(json!({ "password": "hush" })),
        sftp(json!({ "private_key": "/k", "private_key_passphrase": "hush" })),
    ] {
        let (found, _) = read(storage).unwrap();
        let told = format!("{found:?} {}", found.location());
        assert!(!told.contains("hush"), "{told}");
    }
}

#[test]
fn two_sites_of_one_place_in_a_bucket_are_refused() {
    let site =
        |storage: Value, prefix: &str| json!({ "object_storage": storage, "prefix": prefix });
    let apart = |a: Value, b: Value| {
        let (config, _) = parse(&json!({ "backup_sites": { "a": a, "b": b } })).unwrap();
        config.apart().err().map(|failure| failure.message)
    };
    let told = apart(
        site(s3(json!({ "prefix": "x" })), "y"),
        site(s3(json!({})), "x/y"),
    );
    let expected = "sites 'a' and 'b' both have the place s3 aws/b/x/y in the store";
    assert_eq!(told.as_deref(), Some(expected));
    let other = s3(json!({ "host": "h", "port": 9 }));
    assert_eq!(
        apart(site(s3(json!({ "prefix": "x" })), "y"), site(other, "x/y")),
        None
    );
}
