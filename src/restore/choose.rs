//! Which backup: what the store has, and which of it a target asks for.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use machine::{Class, Lsn, Segment, SegmentSize, Timeline};

use super::refused;
use crate::config::Site;
use crate::failure::{Failure, Outcome};
use crate::store::{Body, Metadata, Object, Put, Store};

pub mod timeline;

/// A basebackup as its main object's metadata describes it.
#[derive(Clone, Debug)]
pub struct Backup<'a> {
    pub site: &'a Site,
    pub object: Object,
}

impl Backup<'_> {
    pub fn key(&self) -> &str {
        &self.object.entry.key
    }

    pub fn metadata(&self) -> &Metadata {
        &self.object.metadata
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.object.metadata.get(name).map(String::as_str)
    }

    /// When it began; a backup without a readable time counts as the oldest.
    pub fn start_time(&self) -> Option<Timestamp> {
        time(self.text("start-time")?)
    }

    fn end_time(&self) -> Option<Timestamp> {
        self.text("end-time").and_then(time).or(self.start_time())
    }

    /// Asks every daemon to keep this backup for a while, and says by which object.
    pub fn preserve(&self, store: &dyn Store, until: Timestamp) -> Outcome<String> {
        let name = self.key().rsplit('/').next().unwrap_or(self.key());
        let until = python_time(until);
        let key = format!("{}/preservation_request/{name}_{until}", self.site.prefix);
        let metadata = Metadata::from([
            ("preserve-backup".to_owned(), name.to_owned()),
            ("preserve-until".to_owned(), until),
        ]);
        store.put(&key, Body::Bytes(b""), &metadata, Put::Replace)?;
        Ok(key)
    }

    /// How much there will be on the disk; 0 where it does not say.
    pub fn plain_bytes(&self) -> u64 {
        let names = ["total-size-plain", "original-file-size"];
        let text = names.iter().find_map(|name| self.text(name));
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// The timeline it was taken on.
    pub fn timeline(&self, size: SegmentSize) -> Option<Timeline> {
        let name = self.text("start-wal-segment")?;
        Segment::from_name(name, size).map(|segment| segment.timeline)
    }

    /// Where it becomes consistent; not known of PGHoard's.
    pub fn end_lsn(&self) -> Option<Lsn> {
        self.text("end-lsn")?.parse().ok()
    }

    /// The last segment it needs, or the first one where no other is known.
    fn end_segment(&self, size: SegmentSize) -> Option<Segment> {
        let name = self
            .text("end-wal-segment")
            .or(self.text("start-wal-segment"))?;
        Segment::from_name(name, size)
    }
}

/// What recovery is to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    End,
    Immediate,
    Name(String),
    Time(Timestamp),
    Xid(String),
    Lsn(Lsn),
}

/// What was asked for, in the words of the command line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    pub name: Option<&'a str>,
    pub xid: Option<&'a str>,
    pub time: Option<&'a str>,
    pub lsn: Option<&'a str>,
    pub immediate: Option<Immediate>,
}

/// As soon as the backup is consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Immediate;

impl Wish<'_> {
    /// The one goal, or the end of the WAL.
    pub fn goal(&self) -> Outcome<Goal> {
        let mut goals = Vec::new();
        goals.extend(self.name.map(|name| Goal::Name(name.to_owned())));
        goals.extend(self.xid.map(|xid| Goal::Xid(xid.to_owned())));
        if let Some(text) = self.time {
            let time = time(text).ok_or_else(|| {
                refused(format!(
                    "recovery_target_time '{text}': expected an ISO 8601 time"
                ))
            })?;
            goals.push(Goal::Time(time));
        }
        if let Some(text) = self.lsn {
            let lsn = text.parse().map_err(|_| {
                refused(format!(
                    "recovery_target_lsn '{text}': expected two hex numbers with a /"
                ))
            })?;
            goals.push(Goal::Lsn(lsn));
        }
        goals.extend(self.immediate.map(|Immediate| Goal::Immediate));
        match (goals.pop(), goals.is_empty()) {
            (None, _) => Ok(Goal::End),
            (Some(goal), true) => Ok(goal),
            (Some(_), false) => Err(refused(
                "Specify at most one of recovery_target_name, recovery_target_time, \
                 recovery_target_xid, recovery_target_lsn or recovery_target_immediate",
            )),
        }
    }
}

