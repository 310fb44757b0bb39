//! A session on a pseudo-terminal, and who is around it: PID 1 and the daemon, both played.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use pghoard::clock;
use pghoard::journal::log::Log;
use serde_json::{Value, json};
use tempfile::TempDir;

/// For anything to be said, on however busy a machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// What was asked of whom, in order.
type Asked = Arc<Mutex<Vec<Value>>>;

pub struct Bench {
    folder: TempDir,
    /// Of PID 1.
    control: Asked,
    /// Of the daemon: method, path and body.
    http: Asked,
    /// What it answers, by method and path; else 201.
    answers: Arc<Mutex<BTreeMap<String, Vec<Value>>>>,
    daemon: Option<Played>,
    port: u16,
}

/// Answers until it is dropped.
struct Played {
    gone: Arc<Mutex<bool>>,
    port: u16,
}

impl Drop for Played {
    fn drop(&mut self) {
        *self.gone.lock().unwrap() = true;
        // To wake it.
        let _already = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Bench {
    pub fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "settings",
            "log",
            "updates",
            "restore/old",
            "pghoard",
            "run",
        ] {
            fs::create_dir_all(folder.path().join("data").join(name)).unwrap();
        }
        fs::write(
            folder.path().join("data/log/daemon.log"),
            "first\nthe last line\n",
        )
        .unwrap();
        fs::write(folder.path().join("data/updates/x.bundle"), "x").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut bench = Bench {
            folder,
            control: Asked::default(),
            http: Asked::default(),
            answers: Arc::default(),
            daemon: None,
            port,
        };
        bench.daemon = Some(bench.play(listener));
        bench.play_pid_1();
        bench
    }

