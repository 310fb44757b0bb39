//! Real object stores and what lies on the way to them, each started on free loopback ports.
//!
//! A start function answers `None` where its server is not here; that has been said aloud as a
//! skip. Servers that take seconds to start are shared by the tests of one binary and end with it
//! (`keep`); each test makes a bucket, container or folder of its own there.

use std::path::PathBuf;
use std::sync::mpsc;
use std::{env, fs, thread};

use super::postgres::testbed;
use super::process::{Process, Scratch, command, run};
use super::{PATIENCE, left_out, skip, tail, wait_for};

pub mod azure;
pub mod ceph;
pub mod google;
pub mod lender;
pub mod proxies;
pub mod s3;
pub mod seaweed;
pub mod sshd;
pub mod strict;
pub mod swift;

/// A program that `tests/support/install` put below the test bed.
fn installed(name: &str, program: &str) -> Option<PathBuf> {
    let path = testbed().join(program);
    if path.exists() {
        return Some(path);
    }
    skip(name, "not installed: run tests/support/install");
    None
}

/// As `installed`, for what takes long to install or to start: only with the switch.
fn installed_heavy(name: &str, program: &str) -> Option<PathBuf> {
    if all_wanted() {
        return installed(name, program);
    }
    left_out(name, HEAVY);
    None
}

const HEAVY: &str = "takes long: PGHOARD_TEST_STORES=all, or tests/run --long";

fn all_wanted() -> bool {
    env::var("PGHOARD_TEST_STORES").is_ok_and(|stores| stores == "all")
}

/// Starts something that lives as long as this test binary. Processes die with the thread that
/// made them, so this thread never ends.
fn keep<T: Send + 'static>(start: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let _kept_by_who_asked = tell.send(start());
        loop {
            thread::park();
        }
    });
    told.recv().expect("it started; why not is said above")
}

/// Waits until a server answers, or says why it ended. Some compute for a long time before.
fn wait_ready<T>(process: &mut Process, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    wait_for(what, PATIENCE * 3, || {
        if let Some(status) = process.exited() {
            panic!("{what}: ended with {status}\n{}", tail(process.log()));
        }
        look()
    })
}

/// What a server said.
#[derive(Debug)]
pub struct Reply {
    /// 0 where nobody answered.
    pub status: u16,
    pub body: Vec<u8>,
    /// Of curl: 0, 7 refused, 18 too short, 28 too slow, 52 nothing, 55 and 56 reset.
    pub exit: i32,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// An HTTP request by a client that is not ours.
pub fn curl(words: &[&str]) -> Reply {
    let scratch = Scratch::new();
    let body = scratch.join("body");
    let mut curl = command("curl", scratch.path());
    curl.args(["-s", "--max-time", "60", "-w", "%{http_code}", "-o"])
        .arg(&body);
    // Proxies are wanted for loopback, too, where a test names one.
    curl.args(["--noproxy", ""]).args(words);
    let answer = run(curl);
    Reply {
        status: answer.stdout.parse().unwrap_or(0),
        body: fs::read(body).unwrap_or_default(),
        exit: answer.status.code().unwrap_or(-1),
    }
}
