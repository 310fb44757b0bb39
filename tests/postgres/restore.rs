//! A restored basebackup starts, with its tablespace elsewhere and its WAL straight from a store.

use std::fs;
use std::path::Path;
use std::process::Command;

use pghoard::codec::keys::Keyring;
use pghoard::config;
use pghoard::restore::choose::{self, Goal};
use pghoard::restore::recovery::{Recovery, Role};
use pghoard::restore::target::{Existing, Request};
use pghoard::restore::{self, Order, Source};
use pghoard::store::{Body, Metadata, Put, Store};
use serde_json::json;

use crate::support::postgres::{Options, Server, install};
use crate::take::Bed;

const MAIN: &str = "site/basebackup/2026-11-22_09-27_0.00000000.pghoard";

#[test]
fn s50_restore_13() {
    check(13);
}

#[test]
fn s50_restore_15() {
    check(15);
}

#[test]
fn s50_restore_18() {
    check(18);
}

fn check(major: u32) {
    let Some(install) = install(major) else {
        return;
    };
    let server = Server::start(install, &Options::default());
    let space = server.folder("space");
    server.sql(&format!(
        "create tablespace ts location '{}'",
        space.display()
    ));
    server.sql("create table far tablespace ts as select generate_series(1, 40000) as n");
    let bed = Bed::new();
    bed.take(&server, &bed.store).unwrap();
    server.sql("create table late as select generate_series(1, 1000) as n");
    server.sql("select pg_switch_wal()");
    server.sql("create table next_segment ()");
    store_the_rest(&bed, &server);

    let mut new = Server::empty(install);
    let moved = new.folder("moved");
    let (config, _) = config::load(&bed.config()).unwrap();
    let source = Source {
        store: &bed.store,
        keys: &Keyring::default(),
    };
    let backups = choose::backups(&config.sites["site"], &bed.store)
        .unwrap()
        .backups;
    let order = order(&bed, &new.data, &moved);
    restore::run(&backups[0], &source, &order).unwrap();
    let link = fs::read_dir(new.data.join("pg_tblspc")).unwrap().next();
    assert_eq!(fs::read_link(link.unwrap().unwrap().path()).unwrap(), moved);

    // PostgreSQL runs as another user where the tests run as root.
    let mut own = Command::new("chown");
    own.args(["-R", "--reference"]).arg(new.home());
    own.args([&new.data, &moved, bed.path()]);
    assert!(own.status().unwrap().success());
    new.move_in();
    new.up();
    assert_eq!(new.one("select sum(n) from far"), "800020000");
    assert_eq!(new.one("select count(*) from late"), "1000");
}

/// What the daemon does after the parts: the main object and the WAL.
fn store_the_rest(bed: &Bed, server: &Server) {
    let main = fs::read(bed.main()).unwrap();
    let pairs = [
        ("format", "pghoard-bb-v2"),
        ("start-time", "2026-11-22T09:27:26+00:00"),
    ];
    let metadata: Metadata = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    bed.store
        .put(MAIN, Body::Bytes(&main), &metadata, Put::Create)
        .unwrap();
    let current = server.one("select pg_walfile_name(pg_current_wal_lsn())");
    for item in fs::read_dir(server.data.join("pg_wal")).unwrap() {
        let item = item.unwrap();
        let name = item.file_name().into_string().unwrap();
        if name.len() == 24 && name < current {
            let wal = fs::read(item.path()).unwrap();
            let key = format!("site/xlog/{name}");
            let plain = Metadata::new();
            bed.store
                .put(&key, Body::Bytes(&wal), &plain, Put::Create)
                .unwrap();
        }
    }
    let storage = json!({"storage_type": "local", "directory": bed.path().join("store")});
    let config = json!({"backup_sites": {"site": {"object_storage": storage}}});
    fs::write(bed.config(), config.to_string()).unwrap();
}

fn order(bed: &Bed, data: &Path, moved: &Path) -> Order {
    let config = bed.config().display().to_string();
    let program = env!("CARGO_BIN_EXE_pghoard");
    let words = [
        program,
        "postgres_command",
        "--mode",
        "restore",
        "--config",
        &config,
    ];
    let rest = ["--site", "site", "--output", "%p", "--xlog", "%f"];
    Order {
        target: Request {
            target_dir: data.to_owned(),
            existing: Existing::Overwrite,
            tablespace_dirs: vec![format!("ts={}", moved.display())],
            tablespace_base_dir: None,
        },
        recovery: Recovery {
            restore_command: words.iter().chain(&rest).map(|w| (*w).to_owned()).collect(),
            role: Role::Primary,
            goal: Goal::End,
            action: None,
            timeline: "latest".to_owned(),
            primary_conninfo: String::new(),
            end_command: None,
        },
        preserve: None,
        threads: 2,
        status_file: None,
    }
}
