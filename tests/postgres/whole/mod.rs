//! Backups in one object (`basic`, `pipe`) and with their WAL inside (`standalone_hot_backup`),
//! taken of a server that works, as PGHoard's format has them, and back again.
//!
//! Budget: about 15 s a case on two cores.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pghoard::journal::log::FILE_NAME;
use serde_json::{Value, json};

use crate::load::{Load, Survivors};
use crate::support::daemon::{Daemon, SITE, node};
use crate::support::disk::Tmpfs;
use crate::support::postgres::{Options, Server, install, lsn};
use crate::support::{PATIENCE, wait_for, wait_until};

/// What a backup is taken with.
struct Case {
    major: u32,
    mode: &'static str,
    active: &'static str,
    compression: &'static str,
    /// The format of the envelope, with a key.
    encryption: Option<&'static str>,
}

const ARCHIVED: &str = "walreceiver";
const ALONE: &str = "standalone_hot_backup";

#[test]
fn basic_snappy_comes_back_on_12() {
    comes_back(12, "basic", ARCHIVED, "snappy", None);
}

#[test]
fn basic_lzma_in_our_envelope_comes_back_on_18() {
    comes_back(18, "basic", ARCHIVED, "lzma", Some("aes-gcm"));
}

#[test]
fn pipe_zstd_in_pghoards_envelope_comes_back_on_12() {
    comes_back(12, "pipe", ARCHIVED, "zstd", Some("pghoa1"));
}

#[test]
fn pipe_snappy_comes_back_on_18() {
    comes_back(18, "pipe", ARCHIVED, "snappy", None);
}

#[test]
fn standalone_basic_zstd_in_pghoards_envelope_comes_back_on_18() {
    comes_back(18, "basic", ALONE, "zstd", Some("pghoa1"));
}

#[test]
fn standalone_pipe_lzma_in_our_envelope_comes_back_on_12() {
    comes_back(12, "pipe", ALONE, "lzma", Some("aes-gcm"));
}

#[test]
fn standalone_stream_comes_back_on_15() {
    comes_back(15, "stream", ALONE, "zstd", None);
}

#[test]
fn basebackups_alone_are_standalone_ones() {
    comes_back(15, "basic", "basic", "snappy", None);
}

/// A server that writes is backed up and lost; every row that was committed before the backup
/// ended, or until the daemon held it where WAL is received, is there again.
fn comes_back(
    major: u32,
    mode: &'static str,
    active: &'static str,
    compression: &'static str,
    encryption: Option<&'static str>,
) {
    let case = Case {
        major,
        mode,
        active,
        compression,
        encryption,
    };
    let Some(install) = install(major) else {
        return;
    };
    let mut server = Server::start(install, &Options::default());
    server.sql("create table rows as select n, md5(n::text) from generate_series(1, 40000) n");
    let load = Load::start(&server);
    let mut daemon = configured(&case, &server, json!({}));
    daemon.up();
    daemon.wait_backups(1);
    let backup = daemon.site().unwrap()["backups"][0].clone();
    assert_eq!(backup["restorable"], true, "{backup}");
    let promised = match active {
        ARCHIVED => daemon.wait_caught_up(&server),
        _ => lsn(backup["end_lsn"].as_str().unwrap()),
    };
    server.kill9();
    let promises = load.finish();
    let covered: Vec<_> = promises.iter().filter(|p| p.lsn <= promised).collect();
    assert!(!covered.is_empty());
    looks_like_pghoards(&case, &daemon);
    assert!(!daemon.alerts().contains("wal_overdue"));

    server.destroy_data();
    let mut restored = daemon.restore(install, &["--restore-to-primary"]);
    let manifest = major >= 13 && mode != "basic";
    assert_eq!(restored.data.join("backup_manifest").exists(), manifest);
    restored.up();
    restored.wait_primary();
    assert_eq!(restored.one("select sum(n) from rows"), "800020000");
    let survivors = Survivors::read(&restored);
    for promise in covered {
        assert!(survivors.holds(promise), "row {} is gone", promise.n);
    }
    daemon.verify_events();
    daemon.sigterm();
}

