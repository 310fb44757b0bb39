//! PostgreSQL and the daemon with a store that fails: a real S3 server behind the fault proxy.
//!
//! Whatever happens to a request, PostgreSQL is told that a segment is archived when the store has
//! it whole, which is looked at past the proxy.

mod lasting;
mod life;
mod reading;
mod renewed;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

use pghoard::codec::{decoder, keys::Keyring};
use pghoard::store::Store;
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, SITE, node};
use crate::support::faults::{Answer, Fault, Pick, Proxy};
use crate::support::postgres::{Install, Options, Server};
use crate::support::process::run;
use crate::support::stores::s3::Bucket;
use crate::support::stores::seaweed::seaweed;
use crate::support::{PATIENCE, scale, wait_until};

/// Every fault, and the class of what fails by it, if that lasts longer than a moment.
fn faults() -> Vec<(Fault, Option<&'static str>)> {
    let denied = || Answer::s3(403, "AccessDenied");
    let expired = Answer::s3(400, "ExpiredToken");
    vec![
        (Fault::Refused(Duration::from_millis(200)), None),
        (Fault::ResetBefore, None),
        (Fault::ResetInRequest, None),
        (Fault::ResetAfterRequest, None),
        (Fault::ResetInResponse, None),
        (Fault::EndsInResponse, None),
        (Fault::Stall, None),
        (Fault::StallInResponse, None),
        (Fault::Answer(Answer::s3(500, "InternalError")), None),
        (Fault::Answer(Answer::slow_down(1)), None),
        (Fault::DoneBut(Answer::s3(500, "InternalError")), None),
        (Fault::Answer(denied()), Some("denied")),
        (Fault::DoneBut(denied()), Some("denied")),
        (Fault::Answer(expired), Some("auth")),
        (Fault::Truncated, Some("corrupt")),
        (Fault::Lengthened, Some("corrupt")),
        (Fault::FlippedResponse, Some("corrupt")),
    ]
}

