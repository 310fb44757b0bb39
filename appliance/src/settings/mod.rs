//! What the machine is to do: PGHoard's configuration with one more object, `appliance`.
//!
//! - [`store`]: the settings in force, on the data partition, and the ones before.
//! - [`source`]: where else they may come from: a configuration drive, the hypervisor.
//!
//! Settings are checked whole before anything is done with them. Bad ones change nothing: the ones
//! before stay in force, and the console says what is wrong.

pub mod source;
pub mod store;

use std::path::Path;

use machine::Class;
use pghoard::config::{self, Config};
use pghoard::{Failure, Outcome};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{network, time};

/// What the daemon and every command of it read.
pub const EFFECTIVE: &str = "/run/pghoard/pghoard.json";

/// Where things are on this machine, where the settings do not say otherwise.
const PLACES: [(&str, &str); 3] = [
    ("backup_location", "/data/pghoard"),
    ("alert_file_dir", "/run/pghoard/alerts"),
    ("maintenance_mode_file", "/run/pghoard/maintenance"),
];
/// PID 1 looks at it, wherever the settings of another machine had it.
pub const STATE: &str = "/run/pghoard/state.json";
/// All else is memory.
const KEPT: &str = "/data";

#[derive(Debug)]
pub struct Settings {
    /// As they were given.
    pub document: Value,
    /// With the places of this machine, as the daemon reads it.
    pub effective: Value,
    pub config: Config,
    pub appliance: Appliance,
    /// What is unknown or has no effect, a line each.
    pub warnings: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Appliance {
    pub hostname: Option<String>,
    pub network: network::Settings,
    pub time: time::Settings,
    pub update: Update,
    /// Of the daemon's API, by the daemon's own keys.
    tls: Vec<(&'static str, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    certificate: String,
    key: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Update {
    /// An Ed25519 public key beside the image's own, base64.
    pub key: Option<String>,
    /// An update is kept after its daemon was well for so long.
    pub confirm_seconds: u64,
    /// And given up after so long without.
    pub give_up_seconds: u64,
}

impl Default for Update {
    fn default() -> Update {
        Update {
            key: None,
            confirm_seconds: 300,
            give_up_seconds: 1_800,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    hostname: Option<String>,
    /// The console's own; checked there.
    console_password: Option<String>,
    network: Option<Value>,
    time: Option<Value>,
    tls: Option<Tls>,
    update: Update,
}

impl Settings {
    pub fn parse(document: Value) -> Outcome<Settings> {
        let Some(object) = document.as_object() else {
            return Err(wrong("settings", "expected an object, { ... }"));
        };
        let appliance = Appliance::parse(object.get("appliance"))?;
        let mut effective = object.clone();
        for (key, place) in PLACES {
            effective.entry(key).or_insert_with(|| json!(place));
        }
        effective.entry("backup_sites").or_insert_with(|| json!({}));
        effective.insert("json_state_file_path".into(), json!(STATE));
        for (key, value) in &appliance.tls {
            effective.insert((*key).to_owned(), json!(value));
        }
        check_places(&effective)?;
        let effective = Value::Object(effective);
        let (config, warnings) = config::parse(&effective)?;
        config.apart()?;
        let warnings = warnings.iter().map(ToString::to_string).collect();
        Ok(Settings {
            document,
            effective,
            config,
            appliance,
            warnings,
        })
    }

    pub fn read(bytes: &[u8], from: &Path) -> Outcome<Settings> {
        let document = serde_json::from_slice(bytes)
            .map_err(|e| wrong(&from.display().to_string(), &format!("no valid JSON: {e}")))?;
        Settings::parse(document)
    }

    /// As it is kept.
    pub fn text(&self) -> Vec<u8> {
        pretty(&self.document)
    }
}

pub fn pretty(document: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(document).unwrap_or_default();
    text.push(b'\n');
    text
}

pub fn digest(text: &[u8]) -> String {
    hex::encode(Sha256::digest(text))
}

impl Appliance {
    fn parse(value: Option<&Value>) -> Outcome<Appliance> {
        let Some(value) = value else {
            return Ok(Appliance::default());
        };
        let raw = Raw::deserialize(value).map_err(|e| wrong("appliance", &e.to_string()))?;
        if let Some(name) = &raw.hostname {
            check_host(name)?;
        }
        if raw.console_password.as_deref() == Some("") {
            return Err(wrong("appliance.console_password", "is empty"));
        }
        let network = raw.network.as_ref().map(network::Settings::parse);
        let time = raw.time.as_ref().map(time::Settings::parse);
        let tls = raw.tls.map(|tls| {
            let pair = [
                ("http_tls_certificate", tls.certificate),
                ("http_tls_key", tls.key),
            ];
            pair.into()
        });
        Ok(Appliance {
            hostname: raw.hostname,
            tls: tls.unwrap_or_default(),
            network: network.transpose()?.unwrap_or_default(),
            time: time.transpose()?.unwrap_or_default(),
            update: raw.update,
        })
    }
}

/// What has to be there after a restart lies on the data partition.
fn check_places(effective: &Map<String, Value>) -> Outcome<()> {
    let kept = |what: &str, value: Option<&Value>| match value.and_then(Value::as_str) {
        Some(path) if !Path::new(path).starts_with(KEPT) => {
            let why =
                format!("'{path}' is in memory and gone after a restart: name one below {KEPT}");
            Err(wrong(what, &why))
        }
        Some(_) | None => Ok(()),
    };
    kept("backup_location", effective.get("backup_location"))?;
    let sites = effective.get("backup_sites").and_then(Value::as_object);
    for (name, site) in sites.into_iter().flatten() {
        let local = site.pointer("/object_storage/storage_type") == Some(&json!("local"));
        let what = format!("backup_sites.{name}.object_storage.directory");
        kept(
            &what,
            site.pointer("/object_storage/directory").filter(|_| local),
        )?;
    }
    Ok(())
}

/// RFC 1123, section 2.1; Linux takes 64 characters.
pub fn check_host(name: &str) -> Outcome<()> {
    let letters = |label: &str| label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let fits = |label: &str| {
        !label.is_empty() && letters(label) && !label.starts_with('-') && !label.ends_with('-')
    };
    match name.len() <= 64 && name.split('.').all(fits) {
        true => Ok(()),
        false => Err(wrong(
            "appliance.hostname",
            "expected at most 64 letters, digits, dashes and dots",
        )),
    }
}

fn wrong(what: &str, how: &str) -> Failure {
    Failure::new(Class::Config, format!("{what}: {how}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_gets_the_places_of_this_machine() {
        let settings = Settings::parse(json!({
            "appliance": {
                "hostname": "backup-1.example",
                "tls": { "certificate": "/data/settings/files/c.pem", "key": "/data/k.pem" },
            },
            "alert_file_dir": "/data/alerts",
            "json_state_file_path": "/var/lib/pghoard/state.json",
        }))
        .unwrap();
        assert_eq!(settings.effective["backup_location"], "/data/pghoard");
        assert_eq!(settings.effective["alert_file_dir"], "/data/alerts");
        assert_eq!(settings.effective["json_state_file_path"], STATE);
        assert_eq!(settings.effective["http_tls_key"], "/data/k.pem");
        assert_eq!(
            settings.appliance.hostname.as_deref(),
            Some("backup-1.example")
        );
        assert_eq!(settings.appliance.update.confirm_seconds, 300);
        assert!(settings.document.get("backup_location").is_none());
    }

    #[test]
    fn bad_settings_are_named() {
        for (document, why) in [
            (json!([]), "expected an object"),
            (json!({ "appliance": { "hostnam": "x" } }), "hostnam"),
            (
                json!({ "appliance": { "hostname": "-x" } }),
                "appliance.hostname",
            ),
            (
                json!({ "appliance": { "console_password": "" } }),
                "console_password",
            ),
            (
                json!({ "appliance": { "update": { "confirm_seconds": -1 } } }),
                "appliance",
            ),
            (json!({ "http_port": "many" }), "http_port"),
            (
                json!({ "backup_location": "/var/lib/pghoard" }),
                "in memory",
            ),
            (
                json!({ "backup_sites": { "a": { "object_storage":
                    { "storage_type": "local", "directory": "/srv" } } } }),
                "in memory",
            ),
            (
                json!({ "appliance": { "tls": { "certificate": "x" } } }),
                "key",
            ),
            (json!({ "backup_sites": [] }), "backup_sites"),
        ] {
            let failure = Settings::parse(document).unwrap_err().to_string();
            assert!(failure.contains(why), "{failure}");
        }
    }
}
