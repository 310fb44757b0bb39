//! The tables of retention. A backup is `NAME AGE FLAGS`, as in `a9!`: a, begun 9 days ago, with a
//! hole in its WAL. It is on timeline 1 at its day's position unless it says `@TIMELINE.NUMBER`.
//!
//! Flags: `!` WAL missing, `%` damaged, `h` held, `u` held until tomorrow, `p` until yesterday,
//! `x` expired before, `f` failed, `r` being taken, `w` waits for its WAL, `e` end not known.

use super::*;
use crate::event::{Range, Why};
use crate::file::File;
use crate::policy::Tiers;
use crate::state::SiteState;
use crate::testing::{backup, site_policy};
use crate::wal::{Segment, SegmentSize, Timeline};

/// Friday, 2024-10-04 at noon.
pub(super) const NOW: Millis = Millis(20_000 * DAY_MS + DAY_MS / 2);

/// Hundredths of a day.
fn ago(age: i64) -> Millis {
    Millis(NOW.0.saturating_add_signed(-age * 864_000))
}

fn hundredths(age: &str) -> i64 {
    let (whole, part) = age.split_once('.').unwrap_or((age, ""));
    format!("{whole}{part:0<2}").parse().unwrap()
}

pub(super) static MAIN: Site = Site(String::new());

pub(super) fn alone<'a>(name: &'a Site, site: &'a SiteState) -> [Link<'a>; 1] {
    [Link { name, site }]
}

pub(super) fn site(backups: &str) -> SiteState {
    let mut site = SiteState::default();
    for token in backups.split_whitespace() {
        add(&mut site, token);
    }
    site
}

fn add(site: &mut SiteState, token: &str) {
    let (token, place) = token.split_once('@').unwrap_or((token, ""));
    let split = token.find(|c: char| !c.is_alphabetic()).unwrap();
    let (name, rest) = token.split_at(split);
    let digit = |c: char| c.is_ascii_digit() || matches!(c, '-' | '.');
    let split = rest.find(|c| !digit(c)).unwrap_or(rest.len());
    let (age, flags) = rest.split_at(split);
    let age = hundredths(age);
    let (timeline, number) = match place.split_once('.') {
        Some((t, n)) => (t.parse().unwrap(), n.parse().unwrap()),
        None => (1, 10_000_u64.saturating_add_signed(-age / 10)),
    };
    let (name, mut made) = backup(name, ago(age), Why::Schedule);
    let start = Segment::new(Timeline(timeline), number);
    let content = made.content.as_mut().unwrap();
    content.start = start;
    content.end = Some(start.next());
    content.ended_at = Some(ago(age - 1));
    let runs = site.ledger.wal.entry(start.timeline).or_default();
    runs.insert_range(number, number + 1);
    site.ledger.mains.insert(name.clone());
    let hold = |until| Mark::Hold {
        backup: name.clone(),
        reason: "audit".into(),
        by: "ada".into(),
        until,
    };
    let mut marks = Vec::new();
    for flag in flags.chars() {
        match flag {
            '!' => {
                let runs = site.ledger.wal.get_mut(&start.timeline).unwrap();
                runs.remove(number + 1);
            }
            '%' => site.ledger.damage(&File::Main(name.clone())),
            'h' => marks.push(hold(None)),
            'u' => marks.push(hold(Some(ago(-100)))),
            'p' => marks.push(hold(Some(ago(100)))),
            'x' => {
                made.phase = Phase::Dead;
                made.expired = Some("count".into());
            }
            'f' => made.phase = Phase::Dead,
            'r' => (made.phase, made.content) = (Phase::Running, None),
            'w' => made.phase = Phase::Finished,
            'e' => made.content.as_mut().unwrap().ended_at = None,
            other => panic!("no flag {other}"),
        }
    }
    for mark in marks {
        let key = mark.key(SegmentSize::DEFAULT);
        site.marks.all.insert(key, mark);
    }
    site.backups.all.insert(name, made);
}

