//! A PostgreSQL on this machine, and an appliance that is told to back it up by a drive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::drive;
use crate::machine::{HOST, PATIENCE, Place};
use crate::support::daemon::Daemon;
use crate::support::postgres::{Options, Server, install};
use crate::support::process::hand_over;
use crate::support::{self, wait_for, wait_until};

pub const SITE: &str = "main";
pub const LOGIN: &str = "pghoard:correct-horse";
pub const PASSWORD: &str = "battery-staple";

pub struct Site {
    pub server: Server,
    pub place: Place,
}

/// What the appliance is told of a server on this machine.
pub fn settings(server: &Server) -> Value {
    json!({
        "http_address": "0.0.0.0",
        "webserver_username": "pghoard",
        "webserver_password": "correct-horse",
        "backup_sites": { SITE: {
            "active_backup_mode": "walreceiver",
            "basebackup_count": 20,
            "nodes": [{
                "host": HOST, "port": server.port, "user": "postgres", "slot": "pghoard",
            }],
            "object_storage": { "storage_type": "local", "directory": "/data/store" },
        } },
        "appliance": {
            "hostname": "vault",
            "console_password": PASSWORD,
            "update": { "confirm_seconds": 10, "give_up_seconds": 120 },
        },
    })
}

impl Site {
    /// `change` may say more.
    pub fn new(image: &Path, change: impl FnOnce(&mut Value)) -> Option<Site> {
        let server = Server::start(install(15)?, &Options::default());
        server.sql("create table rows (id serial primary key, at timestamptz default now())");
        let mut place = Place::new(image, 4);
        let mut settings = settings(&server);
        change(&mut settings);
        let path = place.scratch.join("drive.img");
        drive::make(&path, &settings, &[]);
        place.drives.push(path);
        Some(Site { server, place })
    }

    /// A row more, in a segment that is full then.
    pub fn write(&self) {
        self.server.sql("insert into rows default values");
        self.server.sql("select pg_switch_wal()");
    }

    pub fn rows(&self) -> u64 {
        self.server
            .one("select count(*) from rows")
            .parse()
            .unwrap()
    }

    pub fn ask(&self, method: &str, path: &str) -> Option<String> {
        self.curl(&["-X", method], path)
    }

    pub fn put(&self, path: &str, body: &Value) -> Option<String> {
        self.curl(&["-X", "PUT", "-d", &body.to_string()], path)
    }

    fn curl(&self, words: &[&str], path: &str) -> Option<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.place.api);
        let asked = Command::new("curl")
            .args(["-sS", "-f", "-m", "20", "-u", LOGIN, &url])
            .args(words)
            .output()
            .unwrap();
        let text = String::from_utf8(asked.stdout).ok()?;
        asked.status.success().then_some(text)
    }

    pub fn status(&self) -> Option<Value> {
        let text = self.ask("GET", "/status")?;
        serde_json::from_str(&text).ok()
    }

    /// Of the daemon's own part.
    pub fn fact(&self, pointer: &str) -> Option<Value> {
        let at = format!("/daemon{pointer}");
        self.status()?.pointer(&at).cloned()
    }

    /// Whether the machine says so of itself, to whoever watches.
    pub fn troubled(&self, text: &str) -> bool {
        let told = self.fact("/alerts/machine_trouble").unwrap_or_default();
        told.to_string().contains(text)
    }

    pub fn backups(&self) -> usize {
        let backups = self.fact(&format!("/sites/{SITE}/backups"));
        let backups = backups.and_then(|all| all.as_array().cloned());
        let whole = |backup: &Value| backup.get("phase").is_some_and(|phase| phase == "complete");
        backups.map_or(0, |all| all.iter().filter(|backup| whole(backup)).count())
    }

    pub fn wait_backups(&self, count: usize) {
        wait_until("a basebackup", PATIENCE, || self.backups() >= count);
    }

    /// Until the machine has what was written by now.
    pub fn wait_caught_up(&self) {
        let goal = self.server.flushed();
        wait_for("the WAL to be stored", PATIENCE, || {
            let at = self
                .server
                .sql("select coalesce(max(flush_lsn), '0/0') from pg_stat_replication");
            (support::postgres::lsn(at.first()?) >= goal).then_some(())
        });
    }

    /// The data partition as the disk has it now, its files copied out; checked by e2fsck.
    pub fn autopsy(&self) -> PathBuf {
        let out = self.place.scratch.folder("autopsy");
        let part = self.place.scratch.join("data.ext4");
        let (from, bytes) = self.place.partition("pghoard-data");
        let cut = Command::new("dd")
            .arg(format!("if={}", self.place.disk.display()))
            .arg(format!("of={}", part.display()))
            .args(["iflag=skip_bytes,count_bytes", "conv=sparse", "bs=1M"])
            .args([format!("skip={from}"), format!("count={bytes}")])
            .output()
            .unwrap();
        assert!(cut.status.success(), "{cut:?}");
        let checked = Command::new("e2fsck")
            .arg("-fn")
            .arg(&part)
            .output()
            .unwrap();
        assert!(checked.status.success(), "{checked:?}");
        for folder in ["pghoard", "store"] {
            let dump = format!("rdump /{folder} {}", out.display());
            let dumped = Command::new("debugfs")
                .args(["-R", &dump])
                .arg(&part)
                .output();
            assert!(dumped.unwrap().status.success());
        }
        fs::remove_file(&part).unwrap();
        out
    }

    /// What a daemon on this machine restores out of the store that was in the appliance, and that
    /// daemon, which hands out the WAL.
    pub fn restored(&self, out: &Path, words: &[&str]) -> (Daemon, Server) {
        let store = out.join("store");
        hand_over_all(out);
        let site = json!({
            "active": false,
            "object_storage": { "storage_type": "local", "directory": store },
        });
        let daemon = Daemon::configured(json!({}), json!({ SITE: site })).started();
        let server = daemon.restore(self.server.install, words);
        (daemon, server)
    }
}

fn hand_over_all(path: &Path) {
    hand_over(path);
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        hand_over_all(&entry.path());
    }
}
