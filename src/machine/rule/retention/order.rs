//! The order of backups: by the moment each was taken, which its WAL position corrects. Names say
//! nothing, timelines neither: after a `pg_upgrade` the newest WAL is on timeline 1 again (S-54).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::breaks::{Rule, holds};
use crate::event::Millis;
use crate::file::BackupName;
use crate::projection::backups::{Backup, Phase};
use crate::rule::chain::Link;
use crate::state::SiteState;
use crate::wal::Timeline;

pub struct Member<'a> {
    pub site: Link<'a>,
    /// Of the active site itself.
    pub own: bool,
    pub name: &'a BackupName,
    pub backup: &'a Backup,
    /// When it began; never later than `now`, never before one below it on its timeline.
    pub at: Millis,
    /// When it had ended for certain.
    pub ended: Millis,
    /// It can be restored.
    pub good: bool,
}

/// Every backup, oldest first: each site in its own order, and by time among them.
pub fn members<'a>(links: &[Link<'a>], now: Millis) -> Vec<Member<'a>> {
    let mut all: Vec<Member<'_>> = Vec::new();
    // Of two of one moment the origin's is the older.
    for (index, link) in links.iter().enumerate().rev() {
        all.extend(of_site(*link, index == 0, now));
    }
    all.sort_by_key(|member| member.at);
    all
}

fn of_site(link: Link<'_>, own: bool, now: Millis) -> Vec<Member<'_>> {
    let site = link.site;
    let good = good(site);
    let moments = moments(site, now);
    let mut members: Vec<Member<'_>> = site
        .backups
        .all
        .iter()
        .map(|(name, backup)| Member {
            site: link,
            own,
            name,
            backup,
            at: moments.get(name).copied().unwrap_or(backup.decided_at),
            ended: now,
            good: good.contains(name),
        })
        .collect();
    members.sort_by_key(|m| {
        let content = m.backup.content.as_ref();
        let start = content.map(|content| (content.start.number, content.start.timeline));
        (m.at, start, content.map(|c| c.started_at <= now), m.name)
    });
    // Backups are taken one at a time: where the end is not known, the next one's beginning is
    // late enough.
    let mut next = now;
    for member in members.iter_mut().rev() {
        let content = member.backup.content.as_ref();
        let told = content.and_then(|content| content.ended_at);
        let told = told.filter(|ended| *ended <= now);
        member.ended = told.unwrap_or(next).max(member.at);
        next = member.at;
    }
    members
}

fn good(site: &SiteState) -> BTreeSet<&BackupName> {
    if !holds(Rule::RestorableCounts) {
        let live = site.backups.live();
        return live
            .filter(|(_, b)| b.content.is_some())
            .map(|(name, _)| name)
            .collect();
    }
    let restorable = site.backups.restorable(&site.ledger).into_iter();
    restorable.map(|(name, ..)| name).collect()
}

/// When each backup was taken. Along one timeline WAL tells the order: a moment from the future is
/// that of the next backup, else of the one before; one before its predecessor is that of the
/// predecessor (S-76).
fn moments(site: &SiteState, now: Millis) -> BTreeMap<&BackupName, Millis> {
    let mut lines: BTreeMap<Timeline, Vec<(u64, bool, Millis, &BackupName)>> = BTreeMap::new();
    let all = site.backups.all.iter();
    for (name, backup) in all.filter(|(_, b)| b.phase != Phase::Running) {
        if let Some(content) = &backup.content {
            let line = lines.entry(content.start.timeline).or_default();
            // Of two in one segment the one from the future is the older: the other was taken
            // since, and would be taken again for ever if it made room for that one.
            let (at, known) = (content.started_at, content.started_at <= now);
            line.push((content.start.number, known, at, name));
        }
    }
    let mut moments = BTreeMap::new();
    let mut unknown = Vec::new();
    let mut known = Vec::new();
    for line in lines.values_mut() {
        line.sort_unstable();
        let mut next = None;
        for (_, _, at, _) in line.iter_mut().rev() {
            if *at > now {
                *at = next.unwrap_or_default();
            } else {
                next = Some(*at);
            }
        }
        let mut latest = None;
        for (number, _, at, name) in line.iter() {
            if at.0 > 0 {
                latest = latest.max(Some(*at));
            }
            match latest {
                Some(at) => {
                    moments.insert(*name, at);
                    known.push((*number, at));
                }
                None => unknown.push((*number, *name)),
            }
        }
    }
    // Alone on its timeline with a moment from the future: where its position puts it. Were it
    // taken for the newest, each new backup would go at once and the next be due.
    for (number, name) in unknown {
        let below = known.iter().filter(|(known, _)| *known <= number);
        let at = below.map(|(_, at)| *at).max();
        moments.insert(name, at.unwrap_or_default());
    }
    moments
}
