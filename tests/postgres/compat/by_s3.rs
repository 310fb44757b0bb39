//! The released PGHoard and ours over one S3 server: each restores what the other wrote.

use pghoard::store::choose::{self, Missing};
use serde_json::{Value, json};

use super::to_us::comes_back;
use super::{Peer, RELEASE, keys, recover};
use crate::stores::list;
use crate::support::daemon::{Daemon, SITE};
use crate::support::postgres::{Options, Server, install};
use crate::support::process::{Scratch, run};
use crate::support::stores::seaweed::seaweed;
use crate::support::{PATIENCE, wait_until};

#[test]
fn s53_what_the_released_daemon_writes_to_s3_comes_back() {
    let (Some(peer), Some(install)) = (Peer::installed(), install(15)) else {
        return;
    };
    let Some(seaweed) = seaweed() else { return };
    let mut storage = seaweed.bucket().object_storage();
    // Then its basebackup goes in parts.
    storage["segment_size"] = json!(5 << 20);
    let has_backup = || !below(&storage, "main/basebackup").is_empty();
    let site = json!({ "object_storage": storage });
    let (row, scratch) = (("basic", "snappy", true, 15), Scratch::new());
    comes_back(&peer, install, &row, (&scratch, site, &has_backup));
    assert!(!below(&storage, "main/xlog").is_empty());
}

fn below(storage: &Value, folder: &str) -> Vec<String> {
    let config = json!({ "backup_sites": { "a": { "object_storage": storage } } });
    let (config, _) = pghoard::config::parse(&config).unwrap();
    let store = choose::store(config.sites["a"].storage().unwrap(), Missing::Create).unwrap();
    let mut keys = Vec::new();
    let mut visit = |entry: pghoard::store::Entry| {
        keys.push(entry.key);
        Ok(())
    };
    store.list(folder, &mut visit).unwrap();
    keys
}

#[test]
fn the_released_pghoard_restores_from_s3_what_we_write() {
    let (Some(peer), Some(install)) = (Peer::installed(), install(15)) else {
        return;
    };
    let Some(seaweed) = seaweed() else { return };
    let server = Server::start(install, &Options::default());
    server.sql("create table rows as select generate_series(1, 50000) n");
    let mut restored = Server::empty(install);
    let keys = keys();
    let mut daemon = Daemon::over(
        &[&server],
        json!({
            "object_storage": seaweed.bucket().object_storage(),
            "basebackup_mode": "stream",
            "pg_data_directory": restored.data,
            "encryption_key_id": keys["encryption_key_id"],
            "encryption_keys": keys["encryption_keys"],
            "encryption_format": "pghoa1",
        }),
    );
    daemon.wait_backups(1);
    server.sql("insert into rows select generate_series(1, 1000)");
    let last = server.one("select pg_walfile_name(pg_switch_wal())");
    let last = format!("{SITE}/xlog/{last}");
    wait_until("the last segment in the store", PATIENCE, || {
        daemon.assert_alive();
        list(&daemon).contains(&last)
    });

    let config = daemon.config().display().to_string();
    let words = ["list-basebackups", "--site", SITE];
    let ours = run(daemon.tool("pghoard_restore", &words)).ok();
    let words = [&words[..], &["--config", &config]].concat();
    let theirs = run(peer.tool("pghoard_restore", &words)).ok();
    assert_eq!(theirs, ours, "{RELEASE}, ours");
    let data = restored.data.display().to_string();
    let words = ["get-basebackup", "--site", SITE, "--config", &config];
    let place = ["--target-dir", data.as_str()];
    let said = run(peer.tool("pghoard_restore", &[&words[..], &place].concat())).ok();
    assert!(said.contains("Basebackup restoration complete."), "{said}");
    let command = peer.bin.join("pghoard_postgres_command");
    let (command, port) = (command.display(), daemon.port);
    let asks = format!("{command} --mode restore --port {port} --site {SITE}");
    recover(&mut restored, &format!("{asks} --output %p --xlog %f"));
    assert_eq!(restored.one("select count(*) from rows"), "51000");
}
