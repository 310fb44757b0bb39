//! SeaweedFS: S3 over HTTP and HTTPS, and SFTP with users of its own. One for the whole binary.
//!
//! It checks signatures, clocks and conditions, has multipart, versions and object lock, but does
//! not compare a payload with its signed hash.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::s3::{ADMIN, Bucket, Keys};
use super::sshd::keygen;
use super::{Reply, curl, installed, keep, wait_ready};
use crate::support::postgres::free_port;
use crate::support::process::{Process, Scratch, command, hand_over};
use crate::support::tls::Certificates;

/// May read and list.
pub const READER: Keys = Keys {
    access: "AKIAREADER",
    secret: "readersecret",
};

pub struct Seaweed {
    http: u16,
    https: u16,
    sftp: u16,
    /// One line, to be trusted by a client of SFTP.
    pub known_hosts: PathBuf,
    authority: PathBuf,
    _process: Process,
}

/// `None` has been said aloud as a skip.
pub fn seaweed() -> Option<&'static Seaweed> {
    static RUNNING: OnceLock<Option<Seaweed>> = OnceLock::new();
    RUNNING
        .get_or_init(|| {
            let weed = installed("seaweedfs", "seaweedfs/bin/weed")?;
            Some(keep(move || Seaweed::start(weed)))
        })
        .as_ref()
}

impl Seaweed {
    pub fn bucket(&self) -> Bucket {
        Bucket::make(self.http, ADMIN)
    }

    /// The same bucket by HTTPS; the certificate is of the tests' own authority.
    pub fn secure(&self, bucket: &Bucket) -> Bucket {
        Bucket {
            name: bucket.name.clone(),
            port: self.https,
            authority: Some(self.authority.clone()),
            keys: bucket.keys,
        }
    }

    /// The same bucket for whom may only read.
    pub fn reader(bucket: &Bucket) -> Bucket {
        Bucket {
            name: bucket.name.clone(),
            port: bucket.port,
            authority: None,
            keys: READER,
        }
    }

    /// For a site of PGHoard's configuration: SFTP by password, below a folder of its own.
    pub fn sftp_object_storage(&self) -> Value {
        json!({
            "storage_type": "sftp",
            "server": "127.0.0.1",
            "port": self.sftp,
            "username": SFTP_USER,
            "password": SFTP_PASSWORD,
            "prefix": format!("/test-{:016x}", fastrand::u64(..)),
        })
    }

    /// By curl, which asks nobody about the host's key.
    pub fn sftp(&self, password: &str, words: &[&str], path: &str) -> Reply {
        let url = format!("sftp://127.0.0.1:{}{path}", self.sftp);
        let login = format!("{SFTP_USER}:{password}");
        curl(&[&["-k", "-u", &login, &url], words].concat())
    }

    fn start(weed: PathBuf) -> Seaweed {
        let inner: Vec<(&str, u16)> = INNER.iter().map(|name| (*name, free_port())).collect();
        // These it makes in /tmp whatever it is told, and leaves there.
        let litter = inner.iter().filter_map(|(name, port)| {
            let part = name.strip_suffix(".port.grpc")?;
            Some(PathBuf::from(format!(
                "/tmp/seaweedfs-{part}-grpc-{port}.sock"
            )))
        });
        let scratch = Scratch::until_exit(&litter.collect::<Vec<_>>());
        let certificates = Certificates::make(&scratch);
        hand_over(&certificates.server.key);
        let (http, https, sftp) = (free_port(), free_port(), free_port());
        let host = keygen(command("ssh-keygen", scratch.path()), &scratch, "host");
        let public = fs::read_to_string(host.with_extension("pub")).unwrap();
        let known = format!("[127.0.0.1]:{sftp} {public}");

        let mut server = command(weed, scratch.path());
        server.arg("server").args(FIXED);
        let outer = [
            ("s3.port", http),
            ("s3.port.https", https),
            ("sftp.port", sftp),
        ];
        for (name, port) in inner.iter().chain(&outer) {
            server.arg(format!("-{name}={port}"));
        }
        let mut file = |option: &str, path: PathBuf| {
            server.arg(format!("-{option}={}", path.display()));
        };
        file("dir", scratch.folder("data"));
        file("s3.config", scratch.file("s3.json", &identities()));
        file("s3.cert.file", certificates.server.certificate);
        file("s3.key.file", certificates.server.key);
        file("filer.localSocket", scratch.join("filer.sock"));
        file("s3.localSocket", scratch.join("s3.sock"));
        file("sftp.localSocket", scratch.join("sftp.sock"));
        file("sftp.sshPrivateKey", host);
        file(
            "sftp.userStoreFile",
            scratch.file("users.json", &sftp_users()),
        );
        // For server-side encryption with a key of the server's.
        server.env("WEED_S3_SSE_KEK", "5e".repeat(32));
        let mut process = Process::spawn(server, scratch.join("weed.log"));
        let url = format!("http://127.0.0.1:{http}/");
        wait_ready(&mut process, "SeaweedFS", || {
            (curl(&[&url]).status == 403).then_some(())
        });
        Seaweed {
            http,
            https,
            sftp,
            known_hosts: scratch.file("known_hosts", &known),
            authority: certificates.authority,
            _process: process,
        }
    }
}

/// Ports between its parts.
const INNER: [&str; 7] = [
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port.grpc",
];

const FIXED: [&str; 11] = [
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-master.telemetry=false",
    "-master.volumeSizeLimitMB=64",
    "-volume.max=0", // as many as the disk takes
    "-filer",
    "-s3",
    "-sftp",
    "-s3.autoCreateBucket=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
];

const SFTP_USER: &str = "backup";
pub const SFTP_PASSWORD: &str = "sftppass";

/// One who may do everything; with rights to a folder only, nothing works.
fn sftp_users() -> String {
    json!([{
        "Username": SFTP_USER,
        "Password": SFTP_PASSWORD,
        "PublicKeys": [],
        "HomeDir": "/",
        "Permissions": { "/": ["*"] },
        "Uid": 1000,
        "Gid": 1000,
    }])
    .to_string()
}

fn identities() -> String {
    let identity = |name: &str, keys: Keys, actions: &[&str]| {
        let credentials = [json!({ "accessKey": keys.access, "secretKey": keys.secret })];
        json!({ "name": name, "credentials": credentials, "actions": actions })
    };
    let all = ["Admin", "Read", "Write", "List", "Tagging"];
    let list = [
        identity("admin", ADMIN, &all),
        identity("reader", READER, &["Read", "List"]),
    ];
    json!({ "identities": list }).to_string()
}
