//! The state file: PGHoard's `pghoard_state.json` key by key, and our own facts under `daemon`.
//!
//! Existing monitoring reads PGHoard's keys, so their structure is PGHoard's: what has no meaning
//! here (downloads, listings, per-thread counters) has the value PGHoard shows before anything
//! happened. Authority: PGHoard `pghoard.py` (`write_backup_state_to_json_file`).
//!
//! Budget: at most one write a second, with two fsyncs, and one in five seconds at rest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use machine::decide::Busy;
use machine::event::Why;
use machine::policy::{Policy, SitePolicy};
use machine::projection::backups::{Backup, Content, Phase};
use machine::projection::tally::{Count, Tally};
use machine::rule::coverage::{Live, positions};
use machine::{BackupName, File, Millis, SegmentSize, Site, SiteState, State, TaskId};
use serde_json::{Map, Value, json};

use crate::durable;
use crate::failure::Outcome;
use crate::publish::facts;
use crate::publish::text::{iso, naive, pretty};

/// Who reads the file may take its daemon for alive this long: a turn of the loop may wait for a
/// slow disk.
pub const FRESH_MS: u64 = 30_000;
const REST_MS: u64 = 5_000;
const BUSY_MS: u64 = 1_000;

/// The key of our own part.
pub const OWN: &str = "daemon";

#[derive(Debug)]
pub struct Stats {
    path: PathBuf,
    written: Option<(Value, Millis)>,
}

impl Stats {
    pub fn new(path: &Path) -> Stats {
        Stats {
            path: path.to_owned(),
            written: None,
        }
    }

    /// The file at the old place stays as it is, and gets old.
    pub fn move_to(&mut self, path: &Path) {
        if self.path != path {
            *self = Stats::new(path);
        }
    }

    /// Writes the document when it changed or got old; answers the text that was written.
    pub fn publish(&mut self, document: Value, now: Millis) -> Outcome<Option<Arc<str>>> {
        if let Some((written, at)) = &self.written {
            let patience = patience(written, &document);
            // A clock that was set back is no reason to wait.
            if now >= *at && now.since(*at) < patience {
                return Ok(None);
            }
        }
        let text = pretty(&document)?;
        // Remembered before it succeeds: what fails is not tried again at every turn.
        self.written = Some((document, now));
        if let Some(folder) = self.path.parent() {
            durable::make_folders(folder)?;
        }
        durable::write_own(&self.path, text.as_bytes())?;
        Ok(Some(Arc::from(text)))
    }
}

/// How old the file may get before this document replaces it.
fn patience(written: &Value, document: &Value) -> u64 {
    let stopped = document.get(OWN).and_then(|own| own.get("stopped"));
    if same(written, document) {
        REST_MS
    } else if stopped == Some(&Value::Bool(true)) {
        0
    } else {
        BUSY_MS
    }
}

/// The moment that a text of the document stands for.
pub fn moment(text: &Value) -> Option<Millis> {
    let at: jiff::Timestamp = text.as_str()?.parse().ok()?;
    u64::try_from(at.as_millisecond()).ok().map(Millis)
}

/// Equal but for the moment they were made.
fn same(a: &Value, b: &Value) -> bool {
    let own = |document: &Value| document.get(OWN).and_then(Value::as_object).cloned();
    let timeless = |document: &Value| {
        let mut own = own(document)?;
        own.remove(facts::AT);
        let sites = own.get_mut("sites").and_then(Value::as_object_mut);
        for site in sites.into_iter().flat_map(Map::values_mut) {
            site.as_object_mut()?.remove(facts::NOW);
        }
        Some(own)
    };
    timeless(a) == timeless(b)
}

