//! States in a few words, and the holes in each.
//!
//! `wal 1:3-9` is stored, `spool 1:5` spooled, `history 2` stored, `learned 3:1@10,2@15.5` says
//! where timelines were left (in segments), `backup a 1:3-4` is one in the store that needs 3 and
//! 4, `at 1:9` the frontier, `toward 2` what is received, `retired 1:3-4` let go by retention,
//! `damaged 1:5` and `damaged 2` found bad, `dead a` expired, `gone a` without main object.

use alloc::format;
use alloc::string::{String, ToString};

use super::*;
use crate::event::{Branch, Event, Sought, Why};
use crate::testing;

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

fn timeline(text: &str) -> Timeline {
    Timeline(text.parse().unwrap())
}

/// `1:3-9` or `1:3`.
fn range(text: &str) -> Range {
    let (on, numbers) = text.split_once(':').unwrap();
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    Range {
        timeline: timeline(on),
        first: number(first),
        last: number(last),
    }
}

fn position(segments: &str) -> Lsn {
    let (whole, half) = segments.split_once('.').unwrap_or((segments, "0"));
    let tenths = number(whole) * 10 + number(half);
    Lsn(tenths * SegmentSize::DEFAULT.bytes() / 10)
}

fn word(site: &mut SiteState, word: &str) {
    let (kind, rest) = word.split_once(' ').unwrap();
    let ledger = &mut site.ledger;
    match kind {
        "wal" => {
            let range = range(rest);
            let runs = ledger.wal.entry(range.timeline).or_default();
            runs.insert_range(range.first, range.last);
        }
        "spool" => {
            let range = range(rest);
            let entry = crate::projection::ledger::Entry {
                id: 1,
                bytes: 1,
                at: Millis(1),
            };
            let file = File::Wal(Segment::new(range.timeline, range.first));
            ledger.spool.insert(file, entry);
        }
        "history" => drop(ledger.histories.insert(timeline(rest))),
        "learned" => {
            let (of, path) = rest.split_once(':').unwrap();
            let branch = |text: &str| {
                let (on, at) = text.split_once('@').unwrap();
                Branch {
                    timeline: timeline(on),
                    switch: position(at),
                }
            };
            site.timelines.apply(&Event::TimelineLearned {
                timeline: timeline(of),
                ancestors: path.split(',').map(branch).collect(),
            });
        }
        "backup" => {
            let (name, needs) = rest.split_once(' ').unwrap();
            let range = range(needs);
            let (name, mut made) = testing::backup(name, Millis(range.first), Why::Schedule);
            let content = made.content.as_mut().unwrap();
            content.start = Segment::new(range.timeline, range.first);
            content.end = Some(Segment::new(range.timeline, range.last));
            ledger.mains.insert(name.clone());
            site.backups.all.insert(name, made);
        }
        "dead" => {
            let backup = site.backups.all.get_mut(&BackupName(rest.into()));
            backup.unwrap().phase = Phase::Dead;
        }
        "gone" => drop(ledger.mains.remove(&BackupName(rest.into()))),
        "at" => {
            let range = range(rest);
            ledger.frontier = Some(Segment::new(range.timeline, range.first));
        }
        "toward" => ledger.toward = Some(timeline(rest)),
        "retired" => mark(site, Mark::WalRetired { range: range(rest) }),
        "damaged" => {
            let file = match rest.contains(':') {
                true => File::Wal(Segment::new(range(rest).timeline, range(rest).first)),
                false => File::History(timeline(rest)),
            };
            ledger.damage(&file);
        }
        other => panic!("{other}"),
    }
}

fn mark(site: &mut SiteState, mark: Mark) {
    let key = mark.key(SegmentSize::DEFAULT);
    site.marks.all.insert(key, mark);
}

fn state(words: &str) -> SiteState {
    let mut site = SiteState::default();
    site.ledger.segment_size = Some(SegmentSize::DEFAULT);
    site.ledger.reconciled_at = Some(Millis(1));
    for text in words.split(';').map(str::trim).filter(|w| !w.is_empty()) {
        word(&mut site, text);
    }
    site
}