fn configured(case: &Case, server: &Server, more: Value) -> Daemon {
    let mut site = json!({
        "nodes": [node(server)],
        "active_backup_mode": case.active,
        "basebackup_mode": case.mode,
    });
    if let Some(format) = case.encryption {
        let keys = fs::read(golden("keys.json")).unwrap();
        let keys: Value = serde_json::from_slice(&keys).unwrap();
        let keys = &keys["backup_sites"]["golden"];
        for key in ["encryption_key_id", "encryption_keys"] {
            site[key] = keys[key].clone();
        }
        site["encryption_format"] = format.into();
    }
    for (key, value) in more.as_object().unwrap() {
        site[key] = value.clone();
    }
    let compression = json!({ "algorithm": case.compression });
    Daemon::configured(json!({ "compression": compression }), json!({ SITE: site }))
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// The one object is named and labelled as PGHoard does it; what is beyond that is ours.
fn looks_like_pghoards(case: &Case, daemon: &Daemon) {
    let store = daemon.store().join(SITE);
    let wal = store.join("xlog").exists();
    assert_eq!(wal, case.active == ARCHIVED, "WAL is stored or it is not");
    let visible = visible(daemon);
    let name = visible.first().unwrap();
    if case.mode == "stream" {
        assert!(name.ends_with(".00000000.pghoard"), "{name}");
        return;
    }
    assert_eq!(visible.len(), 1);
    assert_eq!(name.len(), "2026-11-22_09-27_0".len(), "{name}");
    assert!(!store.join("basebackup_chunk").exists());
    let ours = labels(&store.join("basebackup").join(name));
    let theirs = match case.mode {
        "basic" => "storage/basic-snappy/golden/basebackup/2026-11-22_09-27_0",
        _ => "storage/pipe-zstd-enc/golden/basebackup/2026-11-22_09-27_0",
    };
    let mut expected: BTreeSet<String> = labels(&golden(theirs)).into_keys().collect();
    match case.encryption {
        Some(_) => expected.insert("encryption-key-id".into()),
        None => expected.remove("encryption-key-id"),
    };
    expected.extend(["end-lsn", "end-time", "end-wal-segment"].map(String::from));
    let keys: BTreeSet<String> = ours.keys().cloned().collect();
    assert_eq!(keys, expected);
    let active = if case.active == ARCHIVED {
        ARCHIVED
    } else {
        ALONE
    };
    for (key, value) in [
        ("basebackup-mode", case.mode),
        ("active-backup-mode", active),
        ("compression-algorithm", case.compression),
        ("backup-reason", "scheduled"),
        ("site", SITE),
    ] {
        assert_eq!(ours[key], value, "{key}");
    }
}

fn labels(object: &Path) -> BTreeMap<String, String> {
    let sidecar = format!("{}.metadata", object.display());
    serde_json::from_slice(&fs::read(sidecar).unwrap()).unwrap()
}

/// Names of the main objects that a listing shows.
fn visible(daemon: &Daemon) -> Vec<String> {
    let names = names(daemon).into_iter();
    let mut visible: Vec<_> = names
        .filter_map(|name| Some(name.strip_suffix(".metadata")?.to_owned()))
        .collect();
    visible.sort();
    visible
}

/// All files beside the main objects.
fn names(daemon: &Daemon) -> Vec<String> {
    let folder = daemon.store().join(SITE).join("basebackup");
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Its WAL is archived nowhere unless it is said where.
fn working_server(case: &Case) -> Option<Server> {
    let options = Options {
        conf: &["archive_mode=on", "archive_command='false'"],
        ..Options::default()
    };
    let server = Server::start(install(case.major)?, &options);
    server.sql("create table rows as select n, md5(n::text) from generate_series(1, 40000) n");
    Some(server)
}

/// The store's disk is full in the middle of the object.
#[test]
fn s18_a_put_that_breaks_fails_its_backup_and_shows_nothing() {
    let case = Case {
        major: 15,
        mode: "pipe",
        active: ALONE,
        compression: "snappy",
        encryption: None,
    };
    let Some(server) = working_server(&case) else {
        return;
    };
    let mut daemon = configured(&case, &server, json!({}));
    let Some(disk) = Tmpfs::mount("full-store-disk", daemon.store(), 64) else {
        return;
    };
    disk.fill();
    let filler = fs::File::options().write(true).open(disk.filler()).unwrap();
    let length = filler.metadata().unwrap().len();
    filler.set_len(length - (2 << 20)).unwrap();
    drop(filler);
    daemon.up();
    let failed = daemon.wait_event("a failed backup", "backup_failed", |_| true);
    assert_eq!(failed["class"], "disk_full", "{failed}");
    assert_eq!(names(&daemon), [""; 0]);
    disk.free();
    daemon.wait_backups(1);
    let failed = failed["backup"].as_str().unwrap();
    let visible = visible(&daemon);
    assert!(visible.len() == 1 && visible[0] != failed, "{visible:?}");
}

/// Its WAL does not come: the backup stays invisible, and a daemon that is killed takes it anew.
#[test]
fn a_backup_without_its_wal_is_never_listed() {
    let case = Case {
        major: 15,
        mode: "basic",
        active: "archive_command",
        compression: "zstd",
        encryption: None,
    };
    let Some(server) = working_server(&case) else {
        return;
    };
    let mut daemon = configured(&case, &server, json!({ "pg_data_directory": server.data }));
    daemon.up();
    let finished = daemon.wait_event("the backup", "backup_finished", |_| true);
    assert_eq!(finished["object"], finished["backup"]);
    let hidden = || visible(&daemon).is_empty() && !names(&daemon).is_empty();
    assert!(hidden(), "{:?}", names(&daemon));
    daemon.kill9();
    daemon.up();
    let failed = daemon.wait_event("its end", "backup_failed", |_| true);
    assert_eq!(failed["backup"], finished["backup"]);
    assert_eq!(failed["class"], "interrupted");
    let again = daemon.wait_event("the next", "backup_finished", |body| {
        body["backup"] != finished["backup"]
    });
    assert_eq!(visible(&daemon), [""; 0]);

    // The WAL comes after all.
    let command = daemon.command("archive", false);
    server.sql(&format!("alter system set archive_command = '{command}'"));
    server.sql("select pg_reload_conf()");
    let name = wait_for("a visible backup", PATIENCE, || {
        daemon.assert_alive();
        visible(&daemon).into_iter().next()
    });
    assert_eq!(again["backup"], name);
    daemon.wait_backups(1);
    daemon.verify_events();
}

/// One backup is kept; a log that is lost knows from the store alone what can be restored.
#[test]
fn retention_and_a_lost_log_know_these_backups() {
    for active in [ARCHIVED, ALONE] {
        let case = Case {
            major: 15,
            mode: "pipe",
            active,
            compression: "zstd",
            encryption: None,
        };
        let Some(server) = working_server(&case) else {
            return;
        };
        let mut daemon = configured(&case, &server, json!({ "basebackup_count": 1 }));
        daemon.up();
        daemon.wait_backups(1);
        let first = visible(&daemon);
        daemon.ask_for_backup(SITE);
        wait_until("the first to give way", PATIENCE, || {
            daemon.assert_alive();
            let now = visible(&daemon);
            now.len() == 1 && now != first
        });
        let facts = |daemon: &Daemon| {
            let backups = daemon.site()?["backups"].as_array()?.clone();
            let backup = backups.into_iter().find(|b| b["restorable"] == true)?;
            let known = [
                "name",
                "restorable",
                "end_lsn",
                "start_segment",
                "bytes_plain",
            ];
            Some(known.map(|key| backup[key].clone()))
        };
        let left = visible(&daemon);
        let before = wait_for("the state to follow", PATIENCE, || {
            let facts = facts(&daemon)?;
            let name = facts[0].as_str()?;
            left.iter().all(|key| key.contains(name)).then_some(facts)
        });
        daemon.kill9();
        fs::remove_file(daemon.spool().join(FILE_NAME)).unwrap();
        daemon.up();
        wait_until("the store to be read", PATIENCE, || {
            daemon.assert_alive();
            facts(&daemon).as_ref() == Some(&before)
        });
        // The server, not the store, says how long a segment is, and so where a window ends.
        wait_until("one window", PATIENCE, || {
            daemon.assert_alive();
            let coverage = daemon.site().map(|site| site["coverage"].clone());
            coverage.is_some_and(|all| all["windows"].as_array().is_some_and(|all| all.len() == 1))
        });
        daemon.sigterm();
    }
}

#[test]
fn tablespaces_are_refused_before_anything_is_written() {
    let case = Case {
        major: 15,
        mode: "basic",
        active: ARCHIVED,
        compression: "snappy",
        encryption: None,
    };
    let Some(server) = working_server(&case) else {
        return;
    };
    let space = server.folder("space");
    server.sql(&format!(
        "create tablespace far location '{}'",
        space.display()
    ));
    let mut daemon = configured(&case, &server, json!({}));
    daemon.up();
    let failed = daemon.wait_event("the refusal", "backup_failed", |_| true);
    let message = failed["message"].as_str().unwrap();
    for words in ["tablespaces", "hint: set basebackup_mode to \"stream\""] {
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(names(&daemon), [""; 0]);
}

/// What PGHoard's other modes are taken as is said at every start.
#[test]
fn a_mode_that_is_not_taken_any_more_gives_way_to_stream() {
    let case = Case {
        major: 15,
        mode: "delta",
        active: ARCHIVED,
        compression: "snappy",
        encryption: None,
    };
    let Some(server) = working_server(&case) else {
        return;
    };
    let mut daemon = configured(&case, &server, json!({}));
    daemon.up();
    daemon.wait_backups(1);
    let log = fs::read_to_string(daemon.log()).unwrap();
    let line = "site 'main': basebackup_mode 'delta' is taken as 'stream'";
    assert!(log.contains(line), "{log}");
    let name = visible(&daemon).remove(0);
    let labels = labels(&daemon.store().join(SITE).join("basebackup").join(name));
    assert_eq!(labels["basebackup-mode"], "stream");
}
