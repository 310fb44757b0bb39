//! PGHoard's metrics, by its names and tags.
//!
//! A counter without the tag `site` is over all sites, as there. Left out is what only its modes
//! `delta` and `local-tar` have, which are not written here. Authority: the calls of
//! `metrics.gauge` and `metrics.increase` in PGHoard.

use std::collections::BTreeMap;
use std::time::Duration;

use machine::SiteState;
use machine::projection::backups::Phase;
use machine::projection::tally::{Count, Tally};

use super::Read::{Many, One, Site, Sites};
use super::{Metric, Of, Tags, Value, View, counter, gauge};

#[rustfmt::skip]
pub static METRICS: &[Metric] = &[
    gauge("pghoard.backup_stream.basebackup_requested", &["site"], Site(requested),
        "1 while a basebackup that was asked for has not begun"),
    gauge("pghoard.backup_time", &["basebackup_mode"], Many(backup_time),
        "seconds that the last basebackup took"),
    counter("pghoard.basebackup_completed", &[], One(|v| v.sum(|t| t.backups_completed)),
        "basebackups that are in the store"),
    counter("pghoard.basebackup_failed", &[], One(|v| v.sum(|t| t.backups_failed)),
        "basebackups that failed"),
    counter("pghoard.basebackup_bytes_uploaded", &["delta"], Many(backup_bytes),
        "bytes of basebackups as stored"),
    gauge("pghoard.basebackup_estimated_progress", &["site"], Site(progress),
        "percent of the basebackup that is being taken"),
    gauge("pghoard.compressed_size_ratio", &["algorithm", "site", "type"], Sites(ratio),
        "stored size of the last file by its plain size"),
    counter("pghoard.incomplete_partial_wal_segment", &[], One(|v| v.sum(|t| t.partials)),
        "unfinished segments at the end of a timeline"),
    gauge("pghoard.last_upload_age", &["site", "type"], Sites(upload_age),
        "seconds since a file of this type was stored"),
    gauge("pghoard.seconds_since_backup_progress_stalled", &[], One(stalled),
        "seconds since the basebackup that is being taken came forward, else 0"),
    gauge("pghoard.total_upload_size", &["site", "type"], Sites(total),
        "bytes stored so far"),
    counter("pghoard.transfer_operation_errors", &[], One(|v| v.sum(transfer_errors)),
        "failures at the store: uploads, listings, deletions, looks"),
    counter("pghoard.unrecoverable_quit_main_loop_failure", &[], One(crashes),
        "runs of the daemon that ended without having been asked to"),
    counter("pghoard.upload_size", &["result", "site", "type"], Sites(upload_size),
        "bytes stored (ok), or that could not be (failed)"),
    counter("pghoard.download_size", &["result", "site", "type"], Sites(download_size),
        "bytes read back from the store by verification"),
    gauge("pghoard.xlogs_since_basebackup", &["site"], Site(xlogs),
        "WAL segments stored since the last basebackup"),
    counter("pghoard.exception", &["exception", "where"], Many(exceptions),
        "failures by class and by the part of PGHoard that would have had them"),
];

/// All that this version takes.
const MODE: &str = "stream";

impl View<'_> {
    fn sum(&self, of: fn(&Tally) -> u64) -> Option<Value> {
        let tallies = self.tallies();
        Some(tallies.map(of).fold(0, u64::saturating_add).into())
    }

    /// Of sites that are out of use as well: a counter never falls.
    fn tallies(&self) -> impl Iterator<Item = &Tally> {
        let sites = self.facts.state.sites.values();
        sites.map(|site: &SiteState| &site.tally)
    }
}

fn requested(of: &Of<'_>) -> Option<Value> {
    Some(of.site.backups.requested.is_some().into())
}

fn backup_time(view: &View<'_>) -> Vec<(Tags, Value)> {
    let last = view.tallies().filter_map(|tally| tally.took);
    let last = last.max_by_key(|took| took.at);
    let told = last.map(|took| (tag("basebackup_mode", MODE), seconds(took.millis)));
    told.into_iter().collect()
}

fn backup_bytes(view: &View<'_>) -> Vec<(Tags, Value)> {
    let bytes = |tally: &Tally| {
        let of = |kind| tally.uploads.get(kind).map_or(0, |c: &Count| c.bytes_out);
        of("basebackup").saturating_add(of("basebackup_chunk"))
    };
    let sum = view.sum(bytes);
    sum.map(|sum| (tag("delta", "False"), sum))
        .into_iter()
        .collect()
}

fn progress(of: &Of<'_>) -> Option<Value> {
    let mut live = of.site.backups.live();
    let (_, backup) = live.find(|(_, backup)| backup.phase == Phase::Running)?;
    let (done, total) = backup.progress;
    let ratio = ratio_of(done, total)?;
    // The total is an estimate, and the server may have grown since.
    Some(Value::Real((ratio * 100.0).min(100.0)))
}

