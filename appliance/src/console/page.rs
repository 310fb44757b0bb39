//! The status page: what a person who walks up to the machine has to know, and what to do next.
//!
//! 80 columns, printable ASCII and newlines: it reads well on anything. What of a status or a
//! state is missing is left out, as they may come from another version.

use std::fmt::Write;

use machine::Millis;
use pghoard::publish::facts;
use pghoard::publish::stats::{self, FRESH_MS};
use pghoard::publish::text::{size, span, utc};
use pghoard::tool::screen::{NEVER, View, wrap};
use serde_json::Value;

use super::line::plain;

/// `status` is PID 1's, `state` the document of the state file.
pub fn render(status: &Value, state: Option<&Value>, now: Millis) -> String {
    let status = View(status);
    let mut out = String::new();
    head(&mut out, &status);
    machine(&mut out, &status, now);
    match state.and_then(|state| state.get(stats::OWN)) {
        Some(own) => backups(&mut out, &View(own), now),
        None => out.push_str("\nNothing is known of backups yet.\n"),
    }
    out.push('\n');
    out.push_str(&wrap("", next(&status)));
    plain(&out)
}

const COLUMNS: usize = 80;

fn head(out: &mut String, status: &View<'_>) {
    let host = match status.text("hostname") {
        host if host.is_empty() => "not named yet".to_owned(),
        host => host,
    };
    let left = format!("PGHoard appliance: {host}");
    let right = format!("version {}", status.text("version"));
    let room = COLUMNS.saturating_sub(left.chars().count() + 1);
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{left} {right:>room$}");
    let _ = writeln!(out, "{}", "-".repeat(COLUMNS));
}

fn row(out: &mut String, head: &str, text: &str) {
    out.push_str(&wrap(&format!("{head:<12} "), text));
}

fn machine(out: &mut String, status: &View<'_>, now: Millis) {
    for link in status.list("network") {
        link_row(out, &View(link));
    }
    if status.list("network").is_empty() {
        row(out, "network", "NO LINK");
    }
    row(out, "time", &time(&status.inner("time"), now));
    row(out, "slot", &slot(status));
    row(out, "disk", &disk(&status.inner("disk")));
    memory(out, &status.inner("memory"));
    row(out, "daemon", &daemon(&status.inner("daemon")));
    let settings = status.inner("settings");
    let problem = settings.text("problem");
    if !problem.is_empty() {
        row(out, "SETTINGS", &problem);
    } else if !settings.text("source").is_empty() {
        row(
            out,
            "settings",
            &format!("from {}", settings.text("source")),
        );
    }
}

fn texts(list: &[Value]) -> String {
    let all: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    all.join(", ")
}

fn link_row(out: &mut String, link: &View<'_>) {
    let addresses = texts(link.list("addresses"));
    let mut line = match (link.is("carrier"), addresses.is_empty()) {
        (false, _) => "NO CABLE".to_owned(),
        (true, true) => "up, NO ADDRESS YET".to_owned(),
        (true, false) => addresses,
    };
    let gateways = texts(link.list("gateways"));
    if !gateways.is_empty() {
        let _ = write!(line, "; gateway {gateways}");
    }
    row(out, &link.text("name"), &line);
}

fn time(time: &View<'_>, now: Millis) -> String {
    let server = time.text("server");
    let why = time.text("why");
    let mut line = format!("{} UTC, ", utc(now));
    match (time.is("synchronised"), server.as_str(), why.as_str()) {
        (true, "", _) => line.push_str("synchronised"),
        (true, server, _) => {
            let _ = write!(line, "synchronised with {server}");
        }
        (false, _, "") => line.push_str("NOT SYNCHRONISED: no backup expires by its age"),
        (false, _, why) => {
            let _ = write!(
                line,
                "NOT SYNCHRONISED: {why}; no backup expires by its age"
            );
        }
    }
    line
}

fn slot(status: &View<'_>) -> String {
    let mut line = match status.text("slot") {
        slot if slot.is_empty() => "not known".to_owned(),
        slot => slot,
    };
    if status.0.get("trial").is_some_and(Value::is_object) {
        let trial = status.inner("trial");
        line.push_str(", ON TRIAL");
        let left = trial.number("confirm_in_seconds");
        if left > 0 {
            let _ = write!(line, ", confirmed in {}", span(left.saturating_mul(1_000)));
        }
        let waits = trial.text("waits_for");
        if !waits.is_empty() {
            let _ = write!(line, ", waits for {waits}");
        }
    }
    line
}

