//! Two emulators of Google Cloud Storage, behind a proxy that looks at tokens, which neither of
//! them does. They differ: fake-gcs-server knows conditions in multipart uploads alone and ends a
//! resumable upload that is asked for its state; gcp-storage-emulator knows no conditions and no
//! paging, but states and MD5.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::pkcs8::DecodePrivateKey;
use rsa::{Pkcs1v15Sign, RsaPrivateKey, RsaPublicKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Reply, curl, installed, wait_ready};
use crate::support::faults::Proxy;
use crate::support::http::{Endpoint, Request, Response, respond};
use crate::support::postgres::{free_port, testbed};
use crate::support::process::{Process, Scratch, command, run};

pub struct Google {
    pub bucket: String,
    /// All requests pass here; faults may be planned.
    pub proxy: Proxy,
    account: Value,
    tokens: Arc<Tokens>,
    _endpoint: Endpoint,
    _process: Process,
    _scratch: Scratch,
}

impl Google {
    /// `None` has been said aloud as a skip.
    pub fn fake_gcs() -> Option<Google> {
        let program = "fake-gcs-server/bin/fake-gcs-server-linux-amd64";
        let program = installed("fake-gcs-server", program)?;
        let (scratch, port) = (Scratch::new(), free_port());
        let mut server = command(program, scratch.path());
        let address = format!("127.0.0.1:{port}");
        server.args([
            "-scheme",
            "http",
            "-host",
            "127.0.0.1",
            "-backend",
            "memory",
        ]);
        server.args(["-log-level", "warn", "-public-host", &address, "-port"]);
        server.arg(port.to_string());
        server.args(["-external-url", &format!("http://{address}")]);
        Some(Google::up(server, port, scratch))
    }

    /// `None` has been said aloud as a skip.
    pub fn gcp_storage() -> Option<Google> {
        let script = "gcp-storage-emulator/bin/gcp-storage-emulator";
        let script = installed("gcp-storage-emulator", script)?;
        let (scratch, port) = (Scratch::new(), free_port());
        let mut server = command("/usr/bin/python3", scratch.path());
        server.arg(script).arg("-d").arg(scratch.folder("data"));
        server
            .args(["start", "--host=127.0.0.1"])
            .arg(format!("--port={port}"));
        server.env("PYTHONPATH", testbed().join("gcp-storage-emulator"));
        Some(Google::up(server, port, scratch))
    }

    fn up(server: Command, port: u16, scratch: Scratch) -> Google {
        let mut process = Process::spawn(server, scratch.join("google.log"));
        let list = format!("http://127.0.0.1:{port}/storage/v1/b?project=test");
        wait_ready(&mut process, "the emulator of Google's storage", || {
            (curl(&[&list]).status == 200).then_some(())
        });
        let bucket = format!("test-{:016x}", fastrand::u64(..));
        let named = json!({ "name": bucket }).to_string();
        let made = curl(&["-H", "Content-Type: application/json", "-d", &named, &list]);
        assert_eq!(made.status, 200, "{}", made.text());

        let mut openssl = command("openssl", scratch.path());
        openssl.args(["genpkey", "-algorithm", "RSA"]);
        let pem = run(openssl).ok();
        let tokens = Arc::new(Tokens::of(&pem));
        let own = Arc::clone(&tokens);
        let endpoint = Endpoint::start(move |request| own.answer(request));
        let own = Arc::clone(&tokens);
        let guard = move |login: &str| own.accepts(login);
        Google {
            bucket,
            proxy: Proxy::guarded(port, Some(Box::new(guard))),
            account: json!({
                "type": "service_account",
                "project_id": "test",
                "private_key_id": "1",
                "private_key": pem,
                "client_email": "backup@test.iam.gserviceaccount.com",
                "client_id": "1",
                "token_uri": format!("http://127.0.0.1:{}/token", endpoint.port),
            }),
            tokens,
            _endpoint: endpoint,
            _process: process,
            _scratch: scratch,
        }
    }

    /// For a site of PGHoard's configuration.
    pub fn object_storage(&self) -> Value {
        json!({
            "storage_type": "google",
            "project_id": "test",
            "bucket_name": self.bucket,
            "credentials": self.account,
            "host": "127.0.0.1",
            "port": self.proxy.port,
            "is_secure": false,
        })
    }

    /// Tokens that were handed out are worth nothing any more.
    pub fn expire(&self) {
        self.tokens.issued.lock().unwrap().clear();
    }

    /// A token as the endpoint hands them out.
    pub fn token(&self) -> String {
        self.tokens.issue()
    }

    /// By curl; `path` begins with `/storage` or `/upload`.
    pub fn ask(&self, token: &str, path: &str, words: &[&str]) -> Reply {
        let url = format!("http://127.0.0.1:{}{path}", self.proxy.port);
        let login = format!("Authorization: Bearer {token}");
        curl(&[&["-H", &login, &url], words].concat())
    }
}

/// Of one service account.
struct Tokens {
    key: RsaPublicKey,
    issued: Mutex<BTreeSet<String>>,
}

impl Tokens {
    fn of(pem: &str) -> Tokens {
        let key = RsaPrivateKey::from_pkcs8_pem(pem).expect("openssl's key");
        Tokens {
            key: key.to_public_key(),
            issued: Mutex::default(),
        }
    }

    fn issue(&self) -> String {
        let token = format!("ya29.{:032x}", fastrand::u128(..));
        self.issued.lock().unwrap().insert(token.clone());
        token
    }

    /// The endpoint: a signed assertion for a token.
    fn answer(&self, request: &Request) -> Response {
        let body = String::from_utf8_lossy(request.body());
        let assertion = body
            .split('&')
            .find_map(|pair| pair.strip_prefix("assertion="));
        if !assertion.is_some_and(|jwt| self.signed(jwt)) {
            let refused = json!({ "error": "invalid_grant" }).to_string();
            return respond(400, &[("Content-Type", "application/json")], refused);
        }
        let token = json!({
            "access_token": self.issue(),
            "expires_in": 3600,
            "token_type": "Bearer",
        });
        let json = [("Content-Type", "application/json")];
        respond(200, &json, token.to_string())
    }

    /// A token of the endpoint, or one that the account signed itself, as Google takes both.
    fn accepts(&self, login: &str) -> bool {
        let Some(token) = login.strip_prefix("Bearer ") else {
            return false;
        };
        self.issued.lock().unwrap().contains(token) || self.signed(token)
    }

    fn signed(&self, jwt: &str) -> bool {
        let Some((claims, signature)) = jwt.rsplit_once('.') else {
            return false;
        };
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
        let scheme = Pkcs1v15Sign {
            hash_len: Some(32),
            prefix: SHA256.into(),
        };
        let hash = Sha256::digest(claims);
        self.key.verify(scheme, &hash, &signature).is_ok()
    }
}

/// What stands before the hash in a signature, by RFC 8017, 9.2 note 1.
const SHA256: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];
