//! The one screen of `pghoard status`, and what the looking commands share. Lines are at most 80
//! columns wide, except for names that are longer themselves.

use std::fmt::Write;
use std::path::PathBuf;

use machine::{Class, Millis};
use serde_json::Value;

use super::status::RUNNING;
use crate::config::{self, Config};
use crate::failure::{Failure, Outcome};
use crate::journal::log;
use crate::publish::text::{size, span};
use crate::publish::{facts, stats};

mod coverage;

const COLUMNS: usize = 80;

pub fn config(path: Option<PathBuf>) -> Outcome<Config> {
    let path = path.filter(|path| !path.as_os_str().is_empty());
    let path = path.ok_or_else(|| {
        let message = "config file path must be given with --config or via env PGHOARD_CONFIG";
        Failure::new(Class::Config, message)
    })?;
    config::load(&path).map(|(config, _)| config)
}

pub fn log_path(config: &Config) -> Outcome<PathBuf> {
    let folder = config.backup_location.as_ref();
    let path = folder.map(|folder| folder.join(log::FILE_NAME));
    path.ok_or_else(|| Failure::new(Class::Config, "backup_location is not set"))
}

/// Breaks `text` into lines of at most 80 columns, the first after `head`, all at its width.
pub fn wrap(head: &str, text: &str) -> String {
    let indent = head.chars().count();
    let room = COLUMNS.saturating_sub(indent).max(20);
    let mut out = head.to_owned();
    let mut used = 0;
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if used > 0 && used + 1 + width > room {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            used = 0;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += width;
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

pub fn render(facts: &Value, now: Millis) -> String {
    let view = View(facts);
    let mut out = wrap("", &headline(&view, now));
    if view.is("maintenance") {
        out.push_str("maintenance: no new basebackups are started\n");
    }
    for (name, site) in view.map("sites") {
        let (site, sites) = (View(site), view.inner("sites"));
        match site.0.get("active") == Some(&Value::Bool(false)) {
            true => render_history(&mut out, name, &site),
            false => render_site(&mut out, name, &site, &sites),
        }
    }
    let alerts = alerts(facts);
    match alerts.is_empty() {
        true => out.push_str("\nAlerts: none\n"),
        false => out.push_str(&format!("\nAlerts\n{alerts}")),
    }
    out
}

/// What needs a person.
pub fn alerts(facts: &Value) -> String {
    let mut out = String::new();
    for (name, alert) in View(facts).map("alerts") {
        let alert = View(alert);
        let noted = if alert.is("acknowledged") {
            ", acknowledged"
        } else {
            ""
        };
        out.push_str(&wrap(
            "  ",
            &format!("{name}, since {}{noted}", alert.time("since")),
        ));
        for entry in alert.list("entries") {
            out.push_str(&wrap("    ", &View(entry).text("what")));
            out.push_str(&wrap("    to do: ", &View(entry).text("todo")));
        }
    }
    out
}

fn headline(view: &View<'_>, now: Millis) -> String {
    let version = view.text("version");
    if view.is(RUNNING) {
        let since = view.time("started_at");
        return format!("pghoard {version} runs since {since} UTC");
    }
    let at = view.moment(facts::AT);
    let ago = at.map_or_else(String::new, |at| format!(", {} ago", span(now.since(at))));
    let end = if view.is("stopped") {
        "stopped"
    } else {
        "last heard of"
    };
    let at = view.time(facts::AT);
    format!("pghoard DOES NOT RUN: {end} {at} UTC{ago}; what follows is from then")
}

fn cluster(site: &View<'_>) -> String {
    match site.text("system_id").as_str() {
        "" => "cluster not seen yet".to_owned(),
        id => format!("cluster {id}"),
    }
}

/// A site at rest, whose basebackups another site lets go.
fn render_history(out: &mut String, name: &str, site: &View<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "\nSite {name} ({}, inactive)", cluster(site));
    row(
        out,
        "history",
        &format!(
            "of site {}, by whose rules it goes",
            site.text("history_of")
        ),
    );
    coverage::render_history(out, site);
    row(
        out,
        "store",
        &format!("last listed {}", site.time("reconciled_at")),
    );
    render_backups(out, site);
    render_troubles(out, site);
}

fn render_site(out: &mut String, name: &str, site: &View<'_>, sites: &View<'_>) {
    let _ = writeln!(out, "\nSite {name} ({})", cluster(site));
    for server in site.list("servers") {
        let server = View(server);
        let head = format!("server {}", server.number("node"));
        row(out, &head, &server_line(&server));
    }
    row(out, "stream", &stream_line(site));
    let known = |key: &str| match site.text(key) {
        text if text.is_empty() => "-".to_owned(),
        text => text,
    };
    let (flushed, received) = (known("flushed_lsn"), known("received_lsn"));
    row(
        out,
        "WAL",
        &format!("acknowledged to {flushed}, on disk to {received}"),
    );
    coverage::render(out, site, sites);
    let stored = site.time("last_stored_at");
    let listed = site.time("reconciled_at");
    row(
        out,
        "store",
        &format!("last upload {stored}, last listed {listed}"),
    );
    render_backups(out, site);
    render_troubles(out, site);
}

fn render_troubles(out: &mut String, site: &View<'_>) {
    for hole in site.list("holes") {
        let hole = View(hole);
        let (name, state) = (hole.text("name"), hole.text("state"));
        let told = format!("{name}, {state}, since {}", hole.time("since"));
        row(out, "HOLE", &told);
    }
    for key in site.list("conflicts").iter().filter_map(Value::as_str) {
        row(out, "CONFLICT", key);
    }
    if let Some(refused) = site.0.get("refused").filter(|refused| refused.is_object()) {
        let refused = View(refused);
        let told = format!(
            "{} basebackups, {} WAL segments and {} marks stay though they should go: {}; asked \
             again {}",
            refused.list("backups").len(),
            refused.number("wal_segments"),
            refused.number("marks"),
            refused.text("message"),
            refused.time("next"),
        );
        row(out, "REFUSED", &told);
    }
    for attempt in site.list("attempts") {
        let attempt = View(attempt);
        let failed = format!(
            "{}: {} times since {}, {}: {}; next try {}",
            attempt.text("task"),
            attempt.number("times"),
            attempt.time("since"),
            attempt.text("class"),
            attempt.text("message"),
            attempt.time("next"),
        );
        row(out, "failing", &failed);
    }
}

fn row(out: &mut String, head: &str, text: &str) {
    out.push_str(&wrap(&format!("  {head:<12} "), text));
}

fn server_line(server: &View<'_>) -> String {
    if let Some(lost) = server.0.get("lost").filter(|lost| lost.is_object()) {
        let lost = View(lost);
        return format!("LOST since {}: {}", lost.time("at"), lost.text("message"));
    }
    let number = server.number("version");
    let mut line = format!(
        "{}, PostgreSQL {}.{}, timeline {}, at {}",
        server.text("role"),
        number / 10_000,
        number % 10_000,
        server.number("timeline"),
        server.text("lsn"),
    );
    if let sync @ ("sync" | "quorum") = server.text("sync_state").as_str() {
        let _ = write!(line, ", we are {sync}");
    }
    line
}

fn stream_line(site: &View<'_>) -> String {
    if let Some(stream) = site.0.get("stream").filter(|stream| stream.is_object()) {
        let stream = View(stream);
        return format!(
            "from server {} since {}, receiving {}",
            stream.number("node"),
            stream.time("since"),
            stream.text("next_segment")
        );
    }
    match site.0.get("stream_ended").filter(|ended| ended.is_object()) {
        Some(ended) => {
            let ended = View(ended);
            format!("ENDED {}: {}", ended.time("at"), ended.text("message"))
        }
        None if site.0.get("streams") == Some(&Value::Bool(false)) => "not configured".to_owned(),
        None => "not started yet".to_owned(),
    }
}

fn render_backups(out: &mut String, site: &View<'_>) {
    let backups = site.list("backups");
    let last = site.inner("coverage").inner("last_backup").time("at");
    let good = backups
        .iter()
        .filter(|backup| View(backup).is("restorable"));
    let mut line = format!("{} restorable", good.count());
    if last != NEVER {
        let _ = write!(line, ", the last one of {last}");
    }
    let next = site.time("next_backup");
    let why = site.text("next_backup_why");
    let _ = match (next.as_str(), why.as_str()) {
        (NEVER, "") => Ok(()),
        (NEVER, why) => write!(line, ", next not by itself: {why}"),
        (next, "") => write!(line, ", next due {next}"),
        (next, why) => write!(line, ", next due {next} ({why})"),
    };
    row(out, "basebackups", &line);
    for backup in backups {
        let backup = View(backup);
        let phase = match (backup.text("phase").as_str(), backup.is("restorable")) {
            ("complete", true) => "restorable".to_owned(),
            ("complete", false) => "WAL MISSING".to_owned(),
            (phase, _) => phase.replace('_', " "),
        };
        let progress = View(backup.0.get("progress").unwrap_or(&Value::Null));
        let bytes = match backup.0.get("bytes_plain").and_then(Value::as_u64) {
            Some(plain) => format!("{} in {}", size(plain), size(backup.number("bytes_stored"))),
            None => {
                let (done, total) = (progress.number("bytes"), progress.number("total"));
                format!("{} of {}", size(done), size(total))
            }
        };
        let line = format!("{:<19}  {phase:<15}  {bytes}", backup.text("name"));
        let _ = writeln!(out, "    {line}");
    }
}

pub const NEVER: &str = "never";

/// A JSON object whose missing keys are empty: it may come from another version.
pub struct View<'a>(pub &'a Value);

