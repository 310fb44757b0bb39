//! A virtual machine that boots the image, with a person's hands on its serial console.
//!
//! QEMU emulates the processor: a `/dev/kvm` that opens may still not run a guest, so it is used
//! only where `PGHOARD_TEST_KVM=1` says so. Power is cut by killing QEMU, whose disk file then
//! holds what the guest had written.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use firmware_image::run::{Bus, Virtual};

use serde_json::{Value, json};

use crate::support::process::Scratch;
use crate::support::{wait_for, wait_until};

/// An emulated machine beside other tests is slow.
pub const PATIENCE: Duration = Duration::from_secs(150);
pub const PROMPT: &str = "pghoard> ";
/// The host, as the guest's network sees it.
pub const HOST: &str = "10.0.2.2";

/// A disk and what belongs to it; machines come and go.
pub struct Place {
    pub scratch: Scratch,
    pub disk: PathBuf,
    pub api: u16,
    /// Further disks, read only.
    pub drives: Vec<PathBuf>,
    pub bus: Bus,
    pub secure_boot: bool,
    /// Extra arguments of QEMU.
    pub more: Vec<String>,
}

impl Place {
    /// A copy of the image on a disk of so many GiB.
    pub fn new(image: &Path, gib: u64) -> Place {
        let scratch = Scratch::new();
        let disk = scratch.join("disk.raw");
        let copied = Command::new("cp")
            .arg("--sparse=always")
            .args([image, &disk])
            .status();
        assert!(copied.unwrap().success());
        let file = fs::File::options().write(true).open(&disk).unwrap();
        file.set_len(gib << 30).unwrap();
        let api = TcpListener::bind("127.0.0.1:0").unwrap();
        Place {
            disk,
            api: api.local_addr().unwrap().port(),
            scratch,
            drives: Vec::new(),
            bus: Bus::Virtio,
            secure_boot: false,
            more: Vec::new(),
        }
    }

    /// Where it begins on the disk, and how long it is, in bytes.
    pub fn partition(&self, name: &str) -> (u64, u64) {
        let table = gpt::GptConfig::new().open(&self.disk).unwrap();
        let all = table.partitions().values();
        let found = all
            .into_iter()
            .find(|partition| partition.name == name)
            .unwrap();
        let sectors = found.last_lba + 1 - found.first_lba;
        (found.first_lba * 512, sectors * 512)
    }

    fn command(&self) -> Command {
        let mut machine = Virtual::new(&self.disk);
        machine.kvm = std::env::var("PGHOARD_TEST_KVM").is_ok_and(|on| on == "1");
        machine.serial = Some(self.scratch.join("serial"));
        machine.qmp = Some(self.scratch.join("monitor"));
        machine.forward = vec![(self.api, 16_000)];
        machine.drive.clone_from(&self.drives);
        machine.bus = self.bus;
        machine.secure_boot = self.secure_boot;
        // A restart ends QEMU: whoever waits for it starts the next one.
        machine.more = vec!["-no-reboot".into()];
        machine.more.extend(self.more.iter().map(Into::into));
        machine.command().unwrap()
    }

    pub fn boot(&self) -> Machine {
        for name in ["serial", "monitor"] {
            let _from_before = fs::remove_file(self.scratch.join(name));
        }
        let log = fs::File::create(self.scratch.join("qemu.log")).unwrap();
        let child = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("qemu-system-x86_64 runs");
        let mut machine = Machine {
            child,
            heard: Arc::default(),
            seen: 0,
            started: Instant::now(),
            serial: None,
            monitor: self.scratch.join("monitor"),
        };
        let path = self.scratch.join("serial");
        let serial = wait_for("QEMU's serial line", PATIENCE, || {
            assert!(
                machine.child.try_wait().unwrap().is_none(),
                "QEMU ended at once"
            );
            UnixStream::connect(&path).ok()
        });
        let heard = Arc::clone(&machine.heard);
        let mut from = serial.try_clone().unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                heard.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        machine.serial = Some(serial);
        machine
    }
}

pub struct Machine {
    child: Child,
    heard: Arc<Mutex<Vec<u8>>>,
    /// How much of it was waited for already.
    seen: usize,
    pub started: Instant,
    serial: Option<UnixStream>,
    monitor: PathBuf,
}

