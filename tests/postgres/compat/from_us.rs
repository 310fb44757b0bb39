//! What our daemon wrote of a real server: PGHoard lists and restores it as we do, and what PGHoard
//! does not know is unpacked by standard tools, file by file the same.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{Peer, RELEASE, assert_same, keys, recover, site, tree, wait_stored};
use crate::support::daemon::Daemon;
use crate::support::postgres::{Options, Server, install};
use crate::support::process::{Scratch, run};
use crate::support::{PATIENCE, wait_until};

/// How basebackups are taken.
const MODES: &[&str] = &["stream"];

#[test]
fn pghoard_and_standard_tools_read_what_we_write_with_snappy() {
    check("snappy");
}

#[test]
fn pghoard_and_standard_tools_read_what_we_write_with_zstd() {
    check("zstd");
}

#[test]
fn pghoard_and_standard_tools_read_what_we_write_with_lzma() {
    check("lzma");
}

/// One site for each mode and envelope.
struct Kind {
    site: String,
    /// Whether that release can decrypt it.
    known: bool,
    /// Where PGHoard restores it; beside it runs our daemon, which it asks for WAL.
    restored: Server,
}

fn check(algorithm: &str) {
    let (Some(install), Some(peer)) = (install(15), Peer::installed()) else {
        return;
    };
    let server = Server::start(install, &Options::default());
    let space = server.folder("space");
    server.sql(&format!(
        "create tablespace far location '{}'",
        space.display()
    ));
    server.sql("create table far tablespace far as select generate_series(1, 40000) n");
    server.sql("create table rows as select generate_series(1, 50000) n");
    let (kinds, mut daemon) = backed_up(&server, algorithm);
    server.sql("insert into rows select generate_series(1, 1000)");
    let last = server.one("select pg_walfile_name(pg_switch_wal())");
    for mut kind in kinds {
        wait_stored(&mut daemon, &format!("{}/xlog/{last}", kind.site));
        let scratch = Scratch::new();
        let ours = ours(&daemon, &kind, &scratch);
        read_by_tools(&peer, &daemon, &kind, &scratch, &ours);
        if kind.known {
            listed_by_pghoard(&peer, &daemon, &kind);
            restored_by_pghoard(&peer, &daemon, &mut kind, &ours);
        }
    }
}

fn backed_up(server: &Server, algorithm: &str) -> (Vec<Kind>, Daemon) {
    let (mut kinds, mut sites) = (Vec::new(), json!({}));
    for mode in MODES {
        for envelope in ["plain", "pghoa1", "aes-gcm"] {
            let name = format!("{mode}-{envelope}");
            let slot = name.replace('-', "_");
            let restored = Server::empty(server.install);
            let mut more = json!({
                "basebackup_mode": mode,
                "pg_data_directory": restored.data,
            });
            if envelope != "plain" {
                let keys = keys();
                more["encryption_key_id"] = keys["encryption_key_id"].clone();
                more["encryption_keys"] = keys["encryption_keys"].clone();
                more["encryption_format"] = json!(envelope);
            }
            sites[&name] = site(server, &slot, more);
            kinds.push(Kind {
                site: name,
                known: envelope != "aes-gcm",
                restored,
            });
        }
    }
    let global = json!({ "compression": { "algorithm": algorithm } });
    let mut daemon = Daemon::configured(global, sites).started();
    wait_until("a basebackup of every site", PATIENCE, || {
        daemon.assert_alive();
        let status = daemon.status().unwrap_or_default();
        kinds.iter().all(|kind| complete(&status, &kind.site))
    });
    (kinds, daemon)
}

fn complete(status: &Value, site: &str) -> bool {
    let backups = status["sites"][site]["backups"].as_array();
    backups.is_some_and(|all| all.iter().any(|backup| backup["complete"] == true))
}

/// Data and tablespace as our own restore gives them, without what a restore writes itself.
fn ours(daemon: &Daemon, kind: &Kind, scratch: &Scratch) -> BTreeMap<String, String> {
    let (data, space) = (scratch.join("ours"), scratch.folder("ours-far"));
    let mapping = format!("far={}", space.display());
    let words = [
        "get-basebackup",
        "--restore-to-primary",
        "--site",
        &kind.site,
    ];
    let mut restore = daemon.tool("pghoard_restore", &words);
    restore.arg("--target-dir").arg(&data);
    restore.args(["--tablespace-dir", &mapping]);
    run(restore).ok();
    contents(&data, &space)
}

fn contents(data: &Path, space: &Path) -> BTreeMap<String, String> {
    let mut all = tree(data);
    for (name, what) in tree(space) {
        all.insert(format!("<far>/{name}"), what);
    }
    // Each program has its own way to begin a recovery; PGHoard does not keep the map.
    let made = [
        "postgresql.auto.conf",
        "recovery.conf",
        "recovery.signal",
        "tablespace_map",
    ];
    for name in made {
        all.remove(name);
    }
    all
}

fn read_by_tools(
    peer: &Peer,
    daemon: &Daemon,
    kind: &Kind,
    scratch: &Scratch,
    ours: &BTreeMap<String, String>,
) {
    let list = run(daemon.tool(
        "pghoard_restore",
        &["list-basebackups", "--site", &kind.site],
    ));
    let list = list.ok();
    let main = list
        .lines()
        .last()
        .and_then(|row| row.split_whitespace().next());
    let target = scratch.folder("tools");
    let config = daemon.config().display().to_string();
    let words = [
        config.as_str(),
        &kind.site,
        main.unwrap(),
        target.to_str().unwrap(),
    ];
    run(peer.script("second_reader", &words)).ok();
    let found = contents(&target.join("pgdata"), &target.join("tablespaces/far"));
    assert_same(&format!("{}: tools, ours", kind.site), &found, ours);
}

/// Not `--verbose`, which in that release shows the local store's own `_hash` as well.
fn listed_by_pghoard(peer: &Peer, daemon: &Daemon, kind: &Kind) {
    let config = daemon.config().display().to_string();
    let words = ["list-basebackups", "--site", &kind.site];
    let ours = run(daemon.tool("pghoard_restore", &words)).ok();
    let words = [&words[..], &["--config", &config]].concat();
    let theirs = run(peer.tool("pghoard_restore", &words)).ok();
    assert_eq!(theirs, ours, "{}: {RELEASE}, ours", kind.site);
}

fn restored_by_pghoard(
    peer: &Peer,
    daemon: &Daemon,
    kind: &mut Kind,
    ours: &BTreeMap<String, String>,
) {
    let (site, server) = (&kind.site, &mut kind.restored);
    let space = server.folder("far");
    let config = daemon.config().display().to_string();
    let (data, mapping) = (
        server.data.display().to_string(),
        format!("far={}", space.display()),
    );
    let words = ["get-basebackup", "--site", site, "--config", &config];
    let place = ["--target-dir", &data, "--tablespace-dir", &mapping];
    let said = run(peer.tool("pghoard_restore", &[&words[..], &place].concat())).ok();
    assert!(said.contains("Basebackup restoration complete."), "{said}");
    let found = contents(&server.data, &space);
    assert_same(&format!("{site}: {RELEASE}, ours"), &found, ours);

    let command = peer.bin.join("pghoard_postgres_command");
    let (command, port) = (command.display(), daemon.port);
    let asks = format!("{command} --mode restore --port {port} --site {site}");
    recover(server, &format!("{asks} --output %p --xlog %f"));
    assert_eq!(server.one("select count(*) from rows"), "51000");
    assert_eq!(server.one("select sum(n) from far"), "800020000");
}
