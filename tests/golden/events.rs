//! Every kind of event ever released decodes for ever, and any CBOR reader understands it.
//!
//! `events/KIND.VERSION.cbor` are lines as the log stores them, without their digest. A new kind
//! gets its file by running with UPDATE_GOLDEN=1; an existing file is never written again.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use machine::event::{
    Adopted, Branch, Finished, How, Lease, Origin, Previous, Range, Reason, Server, Slot, Sought,
    WalIn, Why,
};
use machine::projection::marks::{Hole, Mark};
use machine::task::Means;
use machine::{
    BackupName, Class, Envelope, Event, File, Lsn, Millis, Segment, SegmentSize, Site, SiteState,
    State, TaskId, Timeline,
};
use pghoard::journal::encoding::{GENESIS, decode, encode, parse};
use pghoard::journal::upcast::{KINDS, VERSION};

#[allow(clippy::too_many_lines, reason = "a table: one sample of every kind")]
fn plain_samples() -> Vec<Event> {
    let segment = Segment::new(Timeline(2), 37);
    let backup = BackupName("2026-11-22_09-27_0".into());
    let file = File::Wal(segment);
    let text = |text: &str| text.to_string();
    let at = Millis(1_795_339_646_717);
    let range = Range {
        timeline: Timeline(2),
        first: 30,
        last: 37,
    };
    let part = File::Part {
        backup: backup.clone(),
        number: 3,
    };
    vec![
        Event::Started {
            version: text("0.1.0"),
            host: text("vault"),
            previous: Previous::Crashed,
            config_digest: text("ab12"),
        },
        Event::Stopped {
            reason: text("asked to"),
        },
        Event::ConfigLoaded {
            digest: text("ab12"),
            sites: vec![text("main")],
            changed: Vec::new(),
            kept: Vec::new(),
            elsewhere: false,
        },
        Event::ServerSeen(Server {
            node: 0,
            system_id: 7_300_000_000_000_000_001,
            version: 150_018,
            segment_size: SegmentSize::DEFAULT,
            timeline: Timeline(2),
            lsn: Lsn(0x2500_0060),
            in_recovery: false,
            sync_state: Some(text("async")),
            slot: None,
            clock_skew_ms: None,
        }),
        Event::ServerLost {
            node: 1,
            class: Class::Network,
            message: text("connection refused"),
        },
        Event::StreamStarted {
            node: 0,
            from: segment,
            slot: Some(text("pghoard")),
            anchored: false,
        },
        Event::StreamEnded {
            node: 0,
            at: Lsn(0x2500_0060),
            class: Class::Interrupted,
            message: text("stopped"),
        },
        Event::TimelineLearned {
            timeline: Timeline(2),
            ancestors: vec![Branch {
                timeline: Timeline(1),
                switch: Lsn(0x2000_0000),
            }],
        },
        Event::ClusterLearned {
            system_id: 7_300_000_000_000_000_001,
            segment,
        },
        Event::WalPassed {
            wal: machine::event::Range {
                timeline: machine::Timeline(2),
                first: 7,
                last: 9,
            },
        },
        Event::LabelArchived {
            name: text("000000010000000000000003.00000028.backup"),
        },
        Event::Switched {
            node: 0,
            at: Lsn(0x2500_0060),
        },
        Event::Spooled {
            file: file.clone(),
            entry: 5,
            bytes: 16_777_216,
            origin: Origin::Stream,
        },
        Event::Stored {
            file: file.clone(),
            entry: Some(5),
            bytes_in: 16_777_216,
            bytes_out: 4_000_000,
            digest: text("da39"),
            millis: 80,
            how: How::Written,
        },
        Event::Dropped {
            file: File::Main(backup.clone()),
            entry: 6,
            reason: Reason::Unwanted,
        },
        Event::Conflicted {
            file: File::Partial(segment),
            ours: text("da39"),
            theirs: text("bf45"),
        },
        Event::Found {
            segment_size: SegmentSize::DEFAULT,
            wal: vec![range],
            files: vec![File::History(Timeline(2))],
        },
        Event::Missing {
            wal: vec![range],
            files: vec![part.clone()],
        },
        Event::Deleted {
            wal: vec![range],
            files: vec![part],
        },
        Event::BackupRequested {
            reason: Why::Operator,
        },
        Event::BackupStarted {
            backup: backup.clone(),
            node: 0,
            decided_at: at,
            normalized_at: Some(at),
            reason: Why::Schedule,
        },
        Event::BackupProgressed {
            backup: backup.clone(),
            bytes: 1 << 30,
            total: 1 << 31,
        },
        Event::BackupFinished(Finished {
            backup: backup.clone(),
            start: segment,
            end: segment.next(),
            start_lsn: Lsn(0x2500_0028),
            end_lsn: Lsn(0x2600_0100),
            started_at: at,
            ended_at: at.plus(60_000),
            parts: 3,
            bytes_in: 5_662_720,
            bytes_out: 403_606,
            from_standby: false,
            object: None,
            wal: WalIn::Archive,
        }),
        Event::BackupFailed {
            backup: backup.clone(),
            class: Class::Timeout,
            message: text("the server is silent"),
        },
        Event::BackupExpired {
            backup: backup.clone(),
            rule: text("count"),
        },
        Event::BackupFound(Adopted {
            backup,
            object: text("2026-11-22_09-27_0.00000000.pghoard"),
            format: text("pghoard-bb-v2"),
            start: segment,
            end: Some(segment),
            started_at: at,
            decided_at: at,
            normalized_at: None,
            reason: Why::Hole,
            parts: 3,
            bytes_in: 5_662_720,
            bytes_out: 403_606,
            ended_at: None,
            end_lsn: None,
            wal: WalIn::Archive,
        }),
        Event::WalExpired {
            wal: vec![Range {
                timeline: Timeline(2),
                first: 3,
                last: 9,
            }],
        },
        Event::Marked {
            key: text("mark/hole_00000002.history"),
            mark: Mark::HoleAcknowledged {
                hole: Hole::History(Timeline(2)),
                reason: text("restored elsewhere"),
                by: text("ada"),
                at,
            },
        },
        Event::Unmarked {
            key: text("mark/hole_00000002.history"),
        },
        Event::MarksRead { marks: 4 },
        Event::ScrubStarted { objects: 12 },
        Event::Verified {
            wal: vec![range],
            files: vec![File::History(Timeline(2))],
            bytes: 4096,
            partly: 1,
        },
        Event::Unverified {
            wal: vec![range],
            files: vec![File::History(Timeline(2))],
            class: Class::Config,
            message: text("no key"),
        },
        Event::FoundDamaged {
            file: file.clone(),
            detail: text("it is empty"),
        },
        Event::HoleOpened {
            hole: Hole::Wal(range),
        },
        Event::HoleClosed {
            hole: Hole::History(Timeline(2)),
        },
        Event::HoleSought {
            hole: Hole::Wal(range),
            means: Means::Server(0),
            outcome: Sought::Absent {
                message: text("requested WAL segment has already been removed"),
            },
        },
        Event::TaskFailed {
            task: TaskId::Store(Site(text("main")), file),
            class: Class::Quota,
            message: text("slow down"),
        },
        Event::Reconciled {
            objects: 12,
            bytes: 4096,
            found: 1,
            missing: 2,
            unknown: 3,
            millis: 9,
        },
        Event::AlertAcknowledged {
            alert: text("wal_hole"),
        },
        Event::Operated {
            who: text("console ttyS0"),
            command: text("hold"),
            detail: text("2026-11-22_09-27_0: audit"),
        },
        Event::ConfigRefused {
            message: text("backup_sites.main.ack: expected one of stored, spooled, found a list"),
        },
        Event::LogRebuilt {
            reason: text("a line does not continue the digest chain"),
        },
        Event::ClockJumped { by_ms: -7_200_000 },
        Event::LeaseSeen(Lease {
            holder: text("0123456789abcdef0123456789abcdef"),
            host: text("vault"),
            ours: false,
            started_at: at,
        }),
        Event::Exported {
            first: 1,
            last: 10_000,
            object: text("event_log/000000000001-000000010000-da39a3ee5e6b"),
            events: 9_000,
            bytes: 200_000,
        },
        Event::CompactionRefused {
            reason: text("its summary is not faithful"),
        },
        Event::DeletionRefused {
            wal: vec![range],
            files: vec![File::History(Timeline(2))],
            marks: vec![text("mark/hole_00000002.history")],
            class: Class::Denied,
            message: text("locked"),
        },
    ]
}

