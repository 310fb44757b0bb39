//! What a start does before the first turn: look at the spool and say what is there.
//!
//! There is no recovery code beyond this: a file the log knows stays what it is, WAL it does not
//! know is adopted, a file it knows that is gone is said to be gone. The rest is decide.

use std::collections::BTreeSet;

use machine::breaks::{Rule, holds};
use machine::event::{Origin, Reason};
use machine::{Event, File, Segment, SegmentSize, SiteState};

use crate::spool::Found;

pub struct Scan {
    pub events: Vec<Event>,
    /// Names to remove: content nobody can ever want.
    pub useless: Vec<String>,
    pub segment_size: SegmentSize,
}

/// Compares the spool's content with the log's view of it. `next_entry` numbers what is adopted.
pub fn scan(site: &SiteState, found: &[Found], next_entry: &mut u64) -> Scan {
    let ledger = &site.ledger;
    let segment_size = ledger
        .segment_size
        .or_else(|| size_of(found))
        .unwrap_or(SegmentSize::DEFAULT);
    let mut scan = Scan {
        events: Vec::new(),
        useless: Vec::new(),
        segment_size,
    };
    let named = |found: &Found| File::from_spool_name(&found.name, segment_size);
    for entry in found {
        let Some(file) = named(entry) else { continue };
        let known = ledger.spool.contains_key(&file);
        match &file {
            // In the break, "already stored" wins over what the log knows.
            File::Wal(segment) if !holds(Rule::KnownEntryOutranksStored) => {
                if ledger.stored(*segment) {
                    scan.useless.push(entry.name.clone());
                    continue;
                }
            }
            File::Main(_) if !known => {
                scan.useless.push(entry.name.clone());
                continue;
            }
            File::Wal(_)
            | File::Partial(_)
            | File::History(_)
            | File::Main(_)
            | File::Part { .. } => {}
        }
        if !known {
            *next_entry += 1;
            scan.events.push(Event::Spooled {
                file,
                entry: *next_entry,
                bytes: entry.bytes,
                origin: Origin::Adopted,
            });
        }
    }
    let there: BTreeSet<File> = found.iter().filter_map(named).collect();
    for (file, entry) in &ledger.spool {
        if !there.contains(file) {
            let (file, entry) = (file.clone(), entry.id);
            scan.events.push(Event::Dropped {
                file,
                entry,
                reason: Reason::Vanished,
            });
        }
    }
    scan
}

/// A sealed segment's length is the segment size: the log may have been lost with that knowledge.
fn size_of(found: &[Found]) -> Option<SegmentSize> {
    found.iter().find_map(|found| {
        let size = SegmentSize::new(found.bytes)?;
        Segment::from_name(&found.name, size).map(|_| size)
    })
}

#[cfg(test)]
mod tests {
    use machine::event::{How, Millis};
    use machine::{BackupName, Envelope, Site, State, Timeline};

    use super::*;

    const MIB_16: u64 = 16 << 20;
    const ONE: &str = "000000010000000000000001";
    const TWO: &str = "000000010000000000000002";

    fn wal(number: u64) -> File {
        File::Wal(Segment::new(Timeline(1), number))
    }

    fn spooled(file: File, entry: u64) -> Event {
        Event::Spooled {
            file,
            entry,
            bytes: MIB_16,
            origin: Origin::Stream,
        }
    }

    fn stored(number: u64, entry: u64) -> Event {
        Event::Stored {
            file: wal(number),
            entry: Some(entry),
            bytes_in: MIB_16,
            bytes_out: 1,
            digest: String::new(),
            millis: 1,
            how: How::Written,
        }
    }

