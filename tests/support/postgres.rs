//! Real PostgreSQL servers, one scratch cluster a test.
//!
//! A cluster is a copy of a template made once for each (major, segment size, checksums), since
//! initdb takes seconds and a copy tenths. Copies therefore share one system identifier: a test
//! that needs a *foreign* cluster asks for `Identity::Own`. The servers run with `fsync=off`: what
//! is killed here is processes, never the operating system below them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use std::{env, fs, net};

use nix::sys::signal::Signal;

use super::process::{self, Process, Scratch, command, run};
use super::tls::Pair;
use super::{PATIENCE, skip, tail, wait_for, wait_until};

/// One installed major, as `tests/support/postgres-paths` names it.
#[derive(Debug)]
pub struct Install {
    pub major: u32,
    pub server: PathBuf,
    pub tools: PathBuf,
}

pub const MATRIX: [u32; 7] = [12, 13, 14, 15, 16, 17, 18];

pub fn majors() -> &'static [Install] {
    static INSTALLED: OnceLock<Vec<Install>> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let output = Command::new(support("postgres-paths"))
            .output()
            .expect("bash runs");
        let text = String::from_utf8(output.stdout).unwrap();
        let parse = |line: &str| {
            let mut words = line.split_whitespace();
            let mut word = || words.next().expect("three words a line");
            Install {
                major: word().parse().unwrap(),
                server: word().into(),
                tools: word().into(),
            }
        };
        text.lines().map(parse).collect()
    })
}

/// The installation of a major; `None` has been said aloud as a skip.
pub fn install(major: u32) -> Option<&'static Install> {
    let found = majors().iter().find(|install| install.major == major);
    if found.is_none() {
        skip(
            &format!("postgres-{major}"),
            "not installed: run tests/support/install",
        );
    }
    found
}

impl Install {
    /// The packages of 16 and 18 are built without OpenSSL.
    pub fn has_tls(&self) -> bool {
        !matches!(self.major, 16 | 18)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// A copy of the template: the same system identifier as every other copy.
    #[default]
    Shared,
    /// An initdb of its own.
    Own,
}

#[derive(Default)]
pub struct Options<'a> {
    /// In MiB; `None` is PostgreSQL's default of 16.
    pub segment_mib: Option<u32>,
    pub checksums: bool,
    pub identity: Identity,
    /// Lines for postgresql.conf.
    pub conf: &'a [&'a str],
    /// Lines for pg_hba.conf, before those that trust everybody on this machine.
    pub hba: &'a [&'a str],
    pub tls: Option<&'a Pair>,
}

pub struct Server {
    pub install: &'static Install,
    pub port: u16,
    pub data: PathBuf,
    process: Option<Process>,
    scratch: Scratch,
}

impl Server {
    pub fn start(install: &'static Install, options: &Options<'_>) -> Server {
        let mut server = Server::empty(install);
        create_cluster(install, options, &server.scratch, &server.data);
        server.append("postgresql.conf", &server.base_conf());
        server.append("postgresql.conf", &options.conf.join("\n"));
        if let Some(pair) = options.tls {
            let (certificate, key) = (pair.certificate.display(), pair.key.display());
            let lines = format!("ssl=on\nssl_cert_file='{certificate}'\nssl_key_file='{key}'");
            server.append("postgresql.conf", &lines);
        }
        let hba = server.data.join("pg_hba.conf");
        let trust = "local all all trust\nlocal replication all trust\n\
                     host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n";
        fs::write(&hba, format!("{}\n{trust}", options.hba.join("\n"))).unwrap();
        server.up();
        server
    }

    /// A place for a cluster that somebody else fills (a restore): `data` does not exist yet. Call
    /// `move_in` when it does.
    pub fn empty(install: &'static Install) -> Server {
        let scratch = Scratch::new();
        let data = scratch.join("data");
        Server {
            install,
            port: free_port(),
            data,
            process: None,
            scratch,
        }
    }

    /// Settles in a data directory that came from another server: port, socket and archive
    /// settings of its own, after all others.
    pub fn move_in(&mut self) {
        self.append("postgresql.conf", &self.base_conf());
    }

    /// One more line for postgresql.conf, read at the next start.
    pub fn configure(&self, line: &str) {
        self.append("postgresql.conf", line);
    }