/// What there is to choose from.
#[derive(Clone, Debug, Default)]
pub struct Catalog<'a> {
    pub backups: Vec<Backup<'a>>,
    /// By key: main objects whose metadata is damaged. They stand in nobody else's way.
    pub damaged: BTreeMap<String, Failure>,
}

impl<'a> Catalog<'a> {
    pub fn add(&mut self, other: Catalog<'a>) {
        self.backups.extend(other.backups);
        self.damaged.extend(other.damaged);
    }

    /// The backups; a failure where the one called `wanted` is damaged, or all are.
    pub fn usable(mut self, wanted: &str) -> Outcome<Vec<Backup<'a>>> {
        let named = self.damaged.keys().find(|key| is_called(key, wanted));
        let none = self
            .damaged
            .keys()
            .next()
            .filter(|_| self.backups.is_empty());
        let Some(key) = named.or(none).cloned() else {
            return Ok(self.backups);
        };
        self.damaged.remove(&key).map_or(Ok(self.backups), Err)
    }
}

/// Whether a backup's key is meant: whole, or by the part that people use.
pub fn is_called(key: &str, name: &str) -> bool {
    let base = key.rsplit('/').next().unwrap_or(key);
    key == name || base == name || base.split('.').next() == Some(name)
}

/// The backups of one site, as its store lists them, sorted by key.
pub fn backups<'a>(site: &'a Site, store: &dyn Store) -> Outcome<Catalog<'a>> {
    let mut keys = Vec::new();
    let folder = format!("{}/basebackup", site.prefix);
    store.list(&folder, &mut |entry| {
        keys.push(entry.key);
        Ok(())
    })?;
    let mut found = Catalog::default();
    for key in keys {
        match store.look(&key) {
            Ok(Some(object)) => found.backups.push(Backup { site, object }),
            // Deleted since it was listed: not a backup any more.
            Ok(None) => {}
            Err(failure) if failure.class == Class::Corrupt => {
                found.damaged.insert(key, failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(found)
}

/// The WAL segment size of a site's cluster, read off the segment a backup begins with.
pub fn segment_size(backup: &Backup<'_>, store: &dyn Store) -> Outcome<SegmentSize> {
    let told = backup.text("wal-segment-size");
    if let Some(size) = told.and_then(|bytes| SegmentSize::new(bytes.parse().ok()?)) {
        return Ok(size);
    }
    let Some(name) = backup.text("start-wal-segment") else {
        return Ok(SegmentSize::DEFAULT);
    };
    let object = store.look(&format!("{}/xlog/{name}", backup.site.prefix))?;
    let size = object.and_then(|object| {
        let bytes = object.metadata.get("original-file-size")?.parse().ok()?;
        SegmentSize::new(bytes)
    });
    Ok(size.unwrap_or(SegmentSize::DEFAULT))
}

/// The backup to restore: the newest one that the goal allows, or the one that was named if the
/// goal allows it. PGHoard takes the newest before a time whatever was named.
pub fn choose<'b, 'a>(
    backups: &'b [Backup<'a>],
    wanted: &str,
    goal: &Goal,
    size: SegmentSize,
) -> Outcome<&'b Backup<'a>> {
    if backups.is_empty() {
        return Err(refused("No applicable basebackups found, exiting"));
    }
    let named = backups
        .iter()
        .filter(|b| [LATEST, b.key()].contains(&wanted));
    let named: Vec<&Backup<'_>> = named.collect();
    let Some(first) = named.iter().min_by_key(|b| (b.end_time(), b.key())) else {
        return Err(refused("No applicable basebackup found, exiting"));
    };
    let chosen = match goal {
        Goal::Time(time) => newest(&named, |b| b.end_time().is_some_and(|end| end <= *time)),
        Goal::Lsn(lsn) => before(&named, *lsn, size),
        Goal::End | Goal::Immediate | Goal::Name(_) | Goal::Xid(_) => newest(&named, |_| true),
    };
    chosen.ok_or_else(|| {
        let hint = match wanted {
            LATEST => "every basebackup ends after the recovery target; the earliest, ",
            _ => "without --basebackup the newest that ends before the recovery target is taken: ",
        };
        let hint = format!("{hint}{}", end(first, size));
        refused("No applicable basebackups found, exiting").hint(hint)
    })
}

/// The first moment that can be reached with this backup.
fn end(backup: &Backup<'_>, size: SegmentSize) -> String {
    let time = backup.end_time().map(python_time);
    let lsn = backup.end_lsn().map(|lsn| lsn.to_string());
    let lsn = lsn.or_else(|| Some(backup.end_segment(size)?.name(size)));
    let unknown = || "an unknown position".to_owned();
    format!(
        "'{}', ends at {} ({})",
        backup.key(),
        lsn.unwrap_or_else(unknown),
        time.unwrap_or_else(unknown)
    )
}

/// Instead of a basebackup's name.
pub const LATEST: &str = "latest";

/// The backups that are candidates for a goal, for the list that is shown.
pub fn candidates<'a>(backups: &[Backup<'a>], goal: &Goal) -> Vec<Backup<'a>> {
    let fits = |backup: &&Backup<'_>| match goal {
        Goal::Time(time) => backup.end_time().is_some_and(|end| end <= *time),
        Goal::End | Goal::Immediate | Goal::Name(_) | Goal::Xid(_) | Goal::Lsn(_) => true,
    };
    backups.iter().filter(fits).cloned().collect()
}

