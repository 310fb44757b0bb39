//! Restores: into a directory, and handed out.

use serde_json::{Value, json};

use crate::bench::{Bench, Session};

fn bench() -> Bench {
    let bench = Bench::new();
    let store = bench.data("store");
    std::fs::create_dir(&store).unwrap();
    bench.settle(
        json!({ "http_address": "0.0.0.0", "http_allow_unauthenticated": true,
        "backup_sites": { "main": { "object_storage": { "storage_type": "local",
            "directory": store } } } }),
    );
    bench.state(json!({ "sites": { "main": { "coverage": { "windows": [{
        "from_at": "2026-11-22T00:00:00Z", "to_at": "2026-11-22T09:00:00Z", "backups": 2,
    }] } } } }));
    bench
}

fn handed(id: &str) -> Value {
    json!({ "id": id, "token": "t0ken", "site": "main", "backup": "2026-11-22_00-00_0",
        "bytes": 4096, "expires": "2026-11-23T09:00:00Z",
        "command": "printf 'header = x' t0ken | curl -f -K - | tar -x" })
}

fn state(id: &str, state: &str, sent: u64) -> Value {
    json!({ "handouts": [{ "id": id, "site": "main", "backup": "b", "state": state,
        "bytes_sent": sent, "bytes": 4096, "wal_files": 0, "expires": "2026-11-23T09:00:00Z" }] })
}

fn fetched(session: &mut Session) {
    session.expect("| curl -f -K - | tar -x");
    session.expect("nobody asked for it yet");
    session.expect("2.0 KiB of about 4.0 KiB sent");
    session.expect("sent, 4.0 KiB");
    session.prompt();
}

#[test]
fn a_restore_is_handed_out_by_flags_and_by_answers() {
    let bench = bench();
    let mut session = bench.session("dumb");
    session.prompt();
    let states = [("waiting", 0), ("sending", 2048), ("sent", 4096)];
    let states = || {
        states
            .iter()
            .map(|(name, sent)| state("7", name, *sent))
            .collect()
    };
    bench.answer("PUT /main/handout", vec![handed("7")]);
    bench.answer("GET /handouts", states());
    session.send("restore --serve --target-time '2026-11-22 08:00:00' --minutes 5");
    fetched(&mut session);

    bench.answer("GET /handouts", states());
    session.send("restore");
    session.expect("2026-11-22 00:00:00 to 2026-11-22 09:00:00 (2 basebackups)");
    session.expect("Available 'main' basebackups:");
    for (question, answer) in [
        ("latest [latest]: ", ""),
        ("empty for all there is: ", "yesterday"),
        ("'yesterday' is no time", "2026-11-25"),
        ("is in none of: 2026-11-22 00:00:00 to", "no"),
        ("empty for all there is: ", "2026-11-22 07:00"),
        ("to hand it out: ", "a/b"),
        ("expected a name of letters", "old"),
        ("restore/old is there already", "serve"),
        (
            "up to 2026-11-22 07:00, for a database host to fetch? [yes/no] ",
            "yes",
        ),
    ] {
        session.expect(question);
        session.send(answer);
    }
    fetched(&mut session);
    session.send("hand-outs");
    session.expect("main, b, until 2026-11-23 09:00:00: sent, 4.0 KiB");
    session.prompt();

    let url = bench.http("/main/handout")[0]["url"].clone();
    assert!(
        url.as_str().unwrap().starts_with("http://10.0.2.15:"),
        "{url}"
    );
    let wish = |time: &str| {
        json!({ "action": "promote", "by": "console pty", "time": time,
        "url": url })
    };
    let mut first = wish("2026-11-22 08:00:00");
    first["minutes"] = json!(5);
    let mut second = wish("2026-11-22 07:00");
    second["backup"] = json!("latest");
    assert_eq!(bench.http("/main/handout"), [first, second]);
    // The daemon records it with the token.
    assert!(bench.recorded().is_empty());
}

#[test]
fn waiting_for_a_fetch_can_be_left_and_a_broken_one_is_told() {
    let bench = bench();
    let mut session = bench.session("dumb");
    session.prompt();
    bench.answer("PUT /main/handout", vec![handed("7")]);
    bench.answer("GET /handouts", vec![state("7", "waiting", 0)]);
    session.send("restore --serve --url http://127.0.0.1:1");
    session.expect("nobody asked for it yet");
    session.interrupt();
    session.expect("it goes on without this console");
    session.prompt();
    bench.answer("GET /handouts", vec![state("7", "broken", 1024)]);
    session.send("restore --serve --url http://127.0.0.1:1");
    session.expect("BROKEN OFF after 1.0 KiB");
    session.expect("error: the connection broke off");
    session.prompt();
    assert_eq!(bench.http("/main/handout")[0]["url"], "http://127.0.0.1:1");
}

#[test]
fn a_restore_that_fails_is_recorded_from_begin_to_end_and_leaves_nothing() {
    let bench = bench();
    let mut session = bench.session("dumb");
    session.prompt();
    session.send("restore --to new");
    session.expect("FATAL: ");
    session.expect("error: restore ended with code 1");
    session.prompt();
    assert!(!bench.data("restore/new").exists());
    assert_eq!(
        bench.recorded(),
        [
            "restore: began: site main, basebackup latest up to the newest moment, to restore/new",
            "restore: failed: site main, basebackup latest up to the newest moment, to \
             restore/new: restore ended with code 1",
        ]
    );
    // Asked and not wanted.
    session.send("restore");
    for (question, answer) in [
        ("latest [latest]: ", ""),
        ("empty for all there is: ", ""),
        ("to hand it out: ", "other"),
        (
            "Restore site 'main' up to the newest moment, into restore/other? [yes/no] ",
            "no",
        ),
        ("nothing was restored", ""),
    ] {
        session.expect(question);
        session.send(answer);
    }
    assert_eq!(bench.recorded().len(), 2);
}