/// `count=2 min=2 age=5 window=7 w=4 m=3 y=2 hours=24 doubt`; what is not said is not set.
pub(super) fn policy(text: &str) -> (SitePolicy, bool) {
    let mut policy = site_policy();
    (policy.count, policy.count_min) = (None, 0);
    policy.tiers = Tiers::default();
    let mut doubtful = false;
    for word in text.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap_or((word, "0"));
        let number: u32 = value.parse().unwrap();
        let size = usize::try_from(number).unwrap();
        let days = u64::from(number) * DAY_MS;
        match key {
            "count" => policy.count = Some(size),
            "min" => policy.count_min = size,
            "age" => policy.age_max_ms = Some(days),
            "window" => policy.window_ms = Some(days),
            "w" => policy.tiers.weekly = number,
            "m" => policy.tiers.monthly = number,
            "y" => policy.tiers.yearly = number,
            "hours" => policy.interval_ms = Some(u64::from(number) * 3_600_000),
            "doubt" => doubtful = true,
            other => panic!("no key {other}"),
        }
    }
    (policy, doubtful)
}

pub(super) fn told(plan: &Plan) -> String {
    let short = |verdict: &Verdict| {
        let name = &verdict.backup;
        match &verdict.fate {
            Fate::Go(rule) => format!("-{name}:{rule}"),
            Fate::Keep(why) => {
                let why: Vec<String> = why.iter().map(ToString::to_string).collect();
                let mut why = why.join(",");
                for (long, short) in [
                    (" by ada (audit)", ""),
                    ("newest", "new"),
                    ("count_min", "min"),
                    ("doubtful clock", "doubt"),
                    ("no limit", "all"),
                ] {
                    why = why.replace(long, short);
                }
                format!("{name}:{why}")
            }
        }
    };
    let all: Vec<String> = plan.backups.iter().map(short).collect();
    all.join(" ")
}

/// The cells of a table: `|` between them, `#` before a remark.
pub(super) fn rows(table: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = table.lines().map(str::trim);
    let rows = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    rows.map(|line| line.split('|').map(str::trim).collect())
}

/// Backups, rules, and what becomes of each: `-a:count` goes by count, `b:new,count` stays.
fn check(table: &str) {
    for row in rows(table) {
        let [backups, rules, expect] = row.try_into().unwrap();
        let (policy, doubtful) = policy(rules);
        let plan = plan(&alone(&MAIN, &site(backups)), &policy, NOW, doubtful);
        assert_eq!(told(&plan), expect, "{backups} | {rules}");
    }
}

#[test]
fn pghoards_count_age_and_minimum() {
    check(
        "
 | count=2 |
a1 | count=2 | a:new,count
a2 b1 | count=2 | a:count b:new,count
a3 b2 c1 | count=2 | -a:count b:count c:new,count
a4 b3 c2 d1 | count=2 | -a:count -b:count c:count d:new,count
a3 b2 c1 | count=1 | -a:count -b:count c:new,count
a3 b2 c1 | count=0 | -a:count -b:count c:new,count
a3 b2 c1 |  | a:all b:all c:new,all
a3 b2 c1 | count=3 | a:count b:count c:new,count
a3 b2 c1 | count=9 | a:count b:count c:new,count
a3 b2 c1 | min=2 | a:all b:all c:new,all
a300 b2 c1 | min=2 | a:all b:all c:new,all
a9 b8 c7 d1 | min=2 age=5 | -a:age -b:age c:min d:new,min
a9 b8 c7 d1 | min=1 age=5 | -a:age -b:age -c:age d:new,min
a9 b8 c7 d1 | min=3 age=5 | -a:age b:min c:min d:new,min
a9 b8 c7 d1 | min=4 age=5 | a:min b:min c:min d:new,min
a9 b8 c7 d1 | min=0 age=5 | a:all b:all c:all d:new,all
a9 b8 c7 d1 | count=3 min=2 age=5 | -a:count -b:age c:count,min d:new,count,min
a9 b8 c7 d1 | count=2 min=3 age=5 | -a:count -b:count c:count,min d:new,count,min
a9 b8 c7 d1 | count=4 min=1 age=7 | -a:age b:count,age c:count,age d:new,count,min
a90 b80 | min=1 age=5 | -a:age b:new,min
a90 b80 | min=2 age=5 | a:min b:new,min
a90 | min=1 age=5 | a:new,min
a90 | count=1 min=1 age=5 | a:new,count,min
a90 | count=0 min=0 age=5 | a:new,count
# the age counts from when the next one was due
a6 b1 | min=1 age=5 | a:age b:new,min
a6.01 b1 | min=1 age=5 | -a:age b:new,min
a5.9 b1 | min=1 age=5 | a:age b:new,min
a6 b1 | min=1 age=5 hours=12 | -a:age b:new,min
a5.6 b1 | min=1 age=5 hours=12 | -a:age b:new,min
a7.1 b1 | min=1 age=5 hours=48 | -a:age b:new,min
a6.9 b1 | min=1 age=5 hours=48 | a:age b:new,min
# what runs and what waits neither counts nor goes
a3 b2 c1 d0r | count=2 | -a:count b:count c:new,count d:being taken
a3 b2 c1 d0w | count=2 | -a:count b:count c:new,count d:being taken
a2 b1 c0r | count=1 | -a:count b:new,count c:being taken
a9r b2 c1 | count=1 | a:being taken -b:count c:new,count
# an expired one goes on going
a3x b2 c1 | count=2 | -a:count b:count c:new,count
a3f b2 c1 | count=2 | -a:failed b:count c:new,count
",
    );
}

