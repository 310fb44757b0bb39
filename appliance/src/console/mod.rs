//! The console session: login, then a small command language; no shell.
//!
//! PID 1 spawns it on a line where a person pressed Enter, as leader of a session whose terminal
//! that line is. It ends on `logout`, at the end of its input, or when nothing was typed for
//! [`line::IDLE`]; then PID 1 shows the status page again.
//!
//! - [`page`]: the status page. [`word`]: what may be said. [`command`]: what it does.
//! - [`line`]: reading and saying, with [`complete`]. [`login`]: who may in. [`first`]: the
//!   questions of a machine without settings.
//! - [`ask`]: PID 1's control socket. [`daemon`]: the daemon's API. [`child`]: PGHoard's tools.
//! - [`record`]: what was changed becomes an event. [`secret`]: what nobody is shown.
//! - [`place`]: where things are.

mod ask;
mod child;
mod command;
mod complete;
mod daemon;
mod first;
mod line;
mod login;
pub mod page;
mod place;
mod record;
mod secret;
mod word;

use machine::Class;
use pghoard::config;
use pghoard::{Failure, Outcome};
use serde_json::{Value, json};

use ask::Control;
use command::Next;
use complete::Words;
use line::{Heard, Terminal, complain, say};
use place::Places;
use record::{Said, Told};

const PROMPT: &str = "pghoard> ";
const ENDED: i32 = 0;
const REFUSED: i32 = 1;

/// A whole session. Gives the exit code.
pub fn run() -> i32 {
    let places = Places::from_env();
    let mut terminal = match Terminal::open() {
        Ok(terminal) => terminal,
        Err(failure) => {
            complain(&failure);
            return REFUSED;
        }
    };
    let settings = places.settings();
    // Where the data partition cannot be read, those that are in force all the same.
    let current = match &settings {
        Ok(Some(settings)) => Some(settings.clone()),
        Ok(None) | Err(_) => config::load_json(&places.config).ok(),
    };
    if !login::let_in(&mut terminal, &places, current.as_ref()) {
        return REFUSED;
    }
    terminal.completing(Words::new(&places));
    let mut session = Session {
        control: Control::new(&places.control),
        places,
        terminal,
    };
    match settings {
        Err(failure) => complain(&failure),
        Ok(None) if current.is_none() => {
            if let Err(failure) = first::ask(&mut session) {
                complain(&failure);
            }
        }
        Ok(_) => {}
    }
    session.go_on();
    ENDED
}

/// Tells the daemon what people did while it did not answer: PID 1 calls it, in a thread that may
/// wait, when the daemon is ready. Gives how much that was.
pub fn deliver_unsaid() -> Outcome<usize> {
    record::deliver(&Places::from_env())
}

struct Session {
    places: Places,
    control: Control,
    terminal: Terminal,
}

impl Session {
    fn go_on(&mut self) {
        say("'help' lists the commands.\n");
        loop {
            let line = match self.terminal.command(PROMPT) {
                Heard::Line(line) => line,
                Heard::Broken => continue,
                Heard::End => {
                    say("\n");
                    return;
                }
            };
            // It stays for the next command, or for PID 1.
            let _waits = record::deliver(&self.places);
            let done = word::parse(&line).and_then(|word| match word {
                Some(word) => command::run(self, word),
                None => Ok(Next::Prompt),
            });
            match done {
                Ok(Next::Prompt) => {}
                Ok(Next::Leave) => return,
                // Help, or the usage, as it is.
                Err(told) if told.message.contains("Usage:") => say(&format!("{told}\n")),
                Err(failure) => complain(&failure),
            }
            let _between_commands = self.terminal.broken();
        }
    }

    fn settings(&self) -> Outcome<Value> {
        self.places.settings()?.ok_or_else(|| {
            Failure::new(Class::NotFound, "there are no settings yet")
                .hint("'setup' asks for them, 'config import' takes them from a drive")
        })
    }

    /// The one named, or the only one.
    fn site(&self, name: Option<&str>) -> Outcome<String> {
        let config = self.places.config()?;
        config.site(name).map(|site| site.name.clone())
    }

    /// Puts new settings in force, after what is odd about them was said.
    fn apply(&mut self, settings: &Value, command: &str, detail: &str) -> Outcome<()> {
        let mut known = settings.clone();
        if let Some(map) = known.as_object_mut() {
            map.remove("appliance");
        }
        for warning in config::parse(&known)?.1 {
            say(&format!("warning: {warning}\n"));
        }
        let who = self.places.who();
        let request = json!({ "do": "apply", "settings": settings, "who": who });
        let answer = self.control.ask(&request)?;
        say(match answer.get("restart") {
            Some(Value::Bool(true)) => "the settings are in force; the daemon starts anew\n",
            _ => "the settings are in force\n",
        });
        self.record(command, detail);
        Ok(())
    }

    /// The change is made: that it cannot be recorded is said and does not undo it.
    fn record(&self, command: &str, detail: &str) {
        match record::record(&self.places, &Said::new(&self.places, command, detail)) {
            Ok(Told::ToDaemon) => {}
            Ok(Told::Later) => say("the daemon does not answer: it is told of this later\n"),
            Err(failure) => complain(&failure.about("this is not in the log of events")),
        }
    }
}
