//! Ceph's object gateway over one monitor and one OSD in memory, by S3 and by Swift's API. One for
//! the whole binary. It compares payloads with their signed hashes.

use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::s3::{ADMIN, Bucket};
use super::{Reply, curl, keep, wait_ready};
use crate::support::postgres::free_port;
use crate::support::process::{Process, Scratch, command, run};
use crate::support::{PATIENCE, left_out, skip, wait_until};

const SWIFT_USER: &str = "backup:swift";
const SWIFT_KEY: &str = "swiftsecret";

pub struct Ceph {
    port: u16,
    _processes: Vec<Process>,
}

/// `None` has been said aloud as a skip.
pub fn ceph() -> Option<&'static Ceph> {
    static RUNNING: OnceLock<Option<Ceph>> = OnceLock::new();
    RUNNING
        .get_or_init(|| {
            if !super::all_wanted() {
                left_out("ceph", super::HEAVY);
                return None;
            }
            if !std::path::Path::new("/usr/bin/radosgw").exists() {
                skip("ceph", "not installed: run tests/support/install");
                return None;
            }
            Some(keep(Ceph::start))
        })
        .as_ref()
}

impl Ceph {
    pub fn bucket(&self) -> Bucket {
        Bucket::make(self.port, ADMIN)
    }

    /// For a site of PGHoard's configuration, by Swift's API.
    pub fn object_storage(&self, container: &str) -> Value {
        json!({
            "storage_type": "swift",
            "container_name": container,
            "auth_url": format!("http://127.0.0.1:{}/auth/v1.0", self.port),
            "auth_version": "1.0",
            "user": SWIFT_USER,
            "key": SWIFT_KEY,
        })
    }

    /// Swift's first version of a login.
    pub fn login(&self, key: &str) -> Reply {
        let user = format!("X-Auth-User: {SWIFT_USER}");
        let key = format!("X-Auth-Key: {key}");
        let url = format!("http://127.0.0.1:{}/auth/v1.0", self.port);
        curl(&["-i", "-H", &user, "-H", &key, &url])
    }

    pub fn right_login(&self) -> Reply {
        self.login(SWIFT_KEY)
    }

    /// Everything in a container of Swift's API, by curl.
    pub fn names(&self, container: &str) -> Vec<String> {
        let reply = self.right_login().text();
        let field = |name: &str| {
            let mut fields = reply.lines().filter_map(|line| line.split_once(": "));
            let found = fields.find(|(have, _)| have.eq_ignore_ascii_case(name));
            found.expect("a login").1.trim().to_owned()
        };
        let token = format!("X-Auth-Token: {}", field("x-auth-token"));
        let url = format!("{}/{container}", field("x-storage-url"));
        let reply = curl(&["-H", &token, &url]).text();
        reply.lines().map(str::to_owned).collect()
    }