/// Each hole as `1:5-6 cuts a,b from 5 to 9`, or `history 2 ...`.
fn told(site: &SiteState) -> String {
    let all = holes(site);
    let text = all.iter().map(|found| {
        let name = match &found.hole {
            Hole::Wal(r) => format!("{}:{}-{}", r.timeline, r.first, r.last),
            Hole::History(timeline) => format!("history {timeline}"),
        };
        let cuts: Vec<_> = found.cuts.iter().map(|b| b.0.as_str()).collect();
        let at = |lsn: Lsn| lsn.0 / SegmentSize::DEFAULT.bytes();
        let to = found
            .impossible
            .to
            .map_or("-".to_string(), |to| at(to).to_string());
        let (cuts, from) = (cuts.join(","), at(found.impossible.from));
        format!("{name} cuts {cuts} from {from} to {to}")
    });
    text.collect::<Vec<_>>().join("; ")
}

const TWO: &str = "learned 2:1@10.5; history 2";
const THREE: &str = "learned 2:1@10.5; learned 3:1@10.5,2@15.5; history 2; history 3";

#[test]
fn s74_healthy_histories_raise_no_alarm() {
    for words in [
        "",
        "wal 1:3-9; at 1:9",
        "backup a 1:3-4; wal 1:3-9; at 1:9",
        "backup a 1:3-3; wal 1:3-3; at 1:3",
        // Retention trimmed the front, expired backups need nothing.
        "backup a 1:1-2; dead a; backup b 1:5-6; wal 1:5-9; at 1:9",
        "backup a 1:1-2; gone a; backup b 1:5-6; wal 1:5-9; at 1:9",
        "backup a 1:1-2; backup b 1:7-8; wal 1:1-2; wal 1:7-9; retired 1:3-6; at 1:9",
        // Above the frontier reception goes back.
        "backup a 1:3-4; wal 1:3-6; wal 1:8-9; at 1:6",
        "backup a 1:3-4; wal 1:3-6; wal 1:8-9; at 1:6; toward 1",
        // On its way to the store.
        "backup a 1:3-4; wal 1:3-5; wal 1:7-9; spool 1:6; at 1:9",
        // A promotion in a segment, on a border, and at once again.
        "learned 2:1@10.5; history 2; backup a 1:3-4; wal 1:3-9; wal 2:10-12; at 2:12",
        "learned 2:1@10; history 2; backup a 1:3-4; wal 1:3-9; wal 2:10-12; at 2:12",
        "learned 2:1@10.5; learned 3:1@10.5,2@10.8; history 2; history 3; backup a 1:3-4;
         wal 1:3-9; wal 3:10-12; at 3:12",
        "learned 2:1@10.5; learned 3:1@10.5,2@15.5; history 2; history 3; backup a 1:3-4;
         wal 1:3-9; wal 2:10-14; wal 3:15-20; at 3:20",
        // Only the newest history was learned, after the log was lost.
        "learned 3:1@10.5,2@15.5; history 2; history 3; backup a 1:3-4; wal 1:3-9; wal 2:10-14;
         wal 3:15-20; at 3:20",
        // On the way: the child has begun, the parent is not stored to its end.
        "learned 2:1@10.5; history 2; backup a 1:3-4; wal 1:3-7; wal 2:10-12; at 1:7; toward 2",
        "learned 2:1@10.5; backup a 1:3-4; wal 1:3-9; at 1:9; toward 2",
        // s48: promoted below what is held of the parent, which went on for a while.
        "learned 2:1@10.5; history 2; backup a 1:3-4; wal 1:3-14; wal 2:10-12; at 2:12",
        // A backup of the abandoned part, one that straddles the switch, one of a branch.
        "learned 2:1@10.5; history 2; backup a 1:11-12; wal 1:11-14; wal 2:10-12; at 2:12",
        "learned 2:1@10.5; history 2; backup a 1:9-10; wal 1:9-10; wal 2:10-12; at 2:12",
        "learned 2:1@10.5; learned 3:1@8.5; history 2; history 3; backup a 1:3-4; backup b 2:11-11;
         wal 1:3-9; wal 2:10-14; wal 3:8-12; at 3:12",
        // Restored to before, twice, from the same backup; the parent's tail is whole.
        "learned 2:1@6.5; learned 3:1@5.5; history 2; history 3; backup a 1:3-4; wal 1:3-20;
         wal 2:6-9; wal 3:5-9; at 3:9",
        // Back to the old timeline, where no slot was: the way is whole.
        "learned 2:1@10.5; history 2; backup a 1:3-4; wal 1:3-15; wal 2:10-12; at 1:15; toward 1",
        // A branch trimmed away, all its backups gone.
        "learned 2:1@10.5; history 2; backup b 1:20-21; wal 2:30-40; wal 1:20-50; at 1:50",
        // A backup begun on its own timeline has no need of its history.
        "learned 2:1@10.5; backup b 2:12-12; wal 2:12-15; at 2:15",
        // A later end before the switch to its own timeline: what follows was left.
        "learned 2:1@10.5; learned 3:1@10.5,2@8.5; history 2; history 3; backup a 1:3-4;
         wal 1:3-7; wal 3:8-12; at 3:12",
        // Nobody can say where the way of an unknown timeline goes.
        "backup a 1:3-4; wal 1:3-9; wal 4:20-22; at 4:22",
        // Damaged, and good content is in the spool already.
        "backup a 1:3-4; wal 1:3-9; damaged 1:6; spool 1:6; at 1:9",
    ] {
        assert_eq!(told(&state(words)), "", "{words}");
    }
}