pub fn document(state: &State, policy: &Policy, busy: &Busy, live: &Live, now: Millis) -> Value {
    let mut receivers = Map::new();
    let mut walreceivers = Map::new();
    let mut basebackups = Map::new();
    let mut backup_sites = Map::new();
    let mut compressors = Map::new();
    let mut transfers = Map::new();
    let unknown = SiteState::default();
    for (name, policy) in &policy.sites {
        let site = state.sites.get(name).unwrap_or(&unknown);
        let key = &name.0;
        backup_sites.insert(key.clone(), json!({ "basebackups": listed(name, site) }));
        compressors.insert(key.clone(), compressed(&site.tally));
        transfers.insert(key.clone(), transferred(site));
        if policy.streams && policy.active {
            let (receiver, walreceiver) = received(name, site, policy, busy, live);
            receivers.insert(key.clone(), receiver);
            walreceivers.insert(key.clone(), walreceiver);
        }
        if let Some((_, backup)) = site.backups.live().find(|(_, b)| b.phase == Phase::Running) {
            let activity = iso(backup.decided_at);
            basebackups.insert(
                key.clone(),
                json!({ "latest_activity": activity, "running": true }),
            );
        }
    }
    let spooled = state.sites.values().map(|site| site.ledger.spool.len());
    let uploads = busy
        .keys()
        .filter(|id| matches!(id, TaskId::Store(..)))
        .count();
    json!({
        "backup_sites": backup_sites,
        "compressors": [compressors],
        "pg_basebackups": basebackups,
        "pg_receivexlogs": receivers,
        "queues": {
            "compression_queue": spooled.sum::<usize>().saturating_sub(uploads),
            "transfer_queue": uploads,
        },
        "served_files": {},
        "startup_time": naive(state.started_at),
        "transfer_agent_state": transfers,
        "walreceivers": walreceivers,
        OWN: facts::facts(state, policy, busy, live, now),
    })
}

/// Which of PGHoard's two receivers a site is configured for makes no difference here, so it is
/// shown as both.
fn received(
    name: &Site,
    site: &SiteState,
    policy: &SitePolicy,
    busy: &Busy,
    live: &Live,
) -> (Value, Value) {
    let running = busy.contains_key(&TaskId::Receive(name.clone()));
    let servers = &site.servers;
    let stream = servers.stream.as_ref();
    let node = stream.and_then(|stream| servers.nodes.get(&stream.node));
    let activity = [
        stream.map(|stream| stream.since),
        node.and_then(|node| node.seen_at),
        site.ledger.last_stored_at,
        servers.ended.as_ref().map(|ended| ended.at),
    ];
    let activity = activity.into_iter().flatten().max().map(iso);
    let flushed = positions(name, site, Some(policy), live).flushed;
    (
        json!({ "latest_activity": activity, "running": running }),
        json!({
            "last_flushed_lsn": flushed.map(|lsn| lsn.0),
            "latest_activity": activity,
            "running": running,
        }),
    )
}

fn listed(site_name: &Site, site: &SiteState) -> Vec<Value> {
    let size = site.ledger.segment_size.unwrap_or(SegmentSize::DEFAULT);
    let version = site.servers.up().map(|server| server.version).next();
    let stored = site.backups.live().filter(|(name, backup)| {
        backup.phase == Phase::Complete && site.ledger.mains.contains(*name)
    });
    let stored = stored.filter_map(|(name, backup)| Some((name, backup, backup.content.as_ref()?)));
    stored
        .map(|(name, backup, content)| {
            json!({
                "last_modified": iso(content.ended_at.unwrap_or(content.started_at)),
                "metadata": metadata(site_name, backup, content, version, size),
                "name": object_name(name, content, size),
                "size": content.bytes_out,
            })
        })
        .collect()
}

fn object_name(name: &BackupName, content: &Content, size: SegmentSize) -> String {
    let ours = || base_name(&File::Main(name.clone()), size);
    content.object.clone().unwrap_or_else(ours)
}

fn base_name(file: &File, size: SegmentSize) -> String {
    let key = file.key(size);
    key.rsplit('/').next().unwrap_or_default().to_owned()
}

