//! The daemon in a few words: what the service manager shows, and what a stop leaves behind.

use std::collections::BTreeMap;

use log::Level;
use machine::decide::Busy;
use machine::policy::{Drain, Policy, SitePolicy};
use machine::rule::alerts::Alert;
use machine::{Class, Event, Site, SiteState, State, TaskId};

use crate::publish::text::size;

/// A line of more sites names those first that have trouble, and counts the rest.
const SITES_MAX: usize = 8;

/// Without numbers that change all the time: a line is told when it is news.
pub fn line(
    state: &State,
    policy: &Policy,
    busy: &Busy,
    raised: &BTreeMap<&'static str, Alert>,
) -> String {
    let unknown = SiteState::default();
    let mut parts: Vec<String> = Vec::new();
    if policy.draining != Drain::No {
        let uploads = busy.keys().filter(|id| matches!(id, TaskId::Store(..)));
        parts.push(format!("stopping, uploads running: {}", uploads.count()));
    }
    if policy.maintenance {
        parts.push("maintenance mode".to_owned());
    }
    for (name, site_policy) in policy.sites.iter().take(SITES_MAX) {
        let site = state.sites.get(name).unwrap_or(&unknown);
        parts.push(format!("{name}: {}", doing(name, site, site_policy, busy)));
    }
    if let more @ 1.. = policy.sites.len().saturating_sub(SITES_MAX) {
        parts.push(format!("{more} more sites"));
    }
    let alerts = raised.iter().filter(|(_, alert)| !alert.acknowledged);
    let alerts: Vec<&str> = alerts.map(|(name, _)| *name).collect();
    match alerts.as_slice() {
        [] => parts.push("no alerts".to_owned()),
        names => parts.push(format!("ALERTS: {}", names.join(", "))),
    }
    parts.join("; ")
}

fn doing(name: &Site, site: &SiteState, policy: &SitePolicy, busy: &Busy) -> String {
    let mut words = Vec::new();
    words.push(match (&site.servers.stream, policy.streams) {
        (Some(stream), _) => format!("receiving from server {}", stream.node),
        (None, false) => "archive_command".to_owned(),
        (None, true) if policy.cramped_since.is_some() => "paused, the disk is full".to_owned(),
        (None, true) => "not receiving".to_owned(),
    });
    if busy.contains_key(&TaskId::Take(name.clone())) {
        words.push("taking a basebackup".to_owned());
    }
    words.join(", ")
}

/// What goes wrong is a warning, what is ordinary and frequent a detail.
pub fn level(event: &Event) -> Level {
    match event {
        Event::ConfigRefused { .. } => Level::Error,
        Event::ServerLost { .. }
        | Event::BackupFailed { .. }
        | Event::TaskFailed { .. }
        | Event::Conflicted { .. }
        | Event::Missing { .. }
        | Event::LogRebuilt { .. }
        | Event::Unverified { .. }
        | Event::FoundDamaged { .. }
        | Event::CompactionRefused { .. }
        | Event::DeletionRefused { .. }
        | Event::ClockJumped { .. } => Level::Warn,
        Event::ConfigLoaded { kept, .. } if !kept.is_empty() => Level::Warn,
        Event::LeaseSeen(lease) if !lease.ours => Level::Warn,
        Event::StreamEnded { class, .. } if *class != Class::Interrupted => Level::Warn,
        Event::ServerSeen(_)
        | Event::Spooled { .. }
        | Event::Verified { .. }
        | Event::Carried(_) => Level::Debug,
        _ => Level::Info,
    }
}

/// What waits in the spools for the next start; `None` if nothing does.
pub fn left(state: &State) -> Option<String> {
    let waiting = state.sites.iter().filter_map(|(name, site)| {
        let (files, bytes) = (site.ledger.spool.len(), site.ledger.spool_bytes());
        let noun = if files == 1 { "file" } else { "files" };
        (files > 0).then(|| format!("{files} {noun} ({}) of site '{name}'", size(bytes)))
    });
    let waiting: Vec<String> = waiting.collect();
    (!waiting.is_empty()).then(|| waiting.join(", "))
}

#[cfg(test)]
mod tests {
    use machine::event::{Millis, Origin};
    use machine::{Envelope, File, Segment, Timeline};

    use super::*;

    fn state(events: Vec<Event>) -> State {
        let mut state = State::default();
        for (event, seq) in events.into_iter().zip(1..) {
            state.apply(&Envelope {
                seq,
                at: Millis(seq),
                run: 1,
                site: Some(Site("main".into())),
                event,
            });
        }
        state
    }

    #[test]
    fn a_line_says_what_each_site_does_and_which_alerts_stand() {
        let from = Segment::new(Timeline(1), 1);
        let started = Event::StreamStarted {
            node: 1,
            from,
            slot: None,
            anchored: false,
        };
        let mut policy = Policy::default();
        let mut site = SitePolicy {
            active: true,
            streams: true,
            ..SitePolicy::default()
        };
        policy.sites.insert(Site("main".into()), site.clone());
        let none = BTreeMap::new();
        let told =
            |state: &State, policy: &Policy, raised| line(state, policy, &Busy::new(), raised);
        let idle = state(Vec::new());
        assert_eq!(
            told(&idle, &policy, &none),
            "main: not receiving; no alerts"
        );
        let receiving = state(vec![started]);
        let raised = BTreeMap::from([("backup_overdue", Alert::default())]);
        let expect = "main: receiving from server 1; ALERTS: backup_overdue";
        assert_eq!(told(&receiving, &policy, &raised), expect);
        site.cramped_since = Some(Millis(1));
        policy.sites.insert(Site("main".into()), site);
        policy.draining = Drain::Storing;
        let expect = "stopping, uploads running: 0; main: paused, the disk is full; no alerts";
        assert_eq!(told(&idle, &policy, &none), expect);
    }

    #[test]
    fn what_waits_is_counted() {
        assert_eq!(left(&state(Vec::new())), None);
        let spooled = |number, bytes| Event::Spooled {
            file: File::Wal(Segment::new(Timeline(1), number)),
            entry: number,
            bytes,
            origin: Origin::Stream,
        };
        let waiting = state(vec![spooled(1, 1 << 20), spooled(2, 1 << 20)]);
        let expect = "2 files (2.0 MiB) of site 'main'";
        assert_eq!(left(&waiting).as_deref(), Some(expect));
    }
}
