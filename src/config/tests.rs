//! What configurations mean, and what is said about wrong ones.

use std::collections::BTreeSet;

use serde_json::json;

use super::keys::{self, Use};
use super::*;
use crate::codec::Envelope;

fn message(value: &Value) -> String {
    parse(value).unwrap_err().message
}

#[test]
fn defaults_are_pghoards_but_for_stream_and_aes_gcm() {
    let (config, warnings) = parse(&json!({"backup_sites": {"main": {}}})).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.http_port, 16_000);
    assert_eq!(config.compression.algorithm, Compression::Snappy);
    let site = &config.sites["main"];
    assert_eq!(site.prefix, "main");
    assert_eq!(site.basebackup_mode, BasebackupMode::Stream);
    assert_eq!(site.basebackup_compression_threads, 2);
    assert_eq!(site.encryption_format, Envelope::AesGcm);
    assert_eq!(site.ack, Ack::Stored);
    assert_eq!(site.basebackup_count, Some(2));
    assert_eq!(site.basebackup_interval, Some(Duration::from_secs(86_400)));
    assert_eq!(site.basebackup_time, None);
}

#[test]
fn null_is_not_always_the_default() {
    let site = json!({"basebackup_count": null, "basebackup_interval_hours": null,
        "basebackup_age_days_max": 0.5, "basebackup_hour": 3, "prefix": "/a/b/"});
    let (config, _) = parse(&json!({"backup_sites": {"main": site},
        "graceful_shutdown_upload_timeout": null}))
    .unwrap();
    let site = &config.sites["main"];
    assert_eq!(site.basebackup_count, None);
    assert_eq!(site.basebackup_interval, None);
    assert_eq!(site.basebackup_age_max, Some(Duration::from_secs(43_200)));
    assert_eq!(site.basebackup_time, Some(TimeOfDay { hour: 3, minute: 0 }));
    assert_eq!(site.prefix, "a/b");
    assert_eq!(config.graceful_shutdown_upload_timeout, None);
}

#[test]
fn unknown_keys_are_warned_about_with_the_nearest_name() {
    let (_, warnings) = parse(&json!({"http_prot": 1, "zzz": 2, "backup_sites": {"main": {
        "base_backup_count": 3,
        "object_storage": {"storage_type": "local", "directory": "/x", "director": "/y"}}}}))
    .unwrap();
    let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "http_prot: unknown key, ignored; did you mean http_port?",
            "zzz: unknown key, ignored",
            "backup_sites.main.base_backup_count: unknown key, ignored; \
             did you mean basebackup_count?",
            "backup_sites.main.object_storage.director: unknown key, ignored; \
             did you mean directory?",
        ]
    );
}

#[test]
fn what_has_no_effect_is_told_at_every_level() {
    let site = json!({
        "http_port": 1,
        "encryption_keys": {"k": {"publik": "pem"}},
        "pg_receivexlog": {"min_disk_free": 1},
        "nodes": [{"connection_string": "host=a", "slot": "s", "password": "hush"}],
        "basebackup_minute": 5,
    });
    let (config, warnings) = parse(&json!({
        "active": true,
        "push_gateway": {},
        "log_level": "LOUD",
        "transfer": {"upload_retries_warning_limit": 3},
        "backup_sites": {"a": site},
    }))
    .unwrap();
    let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "active: unknown key here, ignored; it belongs to backup_sites.SITE",
            "push_gateway: unknown key, ignored; did you mean pushgateway?",
            "transfer.upload_retries_warning_limit: unknown key here, ignored; it belongs to \
             global",
            "log_level: no such level, ignored: it is INFO",
            "backup_sites.a.http_port: unknown key here, ignored; it belongs to global",
            "backup_sites.a.pg_receivexlog.min_disk_free: unknown key, ignored; did you mean \
             min_disk_free_bytes?",
            "backup_sites.a.encryption_keys.k.publik: unknown key, ignored; did you mean public?",
            "backup_sites.a.nodes.0.password: ignored beside connection_string: put it into that",
            "backup_sites.a.basebackup_minute: no effect without basebackup_hour",
        ]
    );
    assert_eq!(config.log_level, LogLevel::Info);
    assert_eq!(config.sites["a"].basebackup_time, None);
}

