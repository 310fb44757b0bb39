//! `pghoard verify`: reads stored objects and says whether a restore can use them. It needs the
//! store and the configuration, no daemon; what it finds is marked in the store, where a daemon
//! sees it within minutes.
//!
//! | code | when |
//! |---|---|
//! | 0 | everything is good |
//! | 1 | something is damaged or missing |
//! | 2 | wrong command line or configuration |
//! | 3 | something could not be judged: no private key, no answer from the store |

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use clap::Parser;
use indicatif::ProgressBar;
use machine::projection::marks::Mark;
use machine::{BackupName, File, SegmentSize};
use serde_json::{Value, json};

use super::{print, screen, warn};
use crate::clock;
use crate::config::{Config, Site};
use crate::failure::{Failure, Outcome};
use crate::publish::text;
use crate::store::choose::{self, Missing};
use crate::work::pace::Pace;
use crate::work::verify::{Item, Plan, Verdict, Verifier};
use crate::work::{Place, marks, reconcile};
use choice::Choice;

mod choice;

#[derive(Parser)]
#[command(name = "pghoard verify", version, infer_long_args = true)]
/// Read stored objects and say whether a restore can use them
///
/// Without --backup or --all: the newest basebackup and its WAL up to the newest segment.
struct Flags {
    /// Only this site
    #[arg(long)]
    site: Option<String>,
    /// This basebackup and the WAL that makes it consistent
    #[arg(long, value_name = "NAME", conflicts_with = "all")]
    backup: Option<String>,
    /// Everything there is
    #[arg(long)]
    all: bool,
    /// For programs
    #[arg(long)]
    json: bool,
    /// Do not mark in the store what is found damaged
    #[arg(long)]
    dry_run: bool,
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Configuration file, where --config is not given
    config_file: Option<PathBuf>,
}

const GOOD: i32 = 0;
const DAMAGED: i32 = 1;
const USAGE: i32 = 2;
const UNJUDGED: i32 = 3;

/// Objects read at a time: decompression is the limit, not the network.
const WORKERS_MAX: usize = 8;

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let mut flags: Flags = match super::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    let path = flags.config.take().or(flags.config_file.take());
    let config = match screen::config(path) {
        Ok(config) => config,
        Err(failure) => return refuse(&failure),
    };
    let sites: Vec<&Site> = match &flags.site {
        Some(name) => match config.site(Some(name)) {
            Ok(site) => vec![site],
            Err(failure) => return refuse(&failure),
        },
        None => config.sites.values().collect(),
    };
    let mut tallies = Vec::new();
    for site in sites {
        match verify(&config, site, &flags) {
            Ok(tally) => tallies.push(tally),
            Err(failure) if failure.class == machine::Class::Config => return refuse(&failure),
            Err(failure) => {
                let mut tally = Tally::new(&site.name);
                let failure = failure.to_string();
                tally.say(&flags, "unreadable", &site.prefix, &failure);
                tally.unreadable.push((site.prefix.clone(), failure));
                tallies.push(tally);
            }
        }
    }
    let told = match flags.json {
        true => json(&tallies),
        false => tallies.iter().map(Tally::summary).collect(),
    };
    match print(&told) {
        Ok(()) => tallies
            .iter()
            .map(Tally::code)
            .max_by_key(|code| rank(*code)),
        Err(failure) => return refuse(&failure),
    }
    .unwrap_or(GOOD)
}

fn refuse(failure: &Failure) -> i32 {
    warn(format_args!("pghoard verify: {failure}"));
    USAGE
}

/// Damage outweighs doubt.
fn rank(code: i32) -> u8 {
    match code {
        DAMAGED => 2,
        UNJUDGED => 1,
        _ => 0,
    }
}

