//! Which backups may go, and which WAL nobody needs any more.
//!
//! Only restorable backups count, and the newest of them is never named. A backup that exists in
//! the store needs its WAL whether it expired or not: a lost log would bring it back to life.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::breaks::{Rule, holds};
use crate::event::{Millis, Range};
use crate::file::{BackupName, File};
use crate::policy::SitePolicy;
use crate::projection::backups::{Backup, Phase};
use crate::state::SiteState;
use crate::wal::Segment;

/// The restorable backups to expire, oldest first, each with its rule.
pub fn expired(site: &SiteState, policy: &SitePolicy, now: Millis) -> Vec<(BackupName, String)> {
    let good = if holds(Rule::RestorableCounts) {
        site.backups.restorable(&site.ledger)
    } else {
        let live = site.backups.live();
        live.filter_map(|(name, b)| Some((name, b, b.content.as_ref()?)))
            .collect()
    };
    let mut gone = Vec::new();
    let keep_max = policy.count.map_or(usize::MAX, |count| count.max(1));
    let excess = good.len().saturating_sub(keep_max);
    let interval = policy.interval_ms.unwrap_or(0);
    for (index, (name, _, content)) in good.iter().enumerate() {
        let left = good.len().saturating_sub(index);
        let age = now.since(content.started_at.plus(interval));
        let old = policy.age_max_ms.is_some_and(|max| age > max);
        let floor = policy.count_min.max(1);
        let rule = if index < excess {
            "count"
        } else if old && policy.count_min > 0 && left > floor {
            "age"
        } else {
            break;
        };
        gone.push(((*name).clone(), rule.to_string()));
    }
    gone
}

/// Stored WAL below everything that any backup in the store, or on its way there, needs.
pub fn unneeded_wal(site: &SiteState) -> Vec<Range> {
    let needing = |name: &BackupName, backup: &Backup| {
        let main = File::Main(name.clone());
        let exists = site.ledger.exists(&main) && holds(Rule::ExpiredKeepsWal);
        backup.phase != Phase::Dead || exists
    };
    let starts = site
        .backups
        .all
        .iter()
        .filter(|(name, backup)| needing(name, backup));
    let mut first: Option<Segment> = None;
    for (_, backup) in starts {
        // A running backup has not said where it starts: nothing is deleted meanwhile.
        let Some(content) = &backup.content else {
            return Vec::new();
        };
        first = Some(match first {
            Some(first) if older(first, content.start) => first,
            _ => content.start,
        });
    }
    let Some(first) = first else {
        return Vec::new();
    };
    let present = site.ledger.present_wal();
    present
        .iter()
        .filter(|(timeline, _)| **timeline <= first.timeline)
        .flat_map(|(timeline, runs)| {
            let last = first.number.saturating_sub(1);
            runs.intervals()
                .filter(move |run| *run.start() <= last && first.number > 0)
                .map(move |run| Range {
                    timeline: *timeline,
                    first: *run.start(),
                    last: last.min(*run.end()),
                })
        })
        .collect()
}

/// Lower number first: a promoted cluster may hold a higher timeline at a lower position.
fn older(a: Segment, b: Segment) -> bool {
    (a.number, a.timeline) < (b.number, b.timeline)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Why;
    use crate::testing::{backup, site_policy};
    use crate::wal::Timeline;

    const DAY: u64 = 86_400_000;

    /// Backups by age in days; a leading `!` marks one whose WAL has a hole.
    fn check(ages: &[&str], count: Option<usize>, min: usize, days: Option<u64>) -> String {
        let now = Millis(1_000 * DAY);
        let mut site = SiteState::default();
        for age in ages {
            let broken = age.starts_with('!');
            let days: u64 = age.trim_start_matches('!').parse().unwrap();
            let (name, mut made) = backup(age, Millis(now.0 - days * DAY), Why::Schedule);
            let content = made.content.as_mut().unwrap();
            content.start = Segment::new(Timeline(1), 1_000 - days);
            content.end = Some(content.start);
            if !broken {
                let runs = site.ledger.wal.entry(Timeline(1)).or_default();
                runs.insert(1_000 - days);
            }
            site.ledger.mains.insert(name.clone());
            site.backups.all.insert(name, made);
        }
        let mut policy = site_policy();
        policy.count = count;
        policy.count_min = min;
        policy.age_max_ms = days.map(|d| d * DAY);
        let gone = expired(&site, &policy, now);
        gone.iter()
            .map(|(n, rule)| alloc::format!("{n}:{rule} "))
            .collect()
    }

    #[test]
    fn s56_s57_only_restorable_backups_count_and_the_newest_stays() {
        for (ages, count, min, days, expect) in [
            (&["3", "2", "1"][..], Some(2), 2, None, "3:count "),
            (&["3", "2", "1"], Some(0), 0, None, "3:count 2:count "),
            (&["3", "2", "1"], None, 2, None, ""),
            (&["3", "!2", "1"], Some(2), 2, None, ""),
            (&["4", "3", "!2", "!1"], Some(1), 1, None, "4:count "),
            (&["9", "8", "7", "1"], None, 2, Some(5), "9:age 8:age "),
            (&["9", "8", "7", "1"], Some(3), 2, Some(5), "9:count 8:age "),
            (&["90", "80"], None, 1, Some(5), "90:age "),
            (&["90", "80"], None, 0, Some(5), ""),
            (&["90"], Some(1), 1, Some(5), ""),
        ] {
            assert_eq!(
                check(ages, count, min, days),
                expect,
                "{ages:?} {count:?} {min} {days:?}"
            );
        }
    }

    #[test]
    fn s61_wal_of_an_expired_backup_stays_while_its_main_object_does() {
        let mut site = SiteState::default();
        site.ledger
            .wal
            .entry(Timeline(1))
            .or_default()
            .insert_range(1, 9);
        site.ledger
            .wal
            .entry(Timeline(2))
            .or_default()
            .insert_range(7, 20);
        let mut add = |name, start, phase| {
            let (name, mut made) = backup(name, Millis(start), Why::Schedule);
            made.phase = phase;
            made.content.as_mut().unwrap().start = Segment::new(Timeline(1), start);
            site.ledger.mains.insert(name.clone());
            site.backups.all.insert(name, made);
        };
        add("old", 4, Phase::Dead);
        add("new", 8, Phase::Complete);
        let range = |last| Range {
            timeline: Timeline(1),
            first: 1,
            last,
        };
        assert_eq!(unneeded_wal(&site), [range(3)]);
        site.ledger.mains.remove(&BackupName("old".into()));
        assert_eq!(unneeded_wal(&site), [range(7)]);
        site.backups
            .all
            .get_mut(&BackupName("new".into()))
            .unwrap()
            .content = None;
        assert_eq!(unneeded_wal(&site), []);
    }
}