fn samples() -> Vec<Event> {
    let (whole, site) = carried();
    let mut all = plain_samples();
    all.extend([
        Event::Compacted {
            upto: 450_000,
            removed: 449_000,
            last_digest: "da39".into(),
            carried: Box::new(whole),
        },
        Event::Carried(Box::new(site)),
    ]);
    all
}

/// What the carried sample folds; other kinds do not change its bytes.
const CARRIED: [&str; 14] = [
    "started",
    "server_seen",
    "server_lost",
    "stream_started",
    "timeline_learned",
    "spooled",
    "conflicted",
    "backup_requested",
    "backup_started",
    "backup_failed",
    "marks_read",
    "task_failed",
    "reconciled",
    "alert_acknowledged",
];

/// What a summary carries as it is: a state with something of everything, its sites apart.
fn carried() -> (State, SiteState) {
    let mut state = State::default();
    let events = plain_samples().into_iter();
    let events = events.filter(|event| CARRIED.contains(&kind(event).as_str()));
    for (event, seq) in events.zip(1..) {
        state.apply(&Envelope {
            seq,
            ..envelope(event)
        });
    }
    let mut sites = std::mem::take(&mut state.sites);
    let (_, site) = sites.pop_first().unwrap();
    (state, site)
}

fn envelope(event: Event) -> Envelope {
    let site = Some(Site("main".into()));
    Envelope {
        seq: 7,
        at: Millis(1_795_339_646_717),
        run: 2,
        site,
        event,
    }
}