/// Reference: PGHoard `pghoard/config.py` and where each key is used.
#[test]
fn values_mean_what_they_mean_to_pghoard() {
    let site = |value: Value| {
        let (mut config, warnings) = parse(&json!({"backup_sites": {"a": value}})).unwrap();
        assert_eq!(warnings, []);
        config.sites.remove("a").unwrap()
    };
    for off in [json!(null), json!(0), json!(0.0), json!(false), json!("")] {
        let limits = json!({"min_disk_free_bytes": off});
        let site = site(json!({"basebackup_age_days_max": off, "pg_receivexlog": limits}));
        assert_eq!(site.basebackup_age_max, None, "{off}");
        assert_eq!(site.disk_free, None, "{off}");
    }
    let some = site(
        json!({"basebackup_interval_hours": 0.5, "basebackup_count": 3.0,
        "encryption_keys": null, "encryption_key_id": null, "object_storage": null,
        "pg_receivexlog": {"min_disk_free_bytes": 5, "disk_space_check_interval": 1.5},
        "moved_from": null, "nodes": null, "prefix": null, "active": false}),
    );
    assert_eq!(some.basebackup_interval, Some(Duration::from_secs(1_800)));
    assert_eq!(
        (
            some.basebackup_count,
            some.disk_free.map(|free| free.pause_below)
        ),
        (Some(3), Some(5))
    );
    assert_eq!(
        (some.prefix.as_str(), some.active),
        ("a", Activity::Inactive)
    );
    assert_eq!(site(json!({"object_storage": {}})).object_storage, None);
    let (config, _) = parse(&json!({"path_prefix": "x/y", "alert_file_dir": null,
        "restore_prefetch": -1, "transfer": {"thread_count": 4}, "log_level": "WARN",
        "webserver_username": "u", "webserver_password": "", "http_address": "",
        "backup_location": "", "backup_sites": {"a": {}}}))
    .unwrap();
    assert_eq!(config.sites["a"].prefix, "x/y/a");
    assert_eq!((config.restore_prefetch, config.transfer_threads), (0, 4));
    assert_eq!(config.alert_file_dir, Path::new("."));
    assert_eq!(config.log_level, LogLevel::Warning);
    assert!(config.webserver.is_none() && config.backup_location.is_none());
    let (config, _) = parse(&json!({"transfer": {"thread_count": 4}})).unwrap();
    assert_eq!(config.restore_prefetch, 4);
}

#[test]
fn active_sites_do_not_write_over_each_other() {
    let local = |directory: &str, prefix: &str| {
        let place = json!({"directory": directory, "prefix": prefix, "storage_type": "local"});
        json!({"object_storage": place})
    };
    let over = |mut site: Value, prefix: &str| {
        site["prefix"] = json!(prefix);
        site
    };
    for (a, b, told) in [
        (json!({}), json!({}), None),
        (
            json!({"prefix": "x"}),
            json!({"prefix": "x"}),
            Some("sites 'a' and 'b' both have the prefix 'x'"),
        ),
        (
            json!({"prefix": "x"}),
            json!({"prefix": "x", "active": false}),
            None,
        ),
        (
            over(local("/s", "/x/"), "y"),
            over(local("/s/", ""), "x/y"),
            Some("sites 'a' and 'b' both have the place /s/x/y in the store"),
        ),
        (local("/s", ""), local("/s", ""), None),
    ] {
        let (config, _) = parse(&json!({"backup_sites": {"a": a, "b": b}})).unwrap();
        let found = config.apart().err().map(|failure| failure.message);
        assert_eq!(found.as_deref(), told);
    }
}

