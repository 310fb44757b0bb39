//! `pghoard retention`, with `--dry-run`: what stays by which rules, what goes by which, and the
//! WAL that goes with it. From the log and the configuration alone; nothing is changed.
//!
//! | code | when |
//! |---|---|
//! | 0 | shown |
//! | 1 | the log cannot be read |
//! | 2 | wrong command line or configuration |

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use machine::event::Range;
use machine::projection::attempts::refused::REST_MS;
use machine::rule::clock::uncertain;
use machine::rule::retention::{self, Fate, Keep, Plan};
use machine::{BackupName, Millis, SegmentSize, SiteState, State};
use serde_json::{Value, json};

use super::screen;
use crate::clock;
use crate::config::Config;
use crate::daemon::site::site_policy;
use crate::failure::Outcome;
use crate::journal::log;
use crate::publish::facts;
use crate::publish::text::{iso, pretty, size, utc};

pub mod hold;

#[derive(Parser)]
#[command(name = "pghoard retention", version, infer_long_args = true)]
/// Show which basebackups and which WAL retention keeps and which it lets go, and why
struct Flags {
    /// The site; may be left out where there is only one
    #[arg(long)]
    site: Option<String>,
    /// Only show it: deleting is the daemon's work
    #[arg(long, required = true)]
    dry_run: bool,
    /// For programs
    #[arg(long)]
    json: bool,
    /// Configuration file
    #[arg(long, env = "PGHOARD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
}

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// The command; the first argument is its name. Gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let flags: Flags = match super::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    let told = |failure, code: i32| {
        super::warn(format_args!("pghoard retention: {failure}"));
        code
    };
    let config = match screen::config(flags.config.clone()) {
        Ok(config) => config,
        Err(failure) => return told(failure, USAGE),
    };
    let site = match config.site(flags.site.as_deref()) {
        Ok(site) => site,
        Err(failure) => return told(failure, USAGE),
    };
    let shown = read(&config).and_then(|state| {
        let name = machine::Site(site.name.clone());
        let unknown = SiteState::default();
        let known = state.sites.get(&name).unwrap_or(&unknown);
        let policy = site_policy(site, &[], 0);
        let nodes = u32::try_from(site.nodes.len()).unwrap_or(u32::MAX);
        let doubtful = uncertain(&state.clock, known, nodes);
        let plan = retention::plan(known, &policy, clock::now(), doubtful);
        let view = View::new(known, plan, clock::now());
        match flags.json {
            true => pretty(&view.json()),
            false => Ok(view.text(&site.name)),
        }
    });
    match shown.and_then(|text| super::print(&text)) {
        Ok(()) => DONE,
        Err(failure) => told(failure, FAILED),
    }
}

fn read(config: &Config) -> Outcome<State> {
    let mut state = State::default();
    log::read(&screen::log_path(config)?, &mut |envelope| {
        state.apply(envelope)
    })?;
    Ok(state)
}

struct View<'a> {
    site: &'a SiteState,
    plan: Plan,
    size: SegmentSize,
    now: Millis,
}

impl View<'_> {
    fn new(site: &SiteState, plan: Plan, now: Millis) -> View<'_> {
        View {
            site,
            plan,
            size: site.ledger.segment_size.unwrap_or(SegmentSize::DEFAULT),
            now,
        }
    }

    fn text(&self, site: &str) -> String {
        let mut out = format!("Site {site}, as of {} UTC\n", utc(self.now));
        if self.site.ledger.reconciled_at.is_none() {
            out.push_str("the store was not listed yet: nothing is deleted before that\n");
        }
        if self.plan.backups.is_empty() {
            out.push_str("no basebackups\n");
        }
        for verdict in &self.plan.backups {
            let known = if verdict.restorable {
                ""
            } else {
                "cannot be restored now; "
            };
            let line = format!(
                "{known}{}{}",
                fate(&verdict.fate),
                self.refused(&verdict.backup)
            );
            let head = format!("  {:<19}  ", verdict.backup.0);
            out.push_str(&screen::wrap(&head, &line));
        }
        match self.plan.wal.going.as_slice() {
            [] => out.push_str("no WAL goes\n"),
            ranges => {
                out.push_str("WAL that goes\n");
                for range in ranges {
                    let bytes = segments(range).saturating_mul(self.size.bytes());
                    let line = format!("{} segments, {} plain", segments(range), size(bytes));
                    let head = format!("  {}  ", range.name(self.size));
                    out.push_str(&format!("{head}{line}\n"));
                }
            }
        }
        if let Some(refused) = &self.site.attempts.refused {
            let told = format!(
                "{} WAL segments and {} basebackups since {}: {}; asked again {}",
                refused.segments(),
                refused.backups.len(),
                utc(refused.since),
                refused.message,
                utc(refused.next())
            );
            out.push_str(&screen::wrap("the store REFUSES to delete ", &told));
        }
        out
    }

    fn refused(&self, backup: &BackupName) -> String {
        let refused = self.site.attempts.refused.as_ref();
        let kept = refused.and_then(|refused| refused.backups.get(backup));
        kept.map_or_else(String::new, |kept| {
            let (asked, again) = (utc(kept.asked_at), utc(kept.asked_at.plus(REST_MS)));
            format!("; the store REFUSED it {asked}, asked again {again}")
        })
    }

    fn json(&self) -> Value {
        let backups = self.plan.backups.iter().map(|verdict| {
            let (goes, rules) = match &verdict.fate {
                Fate::Keep(why) => (false, why.iter().map(ToString::to_string).collect()),
                Fate::Go(rule) => (true, vec![rule.to_string()]),
            };
            json!({
                "goes": goes,
                "name": verdict.backup.0,
                "refused": !self.refused(&verdict.backup).is_empty(),
                "restorable": verdict.restorable,
                "rules": rules,
            })
        });
        let wal = self.plan.wal.going.iter().map(|range| {
            let at = |number| machine::Segment::new(range.timeline, number).name(self.size);
            json!({
                "first": at(range.first),
                "last": at(range.last),
                "segments": segments(range),
                "timeline": range.timeline,
            })
        });
        json!({
            "at": iso(self.now),
            "backups": backups.collect::<Vec<_>>(),
            "listed": self.site.ledger.reconciled_at.map(iso),
            "refused": self.site.attempts.refused.as_ref().map(facts::refused),
            "wal": wal.collect::<Vec<_>>(),
        })
    }
}

