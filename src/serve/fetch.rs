//! WAL and history files for a recovering server: `GET` writes the file, `HEAD` only asks.
//!
//! The daemon writes to the path that the client names, so that path is held to the site's
//! `pg_data_directory`, links and `..` resolved. With the header `x-pghoard-body` the file is the
//! answer's body instead, with 200. The answer 404 with the header
//! `x-pghoard-absent` is a confirmed absence, which PostgreSQL takes for the end of the archive:
//! whatever is not sure is 503. Any other 404 may come from a stranger on this port.
//!
//! The spool's sealed file comes first, because it may not be stored yet; then the stores; and
//! only when no store has a full one the unfinished segment, padded with zeros and marked by the
//! header `x-pghoard-partial`. Before all of them comes what was fetched ahead, which is told by
//! the header `x-pghoard-ahead`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderValue};
use machine::{Class, Segment, Timeline};

use super::answer::Answer;
use super::routes::{Asked, Routes};
use crate::config::{Config, Site};
use crate::durable;
use crate::failure::{Failure, Outcome};
use crate::restore::Opened;
use crate::restore::ahead::{Ahead, Order};
use crate::restore::wal::{self, Delivery, Places};
use crate::store::Object;

pub const TARGET_HEADER: &str = "x-pghoard-target-path";
pub const BODY_HEADER: &str = "x-pghoard-body";
/// The system identifier of the server that recovers: nothing of another cluster is for it.
pub const CLUSTER_HEADER: &str = "x-pghoard-system-id";
pub const ABSENT_HEADER: &str = "x-pghoard-absent";
const PARTIAL_HEADER: &str = "x-pghoard-partial";
const AHEAD_HEADER: &str = "x-pghoard-ahead";
/// Folder of segments fetched ahead, below the site's.
const AHEAD: &str = "prefetch";
/// Servers of one cluster that recover at a time.
const READERS_MAX: usize = 4;
/// Folder of files on their way into an answer, below the site's; each is unlinked once it is open.
const OUTGOING: &str = "scratch";

/// The names that PostgreSQL's archive is asked for.
pub fn is_archived(name: &str) -> bool {
    Segment::is_name(name) || Timeline::from_history_name(name).is_some()
}

/// Which cluster recovers, where that is told.
pub fn cluster(headers: &HeaderMap) -> Option<u64> {
    headers.get(CLUSTER_HEADER)?.to_str().ok()?.parse().ok()
}

/// The look-ahead of each site, where the configuration wants one.
pub fn look_ahead(config: &Arc<Config>) -> BTreeMap<String, Ahead> {
    let root = config.backup_location.as_ref();
    let Some(root) = root.filter(|_| config.restore_prefetch > 0) else {
        return BTreeMap::new();
    };
    let begin = |site: &Site| {
        let folder = root.join(&site.prefix).join(AHEAD);
        durable::make_folders(&folder)?;
        Ahead::new(Order {
            config: Arc::clone(config),
            site: site.name.clone(),
            // Servers of any may ask.
            cluster: None,
            folder,
            readers_max: READERS_MAX,
        })
    };
    let sites = config.sites.iter();
    let begun = sites.filter_map(|(name, site)| match begin(site) {
        Ok(ahead) => Some((name.clone(), ahead)),
        Err(failure) => {
            log::warn!("no WAL is fetched ahead for site '{name}': {failure}");
            None
        }
    });
    begun.collect()
}

impl Routes {
    pub fn fetch(&self, site: &Site, name: &str, asked: &Asked) -> Outcome<Answer> {
        let related = self.context.config.related(site);
        match checked(asked.target.as_ref(), &related) {
            Ok(target) => self.deliver(&related, name, &target, asked.cluster),
            Err(answer) => Ok(answer),
        }
    }

    /// The file as the body of the answer, for a server on another machine.
    pub fn bring(&self, site: &Site, name: &str, cluster: Option<u64>) -> Outcome<Answer> {
        let config = &self.context.config;
        let root = config.backup_location.as_ref().ok_or_else(|| {
            Failure::new(
                Class::Config,
                "backup_location is not set, a file has no way out",
            )
        })?;
        let folder = root.join(&site.prefix).join(OUTGOING);
        fs::create_dir_all(&folder).map_err(|e| Failure::io(&e, folder.display()))?;
        let number = self.outgoing.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{name}.{number}"));
        let mut answer = self.deliver(&config.related(site), name, &path, cluster)?;
        if answer.status == StatusCode::CREATED {
            let file = File::open(&path).map_err(|e| Failure::io(&e, path.display()))?;
            // It lasts as long as it is read.
            fs::remove_file(&path).map_err(|e| Failure::io(&e, path.display()))?;
            answer.status = StatusCode::OK;
            answer.file = Some(file);
        }
        Ok(answer)
    }

