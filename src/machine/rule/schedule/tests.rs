//! The tables of the schedule. A backup is reason, day and time, and after `=` the slot it was
//! taken for: `s9/04:31=9/04:30`; `s` scheduled, `o` asked for, `h` for a hole, `x` behind it
//! dead. The answers come from a second program that follows PGHoard's text.

use alloc::vec::Vec;

use super::*;
use crate::class::Class;
use crate::event::{Envelope, Event};
use crate::file::BackupName;
use crate::projection::backups::Phase;
use crate::state::State;
use crate::testing::{backup, site_policy};

/// `9/04:30`: day and time.
fn at(text: &str) -> Millis {
    let (day, time) = text.split_once('/').unwrap();
    let (hour, minute) = time.split_once(':').unwrap();
    let number = |text: &str| text.parse::<u64>().unwrap();
    Millis(number(day) * DAY_MS + number(hour) * HOUR_MS + number(minute) * MINUTE_MS)
}

fn told(at: Millis) -> String {
    let (day, rest) = (at.0 / DAY_MS, at.0 % DAY_MS);
    format!(
        "{day}/{:02}:{:02}",
        rest / HOUR_MS,
        rest % HOUR_MS / MINUTE_MS
    )
}

/// `24h@4:30 asked`
fn rules(text: &str) -> (SitePolicy, Option<Why>) {
    let mut policy = site_policy();
    policy.interval_ms = None;
    let mut requested = None;
    for word in text.split_whitespace() {
        match word {
            "asked" => requested = Some(Why::Operator),
            "hole" => requested = Some(Why::Hole),
            _ => {
                let (interval, time) = word.split_once('@').unwrap_or((word, ""));
                let (count, unit) = interval.split_at(interval.len() - 1);
                let unit = if unit == "h" { HOUR_MS } else { MINUTE_MS };
                policy.interval_ms = Some(count.parse::<u64>().unwrap() * unit);
                let mut parts = time.split(':').map(|part| part.parse().ok());
                policy.hour = parts.next().flatten();
                policy.minute = parts.next().flatten();
            }
        }
    }
    (policy, requested)
}

fn backups(text: &str) -> Backups {
    let mut backups = Backups::default();
    for token in text.split_whitespace() {
        let (token, dead) = match token.strip_suffix('x') {
            Some(token) => (token, true),
            None => (token, false),
        };
        let (begun, slot) = token.split_once('=').unwrap_or((token, ""));
        let reason = match &begun[..1] {
            "s" => Why::Schedule,
            "o" => Why::Operator,
            _ => Why::Hole,
        };
        let (name, mut made) = backup(token, at(&begun[1..]), reason);
        made.normalized_at = Some(slot).filter(|slot| !slot.is_empty()).map(at);
        if dead {
            made.phase = Phase::Dead;
        }
        backups.all.insert(name, made);
    }
    backups
}

/// Rules, backups, now, and the answer.
fn check(table: &str) {
    let lines = table.lines().filter(|line| !line.is_empty());
    for line in lines.filter(|line| !line.starts_with('#')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [text, taken, now, expect] = cells.try_into().unwrap();
        let (policy, requested) = rules(text);
        let mut backups = backups(taken);
        backups.requested = requested;
        let (now, ahead) = (at(now), next(&backups, &policy, at(now)));
        let got = match (due(&backups, &policy, now), ahead) {
            (Some(due), _) => {
                let reason = match due.reason {
                    Why::Schedule => "schedule",
                    Why::Operator => "operator",
                    Why::Hole => "hole",
                };
                let slot = due.normalized_at.map(|slot| format!(" for {}", told(slot)));
                format!("due by {reason}{}", slot.unwrap_or_default())
            }
            (None, Some(ahead)) => format!("next {}", told(ahead)),
            (None, None) => "never".to_string(),
        };
        assert_eq!(got, expect, "{line}");
    }
}

