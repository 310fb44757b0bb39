//! OpenStack Swift itself on one folder: with its own users (auth version 1), and with Keystone in
//! front (version 3). Each is one for the whole binary.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::{Reply, curl, installed, installed_heavy, keep, wait_ready};
use crate::support::postgres::{free_port, testbed};
use crate::support::process::{Process, Scratch, command, run};

pub struct Swift {
    /// Of the proxy server, which clients speak to.
    pub port: u16,
    /// Of Keystone, if there is one.
    keystone: Option<u16>,
    _processes: Vec<Process>,
}

/// With auth version 1. `None` has been said aloud as a skip.
pub fn swift() -> Option<&'static Swift> {
    static RUNNING: OnceLock<Option<Swift>> = OnceLock::new();
    RUNNING
        .get_or_init(|| {
            installed("swift", "swift/bin/swift-proxy-server")?;
            let memcached = installed("memcached", "services/usr/bin/memcached")?;
            Some(keep(move || Start::new("swift").up(&memcached, None)))
        })
        .as_ref()
}

/// With Keystone, auth version 3. `None` has been said aloud as a skip.
pub fn swift_by_keystone() -> Option<&'static Swift> {
    static RUNNING: OnceLock<Option<Swift>> = OnceLock::new();
    RUNNING
        .get_or_init(|| {
            installed_heavy("keystone", "keystone/bin/keystone-manage")?;
            let memcached = installed("memcached", "services/usr/bin/memcached")?;
            Some(keep(move || {
                Start::new("keystone").up(&memcached, Some(free_port()))
            }))
        })
        .as_ref()
}

impl Swift {
    /// For a site of PGHoard's configuration.
    pub fn object_storage(&self, container: &str) -> Value {
        let mut storage = json!({
            "storage_type": "swift",
            "container_name": container,
            "auth_url": self.auth_url(),
        });
        let more = match self.keystone {
            None => json!({ "auth_version": "1.0", "user": "test:tester", "key": "testing" }),
            Some(_) => json!({
                "auth_version": "3.0",
                "user": "backup",
                "key": "backuppass",
                "user_domain_name": "Default",
                "project_name": "demo",
                "project_domain_name": "Default",
                "region_name": "RegionOne",
            }),
        };
        let more = more.as_object().expect("an object").clone();
        storage.as_object_mut().expect("an object").extend(more);
        storage
    }

    pub fn auth_url(&self) -> String {
        match self.keystone {
            None => format!("http://127.0.0.1:{}/auth/v1.0", self.port),
            Some(port) => format!("http://127.0.0.1:{port}/v3"),
        }
    }

    /// A container of its own, made by curl.
    pub fn container(&self) -> String {
        let name = format!("test-{:016x}", fastrand::u64(..));
        let made = self.ask(&["-X", "PUT"], &name);
        assert_eq!(made.status, 201, "{}", made.text());
        name
    }

    /// About `CONTAINER[/OBJECT]`.
    pub fn ask(&self, words: &[&str], path: &str) -> Reply {
        let (token, url) = self
            .login("testing", "backuppass")
            .expect("its own passwords");
        let token = format!("X-Auth-Token: {token}");
        curl(&[&["-H", &token, &format!("{url}/{path}")], words].concat())
    }

    /// Token and storage URL for a password of auth version 1 or 3.
    pub fn login(&self, v1: &str, v3: &str) -> Option<(String, String)> {
        let url = self.auth_url();
        if self.keystone.is_none() {
            let key = format!("X-Auth-Key: {v1}");
            let reply = curl(&["-i", "-H", "X-Auth-User: test:tester", "-H", &key, &url]).text();
            return Some((
                field(&reply, "x-auth-token")?,
                field(&reply, "x-storage-url")?,
            ));
        }
        let domain = json!({ "name": "Default" });
        let user = json!({ "name": "backup", "domain": domain, "password": v3 });
        let identity = json!({ "methods": ["password"], "password": { "user": user } });
        let scope = json!({ "project": { "name": "demo", "domain": domain } });
        let body = json!({ "auth": { "identity": identity, "scope": scope } }).to_string();
        let kind = "Content-Type: application/json";
        let reply = curl(&["-i", "-H", kind, "-d", &body, &format!("{url}/auth/tokens")]).text();
        let told: Value = serde_json::from_str(reply.split("\r\n\r\n").nth(1)?).ok()?;
        let catalog = told["token"]["catalog"].as_array()?;
        let store = catalog
            .iter()
            .find(|entry| entry["type"] == "object-store")?;
        let storage = store["endpoints"][0]["url"].as_str()?.to_owned();
        Some((field(&reply, "x-subject-token")?, storage))
    }
}

/// Of a response with its head.
fn field(reply: &str, name: &str) -> Option<String> {
    let head = reply.split("\r\n\r\n").next()?;
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let found = fields.find(|(have, _)| have.eq_ignore_ascii_case(name))?;
    Some(found.1.trim().to_owned())
}

struct Start {
    /// What pip installed, libraries and programs.
    packages: PathBuf,
    scratch: Scratch,
    processes: Vec<Process>,
}

impl Start {
    fn new(packages: &str) -> Start {
        Start {
            packages: testbed().join(packages),
            scratch: Scratch::until_exit(&[]),
            processes: Vec::new(),
        }
    }

