//! The machine's own log: what PID 1 and the daemon say, on the data partition, within a bound.
//!
//! Both write to the same pipe, as their standard error. Until the data partition is there the
//! lines wait in memory; a line that finds no room on the disk is lost, and said so later.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use nix::unistd::{dup2_stderr, pipe2};
use pghoard::{Failure, Outcome};

use crate::children;

/// `pghoard.log` and `pghoard.log.1` to `.7`: 32 MiB in all.
const FILE_BYTES_MAX: u64 = 4 << 20;
const OLD_FILES: u32 = 7;
const NAME: &str = "pghoard.log";
/// Before the data partition is mounted.
const EARLY_LINES_MAX: usize = 2_000;
/// Waiting for a disk that is slow; what comes beyond it is lost.
const WAITING_MAX: usize = 4_096;
/// A longer one is cut: a program that never ends its line must not fill the memory.
const LINE_MAX: u64 = 8_192;
const KERNEL: &str = "/dev/kmsg";
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

enum Job {
    Line(Vec<u8>),
    Folder(PathBuf),
    /// Everything so far is on the disk, and the file is closed.
    Close(Sender<()>),
}

pub struct Diary {
    jobs: SyncSender<Job>,
    /// What children are given as their standard error.
    pub pipe: OwnedFd,
}

impl Diary {
    /// From now on this process's standard error goes there, too.
    pub fn start() -> Outcome<Diary> {
        let about = |e: io::Error| Failure::io(&e, "log");
        let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| about(e.into()))?;
        dup2_stderr(write.as_fd()).map_err(|e| about(e.into()))?;
        let (jobs, waiting) = sync_channel(WAITING_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let (lines, unheard) = (jobs.clone(), Arc::clone(&lost));
        children::thread("log-read", move || listen(read, &lines, &unheard))?;
        let writer = Writer {
            unheard: lost,
            ..Writer::default()
        };
        children::thread("log-write", move || writer.run(&waiting))?;
        Ok(Diary { jobs, pipe: write })
    }

    pub fn keep_in(&self, folder: &Path) {
        let _the_writer_lives = self.jobs.send(Job::Folder(folder.to_owned()));
    }

    /// Until what was said is written, for a short time.
    pub fn close(&self) {
        let (done, heard) = channel();
        if self.jobs.send(Job::Close(done)).is_ok() {
            let _late: Result<(), RecvTimeoutError> = heard.recv_timeout(CLOSE_WITHIN);
        }
    }
}

/// What the kernel warns of, into the same log; it has its own only until the next start.
pub fn hear_kernel() -> Outcome<()> {
    let about = |e: io::Error| Failure::io(&e, KERNEL);
    let mut device = File::open(KERNEL).map_err(about)?;
    children::thread("kernel-log", move || {
        let mut record = vec![0; 8_192];
        loop {
            match device.read(&mut record) {
                Ok(length) => tell(record.get(..length).unwrap_or_default()),
                // What was overwritten before it was read.
                Err(e) if e.raw_os_error() == Some(nix::libc::EPIPE) => {}
                Err(e) => return log::warn!("{KERNEL}: {e}"),
            }
        }
    })
}

fn tell(record: &[u8]) {
    match warning(&String::from_utf8_lossy(record)) {
        Some((severity @ 0..=3, text)) => log::error!("kernel ({severity}): {text}"),
        Some((_, text)) => log::warn!("kernel: {text}"),
        None => {}
    }
}

/// Severity and text of a record that is a warning or worse, as the kernel's documentation has it
/// (`Documentation/ABI/testing/dev-kmsg`): `facility * 8 + severity,number,time,flags;text`, then
/// lines of properties.
fn warning(record: &str) -> Option<(u32, &str)> {
    let (head, rest) = record.split_once(';')?;
    let code: u32 = head.split(',').next()?.parse().ok()?;
    let severity = code % 8;
    // What a program wrote there is its own affair.
    (severity <= 4 && code < 8).then_some((severity, rest.lines().next()?))
}

fn listen(pipe: OwnedFd, jobs: &SyncSender<Job>, lost: &AtomicU64) {
    let mut reader = BufReader::new(File::from(pipe));
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(LINE_MAX);
        match limited.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if line.ends_with(b"\n") => {}
            Ok(_) => line.push(b'\n'),
        }
        if jobs.try_send(Job::Line(line)).is_err() {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(Default)]
