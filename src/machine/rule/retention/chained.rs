//! The tables of a site and its history. Sites are parted by `/`, oldest history first, the active
//! one last; `=` before a site says that it is of the active one's cluster, `?` that nobody knows.

use super::tests::{NOW, policy, rows, site, store, told, told_wal};
use super::*;
use crate::state::SiteState;

/// The names of the sites and what is known of each, the active one first.
fn chain(backups: &str, stored: &str) -> Vec<(Site, SiteState)> {
    let mut stored = stored.split('/');
    let mut all: Vec<_> = backups
        .split('/')
        .zip(1_u64..)
        .map(|(text, number)| {
            let text = text.trim();
            let mut made = site(text.trim_start_matches(['=', '?']));
            store(&mut made, stored.next().unwrap_or_default());
            made.servers.system_id = match text.chars().next() {
                Some('=') => Some(0),
                Some('?') => None,
                _ => Some(number),
            };
            (Site(format!("s{number}")), made)
        })
        .collect();
    all.reverse();
    if let Some((_, head)) = all.first_mut() {
        head.servers.system_id = head.servers.system_id.map(|_| 0);
    }
    all
}

fn links(chain: &[(Site, SiteState)]) -> Vec<Link<'_>> {
    chain
        .iter()
        .map(|(name, site)| Link { name, site })
        .collect()
}

fn check(table: &str) {
    for row in rows(table) {
        let [backups, rules, expect] = row.try_into().unwrap();
        let (policy, doubtful) = policy(rules);
        let chain = chain(backups, "");
        let plan = plan(&links(&chain), &policy, NOW, doubtful);
        assert_eq!(told(&plan), expect, "{backups} | {rules}");
    }
}

#[test]
fn s54_a_site_and_its_history_are_one_list() {
    check(
        "
# by count, over the upgrade
a4 b3 / c1 | count=2 | -a:count b:count c:new,count
a4 b3 / c2 d1 | count=2 | -a:count -b:count c:count d:new,count
a4 b3 / c2 d1 | count=3 | -a:count b:count c:count d:new,count
a4 b3 / c2 d1 | count=9 | a:count b:count c:count d:new,count
a5 / b4 c3 / d1 | count=2 | -a:count -b:count c:count d:new,count
# until the active site has one of its own, the newest of its history stays
a4 b3 / | count=1 | -a:count b:new,count
a400 b300 / | min=1 age=5 | -a:age b:new,min
a4 b3 / c1! | count=1 | -a:count b:new,count c:count
a4 b3 / c1% | count=1 | -a:count b:new,count c:count
a4 b3 / c1f | count=1 | -a:count b:new,count -c:failed
a4 b3 / c1r | count=1 | -a:count b:new,count c:being taken
a4! b3! / c1 | count=1 | -a:count -b:count c:new,count
# by age, minimum, window and tiers
a9 b8 / c7 d1 | min=2 age=5 | -a:age -b:age c:min d:new,min
a9 b8 / c2 d1 | min=3 age=5 | -a:age b:min c:min d:new,min
a4 b3 / c2 d1 | count=1 window=2 | -a:count b:window c:window d:new,window,count
a4 b3 / c2 d1 | window=2 | -a:window b:window c:window d:new,window,min
a40 b8 / c1 | count=1 m=2 | -a:count b:monthly c:new,monthly,count
a15 b14 / c7 d1 | count=1 w=3 | -a:count b:weekly c:weekly d:new,weekly,count
# a hold in the history keeps its own backup
a4h b3 / c2 d1 | count=2 | a:held -b:count c:count d:new,count
a4 b3u / c2 d1 | count=2 | -a:count b:held c:count d:new,count
a4p b3 / c2 d1 | count=2 | -a:count -b:count c:count d:new,count
# the newest of the active site stays, whatever the clock of its history said
a4 b0 / c1 | count=1 | -a:count c:new b:new,count
a4 b0.5 / c2 d1 | count=1 | -a:count -c:count d:new b:new,count
a-900 / c1 | count=1 | -a:count c:new,count
# a doubtful clock only keeps more
a9 b8 / c7 d1 | min=2 age=5 doubt | a:doubt b:doubt c:min d:new,min
a4 b3 / c2 d1 | count=1 window=1 doubt | a:doubt b:doubt c:window,doubt d:new,window,doubt,count
",
    );
}

#[test]
fn a_hold_is_of_its_own_site_though_names_are_alike() {
    let mut chain = chain("a4h b3 / a2 c1", "");
    let (policy, doubtful) = policy("count=1");
    let plan = plan(&links(&chain), &policy, NOW, doubtful);
    assert_eq!(told(&plan), "a:held -b:count -a:count c:new,count");
    let expired: Vec<_> = plan.expired().map(|(site, name, _)| (site, name)).collect();
    let named = |site: &str, name: &str| (Site(site.into()), BackupName(name.into()));
    let (b, a) = (named("s1", "b"), named("s2", "a"));
    assert_eq!(expired, [(&b.0, &b.1), (&a.0, &a.1)]);
    chain.truncate(1);
    assert_eq!(chain[0].0, a.0);
}

