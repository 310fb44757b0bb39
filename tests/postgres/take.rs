//! Base backups over the wire: what is in the store is the cluster.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use machine::event::WalIn;
use machine::{BackupName, Class, Lsn, Millis, Segment};
use pghoard::codec::keys::Keyring;
use pghoard::codec::{Compression, Encoding, decoder};
use pghoard::pg::conninfo::{Conninfo, Defaults};
use pghoard::pg::files::Origin;
use pghoard::source::stream::{Chunking, Patience, Progress, Request, Taken, take};
use pghoard::store::local::Local;
use pghoard::store::{Body, Entry, Metadata, Object, Put, Store};
use pghoard::{Failure, Outcome};
use tar::Archive;

use crate::support::postgres::{Install, Options, Server, install, lsn};
use crate::support::process::{Scratch, command, run};
use crate::support::{PATIENCE, wait_until};

const BACKUP: &str = "2026-11-22_09-27_0";
const CHUNK_BYTES: u64 = 4 << 20;

/// Everything a backup needs beside the server.
pub struct Bed {
    scratch: Scratch,
    pub store: Local,
    stop: AtomicBool,
}

impl Bed {
    pub fn new() -> Bed {
        let scratch = Scratch::new();
        let store = Local::create(&scratch.folder("store")).unwrap();
        let stop = AtomicBool::new(false);
        Bed {
            scratch,
            store,
            stop,
        }
    }

    pub fn main(&self) -> PathBuf {
        self.scratch.join("main")
    }

    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub fn config(&self) -> PathBuf {
        self.scratch.join("pghoard.json")
    }

    pub fn take(&self, server: &Server, store: &dyn Store) -> Outcome<(Taken, Vec<Progress>)> {
        let text = format!(
            "host={} port={} user=postgres",
            server.home().display(),
            server.port
        );
        let encoding = Encoding {
            compression: Compression::Zstd,
            level: 1,
            threads: 2,
            encryption: None,
        };
        let request = Request {
            conninfo: &Conninfo::from_text(&text, &Defaults::default()).unwrap(),
            store,
            prefix: "site",
            backup: &BackupName(BACKUP.into()),
            encoding: &encoding,
            wal: WalIn::Archive,
            scratch: &self.scratch.join("work"),
            host: "here",
            pgdata: Path::new("/configured"),
            patience: Patience {
                upload: Duration::from_secs(60),
                ..Patience::DEFAULT
            },
            slotless: None,
            stop: &self.stop,
            clock: &|| Millis(1_795_339_698_467),
        };
        let mut reports = Vec::new();
        let chunking = Chunking {
            chunk_size_bytes: CHUNK_BYTES,
            chunks_in_progress: 2,
            main: &self.main(),
        };
        let taken = take(&request, &chunking, &mut |progress| reports.push(progress));
        assert!(!self.scratch.join("work").exists(), "scratch is swept");
        Ok((taken?, reports))
    }
}

#[test]
fn take_13() {
    check(13);
}

#[test]
fn take_14() {
    check(14);
}

#[test]
fn take_15() {
    check(15);
}

#[test]
fn take_16() {
    check(16);
}

#[test]
fn take_17() {
    check(17);
}

#[test]
fn take_18() {
    check(18);
}

/// A cluster with a tablespace, backed up, put together by hand, is accepted by PostgreSQL's own
/// verifier and starts with every row.
fn check(major: u32) {
    let Some(install) = install(major) else {
        return;
    };
    let server = Server::start(install, &Options::default());
    let space = server.folder("space");
    server.sql(&format!(
        "create tablespace \"a disk\" location '{}'",
        space.display()
    ));
    server.sql("create table far tablespace \"a disk\" as select generate_series(1, 40000) as n");
    server.sql("create table near as select n, md5(n::text) from generate_series(1, 40000) n");
    let before = lsn(&server.one("select pg_current_wal_lsn()"));
    let bed = Bed::new();
    let (taken, reports) = bed.take(&server, &bed.store).unwrap();
    assert!(taken.start.lsn >= Lsn(before) && taken.end.lsn > taken.start.lsn);
    assert_eq!(taken.version / 10_000, major);
    assert_eq!(taken.from, Origin::Primary);
    assert_eq!(
        (
            taken.tablespaces[0].name.as_str(),
            &taken.tablespaces[0].path
        ),
        ("a disk", &space)
    );
    assert!(taken.chunks.len() > 3 && taken.files > 900, "{taken:?}");
    assert!(reports.last().unwrap().bytes > 16 << 20, "{reports:?}");
    assert!(
        reports.last().unwrap().total_bytes > 20 << 20,
        "{reports:?}"
    );
    let restored = Restored::from(&bed, &taken, &server);
    restored.verify(install);
    restored.start(install, &server, &taken);
}

struct Restored {
    scratch: Scratch,
    data: PathBuf,
}

