//! What PGHoard does not tell: what can be restored, what is not safe yet, and what needs a person.

use machine::projection::backups::Phase;
use machine::projection::marks::Mark;
use machine::projection::servers::Node;
use machine::rule::alerts::{OURS, STICKY};
use machine::rule::scrub;

use super::Read::{Many, One, Site, Sites};
use super::{Metric, Of, Tags, Value, View, counter, gauge};

#[rustfmt::skip]
pub static METRICS: &[Metric] = &[
    gauge("pghoard.recoverable_windows", &["site"],
        Site(|of| Some(of.coverage.windows.len().into())),
        "windows of which any moment can be restored"),
    gauge("pghoard.recoverable_seconds", &["site"], Site(recoverable),
        "length of these windows together"),
    gauge("pghoard.recoverable_from_timestamp_seconds", &["site"], Site(recoverable_from),
        "the oldest moment that can be restored"),
    gauge("pghoard.recoverable_until_timestamp_seconds", &["site"], Site(recoverable_until),
        "everything committed until then can be restored"),
    gauge("pghoard.restorable_backups", &["site"], Site(restorable),
        "basebackups that can be restored"),
    gauge("pghoard.last_backup_age_seconds", &["site"], Site(backup_age),
        "since the newest restorable basebackup ended"),
    gauge("pghoard.last_stored_wal_age_seconds", &["site"], Site(wal_age),
        "since a WAL segment was stored"),
    gauge("pghoard.unprotected_bytes", &["site"],
        Site(|of| of.coverage.unprotected.bytes.map(Value::from)),
        "WAL that the server wrote and that is not safe here"),
    gauge("pghoard.unprotected_seconds", &["site"], Site(unprotected),
        "since when there is some"),
    gauge("pghoard.open_holes", &["site"], Site(|of| Some(of.holes.into())),
        "stretches of WAL and history files that a restore would miss"),
    gauge("pghoard.missing_objects", &["site"],
        Site(|of| Some(of.site.ledger.missing.len().into())),
        "objects of basebackups and history files that the store lost"),
    gauge("pghoard.damaged_objects", &["site"], Site(damaged),
        "objects in the store that are proven to be damaged"),
    gauge("pghoard.wal_conflicts", &["site"],
        Site(|of| Some(of.site.ledger.conflicts.len().into())),
        "names under which the store has other content than PostgreSQL sent"),
    gauge("pghoard.verified_age_seconds", &["site"], Site(verified),
        "no object was last verified longer ago than this"),
    gauge("pghoard.slot_held_bytes", &["node", "site"], Sites(slot_held),
        "WAL that the server keeps for our slot"),
    gauge("pghoard.slot_lag_bytes", &["node", "site"], Sites(slot_lag),
        "from where our slot stands to what the server has written"),
    gauge("pghoard.server_up", &["node", "site"], Sites(server_up),
        "1 if the server answered when it was last looked at"),
    gauge("pghoard.streaming", &["site"], Site(|of| Some(of.site.servers.stream.is_some().into())),
        "1 while WAL is received"),
    gauge("pghoard.backup_running", &["site"], Site(running),
        "1 while a basebackup is taken"),
    gauge("pghoard.spool_bytes", &["site"], Site(|of| Some(of.site.ledger.spool_bytes().into())),
        "on our disk, not in the store yet"),
    gauge("pghoard.spool_files", &["site"], Site(|of| Some(of.site.ledger.spool.len().into())),
        "on our disk, not in the store yet"),
    gauge("pghoard.spool_limit_bytes", &["site"],
        Site(|of| Some(of.policy.spool_limit_bytes.into())),
        "reception pauses when the spool holds so much"),
    gauge("pghoard.spool_lasts_seconds", &["site"], Site(spool_lasts),
        "until the spool is full if nothing is stored, at the rate of the last day"),
    gauge("pghoard.disk_free_bytes", &["site"], Site(disk_free),
        "on the disk that holds the spool"),
    gauge("pghoard.wal_bytes_per_second", &["site"], Site(wal_rate),
        "WAL that comes in, over the last day"),
    gauge("pghoard.failing_tasks", &["site"],
        Site(|of| Some(of.site.attempts.iter().count().into())),
        "tasks that failed when last tried"),
    gauge("pghoard.alert_raised", &["alert"], Many(raised),
        "1 while the condition of the alert lasts"),
    gauge("pghoard.alert_acknowledged", &["alert"], Many(acknowledged),
        "1 where it lasts and a person took note"),
    gauge("pghoard.maintenance", &[], One(|v| Some(v.facts.policy.maintenance.into())),
        "1 in maintenance mode"),
    gauge("pghoard.started_timestamp_seconds", &[],
        One(|v| Some((v.facts.state.started_at.0 / 1_000).into())),
        "when the daemon was started"),
    counter("pghoard.events_total", &[], One(|v| Some(v.facts.state.seq.into())),
        "events in the log since it was begun"),
    gauge("pghoard.info", &["version"], Many(info),
        "always 1"),
];