#[test]
fn s54_order_is_by_wal_and_time_never_by_name() {
    check(
        "
# names the other way round
z3 y2 x1 | count=2 | -z:count y:count x:new,count
c3 b2 a1 | count=1 | -c:count -b:count a:new,count
b3 a2 c1 | count=2 | -b:count a:count c:new,count
# after a pg_upgrade the newest are on timeline 1 again
a4@7.100 b3@7.110 c2@1.120 d1@1.130 | count=2 | -a:count -b:count c:count d:new,count
a4@7.100 b3@7.110 c2@1.120 d1@1.130 | count=3 | -a:count b:count c:count d:new,count
d4@7.100 c3@7.110 b2@1.120 a1@1.130 | count=2 | -d:count -c:count b:count a:new,count
a4@7.100 b1@1.120 | count=1 | -a:count b:new,count
# after a promotion below what was written
a4@1.100 b3@1.110 c2@2.105 d1@2.120 | count=2 | -a:count -b:count c:count d:new,count
a4@1.100 b3@1.110 c2@2.105 d1@2.120 | count=1 | -a:count -b:count -c:count d:new,count
# after a restore to long ago
a4@1.100 b3@1.110 c1@2.50 | count=1 | -a:count -b:count c:new,count
a4@1.100 b3@1.110 c1@2.50 | count=2 | -a:count b:count c:new,count
# a clock that was wrong: WAL of one timeline tells
a3@1.10 b-900@1.20 c1@1.30 | count=2 | -a:count b:count c:new,count
a3@1.10 b-900@1.20 c1@1.30 | count=1 | -a:count -b:count c:new,count
a3@1.10 b2@1.20 c-900@1.30 | count=1 | -a:count -b:count c:new,count
a3@1.10 b9000@1.20 c1@1.30 | count=2 | -a:count b:count c:new,count
a3@1.10 b2@1.20 c9000@1.30 | count=1 | -a:count -b:count c:new,count
a3@1.10 b2@1.20 c9000@1.30 | min=1 age=5 | a:age b:age c:new,min
a3@1.10 b9000@1.20 c1@1.30 | min=1 age=5 | a:age b:age c:new,min
a3@1.10 b-900@1.20 c1@2.30 | count=1 | -a:count -b:count c:new,count
a-900@1.10 c1@2.30 | count=1 | -a:count c:new,count
b-900@1.30 a1@1.30 | count=1 | -b:count a:new,count
c2@1.20 b-900@1.30 a1@1.30 | count=2 | -c:count b:count a:new,count
a1@7.10 b-900@1.30 | count=1 | -a:count b:new,count
a-900@1.10 b-800@1.20 | count=1 | -a:count b:new,count
",
    );
}

