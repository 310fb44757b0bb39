//! A configuration with every default of the table filled in and every secret hidden. Read once
//! more it is the same configuration. What has no effect is left out.

use serde_json::{Map, Value, json};

use super::explain::{is_own, is_section, way};
use crate::config::keys::{self, Key, Level, Use};
use crate::config::{Config, Node, Site};
use crate::daemon::site::conninfo;
use crate::pg::conninfo::{Conninfo, Host, Place};

pub const HIDDEN: &str = "***";

/// Parts of the names of keys whose values are nobody's business, in whatever store there will be.
const SECRETS: [&str; 7] = [
    "pass",
    "private",
    "secret",
    "token",
    "credential",
    "account_key",
    "sas_",
];

pub fn document(config: &Config, raw: &Value) -> Value {
    let mut document = object(Level::Global, raw, &|key| global(config, key));
    let sites = config.sites.iter().map(|(name, site)| {
        let given = raw.get("backup_sites").and_then(|sites| sites.get(name));
        let given = given.unwrap_or(&Value::Null);
        let mut filled = object(Level::Site, given, &|key| own(site, key));
        let nodes = site.nodes.iter().map(|node| told(node, site)).collect();
        filled.insert("nodes".to_owned(), nodes);
        filled.insert("prefix".to_owned(), json!(site.prefix));
        (name.clone(), Value::Object(filled))
    });
    document.insert("backup_sites".to_owned(), Value::Object(sites.collect()));
    Value::Object(document)
}

type Computed<'a> = &'a dyn Fn(&Key) -> Option<Value>;

/// The keys of a level; `computed` knows the defaults that the table can only describe.
fn object(level: Level, given: &Value, computed: Computed<'_>) -> Map<String, Value> {
    let keys = keys::of(level).filter(|key| key.used != Use::Accepted);
    let filled = keys.map(|key| {
        let value = given.get(key.name);
        // Null is a value only where it means something else than the default.
        let value = value.filter(|value| !value.is_null() || key.meaning.contains("null"));
        let value = match value {
            Some(_) if is_secret(key.name) => json!(HIDDEN),
            Some(value) => without_login(value),
            None => computed(&key).unwrap_or_else(|| default(&key)),
        };
        (key.name.to_owned(), section(&key, value, computed))
    });
    filled.collect()
}

/// A value that is an object of known keys, with these filled in.
fn section(key: &Key, value: Value, computed: Computed<'_>) -> Value {
    let Value::Object(map) = &value else {
        return value;
    };
    let kind = map.get("storage_type").and_then(Value::as_str);
    let levels = keys::all().map(|key| key.level);
    let mut levels = levels.filter(|level| is_section(*level, key));
    let level = match kind {
        Some(kind) => levels.find(|level| level.name().ends_with(&format!("({kind})"))),
        // An empty object_storage is none.
        None => levels.find(|level| !level.name().ends_with(')')),
    };
    let Some(level) = level else {
        return Value::Object(map.iter().map(hidden).collect());
    };
    match way(level).last().is_some_and(|part| is_own(part)) {
        true => {
            let named = map.iter();
            let named = named
                .map(|(name, inner)| (name.clone(), Value::Object(object(level, inner, computed))));
            Value::Object(named.collect())
        }
        false => Value::Object(object(level, &value, computed)),
    }
}

fn is_secret(name: &str) -> bool {
    // Swift's password.
    name == "key" || SECRETS.iter().any(|part| name.contains(part))
}

fn hidden((name, value): (&String, &Value)) -> (String, Value) {
    let shown = match (is_secret(name), value) {
        (true, _) => json!(HIDDEN),
        (false, Value::Object(map)) => Value::Object(map.iter().map(hidden).collect()),
        (false, other) => other.clone(),
    };
    (name.clone(), shown)
}

/// A URL without its user and password.
fn without_login(value: &Value) -> Value {
    let url = value.as_str().and_then(|text| text.split_once("://"));
    match url.and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1))) {
        Some((scheme, rest)) => json!(format!("{scheme}://{HIDDEN}@{rest}")),
        None => value.clone(),
    }
}

