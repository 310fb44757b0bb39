//! PUT of WAL: from pg_wal and as a body, what is refused, and what the answer waits for.

use machine::event::How;
use machine::{Envelope, Event, Millis, Segment, Timeline};

use super::*;
use crate::work::testing::first_page;

/// A whole segment of cluster 7.
fn segment(number: u64) -> Vec<u8> {
    let mut bytes = first_page(7, number);
    bytes.resize(16 << 20, 0);
    bytes
}

impl Api {
    fn wal(&self, name: &str, body: &[u8]) {
        fs::write(self.path(&format!("pgdata/pg_wal/{name}")), body).unwrap();
    }

    /// Plays the loop: what is spooled is stored. Gives the names, in order.
    fn store_what_comes(&self, count: usize) -> Vec<String> {
        let mut names = Vec::new();
        while names.len() < count {
            let report = self.reports.recv_timeout(Duration::from_secs(20)).unwrap();
            for (site, event) in report.events {
                let Event::Spooled { file, .. } = &event else {
                    panic!("{event:?}")
                };
                names.push(file.spool_name(machine::SegmentSize::DEFAULT));
                self.desk.told(&envelope(site, stored(&event)));
            }
        }
        names
    }
}

/// What the loop says once that is in the store.
pub fn stored(spooled: &Event) -> Event {
    let Event::Spooled { file, entry, .. } = spooled else {
        panic!("{spooled:?}")
    };
    Event::Stored {
        file: file.clone(),
        entry: Some(*entry),
        bytes_in: 1,
        bytes_out: 1,
        digest: String::new(),
        millis: 1,
        how: How::Written,
    }
}

pub fn envelope(site: Option<machine::Site>, event: Event) -> Envelope {
    let (seq, at, run) = (1, Millis(1), 1);
    Envelope {
        seq,
        at,
        run,
        site,
        event,
    }
}

/// 201 comes with the event that says so, and what is ready is taken on the way; copied is only
/// what PostgreSQL may forget before it is stored.
#[test]
fn a_segment_is_archived_once_it_is_safe() {
    for (ack, copies) in [(Ack::Stored, 0), (Ack::Spooled, 2)] {
        let api = Api::new(json!({}));
        api.desk.adopt(doors(api.folder.path(), ack));
        a_segment_is_archived(&api);
        let spooled = fs::read_dir(api.path("spool/main/xlog_incoming")).unwrap();
        assert_eq!(spooled.count(), copies, "{ack:?}");
    }
}

fn a_segment_is_archived(api: &Api) {
    let next = "000000010000000000000004";
    api.wal(NAME, &segment(3));
    api.wal(next, &segment(4));
    fs::create_dir(api.path("pgdata/pg_wal/archive_status")).unwrap();
    for name in [NAME, next] {
        api.wal(&format!("archive_status/{name}.ready"), b"");
    }
    let address = api.handle.address();
    thread::scope(|scope| {
        let asked = scope.spawn(|| ask(address, "PUT", &format!("/main/archive/{NAME}"), ""));
        let mut names = api.store_what_comes(2);
        names.sort();
        assert_eq!(names, [NAME, next]);
        assert_eq!(asked.join().unwrap().0, 201);
    });
    let (status, _, _) = api.ask("PUT", &format!("/main/archive/{next}"), "");
    assert_eq!(status, 201);
    assert!(api.reports.try_recv().is_err(), "it was taken ahead");
}

/// While ours lies in `pg_wal`, another of its name comes in by stream and is stored: that was not
/// compared with ours, which is asked for again.
#[test]
fn s16_what_another_stored_is_no_answer_for_a_lent_segment() {
    let api = Api::new(json!({}));
    api.wal(NAME, &segment(3));
    let address = api.handle.address();
    let path = format!("/main/archive/{NAME}");
    thread::scope(|scope| {
        let asked = scope.spawn(|| ask(address, "PUT", &path, ""));
        let report = api.reports.recv_timeout(Duration::from_secs(20)).unwrap();
        let (site, spooled) = report.events.into_iter().next().unwrap();
        let mut others = stored(&spooled);
        if let Event::Stored { entry, .. } = &mut others {
            *entry = Some(99);
        }
        api.desk.told(&envelope(site, others));
        let (status, _, text) = asked.join().unwrap();
        assert_eq!(
            (status, text.as_str()),
            (503, "another was stored, ask again")
        );
    });
}

