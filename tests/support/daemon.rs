//! The product as an operator runs it: the real binary, a configuration file, its spool and a local
//! store in a scratch folder. Everything is asked through documented interfaces (commands, state
//! file, alert files), never through the library.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::postgres::{Install, Server, free_port, lsn};
use super::process::{Answer, Process, Scratch, command, run};
use super::{PATIENCE, tail, wait_for, wait_until};

pub struct Daemon {
    process: Option<Process>,
    config: PathBuf,
    /// Beside the small environment that every program of a test has.
    pub environment: Vec<(&'static str, String)>,
    /// Of its HTTP server.
    pub port: u16,
    scratch: Scratch,
}

/// The site that `Daemon::over` makes.
pub const SITE: &str = "main";

impl Daemon {
    /// One site, `main`, over these servers, with `more` site keys on top of the usual ones.
    pub fn over(servers: &[&Server], more: Value) -> Daemon {
        let nodes: Vec<Value> = servers.iter().map(|server| node(server)).collect();
        let mut site = json!({ "nodes": nodes, "active_backup_mode": "walreceiver" });
        merge(&mut site, more);
        let daemon = Daemon::configured(json!({}), json!({ SITE: site }));
        daemon.started()
    }

    /// Writes the configuration and starts nothing. Sites without `object_storage` get a local one.
    pub fn configured(global: Value, sites: Value) -> Daemon {
        let scratch = Scratch::new();
        install_binary(&scratch);
        let folder = |name| scratch.folder(name).display().to_string();
        let port = free_port();
        let mut config = json!({
            "backup_location": folder("spool"),
            "alert_file_dir": folder("alerts"),
            "json_state_file_path": scratch.join("pghoard_state.json"),
            "maintenance_mode_file": scratch.join("maintenance"),
            "http_port": port,
            "backup_sites": {},
        });
        merge(&mut config, global);
        let store = folder("store");
        for (name, mut site) in sites.as_object().expect("sites by name").clone() {
            let storage = json!({ "storage_type": "local", "directory": store });
            if site.get("object_storage").is_none() {
                site["object_storage"] = storage;
            }
            config["backup_sites"][name] = site;
        }
        let text = serde_json::to_string_pretty(&config).unwrap();
        let config = scratch.file("pghoard.json", &text);
        Daemon {
            process: None,
            config,
            environment: Vec::new(),
            port,
            scratch,
        }
    }

    pub fn started(mut self) -> Daemon {
        self.up();
        self
    }