#[test]
fn a_wrong_value_is_one_error_with_its_path() {
    let site = |value: Value| json!({"backup_location": "/spool", "backup_sites": {"a": value}});
    for (config, expected) in [
        (
            json!([]),
            "the configuration: expected an object, found a list",
        ),
        (
            json!({"http_port": "x"}),
            "http_port: expected a port number, found a text",
        ),
        (
            json!({"http_port": 70_000}),
            "http_port: expected a port number, found another number",
        ),
        (
            json!({"http_tls_certificate": "/c.pem"}),
            "http_tls_key: expected a file, as http_tls_certificate, found null",
        ),
        (
            json!({"http_tls_key": "/k.pem"}),
            "http_tls_certificate: expected a file, as http_tls_key, found null",
        ),
        (
            json!({"compression": {"algorithm": "gzip"}}),
            "compression.algorithm: expected one of snappy, zstd, lzma, found another text",
        ),
        (
            site(json!({"ack": "never"})),
            "backup_sites.a.ack: expected one of stored, spooled, found another text",
        ),
        (
            site(json!({"basebackup_count": -1})),
            "backup_sites.a.basebackup_count: expected a whole number of at least 0, or null, \
             found another number",
        ),
        (
            site(json!({"prefix": "a/../b"})),
            "backup_sites.a.prefix: expected folder names between single slashes, found a text",
        ),
        (
            site(json!({"nodes": [{"host": []}]})),
            "backup_sites.a.nodes.0.host: expected a text or a number, found a list",
        ),
        (
            site(json!({"object_storage": {"directory": "/x"}})),
            "Site 'a': storage_type not defined for object_storage",
        ),
        (
            site(json!({"object_storage": {"storage_type": "ftp"}})),
            "unsupported storage type 'ftp'",
        ),
        (
            site(json!({"object_storage": {"storage_type": "local", "directory": "/spool"}})),
            "Site 'a': invalid 'local' target directory '/spool', must be different from \
             'backup_location'",
        ),
        (
            site(json!({"moved_from": ["b"]})),
            "backup_sites.a.moved_from: expected sites of this configuration, found 'b'",
        ),
        (
            site(json!({"encryption_key_id": "k"})),
            "backup_sites.a.encryption_key_id: expected one of the ids in encryption_keys, \
             found another text",
        ),
    ] {
        assert_eq!(message(&config), expected);
    }
}

/// Python would fail at the first use of a text for a number; we say it at the start.
#[test]
fn a_value_of_another_kind_is_no_default() {
    let site = |value: Value| json!({"backup_sites": {"a": value}});
    for (config, expected) in [
        (
            site(json!({"object_storage": {"storage_type": "local"}})),
            "backup_sites.a.object_storage.directory: expected a text, found null",
        ),
        (
            site(json!({"basebackup_interval_hours": "24"})),
            "backup_sites.a.basebackup_interval_hours: expected a number of at least 0, found \
             a text",
        ),
        (
            site(json!({"basebackup_mode": "tar"})),
            "backup_sites.a.basebackup_mode: expected one of stream, basic, pipe, local-tar, \
             delta, local-tar-delta-stats, found another text",
        ),
        (
            json!({"backup_sites": []}),
            "backup_sites: expected an object, found a list",
        ),
    ] {
        assert_eq!(message(&config), expected);
    }
}

#[test]
fn files_fail_in_pghoards_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.json");
    let load = || load(&path).unwrap_err().message;
    assert_eq!(
        load(),
        format!("Configuration file '{}' does not exist", path.display())
    );
    fs::write(&path, "{").unwrap();
    let start = format!(
        "Configuration file '{}' does not contain valid JSON: ",
        path.display()
    );
    assert!(load().starts_with(&start));
    for bytes in [&b"{\"a\": \"\xff\"}"[..], b"{} x", b"{'a': 1}"] {
        fs::write(&path, bytes).unwrap();
        assert!(load().starts_with(&start), "{bytes:?}");
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let expected = format!(
        "Configuration file '{}' can't be opened: IsADirectoryError",
        path.display()
    );
    assert_eq!(load(), expected);
}

#[test]
fn sites_are_selected_in_pghoards_words() {
    let config = |sites: Value| parse(&json!({"backup_sites": sites})).unwrap().0;
    let said = |sites: Value, name: Option<&str>| match config(sites).site(name) {
        Ok(site) => site.name.clone(),
        Err(failure) => failure.message,
    };
    let (one, two) = (json!({"a": {}}), json!({"a": {}, "b": {}}));
    assert_eq!(
        said(json!({}), None),
        "No backup sites defined in configuration"
    );
    assert_eq!(said(one.clone(), None), "a");
    assert_eq!(said(two.clone(), Some("b")), "b");
    assert_eq!(
        said(two.clone(), None),
        "Backup site not set and configuration file defines 2 sites: ['a', 'b']"
    );
    assert_eq!(
        said(one, Some("x")),
        "Site 'x' not defined in configuration file.  1 other site are defined: ['a']"
    );
    assert_eq!(
        said(two, Some("x")),
        "Site 'x' not defined in configuration file.  2 other sites are defined: ['a', 'b']"
    );
}

