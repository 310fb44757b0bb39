//! Histories with a move in the middle: a cluster that was upgraded, or only renamed, goes on in a
//! new site, and the old one is inactive and its history (`moved_from`).
//!
//! What was the site until then is put under another name, objects, log and all; what goes on keeps
//! the name that the rest of this folder knows. What must hold over both is judged here, from the
//! objects; what must hold of the new one alone, by the oracle of every history.

use std::collections::{BTreeMap, BTreeSet};

use machine::policy::SitePolicy;
use machine::{BackupName, Event, File, Segment, Site, SiteState, State, Task};
use pghoard::work::reconcile::{self, Known};
use pghoard::work::{Place, label, marks};
use pghoard::{Failure, Outcome};

use super::cluster::Cluster;
use super::oracle::promised;
use super::shelf::{Needs, PREFIX, SIZE, Truth};
use super::{DAY_MS, HOUR_MS, Life, STEPS, site, site_policy};
use crate::fate::Fate;

const OLD: &str = "old";

pub fn old() -> Site {
    Site(OLD.into())
}

/// The site that was left.
pub struct Old {
    place: Place,
    needs: BTreeMap<BackupName, Needs>,
    /// The new one goes on with the same cluster.
    same: bool,
}

pub fn run(seed: u64, trace: bool) -> Result<(), String> {
    let mut life = Life::new(Fate::new(seed, trace));
    life.log(None, life.started());
    for step in 0..STEPS {
        if step == STEPS / 2 {
            life.move_on();
        }
        life.pass([1, 6, 24, 24, 72][usize::try_from(life.fate.below(5)).unwrap()] * HOUR_MS);
        for _ in 0..life.fate.below(4) {
            life.happen_after_all();
        }
        life.turn_over_both();
        if let Some(what) = life.fate.violation() {
            return Err(what);
        }
    }
    Ok(())
}

impl Life {
    /// What neither lies about time nor about content: a move is enough for one history.
    fn happen_after_all(&mut self) {
        let what = [0, 0, 0, 45, 50, 58, 64, 68, 71, 74, 78, 97][self.dice(12)];
        match (what, self.fate.chance(300)) {
            (78, true) => {
                self.fate.say(|| "  the log is lost".into());
                let at = self.state.at;
                self.state = State {
                    at,
                    ..State::default()
                };
                let started = self.started();
                self.interrupted(started);
            }
            (what, _) => self.happens(what),
        }
        let moved = self.old.is_some();
        let policy = self.policy.sites.get_mut(&site()).unwrap();
        policy.origins = moved.then(old).into_iter().collect();
    }

    fn dice(&self, sides: u64) -> usize {
        usize::try_from(self.fate.below(sides)).unwrap()
    }

    fn interrupted(&mut self, started: Event) {
        self.busy.clear();
        self.next = None;
        self.log(None, started);
    }

    fn turn_over_both(&mut self) {
        let before = self.old.as_ref().map(|old| Before::of(self, old));
        self.turn();
        if let (Some(before), Some(old)) = (before, &self.old) {
            before.check(self, old);
        }
    }

    /// A person stops the daemon, upgrades or renames, and starts it with another configuration.
    fn move_on(&mut self) {
        let same = self.fate.chance(300);
        self.fate
            .say(|| format!("  moves on, same cluster: {same}"));
        let mut known = self.state.sites.remove(&site()).unwrap_or_default();
        known.attempts = SiteState::default().attempts;
        known.ledger.spool.clear();
        let mut truth = self.shelf.truth();
        let objects = std::mem::take(&mut truth.objects).into_iter();
        truth.objects = objects
            .map(|(key, (bytes, mut metadata))| {
                let id = metadata.get_mut(label::SYSTEM_ID);
                if let Some(id) = id.filter(|_| !same) {
                    *id = "6".into();
                }
                (key.replacen(PREFIX, OLD, 1), (bytes, metadata))
            })
            .collect();
        let needs = std::mem::take(&mut truth.needs);
        drop(truth);
        if !same {
            known.servers.system_id = known.servers.system_id.map(|_| 6);
            self.cluster = Cluster::new();
        }
        // The log may be a new one, too.
        if self.fate.chance(700) {
            self.state.sites.insert(old(), known);
        }
        let mut place = self.place.clone();
        (place.site, place.prefix) = (OLD.into(), OLD.into());
        self.old = Some(Old { place, needs, same });
        let mut inactive = site_policy(&self.fate);
        inactive.active = false;
        self.policy.sites.insert(old(), inactive);
        let active = self.policy.sites.get_mut(&site()).unwrap();
        active.origins = vec![old()];
        let started = self.started();
        self.interrupted(started);
    }

