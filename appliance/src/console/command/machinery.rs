//! What PID 1 does: links, clock, disk, daemon, slots, power.

use std::fs;
use std::path::{Component, Path};

use machine::Class;
use pghoard::publish::text::{size, span, utc};
use pghoard::tool::screen::{View, wrap};
use pghoard::{Failure, Outcome, clock};
use serde_json::{Value, json};

use super::{Next, Session};
use crate::console::line::say;
use crate::console::word::{Daemon, Disk, Network, Time, Update};

fn row(head: &str, text: &str) {
    say(&wrap(&format!("{head:<12} "), text));
}

/// As it is said, whatever it is.
fn told(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(told).collect::<Vec<_>>().join(", "),
        Value::Object(map) => {
            let parts = map
                .iter()
                .map(|(name, value)| format!("{name} {}", told(value)));
            parts.collect::<Vec<_>>().join(", ")
        }
        Value::Null => "-".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

pub fn network(session: &Session, word: Option<&Network>) -> Outcome<()> {
    if let Some(Network::Renew) = word {
        session.control.ask(&json!({ "do": "network_renew" }))?;
        session.record("network renew", "");
    }
    let status = session.control.status()?;
    let status = View(&status);
    for link in status.list("network") {
        let view = View(link);
        let carrier = match view.is("carrier") {
            true => "up",
            false => "no cable",
        };
        row(
            &view.text("name"),
            &format!("{carrier}, {}", view.text("mac")),
        );
        for key in ["addresses", "gateways", "dhcp"] {
            if let Some(value) = link.get(key).filter(|value| !value.is_null()) {
                row(&format!("  {key}"), &told(value));
            }
        }
    }
    row("names", &told(&Value::from(status.list("dns"))));
    Ok(())
}

pub fn time(session: &Session, word: Option<&Time>) -> Outcome<()> {
    if let Some(Time::Sync) = word {
        session.control.ask(&json!({ "do": "time_sync" }))?;
        session.record("time sync", "");
    }
    let status = session.control.status()?;
    let status = View(&status);
    let time = status.inner("time");
    row("now", &format!("{} UTC", utc(clock::now())));
    row(
        "synchronised",
        match time.is("synchronised") {
            true => "yes",
            false => "NO: no backup expires by its age",
        },
    );
    for (key, head) in [
        ("server", "server"),
        ("offset_ms", "offset, ms"),
        ("checked_seconds_ago", "seconds ago"),
        ("why", "why"),
    ] {
        if let Some(value) = time.0.get(key).filter(|value| !value.is_null()) {
            row(head, &told(value));
        }
    }
    Ok(())
}

/// What a person may remove; everything else on the data partition is the daemon's or PID 1's.
const REMOVABLE: [&str; 3] = ["restore", "support", "updates"];

pub fn disk(session: &Session, word: Option<Disk>) -> Outcome<()> {
    match word {
        Some(Disk::Remove { name }) => return remove(session, &name),
        Some(Disk::Repair) => return repair(session),
        None => {}
    }
    let status = session.control.status()?;
    let status = View(&status);
    for key in ["disk", "memory"] {
        for (name, value) in status.map(key).filter(|(_, value)| !value.is_null()) {
            let bytes = value.as_u64().filter(|_| name.ends_with("_bytes"));
            let name = name.trim_end_matches("_bytes");
            row(
                &format!("{key} {name}"),
                &bytes.map_or_else(|| told(value), size),
            );
        }
    }
    for folder in REMOVABLE {
        let Ok(entries) = fs::read_dir(session.places.data.join(folder)) else {
            continue;
        };
        let mut names: Vec<_> = entries.flatten().collect();
        names.sort_by_key(fs::DirEntry::file_name);
        for entry in names {
            let name = entry.file_name().to_string_lossy().into_owned();
            say(&format!(
                "{folder}/{name}  {}\n",
                size(weight(&entry.path()))
            ));
        }
    }
    Ok(())
}

/// Only of one that is not in use: PID 1 refuses any other.
fn repair(session: &Session) -> Outcome<()> {
    say("checking and mending; this takes a while\n");
    let who = session.places.who();
    session
        .control
        .ask(&json!({ "do": "disk_repair", "who": who }))?;
    say("mended as far as it could be; 'reboot' takes it into use\n");
    Ok(())
}

/// Links are not followed: a tablespace may lead anywhere.
fn weight(path: &Path) -> u64 {
    let Ok(found) = fs::symlink_metadata(path) else {
        return 0;
    };
    let inner = match found.is_dir() {
        true => fs::read_dir(path).ok(),
        false => None,
    };
    let inner = inner.into_iter().flatten().flatten();
    inner.fold(found.len(), |sum, entry| {
        sum.saturating_add(weight(&entry.path()))
    })
}

fn remove(session: &Session, name: &str) -> Outcome<()> {
    let path = removable(name).ok_or_else(|| {
        let message = format!("'{name}': expected restore/NAME, support/NAME or updates/NAME");
        Failure::new(Class::Config, message)
    })?;
    let path = session.places.data.join(path);
    let failed = |e: std::io::Error| Failure::io(&e, name);
    let found = fs::symlink_metadata(&path).map_err(failed)?;
    match found.is_dir() {
        true => fs::remove_dir_all(&path),
        false => fs::remove_file(&path),
    }
    .map_err(failed)?;
    say(&format!("{name} is gone\n"));
    session.record("disk remove", name);
    Ok(())
}

fn removable(name: &str) -> Option<&Path> {
    let path = Path::new(name);
    let parts: Vec<Component<'_>> = path.components().collect();
    match parts[..] {
        [Component::Normal(folder), Component::Normal(_)] => {
            let folder = folder.to_str()?;
            REMOVABLE.contains(&folder).then_some(path)
        }
        _ => None,
    }
}

pub fn daemon(session: &Session, word: Daemon) -> Outcome<()> {
    let how = match word {
        Daemon::Restart => "restart",
        Daemon::Stop => "stop",
        Daemon::Start => "start",
    };
    let who = session.places.who();
    // While it can still be told.
    if word != Daemon::Start {
        session.record(&format!("daemon {how}"), "");
    }
    session
        .control
        .ask(&json!({ "do": "daemon", "how": how, "who": who }))?;
    if word == Daemon::Start {
        session.record("daemon start", "");
    }
    say(match word {
        Daemon::Restart => "the daemon starts anew\n",
        Daemon::Stop => "the daemon is stopped: nothing is backed up until 'daemon start'\n",
        Daemon::Start => "the daemon starts\n",
    });
    Ok(())
}

pub fn power(session: &Session, how: &str) -> Outcome<Next> {
    session.record(how, "");
    let who = session.places.who();
    session
        .control
        .ask(&json!({ "do": "power", "how": how, "who": who }))?;
    say("everything is stopped in order\n");
    Ok(Next::Leave)
}

/// Instead of a name: the labelled drive.
const DRIVE: &str = "drive";

pub fn update(session: &Session, word: Option<&Update>) -> Outcome<()> {
    let who = session.places.who();
    match word {
        None => {
            slots(session)?;
            bundles(session);
        }
        Some(Update::Status) => slots(session)?,
        Some(Update::Back) => {
            session
                .control
                .ask(&json!({ "do": "slot_back", "who": who }))?;
            session.record("update back", "");
            say("'reboot' boots the version before this one\n");
            slots(session)?;
        }
        Some(Update::Try { name }) => {
            let path = match name.as_str() {
                DRIVE => DRIVE.to_owned(),
                name => {
                    let inside = removable(&format!("updates/{name}")).is_some();
                    if !inside {
                        let message = format!("'{name}' is no name in updates");
                        return Err(Failure::new(Class::Config, message));
                    }
                    session
                        .places
                        .data
                        .join("updates")
                        .join(name)
                        .display()
                        .to_string()
                }
            };
            say("checking and writing; this takes a while\n");
            session
                .control
                .ask(&json!({ "do": "update", "path": path, "who": who }))?;
            session.record("update try", name);
            say("it is written; 'reboot' tries it, and what fails goes back by itself\n");
            slots(session)?;
        }
    }
    Ok(())
}

fn slots(session: &Session) -> Outcome<()> {
    let slots = session.control.ask(&json!({ "do": "slots" }))?;
    for slot in slots.as_array().map(Vec::as_slice).unwrap_or_default() {
        let slot = View(slot);
        let booted = match slot.is("booted") {
            true => ", running now",
            false => "",
        };
        row(
            &slot.text("version"),
            &format!("{}{booted}", slot.text("state")),
        );
    }
    let status = session.control.status()?;
    let trial = View(&status).inner("trial");
    let left = trial.number("confirm_in_seconds");
    if left > 0 {
        row(
            "on trial",
            &format!("confirmed in {}", span(left.saturating_mul(1_000))),
        );
    }
    Ok(())
}

fn bundles(session: &Session) {
    let entries = fs::read_dir(session.places.data.join("updates"));
    let mut names: Vec<_> = entries.into_iter().flatten().flatten().collect();
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names {
        let name = entry.file_name().to_string_lossy().into_owned();
        say(&format!(
            "to try: {name}  {}\n",
            size(weight(&entry.path()))
        ));
    }
    say("'update try NAME' writes one into the other slot, 'update try drive' the drive's\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_person_put_there_is_removed() {
        for (name, expect) in [
            ("restore/a", true),
            ("updates/x.bundle", true),
            ("support/a.tar", true),
            ("restore", false),
            ("restore/..", false),
            ("restore/../pghoard", false),
            ("restore/a/b", false),
            ("/restore/a", false),
            ("pghoard/x", false),
            ("settings/pghoard.json", false),
            ("", false),
        ] {
            assert_eq!(removable(name).is_some(), expect, "{name}");
        }
    }

    #[test]
    fn a_tree_is_weighed_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let empty = weight(folder.path());
        fs::write(inner.join("a"), [0; 1_000]).unwrap();
        std::os::unix::fs::symlink("/", inner.join("b")).unwrap();
        let grown = weight(folder.path());
        assert!(
            (1_000..10_000).contains(&(grown - empty.min(grown))),
            "{empty} {grown}"
        );
    }
}