fn segments(range: &Range) -> u64 {
    (range.last - range.first).saturating_add(1)
}

fn fate(fate: &Fate) -> String {
    match fate {
        Fate::Go(rule) => format!("GOES by {rule}"),
        Fate::Keep(why) => {
            let why: Vec<String> = why.iter().map(keep).collect();
            format!("stays: {}", why.join(", "))
        }
    }
}

fn keep(keep: &Keep) -> String {
    match keep {
        Keep::Held {
            until: Some(until), ..
        } => format!("{keep} until {}", utc(*until)),
        _ => keep.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use machine::Event;
    use machine::projection::marks::Mark;

    use super::*;
    use crate::publish::testing;

    const NOW: Millis = Millis(1_795_340_000_000);

    #[test]
    fn the_whole_plan_is_told() {
        let mut state = testing::state("main");
        let name = testing::site("main");
        let site = state.sites.get_mut(&name).unwrap();
        let hold = Mark::Hold {
            backup: machine::BackupName("2026-11-22_09-29_0".into()),
            reason: "an audit".into(),
            by: "ada@desk".into(),
            until: Some(NOW.plus(60_000)),
        };
        let key = "k".to_owned();
        site.marks.apply(&Event::Marked { key, mark: hold }, NOW);
        site.ledger
            .wal
            .entry(machine::Timeline(1))
            .or_default()
            .insert_range(1, 2);
        let policy = testing::policy("main").sites[&name].clone();
        let plan = retention::plan(site, &policy, NOW, false);
        let view = View::new(site, plan, NOW);
        assert_eq!(
            view.text("main"),
            "Site main, as of 2026-11-22 09:33:20 UTC\n\
             the store was not listed yet: nothing is deleted before that\n  \
             2026-11-22_09-29_0   stays: newest, held by ada@desk (an audit) until\n\
             \u{20}                      2026-11-22 09:34:20, count\n\
             WAL that goes\n  \
             000000010000000000000001-000000010000000000000002  2 segments, 32.0 MiB plain\n"
        );
        let told = view.json();
        assert_eq!(told["backups"][0]["goes"], false);
        assert_eq!(told["backups"][0]["rules"][0], "newest");
        assert_eq!(told["wal"][0]["first"], "000000010000000000000001");
    }

    #[test]
    fn s66_what_the_store_refuses_is_shown_with_the_next_try() {
        let mut state = testing::state("main");
        let name = testing::site("main");
        let backup = machine::BackupName("2026-11-22_09-29_0".into());
        let refused = Event::DeletionRefused {
            wal: vec![Range {
                timeline: machine::Timeline(1),
                first: 1,
                last: 2,
            }],
            files: vec![machine::File::Main(backup)],
            marks: Vec::new(),
            class: machine::Class::Denied,
            message: "the object is locked".into(),
        };
        let site = state.sites.get_mut(&name).unwrap();
        site.attempts.apply(&name, &refused, NOW);
        let policy = testing::policy("main").sites[&name].clone();
        let plan = retention::plan(site, &policy, NOW, false);
        let view = View::new(site, plan, NOW);
        let text = view
            .text("main")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        for told in [
            "; the store REFUSED it 2026-11-22 09:33:20, asked again 2026-11-23 09:33:20",
            "the store REFUSES to delete 2 WAL segments and 1 basebackups since 2026-11-22 \
             09:33:20: the object is locked; asked again 2026-11-23 09:33:20",
        ] {
            assert!(text.contains(told), "{text}");
        }
        let told = view.json();
        assert_eq!(told["backups"][0]["refused"], true);
        assert_eq!(told["refused"]["wal_segments"], 2);
    }
}
