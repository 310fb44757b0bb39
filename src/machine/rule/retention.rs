//! Which backups stay and why, which go and by which rule, and which WAL nobody needs any more.
//!
//! PGHoard's count, age and minimum are limits; a recovery window, tiers and holds protect, and
//! what protects outranks what limits. Only restorable backups count, the newest of them always
//! stays, and one that cannot be restored goes when a restorable one in its place would. A hold
//! keeps its own backup and nobody else's. Window and tiers are measured from the last good
//! backup: where backups stop, nothing goes (S-56). A doubtful clock only keeps more.
//!
//! A site and its history are one list, by time; the newest of the active site itself always stays
//! as well, for it alone restores what is written now.
//!
//! Authority for count and age: PGHoard `determine_backups_to_delete`.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::event::Millis;
use crate::file::{BackupName, Site, civil};
use crate::policy::SitePolicy;
use crate::projection::backups::Phase;
use crate::projection::marks::Mark;
use crate::rule::chain::Link;

#[cfg(test)]
mod chained;
mod order;
#[cfg(test)]
mod tests;
mod wal;
mod window;

use order::Member;
pub use wal::Wal;

/// Everything retention would do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Every known backup of all sites, oldest first.
    pub backups: Vec<Verdict>,
    pub wal: BTreeMap<Site, Wal>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Where it lies.
    pub site: Site,
    pub backup: BackupName,
    pub restorable: bool,
    pub fate: Fate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Keep(Vec<Keep>),
    Go(Go),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Being taken, or waiting for its WAL.
    Taking,
    /// The newest one that can be restored, of all or of the active site.
    Newest,
    Count,
    CountMin,
    /// Not old enough to go.
    Age,
    /// Nothing limits the number of backups.
    NoLimit,
    Window,
    Weekly,
    Monthly,
    Yearly,
    Held {
        by: String,
        reason: String,
        until: Option<Millis>,
    },
    /// A window or a tier is promised, and nobody knows what time it is.
    Doubt,
}

impl Keep {
    /// Whether it promises every moment from the backup on, or the backup alone.
    fn promises_wal(&self) -> bool {
        !matches!(self, Keep::Weekly | Keep::Monthly | Keep::Yearly)
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Keep::Taking => "being taken",
            Keep::Newest => "newest",
            Keep::Count => "count",
            Keep::CountMin => "count_min",
            Keep::Age => "age",
            Keep::NoLimit => "no limit",
            Keep::Window => "window",
            Keep::Weekly => "weekly",
            Keep::Monthly => "monthly",
            Keep::Yearly => "yearly",
            Keep::Held { by, reason, .. } => return write!(f, "held by {by} ({reason})"),
            Keep::Doubt => "doubtful clock",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Go {
    Count,
    Age,
    /// It lies before the recovery window, and nothing else limits the number of backups.
    Window,
    /// It failed or expired before: its objects are being removed.
    Dead(Option<String>),
}

impl fmt::Display for Go {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Go::Count => "count",
            Go::Age => "age",
            Go::Window => "window",
            Go::Dead(None) => "failed",
            Go::Dead(Some(rule)) => rule,
        })
    }
}

impl Plan {
    /// The backups to expire, oldest first, each with its site and rule.
    pub fn expired(&self) -> impl Iterator<Item = (&Site, &BackupName, String)> {
        self.backups.iter().filter_map(|v| match &v.fate {
            Fate::Go(rule @ (Go::Count | Go::Age | Go::Window)) => {
                Some((&v.site, &v.backup, rule.to_string()))
            }
            Fate::Go(Go::Dead(_)) | Fate::Keep(_) => None,
        })
    }
}

/// `links`: the active site, then its history.
pub fn plan(links: &[Link<'_>], policy: &SitePolicy, now: Millis, doubtful: bool) -> Plan {
    let members = order::members(links, now);
    let judge = Judge::new(links, policy, now, doubtful, &members);
    let mut newer = members.iter().filter(|member| member.good).count();
    let mut backups = Vec::new();
    for (index, member) in members.iter().enumerate() {
        newer = newer.saturating_sub(usize::from(member.good));
        backups.push(Verdict {
            site: member.site.name.clone(),
            backup: member.name.clone(),
            restorable: member.good,
            fate: judge.fate(index, member, newer),
        });
    }
    let wal = wal::judge(links, &backups);
    Plan { backups, wal }
}

struct Judge<'a> {
    policy: &'a SitePolicy,
    now: Millis,
    doubtful: bool,
    held: BTreeMap<(&'a Site, &'a BackupName), Vec<Keep>>,
    /// Who stays for a tier, by position in the order.
    tiers: BTreeMap<usize, Vec<Keep>>,
    /// The oldest position that the window needs; `None` without a window.
    window: Option<usize>,
    /// The active site's own newest good one, whatever the clocks of its origins said.
    newest: Option<usize>,
}

impl<'a> Judge<'a> {
    fn new(
        links: &[Link<'a>],
        policy: &'a SitePolicy,
        now: Millis,
        doubtful: bool,
        members: &[Member<'_>],
    ) -> Judge<'a> {
        let mut held: BTreeMap<_, Vec<Keep>> = BTreeMap::new();
        let of = |link: &Link<'a>| {
            let (name, site) = (link.name, link.site);
            site.marks.all.values().map(move |mark| (name, mark))
        };
        for (site, mark) in links.iter().flat_map(of) {
            let Mark::Hold {
                backup,
                reason,
                by,
                until,
            } = mark
            else {
                continue;
            };
            // The end of a hold is worth as much as the clock.
            if doubtful || until.is_none_or(|until| until > now) {
                held.entry((site, backup)).or_default().push(Keep::Held {
                    by: by.clone(),
                    reason: reason.clone(),
                    until: *until,
                });
            }
        }
        Judge {
            policy,
            now,
            doubtful,
            held,
            tiers: tiers(policy, members),
            window: policy
                .window_ms
                .map(|window| window::anchor(members, window, now).unwrap_or(0)),
            newest: members.iter().rposition(|member| member.own && member.good),
        }
    }

