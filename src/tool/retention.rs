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
use machine::policy::Policy;
use machine::projection::attempts::refused::REST_MS;
use machine::projection::clock::Clock;
use machine::rule::chain::{Chain, Link};
use machine::rule::clock::uncertain;
use machine::rule::retention::{self, Fate, Keep, Plan, Verdict};
use machine::{Millis, SegmentSize, SiteState, State};
use serde_json::{Value, json};

use super::screen;
use crate::clock;
use crate::config::Config;
use crate::daemon::site::site_policy;
use crate::daemon::surroundings::Synchrony;
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
        let (mut policy, unknown) = (policy(&config), SiteState::default());
        // Since when only the daemon knows; not before it started.
        policy.unsynchronised = Synchrony::from_environment().look(state.started_at);
        let Some(chain) = Chain::of(&name, &policy, &state, &unknown) else {
            return Ok(at_rest(&site.name, flags.json));
        };
        let view = View::new(&name, &chain, (&state.clock, &policy), clock::now());
        match flags.json {
            true => pretty(&view.json()),
            false => Ok(view.text()),
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

/// As the daemon has it, but for what needs a server.
fn policy(config: &Config) -> Policy {
    let mut policy = Policy::default();
    for site in config.sites.values() {
        let mut made = site_policy(site, &[], 0);
        made.nodes = u32::try_from(site.nodes.len()).unwrap_or(u32::MAX);
        let history = config.history(site).into_iter();
        made.origins = history.map(|o| machine::Site(o.name.clone())).collect();
        policy.sites.insert(machine::Site(site.name.clone()), made);
    }
    policy
}

fn at_rest(site: &str, json: bool) -> String {
    match json {
        true => format!("{}\n", json!({ "active": false, "backups": [], "wal": [] })),
        false => {
            format!("Site {site} is inactive, and no active site was moved from it\nnothing goes\n")
        }
    }
}

struct View<'a> {
    /// The site that was asked about.
    name: &'a machine::Site,
    chain: &'a Chain<'a>,
    plan: Plan,
    now: Millis,
}

impl<'a> View<'a> {
    fn new(
        name: &'a machine::Site,
        chain: &'a Chain<'a>,
        (known, policy): (&Clock, &Policy),
        now: Millis,
    ) -> View<'a> {
        let Chain { rules, links } = chain;
        let head = links.first().map(|head| head.site);
        let doubtful = head.is_none_or(|head| uncertain(known, head, policy, rules.nodes));
        View {
            name,
            chain,
            plan: retention::plan(links, rules, now, doubtful),
            now,
        }
    }

    fn text(&self) -> String {
        let names: Vec<&str> = self.chain.links.iter().map(|l| l.name.0.as_str()).collect();
        let (head, history) = names.split_first().unwrap_or((&"", &[]));
        let mut out = format!("Site {head}, as of {} UTC\n", utc(self.now));
        if !history.is_empty() {
            out.push_str(&screen::wrap("moved from ", &history.join(", ")));
        }
        for link in &self.chain.links {
            if link.site.ledger.reconciled_at.is_none() {
                let of = self.of(link.name);
                let told =
                    format!("the store{of} was not listed yet: nothing is deleted before that\n");
                out.push_str(&told);
            }
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
            let (fate, refused) = (fate(&verdict.fate), self.refused(verdict));
            let line = format!("{known}{fate}{refused}");
            let head = format!("  {:<19}  {}", verdict.backup.0, self.column(&verdict.site));
            out.push_str(&screen::wrap(&head, &line));
        }
        let mut going = self.going().peekable();
        out.push_str(match going.peek() {
            None => "no WAL goes\n",
            Some(_) => "WAL that goes\n",
        });
        for (link, range) in going {
            let plain = size_of(link.site);
            let bytes = segments(range).saturating_mul(plain.bytes());
            let line = format!("{} segments, {} plain", segments(range), size(bytes));
            let head = format!("  {}  {}", range.name(plain), self.column(link.name));
            out.push_str(&format!("{head}{line}\n"));
        }
        for link in &self.chain.links {
            let Some(refused) = &link.site.attempts.refused else {
                continue;
            };
            let told = format!(
                "{} WAL segments and {} basebackups since {}: {}; asked again {}",
                refused.segments(),
                refused.backups.len(),
                utc(refused.since),
                refused.message,
                utc(refused.next())
            );
            let head = format!("the store{} REFUSES to delete ", self.of(link.name));
            out.push_str(&screen::wrap(&head, &told));
        }
        out
    }

    /// The site of a row, where there is more than one.
    fn column(&self, site: &machine::Site) -> String {
        let widths = self.chain.links.iter().map(|link| link.name.0.len());
        match self.chain.links.len() {
            0 | 1 => String::new(),
            _ => format!("{:<1$}  ", site.0, widths.max().unwrap_or_default()),
        }
    }

    fn of(&self, site: &machine::Site) -> String {
        match self.chain.links.len() {
            0 | 1 => String::new(),
            _ => format!(" of {site}"),
        }
    }

    fn going(&self) -> impl Iterator<Item = (&Link<'a>, &Range)> {
        let links = self.chain.links.iter();
        links.flat_map(|link| {
            let wal = self.plan.wal.get(link.name);
            let going = wal.into_iter().flat_map(|wal| &wal.going);
            going.map(move |range| (link, range))
        })
    }

    fn refused(&self, verdict: &Verdict) -> String {
        let mut links = self.chain.links.iter();
        let link = links.find(|link| *link.name == verdict.site);
        let refused = link.and_then(|link| link.site.attempts.refused.as_ref());
        let kept = refused.and_then(|refused| refused.backups.get(&verdict.backup));
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
                "refused": !self.refused(verdict).is_empty(),
                "restorable": verdict.restorable,
                "rules": rules,
                "site": verdict.site,
            })
        });
        let wal = self.going().map(|(link, range)| {
            let plain = size_of(link.site);
            let at = |number| machine::Segment::new(range.timeline, number).name(plain);
            json!({
                "first": at(range.first),
                "last": at(range.last),
                "segments": segments(range),
                "site": link.name,
                "timeline": range.timeline,
            })
        });
        // What there is one of is of the site that was asked about.
        let mut links = self.chain.links.iter();
        let site = links
            .find(|link| link.name == self.name)
            .map(|link| link.site);
        let refused = site.and_then(|site| site.attempts.refused.as_ref());
        json!({
            "active": true,
            "at": iso(self.now),
            "backups": backups.collect::<Vec<_>>(),
            "listed": site.and_then(|site| site.ledger.reconciled_at).map(iso),
            "refused": refused.map(facts::refused),
            "sites": self.chain.links.iter().map(|link| link.name).collect::<Vec<_>>(),
            "wal": wal.collect::<Vec<_>>(),
        })
    }
}

