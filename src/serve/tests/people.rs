//! What people did, and alerts they took note of: the answer comes after the commit.

use machine::Event;

use super::*;

fn document(alerts: &Value) -> String {
    json!({ "daemon": { "alerts": alerts } }).to_string()
}

/// Asks while the loop, which is this test, commits what comes; its events and the answer.
fn commit(api: &Api, path: &str, body: &Value) -> (Vec<Event>, u16, String) {
    let (address, body) = (api.handle.address(), body.to_string());
    let request = format!(
        "PUT {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let asked = thread::spawn(move || raw(address, request.as_bytes(), body.as_bytes()));
    let mut events = Vec::new();
    while !asked.is_finished() {
        if let Ok(report) = api.reports.recv_timeout(Duration::from_millis(10)) {
            events.extend(report.events.into_iter().map(|(_, event)| event));
            report.heard.unwrap().send(()).unwrap();
        }
    }
    let reply = asked.join().unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (events, status, body.to_owned())
}

fn operated(who: &str, command: &str, detail: &str) -> Event {
    Event::Operated {
        who: who.into(),
        command: command.into(),
        detail: detail.into(),
    }
}

#[test]
fn what_a_person_did_is_in_the_log_before_the_answer() {
    let api = Api::new(json!({}));
    let body = json!({ "who": "console ttyS0", "command": "hold", "detail": "audit" });
    let (events, status, text) = commit(&api, "/operator", &body);
    assert_eq!(status, 201, "{text}");
    assert_eq!(events, [operated("console ttyS0", "hold", "audit")]);
    for body in [
        json!({}),
        json!({ "who": "a", "command": "" }),
        json!({ "who": "a", "command": "b", "detail": "c\n" }),
        json!({ "who": "a", "command": "b", "more": 1 }),
    ] {
        let (events, status, _) = commit(&api, "/operator", &body);
        assert_eq!((status, events.len()), (400, 0), "{body}");
    }
    assert_eq!(api.ask("GET", "/operator", "").0, 405);
}

#[test]
fn an_alert_that_stands_is_acknowledged_by_name() {
    let api = Api::new(json!({}));
    let alerts = json!({
        "wal_hole": { "acknowledged": false },
        "wal_conflict": { "acknowledged": true },
    });
    *api.document.lock().unwrap() = Arc::from(document(&alerts));
    // Its condition is over, and PGHoard leaves the file to a person.
    let file = Path::new(&api.path("spool")).join("authentication_error");
    fs::write(&file, "x").unwrap();
    let events = Path::new(&api.path("spool")).join("events.redb");
    fs::write(&events, "x").unwrap();
    let path = "/alerts/acknowledge";
    for (alert, expect) in [
        ("wal_hole", 201),
        ("authentication_error", 201),
        ("authentication_error", 404),
        ("wal_conflict", 404),
        ("backup_overdue", 404),
        ("events.redb", 404),
        ("../spool/events.redb", 404),
    ] {
        let body = json!({ "alert": alert, "by": "anna", "reason": "known" });
        let (told, status, text) = commit(&api, path, &body);
        assert_eq!(status, expect, "{alert}: {text}");
        let both = [
            Event::AlertAcknowledged {
                alert: alert.into(),
            },
            operated("anna", &format!("alerts acknowledge {alert}"), "known"),
        ];
        let expect: &[Event] = if expect == 201 { &both } else { &[] };
        assert_eq!(told, expect, "{alert}");
    }
    assert!(!file.exists() && events.exists());
}

#[test]
fn a_hold_is_written_and_told_before_it_is_confirmed() {
    let api = Api::new(json!({}));
    api.put("main/basebackup/a.00000000.pghoard", b"x", &[]);
    let put = |method: &str, path: &str, body: &str| {
        let length = format!("content-length: {}\r\n", body.len());
        let reply = api.raw(&format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{length}\r\n{body}"
        ));
        reply.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    let long = format!("{{\"backup\":\"a\",\"reason\":\"{}\"}}", "r".repeat(600));
    let huge = format!("{{\"backup\":\"{}\"}}", "a".repeat(BODY_BYTES_MAX));
    for (method, path, body, status) in [
        ("PUT", "/main/hold", "", 400),
        ("PUT", "/main/hold", "{\"backup\":\"a\"}", 400),
        (
            "PUT",
            "/main/hold",
            "{\"backup\":\"a\",\"reason\":\" \"}",
            400,
        ),
        (
            "PUT",
            "/main/hold",
            "{\"backup\":\"a\",\"reason\":\"r\\n\"}",
            400,
        ),
        (
            "PUT",
            "/main/hold",
            "{\"backup\":\"a\",\"reason\":\"r\",\"x\":1}",
            400,
        ),
        (
            "PUT",
            "/main/hold",
            "{\"backup\":\"a\",\"reason\":\"r\",\"until\":\"2020-01-01\"}",
            400,
        ),
        ("PUT", "/main/hold", &long, 400),
        ("PUT", "/main/hold", &huge, 413),
        (
            "PUT",
            "/main/hold",
            "{\"backup\":\"../a\",\"reason\":\"r\"}",
            404,
        ),
        (
            "PUT",
            "/other/hold",
            "{\"backup\":\"a\",\"reason\":\"r\"}",
            404,
        ),
        ("GET", "/main/hold", "", 405),
        ("DELETE", "/main/release", "{\"backup\":\"a\"}", 404),
    ] {
        assert_eq!(put(method, path, body), status, "{method} {path} {body}");
        assert!(api.reports.try_recv().is_err());
    }
    let hold = "{\"backup\":\"a\",\"reason\":\"audit\",\"by\":\"ada@desk\"}";
    assert_eq!(put("PUT", "/main/hold", hold), 201);
    let marked = api.reports.try_recv().unwrap();
    assert!(format!("{marked:?}").contains("Marked"), "{marked:?}");
    let key = "main/preservation_request/a_hold_ada_desk";
    let store = Local::open(&api.folder.path().join("store")).unwrap();
    let metadata = store.look(key).unwrap().unwrap().metadata;
    assert_eq!(metadata["preserve-backup"], "a.00000000.pghoard");
    assert_eq!(put("DELETE", "/main/release", "{\"backup\":\"a\"}"), 201);
    assert!(store.look(key).unwrap().is_none());
    let unmarked = api.reports.try_recv().unwrap();
    assert!(format!("{unmarked:?}").contains("Unmarked"), "{unmarked:?}");
}
