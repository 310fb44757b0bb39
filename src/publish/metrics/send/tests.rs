//! What arrives where metrics go, and that nobody waits for it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;

use machine::policy::Policy;
use machine::rule::coverage::Live;
use machine::{Millis, State};
use serde_json::{Value, json};

use super::*;
use crate::config;

fn config(more: &Value) -> Config {
    let (config, _) = config::parse(more).unwrap();
    config
}

/// Metrics of a daemon without sites whose log has so many events.
fn with<T>(events: u64, act: impl FnOnce(&Facts<'_>) -> T) -> T {
    let state = State {
        seq: events,
        ..State::default()
    };
    act(&Facts {
        state: &state,
        policy: &Policy::default(),
        live: &Live::default(),
        alerts: &BTreeMap::new(),
        algorithm: "snappy",
        now: Millis(0),
    })
}

fn started(more: &Value) -> Metrics {
    let config = config(more);
    with(10, |facts| Metrics::start(&config, "vault", facts).unwrap())
}

/// As five seconds later.
fn publish(metrics: &mut Metrics, events: u64) {
    metrics.looked = None;
    with(events, |facts| metrics.publish(facts));
}

#[test]
fn datagrams_arrive_with_what_counters_grew_by() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE.answer)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let statsd = json!({ "port": port, "format": "datadog", "tags": { "env": "test" } });
    let mut metrics = started(&json!({ "statsd": statsd }));
    publish(&mut metrics, 13);
    let mut lines = Vec::new();
    while !lines
        .iter()
        .any(|line: &String| line.starts_with("pghoard.info:"))
    {
        let mut datagram = [0; 2_048];
        let bytes = socket.recv(&mut datagram).unwrap();
        let text = String::from_utf8_lossy(&datagram[..bytes]).into_owned();
        lines.extend(text.lines().map(str::to_owned));
    }
    for line in [
        "pghoard.events_total:3|c|#env:test",
        "pghoard.maintenance:0|g|#env:test",
        "pghoard.alert_raised:0|g|#alert:wal_hole,env:test",
    ] {
        assert!(lines.iter().any(|l| l == line), "no {line} in {lines:?}");
    }
    let counted = |line: &&String| line.contains("|c");
    assert_eq!(lines.iter().filter(counted).count(), 1, "{lines:?}");
}

fn whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|l| l.strip_prefix("Content-Length: "));
    body.len() == length.unwrap().parse::<usize>().unwrap()
}

/// Answers one request with `status`; gives what was asked.
fn gateway(listener: &TcpListener, status: &str) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = String::new();
    while !whole(&request) {
        let mut bytes = [0; 4_096];
        let count = stream.read(&mut bytes).unwrap();
        assert_ne!(count, 0, "{request}");
        request.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    let answer = format!("HTTP/1.0 {status}\r\n\r\nwhy not\n");
    stream.write_all(answer.as_bytes()).unwrap();
    request
}

#[test]
fn a_pushgateway_gets_one_body_under_pghoards_group() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let endpoint = format!("http://me:hush@127.0.0.1:{port}/base/");
    let gate = json!({ "endpoint": endpoint, "tags": { "site": "a b", "env": "test" } });
    let mut metrics = started(&json!({ "pushgateway": gate }));
    publish(&mut metrics, 13);
    let request = gateway(&listener, "200 OK");
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let mut head = head.lines();
    assert_eq!(
        head.next(),
        Some("PUT /base/metrics/job/pghoard/instance/a%20b HTTP/1.0")
    );
    let head: Vec<&str> = head.collect();
    assert!(
        head.contains(&"Authorization: Basic bWU6aHVzaA=="),
        "{head:?}"
    );
    assert!(head.contains(&format!("Content-Length: {}", body.len()).as_str()));
    let expect = "# TYPE pghoard_events_total counter\n\
                  pghoard_events_total{env=\"test\",site=\"a b\"} 13\n";
    assert!(body.contains(expect), "{body}");
}

#[test]
fn a_refusal_names_the_place_and_the_reason_but_no_password() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let endpoint = format!("http://me:hush@127.0.0.1:{port}");
    let config = config(&json!({ "pushgateway": { "endpoint": endpoint } }));
    let gate = config.pushgateway.unwrap();
    let push = Push::new(gate.endpoint.clone().unwrap(), &gate, "vault");
    assert_eq!(push.path, "/metrics/job/pghoard/instance/vault");
    let asked = thread::spawn(move || gateway(&listener, "400 Bad Request"));
    let samples = with(1, samples);
    let failure = push.send(&samples).unwrap_err();
    asked.join().unwrap();
    let told = format!("{failure}");
    assert!(told.contains(&format!("127.0.0.1:{port}")), "{told}");
    assert!(
        told.contains("expected a status of 200, found 400 why not"),
        "{told}"
    );
    assert!(!told.contains("hush"));
}

/// It accepts, in the kernel, and never answers.
#[test]
fn a_gateway_that_hangs_costs_numbers_and_no_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let mut metrics = started(&json!({ "pushgateway": { "endpoint": endpoint } }));
    let began = Instant::now();
    // One is on its way at most, and as many wait as may, whenever its thread took the first.
    let missed = (0..4).map(|events| {
        publish(&mut metrics, events);
        metrics.couriers.iter().all(|courier| courier.said)
    });
    assert!(missed.filter(|missed| *missed).count() >= 2);
    assert!(began.elapsed() < PATIENCE.answer);
}

#[test]
fn a_scrape_sees_the_last_look_and_nothing_is_looked_at_for_nobody() {
    let mut metrics = started(&json!({ "prometheus": { "tags": { "env": "x" } } }));
    let text = |metrics: &Metrics| metrics.exposition().lock().unwrap().to_string();
    assert_eq!(text(&metrics), "");
    publish(&mut metrics, 13);
    assert!(text(&metrics).contains("\npghoard_events_total{env=\"x\"} 13\n"));
    with(14, |facts| metrics.publish(facts));
    assert!(!text(&metrics).contains(" 14\n"), "not yet due");

    for nobody in [
        json!({}),
        json!({ "statsd": { "host": null }, "pushgateway": { "endpoint": "" } }),
    ] {
        let mut metrics = started(&nobody);
        publish(&mut metrics, 13);
        assert!(metrics.looked.is_none() && metrics.couriers.is_empty());
    }
}

#[test]
fn groups_are_paths_whatever_they_are_called() {
    for (value, expect) in [
        ("pghoard", "/job/pghoard"),
        ("a b%\u{f6}", "/job/a%20b%25%C3%B6"),
        ("a/b", "/job@base64/YS9i"),
    ] {
        assert_eq!(group("job", value), expect);
    }
}
