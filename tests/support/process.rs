//! Processes and folders that belong to a test and are gone when it ends, however it ends.
//!
//! Three nets, since a leaked PostgreSQL on a shared machine spoils every later test: `Drop` kills
//! the process group, also while a panic unwinds; the kernel kills a child whose parent died
//! (`setpriv --pdeathsig`); and every folder is a temporary one.
//!
//! The parent the kernel watches is the *thread* that called `spawn`: start a process from the
//! thread of the test, never from a helper thread that ends before it.

use std::fs::File;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use std::{fs, mem, thread};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, User, geteuid};
use tempfile::TempDir;

use super::{PATIENCE, tail, wait_for, wait_until};

/// Who runs the servers when the tests run as root, whom PostgreSQL refuses. Debian's package made
/// this user.
const SERVICE_USER: &str = "postgres";

/// A command run as the user the servers belong to, with a small environment of its own.
pub fn command(program: impl AsRef<Path>, home: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if service_user().is_some() {
        let user = SERVICE_USER;
        command.args(["--reuid", user, "--regid", user, "--init-groups"]);
    }
    command.arg("--").arg(program.as_ref());
    command.env_clear();
    command
        .env("PATH", "/usr/sbin:/usr/bin:/bin")
        .env("HOME", home)
        .env("LC_ALL", "C");
    command.stdin(Stdio::null()).current_dir(home);
    command
}

/// Runs to the end; the answer holds both streams.
pub struct Answer {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

pub fn run(mut command: Command) -> Answer {
    let output = command.output().expect("setpriv runs");
    Answer {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Answer {
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(
            self.status.success(),
            "{}\n{}{}",
            self.status,
            self.stdout,
            self.stderr
        );
        self.stdout
    }
}

fn service_user() -> Option<&'static User> {
    static USER: OnceLock<Option<User>> = OnceLock::new();
    USER.get_or_init(|| {
        geteuid().is_root().then(|| {
            let user = User::from_name(SERVICE_USER).expect("the user database can be read");
            user.expect("user postgres is there: run tests/support/install")
        })
    })
    .as_ref()
}

/// Gives a file or folder to the user the servers run as.
pub fn hand_over(path: &Path) {
    if let Some(user) = service_user() {
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

/// A folder the servers may enter and write to. Its path is short: unix sockets live in it.
pub struct Scratch(TempDir);

impl Scratch {
    pub fn new() -> Scratch {
        let dir = tempfile::Builder::new().prefix("pght-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        hand_over(dir.path());
        Scratch(dir)
    }

    /// For what outlives the test that made it: gone, together with `litter` elsewhere, once this
    /// test binary has ended.
    #[expect(
        clippy::zombie_processes,
        reason = "it waits for this process, not the reverse"
    )]
    pub fn until_exit(litter: &[PathBuf]) -> Scratch {
        // Whoever still writes there is being killed at the same time.
        const CLEAN: &str = "cat; until rm -rf \"$@\"; do sleep 0.1; done";
        let mut scratch = Scratch::new();
        scratch.0.disable_cleanup(true);
        let mut cleaner = Command::new("sh");
        cleaner.args(["-c", CLEAN, "sh"]).arg(scratch.path());
        cleaner.args(litter).stdin(Stdio::piped()).process_group(0);
        cleaner.stdout(Stdio::null()).stderr(Stdio::null());
        let mut cleaner = cleaner.spawn().expect("a shell runs");
        mem::forget(cleaner.stdin.take()); // closed by the end of this process, which it waits for
        scratch
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).unwrap();
        hand_over(&path);
        path
    }

    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, content).unwrap();
        hand_over(&path);
        path
    }
}

/// A running program whose output goes to a file. Dropping it kills its whole process group.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn spawn(mut command: Command, log: PathBuf) -> Process {
        let out = File::options()
            .append(true)
            .create(true)
            .open(&log)
            .unwrap();
        command.stdout(out.try_clone().unwrap()).stderr(out);
        command.process_group(0);
        adopt_orphans();
        let child = command.spawn().expect("setpriv runs");
        Process { child, log }
    }

    /// `setpriv` becomes the program, so this is the program's own number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let _gone_is_fine = nix::sys::signal::kill(raw(self.pid()), signal);
    }

    pub fn kill9(&mut self) {
        let _gone_is_fine = killpg(raw(self.pid()), Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("the end of process {}", self.pid());
        wait_for(&what, deadline, || self.exited())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", tail(&self.log));
        }
        self.kill9();
    }
}

/// The numbers of the direct children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect()
}

/// A zombie is dead.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Kills what a killed parent left behind and waits until it is gone.
pub fn kill9_orphan(pid: u32) {
    let _gone_is_fine = nix::sys::signal::kill(raw(pid), Signal::SIGKILL);
    wait_until(&format!("the end of process {pid}"), PATIENCE, || {
        let _not_ours_is_fine = waitpid(raw(pid), Some(WaitPidFlag::WNOHANG));
        !is_alive(pid)
    });
}

/// Orphans of our children become ours, so that `kill9_orphan` can bury them: not every machine
/// (a container, say) has a first process that does.
fn adopt_orphans() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| set_child_subreaper(true).expect("Linux has it since 3.4"));
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("Linux numbers processes below 2^22"))
}
