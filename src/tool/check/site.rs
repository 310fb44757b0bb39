//! What the settings of a site say by themselves: contradictions, and what this version has not.

use std::time::Duration;

use super::finding::Finding;
use crate::codec::digest::Algorithm;
use crate::config::{ActiveBackupMode, PreferredNode, Site};
use crate::daemon::site::{conninfo, site_policy};
use crate::pg::conninfo::Conninfo;

type Point = fn(&Site) -> Option<Finding>;

const POINTS: &[Point] = &[nodes, preferred, mode, schedule, retention];

pub fn findings(site: &Site) -> Vec<Finding> {
    POINTS.iter().filter_map(|point| point(site)).collect()
}

/// The nodes that can be asked; what is wrong with the others is told as a point.
pub fn infos(site: &Site) -> Vec<Conninfo> {
    let infos = site.nodes.iter().map(|node| conninfo(node, site));
    infos.filter_map(Result::ok).collect()
}

fn nodes(site: &Site) -> Option<Finding> {
    if site.nodes.is_empty() {
        let cure = "name the server: \"nodes\": [{\"host\": ..., \"user\": ..., \"slot\": ...}]";
        return Some(Finding::fail("nodes", "none is configured", cure));
    }
    let wrong = site.nodes.iter().enumerate().find_map(|(number, node)| {
        let failure = conninfo(node, site).err()?;
        Some(failure.about(format!("node {number}")))
    });
    match wrong {
        Some(failure) => Some(Finding::failed("nodes", &failure, "correct it")),
        None => Some(Finding::ok(
            "nodes",
            format!("{} configured", site.nodes.len()),
        )),
    }
}

fn preferred(site: &Site) -> Option<Finding> {
    let infos = infos(site);
    let found = site_policy(site, &infos, 0).preferred_node;
    let there = |number: u32| usize::try_from(number).is_ok_and(|number| number < infos.len());
    let told = match &site.preferred_node {
        PreferredNode::Primary => return None,
        PreferredNode::Index(number) => number.to_string(),
        PreferredNode::Name(name) => format!("'{name}'"),
    };
    match found.is_some_and(there) {
        true => None,
        false => Some(Finding::fail(
            "preferred_node",
            format!("no node is {told}"),
            "name the host of a node, its number from 0, or primary",
        )),
    }
}

fn mode(site: &Site) -> Option<Finding> {
    if let Some(advice) = site.replaced_mode() {
        let cure = "set \"basebackup_mode\": \"stream\"";
        return Some(Finding::warn("mode", advice, cure));
    }
    let told = format!("basebackups: {}", site.basebackup_mode.name());
    let received = received(site).unwrap_or("none");
    Some(Finding::ok("mode", format!("{told}; WAL: {received}")))
}

/// How WAL comes, if it does.
pub fn received(site: &Site) -> Option<&'static str> {
    match site.active_backup_mode {
        ActiveBackupMode::PgReceivexlog | ActiveBackupMode::Walreceiver => Some("streamed"),
        ActiveBackupMode::ArchiveCommand => Some("by archive_command"),
        ActiveBackupMode::StandaloneHotBackup | ActiveBackupMode::Basic => None,
    }
}

fn schedule(site: &Site) -> Option<Finding> {
    let Some(interval) = site.basebackup_interval else {
        let told = "basebackup_interval_hours is null: basebackups on request only";
        return Some(Finding::warn(
            "schedule",
            told,
            "set basebackup_interval_hours",
        ));
    };
    let overdue = site.backup_overdue.filter(|overdue| *overdue < interval);
    if let Some(overdue) = overdue {
        let told = format!(
            "backup_overdue_hours ({}) is shorter than basebackup_interval_hours ({}): the alert \
             would stand before the next one is due",
            hours(overdue),
            hours(interval)
        );
        return Some(Finding::warn(
            "schedule",
            told,
            "make it longer, or leave it out",
        ));
    }
    Some(Finding::ok(
        "schedule",
        format!("a basebackup every {} hours", hours(interval)),
    ))
}

fn hours(span: Duration) -> f64 {
    span.as_secs_f64() / 3_600.0
}