/// Whatever is under `name`, however deep, without the values that are nobody's business: those of
/// secret keys, passwords in URLs and connection strings, private keys wherever they are.
pub(super) fn blanked(name: &str, value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let inner = map.iter();
            let inner = inner.map(|(name, value)| (name.clone(), blanked(name, value)));
            Value::Object(inner.collect())
        }
        Value::Array(list) => list.iter().map(|value| blanked(name, value)).collect(),
        Value::Null | Value::Bool(_) => value.clone(),
        Value::Number(_) | Value::String(_) if is_secret(name) => json!(HIDDEN),
        Value::String(text) if text.contains("PRIVATE KEY") || text.contains("password") => {
            json!(HIDDEN)
        }
        Value::String(_) => without_login(value),
        Value::Number(_) => value.clone(),
    }
}

/// What the table says, as JSON.
fn default(key: &Key) -> Value {
    match key.default {
        "none" | "required" => Value::Null,
        "empty" => json!(""),
        text => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
    }
}

fn global(config: &Config, key: &Key) -> Option<Value> {
    match (key.level, key.name) {
        (Level::Global, "alert_file_dir") => Some(json!(config.alert_file_dir)),
        (Level::Global, "restore_process_count") => Some(json!(config.restore_threads)),
        (Level::Global, "restore_prefetch") => Some(json!(config.restore_prefetch)),
        (Level::Compression, "thread_count") => Some(json!(config.compression.threads)),
        (Level::Transfer, "thread_count") => Some(json!(config.transfer_threads)),
        _ => None,
    }
}

fn own(site: &Site, key: &Key) -> Option<Value> {
    match key.name {
        // Two intervals and an hour.
        "backup_overdue_hours" => Some(site.basebackup_interval.map_or(Value::Null, |interval| {
            json!(interval.as_secs_f64() / 1_800.0 + 1.0)
        })),
        "basebackup_compression_threads" => Some(json!(site.basebackup_compression_threads)),
        "basebackup_minute" => Some(site.basebackup_time.map_or(Value::Null, |_| json!(0))),
        "basebackup_mode" => Some(json!(site.basebackup_mode.name())),
        _ => None,
    }
}