#[test]
fn s09_s10_s25_s41_every_injected_fault_is_seen() {
    for (words, expect) in FAULTS.iter().chain(FAULTS_ACROSS) {
        let words = words.replace("TWO", TWO).replace("THREE", THREE);
        assert_eq!(told(&state(&words)), *expect, "{words}");
    }
}

const FAULTS: &[(&str, &str)] = &[
    (
        "backup a 1:3-4; wal 1:3-5; wal 1:7-9; at 1:9",
        "1:6-6 cuts a from 6 to -",
    ),
    (
        "backup a 1:3-4; wal 1:3-5; wal 1:8-9; at 1:9",
        "1:6-7 cuts a from 6 to -",
    ),
    // In the backup's own WAL; the very first; the frontier's own segment.
    (
        "backup a 1:3-4; wal 1:3-3; wal 1:5-9; at 1:9",
        "1:4-4 cuts a from 4 to -",
    ),
    (
        "backup a 1:3-4; wal 1:4-9; at 1:9",
        "1:3-3 cuts a from 3 to -",
    ),
    (
        "backup a 1:3-4; wal 1:3-8; at 1:9",
        "1:9-9 cuts a from 9 to -",
    ),
    ("backup a 1:3-4; at 1:9", "1:3-9 cuts a from 3 to -"),
    // Two holes, two backups; a later one bridges, and ends the lost moments.
    (
        "backup a 1:3-4; wal 1:3-5; wal 1:7-7; wal 1:9-9; at 1:9",
        "1:6-6 cuts a from 6 to -; 1:8-8 cuts a from 8 to -",
    ),
    (
        "backup a 1:3-4; backup b 1:7-7; wal 1:3-5; wal 1:7-9; at 1:9",
        "1:6-6 cuts a from 6 to 8",
    ),
    (
        "backup a 1:1-2; backup b 1:3-4; backup c 1:8-9; wal 1:1-5; wal 1:7-9; at 1:9",
        "1:6-6 cuts a,b from 6 to 10",
    ),
    // A backup begins inside of it.
    (
        "backup a 1:3-4; backup b 1:6-8; wal 1:3-4; wal 1:7-9; at 1:9",
        "1:5-6 cuts a,b from 5 to -",
    ),
    // s09: a lost log whose stream starts before the first listing.
    (
        "backup a 1:3-4; wal 1:3-6; at 1:19",
        "1:7-19 cuts a from 7 to -",
    ),
    (
        "backup a 1:3-4; wal 1:3-6; wal 1:20-22; at 1:22",
        "1:7-19 cuts a from 7 to -",
    ),
];

