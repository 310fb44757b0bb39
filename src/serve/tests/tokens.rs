//! Tokens: what they open, and that everything else stays shut.

use super::*;
use crate::serve::handout::tokens::Terms;

const LOGIN: &str = "authorization: Basic dTpw\r\n";

fn secured(more: Value) -> Api {
    let mut all = json!({ "webserver_username": "u", "webserver_password": "p" });
    for (key, value) in more.as_object().unwrap() {
        all[key] = value.clone();
    }
    Api::new(all)
}

/// As after `PUT /main/handout` of a basebackup that went meanwhile.
fn token(api: &Api) -> String {
    let handouts = api.handle.current.server().routes.handouts.clone();
    let terms = Terms::of("main", "gone");
    let made = handouts.make(terms, 0, Duration::from_secs(60)).unwrap();
    made.token.reveal().to_owned()
}

#[test]
fn a_handout_opens_its_restore_and_nothing_else() {
    let api = secured(json!({}));
    let name = "00000002.history";
    let (wal, old) = (
        format!("/main/archive/{name}"),
        format!("/old/archive/{name}"),
    );
    api.put(&format!("main/timeline/{name}"), b"1\t0/300000\tx\n", &[]);
    let bearer = format!("authorization: Bearer {}\r\n", token(&api));
    let bring = format!("{bearer}x-pghoard-body: 1\r\n");
    let write = format!(
        "{bearer}x-pghoard-target-path: {}\r\n",
        api.path("pgdata/pg_wal/x")
    );
    for (method, path, headers, expect) in [
        ("GET", &*wal, &*bring, 200),
        ("HEAD", &wal, &bearer, 200),
        ("GET", &wal, &bearer, 403),
        ("GET", &wal, &write, 403),
        ("PUT", &wal, &bearer, 403),
        ("GET", &old, &bring, 403),
        ("GET", "/old/handout/tar", &bearer, 403),
        ("GET", "/status", &bearer, 403),
        ("GET", "/handouts", &bearer, 403),
        ("GET", "/main/basebackup", &bearer, 403),
        ("GET", "/main/basebackup/latest/tar", &bearer, 403),
        ("PUT", "/main/basebackup", &bearer, 403),
        ("PUT", "/main/handout", &bearer, 403),
        ("PUT", "/operator", &bearer, 403),
        ("GET", "/status", "authorization: Bearer guess\r\n", 401),
        ("GET", "/main/handout/tar", "", 401),
        ("GET", "/main/handout/tar", LOGIN, 403),
        // It is gone: nothing was sent, so the token has opened nothing.
        ("GET", "/main/handout/tar", &bearer, 404),
        ("GET", "/main/handout/tar", &bearer, 404),
    ] {
        let (status, _, body) = api.ask(method, path, headers);
        assert_eq!(status, expect, "{method} {path} {headers}: {body}");
    }
    let (status, _, body) = api.ask("GET", "/handouts", LOGIN);
    let list: Value = serde_json::from_str(&body).unwrap();
    let live = &list["handouts"][0];
    assert_eq!((status, &live["state"]), (200, &json!("waiting")));
    assert_eq!(
        (&live["wal_files"], &live["bytes"]),
        (&json!(1), &Value::Null)
    );
}

