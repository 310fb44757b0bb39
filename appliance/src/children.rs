//! Processes and threads of PID 1. Each process that ends is reaped in one place, ours and orphans.
//!
//! A child is registered under the lock under which it was started, and reaped under the same one,
//! so that none can end unseen.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use pghoard::{Failure, Outcome};

/// How a process ended, as a person would say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Of one that ended by itself.
    pub code: Option<i32>,
    pub text: String,
}

/// Of what a short command says, so much is kept.
const SAID_MAX: u64 = 64 << 10;

type Tell = Box<dyn FnOnce(Ended) + Send>;

#[derive(Default)]
pub struct Children {
    waiting: Mutex<BTreeMap<Pid, Tell>>,
    started: Condvar,
}

impl Children {
    /// Starts a process; `tell` is called once when it has ended.
    pub fn start(
        &self,
        command: &mut Command,
        tell: impl FnOnce(Ended) + Send + 'static,
    ) -> Outcome<Pid> {
        let name = command_name(command);
        let about = |e: &io::Error| Failure::io(e, &name);
        let mut waiting = self.lock();
        let child = command.spawn().map_err(|e| about(&e))?;
        let pid = i32::try_from(child.id()).map_err(|e| about(&io::Error::other(e)))?;
        waiting.insert(Pid::from_raw(pid), Box::new(tell));
        self.started.notify_all();
        Ok(Pid::from_raw(pid))
    }

    /// Runs a short command to its end: its exit code, and all it said.
    pub fn output(&self, command: &mut Command) -> Outcome<(Option<i32>, String)> {
        let about = |e: io::Error| Failure::io(&e, "a pipe");
        let (mut pipe, end) = io::pipe().map_err(about)?;
        command
            .stdin(Stdio::null())
            .stdout(end.try_clone().map_err(about)?)
            .stderr(end);
        let (tell, told) = told();
        self.start(command, tell)?;
        // Our copies of its ends, or we would wait for ourselves.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // To the end: a pipe that nobody reads would end a repair in its middle.
        let mut said = Vec::new();
        let mut head = (&mut pipe).take(SAID_MAX);
        let read = head.read_to_end(&mut said);
        let drained = read.and_then(|_| io::copy(&mut pipe, &mut io::sink()));
        if let Err(error) = drained {
            log::warn!("{}: {error}", command_name(command));
        }
        let said = String::from_utf8_lossy(&said);
        Ok((
            told.recv().ok().and_then(|ended| ended.code),
            said.trim().replace('\n', "; "),
        ))
    }

    /// For ever, on a thread of its own.
    pub fn reap(&self) {
        loop {
            // Looks, without taking the process away before its owner is known.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            match waitid(Id::All, flags) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => {
                    let waiting = self.lock();
                    let patience = Duration::from_secs(1);
                    let waited = self.started.wait_timeout(waiting, patience);
                    drop(waited.unwrap_or_else(PoisonError::into_inner));
                    continue;
                }
            }
            let mut waiting = self.lock();
            while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                let Some(pid) = status.pid() else { break };
                let tell = waiting.remove(&pid);
                if let Some(tell) = tell {
                    tell(ended(status));
                }
            }
        }
    }

    pub fn signal(&self, pid: Pid, signal: Signal) {
        // Under the lock: it is not reaped, so the number is still its own.
        if self.lock().contains_key(&pid) {
            let _already_gone = kill(pid, signal);
        }
    }

    pub fn running(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Pid, Tell>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel's end as what `start` takes.
pub fn told() -> (impl FnOnce(Ended) + Send + 'static, Receiver<Ended>) {
    let (tell, told) = sync_channel(1);
    let tell = move |ended| {
        let _nobody_waits = tell.send(ended);
    };
    (tell, told)
}

fn ended(status: WaitStatus) -> Ended {
    let (code, text) = match status {
        WaitStatus::Exited(_, code) => (Some(code), format!("ended with {code}")),
        WaitStatus::Signaled(_, signal, _) => (None, format!("was ended by {signal}")),
        other => (None, format!("ended: {other:?}")),
    };
    Ended { code, text }
}

fn command_name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// The reaper of a whole process, for who has one.
pub fn reaper() -> Arc<Children> {
    let children = Arc::new(Children::default());
    let reaped = Arc::clone(&children);
    if let Err(failure) = thread("reap", move || reaped.reap()) {
        log::error!("{failure}");
    }
    children
}

/// A panic ends PID 1 (`boot`): what it held is never seen half changed.
pub fn lock<T>(held: &Mutex<T>) -> MutexGuard<'_, T> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that nobody waits for.
pub fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Outcome<()> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(run);
    let spawned = spawned.map(drop);
    spawned.map_err(|e| Failure::io(&e, format!("no thread '{name}'")))
}