    fn start() -> Ceph {
        let scratch = Scratch::until_exit(&[]);
        let port = free_port();
        let monitors = format!(
            "[v2:127.0.0.1:{},v1:127.0.0.1:{}]",
            free_port(),
            free_port()
        );
        let id = uuid();
        for folder in ["mon", "osd", "rgw", "run"] {
            scratch.folder(folder);
        }
        scratch.file("keyring", "");
        scratch.file("ceph.conf", &config(&scratch, &id, &monitors, port));
        let tool = |program: &str, words: &[&str]| {
            let mut tool = command(program, scratch.path());
            tool.arg("-c").arg(scratch.join("ceph.conf")).args(words);
            tool
        };
        let text = |name: &str| scratch.join(name).display().to_string();
        let (map, keyring) = (text("monmap"), text("keyring"));
        let mut make = command("monmaptool", scratch.path());
        make.args(["--create", "--addv", "a", &monitors, "--fsid", &id, &map]);
        run(make).ok();
        let mkfs = ["-i", "a", "--mkfs", "--monmap", &map, "--keyring", &keyring];
        run(tool("ceph-mon", &mkfs)).ok();

        let start = |command: Command, name: &str| Process::spawn(command, scratch.join(name));
        let monitor = start(tool("ceph-mon", &["-f", "-i", "a"]), "mon.log");
        let disk = uuid();
        let ask = |words: &[&str]| {
            let all = [&["--connect-timeout", "5"], words].concat();
            run(tool("ceph", &all))
        };
        wait_until("Ceph's monitor", PATIENCE, || {
            ask(&["osd", "new", &disk]).status.success()
        });
        run(tool(
            "ceph-osd",
            &["-i", "0", "--mkfs", "--osd-uuid", &disk],
        ))
        .ok();
        let place = ["osd.0", "1.0", "root=default", "host=localhost"];
        ask(&[&["osd", "crush", "add"], &place[..]].concat()).ok();
        let osd = start(tool("ceph-osd", &["-f", "-i", "0"]), "osd.log");
        wait_until("Ceph's OSD", PATIENCE, || {
            ask(&["osd", "stat"]).stdout.contains("1 up")
        });
        let user = ["user", "create", "--uid=backup", "--display-name=backup"];
        let keys = ["--access-key", ADMIN.access, "--secret-key", ADMIN.secret];
        run(tool("radosgw-admin", &[&user[..], &keys].concat())).ok();
        let user = ["subuser", "create", "--uid=backup", "--subuser", SWIFT_USER];
        let keys = [
            "--access=full",
            "--key-type=swift",
            "--secret-key",
            SWIFT_KEY,
        ];
        run(tool("radosgw-admin", &[&user[..], &keys].concat())).ok();
        let mut gateway = start(tool("radosgw", &["-f", "-n", "client.rgw.a"]), "rgw.log");
        let url = format!("http://127.0.0.1:{port}/");
        wait_ready(&mut gateway, "Ceph's gateway", || {
            (curl(&[&url]).status == 200).then_some(())
        });
        Ceph {
            port,
            _processes: vec![gateway, osd, monitor],
        }
    }
}

/// Without keys between its parts; then nothing between them may be encrypted either.
fn config(scratch: &Scratch, id: &str, monitors: &str, port: u16) -> String {
    let home = scratch.path().display();
    format!(
        "[global]\nfsid = {id}\nmon_host = {monitors}\npublic_addr = 127.0.0.1\n\
         cluster_addr = 127.0.0.1\nms_bind_ipv6 = false\nms_bind_port_min = 20000\n\
         ms_bind_port_max = 32000\n\
         auth_cluster_required = none\nauth_service_required = none\n\
         auth_client_required = none\nms_mon_client_mode = crc\nms_mon_service_mode = crc\n\
         ms_mon_cluster_mode = crc\nkeyring = {home}/keyring\nrun_dir = {home}/run\n\
         admin_socket = {home}/run/$name.asok\npid_file = {home}/run/$name.pid\n\
         log_file = {home}/$name.own.log\ncrash_dir = {home}\n\
         osd_pool_default_size = 1\nosd_pool_default_min_size = 1\nosd_pool_default_pg_num = 1\n\
         osd_pool_default_pgp_num = 1\nmon_allow_pool_size_one = true\n\
         mon_warn_on_pool_no_redundancy = false\nosd_crush_chooseleaf_type = 0\n\
         osd_objectstore = memstore\nmemstore_device_bytes = 4294967296\n\
         [mon]\nmon_data = {home}/mon\nmon_data_avail_crit = 1\nmon_data_avail_warn = 2\n\
         mon_initial_members = a\n\
         [osd]\nosd_data = {home}/osd\nosd_class_load_list = *\nosd_class_default_list = *\n\
         [client.rgw.a]\nrgw_data = {home}/rgw\n\
         rgw_frontends = beast endpoint=127.0.0.1:{port}\nrgw_thread_pool_size = 16\n\
         rgw_num_rados_handles = 1\nrgw_gc_max_objs = 7\n"
    )
}

fn uuid() -> String {
    let text = format!("{:032x}", fastrand::u128(..));
    let cut = [0..8, 8..12, 12..16, 16..20, 20..32];
    cut.map(|range| &text[range]).join("-")
}
