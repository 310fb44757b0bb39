//! `PUT /SITE/holes/acknowledge`: a person takes note of what is lost.
//!
//! The body is JSON: `{"hole": NAME, "reason": TEXT, "by": TEXT}`, or `"all": true` instead of the
//! name. The mark is in the store before the answer is given: 201 with the names. 400 for a body
//! without meaning, 404 where no such hole is open.

use hyper::StatusCode;
use machine::projection::marks::{Hole, Mark};
use machine::{Class, Millis, SegmentSize};
use serde_json::{Value, json};

use crate::clock;
use crate::config::Site;
use crate::failure::{Failure, Outcome};
use crate::journal::run::Report;
use crate::publish::stats;
use crate::publish::text::pretty;
use crate::serve::Context;
use crate::serve::answer::Answer;
use crate::store::Store;
use crate::store::choose::{self, Missing};
use crate::work::marks;

/// More than this is no reason any more.
const TEXT_CHARS_MAX: usize = 1_000;

/// What a person wants to be acknowledged, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// `None` is every open one.
    pub hole: Option<String>,
    pub reason: String,
    pub by: String,
}

impl Ask {
    pub fn parse(body: &[u8]) -> Result<Ask, String> {
        let value: Value = serde_json::from_slice(body).map_err(|e| format!("no JSON: {e}"))?;
        let text = |key: &str| {
            let text = value.get(key).and_then(Value::as_str).map(str::trim);
            let long = text.is_some_and(|text| text.chars().count() > TEXT_CHARS_MAX);
            match text.filter(|text| !text.is_empty()) {
                Some(_) if long => Err(format!("'{key}' is longer than {TEXT_CHARS_MAX}")),
                text => Ok(text.map(str::to_owned)),
            }
        };
        let all = value.get("all") == Some(&Value::Bool(true));
        let hole = text("hole")?;
        if all == hole.is_some() {
            return Err("expected either 'hole', a name, or 'all': true".to_owned());
        }
        let reason = text("reason")?.ok_or("'reason' is missing")?;
        let by = text("by")?.unwrap_or_else(|| "operator".to_owned());
        Ok(Ask { hole, reason, by })
    }

    pub fn body(&self) -> Vec<u8> {
        let (reason, by) = (&self.reason, &self.by);
        let body = match &self.hole {
            Some(hole) => json!({ "hole": hole, "reason": reason, "by": by }),
            None => json!({ "all": true, "reason": reason, "by": by }),
        };
        body.to_string().into_bytes()
    }

    /// The marks it takes, of a site as the state document has it; `None` where no such hole is
    /// open.
    pub fn marks(&self, facts: &Value, at: Millis) -> Option<Vec<Mark>> {
        let size = size_of(facts);
        let holes = facts.get("holes").and_then(Value::as_array);
        let open = holes.into_iter().flatten();
        let open = open.filter(|hole| hole.get("state") != Some(&json!("acknowledged")));
        let names = open.filter_map(|hole| hole.get("name").and_then(Value::as_str));
        let wanted = names.filter(|name| self.hole.as_deref().is_none_or(|hole| hole == *name));
        let marks: Vec<Mark> = wanted
            .filter_map(|name| {
                Some(Mark::HoleAcknowledged {
                    hole: Hole::from_name(name, size)?,
                    reason: self.reason.clone(),
                    by: self.by.clone(),
                    at,
                })
            })
            .collect();
        (self.hole.is_none() || !marks.is_empty()).then_some(marks)
    }
}

pub fn size_of(facts: &Value) -> SegmentSize {
    let bytes = facts.get("segment_size").and_then(Value::as_u64);
    bytes
        .and_then(SegmentSize::new)
        .unwrap_or(SegmentSize::DEFAULT)
}

/// The store that a site's marks lie in.
pub fn store(site: &Site) -> Outcome<Box<dyn Store>> {
    choose::store(site.storage()?, Missing::Refuse)
}

