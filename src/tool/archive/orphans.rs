//! WAL in a store that no basebackup needs, judged as retention judges it, by a listing alone.
//!
//! Needed is all WAL from the oldest basebackup on whose main object exists, held or not, by number
//! on every timeline: after a failover nobody knows where a restore will go on. The basebackups of
//! the sites that this one was moved from, or to, count: a restore from there goes on here. So do
//! those that this machine's log knows and whose main object still waits in the spool.
//!
//! One main object that does not say where it begins, and nothing is an orphan.
//!
//! Budget: a listing of two folders and one of a relative; a look-up a basebackup and relative; 24
//! bytes a segment.

use std::collections::BTreeMap;

use machine::event::Range;
use machine::policy::SitePolicy;
use machine::projection::backups::Phase;
use machine::rule::chain::Link;
use machine::rule::retention;
use machine::runs::Runs;
use machine::{BackupName, Class, Envelope, Event, Millis, Segment, SegmentSize, SiteState};
use machine::{Site, State, Timeline};

use crate::clock;
use crate::failure::{Failure, Outcome};
use crate::work::{Place, label, reconcile};

#[derive(Debug)]
pub struct Orphans {
    pub size: SegmentSize,
    pub ranges: Vec<Range>,
    /// Their bytes in the store.
    pub bytes: BTreeMap<Segment, u64>,
    /// Objects among the WAL that are none by their names; they stay.
    pub strangers: u64,
}

/// `logged` is what this machine's log knows of the site.
pub fn look(place: &Place, relatives: &[Place], logged: Option<&SiteState>) -> Outcome<Orphans> {
    let size = reconcile::stored_size(place)?;
    let mut events = Vec::new();
    for place in std::iter::once(place).chain(relatives) {
        backups(place, size, &mut events)?;
    }
    let (mut bytes, strangers) = segments(place, size)?;
    events.push(Event::Found {
        segment_size: size,
        wal: ranges(bytes.keys()),
        files: Vec::new(),
    });
    let mut site = fold(events);
    if let Some(logged) = logged {
        unstored(logged, &mut site)?;
    }
    if site.backups.all.is_empty() {
        let message = format!("there is no basebackup in '{}'", place.key("basebackup"));
        return Err(Failure::new(Class::NotFound, message)
            .hint("nothing says which WAL is needed, so none was touched"));
    }
    // Without a limit every basebackup stays, and promises every moment after it.
    let keep_all = SitePolicy::default();
    let name = Site(place.site.clone());
    let alone = Link {
        name: &name,
        site: &site,
    };
    let mut plan = retention::plan(&[alone], &keep_all, clock::now(), false);
    let wal = plan.wal.remove(&name).unwrap_or_default();
    bytes.retain(|segment, _| wal.now.iter().any(|range| range.holds(*segment)));
    Ok(Orphans {
        size,
        ranges: wal.now,
        bytes,
        strangers,
    })
}

/// The main objects of a site, under names that no other site's have.
fn backups(place: &Place, size: SegmentSize, events: &mut Vec<Event>) -> Outcome<()> {
    let mut keys = Vec::new();
    place.store.list(&place.key("basebackup"), &mut |entry| {
        keys.push(entry.key);
        Ok(())
    })?;
    for key in keys {
        let told = |failure: Failure| {
            failure
                .about(format!("basebackup '{key}'"))
                .hint("which WAL it needs is not known, so none was touched")
        };
        // Gone since it was listed: somebody else's retention.
        let Some(object) = place.store.look(&key).map_err(told)? else {
            continue;
        };
        let base = key.rsplit('/').next().unwrap_or(&key);
        let modified = Millis(u64::try_from(object.entry.modified_ms).unwrap_or(0));
        let mut found =
            label::read(base, &object.metadata, 0, size, modified).ok_or_else(|| {
                let message = "its metadata has no start-wal-segment that can be read";
                told(Failure::new(Class::Corrupt, message))
            })?;
        found.backup = BackupName(key.clone());
        events.push(Event::BackupFound(found));
    }
    Ok(())
}