#[test]
fn s58_pghoards_schedule_without_its_bugs() {
    check(TABLE);
}

const TABLE: &str = "
# an interval alone: from the start of the last one
24h | | 10/05:00 | due by schedule
24h | s9/05:00 | 10/04:59 | next 10/05:00
24h | s9/05:00 | 10/05:00 | due by schedule
24h | s9/05:00 | 10/05:01 | due by schedule
24h | s9/05:00 | 12/00:00 | due by schedule
24h | s9/05:00 | 9/05:00 | next 10/05:00
24h | s9/05:00 | 9/05:01 | next 10/05:00
24h | s8/05:00 s9/05:00 | 10/04:59 | next 10/05:00
24h | s8/05:00 s9/05:00 | 10/05:00 | due by schedule
24h | s9/05:00x | 9/06:00 | due by schedule
24h | s8/05:00 s9/05:00x | 9/06:00 | due by schedule
24h | s8/05:00 s9/05:00x | 9/04:00 | next 9/05:00
1h | s9/05:00 | 9/05:59 | next 9/06:00
1h | s9/05:00 | 9/06:00 | due by schedule
30m | s9/05:00 | 9/05:29 | next 9/05:30
30m | s9/05:00 | 9/05:30 | due by schedule
168h | s9/05:00 | 15/05:00 | next 16/05:00
168h | s9/05:00 | 16/04:59 | next 16/05:00
168h | s9/05:00 | 16/05:00 | due by schedule
36h | s9/05:00 | 10/16:59 | next 10/17:00
36h | s9/05:00 | 10/17:00 | due by schedule
# without an interval only what is asked for
 | | 10/05:00 | never
 | s1/05:00 | 10/05:00 | never