fn retention(site: &Site) -> Option<Finding> {
    let warn = |told: String, cure: &str| Some(Finding::warn("retention", told, cure));
    let count = site.basebackup_count;
    if count == Some(0) {
        let told = "basebackup_count is 0: only the newest that can be restored stays";
        return warn(
            told.to_owned(),
            "set it to the number to keep, or to null for all",
        );
    }
    let age = site.basebackup_age_max;
    if let Some(count) = count.filter(|count| age.is_some() && site.basebackup_count_min > *count) {
        let min = site.basebackup_count_min;
        let told = format!("basebackup_count_min ({min}) is more than basebackup_count ({count})");
        return warn(
            told,
            "raise basebackup_count, or lower basebackup_count_min",
        );
    }
    let shorter = |(age, interval): &(Duration, Duration)| age < interval;
    if age.zip(site.basebackup_interval).filter(shorter).is_some() {
        let told = "basebackup_age_days_max is shorter than basebackup_interval_hours: each one \
                    is too old before the next is taken";
        return warn(told.to_owned(), "keep them longer, or take them more often");
    }
    let told = match count {
        Some(count) => format!("{count} basebackups by count"),
        None => "no limit by count".to_owned(),
    };
    Some(Finding::ok("retention", told))
}

/// The digest kept with WAL.
pub fn digest(name: &str) -> Option<Finding> {
    let failure = name.parse::<Algorithm>().err()?;
    Some(Finding::failed(
        "hash_algorithm",
        &failure,
        "set it to sha1 or sha256",
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::finding::Verdict;
    use super::*;
    use crate::config::parse;

    fn failing(site: Value) -> Vec<(&'static str, Verdict)> {
        let (config, _) = parse(&json!({ "backup_sites": { "a": site } })).unwrap();
        let findings = findings(&config.sites["a"]);
        let bad = findings
            .iter()
            .filter(|finding| finding.verdict != Verdict::Ok);
        bad.map(|finding| (finding.point, finding.verdict))
            .collect()
    }

    #[test]
    fn contradictions_are_told() {
        let nodes = json!(["host=h user=u"]);
        for (key, value, expect) in [
            ("nodes", json!([]), ("nodes", Verdict::Fail)),
            ("nodes", json!([{ "hots": "h" }]), ("nodes", Verdict::Fail)),
            (
                "preferred_node",
                json!(1),
                ("preferred_node", Verdict::Fail),
            ),
            (
                "preferred_node",
                json!("x"),
                ("preferred_node", Verdict::Fail),
            ),
            ("basebackup_mode", json!("delta"), ("mode", Verdict::Warn)),
            (
                "basebackup_interval_hours",
                json!(null),
                ("schedule", Verdict::Warn),
            ),
            (
                "backup_overdue_hours",
                json!(2),
                ("schedule", Verdict::Warn),
            ),
            ("basebackup_count", json!(0), ("retention", Verdict::Warn)),
            (
                "basebackup_age_days_max",
                json!(0.5),
                ("retention", Verdict::Warn),
            ),
        ] {
            let mut site = json!({ "nodes": nodes });
            site[key] = value;
            assert_eq!(failing(site), [expect], "{key}");
        }
        let few = json!({ "nodes": nodes, "basebackup_age_days_max": 9, "basebackup_count": 1 });
        assert_eq!(failing(few), [("retention", Verdict::Warn)]);
        assert_eq!(
            failing(json!({ "nodes": nodes, "preferred_node": "h" })),
            []
        );
        assert!(digest("sha1").is_none() && digest("crc").is_some());
    }

    #[test]
    fn a_misspelt_keyword_of_a_node_is_told_with_the_nearest() {
        let (config, _) = parse(&json!({ "backup_sites": { "a": {
            "nodes": [{ "user": "u", "hots": "h" }] } } }))
        .unwrap();
        let finding = nodes(&config.sites["a"]).unwrap();
        assert_eq!(finding.text, "node 0: connection: unknown keyword 'hots'");
        assert_eq!(finding.cure.as_deref(), Some("did you mean host?"));
    }
}
