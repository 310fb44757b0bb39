//! Whoever hands out credentials: a metadata server, an agent of a container, a token endpoint.
//! What it answers is the test's business; what it was asked is kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::support::http::{Endpoint, respond};

/// A request that came.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// `METHOD URI`.
    pub line: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Asked {
    /// Empty where it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// A field of a form, decoded as far as tests need it.
    pub fn field(&self, name: &str) -> String {
        let mut pairs = self.body.split('&').filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(have, _)| *have == name);
        let text = found.map(|(_, value)| value.to_owned()).unwrap_or_default();
        let text = text.replace("%3A", ":").replace("%2F", "/");
        text.replace("%2E", ".")
    }
}

pub struct Lender {
    endpoint: Endpoint,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Lender {
    /// A status and a body for each request.
    pub fn start(answer: impl Fn(&Asked) -> (u16, String) + Send + Sync + 'static) -> Lender {
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let own = Arc::clone(&asked);
        let endpoint = Endpoint::start(move |request| {
            let names = request.headers().iter();
            let one = Asked {
                line: format!("{} {}", request.method(), request.uri()),
                headers: names
                    .map(|(name, value)| {
                        let value = String::from_utf8_lossy(value.as_bytes());
                        (name.to_string(), value.into_owned())
                    })
                    .collect(),
                body: String::from_utf8_lossy(request.body()).into_owned(),
            };
            let (status, body) = answer(&one);
            own.lock().unwrap().push(one);
            respond(status, &[], body)
        });
        Lender { endpoint, asked }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.endpoint.port)
    }

    pub fn port(&self) -> u16 {
        self.endpoint.port
    }

    /// Since it was asked last.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}
