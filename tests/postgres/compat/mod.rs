//! Compatibility with PGHoard, proved against PGHoard itself: the newest release that PyPI has runs
//! beside us, on the same servers, configurations and stores.
//!
//! That release (2.1.0) is older than the one whose behaviour we keep: it knows neither our
//! envelope nor incremental modes, and nothing of PostgreSQL 12 and later. For the last there is
//! `newer_postgres`, which teaches it the page magics; for the others `second_reader`, made of
//! standard tools alone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::daemon::{Daemon, SITE, node};
use crate::support::postgres::{Server, testbed};
use crate::support::process::{Process, Scratch, command, hand_over};
use crate::support::{PATIENCE, skip, wait_until};

mod by_s3;
mod from_us;
mod side;
mod to_us;

const RELEASE: &str = "2.1.0";

/// The installed release, and a folder for its scripts.
struct Peer {
    bin: PathBuf,
    scratch: Scratch,
}

impl Peer {
    /// `None` has been said aloud as a skip.
    fn installed() -> Option<Peer> {
        let bin = testbed().join("pghoard/bin");
        if !bin.join("pghoard").exists() {
            skip("pghoard-2.1.0", "not installed: run tests/support/install");
            return None;
        }
        let scratch = Scratch::new();
        scratch.file("newer_postgres", include_str!("newer_postgres"));
        scratch.file("second_reader", include_str!("second_reader"));
        Some(Peer { bin, scratch })
    }

    /// One of its commands, as it is.
    fn tool(&self, name: &str, words: &[&str]) -> Command {
        let mut tool = self.within(&self.bin.join(name));
        tool.args(words);
        tool
    }

    /// Its daemon, taught newer servers.
    fn daemon(&self, config: &Path) -> Process {
        let mut daemon = self.script("newer_postgres", &["pghoard", "--config"]);
        daemon.arg(config);
        Process::spawn(daemon, self.scratch.join("pghoard.log"))
    }

    fn script(&self, name: &str, words: &[&str]) -> Command {
        let mut script = self.within(&self.bin.join("python"));
        script.arg(self.scratch.join(name)).args(words);
        script
    }

    /// It runs `pghoard_gnutaremu` by its name.
    fn within(&self, program: &Path) -> Command {
        let mut command = command(program, self.scratch.path());
        let path = format!("{}:/usr/sbin:/usr/bin:/bin", self.bin.display());
        command.env("PATH", path);
        command
    }
}

/// Both halves of the keys that the golden objects have.
fn keys() -> Value {
    let text = include_str!("../../golden/keys.json");
    let file: Value = serde_json::from_str(text).unwrap();
    file["backup_sites"]["golden"].clone()
}

fn golden(name: &str) -> PathBuf {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    top.join("tests/golden").join(name)
}

/// Every file below a folder with its digest, every folder with its mode (that of a file is 0644
/// where PGHoard makes up the member, and 0600 with us).
fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let name = path.strip_prefix(root).unwrap().display().to_string();
        if kind.is_dir() {
            let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
            found.insert(format!("{name}/"), format!("{mode:o}"));
            walk(root, &path, found);
        } else if kind.is_file() {
            let digest = Sha256::digest(fs::read(&path).unwrap());
            found.insert(name, hex(&digest));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first difference says more than two long lists.
#[track_caller]
fn assert_same(what: &str, left: &BTreeMap<String, String>, right: &BTreeMap<String, String>) {
    let names = left.keys().chain(right.keys());
    let mut differs: Vec<String> = names
        .filter(|name| left.get(*name) != right.get(*name))
        .map(|name| format!("{name}: {:?}, {:?}", left.get(name), right.get(name)))
        .collect();
    differs.sort();
    differs.dedup();
    assert!(differs.is_empty(), "{what}:\n{}", differs.join("\n"));
    assert!(!left.is_empty(), "{what}: nothing to compare");
}

/// Waits for the object and the metadata that is written after it.
fn wait_stored(daemon: &mut Daemon, key: &str) {
    let path = daemon.store().join(format!("{key}.metadata"));
    wait_until(&format!("{key} in the store"), PATIENCE, || {
        daemon.assert_alive();
        path.exists()
    });
}

/// Starts what was restored, and lets it fetch its WAL by this command.
fn recover(server: &mut Server, restore_command: &str) {
    // Of no use to a server from 12 on, which refuses to start beside it.
    let _older = fs::remove_file(server.data.join("recovery.conf"));
    let signal = server.data.join("recovery.signal");
    fs::write(&signal, "").unwrap();
    hand_over(&signal);
    server.move_in();
    server.overrule(&format!("restore_command='{restore_command}'"));
    server.up();
    server.wait_primary();
}

/// A site over one server, with a slot of its own.
fn site(server: &Server, slot: &str, more: Value) -> Value {
    let mut node = node(server);
    node["slot"] = json!(slot);
    let mut site = json!({ "nodes": [node], "active_backup_mode": "walreceiver" });
    for (key, value) in more.as_object().expect("site keys").clone() {
        site[key] = value;
    }
    site
}

/// One site, `main`, fed by archive_command, with these global and site keys on top.
fn their_config(
    scratch: &Scratch,
    server: &Server,
    port: u16,
    (global, site): (Value, Value),
) -> PathBuf {
    let folder = |name| scratch.folder(name);
    let mut config = json!({
        "backup_location": folder("spool"),
        "alert_file_dir": folder("alerts"),
        "json_state_file_path": scratch.join("state.json"),
        "http_port": port,
        "restore_prefetch": 0,
        "pg_receivexlog_path": postgres_tool(scratch, server, "pg_receivewal"),
        "pg_basebackup_path": postgres_tool(scratch, server, "pg_basebackup"),
    });
    let mut own = json!({
        "nodes": [{ "host": "127.0.0.1", "port": server.port, "user": "postgres" }],
        "active_backup_mode": "archive_command",
        "pg_data_directory": server.data,
        "object_storage": { "storage_type": "local", "directory": folder("store") },
    });
    for (into, more) in [(&mut config, global), (&mut own, site)] {
        for (key, value) in more.as_object().expect("keys").clone() {
            into[key] = value;
        }
    }
    config["backup_sites"] = json!({ SITE: own });
    scratch.file("pghoard.json", &config.to_string())
}

/// PGHoard wants tools of the server's own major; newer ones, which serve as well, have to say so.
fn postgres_tool(scratch: &Scratch, server: &Server, name: &str) -> PathBuf {
    let version = server.one("show server_version");
    let version = version.split(' ').next().unwrap();
    let real = server.install.tools.join(name);
    let real = real.display();
    let says = format!("--version) echo '{name} (PostgreSQL) {version}' ;;");
    let script = format!("#!/bin/sh\ncase $1 in {says} *) exec {real} \"$@\" ;; esac\n");
    let path = scratch.file(name, &script);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}