pub fn acknowledge(context: &Context, site: &Site, body: &[u8]) -> Outcome<Answer> {
    let ask = match Ask::parse(body) {
        Ok(ask) => ask,
        Err(why) => return Ok(Answer::text(StatusCode::BAD_REQUEST, why)),
    };
    let document: Option<Value> = serde_json::from_str(&context.text()).ok();
    let sites = document
        .as_ref()
        .and_then(|d| d.get(stats::OWN)?.get("sites"));
    let facts = sites.and_then(|sites| sites.get(&site.name));
    let facts = facts.ok_or_else(|| {
        let message = format!("nothing is known of site '{}' yet", site.name);
        Failure::new(Class::Interrupted, message)
    })?;
    let Some(marks) = ask.marks(facts, clock::now()) else {
        let name = ask.hole.unwrap_or_default();
        let message = format!("no hole '{name}' is open in site '{}'", site.name);
        return Ok(Answer::text(StatusCode::NOT_FOUND, message));
    };
    let (size, store) = (size_of(facts), store(site)?);
    let mut names = Vec::new();
    for mark in marks {
        if let Mark::HoleAcknowledged { hole, .. } = &mark {
            names.push(hole.name(size));
        }
        let event = marks::put(store.as_ref(), &site.prefix, mark, size)?;
        let report = Report::outside(Some(machine::Site(site.name.clone())), event);
        let sent = context.reports.try_send(report);
        sent.map_err(|_| Failure::new(Class::Interrupted, "the daemon is too busy, ask again"))?;
    }
    let text = pretty(&json!({ "acknowledged": names }))?;
    Ok(Answer::json(StatusCode::CREATED, &text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_what_and_why_or_is_refused() {
        for (body, expect) in [
            (r#"{"hole": "a", "reason": "r", "by": "ada"}"#, "a r ada"),
            (r#"{"all": true, "reason": " r "}"#, "- r operator"),
            (r#"{"all": true, "hole": "a", "reason": "r"}"#, "!"),
            (r#"{"reason": "r"}"#, "!"),
            (r#"{"hole": "a"}"#, "!"),
            (r#"{"hole": "a", "reason": ""}"#, "!"),
            (r#"{"hole": 7, "reason": "r"}"#, "!"),
            ("", "!"),
            ("[]", "!"),
        ] {
            let told = match Ask::parse(body.as_bytes()) {
                Ok(ask) => {
                    assert_eq!(Ask::parse(&ask.body()), Ok(ask.clone()));
                    let hole = ask.hole.unwrap_or("-".to_owned());
                    format!("{hole} {} {}", ask.reason, ask.by)
                }
                Err(_) => "!".to_owned(),
            };
            assert_eq!(told, expect, "{body}");
        }
        let long = format!(r#"{{"all": true, "reason": "{}"}}"#, "x".repeat(1_001));
        assert!(Ask::parse(long.as_bytes()).is_err());
    }

    #[test]
    fn only_open_holes_are_acknowledged() {
        let (one, two) = (
            "000000010000000000000005-000000010000000000000006",
            "00000002.history",
        );
        let facts = json!({ "segment_size": 16 << 20, "holes": [
            { "name": one, "state": "lost" },
            { "name": two, "state": "healing" },
            { "name": "00000003.history", "state": "acknowledged" },
        ]});
        for (hole, expect) in [
            (None, Some(2)),
            (Some(one), Some(1)),
            (Some(two), Some(1)),
            (Some("00000003.history"), None),
            (Some("other"), None),
        ] {
            let ask = Ask {
                hole: hole.map(str::to_owned),
                reason: "r".into(),
                by: "b".into(),
            };
            let marks = ask.marks(&facts, Millis(1)).map(|marks| marks.len());
            assert_eq!(marks, expect, "{hole:?}");
        }
        let none = json!({});
        let ask = Ask::parse(br#"{"all": true, "reason": "r"}"#).unwrap();
        assert_eq!(ask.marks(&none, Millis(1)), Some(Vec::new()));
    }
}
