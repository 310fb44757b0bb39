//! A host that has only curl and tar gets a running server back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Host, secured};
use crate::support::daemon::{Daemon, SITE, node};
use crate::support::postgres::{Options, Server, install};
use crate::support::process::Scratch;
use crate::support::tls::Certificates;
use crate::support::{PATIENCE, wait_until};

/// Rows after the backup, a tablespace, TLS and a password; then the server is lost.
#[test]
fn s50_curl_and_tar_bring_a_server_back() {
    for install in [12, 15, 18].into_iter().filter_map(install) {
        let scratch = Scratch::new();
        let certificates = Certificates::make(&scratch);
        let mut server = Server::start(install, &Options::default());
        let space = server.folder("space");
        server.sql("create table rows (n int)");
        server.sql(&format!(
            "create tablespace ts location '{}'",
            space.display()
        ));
        server.sql("create table far tablespace ts as select generate_series(1, 40000) as n");
        let site = json!({ "nodes": [node(&server)], "active_backup_mode": "walreceiver" });
        let mut daemon =
            Daemon::configured(secured(&certificates), json!({ SITE: site })).started();
        daemon.wait_backups(1);
        for number in 0..3 {
            server.sql("insert into rows select generate_series(1, 1000)");
            if number < 2 {
                server.sql("select pg_switch_wal()");
            }
        }
        daemon.wait_caught_up(&server);
        server.kill9();

        let host = Host::new(&certificates, &daemon);
        let mut new = Server::empty(install);
        let moved = new.folder("moved");
        let tar = host.url("basebackup/latest/tar");
        let told = host.shell(&format!("$CURL '{tar}'"), new.home()).ok();
        assert!(told.contains("tablespace 'ts' (it was at "), "{told}");
        assert!(
            told.contains("hint: say tablespace=ts=/DIRECTORY"),
            "{told}"
        );

        let (netrc, ca) = (host.scratch.join(".netrc"), &host.authority);
        let query = format!(
            "tablespace=ts={}&netrc={}&cacert={}",
            moved.display(),
            netrc.display(),
            ca.display()
        );
        let line = format!("mkdir data && $CURL -f '{tar}?{query}' | tar -x -P -C data");
        host.shell(&line, new.home()).ok();
        let auto = fs::read_to_string(new.data.join("postgresql.auto.conf")).unwrap();
        assert!(!auto.contains("p w"), "{auto}");
        new.move_in();
        new.up();
        new.wait_primary();
        assert_eq!(new.one("select count(*) from rows"), "3000");
        assert_eq!(new.one("select sum(n) from far"), "800020000");
        let place =
            new.one("select pg_tablespace_location(oid) from pg_tablespace where oid > 9999");
        assert_eq!(PathBuf::from(place), moved);
    }
}