    pub fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join("data").join(name)
    }

    /// Settings as PID 1 would have put them in force.
    pub fn settle(&self, settings: Value) {
        settle(&self.data(""), self.port, &settings);
    }

    /// Gives all of it to that user. Whether that was possible.
    pub fn belongs_to(&self, user: u32) -> bool {
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.folder.path(), open).unwrap();
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(self.data("run/pghoard.json"), private).unwrap();
        ["", "run", "run/pghoard.json", "pghoard"]
            .iter()
            .all(|name| chown(self.data(name), Some(user), Some(user)).is_ok())
    }

    pub fn settings(&self) -> Value {
        let bytes = fs::read(self.data("settings/pghoard.json")).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// What PID 1 was asked of one kind.
    pub fn asked(&self, kind: &str) -> Vec<Value> {
        let asked = self.control.lock().unwrap();
        asked
            .iter()
            .filter(|one| one["do"] == kind)
            .cloned()
            .collect()
    }

    /// What the daemon was asked at one path.
    pub fn http(&self, path: &str) -> Vec<Value> {
        let asked = self.http.lock().unwrap();
        let found = asked.iter().filter(|one| one["path"] == path);
        found.map(|one| one["body"].clone()).collect()
    }

    /// What became an event of a person: command and detail.
    pub fn recorded(&self) -> Vec<String> {
        let told = |body: Value| {
            assert_eq!(body["who"], "console pty");
            let detail = body["detail"].as_str().unwrap_or_default();
            format!("{}: {detail}", body["command"].as_str().unwrap())
        };
        self.http("/operator").into_iter().map(told).collect()
    }

    /// The next answers of the daemon to `GET /x` or `PUT /x`; the last one stays.
    pub fn answer(&self, request: &str, answers: Vec<Value>) {
        let mut all = self.answers.lock().unwrap();
        all.insert(request.to_owned(), answers);
    }

    pub fn daemon_leaves(&mut self) {
        self.daemon = None;
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            assert!(
                Instant::now() < deadline,
                "the daemon that is played does not leave"
            );
            thread::yield_now();
        }
    }

    pub fn daemon_comes(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", self.port)) {
                Ok(listener) => break listener,
                Err(e) => assert!(Instant::now() < deadline, "{e}"),
            }
        };
        self.daemon = Some(self.play(listener));
    }

    /// A state file of the daemon's.
    pub fn state(&self, daemon: Value) {
        let text = json!({ "daemon": daemon }).to_string();
        fs::write(self.data("run/state.json"), text).unwrap();
    }

    /// An event log with two events in it.
    pub fn log(&self) {
        let path = self.data("pghoard").join(pghoard::journal::log::FILE_NAME);
        let mut log = Log::open(&path, &mut |_| {}).unwrap();
        let event = |name: &str| {
            let name = format!("backup {name}");
            let site = Some(machine::Site("main".to_owned()));
            (site, machine::Event::LabelArchived { name })
        };
        log.append(clock::now(), 1, vec![event("one"), event("two")])
            .unwrap();
    }

    pub fn session(&self, term: &str) -> Session {
        let link = self.folder.path().join("pghoard_console");
        if !link.exists() {
            symlink(env!("CARGO_BIN_EXE_pghoard-appliance"), &link).unwrap();
        }
        let pty = openpty(None, None).unwrap();
        // As whoever used the line before may have left it.
        let mut raw = tcgetattr(&pty.slave).unwrap();
        cfmakeraw(&mut raw);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &raw).unwrap();
        let tty = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(link)
            .env("TERM", term)
            .env("PGHOARD_DATA", self.data(""))
            .env("PGHOARD_CONTROL", self.folder.path().join("control"))
            .env("PGHOARD_CONFIG", self.data("run/pghoard.json"))
            .env("PGHOARD_CONSOLE_TTY", "pty")
            .stdin(tty())
            .stdout(tty())
            .stderr(tty())
            .spawn()
            .unwrap();
        drop(pty.slave);
        Session::new(child, File::from(pty.master))
    }

    fn play_pid_1(&self) {
        let listener = UnixListener::bind(self.folder.path().join("control")).unwrap();
        let (asked, data, port) = (Arc::clone(&self.control), self.data(""), self.port);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                let request: Value = serde_json::from_str(&line).unwrap();
                asked.lock().unwrap().push(request.clone());
                let answer = pid_1(&request, &mut |settings| settle(&data, port, settings));
                writeln!(stream, "{answer}").unwrap();
            }
        });
    }

    fn play(&self, listener: TcpListener) -> Played {
        let gone = Arc::new(Mutex::new(false));
        let played = Played {
            gone: Arc::clone(&gone),
            port: self.port,
        };
        let (asked, answers) = (Arc::clone(&self.http), Arc::clone(&self.answers));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if *gone.lock().unwrap() {
                    return;
                }
                // Who only knocked is none.
                let _left = serve(stream.unwrap(), &asked, &answers);
            }
        });
        played
    }
}

fn settle(data: &std::path::Path, port: u16, settings: &Value) {
    let mut filled = settings.clone();
    filled["http_port"] = json!(port);
    filled["backup_location"] = json!(data.join("pghoard"));
    filled["json_state_file_path"] = json!(data.join("run/state.json"));
    fs::write(data.join("settings/pghoard.json"), settings.to_string()).unwrap();
    fs::write(data.join("run/pghoard.json"), filled.to_string()).unwrap();
}

