//! `pghoard events`: what happened, from the log itself, beside a running daemon or after one.
//!
//! | code | when |
//! |---|---|
//! | 0 | shown; `--verify`: the digest chain is intact; `--rebuild`: every way gives the same |
//! | 1 | the log or a chunk cannot be read, the chain is broken, or two ways differ |
//! | 2 | wrong command line or configuration |

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use clap::Parser;
use machine::{Class, Envelope};
use serde_json::{Value, json};

use super::screen;
use crate::failure::{Failure, Outcome};
use crate::journal::log;
use crate::publish::story::Story;
use crate::publish::text;

mod rebuild;
mod stored;

#[derive(Parser)]
#[command(name = "pghoard events", version, infer_long_args = true)]
/// Show what happened, as the event log has it
struct Flags {
    /// Go on showing events as they happen
    #[arg(long)]
    follow: bool,
    /// Only events of this site
    #[arg(long)]
    site: Option<String>,
    /// Only events of these kinds: stored, server_lost, ...
    #[arg(long, value_delimiter = ',')]
    kind: Vec<String>,
    /// Only events after this number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    since: u64,
    /// For programs: a JSON object a line
    #[arg(long)]
    json: bool,
    /// Check the digest chain from the first event to the last, and show nothing else
    #[arg(long, conflicts_with_all = ["follow", "json", "site", "kind", "since"])]
    verify: bool,
    /// Fold the log as it is and through summaries of it, and compare what comes out
    #[arg(long, conflicts_with_all = ["follow", "json", "site", "kind", "since", "verify"])]
    rebuild: bool,
    /// Show what the site's store holds of the log instead of the log itself
    #[arg(long, conflicts_with_all = ["follow", "verify", "rebuild"])]
    from_store: bool,
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Configuration file, where --config is not given
    config_file: Option<PathBuf>,
}

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let mut flags: Flags = match super::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    let config = flags.config.take().or(flags.config_file.take());
    let config = screen::config(config);
    let found = config.and_then(|config| Ok((screen::log_path(&config)?, config)));
    let (path, config) = match found {
        Ok(found) => found,
        Err(failure) => {
            super::warn(format_args!("pghoard events: {failure}"));
            return USAGE;
        }
    };
    let mut out = io::stdout().lock();
    let done = match &flags {
        Flags { verify: true, .. } => verify(&path, &mut out),
        Flags { rebuild: true, .. } => rebuild::run(&path, &mut out),
        Flags {
            from_store: true, ..
        } => stored::show(&config, &flags, &mut out),
        _ => show(&path, &flags, &mut out),
    };
    match done {
        Ok(()) => DONE,
        Err(failure) => {
            super::warn(format_args!("pghoard events: {failure}"));
            FAILED
        }
    }
}

fn verify(path: &Path, out: &mut dyn Write) -> Outcome<()> {
    let mut last = 0;
    let read = log::read(path, &mut |envelope| last = envelope.seq);
    let extent = read.map_err(|failure| match failure.class {
        Class::Corrupt => failure.about(format!("the chain is intact up to event {last}")),
        _ => failure,
    })?;
    let log::Extent { removed_upto, last } = extent;
    let told = match removed_upto {
        0 => writeln!(out, "{last} events, chain intact"),
        upto => writeln!(
            out,
            "{} events, chain intact; the log is compacted: events up to {upto} gave way to a \
             summary",
            last.saturating_sub(upto)
        ),
    };
    told.map_err(|e| Failure::io(&e, "standard output"))
}

/// Between two looks at the log's file.
const POLL: Duration = Duration::from_millis(200);

fn show(path: &Path, flags: &Flags, out: &mut dyn Write) -> Outcome<()> {
    let mut shown = Shown {
        flags,
        story: Story::default(),
        last: 0,
        gone: None,
        whole: false,
    };
    let mut touched = None;
    loop {
        let now = modified(path);
        if touched.is_none() || now != touched {
            match shown.more(path, out) {
                // A daemon that starts holds the log for a moment.
                Err(failure) if flags.follow && failure.class == Class::Conflict => {}
                Err(failure) => return Err(failure),
                Ok(()) => touched = now,
            }
        }
        if let Some(ended) = shown.ended() {
            return ended;
        }
        if !flags.follow {
            return Ok(());
        }
        thread::sleep(POLL);
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|found| found.modified()).ok()
}

struct Shown<'a> {
    flags: &'a Flags,
    story: Story,
    last: u64,
    /// Why nobody reads any more.
    gone: Option<io::Error>,
    /// Only events of one site are read anyway, and those of none.
    whole: bool,
}