asked | | 10/05:00 | due by operator
asked | s10/04:59 | 10/05:00 | due by operator
hole | s10/04:59 | 10/05:00 | due by hole
# what is asked for comes at once, with the slot it falls in
24h asked | s10/04:59 | 10/05:00 | due by operator
24h hole | s10/04:59 | 10/05:00 | due by hole
24h@4:30 asked | s10/04:31=10/04:30 | 10/05:00 | due by operator for 10/04:30
24h@4:30 asked | s10/04:31=10/04:30 | 10/04:00 | due by operator for 9/04:30
24h@4:30 hole | s10/04:31=10/04:30 | 10/05:00 | due by hole for 10/04:30
24h@4:30 asked | | 10/05:00 | due by operator for 10/04:30
# hour and minute: once a slot
24h@4:30 | | 10/04:00 | due by schedule for 9/04:30
24h@4:30 | | 10/05:00 | due by schedule for 10/04:30
24h@4:30 | s9/04:31=9/04:30 | 9/04:32 | next 10/04:30
24h@4:30 | s9/04:31=9/04:30 | 9/23:59 | next 10/04:30
24h@4:30 | s9/04:31=9/04:30 | 10/04:00 | next 10/04:30
24h@4:30 | s9/04:31=9/04:30 | 10/04:29 | next 10/04:30
24h@4:30 | s9/04:31=9/04:30 | 10/04:30 | due by schedule for 10/04:30
24h@4:30 | s9/04:31=9/04:30 | 10/04:31 | due by schedule for 10/04:30
24h@4:30 | s9/04:31=9/04:30 | 10/12:00 | due by schedule for 10/04:30
24h@4:30 | s9/04:31=9/04:30 | 12/12:00 | due by schedule for 12/04:30
24h@4:30 | s10/04:31=10/04:30 | 10/04:32 | next 11/04:30
24h@4:30 | s10/04:31=10/04:30 | 10/20:00 | next 11/04:30
24h@4:30 | s10/04:31=10/04:30 | 11/04:29 | next 11/04:30
24h@4:30 | s10/04:31=10/04:30 | 11/04:31 | due by schedule for 11/04:30
24h@4:30 | s9/04:31 | 10/04:00 | next 10/04:30
24h@4:30 | s9/04:31 | 10/04:31 | due by schedule for 10/04:30
24h@4:30 | s9/04:31=9/04:30 s10/04:31=10/04:30x | 10/04:40 | due by schedule for 10/04:30
24h@4:30 | s9/04:31=9/04:30 s10/04:31=10/04:30x | 10/04:31 | due by schedule for 10/04:30
# an hour without a minute means minute 0
24h@4 | s9/04:01=9/04:00 | 10/03:59 | next 10/04:00
24h@4 | s9/04:01=9/04:00 | 10/04:00 | due by schedule for 10/04:00
24h@4 | s9/04:01=9/04:00 | 10/04:01 | due by schedule for 10/04:00
24h@0 | s9/00:01=9/00:00 | 9/23:59 | next 10/00:00
24h@0 | s9/00:01=9/00:00 | 10/00:00 | due by schedule for 10/00:00
24h@0 | s9/00:01=9/00:00 | 10/00:01 | due by schedule for 10/00:00
24h@23 | s9/23:01=9/23:00 | 10/22:59 | next 10/23:00
24h@23 | s9/23:01=9/23:00 | 10/23:01 | due by schedule for 10/23:00
# several slots a day
6h@0:15 | s10/00:16=10/00:15 | 10/06:14 | next 10/06:15
6h@0:15 | s10/00:16=10/00:15 | 10/06:15 | next 10/06:15
6h@0:15 | s10/00:16=10/00:15 | 10/06:16 | due by schedule for 10/06:15
6h@0:15 | s10/00:16=10/00:15 | 10/12:16 | due by schedule for 10/12:15
6h@0:15 | s10/00:16=10/00:15 | 10/23:00 | due by schedule for 10/18:15
6h@4 | s10/04:01=10/04:00 | 10/10:00 | next 10/10:00
6h@4 | s10/04:01=10/04:00 | 10/10:01 | due by schedule for 10/10:00
6h@4 | s10/04:01=10/04:00 | 11/03:00 | due by schedule for 10/22:00
6h@4 | s10/04:01=10/04:00 | 11/04:01 | due by schedule for 11/04:00
12h@18:30 | s10/18:31=10/18:30 | 11/06:30 | next 11/06:30
12h@18:30 | s10/18:31=10/18:30 | 11/06:31 | due by schedule for 11/06:30
12h@18:30 | s10/18:31=10/18:30 | 11/18:00 | due by schedule for 11/06:30
1h@0:30 | s10/05:31=10/05:30 | 10/06:30 | next 10/06:30
1h@0:30 | s10/05:31=10/05:30 | 10/06:31 | due by schedule for 10/06:30
1h@0:30 | s10/05:31=10/05:30 | 10/07:31 | due by schedule for 10/07:30
# an interval that does not divide the day begins anew with it
7h@0 | s10/21:01=10/21:00 | 10/23:00 | next 11/00:31
7h@0 | s10/21:01=10/21:00 | 11/00:00 | next 11/00:31
7h@0 | s10/21:01=10/21:00 | 11/00:01 | next 11/00:31
7h@0 | s10/21:01=10/21:00 | 11/01:00 | due by schedule for 11/00:00
7h@0 | s10/21:01=10/21:00 | 11/02:00 | due by schedule for 11/00:00
5h@4 | s10/04:01=10/04:00 | 10/09:00 | next 10/09:00
5h@4 | s10/04:01=10/04:00 | 10/09:01 | due by schedule for 10/09:00
5h@4 | s10/04:01=10/04:00 | 10/14:01 | due by schedule for 10/14:00
5h@4 | s10/04:01=10/04:00 | 11/03:00 | due by schedule for 11/00:00
9h@4 | s10/22:01=10/22:00 | 11/03:00 | next 11/04:00
9h@4 | s10/22:01=10/22:00 | 11/04:01 | due by schedule for 11/04:00
9h@4 | s10/22:01=10/22:00 | 11/05:00 | due by schedule for 11/04:00
# more than a day: each day is a slot, half an interval has to pass
36h@4 | s10/04:01=10/04:00 | 10/20:00 | next 11/04:00
36h@4 | s10/04:01=10/04:00 | 10/22:01 | next 11/04:00
36h@4 | s10/04:01=10/04:00 | 11/04:00 | due by schedule for 11/04:00
36h@4 | s10/04:01=10/04:00 | 11/04:01 | due by schedule for 11/04:00
48h@4 | s10/04:01=10/04:00 | 11/04:00 | next 11/04:01
48h@4 | s10/04:01=10/04:00 | 11/04:01 | due by schedule for 11/04:00
48h@4 | s10/04:01=10/04:00 | 12/04:00 | due by schedule for 12/04:00
48h@4 | s10/04:01=10/04:00 | 12/04:01 | due by schedule for 12/04:00
168h@4 | s10/04:01=10/04:00 | 11/04:01 | next 13/16:01
168h@4 | s10/04:01=10/04:00 | 13/04:01 | next 13/16:01
168h@4 | s10/04:01=10/04:00 | 13/16:00 | next 13/16:01
168h@4 | s10/04:01=10/04:00 | 13/16:01 | due by schedule for 13/04:00
168h@4 | s10/04:01=10/04:00 | 14/04:01 | due by schedule for 14/04:00
# a changed schedule does not take two in a row
24h@12 | s10/04:31=10/04:30 | 10/12:00 | next 10/16:31
24h@12 | s10/04:31=10/04:30 | 10/12:01 | next 10/16:31
24h@12 | s10/04:31=10/04:30 | 10/16:30 | next 10/16:31
24h@12 | s10/04:31=10/04:30 | 10/16:31 | due by schedule for 10/12:00
24h@12 | s10/04:31=10/04:30 | 10/17:00 | due by schedule for 10/12:00
24h@20 | s10/04:31=10/04:30 | 10/20:00 | due by schedule for 10/20:00
24h@20 | s10/04:31=10/04:30 | 10/20:01 | due by schedule for 10/20:00
24h@5 | s10/04:31=10/04:30 | 10/05:01 | next 10/16:31
24h@5 | s10/04:31=10/04:30 | 10/16:31 | due by schedule for 10/05:00
24h@5 | s10/04:31=10/04:30 | 11/05:01 | due by schedule for 11/05:00
6h@5 | s10/04:31=10/04:30 | 10/05:01 | next 10/07:31
6h@5 | s10/04:31=10/04:30 | 10/07:30 | next 10/07:31
6h@5 | s10/04:31=10/04:30 | 10/07:31 | due by schedule for 10/05:00
6h@5 | s10/04:31=10/04:30 | 10/11:01 | due by schedule for 10/11:00
24h@4:30 | s10/03:00 | 10/04:31 | next 10/15:00
24h@4:30 | s10/03:00 | 10/15:00 | due by schedule for 10/04:30
24h@4:30 | s10/03:00 | 10/15:01 | due by schedule for 10/04:30
24h@4:30 | s10/03:00=9/04:30 | 10/04:31 | next 10/15:00
24h@4:30 | s10/03:00=9/04:30 | 10/15:00 | due by schedule for 10/04:30
24h@4:30 | s10/03:00=9/04:30 | 10/15:01 | due by schedule for 10/04:30
# a late one counts for the slot it was meant for
24h@4:30 | s10/11:00=10/04:30 | 11/04:30 | due by schedule for 11/04:30
24h@4:30 | s10/11:00=10/04:30 | 11/04:31 | due by schedule for 11/04:30
24h@4:30 | s10/23:00=10/04:30 | 11/04:31 | next 11/11:00
24h@4:30 | s10/23:00=10/04:30 | 11/10:59 | next 11/11:00
24h@4:30 | s10/23:00=10/04:30 | 11/11:00 | due by schedule for 11/04:30
24h@4:30 | s11/03:00=10/04:30 | 11/04:31 | next 11/15:00
24h@4:30 | s11/03:00=10/04:30 | 11/14:59 | next 11/15:00
24h@4:30 | s11/03:00=10/04:30 | 11/15:00 | due by schedule for 11/04:30
# S-58: what was asked for or closed a hole pushes no scheduled one out
24h@4:30 | s9/04:31=9/04:30 o10/04:00=9/04:30 | 10/04:31 | due by schedule for 10/04:30
24h@4:30 | s9/04:31=9/04:30 o10/04:31=10/04:30 | 10/04:32 | due by schedule for 10/04:30
24h@4:30 | s9/04:31=9/04:30 h10/04:31=10/04:30 | 10/04:32 | due by schedule for 10/04:30
24h@4:30 | s9/04:31=9/04:30 o9/20:00=9/04:30 | 10/04:00 | next 10/04:30
24h@4:30 | s9/04:31=9/04:30 o9/20:00=9/04:30 | 10/04:31 | due by schedule for 10/04:30
24h@4:30 | s10/04:31=10/04:30 o10/05:00=10/04:30 | 10/05:01 | next 11/04:30
24h@4:30 | s10/04:31=10/04:30 o10/05:00=10/04:30 | 11/04:31 | due by schedule for 11/04:30
24h@4:30 | o10/04:31=10/04:30 | 10/05:00 | due by schedule for 10/04:30
24h@4:30 | h10/04:31=10/04:30 | 10/05:00 | due by schedule for 10/04:30
24h | s9/05:00 o9/23:00 | 10/04:59 | next 10/05:00
24h | s9/05:00 o9/23:00 | 10/05:00 | due by schedule
24h | s9/05:00 h10/04:59 | 10/05:00 | due by schedule
24h | s9/05:00 o10/04:59 h10/04:59 | 10/05:00 | due by schedule
24h | s9/05:00 o10/04:59 h10/04:59 | 10/04:59 | next 10/05:00
24h | o9/05:00 | 10/04:59 | next 10/05:00
24h | o9/05:00 | 10/05:00 | due by schedule
24h | h9/05:00 | 10/04:59 | next 10/05:00
24h | h9/05:00 | 10/05:00 | due by schedule
24h | o9/05:00 o9/15:00 | 10/05:00 | next 10/15:00
24h | o9/05:00 o9/15:00 | 10/14:59 | next 10/15:00
24h | o9/05:00 o9/15:00 | 10/15:00 | due by schedule
6h@0 | s10/00:01=10/00:00 o10/06:01=10/06:00 o10/05:00=10/00:00 | 10/06:02 \
    | due by schedule for 10/06:00
