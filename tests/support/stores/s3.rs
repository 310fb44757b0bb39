//! A bucket on any S3 server, and how to reach it.

use std::path::PathBuf;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Reply, curl};

pub const REGION: &str = "us-east-1";

#[derive(Clone, Copy)]
pub struct Keys {
    pub access: &'static str,
    pub secret: &'static str,
}

/// May do everything.
pub const ADMIN: Keys = Keys {
    access: "AKIAPGHOARDTEST",
    secret: "a secret/with+signs of a test",
};

#[derive(Clone)]
pub struct Bucket {
    pub name: String,
    /// On 127.0.0.1.
    pub port: u16,
    /// Of the server's certificate: then it is reached by HTTPS.
    pub authority: Option<PathBuf>,
    pub keys: Keys,
}

impl Bucket {
    /// Made by curl, with a name of its own.
    pub fn make(port: u16, keys: Keys) -> Bucket {
        let bucket = Bucket {
            name: format!("test-{:016x}", fastrand::u64(..)),
            port,
            authority: None,
            keys,
        };
        let made = bucket.ask("PUT", "", "", &[]);
        assert_eq!(made.status, 200, "{}", made.text());
        bucket
    }

    pub fn endpoint(&self) -> String {
        let scheme = self.authority.as_ref().map_or("http", |_| "https");
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// For a site of PGHoard's configuration.
    pub fn object_storage(&self) -> Value {
        let mut storage = json!({
            "storage_type": "s3",
            "region": REGION,
            "bucket_name": self.name,
            "aws_access_key_id": self.keys.access,
            "aws_secret_access_key": self.keys.secret,
            "host": "127.0.0.1",
            "port": self.port,
        });
        if let Some(authority) = &self.authority {
            storage["is_secure"] = json!(true);
            storage["is_verify_tls"] = json!(true);
            storage["cert_path"] = json!(authority);
        }
        storage
    }

    /// A signed request by curl about a key, or about the bucket itself where it is empty.
    pub fn ask(&self, method: &str, key: &str, body: &str, headers: &[&str]) -> Reply {
        // A query of the bucket itself follows its name.
        let slash = if key.starts_with('?') { "" } else { "/" };
        let url = format!("{}/{}{slash}{key}", self.endpoint(), self.name);
        let login = format!("{}:{}", self.keys.access, self.keys.secret);
        let signing = format!("aws:amz:{REGION}:s3");
        let hash = hex::encode(Sha256::digest(body));
        let hash = format!("x-amz-content-sha256: {hash}");
        let mut all = vec!["--aws-sigv4", &signing, "-u", &login, "-H", &hash];
        let authority = self.authority.as_ref();
        let authority = authority.map(|path| path.display().to_string());
        if let Some(authority) = &authority {
            all.extend(["--cacert", authority]);
        }
        for header in headers {
            all.extend(["-H", header]);
        }
        match method {
            "HEAD" => all.push("-I"),
            _ => all.extend(["-X", method]),
        }
        if !body.is_empty() {
            all.extend(["-d", body]);
        }
        all.push(url.trim_end_matches('/'));
        curl(&all)
    }
}
