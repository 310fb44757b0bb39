//! A restore with nothing but curl and tar: a basebackup as one tar, and the script that fetches
//! the WAL for it.
//!
//! `GET /SITE/basebackup/NAME/tar` is a data directory with the settings of recovery in it,
//! `GET /SITE/restore-command` the program that they name, which is in the tar as well. A tar
//! that fails on its way breaks the connection off before the last chunk, and lacks `pg_control`.
//!
//! - [`tokens`], `offer`: the same for a host that is given no login but a token.
//!
//! Budget: [`TARS_MAX`] tars, each with a thread and [`BLOCKS_MAX`] blocks on their way.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{StatusCode, Version};
use machine::Class;
use smol::channel::Sender;

use super::answer::{Answer, Piece};
use super::routes::{Asked, Found, Routes};
use crate::config::{self, Config};
use crate::failure::{Failure, Outcome};
use crate::restore::Opened;
use crate::restore::choose::{self, Backup, Catalog, Goal, Immediate, timeline};
use crate::restore::recovery::{Action, Recovery, Role};
use crate::restore::stream::{self, Script};

mod offer;
mod script;
pub mod tokens;

use tokens::Opening;

/// Each decodes on a core of its own and may last for hours.
const TARS_MAX: usize = 4;
const BLOCK: usize = 128 << 10;
/// Enough to keep a fast line busy while the next is decoded.
const BLOCKS_MAX: usize = 8;

/// A refusal: the status, and why.
type Refused = (StatusCode, Failure);

impl Routes {
    pub fn script(&self, site: &config::Site, found: &Found, asked: &Asked) -> Answer {
        let text = Query::parse(&found.query, &SCRIPTED).and_then(|query| {
            let origin = self.origin(&query, asked.host.as_ref())?;
            script::render(&site.name, &query.way(origin)?)
        });
        match text {
            Ok(text) => Answer {
                content_type: "text/x-shellscript",
                ..Answer::text(StatusCode::OK, text)
            },
            Err(failure) => refusal((StatusCode::BAD_REQUEST, failure)),
        }
    }

    /// Where this API is, as the client sees it.
    fn origin(&self, query: &Query, host: Option<&HeaderValue>) -> Outcome<String> {
        if let Some(url) = query.one("url") {
            let http = ["http://", "https://"].iter().any(|s| url.starts_with(s));
            return match http {
                true => Ok(url.trim_end_matches('/').to_owned()),
                false => Err(refused("url: expected http:// or https://")),
            };
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-.:[]_".contains(c);
        let host = host.and_then(|host| host.to_str().ok());
        let host = host.filter(|host| !host.is_empty() && host.chars().all(plain));
        let host = host.ok_or_else(|| refused("no Host header: say url=https://HOST:PORT"))?;
        let scheme = match self.context.config.http_tls {
            Some(_) => "https",
            None => "http",
        };
        Ok(format!("{scheme}://{host}"))
    }

    pub fn tar(&self, site: &config::Site, found: &Found, asked: &Asked) -> Answer {
        if let Some(answer) = unfit(asked) {
            return answer;
        }
        let order = Query::parse(&found.query, &TARRED).and_then(|query| {
            let origin = self.origin(&query, asked.host.as_ref())?;
            Order::new(&site.name, &found.name, &query, &query.way(origin)?)
        });
        match order {
            Ok(order) => self.start(order, None),
            Err(failure) => refusal((StatusCode::BAD_REQUEST, failure)),
        }
    }

    /// Begins to send, or says why not; only then a token has opened its tar.
    fn start(&self, order: Order, opening: Option<Opening>) -> Answer {
        let Some(place) = Place::take(&self.tars) else {
            if let Some(opening) = opening {
                opening.back();
            }
            let message = format!("{TARS_MAX} tars are on their way already, ask again");
            return Answer::text(StatusCode::SERVICE_UNAVAILABLE, message);
        };
        let config = Arc::clone(&self.context.config);
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let (blocks, stream) = smol::channel::bounded(BLOCKS_MAX);
        let run = move || {
            let _place = place;
            send(&config, &order, opening, &tell, &blocks);
        };
        let thread = thread::Builder::new().name("tar".into()).spawn(run);
        if let Err(error) = thread {
            return Answer::failed(&Failure::io(&error, "no thread for a tar"));
        }
        match told.recv() {
            Ok(Ok(())) => Answer::streamed("application/x-tar", stream),
            Ok(Err(refused)) => refusal(refused),
            Err(_) => Answer::failed(&Failure::new(Class::Internal, "the thread of a tar died")),
        }
    }
}

/// Over older versions of HTTP nobody could tell that a tar broke off.
fn unfit(asked: &Asked) -> Option<Answer> {
    let message = "a tar needs HTTP/1.1, where the last chunk tells its end from a break";
    let old = asked.version != Version::HTTP_11;
    old.then(|| Answer::text(StatusCode::HTTP_VERSION_NOT_SUPPORTED, message))
}

/// In what a person asked for the hint says what to do; of a failure of ours the log has it.
fn refusal((status, failure): Refused) -> Answer {
    match status {
        StatusCode::SERVICE_UNAVAILABLE => {
            log::warn!("tar: {failure}");
            Answer::failed(&failure)
        }
        status => Answer::text(status, failure.to_string()),
    }
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Class::Config, message)
}

