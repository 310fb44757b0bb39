//! What PGHoard wrote comes back through us and runs on a real server: the golden trees of the
//! newer PGHoard, and what the released one writes while the test runs.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::{Peer, golden, keys, their_config};
use crate::support::daemon::{Daemon, SITE};
use crate::support::postgres::{Install, Options, Server, free_port, install};
use crate::support::process::{Scratch, command, hand_over, run};
use crate::support::{PATIENCE, wait_until};

/// A run of `tests/golden`, its basebackup if it has two, and what is in the tables.
const GOLDEN: &[(&str, Option<&str>, &str)] = &[
    ("basic-snappy", None, "500|500"),
    ("pipe-zstd-enc", None, "502|2000"),
    ("local-tar-zstd-enc", None, "503|3000"),
    ("local-tar-delta-stats-lzma", None, "503|3000"),
    ("delta-zstd-enc", Some("2026-11-22_09-28_0"), "604|4100"),
    ("delta-zstd-enc", Some("2026-11-22_09-29_0"), "604|4100"),
];

#[test]
fn s53_every_golden_basebackup_starts_and_has_its_rows() {
    let Some(install) = install(15) else { return };
    for (tree, backup, rows) in GOLDEN {
        let folder = Scratch::new();
        let mut site = keys();
        let storage = json!({ "storage_type": "local", "directory": folder.join("store") });
        site["object_storage"] = storage;
        copy(&golden("storage").join(tree), &folder.join("store"));
        let tools = Daemon::configured(json!({}), json!({ "golden": site }));
        let mut server = Server::empty(install);
        let space = server.folder("space");
        let mapping = format!("tsone={}", space.display());
        let mut words = vec!["get-basebackup", "--site", "golden", "--restore-to-primary"];
        let name = backup.map(|name| format!("golden/basebackup/{name}.00000000.pghoard"));
        words.extend(name.iter().flat_map(|name| ["--basebackup", name.as_str()]));
        if tree.starts_with("local-tar") {
            words.extend(["--tablespace-dir", &mapping]);
        }
        let mut restore = tools.tool("pghoard_restore", &words);
        restore.arg("--target-dir").arg(&server.data);
        run(restore).ok();
        server.move_in();
        server.configure("archive_mode=off\nssl=off\nmax_connections=100");
        server.up();
        server.wait_primary();
        let found = server.one("select count(*), max(id) from t");
        assert_eq!(found, *rows, "{tree} {backup:?}");
        if tree.starts_with("local-tar") {
            assert_eq!(server.one("select count(*) from tt"), "300", "{tree}");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
    let mut own = Command::new("chown");
    own.arg("-R")
        .arg("--reference")
        .arg(to.parent().unwrap())
        .arg(to);
    let _unless_root = own.status();
    hand_over(to);
}

/// The released daemon with its own archive_command: mode, codec, whether encrypted, server. Its
/// local modes call functions that PostgreSQL 15 took away.
const WRITTEN: &[(&str, &str, bool, u32)] = &[
    ("basic", "snappy", true, 15),
    ("pipe", "lzma", false, 12),
    ("pipe", "zstd", true, 18),
    ("local-tar", "zstd", false, 12),
];

#[test]
fn s53_what_the_released_daemon_writes_comes_back() {
    let Some(peer) = Peer::installed() else {
        return;
    };
    for row in WRITTEN {
        if let Some(install) = install(row.3) {
            let scratch = Scratch::new();
            let store = scratch.join("store/main/basebackup");
            let has_backup = || has_backup(&store);
            comes_back(&peer, install, row, (&scratch, json!({}), &has_backup));
        }
    }
}

/// Where its folders are, keys of its site for where it stores, and whether a backup is there.
pub(super) type Place<'a> = (&'a Scratch, Value, &'a dyn Fn() -> bool);

pub(super) fn comes_back(
    peer: &Peer,
    install: &'static Install,
    row: &(&str, &str, bool, u32),
    (scratch, mut site, has_backup): Place<'_>,
) {
    let (mode, algorithm, encrypted, _) = *row;
    let port = free_port();
    let archive = peer.bin.join("pghoard_postgres_command");
    let archive = format!(
        "archive_command='{} --mode archive --port {port} --site {SITE} --xlog %f'",
        archive.display()
    );
    let options = Options {
        conf: &["archive_mode=on", &archive],
        ..Options::default()
    };
    let mut server = Server::start(install, &options);
    server.sql("create table rows as select generate_series(1, 50000) n");
    site["basebackup_mode"] = json!(mode);
    if encrypted {
        let keys = keys();
        site["encryption_key_id"] = keys["encryption_key_id"].clone();
        site["encryption_keys"] = keys["encryption_keys"].clone();
    }
    let global = json!({ "compression": { "algorithm": algorithm, "level": 1 } });
    let config = their_config(scratch, &server, port, (global, site));
    let daemon = peer.daemon(&config);
    wait_until("PGHoard's basebackup", PATIENCE, has_backup);
    server.sql("insert into rows select generate_series(1, 1000)");
    let last = server.one("select pg_walfile_name(pg_switch_wal())");
    let sql = format!("select coalesce(last_archived_wal, '') >= '{last}' from pg_stat_archiver");
    wait_until("the WAL to be archived", PATIENCE, || {
        server.one(&sql) == "t"
    });
    server.destroy_data();
    drop(daemon);

    let links = Daemon::configured(json!({}), json!({}));
    let restore = links.home().join("bin/pghoard_restore");
    let mut restored = Server::empty(install);
    let mut restore = command(restore, links.home());
    restore.args(["get-basebackup", "--restore-to-primary", "--config"]);
    restore.arg(&config).arg("--target-dir").arg(&restored.data);
    run(restore).ok();
    restored.move_in();
    restored.configure("archive_mode=off");
    restored.up();
    restored.wait_primary();
    let rows = restored.one("select count(*) from rows");
    assert_eq!(rows, "51000", "{row:?}");
}

/// With the metadata, which comes last.
fn has_backup(folder: &Path) -> bool {
    let entries = folder.read_dir().into_iter().flatten();
    entries
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .any(|name| name.ends_with(".metadata"))
}