fn disk(disk: &View<'_>) -> String {
    let problem = disk.text("problem");
    let room = match disk.0.get("total_bytes").and_then(Value::as_u64) {
        Some(total) => format!(
            "{} free of {}",
            size(disk.number("free_bytes")),
            size(total)
        ),
        None => String::new(),
    };
    match (problem.is_empty(), room.is_empty()) {
        (true, true) => "NO DATA PARTITION".to_owned(),
        (true, false) => room,
        (false, true) => format!("PROBLEM: {problem}"),
        (false, false) => format!("PROBLEM: {problem}; {room}"),
    }
}

fn memory(out: &mut String, memory: &View<'_>) {
    let total = memory.number("total_bytes");
    if total == 0 {
        return;
    }
    let used = total.saturating_sub(memory.number("available_bytes"));
    let processes = memory.number("processes");
    let line = format!(
        "{} of {} in use by {processes} processes and the kernel",
        size(used),
        size(total)
    );
    row(out, "memory", &line);
}

fn daemon(daemon: &View<'_>) -> String {
    let since = span(daemon.number("since_seconds").saturating_mul(1_000));
    let mut line = match daemon.text("state").as_str() {
        "" => "not known".to_owned(),
        "running" => format!("runs for {since}"),
        "starting" => format!("starts, for {since}"),
        state @ "not configured" => state.to_owned(),
        state => format!("{}, for {since}", state.to_uppercase()),
    };
    match daemon.number("restarts") {
        0 => {}
        1 => line.push_str(", restarted once"),
        count => {
            let _ = write!(line, ", restarted {count} times");
        }
    }
    let status = daemon.text("status");
    if !status.is_empty() {
        let _ = write!(line, "; {status}");
    }
    line
}

fn backups(out: &mut String, own: &View<'_>, now: Millis) {
    let at = own.moment(facts::AT);
    let old = at.is_none_or(|at| now.since(at) > FRESH_MS);
    if old || own.is("stopped") {
        let at = own.time(facts::AT);
        let told = format!("What follows is from {at} UTC: the daemon does not run now.");
        out.push('\n');
        out.push_str(&wrap("", &told));
    }
    if own.is("maintenance") {
        out.push_str("\nMaintenance: no new basebackups are started.\n");
    }
    for (name, site) in own.map("sites") {
        let site = View(site);
        if site.0.get("active") != Some(&Value::Bool(false)) {
            site_rows(out, name, &site, now);
        }
    }
    alerts(out, own);
}

fn site_rows(out: &mut String, name: &str, site: &View<'_>, now: Millis) {
    let coverage = site.inner("coverage");
    let _ = writeln!(out, "\nSite {name}");
    row(out, "protected", &protected(site, &coverage));
    row(out, "last backup", &last(site, &coverage, now));
    row(out, "next backup", &upcoming(site));
    let holes = site.list("holes").len();
    let open = |hole: &&Value| View(hole).text("state") != "acknowledged";
    if holes > 0 && site.list("holes").iter().any(|hole| open(&hole)) {
        row(
            out,
            "HOLES",
            &format!("{holes}: 'holes' shows what a restore misses"),
        );
    }
    let moment = site.inner("now");
    if let Some(lasts) = moment.0.get("spool_lasts_seconds").and_then(Value::as_u64) {
        let spool = site.inner("spool").number("bytes");
        if spool > 0 {
            let lasts = span(lasts.saturating_mul(1_000));
            let told = format!("{} wait for the store; room for {lasts} more", size(spool));
            row(out, "spool", &told);
        }
    }
}

fn protected(site: &View<'_>, coverage: &View<'_>) -> String {
    let mut line = match coverage.time("protected_until") {
        never if never == NEVER => "NOT: no basebackup can be restored up to now".to_owned(),
        until => format!("until {until} UTC"),
    };
    let seconds = site.inner("now").number("unprotected_seconds");
    match coverage.0.get("unprotected_bytes").and_then(Value::as_u64) {
        None => {}
        Some(0) => line.push_str("; all that was written is safe"),
        Some(bytes) => {
            let bytes = size(bytes);
            let _ = write!(line, "; UNPROTECTED for {seconds} seconds: {bytes}");
        }
    }
    line
}

fn last(site: &View<'_>, coverage: &View<'_>, now: Millis) -> String {
    let running = |backup: &&Value| View(backup).text("phase") == "running";
    let progress = site.list("backups").iter().find(running).map(|backup| {
        let progress = View(backup).inner("progress");
        let (done, total) = (progress.number("bytes"), progress.number("total"));
        format!("; one runs now, {} of {}", size(done), size(total))
    });
    let progress = progress.unwrap_or_default();
    let backup = coverage.inner("last_backup");
    match backup.moment("at") {
        None => format!("never{progress}"),
        Some(at) => {
            let ago = span(now.since(at));
            format!("{} UTC, {ago} ago{progress}", utc(at))
        }
    }
}