    /// As `configure`, stronger than what ALTER SYSTEM or a restore has set.
    pub fn overrule(&self, line: &str) {
        self.append("postgresql.auto.conf", line);
    }

    /// A streaming standby made by PostgreSQL's own pg_basebackup.
    pub fn standby_of(primary: &Server) -> Server {
        let mut standby = Server::empty(primary.install);
        let mut copy = command(primary.install.tools.join("pg_basebackup"), standby.home());
        copy.args(["-X", "stream", "-c", "fast", "-U", "postgres", "-h"])
            .arg(primary.home());
        copy.arg("-p")
            .arg(primary.port.to_string())
            .arg("-D")
            .arg(&standby.data);
        run(copy).ok();
        // Not by its -R: a newer pg_basebackup writes parameters an older server does not know.
        let (host, port) = (primary.home().display(), primary.port);
        let line = format!("primary_conninfo='host={host} port={port} user=postgres'");
        standby.append("postgresql.conf", &line);
        fs::write(standby.data.join("standby.signal"), "").unwrap();
        standby.move_in();
        standby.up();
        standby
    }

    /// Starts the server and returns when it answers.
    pub fn up(&mut self) {
        let mut postgres = self.spawn();
        wait_until("PostgreSQL to answer", PATIENCE, || {
            if let Some(status) = postgres.exited() {
                panic!("PostgreSQL ended with {status}\n{}", tail(postgres.log()));
            }
            self.try_sql("select 1").is_ok()
        });
        self.process = Some(postgres);
    }

    /// Starts a server that is expected to stop by itself (a recovery target with `shutdown`, a
    /// recovery that must fail); returns its log.
    pub fn up_and_down(&mut self, deadline: Duration) -> String {
        let mut postgres = self.spawn();
        postgres.wait(deadline);
        fs::read_to_string(self.log()).unwrap()
    }

    fn spawn(&self) -> Process {
        let mut postgres = command(self.install.server.join("postgres"), self.home());
        postgres.arg("-D").arg(&self.data);
        Process::spawn(postgres, self.log())
    }

    /// One row a string, fields separated by `|`.
    #[track_caller]
    pub fn sql(&self, query: &str) -> Vec<String> {
        self.try_sql(query)
            .unwrap_or_else(|why| panic!("{query}: {why}"))
    }

    /// The only field of the only row.
    #[track_caller]
    pub fn one(&self, query: &str) -> String {
        let mut rows = self.sql(query);
        assert_eq!(rows.len(), 1, "{query}: {rows:?}");
        rows.remove(0)
    }

    pub fn try_sql(&self, query: &str) -> Result<Vec<String>, String> {
        let mut psql = command(self.install.tools.join("psql"), self.home());
        psql.args([
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            "postgres",
            "-U",
            "postgres",
            "-h",
        ]);
        psql.arg(self.home())
            .arg("-p")
            .arg(self.port.to_string())
            .arg("-c")
            .arg(query);
        let answer = run(psql);
        if answer.status.success() {
            Ok(answer.stdout.lines().map(str::to_owned).collect())
        } else {
            Err(answer.stderr)
        }
    }

    pub fn flushed(&self) -> u64 {
        lsn(&self.one("select pg_current_wal_flush_lsn()"))
    }

    pub fn in_recovery(&self) -> bool {
        self.one("select pg_is_in_recovery()") == "t"
    }

    pub fn promote(&self) {
        assert_eq!(self.one("select pg_promote()"), "t");
    }

    pub fn wait_primary(&self) {
        wait_until("the end of recovery", PATIENCE, || {
            self.try_sql("select pg_is_in_recovery()")
                .is_ok_and(|rows| rows == ["f"])
        });
    }

    /// As a cut of power would, but for the operating system's own memory.
    pub fn kill9(&mut self) {
        let Some(mut postgres) = self.process.take() else {
            return;
        };
        postgres.signal(Signal::SIGSTOP); // it forks no more, so the list is complete
        let orphans = process::children(postgres.pid());
        let shared = self.shared_memory();
        postgres.kill9();
        for orphan in orphans {
            process::kill9_orphan(orphan);
        }
        if let Some(id) = shared {
            let mut remove = Command::new("ipcrm");
            let _gone_is_fine = remove.args(["-m", &id]).output();
        }
    }

