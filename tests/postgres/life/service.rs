//! Under a service manager: readiness, watchdog, a stop with limits, syslog, a disk that fills.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{archive, log};
use crate::support::daemon::{Daemon, SITE, node};
use crate::support::postgres::{Options, Server, install};
use crate::support::process::hand_over;
use crate::support::{PATIENCE, wait_for, wait_until};

/// Everything said by now.
fn heard(socket: &UnixDatagram) -> Vec<String> {
    socket.set_nonblocking(true).unwrap();
    let mut all = Vec::new();
    let mut buffer = [0; 4_096];
    while let Ok(size) = socket.recv(&mut buffer) {
        all.push(String::from_utf8_lossy(&buffer[..size]).into_owned());
    }
    all
}

#[test]
fn the_service_manager_hears_how_the_daemon_lives() {
    let Some(install) = install(15) else { return };
    let server = Server::start(install, &Options::default());
    let site = json!({ "nodes": [node(&server)], "active_backup_mode": "walreceiver" });
    let mut daemon = Daemon::configured(json!({}), json!({ SITE: site }));
    let name = format!("pghoard-{}-{}", process::id(), daemon.port);
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    daemon.environment = vec![
        ("NOTIFY_SOCKET", format!("@{name}")),
        ("WATCHDOG_USEC", "2000000".to_owned()),
    ];
    daemon.up();
    let mut all: Vec<String> = Vec::new();
    let mut until = |daemon: &mut Daemon, what: &str, count: usize| {
        wait_until(what, PATIENCE, || {
            daemon.assert_alive();
            all.extend(heard(&socket));
            all.iter().filter(|said| said.contains(what)).count() >= count
        });
    };
    until(&mut daemon, "READY=1", 1);
    assert!(daemon.status().is_some(), "ready is when it serves");
    until(&mut daemon, "STATUS=main: receiving from server 0", 1);
    until(&mut daemon, "WATCHDOG=1", 3);
    daemon.reload(|config| config["log_level"] = json!("DEBUG"));
    until(&mut daemon, "RELOADING=1\nMONOTONIC_USEC=", 1);
    until(&mut daemon, "READY=1", 2);
    daemon.sigterm();
    all.extend(heard(&socket));
    let order = ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"];
    let states = all
        .iter()
        .filter(|said| order.iter().any(|state| said.starts_with(state)));
    let states: Vec<&str> = states.map(|said| said.lines().next().unwrap()).collect();
    assert_eq!(states, order, "{all:?}");
}

/// Nobody is kept from stopping by a store that takes nothing, and what is left is said.
#[test]
fn s27_a_stop_says_what_it_leaves_behind() {
    let Some(install) = install(15) else { return };
    let server = Server::start(install, &Options::default());
    let mut daemon = Daemon::over(&[&server], json!({}));
    daemon.wait_backups(1);
    archive(&mut daemon, &server);
    let folder = daemon.store().join(SITE).join("xlog");
    let rights = |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
    rights(0o500);
    server.sql("insert into rows values (2)");
    server.sql("select pg_switch_wal()");
    let waits = |daemon: &Daemon| {
        let site = daemon.site().unwrap_or_default();
        site["spool"]["files"].as_u64().unwrap_or_default() > 0
    };
    // The state may still tell of the segment before, which was stored.
    daemon.wait_event("the upload to fail", "task_failed", |_| true);
    let began = Instant::now();
    daemon.sigterm();
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    let log = log(&daemon);
    let left = log
        .lines()
        .find(|line| line.contains("left in the spool: "));
    let left = left.unwrap_or_else(|| panic!("{log}"));
    assert!(left.contains("of site 'main'; nothing is lost"), "{left}");
    rights(0o700);
    daemon.up();
    wait_until("the spool to be empty", PATIENCE, || {
        daemon.site().is_some() && !waits(&daemon)
    });
    daemon.sigterm();
}

