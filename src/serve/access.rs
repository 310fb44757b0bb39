//! Who asks, by what a request shows, and what he may.
//!
//! A name and password open everything. A bearer token opens what it was made for and nothing
//! else: a hand-out its tar, once, and the WAL of its site; the monitor's what there is to see.
//! Digests are compared, so that the time taken tells nothing of a secret.

use hyper::StatusCode;
use hyper::header::HeaderValue;
use sha2::{Digest as _, Sha256};

use super::Server;
use super::answer::Answer;
use super::handout::tokens::{Digest, digest};
use super::routes::table::Act;
use super::routes::{Asked, Found};
use crate::config::Secret;

#[derive(Clone, Debug)]
pub enum Caller {
    /// With name and password, or where none are wanted.
    Full,
    Handout(Ticket),
    /// With the token that may look.
    Monitor,
}

#[derive(Clone, Debug)]
pub struct Ticket {
    pub digest: Digest,
    pub site: String,
    /// The script in the tar carries it on.
    pub token: Secret,
}

impl Server {
    /// Who asks, or the refusal of a stranger.
    pub(super) fn caller(&self, given: Option<&HeaderValue>) -> Result<Caller, Answer> {
        if let Some(token) = given.and_then(bearer) {
            let digest = digest(token);
            if self.monitor == Some(digest) {
                return Ok(Caller::Monitor);
            }
            let Some(site) = self.routes.handouts.site(&digest) else {
                let message = "this token is unknown, or has expired";
                return Err(Answer::text(StatusCode::UNAUTHORIZED, message));
            };
            return Ok(Caller::Handout(Ticket {
                digest,
                site,
                token: Secret::new(token),
            }));
        }
        let given = given.map(|given| <[u8; 32]>::from(Sha256::digest(given.as_bytes())));
        match self.authorization.is_none() || self.authorization == given {
            true => Ok(Caller::Full),
            false => Err(Answer::unauthorized()),
        }
    }
}

/// The token of `Authorization: Bearer TOKEN`.
fn bearer(given: &HeaderValue) -> Option<&str> {
    let (scheme, token) = given.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

impl Caller {
    /// Whether this is his to ask for.
    pub fn may(&self, found: &Found, asked: &Asked) -> Result<(), Answer> {
        let refused = |message: String| Err(Answer::text(StatusCode::FORBIDDEN, message));
        match self {
            Caller::Full => Ok(()),
            Caller::Monitor => match found.route.act {
                Act::Status | Act::Metrics | Act::Files | Act::File | Act::Log => Ok(()),
                _ => refused("this token may look: /status, /metrics, /files, /log".to_owned()),
            },
            Caller::Handout(ticket) => {
                let fits = match found.route.act {
                    Act::HandOver | Act::Find => true,
                    // Nothing is written on this machine for it.
                    Act::Fetch => asked.bring,
                    _ => false,
                };
                match fits && ticket.site == found.site {
                    true => Ok(()),
                    false => refused(format!(
                        "this token is for one restore of site '{}': its tar, once, and its WAL",
                        ticket.site
                    )),
                }
            }
        }
    }
}
