//! From a path to who answers it, by the one table of [`table`]; PGHoard's words for what has no
//! meaning.
//!
//! 400 for a path without meaning, 404 for an unknown site, 405 for a method that the path does
//! not have, 501 for one that no path has, 503 for "cannot say now".

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::header::HeaderValue;
use hyper::{Method, StatusCode, Version};
use machine::event::Why;
use machine::{Class, Event, Millis};
use serde_json::{Value, json};

use super::access::Caller;
use super::answer::Answer;
use super::appliance::{self, Upload};
use super::handout::tokens::Handouts;
use super::operator::holes;
use super::{Context, archive, fetch};
use crate::config::{Activity, Site};
use crate::failure::{Failure, Outcome};
use crate::journal::run::Report;
use crate::publish::metrics::exposition::CONTENT_TYPE;
use crate::publish::text::{iso, pretty};
use crate::restore::Opened;
use crate::restore::ahead::Ahead;
use crate::source::archive::Intake;
use crate::store::Store;
use table::{Act, ROUTES, Route};

mod openapi;
pub mod table;

/// What of a request is looked at.
pub struct Asked {
    pub caller: Caller,
    pub method: Method,
    /// With its query, which for PGHoard's paths is part of the last name.
    pub path: String,
    pub version: Version,
    pub host: Option<HeaderValue>,
    pub target: Option<HeaderValue>,
    pub by: Option<HeaderValue>,
    /// The file is to come as the answer's body.
    pub bring: bool,
    /// Of the server that recovers, where it says so.
    pub cluster: Option<u64>,
    /// Empty where it does not matter.
    pub body: Vec<u8>,
}

/// Who answers, and about what.
#[derive(Debug)]
pub struct Found {
    pub route: &'static Route,
    pub site: String,
    /// Of a basebackup or a file.
    pub name: String,
    /// Behind the question mark of a path that has one.
    pub query: String,
}

/// What comes as a body, and is not held in memory.
pub enum Arrival {
    /// A file of `pg_wal`: its site, its name.
    Wal(machine::Site, String, Intake),
    Update(Upload),
}

impl Arrival {
    pub fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        match self {
            Arrival::Wal(_, _, intake) => intake.write(bytes),
            Arrival::Update(upload) => upload.write(bytes),
        }
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
    /// Tars on their way.
    pub tars: Arc<AtomicUsize>,
    pub handouts: Handouts,
    /// An update is on its way.
    pub updating: Arc<AtomicBool>,
}

/// What a path means: one of the table, and its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Meaning<'a> {
    path: &'static str,
    site: &'a str,
    name: &'a str,
}

impl Routes {
    pub fn new(context: Context) -> Routes {
        Routes {
            ahead: Arc::new(fetch::look_ahead(&context.config)),
            context,
            fetching: Arc::default(),
            outgoing: Arc::default(),
            tars: Arc::default(),
            handouts: Handouts::default(),
            updating: Arc::default(),
        }
    }