impl Machine {
    /// All the console said.
    pub fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap()).into_owned()
    }

    /// Waits until the console says it, after what was waited for before; gives what came before.
    pub fn expect(&mut self, text: &str) -> String {
        self.expect_one(&[text]).1
    }

    /// As `expect`; nothing if the machine went off before.
    pub fn expect_or_off(&mut self, text: &str) -> Option<String> {
        wait_for("the machine to say it or to go off", PATIENCE, || {
            let heard =
                String::from_utf8_lossy(&self.heard.lock().unwrap()[self.seen..]).into_owned();
            if let Some((before, _)) = heard.split_once(text) {
                return Some(Some(before.to_owned()));
            }
            self.child.try_wait().unwrap().map(|_| None)
        })
    }

    /// As `expect`, of several: which one it was.
    pub fn expect_one(&mut self, texts: &[&str]) -> (usize, String) {
        let found = wait_for(&format!("{texts:?} at the console"), PATIENCE, || {
            if let Some(found) = self.find(texts) {
                return Some(found);
            }
            let over = self.child.try_wait().unwrap();
            assert!(
                over.is_none(),
                "QEMU ended; the console said:\n{}",
                self.heard()
            );
            None
        });
        let (number, before, end) = found;
        self.seen = end;
        (number, before)
    }

    /// Which of them comes first, what comes before it, and where it ends.
    fn find(&self, texts: &[&str]) -> Option<(usize, String, usize)> {
        let heard = self.heard.lock().unwrap();
        let rest = &heard[self.seen..];
        let all = texts.iter().enumerate().filter_map(|(number, text)| {
            let mut windows = rest.windows(text.len());
            let at = windows.position(|window| window == text.as_bytes())?;
            Some((at, number, text.len()))
        });
        let (at, number, length) = all.min()?;
        let before = String::from_utf8_lossy(&rest[..at]).into_owned();
        Some((number, before, self.seen + at + length))
    }

    pub fn send(&mut self, text: &str) {
        self.serial
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// A line, and what the console answers before it asks again.
    pub fn command(&mut self, line: &str) -> String {
        self.send(&format!("{line}\r"));
        self.expect(PROMPT)
    }

    /// From the status page to the prompt.
    pub fn log_in(&mut self, password: Option<&str>) {
        self.expect("Press Enter");
        self.send("\r");
        if let Some(password) = password {
            self.expect("Password: ");
            self.send(&format!("{password}\r"));
        }
        self.expect(PROMPT);
    }

    pub fn cut_power(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The emulated processor's seconds so far.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let after = stat.rsplit(')').next().unwrap();
        let words: Vec<&str> = after.split_whitespace().collect();
        let ticks: u64 = words[11].parse::<u64>().unwrap() + words[12].parse::<u64>().unwrap();
        ticks as f64 / 100.0
    }

    pub fn press_power(&self) {
        self.monitor(&[json!({ "execute": "system_powerdown" })]);
    }

    /// On the keyboard, with Enter at the end: small letters, spaces and dashes.
    pub fn type_line(&self, text: &str) {
        let press = |key: String| {
            json!({ "execute": "send-key", "arguments": {
                "keys": [{ "type": "qcode", "data": key }], "hold-time": 1,
            } })
        };
        let keys = text.chars().map(|letter| match letter {
            ' ' => "spc".into(),
            '-' => "minus".into(),
            other => other.into(),
        });
        let keys: Vec<Value> = keys.chain(["ret".to_owned()]).map(press).collect();
        self.monitor(&keys);
    }

    /// QEMU's own protocol: one order after the other.
    fn monitor(&self, orders: &[Value]) {
        let monitor = UnixStream::connect(&self.monitor).unwrap();
        let mut answers = BufReader::new(&monitor).lines();
        let _greeting = answers.next().unwrap().unwrap();
        let begin = json!({ "execute": "qmp_capabilities" });
        for order in [&begin].into_iter().chain(orders) {
            writeln!(&monitor, "{order}").unwrap();
            let _done = answers.next().unwrap().unwrap();
        }
    }

    /// Until QEMU has ended by itself, by a power-off or (`-no-reboot`) a restart.
    pub fn wait_off(mut self) -> String {
        wait_until("the machine to go off", PATIENCE, || {
            self.child.try_wait().unwrap().is_some()
        });
        self.heard()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the console said:\n{}", self.heard());
        }
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