24h | s9/05:00x o9/23:00 | 10/05:00 | next 10/23:00
24h | s9/05:00x o9/23:00 | 10/23:00 | due by schedule
# S-36: one from the future was not taken
24h | s900/05:00 | 10/05:00 | due by schedule
24h | s9/05:00 s900/05:00 | 10/04:59 | next 10/05:00
24h | s9/05:00 s900/05:00 | 10/05:00 | due by schedule
24h@4:30 | s900/04:31=900/04:30 | 10/05:00 | due by schedule for 10/04:30
24h@4:30 | s10/04:31=10/04:30 s900/04:31=900/04:30 | 10/05:00 | next 11/04:30
24h@4:30 | s10/04:31=10/04:30 s900/04:31=900/04:30 | 11/04:31 | due by schedule for 11/04:30
";

/// Rules, backups, failures, and when and why the next one comes at 10/05:00.
const FORECASTS: &str = "
24h | s9/06:00 | 0 | 10/06:00 every 24 h
90m | s10/04:00 | 0 | 10/05:30 every 90 min
24h@4:30 | s10/04:31 | 0 | 11/04:30 daily at 04:30 UTC
24h@4 | s10/04:01 | 0 | 11/04:00 daily at 04:00 UTC
6h@4 | s10/04:01 | 0 | 10/10:00 every 6 h from 04:00 UTC
24h asked | s10/04:01 | 0 | 10/05:00 asked for
24h hole | s10/04:01 | 0 | 10/05:00 WAL is lost
 | s10/04:01 | 0 | - no interval
