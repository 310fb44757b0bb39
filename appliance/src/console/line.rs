//! The line a person sits at: what is said, what is typed, and for how long nothing is.
//!
//! A terminal that can move its cursor gets editing, history and completion; a dumb one, a pipe and
//! `expect` get plain lines and never an escape code. Ctrl-C breaks off what is asked or runs, not
//! the session.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{
    FlushArg, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios,
    tcflush, tcgetattr, tcsetattr,
};
use pghoard::{Failure, Outcome};
use rustyline::config::{BellStyle, ColorMode, CompletionType, Config};
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Behavior, Editor};
use signal_hook::consts::SIGINT;
use zeroize::Zeroizing;

use super::complete::Words;

/// Without a line for so long the session ends.
pub const IDLE: Duration = Duration::from_secs(15 * 60);
/// Lines that can be called back; they are in memory alone, as they may hold secrets.
const HISTORY_MAX: usize = 200;
/// Of a pasted document.
const LINE_BYTES_MAX: usize = 1 << 20;
/// The kernel keeps so much of a line that it edits and drops the rest.
const KERNEL_LINE_MAX: usize = 4_095;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Line(String),
    /// Ctrl-C.
    Broken,
    /// Nobody there any more.
    End,
}

pub struct Terminal {
    editor: Option<Editor<Words, MemHistory>>,
    /// Where a signal handler writes: unlike a flag, it ends a poll that has just begun.
    interrupts: UnixStream,
    /// As it was found; none where the input is no terminal.
    found: Option<Termios>,
    /// Read and not yet taken.
    ahead: Vec<u8>,
}

/// Printable ASCII alone: what a server said must not move the cursor.
pub fn say(text: &str) {
    let mut out = io::stdout().lock();
    // Who left does not read on.
    let _unread = out
        .write_all(plain(text).as_bytes())
        .and_then(|()| out.flush());
}

/// A failure as a command ends with it.
pub fn complain(failure: &Failure) {
    say(&format!("error: {failure}\n"));
}

pub fn plain(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | ' '..='~' => c,
        '\t' => ' ',
        _ => '?',
    };
    text.chars().filter(|c| *c != '\r').map(shown).collect()
}

impl Terminal {
    pub fn open() -> Outcome<Terminal> {
        let told = |e: io::Error| Failure::io(&e, "watching for Ctrl-C");
        let (interrupts, handler) = UnixStream::pair().map_err(told)?;
        interrupts.set_nonblocking(true).map_err(told)?;
        // A handler, not an ignored signal: what runs from here starts with the default again.
        signal_hook::low_level::pipe::register(SIGINT, handler).map_err(told)?;
        let found = tcgetattr(io::stdin()).ok();
        if let Some(found) = &found {
            set(&calm(found))?;
        }
        let able = found.is_some() && io::stdout().is_terminal() && !is_dumb();
        Ok(Terminal {
            editor: able.then(editor).transpose()?,
            interrupts,
            found,
            ahead: Vec::new(),
        })
    }

    pub fn completing(&mut self, words: Words) {
        if let Some(editor) = &mut self.editor {
            editor.set_helper(Some(words));
        }
    }

    /// A command, which can be called back later.
    pub fn command(&mut self, prompt: &str) -> Heard {
        let heard = self.line(prompt);
        if let (Some(editor), Heard::Line(line)) = (&mut self.editor, &heard) {
            // History is a comfort.
            let _full = editor.add_history_entry(line.as_str());
        }
        heard
    }

    /// An answer to a question.
    pub fn line(&mut self, prompt: &str) -> Heard {
        let _patience = self.patience();
        let _before = self.broken();
        match &mut self.editor {
            Some(editor) => match editor.readline(prompt) {
                Ok(line) => Heard::Line(line),
                Err(ReadlineError::Interrupted) => Heard::Broken,
                Err(_) => Heard::End,
            },
            None => {
                say(prompt);
                self.read()
            }
        }
    }

    /// An answer that nobody behind the person sees.
    pub fn secret(&mut self, prompt: &str) -> Option<Zeroizing<String>> {
        let _patience = self.patience();
        let _before = self.broken();
        // Before it asks: an answer may come at once.
        let quiet = Quiet::begin();
        say(prompt);
        let heard = self.read();
        drop(quiet);
        say("\n");
        match heard {
            Heard::Line(line) => Some(Zeroizing::new(line)),
            Heard::Broken | Heard::End => None,
        }
    }

    /// Lines up to the one that `last` knows, which is among them. None if it was broken off.
    pub fn paste(
        &mut self,
        request: &str,
        last: impl Fn(&str) -> bool,
    ) -> Option<Zeroizing<String>> {
        let _patience = self.patience();
        let _before = self.broken();
        say(request);
        let mut text = Zeroizing::new(String::new());
        loop {
            let Heard::Line(line) = self.read() else {
                return None;
            };
            if line.len() >= KERNEL_LINE_MAX && self.found.is_some() {
                say("a line is too long for this terminal: break it into shorter ones\n");
                return None;
            }
            text.push_str(&line);
            text.push('\n');
            if last(&line) {
                return Some(text);
            }
            if text.len() > LINE_BYTES_MAX {
                say("that is too much\n");
                return None;
            }
        }
    }

    pub fn yes(&mut self, question: &str) -> bool {
        match self.line(&format!("{question} [yes/no] ")) {
            Heard::Line(line) => matches!(line.trim(), "y" | "yes"),
            Heard::Broken | Heard::End => false,
        }
    }