fn upcoming(site: &View<'_>) -> String {
    let next = site.time("next_backup");
    let why = site.text("next_backup_why");
    match (next.as_str(), why.as_str()) {
        (NEVER, "") => "not known".to_owned(),
        (NEVER, why) => format!("not by itself: {why}"),
        (next, "") => format!("{next} UTC"),
        (next, why) => format!("{next} UTC ({why})"),
    }
}

fn alerts(out: &mut String, own: &View<'_>) {
    let all: Vec<_> = own.map("alerts").collect();
    match all.is_empty() {
        true => out.push_str("\nAlerts: none\n"),
        false => out.push_str("\nALERTS\n"),
    }
    for (name, alert) in all {
        let alert = View(alert);
        let noted = match alert.is("acknowledged") {
            true => ", acknowledged",
            false => "",
        };
        let told = format!("{name}, since {} UTC{noted}", alert.time("since"));
        out.push_str(&wrap("  ", &told));
        for entry in alert.list("entries") {
            let entry = View(entry);
            out.push_str(&wrap("    ", &entry.text("what")));
            out.push_str(&wrap("    to do: ", &entry.text("todo")));
        }
    }
}

fn next(status: &View<'_>) -> &'static str {
    match status.inner("daemon").text("state").as_str() {
        "not configured" => {
            "This appliance has no settings yet. Press Enter: it asks for them, one by one. A \
             drive labelled PGHOARD_CFG with pghoard.json on it does as well."
        }
        _ if !status.inner("settings").text("problem").is_empty() => {
            "Press Enter to log in, then 'config show' and 'config set' put the settings right."
        }
        _ => "Press Enter to log in.",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// 2026-11-22 09:33:20
    const NOW: Millis = Millis(1_795_340_000_000);

    fn check(status: &Value, state: Option<&Value>, expect: &str) {
        let page = render(status, state, NOW);
        assert_eq!(page, expect, "\n{page}");
        let fits =
            |line: &str| line.len() <= COLUMNS && line.bytes().all(|b| (32..127).contains(&b));
        assert!(page.lines().all(fits), "{page}");
    }

    fn status() -> Value {
        json!({
            "hostname": "backup1", "version": "0.1.0", "slot": "0.1.0", "uptime_seconds": 60,
            "daemon": { "state": "running", "since_seconds": 7800, "restarts": 0, "status": "" },
            "settings": { "source": "the data partition", "problem": null },
            "network": [
                { "name": "eth0", "mac": "52:54:00:12:34:56", "carrier": true,
                    "addresses": ["10.0.2.15/24", "fec0::5054:ff:fe12:3456/64"],
                    "gateways": ["10.0.2.2"], "dhcp": {} },
                { "name": "eth1", "carrier": false, "addresses": [], "gateways": [] },
            ],
            "dns": ["10.0.2.3"],
            "time": { "synchronised": true, "server": "10.0.2.2", "offset_ms": 3 },
            "disk": { "total_bytes": 8_u64 << 30, "free_bytes": 3_u64 << 30, "problem": null },
            "trial": null,
        })
    }

    #[test]
    fn a_healthy_appliance_at_a_glance() {
        let state = json!({ "daemon": {
            "at": "2026-11-22T09:33:18Z",
            "alerts": {},
            "sites": { "main": {
                "active": true,
                "backups": [{ "phase": "complete", "restorable": true }],
                "coverage": {
                    "protected_until": "2026-11-22T09:33:12Z", "unprotected_bytes": 4096,
                    "last_backup": { "at": "2026-11-22T03:00:00Z", "name": "2026-11-22_03-00_0" },
                },
                "next_backup": "2026-11-23T03:00:00Z", "next_backup_why": "",
                "now": { "unprotected_seconds": 8, "spool_lasts_seconds": 7200 },
                "spool": { "bytes": 0 },
            } },
        } });
        let mut status = status();
        status["memory"] = json!({
            "total_bytes": 512_u64 << 20, "available_bytes": 420_u64 << 20, "processes": 2,
        });
        check(
            &status,
            Some(&state),
            "\
PGHoard appliance: backup1                                         version 0.1.0
--------------------------------------------------------------------------------
eth0         10.0.2.15/24, fec0::5054:ff:fe12:3456/64; gateway 10.0.2.2
eth1         NO CABLE
time         2026-11-22 09:33:20 UTC, synchronised with 10.0.2.2
slot         0.1.0
disk         3.0 GiB free of 8.0 GiB
memory       92.0 MiB of 512.0 MiB in use by 2 processes and the kernel
daemon       runs for 2 h 10 min
settings     from the data partition

Site main
protected    until 2026-11-22 09:33:12 UTC; UNPROTECTED for 8 seconds: 4.0 KiB
last backup  2026-11-22 03:00:00 UTC, 6 h 33 min ago
next backup  2026-11-23 03:00:00 UTC

Alerts: none

Press Enter to log in.
",
        );
    }

    #[test]
    fn trouble_is_seen_first_and_says_what_to_do() {
        let mut status = status();
        status["trial"] = json!({ "confirm_in_seconds": 240, "waits_for": "the daemon" });
        status["time"] = json!({ "synchronised": false, "why": "no server answers" });
        status["disk"]["problem"] = json!("errors on /dev/vda2");
        status["daemon"] = json!({ "state": "failed", "since_seconds": 5, "restarts": 2,
            "status": "exit code 1" });
        status["settings"]["problem"] = json!("http_port: expected a port number");
        let state = json!({ "daemon": {
            "at": "2026-11-22T09:00:00Z",
            "alerts": { "basebackup_overdue": {
                "acknowledged": true, "since": "2026-11-22T08:00:00Z",
                "entries": [{ "what": "no basebackup for 3 d\u{1b}[2J",
                    "todo": "look at what is failing in the list of each site, all of it" }],
            } },
            "sites": {
                "main": {
                    "backups": [{ "phase": "running",
                        "progress": { "bytes": 1 << 20, "total": 4 << 20 } }],
                    "coverage": { "unprotected_bytes": null },
                    "next_backup_why": "the site has no interval",
                    "holes": [{ "state": "lost" }],
                    "now": { "spool_lasts_seconds": 7200 },
                    "spool": { "bytes": 2048 },
                },
                "old": { "active": false },
            },
        } });
        check(
            &status,
            Some(&state),
            "\
PGHoard appliance: backup1                                         version 0.1.0
--------------------------------------------------------------------------------
eth0         10.0.2.15/24, fec0::5054:ff:fe12:3456/64; gateway 10.0.2.2
eth1         NO CABLE
time         2026-11-22 09:33:20 UTC, NOT SYNCHRONISED: no server answers; no
             backup expires by its age
slot         0.1.0, ON TRIAL, confirmed in 4 min, waits for the daemon
disk         PROBLEM: errors on /dev/vda2; 3.0 GiB free of 8.0 GiB
daemon       FAILED, for 5 s, restarted 2 times; exit code 1
SETTINGS     http_port: expected a port number

What follows is from 2026-11-22 09:00:00 UTC: the daemon does not run now.

Site main
protected    NOT: no basebackup can be restored up to now
last backup  never; one runs now, 1.0 MiB of 4.0 MiB
next backup  not by itself: the site has no interval
HOLES        1: 'holes' shows what a restore misses
spool        2.0 KiB wait for the store; room for 2 h 0 min more

ALERTS
  basebackup_overdue, since 2026-11-22 08:00:00 UTC, acknowledged
    no basebackup for 3 d [2J
    to do: look at what is failing in the list of each site, all of it

Press Enter to log in, then 'config show' and 'config set' put the settings
right.
",
        );
    }

    #[test]
    fn a_new_appliance_asks_for_its_settings() {
        check(
            &json!({ "version": "0.1.0", "slot": "0.1.0",
                "daemon": { "state": "not configured" }, "time": { "synchronised": false },
                "network": [{ "name": "eth0", "carrier": true, "addresses": [] }] }),
            None,
            "\
PGHoard appliance: not named yet                                   version 0.1.0
--------------------------------------------------------------------------------
eth0         up, NO ADDRESS YET
time         2026-11-22 09:33:20 UTC, NOT SYNCHRONISED: no backup expires by its
             age
slot         0.1.0
disk         NO DATA PARTITION
daemon       not configured

Nothing is known of backups yet.

This appliance has no settings yet. Press Enter: it asks for them, one by one. A
drive labelled PGHOARD_CFG with pghoard.json on it does as well.
",
        );
        // Whatever is missing.
        let nothing = render(&Value::Null, Some(&json!({ "daemon": 1 })), NOW);
        assert!(nothing.ends_with("Press Enter to log in.\n"), "{nothing}");
    }
}
