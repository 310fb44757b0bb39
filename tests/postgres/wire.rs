//! Speaking PostgreSQL to real servers: slots, the WAL stream, timelines, BASE_BACKUP.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use machine::event::WalIn;
use machine::{Lsn, Segment, SegmentSize, Timeline};
use pghoard::pg::basebackup::{BaseBackup, Event, Manifest};
use pghoard::pg::files::WalHeader;
use pghoard::pg::replication::{self, Reply, Slot, Start, Status, Wal, WalStream};
use pghoard::pg::{Connection, Mode};
use smol::block_on;

use crate::login::{connect, deadline, query};
use crate::support::postgres::{Install, Options, Server, install};
use crate::support::process::{Scratch, command, run};
use crate::support::{PATIENCE, wait_until};

fn local(server: &Server, mode: Mode) -> Connection {
    let (home, port) = (server.home().display(), server.port);
    connect(&format!("host={home} port={port} user=postgres"), mode).unwrap()
}

#[test]
fn replication_13() {
    check_replication(13);
}

#[test]
fn replication_14() {
    check_replication(14);
}

#[test]
fn replication_15() {
    check_replication(15);
}

#[test]
fn replication_16() {
    check_replication(16);
}

#[test]
fn replication_17() {
    check_replication(17);
}

#[test]
fn replication_18() {
    check_replication(18);
}

fn check_replication(major: u32) {
    let Some(install) = install(major) else {
        return;
    };
    let primary = Server::start(
        install,
        &Options {
            segment_mib: Some(1),
            conf: &["wal_keep_size=64MB"],
            ..Options::default()
        },
    );
    let mut walsender = local(&primary, Mode::Physical);
    assert_eq!(walsender.version() / 10_000, major);
    let size = block_on(replication::segment_size(&mut walsender, deadline())).unwrap();
    assert_eq!(size.bytes(), 1 << 20);
    let restart = check_slot(&primary, &mut walsender);
    let segment = Segment::at(Timeline(1), restart, size);
    primary.sql("create table filler as select generate_series(1, 30000) as n");
    primary.sql("select pg_switch_wal()");
    check_stream(&primary, &mut walsender, segment, size);
    check_timelines(&primary, size);
}

/// A slot keeps WAL from its creation on, and creating it twice is fine.
fn check_slot(server: &Server, walsender: &mut Connection) -> Lsn {
    let mut plain = local(server, Mode::Plain);
    let look = |c: &mut Connection| block_on(replication::slot(c, "pghoard", deadline()));
    assert_eq!(look(&mut plain).unwrap(), Slot::Absent);
    block_on(replication::create_slot(walsender, "pghoard", deadline())).unwrap();
    block_on(replication::create_slot(walsender, "pghoard", deadline())).unwrap();
    let Slot::Present {
        restart: Some(restart),
    } = look(&mut plain).unwrap()
    else {
        panic!("the slot reserves no WAL");
    };
    match look(walsender) {
        Ok(slot) => assert_eq!(
            slot,
            Slot::Present {
                restart: Some(restart)
            }
        ),
        Err(fault) => assert!(walsender.version() < 150_000, "{fault}"),
    }
    let identity = block_on(replication::identify(walsender, deadline())).unwrap();
    assert_eq!(identity.timeline, Timeline(1));
    assert!(identity.position >= restart);
    let system_id = query(
        &mut plain,
        "select system_identifier from pg_control_system()",
    );
    assert_eq!(system_id, [identity.system_id.to_string()]);
    restart
}