fn segments(place: &Place, size: SegmentSize) -> Outcome<(BTreeMap<Segment, u64>, u64)> {
    let (mut segments, mut strangers) = (BTreeMap::new(), 0);
    place.store.list(&place.key("xlog"), &mut |entry| {
        let base = entry.key.rsplit('/').next().unwrap_or_default();
        match Segment::from_name(base, size) {
            Some(segment) => drop(segments.insert(segment, entry.size_bytes)),
            None => strangers += 1,
        }
        Ok(())
    })?;
    Ok((segments, strangers))
}

fn ranges<'a>(segments: impl Iterator<Item = &'a Segment>) -> Vec<Range> {
    let mut all: BTreeMap<Timeline, Runs> = BTreeMap::new();
    for segment in segments {
        all.entry(segment.timeline)
            .or_default()
            .insert(segment.number);
    }
    all.iter()
        .flat_map(|(timeline, runs)| runs.ranges(*timeline))
        .collect()
}

fn fold(events: Vec<Event>) -> SiteState {
    let site = Site("listed".to_owned());
    let mut state = State::default();
    for (event, seq) in events.into_iter().zip(1..) {
        state.apply(&Envelope {
            seq,
            at: clock::now(),
            run: 1,
            site: Some(site.clone()),
            event,
        });
    }
    state.sites.remove(&site).unwrap_or_default()
}