    /// Whatever is done for the site at rest; `false` if the task is another site's.
    pub fn perform_old(&mut self, task: &Task) -> bool {
        if *task.id().site() != old() {
            return false;
        }
        let known = self.state.sites.get(&old()).cloned().unwrap_or_default();
        let mut events = Vec::new();
        let done = self.effect_old(task, known, &mut |event| events.push(event));
        if let Err(failure) = done {
            events = vec![task.failed(failure.class, failure.to_string())];
        }
        for event in events {
            self.log(Some(old()), event);
        }
        true
    }

    fn effect_old(
        &self,
        task: &Task,
        known: SiteState,
        emit: &mut dyn FnMut(Event),
    ) -> Outcome<()> {
        let place = &self.old.as_ref().unwrap().place;
        if self.fate.chance(10) {
            return Err(Failure::new(machine::Class::Network, "it is away"));
        }
        match task {
            Task::DeleteBackup { .. } | Task::DeleteWal { .. } => {
                super::effects::delete(place, task, emit)
            }
            Task::ReadMarks { .. } => marks::read(place, &known.marks, emit),
            Task::Reconcile { .. } => {
                let known = Known {
                    ledger: known.ledger,
                    backups: known.backups,
                };
                reconcile::run(place, &known, emit)
            }
            other => {
                let what = format!("{other:?} is done for a site at rest");
                self.fate.violated(what);
                Ok(())
            }
        }
    }
}

fn there(truth: &Truth, file: &File) -> bool {
    truth
        .objects
        .contains_key(&format!("{OLD}/{}", file.key(SIZE)))
}

fn main_of(name: &BackupName) -> File {
    File::Main(name.clone())
}

/// What of the old site could be restored from its objects.
fn restorable(truth: &Truth, old: &Old) -> BTreeSet<BackupName> {
    let whole = |name: &BackupName, needs: &Needs| {
        let on = |number| File::Wal(Segment::new(needs.start.timeline, number));
        let mut wal = (needs.start.number..=needs.end.number).map(on);
        let mut parts = (1..=needs.parts).map(|number| File::Part {
            backup: name.clone(),
            number,
        });
        there(truth, &main_of(name))
            && wal.all(|file| there(truth, &file))
            && parts.all(|file| there(truth, &file))
    };
    let needs = old.needs.iter().filter(|(name, needs)| whole(name, needs));
    needs.map(|(name, _)| name.clone()).collect()
}

fn wal(truth: &Truth, prefix: &str) -> BTreeSet<String> {
    let folder = format!("{prefix}/xlog/");
    let names = truth.objects.keys();
    names
        .filter_map(|key| key.strip_prefix(&folder))
        .map(str::to_owned)
        .collect()
}

struct Before {
    own: usize,
    old: BTreeSet<BackupName>,
    held: BTreeSet<BackupName>,
    /// By the folder's prefix.
    wal: [BTreeSet<String>; 2],
}

impl Before {
    fn of(life: &Life, old: &Old) -> Before {
        let truth = life.shelf.truth();
        let held = truth
            .objects
            .iter()
            .filter(|(key, _)| key.starts_with(OLD) && key.contains("/preservation_request/"));
        let held = held.filter_map(|(_, (_, metadata))| {
            let until = label::millis(metadata.get("preserve-until")?)?;
            let name = label::backup_name(metadata.get("preserve-backup")?);
            let lasts = until.0 > life.now_ms + DAY_MS;
            (lasts && there(&truth, &main_of(&name))).then_some(name)
        });
        Before {
            own: truth.all_restorable(&BTreeSet::new()).len(),
            old: restorable(&truth, old),
            held: held.collect(),
            wal: [wal(&truth, OLD), wal(&truth, PREFIX)],
        }
    }

