//! `restore`: which site, up to when, and whereto. Without flags for the destination it asks.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, lchown};
use std::path::{Component, Path, PathBuf};

use machine::Class;
use pghoard::publish::stats::moment;
use pghoard::publish::text::utc;
use pghoard::restore::choose;
use pghoard::{Failure, Outcome};
use serde_json::Value;

use super::{Session, both, serve};
use crate::console::line::{Heard, say};
use crate::console::word::Restore;
use crate::console::{Places, child};

pub fn run(session: &mut Session, mut wish: Restore) -> Outcome<()> {
    let site = match (&wish.site, wish.to.is_some() || wish.serve) {
        (None, false) => ask_site(session)?,
        (name, _) => session.site(name.as_deref())?,
    };
    let windows = Windows::of(session.places.facts().as_ref(), &site);
    if let Some(text) = &wish.target_time {
        let asked = windows.judge(text).map_err(refused)?;
        if let Some(doubt) = asked {
            say(&format!("warning: {doubt}\n"));
        }
    }
    if wish.to.is_none() && !wish.serve && !ask(session, &site, &windows, &mut wish)? {
        say("nothing was restored\n");
        return Ok(());
    }
    match wish.to.clone() {
        Some(name) => directory(session, &site, &wish, &name),
        None => serve::run(session, &site, &wish),
    }
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Class::Config, message)
}

fn broken() -> Failure {
    refused("broken off; nothing was restored")
}

fn ask_site(session: &mut Session) -> Outcome<String> {
    let config = session.places.config()?;
    let names: Vec<&String> = config.sites.keys().collect();
    if let [name] = names[..] {
        return Ok(name.clone());
    }
    let list: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
    say(&format!("Sites: {}\n", list.join(", ")));
    answer(session, "Site: ", |text| match config.sites.get(text) {
        Some(site) => Ok(site.name.clone()),
        None => Err(format!("there is no site '{text}'")),
    })
}

/// Asks until the answer is one.
fn answer<T>(
    session: &mut Session,
    question: &str,
    judge: impl Fn(&str) -> Result<T, String>,
) -> Outcome<T> {
    loop {
        let Heard::Line(line) = session.terminal.line(question) else {
            return Err(broken());
        };
        match judge(line.trim()) {
            Ok(found) => return Ok(found),
            Err(why) => say(&format!("{why}\n")),
        }
    }
}

/// What the flags left open. Whether to go on.
fn ask(session: &mut Session, site: &str, windows: &Windows, wish: &mut Restore) -> Outcome<bool> {
    say(&windows.told());
    if wish.backup.is_none() {
        let words = ["list-basebackups", "--site", site].map(str::to_owned);
        child::run(&session.places, "restore", &words)?;
        let name = answer(
            session,
            "Basebackup, or latest [latest]: ",
            |text| match text {
                "" => Ok("latest".to_owned()),
                text if text.contains(char::is_whitespace) => Err("expected one name".to_owned()),
                text => Ok(text.to_owned()),
            },
        )?;
        wish.backup = Some(name);
    }
    if !targeted(wish) {
        wish.target_time = ask_time(session, windows)?;
    }
    let question = "Name of a new directory on the data partition, or 'serve' to hand it out: ";
    let places = session.places.clone();
    let name = answer(session, question, |text| match text {
        SERVE => Ok(None),
        name => target(&places, name).map(|_| Some(name.to_owned())),
    })?;
    wish.serve = name.is_none();
    wish.to = name;
    let upto = wish.target_time.as_deref().unwrap_or("the newest moment");
    let whereto = match &wish.to {
        Some(name) => format!("into restore/{name}"),
        None => "for a database host to fetch".to_owned(),
    };
    Ok(session
        .terminal
        .yes(&format!("Restore site '{site}' up to {upto}, {whereto}?")))
}

/// What the daemon does not know of yet may be in the store all the same.
fn ask_time(session: &mut Session, windows: &Windows) -> Outcome<Option<String>> {
    loop {
        let question = "Target time in UTC, or empty for all there is: ";
        let (text, doubt) = answer(session, question, |text| match text {
            "" => Ok((None, None)),
            text => Ok((Some(text.to_owned()), windows.judge(text)?)),
        })?;
        let Some(doubt) = doubt else {
            return Ok(text);
        };
        if session
            .terminal
            .yes(&format!("{doubt}. Try it all the same?"))
        {
            return Ok(text);
        }
    }
}

const SERVE: &str = "serve";

