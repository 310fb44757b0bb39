//! Which alert files should exist, and what each says: what happened, since when, what to do.
//!
//! An alert is a name and one entry for each thing that befell it. What began after a person
//! acknowledged the name is a new occurrence, and the alert stands again.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::class::Class;
use crate::event::Millis;
use crate::file::Site;
use crate::policy::{Ack, Policy, SitePolicy};
use crate::projection::attempts::Failed;
use crate::projection::clock::Clock;
use crate::rule::coverage::Live;
use crate::state::{SiteState, State};
use crate::task::TaskId;
use crate::wal::SegmentSize;

mod holes;

mod absence;
mod around;
mod damage;
mod log;
mod refused;

use around::{clock_lost, config_refused, machine_trouble};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alert {
    /// Never empty.
    pub entries: Vec<Entry>,
    /// A person took note after the newest entry began.
    pub acknowledged: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub since: Millis,
    pub what: String,
    pub todo: &'static str,
}

impl Alert {
    pub fn since(&self) -> Millis {
        let all = self.entries.iter().map(|entry| entry.since);
        all.min().unwrap_or_default()
    }

    /// When the newest of its entries began.
    pub fn latest(&self) -> Millis {
        let all = self.entries.iter().map(|entry| entry.since);
        all.max().unwrap_or_default()
    }
}

/// PGHoard's own names stay until a person removes the file; ours go with their condition.
pub const STICKY: [&str; 5] = [
    "authentication_error",
    "configuration_error",
    "upload_retries_warning",
    "version_mismatch_error",
    "version_unsupported_error",
];

/// The names that are ours.
pub const OURS: [&str; 16] = [
    "backup_overdue",
    "clock_doubtful",
    "config_refused",
    "deletion_refused",
    "event_log_growing",
    "event_log_rebuilt",
    "machine_trouble",
    "object_missing",
    "slot_retention",
    "spool_filling",
    "sync_misconfigured",
    "two_daemons",
    "verify_failed",
    "wal_conflict",
    "wal_hole",
    "wal_overdue",
];

/// A stream may break so often in a row before it is told.
const BREAKS_MAX: u32 = 3;

/// Absence of success is told from the state and the time alone: what fails need not say so.
pub fn alerts(
    state: &State,
    policy: &Policy,
    live: &Live,
    now: Millis,
) -> BTreeMap<&'static str, Alert> {
    let mut list = List::default();
    clock_lost(&mut list, &state.clock, policy);
    config_refused(&mut list, state);
    machine_trouble(&mut list, policy);
    if let Some((at, reason)) = &state.rebuilt {
        let what = format!("the event log was set aside and rebuilt from the stores: {reason}");
        let todo = "check the disk that holds the log; counters, failure history and \
                    acknowledgements from before are gone, backups are not; remove this file";
        list.add("event_log_rebuilt", *at, what, todo);
    }
    log::growing(state, policy, &mut list);
    for (name, site_policy) in &policy.sites {
        let history = policy.heir(name).is_some();
        if !site_policy.active && !history {
            continue;
        }
        let Some(site) = state.sites.get(name) else {
            continue;
        };
        let view = View {
            name,
            site,
            policy: site_policy,
            retries_max: policy.retries_max,
            clock: &state.clock,
            live,
            now,
        };
        view.names(&mut list);
        view.holes(&mut list);
        view.missing(&mut list);
        view.uploads(&mut list);
        view.damage(&mut list);
        view.refused(&mut list);
        if history {
            continue;
        }
        view.servers(&mut list);
        view.stream(&mut list);
        view.synchronous(&mut list);
        view.backups(&mut list);
        view.backup_overdue(&mut list);
        view.wal_overdue(&mut list);
        view.slots(&mut list);
        view.clock(&mut list);
        view.daemons(&mut list);
        view.space(&mut list);
        view.cramped(&mut list);
    }
    for (name, alert) in &mut list.0 {
        let noted = state.acknowledged.get(*name);
        alert.acknowledged = noted.is_some_and(|at| *at >= alert.latest());
    }
    list.0
}