    fn check(&self, life: &Life, old: &Old) {
        let truth = life.shelf.truth();
        let bad = |what: String| life.fate.violated(what);
        let own = truth.all_restorable(&BTreeSet::new()).len();
        let left = restorable(&truth, old);
        let policy = &life.policy.sites[&site()];
        if let Some(name) = self.held.iter().find(|name| !there(&truth, &main_of(name))) {
            bad(format!("'{name}' of the old site is held and was deleted"));
        }
        let mut gone = self.old.difference(&left).peekable();
        let ended = |name: &&BackupName| old.needs[*name].ended_ms;
        let newest = self.old.iter().max_by_key(ended);
        if let Some(newest) = newest.filter(|newest| own == 0 && !left.contains(*newest)) {
            bad(format!("'{newest}', the newest of all, was deleted"));
        }
        let (now, was) = (own + left.len(), self.own + self.old.len());
        let floor = promised(policy).min(was);
        if gone.peek().is_some() && now < floor {
            bad(format!(
                "{now} of {was} backups are left over both, {floor} were promised"
            ));
        }
        if let Some(name) = gone.find(|name| there(&truth, &main_of(name))) {
            bad(format!("'{name}' stays, and lost something it needs"));
        }
        self.kept_wal(life, old, &truth, &left);
    }

    /// From the oldest backup that stays on, in the old site and, of one cluster, in the new one.
    fn kept_wal(&self, life: &Life, old: &Old, truth: &Truth, left: &BTreeSet<BackupName>) {
        // One that only a tier keeps promises no WAL behind itself.
        if life.policy.sites[&site()].tiers.any() {
            return;
        }
        let first = left.iter().map(|name| old.needs[name].start.number).min();
        let Some(first) = first else { return };
        let needed = |name: &&String| {
            let segment = Segment::from_name(name, SIZE);
            segment.is_some_and(|segment| segment.number >= first)
        };
        let sites = [OLD, PREFIX].into_iter().zip(&self.wal);
        for (prefix, before) in sites.take(if old.same { 2 } else { 1 }) {
            let after = wal(truth, prefix);
            if let Some(name) = before.difference(&after).find(needed) {
                let what = format!("{prefix}: WAL {name} went, wanted from number {first} on");
                life.fate.violated(what);
            }
        }
    }
}

/// Three backups before a `pg_upgrade`, one a day after it, two are to stay: the new site takes its
/// first at once, one day after the other the old ones go, and with the last all of its WAL.
#[test]
fn s54_an_upgrade_lets_its_history_go_one_by_one() {
    let mut life = Life::new(Fate::new(1, false));
    let daily = SitePolicy {
        interval_ms: Some(DAY_MS),
        count: Some(2),
        ..crate::sim::site_policy()
    };
    life.policy.sites.insert(site(), daily.clone());
    life.log(None, life.started());
    let mut told = Vec::new();
    for day in 0..8 {
        if day == 3 {
            life.move_on();
            life.policy.sites.insert(
                site(),
                SitePolicy {
                    origins: vec![old()],
                    ..daily.clone()
                },
            );
        }
        life.cluster.write(3, life.now_ms);
        life.turn_over_both();
        let truth = life.shelf.truth();
        let of_old = life.old.as_ref().map(|old| restorable(&truth, old).len());
        let own = truth.all_restorable(&BTreeSet::new()).len();
        told.push((of_old, own, wal(&truth, OLD).is_empty()));
        drop(truth);
        life.pass(DAY_MS + HOUR_MS);
        assert_eq!(life.fate.violation(), None, "{told:?}");
    }
    let (none, left) = (None, Some);
    assert_eq!(
        told,
        [
            (none, 1, true),
            (none, 2, true),
            (none, 2, true),
            (left(1), 1, false),
            (left(0), 2, true),
            (left(0), 2, true),
            (left(0), 2, true),
            (left(0), 2, true),
        ]
    );
}