/// Where a directory of that name will be, if it can be made there.
fn target(places: &Places, name: &str) -> Result<PathBuf, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let mut parts = Path::new(name).components();
    let one = matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    );
    if !one || !name.chars().all(plain) || name.starts_with('.') {
        return Err(format!(
            "'{name}': expected a name of letters, digits, '.', '_' and '-'"
        ));
    }
    let path = places.data.join("restore").join(name);
    match fs::symlink_metadata(&path) {
        Ok(_) => Err(format!(
            "restore/{name} is there already; 'disk remove restore/{name}' removes it"
        )),
        Err(_) => Ok(path),
    }
}

fn directory(session: &mut Session, site: &str, wish: &Restore, name: &str) -> Outcome<()> {
    let places = session.places.clone();
    let path = target(&places, name).map_err(refused)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let failed = |e: std::io::Error| Failure::io(&e, path.display());
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(parent)
        .map_err(failed)?;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .map_err(failed)?;
    if let Some((uid, gid)) = child::owner(&places) {
        lchown(parent, Some(uid), Some(gid)).map_err(failed)?;
        lchown(&path, Some(uid), Some(gid)).map_err(failed)?;
    }
    let words = words(site, wish, &path);
    let what = format!("site {site}, {}, to restore/{name}", goal(wish));
    let done = both(session, "restore", &what, || {
        child::must(&places, "restore", &words)
    });
    if let Err(failure) = done {
        // Only an empty one: what was restored so far may be wanted.
        let _filled = fs::remove_dir(&path);
        return Err(failure);
    }
    say(&format!(
        "It is in restore/{name} on the data partition. A server that starts there fetches its\n\
         WAL with pghoard_postgres_command and this configuration; 'restore --serve' hands a\n\
         database host all it needs instead.\n"
    ));
    Ok(())
}

/// For people.
pub fn goal(wish: &Restore) -> String {
    let backup = wish.backup.as_deref().unwrap_or("latest");
    let named = [
        ("time", &wish.target_time),
        ("position", &wish.target_lsn),
        ("restore point", &wish.target_name),
        ("transaction", &wish.target_xid),
    ];
    let target = named
        .iter()
        .find_map(|(kind, value)| value.as_ref().map(|value| format!("{kind} {value}")));
    let target = target.unwrap_or_else(|| match wish.immediate {
        true => "the moment it is consistent".to_owned(),
        false => "the newest moment".to_owned(),
    });
    format!("basebackup {backup} up to {target}")
}

/// Of `pghoard_restore`.
fn words(site: &str, wish: &Restore, path: &Path) -> Vec<String> {
    let mut words = vec!["get-basebackup".to_owned()];
    let mut flag = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            words.push(format!("--{name}={value}"));
        }
    };
    flag("site", Some(site));
    flag("basebackup", wish.backup.as_deref());
    flag("target-dir", path.to_str());
    flag("recovery-target-time", wish.target_time.as_deref());
    flag("recovery-target-lsn", wish.target_lsn.as_deref());
    flag("recovery-target-name", wish.target_name.as_deref());
    flag("recovery-target-xid", wish.target_xid.as_deref());
    flag("recovery-target-timeline", wish.timeline.as_deref());
    if wish.immediate {
        words.push("--recovery-target-immediate".to_owned());
    }
    if !wish.standby {
        words.push("--restore-to-primary".to_owned());
        if targeted(wish) {
            words.push("--recovery-target-action=promote".to_owned());
        }
    }
    words
}

/// Whether recovery stops before the end of the WAL.
pub fn targeted(wish: &Restore) -> bool {
    wish.immediate
        || [
            &wish.target_time,
            &wish.target_lsn,
            &wish.target_name,
            &wish.target_xid,
        ]
        .iter()
        .any(|target| target.is_some())
}

/// What can be reached, as far as the daemon knows.
struct Windows(Vec<Window>);

struct Window {
    from_ms: i64,
    to_ms: i64,
    told: String,
}

impl Windows {
    fn of(facts: Option<&Value>, site: &str) -> Windows {
        let sites = facts.and_then(|facts| facts.get("sites"));
        let own = sites.and_then(|sites| sites.get(site));
        let origins = own.and_then(|own| own.get("origins")?.as_array());
        let origins = origins.into_iter().flatten().filter_map(Value::as_str);
        // What it was moved from is its history.
        let all = origins.chain([site]).filter_map(|name| sites?.get(name));
        let lists = all.filter_map(|site| site.get("coverage")?.get("windows")?.as_array());
        Windows(lists.flatten().filter_map(Window::new).collect())
    }

    fn told(&self) -> String {
        if self.0.is_empty() {
            return "The daemon does not say what can be reached; the store decides.\n".to_owned();
        }
        let lines = self.0.iter().map(|window| format!("  {}\n", window.told));
        let lines: String = lines.collect();
        format!("Every moment can be reached, in UTC:\n{lines}")
    }