/// To a point before a mistake, by the name of a backup.
#[test]
fn a_tar_leads_to_a_target() {
    let Some(install) = install(15) else { return };
    let scratch = Scratch::new();
    let certificates = Certificates::make(&scratch);
    let server = Server::start(install, &Options::default());
    let site = json!({ "nodes": [node(&server)], "active_backup_mode": "walreceiver" });
    let mut daemon = Daemon::configured(secured(&certificates), json!({ SITE: site })).started();
    daemon.wait_backups(1);
    server.sql("create table rows as select generate_series(1, 10) as n");
    server.sql("select pg_create_restore_point('before')");
    server.sql("drop table rows");
    daemon.wait_caught_up(&server);
    let host = Host::new(&certificates, &daemon);
    let name = daemon.site().unwrap()["backups"][0]["name"].clone();
    let name = name.as_str().unwrap().to_owned();
    for (path, status) in [
        ("basebackup/nobody/tar".to_owned(), "404"),
        (format!("basebackup/{name}/tar?lsn=0/10"), "404"),
        (format!("basebackup/{name}/tar?timeline=7"), "409"),
        (format!("basebackup/{name}/tar?target=x"), "400"),
    ] {
        let line = format!(
            "$CURL -o /dev/null -w '%{{http_code}}' '{}'",
            host.url(&path)
        );
        assert_eq!(
            host.shell(&line, host.scratch.path()).ok(),
            status,
            "{path}"
        );
    }
    let mut new = Server::empty(install);
    let query = format!(
        "name=before&action=promote&cacert={}&netrc={}",
        host.authority.display(),
        host.scratch.join(".netrc").display()
    );
    let tar = host.url(&format!("basebackup/{name}/tar?{query}"));
    let line = format!("mkdir -m 700 data && $CURL -f '{tar}' | tar -x -C data");
    host.shell(&line, new.home()).ok();
    new.move_in();
    new.up();
    new.wait_primary();
    assert_eq!(new.one("select count(*) from rows"), "10");

    // A part is damaged: curl says so, and what came does not start.
    damage(&daemon);
    let mut broken = Server::empty(install);
    let line = format!("mkdir -m 700 data && $CURL -f '{tar}' | tar -x -C data");
    let answer = host.shell(&line, broken.home());
    assert!(!answer.status.success(), "{}", answer.stdout);
    assert!(answer.stderr.contains("curl: (18)"), "{}", answer.stderr);
    assert!(broken.data.join("PG_VERSION").exists() || answer.stderr.contains("tar: "));
    assert!(!broken.data.join("global/pg_control").exists());
    if broken.data.join("postgresql.conf").exists() {
        let log = broken.up_and_down(PATIENCE);
        assert!(log.contains("could not find the database system"), "{log}");
    }
    daemon.assert_alive();
}

/// The host is given no login: a token, a line to paste, and a point before a mistake.
#[test]
fn s50_a_token_alone_brings_a_server_back_once() {
    let Some(install) = install(15) else { return };
    let scratch = Scratch::new();
    let certificates = Certificates::make(&scratch);
    let mut server = Server::start(install, &Options::default());
    let site = json!({ "nodes": [node(&server)], "active_backup_mode": "walreceiver" });
    let mut daemon = Daemon::configured(secured(&certificates), json!({ SITE: site })).started();
    daemon.wait_backups(1);
    server.sql("create table rows as select generate_series(1, 10) as n");
    server.sql("select pg_create_restore_point('before')");
    server.sql("drop table rows");
    daemon.wait_caught_up(&server);
    server.kill9();

    let host = Host::new(&certificates, &daemon);
    let origin = format!("https://localhost:{}", daemon.port);
    let wish = json!({ "name": "before", "action": "promote", "url": origin,
        "cacert": host.authority, "by": "console ttyS0" });
    let put = format!("$CURL -f -X PUT -d '{wish}' '{}'", host.url("handout"));
    let made = host.shell(&put, host.scratch.path()).ok();
    let made: Value = serde_json::from_str(&made).unwrap();
    let (token, command) = (
        made["token"].as_str().unwrap(),
        made["command"].as_str().unwrap(),
    );
    let mut new = Server::empty(install);
    let line = format!("mkdir -m 700 data && cd data && {command}");
    host.shell(&line, new.home()).ok();
    let script = new.data.join("pghoard_restore_command.sh");
    let text = fs::read_to_string(&script).unwrap();
    assert!(text.contains(token) && !text.contains("p w"), "{text}");
    assert_eq!(
        fs::metadata(&script).unwrap().permissions().mode() & 0o77,
        0
    );
    new.move_in();
    new.up();
    new.wait_primary();
    assert_eq!(new.one("select count(*) from rows"), "10");

    let again = host.shell(command, &host.scratch.folder("again"));
    assert!(again.stderr.contains("error: 410"), "{}", again.stderr);
    let look = format!("$CURL -f '{origin}/handouts'");
    let list = host.shell(&look, host.scratch.path()).ok();
    let list: Value = serde_json::from_str(&list).unwrap();
    let live = &list["handouts"][0];
    assert_eq!((&live["state"], &live["id"]), (&json!("sent"), &made["id"]));
    assert!(
        live["bytes_sent"].as_u64() > live["bytes"].as_u64(),
        "{live}"
    );
    assert!(live["wal_files"].as_u64() > Some(0), "{live}");
    assert!(!list.to_string().contains(token));
    let log = fs::read_to_string(daemon.log()).unwrap();
    assert!(!log.contains(token), "{log}");
    daemon.assert_alive();
}