#[derive(Default)]
struct List(BTreeMap<&'static str, Alert>);

impl List {
    fn add(&mut self, name: &'static str, since: Millis, what: String, todo: &'static str) {
        let entry = Entry { since, what, todo };
        self.0.entry(name).or_default().entries.push(entry);
    }
}

struct View<'a> {
    name: &'a Site,
    site: &'a SiteState,
    policy: &'a SitePolicy,
    retries_max: u32,
    clock: &'a Clock,
    live: &'a Live,
    now: Millis,
}

impl View<'_> {
    fn servers(&self, list: &mut List) {
        let name = self.name;
        for (task, failed) in self.site.attempts.iter() {
            if let TaskId::Probe(_, node) = task {
                let what = format!("site '{name}', node {node}: {}", failed.message);
                connection(list, failed, what);
            }
        }
        for (node, server) in &self.site.servers.nodes {
            let seen = server.seen.as_ref().map(|seen| seen.system_id);
            if let (Some(seen), Some(ours)) = (seen, self.site.servers.system_id)
                && seen != ours
            {
                let since = server.alike_since.unwrap_or_default();
                let what = format!(
                    "site '{name}', node {node}: its system identifier is {seen}, the site's WAL \
                     belongs to {ours}; nothing is received from it"
                );
                let todo = "give a new cluster a site of its own, or correct the node's address";
                list.add("wal_conflict", since, what, todo);
            }
        }
    }

    fn stream(&self, list: &mut List) {
        let failed = self.site.attempts.get(&TaskId::Receive(self.name.clone()));
        if let Some(failed) = failed.filter(|failed| failed.times > BREAKS_MAX) {
            let (name, message) = (self.name, &failed.message);
            let what = format!("site '{name}': WAL is not received: {message}");
            connection(list, failed, what);
        }
    }

    fn synchronous(&self, list: &mut List) {
        let since = self.site.servers.nodes.values().find_map(|node| {
            let state = node.seen.as_ref()?.sync_state.as_deref()?;
            let waits = matches!(state, "sync" | "quorum");
            waits.then_some(node.alike_since.unwrap_or_default())
        });
        if let (Some(since), Ack::Stored) = (since, self.policy.ack) {
            let what = format!(
                "site '{}': this daemon is a synchronous standby but acknowledges only whole \
                 stored segments: every commit waits for one",
                self.name
            );
            let todo = "set \"ack\": \"spooled\" for the site, or take the daemon's \
                        application_name out of synchronous_standby_names";
            list.add("sync_misconfigured", since, what, todo);
        }
    }

    fn names(&self, list: &mut List) {
        for (file, since) in &self.site.ledger.conflicts {
            let what = format!(
                "site '{}': '{}' in the store differs from what PostgreSQL sent under that name; \
                 nothing was overwritten, both are kept",
                self.name,
                file.key(self.size())
            );
            let todo = "find out which cluster wrote the stored one; two clusters must not share \
                        a prefix";
            list.add("wal_conflict", *since, what, todo);
        }
    }

    fn uploads(&self, list: &mut List) {
        let tired = self.site.attempts.iter().filter(|(task, failed)| {
            let ours = matches!(
                task,
                TaskId::Store(..) | TaskId::Reconcile(_) | TaskId::Delete(_)
            );
            ours && failed.class != Class::Conflict && failed.times > self.retries_max
        });
        if let Some((task, oldest)) = tired.min_by_key(|(_, failed)| failed.since) {
            let (name, times, message) = (self.name, oldest.times, &oldest.message);
            let task = match task {
                TaskId::Reconcile(_) => "listing the store",
                TaskId::Delete(_) => "a deletion",
                _ => "an upload",
            };
            let what = format!("site '{name}': {task} failed {times} times: {message}");
            let todo = "mend the store; uploads are tried for ever and nothing is lost meanwhile";
            list.add("upload_retries_warning", oldest.since, what, todo);
        }
        let spool = &self.site.ledger.spool;
        let (held, limit) = (
            self.site.ledger.spool_bytes(),
            self.policy.spool_limit_bytes,
        );
        if held > limit / 2 {
            let since = spool.values().map(|entry| entry.at).min();
            let what = format!(
                "site '{}': the spool is more than half full ({} MiB of at most {} MiB); \
                 reception pauses at the limit and PostgreSQL keeps its WAL",
                self.name,
                held >> 20,
                limit >> 20
            );
            let todo = "see why uploads do not keep up (pghoard status), or raise \
                        spool_limit_bytes";
            list.add("spool_filling", since.unwrap_or_default(), what, todo);
        }
    }

    fn backups(&self, list: &mut List) {
        let failed = self.site.attempts.get(&TaskId::Take(self.name.clone()));
        if let Some(failed) = failed.filter(|failed| failed.class != Class::Interrupted) {
            let (name, times, message) = (self.name, failed.times, &failed.message);
            let what = format!("site '{name}': basebackups fail, {times} in a row: {message}");
            let todo = "mend the cause; the next try comes by itself, or ask for one over HTTP";
            list.add("backup_overdue", failed.since, what, todo);
        }
        self.waiting(list);
    }

    /// A backup of a standby ends where only the primary can finish the segment (S-33).
    fn waiting(&self, list: &mut List) {
        let Some((backup, made)) = self.site.backups.running() else {
            return;
        };
        let Some(content) = &made.content else { return };
        let refused = self.site.attempts.get(&TaskId::Switch(self.name.clone()));
        let helpless = self.site.servers.primary().is_none() || refused.is_some();
        if helpless && !content.consistent(&self.site.ledger) {
            let (name, since) = (self.name, content.ended_at.unwrap_or_default());
            let end = content.end.unwrap_or(content.start).name(self.size());
            let why = refused
                .map(|failed| format!(": {}", failed.message))
                .unwrap_or_default();
            let what =
                format!("site '{name}': basebackup {backup} waits for WAL segment {end}{why}");
            let todo = "only the primary can finish that segment: name it among the nodes, or \
                        run select pg_switch_wal() there";
            list.add("backup_overdue", since, what, todo);
        }
    }

    fn size(&self) -> SegmentSize {
        let size = self.site.ledger.segment_size;
        size.unwrap_or(SegmentSize::DEFAULT)
    }
}