/// One of the tars on their way.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(all: &Arc<AtomicUsize>) -> Option<Place> {
        let place = Place(Arc::clone(all));
        (all.fetch_add(1, Ordering::SeqCst) < TARS_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a request for a tar amounts to.
struct Order {
    site: String,
    /// `latest`, or of a basebackup.
    name: String,
    goal: Goal,
    timeline: String,
    way: script::Way,
    wish: stream::Wish,
}

impl Order {
    fn new(site: &str, name: &str, query: &Query, way: &script::Way) -> Outcome<Order> {
        let wanted = |flag: &str| query.one(flag).filter(|text| *text != "0");
        let goal = choose::Wish {
            name: query.one("name"),
            xid: query.one("xid"),
            time: query.one("time"),
            lsn: query.one("lsn"),
            immediate: wanted("immediate").map(|_| Immediate),
        };
        let goal = goal.goal()?;
        let action = query.one("action").map(|text| {
            let found = Action::ALL.into_iter().find(|action| action.name() == text);
            found.ok_or_else(|| refused("action: expected pause, promote or shutdown"))
        });
        let role = match query.one("role") {
            None | Some("primary") => Role::Primary,
            Some("standby") => Role::Standby,
            Some(_) => return Err(refused("role: expected primary or standby")),
        };
        let mut tablespaces = BTreeMap::new();
        for text in query.all("tablespace") {
            let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
            let (name, path) =
                pair.ok_or_else(|| refused("tablespace: expected NAME=/DIRECTORY"))?;
            tablespaces.insert(name.to_owned(), PathBuf::from(path));
        }
        let timeline = query.one("timeline").unwrap_or("latest").to_owned();
        let content = script::render(site, way)?;
        Ok(Order {
            site: site.to_owned(),
            name: name.to_owned(),
            wish: stream::Wish {
                recovery: Recovery {
                    restore_command: ["sh", script::NAME, "%f", "%p"].map(str::to_owned).to_vec(),
                    role,
                    goal: goal.clone(),
                    action: action.transpose()?,
                    timeline: timeline.clone(),
                    primary_conninfo: String::new(),
                    end_command: None,
                },
                tablespaces,
                script: Script {
                    name: script::NAME,
                    content,
                },
            },
            goal,
            timeline,
            way: way.clone(),
        })
    }
}

/// Tells whether there is a tar at all, then sends it.
fn send(
    config: &Config,
    order: &Order,
    opening: Option<Opening>,
    tell: &std::sync::mpsc::SyncSender<Result<(), Refused>>,
    blocks: &Sender<Piece>,
) {
    let opened = open(config, order).map_err(unable);
    let planned = match &opened {
        Ok(opened) => plan(opened, order),
        Err(refused) => Err(refused.clone()),
    };
    let Planned { plan, key, .. } = match planned {
        Ok(planned) => planned,
        Err(refused) => {
            if let Some(opening) = opening {
                opening.back();
            }
            let _nobody_waits = tell.send(Err(refused));
            return;
        }
    };
    if tell.send(Ok(())).is_err() {
        return;
    }
    log::info!("{key}: a tar of it is sent");
    let mut out = Blocks {
        blocks,
        block: Vec::with_capacity(BLOCK),
        sent: opening.as_ref().map(|opening| Arc::clone(&opening.sent)),
    };
    match plan.write(&mut out) {
        Ok(()) => {
            let _gone = blocks.send_blocking(Piece::End);
            if let Some(opening) = opening {
                opening.done();
            }
            log::info!("{key}: a tar of it was sent");
        }
        // Without an end, the connection breaks off.
        Err(failure) => log::warn!("{key}: a tar of it broke off: {failure}"),
    }
}

fn open<'a>(config: &'a Config, order: &Order) -> Outcome<Vec<Opened<'a>>> {
    let site = config.site(Some(&order.site))?;
    let all = config.with_older(site).into_iter().map(Opened::new);
    all.collect()
}