impl Restored {
    fn from(bed: &Bed, taken: &Taken, server: &Server) -> Restored {
        let scratch = Scratch::new();
        let root = scratch.path();
        let mut keys = Vec::new();
        let visit = &mut |entry: Entry| {
            keys.push(entry.key);
            Ok(())
        };
        bed.store.list("site", visit).unwrap();
        let expected: Vec<_> = (1..=taken.chunks.len())
            .map(|n| format!("site/basebackup_chunk/{BACKUP}/{BACKUP}.{n:08}.pghoard"))
            .collect();
        assert_eq!(keys, expected);
        Archive::new(File::open(bed.main()).unwrap())
            .unpack(root)
            .unwrap();
        let text = fs::read_to_string(root.join(".pghoard_tar_metadata.json")).unwrap();
        let description = describe(&text, taken, server);
        for (key, chunk) in keys.iter().zip(description["chunks"].as_array().unwrap()) {
            let (object, body) = bed.store.get(key).unwrap();
            let stored = object.entry.size_bytes;
            assert_eq!(object.metadata["format"], "pghoard-bb-v2");
            assert_eq!(chunk["result_size"], stored);
            let mut plain = decoder(body, stored, &object.metadata, &Keyring::default()).unwrap();
            let mut bytes = Vec::new();
            plain.read_to_end(&mut bytes).unwrap();
            assert_eq!(chunk["input_size"], bytes.len());
            assert!(bytes.len() < 2 * usize::try_from(CHUNK_BYTES).unwrap());
            let mut archive = Archive::new(bytes.as_slice());
            let names: Vec<_> = archive.entries().unwrap().map(name).collect();
            assert_eq!(chunk["files"], serde_json::json!(names));
            Archive::new(bytes.as_slice()).unpack(root).unwrap();
        }
        let data = root.join("pgdata");
        let link = data.join(format!("pg_tblspc/{}", taken.tablespaces[0].oid));
        symlink(root.join("tablespaces/a disk"), link).unwrap();
        Restored { scratch, data }
    }

    fn verify(&self, install: &Install) {
        let mut open = Command::new("chmod");
        open.args(["-R", "a+rwX"]).arg(self.scratch.path());
        assert!(open.status().unwrap().success());
        let mut tool = command(install.tools.join("pg_verifybackup"), self.scratch.path());
        tool.args(["--no-parse-wal", "-i", "tablespace_map"])
            .arg(&self.data);
        assert!(run(tool).ok().contains("success"));
    }

    fn start(&self, install: &'static Install, source: &Server, taken: &Taken) {
        let (from, to) = (taken.start, taken.end);
        let mut segment = Segment::at(from.timeline, from.lsn, taken.segment_size);
        while segment.start(taken.segment_size) < to.lsn {
            let name = Path::new("pg_wal").join(segment.name(taken.segment_size));
            fs::copy(source.data.join(&name), self.data.join(&name)).unwrap();
            segment = segment.next();
        }
        let mut server = Server::empty(install);
        fs::rename(&self.data, &server.data).unwrap();
        let mut own = Command::new("chown");
        own.args(["-R", "--reference"]).arg(server.home());
        own.arg(&server.data).arg(self.scratch.path());
        assert!(own.status().unwrap().success());
        fs::set_permissions(&server.data, fs::Permissions::from_mode(0o700)).unwrap();
        server.move_in();
        server.up();
        assert_eq!(server.one("select sum(n) from near"), "800020000");
        assert_eq!(server.one("select sum(n) from far"), "800020000");
    }
}

fn name(entry: io::Result<tar::Entry<'_, &[u8]>>) -> String {
    let path = entry.unwrap().path().unwrap().display().to_string();
    path.strip_suffix('/').unwrap_or(&path).to_owned()
}

fn describe(text: &str, taken: &Taken, server: &Server) -> serde_json::Value {
    let start = Segment::at(taken.start.timeline, taken.start.lsn, taken.segment_size);
    let end = Segment::before(taken.end.timeline, taken.end.lsn, taken.segment_size);
    let opening = format!(
        "{{\"backup_end_time\":\"2026-11-22T09:28:18.467000Z\",\"backup_end_wal_segment\":\"{}\",\
         \"backup_start_time\":\"",
        end.name(taken.segment_size)
    );
    assert!(text.starts_with(&opening), "{text}");
    let description: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(
        description["backup_start_wal_segment"],
        start.name(taken.segment_size)
    );
    assert_eq!(description["pghoard_object"], "basebackup");
    assert_eq!(description["host"], "here");
    assert_eq!(description["pgdata"], server.data.display().to_string());
    let oid = taken.tablespaces[0].oid;
    assert_eq!(description["tablespaces"]["a disk"]["oid"], oid);
    description
}

/// A local store that does something else first.
struct Odd<'a> {
    inner: &'a Local,
    before: Box<dyn Fn(u32) -> Outcome<()> + Send + Sync + 'a>,
    after: Box<dyn Fn(u32) -> Outcome<()> + Send + Sync + 'a>,
    puts: Mutex<u32>,
}

