//! What a person asks first: up to when am I safe, what is not, and how long will it last.

use std::fmt::Write;

use serde_json::Value;

use super::{NEVER, View, row};
use crate::publish::text::{size, span};

/// Older windows than these are counted.
const WINDOWS_MAX: usize = 5;

/// `sites` has those that this one was moved from: their windows are its history.
pub fn render(out: &mut String, site: &View<'_>, sites: &View<'_>) {
    let (coverage, now) = (site.inner("coverage"), site.inner("now"));
    row(out, "protected", &protected(&coverage, &now));
    for name in site.list("origins").iter().filter_map(Value::as_str) {
        windows(
            out,
            &sites.inner(name).inner("coverage"),
            &format!(", of site {name}"),
        );
    }
    windows(out, &coverage, "");
    if coverage.0.get("slot").is_some_and(Value::is_object) {
        row(out, "slot", &slot(&coverage.inner("slot")));
    }
    row(out, "spool", &spool(&site.inner("spool"), &now));
    let doubt = site.inner("clock_doubtful").text("why");
    if !doubt.is_empty() {
        row(out, "CLOCK", &format!("in doubt: {doubt}"));
    }
    let lease = site.inner("lease");
    if lease.0.get("ours") == Some(&Value::Bool(false)) {
        let host = lease.text("host");
        let held = format!("held by another daemon, on host {host}: nothing is stored from here");
        row(out, "PREFIX", &held);
    }
}

/// Of a site at rest.
pub fn render_history(out: &mut String, site: &View<'_>) {
    windows(out, &site.inner("coverage"), "");
    let spool = site.inner("spool");
    if spool.number("files") > 0 {
        row(out, "spool", &self::spool(&spool, &site.inner("now")));
    }
    let lease = site.inner("lease");
    if lease.0.get("ours") == Some(&Value::Bool(false)) {
        let host = lease.text("host");
        let held = format!("held by another daemon, on host {host}: nothing expires there");
        row(out, "PREFIX", &held);
    }
}

fn windows(out: &mut String, coverage: &View<'_>, of: &str) {
    let windows = coverage.list("windows");
    let older = windows.len().saturating_sub(WINDOWS_MAX);
    for window in windows.iter().skip(older) {
        row(
            out,
            "restorable",
            &format!("{}{of}", self::window(&View(window))),
        );
    }
    if older > 0 {
        row(out, "restorable", &format!("and {older} older windows{of}"));
    }
}

fn protected(coverage: &View<'_>, now: &View<'_>) -> String {
    let mut line = match coverage.time("protected_until") {
        never if never == NEVER => "NOT: no basebackup can be restored up to now".to_owned(),
        until => format!("until {until}"),
    };
    let since = now.number("unprotected_seconds").saturating_mul(1_000);
    match coverage.0.get("unprotected_bytes").and_then(Value::as_u64) {
        None => {}
        Some(0) => line.push_str("; all that the server wrote is safe"),
        Some(bytes) => {
            let _ = write!(line, "; {} not safe yet, for {}", size(bytes), span(since));
        }
    }
    line
}

fn window(window: &View<'_>) -> String {
    format!(
        "{} to {}, {} to {}, timeline {}, basebackups: {}",
        window.time("from_at"),
        window.time("to_at"),
        window.text("from_lsn"),
        window.text("to_lsn"),
        window.number("timeline"),
        window.number("backups"),
    )
}

fn slot(slot: &View<'_>) -> String {
    let held = slot.number("held_bytes");
    let mut line = format!(
        "'{}' holds back {} on the server",
        slot.text("name"),
        size(held)
    );
    match slot.text("wal_status").as_str() {
        "" => {}
        status @ ("unreserved" | "lost") => {
            let _ = write!(line, ", {}", status.to_uppercase());
        }
        status => {
            let _ = write!(line, ", {status}");
        }
    }
    if let Some(limit) = slot.0.get("limit_bytes").and_then(Value::as_u64) {
        let _ = write!(line, ", lost beyond {}", size(limit));
    }
    if !slot.is("active") {
        line.push_str(", not in use");
    }
    line
}

