//! `pghoard check` at real servers: a healthy set-up is well, with a daemon and without; of one
//! broken thing exactly that point fails, and says what to do. Nothing is left behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pghoard::codec::keys::generate;
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, SITE, node};
use crate::support::postgres::{Identity, Install, Options, Server, install, majors};
use crate::support::process::{Process, command, run};
use crate::support::{PATIENCE, wait_until};

/// What README's quick start asks for, and roles that lack one part of it each.
const HBA: [&str; 6] = [
    "host replication backup 127.0.0.1/32 scram-sha-256",
    "host postgres backup 127.0.0.1/32 scram-sha-256",
    "host replication outside 127.0.0.1/32 reject",
    "host postgres outside 127.0.0.1/32 trust",
    "host replication inside 127.0.0.1/32 trust",
    "host postgres inside 127.0.0.1/32 reject",
];

fn server(install: &'static Install, conf: &[&str]) -> Server {
    let options = Options {
        conf,
        hba: &HBA,
        ..Options::default()
    };
    let server = Server::start(install, &options);
    server.sql(
        "set password_encryption = 'scram-sha-256'; \
        create role backup login replication password 'right'",
    );
    server.sql("grant pg_read_all_settings to backup");
    server.sql("grant execute on function pg_switch_wal() to backup");
    server
}

/// As README's quick start has it.
fn quick(server: &Server) -> Value {
    json!({ "host": "127.0.0.1", "port": server.port, "user": "backup", "password": "right",
        "dbname": "postgres", "slot": "pghoard" })
}

/// A site over this node that needs little room.
fn site(node: Value) -> Value {
    json!({ "nodes": [node], "basebackup_chunk_size": 1 << 20 })
}

fn configured(site: Value) -> Daemon {
    Daemon::configured(json!({}), json!({ SITE: site }))
}

struct Checked {
    code: Option<i32>,
    points: Vec<Value>,
}

fn check(daemon: &Daemon) -> Checked {
    let answer = run(daemon.tool("pghoard", &["check", "--json"]));
    let json: Value = serde_json::from_str(&answer.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}{}", answer.stdout, answer.stderr));
    Checked {
        code: answer.status.code(),
        points: json["points"].as_array().unwrap().clone(),
    }
}

impl Checked {
    fn with(&self, outcome: &str) -> Vec<&str> {
        let points = self
            .points
            .iter()
            .filter(|point| point["outcome"] == outcome);
        points
            .map(|point| point["point"].as_str().unwrap())
            .collect()
    }

    fn cure(&self, name: &str) -> String {
        let point = self.points.iter().find(|point| point["point"] == name);
        point.unwrap()["cure"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn fails(&self, points: &[&str], cure: &str) {
        assert_eq!(self.with("failed"), points, "{:#?}", self.points);
        assert_eq!(self.code, Some(1));
        let told = self.cure(points[0]);
        assert!(told.contains(cure), "'{told}' lacks '{cure}'");
    }
}

/// Every file and folder below.
fn tree(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
        }
        found.insert(path);
    }
    found
}

#[test]
fn a_healthy_set_up_is_well_with_a_daemon_and_without() {
    for install in majors() {
        let server = server(install, &[]);
        let mut daemon = configured(site(quick(&server)));
        let words = ["--site", SITE, "--key-id", "k", "--bits", "2048"];
        run(daemon.tool("pghoard_create_keys", &words)).ok();
        let before = tree(daemon.home());
        let checked = check(&daemon);
        assert_eq!(
            checked.with("failed"),
            Vec::<&str>::new(),
            "{:#?}",
            checked.points
        );
        assert_eq!(
            checked.with("warning"),
            ["segment"],
            "{:#?}",
            checked.points
        );
        assert!(checked.cure("segment").contains("start the daemon"));
        assert_eq!(checked.code, Some(0));
        assert_eq!(tree(daemon.home()), before);
        assert!(
            server
                .sql("select slot_name from pg_replication_slots")
                .is_empty()
        );

        daemon.up();
        daemon.wait_backups(1);
        let slot = "select restart_lsn <= pg_current_wal_lsn() from pg_replication_slots \
            where slot_name = 'pghoard' and active";
        wait_until("the stream", PATIENCE, || server.sql(slot) == ["t"]);
        let checked = check(&daemon);
        assert_eq!(
            checked.with("failed"),
            Vec::<&str>::new(),
            "{:#?}",
            checked.points
        );
        assert_eq!(
            checked.with("warning"),
            Vec::<&str>::new(),
            "{:#?}",
            checked.points
        );
        let last = checked.points.last().unwrap();
        assert_eq!(last["point"], "segment");
        assert!(
            last["text"]
                .as_str()
                .unwrap()
                .contains("fetched and verified"),
            "{last}"
        );
        assert!(!daemon.store().join(SITE).join("check").exists());
        daemon.assert_alive();
        daemon.verify_events();

        let text = run(daemon.tool("pghoard", &["check"])).ok();
        assert!(
            text.ends_with(" points\n") && text.contains("\nAll is well: "),
            "{text}"
        );
        let wide = text.lines().filter(|line| line.len() > 80);
        let wide: Vec<&str> = wide.filter(|line| line.contains("to do")).collect();
        assert!(wide.is_empty(), "{wide:?}");
    }
}