#[test]
fn a_segment_comes_as_the_body_too() {
    let api = Api::new(json!({}));
    let body = segment(3);
    let address = api.handle.address();
    thread::scope(|scope| {
        let asked = scope.spawn(|| send(address, &format!("/main/archive/{NAME}"), &body));
        assert_eq!(api.store_what_comes(1), [NAME]);
        assert_eq!(asked.join().unwrap().0, 201);
    });
    let (status, text) = send(address, &format!("/main/archive/{NAME}"), &body[..100]);
    assert_eq!(
        (status, text.as_str()),
        (
            412,
            "'000000010000000000000003' has 100 bytes, expected 16777216"
        )
    );
    let (status, _) = send(address, "/main/archive/basebackup/x", b"x");
    assert_eq!(status, 400);
}

/// PUT with a body: the status and what is said.
fn send(address: SocketAddr, path: &str, body: &[u8]) -> (u16, String) {
    let length = body.len();
    let head = format!("PUT {path} HTTP/1.0\r\ncontent-length: {length}\r\n\r\n");
    let reply = raw(address, head.as_bytes(), body);
    let (head, text) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.to_owned())
}

/// Nothing outside pg_wal, nothing that is not what its name says; and it is said which.
#[test]
fn what_is_no_segment_is_not_archived() {
    let api = Api::new(json!({}));
    let wal = |name: &str| api.path(&format!("pgdata/pg_wal/{name}"));
    let (other, link) = ("000000010000000000000005", "000000010000000000000006");
    let folder = "000000010000000000000007";
    let (short, empty) = ("000000010000000000000008", "000000010000000000000009");
    api.wal(other, &segment(4));
    fs::write(api.path("outside/secret"), segment(6)).unwrap();
    std::os::unix::fs::symlink(api.path("outside/secret"), wal(link)).unwrap();
    fs::create_dir(wal(folder)).unwrap();
    api.wal(short, &segment(8)[..8192]);
    api.wal(empty, b"");
    api.wal("00000002.history", b"1\tnonsense\tx\n");
    for (name, status, says) in [
        (NAME, 404, "N/A"),
        (link, 404, "N/A"),
        (folder, 404, "N/A"),
        (
            other,
            412,
            "WAL file '000000010000000000000005': expected LSN 0/5000000, found 0/4000000",
        ),
        (
            short,
            412,
            "'000000010000000000000008' has 8192 bytes, expected 16777216",
        ),
        (
            empty,
            412,
            "000000010000000000000009: WAL header: 0 bytes, expected 40",
        ),
        (
            "00000002.history",
            412,
            "00000002.history: expected a timeline and a position",
        ),
        (
            "..%2Fsecret",
            400,
            "Unrecognized file '..%2Fsecret' for archiving",
        ),
        ("000000010000000000000003.00000028.backup", 201, ""),
    ] {
        let (found, _, text) = api.ask("PUT", &format!("/main/archive/{name}"), "");
        assert_eq!((found, text.as_str()), (status, says), "{name}");
    }
    let label = api.reports.try_recv().unwrap();
    assert!(matches!(
        label.events.as_slice(),
        [(Some(_), Event::LabelArchived { .. })]
    ));
    assert!(api.reports.try_recv().is_err());
    let spooled = fs::read_dir(api.path("spool/main/xlog_incoming")).unwrap();
    assert_eq!(spooled.count(), 0, "nothing is left of what was refused");
}

/// S-15, S-16: another cluster, and other content under a name that is spooled.
#[test]
fn s16_other_content_is_refused_and_kept() {
    let api = Api::new(json!({}));
    let site = machine::Site("main".into());
    let mut state = machine::State::default();
    let learned = Event::ClusterLearned {
        system_id: 8,
        segment: Segment::new(Timeline(1), 1),
    };
    state.apply(&envelope(Some(site), learned));
    api.desk.know(&state);
    api.wal(NAME, &segment(3));
    let path = format!("/main/archive/{NAME}");
    let (status, _, text) = api.ask("PUT", &path, "");
    assert_eq!(status, 412, "{text}");
    assert!(text.contains("system identifier"), "{text}");
    api.desk.know(&machine::State::default());
    api.spool(NAME, b"other");
    let address = api.handle.address();
    thread::scope(|scope| {
        let asked = scope.spawn(|| ask(address, "PUT", &path, ""));
        let report = api.reports.recv_timeout(Duration::from_secs(20)).unwrap();
        for (site, event) in report.events {
            assert!(matches!(event, Event::Conflicted { .. }), "{event:?}");
            api.desk.told(&envelope(site, event));
        }
        let (status, _, text) = asked.join().unwrap();
        assert_eq!(status, 409, "{text}");
    });
    let names = fs::read_dir(api.path("spool/main/xlog_incoming")).unwrap();
    assert_eq!(names.count(), 2, "both are kept");
}
