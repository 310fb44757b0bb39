//! Encryption is turned on for a site that has objects in the clear, then its key is changed.

use serde_json::{Value, json};

use super::{active, configure, restored, segment, server, wait_backups};
use crate::support::daemon::{Daemon, SITE};
use crate::support::postgres::{Server, install};
use crate::support::process::run;

/// A new key from now on, then another basebackup and a segment after it.
fn change_key(daemon: &mut Daemon, server: &Server, id: &str, backups: usize) -> String {
    daemon.sigterm();
    let words = ["--site", SITE, "--key-id", id, "--bits", "2048"];
    run(daemon.tool("pghoard_create_keys", &words)).ok();
    daemon.up();
    daemon.ask_for_backup(SITE);
    let names = wait_backups(daemon, SITE, backups);
    let name = segment(daemon, server, SITE);
    assert_eq!(
        metadata(daemon, &format!("xlog/{name}"))["encryption-key-id"],
        id
    );
    names.last().unwrap().clone()
}

fn metadata(daemon: &Daemon, key: &str) -> Value {
    let path = daemon.store().join(format!("{SITE}/{key}.metadata"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn key(backup: &str) -> String {
    format!("{SITE}/basebackup/{backup}.00000000.pghoard")
}

/// One recovery reads what was written in the clear, under the first key and under the second.
/// Without a private key its part cannot be read, and the error names the key.
#[test]
fn s65_what_was_written_in_the_clear_and_under_every_key_is_restored() {
    let Some(install) = install(15) else { return };
    let server = server(install);
    let mut site = active(&server);
    site["basebackup_count"] = json!(9);
    let mut daemon = Daemon::configured(json!({}), json!({ SITE: site })).started();
    let clear = wait_backups(&mut daemon, SITE, 1).remove(0);
    let name = segment(&mut daemon, &server, SITE);
    let id = metadata(&daemon, &format!("xlog/{name}"))["encryption-key-id"].clone();
    assert!(id.is_null(), "{id}");
    let first = change_key(&mut daemon, &server, "key-a", 2);
    let second = change_key(&mut daemon, &server, "key-b", 3);

    for backup in [&clear, &first, &second] {
        let restored = restored(&daemon, install, SITE, &["--basebackup", &key(backup)]);
        assert_eq!(restored.one("select count(*) from rows"), "3", "{backup}");
    }
    let verified = run(daemon.tool("pghoard", &["verify", "--all"]));
    assert_eq!(verified.status.code(), Some(0), "{}", verified.stdout);

    configure(&daemon, |config| {
        let keys = &mut config["backup_sites"][SITE]["encryption_keys"];
        keys["key-a"].as_object_mut().unwrap().remove("private");
    });
    let target = Server::empty(install);
    let answer = daemon.restore_into(&target.data, &["--basebackup", &key(&first)]);
    assert!(!answer.status.success());
    let said = format!("{}{}", answer.stdout, answer.stderr);
    assert!(said.contains("key-a"), "{said}");
    // What was written under the other key is read all the same.
    let restored = restored(&daemon, install, SITE, &["--basebackup", &key(&second)]);
    assert_eq!(restored.one("select count(*) from rows"), "3");
    let wal = run(daemon.tool("pghoard", &["verify", "--all"]));
    assert_eq!(wal.status.code(), Some(3), "{}{}", wal.stdout, wal.stderr);
    daemon.assert_alive();
}