fn spool(spool: &View<'_>, now: &View<'_>) -> String {
    let bytes = |view: &View<'_>, key| view.0.get(key).and_then(Value::as_u64);
    let mut line = format!(
        "{} files, {}",
        spool.number("files"),
        size(spool.number("bytes"))
    );
    if let Some(limit) = bytes(spool, "limit_bytes") {
        let _ = write!(line, " of at most {}", size(limit));
    }
    if let Some(free) = bytes(now, "disk_free_bytes") {
        let _ = write!(line, "; {} free on disk", size(free));
    }
    if let Some(seconds) = bytes(now, "spool_lasts_seconds") {
        let lasts = span(seconds.saturating_mul(1_000));
        let _ = write!(line, "; lasts {lasts} if the store is away");
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(site: &Value, expect: &str) {
        let mut out = String::new();
        render(&mut out, &View(site), &View(&Value::Null));
        assert_eq!(out, expect);
    }

    #[test]
    fn a_site_at_rest_and_one_in_trouble_differ_at_a_glance() {
        let window = |from: u32, to: u32| {
            json!({
                "from_at": format!("2026-11-{from}T00:00:00Z"), "from_lsn": "0/5000100",
                "to_at": format!("2026-11-{to}T00:00:00Z"), "to_lsn": "0/7000000",
                "timeline": 1, "backups": 2,
            })
        };
        check(
            &json!({
                "coverage": {
                    "protected_until": "2026-11-23T00:00:00Z",
                    "unprotected_bytes": 0,
                    "windows": [window(22, 23)],
                    "slot": { "name": "pghoard", "active": true, "held_bytes": 1024,
                        "wal_status": "reserved" },
                },
                "spool": { "files": 0, "bytes": 0, "limit_bytes": 1 << 30 },
                "now": { "disk_free_bytes": 2_u64 << 30, "spool_lasts_seconds": 7_200 },
                "lease": { "ours": true },
            }),
            "  protected    until 2026-11-23 00:00:00; all that the server wrote is safe
  restorable   2026-11-22 00:00:00 to 2026-11-23 00:00:00, 0/5000100 to
               0/7000000, timeline 1, basebackups: 2
  slot         'pghoard' holds back 1.0 KiB on the server, reserved
  spool        0 files, 0 B of at most 1.0 GiB; 2.0 GiB free on disk; lasts 2 h
               0 min if the store is away
",
        );
        check(
            &json!({
                "coverage": {
                    "unprotected_bytes": 2048,
                    "windows": (10..16).map(|day| window(day, day + 1)).collect::<Vec<_>>(),
                    "slot": { "name": "pghoard", "active": false, "held_bytes": 1024,
                        "wal_status": "lost", "limit_bytes": 4096 },
                },
                "spool": { "files": 2, "bytes": 1024 },
                "now": { "unprotected_seconds": 300 },
                "clock_doubtful": { "why": "it jumped" },
                "lease": { "ours": false, "host": "vault" },
            }),
            "  protected    NOT: no basebackup can be restored up to now; 2.0 KiB not safe
               yet, for 5 min
  restorable   2026-11-11 00:00:00 to 2026-11-12 00:00:00, 0/5000100 to
               0/7000000, timeline 1, basebackups: 2
  restorable   2026-11-12 00:00:00 to 2026-11-13 00:00:00, 0/5000100 to
               0/7000000, timeline 1, basebackups: 2
  restorable   2026-11-13 00:00:00 to 2026-11-14 00:00:00, 0/5000100 to
               0/7000000, timeline 1, basebackups: 2
  restorable   2026-11-14 00:00:00 to 2026-11-15 00:00:00, 0/5000100 to
               0/7000000, timeline 1, basebackups: 2
  restorable   2026-11-15 00:00:00 to 2026-11-16 00:00:00, 0/5000100 to
               0/7000000, timeline 1, basebackups: 2
  restorable   and 1 older windows
  slot         'pghoard' holds back 1.0 KiB on the server, LOST, lost beyond 4.0
               KiB, not in use
  spool        2 files, 1.0 KiB
  CLOCK        in doubt: it jumped
  PREFIX       held by another daemon, on host vault: nothing is stored from
               here
",
        );
    }
}
