//! A database host that restores with what the appliance hands out, by curl and tar alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::site::{SITE, Site};
use crate::support::postgres::Server;
use crate::support::process::{command, hand_over, run};

/// Runs the line that was handed out, in an empty data directory of this server's.
pub fn fetch(server: &mut Server, line: &str) {
    fs::create_dir(&server.data).unwrap();
    fs::set_permissions(&server.data, fs::Permissions::from_mode(0o700)).unwrap();
    hand_over(&server.data);
    let mut shell = command("sh", server.home());
    shell.args(["-c", line]).current_dir(&server.data);
    run(shell).ok();
    server.move_in();
}

/// The newest backup by the API, not started yet.
pub fn fetched(site: &Site, wish: &Value) -> Server {
    let mut wish = wish.clone();
    wish["url"] = format!("http://127.0.0.1:{}", site.place.api).into();
    let told = site.put(&format!("/{SITE}/handout"), &wish).unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    let mut server = Server::empty(site.server.install);
    fetch(&mut server, told["command"].as_str().unwrap());
    server
}
