//! What must hold in every history, judged from the objects alone.

use std::collections::BTreeSet;

use machine::BackupName;
use machine::policy::SitePolicy;

use super::shelf::{Marked, Truth};
use super::window::Moments;
use super::{Life, named};

/// The store before the daemon's turn: what goes in that turn, the daemon deleted.
pub struct Before {
    /// In truth; of what is left in their place it counts what could be known before the turn.
    restorable: BTreeSet<BackupName>,
    moments: Option<Moments>,
    /// Something is damaged and nobody knows: what else there was may have made room for it.
    hidden: bool,
    marked: Marked,
    believed: BTreeSet<BackupName>,
    held: BTreeSet<BackupName>,
    wal: BTreeSet<String>,
}

impl Before {
    pub fn of(life: &Life) -> Before {
        let truth = life.shelf.truth();
        let damaged = truth.all_damaged();
        let windowed = policy(life).window_ms.is_some();
        Before {
            restorable: truth.all_restorable(&damaged),
            moments: windowed.then(|| Moments::of(&truth, &life.cluster, &damaged)),
            hidden: !damaged.is_subset(&truth.marked()),
            marked: truth.marked(),
            believed: believed(life),
            held: held(&truth, life.now_ms),
            wal: wal(&truth),
        }
    }

    pub fn check(&self, life: &Life) {
        let truth = life.shelf.truth();
        let after = truth.all_restorable(&self.marked);
        self.kept_backups(life, &truth, &after);
        self.kept_wal(life, &truth, &after);
        self.kept_moments(life, &truth);
        if !life.unlisted && !life.unread {
            let restorable = truth.all_restorable(&truth.marked());
            let believed = believed(life);
            let hollow: Vec<_> = believed.difference(&restorable).collect();
            if !hollow.is_empty() {
                let what = format!("{hollow:?} are called restorable and are not");
                life.fate.violated(what);
            }
        }
    }

    fn kept_backups(&self, life: &Life, truth: &Truth, after: &BTreeSet<BackupName>) {
        let gone: BTreeSet<_> = self.restorable.difference(after).collect();
        let bad = |what: String| life.fate.violated(what);
        let main = |name: &BackupName| truth.has(&machine::File::Main(name.clone()));
        if let Some(name) = self.held.iter().find(|name| !main(name)) {
            bad(format!("'{name}' is held and was deleted"));
        }
        // Retention may have counted only what the daemon knew of.
        let gone_known: Vec<_> = gone
            .iter()
            .filter(|n| self.believed.contains(**n))
            .collect();
        let order = |name: &BackupName| truth.needs.get(name).map(|needs| needs.start);
        let newest = self
            .believed
            .intersection(&self.restorable)
            .max_by_key(|n| order(n));
        if let Some(newest) = newest.filter(|newest| gone.contains(newest)) {
            let newer = after.iter().any(|name| order(name) > order(newest));
            if !newer {
                bad(format!(
                    "the newest restorable backup '{newest}' was deleted"
                ));
            }
        }
        let floor = promised(policy(life));
        if !gone_known.is_empty() && after.len() < floor.min(self.restorable.len()) {
            let (left, was) = (after.len(), self.restorable.len());
            bad(format!(
                "{left} of {was} backups are left, {floor} were promised"
            ));
        }
        // A backup whose main object stays keeps what it needs (I5).
        if let Some(name) = gone.iter().find(|name| main(name)) {
            bad(format!("'{name}' stays, and lost something it needs"));
        }
    }

    /// From the oldest backup that stays on, no WAL of the cluster's own way goes.
    fn kept_wal(&self, life: &Life, truth: &Truth, after: &BTreeSet<BackupName>) {
        let needs = after.iter().filter_map(|name| truth.needs.get(name));
        let mut starts: Vec<_> = needs.map(|needs| needs.start).collect();
        starts.sort();
        // One that only a tier keeps promises no WAL behind itself.
        let policy = policy(life);
        let promising = match policy.tiers.any() {
            true => promised(policy),
            false => usize::MAX,
        };
        let starts = starts.into_iter().rev().take(promising);
        let first = starts
            .filter(|start| life.cluster.segment(start.number) == *start)
            .min();
        let Some(first) = first else { return };
        let left = wal(truth);
        for number in first.number..life.cluster.at {
            let segment = life.cluster.segment(number);
            let name = segment.name(super::SIZE);
            if self.wal.contains(&name) && !left.contains(&name) {
                let what = format!("WAL {} went, wanted from {}", named(segment), named(first));
                life.fate.violated(what);
            }
        }
    }

    /// Every moment of the promised window that could be restored still can.
    fn kept_moments(&self, life: &Life, truth: &Truth) {
        let Some((before, window_ms)) = self.moments.as_ref().zip(policy(life).window_ms) else {
            return;
        };
        if self.hidden {
            return;
        }
        let after = Moments::of(truth, &life.cluster, &self.marked);
        let begins = life.now_ms.saturating_sub(window_ms);
        if let Some((first, last)) = before.beyond(&after, begins) {
            life.fate.violated(format!(
                "the moments from {first} to {last} could be restored and lie in the window, \
                 which begins at {begins}"
            ));
        }
    }
}

fn policy(life: &Life) -> &SitePolicy {
    life.policy.sites.values().next().unwrap()
}

/// So many of the newest restorable backups stay whatever time it is.
pub fn promised(policy: &SitePolicy) -> usize {
    let count = policy.count.unwrap_or(usize::MAX).max(1);
    let aged = policy.age_max_ms.is_some() && policy.count_min > 0;
    let windowed = policy.count.is_none() && policy.window_ms.is_some();
    match aged || windowed {
        true => count.min(policy.count_min.max(1)),
        false => count,
    }
}

fn wal(truth: &Truth) -> BTreeSet<String> {
    let names = truth.objects.keys();
    let names = names.filter_map(|key| key.strip_prefix("main/xlog/"));
    names.map(str::to_owned).collect()
}

pub fn believed(life: &Life) -> BTreeSet<BackupName> {
    let ours = life.ours();
    let all = ours.backups.restorable(&ours.ledger);
    all.into_iter().map(|(name, ..)| name.clone()).collect()
}

/// What exists and is held, as the objects say: PGHoard's keys.
fn held(truth: &Truth, now_ms: u64) -> BTreeSet<BackupName> {
    let holds = truth.objects.iter();
    let holds = holds.filter(|(key, _)| key.contains("/preservation_request/"));
    let holds = holds.filter_map(|(_, (_, metadata))| {
        let until = pghoard::work::label::millis(metadata.get("preserve-until")?)?;
        let name = pghoard::work::label::backup_name(metadata.get("preserve-backup")?);
        let there = truth.has(&machine::File::Main(name.clone()));
        (there && until.0 > now_ms + super::DAY_MS).then_some(name)
    });
    holds.collect()
}