fn pid_1(request: &Value, settle: &mut dyn FnMut(&Value)) -> Value {
    let ok = match request["do"].as_str().unwrap() {
        "status" => json!({
            "hostname": "b1", "version": "0.1.0", "slot": "0.1.0",
            "daemon": { "state": "running", "since_seconds": 5, "restarts": 0, "status": "" },
            "settings": { "source": "the data partition", "problem": null },
            "network": [{ "name": "eth0", "mac": "52:54:00:12:34:56", "carrier": true,
                "addresses": ["10.0.2.15/24"], "gateways": [], "dhcp": null }],
            "dns": [], "disk": { "total_bytes": 1024, "free_bytes": 512, "problem": null },
            "time": { "synchronised": true, "server": "10.0.2.2" }, "memory": {}, "trial": null,
        }),
        "apply" if request["settings"]["refuse"] == true => {
            return json!({ "error": "PID 1 does not want that" });
        }
        "apply" => {
            assert_eq!(request["who"], "console pty");
            settle(&request["settings"]);
            json!({ "digest": "0123456789ab", "restart": false })
        }
        "history" => json!([{ "name": "1795339731251-0123456789ab.json",
            "at_ms": 1_795_339_731_251_u64, "digest": "0123456789ab", "who": "console pty" }]),
        "slots" => json!([{ "version": "0.1.0", "state": "confirmed", "booted": true, "log": 1 }]),
        "import" => json!({ "settings": { "appliance": { "hostname": "from the drive" } } }),
        _ => Value::Null,
    };
    json!({ "ok": ok })
}

fn serve(
    stream: TcpStream,
    asked: &Asked,
    answers: &Mutex<BTreeMap<String, Vec<Value>>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(&stream);
    let mut head = String::new();
    reader.read_line(&mut head)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line == "\r\n" {
            break;
        }
        if let Some(text) = line.to_lowercase().strip_prefix("content-length:") {
            length = text.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    asked
        .lock()
        .unwrap()
        .push(json!({ "method": method, "path": path, "body": body }));
    let mut answers = answers.lock().unwrap();
    let answer = match answers.get_mut(&format!("{method} {path}")) {
        Some(answers) if answers.len() > 1 => answers.remove(0),
        Some(answers) => answers[0].clone(),
        None => Value::Null,
    };
    let status = if method == "GET" {
        "200 OK"
    } else {
        "201 Created"
    };
    let answer = answer.to_string();
    let length = answer.len();
    write!(
        &stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{answer}"
    )
}

pub struct Session {
    child: Child,
    master: File,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    /// Up to where it was expected.
    at: usize,
}

#[derive(Default)]
struct Heard {
    text: String,
    ended: bool,
}

impl Session {
    fn new(child: Child, master: File) -> Session {
        let heard = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let (mut reader, shared) = (master.try_clone().unwrap(), Arc::clone(&heard));
        thread::spawn(move || {
            let mut block = [0; 4096];
            // It ends with an error when the last who had the terminal is gone.
            while let Ok(count @ 1..) = reader.read(&mut block) {
                let text = String::from_utf8_lossy(&block[..count]);
                shared.0.lock().unwrap().text.push_str(&text);
                shared.1.notify_all();
            }
            shared.0.lock().unwrap().ended = true;
            shared.1.notify_all();
        });
        Session {
            child,
            master,
            heard,
            at: 0,
        }
    }

    pub fn seen(&self) -> String {
        self.heard.0.lock().unwrap().text.clone()
    }

    /// Waits until the text is said, after what was expected before.
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        let mut heard = self.heard.0.lock().unwrap();
        loop {
            if let Some(found) = heard.text[self.at..].find(text) {
                self.at += found + text.len();
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero() && !heard.ended,
                "waited for {text:?} after {:?} in\n{}",
                &heard.text[..self.at],
                heard.text
            );
            heard = self.heard.1.wait_timeout(heard, left).unwrap().0;
        }
    }

    pub fn prompt(&mut self) {
        self.expect("pghoard> ");
    }

    pub fn send(&mut self, line: &str) {
        self.type_in(&format!("{line}\r"));
    }

    pub fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Ctrl-C.
    pub fn interrupt(&mut self) {
        self.type_in("\u{3}");
    }

    /// Waits for its end. Gives its exit code.
    pub fn ended(&mut self) -> i32 {
        let deadline = Instant::now() + DEADLINE;
        let mut heard = self.heard.0.lock().unwrap();
        while !heard.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "it does not end:\n{}", heard.text);
            heard = self.heard.1.wait_timeout(heard, left).unwrap().0;
        }
        drop(heard);
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