/// PGHoard's backups do not say where in their last segment they end: one that ends in the very
/// segment of the target is taken only if there is no other.
fn before<'b, 'a>(
    backups: &[&'b Backup<'a>],
    lsn: Lsn,
    size: SegmentSize,
) -> Option<&'b Backup<'a>> {
    let end = |backup: &Backup<'_>| backup.end_segment(size);
    let surely = |backup: &Backup<'_>| match backup.end_lsn() {
        Some(end) => end <= lsn,
        None => end(backup).is_some_and(|segment| segment.end(size) <= lsn),
    };
    let perhaps = |backup: &Backup<'_>| {
        backup.end_lsn().is_none() && end(backup).is_some_and(|s| s.start(size) <= lsn)
    };
    newest(backups, surely).or_else(|| newest(backups, perhaps))
}

fn newest<'b, 'a>(
    backups: &[&'b Backup<'a>],
    fits: impl Fn(&Backup<'_>) -> bool,
) -> Option<&'b Backup<'a>> {
    let fitting = backups.iter().copied().filter(|backup| fits(backup));
    fitting.max_by_key(|backup| (backup.start_time(), backup.key()))
}

/// A moment as people and PGHoard write it: ISO 8601, `T` or a space, without a zone UTC. The name
/// of a zone in brackets (RFC 9557) counts, and has to be known here.
pub fn time(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if text.contains('[') {
        return text
            .parse::<jiff::Zoned>()
            .ok()
            .map(|zoned| zoned.timestamp());
    }
    let text = ["UTC", "GMT", "Z"]
        .iter()
        .find_map(|zone| text.strip_suffix(zone))
        .map_or(text, str::trim_end);
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    let local: DateTime = text.parse().ok()?;
    let zoned = local.to_zoned(TimeZone::UTC).ok()?;
    Some(zoned.timestamp())
}

/// As Python's `str(datetime)`: `2026-11-22 09:17:15+00:00`, with microseconds if there are any.
pub fn python_time(time: Timestamp) -> String {
    let format = match time.subsec_microsecond() {
        0 => "%Y-%m-%d %H:%M:%S+00:00",
        _ => "%Y-%m-%d %H:%M:%S.%6f+00:00",
    };
    time.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config;
    use crate::store::Entry;
    use crate::store::local::Local;

    #[test]
    fn times_are_read_as_utc_unless_they_say_otherwise() {
        for (text, expected) in [
            ("2026-11-22T09:27:26+00:00", Some("2026-11-22T09:27:26Z")),
            (
                "2026-11-22 09:16:40.468438+00:00",
                Some("2026-11-22T09:16:40.468438Z"),
            ),
            ("2026-11-22T11:27:26+02:00", Some("2026-11-22T09:27:26Z")),
            ("2026-11-22 11:27:26+02", Some("2026-11-22T09:27:26Z")),
            ("2026-11-22 09:27:26", Some("2026-11-22T09:27:26Z")),
            ("2026-11-22T09:27:26Z", Some("2026-11-22T09:27:26Z")),
            ("2026-11-22 09:27 UTC", Some("2026-11-22T09:27:00Z")),
            ("2026-11-22", Some("2026-11-22T00:00:00Z")),
            ("13am", None),
            ("", None),
            ("2026-13-22", None),
        ] {
            let found = time(text).map(|time| time.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }

    /// What a machine has no zones for is refused, and never another moment.
    #[test]
    fn a_zone_in_brackets_is_no_utc() {
        for (text, expected) in [
            ("2026-11-22 09:27:26[Europe/Berlin]", "2026-11-22T08:27:26Z"),
            (
                "2026-11-22 09:27:26+01:00[Europe/Berlin]",
                "2026-11-22T08:27:26Z",
            ),
            ("2026-11-22 09:27:26[UTC]", "2026-11-22T09:27:26Z"),
            ("2026-11-22 09:27:26+05:00[Europe/Berlin]", "none"),
            ("2026-11-22 09:27:26[Europe/Berlin] UTC", "none"),
            ("2026-11-22 09:27:26[Nowhere/Land]", "none"),
            ("2026-11-22 09:27:26[", "none"),
        ] {
            let found = time(text).map_or("none".to_owned(), |time| time.to_string());
            let zones = TimeZone::get("Europe/Berlin").is_ok() || !text.contains("Berlin");
            assert_eq!(found, if zones { expected } else { "none" }, "{text}");
        }
    }

    #[test]
    fn s42_the_goal_chooses_or_is_told_what_can_be_reached() {
        let config = config::parse(&json!({"backup_sites": {"s": {}}}))
            .unwrap()
            .0;
        let rows = [
            (
                "s/basebackup/c",
                "2026-01-03T00:00:00+00:00",
                "000000010000000000000030",
            ),
            (
                "s/basebackup/a",
                "2026-01-01T00:00:00+00:00",
                "000000010000000000000010",
            ),
            (
                "s/basebackup/b",
                "2026-01-02T00:00:00+00:00",
                "000000010000000000000020",
            ),
        ];
        let backups: Vec<Backup<'_>> = rows
            .iter()
            .map(|(key, start, end)| backup(&config.sites["s"], key, start, end))
            .collect();
        let at = |text| Goal::Time(time(text).unwrap());
        let lsn = |text: &str| Goal::Lsn(text.parse().unwrap());
        for (wanted, goal, expected) in [
            ("latest", Goal::End, Some("c")),
            ("s/basebackup/a", Goal::Immediate, Some("a")),
            ("s/basebackup/x", Goal::End, None),
            ("latest", at("2026-01-02 00:00:05"), Some("b")),
            ("s/basebackup/c", at("2026-01-02 00:00:04"), None),
            ("s/basebackup/a", at("2026-01-02 00:00:05"), Some("a")),
            ("s/basebackup/a", lsn("0/40000000"), Some("a")),
            ("s/basebackup/c", lsn("0/20000010"), None),
            ("s/basebackup/x", lsn("0/30000010"), None),
            ("latest", at("2025-01-02 00:00:04"), None),
            ("latest", lsn("0/40000000"), Some("c")),
            ("latest", lsn("0/30000010"), Some("b")),
            ("latest", lsn("0/10000010"), Some("a")),
            ("latest", lsn("0/0F000010"), None),
        ] {
            let chosen = choose(&backups, wanted, &goal, SegmentSize::DEFAULT).ok();
            let found = chosen.map(|b| b.key().trim_start_matches("s/basebackup/"));
            assert_eq!(found, expected, "{wanted} {goal:?}");
        }
        let hint = "every basebackup ends after the recovery target; the earliest, \
                    's/basebackup/a', ends at 000000010000000000000010 (2026-01-01 00:00:05+00:00)";
        for goal in [at("2026-01-01 00:00:04"), lsn("0/0F000010")] {
            let failure = choose(&backups, "latest", &goal, SegmentSize::DEFAULT).unwrap_err();
            assert_eq!(failure.hint.as_deref(), Some(hint));
        }
        let mut exact = backups.clone();
        let say = |end: &str| ("end-lsn".to_owned(), end.to_owned());
        exact[0].object.metadata.extend([say("0/30000100")]);
        for (target, expected) in [("0/300000FF", "b"), ("0/30000100", "c")] {
            let chosen = choose(&exact, "latest", &lsn(target), SegmentSize::DEFAULT).unwrap();
            assert_eq!(chosen.key(), format!("s/basebackup/{expected}"));
        }
    }

    #[test]
    fn a_preservation_request_is_pghoards() {
        let folder = tempfile::tempdir().unwrap();
        let store = Local::create(folder.path()).unwrap();
        let config = config::parse(&json!({"backup_sites": {"s": {}}}))
            .unwrap()
            .0;
        let key = "s/basebackup/2026-11-22_09-28_0.00000000.pghoard";
        let backup = backup(&config.sites["s"], key, "", "");
        let asked = backup
            .preserve(&store, time("2030-01-01").unwrap())
            .unwrap();
        let name = "2026-11-22_09-28_0.00000000.pghoard";
        let expected = format!("s/preservation_request/{name}_2030-01-01 00:00:00+00:00");
        assert_eq!(asked, expected);
        let metadata = store.look(&asked).unwrap().unwrap().metadata;
        assert_eq!(metadata["preserve-backup"], name);
        assert_eq!(metadata["preserve-until"], "2030-01-01 00:00:00+00:00");
    }

    /// As after a full disk, or a copy that broke off.
    #[test]
    fn s18_damaged_metadata_stands_in_no_other_backups_way() {
        let folder = tempfile::tempdir().unwrap();
        let store = Local::create(folder.path()).unwrap();
        let config = config::parse(&json!({"backup_sites": {"s": {}}}))
            .unwrap()
            .0;
        for name in ["a", "b", "c", "d"] {
            let key = format!("s/basebackup/{name}");
            store
                .put(&key, Body::Bytes(b"x"), &Metadata::new(), Put::Create)
                .unwrap();
        }
        let path = |name: &str| folder.path().join("s/basebackup").join(name);
        std::fs::write(path("a.metadata"), "").unwrap();
        std::fs::write(path("b.metadata"), "{\"start-ti").unwrap();
        std::fs::write(path("c"), "other").unwrap();
        let found = backups(&config.sites["s"], &store).unwrap();
        let damaged: Vec<&String> = found.damaged.keys().collect();
        assert_eq!(
            damaged,
            ["s/basebackup/a", "s/basebackup/b", "s/basebackup/c"]
        );
        let used = |name: &str| -> Outcome<Vec<String>> {
            let all = found.clone().usable(name)?;
            Ok(all
                .iter()
                .map(|backup| backup.key().to_owned())
                .collect::<Vec<_>>())
        };
        for name in ["latest", "s/basebackup/d", "d", "nobody"] {
            assert_eq!(used(name), Ok(vec!["s/basebackup/d".to_owned()]), "{name}");
        }
        for name in ["s/basebackup/a", "c"] {
            let failure = used(name).unwrap_err();
            assert_eq!(failure.class, Class::Corrupt, "{failure}");
        }
        store.delete("s/basebackup/d").unwrap();
        let found = backups(&config.sites["s"], &store).unwrap();
        assert_eq!(found.usable("latest").unwrap_err().class, Class::Corrupt);
    }

    fn backup<'a>(site: &'a Site, key: &str, start: &str, end: &str) -> Backup<'a> {
        let end_time = start.replace("T00:00:00", " 00:00:05");
        let pairs = [
            ("start-time", start),
            ("end-time", &end_time),
            ("end-wal-segment", end),
        ];
        let metadata = pairs
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        let entry = Entry {
            key: key.to_owned(),
            size_bytes: 0,
            modified_ms: 0,
        };
        Backup {
            site,
            object: Object { entry, metadata },
        }
    }
}
