//! `config`: the settings, shown without secrets and changed as a whole: what PID 1 refuses
//! changes nothing.

use machine::{Class, Millis};
use pghoard::publish::text::{pretty, utc};
use pghoard::tool::config::without_secrets;
use pghoard::{Failure, Outcome};
use serde_json::{Map, Value, json};

use super::Session;
use crate::console::line::say;
use crate::console::word::Config;
use crate::console::{login, secret};

pub fn run(session: &mut Session, word: Config) -> Outcome<()> {
    match word {
        Config::Edit => edit(session),
        Config::History => history(session),
        Config::Import => import(session),
        Config::Password => password(session),
        Config::RollBack { name } => roll_back(session, &name),
        Config::Set { path, json } => {
            let mut settings = session.settings()?;
            set(&mut settings, &Path::parse(&path)?, value(&json))?;
            session.apply(&settings, "config set", &path)
        }
        Config::Show { path } => show(session, path.as_deref()),
        Config::Unset { path } => {
            let mut settings = session.settings()?;
            unset(&mut settings, &Path::parse(&path)?)?;
            session.apply(&settings, "config unset", &path)
        }
    }
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Class::Config, message)
}

/// What is no JSON is a text: hosts and names need no quotes.
fn value(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|_| Value::from(json))
}

/// From the whole document down; never empty.
#[derive(Debug, PartialEq, Eq)]
struct Path(Vec<String>);

impl Path {
    fn parse(text: &str) -> Outcome<Path> {
        let parts: Vec<String> = match text.strip_prefix('/') {
            Some(rest) => rest.split('/').map(str::to_owned).collect(),
            None => text.split('.').map(str::to_owned).collect(),
        };
        match parts.iter().any(String::is_empty) {
            true => Err(refused(format!(
                "'{text}' is no path: expected names with dots between them"
            ))),
            false => Ok(Path(parts)),
        }
    }

    fn split(&self) -> (&[String], &str) {
        let (last, before) = self.0.split_last().map_or(("", &[][..]), |(l, b)| (l, b));
        (before, last)
    }
}

fn inner<'a>(value: &'a Value, part: &str) -> Option<&'a Value> {
    match value {
        Value::Array(list) => list.get(part.parse::<usize>().ok()?),
        value => value.get(part),
    }
}

fn inner_mut<'a>(value: &'a mut Value, part: &str) -> Option<&'a mut Value> {
    match value {
        Value::Array(list) => list.get_mut(part.parse::<usize>().ok()?),
        value => value.get_mut(part),
    }
}

/// Objects on the way are made; of a list there is one number more than it has.
fn set(document: &mut Value, path: &Path, new: Value) -> Outcome<()> {
    let (before, last) = path.split();
    let mut at = document;
    for part in before {
        if let Value::Object(map) = at
            && map.get(part).is_none_or(Value::is_null)
        {
            map.insert(part.clone(), Value::Object(Map::new()));
        }
        at = inner_mut(at, part).ok_or_else(|| refused(format!("there is nothing at '{part}'")))?;
    }
    let list = match at {
        Value::Object(map) => {
            map.insert(last.to_owned(), new);
            return Ok(());
        }
        Value::Array(list) => list,
        _ => {
            let message = format!("'{last}' would be inside of what is no object");
            return Err(refused(message));
        }
    };
    let count = list.len();
    let number = last.parse::<usize>().ok().filter(|number| *number <= count);
    let number =
        number.ok_or_else(|| refused(format!("'{last}': expected a number of 0 to {count}")))?;
    match list.get_mut(number) {
        Some(old) => *old = new,
        None => list.push(new),
    }
    Ok(())
}

fn unset(document: &mut Value, path: &Path) -> Outcome<()> {
    let (before, last) = path.split();
    let mut at = Some(document);
    for part in before {
        at = at.and_then(|at| inner_mut(at, part));
    }
    let removed = match at {
        Some(Value::Object(map)) => map.remove(last),
        Some(Value::Array(list)) => {
            let number = last
                .parse::<usize>()
                .ok()
                .filter(|number| *number < list.len());
            number.map(|number| list.remove(number))
        }
        _ => None,
    };
    let nothing = || refused(format!("there is nothing at '{last}'"));
    removed.map(drop).ok_or_else(nothing)
}

fn show(session: &Session, path: Option<&str>) -> Outcome<()> {
    let shown = without_secrets(&session.settings()?);
    let Some(text) = path else {
        say(&pretty(&shown)?);
        return Ok(());
    };
    let mut at = &shown;
    for part in Path::parse(text)?.0 {
        let nothing = || refused(format!("there is nothing at '{part}': its default holds"));
        at = inner(at, &part).ok_or_else(nothing)?;
    }
    say(&pretty(at)?);
    Ok(())
}

/// Alone on a line.
const END: &str = ".";

