//! One file a kind of command; what each does and, if it changed something, that it is recorded.

use pghoard::Outcome;

use super::line::say;
use super::word::{self, Backup, Rest, Word};
use super::{Session, child, daemon};

mod bundle;
pub mod keys;
mod look;
mod machinery;
mod restore;
mod serve;
mod settings;

/// What the session does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Prompt,
    Leave,
}

pub fn run(session: &mut Session, word: Word) -> Outcome<Next> {
    match word {
        Word::Alerts(rest) => tool(session, "alerts", rest, |_| false)?,
        Word::Backup {
            word: Backup::Now { site },
        } => backup(session, site.as_deref())?,
        Word::Config { word } => settings::run(session, word)?,
        Word::Daemon { word } => machinery::daemon(session, word)?,
        Word::Disk { word } => machinery::disk(session, word)?,
        Word::Events(events) => look::events(session, &events)?,
        Word::HandOuts => serve::list(session)?,
        Word::Help { word } => help(session, &word)?,
        Word::Hold(rest) => tool(session, "hold", rest, |_| true)?,
        Word::Holds(rest) => tool(session, "holds", rest, |_| false)?,
        Word::Holes(rest) => {
            let acknowledges = |words: &[String]| words.iter().any(|w| w.starts_with("--ack"));
            tool(session, "holes", rest, acknowledges)?;
        }
        Word::Keys { word } => keys::run(session, word)?,
        Word::ListBasebackups(Rest { mut words }) => {
            words.insert(0, "list-basebackups".to_owned());
            tool(session, "restore", Rest { words }, |_| false)?;
        }
        Word::Log(log) => look::log(session, log.number)?,
        Word::Logout => return Ok(Next::Leave),
        Word::Network { word } => machinery::network(session, word.as_ref())?,
        Word::Poweroff => return machinery::power(session, "poweroff"),
        Word::Reboot => return machinery::power(session, "reboot"),
        Word::Release(rest) => tool(session, "release", rest, |_| true)?,
        Word::Restore(restore) => restore::run(session, *restore)?,
        Word::Setup => super::first::ask(session)?,
        Word::Sites(rest) => tool(session, "status", rest, |_| false)?,
        Word::Status => look::status(session),
        Word::SupportBundle => bundle::run(session)?,
        Word::Time { word } => machinery::time(session, word.as_ref())?,
        Word::Update { word } => machinery::update(session, word.as_ref())?,
        Word::Verify(rest) => tool(session, "verify", rest, |_| false)?,
    }
    Ok(Next::Prompt)
}

/// One of PGHoard's. What changed something is recorded when it went well.
fn tool(
    session: &Session,
    name: &str,
    rest: Rest,
    changes: impl Fn(&[String]) -> bool,
) -> Outcome<()> {
    let Rest { words } = rest;
    let code = child::run(&session.places, name, &words)?;
    let helped = words.iter().any(|word| word == "--help" || word == "-h");
    if code == 0 && changes(&words) && !helped {
        session.record(name, &words.join(" "));
    }
    Ok(())
}

fn backup(session: &Session, site: Option<&str>) -> Outcome<()> {
    let site = session.site(site)?;
    daemon::Daemon::of(&session.places)?.backup(&site)?;
    session.record("backup now", &format!("site {site}"));
    say(&format!(
        "a basebackup of site '{site}' is due now; 'sites' shows how far it is\n"
    ));
    Ok(())
}

fn help(session: &mut Session, words: &[String]) -> Outcome<()> {
    if words.is_empty() {
        say(&word::all());
        return Ok(());
    }
    match word::parse(&format!("{} --help", words.join(" ")))? {
        // One of PGHoard's tools, which tells it itself.
        Some(word) => run(session, word).map(drop),
        None => Ok(()),
    }
}

/// Both lines of a long work: that it began, and how it ended.
fn both<T>(
    session: &Session,
    command: &str,
    what: &str,
    work: impl FnOnce() -> Outcome<T>,
) -> Outcome<T> {
    session.record(command, &format!("began: {what}"));
    let done = work();
    let ended = match &done {
        Ok(_) => format!("done: {what}"),
        Err(failure) => format!("failed: {what}: {failure}"),
    };
    session.record(command, &ended);
    done
}