/// Requests by their kind, each with some of the faults or all of them.
fn cases(kinds: &[&'static str]) -> Vec<(&'static str, Fault, Option<&'static str>)> {
    let step = scale().pick(4, 1);
    let mut cases = Vec::new();
    for (number, kind) in kinds.iter().enumerate() {
        for (place, (fault, class)) in faults().into_iter().enumerate() {
            if (place + number) % step == 0 {
                cases.push((*kind, fault, class));
            }
        }
    }
    cases
}

/// Little patience for silence, and one attempt before the alert.
fn through(bucket: &Bucket, proxy: &Proxy) -> Value {
    let mut storage = bucket.object_storage();
    storage["port"] = json!(proxy.port);
    storage["read_timeout"] = json!(2);
    storage
}

/// A server that archives by `archive_command`, and the store by both ways.
struct World {
    server: Server,
    daemon: Daemon,
    proxy: Proxy,
    plain: Box<dyn Store>,
    archived: BTreeSet<String>,
}

impl World {
    fn start(install: &'static Install, bucket: &Bucket) -> World {
        let proxy = Proxy::to(bucket.port);
        let storage = through(bucket, &proxy);
        World::over(install, bucket, proxy, storage, Vec::new())
    }

    fn over(
        install: &'static Install,
        bucket: &Bucket,
        proxy: Proxy,
        storage: Value,
        environment: Vec<(&'static str, String)>,
    ) -> World {
        let options = Options {
            segment_mib: Some(1),
            conf: &["archive_mode=on", "wal_keep_size=4GB"],
            ..Options::default()
        };
        let server = Server::start(install, &options);
        server.sql("create table rows (n int)");
        let site = json!({
            "nodes": [node(&server)],
            "active_backup_mode": "archive_command",
            "pg_data_directory": server.data,
            "object_storage": storage,
        });
        let global = json!({ "upload_retries_warning_limit": 1, "restore_prefetch": 0 });
        let mut daemon = Daemon::configured(global, json!({ SITE: site }));
        daemon.environment = environment;
        let mut daemon = daemon.started();
        // Who is asked too early is not asked again for a minute.
        wait_until("the daemon to answer", PATIENCE, || {
            daemon.status().is_some()
        });
        server.sql(&format!(
            "alter system set archive_command = '{}'",
            daemon.command("archive", false)
        ));
        server.sql("select pg_reload_conf()");
        daemon.wait_backups(1);
        World {
            server,
            daemon,
            proxy,
            plain: super::open_storage(bucket.object_storage()),
            archived: BTreeSet::new(),
        }
    }

    /// Writes rows and ends the segment: its name.
    fn segment(&self) -> String {
        self.server
            .sql("insert into rows select generate_series(1, 100)");
        self.server.one("select pg_walfile_name(pg_switch_wal())")
    }

    fn says_archived(&self, name: &str) -> bool {
        let sql = "select coalesce(last_archived_wal, '') from pg_stat_archiver";
        self.server.one(sql).as_str() >= name
    }

    /// Until PostgreSQL believes it, and then it is true. After three refusals PostgreSQL asks
    /// again in a minute, or when there is more to archive.
    fn wait_archived(&mut self, name: &str, what: &str) {
        let mut poked = Instant::now();
        wait_until(&format!("{name} to be archived ({what})"), PATIENCE, || {
            self.daemon.assert_alive();
            if poked.elapsed() > Duration::from_secs(4) {
                self.segment();
                poked = Instant::now();
            }
            self.says_archived(name)
        });
        let ours = fs::read(self.server.data.join("pg_wal").join(name)).unwrap();
        assert!(
            self.stored(name) == ours,
            "{what}: {name} is another in the store"
        );
        self.archived.insert(name.to_owned());
    }

    /// What a restore would make of it.
    fn stored(&self, name: &str) -> Vec<u8> {
        let key = format!("{SITE}/xlog/{name}");
        let (object, body) = self.plain.get(&key).expect("what is archived is stored");
        let size = object.entry.size_bytes;
        let mut plain = decoder(body, size, &object.metadata, &Keyring::default()).unwrap();
        let mut bytes = Vec::new();
        plain.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Bodies of all events of a kind.
    fn events(&self, kind: &str) -> Vec<Value> {
        let told = run(self
            .daemon
            .tool("pghoard", &["events", "--json", "--kind", kind]))
        .ok();
        let events = told.lines().map(|line| {
            let event: Value = serde_json::from_str(line).expect("a JSON object a line");
            event["body"].clone()
        });
        events.collect()
    }

    fn classes(&self) -> Vec<String> {
        let failed = self.events("task_failed").into_iter();
        failed
            .map(|body| body["class"].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}

#[test]
fn s17_s19_postgres_is_told_the_truth_whatever_a_request_of_an_upload_meets() {
    let (Some(install), Some(seaweed)) = (super::install(15), seaweed()) else {
        return;
    };
    let mut world = World::start(install, &seaweed.bucket());
    for (kind, fault, class) in cases(&["^HEAD .*/xlog/", "^GET .*/xlog/", "^PUT .*/xlog/"]) {
        let what = format!("{kind}, {fault:?}");
        let before = world.classes().len();
        world.proxy.clear();
        world.proxy.plan(Pick::line(kind), fault);
        let name = world.segment();
        world.wait_archived(&name, &what);
        assert_eq!(world.proxy.pending(), 0, "{what}");
        let classes = world.classes().split_off(before);
        let expected = |told: &String| Some(told.as_str()) == class;
        assert!(classes.iter().all(expected), "{what}: {classes:?}");
        assert!(classes.len() <= 2, "{what}: {classes:?}");
    }
    world.proxy.clear();
    // A name more would be a lie, one less a hole; the backup brought its own before.
    let mut names = super::bases(&*world.plain, "xlog");
    names.retain(|name| world.archived.contains(name));
    let archived: Vec<String> = world.archived.iter().cloned().collect();
    assert_eq!(names, archived);
    assert_eq!(world.events("conflicted"), Vec::<Value>::new());
    assert_eq!(world.plain.sweep(SITE, i64::MAX).unwrap(), 0);
    world.daemon.verify_events();
}