fn verify(config: &Config, site: &Site, flags: &Flags) -> Outcome<Tally> {
    let store = choose::store(site.storage()?, Missing::Refuse)?;
    let place = Place::to_read(&site.name, &site.prefix, Arc::from(store), site.keyring()?);
    let size = reconcile::stored_size(&place)?;
    let choice = match (&flags.backup, flags.all) {
        (Some(name), _) => choice::of_backup(&place, size, name)?,
        (None, true) => choice::of_all(&place, size)?,
        (None, false) => choice::of_newest(&place, size)?,
    };
    let mut marked = BTreeSet::new();
    let prefix = place.key("");
    place.store.list(&place.key("mark"), &mut |entry| {
        marked.extend(entry.key.strip_prefix(&prefix).map(str::to_owned));
        Ok(())
    })?;
    let verifier = Verifier {
        place: &place,
        size,
        cluster: None,
        pace: Pace::new(None, || false),
    };
    let threads = usize::try_from(config.transfer_threads).unwrap_or(1);
    let mut check = Check {
        verifier: &verifier,
        flags,
        marked,
        threads: threads.clamp(1, WORKERS_MAX),
        tally: Tally::new(&site.name),
    };
    check.all(choice)?;
    Ok(check.tally)
}

struct Check<'a> {
    verifier: &'a Verifier<'a>,
    flags: &'a Flags,
    /// Keys of the marks there are.
    marked: BTreeSet<String>,
    threads: usize,
    tally: Tally,
}

impl Check<'_> {
    fn all(&mut self, choice: Choice) -> Outcome<()> {
        let Choice {
            backups,
            items,
            missing,
            unknown,
        } = choice;
        self.tally.unknown = unknown;
        self.note(&format!(
            "site '{}': {} basebackups and {} other objects to verify",
            self.tally.site,
            backups.len(),
            items.len()
        ));
        for key in missing {
            self.tally.miss(self.flags, &key);
        }
        for (name, object) in backups {
            self.backup(&name, &object)?;
        }
        for (item, verdict) in self.look(items) {
            self.settle(&item.file, &item.key, verdict);
        }
        Ok(())
    }

    /// The main object is judged by all that has no name of its own.
    fn backup(&mut self, name: &BackupName, object: &str) -> Outcome<()> {
        let Plan { mut main, items } = self.verifier.backup(name, Some(object))?;
        self.note(&format!(
            "site '{}': basebackup {name}, {} objects",
            self.tally.site,
            items.len() + 1
        ));
        for (item, verdict) in self.look(items) {
            if let File::Part { .. } = &item.file {
                self.settle(&item.file, &item.key, verdict);
                continue;
            }
            let good = matches!(main, Verdict::Good { .. } | Verdict::Partly { .. });
            match verdict {
                Verdict::Good { bytes } | Verdict::Partly { bytes } => self.tally.add(bytes),
                Verdict::Damaged(why) if good => {
                    main = Verdict::Damaged(format!("'{}': {why}", item.key));
                }
                Verdict::Gone if good => {
                    main = Verdict::Damaged(format!("it lacks '{}'", item.key));
                }
                Verdict::Unreadable(failure) if good => {
                    main = Verdict::Unreadable(failure.about(&item.key));
                }
                Verdict::Damaged(_) | Verdict::Gone | Verdict::Unreadable(_) => {}
            }
        }
        let main_key = format!("basebackup/{object}");
        self.settle(&File::Main(name.clone()), &main_key, main);
        Ok(())
    }

    /// Several at a time; the answers come as they are found.
    fn look(&self, items: Vec<Item>) -> Vec<(Item, Verdict)> {
        let bar = match self.flags.json {
            true => ProgressBar::hidden(),
            false => ProgressBar::new(u64::try_from(items.len()).unwrap_or(u64::MAX)),
        };
        let queue = Mutex::new(items.into_iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let (sender, answers) = mpsc::channel();
        let found = thread::scope(|scope| {
            for _ in 0..self.threads {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    while let Some(item) = next() {
                        let verdict = self.verifier.check(&item);
                        // Nobody listens any more only where the whole command ends.
                        let _unheard = sender.send((item, verdict));
                    }
                });
            }
            drop(sender);
            answers.iter().inspect(|_| bar.inc(1)).collect()
        });
        bar.finish_and_clear();
        found
    }

    fn settle(&mut self, file: &File, key: &str, verdict: Verdict) {
        let size = self.verifier.size;
        match verdict {
            Verdict::Good { bytes } => {
                self.tally.add(bytes);
                self.unmark(&marks::damaged_key(file, size));
            }
            Verdict::Partly { bytes } => {
                self.tally.partly += 1;
                self.tally.add(bytes);
            }
            Verdict::Damaged(detail) => {
                self.tally.say(self.flags, "damaged", key, &detail);
                self.mark(file, &detail, size);
                self.tally.damaged.push((key.to_owned(), detail));
            }
            Verdict::Gone => self.tally.miss(self.flags, key),
            Verdict::Unreadable(failure) => self.doubt(key, failure.to_string()),
        }
    }

    fn mark(&mut self, file: &File, detail: &str, size: SegmentSize) {
        let key = marks::damaged_key(file, size);
        if self.flags.dry_run || self.marked.contains(&key) {
            return;
        }
        let mark = Mark::Damaged {
            file: file.clone(),
            detail: detail.to_owned(),
            at: clock::now(),
        };
        if let Err(failure) = marks::write(self.verifier.place, mark, size) {
            self.doubt(&key, failure.to_string());
        }
    }

    fn unmark(&mut self, key: &str) {
        if self.flags.dry_run || !self.marked.contains(key) {
            return;
        }
        if let Err(failure) = marks::remove(self.verifier.place, key) {
            self.doubt(key, failure.to_string());
        }
    }

    fn doubt(&mut self, key: &str, why: String) {
        self.tally.say(self.flags, "unreadable", key, &why);
        self.tally.unreadable.push((key.to_owned(), why));
    }

    fn note(&self, text: &str) {
        if !self.flags.json {
            warn(text);
        }
    }
}

