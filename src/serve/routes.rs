//! PGHoard's paths. Words and codes of the answers are PGHoard's where a client may know them.
//!
//! | request | answer |
//! |---|---|
//! | GET /status | 200, the state document |
//! | GET /SITE/basebackup | 200, JSON list from the stores |
//! | PUT /SITE/archive/basebackup | 201, a basebackup is asked for |
//! | PUT /SITE/hold, PUT or DELETE /SITE/release | see [`hold`](super::hold) |
//! | PUT /SITE/holes/acknowledge | see [`holes`](super::holes) |
//! | GET, HEAD /SITE/archive/FILE | see [`fetch`](super::fetch) |
//! | PUT /SITE/archive/FILE | see [`archive`](super::archive) |
//!
//! 400 for a path without meaning, 404 for an unknown site, 405 for a method that the path does
//! not have, 503 for "cannot say now".

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use machine::event::Why;
use machine::{Class, Event, Millis};
use serde_json::{Value, json};

use super::{Context, archive, fetch, holes};
use crate::config::{Activity, Site};
use crate::failure::{Failure, Outcome};
use crate::journal::run::Report;
use crate::publish::metrics::exposition::CONTENT_TYPE;
use crate::publish::text::{iso, pretty};
use crate::restore::Opened;
use crate::restore::ahead::Ahead;
use crate::source::archive::Intake;
use crate::store::Store;

/// What of a request is looked at.
pub struct Asked {
    pub method: Method,
    /// With its query, which is part of the last name.
    pub path: String,
    pub target: Option<HeaderValue>,
    /// The file is to come as the answer's body.
    pub bring: bool,
    /// Empty where it does not matter.
    pub body: Vec<u8>,
}

impl Asked {
    /// A segment sent to us is refused before it is read.
    pub fn is_small(&self) -> bool {
        let ends = ["/basebackup", "/hold", "/release", "/acknowledge"];
        self.method != Method::PUT || ends.iter().any(|end| self.path.ends_with(end))
    }
}

/// Which file a body is.
pub struct Arrival {
    site: machine::Site,
    name: String,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: String,
    /// Instead of `body`.
    pub file: Option<File>,
    pub headers: Vec<(&'static str, String)>,
}

impl Answer {
    pub fn new(status: StatusCode) -> Answer {
        Answer::text(status, "")
    }

    pub fn text(status: StatusCode, body: impl Into<String>) -> Answer {
        let content_type = match status.is_success() {
            true => "application/octet-stream",
            false => "text/plain",
        };
        Answer {
            status,
            content_type,
            body: body.into(),
            file: None,
            headers: Vec::new(),
        }
    }

    pub fn unauthorized() -> Answer {
        Answer {
            content_type: "text/html",
            ..Answer::text(StatusCode::UNAUTHORIZED, "Authentication required")
        }
    }