impl Shown<'_> {
    fn more(&mut self, path: &Path, out: &mut dyn Write) -> Outcome<()> {
        log::read_after(path, self.last, &mut |envelope| {
            self.tell(envelope, out);
        })?;
        if let (Err(error), None) = (out.flush(), &self.gone) {
            self.gone = Some(error);
        }
        Ok(())
    }

    fn tell(&mut self, envelope: &Envelope, out: &mut dyn Write) {
        let written = self.one(envelope, out);
        self.last = envelope.seq;
        if let (Err(error), None) = (written, &self.gone) {
            self.gone = Some(error);
        }
    }

    /// How it ends where nobody reads any more.
    fn ended(&self) -> Option<Outcome<()>> {
        let error = self.gone.as_ref()?;
        Some(match error.kind() {
            io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(Failure::io(error, "standard output")),
        })
    }

    fn one(&mut self, envelope: &Envelope, out: &mut dyn Write) -> io::Result<()> {
        self.story.learn(envelope);
        let event = serde_json::to_value(&envelope.event)?;
        let kind = event
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let site = envelope.site.as_ref().map(|site| site.0.as_str());
        let flags = self.flags;
        let wanted = envelope.seq > flags.since
            && (self.whole
                || flags
                    .site
                    .as_deref()
                    .is_none_or(|wanted| site == Some(wanted)))
            && (flags.kind.is_empty() || flags.kind.iter().any(|wanted| wanted == kind));
        if !wanted {
            return Ok(());
        }
        if flags.json {
            let line = json!({
                "at": text::iso(envelope.at),
                "body": event.get("body"),
                "kind": kind,
                "run": envelope.run,
                "seq": envelope.seq,
                "site": site,
            });
            return writeln!(out, "{line}");
        }
        let told = self.story.tell(envelope);
        let at = text::utc(envelope.at);
        let head = format!("{:>7} {at} {:<8} ", envelope.seq, site.unwrap_or("-"));
        out.write_all(screen::wrap(&head, &told).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use machine::{Event, Millis, Site};

    use super::*;
    use crate::journal::log::Log;
    use crate::publish::testing;

    const NOW: Millis = Millis(1_795_340_000_000);

    fn written(folder: &Path) -> PathBuf {
        let path = folder.join(log::FILE_NAME);
        let mut log = Log::open(&path, &mut |_| {}).unwrap();
        let site = |name: &str| Some(Site(name.to_owned()));
        let lost = Event::ServerLost {
            node: 1,
            class: Class::Network,
            message: "connection refused\u{1b}[2J".to_owned(),
        };
        let reason = "asked to".to_owned();
        let events = vec![
            (site("main"), testing::seen(0, 1)),
            (site("main"), testing::stored(5)),
            (site("other"), lost),
            (None, Event::Stopped { reason }),
        ];
        log.append(NOW, 1, events).unwrap();
        path
    }

    fn check(words: &[&str], expect: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let flags = Flags::try_parse_from(["events"].iter().chain(words)).unwrap();
        let mut out = Vec::new();
        show(&path, &flags, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expect, "{words:?}");
    }

    #[test]
    fn events_are_told_and_chosen() {
        let stored = "      2 2026-11-22 09:33:20 main     \
                      stored xlog/000000010000000000000005, 16.0\n\
                      \u{20}                                    MiB in 2.0 MiB\n";
        let stopped = "      4 2026-11-22 09:33:20 -        stopped: asked to\n";
        check(&["--kind", "stored,stopped"], &[stored, stopped].concat());
        check(&["--site", "main", "--since", "1"], stored);
        check(
            &["--site", "other", "--json"],
            "{\"at\":\"2026-11-22T09:33:20Z\",\"body\":{\"class\":\"network\",\"message\":\
             \"connection refused\\u001b[2J\",\"node\":1},\"kind\":\"server_lost\",\"run\":1,\
             \"seq\":3,\"site\":\"other\"}\n",
        );
        check(&["--since", "9"], "");
        check(
            &["--kind", "server_lost"],
            "      3 2026-11-22 09:33:20 other    \
             lost server 1, network: connection refused\n\
             \u{20}                                    [2J\n",
        );
    }

    #[test]
    fn following_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let flags = Flags::try_parse_from(["events", "--since", "3"]).unwrap();
        let mut shown = Shown {
            flags: &flags,
            story: Story::default(),
            last: 0,
            gone: None,
            whole: false,
        };
        let (mut first, mut second) = (Vec::new(), Vec::new());
        shown.more(&path, &mut first).unwrap();
        assert_eq!(shown.last, 4);
        let mut log = Log::open(&path, &mut |_| {}).unwrap();
        let site = Some(testing::site("main"));
        log.append(NOW, 2, vec![(site, testing::stored(6))])
            .unwrap();
        drop(log);
        shown.more(&path, &mut second).unwrap();
        let second = String::from_utf8(second).unwrap();
        assert!(
            second.starts_with("      5 ") && second.lines().count() == 2,
            "{second}"
        );
        shown.more(&path, &mut Vec::new()).unwrap();
        assert_eq!(shown.last, 5);
    }

    #[test]
    fn the_chain_is_verified_and_a_broken_one_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let mut out = Vec::new();
        verify(&path, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "4 events, chain intact\n");
        // A digit of a message exchanged behind the log's back.
        let mut bytes = fs::read(&path).unwrap();
        let at = |bytes: &[u8]| bytes.windows(7).position(|w| w == b"refused");
        while let Some(at) = at(&bytes) {
            bytes[at] = b'R';
        }
        fs::write(&path, bytes).unwrap();
        let failure = verify(&path, &mut Vec::new()).unwrap_err();
        assert_eq!(failure.class, Class::Corrupt);
        assert!(failure.message.contains("intact up to event"), "{failure}");
        let gone = verify(&folder.path().join("gone"), &mut Vec::new()).unwrap_err();
        assert_eq!(gone.class, Class::NotFound);
    }
}