    /// Nothing, or what is doubtful about a time; an error for what is none.
    fn judge(&self, text: &str) -> Result<Option<String>, String> {
        let time = choose::time(text).map(|time| time.as_millisecond());
        let time = time.ok_or_else(|| {
            format!("'{text}' is no time: expected it as 2026-11-22 09:30:00, in UTC")
        })?;
        let inside = |window: &Window| (window.from_ms..=window.to_ms).contains(&time);
        let known = !self.0.is_empty() && !self.0.iter().any(inside);
        Ok(known.then(|| {
            let all: Vec<&str> = self.0.iter().map(|window| window.told.as_str()).collect();
            format!("'{text}' is in none of: {}", all.join("; "))
        }))
    }
}

impl Window {
    fn new(window: &Value) -> Option<Window> {
        let at = |key| moment(window.get(key)?);
        let (from, to) = (at("from_at")?, at("to_at")?);
        let backups = window.get("backups").and_then(Value::as_u64).unwrap_or(0);
        // Its end is known to the second, and what is in it went on.
        let last_ms = to.0.saturating_add(999);
        Some(Window {
            from_ms: i64::try_from(from.0).ok()?,
            to_ms: i64::try_from(last_ms).ok()?,
            told: format!("{} to {} ({backups} basebackups)", utc(from), utc(to)),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::console::word::{self, Word};

    fn wish(line: &str) -> Restore {
        match word::parse(line).unwrap() {
            Some(Word::Restore(wish)) => *wish,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn flags_become_those_of_the_tool() {
        for (line, expect) in [
            (
                "restore --to x",
                "get-basebackup --site=main --target-dir=/t --restore-to-primary",
            ),
            (
                "restore --to x --backup b --target-time '2026-11-22 09:00:00' --timeline 3",
                "get-basebackup --site=main --basebackup=b --target-dir=/t \
                 --recovery-target-time=2026-11-22 09:00:00 --recovery-target-timeline=3 \
                 --restore-to-primary --recovery-target-action=promote",
            ),
            (
                "restore --to x --immediate --standby",
                "get-basebackup --site=main --target-dir=/t --recovery-target-immediate",
            ),
            (
                "restore --to x --target-lsn=0/5000000",
                "get-basebackup --site=main --target-dir=/t --recovery-target-lsn=0/5000000 \
                 --restore-to-primary --recovery-target-action=promote",
            ),
        ] {
            let words = words("main", &wish(line), Path::new("/t"));
            assert_eq!(words.join(" "), expect, "{line}");
        }
    }

    #[test]
    fn a_time_outside_of_every_window_is_doubtful() {
        let facts = json!({ "sites": {
            "main": { "origins": ["old"], "coverage": { "windows": [
                { "from_at": "2026-11-22T00:00:00Z", "to_at": "2026-11-22T09:00:00Z",
                    "backups": 2 },
            ] } },
            "old": { "coverage": { "windows": [
                { "from_at": "2026-11-01T00:00:00Z", "to_at": "2026-11-02T00:00:00Z",
                    "backups": 1 },
            ] } },
        } });
        let windows = Windows::of(Some(&facts), "main");
        for (text, expect) in [
            ("2026-11-22 08:00:00", Ok(false)),
            ("2026-11-22 09:00:00.5", Ok(false)),
            ("2026-11-01 00:00:00", Ok(false)),
            ("2026-11-22T10:00:00+02:00", Ok(false)),
            ("2026-11-10 00:00:00", Ok(true)),
            ("2026-11-22 09:00:01", Ok(true)),
            ("yesterday", Err(())),
        ] {
            let found = windows.judge(text).map(|doubt| doubt.is_some());
            assert_eq!(found.map_err(drop), expect, "{text}");
        }
        assert!(
            windows
                .told()
                .contains("2026-11-22 09:00:00 (2 basebackups)")
        );
        let unknown = Windows::of(None, "main");
        assert_eq!(unknown.judge("2026-11-10 00:00:00"), Ok(None));
    }

    #[test]
    fn a_destination_is_one_new_name() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places {
            data: folder.path().to_owned(),
            control: PathBuf::new(),
            config: PathBuf::new(),
            tty: String::new(),
        };
        fs::create_dir_all(folder.path().join("restore/there")).unwrap();
        for (name, expect) in [
            ("new-1.x_y", true),
            ("there", false),
            ("", false),
            (".", false),
            ("..", false),
            (".x", false),
            ("a/b", false),
            ("/a", false),
            ("a b", false),
        ] {
            assert_eq!(target(&places, name).is_ok(), expect, "{name}");
        }
    }
}
