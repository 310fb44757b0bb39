//! Whole sessions of the console on a pseudo-terminal, against a PID 1 and a daemon that are
//! played: what a person types, what they see, and what was asked and recorded meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test binary: a panic is how it reports"
)]

mod bench;
mod first;
mod restore;
mod secrets;

use bench::{Bench, Session};
use serde_json::json;

/// Nothing a dumb terminal would show as rubbish.
fn plain(session: &Session) {
    let seen = session.seen();
    let rubbish = |c: char| c.is_control() && c != '\n' && c != '\r';
    assert!(!seen.contains(rubbish), "{seen:?}");
}

#[test]
fn a_session_from_login_to_logout() {
    let bench = Bench::new();
    bench.settle(json!({ "appliance": { "console_password": "open sesame", "hostname": "b1" } }));
    bench.state(json!({}));
    let mut session = bench.session("dumb");
    session.expect("Password: ");
    session.send("open sesam");
    session.expect("wrong password; the next try is heard in 1 s");
    session.expect("Password: ");
    session.send("open sesame");
    session.expect("1 wrong tries before this one");
    session.prompt();
    for (line, expect) in [
        ("status", "PGHoard appliance: b1"),
        ("status", "Alerts: none"),
        ("", ""),
        (
            "staus",
            "error: unknown command 'staus'; hint: did you mean status?",
        ),
        (
            "help",
            "  list-basebackups Show the basebackups in the store",
        ),
        ("help restore", "Usage: restore [OPTIONS]"),
        ("help verify", "Usage: pghoard_verify [OPTIONS]"),
        ("help config set", "Usage: config set <PATH> <JSON>"),
        ("restore --to a --serve", "cannot be used with"),
        ("events -n many", "invalid value 'many'"),
        ("config show", "\"console_password\": \"***\""),
        ("config show appliance.hostname", "\"b1\""),
        ("network", "52:54:00:12:34:56"),
        ("time", "synchronised yes"),
        ("disk", "restore/"),
        ("disk remove pghoard/x", "expected restore/NAME"),
        ("disk repair", "mended as far as it could be"),
        ("update", "0.1.0        confirmed, running now"),
        ("log -n 1", "the last line"),
        ("holes", "pghoard holes: "),
    ] {
        session.send(line);
        session.expect(expect);
        session.prompt();
    }
    session.send("logout");
    assert_eq!(session.ended(), 0);
    plain(&session);
    assert!(!session.seen().contains("open sesam"), "{}", session.seen());
    assert!(bench.recorded().is_empty(), "looking is not recorded");
}

#[test]
fn three_wrong_tries_end_the_session() {
    let bench = Bench::new();
    bench.settle(json!({ "appliance": { "console_password": "open sesame" } }));
    let mut session = bench.session("dumb");
    for _ in 0..3 {
        session.expect("Password: ");
        session.send("guess");
        session.expect("wrong password");
    }
    assert_eq!(session.ended(), 1);
    assert!(!session.seen().contains("pghoard> "));
}

