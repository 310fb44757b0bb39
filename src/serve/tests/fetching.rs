//! GET of WAL that was fetched ahead.

use std::thread;
use std::time::Instant;

use super::*;

const SIZE: u64 = 1 << 20;

fn name(number: u64) -> String {
    let size = machine::SegmentSize::new(SIZE).unwrap();
    machine::Segment::new(machine::Timeline(1), number).name(size)
}

/// As [`wal`], of any number.
fn segment(number: u64, bytes: usize) -> Vec<u8> {
    let mut segment = wal(bytes);
    segment[8..16].copy_from_slice(&(number << 20).to_ne_bytes());
    segment
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

impl Api {
    fn is_ahead(&self, number: u64) -> bool {
        Path::new(&self.path(&format!("spool/main/prefetch/{}", name(number)))).exists()
    }

    fn files(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

/// To the path and as the body; what the store lost meanwhile proves where it came from.
#[test]
fn s44_wal_is_fetched_ahead_and_only_the_asked_file_is_put_into_pg_wal() {
    let api = Api::new(json!({ "restore_prefetch": 3 }));
    for number in 3..=7 {
        api.put(
            &format!("old/xlog/{}", name(number)),
            &segment(number, MIB),
            &[],
        );
    }
    let target = api.path("pgdata/pg_wal/RECOVERYXLOG");
    let (status, head, _) = api.fetch(&name(3), &target);
    assert_eq!((status, head.contains("x-pghoard-ahead")), (201, false));
    for number in [4, 5, 6] {
        until("three segments ahead", || api.is_ahead(number));
    }
    fs::rename(api.path("store"), api.path("elsewhere")).unwrap();
    let (status, head, _) = api.fetch(&name(4), &target);
    assert_eq!(
        (status, head.contains("x-pghoard-ahead: true")),
        (201, true)
    );
    assert_eq!(fs::read(&target).unwrap(), segment(4, MIB));
    assert_eq!(api.files("pgdata/pg_wal"), ["RECOVERYXLOG"]);
    let path = format!("/main/archive/{}", name(5));
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-pghoard-body: 1\r\n\r\n");
    let mut stream = TcpStream::connect(api.handle.address()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    assert!(reply.ends_with(&segment(5, MIB)));
    let head = String::from_utf8_lossy(&reply[..300]).to_lowercase();
    assert!(head.contains("x-pghoard-ahead: true"), "{head}");
    // What was not fetched is not known to be absent either.
    assert_eq!(api.fetch(&name(7), &target).0, 503);
    fs::rename(api.path("elsewhere"), api.path("store")).unwrap();
    assert_eq!(api.fetch(&name(7), &target).0, 201);
    assert_eq!(api.files("spool/main/scratch"), [""; 0]);
}

#[test]
fn s45_what_is_damaged_ahead_is_refused_when_it_is_asked_for() {
    let api = Api::new(json!({ "restore_prefetch": 2 }));
    api.put(&format!("main/xlog/{}", name(3)), &segment(3, MIB), &[]);
    api.put(&format!("main/xlog/{}", name(4)), &segment(4, MIB - 1), &[]);
    api.put(&format!("main/xlog/{}", name(5)), &segment(5, MIB), &[]);
    let target = api.path("pgdata/pg_wal/RECOVERYXLOG");
    assert_eq!(api.fetch(&name(3), &target).0, 201);
    fs::remove_file(&target).unwrap();
    let (status, _, body) = api.fetch(&name(4), &target);
    assert_eq!(status, 503);
    assert!(
        body.contains("has 1048575 bytes, expected 1048576"),
        "{body}"
    );
    assert!(api.files("pgdata/pg_wal").is_empty());
    assert_eq!(api.fetch(&name(5), &target).0, 201);
}

#[test]
fn zero_disables_the_look_ahead() {
    let api = Api::new(json!({ "restore_prefetch": 0 }));
    api.put(&format!("main/xlog/{}", name(3)), &segment(3, MIB), &[]);
    let target = api.path("pgdata/pg_wal/RECOVERYXLOG");
    assert_eq!(api.fetch(&name(3), &target).0, 201);
    assert!(!Path::new(&api.path("spool/main/prefetch")).exists());
}

/// As `pghoard_postgres_command --remote` asks.
fn brought(api: &Api, site: &str, cluster: &str) -> (u16, Vec<u8>) {
    let request = format!(
        "GET /{site}/archive/{NAME} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         x-pghoard-body: 1\r\n{cluster}\r\n"
    );
    let mut stream = TcpStream::connect(api.handle.address()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    let end = reply
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8(reply[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, reply.split_off(end + 4))
}

/// Site `main` was moved from `old` with another cluster, and has the same names.
#[test]
fn the_site_that_is_asked_for_comes_first_and_another_cluster_never() {
    let api = Api::new(json!({}));
    let (old, mut new) = (wal(MIB), wal(MIB));
    new[24..32].copy_from_slice(&8u64.to_ne_bytes());
    let (ours, theirs) = ("x-pghoard-system-id: 7\r\n", "x-pghoard-system-id: 8\r\n");
    api.put("old/basebackup/b", b"", &[]);
    api.put(&format!("main/xlog/{NAME}"), &new, &[]);
    assert_eq!(brought(&api, "old", ours).0, 404);
    assert_eq!(brought(&api, "old", theirs), (200, new.clone()));
    assert_eq!(brought(&api, "old", ""), (200, new.clone()));
    api.put(&format!("old/xlog/{NAME}"), &old, &[]);
    for cluster in [ours, ""] {
        assert_eq!(brought(&api, "old", cluster), (200, old.clone()));
    }
    assert_eq!(brought(&api, "main", theirs), (200, new));
}
