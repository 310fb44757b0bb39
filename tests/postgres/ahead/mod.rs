//! WAL fetched ahead of a recovery, by the daemon and without one: what is taken, what is never
//! believed, and that nothing but the file asked for is put into `pg_wal`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pghoard::store::local::Local;
use pghoard::store::{Body, Metadata, Put, Store};
use serde_json::json;

use crate::support::daemon::{Daemon, SITE, node};
use crate::support::postgres::{Install, Options, Server, install};
use crate::support::process::{hand_over, is_alive, run};
use crate::support::{PATIENCE, wait_for, wait_until};

/// Below the data directory, where no daemon is asked.
const FOLDER: &str = "pgsql_tmp_pghoard";

/// A backup, ten segments, a promotion, five segments: all of it in the store of a daemon.
fn history(install: &'static Install) -> (Server, Daemon) {
    let options = Options {
        segment_mib: Some(1),
        ..Options::default()
    };
    let mut server = Server::start(install, &options);
    server.sql("create table rows (n int)");
    let site = json!({
        "nodes": [node(&server)],
        "active_backup_mode": "walreceiver",
        "pg_data_directory": server.data,
    });
    let global = json!({ "log_level": "DEBUG", "restore_prefetch": 3 });
    let mut daemon = Daemon::configured(global, json!({ SITE: site })).started();
    daemon.wait_backups(1);
    segments(&server, 10);
    daemon.wait_caught_up(&server);
    server.stop();
    fs::write(server.data.join("standby.signal"), "").unwrap();
    server.up();
    server.promote();
    server.wait_primary();
    let last = segments(&server, 5);
    let stored = daemon.store().join(format!("{SITE}/xlog/{last}.metadata"));
    wait_until("the last segment to be stored", PATIENCE, || {
        daemon.assert_alive();
        stored.exists()
    });
    (server, daemon)
}

/// Writes rows and ends the segment, so often: the last one's name.
fn segments(server: &Server, count: u32) -> String {
    let mut name = String::new();
    for _ in 0..count {
        server.sql("insert into rows select generate_series(1, 100)");
        name = server.one("select pg_walfile_name(pg_switch_wal())");
    }
    name
}

