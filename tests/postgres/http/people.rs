//! What a person and a monitor do over HTTP, against a daemon as it runs.

use std::fs;

use serde_json::json;

use super::{Host, secured};
use crate::support::daemon::{Daemon, SITE};
use crate::support::process::{Scratch, run};
use crate::support::tls::Certificates;
use crate::support::{PATIENCE, wait_until};

/// Whoever sets the clock says that it is not set; a person says that it is right all the same.
#[test]
fn s76_a_clock_that_is_not_synchronised_is_told_until_a_person_vouches_for_it() {
    let scratch = Scratch::new();
    let certificates = Certificates::make(&scratch);
    let sites = json!({ SITE: { "nodes": [] } });
    let mut daemon = Daemon::configured(secured(&certificates), sites);
    let said = r#"{ "synchronised": false, "why": "no time server answers" }"#;
    let clock = scratch.file("clock.json", said);
    daemon
        .environment
        .push(("PGHOARD_CLOCK_FILE", clock.display().to_string()));
    let mut daemon = daemon.started();
    daemon.wait_alert("clock_doubtful");
    let why = "the clock is not synchronised: no time server answers";
    let told = daemon.alert("clock_doubtful").unwrap();
    assert!(told.contains(why), "{told}");
    wait_until("the site to say why", PATIENCE, || {
        daemon
            .site()
            .is_some_and(|site| site["clock_doubtful"]["why"] == why)
    });
    let list = run(daemon.tool("pghoard", &["alerts"]));
    assert_eq!(list.status.code(), Some(1));
    assert!(list.stdout.contains("clock_doubtful"), "{}", list.stdout);

    let words = [
        "alerts",
        "acknowledge",
        "clock_doubtful",
        "--reason",
        "a radio clock",
    ];
    let by = ["--by", "anna"];
    run(daemon.tool("pghoard", &[&words[..], &by].concat())).ok();
    wait_until("the alert to go", PATIENCE, || {
        daemon.assert_alive();
        let told = daemon.status();
        let told = told.is_none_or(|told| told["alerts"]["clock_doubtful"].is_object());
        !told && daemon.alert("clock_doubtful").is_none()
    });
    let expect = json!({ "who": "anna", "command": "alerts acknowledge clock_doubtful",
        "detail": "a radio clock" });
    daemon.wait_event("who did it", "operated", |body| *body == expect);
    let again = run(daemon.tool("pghoard", &words));
    assert_eq!(again.status.code(), Some(3));
    assert!(
        again.stderr.contains("no alert 'clock_doubtful' stands"),
        "{}",
        again.stderr
    );
    // Another file, another word: it is lost again.
    fs::write(&clock, r#"{ "synchronised": true, "why": "" }"#).unwrap();
    wait_until("the clock to be set", PATIENCE, || {
        let log = fs::read_to_string(daemon.log()).unwrap();
        log.contains("the clock is synchronised")
    });
    fs::write(&clock, said).unwrap();
    daemon.wait_alert("clock_doubtful");

    let host = Host::new(&certificates, &daemon);
    let operator = format!(
        "$CURL -X PUT -d '{{\"who\": \"anna\", \"command\": \"config edit\"}}' \
         https://localhost:{}/operator",
        daemon.port
    );
    let answer = host.shell(&operator, host.scratch.path()).ok();
    assert!(answer.contains("\"recorded\": true"), "{answer}");
    let text = run(daemon.tool("pghoard", &["events", "--kind", "operated"])).ok();
    assert!(text.contains("anna: config edit"), "{text}");
    daemon.verify_events();
}