fn ratio(of: &Of<'_>) -> Vec<(Tags, Value)> {
    let algorithm = of.facts.algorithm;
    kinds(of, |count| {
        let (plain, stored) = count.latest_bytes;
        Some(Value::Real(ratio_of(stored, plain)?))
    })
    .map(|(kind, value)| {
        let tags = vec![("algorithm", algorithm.to_owned()), ("type", kind)];
        (tags, value)
    })
    .collect()
}

fn upload_age(of: &Of<'_>) -> Vec<(Tags, Value)> {
    by_type(kinds(of, |count| Some(of.age(count.last_success?))))
}

fn stalled(view: &View<'_>) -> Option<Value> {
    let moved = view.tallies().filter_map(|tally| tally.moved);
    let idle = moved.map(|moved| view.facts.now.since(moved.at) / 1_000);
    Some(idle.max().unwrap_or(0).into())
}

fn total(of: &Of<'_>) -> Vec<(Tags, Value)> {
    by_type(kinds(of, |count| Some(count.bytes_out.into())))
}

fn crashes(view: &View<'_>) -> Option<Value> {
    Some(view.facts.state.crashes.into())
}

fn upload_size(of: &Of<'_>) -> Vec<(Tags, Value)> {
    let ok = kinds(of, |count| Some(count.bytes_out.into()));
    let failed = kinds(of, |count| Some(count.failed_bytes.into()));
    let ok = ok.map(|(kind, value)| (result("ok", kind), value));
    ok.chain(failed.map(|(kind, value)| (result("failed", kind), value)))
        .collect()
}

fn download_size(of: &Of<'_>) -> Vec<(Tags, Value)> {
    let read = of.site.tally.downloads.iter();
    read.map(|(kind, bytes)| (result("ok", kind.clone()), (*bytes).into()))
        .collect()
}

fn xlogs(of: &Of<'_>) -> Option<Value> {
    Some(of.site.tally.xlogs_since_basebackup.into())
}

fn exceptions(view: &View<'_>) -> Vec<(Tags, Value)> {
    let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for tally in view.tallies() {
        for (task, classes) in &tally.failures {
            for (class, times) in classes {
                let sum = sums.entry((class.name(), place(task))).or_default();
                *sum = sum.saturating_add(*times);
            }
        }
    }
    sums.into_iter()
        .map(|((class, place), times)| {
            let tags = vec![("exception", class.to_owned()), ("where", place.to_owned())];
            (tags, times.into())
        })
        .collect()
}

/// Tasks that work on the store, each with the place where PGHoard would have failed.
const TRANSFERS: [(&str, &str); 7] = [
    ("store", "handle_upload"),
    ("export", "handle_upload"),
    ("delete", "delete_remote_wal_before"),
    ("reconcile", "handle_list"),
    ("read marks", "handle_metadata"),
    ("lease", "handle_metadata"),
    ("verify", "handle_download"),
];
/// Tasks that work on a server.
const SERVERS: [(&str, &str); 5] = [
    ("probe", "check_pg_server_version"),
    ("receive", "walreceiver_run"),
    ("fetch", "walreceiver_run"),
    ("take", "PGBaseBackup"),
    ("switch", "PGBaseBackup"),
];

fn place(task: &str) -> &str {
    let mut all = TRANSFERS.iter().chain(&SERVERS);
    let found = all.find(|(name, _)| *name == task);
    found.map_or(task, |(_, place)| place)
}

fn transfer_errors(tally: &Tally) -> u64 {
    let failures = TRANSFERS
        .iter()
        .filter_map(|(task, _)| tally.failures.get(*task));
    let times = failures.flat_map(BTreeMap::values).copied();
    times.fold(0, u64::saturating_add)
}

/// One number for each type of file that was ever stored.
fn kinds<'a>(
    of: &'a Of<'_>,
    value: impl Fn(&Count) -> Option<Value> + 'a,
) -> impl Iterator<Item = (String, Value)> + 'a {
    let counts = of.site.tally.uploads.iter();
    counts.filter_map(move |(kind, count)| Some((kind.clone(), value(count)?)))
}

fn by_type(values: impl Iterator<Item = (String, Value)>) -> Vec<(Tags, Value)> {
    values.map(|(kind, v)| (vec![("type", kind)], v)).collect()
}

fn result(result: &str, kind: String) -> Tags {
    vec![("result", result.to_owned()), ("type", kind)]
}

fn tag(name: &'static str, value: &str) -> Tags {
    vec![(name, value.to_owned())]
}

fn seconds(ms: u64) -> Value {
    Value::Real(Duration::from_millis(ms).as_secs_f64())
}

/// In steps of a millionth: exact enough, and free of casts.
fn ratio_of(part: u64, whole: u64) -> Option<f64> {
    let millionths = u128::from(part) * 1_000_000;
    let millionths = millionths.checked_div(u128::from(whole))?;
    u32::try_from(millionths).ok().map(|n| f64::from(n) / 1e6)
}
