//! Holds over HTTP: `PUT /SITE/hold` with `{"backup", "reason", "by", "until"}`, the last in ISO
//! and optional; `PUT` or `DELETE /SITE/release` with `{"backup"}`.
//!
//! The object is written, then the loop is told, then the answer is 201. 400 what is wrong with
//! the request, 404 there is no such basebackup or it is not held, 503 cannot say now: asking
//! again is safe.

use hyper::StatusCode;
use machine::projection::marks::Mark;
use machine::{BackupName, Class, Event};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock;
use crate::config::Site;
use crate::failure::{Failure, Outcome};
use crate::journal::run::Report;
use crate::publish::text::pretty;
use crate::restore::Opened;
use crate::serve::answer::Answer;
use crate::serve::routes::Routes;
use crate::work::label;
use crate::work::marks::holds::{self, Shelf};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    backup: String,
    reason: String,
    #[serde(default = "super::client")]
    by: String,
    #[serde(default)]
    until: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Released {
    backup: String,
}

impl Routes {
    pub fn hold(&self, site: &Site, body: &[u8]) -> Outcome<Answer> {
        let wanted: Wanted = match serde_json::from_slice(body) {
            Ok(wanted) => wanted,
            Err(error) => return Ok(bad(&format!("no JSON of a hold: {error}"))),
        };
        let until = wanted.until.as_deref().map(label::millis);
        if until.is_some_and(|until| until.is_none_or(|until| until <= clock::now())) {
            return Ok(bad(
                "'until' is no moment in the future, as 2027-01-31T12:00:00Z",
            ));
        }
        if let Some(text) = [&wanted.reason, &wanted.by].into_iter().find(|t| !plain(t)) {
            let message = format!("{text:?} is no text of 1 to {TEXT_MAX} printable characters");
            return Ok(bad(&message));
        }
        let mark = Mark::Hold {
            backup: BackupName(wanted.backup),
            reason: wanted.reason,
            by: wanted.by,
            until: until.flatten(),
        };
        let opened = Opened::new(site)?;
        let done = holds::hold(shelf(&opened), mark).map(|event| [event].into());
        self.tell(site, done)
    }

    pub fn release(&self, site: &Site, body: &[u8]) -> Outcome<Answer> {
        let released: Released = match serde_json::from_slice(body) {
            Ok(released) => released,
            Err(error) => return Ok(bad(&format!("no JSON of a release: {error}"))),
        };
        let opened = Opened::new(site)?;
        let done = holds::release(shelf(&opened), &BackupName(released.backup));
        self.tell(site, done)
    }

    fn tell(&self, site: &Site, done: Outcome<Vec<Event>>) -> Outcome<Answer> {
        let events = match done {
            Err(failure) if failure.class == Class::NotFound => {
                return Ok(Answer::text(StatusCode::NOT_FOUND, failure.message));
            }
            done => done?,
        };
        let mut keys = Vec::new();
        for event in events {
            if let Event::Marked { key, .. } | Event::Unmarked { key } = &event {
                keys.push(Value::String(key.clone()));
            }
            let report = Report::outside(Some(machine::Site(site.name.clone())), event);
            let sent = self.context.reports.send(report);
            sent.map_err(|_| Failure::new(Class::Interrupted, "the daemon stops, ask again"))?;
        }
        let text = pretty(&json!({ "objects": keys }))?;
        Ok(Answer::json(StatusCode::CREATED, &text))
    }
}

fn shelf<'a>(opened: &'a Opened<'_>) -> Shelf<'a> {
    Shelf {
        store: opened.store.as_ref(),
        prefix: &opened.site.prefix,
    }
}

/// Some stores keep metadata as HTTP headers.
const TEXT_MAX: usize = 500;

fn plain(text: &str) -> bool {
    let fits = (1..=TEXT_MAX).contains(&text.len());
    fits && !text.trim().is_empty() && !text.contains(|c: char| c.is_control())
}

fn bad(message: &str) -> Answer {
    Answer::text(StatusCode::BAD_REQUEST, message)
}