/// With more than one timeline.
const FAULTS_ACROSS: &[(&str, &str)] = &[
    // s10: at the last segment before a switch, and the first after it.
    (
        "TWO; backup a 1:3-4; wal 1:3-8; wal 2:10-12; at 2:12",
        "1:9-9 cuts a from 9 to -",
    ),
    (
        "TWO; backup a 1:3-4; wal 1:3-9; wal 2:11-12; at 2:12",
        "2:10-10 cuts a from 10 to -",
    ),
    (
        "TWO; backup a 1:3-4; wal 1:3-7; wal 2:12-12; at 2:12",
        "1:8-9 cuts a from 8 to -; 2:10-11 cuts a from 10 to -",
    ),
    (
        "learned 2:1@10; history 2; backup a 1:3-4; wal 1:3-8; wal 2:10-12; at 2:12",
        "1:9-9 cuts a from 9 to -",
    ),
    (
        "learned 2:1@10; history 2; backup a 1:3-4; backup b 2:10-10; wal 1:3-8; wal 2:10-12;
             at 2:12",
        "1:9-9 cuts a from 9 to 11",
    ),
    (
        "THREE; backup a 1:3-4; wal 1:3-9; wal 2:10-13; wal 3:15-20; at 3:20",
        "2:14-14 cuts a from 14 to -",
    ),
    (
        "THREE; backup a 1:3-4; backup b 2:11-11; wal 1:3-9; wal 2:10-13; wal 3:15-20; at 3:20",
        "2:14-14 cuts a,b from 14 to -",
    ),
    (
        "THREE; backup a 1:3-4; backup b 2:11-11; wal 1:3-8; wal 2:10-14; wal 3:15-20; at 3:20",
        "1:9-9 cuts a from 9 to 12",
    ),
    (
        "learned 3:1@10.5,2@15.5; history 2; history 3; backup a 1:3-4; wal 1:3-9;
             wal 2:11-14; wal 3:15-20; at 3:20",
        "2:10-10 cuts a from 10 to -",
    ),
    // The tail of a timeline that was left, and a branch beside the way.
    (
        "TWO; backup a 1:3-4; wal 1:3-11; wal 1:13-14; wal 2:10-12; at 2:12",
        "1:12-12 cuts a from 12 to -",
    ),
    (
        "learned 2:1@10.5; learned 3:1@8.5; history 2; history 3; backup a 1:3-4; wal 1:3-9;
             wal 2:10-11; wal 2:13-14; wal 3:8-12; at 3:12",
        "2:12-12 cuts a from 12 to -",
    ),
    (
        "TWO; backup a 1:11-12; wal 1:11-12; wal 1:14-14; wal 2:10-12; at 2:12",
        "1:13-13 cuts a from 13 to -",
    ),
    // s24, s25, s41: histories at the end and in the middle of the way.
    (
        "learned 2:1@10.5; backup a 1:3-4; wal 1:3-9; wal 2:10-12; at 2:12",
        "history 2 cuts a from 10 to -",
    ),
    (
        "learned 3:1@10.5,2@15.5; history 3; backup a 1:3-4; backup b 2:12-12; wal 1:3-9;
             wal 2:10-14; wal 3:15-20; at 3:20",
        "history 2 cuts a from 10 to 13",
    ),
    (
        "learned 3:1@10.5,2@15.5; history 2; backup a 1:3-4; backup b 2:12-12; wal 1:3-9;
             wal 2:10-14; wal 3:15-20; at 3:20",
        "history 3 cuts a,b from 15 to -",
    ),
    (
        "learned 3:1@10.5,2@10.8; history 3; backup a 1:3-4; wal 1:3-9; wal 3:10-12; at 3:12",
        "history 2 cuts a from 10 to -",
    ),
    // Damaged counts as absent; what was retired only there where it was.
    (
        "backup a 1:3-4; wal 1:3-9; damaged 1:6; at 1:9",
        "1:6-6 cuts a from 6 to -",
    ),
    (
        "TWO; backup a 1:3-4; wal 1:3-9; wal 2:10-12; damaged 2; at 2:12",
        "history 2 cuts a from 10 to -",
    ),
    (
        "backup a 1:1-2; backup b 1:7-8; wal 1:1-1; wal 1:7-9; retired 1:3-6; at 1:9",
        "1:2-2 cuts a from 2 to 9",
    ),
];

#[test]
fn nothing_is_said_before_a_listing() {
    let mut site = state("backup a 1:3-4; wal 1:3-5; wal 1:7-9; at 1:9");
    site.ledger.reconciled_at = None;
    assert_eq!(told(&site), "");
}