#[test]
fn what_is_no_history_is_refused() {
    let moved = |active: bool, from: &[&str]| json!({"active": active, "moved_from": from});
    let refused = |sites: Value| message(&json!({"backup_sites": sites}));
    for (sites, expected) in [
        (
            json!({"a": moved(true, &["a"])}),
            "backup_sites.a.moved_from: expected sites that are older than it, found 'a', which \
             was moved from 'a'",
        ),
        (
            json!({"a": moved(true, &["b"]), "b": moved(false, &["c"]), "c": moved(false, &["a"])}),
            "backup_sites.a.moved_from: expected sites that are older than it, found 'b', which \
             was moved from 'a'",
        ),
        (
            json!({"a": moved(true, &["o"]), "b": moved(true, &["o"]), "o": moved(false, &[])}),
            "backup_sites.a.moved_from: expected one active site to have 'o' and to decide what \
             expires in it, found 'b' has it too",
        ),
    ] {
        assert_eq!(refused(sites), expected);
    }
    let many: Vec<Value> = [
        json!({"a": moved(true, &["o", "p"]), "o": moved(false, &["p"]), "p": moved(false, &[])}),
        json!({"a": moved(true, &["o"]), "b": moved(true, &["o"]), "o": moved(true, &[])}),
        json!({"a": moved(false, &["o"]), "b": moved(true, &["o"]), "o": moved(false, &[])}),
    ]
    .into();
    for sites in many {
        parse(&json!({"backup_sites": sites})).unwrap();
    }
}

