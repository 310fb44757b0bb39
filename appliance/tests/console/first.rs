//! The first boot's questions.

use serde_json::json;

use crate::bench::Bench;

/// Each question as it is asked, after what was said before it, and the answer: what is typed
/// before a question may be seen.
const ANSWERS: &[(&str, &str)] = &[
    ("Hostname [pghoard]: ", "not a name"),
    (
        "expected letters, digits, hyphens and dots ... Hostname",
        "",
    ),
    ("Network, dhcp or static [dhcp]: ", "static"),
    ("Interface (eth0) [eth0]: ", ""),
    ("Address with its prefix, as 10.0.0.5/24: ", "10.0.0.5"),
    (
        "expected an address and a prefix ... Address",
        "10.0.0.5/24",
    ),
    ("Gateway, or empty for none: ", "10.0.0.1"),
    (
        "Name servers, with commas between them, or empty: ",
        "10.0.0.2, 10.0.0.3",
    ),
    (
        "Time server, or empty for those that DHCP names: ",
        "10.0.0.2",
    ),
    ("Name of the site, one a database cluster [main]: ", ""),
    ("Host of the PostgreSQL server: ", ""),
    ("expected one word ... Host of", "db.example"),
    ("Its port [5432]: ", "5433"),
    ("User with the right to replicate [pghoard]: ", ""),
    ("Password of that user, or empty for none: ", "sentinel-pg"),
    ("verify-full [prefer]: ", ""),
    ("Replication slot [pghoard]: ", ""),
    (
        "Where to keep backups: local, s3, azure, google, swift [local]: ",
        "s3",
    ),
    ("Bucket: ", "bucket"),
    ("Region [us-east-1]: ", ""),
    ("Host of the service, or empty for AWS: ", "10.0.0.9"),
    ("Its port: ", "9000"),
    ("Does it speak TLS, yes or no [yes]: ", "no"),
    ("Is its certificate checked, yes or no [yes]: ", "no"),
    ("Access key: ", "id"),
    ("Secret key: ", "sentinel-s3"),
    ("Prefix of every object, or empty: ", ""),
    ("or none [create]: ", "none"),
    ("empty for no other host: ", "sentinel-http"),
    ("Password of this console, or empty for none: ", "short"),
    (
        "at least 8 characters ... Password of this console, or empty for none: ",
        "sentinel-console",
    ),
    ("Once more: ", "sentinel-consolf"),
    (
        "the two differ ... Password of this console, or empty for none: ",
        "sentinel-console",
    ),
    ("Once more: ", "sentinel-console"),
];

#[test]
fn a_machine_without_settings_asks_for_them() {
    let bench = Bench::new();
    let mut session = bench.session("dumb");
    session.expect("this console has no password");
    for (question, answer) in ANSWERS {
        question
            .split(" ... ")
            .for_each(|part| session.expect(part));
        session.send(answer);
    }
    session.expect("\"password\": \"***\"");
    session.expect("Put these settings in force? [yes/no] ");
    session.send("yes");
    session.expect("the settings are in force");
    session.prompt();
    session.send("logout");
    assert_eq!(session.ended(), 0);
    assert!(!session.seen().contains("sentinel"), "{}", session.seen());

    let mut settings = bench.settings();
    let kept = settings["appliance"]["console_password"].take();
    assert!(kept.as_str().unwrap().starts_with("$pbkdf2-sha512$"));
    assert_eq!(
        settings,
        json!({
            "appliance": {
                "hostname": "pghoard", "console_password": null,
                "network": {
                    "interfaces": { "eth0": { "addresses": ["10.0.0.5/24"],
                        "gateways": ["10.0.0.1"] } },
                    "dns": ["10.0.0.2", "10.0.0.3"],
                },
                "time": { "servers": ["10.0.0.2"] },
            },
            "http_address": "0.0.0.0",
            "webserver_username": "pghoard",
            "webserver_password": "sentinel-http",
            "backup_sites": { "main": {
                "nodes": [{ "host": "db.example", "port": 5433, "user": "pghoard",
                    "password": "sentinel-pg", "sslmode": "prefer", "slot": "pghoard" }],
                "object_storage": { "storage_type": "s3", "bucket_name": "bucket",
                    "region": "us-east-1", "host": "10.0.0.9", "port": 9000, "is_secure": false,
                    "is_verify_tls": false, "aws_access_key_id": "id",
                    "aws_secret_access_key": "sentinel-s3" },
            } },
        })
    );
    assert_eq!(bench.recorded(), ["setup: site main"]);
}

