//! One small site for the tests of what others see: a primary that streams, a standby that is
//! gone, one complete backup, one segment in the spool.

use machine::decide::Busy;
use machine::event::{Finished, How, Origin, Previous, Server, Why};
use machine::policy::{Ack, Policy, SitePolicy, Tiers};
use machine::rule::coverage::{Live, Space};
use machine::task::Start;
use machine::{
    BackupName, Class, Envelope, Event, File, Lsn, Millis, Segment, SegmentSize, Site, State, Task,
    Timeline,
};

/// 2026-11-22T09:28:51.251
const START: u64 = 1_795_339_731_251;

pub fn site(name: &str) -> Site {
    Site(name.to_owned())
}

fn segment(number: u64) -> Segment {
    Segment::new(Timeline(1), number)
}

pub fn seen(node: u32, timeline: u32) -> Event {
    Event::ServerSeen(Server {
        node,
        system_id: 7_312_345_678_901_234_567,
        version: 150_018,
        segment_size: SegmentSize::DEFAULT,
        timeline: Timeline(timeline),
        lsn: Lsn(0x800_0200),
        in_recovery: false,
        sync_state: None,
        slot: None,
        clock_skew_ms: None,
    })
}

pub fn stored(number: u64) -> Event {
    put(File::Wal(segment(number)), Some(number))
}

fn put(file: File, entry: Option<u64>) -> Event {
    Event::Stored {
        file,
        entry,
        bytes_in: 16 << 20,
        bytes_out: 2 << 20,
        digest: String::new(),
        millis: 250,
        how: How::Written,
    }
}

pub fn spooled(number: u64) -> Event {
    Event::Spooled {
        file: File::Wal(segment(number)),
        entry: number,
        bytes: 16 << 20,
        origin: Origin::Stream,
    }
}

/// The events, a quarter of a second apart from the start on.
pub fn fold(name: &str, events: &[Event]) -> State {
    let mut state = State::default();
    for (event, seq) in events.iter().zip(1..) {
        state.apply(&Envelope {
            seq,
            at: Millis(START + (seq - 1) * 250),
            run: 1,
            site: (seq > 1 || !matches!(event, Event::Started { .. })).then(|| site(name)),
            event: event.clone(),
        });
    }
    state
}

pub fn state(name: &str) -> State {
    let backup = BackupName("2026-11-22_09-29_0".into());
    let started = Event::Started {
        version: "1".into(),
        host: "vm".into(),
        previous: Previous::Clean,
        config_digest: String::new(),
    };
    let begun = Event::BackupStarted {
        backup: backup.clone(),
        node: 0,
        decided_at: Millis(START),
        normalized_at: None,
        reason: Why::Schedule,
    };
    let finished = Event::BackupFinished(Finished {
        backup: backup.clone(),
        start: segment(5),
        end: segment(5),
        start_lsn: Lsn(0x500_0028),
        end_lsn: Lsn(0x500_0100),
        started_at: Millis(1_795_339_732_000),
        ended_at: Millis(1_795_339_733_250),
        parts: 1,
        bytes_in: 5_438_458,
        bytes_out: 419_844,
        from_standby: false,
        object: None,
        wal: machine::event::WalIn::Archive,
    });
    let lost = Event::ServerLost {
        node: 1,
        class: Class::Network,
        message: "connection refused".into(),
    };
    let stream = Event::StreamStarted {
        node: 0,
        from: segment(5),
        slot: Some("pghoard".into()),
        anchored: false,
    };
    let part = File::Part {
        backup: backup.clone(),
        number: 1,
    };
    let main = File::Main(backup);
    let events = [
        started,
        seen(0, 1),
        lost,
        stream,
        spooled(5),
        stored(5),
        begun,
        put(part, None),
        finished,
        put(main, None),
        spooled(6),
        stored(6),
        spooled(7),
    ];
    fold(name, &events)
}

pub fn policy(name: &str) -> Policy {
    let mut policy = Policy::default();
    let site_policy = SitePolicy {
        active: true,
        nodes: 2,
        streams: true,
        standalone: false,
        slot: true,
        ack: Ack::Stored,
        preferred_node: None,
        spool_limit_bytes: 1 << 30,
        cramped_since: None,
        interval_ms: Some(86_400_000),
        hour: None,
        minute: None,
        count: Some(2),
        count_min: 2,
        age_max_ms: None,
        window_ms: None,
        tiers: Tiers::default(),
        reconcile_interval_ms: 86_400_000,
        verify_interval_ms: None,
        probe_interval_ms: 30_000,
        backup_overdue_ms: Some(2 * 86_400_000 + 3_600_000),
        wal_overdue_ms: 3_600_000,
        slot_retention_bytes: 10 << 30,
        directory: false,
        origins: Vec::new(),
    };
    policy.sites.insert(site(name), site_policy);
    policy
}

pub fn busy(name: &str) -> Busy {
    let receive = Task::Receive {
        site: site(name),
        node: 0,
        start: Start::Anchor,
    };
    let store = Task::Store {
        site: site(name),
        file: File::Wal(segment(7)),
        entry: 7,
    };
    [receive, store].map(|task| (task.id(), task)).into()
}

pub fn live() -> Live {
    let received = ["main", "golden"].map(|name| (site(name), Lsn(0x800_0100)));
    Live {
        received: received.into(),
        space: [(
            site("main"),
            Space {
                free_bytes: 30 << 30,
                total_bytes: 100 << 30,
                low_since: None,
            },
        )]
        .into(),
    }
}
