//! How far a restore is: a bar on a terminal, plain lines elsewhere, a status file for programs.
//!
//! The lines and the file are PGHoard's; the file is also written at the end, which PGHoard
//! forgets.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::durable;
use crate::failure::Outcome;

/// Shared by the workers; `stop` is set by the first that fails.
#[derive(Debug, Default)]
pub struct Progress {
    pub total_bytes: u64,
    pub done_bytes: AtomicU64,
    pub stop: AtomicBool,
}

impl Progress {
    pub fn new(total_bytes: u64) -> Arc<Progress> {
        Arc::new(Progress {
            total_bytes,
            ..Progress::default()
        })
    }

    fn done(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Of the whole, in ten-thousandths.
    fn share(&self) -> u64 {
        match self.total_bytes {
            0 => WHOLE,
            total => (self.done().saturating_mul(WHOLE) / total).min(WHOLE),
        }
    }

    /// `Download progress: 63.92% (0 / 1 MiB)`
    fn line(&self) -> String {
        let share = self.share();
        let (whole, rest) = (share / 100, share % 100);
        let (done, total) = (self.done() >> 20, self.total_bytes >> 20);
        format!("Download progress: {whole}.{rest:02}% ({done} / {total} MiB)")
    }

    fn status(&self) -> Value {
        let share = u32::try_from(self.share()).unwrap_or(0);
        json!({
            "downloaded_bytes": self.done(),
            "progress_percent": f64::from(share) / 10_000.0,
            "total_bytes": self.total_bytes,
        })
    }
}

const WHOLE: u64 = 10_000;

/// Shows progress until it is finished or dropped.
pub struct Watch {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

pub fn watch(progress: Arc<Progress>, status_file: Option<PathBuf>) -> Watch {
    let (end, ended) = channel::<()>();
    let mut screen = Screen::new(&progress);
    let thread = thread::spawn(move || {
        let mut last = false;
        while !last {
            last = ended.recv_timeout(TICK) != Err(RecvTimeoutError::Timeout);
            screen.show(&progress, last);
            if let Some(path) = &status_file {
                // The restore matters more than the report about it.
                let _unreported = write_status(path, &progress);
            }
        }
    });
    Watch {
        end: Some(end),
        thread: Some(thread),
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It only prints; if it died, the last line is missing.
            let _ended = thread.join();
        }
    }
}

/// PGHoard's own pace.
const TICK: Duration = Duration::from_secs(1);

fn write_status(path: &Path, progress: &Progress) -> Outcome<()> {
    let mut text = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, indent);
    let status = serde::Serialize::serialize(&progress.status(), &mut serializer);
    status.map_err(|e| super::corrupt(e.to_string()))?;
    text.push(b'\n');
    durable::write(path, &text)
}

enum Screen {
    Bar(ProgressBar),
    /// The share at the last line.
    Lines(u64),
}

impl Screen {
    fn new(progress: &Progress) -> Screen {
        if !io::stderr().is_terminal() {
            return Screen::Lines(0);
        }
        let bar = ProgressBar::new(progress.total_bytes);
        let style = ProgressStyle::with_template(
            "{bar:40} {percent:>3}%  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left",
        );
        Screen::Bar(match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        })
    }

    fn show(&mut self, progress: &Progress, last: bool) {
        match self {
            Screen::Bar(bar) => {
                bar.set_position(progress.done());
                if last {
                    bar.abandon();
                }
            }
            Screen::Lines(shown) => {
                let share = progress.share();
                if last || share >= *shown + LINE_STEP {
                    *shown = share;
                    // The restore matters more than who reads about it.
                    let _unread = writeln!(io::stdout(), "{}", progress.line());
                }
            }
        }
    }
}

/// A line every tenth, so that a log is not flooded.
const LINE_STEP: u64 = WHOLE / 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_file_is_pghoards_and_complete_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status");
        let progress = Progress::new(1 << 20);
        progress.done_bytes.store(670_270, Ordering::Relaxed);
        assert_eq!(progress.line(), "Download progress: 63.92% (0 / 1 MiB)");
        write_status(&path, &progress).unwrap();
        let lines = [
            "{",
            "    \"downloaded_bytes\": 670270,",
            "    \"progress_percent\": 0.6392,",
            "    \"total_bytes\": 1048576",
            "}\n",
        ];
        assert_eq!(std::fs::read_to_string(&path).unwrap(), lines.join("\n"));
        let watch = watch(Arc::clone(&progress), Some(path.clone()));
        progress.done_bytes.store(1 << 20, Ordering::Relaxed);
        drop(watch);
        let status: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(status["progress_percent"], 1.0);
    }
}
