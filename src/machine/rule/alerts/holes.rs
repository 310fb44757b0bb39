//! Alerts of what is missing: holes that nobody acknowledged, and objects of backups.

use alloc::collections::BTreeMap;
use alloc::format;

use super::{List, View};
use crate::event::Millis;
use crate::file::{BackupName, File};
use crate::projection::backups::Phase;
use crate::projection::marks::Hole;
use crate::rule::holes::{self, Fate};
use crate::wal::Segment;

impl View<'_> {
    pub(super) fn holes(&self, list: &mut List) {
        for found in holes::holes(self.site) {
            let (hole, gap) = (&found.hole, &found.impossible);
            let todo = match holes::fate(self.site, hole) {
                Fate::Acknowledged => continue,
                _ if !self.policy.active => {
                    "the site is inactive: no server is asked for it and no basebackup taken; \
                     put it back if you can, else pghoard holes --acknowledge"
                }
                Fate::Healing => "nothing yet: servers are asked for it; see pghoard holes",
                Fate::Lost => {
                    "see pghoard holes; a new basebackup is taken by itself and covers what \
                     follows; then pghoard holes --acknowledge, and use a replication slot so \
                     that it cannot happen again"
                }
            };
            let (name, size) = (self.name, self.size());
            let missing = match hole {
                Hole::Wal(range) if range.first == range.last => {
                    format!(
                        "WAL segment {}",
                        Segment::new(range.timeline, range.first).name(size)
                    )
                }
                Hole::Wal(range) => format!("WAL {}", range.name(size)),
                Hole::History(timeline) => format!("history file {}", timeline.history_name()),
            };
            let (from, timeline) = (gap.from, gap.timeline);
            let to = match gap.to {
                Some(to) => format!(" to {to}"),
                None => " on".into(),
            };
            let what = format!(
                "site '{name}': {missing} is neither in the store nor in the spool; no moment \
                 from {from}{to} on timeline {timeline} can be restored"
            );
            let since = self.site.holes.since(hole).unwrap_or_default();
            list.add("wal_hole", since, what, todo);
        }
    }

    /// Parts and main objects; a history that is gone is a hole where anything needs it.
    pub(super) fn missing(&self, list: &mut List) {
        let mut gone: BTreeMap<&BackupName, (Millis, u64)> = BTreeMap::new();
        for (file, since) in &self.site.ledger.missing {
            let (File::Part { backup, .. } | File::Main(backup)) = file else {
                continue;
            };
            let made = self.site.backups.all.get(backup);
            if made.is_some_and(|made| made.phase != Phase::Dead) {
                let (first, count) = gone.entry(backup).or_insert((*since, 0));
                (*first, *count) = ((*first).min(*since), count.saturating_add(1));
            }
        }
        for (backup, (since, count)) in gone {
            let what = format!(
                "site '{}': {count} objects of basebackup {backup} are gone from the store; it \
                 cannot be restored and does not count for retention",
                self.name
            );
            let todo = match self.policy.active {
                true => {
                    "find out who removes objects there, and put these back if you can; a new \
                     basebackup is taken by itself where no other can be restored"
                }
                false => "find out who removes objects there, and put these back if you can",
            };
            list.add("object_missing", since, what, todo);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::event::{Adopted, Event, Range, Why};
    use crate::projection::marks::Mark;
    use crate::rule::alerts::tests::{check, noted, seen, segment};
    use crate::wal::{SegmentSize, Timeline};

    /// A backup at 1 and WAL up to 9, but for these.
    fn listed(lacking: &[u64]) -> Vec<Event> {
        let (first, last) = (segment(1), segment(9));
        let wal = (1..=9).filter(|n| !lacking.contains(n));
        let wal = wal.map(|n| range(n, n)).collect();
        let backup = Adopted {
            backup: BackupName("b".into()),
            object: "b".into(),
            format: "pghoard-bb-v2".into(),
            start: first,
            end: Some(first),
            started_at: Millis(1),
            ended_at: None,
            end_lsn: None,
            wal: crate::event::WalIn::Archive,
            decided_at: Millis(1),
            normalized_at: None,
            reason: Why::Schedule,
            parts: 1,
            bytes_in: 1,
            bytes_out: 1,
        };
        alloc::vec![
            seen(1, None),
            Event::StreamStarted {
                node: 0,
                from: last.next(),
                slot: None,
                anchored: true,
            },
            Event::Found {
                segment_size: SegmentSize::DEFAULT,
                wal,
                files: alloc::vec![part()],
            },
            Event::BackupFound(backup),
            crate::testing::reconciled(),
        ]
    }

    fn part() -> File {
        let backup = BackupName("b".into());
        File::Part { backup, number: 1 }
    }

    fn range(first: u64, last: u64) -> Range {
        Range {
            timeline: Timeline(1),
            first,
            last,
        }
    }

    fn opened(first: u64, last: u64) -> Event {
        let hole = Hole::Wal(range(first, last));
        Event::HoleOpened { hole }
    }

    fn taken_note(first: u64, last: u64) -> Event {
        let mark = Mark::HoleAcknowledged {
            hole: Hole::Wal(range(first, last)),
            reason: "known".into(),
            by: "ada".into(),
            at: Millis(1),
        };
        let key = mark.key(SegmentSize::DEFAULT);
        Event::Marked { key, mark }
    }

    fn missing(first: u64, last: u64, files: &[File]) -> Event {
        Event::Missing {
            wal: alloc::vec![range(first, last)],
            files: files.to_vec(),
        }
    }

    #[test]
    fn a_noted_alert_stands_again_when_something_new_befalls() {
        let hole = [&listed(&[5])[..], &[opened(5, 5), noted("wal_hole")]].concat();
        check(&hole, "wal_hole 6..6");
        let another = [&hole[..], &[missing(7, 7, &[]), opened(7, 7)]].concat();
        check(&another, "!wal_hole 6..9");
        let both = [&another[..], &[noted("wal_hole"), noted("other")]].concat();
        check(&both, "wal_hole 6..9");
    }

    #[test]
    fn s74_an_acknowledged_hole_is_silent_and_a_new_one_is_not() {
        let whole = listed(&[]);
        check(&whole, "");
        let hole = [&listed(&[5])[..], &[opened(5, 5)]].concat();
        check(&hole, "!wal_hole 6..6");
        let known = [&hole[..], &[taken_note(5, 5)]].concat();
        check(&known, "");
        let another = [&known[..], &[missing(7, 7, &[]), opened(7, 7)]].concat();
        check(&another, "!wal_hole 9..9");
        // It grew: what a person knew of is not all of it.
        let wider = [&known[..], &[missing(6, 6, &[]), opened(5, 6)]].concat();
        check(&wider, "!wal_hole 9..9");
        let healed = Event::Found {
            segment_size: SegmentSize::DEFAULT,
            wal: alloc::vec![range(7, 7)],
            files: Vec::new(),
        };
        check(&[&another[..], &[healed]].concat(), "");
    }

    #[test]
    fn objects_of_a_backup_that_are_gone_are_told_until_they_are_back_or_it_is_dead() {
        let main = File::Main(BackupName("b".into()));
        let whole = listed(&[]);
        let gone = [&whole[..], &[missing(9, 8, &[part(), main.clone()])]].concat();
        check(&gone, "!object_missing 6..6");
        let found = Event::Found {
            segment_size: SegmentSize::DEFAULT,
            wal: Vec::new(),
            files: alloc::vec![part()],
        };
        check(
            &[&gone[..], core::slice::from_ref(&found)].concat(),
            "!object_missing 6..6",
        );
        let back = Event::Found {
            segment_size: SegmentSize::DEFAULT,
            wal: Vec::new(),
            files: alloc::vec![main],
        };
        check(&[&gone[..], &[found, back]].concat(), "");
        let dead = Event::BackupExpired {
            backup: BackupName("b".into()),
            rule: "count".into(),
        };
        check(&[&gone[..], &[dead]].concat(), "");
    }
}