/// Every way to drop segments from a whole store is seen, and nothing else.
#[test]
fn s74_each_missing_segment_of_a_long_history_is_named() {
    let whole = "THREE; backup a 1:3-4; backup b 2:11-11; wal 1:3-9; wal 2:10-14; wal 3:15-20; \
                 at 3:20"
        .replace("THREE", THREE);
    for (on, first, last) in [(1, 3, 9), (2, 10, 14), (3, 15, 20)] {
        for number in first..=last {
            let mut site = state(&whole);
            let runs = site.ledger.wal.get_mut(&Timeline(on)).unwrap();
            runs.remove(number);
            let found = holes(&site);
            let [one] = found.as_slice() else {
                panic!("{on}:{number}: {found:?}")
            };
            let range = Range {
                timeline: Timeline(on),
                first: number,
                last: number,
            };
            assert_eq!(one.hole, Hole::Wal(range));
            assert!(one.cuts.contains(&BackupName("a".into())));
        }
    }
}

#[test]
fn s48_a_backup_leads_to_where_the_cluster_went_or_not() {
    for (words, leads_on) in [
        ("backup a 1:3-4; at 1:9", true),
        ("backup a 1:3-4; at 1:2", true),
        ("TWO; backup a 1:3-4; at 2:12", true),
        ("TWO; backup a 1:11-12; at 2:12", false),
        ("TWO; backup a 1:9-10; at 2:12", false),
        ("TWO; backup a 2:12-12; at 1:14", false),
        ("backup a 1:3-4; at 5:12", true),
    ] {
        let site = state(&words.replace("TWO", TWO));
        let content = backups(&site).next().unwrap().1;
        assert_eq!(leads(&site, content), leads_on, "{words}");
    }
}

fn seen(node: u32) -> Event {
    Event::ServerSeen(testing::seen(node))
}

fn sought(means: Means, text: &str) -> Event {
    Event::HoleSought {
        hole: Hole::Wal(range(text)),
        means,
        outcome: Sought::Absent {
            message: "removed".into(),
        },
    }
}

#[test]
fn a_hole_is_lost_once_every_server_that_answers_said_so() {
    let lost = |node| Event::ServerLost {
        node,
        class: crate::Class::Network,
        message: "no".into(),
    };
    let (zero, one) = (Means::Server(0), Means::Server(1));
    let hole = Hole::Wal(range("1:6-7"));
    for (events, expect) in [
        (&[][..], Fate::Healing),
        (&[seen(0)], Fate::Healing),
        (&[seen(0), sought(zero, "1:6-7")], Fate::Lost),
        (&[seen(0), sought(zero, "1:6-6")], Fate::Healing),
        (
            &[seen(0), sought(zero, "1:6-6"), sought(zero, "1:7-7")],
            Fate::Lost,
        ),
        (&[seen(0), seen(1), sought(zero, "1:6-7")], Fate::Healing),
        (
            &[
                seen(0),
                seen(1),
                sought(zero, "1:6-7"),
                sought(one, "1:1-9"),
            ],
            Fate::Lost,
        ),
        (
            &[seen(0), seen(1), sought(zero, "1:6-7"), lost(1)],
            Fate::Lost,
        ),
        (&[seen(0), sought(zero, "1:6-7"), lost(0)], Fate::Lost),
        (&[seen(0), lost(0)], Fate::Healing),
    ] {
        let mut site = state("backup a 1:3-4; wal 1:3-5; wal 1:8-9; at 1:9");
        for event in events {
            site.servers.apply(event, Millis(1));
            site.holes.apply(event, Millis(1));
        }
        assert_eq!(fate(&site, &hole), expect, "{events:?}");
        let noted = Mark::HoleAcknowledged {
            hole: Hole::Wal(range("1:5-8")),
            reason: "known".into(),
            by: "ada".into(),
            at: Millis(2),
        };
        mark(&mut site, noted);
        assert_eq!(fate(&site, &hole), Fate::Acknowledged, "{events:?}");
        // One that grew is another one.
        let wider = Hole::Wal(range("1:5-9"));
        assert_ne!(fate(&site, &wider), Fate::Acknowledged);
    }
}