#[test]
fn s56_s57_only_restorable_backups_count_and_the_newest_stays() {
    check(
        "
a3 b2! c1 | count=2 | a:count b:count c:new,count
a3 b2% c1 | count=2 | a:count b:count c:new,count
a3 b2f c1 | count=2 | a:count -b:failed c:new,count
a4 b3 c2! d1! | count=1 | -a:count b:new,count c:count d:count
a4 b3 c2% d1% | count=1 | -a:count b:new,count c:count d:count
a4! b3 c2 d1 | count=2 | -a:count -b:count c:count d:new,count
a4! b3 c2 | count=2 | -a:count b:count c:new,count
a4% b3 c2 | count=2 | -a:count b:count c:new,count
a4% b3 c2 | count=1 | -a:count -b:count c:new,count
a4! b3! c2! | count=1 | a:count b:count c:count
a4% b3% c2% | count=1 min=1 age=1 | a:count,min b:count,min c:count,min
a90 b80! c70! | min=1 age=5 | a:new,min b:min c:min
a90! b80 c70 | min=1 age=5 | -a:age -b:age c:new,min
a90% b80 c7 | min=2 age=5 | -a:age b:min c:new,min
a90% b80h c7 | min=1 age=5 | -a:age b:held c:new,min
a4 b3! c2! d1r | count=1 | a:new,count b:count c:count d:being taken
# where backups stopped long ago, window and tiers stay where they were
a400 b399 c398 d397 | count=1 window=2 | -a:count b:window c:window d:new,window,count
a400 b399 c398 d397 | window=2 min=1 | -a:window b:window c:window d:new,window,min
a440 b420 c400 | count=1 m=2 | a:monthly -b:count c:new,monthly,count
a800 b420 c400 | count=1 y=2 | a:yearly -b:count c:new,yearly,count
a440 b420 c400 | count=1 min=1 age=3 | -a:count -b:count c:new,count,min
",
    );
}

#[test]
fn s60_a_hold_keeps_its_own_backup_and_no_other() {
    check(
        "
a4h b3 c2 d1 | count=2 | a:held -b:count c:count d:new,count
a4u b3 c2 d1 | count=2 | a:held -b:count c:count d:new,count
a4p b3 c2 d1 | count=2 | -a:count -b:count c:count d:new,count
a4up b3 c2 d1 | count=2 | -a:count -b:count c:count d:new,count
a4hu b3 c2 d1 | count=2 | a:held -b:count c:count d:new,count
a4 b3h c2 d1 | count=2 | -a:count b:held c:count d:new,count
a4h b3h c2h d1h | count=1 | a:held b:held c:held d:new,held,count
a4h b3h c2 d1 | count=4 | a:held,count b:held,count c:count d:new,count
a90h b80 c7 d1 | min=2 age=5 | a:held -b:age c:min d:new,min
a90u b80 c7 d1 | min=1 age=5 | a:held -b:age -c:age d:new,min
a90p b80 c7 d1 | min=1 age=5 | -a:age -b:age -c:age d:new,min
a9h b8 c7 d1 | count=2 min=1 age=5 | a:held -b:count -c:age d:new,count,min
a4!h b3 c2 d1 | count=2 | a:held -b:count c:count d:new,count
a4%h b3 c2 d1 | count=2 | a:held -b:count c:count d:new,count
a4%p b3 c2 d1 | count=2 | -a:count -b:count c:count d:new,count
a4h b3 c2 d1 | window=1 min=1 | a:held -b:window c:window d:new,window,min
a90h b40 c1 | count=1 m=2 | a:held -b:count c:new,monthly,count
# names that begin alike are others
aa4h a3 b2 c1 | count=1 | aa:held -a:count -b:count c:new,count
",
    );
}