#[test]
fn the_questions_can_be_broken_off_and_asked_again() {
    let bench = Bench::new();
    let mut session = bench.session("dumb");
    session.expect("Hostname [pghoard]: ");
    session.send("b7");
    session.expect("Network");
    session.interrupt();
    session.expect("broken off; nothing was changed");
    session.prompt();
    assert!(!bench.data("settings/pghoard.json").exists());
    session.send("config show");
    session.expect("error: there are no settings yet");
    session.prompt();

    session.send("setup");
    let store = bench.data("store");
    let store = store.to_str().unwrap();
    for (question, answer) in [
        ("Hostname", "b8"),
        ("Network", ""),
        ("Time server", ""),
        ("Name of the site", ""),
        ("Host of", "db"),
        ("port", ""),
        ("User", ""),
        ("Password", ""),
        ("TLS", ""),
        ("slot", ""),
        ("Where to keep backups", ""),
        ("Directory of the backups", store),
        ("Encryption key", "create"),
        ("Name of the key", "k1"),
        ("Password for the HTTP API", ""),
        ("Password of this console", ""),
        ("Put these settings in force?", "yes"),
    ] {
        session.expect(question);
        session.send(answer);
    }
    session.expect("Recovery key 'k1' of site 'main'");
    session.expect("-----BEGIN PRIVATE KEY-----");
    session.expect("-----END PRIVATE KEY-----");
    session.prompt();
    assert!(bench.data("store").is_dir());
    let site = &bench.settings()["backup_sites"]["main"];
    assert_eq!(site["encryption_key_id"], "k1");
    assert!(site["encryption_keys"]["k1"]["private"].is_string());
    assert!(bench.settings().get("http_address").is_none());

    assert_eq!(bench.recorded(), ["setup: site main"]);
}

#[test]
fn a_key_that_was_kept_comes_back() {
    let bench = Bench::new();
    let (private, public) = pghoard::codec::keys::generate(2048).unwrap();
    bench.settle(
        json!({ "backup_sites": { "main": { "encryption_key_id": "k1",
        "encryption_keys": { "k1": { "public": public } } } } }),
    );
    let mut session = bench.session("dumb");
    session.prompt();
    for (line, expect) in [
        (
            "keys",
            "main: k1, encrypts new backups, NO PRIVATE KEY HERE",
        ),
        ("keys recovery", "error: the private key is not here"),
        ("keys export", "-----END PUBLIC KEY-----"),
    ] {
        session.send(line);
        session.expect(expect);
        session.prompt();
    }
    session.send("keys import --key-id k1");
    session.expect("Paste the key");
    session.send(private.trim_end());
    session.expect("in force");
    session.prompt();
    session.send("keys recovery");
    session.expect("Show it? [yes/no] ");
    session.send("yes");
    session.expect("Recovery key 'k1' of site 'main'");
    session.expect("-----END PRIVATE KEY-----");
    session.prompt();
    session.send("keys create --key-id k1");
    session.expect("error: site 'main' has a key 'k1' already");
    session.prompt();
    let site = &bench.settings()["backup_sites"]["main"];
    assert_eq!(site["encryption_keys"]["k1"]["private"], private.as_str());
    let events = [
        "keys import: site main, key k1",
        "keys recovery: shown: site main, key k1",
    ];
    assert_eq!(bench.recorded(), events);
}

#[test]
fn settings_come_from_a_drive() {
    let bench = Bench::new();
    let mut session = bench.session("dumb");
    session.expect("Hostname");
    session.type_in("\u{4}");
    session.expect("broken off");
    session.prompt();
    session.send("config import");
    session.expect("from the drive");
    session.expect("Put these settings in force? [yes/no] ");
    session.send("yes");
    session.expect("in force");
    session.prompt();
    assert_eq!(bench.settings()["appliance"]["hostname"], "from the drive");
    assert_eq!(bench.recorded(), ["config import: from the drive"]);
}