fn unable(failure: Failure) -> Refused {
    (StatusCode::SERVICE_UNAVAILABLE, failure)
}

/// The status of a failure of the right kind, else that it cannot be known.
fn when(class: Class, status: StatusCode) -> impl Fn(Failure) -> Refused {
    move |failure| match failure.class == class {
        true => (status, failure),
        false => unable(failure),
    }
}

/// A tar that nothing speaks against.
struct Planned<'a> {
    plan: stream::Plan<'a>,
    /// Of the basebackup, both.
    site: String,
    key: String,
    /// About so many there will be; 0 where the backup does not say.
    bytes: u64,
}

fn plan<'a>(opened: &'a [Opened<'a>], order: &Order) -> Result<Planned<'a>, Refused> {
    let mut found = Catalog::default();
    for opened in opened {
        found.add(choose::backups(opened.site, opened.store.as_ref()).map_err(unable)?);
    }
    for (key, failure) in &found.damaged {
        log::warn!("'{key}' is left out: {failure}");
    }
    let all = found.usable(&order.name).map_err(unable)?;
    let size = match all
        .first()
        .and_then(|first| Some((first, holder(opened, first)?)))
    {
        Some((first, opened)) => choose::segment_size(first, opened.store.as_ref()),
        None => Ok(machine::SegmentSize::DEFAULT),
    };
    let size = size.map_err(unable)?;
    let wanted = wanted(&all, &order.name)?;
    let backup = choose::choose(&all, &wanted, &order.goal, size)
        .map_err(when(Class::Config, StatusCode::NOT_FOUND))?;
    if wanted != LATEST && backup.key() != wanted {
        let message = format!("'{wanted}' ends after the target; say {LATEST} instead of its name");
        return Err((StatusCode::CONFLICT, refused(message)));
    }
    let conflict = StatusCode::CONFLICT;
    timeline::check(backup, &order.timeline, opened, size).map_err(|failure| {
        let known = matches!(
            failure.class,
            Class::Config | Class::NotFound | Class::Corrupt
        );
        match known {
            true => (conflict, failure),
            false => unable(failure),
        }
    })?;
    let lost = || Failure::new(Class::Internal, "the basebackup belongs to no site");
    let holder = holder(opened, backup).ok_or_else(|| unable(lost()))?;
    let mut wish = order.wish.clone();
    // Of the site that the basebackup is of: another may have gone on with another cluster.
    wish.script.content = script::render(&backup.site.name, &order.way).map_err(unable)?;
    let plan = stream::plan(backup, holder.source(), wish);
    let plan = plan.map_err(when(Class::Config, conflict))?;
    Ok(Planned {
        plan,
        site: backup.site.name.clone(),
        key: backup.key().to_owned(),
        bytes: backup.plain_bytes(),
    })
}

fn holder<'a>(opened: &'a [Opened<'a>], backup: &Backup<'_>) -> Option<&'a Opened<'a>> {
    opened.iter().find(|o| o.site.name == backup.site.name)
}

const LATEST: &str = "latest";

/// The key of the basebackup that is called so, whole or by the part that people use.
fn wanted(all: &[Backup<'_>], name: &str) -> Result<String, Refused> {
    if name == LATEST {
        return Ok(LATEST.to_owned());
    }
    let mut keys = all.iter().map(Backup::key);
    let found = keys.find(|key| choose::is_called(key, name));
    found.map(str::to_owned).ok_or_else(|| {
        let message = format!("there is no basebackup '{name}'");
        (
            StatusCode::NOT_FOUND,
            Failure::new(Class::NotFound, message),
        )
    })
}

/// Writes into an answer; it fails when nobody reads any more.
struct Blocks<'a> {
    blocks: &'a Sender<Piece>,
    block: Vec<u8>,
    /// For who looks on.
    sent: Option<Arc<AtomicU64>>,
}

impl Write for Blocks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.block.extend_from_slice(bytes);
        if self.block.len() >= BLOCK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        let bytes = u64::try_from(block.len()).unwrap_or(0);
        let sent = self.blocks.send_blocking(Piece::Block(Bytes::from(block)));
        if let Some(total) = self.sent.as_ref().filter(|_| sent.is_ok()) {
            total.fetch_add(bytes, Ordering::Relaxed);
        }
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone"))
    }
}