/// Each line as it is typed, what it says, and what becomes an event, if anything does.
const CHANGES: &[(&str, &str, &str)] = &[
    (
        "config set appliance.hostname b2",
        "the settings are in force",
        "config set: appliance.hostname",
    ),
    (
        "config set backup_sites.main.basebackup_count 9",
        "the settings are in force",
        "config set: backup_sites.main.basebackup_count",
    ),
    (
        "config set http_port many",
        "error: http_port: expected a port number",
        "",
    ),
    (
        "config set http_prot 5",
        "warning: http_prot: ",
        "config set: http_prot",
    ),
    (
        "config unset http_prot",
        "the settings are in force",
        "config unset: http_prot",
    ),
    (
        "config set refuse true",
        "error: PID 1 does not want that",
        "",
    ),
    ("config history", "1795339731251-0123456789ab.json", ""),
    (
        "config roll-back one.json",
        "the settings are in force",
        "config roll-back: one.json",
    ),
    (
        "backup now",
        "a basebackup of site 'main' is due now",
        "backup now: site main",
    ),
    ("backup now other", "error: Site 'other' not defined", ""),
    ("time sync", "synchronised yes", "time sync: "),
    ("network renew", "eth0", "network renew: "),
    (
        "daemon restart",
        "the daemon starts anew",
        "daemon restart: ",
    ),
    (
        "update try x.bundle",
        "it is written; 'reboot' tries it",
        "update try: x.bundle",
    ),
    ("update back", "boots the version before", "update back: "),
    (
        "disk remove restore/old",
        "restore/old is gone",
        "disk remove: restore/old",
    ),
    (
        "hold --backup b --reason 'a b'",
        "the daemon knows",
        "hold: --backup b --reason a b",
    ),
    ("hold --help", "Usage: pghoard_hold", ""),
    (
        "release --backup b",
        "the daemon knows",
        "release: --backup b",
    ),
];

#[test]
fn what_is_changed_is_applied_and_recorded() {
    let bench = Bench::new();
    let store = json!({ "storage_type": "local", "directory": bench.data("") });
    bench.settle(json!({ "appliance": { "hostname": "b1" },
        "backup_sites": { "main": { "object_storage": store } } }));
    for path in ["PUT /main/hold", "PUT /main/release"] {
        bench.answer(path, vec![json!({ "objects": [] })]);
    }
    let mut session = bench.session("dumb");
    session.expect("warning: this console has no password");
    session.prompt();
    for (line, expect, _) in CHANGES {
        session.send(line);
        session.expect(expect);
        session.prompt();
    }
    session.send("config password");
    session.expect("New password: ");
    session.send("correct horse");
    session.expect("Once more: ");
    session.send("correct horse");
    session.expect("the settings are in force");
    session.prompt();
    session.send("reboot");
    assert_eq!(session.ended(), 0);
    plain(&session);

    assert!(!bench.data("restore/old").exists());
    let settings = bench.settings();
    assert_eq!(settings["appliance"]["hostname"], "b2");
    assert_eq!(settings["backup_sites"]["main"]["basebackup_count"], 9);
    let kept = settings["appliance"]["console_password"].as_str().unwrap();
    assert!(kept.starts_with("$pbkdf2-sha512$"), "{kept}");
    let events = CHANGES.iter().map(|(.., event)| *event);
    let events = events.chain(["config password: ", "reboot: "]);
    let events: Vec<&str> = events.filter(|event| !event.is_empty()).collect();
    assert_eq!(bench.recorded(), events);
    let by = bench.http("/main/hold")[0]["by"].clone();
    assert!(by.as_str().unwrap().starts_with("console pty@"), "{by}");
    let asked = bench.asked("daemon");
    assert_eq!(
        asked,
        [json!({ "do": "daemon", "how": "restart", "who": "console pty" })]
    );
    let asked = bench.asked("update");
    let path = bench.data("updates/x.bundle");
    assert_eq!(
        asked,
        [json!({ "do": "update", "path": path, "who": "console pty" })]
    );
}

/// What a tool writes has to be the daemon's, and its settings are for nobody else.
#[test]
fn tools_run_as_whom_the_settings_belong_to() {
    let mut bench = Bench::new();
    let store = json!({ "storage_type": "local", "directory": bench.data("store") });
    bench.settle(json!({ "backup_sites": { "main": { "object_storage": store } } }));
    if !bench.belongs_to(100) {
        eprintln!("SKIPPED: only root can give files away");
        return;
    }
    bench.daemon_leaves();
    let mut session = bench.session("dumb");
    session.prompt();
    session.send("restore --to new");
    session.expect("FATAL: ");
    session.prompt();
    session.send("events");
    session.expect("pghoard events: ");
    session.prompt();
    let owner = std::fs::metadata(bench.data("restore")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 100);
    assert!(!session.seen().contains("ermission"), "{}", session.seen());
}