/// What the log knows of a main object's metadata, in PGHoard's words and types.
fn metadata(
    site: &Site,
    backup: &Backup,
    content: &Content,
    version: Option<u32>,
    size: SegmentSize,
) -> Value {
    let reason = match backup.reason {
        Why::Schedule => "scheduled",
        Why::Operator | Why::Hole => "requested",
    };
    let mut metadata = json!({
        "backup-decision-time": iso(backup.decided_at),
        "backup-reason": reason,
        "format": content.format,
        "normalized-backup-time": backup.normalized_at.map(iso),
        "original-file-size": content.bytes_in.to_string(),
        "preserve-until": null,
        "site": site.0,
        "start-time": iso(content.started_at),
        "start-wal-segment": content.start.name(size),
        "total-size-enc": content.bytes_out.to_string(),
        "total-size-plain": content.bytes_in.to_string(),
    });
    let known = [
        ("pg-version", version.map(|version| version.to_string())),
        ("end-wal-segment", content.end.map(|end| end.name(size))),
        (
            "end-time",
            content
                .ended_at
                .map(|at| naive(at).replace('T', " ") + "+00:00"),
        ),
    ];
    if let Value::Object(map) = &mut metadata {
        let known = known
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        map.extend(known.map(|(key, value)| (key.to_owned(), Value::String(value))));
    }
    metadata
}

fn compressed(tally: &Tally) -> Value {
    let of = |kinds: &[&str]| {
        let counts = || kinds.iter().filter_map(|kind| tally.uploads.get(*kind));
        let sum = |each: fn(&Count) -> u64| counts().map(each).fold(0, u64::saturating_add);
        json!({
            "compressed_data": sum(|count| count.bytes_out),
            "count": sum(|count| count.count),
            "original_data": sum(|count| count.bytes_in),
        })
    };
    json!({
        "basebackup": of(&["basebackup", "basebackup_chunk"]),
        "timeline": of(&["timeline"]),
        "xlog": of(&["xlog"]),
    })
}

/// PGHoard's file types, all of which it always shows.
const KINDS: [&str; 6] = [
    "basebackup",
    "basebackup_chunk",
    "basebackup_delta",
    "basebackup_delta_chunk",
    "timeline",
    "xlog",
];

fn transferred(site: &SiteState) -> Value {
    let size = site.ledger.segment_size.unwrap_or(SegmentSize::DEFAULT);
    let (none, nothing) = (Count::default(), Tally::default());
    let operation = |tally: &Tally| -> Value {
        let kinds = KINDS.iter().map(|kind| {
            let count = tally.uploads.get(*kind).unwrap_or(&none);
            ((*kind).to_owned(), counted(kind, count, tally, size))
        });
        Value::Object(kinds.collect())
    };
    json!({
        "download": operation(&nothing),
        "list": operation(&nothing),
        "metadata": operation(&nothing),
        "upload": operation(&site.tally),
    })
}

fn counted(kind: &str, count: &Count, tally: &Tally, size: SegmentSize) -> Value {
    let since_basebackup = match kind {
        "xlog" => tally.xlogs_since_basebackup,
        _ => 0,
    };
    let mut counted = json!({
        "count": count.count,
        "data": count.bytes_out,
        "failures": count.failures,
        "last_success": count.last_success.map(|at| seconds(at.0)),
        "time_taken": seconds(count.millis),
        "xlogs_since_basebackup": since_basebackup,
    });
    if let (Some(file), Value::Object(map)) = (&count.latest, &mut counted) {
        let name = base_name(file, size);
        map.insert("latest_filename".to_owned(), Value::String(name));
    }
    counted
}