#[test]
fn the_window_outranks_count_and_age() {
    check(
        "
a4 b3 c2 d1 | count=1 window=1 | -a:count -b:count c:window d:new,window,count
a4 b3 c2 d1 | count=1 window=2 | -a:count b:window c:window d:new,window,count
a4 b3 c2 d1 | count=1 window=3 | a:window b:window c:window d:new,window,count
a4 b3 c2 d1 | count=1 window=30 | a:window b:window c:window d:new,window,count
a4 b3 c2 d1 | count=3 window=1 | -a:count b:count c:window,count d:new,window,count
a4 b3 c2 d1 | min=1 age=1 window=2 | -a:age b:window c:window,age d:new,window,min
a4 b3 c2 d1 | min=3 age=1 window=1 | -a:age b:min c:window,min d:new,window,min
a9 b8 c7 d6 e1 | min=1 age=3 window=4 | -a:age -b:age -c:age d:window e:new,window,min
a4 b3 c2 d1 | count=1 min=1 age=1 window=2 | -a:count b:window c:window d:new,window,count,min
# alone it is also how much is kept
a4 b3 c2 d1 | window=1 | -a:window -b:window c:window d:new,window,min
a4 b3 c2 d1 | window=2 min=2 | -a:window b:window c:window,min d:new,window,min
a4 b3 c2 d1 | window=1 min=3 | -a:window b:min c:window,min d:new,window,min
a4 b3 c2 d1 | window=9 | a:window b:window c:window d:new,window,min
a4 b3 c2 d1 | window=1 min=2 age=9 | a:age b:age c:window,min d:new,window,min
a4 | window=1 | a:new,window,min
a4! b3! | window=1 | a:min,window b:min,window
# the anchor has to be restorable and ended
a4 b3 c2! d1 | count=1 window=1 | -a:count b:window -c:count d:new,window,count
a4 b3% c2% d1 | count=1 window=1 | a:window -b:count -c:count d:new,window,count
a4 b3! c2 d1 | count=1 window=2 | a:window -b:count c:window d:new,window,count
a4 b3 c2 d1! | count=1 window=1 | -a:count b:window c:new,window,count d:count
a4 b3 c2e d1 | count=1 window=1 | -a:count b:window c:window d:new,window,count
a4 b3e c2 d1 | count=1 window=1 | -a:count -b:count c:window d:new,window,count
a4e b3e c2e d1e | count=1 window=1 | -a:count -b:count c:window d:new,window,count
a4 b3h c2 d1 | count=1 window=1 | -a:count b:held c:window d:new,window,count
a3 b2 c1 d0r | count=1 window=1 | -a:count b:window c:new,window,count d:being taken
a40 b3 c2 d1 | count=1 window=30 | a:window b:window c:window d:new,window,count
a40 b35 c2 d1 | count=1 window=30 | -a:count b:window c:window d:new,window,count
a40 b35 c31.2 d1.1 | count=1 window=30 | -a:count -b:count c:window d:new,window,count
",
    );
}

#[test]
fn tiers_keep_the_newest_of_weeks_months_and_years() {
    check(
        "
a15 b14 c7 d1 | count=1 w=1 | -a:count -b:count -c:count d:new,weekly,count
a15 b14 c7 d1 | count=1 w=2 | -a:count -b:count c:weekly d:new,weekly,count
a15 b14 c7 d1 | count=1 w=3 | -a:count b:weekly c:weekly d:new,weekly,count
a15 b14 c7 d1 | count=1 w=4 | -a:count b:weekly c:weekly d:new,weekly,count
# Sunday and Monday
a5 b4 c1 | count=1 w=2 | a:weekly -b:count c:new,weekly,count
a4 b3 c1 | count=1 w=2 | -a:count -b:count c:new,weekly,count
a12 b11 c5 d4 e1 | count=1 w=3 | a:weekly -b:count c:weekly -d:count e:new,weekly,count
# a week without a backup is not made up for
a30 b16 c1 | count=1 w=3 | -a:count b:weekly c:new,weekly,count
a16 b1 | count=1 w=2 | -a:count b:new,weekly,count
# the first and the last of the month
a4 b3 c1 | count=1 m=2 | a:monthly -b:count c:new,monthly,count
a5 b4 c1 | count=1 m=2 | -a:count b:monthly c:new,monthly,count
a34 b33 c1 | count=1 m=3 | a:monthly b:monthly c:new,monthly,count
a65 b34 c33 d1 | count=1 m=3 | -a:count b:monthly c:monthly d:new,monthly,count
a65 b34 c33 d1 | count=1 m=2 | -a:count -b:count c:monthly d:new,monthly,count
# New Year's Eve
a278 b277 c1 | count=1 y=2 | a:yearly -b:count c:new,yearly,count
a278 b277 c1 | count=1 y=1 | -a:count -b:count c:new,yearly,count
a279 b278 c1 | count=1 y=2 | -a:count b:yearly c:new,yearly,count
a644 b643 c278 d1 | count=1 y=3 | -a:count b:yearly c:yearly d:new,yearly,count
a279 b278 c1 | count=1 m=11 | -a:count b:monthly c:new,monthly,count
a279 b278 c1 | count=1 m=10 | -a:count -b:count c:new,monthly,count
# ISO weeks do not end with the year
a280 b276 c1 | count=1 w=41 | a:weekly b:weekly c:new,weekly,count
a643 b642 c1 | count=1 w=100 | -a:count b:weekly c:new,weekly,count
# together
a400 b300 c40 d14 e7 f2 g1 | count=2 w=2 m=2 y=2 | \
    -a:count b:yearly -c:count -d:count e:weekly,monthly f:count \
    g:new,weekly,monthly,yearly,count
a400 b300 c40 d14 e7 f2 g1 | count=1 w=1 m=1 y=1 | \
    -a:count -b:count -c:count -d:count -e:count -f:count g:new,weekly,monthly,yearly,count
a400 b300 c40 d14 e7 f2 g1 | count=2 w=3 m=12 window=5 | \
    -a:count b:monthly c:monthly d:weekly e:window,weekly,monthly f:window,count \
    g:new,window,weekly,monthly,count
# only what can be restored fills a slot
a9 b8! c1 | count=1 w=2 | a:weekly -b:count c:new,weekly,count
a9 b8% c1 | count=1 w=2 | a:weekly -b:count c:new,weekly,count
a9! b8! c1 | count=1 w=2 | -a:count -b:count c:new,weekly,count
a9 b8x c1 | count=1 w=2 | a:weekly -b:count c:new,weekly,count
a9 b8h c1 | count=1 w=2 | -a:count b:weekly,held c:new,weekly,count
# tiers protect from the age, too
a40 b8 c1 | min=1 age=3 m=2 | -a:age b:monthly c:new,monthly,min
a40 b8 c1 | min=1 age=3 w=2 | -a:age b:weekly c:new,weekly,min
# without a limit nothing goes
a40 b8 c1 | w=1 | a:all b:all c:new,weekly,all
a40 b8 c1 | w=1 window=3 | -a:window b:window c:new,window,weekly,min
",
    );
}

