//! `support-bundle`: what somebody needs who helps from afar, in one tar, without a secret in it.
//!
//! Budget: the last MiB of eight logs, and all of it twice in memory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, lchown};
use std::path::Path;

use machine::Class;
use pghoard::publish::text::{pretty, size, utc};
use pghoard::tool::config::without_secrets;
use pghoard::{Failure, Outcome, clock, config, durable};
use serde_json::{Value, json};

use super::Session;
use super::look::{Last, newest_first, tail};
use crate::console::line::say;
use crate::console::secret::Secrets;
use crate::console::{child, page};

const LOG_BYTES_MAX: u64 = 1 << 20;
const LOGS_MAX: usize = 8;
const EVENTS: usize = 500;

pub fn run(session: &Session) -> Outcome<()> {
    let now = clock::now();
    let stamp: String = utc(now).chars().filter(char::is_ascii_digit).collect();
    let name = format!("support-{stamp}.tar");
    let folder = session.places.data.join("support");
    let failed = |e: std::io::Error| Failure::io(&e, folder.display());
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(failed)?;
    let bytes = tar(&contents(session), now.0 / 1_000)?;
    let path = folder.join(&name);
    durable::write_own(&path, &bytes)?;
    // The daemon serves it.
    if let Some((uid, gid)) = child::owner(&session.places) {
        lchown(&folder, Some(uid), Some(gid)).map_err(failed)?;
        lchown(&path, Some(uid), Some(gid)).map_err(failed)?;
    }
    session.record("support-bundle", &name);
    let bytes = size(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    say(&format!(
        "support/{name}, {bytes}; passwords and keys are not in it\n"
    ));
    Ok(())
}

/// By name; what cannot be had says why in its place.
fn contents(session: &Session) -> BTreeMap<String, String> {
    let places = &session.places;
    let mut secrets = Secrets::default();
    let settings = places.settings();
    for known in [
        settings.clone().ok().flatten(),
        config::load_json(&places.config).ok(),
    ] {
        secrets.learn(&known.unwrap_or_default());
    }
    let json = |found: Outcome<Value>| match found.and_then(|value| pretty(&value)) {
        Ok(text) => text,
        Err(failure) => format!("{failure}\n"),
    };
    let status = session.control.status();
    let shown = settings.map(|settings| without_secrets(&settings.unwrap_or_default()));
    let state = places.state();
    let now = clock::now();
    let page = page::render(&status.clone().unwrap_or_default(), state.as_ref(), now);
    let ask = |what: &str| session.control.ask(&json!({ "do": what }));
    let mut all = BTreeMap::from([
        ("page.txt".to_owned(), page),
        ("status.json".to_owned(), json(status)),
        ("state.json".to_owned(), json(Ok(state.unwrap_or_default()))),
        ("settings.json".to_owned(), json(shown)),
        ("settings-history.json".to_owned(), json(ask("history"))),
        ("slots.json".to_owned(), json(ask("slots"))),
        ("events.txt".to_owned(), events(session)),
    ]);
    let logs = newest_first(&places.data.join("log")).unwrap_or_default();
    for path in logs.into_iter().take(LOGS_MAX) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = tail(&path, LOG_BYTES_MAX).unwrap_or_else(|failure| format!("{failure}\n"));
        all.insert(format!("log/{name}"), text);
    }
    // Whoever wrote what: no secret passes.
    all.values_mut()
        .for_each(|text| *text = secrets.blank(text));
    all
}

fn events(session: &Session) -> String {
    let mut last = Last::new(EVENTS);
    let read = child::watch(&session.places, "events", &[], &mut |line| last.hear(line));
    match read {
        Ok(_) => last.text(),
        Err(failure) => format!("{failure}\n"),
    }
}

fn tar(contents: &BTreeMap<String, String>, at_seconds: u64) -> Outcome<Vec<u8>> {
    let failed = |e: std::io::Error| {
        Failure::new(Class::Internal, format!("packing the support bundle: {e}"))
    };
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in contents {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(text.len()).unwrap_or(u64::MAX));
        header.set_mode(0o600);
        header.set_mtime(at_seconds);
        let path = Path::new("pghoard-support").join(name);
        tar.append_data(&mut header, path, text.as_bytes())
            .map_err(failed)?;
    }
    tar.into_inner().map_err(failed)
}
