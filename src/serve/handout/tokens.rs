//! The hand-outs that are live: what each token opens, and how far it came.
//!
//! Tokens are 128 random bits, kept as digests, in memory alone: a restart of the daemon ends them
//! all. Each opens its tar once, and its site's WAL until it expires.
//!
//! Budget: [`LIVE_MAX`] of a few hundred bytes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use machine::{Class, Millis};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Query;
use crate::clock;
use crate::config::Secret;
use crate::failure::{Failure, Outcome};
use crate::publish::text::iso;

pub const LIVE_MAX: usize = 32;
/// Of the digest, which tells nothing of the token: enough to tell hand-outs apart.
const ID_BYTES: usize = 4;

pub type Digest = [u8; 32];

/// What is looked up, so that the time taken tells nothing of a token.
pub fn digest(token: &str) -> Digest {
    Sha256::digest(token.as_bytes()).into()
}

/// What a token opens.
#[derive(Debug)]
pub struct Terms {
    /// That the basebackup is of, and all that is opened.
    pub site: String,
    /// Whose basebackups and those before them were chosen from.
    pub asked: String,
    /// Of the basebackup.
    pub backup: String,
    pub query: Query,
    /// Where the database host reaches this daemon.
    pub origin: String,
}

#[cfg(test)]
impl Terms {
    pub fn of(site: &str, backup: &str) -> Terms {
        Terms {
            site: site.into(),
            asked: site.into(),
            backup: backup.into(),
            query: Query(Vec::new()),
            origin: "http://h:1".into(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Sending,
    Sent,
    Broken,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Stage::Waiting => "waiting",
            Stage::Sending => "sending",
            Stage::Sent => "sent",
            Stage::Broken => "broken",
        }
    }
}

#[derive(Debug)]
struct Live {
    terms: Arc<Terms>,
    stage: Stage,
    sent: Arc<AtomicU64>,
    /// About so many there are to send; 0 where the backup does not say.
    bytes: u64,
    wal_files: u64,
    created: Millis,
    expires: Millis,
    until: Instant,
}

/// A hand-out as its maker is told, once.
#[derive(Debug)]
pub struct Made {
    pub token: Secret,
    pub id: String,
    pub expires: Millis,
}

#[derive(Clone, Debug, Default)]
pub struct Handouts(Arc<Mutex<BTreeMap<Digest, Live>>>);

impl Handouts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Live>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        all.retain(|_, live| live.until > now || live.stage == Stage::Sending);
        all
    }

    pub fn make(&self, terms: Terms, bytes: u64, life: Duration) -> Outcome<Made> {
        let mut all = self.lock();
        if all.len() >= LIVE_MAX {
            let first = all.values().map(|live| live.expires).min();
            let first = first.map_or_else(String::new, iso);
            let message = format!("{LIVE_MAX} hand-outs are live, the first expires at {first}");
            return Err(Failure::new(Class::Quota, message));
        }
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|e| Failure::new(Class::Internal, format!("no randomness: {e}")))?;
        let token = hex::encode(random);
        let (created, digest) = (clock::now(), digest(&token));
        let expires = created.plus(u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
        let live = Live {
            terms: Arc::new(terms),
            stage: Stage::Waiting,
            sent: Arc::default(),
            bytes,
            wal_files: 0,
            created,
            expires,
            until: Instant::now() + life,
        };
        all.insert(digest, live);
        Ok(Made {
            token: Secret::new(token),
            id: id(&digest),
            expires,
        })
    }

    /// One that its maker never heard of.
    pub fn withdraw(&self, made: &Made) {
        self.lock().remove(&digest(made.token.reveal()));
    }

    /// The site whose WAL the token opens.
    pub fn site(&self, digest: &Digest) -> Option<String> {
        let all = self.lock();
        let live = all.get(digest).filter(|live| live.until > Instant::now())?;
        Some(live.terms.site.clone())
    }

    /// The tar, for the first who asks; `None` for all others.
    pub fn open(&self, digest: &Digest) -> Option<Opening> {
        let mut all = self.lock();
        let live = all
            .get_mut(digest)
            .filter(|live| live.stage == Stage::Waiting)?;
        live.stage = Stage::Sending;
        Some(Opening {
            all: self.clone(),
            digest: *digest,
            terms: Arc::clone(&live.terms),
            sent: Arc::clone(&live.sent),
            end: Stage::Broken,
        })
    }

    /// A file of WAL was given out.
    pub fn fetched(&self, digest: &Digest) {
        if let Some(live) = self.lock().get_mut(digest) {
            live.wal_files += 1;
        }
    }

    /// For who looks on; the newest last.
    pub fn list(&self) -> Value {
        let all = self.lock();
        let mut rows: Vec<(&Digest, &Live)> = all.iter().collect();
        rows.sort_by_key(|(_, live)| live.created);
        let rows = rows.iter().map(|(digest, live)| {
            json!({
                "backup": live.terms.backup,
                "bytes": (live.bytes > 0).then_some(live.bytes),
                "bytes_sent": live.sent.load(Ordering::Relaxed),
                "created": iso(live.created),
                "expires": iso(live.expires),
                "id": id(digest),
                "site": live.terms.site,
                "state": live.stage.name(),
                "wal_files": live.wal_files,
            })
        });
        json!({ "handouts": rows.collect::<Vec<_>>() })
    }
}

