//! The daemon as its administrator knows it: signals, the service manager, syslog, a full disk.

mod reload;
mod service;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::daemon::{Daemon, SITE};
use crate::support::postgres::Server;
use crate::support::{PATIENCE, wait_for, wait_until};

/// Writes rows and finishes their segment; waits until it is stored. Answers its name.
fn archive(daemon: &mut Daemon, server: &Server) -> String {
    server.sql("create table if not exists rows (n int); insert into rows values (1)");
    let name = server.one("select pg_walfile_name(pg_current_wal_lsn())");
    server.sql("select pg_switch_wal()");
    let stored = daemon.store().join(SITE).join("xlog").join(&name);
    wait_until(&format!("{name} to be stored"), PATIENCE, || {
        daemon.assert_alive();
        stored.exists()
    });
    name
}

/// What is kept beside an object.
fn metadata(daemon: &Daemon, key: &str) -> Value {
    let path = daemon.store().join(format!("{SITE}/{key}.metadata"));
    let text = wait_for(key, PATIENCE, || fs::read(&path).ok());
    serde_json::from_slice(&text).unwrap()
}

fn objects(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => found.extend(objects(&path)),
            false if path.extension().is_some_and(|end| end == "metadata") => {}
            false => found.push(path),
        }
    }
    found
}

fn log(daemon: &Daemon) -> String {
    fs::read_to_string(daemon.log()).unwrap_or_default()
}