    /// Whether Ctrl-C was pressed since it was last asked.
    pub fn broken(&self) -> bool {
        let mut block = [0; 64];
        let mut any = false;
        while matches!((&self.interrupts).read(&mut block), Ok(1..)) {
            any = true;
        }
        any
    }

    /// What was typed while nobody listened is no answer.
    pub fn forget(&mut self) {
        self.ahead.clear();
        let _no_terminal = tcflush(io::stdin(), FlushArg::TCIFLUSH);
    }

    /// A line without its end.
    fn read(&mut self) -> Heard {
        loop {
            if let Some(end) = self.ahead.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.ahead.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                return Heard::Line(line.trim_end_matches(['\n', '\r']).to_owned());
            }
            if self.broken() {
                self.ahead.clear();
                say("\n");
                return Heard::Broken;
            }
            if self.ahead.len() > LINE_BYTES_MAX {
                return Heard::End;
            }
            match self.more() {
                Ok(0) => return Heard::End,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return Heard::End,
            }
        }
    }

    fn more(&mut self) -> nix::Result<usize> {
        // Not by the library's own buffer, which would hide from the poll what is there.
        let input = io::stdin();
        let wanted = [input.as_fd(), self.interrupts.as_fd()];
        let mut ready = wanted.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut ready, PollTimeout::NONE)?;
        let interrupted = ready.last().and_then(PollFd::any).unwrap_or(false);
        if interrupted {
            return Err(Errno::EINTR);
        }
        let mut block = [0; 4 << 10];
        let count = nix::unistd::read(input.as_fd(), &mut block)?;
        self.ahead.extend(block.iter().take(count));
        Ok(count)
    }

    fn patience(&self) -> Patience {
        let found = self.found.clone();
        Patience::begin(IDLE, move || {
            if let Some(found) = &found {
                let _gone = set(found);
            }
            say("\nnothing was typed for 15 minutes: logged out\n");
            process::exit(0);
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(found) = &self.found {
            // The next session sets it as well.
            let _gone = set(found);
        }
    }
}

fn is_dumb() -> bool {
    let term = std::env::var("TERM").unwrap_or_default();
    ["", "dumb", "cons25", "emacs", "unknown"].contains(&term.as_str())
}

fn editor() -> Outcome<Editor<Words, MemHistory>> {
    let told = |e: ReadlineError| {
        let message = format!("the line editor does not start: {e}");
        Failure::new(machine::Class::Internal, message)
    };
    let config = Config::builder()
        .max_history_size(HISTORY_MAX)
        .and_then(|config| config.history_ignore_dups(true))
        .map_err(told)?
        .history_ignore_space(true)
        .completion_type(CompletionType::List)
        .bell_style(BellStyle::None)
        .color_mode(ColorMode::Disabled)
        .behavior(Behavior::Stdio)
        .bracketed_paste(false)
        .build();
    let history = MemHistory::with_config(&config);
    Editor::with_history(config, history).map_err(told)
}

fn set(termios: &Termios) -> Outcome<()> {
    tcsetattr(io::stdin(), SetArg::TCSADRAIN, termios)
        .map_err(|e| Failure::io(&e.into(), "setting up the terminal"))
}

/// Lines, echo, Ctrl-C, however the line was left; but no key that kills or stops the session.
fn calm(found: &Termios) -> Termios {
    const DISABLED: u8 = 0;
    let mut calm = found.clone();
    calm.input_flags |= InputFlags::ICRNL;
    calm.input_flags
        .remove(InputFlags::INLCR | InputFlags::IGNCR);
    calm.output_flags |= OutputFlags::OPOST | OutputFlags::ONLCR;
    calm.local_flags |=
        LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ECHOE | LocalFlags::ISIG;
    for key in [
        SpecialCharacterIndices::VQUIT,
        SpecialCharacterIndices::VSUSP,
    ] {
        #[expect(
            clippy::as_conversions,
            reason = "an index, which nix gives in no other way"
        )]
        if let Some(key) = calm.control_chars.get_mut(key as usize) {
            *key = DISABLED;
        }
    }
    calm
}

/// Without echo until it is dropped.
struct Quiet(Option<Termios>);

impl Quiet {
    fn begin() -> Quiet {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut quiet = before.clone();
            quiet.local_flags.remove(LocalFlags::ECHO);
            let _visible = set(&quiet);
        }
        Quiet(before)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _quiet = set(before);
        }
    }
}

/// Calls when nothing ended it in time.
struct Patience(#[expect(dead_code, reason = "its end is the message")] Sender<()>);

impl Patience {
    fn begin(limit: Duration, expired: impl FnOnce() + Send + 'static) -> Patience {
        let (end, ended) = channel();
        thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                expired();
            }
        });
        Patience(end)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn only_printable_ascii_is_said() {
        for (text, expect) in [
            ("a\tb\r\nc", "a b\nc"),
            ("\u{1b}[2Jx\u{7}", "?[2Jx?"),
            ("gr\u{fc}n", "gr?n"),
        ] {
            assert_eq!(plain(text), expect);
        }
    }

    #[test]
    fn patience_ends_unless_something_was_typed() {
        let (tell, told) = channel();
        let quick = Patience::begin(Duration::ZERO, {
            let tell = tell.clone();
            move || tell.send("expired").unwrap()
        });
        assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok("expired"));
        drop(quick);
        let slow = Patience::begin(Duration::from_secs(3_600), move || {
            tell.send("too late").unwrap();
        });
        drop(slow);
        // Its thread ends, and with it the only sender, without a word.
        assert!(told.recv_timeout(Duration::from_secs(60)).is_err());
        assert_eq!(
            told.try_recv(),
            Err(std::sync::mpsc::TryRecvError::Disconnected)
        );
    }
}
