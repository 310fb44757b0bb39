//! The HTTP API as clients meet it: over TLS, from a host with nothing but curl and tar, from
//! people and their tools, and from those who mean no good.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, SITE};
use crate::support::process::{Answer, Scratch, command, run};
use crate::support::tls::Certificates;

mod hostile;
mod people;
mod restore;
mod secure;

/// With TLS and a password.
fn secured(certificates: &Certificates) -> Value {
    json!({
        "http_tls_certificate": certificates.server.certificate,
        "http_tls_key": certificates.server.key,
        "webserver_username": "u",
        "webserver_password": "p w",
    })
}

/// A host with curl, tar and a file with the password.
struct Host {
    scratch: Scratch,
    authority: std::path::PathBuf,
    port: u16,
}

impl Host {
    fn new(certificates: &Certificates, daemon: &Daemon) -> Host {
        let scratch = Scratch::new();
        let netrc = "machine localhost login u password \"p w\"\n";
        scratch.file(".netrc", netrc);
        Host {
            scratch,
            authority: certificates.authority.clone(),
            port: daemon.port,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}/{SITE}/{path}", self.port)
    }

    /// A line for bash; `$CURL` asks as this host does.
    fn shell(&self, line: &str, home: &Path) -> Answer {
        let mut bash = command("bash", home);
        let authority = self.authority.display();
        let netrc = self.scratch.join(".netrc");
        let curl = format!(
            "curl -q -sS --cacert {authority} --netrc-file {}",
            netrc.display()
        );
        bash.env("CURL", curl).env("PGHOARD_WAITS", "");
        bash.arg("-o").arg("pipefail").arg("-c").arg(line);
        run(bash)
    }
}