/// Uploads that take long have the time that the configuration gives them, and no more.
#[test]
fn a_stop_ends_within_its_limits() {
    let Some(install) = install(15) else { return };
    let server = Server::start(install, &Options::default());
    let site = json!({
        "nodes": [node(&server)],
        "active_backup_mode": "walreceiver",
        "basebackup_interval_hours": null,
    });
    let global = json!({
        "compression": { "algorithm": "lzma", "level": 9 },
        "transfer": { "thread_count": 1 },
        "graceful_shutdown_compression_timeout": 0.2,
        "graceful_shutdown_upload_timeout": 0.2,
    });
    let mut daemon = Daemon::configured(global, json!({ SITE: site })).started();
    let senders = "select count(*) from pg_stat_replication where state = 'streaming'";
    wait_until("reception", PATIENCE, || server.one(senders) == "1");
    server.sql(
        "create table noise as select md5(random()::text) || md5(random()::text) as x \
         from generate_series(1, 600000)",
    );
    server.sql("select pg_switch_wal()");
    wait_until("several segments in the spool", PATIENCE, || {
        let site = daemon.site().unwrap_or_default();
        site["spool"]["files"].as_u64().unwrap_or_default() >= 2
    });
    let began = Instant::now();
    daemon.sigterm();
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    let stopped = daemon.events().pop().unwrap();
    let reason = stopped["body"]["reason"].as_str().unwrap().to_owned();
    assert_eq!(stopped["kind"], "stopped");
    assert!(
        reason.contains("in haste") && reason.contains("in the spool"),
        "{reason}"
    );
}

#[test]
fn syslog_gets_every_line_to_the_last() {
    let Some(install) = install(15) else { return };
    let server = Server::start(install, &Options::default());
    let site = json!({ "nodes": [node(&server)], "active_backup_mode": "walreceiver" });
    let mut daemon = Daemon::configured(json!({}), json!({ SITE: site }));
    // Nobody listens at first: the daemon does not mind.
    let path = daemon.home().join("syslog");
    daemon.configure(|config| {
        config["syslog"] = json!(true);
        config["syslog_address"] = json!(path);
        config["syslog_facility"] = json!("daemon");
    });
    daemon.up();
    daemon.wait_backups(1);
    wait_until("a word on stderr", PATIENCE, || {
        log(&daemon).contains("syslog: lines are lost")
    });
    let socket = UnixDatagram::bind(&path).unwrap();
    hand_over(&path);
    let tag = format!("pghoard[{}]: ", daemon.pid());
    let mut all = Vec::new();
    wait_until("syslog's lines", PATIENCE, || {
        // What comes right after a failure is lost as well.
        archive(&mut daemon, &server);
        all.extend(heard(&socket));
        all.iter()
            .any(|line: &String| line.contains("lines were lost"))
    });
    daemon.sigterm();
    wait_for("the last line", PATIENCE, || {
        all.extend(heard(&socket));
        let last = all
            .iter()
            .find(|line| line.contains(" INFO: stopped: asked to"));
        last.cloned()
    });
    for line in &all {
        let priority = line.split_once('>').unwrap().0.strip_prefix('<').unwrap();
        assert_eq!(priority.parse::<u32>().unwrap() / 8, 3, "{line}");
        assert!(line.split_once('>').unwrap().1.starts_with(&tag), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
}

#[test]
fn s13_reception_pauses_while_the_disk_has_too_little() {
    let Some(install) = install(15) else { return };
    let server = Server::start(install, &Options::default());
    let mut daemon = Daemon::over(&[&server], json!({}));
    daemon.wait_backups(1);
    let senders = "select count(*) from pg_stat_replication";
    let limits = json!({ "min_disk_free_bytes": 1_u64 << 60 });
    daemon.reload(|config| config["backup_sites"][SITE]["pg_receivexlog"] = limits);
    wait_until("reception to pause", PATIENCE, || {
        server.one(senders) == "0"
    });
    wait_until("the alert", PATIENCE, || {
        let alert = daemon.alert("spool_filling").unwrap_or_default();
        alert.contains("min_disk_free_bytes")
    });
    daemon.reload(|config| config["backup_sites"][SITE]["pg_receivexlog"] = json!({}));
    archive(&mut daemon, &server);
    wait_until("the alert to go", PATIENCE, || {
        daemon.alert("spool_filling").is_none()
    });
    daemon.sigterm();
}