/// Basebackups that were taken and whose main objects are not stored yet.
fn unstored(logged: &SiteState, site: &mut SiteState) -> Outcome<()> {
    for (name, backup) in &logged.backups.all {
        match backup.phase {
            Phase::Complete | Phase::Dead => continue,
            Phase::Running | Phase::Finished => {}
        }
        if backup.content.is_none() {
            let message = format!("basebackup '{name}' was being taken when the daemon ended");
            return Err(Failure::new(Class::Interrupted, message)
                .hint("start the daemon, which settles it; no WAL was touched"));
        }
        let name = BackupName(format!("spooled/{name}"));
        site.backups.all.insert(name, backup.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::testing::Bed;

    const PLACES: [&str; 2] = ["main", "old"];

    fn name(timeline: u32, number: u64) -> String {
        Segment::new(Timeline(timeline), number).name(SegmentSize::DEFAULT)
    }

    /// Of basebackups (prefix, start) and WAL: the numbers that are orphans, by timeline.
    fn check(backups: &[(&str, &str)], wal: &[(u32, u64)], expect: Result<&[(u32, u64)], &str>) {
        let bed = Bed::make();
        for (number, (prefix, start)) in backups.iter().enumerate() {
            let key = format!("{prefix}/basebackup/2026-11-22_09-27_{number}");
            bed.put(&key, &[("start-wal-segment", start)]);
        }
        for (timeline, number) in wal {
            let key = format!("main/xlog/{}", name(*timeline, *number));
            bed.put(&key, &[("original-file-size", "16777216")]);
        }
        let mut relative = bed.place.clone();
        relative.prefix = PLACES[1].to_owned();
        let found = look(&bed.place, &[relative], None);
        let found = found.map(|orphans| {
            let all = orphans.bytes.into_keys();
            all.map(|segment| (segment.timeline.0, segment.number))
                .collect::<Vec<_>>()
        });
        match expect {
            Ok(expect) => assert_eq!(found.unwrap(), expect, "{backups:?} {wal:?}"),
            Err(part) => {
                let failure = found.unwrap_err().to_string();
                assert!(failure.contains(part), "{failure}");
            }
        }
    }

    #[test]
    fn only_what_lies_before_every_basebackup_is_an_orphan() {
        let at = |number| name(1, number);
        let wal = [(1, 3), (1, 4), (1, 5), (1, 6)];
        check(&[("main", &at(5))], &wal, Ok(&[(1, 3), (1, 4)]));
        check(&[("main", &at(5)), ("main", &at(4))], &wal, Ok(&[(1, 3)]));
        check(&[("main", &at(3))], &wal, Ok(&[]));
        check(
            &[("main", &at(5))],
            &[(1, 2), (1, 4)],
            Ok(&[(1, 2), (1, 4)]),
        );
        // A restore of the site that this one was moved from goes on with this one's WAL.
        check(&[("main", &at(5)), ("old", &at(4))], &wal, Ok(&[(1, 3)]));
        check(&[("old", &at(4))], &wal, Ok(&[(1, 3)]));
        check(
            &[],
            &wal,
            Err("there is no basebackup in 'main/basebackup'"),
        );
        check(
            &[("main", &at(5)), ("main", "x")],
            &wal,
            Err("2026-11-22_09-27_1"),
        );
        check(
            &[("main", &at(5)), ("old", "")],
            &wal,
            Err("no start-wal-segment"),
        );
    }

    /// PGHoard compares names, in which a new timeline is above everything of the old one.
    #[test]
    fn differs_timelines_are_compared_by_number() {
        let wal = [(1, 4), (1, 6), (2, 4), (2, 6), (3, 1)];
        let expect: &[(u32, u64)] = &[(1, 4), (2, 4), (3, 1)];
        check(&[("main", &name(2, 5))], &wal, Ok(expect));
        check(&[("main", &name(1, 5))], &wal, Ok(expect));
        check(
            &[("main", &name(1, 7)), ("main", &name(2, 5))],
            &wal,
            Ok(expect),
        );
    }

    #[test]
    fn what_is_no_wal_is_counted_and_stays() {
        let bed = Bed::make();
        let start = name(1, 9);
        bed.put("main/basebackup/a", &[("start-wal-segment", &start)]);
        bed.put("main/xlog/000000010000000000000004.partial", &[]);
        let orphans = look(&bed.place, &[], None).unwrap();
        assert_eq!((orphans.bytes.len(), orphans.strangers), (0, 1));
    }

    #[test]
    fn a_basebackup_that_waits_in_the_spool_counts() {
        let bed = Bed::make();
        let start = name(1, 9);
        bed.put("main/basebackup/a", &[("start-wal-segment", &start)]);
        for number in 3..9 {
            bed.put(&format!("main/xlog/{}", name(1, number)), &[]);
        }
        let (waiting, mut backup) = {
            let found = |start| {
                Event::BackupFound(machine::event::Adopted {
                    backup: BackupName("b".into()),
                    object: "b".into(),
                    format: String::new(),
                    start: Segment::new(Timeline(1), start),
                    end: None,
                    started_at: Millis(1),
                    ended_at: None,
                    end_lsn: None,
                    wal: machine::event::WalIn::Archive,
                    decided_at: Millis(1),
                    normalized_at: None,
                    reason: machine::event::Why::Operator,
                    parts: 0,
                    bytes_in: 0,
                    bytes_out: 0,
                })
            };
            let mut site = fold(vec![found(5)]);
            site.backups.all.pop_first().unwrap()
        };
        for (phase, expect) in [
            (Phase::Finished, Some(2)),
            (Phase::Running, Some(2)),
            (Phase::Complete, Some(6)),
            (Phase::Dead, Some(6)),
        ] {
            backup.phase = phase;
            let mut logged = SiteState::default();
            logged.backups.all.insert(waiting.clone(), backup.clone());
            let found = look(&bed.place, &[], Some(&logged));
            assert_eq!(
                found.ok().map(|found| found.bytes.len()),
                expect,
                "{phase:?}"
            );
        }
        (backup.phase, backup.content) = (Phase::Running, None);
        let mut logged = SiteState::default();
        logged.backups.all.insert(waiting, backup);
        assert!(look(&bed.place, &[], Some(&logged)).is_err());
    }
}
