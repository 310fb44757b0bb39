//! Look-ahead where no daemon is asked: a process beside the recovering server.
//!
//! `restore_command` runs once a segment, so what fetches ahead has to outlive it: the first call
//! that fetched a segment leaves a process behind, which fetches the next ones into
//! [`FOLDER`] below the data directory. The calls after it ask that process through a socket there
//! and only rename what they get; they read no configuration, no key and no store.
//!
//! - The name of the folder begins with `pgsql_tmp`, which PostgreSQL leaves out of base backups
//!   (`basebackup.c`, `PG_TEMP_FILE_PREFIX`); it is on the disk of the data directory.
//! - The process locks the folder, so there is one; it empties it first, and nobody takes a file
//!   that it did not hand out. So whoever dies when, no half file is ever taken.
//! - It ends, and the folder with it, when the server stops, when nobody took anything for
//!   [`SILENCE`], when the configuration changed, or when another one is asked for. Its exit code
//!   is 0, always: in a container PostgreSQL may be its parent and takes others for a crash.
//!
//! Any trouble means that the call fetches by itself, as if nobody had been here.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::Segment;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::config;
use crate::failure::{Failure, Outcome};
use crate::restore::ahead::plan::SILENCE;
use crate::restore::ahead::{Ahead, Order};
use crate::restore::wal;

/// Below the data directory, which is where PostgreSQL runs us.
const FOLDER: &str = "pgsql_tmp_pghoard";
const SOCKET: &str = "pgsql_tmp_pghoard/socket";
/// It is there while a server runs; its first line is the server's process.
const SERVER: &str = "postmaster.pid";
/// Looks at the server, the configuration and the clock.
const TURN_MS: u16 = 1_000;
/// The process may wait for a fetch under way for 30 seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);
/// To ask and to rename takes no time.
const CALL_WITHIN: Duration = Duration::from_secs(5);
const CALL_BYTES_MAX: u64 = 16 << 10;

/// What a call asks for, of whom.
pub struct Asked<'a> {
    pub site: &'a str,
    pub config: &'a Path,
    pub name: &'a str,
}

/// What became of the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The file is at the output.
    Here,
    /// It was not fetched ahead.
    No,
    NobodyThere,
}

/// Asks for a segment that was fetched ahead.
pub fn take(asked: &Asked<'_>, output: &Path) -> Told {
    if !Segment::is_name(asked.name) || !Path::new(SERVER).exists() {
        return Told::No;
    }
    let Ok(stream) = UnixStream::connect(SOCKET) else {
        return Told::NobodyThere;
    };
    match call(&stream, asked) {
        Some(file) if wal::hand_over(&file, output).is_ok() => Told::Here,
        Some(_) | None => Told::No,
    }
}

/// The file that is ours now, while the connection lasts.
fn call(mut stream: &UnixStream, asked: &Asked<'_>) -> Option<PathBuf> {
    stream.set_read_timeout(Some(ANSWER_WITHIN)).ok()?;
    stream.set_write_timeout(Some(CALL_WITHIN)).ok()?;
    stream.write_all(&question(asked)?).ok()?;
    let mut answer = String::new();
    let mut reader = BufReader::new(stream.take(CALL_BYTES_MAX));
    reader.read_line(&mut answer).ok()?;
    let name = answer.strip_suffix('\n').filter(|name| !name.is_empty())?;
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    plain.then(|| Path::new(FOLDER).join(name))
}

fn question(asked: &Asked<'_>) -> Option<Vec<u8>> {
    let config = std::path::absolute(asked.config).ok()?;
    let parts = [
        asked.name.as_bytes(),
        asked.site.as_bytes(),
        config.as_os_str().as_bytes(),
    ];
    let clean = parts.iter().all(|part| !part.contains(&b'\n'));
    clean.then(|| [&parts.join(&b'\n')[..], b"\n"].concat())
}

/// Leaves a process behind that goes on after `asked`, which is at `output` now.
pub fn start(asked: &Asked<'_>, output: &Path) {
    let (Ok(program), Ok(written)) = (std::env::current_exe(), fs::metadata(output)) else {
        return;
    };
    let Ok(config) = std::path::absolute(asked.config) else {
        return;
    };
    let mut process = Command::new(program);
    process
        .arg0("pghoard_postgres_command")
        .args(["--mode", "look-ahead", "--xlog", asked.name])
        // Neither is taken for a flag, whatever it begins with.
        .arg(format!("--site={}", asked.site))
        .arg("--config")
        .arg(config)
        .arg(format!("--segment-bytes={}", written.len()))
        // The server's log would wait for the end of whoever holds it open.
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Without it every segment is fetched when it is asked for.
    let _alone = process.spawn();
}