#[test]
fn s76_a_doubtful_clock_only_keeps_more() {
    check(
        "
a9 b8 c7 d1 | min=2 age=5 doubt | a:doubt b:doubt c:min d:new,min
a9 b8 c7 d1 | count=2 min=1 age=5 doubt | -a:count -b:count c:count,doubt d:new,count,min
a4 b3 c2 d1 | count=2 doubt | -a:count -b:count c:count d:new,count
a4p b3 c2 d1 | count=2 doubt | a:held -b:count c:count d:new,count
a4 b3 c2 d1 | window=1 doubt | a:doubt b:doubt c:window,doubt d:new,window,doubt,min
a4 b3 c2 d1 | count=1 window=1 doubt | a:doubt b:doubt c:window,doubt d:new,window,doubt,count
a90 b40 c2 d1 | count=1 m=2 doubt | a:doubt b:doubt c:doubt d:new,monthly,doubt,count
a90! b40 c2 d1 | count=1 m=2 doubt | a:doubt b:doubt c:doubt d:new,monthly,doubt,count
a90x b40 c2 d1 | count=1 m=2 doubt | -a:count b:doubt c:doubt d:new,monthly,doubt,count
",
    );
}

/// PGHoard's own loop, word for word but for holds.
fn pghoard(ages: &[u64], count: Option<usize>, min: usize, max: Option<u64>) -> usize {
    let mut left: Vec<u64> = ages.to_vec();
    while count.is_some_and(|count| left.len() > count) {
        left.remove(0);
    }
    let max = max.filter(|max| *max > 0 && min > 0);
    while let Some(max) = max
        && left.len() > min
        && left[0].saturating_sub(1) > max
    {
        left.remove(0);
    }
    ages.len() - left.len()
}

#[test]
fn count_age_and_minimum_agree_with_pghoards_loop() {
    let mut rows = 0;
    for length in 1..6_u64 {
        for step in 1..4 {
            let ages: Vec<u64> = (0..length).rev().map(|n| n * step + 1).collect();
            let names: Vec<String> = ages.iter().map(|age| format!("a{age} ")).collect();
            let letters = names
                .iter()
                .zip('a'..)
                .map(|(n, c)| n.replace('a', &c.to_string()));
            let site = site(&letters.collect::<String>());
            for count in [None, Some(1), Some(2), Some(4)] {
                for min in 0..4 {
                    for max in [None, Some(1), Some(2), Some(6)] {
                        let mut policy = site_policy();
                        (policy.count, policy.count_min) = (count, min);
                        policy.age_max_ms = max.map(|days| days * DAY_MS);
                        let gone = plan(&alone(&MAIN, &site), &policy, NOW, false)
                            .expired()
                            .count();
                        let case = format!("{ages:?} {count:?} {min} {max:?}");
                        assert_eq!(gone, pghoard(&ages, count, min, max), "{case}");
                        rows += 1;
                    }
                }
            }
        }
    }
    assert_eq!(rows, 960);
}

