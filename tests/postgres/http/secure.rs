//! TLS of the API: who is believed, that a new certificate is taken up, and our own tools.

use std::fs;

use serde_json::json;

use super::{Host, secured};
use crate::support::daemon::{Daemon, SITE};
use crate::support::process::{Scratch, command, run};
use crate::support::tls::Certificates;
use crate::support::{PATIENCE, wait_until};

/// `restore_command` as from another machine: its code, and what it says.
fn fetch(daemon: &Daemon, words: &[&str]) -> (i32, String) {
    let program = daemon.home().join("bin/pghoard_postgres_command");
    let mut tool = command(program, daemon.home());
    let port = daemon.port.to_string();
    tool.args(["--mode", "restore", "--site", SITE, "--port", &port]);
    tool.args(["--xlog", "000000010000000000000009", "--output", "out"]);
    tool.args(["--remote", "--retry-interval", "0.1"])
        .args(words);
    let answer = run(tool);
    (answer.status.code().unwrap(), answer.stderr)
}

#[test]
fn tools_believe_whom_they_are_told_to() {
    let scratch = Scratch::new();
    let certificates = Certificates::make(&scratch);
    let daemon = Daemon::configured(secured(&certificates), json!({ SITE: { "nodes": [] } }));
    let mut daemon = daemon.started();
    daemon.stock();
    let authority = certificates.authority.display().to_string();
    let other = certificates.wrong_name.certificate.display().to_string();
    let login = ["--username", "u", "--password", "p w"];
    let with = |words: &[&'static str], ca: &str| {
        let mut all: Vec<&str> = login.to_vec();
        all.extend(words);
        if !ca.is_empty() {
            all.extend(["--ca", ca]);
        }
        fetch(&daemon, &all)
    };
    wait_until("the daemon to answer", PATIENCE, || {
        with(&[], &authority).0 == 4
    });
    for (words, ca, code, says) in [
        (
            &["--host", "localhost"][..],
            authority.as_str(),
            4,
            "not found from archive",
        ),
        (
            &["--host", "localhost"],
            &other,
            255,
            "its certificate is not trusted",
        ),
        (&["--tls"], "", 255, "not trusted"),
        (&[], "/nowhere", 255, "certificate /nowhere: "),
        (
            &[],
            "",
            255,
            "did not answer in HTTP; hint: does it want TLS?",
        ),
    ] {
        let (found, said) = with(words, ca);
        assert_eq!(found, code, "{words:?} {ca}: {said}");
        assert!(said.contains(says), "{words:?} {ca}: {said}");
    }
    let (code, said) = fetch(&daemon, &["--ca", &authority]);
    assert!(code == 255 && said.contains("401"), "{said}");
    // By the configuration, whatever names the certificate has.
    let mut listing = daemon.tool("pghoard", &["holes", "--acknowledge", "--site", SITE]);
    listing.args(["--hole", "none", "--reason", "r"]);
    let answer = run(listing);
    assert!(
        answer.stderr.contains("the daemon answers 404"),
        "{}",
        answer.stderr
    );
    daemon.assert_alive();
}

/// The files are replaced under the running daemon; half of a pair changes nothing.
#[test]
fn a_new_certificate_is_taken_up() {
    let scratch = Scratch::new();
    let certificates = Certificates::make(&scratch);
    let pair = &certificates.server;
    let first = [&pair.certificate, &pair.key].map(|path| fs::read(path).unwrap());
    let daemon = Daemon::configured(secured(&certificates), json!({ SITE: { "nodes": [] } }));
    let mut daemon = daemon.started();
    let host = Host::new(&certificates, &daemon);
    let line = format!("$CURL -f -o /dev/null '{}'", host.url("restore-command"));
    let asks = || host.shell(&line, host.scratch.path());
    wait_until("the daemon to answer", PATIENCE, || asks().status.success());
    let put = |path, bytes: &[u8]| fs::write(path, bytes).unwrap();
    let other = &certificates.wrong_name;
    put(&pair.certificate, &fs::read(&other.certificate).unwrap());
    asks().ok();
    put(&pair.key, &fs::read(&other.key).unwrap());
    let refused = asks();
    assert!(!refused.status.success());
    assert!(refused.stderr.contains("curl: (60)"), "{}", refused.stderr);
    put(&pair.certificate, &first[0]);
    put(&pair.key, &first[1]);
    asks().ok();
    daemon.assert_alive();
}

/// Another pair, no TLS at all, TLS again: without a restart, and a pair that is none stays out.
#[test]
fn tls_changes_with_the_configuration() {
    let scratch = Scratch::new();
    let certificates = Certificates::make(&scratch);
    let daemon = Daemon::configured(secured(&certificates), json!({ SITE: { "nodes": [] } }));
    let mut daemon = daemon.started();
    let host = Host::new(&certificates, &daemon);
    let line = format!("$CURL -f -o /dev/null '{}'", host.url("restore-command"));
    let plain = line.replace("https://", "http://");
    assert_ne!(line, plain);
    let asks = |line: &str| host.shell(line, host.scratch.path());
    wait_until("the daemon to answer", PATIENCE, || {
        asks(&line).status.success()
    });
    let (own, other) = (&certificates.server, &certificates.wrong_name);
    daemon.reload(|config| {
        config["http_tls_certificate"] = json!(other.certificate);
        config["http_tls_key"] = json!(other.key);
    });
    let refused = asks(&line);
    assert!(refused.stderr.contains("curl: (60)"), "{}", refused.stderr);
    daemon.configure(|config| config["http_tls_key"] = json!(own.key));
    daemon.reread("config_refused");
    assert!(asks(&line).stderr.contains("curl: (60)"), "the pair before");
    daemon.reload(|config| {
        let config = config.as_object_mut().unwrap();
        config.remove("http_tls_certificate");
        config.remove("http_tls_key");
    });
    asks(&plain).ok();
    assert!(!asks(&line).status.success());
    daemon.reload(|config| {
        config["http_tls_certificate"] = json!(own.certificate);
        config["http_tls_key"] = json!(own.key);
    });
    asks(&line).ok();
    assert!(!asks(&plain).status.success());
    daemon.sigterm();
}

/// The other daemon is no gateway, which it says over TLS to whom it let in.
#[test]
fn a_pushgateway_is_spoken_to_over_https() {
    let scratch = Scratch::new();
    let certificates = Certificates::make(&scratch);
    let daemon = Daemon::configured(secured(&certificates), json!({ SITE: { "nodes": [] } }));
    let mut daemon = daemon.started();
    let endpoint = format!("https://u:p%20w@localhost:{}", daemon.port);
    for (ca, says) in [
        (&certificates.authority, "found 400 Invalid request"),
        (
            &certificates.wrong_name.certificate,
            "its certificate is not trusted",
        ),
    ] {
        let gateway = json!({ "pushgateway": { "endpoint": endpoint, "tls_ca": ca } });
        let pushing = Daemon::configured(gateway, json!({ SITE: { "nodes": [] } })).started();
        wait_until(says, PATIENCE, || {
            let text = fs::read_to_string(pushing.log()).unwrap_or_default();
            text.lines()
                .any(|line| line.contains("pushgateway: ") && line.contains(says))
        });
        let text = fs::read_to_string(pushing.log()).unwrap();
        assert!(!text.contains("p w") && !text.contains("p%20w"), "{text}");
    }
    daemon.assert_alive();
}