/// What was found in one site.
struct Tally {
    site: String,
    good: u64,
    bytes: u64,
    /// Of the good ones, judged without the private key.
    partly: u64,
    /// Objects whose names say nothing.
    unknown: u64,
    damaged: Vec<(String, String)>,
    missing: Vec<String>,
    unreadable: Vec<(String, String)>,
}

impl Tally {
    fn new(site: &str) -> Tally {
        Tally {
            site: site.to_owned(),
            good: 0,
            bytes: 0,
            partly: 0,
            unknown: 0,
            damaged: Vec::new(),
            missing: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    fn add(&mut self, bytes: u64) {
        self.good += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn miss(&mut self, flags: &Flags, key: &str) {
        self.say(flags, "missing", key, "it is not in the store");
        self.missing.push(key.to_owned());
    }

    fn say(&self, flags: &Flags, what: &str, key: &str, why: &str) {
        if !flags.json {
            super::say(&format!("{what}: site '{}': '{key}': {why}\n", self.site));
        }
    }

    fn code(&self) -> i32 {
        if !self.damaged.is_empty() || !self.missing.is_empty() {
            DAMAGED
        } else if !self.unreadable.is_empty() || self.partly > 0 {
            UNJUDGED
        } else {
            GOOD
        }
    }

    fn summary(&self) -> String {
        let mut line = format!(
            "site '{}': {} objects good ({}), {} damaged, {} missing, {} could not be judged",
            self.site,
            self.good,
            text::size(self.bytes),
            self.damaged.len(),
            self.missing.len(),
            self.unreadable.len()
        );
        if self.partly > 0 {
            line += &format!(
                "; {} of the good ones only from outside, without the private key",
                self.partly
            );
        }
        if self.unknown > 0 {
            line += &format!("; {} objects have names that say nothing", self.unknown);
        }
        line + "\n"
    }
}

fn json(tallies: &[Tally]) -> String {
    let told = |list: &[(String, String)]| -> Value {
        let row = |(key, why): &(String, String)| json!({ "object": key, "why": why });
        list.iter().map(row).collect()
    };
    let sites = tallies.iter().map(|tally| {
        let site = json!({
            "bytes": tally.bytes,
            "damaged": told(&tally.damaged),
            "good": tally.good,
            "missing": tally.missing,
            "partly": tally.partly,
            "unknown": tally.unknown,
            "unreadable": told(&tally.unreadable),
        });
        (tally.site.clone(), site)
    });
    let sites: serde_json::Map<String, Value> = sites.collect();
    text::pretty(&json!({ "sites": sites })).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::codec::digest::Algorithm;
    use crate::codec::{Compression, Encoder, Encoding};
    use crate::store::local::Local;
    use crate::store::{Body, Metadata, Put, Store};
    use std::io::Write;

    const HISTORY: &[u8] = b"1\t0/3000000\tno recovery target\n";
    const KEY: &str = "main/timeline/00000002.history";

    /// A configuration and a store with one history file.
    fn make(folder: &Path) -> PathBuf {
        let store = Local::create(&folder.join("store")).unwrap();
        let encoding = Encoding {
            compression: Compression::Snappy,
            level: 0,
            threads: 0,
            encryption: None,
        };
        let mut encoder = Encoder::new(Vec::new(), &encoding).unwrap();
        encoder.write_all(HISTORY).unwrap();
        let (stored, _) = encoder.finish().unwrap();
        let metadata = Metadata::from([
            ("compression-algorithm".to_owned(), "snappy".to_owned()),
            ("hash".to_owned(), Algorithm::Sha1.hex(HISTORY)),
            ("hash-algorithm".to_owned(), "sha1".to_owned()),
        ]);
        store
            .put(KEY, Body::Bytes(&stored), &metadata, Put::Create)
            .unwrap();
        let storage = json!({ "storage_type": "local", "directory": folder.join("store") });
        let config = json!({
            "backup_location": folder,
            "backup_sites": { "main": { "object_storage": storage } },
        });
        let path = folder.join("c.json");
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    fn code(config: &Path, words: &[&str]) -> i32 {
        let config = config.as_os_str().to_owned();
        let words = ["verify"].iter().chain(words).map(OsString::from);
        run(words.chain([OsString::from("--config"), config]))
    }

    #[test]
    fn the_exit_code_says_what_was_found_and_the_store_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = make(folder.path());
        let mark = folder
            .path()
            .join("store/main/mark/damaged_timeline_00000002.history");
        assert_eq!(code(&config, &[]), GOOD);
        assert_eq!(code(&config, &["--all", "--json"]), GOOD);
        assert_eq!(code(&config, &["--backup", "none"]), USAGE);
        assert_eq!(code(&config, &["--site", "none"]), USAGE);
        assert_eq!(code(&config, &["--backup", "a", "--all"]), USAGE);

        let object = folder.path().join("store").join(KEY);
        let whole = fs::read(&object).unwrap();
        fs::write(&object, &whole[1..]).unwrap();
        assert_eq!(code(&config, &["--dry-run"]), DAMAGED);
        assert!(!mark.exists());
        assert_eq!(code(&config, &[]), DAMAGED);
        assert!(mark.exists());
        fs::write(&object, &whole).unwrap();
        assert_eq!(code(&config, &["--dry-run"]), GOOD);
        assert!(mark.exists());
        assert_eq!(code(&config, &[]), GOOD);
        assert!(!mark.exists());

        let sidecar = folder.path().join("store").join(format!("{KEY}.metadata"));
        let text = fs::read_to_string(&sidecar).unwrap();
        fs::write(&sidecar, text.replace("\"snappy\"", "\"brotli\"")).unwrap();
        assert_eq!(code(&config, &["--all"]), UNJUDGED);
        fs::remove_dir_all(folder.path().join("store")).unwrap();
        assert_eq!(
            code(&config, &[]),
            USAGE,
            "an unmounted disk is no empty store"
        );
    }

    #[test]
    fn damage_outweighs_doubt_and_doubt_the_rest() {
        let mut tally = Tally::new("main");
        assert_eq!(tally.code(), GOOD);
        tally.partly = 1;
        assert_eq!(tally.code(), UNJUDGED);
        tally.missing.push("x".into());
        assert_eq!(tally.code(), DAMAGED);
    }
}