/// The process itself, in the server's data directory.
pub fn run(asked: &Asked<'_>, segment_bytes: u64) -> Outcome<()> {
    detach();
    let Some(server) = server() else {
        return Ok(());
    };
    let Some(lock) = lock()? else {
        return Ok(());
    };
    let stamp = stamp(asked.config);
    let (config, _) = config::load(asked.config)?;
    let site = config.site(Some(asked.site))?;
    let ahead = Ahead::new(Order {
        site: site.name.clone(),
        cluster: wal::cluster::of(Path::new(".")),
        config: Arc::new(config),
        folder: PathBuf::from(FOLDER),
        readers_max: 1,
    })?;
    let told = |e: io::Error| Failure::io(&e, SOCKET);
    let listener = UnixListener::bind(SOCKET).map_err(told)?;
    ahead.asked(asked.name, segment_bytes);
    let mut taken = Instant::now();
    let current = || {
        let ours = fs::metadata(FOLDER).is_ok_and(|found| same(&found, &lock));
        ours && server_is(&server) && self::stamp(asked.config) == stamp
    };
    while taken.elapsed() < SILENCE && current() {
        let mut wanted = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut wanted, PollTimeout::from(TURN_MS)), Ok(1..)) {
            continue;
        }
        let (stream, _) = listener.accept().map_err(told)?;
        match current().then(|| answer(&stream, asked, &ahead, segment_bytes)) {
            Some(Call::Took) => taken = Instant::now(),
            Some(Call::Went) => {}
            Some(Call::Stranger) | None => break,
        }
    }
    // Who comes now finds nobody, rather than no answer.
    drop(listener);
    ahead.stop()?;
    fs::remove_dir(FOLDER).map_err(|e| Failure::io(&e, FOLDER))
}

/// How a call ended.
enum Call {
    Took,
    /// Without a file, or without a word.
    Went,
    /// It wants another site or configuration.
    Stranger,
}

fn answer(mut stream: &UnixStream, ours: &Asked<'_>, ahead: &Ahead, segment_bytes: u64) -> Call {
    let Some(name) = asked_for(stream, ours) else {
        return Call::Went;
    };
    let Some(name) = name else {
        return Call::Stranger;
    };
    let Some(file) = ahead.take(&name) else {
        let _gone = stream.write_all(b"\n");
        ahead.asked(&name, segment_bytes);
        return Call::Went;
    };
    let shown = file.path().file_name().map(OsStr::as_bytes);
    let line = [shown.unwrap_or_default(), b"\n"].concat();
    // It is the caller's until it hangs up; what it left then is removed.
    let told = stream.write_all(&line).and_then(|()| stream.read(&mut [0]));
    match told {
        Ok(_) => Call::Took,
        Err(_) => Call::Went,
    }
}

/// The name that is asked for; `Some(None)` if it is not asked of us.
fn asked_for(stream: &UnixStream, ours: &Asked<'_>) -> Option<Option<String>> {
    stream.set_read_timeout(Some(CALL_WITHIN)).ok()?;
    stream.set_write_timeout(Some(CALL_WITHIN)).ok()?;
    let mut reader = BufReader::new(stream.take(CALL_BYTES_MAX));
    let mut lines = Vec::new();
    for _ in 0..3 {
        reader.read_until(b'\n', &mut lines).ok()?;
    }
    let end = lines.iter().position(|byte| *byte == b'\n')?;
    let name = String::from_utf8(lines.get(..end)?.to_vec()).ok()?;
    let expected = question(&Asked {
        name: &name,
        ..*ours
    })?;
    Some((expected == lines && Segment::is_name(&name)).then_some(name))
}

/// Of its own session, and without the server's files, which it may want to be rid of.
fn detach() {
    // Already the first of its session if somebody ran it by hand.
    let _first = nix::unistd::setsid();
    let entries = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten();
    let open = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
    let open: Vec<RawFd> = open.filter(|fd| *fd > 2).collect();
    for fd in open {
        // The listing's own is closed already.
        let _closed = nix::unistd::close(fd);
    }
}

/// The folder's lock, unless another process has it.
fn lock() -> Outcome<Option<File>> {
    let told = |e: io::Error| Failure::io(&e, FOLDER);
    match DirBuilder::new().mode(0o700).create(FOLDER) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(told(e)),
        Ok(()) | Err(_) => {}
    }
    let folder = File::open(FOLDER).map_err(told)?;
    if folder.try_lock().is_err() {
        return Ok(None);
    }
    // One that ended meanwhile took the folder with it.
    let found = fs::metadata(FOLDER).map_err(told)?;
    Ok(same(&found, &folder).then_some(folder))
}

fn same(found: &fs::Metadata, folder: &File) -> bool {
    let ours = folder.metadata();
    ours.is_ok_and(|ours| (ours.dev(), ours.ino()) == (found.dev(), found.ino()))
}

fn server() -> Option<String> {
    let text = fs::read_to_string(SERVER).ok()?;
    text.lines().next().map(str::to_owned)
}

fn server_is(known: &str) -> bool {
    server().as_deref() == Some(known)
}

/// Changes with the file's content.
fn stamp(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let found = fs::metadata(path).ok()?;
    Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}