    /// `related`: the asked site first.
    fn deliver(
        &self,
        related: &[&Site],
        name: &str,
        target: &Path,
        cluster: Option<u64>,
    ) -> Outcome<Answer> {
        let config = &self.context.config;
        let Some(_claim) = Claim::new(&self.fetching, target) else {
            let message = "this file is being fetched for an earlier request, ask again";
            return Err(Failure::new(Class::Interrupted, message));
        };
        let mut answer = Answer::new(StatusCode::CREATED);
        let ahead = related.first().and_then(|site| self.ahead.get(&site.name));
        let ahead = ahead.filter(|_| Segment::is_name(name));
        let taken = ahead.and_then(|ahead| ahead.take(name));
        if let Some(taken) = taken.filter(|taken| wal::cluster::fits(taken.path(), cluster)) {
            match wal::hand_over(taken.path(), target) {
                Ok(()) => {
                    log::debug!("{name}: had been fetched ahead");
                    answer.headers.push((AHEAD_HEADER, "true".to_owned()));
                    return Ok(answer);
                }
                Err(failure) => log::warn!("{name}: had been fetched ahead in vain: {failure}"),
            }
        }
        // A sealed file of the spool needs no store.
        let spools = Places {
            stores: Vec::new(),
            spools: wal::spools(config, related.iter().copied().take(1)),
            cluster,
        };
        let delivery = match wal::fetch_full(&spools, name, target)? {
            true => Delivery::Full,
            // Stored and gone in between, perhaps: then a store has it.
            false => {
                let opened = open(related)?;
                wal::fetch(&Places::new(&opened, config, cluster), name, target)?
            }
        };
        match delivery {
            Delivery::Full => {
                let written =
                    fs::metadata(target).map_err(|e| Failure::io(&e, target.display()))?;
                if let Some(ahead) = ahead {
                    ahead.asked(name, written.len());
                }
            }
            Delivery::Partial { bytes } => {
                log::warn!(
                    "{name}: no store has it; the unfinished segment was served, with {bytes} \
                     bytes of WAL"
                );
                answer.headers.push((PARTIAL_HEADER, "true".to_owned()));
            }
            Delivery::Absent => return Ok(absent(name)),
        }
        Ok(answer)
    }

    pub fn look(&self, site: &Site, name: &str) -> Outcome<Answer> {
        let config = &self.context.config;
        let related = config.related(site);
        if !is_archived(name) {
            return Ok(absent(name));
        }
        let mut answer = Answer::new(StatusCode::OK);
        let opened = open(&related)?;
        for opened in &opened {
            if let Some(object) = look(opened, name)? {
                let hash = object.metadata.get("hash");
                let algorithm = object.metadata.get("hash-algorithm");
                if let Some((hash, algorithm)) = hash.zip(algorithm) {
                    answer.headers.push(("metadata-hash", hash.clone()));
                    let name = "metadata-hash-algorithm";
                    answer.headers.push((name, algorithm.clone()));
                }
                return Ok(answer);
            }
        }
        let places = Places::new(&opened, config, None);
        if places.spools.iter().any(|spool| spool.join(name).is_file()) {
            return Ok(answer);
        }
        wal::confirm(&places)?;
        Ok(absent(name))
    }
}

pub fn absent(name: &str) -> Answer {
    let mut answer = Answer::text(StatusCode::NOT_FOUND, format!("{name} not found"));
    answer.headers.push((ABSENT_HEADER, "true".to_owned()));
    answer
}

fn look(opened: &Opened<'_>, name: &str) -> Outcome<Option<Object>> {
    let folder = if Segment::is_name(name) {
        "xlog"
    } else {
        "timeline"
    };
    opened
        .store
        .look(&format!("{}/{folder}/{name}", opened.site.prefix))
}

fn open<'a>(related: &[&'a Site]) -> Outcome<Vec<Opened<'a>>> {
    related.iter().map(|site| Opened::new(site)).collect()
}

/// The target, if it lies in the data directory of one of the sites.
fn checked(target: Option<&HeaderValue>, related: &[&Site]) -> Result<PathBuf, Answer> {
    let refused = |message: String| Answer::text(StatusCode::BAD_REQUEST, message);
    let Some(given) = target else {
        return Err(refused(format!(
            "{TARGET_HEADER} header missing from download"
        )));
    };
    let given = given.to_str();
    let given = given.map_err(|_| refused(format!("{TARGET_HEADER} is not readable")))?;
    let target = Path::new(given);
    if !target.is_absolute() {
        return Err(refused(format!(
            "Invalid xlog file path {given:?}: not absolute"
        )));
    }
    let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(refused(format!(
            "Invalid xlog file path {given:?}: no file"
        )));
    };
    let roots: Vec<&PathBuf> = related
        .iter()
        .filter_map(|s| s.pg_data_directory.as_ref())
        .collect();
    if roots.is_empty() {
        let site = related.first().map_or("", |site| site.name.as_str());
        return Err(refused(format!(
            "site '{site}' has no pg_data_directory to write to; set it, or let \
             pghoard_postgres_command read the store with --config"
        )));
    }
    let Ok(folder) = fs::canonicalize(folder) else {
        let message = format!("Target directory of {given:?} does not exist");
        return Err(Answer::text(StatusCode::CONFLICT, message));
    };
    let inside =
        |root: &&PathBuf| fs::canonicalize(root).is_ok_and(|root| folder.starts_with(root));
    match roots.iter().any(inside) {
        true => Ok(folder.join(name)),
        false => Err(refused(format!(
            "Invalid xlog file path {given:?}: not in pg_data_directory"
        ))),
    }
}

/// A target that is being written, until dropped.
struct Claim<'a> {
    all: &'a Mutex<BTreeSet<PathBuf>>,
    target: PathBuf,
}

impl<'a> Claim<'a> {
    fn new(all: &'a Mutex<BTreeSet<PathBuf>>, target: &Path) -> Option<Claim<'a>> {
        let target = target.to_owned();
        let mine = hold(all).insert(target.clone());
        mine.then_some(Claim { all, target })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        hold(self.all).remove(&self.target);
    }
}

fn hold<T>(all: &Mutex<T>) -> MutexGuard<'_, T> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}