/// What streams is what lies in pg_wal; what we report is what the server notes.
fn check_stream(server: &Server, walsender: &mut Connection, segment: Segment, size: SegmentSize) {
    let start = Start {
        slot: Some("pghoard"),
        timeline: segment.timeline,
        at: segment.start(size),
    };
    let identity = block_on(replication::identify(walsender, deadline())).unwrap();
    let mut stream = block_on(WalStream::start(walsender, start, deadline())).unwrap();
    let streamed = block_on(collect(&mut stream, segment.end(size)));
    let name = segment.name(size);
    let stored = fs::read(server.data.join("pg_wal").join(&name)).unwrap();
    assert!(streamed[..stored.len()] == stored[..], "{name} differs");
    let header = WalHeader::parse(&streamed).unwrap();
    header
        .check(segment, size, Some(identity.system_id))
        .unwrap();
    assert_eq!(header.version_major, server.install.major);

    let flush = Lsn(segment.start(size).0 + 4096);
    let status = Status {
        write: segment.end(size),
        flush,
        reply: Reply::Wanted,
    };
    block_on(stream.send_status(status, deadline())).unwrap();
    wait_until("the status in pg_stat_replication", PATIENCE, || {
        let sql = "select write_lsn - '0/0', flush_lsn - '0/0', replay_lsn - '0/0', \
                   application_name from pg_stat_replication";
        let expected = format!("{0}|{1}|{1}|pghoard", segment.end(size).0, flush.0);
        server.sql(sql) == [expected]
    });
    // The reply we wanted is a keepalive; then an idle server says nothing, which is no failure.
    let (mut replied, mut quiet) = (false, false);
    while !(replied && quiet) {
        let soon = Instant::now() + Duration::from_millis(100);
        match block_on(stream.next(soon)).unwrap() {
            Some(Wal::Keepalive { .. }) => replied = true,
            Some(Wal::Data { .. }) => {}
            Some(other) => panic!("{other:?}"),
            None => quiet = true,
        }
    }
}

