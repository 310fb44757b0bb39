//! The machine's own log: what PID 1 and the daemon say, on the data partition, within a bound.
//!
//! Both write to the same pipe, as their standard error. Until the data partition is there the
//! lines wait in memory; a line that finds no room on the disk is lost, and said so later.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use nix::unistd::{dup2_stderr, pipe2};
use pghoard::{Failure, Outcome};

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
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name.into()).spawn(run);
            thread.map(drop).map_err(about)
        };
        spawn("log-read", Box::new(move || listen(read, &lines, &unheard)))?;
        let writer = Writer {
            unheard: lost,
            ..Writer::default()
        };
        spawn("log-write", Box::new(move || writer.run(&waiting)))?;
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

fn listen(pipe: OwnedFd, jobs: &SyncSender<Job>, lost: &AtomicU64) {
    let mut reader = BufReader::new(File::from(pipe));
    loop {
        let mut line = Vec::new();
        let mut limited = io::Read::take(&mut reader, LINE_MAX);
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
