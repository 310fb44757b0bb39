//! Metrics as those see them who collect them: Prometheus, its pushgateway, a statsd server.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, SITE, node};
use crate::support::postgres::{Options, Server, free_port, install};
use crate::support::process::{Process, Scratch, command, run};
use crate::support::{PATIENCE, skip, wait_for};

/// A program of Prometheus; `None` has been said aloud as a skip.
fn program(name: &str) -> Option<PathBuf> {
    let paths = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/postgres-paths");
    let place = Command::new(paths).arg("--testbed").output().unwrap();
    let place = PathBuf::from(String::from_utf8(place.stdout).unwrap().trim());
    let path = place.join("prometheus/usr/bin").join(name);
    if !path.exists() {
        skip("prometheus", "not installed: run tests/support/install");
        return None;
    }
    Some(path)
}

/// Status and body of a GET.
fn get(port: u16, path: &str, login: bool) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    // u:p
    let login = if login {
        "Authorization: Basic dTpw\r\n"
    } else {
        ""
    };
    let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n{login}\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    let (head, body) = reply.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// What a running Prometheus knows: the value of the one series.
fn query(port: u16, series: &str) -> Option<f64> {
    let query: String = series.bytes().map(|b| format!("%{b:02X}")).collect();
    let (_, body) = get(port, &format!("/api/v1/query?query={query}"), false)?;
    let answer: Value = serde_json::from_str(&body).ok()?;
    answer["data"]["result"][0]["value"][1]
        .as_str()?
        .parse()
        .ok()
}