/// A server that cannot be used, by PGHoard's names.
fn connection(list: &mut List, failed: &Failed, what: String) {
    let (alert, todo) = match failed.class {
        Class::Auth => (
            "authentication_error",
            "check the user, the password and pg_hba.conf",
        ),
        Class::Unsupported => (
            "version_unsupported_error",
            "only PostgreSQL 12 and later is served",
        ),
        Class::DiskFull => (
            "spool_filling",
            "make room on the disk of backup_location; reception goes on by itself, and \
             PostgreSQL keeps its WAL meanwhile",
        ),
        _ => (
            "configuration_error",
            "check that the server runs, its address, its slot and pg_hba.conf",
        ),
    };
    list.add(alert, failed.since, what, todo);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Envelope, Event, Origin, Server};
    use crate::file::{BackupName, File};
    use crate::testing::site_policy;
    use crate::wal::{Lsn, Segment, Timeline};
    use alloc::string::ToString;

    fn site() -> Site {
        Site("main".into())
    }

    pub(super) fn segment(number: u64) -> Segment {
        Segment::new(Timeline(1), number)
    }

    pub(super) fn seen(system_id: u64, sync_state: Option<&str>) -> Event {
        Event::ServerSeen(Server {
            node: 0,
            system_id,
            version: 150_018,
            segment_size: SegmentSize::DEFAULT,
            timeline: Timeline(1),
            lsn: Lsn(0),
            in_recovery: false,
            sync_state: sync_state.map(Into::into),
            slot: None,
            clock_skew_ms: None,
        })
    }

    fn lost(class: Class) -> Event {
        let message = "no".into();
        Event::ServerLost {
            node: 0,
            class,
            message,
        }
    }

    fn ended(class: Class) -> Event {
        let message = "no".into();
        Event::StreamEnded {
            node: 0,
            at: Lsn(0),
            class,
            message,
        }
    }

    fn unstored(number: u64) -> Event {
        Event::TaskFailed {
            task: TaskId::Store(site(), File::Wal(segment(number))),
            class: Class::Network,
            message: "no".into(),
        }
    }

    fn spooled(number: u64) -> Event {
        Event::Spooled {
            file: File::Wal(segment(number)),
            entry: number,
            bytes: 40,
            origin: Origin::Stream,
        }
    }

    fn conflicted() -> Event {
        Event::Conflicted {
            file: File::Wal(segment(1)),
            ours: "a".into(),
            theirs: "b".into(),
        }
    }

    fn backup_failed(class: Class) -> Event {
        Event::BackupFailed {
            backup: BackupName("b".into()),
            class,
            message: "no".into(),
        }
    }

    pub(super) fn noted(alert: &str) -> Event {
        let alert = alert.into();
        Event::AlertAcknowledged { alert }
    }

    /// The events happen at 1, 2, ...; each alert reads `name since..latest`, `!` unless noted.
    pub(super) fn check(events: &[Event], expect: &str) {
        let mut state = State::default();
        let mut policy = Policy {
            retries_max: 3,
            ..Policy::default()
        };
        let mut site_policy = site_policy();
        site_policy.spool_limit_bytes = 100;
        policy.sites.insert(site(), site_policy);
        for (event, seq) in events.iter().zip(1..) {
            let outside = matches!(
                event,
                Event::AlertAcknowledged { .. }
                    | Event::LogRebuilt { .. }
                    | Event::ConfigRefused { .. }
            );
            state.apply(&Envelope {
                seq,
                at: Millis(seq),
                run: 1,
                site: (!outside).then(site),
                event: event.clone(),
            });
        }
        let got = alerts(&state, &policy, &Live::default(), Millis(100));
        assert!(got.values().all(|alert| !alert.entries.is_empty()));
        let known = |name: &&str| STICKY.contains(name) || OURS.contains(name);
        assert!(got.keys().all(known), "{got:?}");
        let got: Vec<String> = got
            .iter()
            .map(|(name, alert)| {
                let mark = if alert.acknowledged { "" } else { "!" };
                format!("{mark}{name} {}..{}", alert.since().0, alert.latest().0)
            })
            .collect();
        assert_eq!(got.join(", "), expect, "{events:?}");
    }

    #[test]
    fn each_condition_raises_its_alert_and_ends_with_it() {
        use Class::{Auth, Config, Interrupted, Network, Unsupported};
        for (events, expect) in [
            (&[seen(1, None)][..], ""),
            (&[lost(Auth)], "!authentication_error 1..1"),
            (&[lost(Network), lost(Network)], "!configuration_error 1..1"),
            (&[lost(Unsupported)], "!version_unsupported_error 1..1"),
            (&[lost(Auth), seen(1, None)], ""),
            (&[ended(Network), ended(Network), ended(Network)], ""),
            (
                &[ended(Config), ended(Config), ended(Config), ended(Config)],
                "!configuration_error 1..1",
            ),
            (&[unstored(1), unstored(1), unstored(1)], ""),
            (
                &[unstored(1), unstored(1), unstored(1), unstored(1)],
                "!upload_retries_warning 1..1",
            ),
            (&[spooled(1)], ""),
            (&[spooled(1), spooled(2)], "!spool_filling 1..1"),
            (&[conflicted(), conflicted()], "!wal_conflict 1..1"),
            (&[backup_failed(Interrupted)], ""),
            (&[backup_failed(Network)], "!backup_overdue 1..1"),
            (
                &[seen(1, None), seen(2, None), seen(2, None)],
                "!wal_conflict 2..2",
            ),
        ] {
            check(events, expect);
        }
        let reason = "damaged".to_string();
        check(&[Event::LogRebuilt { reason }], "!event_log_rebuilt 1..1");
        let message = "no valid JSON".to_string();
        let refused = Event::ConfigRefused { message };
        let taken = Event::ConfigLoaded {
            digest: "".into(),
            sites: Vec::new(),
            changed: Vec::new(),
            kept: Vec::new(),
            elsewhere: false,
        };
        check(core::slice::from_ref(&refused), "!config_refused 1..1");
        check(&[refused, taken], "");
    }

    #[test]
    fn being_synchronous_while_acknowledging_stored_segments_is_told_at_once() {
        let (sync, asynchronous) = (seen(1, Some("sync")), seen(1, Some("async")));
        check(core::slice::from_ref(&asynchronous), "");
        check(
            &[asynchronous.clone(), sync.clone(), sync.clone()],
            "!sync_misconfigured 2..2",
        );
        check(&[seen(1, Some("quorum"))], "!sync_misconfigured 1..1");
        check(&[sync, asynchronous], "");
    }
}
