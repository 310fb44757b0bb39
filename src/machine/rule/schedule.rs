//! Is a basebackup due, and at which normalized time? PGHoard's `get_new_backup_details`, without
//! its bug: an hour without a minute means minute 0.

use crate::event::{Millis, Why};
use crate::policy::SitePolicy;
use crate::projection::backups::{Backup, Backups};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    pub reason: Why,
    pub normalized_at: Option<Millis>,
}

const DAY_MS: u64 = 86_400_000;
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
    let scheduled = Some(Due {
        reason: Why::Schedule,
        normalized_at,
    });
    let Some(newest) = past(backups, now).max_by_key(|b| started_at(b)) else {
        return scheduled;
    };
    match normalized_at {
        Some(slot) => {
            // Half an interval keeps a changed schedule from taking two in a row.
            let recent = past(backups, now)
                .filter(|b| b.reason == Why::Schedule)
                .any(|b| b.decided_at.plus(interval / 2) > now);
            let taken = newest
                .normalized_at
                .or_else(|| normalized(policy, started_at(newest)));
            (taken != Some(slot) && !recent)
                .then_some(scheduled)
                .flatten()
        }
        None => (now.since(started_at(newest)) >= interval)
            .then_some(scheduled)
            .flatten(),
    }
}

/// When the next basebackup becomes due by itself: now or earlier if one is due, `None` without
/// an interval.
pub fn next(backups: &Backups, policy: &SitePolicy, now: Millis) -> Option<Millis> {
    if due(backups, policy, now).is_some() {
        return Some(now);
    }
    let interval = policy.interval_ms?;
    let newest = past(backups, now).map(started_at).max()?;
    let (Some(slot), Some(base)) = (normalized(policy, now), base(policy, now)) else {
        return Some(newest.plus(interval));
    };
    let scheduled = past(backups, now).filter(|b| b.reason == Why::Schedule);
    let rested = scheduled.map(|b| b.decided_at.plus(interval / 2)).max();
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

/// Backups that neither failed nor expired. One from the future tells of a clock that was wrong,
/// not of a backup that was taken (S-36).
fn past(backups: &Backups, now: Millis) -> impl Iterator<Item = &Backup> {
    let live = backups.live().map(|(_, backup)| backup);
    live.filter(move |backup| started_at(backup) <= now)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{backup, site_policy};

    const HOUR: u64 = 3_600_000;

    #[test]
    fn the_normalized_time_is_the_last_scheduled_moment() {
        let at = |day: u64, hour: u64, minute: u64| {
            Millis(day * DAY_MS + hour * HOUR + minute * MINUTE_MS)
        };
        for (hour, minute, interval, now, expect) in [
            (Some(4), Some(30), 24, at(10, 5, 0), Some(at(10, 4, 30))),
            (Some(4), Some(30), 24, at(10, 4, 0), Some(at(9, 4, 30))),
            (Some(4), None, 24, at(10, 5, 0), Some(at(10, 4, 0))),
            (Some(4), Some(0), 6, at(10, 17, 0), Some(at(10, 16, 0))),
            (Some(4), Some(0), 6, at(10, 16, 0), Some(at(10, 10, 0))),
            (None, Some(0), 24, at(10, 5, 0), None),
        ] {
            let mut policy = site_policy();
            (policy.hour, policy.minute) = (hour, minute);
            policy.interval_ms = Some(interval * HOUR);
            assert_eq!(normalized(&policy, now), expect);
        }
    }

    #[test]
    fn a_backup_is_due_by_interval_by_hour_or_by_request() {
        let now = Millis(1_000 * HOUR);
        let ago = |hours: i64| Millis(now.0.saturating_add_signed(-hours * 3_600_000));
        let scheduled = Some(Why::Schedule);
        // interval, hour, age and reason of the newest, requested -> reason
        for (interval, hour, newest, requested, expect) in [
            (Some(24), None, None, None, scheduled),
            (None, None, None, None, None),
            (None, None, None, Some(Why::Operator), Some(Why::Operator)),
            (Some(24), None, Some((23, Why::Schedule)), None, None),
            (Some(24), None, Some((24, Why::Schedule)), None, scheduled),
            (Some(24), Some(15), Some((2, Why::Schedule)), None, None),
            (
                Some(24),
                Some(15),
                Some((13, Why::Schedule)),
                None,
                scheduled,
            ),
            (
                Some(24),
                Some(15),
                Some((2, Why::Operator)),
                None,
                scheduled,
            ),
            (Some(24), None, Some((-1, Why::Schedule)), None, scheduled),
        ] {
            let mut policy = site_policy();
            (policy.interval_ms, policy.hour) = (interval.map(|h: u64| h * HOUR), hour);
            let mut backups = Backups {
                requested,
                ..Backups::default()
            };
            if let Some((age, reason)) = newest {
                backups.all.extend([backup("a", ago(age), reason)]);
            }
            let got = due(&backups, &policy, now).map(|due| due.reason);
            assert_eq!(
                got, expect,
                "{interval:?} {hour:?} {newest:?} {requested:?}"
            );
        }
    }

    #[test]
    fn the_next_one_is_due_when_foretold_and_not_before() {
        let now = Millis(1_000 * HOUR);
        for interval in [5, 7, 24, 36, 48] {
            for hour in [None, Some(0), Some(15), Some(16), Some(17)] {
                for reason in [Why::Schedule, Why::Operator] {
                    for age in 0..60 {
                        let mut policy = site_policy();
                        (policy.hour, policy.interval_ms) = (hour, Some(interval * HOUR));
                        let mut backups = Backups::default();
                        let at = Millis(now.0 - age * HOUR - 1);
                        backups.all.extend([backup("a", at, reason)]);
                        let next = next(&backups, &policy, now).unwrap();
                        let case = alloc::format!("{interval} {hour:?} {reason:?} {age} {next:?}");
                        assert!(due(&backups, &policy, next.plus(1)).is_some(), "{case}");
                        let early = (now.0..next.0).step_by(10 * 60_000);
                        let early = early
                            .map(Millis)
                            .find(|at| due(&backups, &policy, *at).is_some());
                        assert_eq!(early, None, "{case}");
                    }
                }
            }
        }
        let mut policy = site_policy();
        policy.interval_ms = None;
        assert_eq!(next(&Backups::default(), &policy, now), None);
    }
}