struct Writer {
    folder: Option<PathBuf>,
    file: Option<File>,
    written: u64,
    early: VecDeque<Vec<u8>>,
    /// That found no room before they came here.
    unheard: Arc<AtomicU64>,
    lost: u64,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            match job {
                Job::Line(line) => self.take(line),
                Job::Folder(folder) => {
                    self.folder = Some(folder);
                    for line in std::mem::take(&mut self.early) {
                        self.take(line);
                    }
                }
                Job::Close(done) => {
                    let synced = self.file.take().map(|file| file.sync_all());
                    self.folder = None;
                    drop(synced);
                    let _nobody_waits = done.send(());
                }
            }
        }
    }

    fn take(&mut self, line: Vec<u8>) {
        let Some(folder) = self.folder.clone() else {
            if self.early.len() == EARLY_LINES_MAX {
                self.early.pop_front();
                self.lost += 1;
            }
            return self.early.push_back(line);
        };
        self.lost += self.unheard.swap(0, Ordering::Relaxed);
        if self.lost > 0 {
            let told = format!("{} lines were lost here: there was no room\n", self.lost);
            if self.write(&folder, told.as_bytes()).is_ok() {
                self.lost = 0;
            }
        }
        if self.write(&folder, &line).is_err() {
            self.file = None;
            self.lost += 1;
        }
    }

    fn write(&mut self, folder: &Path, line: &[u8]) -> io::Result<()> {
        if self.written >= FILE_BYTES_MAX {
            self.file = None;
            turn_over(folder)?;
        }
        if self.file.is_none() {
            let path = folder.join(NAME);
            // The folder is the daemon's: a link there is not followed with our rights.
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .custom_flags(nix::libc::O_NOFOLLOW)
                .open(path)?;
            self.written = file.metadata()?.len();
            self.file = Some(file);
        }
        if let Some(file) = &mut self.file {
            file.write_all(line)?;
            self.written += u64::try_from(line.len()).unwrap_or_default();
        }
        Ok(())
    }
}

/// `pghoard.log` becomes `.1`, and so on; the oldest goes.
fn turn_over(folder: &Path) -> io::Result<()> {
    let old = |number: u32| folder.join(format!("{NAME}.{number}"));
    for number in (1..OLD_FILES).rev() {
        match fs::rename(old(number), old(number + 1)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
    }
    fs::rename(folder.join(NAME), old(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of the two newest files.
    fn told(folder: &Path) -> String {
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        read(&format!("{NAME}.1")) + &read(NAME)
    }

    fn written(jobs: Vec<Job>) {
        let (send, waiting) = sync_channel_of(jobs);
        drop(send);
        Writer::default().run(&waiting);
    }

    fn sync_channel_of(jobs: Vec<Job>) -> (Sender<Job>, Receiver<Job>) {
        let (send, waiting) = channel();
        for job in jobs {
            send.send(job).unwrap();
        }
        (send, waiting)
    }

    fn line(text: &str) -> Job {
        Job::Line(format!("{text}\n").into_bytes())
    }

    #[test]
    fn early_lines_come_first_and_nothing_grows_beyond_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let place = Job::Folder(folder.path().to_owned());
        written(vec![line("early"), place, line("late")]);
        assert_eq!(told(folder.path()), "early\nlate\n");

        let long = "x".repeat(1 << 20);
        let mut jobs = vec![Job::Folder(folder.path().to_owned())];
        jobs.extend((0..60).map(|_| line(&long)));
        written(jobs);
        let files = fs::read_dir(folder.path()).unwrap();
        let sizes: u64 = files
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!(sizes <= 41 << 20, "{sizes}");
    }

    #[test]
    fn the_kernels_warnings_are_told_from_the_rest() {
        for (record, expect) in [
            (
                "3,1203,90,-;I/O error, dev vda, sector 8\n SUBSYSTEM=block\n",
                Some((3, "I/O error, dev vda, sector 8")),
            ),
            ("4,1,2,-,caller=T1;a; b\n", Some((4, "a; b"))),
            ("6,1,2,-;Linux version 6.1\n", None),
            ("12,1,2,-;a program's own\n", None),
            ("nothing of the kind", None),
        ] {
            assert_eq!(warning(record), expect, "{record}");
        }
    }

    #[test]
    fn a_full_disk_costs_lines_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("not-there");
        let (_send, waiting) = sync_channel_of(vec![Job::Folder(missing.clone()), line("lost")]);
        let mut writer = Writer::default();
        for job in waiting.try_iter() {
            match job {
                Job::Line(line) => writer.take(line),
                Job::Folder(folder) => writer.folder = Some(folder),
                Job::Close(_) => {}
            }
        }
        fs::create_dir(&missing).unwrap();
        writer.take(b"kept\n".to_vec());
        assert_eq!(
            told(&missing),
            "1 lines were lost here: there was no room\nkept\n"
        );
    }
}