/// `1.10-20` is WAL of timeline 1 in the store, `~1.10-20` a mark from before.
pub(super) fn store(site: &mut SiteState, stored: &str) {
    let number = |text: &str| text.parse::<u64>().unwrap();
    let range = |token: &str| {
        let (timeline, run) = token.split_once('.').unwrap();
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        Range {
            timeline: Timeline(timeline.parse().unwrap()),
            first: number(first),
            last: number(last),
        }
    };
    for token in stored.split_whitespace() {
        if let Some(marked) = token.strip_prefix('~') {
            let mark = Mark::WalRetired {
                range: range(marked),
            };
            let key = mark.key(SegmentSize::DEFAULT);
            site.marks.all.insert(key, mark);
            continue;
        }
        let run = range(token);
        let runs = site.ledger.wal.entry(run.timeline).or_default();
        runs.insert_range(run.first, run.last);
    }
}

pub(super) fn told_wal(wal: &Wal) -> String {
    let told = |ranges: &[Range]| {
        let one = |r: &Range| format!("{}.{}-{}", r.timeline, r.first, r.last);
        ranges.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    let mut got = told(&wal.going);
    if wal.now != wal.going {
        got = format!("{got} now {}", told(&wal.now));
    }
    if !wal.retire.is_empty() {
        got = format!("{got} mark {}", told(&wal.retire));
    }
    if !wal.forget.is_empty() {
        got = format!("{got} forget {}", wal.forget.len());
    }
    got.trim().to_string()
}

/// WAL that is stored, backups, rules; what goes with the plan, what may go now, what is marked
/// before, how many marks are forgotten.
fn check_wal(table: &str) {
    for row in rows(table) {
        let [stored, backups, rules, expect] = row.try_into().unwrap();
        let mut site = site(backups);
        store(&mut site, stored);
        let (policy, doubtful) = policy(rules);
        let wal = plan(&alone(&MAIN, &site), &policy, NOW, doubtful).wal;
        let told = told_wal(&wal[&MAIN]);
        assert_eq!(told, expect, "{stored} | {backups} | {rules}");
    }
}

#[test]
fn s55_s59_s61_s62_wal_goes_where_nobody_needs_it() {
    check_wal(
        "
# S-55: nothing expires, nothing goes but what is older than everything
1.1-99 | a2@1.10 b1@1.50 | count=2 | 1.1-9
1.10-99 | a2@1.10 b1@1.50 | count=2 |
1.1-99 |  | count=2 |
1.1-99 | a1@1.0 | count=2 |
1.1-99 | a2!@1.10 | count=2 | 1.1-9
1.1-99 | a2!@1.10 b1@1.50 | count=1 | 1.1-49 now 1.1-9 1.12-49 mark 1.12-49
# S-61: while its main object is there it needs its own; S-62: then not even that
1.1-99 | a3@1.10 b2@1.30 c1@1.50 | count=1 | 1.1-49 now 1.1-9 1.12-29 1.32-49 mark 1.12-29 1.32-49
1.1-99 | a3x@1.10 b2@1.30 c1@1.50 | count=2 | 1.1-29 now 1.1-9 1.12-29 mark 1.12-29
1.1-99 | a3f@1.10 b2@1.30 c1@1.50 | count=2 | 1.1-29 now 1.1-9 1.12-29 mark 1.12-29
1.1-99 | a3x@1.10 b2x@1.30 c1@1.50 | count=2 | \
    1.1-49 now 1.1-9 1.12-29 1.32-49 mark 1.12-29 1.32-49
# a running backup has not said where it starts
1.1-99 | a2@1.10 b1@1.50 c0r | count=1 |
1.1-99 | a2@1.10 b1@1.50 c0w@1.70 | count=2 | 1.1-9
# S-59: across gaps and timelines, all at once
1.1-5 1.8-9 1.20-99 | a1@1.40 | count=2 | 1.1-5 1.8-9 1.20-39
1.1-20 2.15-99 | a1@2.40 | count=2 | 1.1-20 2.15-39
1.1-20 2.15-30 3.25-99 | a1@3.40 | count=2 | 1.1-20 2.15-30 3.25-39
1.1-60 2.15-99 | a1@2.40 | count=2 | 1.1-39 2.15-39
1.1-60 2.15-99 | a2@1.18 b1@2.40 | count=2 | 1.1-17 2.15-17
1.1-20 2.15-30 4.10-35 3.25-99 | a1@3.40 | count=2 | 1.1-20 2.15-30 3.25-39 4.10-35
7.1-50 1.51-99 | a2@7.40 b1@1.60 | count=2 | 7.1-39
7.1-50 1.51-99 | a2x@7.40 b1@1.60 | count=2 | \
    1.51-59 7.1-50 now 1.51-59 7.1-39 7.42-50 mark 1.40-59 7.42-59
7.1-50 1.51-99 | b1@1.60 | count=2 | 1.51-59 7.1-50
1.1-99 2.50-80 | a1@2.45 | count=2 | 1.1-44
# a hold promises every moment from its backup on
1.1-99 | a9h@1.10 b1@1.50 | count=1 | 1.1-9
1.1-99 | a9p@1.10 b1@1.50 | count=1 | 1.1-49 now 1.1-9 1.12-49 mark 1.12-49
1.1-99 | a90h@1.10 b40@1.30 c1@1.50 | count=1 m=2 | 1.1-9
# a tier keeps the backup alone, and what lies behind it is marked
1.1-99 | a40@1.10 b1@1.50 | count=1 m=3 | 1.1-9 1.12-49 mark 1.12-49
1.1-99 | a40@1.10 b9@1.30 c1@1.50 | count=1 m=3 | 1.1-9 1.12-29 1.32-49 mark 1.12-29 1.32-49
1.1-99 | a65@1.10 b40@1.30 c1@1.50 | count=1 m=3 | \
    1.1-29 1.32-49 now 1.1-9 1.12-29 1.32-49 mark 1.12-29 1.32-49
1.10-11 1.50-99 | a40@1.10 b1@1.50 | count=1 m=3 |
1.10-20 1.30-99 | a40@1.10 b1@1.50 | count=1 m=3 | 1.12-20 1.30-49 mark 1.12-49
1.1-30 2.25-99 | a40@1.10 b1@2.50 | count=1 m=3 | 1.1-9 1.12-30 2.25-49 mark 1.12-49 2.10-49
1.1-99 | a40@1.10 b1@1.50 | count=2 m=3 | 1.1-9
1.1-99 | a40@1.10 b1@1.12 | count=1 m=3 | 1.1-9
1.1-99 | a40@1.10 b2@1.50 c1@1.70 | count=2 m=3 | 1.1-9 1.12-49 mark 1.12-49
# marked before: not again, wider if more goes, narrower ones are forgotten
1.1-99 ~1.12-49 | a40@1.10 b1@1.50 | count=1 m=3 | 1.1-9 1.12-49
1.1-99 ~1.11-49 | a40@1.10 b1@1.50 | count=1 m=3 | 1.1-9 1.12-49
1.10-11 1.50-99 ~1.12-49 | a40@1.10 b1@1.70 | count=1 m=3 | 1.50-69 mark 1.12-69
1.70-99 1.10-11 ~1.12-49 ~1.12-69 | a40@1.10 b1@1.70 | count=1 m=3 | forget 1
1.70-99 ~1.12-69 | b1@1.70 | count=1 m=3 | forget 1
1.70-99 ~2.12-69 | b1@1.70 | count=1 | forget 1
1.10-11 1.70-99 ~1.12-69 | a40x@1.10 b1@1.70 | count=1 | 1.10-11 now
# a doubtful clock, a window
1.1-99 | a40@1.10 b1@1.50 | count=1 m=3 doubt | 1.1-9
1.1-99 | a4@1.10 b3@1.30 c1@1.50 | count=1 window=1 | 1.1-29 now 1.1-9 1.12-29 mark 1.12-29
1.1-99 | a4@1.10 b3@1.30 c1@1.50 | count=1 window=5 | 1.1-9
# what cannot be restored and stays may yet be healed
1.1-9 1.50-99 | a4!@1.10 b1@1.50 | count=2 | 1.1-9
1.1-99 | a4%@1.10 b1@1.50 | count=2 | 1.1-9
1.1-99 | a4%@1.10 b1@1.50 | count=1 | 1.1-49 now 1.1-9 1.12-49 mark 1.12-49
",
    );
}