/// A node as it is connected to.
fn told(node: &Node, site: &Site) -> Value {
    let info = match conninfo(node, site) {
        Ok(info) => info,
        Err(failure) => return json!({ "error": failure.to_string() }),
    };
    let Conninfo {
        hosts,
        user,
        dbname,
        slot,
        ..
    } = &info;
    let list =
        |each: &dyn Fn(&Host) -> String| hosts.iter().map(each).collect::<Vec<_>>().join(",");
    let place = |host: &Host| match &host.place {
        Place::Socket(folder) => folder.display().to_string(),
        Place::Network(name) => name.clone(),
    };
    let mut told = Map::new();
    told.insert("host".into(), json!(list(&place)));
    told.insert("port".into(), json!(list(&|host| host.port.to_string())));
    told.insert("user".into(), json!(user));
    told.insert("dbname".into(), json!(dbname));
    told.insert("sslmode".into(), json!(info.sslmode.name()));
    if let Some(slot) = slot {
        told.insert("slot".into(), json!(slot));
    }
    if info.password.is_some() {
        told.insert("password".into(), json!(HIDDEN));
    }
    Value::Object(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn shown(raw: &Value) -> Value {
        document(&parse(raw).unwrap().0, raw)
    }

    #[test]
    fn it_reads_as_the_same_configuration() {
        for raw in [
            json!({}),
            json!({ "backup_location": "/spool", "backup_sites": {
                "a": { "backup_overdue_hours": 9, "object_storage": {} },
                "b": {
                    "backup_overdue_hours": 9, "basebackup_count": null, "basebackup_hour": 3,
                    "prefix": "x/y/", "basebackup_interval_hours": 1.5, "moved_from": ["a"],
                    "stream_compression": true, "encryption_keys": { "k": {} }, "unknown": 1,
                    "object_storage": { "storage_type": "local", "directory": "/store" },
                    "pg_receivexlog": { "min_disk_free_bytes": 5 },
                },
            } }),
            json!({ "http_port": null, "compression": { "algorithm": "zstd" },
                "statsd": { "host": null }, "prometheus": {}, "transfer": { "thread_count": 3 },
                "graceful_shutdown_upload_timeout": null, "event_log_events_max": 0 }),
        ] {
            let again = shown(&raw);
            let told = |value: &Value| format!("{:?}", parse(value).unwrap().0);
            assert_eq!(told(&again), told(&raw), "{again:#}");
            assert_eq!(shown(&again), again);
            assert!(parse(&again).unwrap().1.is_empty());
        }
    }

    #[test]
    fn every_key_is_there_with_its_default() {
        let shown = shown(&json!({ "http_port": null, "backup_sites": { "a": {
            "basebackup_count": null } } }));
        for key in keys::of(Level::Global).filter(|key| key.used != Use::Accepted) {
            assert!(shown.get(key.name).is_some(), "{}", key.name);
        }
        for key in keys::of(Level::Site).filter(|key| key.used != Use::Accepted) {
            let site = &shown["backup_sites"]["a"];
            assert!(site.get(key.name).is_some(), "{}", key.name);
        }
        for (path, expect) in [
            ("/http_port", json!(16_000)),
            ("/compression/algorithm", json!("snappy")),
            ("/statsd", Value::Null),
            ("/backup_sites/a/basebackup_count", Value::Null),
            ("/backup_sites/a/backup_overdue_hours", json!(49.0)),
            ("/backup_sites/a/basebackup_compression_threads", json!(2)),
            ("/backup_sites/a/prefix", json!("a")),
        ] {
            assert_eq!(shown.pointer(path), Some(&expect), "{path}");
        }
    }

    #[test]
    fn nothing_else_of_a_raw_document_changes() {
        let raw = json!({
            "appliance": { "console_password": "hush", "hostname": "h",
                "update": { "key": "public" } },
            "backup_sites": { "a": {
                "nodes": ["host=h password=hush", "postgres://u:hush@h/d",
                    { "host": "h", "port": 1, "password": 5 }],
                "encryption_keys": { "k": { "public": "pem", "private": "hush" } },
                "unheard_of": [{ "x_secret": ["hush"] }, "-----BEGIN PRIVATE KEY-----hush"],
            } },
        });
        assert_eq!(
            blanked("", &raw),
            json!({
                "appliance": { "console_password": "***", "hostname": "h",
                    "update": { "key": "***" } },
                "backup_sites": { "a": {
                    "nodes": ["***", "postgres://***@h/d",
                        { "host": "h", "port": 1, "password": "***" }],
                    "encryption_keys": { "k": { "public": "pem", "private": "***" } },
                    "unheard_of": [{ "x_secret": ["***"] }, "***"],
                } },
            })
        );
    }

    #[test]
    fn secrets_are_hidden_wherever_they_are() {
        let raw = json!({
            "webserver_username": "u", "webserver_password": "hush",
            "http_monitor_token": "hush-0123456789ab",
            "pushgateway": { "endpoint": "http://me:hush@gate:1/x" },
            "appliance": { "console_password": "hush" },
            "backup_sites": { "a": {
                "nodes": ["host=h password=hush", "postgres://u:hush@h/d",
                    { "host": "h", "password": "hush", "nonsense": "hush" }],
                "encryption_keys": { "k": { "public": "pem", "private": "hush" } },
                "object_storage": { "storage_type": "s3", "aws_access_key_id": "id",
                    "aws_secret_access_key": "hush", "bucket_name": "b", "region": "r",
                    "proxy_info": { "type": "http", "host": "h",
                    "port": 1, "pass": "hush", "user": "x" } },
            }, "b": { "object_storage": { "storage_type": "swift", "auth_url": "http://k",
                "user": "u", "key": "hush", "container_name": "c" } } }
        });
        let shown = shown(&raw);
        assert!(!shown.to_string().contains("hush"), "{shown:#}");
        for (path, expect) in [
            ("/webserver_password", "***"),
            ("/pushgateway/endpoint", "http://***@gate:1/x"),
            ("/backup_sites/a/nodes/1/dbname", "d"),
            ("/backup_sites/a/nodes/0/password", "***"),
            ("/backup_sites/a/encryption_keys/k/public", "pem"),
            ("/backup_sites/a/encryption_keys/k/private", "***"),
            ("/backup_sites/a/object_storage/region", "r"),
        ] {
            assert_eq!(shown.pointer(path), Some(&json!(expect)), "{path}");
        }
    }
}