fn id(digest: &Digest) -> String {
    hex::encode(digest.iter().copied().take(ID_BYTES).collect::<Vec<u8>>())
}

/// A tar that is being sent; one that is dropped without a word broke off.
#[derive(Debug)]
pub struct Opening {
    all: Handouts,
    digest: Digest,
    pub terms: Arc<Terms>,
    pub sent: Arc<AtomicU64>,
    end: Stage,
}

impl Opening {
    pub fn done(mut self) {
        self.end = Stage::Sent;
    }

    /// It was refused before its first byte: the token opens it still.
    pub fn back(mut self) {
        self.end = Stage::Waiting;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(live) = self.all.lock().get_mut(&self.digest) {
            live.stage = self.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(site: &str) -> Terms {
        Terms::of(site, "b")
    }

    fn state(all: &Handouts) -> String {
        let list = all.list();
        list["handouts"][0]["state"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_token_opens_its_tar_once_and_its_site_until_it_expires() {
        let all = Handouts::default();
        let hour = Duration::from_secs(3_600);
        let made = all.make(terms("main"), 7, hour).unwrap();
        let known = digest(made.token.reveal());
        assert_eq!(made.token.reveal().len(), 32);
        assert!(!format!("{made:?}{all:?}").contains(made.token.reveal()));
        assert_eq!(all.site(&known).as_deref(), Some("main"));
        assert_eq!(all.site(&digest("guess")), None);
        assert!(all.open(&digest("guess")).is_none());
        // Refused before the first byte, then broken.
        all.open(&known).unwrap().back();
        assert_eq!(state(&all), "waiting");
        let opening = all.open(&known).unwrap();
        assert_eq!(state(&all), "sending");
        assert!(all.open(&known).is_none());
        drop(opening);
        assert_eq!(state(&all), "broken");
        assert!(all.open(&known).is_none());
        all.fetched(&known);
        assert_eq!(all.list()["handouts"][0]["wal_files"], 1);

        let brief = all.make(terms("main"), 0, Duration::ZERO).unwrap();
        assert_eq!(all.site(&digest(brief.token.reveal())), None);
        all.withdraw(&made);
        assert_eq!(all.site(&known), None);
        for _ in 0..LIVE_MAX {
            all.make(terms("main"), 0, hour).unwrap();
        }
        let refused = all.make(terms("main"), 0, hour).unwrap_err();
        assert!(refused.message.starts_with("32 hand-outs are live"));
    }
}