fn size_of(site: &SiteState) -> SegmentSize {
    site.ledger.segment_size.unwrap_or(SegmentSize::DEFAULT)
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
        let (policy, unknown) = (testing::policy("main"), SiteState::default());
        let chain = Chain::of(&name, &policy, &state, &unknown).unwrap();
        let view = View::new(&name, &chain, (&state.clock, &policy), NOW);
        assert_eq!(
            view.text(),
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
    fn a_chain_is_one_plan_with_the_site_of_each_row() {
        let mut state = testing::state("main");
        let old = testing::site("old");
        state
            .sites
            .insert(old.clone(), testing::state("old").sites[&old].clone());
        let wal = &mut state.sites.get_mut(&old).unwrap().ledger.wal;
        wal.entry(machine::Timeline(1))
            .or_default()
            .insert_range(1, 2);
        let mut policy = testing::policy("main");
        let mut inactive = testing::policy("old").sites[&old].clone();
        inactive.active = false;
        policy.sites.insert(old.clone(), inactive);
        let main = policy.sites.get_mut(&testing::site("main")).unwrap();
        (main.origins, main.count) = (vec![old.clone()], Some(1));
        let unknown = SiteState::default();
        for name in ["main", "old"].map(testing::site) {
            let chain = Chain::of(&name, &policy, &state, &unknown).unwrap();
            let view = View::new(&name, &chain, (&state.clock, &policy), NOW);
            assert_eq!(
                view.text(),
                "Site main, as of 2026-11-22 09:33:20 UTC\n\
                 moved from old\n\
                 the store of main was not listed yet: nothing is deleted before that\n\
                 the store of old was not listed yet: nothing is deleted before that\n  \
                 2026-11-22_09-29_0   old   GOES by count\n  \
                 2026-11-22_09-29_0   main  stays: newest, count\n\
                 WAL that goes\n  \
                 000000010000000000000001-000000010000000000000002  old   2 segments, 32.0 MiB \
                 plain\n"
            );
            assert_eq!(view.json()["backups"][0]["site"], "old");
            assert_eq!(view.json()["wal"][0]["site"], "old");
        }
        policy.sites.remove(&testing::site("main"));
        assert!(Chain::of(&old, &policy, &state, &unknown).is_none());
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
        let (policy, unknown) = (testing::policy("main"), SiteState::default());
        let chain = Chain::of(&name, &policy, &state, &unknown).unwrap();
        let view = View::new(&name, &chain, (&state.clock, &policy), NOW);
        let text = view.text().split_whitespace().collect::<Vec<_>>().join(" ");
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