    /// Who answers, or why nobody does.
    pub fn find(&self, asked: &Asked) -> Result<Found, Answer> {
        let known = |name: &str| self.context.config.sites.contains_key(name);
        // Only our own paths have a query.
        let (bare, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let own = meaning(bare, &known)
            .ok()
            .filter(|own| QUERIED.contains(&own.path));
        let (meaning, query) = match own {
            Some(own) => (own, query),
            None => (meaning(&asked.path, &known)?, ""),
        };
        let routes = || ROUTES.iter().filter(|route| route.path == meaning.path);
        let found = routes().find(|route| route.method == asked.method.as_str());
        let Some(route) = found else {
            let methods: Vec<&str> = routes().map(|route| route.method).collect();
            return Err(no_method(&asked.method, &methods.join(", ")));
        };
        Ok(Found {
            route,
            site: meaning.site.to_owned(),
            name: meaning.name.to_owned(),
            query: query.to_owned(),
        })
    }

    pub fn answer(&self, asked: &Asked, found: &Found) -> Answer {
        self.act(asked, found).unwrap_or_else(|failure| {
            log::warn!("{} {}: {failure}", asked.method, asked.path);
            Answer::failed(&failure)
        })
    }

    fn act(&self, asked: &Asked, found: &Found) -> Outcome<Answer> {
        let name = found.name.as_str();
        let site = || self.context.config.site(Some(&found.site));
        Ok(match found.route.act {
            Act::Status => self.status(),
            Act::Metrics => self.metrics(),
            Act::SiteStatus => Answer::new(StatusCode::NOT_IMPLEMENTED),
            Act::Document => {
                let text = pretty(&openapi::document(&self.context.config))?;
                Answer::json(StatusCode::OK, &text)
            }
            Act::List => self.basebackups(site()?)?,
            Act::Request => self.request(&found.site)?,
            Act::Tar => self.tar(site()?, found, asked),
            Act::Script => self.script(site()?, found, asked),
            Act::Offer => self.offer(site()?, asked)?,
            Act::HandOver => self.hand_over(asked),
            Act::Handouts => {
                let text = pretty(&self.handouts.list())?;
                Answer::json(StatusCode::OK, &text)
            }
            Act::Hold => self.hold(site()?, &asked.body)?,
            Act::Release => self.release(site()?, &asked.body)?,
            Act::Files => self.context.list_files()?,
            Act::File => self.context.file(name)?,
            Act::Log => self.context.log(&found.query)?,
            Act::Power => self.power(&asked.body)?,
            // Whose body is there comes in another way.
            Act::Update if self.context.around.control.is_none() => appliance::no_appliance(),
            Act::Update => Answer::text(StatusCode::BAD_REQUEST, "the body is the update"),
            Act::Operate => self.context.operate(&asked.body)?,
            Act::NoteAlert => self.context.note_alert(&asked.body)?,
            Act::Acknowledge => holes::acknowledge(&self.context, site()?, &asked.body)?,
            Act::Fetch | Act::Find if is_label(name) => fetch::absent(name),
            Act::Fetch if asked.bring => {
                let answer = self.bring(site()?, name, asked.cluster)?;
                if let (Caller::Handout(ticket), StatusCode::OK) = (&asked.caller, answer.status) {
                    self.handouts.fetched(&ticket.digest);
                }
                answer
            }
            Act::Fetch => self.fetch(site()?, name, asked)?,
            Act::Find if asked.target.is_some() => Answer::text(
                StatusCode::BAD_REQUEST,
                format!("{} header is not for HEAD requests", fetch::TARGET_HEADER),
            ),
            Act::Find => self.look(site()?, name)?,
            Act::Archive if is_label(name) => {
                self.note_label(&found.site, name);
                Answer::new(StatusCode::CREATED)
            }
            Act::Archive => {
                let site = machine::Site(found.site.clone());
                archive::answer(self.context.desk.archive(&site, name))
            }
        })
    }

    /// A file that comes as the body of a request, if it may.
    pub fn begin(&self, asked: &Asked, found: &Found) -> Result<Arrival, Answer> {
        if found.route.act == Act::Update {
            return self.begin_update(asked).map(Arrival::Update);
        }
        let (site, name) = (machine::Site(found.site.clone()), found.name.clone());
        if is_label(&found.name) {
            self.note_label(&found.site, &found.name);
            let message = "the label of a backup is not kept, nothing needs it";
            return Err(Answer::text(StatusCode::CREATED, message));
        }
        match self.context.desk.begin(&site, &name) {
            Ok(intake) => Ok(Arrival::Wal(site, name, intake)),
            Err(failure) => Err(archive::answer(Err(failure))),
        }
    }

    pub fn finish(&self, arrival: Arrival) -> Answer {
        match arrival {
            Arrival::Wal(site, name, intake) => {
                archive::answer(self.context.desk.finish(&site, &name, intake))
            }
            Arrival::Update(upload) => self.update(upload).unwrap_or_else(|failure| {
                log::warn!("update: {failure}");
                Answer::failed(&failure)
            }),
        }
    }

    /// For the log alone: PostgreSQL is told that it may forget it in any case.
    fn note_label(&self, site: &str, name: &str) {
        let name = name.to_owned();
        let site = machine::Site(site.to_owned());
        let report = Report::outside(Some(site), Event::LabelArchived { name });
        if self.context.reports.try_send(report).is_err() {
            log::warn!("the daemon is too busy to record that a backup's label was archived");
        }
    }

    fn status(&self) -> Answer {
        Answer::text(StatusCode::OK, &*self.context.text())
    }

    fn metrics(&self) -> Answer {
        if self.context.config.prometheus.is_none() {
            return Answer::new(StatusCode::NOT_IMPLEMENTED);
        }
        let metrics = self.context.metrics.lock();
        let text = metrics.unwrap_or_else(PoisonError::into_inner).to_string();
        // An empty page would say that there is nothing to know.
        if text.is_empty() {
            let message = "the daemon has just begun to count: ask again";
            return Answer::text(StatusCode::SERVICE_UNAVAILABLE, message);
        }
        Answer {
            content_type: CONTENT_TYPE,
            ..Answer::text(StatusCode::OK, text)
        }
    }

    fn request(&self, site: &str) -> Outcome<Answer> {
        if self.context.config.site(Some(site))?.active == Activity::Inactive {
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
        Ok(Answer::json(StatusCode::OK, &text))
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
        let object = match store.look(&key) {
            Ok(Some(object)) => object,
            // Gone since it was listed: expired meanwhile.
            Ok(None) => continue,
            Err(failure) if failure.class == Class::Corrupt => {
                log::warn!("'{key}' is left out: {failure}");
                continue;
            }
            Err(failure) => return Err(failure),
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

fn no_method(method: &Method, allowed: &str) -> Answer {
    if !ROUTES.iter().any(|route| route.method == method.as_str()) {
        let message = "GET, HEAD, PUT and DELETE are served";
        return Answer::text(StatusCode::NOT_IMPLEMENTED, message);
    }
    let message = "this path has no such method";
    let mut answer = Answer::text(StatusCode::METHOD_NOT_ALLOWED, message);
    answer.headers.push(("allow", allowed.to_owned()));
    answer
}

/// Of a backup that PostgreSQL made itself; no restore asks for it.
fn is_label(name: &str) -> bool {
    name.ends_with(".backup")
}

const TAR: &str = "/{site}/basebackup/{name}/tar";
const SCRIPT: &str = "/{site}/restore-command";
const QUERIED: [&str; 3] = [TAR, SCRIPT, "/log"];

fn meaning<'a>(path: &'a str, known: &dyn Fn(&str) -> bool) -> Result<Meaning<'a>, Answer> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let bad = |message: String| Err(Answer::text(StatusCode::BAD_REQUEST, message));
    let of = |path, site, name| Ok(Meaning { path, site, name });
    let site = match *parts {
        ["status"] => return of("/status", "", ""),
        ["status", ..] => return bad("Invalid status request".to_owned()),
        ["metrics"] => return of("/metrics", "", ""),
        ["metrics", ..] => return bad("Invalid request".to_owned()),
        ["files"] => return of("/files", "", ""),
        ["files", name] if !known("files") => return of("/files/{name}", "", name),
        ["log"] => return of("/log", "", ""),
        ["appliance", "power"] => return of("/appliance/power", "", ""),
        ["appliance", "update"] => return of("/appliance/update", "", ""),
        ["handouts"] => return of("/handouts", "", ""),
        ["operator"] => return of("/operator", "", ""),
        ["alerts", "acknowledge"] => return of("/alerts/acknowledge", "", ""),
        ["openapi.json"] => return of("/openapi.json", "", ""),
        [_] | [] => return bad(format!("Invalid path {}", quoted(&parts))),
        [site, ..] => site,
    };
    if !known(site) {
        let message = format!("Site: '{site}' not found for path {}", quoted(&parts));
        return Err(Answer::text(StatusCode::NOT_FOUND, message));
    }
    const FILE: &str = "/{site}/archive/{file}";
    match *parts {
        [_, "basebackup", name, "tar"] => of(TAR, site, name),
        [_, "basebackup", ..] => of("/{site}/basebackup", site, ""),
        [_, "handout"] => of("/{site}/handout", site, ""),
        [_, "handout", "tar"] => of("/{site}/handout/tar", site, ""),
        [_, "restore-command"] => of(SCRIPT, site, ""),
        [_, "holes", "acknowledge"] => of("/{site}/holes/acknowledge", site, ""),
        [_, "status", ..] => of("/{site}/status", site, ""),
        [_, "hold"] => of("/{site}/hold", site, ""),
        [_, "release"] => of("/{site}/release", site, ""),
        [_, "archive", "basebackup"] => of("/{site}/basebackup", site, ""),
        [_, "archive", name] if is_label(name) => of(FILE, site, name),
        [_, "archive", name] if !crate::source::archive::is_archived(name) => {
            bad(format!("Unrecognized file '{name}' for archiving"))
        }
        [_, "archive" | "xlog" | "timeline", name] => of(FILE, site, name),
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
