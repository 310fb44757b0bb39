//! What the console asks of the daemon's HTTP API: the one place that knows its paths.

use std::time::Duration;

use machine::Class;
use pghoard::http::{Patience, Peer, Reply};
use pghoard::{Failure, Outcome};
use serde_json::{Value, json};

use super::place::Places;
use super::record::Said;

/// A person waits for it; what it did not take is told later.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(5),
    answer: Duration::from_secs(60),
};

pub struct Daemon(Peer);

impl Daemon {
    pub fn of(places: &Places) -> Outcome<Daemon> {
        // Without a configuration there is no daemon that could answer: not a mistake of the line.
        let config = places.config().map_err(|failure| {
            let message = format!("no daemon is configured: {failure}");
            Failure::new(Class::Network, message)
        })?;
        Ok(Daemon(Peer {
            patience: PATIENCE,
            ..Peer::of(&config)
        }))
    }

    /// Somebody changed something.
    pub fn operator(&self, said: &Said) -> Outcome<()> {
        let mut body = json!({ "who": said.who, "command": said.command });
        if let (false, Value::Object(map)) = (said.detail.is_empty(), &mut body) {
            map.insert("detail".to_owned(), json!(said.detail));
        }
        self.put("/operator", &body).map(drop)
    }

    /// A basebackup now.
    pub fn backup(&self, site: &str) -> Outcome<()> {
        self.put(&format!("/{site}/basebackup"), &Value::Null)
            .map(drop)
    }

    /// A one-time token for a basebackup as a tar, and what to run with it. The daemon records it.
    pub fn hand_out(&self, site: &str, wish: &Value) -> Outcome<Value> {
        self.put(&format!("/{site}/handout"), wish)
    }

    pub fn hand_outs(&self) -> Outcome<Vec<Value>> {
        let mut document = json(&accepted(self.0.ask("GET", "/handouts", &[])?)?);
        let all = document.get_mut("handouts").map(Value::take);
        match all {
            Some(Value::Array(all)) => Ok(all),
            _ => Err(Failure::new(Class::Unsupported, "no list of hand-outs")),
        }
    }

    fn put(&self, path: &str, body: &Value) -> Outcome<Value> {
        let body = match body {
            Value::Null => Vec::new(),
            body => body.to_string().into_bytes(),
        };
        let reply = self.0.send("PUT", path, &[], &body)?;
        accepted(reply).map(|reply| json(&reply))
    }
}

/// Null where the body is none of ours.
fn json(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_default()
}

/// The reply, or the daemon's words. What would be refused again has the class of a mistake.
fn accepted(reply: Reply) -> Outcome<Reply> {
    let class = match reply.status {
        200..300 => return Ok(reply),
        401 | 403 => Class::Auth,
        404 => Class::NotFound,
        400..500 => Class::Config,
        _ => Class::Network,
    };
    let text = String::from_utf8_lossy(&reply.body);
    let text = text.trim();
    let message = match text.is_empty() {
        true => format!("the daemon answered with HTTP status {}", reply.status),
        false => format!("the daemon answers: {text}"),
    };
    Err(Failure::new(class, message))
}