    fn up(mut self, memcached: &Path, keystone: Option<u16>) -> Swift {
        let (port, cache) = (free_port(), free_port());
        let kinds = ["account", "container", "object"];
        let ports = kinds.map(|_| free_port());
        self.scratch.folder("srv/disk");
        self.scratch.file(
            "swift.conf",
            "[swift-hash]\nswift_hash_path_suffix = test\n",
        );
        let rings = self.scratch.file("rings.py", RINGS);
        let mut make = self.python(&rings);
        run({
            make.args(ports.map(|port| port.to_string()));
            make
        })
        .ok();

        let mut server = command(memcached, self.scratch.path());
        server.args(["-l", "127.0.0.1", "-U", "0", "-m", "64", "-p"]);
        server.arg(cache.to_string());
        let libraries = memcached.ancestors().nth(2).expect("an unpacked package");
        server.env("LD_LIBRARY_PATH", libraries.join("lib/x86_64-linux-gnu"));
        self.spawn(server, "memcached");
        for (kind, port) in kinds.iter().zip(ports) {
            let rest = format!(
                "devices = {}\nmount_check = false\ndisable_fallocate = true\n\
                 [pipeline:main]\npipeline = {kind}-server\n\
                 [app:{kind}-server]\nuse = egg:swift#{kind}\n",
                self.scratch.join("srv").display()
            );
            self.server(kind, port, &rest);
        }
        if let Some(keystone) = keystone {
            self.keystone(keystone, port);
        }
        self.server("proxy", port, &proxy(cache, keystone));
        let swift = Swift {
            port,
            keystone,
            _processes: Vec::new(),
        };
        let mut last = self.processes.pop().expect("the proxy server");
        // The first container shows that all of them answer.
        wait_ready(&mut last, "Swift", || {
            let (token, url) = swift.login("testing", "backuppass")?;
            let token = format!("X-Auth-Token: {token}");
            let made = curl(&["-X", "PUT", "-H", &token, &format!("{url}/ready")]);
            (made.status / 10 == 20).then_some(())
        });
        self.processes.push(last);
        Swift {
            _processes: self.processes,
            ..swift
        }
    }

    fn python(&self, script: &Path) -> Command {
        let mut python = command("/usr/bin/python3", self.scratch.path());
        // Without Debian's own packages, some of which are too old for these.
        python.args(["-S", "-W", "ignore"]).arg(script);
        python.env("PYTHONPATH", &self.packages);
        python
    }

    fn server(&mut self, kind: &str, port: u16, rest: &str) {
        let home = self.scratch.path().display();
        let config = format!(
            "[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\n\
             swift_dir = {home}\nlog_name = {kind}\nlog_facility =\n{rest}"
        );
        let config = self.scratch.file(&format!("{kind}.conf"), &config);
        let program = format!("bin/swift-{kind}-server");
        let mut server = self.python(&self.packages.join(program));
        server.arg(config).arg("-v"); // else it logs to the system's log alone
        self.spawn(server, kind);
    }

    fn keystone(&mut self, port: u16, swift: u16) {
        let script = self.scratch.file("start", include_str!("keystone"));
        let mut server = self.python(&script);
        server
            .arg(self.scratch.folder("keystone"))
            .arg(port.to_string());
        server.arg(format!("http://127.0.0.1:{swift}/v1/AUTH_"));
        self.spawn(server, "keystone");
        let url = format!("http://127.0.0.1:{port}/v3");
        let own = self.processes.last_mut().expect("just spawned");
        wait_ready(own, "Keystone", || {
            (curl(&[&url]).status == 200).then_some(())
        });
    }

    fn spawn(&mut self, server: Command, name: &str) {
        let log = self.scratch.join(&format!("{name}.log"));
        self.processes.push(Process::spawn(server, log));
    }
}

const RINGS: &str = r#"
import sys
from swift.common.ring import RingBuilder

for name, port in zip(("account", "container", "object"), map(int, sys.argv[1:])):
    builder = RingBuilder(4, 1, 0)
    place = {"ip": "127.0.0.1", "port": port, "device": "disk", "meta": ""}
    again = {"replication_ip": "127.0.0.1", "replication_port": port}
    builder.add_dev({"region": 1, "zone": 1, "weight": 1.0, **place, **again})
    builder.rebalance()
    builder.get_ring().save(name + ".ring.gz")
"#;

/// What stands between a client and the objects.
fn proxy(cache: u16, keystone: Option<u16>) -> String {
    let login = keystone.map_or("tempauth", |_| "authtoken keystoneauth");
    let url = format!("http://127.0.0.1:{}", keystone.unwrap_or(0));
    let mut text = format!(
        "[pipeline:main]\npipeline = catch_errors gatekeeper healthcheck cache bulk {login} \
         slo dlo versioned_writes proxy-server\n\
         [app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n\
         allow_account_management = true\n\
         [filter:tempauth]\nuse = egg:swift#tempauth\nuser_test_tester = testing .admin\n\
         [filter:authtoken]\npaste.filter_factory = keystonemiddleware.auth_token:filter_factory\n\
         www_authenticate_uri = {url}\nauth_url = {url}\nauth_plugin = password\n\
         project_domain_id = default\nuser_domain_id = default\nproject_name = service\n\
         username = swift\npassword = swiftpass\ndelay_auth_decision = true\n\
         memcached_servers = 127.0.0.1:{cache}\ncache = swift.cache\n\
         [filter:keystoneauth]\nuse = egg:swift#keystoneauth\noperator_roles = admin, member\n\
         [filter:cache]\nuse = egg:swift#memcache\nmemcache_servers = 127.0.0.1:{cache}\n\
         [filter:slo]\nuse = egg:swift#slo\nmin_segment_size = 1\n\
         [filter:versioned_writes]\nuse = egg:swift#versioned_writes\n\
         allow_versioned_writes = true\n"
    );
    for plain in ["catch_errors", "gatekeeper", "healthcheck", "bulk", "dlo"] {
        text += &format!("[filter:{plain}]\nuse = egg:swift#{plain}\n");
    }
    text
}
