//! OpenSSH's own server for SFTP by key, logged in as the user that servers run as.
//!
//! A password it would look up among the system's users; SeaweedFS has users of its own for that.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::{installed, wait_ready};
use crate::support::postgres::free_port;
use crate::support::process::{Process, Scratch, command, run};

pub struct Sshd {
    pub port: u16,
    /// The login name.
    pub user: String,
    /// For this process alone, as SSH clients want it.
    pub private_key: PathBuf,
    /// One line, to be trusted by a client.
    pub known_hosts: PathBuf,
    /// Where a login starts.
    pub folder: PathBuf,
    process: Process,
    scratch: Scratch,
}

impl Sshd {
    /// `None` has been said aloud as a skip.
    pub fn start() -> Option<Sshd> {
        let program = installed("sshd", "services/usr/sbin/sshd")?;
        let scratch = Scratch::new();
        let (port, folder) = (free_port(), scratch.folder("data"));
        let host = keygen(command("ssh-keygen", scratch.path()), &scratch, "host");
        // Made by this process's own user, for only its owner may read a private key.
        let own = keygen(Command::new("ssh-keygen"), &scratch, "user");
        let public = std::fs::read_to_string(own.with_extension("pub")).unwrap();
        let authorized = scratch.file("authorized_keys", &public);
        let public = std::fs::read_to_string(host.with_extension("pub")).unwrap();
        let known = format!("[127.0.0.1]:{port} {public}");
        let config = scratch.file(
            "sshd_config",
            &format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nPidFile none\n\
                 AuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
                 KbdInteractiveAuthentication no\nSubsystem sftp internal-sftp -d {}\n\
                 MaxStartups 100\nLogLevel VERBOSE\n",
                host.display(),
                authorized.display(),
                folder.display()
            ),
        );
        let libraries = program.ancestors().nth(3).expect("an unpacked package");
        let mut sshd = command(&program, scratch.path());
        sshd.env(
            "LD_LIBRARY_PATH",
            libraries.join("usr/lib/x86_64-linux-gnu"),
        );
        sshd.args(["-D", "-e", "-f"]).arg(config);
        let mut process = Process::spawn(sshd, scratch.join("sshd.log"));
        wait_ready(&mut process, "sshd", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        let user = run(command("whoami", scratch.path()))
            .ok()
            .trim()
            .to_owned();
        Some(Sshd {
            port,
            user,
            private_key: own,
            known_hosts: scratch.file("known_hosts", &known),
            folder,
            process,
            scratch,
        })
    }

    /// For a site of PGHoard's configuration; objects lie below `folder`.
    pub fn object_storage(&self) -> Value {
        json!({
            "storage_type": "sftp",
            "server": "127.0.0.1",
            "port": self.port,
            "username": self.user,
            "private_key": self.private_key,
            "prefix": self.folder,
            "known_hosts": self.known_hosts,
        })
    }

    /// Lets in whoever has the private key of this public one.
    pub fn authorize(&self, public: &std::path::Path) {
        let path = self.scratch.join("authorized_keys");
        let all = [path.as_path(), public].map(|path| std::fs::read_to_string(path).unwrap());
        self.scratch.file("authorized_keys", &all.concat());
    }

    /// OpenSSH's client with a key: what its commands said, or why it was refused.
    pub fn batch(&self, key: &std::path::Path, commands: &str) -> Result<String, String> {
        let batch = self.scratch.file("batch", commands);
        let mut sftp = Command::new("sftp");
        sftp.arg("-b").arg(batch).arg("-i").arg(key);
        sftp.args(["-o", "IdentitiesOnly=yes", "-o"]);
        sftp.arg(format!("UserKnownHostsFile={}", self.known_hosts.display()));
        sftp.arg("-P").arg(self.port.to_string());
        let answer = run_plain(sftp.arg(format!("{}@127.0.0.1", self.user)));
        if answer.0 {
            Ok(answer.1)
        } else {
            Err(answer.1)
        }
    }

    /// As a crash of the machine would: every session ends.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }
}

fn run_plain(command: &mut Command) -> (bool, String) {
    let output = command.output().expect("OpenSSH's client is installed");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

/// The private key; the public one lies beside it.
pub fn keygen(mut keygen: Command, scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.join(name);
    keygen
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&path);
    let (made, said) = run_plain(&mut keygen);
    assert!(made, "{said}");
    path
}