impl<'a> View<'a> {
    pub fn inner(&self, key: &str) -> View<'a> {
        View(self.0.get(key).unwrap_or(&Value::Null))
    }

    pub fn text(&self, key: &str) -> String {
        let text = self.0.get(key).and_then(Value::as_str).unwrap_or_default();
        // What a server said must not move the cursor.
        text.chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect()
    }

    pub fn number(&self, key: &str) -> u64 {
        self.0.get(key).and_then(Value::as_u64).unwrap_or_default()
    }

    pub fn is(&self, key: &str) -> bool {
        self.0.get(key) == Some(&Value::Bool(true))
    }

    pub fn list(&self, key: &str) -> &'a [Value] {
        let list = self.0.get(key).and_then(Value::as_array);
        list.map(Vec::as_slice).unwrap_or_default()
    }

    pub fn map(&self, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        let map = self.0.get(key).and_then(Value::as_object);
        map.into_iter().flatten()
    }

    pub fn moment(&self, key: &str) -> Option<Millis> {
        stats::moment(self.0.get(key)?)
    }

    pub fn time(&self, key: &str) -> String {
        let at = self.moment(key);
        at.map_or_else(|| NEVER.to_owned(), crate::publish::text::utc)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::publish::testing::{busy, live, policy, state};

    const NOW: Millis = Millis(1_795_340_000_000);

    #[test]
    fn one_screen_tells_all() {
        let (state, policy, busy) = (state("main"), policy("main"), busy("main"));
        let mut facts = facts::facts(&state, &policy, &busy, &live(), NOW);
        facts["running"] = json!(true);
        let expected = "\
pghoard 0.1.0 runs since 2026-11-22 09:28:51 UTC

Site main (cluster 7312345678901234567)
  server 0     primary, PostgreSQL 15.18, timeline 1, at 0/8000200
  server 1     LOST since 2026-11-22 09:28:51: connection refused
  stream       from server 0 since 2026-11-22 09:28:52, receiving
               000000010000000000000008
  WAL          acknowledged to 0/7000000, on disk to 0/8000100
  protected    until 2026-11-22 09:28:53; 16.0 MiB not safe yet, for 4 min
  restorable   2026-11-22 09:28:53 to 2026-11-22 09:28:53, 0/5000100 to
               0/7000000, timeline 1, basebackups: 1
  spool        1 files, 16.0 MiB of at most 1.0 GiB; 30.0 GiB free on disk;
               lasts 21 h 0 min if the store is away
  store        last upload 2026-11-22 09:28:54, last listed never
  basebackups  1 restorable, the last one of 2026-11-22 09:28:53, next due
               2026-11-23 09:28:52 (every 24 h)
    2026-11-22_09-29_0   restorable       5.1 MiB in 410.0 KiB
  failing      probe node 1: 1 times since 2026-11-22 09:28:51, network:
               connection refused; next try 2026-11-22 09:28:52

Alerts
  configuration_error, since 2026-11-22 09:28:51
    site 'main', node 1: connection refused
    to do: check that the server runs, its address, its slot and pg_hba.conf
";
        assert_eq!(render(&facts, NOW), expected);
        facts["running"] = json!(false);
        let text = render(&facts, NOW.plus(7_200_000));
        let head =
            "pghoard DOES NOT RUN: last heard of 2026-11-22 09:33:20 UTC, 2 h 0 min ago; what\n";
        assert!(text.starts_with(head), "{text}");
        assert!(text.lines().all(|line| line.len() <= COLUMNS));
    }

    #[test]
    fn s66_what_the_store_refuses_to_delete_is_shown() {
        let (mut state, policy, busy) = (state("main"), policy("main"), busy("main"));
        let refused = machine::Event::DeletionRefused {
            wal: Vec::new(),
            files: vec![machine::File::Main(machine::BackupName("old".into()))],
            marks: vec!["mark/a".into()],
            class: Class::Denied,
            message: "the object is locked".into(),
        };
        for (name, site) in &mut state.sites {
            site.attempts.apply(name, &refused, NOW);
        }
        let text = render(&facts::facts(&state, &policy, &busy, &live(), NOW), NOW);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for told in [
            "REFUSED 1 basebackups, 0 WAL segments and 1 marks stay though they should go: the \
             object is locked; asked again 2026-11-23 09:33:20",
            "deletion_refused, since 2026-11-22 09:33:20 site 'main': the store refuses to delete \
             old, 1 marks: the object is locked",
        ] {
            assert!(text.contains(told), "{text}");
        }
    }

    #[test]
    fn a_site_at_rest_is_shown_as_the_history_of_another() {
        let window = json!({
            "from_at": "2026-11-10T00:00:00Z", "from_lsn": "0/5000100",
            "to_at": "2026-11-11T00:00:00Z", "to_lsn": "0/7000000",
            "timeline": 1, "backups": 2,
        });
        let old = json!({
            "active": false, "history_of": "new", "system_id": "7",
            "coverage": { "windows": [window] }, "next_backup_why": "the site is inactive",
            "lease": { "ours": false, "host": "vault" },
        });
        let new = json!({ "active": true, "origins": ["old"] });
        let text = render(&json!({ "sites": { "new": new, "old": old } }), NOW);
        let window = "2026-11-10 00:00:00 to 2026-11-11 00:00:00, 0/5000100 to 0/7000000, \
                      timeline 1, basebackups: 2";
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for told in [
            format!("restorable {window}, of site old"),
            "Site old (cluster 7, inactive) history of site new, by whose rules it goes".to_owned(),
            format!("goes restorable {window} PREFIX held by another daemon, on host vault"),
        ] {
            assert!(flat.contains(&told), "{told}\n{text}");
        }
    }

    #[test]
    fn an_empty_document_is_shown_as_well() {
        let text = render(&json!({ "sites": { "a": {} } }), NOW);
        assert!(text.contains("Site a (cluster not seen yet)"), "{text}");
        assert!(text.ends_with("Alerts: none\n"));
    }

    #[test]
    fn long_text_keeps_its_margin() {
        let text = wrap("  head  ", &"word ".repeat(40));
        assert!(text.lines().all(|line| line.len() <= COLUMNS));
        assert!(
            text.lines()
                .skip(1)
                .all(|line| line.starts_with("        word"))
        );
        assert_eq!(wrap("  ", ""), "\n");
    }
}
