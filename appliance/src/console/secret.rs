//! What of the settings is nobody's business, for texts that leave the machine.

use pghoard::tool::config::without_secrets;
use serde_json::Value;

/// Shorter ones would blank half of every text, and are in none.
const BYTES_MIN: usize = 4;
const HIDDEN: &str = "***";

/// Texts that appear nowhere in what is shown.
#[derive(Default)]
pub struct Secrets(Vec<String>);

impl Secrets {
    /// All that a document of settings holds.
    pub fn learn(&mut self, settings: &Value) {
        self.differing(settings, &without_secrets(settings));
        // A part of another must not go first.
        self.0.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        self.0.dedup();
    }

    fn differing(&mut self, value: &Value, shown: &Value) {
        match (value, shown) {
            (Value::Object(map), Value::Object(shown)) => {
                for (name, value) in map {
                    self.differing(value, shown.get(name).unwrap_or(&Value::Null));
                }
            }
            (Value::Array(list), Value::Array(shown)) => {
                for (value, shown) in list.iter().zip(shown) {
                    self.differing(value, shown);
                }
            }
            (Value::String(text), shown) if shown.as_str() != Some(text) => self.text(text),
            (Value::Number(number), Value::String(_)) => self.add(&number.to_string()),
            _ => {}
        }
    }

    /// Whole, and what of it a message may quote: lines of a key, passwords in URLs and the like.
    fn text(&mut self, text: &str) {
        self.add(text);
        // As it is in JSON.
        let quoted = Value::from(text).to_string();
        self.add(quoted.trim_matches('"'));
        text.lines()
            .filter(|line| !line.starts_with("-----"))
            .for_each(|line| self.add(line));
        if let Some((_, after)) = text.split_once("password=") {
            let end = after.find(char::is_whitespace).unwrap_or(after.len());
            self.add(after.get(..end).unwrap_or(after).trim_matches('\''));
        }
        let login = text
            .split_once("://")
            .and_then(|(_, rest)| rest.rsplit_once('@'));
        if let Some((_, password)) = login.and_then(|(login, _)| login.split_once(':')) {
            self.add(password);
        }
    }

    fn add(&mut self, secret: &str) {
        if secret.len() >= BYTES_MIN {
            self.0.push(secret.to_owned());
        }
    }

    pub fn blank(&self, text: &str) -> String {
        let blank = |text: String, secret: &String| text.replace(secret, HIDDEN);
        self.0.iter().fold(text.to_owned(), blank)
    }
}

/// The document as it was meant: where it has what is shown instead of a secret, the secret that
/// is there now. Gives the path of one that nobody knows.
pub fn restored(new: &Value, current: &Value) -> Result<Value, String> {
    meant("", new, current, &without_secrets(current))
}

fn meant(path: &str, new: &Value, current: &Value, shown: &Value) -> Result<Value, String> {
    let at = |value: &Value, key: &str| value.get(key).cloned().unwrap_or_default();
    match new {
        _ if new == shown => Ok(current.clone()),
        Value::Object(map) => {
            let inner = map.iter().map(|(name, new)| {
                let path = format!("{path}.{name}");
                let path = path.trim_start_matches('.');
                let value = meant(path, new, &at(current, name), &at(shown, name))?;
                Ok((name.clone(), value))
            });
            inner.collect::<Result<_, String>>().map(Value::Object)
        }
        Value::Array(list) => {
            let inner = list.iter().enumerate().map(|(number, new)| {
                let part = |value: &Value| value.get(number).cloned().unwrap_or_default();
                meant(
                    &format!("{path}.{number}"),
                    new,
                    &part(current),
                    &part(shown),
                )
            });
            inner.collect::<Result<_, String>>().map(Value::Array)
        }
        Value::String(text) if text.contains(HIDDEN) => Err(path.to_owned()),
        _ => Ok(new.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings() -> Value {
        json!({
            "appliance": { "console_password": "sentinel-1", "hostname": "h" },
            "webserver_password": "sentinel-2",
            "backup_sites": { "a": {
                "nodes": ["host=h password=sentinel-3 port=1", "postgres://u:sentinel-4@h/d"],
                "encryption_keys": { "k": {
                    "private": "-----BEGIN PRIVATE KEY-----\nsentinel-5\n-----END PRIVATE KEY-----",
                    "public": "pem" } },
                "object_storage": { "storage_type": "s3", "aws_secret_access_key": "sentinel-6" },
            } },
        })
    }

    #[test]
    fn no_secret_is_left_in_a_text() {
        let mut secrets = Secrets::default();
        secrets.learn(&settings());
        let text = format!(
            "{}\nlogin u:sentinel-4 failed; 'sentinel-3'; sentinel-5; h {:#}",
            settings(),
            settings()
        );
        let blanked = secrets.blank(&text);
        assert!(!blanked.contains("sentinel"), "{blanked}");
        assert!(
            blanked.contains("pem") && blanked.contains("\"hostname\":\"h\""),
            "{blanked}"
        );
    }

    #[test]
    fn what_was_shown_may_be_pasted_back() {
        let current = settings();
        let mut new = without_secrets(&current);
        assert_eq!(restored(&new, &current), Ok(current.clone()));
        new["appliance"]["hostname"] = json!("other");
        new["webserver_password"] = json!("fresh");
        let restored_ = restored(&new, &current).unwrap();
        let mut expect = current.clone();
        expect["appliance"]["hostname"] = json!("other");
        expect["webserver_password"] = json!("fresh");
        assert_eq!(restored_, expect);
        new["backup_sites"]["b"] = json!({ "nodes": [{ "password": "***" }] });
        let path = "backup_sites.b.nodes.0.password".to_owned();
        assert_eq!(restored(&new, &current), Err(path));
    }
}