/// Milliseconds as PGHoard's float of seconds.
fn seconds(ms: u64) -> f64 {
    std::time::Duration::from_millis(ms).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::publish::testing::{busy, live, policy, state};

    const NOW: Millis = Millis(1_795_340_000_000);

    /// Every key of PGHoard's is here, with a value of its type; null goes with anything.
    fn same_shape(path: &str, theirs: &Value, ours: &Value) {
        match (theirs, ours) {
            (Value::Object(theirs), Value::Object(ours)) => {
                for (key, value) in theirs {
                    let path = format!("{path}.{key}");
                    if ABSENT.iter().any(|end| path.ends_with(end)) {
                        continue;
                    }
                    let found = ours.get(key).unwrap_or_else(|| panic!("{path} is missing"));
                    same_shape(&path, value, found);
                }
            }
            (Value::Array(theirs), Value::Array(ours)) => {
                for (a, b) in theirs.iter().zip(ours) {
                    same_shape(&format!("{path}[]"), a, b);
                }
            }
            (Value::Null, _) | (_, Value::Null) => {}
            (a, b) => assert_eq!(
                std::mem::discriminant(a),
                std::mem::discriminant(b),
                "{path}: {a} {b}"
            ),
        }
    }

    /// What only the object's own metadata knows.
    const ABSENT: [&str; 8] = [
        ".md5",
        ".Content-Length",
        ".active-backup-mode",
        ".basebackup-mode",
        ".compression-algorithm",
        ".encryption-key-id",
        ".host",
        ".timeline.latest_filename",
    ];

    #[test]
    fn what_reads_pghoards_state_file_reads_ours() {
        let ours = document(
            &state("golden"),
            &policy("golden"),
            &busy("golden"),
            &live(),
            NOW,
        );
        for theirs in [
            include_str!("../../tests/golden/samples/state-delta-zstd-enc.json"),
            include_str!("../../tests/golden/samples/state-pipe-zstd-enc.json"),
        ] {
            let mut theirs: Value = serde_json::from_str(theirs).unwrap();
            // Operations that we do not count show the names of a daemon that did nothing.
            for operation in ["download", "list", "metadata"] {
                let counts = &mut theirs["transfer_agent_state"]["golden"][operation];
                for (_, count) in counts.as_object_mut().unwrap() {
                    count.as_object_mut().unwrap().remove("latest_filename");
                }
            }
            let uploads = &mut theirs["transfer_agent_state"]["golden"]["upload"];
            for kind in ["basebackup_delta", "basebackup_delta_chunk"] {
                uploads[kind]
                    .as_object_mut()
                    .unwrap()
                    .remove("latest_filename");
            }
            same_shape("", &theirs, &ours);
        }
        assert_eq!(ours["startup_time"], "2026-11-22T09:28:51.251000");
        let upload = &ours["transfer_agent_state"]["golden"]["upload"];
        assert_eq!(
            upload["xlog"]["latest_filename"],
            "000000010000000000000006"
        );
        assert_eq!(upload["xlog"]["xlogs_since_basebackup"], 1);
        let backup = &ours["backup_sites"]["golden"]["basebackups"][0];
        assert_eq!(backup["name"], "2026-11-22_09-29_0.00000000.pghoard");
        assert_eq!(backup["metadata"]["start-time"], "2026-11-22T09:28:52Z");
        assert_eq!(
            backup["metadata"]["end-time"],
            "2026-11-22 09:28:53.250000+00:00"
        );
        assert_eq!(ours["walreceivers"]["golden"]["running"], true);
        assert_eq!(ours["walreceivers"]["golden"]["last_flushed_lsn"], 7 << 24);
        assert_eq!(ours["queues"]["transfer_queue"], 1);
    }

    #[test]
    fn the_file_is_private_whole_and_written_only_when_it_must_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/state.json");
        let mut stats = Stats::new(&path);
        let (state, policy, busy) = (state("main"), policy("main"), busy("main"));
        let mut publish = |live: &Live, ms: u64| {
            let now = NOW.plus(ms);
            let document = document(&state, &policy, &busy, live, now);
            stats.publish(document, now).unwrap()
        };
        let text = publish(&live(), 0).expect("the first is written");
        assert_eq!(fs::read_to_string(&path).unwrap(), *text);
        assert!(text.starts_with("{\n    \"backup_sites\": {\n") && text.ends_with("}\n"));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for (ms, changed, written) in [
            (500, true, false),
            (999, true, false),
            (1_000, true, true),
            (2_500, true, false),
            (5_999, true, false),
            (6_000, true, true),
            (7_000, false, true),
        ] {
            let live = if changed { Live::default() } else { live() };
            assert_eq!(publish(&live, ms).is_some(), written, "{ms}");
        }
        // Room and ages change all the time.
        let mut other = live();
        other.space.clear();
        assert!(publish(&other, 9_500).is_none());
    }
}
