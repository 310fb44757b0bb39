//! Which alert files should exist, and what each says: what happened, since when, what to do.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use crate::class::Class;
use crate::event::Millis;
use crate::file::Site;
use crate::policy::{Ack, Policy, SitePolicy};
use crate::state::{SiteState, State};
use crate::task::TaskId;

/// An alert of one name: its text, one paragraph a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    pub since: Millis,
    pub text: String,
}

/// PGHoard's own names stay until a person removes the file; ours go with their condition.
pub const STICKY: [&str; 5] = [
    "authentication_error",
    "configuration_error",
    "upload_retries_warning",
    "version_mismatch_error",
    "version_unsupported_error",
];

/// PGHoard's default of `upload_retries_warning_limit`.
const UPLOAD_RETRIES_MAX: u32 = 3;

pub fn alerts(state: &State, policy: &Policy) -> BTreeMap<&'static str, Alert> {
    let mut list = List::default();
    if let Some((at, reason)) = &state.rebuilt {
        list.add(
            "event_log_rebuilt",
            *at,
            format!(
                "the event log was set aside ({reason}) and is rebuilt from the stores; \
             counters and failure history before that moment are gone"
            ),
        );
    }
    for (name, site_policy) in policy.sites.iter().filter(|(_, p)| p.active) {
        let Some(site) = state.sites.get(name) else {
            continue;
        };
        servers(&mut list, name, site);
        synchronous(&mut list, name, site, site_policy);
        files(&mut list, name, site, site_policy);
    }
    list.0
}

#[derive(Default)]
struct List(BTreeMap<&'static str, Alert>);

impl List {
    fn add(&mut self, name: &'static str, since: Millis, text: String) {
        let alert = self.0.entry(name).or_insert(Alert {
            since,
            text: String::new(),
        });
        alert.since = alert.since.min(since);
        alert.text.push_str(&text);
        alert.text.push('\n');
    }
}

fn servers(list: &mut List, name: &Site, site: &SiteState) {
    let probes = site
        .attempts
        .iter()
        .filter(|(task, _)| matches!(task, TaskId::Probe(..)));
    for (task, failed) in probes {
        let alert = match failed.class {
            Class::Auth => "authentication_error",
            Class::Unsupported => "version_unsupported_error",
            _ => "configuration_error",
        };
        let TaskId::Probe(_, node) = task else {
            continue;
        };
        list.add(
            alert,
            failed.since,
            format!("site '{name}', node {node}: {}", failed.message),
        );
    }
    for (node, server) in &site.servers.nodes {
        let Some(seen) = &server.seen else { continue };
        if let Some(known) = site
            .servers
            .system_id
            .filter(|known| *known != seen.system_id)
        {
            list.add("wal_conflict", server.seen_at.unwrap_or_default(), format!(
                "site '{name}', node {node}: the server's system identifier is {}, the site's WAL \
                 belongs to {known}; nothing is received from it; give a new cluster a new site",
                seen.system_id
            ));
        }
    }
}

fn synchronous(list: &mut List, name: &Site, site: &SiteState, policy: &SitePolicy) {
    let sync = site.servers.nodes.values().find_map(|node| {
        let state = node.seen.as_ref()?.sync_state.as_deref()?;
        matches!(state, "sync" | "quorum").then_some(node.seen_at?)
    });
    if let (Some(since), Ack::Stored) = (sync, policy.ack) {
        list.add(
            "sync_misconfigured",
            since,
            format!(
                "site '{name}': this daemon is a synchronous standby, but acknowledges only whole \
             stored segments: every commit waits for one; set \"ack\": \"spooled\" or take it out \
             of synchronous_standby_names"
            ),
        );
    }
}

fn files(list: &mut List, name: &Site, site: &SiteState, policy: &SitePolicy) {
    for file in &site.ledger.conflicts {
        let size = site
            .ledger
            .segment_size
            .unwrap_or(crate::wal::SegmentSize::DEFAULT);
        list.add("wal_conflict", Millis::default(), format!(
            "site '{name}': '{}' in the store differs from what PostgreSQL sent under that name; \
             both are kept; compare them and remove the wrong one",
            file.key(size)
        ));
    }
    for lost in &site.ledger.lost {
        let size = site
            .ledger
            .segment_size
            .unwrap_or(crate::wal::SegmentSize::DEFAULT);
        let at = |number| crate::wal::Segment::new(lost.range.timeline, number).name(size);
        list.add(
            "wal_hole",
            lost.since,
            format!(
                "site '{name}': WAL {} to {} is in no store and no server has it any more; nothing \
             between a backup before it and a backup after it can be restored",
                at(lost.range.first),
                at(lost.range.last)
            ),
        );
    }
    for (task, failed) in site.attempts.iter() {
        if matches!(task, TaskId::Store(..)) && failed.times > UPLOAD_RETRIES_MAX {
            list.add(
                "upload_retries_warning",
                failed.since,
                format!(
                    "site '{name}': an upload failed {} times: {}",
                    failed.times, failed.message
                ),
            );
        }
    }
    let held = site.ledger.spool_bytes();
    if held > policy.spool_limit_bytes / 2 {
        list.add("spool_filling", Millis::default(), format!(
            "site '{name}': the spool holds {held} bytes of at most {}; reception pauses at the \
             limit and PostgreSQL keeps its WAL; see why uploads do not go through",
            policy.spool_limit_bytes
        ));
    }
    let failures = site.backups.last_failure.as_ref();
    let take = site.attempts.get(&TaskId::Take(name.clone()));
    if let (Some((_, class, message)), Some(failed)) = (failures, take)
        && *class != Class::Interrupted
    {
        list.add(
            "backup_overdue",
            failed.since,
            format!(
                "site '{name}': basebackups fail, {} in a row: {}",
                failed.times, message
            ),
        );
    }
}
