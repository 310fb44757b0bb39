//! A configuration read again: what of it can come into force at once, and what is new in it.
//!
//! What needs a restart, because others hold to it while we run: where the log, the spool and the
//! objects are, where HTTP listens, where the alert files lie.

use serde_json::Value;

use super::{Config, Site};

/// Puts back what needs a restart. Answers a line for each: its key, what stays in force, what the
/// file says.
pub fn keep(old: &Config, new: &mut Config) -> Vec<String> {
    let mut kept = Vec::new();
    let path = |path: &Option<std::path::PathBuf>| match path {
        Some(path) => path.display().to_string(),
        None => "none".to_owned(),
    };
    let mut told = |key: &str, before: String, after: String| {
        if before != after {
            kept.push(format!("{key}: {before} stays in force, found {after}"));
        }
    };
    told(
        "backup_location",
        path(&old.backup_location),
        path(&new.backup_location),
    );
    told(
        "alert_file_dir",
        old.alert_file_dir.display().to_string(),
        new.alert_file_dir.display().to_string(),
    );
    told(
        "http_address",
        old.http_address.clone(),
        new.http_address.clone(),
    );
    told(
        "http_port",
        old.http_port.to_string(),
        new.http_port.to_string(),
    );
    new.backup_location.clone_from(&old.backup_location);
    new.alert_file_dir.clone_from(&old.alert_file_dir);
    new.http_address.clone_from(&old.http_address);
    new.http_port = old.http_port;
    for (name, site) in &mut new.sites {
        if let Some(before) = old.sites.get(name) {
            keep_site(before, site, &mut told);
        }
    }
    kept
}

fn keep_site(old: &Site, new: &mut Site, told: &mut impl FnMut(&str, String, String)) {
    let key = |key: &str| format!("backup_sites.{}.{key}", new.name);
    told(&key("prefix"), old.prefix.clone(), new.prefix.clone());
    let place = |site: &Site| {
        let storage = site.object_storage.as_ref();
        storage.map_or("none".to_owned(), |storage| storage.location())
    };
    told(&key("object_storage"), place(old), place(new));
    if place(old) != place(new) {
        new.object_storage.clone_from(&old.object_storage);
    }
    new.prefix.clone_from(&old.prefix);
}

/// So many keys are named at most.
const NAMED_MAX: usize = 20;

/// The paths of the keys that differ, never their values: any of them may be a secret.
pub fn changes(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", old, new, &mut found);
    found.sort();
    found
}

/// As many as a person reads.
pub fn first(mut found: Vec<String>) -> Vec<String> {
    let more = found.len().saturating_sub(NAMED_MAX);
    if more > 0 {
        found.truncate(NAMED_MAX);
        found.push(format!("and {more} more"));
    }
    found
}

fn compare(path: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    if old == new {
        return;
    }
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        found.push(path.to_owned());
        return;
    };
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    for key in after.keys().chain(gone) {
        let below = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        match (before.get(key), after.get(key)) {
            (Some(old), Some(new)) => compare(&below, old, new, found),
            (None, None) => {}
            (Some(_), None) | (None, Some(_)) => found.push(below),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::parse;

    #[test]
    fn what_differs_is_named_and_never_shown() {
        let old = json!({
            "log_level": "INFO",
            "backup_sites": { "a": { "nodes": [{ "password": "x" }], "ack": "stored" }, "b": {} },
        });
        for (new, expect) in [
            (old.clone(), &[][..]),
            (
                json!({
                    "log_level": "INFO",
                    "backup_sites": { "a": { "nodes": [{ "password": "y" }], "ack": "stored" } },
                }),
                &["backup_sites.a.nodes", "backup_sites.b"],
            ),
            (
                json!({ "http_port": 1, "backup_sites": old["backup_sites"] }),
                &["http_port", "log_level"],
            ),
            (
                json!({ "log_level": "INFO", "appliance": { "console_password": "x" },
                    "backup_sites": old["backup_sites"] }),
                &["appliance"],
            ),
        ] {
            assert_eq!(changes(&old, &new), expect, "{new}");
        }
        let many: Value = (0..30).map(|n| (format!("k{n:02}"), json!(n))).collect();
        let named = first(changes(&json!({}), &many));
        assert_eq!(named.len(), NAMED_MAX + 1);
        assert_eq!(named.last().unwrap(), "and 10 more");
    }

    /// The value of one key before and after; which key is said to need a restart, if any.
    #[test]
    fn what_others_hold_to_needs_a_restart() {
        let whole = |global: Value, site: Value| {
            let mut value = json!({ "backup_location": "/a", "backup_sites": { "main": {
                "object_storage": { "storage_type": "local", "directory": "/s" },
            } } });
            for (key, more) in global.as_object().unwrap() {
                value[key] = more.clone();
            }
            for (key, more) in site.as_object().unwrap() {
                value["backup_sites"]["main"][key] = more.clone();
            }
            parse(&value).unwrap().0
        };
        let old = whole(json!({}), json!({}));
        let elsewhere = json!({ "storage_type": "local", "directory": "/t" });
        for (global, site, expect) in [
            (json!({}), json!({}), &[][..]),
            (
                json!({ "log_level": "DEBUG", "appliance": { "hostname": "b" } }),
                json!({ "ack": "spooled" }),
                &[],
            ),
            (
                json!({ "http_port": 1 }),
                json!({}),
                &["http_port: 16000 stays in force, found 1"],
            ),
            (
                json!({ "http_address": "::1", "alert_file_dir": "/b" }),
                json!({}),
                &[
                    "alert_file_dir: /a stays in force, found /b",
                    "http_address: 127.0.0.1 stays in force, found ::1",
                ],
            ),
            (
                json!({ "backup_location": "/b", "alert_file_dir": "/a" }),
                json!({}),
                &["backup_location: /a stays in force, found /b"],
            ),
            (
                json!({}),
                json!({ "prefix": "p", "object_storage": elsewhere }),
                &[
                    "backup_sites.main.prefix: main stays in force, found p",
                    "backup_sites.main.object_storage: local /s/ stays in force, found local /t/",
                ],
            ),
        ] {
            let mut new = whole(global, site);
            let spooled = new.sites["main"].ack;
            assert_eq!(keep(&old, &mut new), expect);
            assert_eq!(keep(&old, &mut new.clone()), Vec::<String>::new());
            assert_eq!(new.sites["main"].ack, spooled, "the rest is the new one's");
        }
    }
}