fn recoverable(of: &Of<'_>) -> Option<Value> {
    let windows = of.coverage.windows.iter();
    let lengths = windows.map(|window| window.to_at.since(window.from_at));
    Some((lengths.fold(0, u64::saturating_add) / 1_000).into())
}

fn recoverable_from(of: &Of<'_>) -> Option<Value> {
    let windows = of.coverage.windows.iter();
    let oldest = windows.map(|window| window.from_at).min()?;
    Some((oldest.0 / 1_000).into())
}

fn recoverable_until(of: &Of<'_>) -> Option<Value> {
    Some((of.coverage.protected_until?.0 / 1_000).into())
}

fn restorable(of: &Of<'_>) -> Option<Value> {
    let restorable = of.site.backups.restorable(&of.site.ledger);
    Some(restorable.len().into())
}

fn backup_age(of: &Of<'_>) -> Option<Value> {
    let (_, at) = of.coverage.last_backup.as_ref()?;
    Some(of.age(*at))
}

fn wal_age(of: &Of<'_>) -> Option<Value> {
    let stored = of.site.tally.uploads.get("xlog")?;
    Some(of.age(stored.last_success?))
}

fn unprotected(of: &Of<'_>) -> Option<Value> {
    let unprotected = &of.coverage.unprotected;
    // Without a server seen nothing is known, which is not the same as nothing.
    unprotected.bytes?;
    Some(unprotected.since.map_or(Value::Whole(0), |at| of.age(at)))
}

fn damaged(of: &Of<'_>) -> Option<Value> {
    let marks = of.site.marks.all.values();
    let damaged = marks.filter(|mark| matches!(mark, Mark::Damaged { .. }));
    Some(damaged.count().into())
}

fn verified(of: &Of<'_>) -> Option<Value> {
    let pass = of.site.scrub.pass.as_ref();
    let left = pass.map_or(0, |pass| scrub::left(of.site, &pass.looked));
    Some(of.age(of.site.scrub.floor(left)?))
}

fn slot_held(of: &Of<'_>) -> Vec<(Tags, Value)> {
    nodes(of, |node| {
        let slot = node.seen.as_ref()?.slot.as_ref()?;
        slot.held_bytes.map(Value::from)
    })
}

fn slot_lag(of: &Of<'_>) -> Vec<(Tags, Value)> {
    nodes(of, |node| {
        let seen = node.seen.as_ref()?;
        let stands = seen.slot.as_ref()?.restart_lsn?;
        Some(seen.lsn.since(stands).into())
    })
}

fn server_up(of: &Of<'_>) -> Vec<(Tags, Value)> {
    nodes(of, |node| Some(node.lost.is_none().into()))
}

fn nodes(of: &Of<'_>, value: impl Fn(&Node) -> Option<Value>) -> Vec<(Tags, Value)> {
    let nodes = of.site.servers.nodes.iter();
    nodes
        .filter_map(|(number, node)| Some((vec![("node", number.to_string())], value(node)?)))
        .collect()
}

fn running(of: &Of<'_>) -> Option<Value> {
    let mut live = of.site.backups.live();
    let running = live.any(|(_, backup)| backup.phase == Phase::Running);
    Some(running.into())
}

fn spool_lasts(of: &Of<'_>) -> Option<Value> {
    Some((of.coverage.spool_lasts_ms? / 1_000).into())
}

fn disk_free(of: &Of<'_>) -> Option<Value> {
    let space = of.facts.live.space.get(of.name)?;
    Some(space.free_bytes.into())
}

fn wal_rate(of: &Of<'_>) -> Option<Value> {
    Some((of.coverage.wal_bytes_an_hour / 3_600).into())
}

/// Every alert there is, so that one that stands is a change of a number and not a new one.
fn raised(view: &View<'_>) -> Vec<(Tags, Value)> {
    alerts(|name| view.facts.alerts.contains_key(name))
}

fn acknowledged(view: &View<'_>) -> Vec<(Tags, Value)> {
    alerts(|name| {
        let alert = view.facts.alerts.get(name);
        alert.is_some_and(|alert| alert.acknowledged)
    })
}

fn alerts(holds: impl Fn(&str) -> bool) -> Vec<(Tags, Value)> {
    let names = STICKY.iter().chain(&OURS);
    names
        .map(|name| (vec![("alert", (*name).to_owned())], holds(name).into()))
        .collect()
}

fn info(_: &View<'_>) -> Vec<(Tags, Value)> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    vec![(vec![("version", version)], Value::Whole(1))]
}