asked | s10/04:01 | 0 | 10/05:00 asked for
24h | | 0 | 10/05:00 every 24 h
# S-68: it backs off, longer each time, and never stops
24h | | 1 | 10/05:00 backs off until 1970-01-11 05:00 UTC after 1 failure
24h | | 5 | 10/05:01 backs off until 1970-01-11 05:01 UTC after 5 failures
24h | | 99 | 10/06:00 backs off until 1970-01-11 06:00 UTC after 99 failures
24h | s10/04:00 | 1 | 11/04:00 every 24 h
";

/// A site whose basebackup failed so often at 10/05:00.
fn failed(name: &Site, times: u64) -> SiteState {
    let mut state = State::default();
    for seq in 0..times {
        let event = Event::BackupFailed {
            backup: BackupName("a".to_string()),
            class: Class::Network,
            message: String::new(),
        };
        state.apply(&Envelope {
            seq,
            at: at("10/05:00"),
            run: 1,
            site: Some(name.clone()),
            event,
        });
    }
    state.sites.remove(name).unwrap_or_default()
}

#[test]
fn s68_the_forecast_says_when_and_why() {
    let (name, mut all) = (Site("main".to_string()), Policy::default());
    let now = at("10/05:00");
    let lines = FORECASTS.lines().filter(|line| line.contains('|'));
    for line in lines {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [text, taken, failures, expect] = cells.try_into().unwrap();
        let (policy, requested) = rules(text);
        let mut site = failed(&name, failures.parse().unwrap());
        site.backups = backups(taken);
        site.backups.requested = requested;
        let next = forecast((&name, &site), &policy, &all, now);
        let when = next.at.map_or("-".to_string(), told);
        assert_eq!(format!("{when} {}", next.why), expect, "{line}");
    }
    let (mut policy, _) = rules("24h");
    let mut site = failed(&name, 0);
    let why = |site: &SiteState, policy: &SitePolicy, all: &Policy| {
        forecast((&name, site), policy, all, now).why
    };
    all.maintenance = true;
    assert_eq!(why(&site, &policy, &all), "maintenance");
    let (backup, mut made) = backup("r", at("10/04:59"), Why::Schedule);
    made.phase = Phase::Running;
    site.backups.all.insert(backup, made);
    assert_eq!(why(&site, &policy, &all), "one is being taken");
    policy.active = false;
    assert_eq!(why(&site, &policy, &all), "the site is inactive");
}

#[test]
fn the_next_one_is_due_when_foretold_and_not_before() {
    let now = Millis(1_000 * HOUR_MS);
    for interval in [5, 7, 24, 36, 48] {
        for hour in [None, Some(0), Some(15), Some(16), Some(17)] {
            for reason in [Why::Schedule, Why::Operator] {
                for age in 0..60 {
                    let mut policy = site_policy();
                    (policy.hour, policy.interval_ms) = (hour, Some(interval * HOUR_MS));
                    let mut backups = Backups::default();
                    let at = Millis(now.0 - age * HOUR_MS - 1);
                    backups.all.extend([backup("a", at, reason)]);
                    let next = next(&backups, &policy, now).unwrap();
                    let case = format!("{interval} {hour:?} {reason:?} {age} {next:?}");
                    assert!(due(&backups, &policy, next.plus(1)).is_some(), "{case}");
                    let early = (now.0..next.0).step_by(10 * 60_000);
                    let early = early
                        .map(Millis)
                        .find(|at| due(&backups, &policy, *at).is_some());
                    assert_eq!(early, None, "{case}");
                }
            }
        }
    }
}