    /// The interlock segment that a killed server leaves in the kernel (postmaster.pid, line 7).
    fn shared_memory(&self) -> Option<String> {
        let file = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let line = file.lines().nth(6)?;
        line.split_whitespace().nth(1).map(str::to_owned)
    }

    pub fn stop(&mut self) {
        let Some(mut postgres) = self.process.take() else {
            return;
        };
        postgres.signal(Signal::SIGINT);
        postgres.wait(PATIENCE);
    }

    pub fn destroy_data(&mut self) {
        self.kill9();
        fs::remove_dir_all(&self.data).unwrap();
    }

    /// Where the unix socket is, and a folder for the test's own files.
    pub fn home(&self) -> &Path {
        self.scratch.path()
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.scratch.folder(name)
    }

    pub fn log(&self) -> PathBuf {
        self.scratch.join("postgres.log")
    }

    fn append(&self, file: &str, text: &str) {
        let path = self.data.join(file);
        let old = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{old}\n{text}\n")).unwrap();
    }

    fn base_conf(&self) -> String {
        let (port, sockets) = (self.port, self.home().display());
        format!(
            "port={port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories='{sockets}'\n\
             shared_buffers=16MB\nmax_wal_senders=10\nmax_replication_slots=10\nwal_level=replica\n\
             dynamic_shared_memory_type=mmap\nfsync=off\nmax_connections=40"
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// `0/3000060` as a number.
pub fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("an LSN");
    let part = |digits| u64::from_str_radix(digits, 16).expect("hexadecimal digits");
    (part(high) << 32) + part(low)
}

pub fn lsn_text(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)
}

/// Below the range the kernel gives to outgoing connections, so that none of them takes it first.
pub fn free_port() -> u16 {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    let next = NEXT.get_or_init(|| AtomicU16::new(fastrand::u16(..COUNT)));
    wait_for("a free port", PATIENCE, || {
        let port = FIRST + next.fetch_add(1, Ordering::Relaxed) % COUNT;
        net::TcpListener::bind(("127.0.0.1", port))
            .is_ok()
            .then_some(port)
    })
}

fn create_cluster(install: &Install, options: &Options<'_>, scratch: &Scratch, data: &Path) {
    if options.identity == Identity::Own {
        return initdb(install, options, scratch, data);
    }
    let segment = options.segment_mib.unwrap_or(16);
    let sums = if options.checksums { "sums" } else { "plain" };
    let template = testbed().join(format!("template-{}-{segment}-{sums}", install.major));
    if !template.exists() {
        let fresh = Scratch::new();
        initdb(install, options, &fresh, &fresh.join("data"));
        // Complete before it has its name; two tests may do this at once, and one of them wins.
        let ready = testbed().join(format!(".template-{}", fastrand::u64(..)));
        copy(&fresh.join("data"), &ready);
        if fs::rename(&ready, &template).is_err() {
            fs::remove_dir_all(&ready).unwrap();
        }
    }
    copy(&template, data);
}

fn initdb(install: &Install, options: &Options<'_>, scratch: &Scratch, data: &Path) {
    let mut initdb = command(install.server.join("initdb"), scratch.path());
    initdb.args([
        "-U",
        "postgres",
        "--auth=trust",
        "--locale=C",
        "-E",
        "UTF8",
        "--no-sync",
    ]);
    initdb.arg(format!(
        "--wal-segsize={}",
        options.segment_mib.unwrap_or(16)
    ));
    match (options.checksums, install.major) {
        (true, _) => drop(initdb.arg("--data-checksums")),
        (false, 18..) => drop(initdb.arg("--no-data-checksums")),
        (false, _) => {}
    }
    initdb.arg("-D").arg(data);
    run(initdb).ok();
}

/// With owners and modes; a plain child process, since only root may give files away.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(
        copied.success(),
        "cp -a {} {}",
        from.display(),
        to.display()
    );
}

pub fn testbed() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let output = Command::new(support("postgres-paths"))
            .arg("--testbed")
            .output()
            .unwrap();
        let place = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end());
        fs::create_dir_all(&place).unwrap();
        place
    })
}

fn support(program: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/support")
        .join(program)
}
