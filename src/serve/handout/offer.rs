//! A restore for a host that is given no login: `PUT /SITE/handout` makes a token and the line to
//! paste there, `GET /SITE/handout/tar` opens the tar for it, once, `GET /handouts` looks on.
//!
//! What is wrong with a wish is refused when it is made, not at the database host: 400, 404 where
//! no basebackup fits, 409 where it cannot come there. The basebackup is chosen then, too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use machine::Class;
use serde::Deserialize;
use serde_json::json;

use super::script::Way;
use super::tokens::{Made, Terms};
use super::{LATEST, Order, Query, Refused, open, plan, refusal, refused, unable, unfit};
use crate::config;
use crate::failure::Outcome;
use crate::publish::text::{iso, pretty};
use crate::restore::recovery::shell;
use crate::serve::access::Caller;
use crate::serve::answer::Answer;
use crate::serve::operator::{client, operated};
use crate::serve::routes::{Asked, Routes};

/// A week: WAL is fetched as long as a recovery takes.
const MINUTES_MAX: u64 = 7 * 24 * 60;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default = "latest")]
    backup: String,
    time: Option<String>,
    lsn: Option<String>,
    name: Option<String>,
    xid: Option<String>,
    #[serde(default)]
    immediate: bool,
    action: Option<String>,
    timeline: Option<String>,
    role: Option<String>,
    #[serde(default)]
    tablespaces: BTreeMap<String, String>,
    url: Option<String>,
    cacert: Option<String>,
    #[serde(default = "a_day")]
    minutes: u64,
    #[serde(default = "client")]
    by: String,
}

fn latest() -> String {
    LATEST.to_owned()
}

fn a_day() -> u64 {
    24 * 60
}

impl Wanted {
    /// As the parameters of a request for a tar.
    fn query(&self) -> Outcome<Query> {
        let given = [
            ("time", &self.time),
            ("lsn", &self.lsn),
            ("name", &self.name),
            ("xid", &self.xid),
            ("action", &self.action),
            ("timeline", &self.timeline),
            ("role", &self.role),
            ("url", &self.url),
            ("cacert", &self.cacert),
        ];
        let given = given.into_iter();
        let mut all: Vec<(String, String)> = given
            .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)))
            .collect();
        if self.immediate {
            all.push(("immediate".to_owned(), "1".to_owned()));
        }
        let spaces = self.tablespaces.iter();
        all.extend(spaces.map(|(name, to)| ("tablespace".to_owned(), format!("{name}={to}"))));
        match all.iter().find(|(_, v)| v.contains(char::is_control)) {
            Some((name, _)) => Err(refused(format!("{name}: expected printable text"))),
            None => Ok(Query(all)),
        }
    }
}

impl Routes {
    pub fn offer(&self, site: &config::Site, asked: &Asked) -> Outcome<Answer> {
        let bad = |message: String| Ok(Answer::text(StatusCode::BAD_REQUEST, message));
        let wanted: Wanted = match serde_json::from_slice(&asked.body) {
            Ok(wanted) => wanted,
            Err(error) => return bad(format!("no JSON of a hand-out: {error}")),
        };
        if !(1..=MINUTES_MAX).contains(&wanted.minutes) {
            return bad(format!("minutes: expected 1 to {MINUTES_MAX}"));
        }
        let (terms, bytes) = match self.terms(site, &wanted, asked.host.as_ref()) {
            Ok(chosen) => chosen,
            Err(refused) => return Ok(refusal(refused)),
        };
        let (backup, origin) = (terms.backup.clone(), terms.origin.clone());
        // The token is for the site that the basebackup is of, and so is all that it opens.
        let holder = terms.site.clone();
        let life = Duration::from_secs(wanted.minutes * 60);
        let made = match self.handouts.make(terms, bytes, life) {
            Err(failure) if failure.class == Class::Quota => {
                let message = failure.message;
                return Ok(Answer::text(StatusCode::SERVICE_UNAVAILABLE, message));
            }
            made => made?,
        };
        let expires = iso(made.expires);
        let told = operated(&wanted.by, "handout", &format!("{backup}, until {expires}"));
        let site_name = machine::Site(site.name.clone());
        let recorded = match told {
            Ok(event) => self.context.record(vec![(Some(site_name), event)]),
            Err(why) => {
                self.handouts.withdraw(&made);
                return bad(why.replacen("'who'", "'by'", 1));
            }
        };
        if let Err(failure) = recorded {
            self.handouts.withdraw(&made);
            return Err(failure);
        }
        let text = pretty(&json!({
            "backup": backup,
            "bytes": (bytes > 0).then_some(bytes),
            "command": wanted.command(&holder, &made, &origin),
            "expires": expires,
            "id": made.id,
            "site": holder,
            "token": made.token.reveal(),
        }))?;
        Ok(Answer::json(StatusCode::CREATED, &text))
    }

    /// What it comes to, and about how many bytes that is.
    fn terms(
        &self,
        site: &config::Site,
        wanted: &Wanted,
        host: Option<&HeaderValue>,
    ) -> Result<(Terms, u64), Refused> {
        let bad = |failure| (StatusCode::BAD_REQUEST, failure);
        let query = wanted.query().map_err(bad)?;
        let origin = self.origin(&query, host).map_err(bad)?;
        let way = query.way(origin.clone()).map_err(bad)?;
        let order = Order::new(&site.name, &wanted.backup, &query, &way).map_err(bad)?;
        let opened = open(&self.context.config, &order).map_err(unable)?;
        let planned = plan(&opened, &order)?;
        let base = planned.key.rsplit('/').next().unwrap_or_default();
        let terms = Terms {
            site: planned.site,
            asked: site.name.clone(),
            backup: base.split('.').next().unwrap_or(base).to_owned(),
            query,
            origin,
        };
        Ok((terms, planned.bytes))
    }

    /// The tar for the token that the request shows.
    pub fn hand_over(&self, asked: &Asked) -> Answer {
        let Caller::Handout(ticket) = &asked.caller else {
            let message = "the tar of a hand-out is opened by its token alone";
            return Answer::text(StatusCode::FORBIDDEN, message);
        };
        if let Some(answer) = unfit(asked) {
            return answer;
        }
        let Some(opening) = self.handouts.open(&ticket.digest) else {
            let message = "this token has opened its tar before: ask for another hand-out";
            return Answer::text(StatusCode::GONE, message);
        };
        let terms = Arc::clone(&opening.terms);
        let way = terms.query.way(terms.origin.clone()).map(|way| Way {
            token: Some(ticket.token.clone()),
            ..way
        });
        let order = way.and_then(|way| Order::new(&terms.asked, &terms.backup, &terms.query, &way));
        match order {
            Ok(order) => self.start(order, Some(opening)),
            Err(failure) => {
                opening.back();
                refusal((StatusCode::BAD_REQUEST, failure))
            }
        }
    }
}

impl Wanted {
    /// One line for a POSIX shell, in an empty directory, as the user PostgreSQL runs as. The token
    /// is in no list of processes: `printf` is a part of the shell.
    fn command(&self, site: &str, made: &Made, origin: &str) -> String {
        let (token, url) = (made.token.reveal(), format!("{origin}/{site}/handout/tar"));
        let cacert = match &self.cacert {
            Some(path) => format!(" --cacert {}", shell(path)),
            None => String::new(),
        };
        let absolute = if self.tablespaces.is_empty() {
            ""
        } else {
            " -P"
        };
        format!(
            "printf 'header = \"Authorization: Bearer %s\"\\n' {token} | \
             curl -q -g -f -K -{cacert} {} | tar -x{absolute}",
            shell(&url)
        )
    }
}
