//! Certificates for a test: an authority of its own, a server certificate for `localhost` and
//! 127.0.0.1, and one for another name that a strict client must refuse.

use std::path::{Path, PathBuf};

use super::process::{Scratch, command, run};

pub struct Certificates {
    pub authority: PathBuf,
    pub server: Pair,
    pub wrong_name: Pair,
}

pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    pub fn make(scratch: &Scratch) -> Certificates {
        let dir = scratch.folder("tls");
        let (authority, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        let name = ["-x509", "-subj", "/CN=test authority", "-days", "30"];
        openssl(
            &dir,
            &[&["req", "-newkey", "rsa:2048", "-nodes"], &name[..]].concat(),
            &[("-keyout", &key), ("-out", &authority)],
        );
        let signed = |name: &str, alternatives: &str| {
            let pair = Pair {
                certificate: dir.join(format!("{name}.crt")),
                key: dir.join(format!("{name}.key")),
            };
            let subject = format!("/CN={name}");
            let extension = format!("subjectAltName={alternatives}");
            let fixed = [
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
            ];
            let own = ["-subj", subject.as_str(), "-addext", extension.as_str()];
            let leaf = ["-addext", "basicConstraints=critical,CA:FALSE"];
            openssl(
                &dir,
                &[&fixed[..], &own[..], &leaf[..]].concat(),
                &[
                    ("-CA", &authority),
                    ("-CAkey", &key),
                    ("-keyout", &pair.key),
                    ("-out", &pair.certificate),
                ],
            );
            pair
        };
        let server = signed("localhost", "DNS:localhost,IP:127.0.0.1");
        let wrong_name = signed("elsewhere", "DNS:elsewhere.example");
        Certificates {
            authority,
            server,
            wrong_name,
        }
    }
}

fn openssl(dir: &Path, words: &[&str], files: &[(&str, &PathBuf)]) {
    let mut openssl = command("openssl", dir);
    openssl.args(words);
    for (option, path) in files {
        openssl.arg(option).arg(path);
    }
    run(openssl).ok();
}