    pub fn up(&mut self) {
        let mut daemon = command(self.binary("pghoard"), self.home());
        daemon.arg("--config").arg(&self.config);
        daemon.envs(self.environment.clone());
        self.process = Some(Process::spawn(daemon, self.log()));
    }

    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill9();
        }
    }

    /// The configuration file, to be read at the next start or reload.
    pub fn configure(&self, change: impl FnOnce(&mut Value)) {
        let mut config = serde_json::from_slice(&fs::read(&self.config).unwrap()).unwrap();
        change(&mut config);
        self.configure_raw(&config.to_string());
    }

    pub fn configure_raw(&self, text: &str) {
        self.scratch.file("pghoard.json", text);
    }

    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("it runs").signal(signal);
    }

    /// Changes the configuration and has it read; waits until the log says that it was, which is
    /// answered for the whole of it.
    pub fn reload(&mut self, change: impl FnOnce(&mut Value)) -> Value {
        self.configure(change);
        self.reread("config_loaded")
    }

    pub fn reread(&mut self, kind: &str) -> Value {
        let told = |daemon: &Daemon| {
            let answer = run(daemon.tool("pghoard", &["events", "--json", "--kind", kind]));
            let events = answer.stdout.lines().map(|line| {
                let event: Value = serde_json::from_str(line).expect("a JSON object a line");
                event
            });
            let whole = events.filter(|event| event["site"].is_null());
            whole.map(|event| event["body"].clone()).collect::<Vec<_>>()
        };
        let before = told(self).len();
        self.signal(Signal::SIGHUP);
        wait_for(kind, PATIENCE, || {
            self.assert_alive();
            told(self).get(before).cloned()
        })
    }

    /// An orderly stop; the daemon promises exit code 0.
    pub fn sigterm(&mut self) {
        let mut process = self.process.take().expect("the daemon runs");
        process.signal(Signal::SIGTERM);
        let status = process.wait(PATIENCE);
        assert!(
            status.success(),
            "pghoard ended with {status}\n{}",
            tail(&self.log())
        );
    }

    pub fn restart(&mut self) {
        self.kill9();
        self.up();
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the daemon runs").pid()
    }

    /// Panics with the log when a daemon that should run has ended.
    pub fn assert_alive(&mut self) {
        let status = self.process.as_mut().and_then(Process::exited);
        assert!(
            status.is_none(),
            "pghoard ended: {status:?}\n{}",
            tail(&self.log())
        );
    }

    /// `pghoard_restore` and its sisters, with `--config` (global options come before it).
    pub fn tool(&self, name: &str, words: &[&str]) -> Command {
        let mut tool = command(self.binary(name), self.home());
        tool.args(words).arg("--config").arg(&self.config);
        tool
    }

    /// `None` while the daemon cannot answer yet. Code 1 says that an alert stands.
    pub fn status(&self) -> Option<Value> {
        let answer = run(self.tool("pghoard", &["status", "--json"]));
        matches!(answer.status.code(), Some(0 | 1))
            .then(|| serde_json::from_str(&answer.stdout).expect("JSON"))
    }

    pub fn site(&self) -> Option<Value> {
        self.status()?.get("sites")?.get(SITE).cloned()
    }

    /// How far the WAL is fsynced with us, in the spool or in the store.
    pub fn held(&self) -> Option<u64> {
        Some(lsn(self.site()?.get("received_lsn")?.as_str()?))
    }

    pub fn backups(&self) -> usize {
        let site = self.site().unwrap_or_default();
        let backups = site["backups"].as_array().cloned().unwrap_or_default();
        backups
            .iter()
            .filter(|backup| backup["complete"] == true)
            .count()
    }

    pub fn wait_backups(&mut self, count: usize) {
        wait_until(&format!("{count} complete backups"), PATIENCE, || {
            self.assert_alive();
            self.backups() >= count
        });
    }

    /// As soon as it listens.
    pub fn ask_for_backup(&self, site: &str) {
        wait_until("a basebackup to be asked for", PATIENCE, || {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else {
                return false;
            };
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let request = format!("PUT /{site}/archive/basebackup HTTP/1.0\r\n\r\n");
            let mut reply = String::new();
            let asked = stream.write_all(request.as_bytes());
            let asked = asked.and_then(|()| stream.read_to_string(&mut reply));
            asked.is_ok() && reply.contains(" 201 ")
        });
    }

    /// Waits until the daemon holds every byte the server has flushed by now.
    pub fn wait_caught_up(&mut self, server: &Server) -> u64 {
        let flushed = server.flushed();
        wait_until("the daemon to hold the flushed WAL", PATIENCE, || {
            self.assert_alive();
            self.held().is_some_and(|held| held >= flushed)
        });
        flushed
    }

    pub fn events(&self) -> Vec<Value> {
        let text = run(self.tool("pghoard", &["events", "--json"])).ok();
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
            .collect()
    }

    /// Waits for an event of this kind; answers its body.
    pub fn wait_event(&mut self, what: &str, kind: &str, is: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, PATIENCE, || {
            self.assert_alive();
            let answer = run(self.tool("pghoard", &["events", "--json", "--kind", kind]));
            // A daemon that starts holds the log for a moment.
            let lines = answer.stdout.lines();
            let mut bodies = lines.map(|line| {
                let event: Value = serde_json::from_str(line).expect("a JSON object a line");
                event["body"].clone()
            });
            bodies.find(|body| is(body))
        })
    }

    /// The digest chain holds from the first event to the last.
    pub fn verify_events(&self) {
        run(self.tool("pghoard", &["events", "--verify"])).ok();
    }

    pub fn state_file(&self) -> Option<Value> {
        let text = fs::read(self.scratch.join("pghoard_state.json")).ok()?;
        Some(serde_json::from_slice(&text).expect("the state file is replaced as a whole"))
    }

    pub fn alerts(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.scratch.join("alerts")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// The text of an alert that stands.
    pub fn alert(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.scratch.join("alerts").join(name)).ok()
    }

    pub fn wait_alert(&self, name: &str) {
        wait_until(&format!("alert {name}"), PATIENCE, || {
            self.alerts().contains(name)
        });
    }

    /// A restore_command that asks the running daemon.
    pub fn fetch_command(&self) -> String {
        let command = self.binary("pghoard_postgres_command");
        format!(
            "{} --mode restore --port {} --site {SITE} --output %p --xlog %f",
            command.display(),
            self.port
        )
    }

    /// An archive_command or restore_command that asks the running daemon, `remote` as from another
    /// machine.
    pub fn command(&self, mode: &str, remote: bool) -> String {
        let command = self.binary("pghoard_postgres_command");
        let output = if mode == "restore" {
            " --output %p"
        } else {
            ""
        };
        let remote = if remote { " --remote" } else { "" };
        format!(
            "{} --mode {mode} --port {} --site {SITE}{output}{remote} --xlog %f",
            command.display(),
            self.port
        )
    }

    /// Runs `get-basebackup` into a place for a server of this major, which is not started yet.
    pub fn restore(&self, install: &'static Install, words: &[&str]) -> Server {
        let mut server = Server::empty(install);
        self.restore_into(&server.data, words).ok();
        server.move_in();
        server
    }

    pub fn restore_into(&self, data: &Path, words: &[&str]) -> Answer {
        let mut restore = self.tool("pghoard_restore", &["get-basebackup", "--site", SITE]);
        restore.arg("--target-dir").arg(data);
        restore
            .arg("--pghoard-postgres-command-bin")
            .arg(self.binary("pghoard_postgres_command"));
        restore.args(words);
        run(restore)
    }

    pub fn store(&self) -> PathBuf {
        self.scratch.join("store")
    }

    /// Puts something of the site into the store: one that holds nothing confirms no absence.
    pub fn stock(&self) {
        let place = self.store().join(SITE).join("basebackup");
        fs::create_dir_all(&place).unwrap();
        for (name, content) in [("b", ""), ("b.metadata", "{}")] {
            fs::write(place.join(name), content).unwrap();
        }
    }

    pub fn spool(&self) -> PathBuf {
        self.scratch.join("spool")
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn log(&self) -> PathBuf {
        self.scratch.join("pghoard.log")
    }

    pub fn home(&self) -> &Path {
        self.scratch.path()
    }

    fn binary(&self, name: &str) -> PathBuf {
        self.scratch.join("bin").join(name)
    }
}