#[test]
fn what_the_daemon_does_not_hear_it_is_told_later() {
    let mut bench = Bench::new();
    bench.settle(json!({ "appliance": {} }));
    bench.daemon_leaves();
    let mut session = bench.session("dumb");
    session.prompt();
    for name in ["b2", "b3"] {
        session.send(&format!("config set appliance.hostname {name}"));
        session.expect("the daemon does not answer: it is told of this later");
        session.prompt();
    }
    assert!(bench.data("console/unsaid.jsonl").exists());
    bench.daemon_comes();
    session.send("daemon stop");
    session.expect("nothing is backed up until 'daemon start'");
    session.prompt();
    session.send("logout");
    assert_eq!(session.ended(), 0);
    assert!(!bench.data("console/unsaid.jsonl").exists());
    let recorded = bench.recorded();
    assert_eq!(recorded.len(), 3, "{recorded:?}");
    for line in &recorded[..2] {
        assert!(line.starts_with("config set: at 20"), "{line}");
        let end = "UTC, while the daemon did not answer: appliance.hostname";
        assert!(line.ends_with(end), "{line}");
    }
    assert_eq!(recorded[2], "daemon stop: ");
}

#[test]
fn a_document_is_pasted_whole_and_hidden_secrets_stay() {
    let bench = Bench::new();
    bench.settle(
        json!({ "appliance": { "hostname": "b1" }, "webserver_username": "u",
        "webserver_password": "hush hush" }),
    );
    let mut session = bench.session("dumb");
    session.prompt();
    for (document, expect) in [
        ("{ \"appliance\": {", "error: that is no JSON: "),
        (
            "{\"backup_sites\": {\"a\": {\"nodes\": [{\"password\": \"***\"}]}}}",
            "is *** and nothing",
        ),
        (
            "{\"webserver_username\": \"u\",\n\"webserver_password\": \"***\",\n\
             \"http_port\": 17000}",
            "the settings are in force",
        ),
    ] {
        session.send("config edit");
        session.expect("Paste the whole document");
        session.send(document);
        session.send(".");
        session.expect(expect);
        session.prompt();
    }
    session.send("config edit");
    session.expect("Paste the whole document");
    session.interrupt();
    session.expect("nothing was changed");
    session.prompt();
    let expect = json!({ "webserver_username": "u", "webserver_password": "hush hush",
        "http_port": 17_000 });
    assert_eq!(bench.settings(), expect);
}

#[test]
fn ctrl_c_ends_what_runs_and_ctrl_d_the_session() {
    let bench = Bench::new();
    bench.settle(json!({ "appliance": {} }));
    bench.log();
    let mut session = bench.session("dumb");
    session.prompt();
    session.send("events --follow");
    session.expect("not kept: backup one");
    session.interrupt();
    session.prompt();
    session.send("events -n 1");
    session.expect("not kept: backup two");
    session.prompt();
    assert_eq!(session.seen().matches("not kept: backup one").count(), 1);
    // An interrupt at the prompt is a new prompt.
    session.interrupt();
    session.prompt();
    session.type_in("\u{4}");
    assert_eq!(session.ended(), 0);
}

#[test]
fn a_terminal_that_can_gets_completion_and_history() {
    let bench = Bench::new();
    bench.settle(json!({ "appliance": { "hostname": "b1" } }));
    let mut session = bench.session("vt100");
    session.prompt();
    session.type_in("statu\t\r");
    session.expect("PGHoard appliance: b1");
    session.prompt();
    session.type_in("\u{1b}[A\r");
    session.expect("PGHoard appliance: b1");
    session.prompt();
    session.type_in("restore --si\tx\u{3}");
    session.expect("restore --site ");
    session.expect("x");
    session.prompt();
    session.send("logout");
    assert_eq!(session.ended(), 0);
}