/// Runs the real command and notes what it did, waiting first for what should come by itself. A
/// file that was taken from the look-ahead has the same inode before and after.
const WATCH: &str = r#"#!/bin/sh
name=$1
if [ -e STORE/xlog/$name ] && grep -q '^[0-9A-F]\{24\} 0 ' NOTES && ! grep -q "^$name" NOTES; then
    tries=0
    while [ ! -e AHEAD/$name ] && [ $tries -lt 400 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
fi
ahead=$(stat -c %i AHEAD/$name 2>/dev/null)
ls -A pg_wal > HOME/before
COMMAND --output $2 --xlog $name
code=$?
ls -A pg_wal > HOME/after
how=direct
[ -n "$ahead" ] && [ "$ahead" = "$(stat -c %i $2 2>/dev/null)" ] && how=taken
new=$(comm -13 HOME/before HOME/after | tr '\n' ' ')
echo $name $code $how $new >> NOTES
exit $code
"#;

struct Watch {
    notes: PathBuf,
}

impl Watch {
    /// As the restore_command of that server; `ahead` is where it should find what it asks for.
    fn over(server: &Server, daemon: &Daemon, command: &str, ahead: &Path) -> Watch {
        let home = server.folder("watch");
        let notes = home.join("notes");
        let store = daemon.store().join(SITE);
        let text = WATCH
            .replace("STORE", &store.display().to_string())
            .replace("NOTES", &notes.display().to_string())
            .replace("HOME", &home.display().to_string())
            .replace("AHEAD", &ahead.display().to_string())
            .replace("COMMAND", command);
        let script = home.join("watch.sh");
        for (path, text) in [(&script, text.as_str()), (&notes, "")] {
            fs::write(path, text).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
            hand_over(path);
        }
        let command = format!("sh {} %f %p", script.display());
        server.overrule(&format!("restore_command='{command}'"));
        Watch { notes }
    }

    /// Everything from the second segment on was taken, over the switch; nothing else appeared.
    fn check(&self) {
        let notes = fs::read_to_string(&self.notes).unwrap();
        let lines = notes.lines().map(|line| line.split(' ').collect());
        let lines: Vec<Vec<&str>> = lines.collect();
        for line in &lines {
            let new = line.get(3..).unwrap_or_default();
            let asked = ["RECOVERYXLOG", "RECOVERYHISTORY"];
            assert!(new.iter().all(|name| asked.contains(name)), "{notes}");
            assert!(["0", "4"].contains(&line[1]), "{notes}");
        }
        let taken = lines.iter().filter(|line| line[2] == "taken");
        let taken: Vec<&str> = taken.map(|line| line[0]).collect();
        let of = |timeline: &str| {
            taken
                .iter()
                .filter(|name| name.starts_with(timeline))
                .count()
        };
        assert!(of("00000001") >= 8, "{notes}");
        assert!(of("00000002") >= 5, "{notes}");
    }
}

fn recovered(mut server: Server) -> Server {
    server.up();
    server.wait_primary();
    assert_eq!(server.one("select count(*) from rows"), "1500");
    server
}

/// As the body of an answer, and written by the daemon itself.
#[test]
fn s44_s46_a_recovery_takes_from_the_daemons_look_ahead_across_a_switch() {
    let Some(install) = install(15) else { return };
    let (mut here, daemon) = history(install);
    let ahead = daemon.spool().join(SITE).join("prefetch");
    let command = bare(&daemon.command("restore", true));
    let there = daemon.restore(install, &["--restore-to-primary"]);
    let _watch = Watch::over(&there, &daemon, &command, &ahead);
    recovered(there);
    let log = fs::read_to_string(daemon.log()).unwrap();
    let taken = log.matches("had been fetched ahead").count();
    assert!(taken >= 13, "{taken} were taken");

    here.destroy_data();
    daemon
        .restore_into(&here.data, &["--restore-to-primary"])
        .ok();
    here.move_in();
    let command = bare(&daemon.command("restore", false));
    let watch = Watch::over(&here, &daemon, &command, &ahead);
    let _until_its_notes_are_read = recovered(here);
    watch.check();
}

/// The command without what is to be fetched and where to.
fn bare(command: &str) -> String {
    command
        .replace(" --output %p", "")
        .replace(" --xlog %f", "")
}

#[test]
fn s44_s46_a_recovery_without_a_daemon_takes_from_its_own_look_ahead() {
    let Some(install) = install(15) else { return };
    let (mut lost, mut daemon) = history(install);
    lost.kill9();
    daemon.sigterm();
    let server = daemon.restore(install, &["--restore-to-primary"]);
    let command = by_config(&daemon);
    let watch = Watch::over(&server, &daemon, &command, Path::new(FOLDER));
    let mut server = recovered(server);
    watch.check();
    server.stop();
    wait_until("the look-ahead to leave with its server", PATIENCE, || {
        !server.data.join(FOLDER).exists()
    });
}

/// A restore_command that reads the store.
fn by_config(daemon: &Daemon) -> String {
    let program = daemon.home().join("bin/pghoard_postgres_command");
    let config = daemon.home().join("pghoard.json");
    format!(
        "{} --mode restore --site {SITE} --config {}",
        program.display(),
        config.display()
    )
}

/// A data directory that looks like a running server's, and a store with these segments of 1 MiB.
struct Bed {
    daemon: Daemon,
    data: PathBuf,
}

impl Bed {
    fn new(numbers: &[u64]) -> Bed {
        let global = json!({ "restore_prefetch": 2 });
        let daemon = Daemon::configured(global, json!({ SITE: {} }));
        let data = daemon.home().join("data");
        fs::create_dir_all(data.join("pg_wal")).unwrap();
        fs::write(data.join("postmaster.pid"), "1\n").unwrap();
        let bed = Bed { daemon, data };
        for number in numbers {
            bed.put(*number, &wal(*number));
        }
        bed
    }

    fn put(&self, number: u64, body: &[u8]) {
        let store = Local::open(&self.daemon.store()).unwrap();
        let key = format!("{SITE}/xlog/{}", name(number));
        let (body, metadata) = (Body::Bytes(body), Metadata::new());
        store.put(&key, body, &metadata, Put::Create).unwrap();
        // The commands run as another user where the tests run as root.
        let mut own = Command::new("chown");
        own.args(["-R", "--reference"]).arg(self.daemon.home());
        own.args([&self.data, &self.daemon.store()]);
        assert!(own.status().unwrap().success());
    }

    fn remove(&self, number: u64) {
        let path = self
            .daemon
            .store()
            .join(format!("{SITE}/xlog/{}", name(number)));
        fs::remove_file(&path).unwrap();
        fs::remove_file(path.with_extension("metadata")).unwrap();
    }

    /// The exit code, and what is there.
    fn ask(&self, number: u64) -> (Option<i32>, Option<Vec<u8>>) {
        let words = ["--mode", "restore", "--site", SITE, "--xlog", &name(number)];
        let mut tool = self.daemon.tool("pghoard_postgres_command", &words);
        tool.args(["--output", "pg_wal/RECOVERYXLOG"]);
        tool.current_dir(&self.data);
        let answer = run(tool);
        let entries = fs::read_dir(self.data.join("pg_wal")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        assert!(names.into_iter().all(|name| name == "RECOVERYXLOG"));
        let output = self.data.join("pg_wal/RECOVERYXLOG");
        let found = fs::read(&output).ok();
        let _not_there = fs::remove_file(output);
        (answer.status.code(), found)
    }

    fn ahead(&self, number: u64) -> PathBuf {
        self.data.join(FOLDER).join(name(number))
    }

    fn wait_ahead(&self, number: u64) {
        let what = format!("{} to be fetched ahead", name(number));
        wait_until(&what, PATIENCE, || self.ahead(number).exists());
    }

    /// The processes that fetch ahead here.
    fn processes(&self) -> Vec<u32> {
        let entries = fs::read_dir("/proc").unwrap();
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let home = self.daemon.home().display().to_string();
        let ours = |pid: &u32| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains("look-ahead") && line.contains(&home) && is_alive(*pid)
        };
        pids.filter(ours).collect()
    }
}

fn name(number: u64) -> String {
    format!("0000000100000000{number:08X}")
}

fn wal(number: u64) -> Vec<u8> {
    let mut wal = Vec::new();
    wal.extend(0xD110u16.to_ne_bytes());
    wal.extend(2u16.to_ne_bytes());
    wal.extend(1u32.to_ne_bytes());
    wal.extend((number << 20).to_ne_bytes());
    wal.extend([0; 8]);
    wal.extend(7u64.to_ne_bytes());
    wal.extend((1u32 << 20).to_ne_bytes());
    wal.extend(8192u32.to_ne_bytes());
    wal.resize(1 << 20, 0x55);
    wal
}

#[test]
fn s45_a_look_ahead_that_is_killed_leaves_nothing_that_is_believed() {
    let bed = Bed::new(&[1, 2, 3, 4, 6, 7]);
    assert_eq!(bed.ask(1), (Some(0), Some(wal(1))));
    bed.wait_ahead(3);
    // What is gone from the store can only come from the look-ahead.
    bed.remove(2);
    assert_eq!(bed.ask(2), (Some(0), Some(wal(2))));
    bed.wait_ahead(4);
    let first = bed.processes();
    assert_eq!(first.len(), 1, "{first:?}");
    kill(Pid::from_raw(first[0].try_into().unwrap()), Signal::SIGKILL).unwrap();
    wait_until("it to be dead", PATIENCE, || !is_alive(first[0]));
    // As if it had died over these.
    for number in [3, 4] {
        fs::write(bed.ahead(number), &wal(number)[..5000]).unwrap();
    }
    assert_eq!(bed.ask(3), (Some(0), Some(wal(3))));
    let second = wait_for("another one", PATIENCE, || bed.processes().first().copied());
    assert_ne!(second, first[0]);
    wait_until("4 to be fetched anew", PATIENCE, || {
        fs::read(bed.ahead(4)).is_ok_and(|found| found == wal(4))
    });
    bed.remove(4);
    assert_eq!(bed.ask(4), (Some(0), Some(wal(4))));
    // An absence that was met ahead is no answer; a damaged object is refused, not absent.
    bed.put(5, &wal(5));
    assert_eq!(bed.ask(5), (Some(0), Some(wal(5))));
    bed.wait_ahead(7);
    bed.put(8, &wal(9));
    assert_eq!(bed.ask(6), (Some(0), Some(wal(6))));
    assert_eq!(bed.ask(7), (Some(0), Some(wal(7))));
    assert_eq!(bed.ask(8), (Some(255), None));
    assert_eq!(bed.ask(10), (Some(4), None));
    assert_eq!(bed.processes(), [second]);
    fs::remove_file(bed.data.join("postmaster.pid")).unwrap();
    wait_until("it to leave with its server", PATIENCE, || {
        !bed.data.join(FOLDER).exists() && bed.processes().is_empty()
    });
}

/// Where no server runs, nothing is left behind; and many calls at a time leave one process.
#[test]
fn one_look_ahead_at_most_and_only_beside_a_server() {
    let bed = Bed::new(&[1, 2, 3]);
    fs::remove_file(bed.data.join("postmaster.pid")).unwrap();
    assert_eq!(bed.ask(1).0, Some(0));
    assert!(!bed.data.join(FOLDER).exists());
    fs::write(bed.data.join("postmaster.pid"), "1\n").unwrap();
    std::thread::scope(|scope| {
        for number in 0..6 {
            let bed = &bed;
            scope.spawn(move || {
                let words = ["--mode", "restore", "--site", SITE, "--xlog", &name(1)];
                let mut tool = bed.daemon.tool("pghoard_postgres_command", &words);
                tool.arg("--output").arg(format!("out-{number}"));
                tool.current_dir(&bed.data);
                assert_eq!(run(tool).status.code(), Some(0));
            });
        }
    });
    bed.wait_ahead(3);
    wait_until("one process", PATIENCE, || bed.processes().len() == 1);
    // Another configuration is another look-ahead.
    let config = bed.daemon.home().join("pghoard.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + "\n").unwrap();
    wait_until("it to leave with its configuration", PATIENCE, || {
        !bed.data.join(FOLDER).exists() && bed.processes().is_empty()
    });
}