/// What happened explains a failed test better than anything.
impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            let answer = run(self.tool("pghoard", &["events"]));
            eprintln!("--- pghoard events\n{}{}", answer.stdout, answer.stderr);
        }
    }
}

/// A node as the configuration names it, with a slot.
pub fn node(server: &Server) -> Value {
    json!({ "host": "127.0.0.1", "port": server.port, "user": "postgres", "slot": "pghoard" })
}

fn merge(into: &mut Value, more: Value) {
    let Value::Object(more) = more else {
        panic!("expected an object, got {more}")
    };
    for (key, value) in more {
        into[key] = value;
    }
}

/// The checkout may lie where the service user cannot enter. A link where possible; the copy is
/// made by a child, because a file this process wrote could still be open for writing in another
/// thread's child when it is executed ("text file busy").
fn install_binary(scratch: &Scratch) {
    let (built, bin) = (env!("CARGO_BIN_EXE_pghoard"), scratch.folder("bin"));
    let to = bin.join("pghoard");
    if fs::hard_link(built, &to).is_err() {
        assert!(
            Command::new("cp")
                .arg(built)
                .arg(&to)
                .status()
                .unwrap()
                .success()
        );
    }
    for name in pghoard::tool::links::NAMES {
        std::os::unix::fs::symlink("pghoard", bin.join(name)).unwrap();
    }
}
