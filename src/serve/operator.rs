//! What people do, with who and when: `PUT /operator` keeps it in the log, and
//! `PUT /alerts/acknowledge` takes note of an alert.
//!
//! - `hold`: backups that must not go.
//! - [`holes`]: a person takes note of what is lost.
//!
//! The answer is 201 once the event is committed. 400 for a body without meaning, 404 where no
//! such alert stands, 503 while the log is not written: then it may be recorded all the same.

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use hyper::StatusCode;
use machine::rule::alerts::{OURS, STICKY};
use machine::{Class, Event, Site};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::answer::Answer;
use crate::durable;
use crate::failure::{Failure, Outcome};
use crate::journal::run::Report;
use crate::publish::stats;
use crate::publish::text::pretty;

mod hold;
pub mod holes;

const NAME_CHARS_MAX: usize = 200;
const TEXT_CHARS_MAX: usize = 2_000;
/// A turn of the loop takes a moment, unless its disk is slow.
const COMMITTED_WITHIN: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    who: String,
    command: String,
    #[serde(default)]
    detail: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Noted {
    alert: String,
    #[serde(default)]
    reason: String,
    #[serde(default = "client")]
    by: String,
}

/// Who asks without saying it.
pub fn client() -> String {
    "an HTTP client".to_owned()
}

/// What a person did, as an event; or why it cannot be one.
pub fn operated(who: &str, command: &str, detail: &str) -> Result<Event, String> {
    for (name, text, least, most) in [
        ("who", who, 1, NAME_CHARS_MAX),
        ("command", command, 1, NAME_CHARS_MAX),
        ("detail", detail, 0, TEXT_CHARS_MAX),
    ] {
        let fits = (least..=most).contains(&text.chars().count());
        if !fits || text.contains(char::is_control) || (least > 0 && text.trim().is_empty()) {
            return Err(format!(
                "'{name}': expected {least} to {most} printable characters"
            ));
        }
    }
    Ok(Event::Operated {
        who: who.to_owned(),
        command: command.to_owned(),
        detail: detail.to_owned(),
    })
}

impl Context {
    /// Returns once the events are in the log, in one commit.
    pub fn record(&self, events: Vec<(Option<Site>, Event)>) -> Outcome<()> {
        let (heard, committed) = sync_channel(1);
        let report = Report {
            heard: Some(heard),
            ..Report::facts(events)
        };
        let busy = || Failure::new(Class::Interrupted, "the daemon is too busy, ask again");
        self.reports.try_send(report).map_err(|_| busy())?;
        committed.recv_timeout(COMMITTED_WITHIN).map_err(|_| {
            let message = "the event log is not written now; it is recorded when it is again";
            Failure::new(Class::Interrupted, message)
        })
    }

    pub fn operate(&self, body: &[u8]) -> Outcome<Answer> {
        let told: Told = match serde_json::from_slice(body) {
            Ok(told) => told,
            Err(error) => return Ok(bad(&format!("no JSON of a command: {error}"))),
        };
        let event = match operated(&told.who, &told.command, &told.detail) {
            Ok(event) => event,
            Err(why) => return Ok(bad(&why)),
        };
        self.record(vec![(None, event)])?;
        done(&json!({ "recorded": true }))
    }

    pub fn note_alert(&self, body: &[u8]) -> Outcome<Answer> {
        let noted: Noted = match serde_json::from_slice(body) {
            Ok(noted) => noted,
            Err(error) => return Ok(bad(&format!("no JSON of an alert: {error}"))),
        };
        let (alert, path) = (&noted.alert, self.config.alert_file_dir.join(&noted.alert));
        let known = STICKY.iter().chain(&OURS).any(|name| name == alert);
        let lasts = known && self.lasts(alert);
        let stands = lasts || (known && path.is_file());
        if !stands {
            let message = format!("no alert '{alert}' stands that nobody took note of");
            return Ok(Answer::text(StatusCode::NOT_FOUND, message));
        }
        let command = format!("alerts acknowledge {alert}");
        let event = match operated(&noted.by, &command, &noted.reason) {
            Ok(event) => event,
            Err(why) => return Ok(bad(&why)),
        };
        let alert = noted.alert.clone();
        let acknowledged = Event::AlertAcknowledged { alert };
        self.record(vec![(None, acknowledged), (None, event)])?;
        if !lasts {
            // What PGHoard leaves to a person; others go with the next look at the alerts.
            durable::remove(&path)?;
        }
        done(&json!({ "acknowledged": noted.alert }))
    }

    /// Whether its condition lasts and nobody took note.
    fn lasts(&self, alert: &str) -> bool {
        let document: Option<Value> = serde_json::from_str(&self.text()).ok();
        let alerts = document
            .as_ref()
            .and_then(|d| d.get(stats::OWN)?.get("alerts"));
        let found = alerts.and_then(|alerts| alerts.get(alert));
        found.is_some_and(|found| found.get("acknowledged") != Some(&Value::Bool(true)))
    }
}

fn done(value: &Value) -> Outcome<Answer> {
    Ok(Answer::json(StatusCode::CREATED, &pretty(value)?))
}

fn bad(message: &str) -> Answer {
    Answer::text(StatusCode::BAD_REQUEST, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_did_is_short_and_printable() {
        let long = "x".repeat(NAME_CHARS_MAX + 1);
        for (who, command, detail, expect) in [
            ("console ttyS0", "hold", "", None),
            ("anna", "config edit", "http_port", None),
            ("", "hold", "", Some("'who': expected 1 to 200")),
            ("  ", "hold", "", Some("'who': expected 1 to 200")),
            ("a", &long, "", Some("'command': expected 1 to 200")),
            ("a", "b", "c\nd", Some("'detail': expected 0 to 2000")),
            ("a\u{1b}[2J", "b", "", Some("'who': expected")),
        ] {
            match (operated(who, command, detail), expect) {
                (Ok(_), None) => {}
                (Err(why), Some(expect)) => assert!(why.starts_with(expect), "{why}"),
                other => panic!("{who} {command}: {other:?}"),
            }
        }
    }
}