const SCRIPTED: [&str; 3] = ["url", "netrc", "cacert"];
const TARRED: [&str; 12] = [
    "time",
    "lsn",
    "name",
    "xid",
    "immediate",
    "action",
    "timeline",
    "role",
    "tablespace",
    "url",
    "netrc",
    "cacert",
];

/// The parameters of a request, decoded.
#[derive(Debug)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// One that is not known is refused: a target that was misspelt would be passed over.
    pub fn parse(text: &str, known: &[&str]) -> Outcome<Query> {
        let mut all = Vec::new();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let value =
                config::decoded(value).filter(|text| !text.contains(|c: char| c.is_control()));
            let value =
                value.ok_or_else(|| refused(format!("{name}: expected text, percent-encoded")))?;
            if !known.contains(&name) {
                let known = known.join(", ");
                return Err(refused(format!(
                    "unknown parameter '{name}': expected {known}"
                )));
            }
            if name != "tablespace" && all.iter().any(|(other, _)| other == name) {
                return Err(refused(format!("{name} is there twice")));
            }
            all.push((name.to_owned(), value));
        }
        Ok(Query(all))
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(known, _)| known == name);
        named.map(|(_, value)| value.as_str())
    }

    pub fn one(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    fn way(&self, url: String) -> Outcome<script::Way> {
        let file = |name: &str| match self.one(name) {
            Some(path) if !path.starts_with('/') => {
                Err(refused(format!("{name}: expected an absolute path")))
            }
            path => Ok(path.unwrap_or_default().to_owned()),
        };
        Ok(script::Way {
            url,
            netrc: file("netrc")?,
            cacert: file("cacert")?,
            token: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_known_words_once_each() {
        for (text, expected) in [
            ("", "ok"),
            ("time=2026-11-23T06:23:22+00:00&action=promote", "ok"),
            ("time=2026-11-23%2006:23:22%2B00", "ok"),
            ("tablespace=a=/a&tablespace=b=/b", "ok"),
            ("tim=1", "unknown parameter 'tim'"),
            ("name=a&name=b", "name is there twice"),
            ("name=%0a", "name: expected text"),
            ("name=%4", "name: expected text"),
            ("name=%ff", "name: expected text"),
            ("netrc=x", "netrc: expected an absolute path"),
            ("time=soon", "recovery_target_time 'soon'"),
            ("xid=1&immediate=1", "Specify at most one"),
            ("xid=1&immediate=0", "ok"),
            ("action=sleep", "action: expected"),
            ("role=x", "role: expected"),
            ("tablespace=a", "tablespace: expected"),
        ] {
            let order = Query::parse(text, &TARRED).and_then(|query| {
                let way = query.way("http://h:1".into())?;
                Order::new("main", LATEST, &query, &way)
            });
            let told = order.map_or_else(|failure| failure.message, |_| "ok".to_owned());
            assert!(told.starts_with(expected), "{text}: {told}");
        }
    }
}