/// Turns bits in the middle of the largest part.
fn damage(daemon: &Daemon) {
    let folder = daemon.store().join(SITE).join("basebackup_chunk");
    let folder = fs::read_dir(folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let items = fs::read_dir(folder)
        .unwrap()
        .map(|item| item.unwrap().path());
    let part = items.max_by_key(|path| fs::metadata(path).unwrap().len());
    let part = part.unwrap();
    let mut bytes = fs::read(&part).unwrap();
    let middle = bytes.len() * 2 / 3;
    bytes[middle..middle + 64]
        .iter_mut()
        .for_each(|byte| *byte ^= 0xFF);
    fs::write(&part, bytes).unwrap();
}

/// 1 for a confirmed absence and for nothing else.
#[test]
fn s40_the_script_says_absent_only_when_it_is_certain() {
    let scratch = Scratch::new();
    let certificates = Certificates::make(&scratch);
    let daemon = Daemon::configured(secured(&certificates), json!({ SITE: { "nodes": [] } }));
    let mut daemon = daemon.started();
    let host = Host::new(&certificates, &daemon);
    let netrc = host.scratch.join(".netrc");
    let query = format!(
        "cacert={}&netrc={}",
        host.authority.display(),
        netrc.display()
    );
    let get = format!(
        "$CURL -f -o script.sh '{}?{query}'",
        host.url("restore-command")
    );
    let home = host.scratch.path();
    wait_until("the script", PATIENCE, || {
        host.shell(&get, home).status.success()
    });
    daemon.stock();
    let history = host.scratch.folder("history");
    fs::write(history.join("00000002.history"), "1\t0/300000\tx\n").unwrap();
    let wrong = host
        .scratch
        .file("wrong", "machine localhost login u password x\n");
    let (name, gone) = ("00000002.history", "000000010000000000000009");
    let other = format!("PGHOARD_NETRC={} ", wrong.display());
    let stranger = "PGHOARD_URL=https://localhost:1 ";
    let unsafe_ = "PGHOARD_CACERT=/etc/hostname ";
    for (before, words, code) in [
        ("", format!("{gone} out"), 1),
        ("", format!("{name} out"), 1),
        ("", String::new(), 255),
        ("", gone.to_owned(), 255),
        ("", "nonsense out".to_owned(), 255),
        (&other, format!("{gone} out"), 255),
        (stranger, format!("{gone} out"), 255),
        (unsafe_, format!("{gone} out"), 255),
        ("PATH=/nowhere ", format!("{gone} out"), 255),
        ("", format!("{gone} /nowhere/out"), 255),
        ("touch standby.signal; ", format!("{gone} out"), 1),
        (
            &format!("touch standby.signal; {other}"),
            format!("{gone} out"),
            1,
        ),
    ] {
        let line = format!("rm -f standby.signal; {before}/bin/sh script.sh {words}");
        let answer = host.shell(&line, home);
        assert_eq!(
            answer.status.code(),
            Some(code),
            "{line}: {}",
            answer.stderr
        );
        assert!(!home.join("out").exists());
    }
    let left = fs::read_dir(home)
        .unwrap()
        .map(|item| item.unwrap().file_name());
    let left: Vec<_> = left
        .filter(|name| name.to_string_lossy().contains("pghoard-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    daemon.assert_alive();
}