/// WAL by site, backups by site, rules, what goes by site.
fn check_wal(table: &str) {
    for row in rows(table) {
        let [stored, backups, rules, expect] = row.try_into().unwrap();
        let (policy, doubtful) = policy(rules);
        let chain = chain(backups, stored);
        let plan = plan(&links(&chain), &policy, NOW, doubtful);
        let told = chain
            .iter()
            .rev()
            .map(|(name, _)| told_wal(&plan.wal[name]));
        let told = told.collect::<Vec<_>>().join(" / ").replace("  ", " ");
        assert_eq!(told.trim(), expect, "{stored} | {backups} | {rules}");
    }
}

#[test]
fn s55_s61_wal_of_the_history_goes_when_nothing_there_needs_it() {
    check_wal(
        "
# another cluster: its numbers say nothing of ours
7.1-50 / 1.20-99 | a4@7.10 b3@7.30 / c1@1.60 | count=9 | 7.1-9 / 1.20-59
7.1-50 / 1.20-99 | a4@7.10 b3@7.30 / c1@1.60 | count=2 | \
    7.1-29 now 7.1-9 7.12-29 mark 7.12-29 / 1.20-59
7.1-50 / 1.20-99 | a4@7.10 b3@7.30 / c1@1.60 | count=1 | \
    7.1-50 now 7.1-9 7.12-29 7.32-50 mark 7.12-29 7.32-50 / 1.20-59
7.1-50 / 1.20-99 | a4x@7.10 b3x@7.30 / c1@1.60 | count=1 | \
    7.1-50 now 7.1-9 7.12-29 7.32-50 mark 7.12-29 7.32-50 / 1.20-59
7.1-50 / 1.20-99 | / c1@1.60 | count=1 | 7.1-50 / 1.20-59
7.1-50 ~7.1-40 / 1.20-99 | / c1@1.60 | count=1 | 7.1-50 forget 1 / 1.20-59
# not before the active site can be restored
7.1-50 / 1.20-99 | / c1%@1.60 | count=1 | / 1.20-59
7.1-50 / 1.20-99 | / c1r | count=1 | /
7.1-50 / 1.20-99 | / | count=1 | /
7.1-50 / 1.20-99 | a4@7.10 b3@7.30 / | count=1 | 7.1-29 now 7.1-9 7.12-29 mark 7.12-29 /
# what a tier keeps of the history keeps its own
7.1-50 / 1.20-99 | a40@7.10 b3@7.30 / c1@1.60 | count=1 m=3 | \
    7.1-9 7.12-50 now 7.1-9 7.12-29 7.32-50 mark 7.12-29 7.32-50 / 1.20-59
7.1-50 / 1.20-99 | a40h@7.10 / c1@1.60 | count=1 | 7.1-9 / 1.20-59
# one cluster under another name: a restore of the old goes on in the new
1.1-50 / 1.51-99 | =a4@1.10 b3@1.30 / c1@1.60 | count=9 | 1.1-9 /
1.1-50 / 1.51-99 | =a4@1.10 b3@1.30 / c1@1.60 | count=2 | 1.1-29 now 1.1-9 1.12-29 mark 1.12-29 /
1.1-50 / 1.51-99 | =a4@1.10 b3@1.30 / c1@1.60 | count=1 | \
    1.1-50 now 1.1-9 1.12-29 1.32-50 mark 1.12-29 1.32-59 / 1.51-59
1.1-50 / 1.51-99 | = / c1@1.60 | count=1 | 1.1-50 / 1.51-59
1.1-70 / 1.51-99 | = / c1@1.60 | count=1 | 1.1-59 / 1.51-59
1.1-50 / 1.51-99 | = / | count=1 | /
# nobody knows: kept like one cluster
7.1-50 / 1.20-99 | ?a4@7.10 b3@7.30 / c1@1.60 | count=9 | 7.1-9 /
7.1-90 / 1.20-99 | ?a4@7.10 / c1@1.60 | count=1 | \
    7.1-59 now 7.1-9 7.12-59 mark 7.12-59 / 1.20-59
7.1-90 / 1.20-99 | ? / c1@1.60 | count=1 | 7.1-59 / 1.20-59
# two moves
1.1-50 / 1.51-80 / 1.1-99 | =a9@1.10 / =b4@1.60 / c1@1.70 | count=9 | 1.1-9 / / 1.1-9
",
    );
}

#[test]
fn s55_where_a_backup_may_be_that_nobody_can_read_no_wal_is_left_behind() {
    let (policy, _) = policy("count=1");
    for (unknown, expect) in [(0, "7.1-50"), (1, "")] {
        let mut chain = chain("/ c1@1.60", "7.1-50 /");
        chain[1].1.ledger.unknown = unknown;
        let plan = plan(&links(&chain), &policy, NOW, false);
        assert_eq!(told_wal(&plan.wal[&chain[1].0]), expect, "{unknown}");
    }
}