#[test]
fn prometheus_pushgateway_and_statsd_get_every_metric() {
    let (Some(install), Some(prometheus)) = (install(15), program("prometheus")) else {
        return;
    };
    let (Some(promtool), Some(gateway)) = (program("promtool"), program("prometheus-pushgateway"))
    else {
        return;
    };
    let server = Server::start(install, &Options::default());
    let scratch = Scratch::new();
    let (gate_port, own_port) = (free_port(), free_port());
    let mut gate = command(gateway, scratch.path());
    gate.arg(format!("--web.listen-address=127.0.0.1:{gate_port}"));
    let _gate = Process::spawn(gate, scratch.join("gateway.log"));
    let statsd = UdpSocket::bind("127.0.0.1:0").unwrap();
    statsd
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();

    let global = json!({
        "webserver_username": "u",
        "webserver_password": "p",
        "prometheus": { "tags": { "env": "test" } },
        "pushgateway": { "endpoint": format!("http://127.0.0.1:{gate_port}"), "instance": "vault" },
        "statsd": { "port": statsd.local_addr().unwrap().port() },
    });
    let site = json!({ "nodes": [node(&server)], "active_backup_mode": "walreceiver" });
    let mut daemon = Daemon::configured(global, json!({ SITE: site })).started();
    daemon.wait_backups(1);
    server.sql("select pg_switch_wal()");

    let settings = scratch.file("prometheus.yml", &settings(daemon.port, gate_port));
    let mut scraper = command(prometheus, scratch.path());
    scraper
        .arg(format!("--config.file={}", settings.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            scratch.join("tsdb").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{own_port}"));
    let _scraper = Process::spawn(scraper, scratch.join("prometheus.log"));

    let text = wait_for("metrics of a complete backup", PATIENCE, || {
        let (_, text) = get(daemon.port, "/metrics", true)?;
        let done = "pghoard_basebackup_completed{env=\"test\"} 1\n";
        text.contains(done).then_some(text)
    });
    assert_eq!(get(daemon.port, "/metrics", false).unwrap().0, 401);
    assert!(text.contains("pghoard_slot_held_bytes{env=\"test\",node=\"0\",site=\"main\"}"));
    lint(&promtool, &scratch, &text);

    // Scraped, pushed and scraped from there, and as a datagram: one and the same number.
    for series in [
        "pghoard_restorable_backups{job=\"pghoard\",env=\"test\",site=\"main\"}",
        "pghoard_restorable_backups{instance=\"vault\",site=\"main\"}",
        "pghoard_basebackup_completed{instance=\"vault\",job=\"pghoard\"}",
    ] {
        wait_for(series, PATIENCE, || {
            (query(own_port, series) == Some(1.0)).then_some(())
        });
    }
    wait_datagram(&statsd, "pghoard.restorable_backups,site=main:1|g");
    daemon.assert_alive();
}

fn lint(promtool: &Path, scratch: &Scratch, text: &str) {
    let file = scratch.file("metrics.txt", text);
    let mut lint = command(promtool, scratch.path());
    lint.args(["check", "metrics"])
        .stdin(File::open(file).unwrap());
    let said = run(lint);
    let findings = format!("{}{}", said.stdout, said.stderr);
    assert!(
        said.status.success() && findings.is_empty(),
        "promtool: {findings}"
    );
}

fn wait_datagram(statsd: &UdpSocket, wanted: &str) {
    wait_for("the datagram", PATIENCE, || {
        let mut datagram = [0; 2_048];
        let bytes = statsd.recv(&mut datagram).unwrap();
        let text = String::from_utf8_lossy(&datagram[..bytes]).into_owned();
        text.lines().any(|line| line == wanted).then_some(())
    });
}

/// Every second, with the password, and the gateway's labels as they were pushed.
fn settings(daemon: u16, gateway: u16) -> String {
    format!(
        "global: {{ scrape_interval: 1s }}\n\
         scrape_configs:\n\
         - job_name: pghoard\n  \
           basic_auth: {{ username: u, password: p }}\n  \
           static_configs: [{{ targets: ['127.0.0.1:{daemon}'] }}]\n\
         - job_name: gateway\n  \
           honor_labels: true\n  \
           static_configs: [{{ targets: ['127.0.0.1:{gateway}'] }}]\n"
    )
}

/// Collectors come, move and go with the configuration, without a restart.
#[test]
fn collectors_change_with_the_configuration() {
    let bound = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let patience = Some(Duration::from_secs(30));
        socket.set_read_timeout(patience).unwrap();
        socket
    };
    let (one, two) = (bound(), bound());
    let place = |socket: &UdpSocket| json!({ "port": socket.local_addr().unwrap().port() });
    let global = json!({ "statsd": place(&one) });
    let mut daemon = Daemon::configured(global, json!({ SITE: { "nodes": [] } })).started();
    let line = "pghoard.restorable_backups,site=main:0|g";
    wait_datagram(&one, line);

    let gateway = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", gateway.local_addr().unwrap());
    daemon.reload(|config| {
        config["statsd"] = place(&two);
        config["pushgateway"] = json!({ "endpoint": endpoint });
    });
    wait_datagram(&two, line);
    let (mut pushed, _) = gateway.accept().unwrap();
    let mut head = [0; 4];
    pushed.read_exact(&mut head).unwrap();
    assert_eq!(&head[..], b"PUT ");
    let ended = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    pushed.write_all(ended.as_bytes()).unwrap();

    daemon.reload(|config| {
        let config = config.as_object_mut().unwrap();
        config.remove("statsd");
        config.remove("pushgateway");
        config.insert("prometheus".into(), json!({}));
    });
    let text = wait_for("metrics at /metrics", PATIENCE, || {
        let (status, text) = get(daemon.port, "/metrics", false)?;
        (status == 200).then_some(text)
    });
    assert!(text.contains("pghoard_info"), "{text}");
    daemon.sigterm();
}

/// A difference on purpose: PGHoard begins at 0 again, and its counters hold the last increment.
#[test]
fn counters_go_on_where_they_were_after_a_crash() {
    let Some(install) = install(15) else {
        return;
    };
    let server = Server::start(install, &Options::default());
    let site = json!({ "nodes": [node(&server)], "active_backup_mode": "walreceiver" });
    let global = json!({ "prometheus": {} });
    let mut daemon = Daemon::configured(global, json!({ SITE: site })).started();
    daemon.wait_backups(1);
    let told = |port: u16, lines: &[&str]| {
        wait_for("the counters", PATIENCE, || {
            let (_, text) = get(port, "/metrics", false)?;
            let has = |wanted: &&str| text.lines().any(|line| line == *wanted);
            lines.iter().all(has).then_some(())
        });
    };
    let completed = "pghoard_basebackup_completed 1";
    let quit = |times| format!("pghoard_unrecoverable_quit_main_loop_failure {times}");
    told(daemon.port, &[completed, &quit(0)]);
    daemon.restart();
    told(daemon.port, &[completed, &quit(1)]);
}