#[test]
fn the_history_of_an_active_site_is_inactive_and_elsewhere() {
    let store = |prefix: &str, active: bool| {
        json!({"prefix": prefix, "active": active,
            "object_storage": {"storage_type": "local", "directory": "/store"}})
    };
    let mut sites = json!({
        "new": store("new", true),
        "same": store("new", false),
        "busy": store("busy", true),
        "old": store("old", false),
        "older": store("older", false),
    });
    sites["new"]["moved_from"] = json!(["same", "busy", "older", "old", "old"]);
    sites["old"]["moved_from"] = json!(["older"]);
    let (config, _) = parse(&json!({"backup_sites": sites})).unwrap();
    let history = |name: &str| {
        let all = config.history(&config.sites[name]).into_iter();
        all.map(|site| site.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(history("new"), ["old", "older"]);
    assert!(history("old").is_empty() && history("busy").is_empty());
}

#[test]
fn related_sites_follow_moves_both_ways() {
    let sites = json!({"old": {}, "new": {"moved_from": ["old"]}, "other": {}});
    let (config, _) = parse(&json!({"backup_sites": sites})).unwrap();
    let names = |sites: Vec<&Site>| sites.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(config.related(&config.sites["old"])), ["old", "new"]);
    assert_eq!(names(config.related(&config.sites["new"])), ["new", "old"]);
    assert_eq!(names(config.with_older(&config.sites["old"])), ["old"]);
    assert_eq!(names(config.related(&config.sites["other"])), ["other"]);
    let sites = json!({"b": {"moved_from": ["a"]}, "a": {}, "c": {"moved_from": ["b", "a"]}});
    let (config, _) = parse(&json!({"backup_sites": sites})).unwrap();
    for (site, expected) in [
        ("a", ["a", "b", "c"]),
        ("b", ["b", "a", "c"]),
        ("c", ["c", "b", "a"]),
    ] {
        assert_eq!(
            names(config.related(&config.sites[site])),
            expected,
            "{site}"
        );
    }
}

#[test]
fn nodes_keep_their_form_and_hide_their_secrets() {
    let nodes = json!(["host=a password=hush", {"connection_string": "postgres://u:hush@h",
        "slot": "s"}, {"host": "h", "port": 5432, "password": "hush"}]);
    let keys = json!({"k": {"public": "pem", "private": "hush"}});
    let site = json!({"nodes": nodes, "encryption_keys": keys, "encryption_key_id": "k"});
    let (config, _) = parse(&json!({"backup_sites": {"a": site},
        "webserver_username": "u", "webserver_password": "hush"}))
    .unwrap();
    let nodes = &config.sites["a"].nodes;
    assert_eq!(nodes[0], Node::Text(Secret::new("host=a password=hush")));
    assert!(matches!(&nodes[1], Node::Connection { slot: Some(slot), .. } if slot == "s"));
    assert!(matches!(&nodes[2], Node::Parameters(p) if p["port"].reveal() == "5432"));
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn metrics_go_where_the_keys_say_and_by_default_where_pghoards_go() {
    let parsed = |value: Value| parse(&value).unwrap().0;
    let none = parsed(json!({}));
    assert!(none.statsd.is_none() && none.pushgateway.is_none() && none.prometheus.is_none());
    let bare = parsed(json!({"statsd": {}, "pushgateway": {}, "prometheus": {}}));
    let statsd = bare.statsd.unwrap();
    assert_eq!(statsd.address, Some(("127.0.0.1".to_owned(), 8125)));
    assert_eq!(statsd.format, StatsdFormat::Telegraf);
    let gate = bare.pushgateway.unwrap();
    assert_eq!((gate.endpoint, gate.job.as_str()), (None, "pghoard"));
    assert!(bare.prometheus.is_some_and(|tags| tags.is_empty()));
    for key in ["host", "port"] {
        let mut statsd = json!({"statsd": {}});
        statsd["statsd"][key] = Value::Null;
        assert_eq!(parsed(statsd).statsd.unwrap().address, None);
    }
    let tags = parsed(json!({"prometheus": {"tags": {"a": 1, "b": true, "c": "x"}}})).prometheus;
    let tags: Vec<String> = tags.unwrap().into_values().collect();
    assert_eq!(tags, ["1", "true", "x"]);
}

#[test]
fn wrong_places_for_metrics_are_errors_with_their_path() {
    for (config, expected) in [
        (
            json!({"pushgateway": {"endpoint": "ftp://gate"}}),
            "pushgateway.endpoint: expected a URL as http://HOST:PORT or https://HOST:PORT, found \
             a text",
        ),
        (
            json!({"http_monitor_token": "short"}),
            "http_monitor_token: expected 16 or more letters and digits, found a text",
        ),
        (
            json!({"statsd": {"format": "etsy"}}),
            "statsd.format: expected one of telegraf, datadog, found another text",
        ),
        (
            json!({"prometheus": {"tags": {"env": ["a"]}}}),
            "prometheus.tags.env: expected a text, found a list",
        ),
    ] {
        assert_eq!(message(&config), expected);
    }
}

#[test]
fn the_parser_reads_every_key_of_the_table_and_no_other() {
    let site = |storage: Value| {
        let keys = json!({"k": {}});
        json!({"object_storage": storage, "pg_receivexlog": {}, "encryption_keys": keys})
    };
    let proxy = json!({"type": "http", "host": "h", "port": 1});
    let mut sites = json!({});
    for storage in [
        json!({"storage_type": "local", "directory": "/x"}),
        json!({"storage_type": "s3", "region": "r", "bucket_name": "b", "proxy_info": proxy}),
        json!({"storage_type": "google", "bucket_name": "b"}),
        json!({"storage_type": "azure", "account_name": "a", "bucket_name": "b"}),
        json!({"storage_type": "swift", "auth_url": "u", "user": "u", "key": "k",
            "container_name": "c"}),
        json!({"storage_type": "sftp", "server": "h", "username": "u", "password": "p"}),
    ] {
        let name = storage["storage_type"].as_str().unwrap().to_owned();
        sites[name] = site(storage);
    }
    let everything = json!({"compression": {}, "transfer": {}, "statsd": {}, "pushgateway": {},
        "prometheus": {}, "backup_sites": sites});
    let notes = Notes::default();
    global(&everything, &notes).unwrap();
    let table: BTreeSet<(Level, &str)> = keys::all()
        .filter(|key| key.used != Use::Accepted)
        .map(|key| (key.level, key.name))
        .collect();
    assert_eq!(notes.asked.into_inner(), table);
    let all: BTreeSet<(Level, &str)> = keys::all().map(|key| (key.level, key.name)).collect();
    assert_eq!(all.len(), keys::all().count());
}
