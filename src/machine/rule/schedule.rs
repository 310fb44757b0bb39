//! Is a basebackup due, at which normalized time, and when will the next one be? PGHoard's
//! `get_new_backup_details`, without its bug: an hour without a minute means minute 0. And a
//! backup that was asked for, or that a hole called for, pushes no scheduled one out (S-58).

use alloc::format;
use alloc::string::{String, ToString};

use crate::event::{Millis, Why};
use crate::file::{Site, utc};
use crate::policy::{Policy, SitePolicy};
use crate::projection::backups::{Backup, Backups};
use crate::state::SiteState;
use crate::task::TaskId;

#[cfg(test)]
mod tests;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    pub reason: Why,
    pub normalized_at: Option<Millis>,
}

const DAY_MS: u64 = 86_400_000;
const HOUR_MS: u64 = 3_600_000;
const MINUTE_MS: u64 = 60_000;

/// Whether a basebackup should start now, apart from backoff and maintenance.
pub fn due(backups: &Backups, policy: &SitePolicy, now: Millis) -> Option<Due> {
    let normalized_at = normalized(policy, now);
    if let Some(reason) = backups.requested {
        return Some(Due {
            reason,
            normalized_at,
        });
    }
    let interval = policy.interval_ms?;
    let due = match normalized_at {
        Some(slot) => scheduled(backups, now).all(|backup| {
            let taken = backup
                .normalized_at
                .or_else(|| normalized(policy, started_at(backup)));
            // Half an interval keeps a changed schedule from taking two in a row.
            taken != Some(slot) && backup.decided_at.plus(interval / 2) <= now
        }),
        None => begun(backups, now).is_none_or(|begun| now.since(begun) >= interval),
    };
    due.then_some(Due {
        reason: Why::Schedule,
        normalized_at,
    })
}

/// When the next basebackup becomes due by itself: now or earlier if one is due, `None` without
/// an interval.
pub fn next(backups: &Backups, policy: &SitePolicy, now: Millis) -> Option<Millis> {
    if due(backups, policy, now).is_some() {
        return Some(now);
    }
    let interval = policy.interval_ms?;
    let (Some(slot), Some(base)) = (normalized(policy, now), base(policy, now)) else {
        return Some(begun(backups, now)?.plus(interval));
    };
    let rested = scheduled(backups, now)
        .map(|b| b.decided_at.plus(interval / 2))
        .max();
    // The next slot, unless a day that the interval does not divide begins before it; or the end
    // of the rest after a backup that was taken late.
    let moments = [
        slot.plus(interval),
        base.plus(DAY_MS),
        rested.unwrap_or(now),
    ];
    let ahead = moments.into_iter().filter(|at| *at >= now);
    ahead
        .filter(|at| due(backups, policy, at.plus(1)).is_some())
        .min()
}

/// The next basebackup as a person asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// `None`: not by itself.
    pub at: Option<Millis>,
    pub why: String,
}

pub fn forecast(
    (name, site): (&Site, &SiteState),
    policy: &SitePolicy,
    all: &Policy,
    now: Millis,
) -> Next {
    let backups = &site.backups;
    let never = |why: &str| Next {
        at: None,
        why: why.to_string(),
    };
    if !policy.active {
        return never("the site is inactive");
    }
    if backups.running().is_some() {
        return never("one is being taken");
    }
    let Some(at) = next(backups, policy, now) else {
        return never("no interval");
    };
    if all.maintenance {
        return never("maintenance");
    }
    let failed = site.attempts.get(&TaskId::Take(name.clone()));
    if let Some(failed) = failed.filter(|failed| failed.next > at.max(now)) {
        let (until, times) = (utc(failed.next), failed.times);
        let failures = if times == 1 { "failure" } else { "failures" };
        return Next {
            at: Some(failed.next),
            why: format!("backs off until {until} after {times} {failures}"),
        };
    }
    Next {
        at: Some(at),
        why: why(backups.requested, policy),
    }
}

fn why(requested: Option<Why>, policy: &SitePolicy) -> String {
    match requested {
        Some(Why::Operator) => return "asked for".to_string(),
        Some(Why::Hole) => return "WAL is lost".to_string(),
        Some(Why::Schedule) | None => {}
    }
    let interval = policy.interval_ms.unwrap_or(0);
    let every = match (interval % HOUR_MS, interval % MINUTE_MS) {
        (0, _) => format!("every {} h", interval / HOUR_MS),
        (_, 0) => format!("every {} min", interval / MINUTE_MS),
        _ => format!("every {} s", interval / 1000),
    };
    let Some(hour) = policy.hour else {
        return every;
    };
    let time = format!("{hour:02}:{:02} UTC", policy.minute.unwrap_or(0));
    match interval == DAY_MS {
        true => format!("daily at {time}"),
        false => format!("{every} from {time}"),
    }
}

/// Backups that neither failed nor expired. One from the future tells of a clock that was wrong,
/// not of a backup that was taken (S-36).
fn past(backups: &Backups, now: Millis) -> impl Iterator<Item = &Backup> {
    let live = backups.live().map(|(_, backup)| backup);
    live.filter(move |backup| started_at(backup) <= now)
}

fn scheduled(backups: &Backups, now: Millis) -> impl Iterator<Item = &Backup> {
    past(backups, now).filter(|backup| backup.reason == Why::Schedule)
}

/// When the interval began: with the last scheduled one; before there is one, with any.
fn begun(backups: &Backups, now: Millis) -> Option<Millis> {
    let last = scheduled(backups, now).map(started_at).max();
    last.or_else(|| past(backups, now).map(started_at).max())
}

fn started_at(backup: &Backup) -> Millis {
    backup
        .content
        .as_ref()
        .map_or(backup.decided_at, |content| content.started_at)
}

/// The scheduled moment that `at` belongs to: today's hour and minute, yesterday's if that is
/// still ahead, then forward by whole intervals.
pub fn normalized(policy: &SitePolicy, at: Millis) -> Option<Millis> {
    let interval = policy.interval_ms.filter(|interval| *interval > 0)?;
    let base = base(policy, at)?;
    // The last whole interval strictly before `at`, as PGHoard's loop leaves it.
    let ahead = at.since(base).saturating_sub(1) / interval;
    Some(base.plus(ahead.saturating_mul(interval)))
}

fn base(policy: &SitePolicy, at: Millis) -> Option<Millis> {
    let hour = u64::from(policy.hour?);
    let minute = u64::from(policy.minute.unwrap_or(0));
    let offset = hour
        .saturating_mul(60)
        .saturating_add(minute)
        .saturating_mul(MINUTE_MS);
    let midnight = at.0 - at.0 % DAY_MS;
    let today = midnight.saturating_add(offset);
    Some(Millis(if today > at.0 {
        today.saturating_sub(DAY_MS)
    } else {
        today
    }))
}