#[test]
fn the_step_that_a_server_refuses_is_told() {
    let Some(install) = install(15) else { return };
    // No commit of this test waits for a standby.
    let conf = [
        "synchronous_standby_names = 'other, \"pghoard\"'",
        "synchronous_commit = local",
    ];
    let mut server = server(install, &conf);
    server.sql(
        "create role outside login replication; \
        create role inside login replication; create role mere login",
    );
    let with = |key: &str, value: &str| {
        let mut node = quick(&server);
        node[key] = json!(value);
        check(&configured(site(node)))
    };
    let sync = "synchronous";
    with("password", "wrong").fails(&["login"], "correct the password of 'backup'");
    with("user", "outside").fails(&["replication"], "hostssl replication outside");
    with("user", "inside").fails(&["queries"], "hostssl postgres inside");
    with("user", "mere").fails(&["replication"], "alter role mere replication");
    with("dbname", "none").fails(&["queries"], "\"dbname\": \"postgres\"");
    with("sslmode", "require").fails(&["tls"], "set ssl=on there");
    with("slot", "pghoard").fails(&[sync], "\"ack\": \"spooled\"");
    server.stop();
    check(&configured(site(quick(&server)))).fails(&["reachable"], "start the server");
}

#[test]
fn settings_of_a_server_that_do_not_do_are_told() {
    for install in [12, 15].into_iter().filter_map(install) {
        let minimal = server(install, &["wal_level=minimal", "max_wal_senders=0"]);
        let both = ["max_wal_senders", "wal_level"];
        check(&configured(site(quick(&minimal)))).fails(&both, "raise max_wal_senders");

        let few = server(install, &["max_replication_slots=1", "max_wal_senders=2"]);
        few.sql("select pg_create_physical_replication_slot('other')");
        let checked = check(&configured(site(quick(&few))));
        checked.fails(&["max_wal_senders", "slot"], "set max_wal_senders = 3");
        assert!(checked.cure("slot").contains("raise max_replication_slots"));

        let mut archived = site(quick(&few));
        archived["active_backup_mode"] = json!("archive_command");
        archived["pg_data_directory"] = json!("/nowhere");
        let checked = check(&configured(archived));
        checked.fails(&["max_wal_senders", "archiving", "data_directory"], "");
        assert!(
            checked
                .cure("archiving")
                .contains("--mode archive --site main")
        );
    }
}

#[test]
fn what_is_wrong_here_is_told() {
    let Some(install) = install(15) else { return };
    let server = server(install, &[]);
    let look = |more: Value, break_it: &dyn Fn(&Daemon)| {
        let mut site = site(quick(&server));
        for (key, value) in more.as_object().unwrap() {
            site[key] = value.clone();
        }
        let daemon = configured(site);
        break_it(&daemon);
        let before = tree(daemon.home());
        let checked = check(&daemon);
        assert_eq!(tree(daemon.home()), before);
        checked
    };
    let locked = |folder: &Path| {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o555)).unwrap();
    };
    let none = json!({});
    let checked = look(none.clone(), &|daemon| locked(&daemon.store()));
    checked.fails(&["store_write"], "let the daemon's user write there");
    let checked = look(none.clone(), &|daemon| locked(&daemon.spool()));
    checked.fails(&["backup_location"], "chown ");
    let checked = look(none.clone(), &|daemon| {
        locked(&daemon.home().join("alerts"))
    });
    checked.fails(&["alert_file_dir"], "chown ");
    let checked = look(none, &|daemon| fs::remove_dir(daemon.store()).unwrap());
    checked.fails(&["store"], "is its file system mounted?");
    let delta = json!({ "basebackup_mode": "delta" });
    let checked = look(delta, &|_| {});
    assert!(
        checked.with("warning").contains(&"mode"),
        "{:#?}",
        checked.points
    );
    assert_eq!(checked.code, Some(0), "{:#?}", checked.points);
    let (private, _) = generate(2048).unwrap();
    let (_, public) = generate(2048).unwrap();
    let pair = json!({ "public": public, "private": private.as_str() });
    let keys = json!({ "encryption_keys": { "k": pair }, "encryption_key_id": "k" });
    look(keys, &|_| {}).fails(&["keys"], "could never be read");

    // Somebody else's slot.
    server.sql("select pg_create_physical_replication_slot('pghoard')");
    let mut receive = command(install.tools.join("pg_receivewal"), server.home());
    receive.args(["-U", "postgres", "-S", "pghoard", "-h"]);
    receive
        .arg(server.home())
        .arg("-p")
        .arg(server.port.to_string());
    receive.arg("-D").arg(server.folder("wal"));
    let _receiving = Process::spawn(receive, server.home().join("receive.log"));
    let active = "select active from pg_replication_slots";
    wait_until("the other stream", PATIENCE, || server.sql(active) == ["t"]);
    let checked = look(json!({}), &|_| {});
    checked.fails(&["slot"], "a slot of its own");
}

#[test]
fn another_cluster_is_told_at_the_servers_and_in_the_store() {
    let Some(install) = install(15) else { return };
    let old = server(install, &[]);
    let mut daemon = Daemon::over(&[&old], json!({}));
    daemon.wait_backups(1);
    daemon.sigterm();
    let own = Options {
        identity: Identity::Own,
        ..Options::default()
    };
    let new = Server::start(install, &own);
    let storage = json!({ "storage_type": "local", "directory": daemon.store() });
    let mut over = site(node(&new));
    over["object_storage"] = storage;
    let before = tree(&daemon.store());
    check(&configured(over)).fails(&["stored_cluster"], "its moved_from name the old one");
    assert_eq!(tree(&daemon.store()), before);

    let mut both = site(node(&new));
    both["nodes"] = json!([node(&new), node(&old)]);
    check(&configured(both)).fails(&["cluster"], "a site of its own");
}
