//! The support bundle, which leaves the machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;

use serde_json::json;

use crate::bench::Bench;

#[test]
fn a_support_bundle_has_everything_but_secrets() {
    let bench = Bench::new();
    bench.settle(json!({
        "appliance": { "hostname": "b1", "console_password": "" },
        "webserver_username": "u", "webserver_password": "sentinel-http",
        "backup_sites": { "main": {
            "nodes": ["host=h password=sentinel-pg", "postgres://u:sentinel-url@h/d"],
            "object_storage": { "storage_type": "s3", "bucket_name": "b", "region": "r",
                "aws_access_key_id": "id", "aws_secret_access_key": "sentinel-s3" },
        } },
    }));
    bench.log();
    // Whoever wrote them there, and however.
    bench.state(json!({ "alerts": { "x": { "entries": [{ "what": "login sentinel-pg" }] } } }));
    let log = "tried sentinel-http, sentinel-url and 'sentinel-s3'\nharmless\n";
    fs::write(bench.data("log/daemon.log"), log).unwrap();
    let mut session = bench.session("dumb");
    session.prompt();
    session.send("support-bundle");
    session.expect("passwords and keys are not in it");
    session.prompt();

    let found: Vec<_> = fs::read_dir(bench.data("support")).unwrap().collect();
    let [Ok(found)] = &found[..] else {
        panic!("{found:?}");
    };
    let mut texts = BTreeMap::new();
    let mut tar = tar::Archive::new(File::open(found.path()).unwrap());
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        texts.insert(name, text);
    }
    for (name, text) in &texts {
        assert!(!text.contains("sentinel"), "{name}: {text}");
    }
    for (name, expect) in [
        ("events.txt", "backup two"),
        ("log/daemon.log", "harmless"),
        ("page.txt", "PGHoard appliance: b1"),
        ("settings-history.json", "0123456789ab"),
        ("settings.json", "\"webserver_password\": \"***\""),
        ("slots.json", "confirmed"),
        ("state.json", "login ***"),
        ("status.json", "52:54:00:12:34:56"),
    ] {
        let text = &texts[&format!("pghoard-support/{name}")];
        assert!(text.contains(expect), "{name}: {text}");
    }
    assert_eq!(texts.len(), 8);
    let name = found.file_name().into_string().unwrap();
    assert_eq!(bench.recorded(), [format!("support-bundle: {name}")]);
}