fn edit(session: &mut Session) -> Outcome<()> {
    let current = session.places.settings()?.unwrap_or_else(|| json!({}));
    const REQUEST: &str = "Paste the whole document, then a line with a single dot. Ctrl-C breaks \
                           off.\nWhere it says *** the secret that is there now stays.\n";
    let pasted = session.terminal.paste(REQUEST, |line| line.trim() == END);
    let Some(text) = pasted else {
        say("nothing was changed\n");
        return Ok(());
    };
    let text = text.trim_end().trim_end_matches(END);
    let new: Value = serde_json::from_str(text)
        .map_err(|e| refused(format!("that is no JSON: {e}; nothing was changed")))?;
    let new = secret::restored(&new, &current).map_err(|path| {
        refused(format!(
            "'{path}' is *** and nothing is there now; nothing was changed"
        ))
    })?;
    session.apply(&new, "config edit", "")
}

fn import(session: &mut Session) -> Outcome<()> {
    let answer = session.control.ask(&json!({ "do": "import" }))?;
    let settings = answer.get("settings").filter(|found| found.is_object());
    let none = || {
        Failure::new(Class::NotFound, "no settings on a drive")
            .hint("a FAT or ISO drive labelled PGHOARD_CFG, with pghoard.json on it")
    };
    let settings = settings.ok_or_else(none)?;
    say(&pretty(&without_secrets(settings))?);
    if !session.terminal.yes("Put these settings in force?") {
        say("nothing was changed\n");
        return Ok(());
    }
    session.apply(&settings.clone(), "config import", "from the drive")
}

fn password(session: &mut Session) -> Outcome<()> {
    let mut settings = session.settings()?;
    let broken = || refused("nothing was changed");
    let new = session
        .terminal
        .secret("New password: ")
        .ok_or_else(broken)?;
    let again = session.terminal.secret("Once more: ").ok_or_else(broken)?;
    if *new != *again {
        return Err(refused("the two differ; nothing was changed"));
    }
    login::acceptable(&new).map_err(refused)?;
    let path = Path::parse("appliance.console_password")?;
    set(&mut settings, &path, json!(login::hashed(&new)?))?;
    session.apply(&settings, "config password", "")
}

fn history(session: &Session) -> Outcome<()> {
    let answer = session.control.ask(&json!({ "do": "history" }))?;
    let all = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        say("there is no history yet\n");
    }
    for entry in all {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("-");
        let at = entry.get("at_ms").and_then(Value::as_u64);
        let at = at.map_or("-".to_owned(), |at| utc(Millis(at)));
        say(&format!(
            "{at} UTC  {}\n    by {}\n",
            text("name"),
            text("who")
        ));
    }
    Ok(())
}

fn roll_back(session: &Session, name: &str) -> Outcome<()> {
    let who = session.places.who();
    session
        .control
        .ask(&json!({ "do": "roll_back", "name": name, "who": who }))?;
    say("the settings are in force\n");
    session.record("config roll-back", name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, new: &str, expect: Result<&str, &str>) {
        let mut document = json!({ "a": { "list": [1, { "b": 2 }] }, "n": null, "t": "x" });
        let done = Path::parse(path).and_then(|path| match new {
            "" => unset(&mut document, &path),
            new => set(&mut document, &path, value(new)),
        });
        let found = done.map(|()| document.to_string());
        match (found, expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect, "{path}"),
            (Err(failure), Err(expect)) => assert_eq!(failure.to_string(), expect, "{path}"),
            (found, expect) => panic!("{path}: {found:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn a_path_leads_to_a_value_or_says_where_it_ends() {
        let rest = r#","n":null,"t":"x"}"#;
        let same = |a: &str| format!("{{{a}{rest}");
        for (path, new, expect) in [
            ("a.list.0", "7", Ok(r#""a":{"list":[7,{"b":2}]}"#)),
            (
                "a.list.1.b",
                "text of it",
                Ok(r#""a":{"list":[1,{"b":"text of it"}]}"#),
            ),
            ("/a/list/2", "[]", Ok(r#""a":{"list":[1,{"b":2},[]]}"#)),
            ("a.list.4", "1", Err("'4': expected a number of 0 to 2")),
            ("a.list.x", "1", Err("'x': expected a number of 0 to 2")),
            ("a.list.9.b", "1", Err("there is nothing at '9'")),
            ("t.b", "1", Err("'b' would be inside of what is no object")),
            (
                "a..b",
                "1",
                Err("'a..b' is no path: expected names with dots between them"),
            ),
            ("a.list.1", "", Ok(r#""a":{"list":[1]}"#)),
            ("a.list", "", Ok(r#""a":{}"#)),
            ("a.none", "", Err("there is nothing at 'none'")),
            ("a.list.2", "", Err("there is nothing at '2'")),
        ] {
            check(path, new, expect.map(same).as_deref().map_err(|text| *text));
        }
        check(
            "n.deep.er",
            "true",
            Ok(r#"{"a":{"list":[1,{"b":2}]},"n":{"deep":{"er":true}},"t":"x"}"#),
        );
    }
}
