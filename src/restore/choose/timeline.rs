//! Whether recovery can get to its timeline, asked before anything is copied.
//!
//! PostgreSQL finds the latest timeline by asking for one history file after the other and stops
//! at the first that is missing: a gap silently ends recovery on an old timeline (S-41).
//! Authority: PostgreSQL `timeline.c`, `findNewestTimeLine` and `readTimeLineHistory`.

use std::collections::BTreeMap;

use machine::{Class, SegmentSize, Timeline};

use super::Backup;
use crate::failure::{Failure, Outcome};
use crate::pg::files::History;
use crate::restore::{Opened, corrupt, refused};

/// `wanted` is what the command line says: `latest`, `current` or a number.
pub fn check(
    backup: &Backup<'_>,
    wanted: &str,
    opened: &[Opened<'_>],
    size: SegmentSize,
) -> Outcome<()> {
    let Some(own) = backup.timeline(size) else {
        return Ok(());
    };
    let held = Held::list(backup, opened)?;
    let target = match wanted {
        "current" => return Ok(()),
        "latest" => held.latest(own)?,
        number => {
            let number = number.parse().ok().filter(|number| *number > 0);
            number.map(Timeline).ok_or_else(|| {
                refused(format!(
                    "recovery_target_timeline '{wanted}': expected latest, current or a number"
                ))
            })?
        }
    };
    if target == own {
        return Ok(());
    }
    let name = target.history_name();
    let Some((key, holder)) = held.0.get(&target) else {
        return Err(Failure::new(
            Class::NotFound,
            format!("recovery target timeline {target}: the store has no {name}"),
        )
        .hint("choose another --recovery-target-timeline"));
    };
    let history = History::parse(target, &holder.source().read(key)?)?;
    let left = history.ancestors.iter().find(|a| a.timeline == own);
    match (left, backup.end_lsn()) {
        (Some(left), Some(end)) if left.end < end => {}
        (Some(_), _) => return Ok(()),
        (None, _) => {}
    }
    Err(refused(format!(
        "recovery target timeline {target} did not come from timeline {own}, on which '{}' was \
         taken",
        backup.key()
    ))
    .hint("choose an older basebackup or --recovery-target-timeline current"))
}

/// The history files there are: key and holder.
struct Held<'o, 'a>(BTreeMap<Timeline, (String, &'o Opened<'a>)>);

impl<'o, 'a> Held<'o, 'a> {
    /// As PostgreSQL will get them: of the site that the backup is of, and what of its cluster the
    /// others have.
    fn list(backup: &Backup<'_>, opened: &'o [Opened<'a>]) -> Outcome<Held<'o, 'a>> {
        let is_own = |opened: &&Opened<'_>| opened.site.name == backup.site.name;
        let mut cluster = None;
        if let (Some(own), Some(first)) =
            (opened.iter().find(is_own), backup.text("start-wal-segment"))
            && opened.len() > 1
        {
            cluster = own.shelf().cluster(first)?;
        }
        let mut held = BTreeMap::new();
        let others = opened.iter().filter(|opened| !is_own(opened));
        for (opened, cluster) in opened
            .iter()
            .filter(is_own)
            .map(|own| (own, None))
            .chain(others.map(|other| (other, cluster)))
        {
            for (timeline, key) in names(opened)? {
                let name = timeline.history_name();
                if !held.contains_key(&timeline) && !opened.shelf().is_foreign(&name, cluster)? {
                    held.insert(timeline, (key, opened));
                }
            }
        }
        Ok(Held(held))
    }

    /// The newest, if every one on the way to it is there.
    fn latest(&self, own: Timeline) -> Outcome<Timeline> {
        let Some(newest) = self.0.keys().next_back().filter(|newest| **newest > own) else {
            return Ok(own);
        };
        let mut timelines = (own.0.saturating_add(1)..newest.0).map(Timeline);
        match timelines.find(|timeline| !self.0.contains_key(timeline)) {
            None => Ok(*newest),
            Some(missing) => Err(corrupt(format!(
                "the store has {} but no {}: recovery to the latest timeline would end on \
                 timeline {}",
                newest.history_name(),
                missing.history_name(),
                missing.0.saturating_sub(1)
            ))
            .hint(format!(
                "say --recovery-target-timeline {newest}, or store the missing file again"
            ))),
        }
    }
}

/// The history files of a site, and their keys.
fn names(opened: &Opened<'_>) -> Outcome<BTreeMap<Timeline, String>> {
    let mut found = BTreeMap::new();
    let folder = format!("{}/timeline", opened.site.prefix);
    opened.store.list(&folder, &mut |entry| {
        let name = entry.key.rsplit('/').next().unwrap_or_default();
        if let Some(timeline) = Timeline::from_history_name(name) {
            found.insert(timeline, entry.key);
        }
        Ok(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::config;
    use crate::restore::choose;
    use crate::store::local::Local;
    use crate::store::{Body, Metadata, Put, Store};

    /// Timeline 2 left 1 at 0/3000000, 3 left 2 at 0/5000000, 4 left 3 at 0/7000000.
    const HISTORIES: [(u32, &str); 3] = [
        (2, "1\t0/3000000\tx\n"),
        (3, "1\t0/3000000\tx\n2\t0/5000000\tx\n"),
        (4, "1\t0/3000000\tx\n2\t0/5000000\tx\n3\t0/7000000\tx\n"),
    ];

    /// A backup of timeline `own` that ends at `end`; the store lacks the histories `missing`.
    fn check_one(own: &str, end: &str, missing: &[u32], wanted: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let store = Local::create(&folder.path().join("store")).unwrap();
        let put = |key: &str, content: &str, metadata: Metadata| {
            let body = Body::Bytes(content.as_bytes());
            store.put(key, body, &metadata, Put::Create).unwrap();
        };
        for (timeline, content) in HISTORIES {
            if !missing.contains(&timeline) {
                let name = Timeline(timeline).history_name();
                put(&format!("s/timeline/{name}"), content, Metadata::new());
            }
        }
        let pairs = [("start-wal-segment", own), ("end-lsn", end)];
        let pairs = pairs.map(|(k, v)| (k.to_owned(), v.to_owned()));
        put("s/basebackup/b", "", pairs.into());
        let config = config(folder.path());
        let opened = [Opened::new(&config.sites["s"]).unwrap()];
        let backups = choose::backups(&config.sites["s"], &store).unwrap().backups;
        match check(&backups[0], wanted, &opened, SegmentSize::DEFAULT) {
            Ok(()) => "fine".into(),
            Err(failure) => failure.to_string(),
        }
    }

    fn config(folder: &Path) -> config::Config {
        let storage = json!({"storage_type": "local", "directory": folder.join("store")});
        fs::create_dir_all(folder.join("store")).unwrap();
        let value = json!({"backup_sites": {"s": {"object_storage": storage}}});
        config::parse(&value).unwrap().0
    }

    #[test]
    fn s41_a_missing_history_is_refused_before_copying() {
        let first = "000000010000000000000002";
        let gap = "the store has 00000004.history but no 00000003.history: recovery to the latest \
                   timeline would end on timeline 2; hint: say --recovery-target-timeline 4, or \
                   store the missing file again";
        let absent = "recovery target timeline 9: the store has no 00000009.history; hint: choose \
                      another --recovery-target-timeline";
        let stranger = "recovery target timeline 4 did not come from timeline 1, on which \
                        's/basebackup/b' was taken; hint: choose an older basebackup or \
                        --recovery-target-timeline current";
        let words = "recovery_target_timeline 'newest': expected latest, current or a number";
        let second = "000000020000000000000004";
        for (own, end, missing, wanted, expected) in [
            (first, "0/2000100", &[][..], "latest", "fine"),
            (first, "0/2000100", &[3], "latest", gap),
            (first, "0/2000100", &[3], "4", "fine"),
            (first, "0/2000100", &[3], "current", "fine"),
            (first, "0/2000100", &[3], "2", "fine"),
            (first, "0/2000100", &[2, 3, 4], "latest", "fine"),
            (first, "0/2000100", &[2, 3, 4], "1", "fine"),
            (first, "0/2000100", &[], "9", absent),
            // What lies before the backup's own timeline is not asked for.
            (second, "0/4000100", &[2], "latest", "fine"),
            (second, "0/4000100", &[2, 3, 4], "latest", "fine"),
            // The backup ended after its timeline was left for the target.
            (first, "0/3000100", &[], "latest", stranger),
            (first, "0/2000100", &[], "newest", words),
        ] {
            let found = check_one(own, end, missing, wanted);
            assert_eq!(found, expected, "{own} {end} {missing:?} {wanted}");
        }
    }

    /// Site `t` was moved from `s` with another cluster, or with the name of the old one alone.
    #[test]
    fn s41_histories_of_another_cluster_are_none_of_this_backup() {
        let first = "000000010000000000000002";
        let wal = |timeline: u32, number: u64, cluster: u64| {
            let mut wal = crate::work::testing::first_page(cluster, number);
            wal[4..8].copy_from_slice(&timeline.to_ne_bytes());
            wal
        };
        for (cluster, expected) in [(7, "timeline 2 did not come from timeline 1"), (8, "fine")] {
            let folder = tempfile::tempdir().unwrap();
            let store = Local::create(&folder.path().join("store")).unwrap();
            let put = |key: &str, content: &[u8], pairs: &[(&str, &str)]| {
                let pairs = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
                let metadata: Metadata = pairs.collect();
                let body = Body::Bytes(content);
                store.put(key, body, &metadata, Put::Create).unwrap();
            };
            let size = [("original-file-size", "16777216")];
            put(
                "s/basebackup/b",
                b"",
                &[("start-wal-segment", first), ("end-lsn", "0/2000100")],
            );
            put(&format!("s/xlog/{first}"), &wal(1, 2, 7), &[]);
            put("t/timeline/00000002.history", b"1\t0/1000000\tx\n", &[]);
            put(
                "t/xlog/000000020000000000000001",
                &wal(2, 1, cluster),
                &size,
            );
            let storage =
                json!({"storage_type": "local", "directory": folder.path().join("store")});
            let sites = json!({
                "s": {"object_storage": storage, "active": false},
                "t": {"object_storage": storage, "moved_from": ["s"]},
            });
            let (config, _) = config::parse(&json!({"backup_sites": sites})).unwrap();
            let opened = ["t", "s"].map(|name| Opened::new(&config.sites[name]).unwrap());
            let backups = choose::backups(&config.sites["s"], &store).unwrap().backups;
            let told = check(&backups[0], "latest", &opened, SegmentSize::DEFAULT);
            let told = told.map_or_else(|failure| failure.message, |()| "fine".to_owned());
            assert!(told.contains(expected), "{cluster}: {told}");
        }
    }
}