#[test]
fn a_handout_that_cannot_be_is_refused_when_it_is_asked_for() {
    let api = Api::new(json!({}));
    for (body, expect, words) in [
        (json!({}), 404, ""),
        (json!({ "backup": "nobody" }), 404, "no basebackup 'nobody'"),
        (json!({ "minutes": 0 }), 400, "minutes: expected 1 to 10080"),
        (json!({ "minutes": 10_081 }), 400, "minutes: expected"),
        (
            json!({ "time": "soon" }),
            400,
            "recovery_target_time 'soon'",
        ),
        (
            json!({ "xid": "1", "immediate": true }),
            400,
            "Specify at most one",
        ),
        (json!({ "url": "h:1" }), 400, "url: expected http"),
        (
            json!({ "cacert": "ca.pem" }),
            400,
            "cacert: expected an absolute path",
        ),
        (json!({ "name": "a\nb" }), 400, "name: expected printable"),
        (json!({ "more": 1 }), 400, "no JSON of a hand-out"),
    ] {
        let body = body.to_string();
        let length = format!(
            "PUT /main/handout HTTP/1.1\r\nhost: h:1\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let reply = raw(api.handle.address(), length.as_bytes(), body.as_bytes());
        let status = format!("HTTP/1.1 {expect}");
        assert!(
            reply.starts_with(&status) && reply.contains(words),
            "{body}: {reply}"
        );
    }
    assert_eq!(
        api.ask("GET", "/handouts", "").2,
        "{\n    \"handouts\": []\n}"
    );
}

#[test]
fn the_monitors_token_may_look_and_nothing_else() {
    let token = "0123456789abcdef";
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.json");
    fs::write(&state, "{}").unwrap();
    let api = secured(json!({ "http_monitor_token": token, "prometheus": {},
        "json_state_file_path": state }));
    fs::create_dir(api.path("log")).unwrap();
    fs::write(Path::new(&api.path("log")).join("pghoard.log"), "a\nb\n").unwrap();
    fs::write(Path::new(&api.path("spool")).join("wal_hole"), "gone\n").unwrap();
    fs::write(Path::new(&api.path("spool")).join("events.redb"), "x").unwrap();
    let bearer = format!("authorization: bearer {token}\r\n");
    for (method, path, expect, words) in [
        ("GET", "/status", 200, "{\"a\": 1}"),
        ("GET", "/metrics", 200, "a 1"),
        ("GET", "/files", 200, "\"name\": \"wal_hole\""),
        ("GET", "/files/state.json", 200, "{}"),
        ("GET", "/files/wal_hole", 200, "gone\n"),
        ("GET", "/files/wal_conflict", 404, "there is no file"),
        ("GET", "/files/events.redb", 404, "there is no file"),
        ("GET", "/files/..", 404, "there is no file"),
        ("GET", "/files/../spool/events.redb", 404, ""),
        (
            "GET",
            "/files/%2e%2e%2fevents.redb",
            404,
            "there is no file",
        ),
        ("GET", "/log", 200, "a\nb\n"),
        ("GET", "/log?lines=1", 200, "b\n"),
        ("GET", "/log?lines=0", 400, "lines=1 to 10000"),
        ("GET", "/log?lines=10001", 400, "lines=1 to 10000"),
        ("GET", "/log?x=1", 400, "lines=1 to 10000"),
        ("PUT", "/operator", 403, "this token may look"),
        ("GET", "/handouts", 403, "this token may look"),
        ("GET", "/main/basebackup", 403, "this token may look"),
        ("GET", "/openapi.json", 403, "this token may look"),
        ("PUT", "/main/basebackup", 403, "this token may look"),
        ("PUT", "/main/handout", 403, "this token may look"),
    ] {
        let (status, _, body) = api.ask(method, path, &bearer);
        assert_eq!(status, expect, "{method} {path}: {body}");
        assert!(body.contains(words), "{method} {path}: {body}");
    }
    for path in ["/files", "/files/wal_hole", "/log"] {
        assert_eq!(api.ask("GET", path, LOGIN).0, 200, "{path}");
        assert_eq!(api.ask("GET", path, "").0, 401, "{path}");
    }
}

/// What WAL the new site has may be of another cluster.
#[test]
fn a_basebackup_of_the_site_before_is_handed_out_with_that_sites_wal() {
    let api = Api::new(json!({}));
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [("PG_VERSION", "15\n"), ("global/pg_control", "c")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len().try_into().unwrap());
        header.set_mode(0o600);
        tar.append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    api.put("old/basebackup/b", &tar.into_inner().unwrap(), &[]);
    let (status, _, body) = api.ask("GET", "/main/basebackup/b/tar", "");
    assert_eq!(status, 200);
    assert!(body.contains("\nsite='old'\n"), "{body}");
    let head = "PUT /main/handout HTTP/1.1\r\nhost: h:1\r\nconnection: close\r\n\
                content-length: 2\r\n\r\n";
    let reply = thread::scope(|scope| {
        let put = scope.spawn(|| raw(api.handle.address(), head.as_bytes(), b"{}"));
        let report = api.reports.recv_timeout(Duration::from_secs(20)).unwrap();
        report.heard.unwrap().send(()).unwrap();
        put.join().unwrap()
    });
    assert!(reply.contains("\"site\": \"old\""), "{reply}");
    assert!(reply.contains("http://h:1/old/handout/tar"), "{reply}");
    let (_, body) = reply.split_once("\r\n\r\n").unwrap();
    let made: Value = serde_json::from_str(body).unwrap();
    let bearer = format!(
        "authorization: Bearer {}\r\n",
        made["token"].as_str().unwrap()
    );
    assert_eq!(api.ask("GET", "/main/handout/tar", &bearer).0, 403);
    let (status, _, body) = api.ask("GET", "/old/handout/tar", &bearer);
    assert_eq!((status, body.contains("\nsite='old'\n")), (200, true));
}
