//! Verification in a history: what the real one would see in objects without bytes.

use std::collections::{BTreeMap, BTreeSet};

use machine::task::What;
use machine::{BackupName, Event, File, Millis};
use pghoard::Outcome;
use pghoard::store::Metadata;
use pghoard::work::delete::part_number;
use pghoard::work::scrub::{Eyes, Scrub};
use pghoard::work::verify::{Item, Plan, Verdict};

use super::oracle::believed;
use super::shelf::{SIZE, key};
use super::{HOUR_MS, Life, site};
use crate::fate::Fate;

/// The site's keys: new objects are written under the last one.
#[derive(Default)]
pub struct Keys {
    current: u32,
    lost: BTreeSet<u32>,
    lost_at: Millis,
}

const ID: &str = "encryption-key-id";

impl Keys {
    pub fn rotate(&mut self) {
        self.current += 1;
    }

    /// Any but the last.
    pub fn lose(&mut self, fate: &Fate, at: Millis) {
        if self.current > 0 {
            let number = fate.below(u64::from(self.current));
            self.lost.insert(u32::try_from(number).unwrap());
            self.lost_at = at;
        }
    }

    pub fn seal(&self, metadata: &mut Metadata) {
        metadata.insert(ID.into(), self.current.to_string());
    }

    /// Whether somebody has the private key.
    pub fn opens(&self, metadata: &Metadata) -> bool {
        let id = metadata.get(ID).and_then(|id| id.parse().ok());
        id.is_none_or(|id| !self.lost.contains(&id))
    }
}

/// Damaged objects that a backup needs, by key: since when a pass could have shown it.
pub type Spoilt = BTreeMap<String, u64>;

/// A pass that is due waits for deletions, failed tries and handfuls: some hours.
const HOURS_MAX: u64 = 8;

impl Life {
    pub fn verify(&self, what: &What, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
        let (ours, now) = (self.ours(), self.clock());
        let scrub = Scrub {
            place: &self.place,
            eyes: Eyes {
                check: &|item| self.look(&item.key),
                backup: &|name, _| Ok(self.plan(name)),
            },
            size: SIZE,
            damaged: &ours.ledger.damaged,
            now: &|| now,
        };
        scrub.run(what, emit)
    }

    pub fn look(&self, key: &str) -> Verdict {
        let key = self.place.key(key);
        let truth = self.shelf.truth();
        match truth.objects.get(&key) {
            None => Verdict::Gone,
            // Without the key, bytes are bytes.
            Some((_, metadata)) if !self.keys.opens(metadata) => Verdict::Partly { bytes: 1 },
            Some(_) if truth.damaged(&key) => Verdict::Damaged("a bit is another".into()),
            Some(_) => Verdict::Good { bytes: 1 },
        }
    }

    fn plan(&self, name: &BackupName) -> Plan {
        let main = self.look(&File::Main(name.clone()).key(SIZE));
        let truth = self.shelf.truth();
        let numbers: Vec<u32> = match main {
            Verdict::Good { .. } => {
                let needs = truth.needs.get(name);
                (1..=needs.map_or(0, |needs| needs.parts)).collect()
            }
            Verdict::Partly { .. } => {
                let keys = truth.objects.keys();
                keys.filter_map(|key| part_number(key, name)).collect()
            }
            Verdict::Damaged(_) | Verdict::Unreadable(_) | Verdict::Gone => Vec::new(),
        };
        let part = |number| {
            let backup = name.clone();
            Item::of(File::Part { backup, number }, SIZE)
        };
        Plan {
            main,
            items: numbers.into_iter().map(part).collect(),
        }
    }

    /// Verification says what it has to: damage is found in time, and what was judged without its
    /// key is told to be.
    pub fn notice(&mut self) {
        let Some(interval_ms) = self.policy.sites[&site()].verify_interval_ms else {
            return;
        };
        for hour in 0.. {
            let bad = self.unseen();
            self.spoilt.retain(|key, _| bad.contains(key));
            for key in bad {
                self.spoilt.entry(key).or_insert(self.now_ms);
            }
            let due = |since: &u64| self.now_ms - since >= interval_ms;
            let Some((key, _)) = self.spoilt.iter().find(|(_, since)| due(since)) else {
                break;
            };
            if hour == HOURS_MAX {
                let what = format!("'{key}' is damaged and no pass over the store shows it");
                self.fate.violated(what);
                break;
            }
            self.pass(HOUR_MS);
            self.turn();
        }
        self.told_partly();
    }

    /// Damaged objects that a backup needs which is called restorable: nobody has noticed yet.
    fn unseen(&self) -> BTreeSet<String> {
        let truth = self.shelf.truth();
        let marked = truth.marked();
        let files = believed(self)
            .into_iter()
            // Without its main object nobody can tell what belongs to it.
            .filter(|name| truth.has(&File::Main(name.clone())))
            .flat_map(|name| truth.files(&name));
        let unmarked = files.map(|file| key(&file)).filter(|key| {
            let opens = || self.keys.opens(&truth.objects[key].1);
            truth.damaged(key) && !marked.contains(key) && opens()
        });
        unmarked.collect()
    }

    fn told_partly(&self) {
        let ours = self.ours();
        let whole = |pass: &&machine::projection::scrub::Pass| pass.started_at > self.keys.lost_at;
        let Some(pass) = ours.scrub.pass.as_ref().filter(whole) else {
            return;
        };
        let truth = self.shelf.truth();
        let names = truth.needs.keys();
        let files = names.flat_map(|name| truth.files(name));
        let sealed = files.filter(|file| {
            let object = truth.objects.get(&key(file));
            !matches!(file, File::Wal(_))
                && pass.looked.has(file)
                && object.is_some_and(|(_, metadata)| !self.keys.opens(metadata))
        });
        let (sealed, told) = (sealed.count(), pass.counts.partly);
        if u64::try_from(sealed).unwrap() > told {
            self.fate.violated(format!(
                "{sealed} objects were verified without their key, {told} are told of"
            ));
        }
    }
}