    fn failed(failure: &Failure) -> Answer {
        // The hint is for the log: it may speak of settings.
        let message = format!("server failure: {}", failure.message);
        Answer::text(StatusCode::SERVICE_UNAVAILABLE, message)
    }
}

#[derive(Clone)]
pub struct Routes {
    pub context: Context,
    /// Targets that are being written: two writers would mix their bytes.
    pub fetching: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// Numbers the files on their way into answers.
    pub outgoing: Arc<AtomicU64>,
    /// By site.
    pub ahead: Arc<BTreeMap<String, Ahead>>,
}

/// What a path means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning<'a> {
    Status,
    Metrics,
    SiteStatus,
    Basebackup(&'a str),
    Hold(&'a str),
    Release(&'a str),
    File {
        site: &'a str,
        name: &'a str,
    },
    Acknowledge(&'a str),
    /// Of a backup that PostgreSQL made itself; no restore asks for it.
    Label(&'a str),
}

impl Routes {
    pub fn new(context: Context) -> Routes {
        Routes {
            ahead: Arc::new(fetch::look_ahead(&context.config)),
            context,
            fetching: Arc::default(),
            outgoing: Arc::default(),
        }
    }

    pub fn answer(&self, asked: &Asked) -> Answer {
        let known = |name: &str| self.context.config.sites.contains_key(name);
        match meaning(&asked.path, &known) {
            Ok(meaning) => self.act(asked, meaning).unwrap_or_else(|failure| {
                log::warn!("{} {}: {failure}", asked.method, asked.path);
                Answer::failed(&failure)
            }),
            Err(answer) => answer,
        }
    }

    fn act(&self, asked: &Asked, meaning: Meaning<'_>) -> Outcome<Answer> {
        let method = &asked.method;
        Ok(match (method, meaning) {
            (&Method::GET, Meaning::Status) => self.status(),
            (&Method::GET, Meaning::Metrics) if self.context.config.prometheus.is_some() => {
                self.metrics()
            }
            (&Method::GET, Meaning::Basebackup(site)) => self.basebackups(self.site(site)?)?,
            (&Method::PUT, Meaning::Basebackup(site)) => self.request(site)?,
            (&Method::PUT, Meaning::Hold(site)) => self.hold(self.site(site)?, &asked.body)?,
            (&(Method::PUT | Method::DELETE), Meaning::Release(site)) => {
                self.release(self.site(site)?, &asked.body)?
            }
            (&Method::PUT, Meaning::Acknowledge(site)) => {
                holes::acknowledge(&self.context, self.site(site)?, &asked.body)?
            }
            (&Method::GET, Meaning::File { site, name }) if asked.bring => {
                self.bring(self.site(site)?, name)?
            }
            (&Method::GET, Meaning::File { site, name }) => {
                self.fetch(self.site(site)?, name, asked.target.as_ref())?
            }
            (&Method::HEAD, Meaning::File { .. }) if asked.target.is_some() => Answer::text(
                StatusCode::BAD_REQUEST,
                format!("{} header is not for HEAD requests", fetch::TARGET_HEADER),
            ),
            (&Method::HEAD, Meaning::File { site, name }) => self.find(self.site(site)?, name)?,
            (&Method::PUT, Meaning::Label(name)) => {
                log::info!("{name}: the label of a backup is not kept, nothing needs it");
                Answer::new(StatusCode::CREATED)
            }
            (&(Method::GET | Method::HEAD), Meaning::Label(name)) => fetch::absent(name),
            (&Method::PUT, Meaning::File { site, name }) => {
                let site = machine::Site(site.to_owned());
                archive::answer(self.context.desk.archive(&site, name))
            }
            (_, Meaning::Metrics | Meaning::SiteStatus) => Answer::new(StatusCode::NOT_IMPLEMENTED),
            (&(Method::HEAD | Method::PUT), _) => Answer::text(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path has no such method",
            ),
            _ => Answer::text(StatusCode::NOT_IMPLEMENTED, "GET, HEAD and PUT are served"),
        })
    }

    /// A file that comes as the body of a request, if it may.
    pub fn begin(&self, asked: &Asked) -> Result<(Arrival, Intake), Answer> {
        let known = |name: &str| self.context.config.sites.contains_key(name);
        let Meaning::File { site, name } = meaning(&asked.path, &known)? else {
            let message = "this path takes no body";
            return Err(Answer::text(StatusCode::BAD_REQUEST, message));
        };
        let arrival = Arrival {
            site: machine::Site(site.to_owned()),
            name: name.to_owned(),
        };
        let begun = self.context.desk.begin(&arrival.site, name);
        begun
            .map(|intake| (arrival, intake))
            .map_err(|failure| archive::answer(Err(failure)))
    }

    pub fn finish(&self, arrival: &Arrival, intake: Intake) -> Answer {
        let Arrival { site, name } = arrival;
        archive::answer(self.context.desk.finish(site, name, intake))
    }

    fn site(&self, name: &str) -> Outcome<&Site> {
        self.context.config.site(Some(name))
    }

    fn status(&self) -> Answer {
        let document = self.context.document.lock();
        let text = document.unwrap_or_else(PoisonError::into_inner).to_string();
        Answer::text(StatusCode::OK, text)
    }

    fn metrics(&self) -> Answer {
        let metrics = self.context.metrics.lock();
        let text = metrics.unwrap_or_else(PoisonError::into_inner).to_string();
        Answer {
            content_type: CONTENT_TYPE,
            ..Answer::text(StatusCode::OK, text)
        }
    }

    fn request(&self, site: &str) -> Outcome<Answer> {
        if self.site(site)?.active == Activity::Inactive {
            let message = format!("site '{site}' is inactive: no basebackup is taken");
            return Ok(Answer::text(StatusCode::CONFLICT, message));
        }
        let reason = Why::Operator;
        let site = machine::Site(site.to_owned());
        let report = Report::outside(Some(site), Event::BackupRequested { reason });
        let sent = self.context.reports.try_send(report);
        sent.map_err(|_| Failure::new(Class::Interrupted, "the daemon is too busy, ask again"))?;
        Ok(Answer::new(StatusCode::CREATED))
    }

    fn basebackups(&self, site: &Site) -> Outcome<Answer> {
        let mut all = Vec::new();
        for site in self.context.config.related(site) {
            let opened = Opened::new(site)?;
            list(opened.store.as_ref(), &site.prefix, &mut all)?;
        }
        let text = pretty(&json!({ "basebackups": all }))?;
        Ok(Answer {
            content_type: "application/json",
            ..Answer::text(StatusCode::OK, text.trim_end())
        })
    }
}

fn list(store: &dyn Store, prefix: &str, all: &mut Vec<Value>) -> Outcome<()> {
    let folder = format!("{prefix}/basebackup");
    let mut keys = Vec::new();
    store.list(&folder, &mut |entry| {
        let below = entry.key.strip_prefix(&folder).unwrap_or_default();
        if below.matches('/').count() == 1 {
            keys.push(entry.key);
        }
        Ok(())
    })?;
    for key in keys {
        // Gone since it was listed: expired meanwhile.
        let Some(object) = store.look(&key)? else {
            continue;
        };
        let modified = u64::try_from(object.entry.modified_ms).unwrap_or_default();
        all.push(json!({
            "last_modified": iso(Millis(modified)),
            "metadata": object.metadata,
            "name": key,
            "size": object.entry.size_bytes,
        }));
    }
    Ok(())
}

fn meaning<'a>(path: &'a str, known: &dyn Fn(&str) -> bool) -> Result<Meaning<'a>, Answer> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let bad = |message: String| Err(Answer::text(StatusCode::BAD_REQUEST, message));
    let site = match *parts {
        ["status"] => return Ok(Meaning::Status),
        ["status", ..] => return bad("Invalid status request".to_owned()),
        ["metrics"] => return Ok(Meaning::Metrics),
        ["metrics", ..] => return bad("Invalid request".to_owned()),
        [_] | [] => return bad(format!("Invalid path {}", quoted(&parts))),
        [site, ..] => site,
    };
    if !known(site) {
        let message = format!("Site: '{site}' not found for path {}", quoted(&parts));
        return Err(Answer::text(StatusCode::NOT_FOUND, message));
    }
    match *parts {
        [_, "basebackup", ..] => Ok(Meaning::Basebackup(site)),
        [_, "holes", "acknowledge"] => Ok(Meaning::Acknowledge(site)),
        [_, "status", ..] => Ok(Meaning::SiteStatus),
        [_, "hold"] => Ok(Meaning::Hold(site)),
        [_, "release"] => Ok(Meaning::Release(site)),
        [_, "archive", "basebackup"] => Ok(Meaning::Basebackup(site)),
        [_, "archive", name] if name.ends_with(".backup") => Ok(Meaning::Label(name)),
        [_, "archive", name] if !crate::source::archive::is_archived(name) => {
            bad(format!("Unrecognized file '{name}' for archiving"))
        }
        [_, "archive" | "xlog" | "timeline", name] => Ok(Meaning::File { site, name }),
        [_, kind @ ("archive" | "xlog" | "timeline"), ..] => bad(format!(
            "Invalid '{kind}' request, only single file retrieval is supported for now"
        )),
        _ => bad(format!("Invalid path {}", quoted(&parts))),
    }
}

/// As Python prints a list.
fn quoted(parts: &[&str]) -> String {
    let parts: Vec<String> = parts.iter().map(|part| format!("'{part}'")).collect();
    format!("[{}]", parts.join(", "))
}