async fn collect(stream: &mut WalStream<'_>, until: Lsn) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        match stream.next(deadline()).await.unwrap() {
            Some(Wal::Data { start, data, .. }) => {
                bytes.extend_from_slice(data);
                if start.0 + u64::try_from(data.len()).unwrap() >= until.0 {
                    return bytes;
                }
            }
            Some(Wal::Keepalive { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A promoted standby sends the old timeline up to the switch, names the next, and goes on there
/// over the same connection.
fn check_timelines(primary: &Server, size: SegmentSize) {
    let standby = Server::standby_of(primary);
    primary.sql("create table earlier as select 1");
    let sent = primary.flushed();
    wait_until("the standby to catch up", PATIENCE, || {
        let sql = "select coalesce(pg_last_wal_receive_lsn() - '0/0', 0)";
        standby.one(sql).parse::<u64>().unwrap() >= sent
    });
    standby.promote();
    standby.wait_primary();
    standby.sql("create table later as select 1");
    let mut walsender = local(&standby, Mode::Physical);
    let file = block_on(replication::timeline_history(
        &mut walsender,
        Timeline(2),
        deadline(),
    ));
    let file = file.unwrap();
    assert_eq!(file.name, "00000002.history");
    let stored = fs::read(standby.data.join("pg_wal").join(&file.name)).unwrap();
    assert_eq!(file.content, stored);
    let ancestor = file.history.ancestors[0];
    let start = |timeline, at| Start {
        slot: None,
        timeline,
        at,
    };
    // Streaming may start before the switch, or exactly there.
    let last = Segment::before(Timeline(1), ancestor.end, size);
    for at in [last.start(size), ancestor.end] {
        let old = start(Timeline(1), at);
        let mut stream = block_on(WalStream::start(&mut walsender, old, deadline())).unwrap();
        let switch = loop {
            match block_on(stream.next(deadline())).unwrap() {
                Some(Wal::TimelineEnd { next, at }) => break (next, at),
                Some(Wal::Data { .. } | Wal::Keepalive { .. }) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(switch, (Timeline(2), ancestor.end));
    }
    let first = Segment::at(Timeline(2), ancestor.end, size).start(size);
    let new = start(Timeline(2), first);
    let mut stream = block_on(WalStream::start(&mut walsender, new, deadline())).unwrap();
    let bytes = block_on(collect(&mut stream, Lsn(ancestor.end.0 + 1)));
    assert!(WalHeader::parse(&bytes).is_ok());
    let mut walsender = local(&standby, Mode::Physical);
    let beyond = start(Timeline(7), Lsn(1 << 40));
    let fault = block_on(WalStream::start(&mut walsender, beyond, deadline()))
        .err()
        .unwrap();
    assert!(fault.sqlstate.is_some(), "{fault}");
    // The refusal leaves the connection in good order.
    assert!(block_on(replication::identify(&mut walsender, deadline())).is_ok());
}

#[test]
fn base_backup_13() {
    check_base_backup(13);
}

#[test]
fn base_backup_14() {
    check_base_backup(14);
}

#[test]
fn base_backup_15() {
    check_base_backup(15);
}

#[test]
fn base_backup_16() {
    check_base_backup(16);
}

#[test]
fn base_backup_17() {
    check_base_backup(17);
}

#[test]
fn base_backup_18() {
    check_base_backup(18);
}

/// What the events carry, written to files, is a backup that PostgreSQL's own tool accepts.
fn check_base_backup(major: u32) {
    let Some(install) = install(major) else {
        return;
    };
    let server = Server::start(install, &Options::default());
    let space = server.folder("space");
    server.sql(&format!(
        "create tablespace aside location '{}'",
        space.display()
    ));
    server.sql("create table far tablespace aside as select generate_series(1, 10000) as n");
    let oid: u32 = server
        .one("select oid from pg_tablespace where spcname = 'aside'")
        .parse()
        .unwrap();
    let scratch = Scratch::new();
    let mut walsender = local(&server, Mode::Physical);
    let mut backup = block_on(BaseBackup::start(
        &mut walsender,
        "it's",
        WalIn::Archive,
        deadline(),
    ))
    .unwrap();
    let begin = backup.begin().clone();
    assert_eq!(begin.start.timeline, Timeline(1));
    assert_eq!(begin.manifest, Manifest::Expected);
    assert_eq!(
        (begin.tablespaces[0].oid, &begin.tablespaces[0].path),
        (oid, &space)
    );
    assert!(begin.main_size_bytes > 10 << 20 && begin.tablespaces[0].size_bytes > 100 << 10);
    let mut files: BTreeMap<String, File> = BTreeMap::new();
    let mut current = String::new();
    let end = loop {
        let (name, data) = match block_on(backup.next(deadline())).unwrap() {
            Event::Archive(None) => ("base".to_owned(), &[][..]),
            Event::Archive(Some(oid)) => (oid.to_string(), &[][..]),
            Event::ManifestBegin => ("manifest".to_owned(), &[][..]),
            Event::Data(data) | Event::Manifest(data) => (current.clone(), data),
            Event::End(position) => break position,
        };
        let create = || File::create(scratch.join(&name)).unwrap();
        files
            .entry(name.clone())
            .or_insert_with(create)
            .write_all(data)
            .unwrap();
        current = name;
    };
    assert!(end.lsn > begin.start.lsn);
    assert_eq!(files.len(), 3, "{files:?}");
    drop(files);
    verify(install, &scratch, oid);
    // The connection is free for the next command.
    assert!(block_on(replication::identify(&mut walsender, deadline())).is_ok());
}

fn verify(install: &Install, scratch: &Scratch, oid: u32) {
    let (data, aside) = (scratch.folder("data"), scratch.folder("aside"));
    let unpack = |name: &str, to: &Path| {
        let mut archive = tar::Archive::new(File::open(scratch.join(name)).unwrap());
        archive.unpack(to).unwrap();
    };
    unpack("base", &data);
    unpack(&oid.to_string(), &aside);
    let link = data.join("pg_tblspc").join(oid.to_string());
    // Sent as a link to the server's own folder, since no tablespace_map was asked for.
    fs::remove_file(&link).unwrap();
    symlink(&aside, &link).unwrap();
    fs::copy(scratch.join("manifest"), data.join("backup_manifest")).unwrap();
    let mut open = std::process::Command::new("chmod");
    open.args(["-R", "a+rX"]).arg(scratch.path());
    assert!(open.status().unwrap().success());
    let mut tool = command(install.tools.join("pg_verifybackup"), scratch.path());
    tool.arg("--no-parse-wal").arg(&data);
    assert!(run(tool).ok().contains("success"));
}