    /// What the log says, names and sizes in the spool; then `adopted NAME`, `gone NAME`,
    /// `useless NAME`, in the order of the scan.
    fn check(log: &[Event], found: &[(&str, u64)], expect: &[&str]) {
        let mut state = State::default();
        let site = Site("main".into());
        for (event, seq) in log.iter().zip(1..) {
            state.apply(&Envelope {
                seq,
                at: Millis(seq),
                run: 1,
                site: Some(site.clone()),
                event: event.clone(),
            });
        }
        let known = state.sites.remove(&site).unwrap_or_default();
        let found: Vec<Found> = found
            .iter()
            .map(|(name, bytes)| Found {
                name: (*name).into(),
                bytes: *bytes,
            })
            .collect();
        let mut next = 100;
        let scan = scan(&known, &found, &mut next);
        let name = |file: &File| file.spool_name(scan.segment_size);
        let mut entries = 100;
        let told = scan.events.iter().map(|event| match event {
            Event::Spooled {
                file,
                entry,
                origin: Origin::Adopted,
                ..
            } => {
                entries += 1;
                assert_eq!(*entry, entries, "every entry has a number of its own");
                format!("adopted {}", name(file))
            }
            Event::Dropped {
                file,
                reason: Reason::Vanished,
                entry,
            } => {
                assert!(*entry < 100, "the entry is the one the log knows");
                format!("gone {}", name(file))
            }
            other => panic!("{other:?}"),
        });
        let useless = scan.useless.iter().map(|name| format!("useless {name}"));
        assert_eq!(
            told.chain(useless).collect::<Vec<_>>(),
            expect,
            "{log:?} {found:?}"
        );
    }

    #[test]
    fn the_scan_says_where_spool_and_log_differ() {
        let backup = File::Main(BackupName("2026-11-22_09-27_0".into()));
        let main = "2026-11-22_09-27_0.main";
        let history = "00000002.history";
        let partial = "000000010000000000000003.partial";
        let known = spooled(wal(1), 1);
        let only = [known.clone()];
        let gone_main = format!("gone {main}");
        let useless_main = format!("useless {main}");
        let (adopted, gone) = (format!("adopted {ONE}"), format!("gone {ONE}"));
        let adopted_history = format!("adopted {history}");
        for (log, found, expect) in [
            (&[][..], &[][..], &[][..]),
            (&[], &[(ONE, MIB_16)], &[adopted.as_str()]),
            (&[], &[(history, 40)], &[&adopted_history]),
            (&[], &[(partial, 4096)], &[]),
            (&[], &[(main, 10)], &[&useless_main]),
            (&[], &[("core.17", 10), ("lost+found", 1)], &[]),
            (&[], &[("000000010000000000000001.conflict-1", MIB_16)], &[]),
            (&only, &[(ONE, MIB_16)], &[]),
            (&only, &[], &[&gone]),
            (
                &only,
                &[(TWO, MIB_16)],
                &["adopted 000000010000000000000002", &gone],
            ),
            (&[spooled(backup.clone(), 2)], &[(main, 10)], &[]),
            (&[spooled(backup, 2)], &[], &[&gone_main]),
            // Stored, but the file outlived its event: stored again, which finds it there.
            (
                &[known.clone(), stored(1, 1)],
                &[(ONE, MIB_16)],
                &[&adopted],
            ),
            // Stored once and spooled anew since: the entry the log knows is the one to store.
            (
                &[known, stored(1, 1), spooled(wal(1), 7)],
                &[(ONE, MIB_16)],
                &[],
            ),
        ] {
            check(log, found, expect);
        }
    }

    #[test]
    fn the_segment_size_is_the_logs_or_read_off_the_spool() {
        let mut next = 0;
        let mib: u64 = 1 << 20;
        let file = |name: &str, bytes| Found {
            name: name.into(),
            bytes,
        };
        let mut known = SiteState::default();
        let found = [
            file("00000002.history", 40),
            file("000000010000000000000FFF", mib),
        ];
        let first = scan(&known, &found, &mut next);
        assert_eq!(first.segment_size.bytes(), mib);
        assert_eq!(first.events.len(), 2);
        let empty = scan(&known, &[], &mut next);
        assert_eq!(empty.segment_size, SegmentSize::DEFAULT);
        known.ledger.segment_size = SegmentSize::new(64 * mib);
        let other = scan(&known, &[file(ONE, mib)], &mut next);
        assert_eq!(other.segment_size.bytes(), 64 * mib);
    }
}