    /// `newer`: how many restorable backups are newer than this one.
    fn fate(&self, index: usize, member: &Member<'_>, newer: usize) -> Fate {
        match member.backup.phase {
            Phase::Dead => return Fate::Go(Go::Dead(member.backup.expired.clone())),
            Phase::Running | Phase::Finished => return Fate::Keep([Keep::Taking].into()),
            Phase::Complete => {}
        }
        let mut why = self.protections(index, member, newer);
        match self.limit(index, member, newer) {
            Some(rule) if why.is_empty() => return Fate::Go(rule),
            Some(_) => {}
            None => {
                let grounds = self.grounds(index, newer).into_iter();
                let new: Vec<Keep> = grounds.filter(|keep| !why.contains(keep)).collect();
                why.extend(new);
            }
        }
        Fate::Keep(why)
    }

    fn protections(&self, index: usize, member: &Member<'_>, newer: usize) -> Vec<Keep> {
        let mut why = Vec::new();
        if member.good {
            let newest = newer == 0 || self.newest == Some(index);
            why.extend(newest.then_some(Keep::Newest));
            let within = self.window.is_some_and(|first| index >= first);
            why.extend(within.then_some(Keep::Window));
            why.extend(self.tiers.get(&index).into_iter().flatten().cloned());
        }
        why.extend(
            self.held
                .get(&(member.site.name, member.name))
                .into_iter()
                .flatten()
                .cloned(),
        );
        let timed = self.window.is_some() || self.policy.tiers.any();
        why.extend((self.doubtful && timed).then_some(Keep::Doubt));
        why
    }

    /// The first rule by which it would go.
    fn limit(&self, index: usize, member: &Member<'_>, newer: usize) -> Option<Go> {
        let policy = self.policy;
        if policy.count.is_some_and(|count| newer >= count.max(1)) {
            return Some(Go::Count);
        }
        let spare = newer >= policy.count_min.max(1) && !self.doubtful;
        if let Some(max) = self.age_max() {
            return (spare && self.age_ms(member) > max).then_some(Go::Age);
        }
        // A window alone is also how much is kept.
        let before = self.window.is_some_and(|first| index < first);
        (spare && policy.count.is_none() && before).then_some(Go::Window)
    }

    /// Why it stays though nothing protects it.
    fn grounds(&self, index: usize, newer: usize) -> Vec<Keep> {
        let few = (newer < self.policy.count_min.max(1)).then_some(Keep::CountMin);
        let counted = self.policy.count.map(|_| Keep::Count);
        let aged = self.age_max().map(|_| match (&few, self.doubtful) {
            (Some(_), _) => Keep::CountMin,
            (None, true) => Keep::Doubt,
            (None, false) => Keep::Age,
        });
        match (counted, aged, self.window) {
            (None, None, None) => [Keep::NoLimit].into(),
            (None, None, Some(first)) => {
                let within = (index >= first).then_some(Keep::Window);
                few.into_iter().chain(within).collect()
            }
            (counted, aged, _) => counted.into_iter().chain(aged).collect(),
        }
    }

    /// PGHoard does not look at the age without a minimum.
    fn age_max(&self) -> Option<u64> {
        self.policy.age_max_ms.filter(|_| self.policy.count_min > 0)
    }

    /// PGHoard counts from when the next one was due.
    fn age_ms(&self, member: &Member<'_>) -> u64 {
        let interval = self.policy.interval_ms.unwrap_or(0);
        self.now.since(member.at.plus(interval))
    }
}

fn tiers(policy: &SitePolicy, members: &[Member<'_>]) -> BTreeMap<usize, Vec<Keep>> {
    let tiers = &policy.tiers;
    let mut kept: BTreeMap<usize, Vec<Keep>> = BTreeMap::new();
    let slots: [(u32, Slot, Keep); 3] = [
        (tiers.weekly, week, Keep::Weekly),
        (tiers.monthly, month, Keep::Monthly),
        (tiers.yearly, year, Keep::Yearly),
    ];
    for (count, slot, why) in slots {
        let mut taken = BTreeSet::new();
        let mut newest = None;
        for (index, member) in members.iter().enumerate().rev().filter(|(_, m)| m.good) {
            let slot = slot(member.at);
            let newest = *newest.get_or_insert(slot);
            let recent = slot.saturating_add(u64::from(count)) > newest;
            if recent && taken.insert(slot) {
                kept.entry(index).or_default().push(why.clone());
            }
        }
    }
    kept
}

/// The number of the stretch of time that a moment lies in.
type Slot = fn(Millis) -> u64;

const DAY_MS: u64 = 86_400_000;

/// ISO weeks begin on Mondays; 1970 began on a Thursday.
fn week(at: Millis) -> u64 {
    (at.0 / DAY_MS).saturating_add(3) / 7
}

fn month(at: Millis) -> u64 {
    let (year, month, _) = civil(at.0 / DAY_MS);
    year.saturating_mul(12).saturating_add(month)
}

fn year(at: Millis) -> u64 {
    civil(at.0 / DAY_MS).0
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fate::Keep(why) => {
                let why: Vec<String> = why.iter().map(|keep| format!("{keep}")).collect();
                write!(f, "keep: {}", why.join(", "))
            }
            Fate::Go(rule) => write!(f, "go: {rule}"),
        }
    }
}
