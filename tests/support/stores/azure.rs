//! Azurite, Microsoft's emulator of Azure's blobs. It checks keys, SAS, MD5 and conditions. One for
//! the whole binary.

use std::path::PathBuf;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::{Reply, curl, installed_heavy, keep, wait_ready};
use crate::support::postgres::free_port;
use crate::support::process::{Process, Scratch, command};

const ACCOUNT: &str = "backupaccount";

/// Base64, as Azure hands it out.
const KEY: &str = "cGdob2FyZC10ZXN0LWtleS1vZi1henVyaXRlLTAxMjM0NTY3ODk=";

pub struct Azurite {
    port: u16,
    _process: Process,
}

pub struct Container {
    pub name: String,
    pub port: u16,
}

/// `None` has been said aloud as a skip.
pub fn azurite() -> Option<&'static Azurite> {
    static RUNNING: OnceLock<Option<Azurite>> = OnceLock::new();
    RUNNING
        .get_or_init(|| {
            let script = installed_heavy("azurite", "azurite/node_modules/.bin/azurite-blob")?;
            Some(keep(move || Azurite::start(script)))
        })
        .as_ref()
}

impl Azurite {
    fn start(script: PathBuf) -> Azurite {
        let (scratch, port) = (Scratch::until_exit(&[]), free_port());
        let mut server = command("node", scratch.path());
        server
            .arg(script)
            .args(["--blobHost", "127.0.0.1", "--blobPort"]);
        server.arg(port.to_string()).args(["--silent", "-l"]);
        server.arg(scratch.folder("data"));
        // Clients are newer than it is; it works all the same.
        server.args(["--disableTelemetry", "--skipApiVersionCheck"]);
        server.env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{KEY}"));
        let mut process = Process::spawn(server, scratch.join("azurite.log"));
        let url = format!("http://127.0.0.1:{port}/{ACCOUNT}?comp=list");
        wait_ready(&mut process, "Azurite", || {
            (curl(&[&url]).status == 403).then_some(())
        });
        Azurite {
            port,
            _process: process,
        }
    }

    pub fn container(&self) -> Container {
        let container = Container {
            name: format!("test-{:016x}", fastrand::u64(..)),
            port: self.port,
        };
        let made = container.ask("PUT", "", "restype=container", "", KEY);
        assert_eq!(made.status, 201, "{}", made.text());
        container
    }
}

impl Container {
    /// For a site of PGHoard's configuration.
    pub fn object_storage(&self) -> Value {
        json!({
            "storage_type": "azure",
            "account_name": ACCOUNT,
            "account_key": KEY,
            "bucket_name": self.name,
            "host": "127.0.0.1",
            "port": self.port,
            "is_secure": false,
        })
    }

    pub fn put(&self, blob: &str, body: &str) -> Reply {
        self.ask("PUT", blob, "", body, KEY)
    }

    pub fn get(&self, blob: &str) -> Reply {
        self.ask("GET", blob, "", "", KEY)
    }

    /// Signed with the account's key as Azure documents it ("Authorize with Shared Key"); `query`
    /// is one pair at most, `restype=container`.
    pub fn ask(&self, method: &str, blob: &str, query: &str, body: &str, key: &str) -> Reply {
        const VERSION: &str = "2021-08-06";
        let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
        let headers = [
            "x-ms-blob-type:BlockBlob".to_owned(),
            format!("x-ms-date:{date}"),
            format!("x-ms-version:{VERSION}"),
        ];
        let path = format!("/{ACCOUNT}/{}/{blob}", self.name);
        let path = path.trim_end_matches('/');
        let length = match body.len() {
            0 => String::new(),
            length => length.to_string(),
        };
        let kind = if body.is_empty() { "" } else { "text/plain" };
        // Path-style addresses have the account twice in what is signed.
        let mut resource = format!("/{ACCOUNT}{path}");
        if let Some((name, value)) = query.split_once('=') {
            resource += &format!("\n{name}:{value}");
        }
        let signed = format!(
            "{method}\n\n\n{length}\n\n{kind}\n\n\n\n\n\n\n{}\n{resource}",
            headers.join("\n")
        );
        let key = STANDARD.decode(key).expect("base64");
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("any length");
        mac.update(signed.as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        let url = format!("http://127.0.0.1:{}{path}?{query}", self.port);
        let login = format!("Authorization: SharedKey {ACCOUNT}:{signature}");
        let kind = format!("Content-Type: {kind}");
        let mut words = vec!["-X", method, "-H", &login, "-H", &kind];
        headers
            .iter()
            .for_each(|header| words.extend(["-H", header]));
        match body {
            "" if method == "PUT" => words.extend(["-H", "Content-Length: 0"]),
            "" => {}
            body => words.extend(["--data-binary", body]),
        }
        words.push(url.trim_end_matches('?'));
        curl(&words)
    }
}
