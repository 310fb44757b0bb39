//! What people ask of the log, before it was lost and after (I11).
//!
//! At rest, after the next listing and reading of marks, everything is the same but for what no
//! object can tell: doubt about the clock, until a server is heard; how often something was tried
//! in vain and since when a hole stands; that a
//! backup which covers a hole was no request of a person; and how close to the present the last
//! look at the server had shown the window to reach (it may claim less, never more). Of a backup
//! whose main object the store has lost the log alone knows that it was there: it is no part of
//! the plan then, and the WAL that it kept for itself is left to nobody. And a new log reads only
//! the history of the timeline that the server is on: of a branch that the cluster did not come by
//! it knows the WAL and the backups, not where it began, and so neither its holes nor what they
//! cost.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use machine::event::{Branch, Why};
use machine::projection::backups::{Backup, Content};
use machine::projection::marks::Mark;
use machine::rule::chain::Link;
use machine::rule::coverage::{self, Window};
use machine::rule::holes::{self, Found};
use machine::rule::retention::{self, Plan};
use machine::{BackupName, File, Timeline};

use super::{Life, site};

/// What people ask the log.
pub struct Answers {
    restorable: BTreeMap<BackupName, Backup>,
    plan: Plan,
    /// Backups of which there is no object to tell.
    ghosts: bool,
    holes: Vec<Hole>,
    marks: BTreeMap<String, Mark>,
    /// Marked, and the store has something under the name.
    damaged: BTreeSet<File>,
    windows: Vec<Window>,
    /// How each timeline was come to, as far as the log knows.
    ways: Vec<Option<Vec<Branch>>>,
    /// Store and log agreed.
    sure: bool,
}

/// A hole, what it costs, and whether a person took note.
type Hole = (Found, bool);

impl Answers {
    pub fn of(life: &Life) -> Answers {
        let ours = life.ours();
        let (policy, now) = (&life.policy.sites[&site()], life.clock());
        let all = ours.backups.restorable(&ours.ledger).into_iter();
        let all = all.map(|(name, backup, _)| (name.clone(), lasting(backup)));
        let found = holes::holes(&ours).into_iter();
        let damaged = ours.ledger.damaged.keys();
        let name = site();
        let alone = Link {
            name: &name,
            site: &ours,
        };
        let mut plan = retention::plan(&[alone], policy, now, false);
        let all_known = plan.backups.len();
        let exists = |name: &BackupName| ours.ledger.exists(&File::Main(name.clone()));
        plan.backups.retain(|verdict| exists(&verdict.backup));
        let ghosts = plan.backups.len() < all_known;
        Answers {
            restorable: all.collect(),
            plan,
            ghosts,
            holes: found
                .map(|found| {
                    let known = holes::acknowledged(&ours, &found.hole).is_some();
                    (found, known)
                })
                .collect(),
            marks: ours.marks.all.clone(),
            damaged: damaged
                .filter(|file| ours.ledger.exists(file))
                .cloned()
                .collect(),
            windows: coverage::windows(&ours),
            ways: (1..=life.cluster.timeline.0)
                .map(|t| ours.timelines.way(Timeline(t)).map(<[Branch]>::to_vec))
                .collect(),
            sure: !life.unlisted && !life.unread && ours.ledger.reconciled_at.is_some(),
        }
    }

    /// All of it, right after the new log has looked around.
    pub fn compare(&self, life: &Life) {
        let now = Answers::of(life);
        // Any of the looks may have failed; and nobody answers for a cluster that is not there.
        let ours = life.ours();
        let looked = ours.marks.read_at.is_some() && ours.servers.stream.is_some();
        if !now.sure || !looked {
            return;
        }
        let told = |what: &str, ours: &dyn Debug, theirs: &dyn Debug| {
            let what = format!("with the log {what} changed: from {ours:?} to {theirs:?}");
            life.fate.violated(what);
        };
        let named = |all: &BTreeMap<BackupName, Backup>, other: &BTreeMap<BackupName, Backup>| {
            let all = all.clone().into_iter();
            all.filter(|(name, about)| other.get(name) != Some(about))
                .collect::<Vec<_>>()
        };
        if self.restorable != now.restorable {
            let ours = named(&self.restorable, &now.restorable);
            told("the list", &ours, &named(&now.restorable, &self.restorable));
        }
        if self.marks != now.marks || self.damaged != now.damaged {
            let ours = (&self.marks, &self.damaged);
            told("the marks", &ours, &(&now.marks, &now.damaged));
        }
        let known = self.ways == now.ways;
        if known && self.holes != now.holes {
            told("the holes", &self.holes, &now.holes);
        }
        let wal = self.ghosts || self.plan.wal == now.plan.wal;
        if self.plan.backups != now.plan.backups || !wal {
            told("the plan", &self.plan, &now.plan);
        }
        let claims = |ours: &Window, theirs: &Window| {
            let to_at = theirs.to_at.min(ours.to_at);
            *theirs == Window { to_at, ..*ours }
        };
        let mut pairs = self.windows.iter().zip(&now.windows);
        let same = self.windows.len() == now.windows.len();
        let same = same && pairs.all(|(ours, theirs)| claims(ours, theirs));
        if known && !same {
            told("the windows", &self.windows, &now.windows);
        }
    }

    /// Of a log that was lost in the middle of something, and of what the daemon did since.
    pub fn kept(&self, life: &Life) {
        let now = Answers::of(life);
        let truth = life.shelf.truth();
        let marked = truth.marked();
        let lost: Vec<_> = self
            .restorable
            .iter()
            .filter(|(name, _)| truth.restorable(name, &marked))
            .filter(|(name, about)| now.restorable.get(*name) != Some(about))
            .collect();
        if self.sure && now.sure && !lost.is_empty() {
            life.fate.violated(format!("with the log went {lost:?}"));
        }
    }
}

/// What of a backup outlives the log: not who took it in which run.
fn lasting(backup: &Backup) -> Backup {
    let mut backup = backup.clone();
    (backup.run, backup.node, backup.progress) = (0, None, (0, 0));
    // What was asked for and what covers a hole are labelled alike: neither is on schedule.
    if backup.reason == Why::Hole {
        backup.reason = Why::Operator;
    }
    backup.content = backup.content.map(|content| Content {
        // Our own name for it, told or derived.
        object: None,
        ..content
    });
    backup
}