fn kind(event: &Event) -> String {
    serde_json::to_value(event).unwrap()["kind"]
        .as_str()
        .unwrap()
        .to_string()
}

#[test]
fn every_kind_ever_released_still_decodes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/events");
    fs::create_dir_all(&folder).unwrap();
    let mut seen = BTreeSet::new();
    for event in samples() {
        let name = kind(&event);
        let path = folder.join(format!("{name}.{VERSION}.cbor"));
        let (value, _) = encode(&envelope(event.clone()), &GENESIS).unwrap();
        let line = &value[GENESIS.len()..];
        if std::env::var_os("UPDATE_GOLDEN").is_some() && !path.exists() {
            fs::write(&path, line).unwrap();
        }
        let golden = fs::read(&path).unwrap_or_else(|e| panic!("{name} has no golden file: {e}"));
        assert_eq!(
            golden, line,
            "{name} is written differently now: that is a new version"
        );
        seen.insert(name);
    }
    assert_eq!(seen, KINDS.iter().map(|kind| kind.to_string()).collect());
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        let line = fs::read(&path).unwrap();
        assert!(
            parse(&line).unwrap().is_some(),
            "{} does not decode",
            path.display()
        );
        // An independent reader finds the same fields.
        let other: ciborium::Value = ciborium::from_reader(line.as_slice()).unwrap();
        let map = other.into_map().unwrap();
        let keys: Vec<_> = map.iter().filter_map(|(key, _)| key.as_text()).collect();
        assert_eq!(
            keys,
            ["seq", "at", "run", "site", "version", "critical", "event"]
        );
    }
}

#[test]
fn what_a_look_at_a_server_learned_to_tell_round_trips() {
    let mut event = samples()[3].clone();
    let Event::ServerSeen(server) = &mut event else {
        panic!("{event:?}");
    };
    server.clock_skew_ms = Some(-40);
    server.slot = Some(Slot {
        name: "pghoard".into(),
        active: true,
        restart_lsn: Some(Lsn(0x2500_0000)),
        held_bytes: Some(96),
        wal_status: Some("reserved".into()),
        safe_bytes: Some(-5),
        limit_bytes: None,
    });
    let (value, _) = encode(&envelope(event.clone()), &GENESIS).unwrap();
    let read = parse(&value[GENESIS.len()..]).unwrap().unwrap();
    assert_eq!(read.event, event);
}

#[test]
fn what_backups_learned_to_tell_round_trips() {
    for mut event in samples() {
        match &mut event {
            Event::BackupFinished(finished) => {
                finished.object = Some("2026-11-22_09-27_0".into());
                finished.wal = WalIn::Backup;
            }
            Event::BackupFound(adopted) => adopted.wal = WalIn::Backup,
            _ => continue,
        }
        let (value, _) = encode(&envelope(event.clone()), &GENESIS).unwrap();
        let read = parse(&value[GENESIS.len()..]).unwrap().unwrap();
        assert_eq!(read.event, event);
    }
}

#[test]
fn an_unknown_kind_is_skipped_or_refused_as_it_asks() {
    let (value, _) = encode(&envelope(Event::Stopped { reason: "x".into() }), &GENESIS).unwrap();
    let alien = |critical: bool, version: u32| {
        let mut line: ciborium::Value = ciborium::from_reader(&value[GENESIS.len()..]).unwrap();
        for (key, value) in line.as_map_mut().unwrap() {
            match key.as_text().unwrap() {
                "critical" => *value = critical.into(),
                "version" => *value = version.into(),
                "event" => value.as_map_mut().unwrap()[0].1 = "teleported".into(),
                _ => {}
            }
        }
        let mut bytes = Vec::new();
        ciborium::into_writer(&line, &mut bytes).unwrap();
        bytes
    };
    assert_eq!(parse(&alien(false, VERSION)).unwrap(), None);
    assert_eq!(parse(&alien(false, VERSION + 1)).unwrap(), None);
    assert_eq!(
        parse(&alien(true, VERSION + 1)).unwrap_err().class,
        Class::Unsupported
    );
    assert_eq!(parse(b"\xff\x00").unwrap_err().class, Class::Corrupt);
}

#[test]
fn a_changed_line_breaks_the_chain() {
    let (mut value, chain) =
        encode(&envelope(Event::Stopped { reason: "x".into() }), &GENESIS).unwrap();
    assert!(decode(&value, &GENESIS).is_ok());
    assert_eq!(decode(&value, &chain).unwrap_err().class, Class::Corrupt);
    let last = value.len() - 1;
    value[last] ^= 1;
    assert_eq!(decode(&value, &GENESIS).unwrap_err().class, Class::Corrupt);
    assert_eq!(
        decode(&value[..20], &GENESIS).unwrap_err().class,
        Class::Corrupt
    );
}