impl<'a> Odd<'a> {
    fn new(inner: &'a Local) -> Odd<'a> {
        Odd {
            inner,
            before: Box::new(|_| Ok(())),
            after: Box::new(|_| Ok(())),
            puts: Mutex::new(0),
        }
    }
}

impl Store for Odd<'_> {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn put(&self, key: &str, body: Body<'_>, metadata: &Metadata, mode: Put) -> Outcome<()> {
        let mut puts = self.puts.lock().unwrap();
        *puts += 1;
        (self.before)(*puts)?;
        // A remote store leaves the scratch file where it is.
        let copy = match body {
            Body::Scratch(scratch) => fs::read(scratch.path).unwrap(),
            Body::Bytes(bytes) => bytes.to_vec(),
        };
        self.inner.put(key, Body::Bytes(&copy), metadata, mode)?;
        (self.after)(*puts)
    }

    fn get(&self, key: &str) -> Outcome<(Object, Box<dyn Read + Send>)> {
        self.inner.get(key)
    }

    fn look(&self, key: &str) -> Outcome<Option<Object>> {
        self.inner.look(key)
    }

    fn list(&self, folder: &str, visit: &mut dyn FnMut(Entry) -> Outcome<()>) -> Outcome<()> {
        self.inner.list(folder, visit)
    }

    fn delete(&self, key: &str) -> Outcome<()> {
        self.inner.delete(key)
    }
}

#[test]
fn a_store_that_stumbles_is_tried_again_and_one_that_refuses_is_not() {
    let Some(install) = install(15) else { return };
    let server = Server::start(install, &Options::default());
    let lost = |class: Class| Err(Failure::new(class, "the test says so"));
    let bed = Bed::new();
    let mut store = Odd::new(&bed.store);
    // The first put is stored and reported lost, the third (a repeat) never arrives.
    store.after = Box::new(move |n| if n == 1 { lost(Class::Network) } else { Ok(()) });
    store.before = Box::new(move |n| if n == 3 { lost(Class::Timeout) } else { Ok(()) });
    let (taken, _) = bed.take(&server, &store).unwrap();
    let chunks = u32::try_from(taken.chunks.len()).unwrap();
    assert_eq!(*store.puts.lock().unwrap(), chunks + 2);
    let bed = Bed::new();
    let mut store = Odd::new(&bed.store);
    store.before = Box::new(move |n| if n == 2 { lost(Class::Denied) } else { Ok(()) });
    let failure = bed.take(&server, &store).unwrap_err();
    assert_eq!(failure.class, Class::Denied, "{failure}");
    assert_eq!(*store.puts.lock().unwrap(), 2);
    assert!(!bed.main().exists());
}

#[test]
fn a_stopped_backup_ends_at_once_and_leaves_no_scratch() {
    let Some(install) = install(15) else { return };
    let server = Server::start(install, &Options::default());
    let bed = Bed::new();
    let mut store = Odd::new(&bed.store);
    store.before = Box::new(|n| {
        if n == 2 {
            bed.stop.store(true, Ordering::Relaxed);
            return Err(Failure::new(Class::Network, "for ever"));
        }
        Ok(())
    });
    let failure = bed.take(&server, &store).unwrap_err();
    assert_eq!(failure.class, Class::Interrupted, "{failure}");
    assert!(!bed.main().exists());
}

#[test]
fn s38_a_promotion_in_the_middle_of_a_backup_fails_it() {
    for major in [13, 15, 17] {
        let Some(install) = install(major) else {
            continue;
        };
        let primary = Server::start(install, &Options::default());
        let standby = Server::standby_of(&primary);
        let sent = primary.flushed();
        wait_until("the standby to catch up", PATIENCE, || {
            let sql = "select coalesce(pg_last_wal_replay_lsn() - '0/0', 0)";
            standby.one(sql).parse::<u64>().unwrap() >= sent
        });
        let bed = Bed::new();
        let (taken, _) = bed.take(&standby, &bed.store).unwrap();
        assert_eq!(taken.from, Origin::Standby);
        let mut archive = Archive::new(File::open(bed.main()).unwrap());
        let mut text = String::new();
        let first = archive.entries().unwrap().next().unwrap();
        first.unwrap().read_to_string(&mut text).unwrap();
        assert!(text.contains("\"backup_end_wal_segment\":null"), "{text}");

        let bed = Bed::new();
        let mut store = Odd::new(&bed.store);
        store.before = Box::new(|n| {
            if n == 1 {
                standby.promote();
                standby.wait_primary();
            }
            Ok(())
        });
        let failure = bed.take(&standby, &store).unwrap_err();
        assert_eq!(failure.class, Class::Interrupted, "{failure}");
        assert!(!bed.main().exists());
    }
}
