//! Our own part of the state file: what `pghoard status` shows and programs may rely on.
//!
//! Positions are text (`16/B374D848`), moments are ISO in UTC, sizes are bytes, and a 64-bit
//! system identifier is text because JSON readers round numbers of that size. A key is never
//! renamed; what is not known is null.

use std::collections::BTreeSet;

use machine::decide::Busy;
use machine::event::{Slot, Why};
use machine::policy::{Policy, SitePolicy};
use machine::projection::attempts::Failed;
use machine::projection::attempts::refused::Refused;
use machine::projection::backups::{Backup, Phase};
use machine::projection::clock::Clock;
use machine::projection::marks::Mark;
use machine::projection::scrub::Counts;
use machine::projection::servers::Node;
use machine::rule::alerts::{Alert, alerts};
use machine::rule::coverage::{self, Coverage, Live, positions};
use machine::rule::{clock, schedule, scrub};
use machine::{BackupName, File, Millis, Segment, SegmentSize, Site, SiteState, State, TaskId};
use serde_json::{Map, Value, json};

use crate::publish::holes;
use crate::publish::text::iso;

/// The key of the moment the document was made.
pub const AT: &str = "at";
/// The key, in each site, of what changes with every moment: no reason to write the file anew.
pub const NOW: &str = "now";

/// A site that the policy does not know shows what the log knows: the daemon is not running, or
/// the site is out of use.
pub fn facts(state: &State, policy: &Policy, busy: &Busy, live: &Live, now: Millis) -> Value {
    let unknown = SiteState::default();
    let names: BTreeSet<&Site> = state.sites.keys().chain(policy.sites.keys()).collect();
    let sites = names.into_iter().map(|name| {
        let view = View {
            name,
            site: state.sites.get(name).unwrap_or(&unknown),
            policy: policy.sites.get(name),
            clock: &state.clock,
            all: policy,
            busy,
            live,
            now,
        };
        (name.0.clone(), view.facts())
    });
    let raised = alerts(state, policy, live, now);
    let raised = raised
        .iter()
        .map(|(name, alert)| ((*name).to_owned(), told(alert)));
    json!({
        "alerts": raised.collect::<Map<_, _>>(),
        AT: iso(now),
        "events": state.seq,
        "maintenance": policy.maintenance,
        "proved_since_start": state.proved(),
        "run": state.run,
        "sites": sites.collect::<Map<_, _>>(),
        "started_at": known(state.started_at),
        "stopped": state.stopped,
        "version": env!("CARGO_PKG_VERSION"),
    })
}

fn told(alert: &Alert) -> Value {
    let entries = alert.entries.iter().map(
        |entry| json!({ "since": known(entry.since), "todo": entry.todo, "what": entry.what }),
    );
    json!({
        "acknowledged": alert.acknowledged,
        "entries": entries.collect::<Vec<_>>(),
        "since": known(alert.since()),
    })
}

/// What the store would not delete.
pub fn refused(refused: &Refused) -> Value {
    json!({
        "backups": refused.backups.keys().map(|name| name.0.as_str()).collect::<Vec<_>>(),
        "marks": refused.marks.len(),
        "message": refused.message,
        "next": iso(refused.next()),
        "since": iso(refused.since),
        "wal_segments": refused.segments(),
    })
}

struct View<'a> {
    name: &'a Site,
    site: &'a SiteState,
    policy: Option<&'a SitePolicy>,
    clock: &'a Clock,
    all: &'a Policy,
    busy: &'a Busy,
    live: &'a Live,
    now: Millis,
}

impl View<'_> {
    fn facts(&self) -> Value {
        let (ledger, servers) = (&self.site.ledger, &self.site.servers);
        let positions = positions(self.name, self.site, self.policy, self.live);
        let nodes = servers
            .nodes
            .iter()
            .map(|(node, server)| self.server(*node, server));
        let next = self
            .policy
            .map(|policy| schedule::forecast((self.name, self.site), policy, self.all, self.now));
        let streams = self.policy.map(|policy| policy.streams);
        let coverage = coverage::coverage(self.name, self.site, self.policy, self.live, self.now);
        let holes = self.holes();
        json!({
            "active": self.policy.map(|policy| policy.active),
            "attempts": self.attempts(),
            "backups": self.backups(),
            "busy": self.working().collect::<Vec<_>>(),
            "clock_doubtful": self.doubt(),
            "conflicts": ledger.conflicts.keys().map(|f| f.key(self.size())).collect::<Vec<_>>(),
            "flushed_lsn": positions.flushed.map(|lsn| lsn.to_string()),
            "coverage": self.coverage(&coverage, holes.len()),
            "frontier": ledger.frontier.map(|segment| self.named(segment)),
            "frontier_at": self.site.exposure.frontier_at.map(iso),
            "history_of": self.all.heir(self.name).map(|(heir, _)| heir),
            "holes": holes,
            "last_stored_at": ledger.last_stored_at.map(iso),
            "lease": self.site.tenure.lease.as_ref().map(|lease| json!({
                "holder": lease.holder,
                "host": lease.host,
                "ours": lease.ours,
                "since": self.site.tenure.since.map(iso),
                "started_at": known(lease.started_at),
            })),
            "next_backup": next.as_ref().and_then(|next| next.at).map(iso),
            "next_backup_why": next.as_ref().map(|next| next.why.as_str()),
            NOW: self.moment(&coverage),
            "origins": self.policy.map(|policy| &policy.origins),
            "received_lsn": positions.received.map(|lsn| lsn.to_string()),
            "reconciled_at": ledger.reconciled_at.map(iso),
            "refused": self.site.attempts.refused.as_ref().map(refused),
            "segment_size": ledger.segment_size.map(SegmentSize::bytes),
            "servers": nodes.collect::<Vec<_>>(),
            "spool": {
                "bytes": ledger.spool_bytes(),
                "files": ledger.spool.len(),
                "limit_bytes": self.policy.map(|policy| policy.spool_limit_bytes),
            },
            "stream": servers.stream.as_ref().map(|stream| json!({
                "next_segment": self.named(stream.next),
                "node": stream.node,
                "since": iso(stream.since),
                "timeline": stream.next.timeline,
            })),
            "stream_ended": servers.ended.as_ref().map(|ended| json!({
                "at": iso(ended.at),
                "class": ended.class,
                "lsn": ended.lsn.to_string(),
                "message": ended.message,
                "node": ended.node,
            })),
            "streams": streams,
            "system_id": servers.system_id.map(|id| id.to_string()),
            "verification": self.verification(),
        })
    }

    fn doubt(&self) -> Option<Value> {
        let (since, why) = clock::doubtful(self.clock, self.site, self.all)?;
        Some(json!({ "since": iso(since), "why": why }))
    }

    fn holes(&self) -> Vec<Value> {
        match self.policy.is_some_and(|policy| !policy.active) {
            true => holes::at_rest(self.site),
            false => holes::list(self.site),
        }
    }

    fn verification(&self) -> Value {
        let scrub = &self.site.scrub;
        let counts = |counts: &Counts| {
            json!({
                "bytes": counts.bytes,
                "damaged": counts.damaged,
                "good": counts.good,
                "partly": counts.partly,
                "unjudged": counts.unjudged,
            })
        };
        let pass = scrub.pass.as_ref();
        let marked = self.site.marks.all.values();
        let damaged = marked.filter_map(|mark| match mark {
            Mark::Damaged { file, detail, at } => Some(json!({
                "object": self.key(file),
                "since": iso(*at),
                "why": detail,
            })),
            Mark::Hold { .. } | Mark::HoleAcknowledged { .. } | Mark::WalRetired { .. } => None,
        });
        json!({
            "damaged": damaged.collect::<Vec<_>>(),
            "last_pass": scrub.last.as_ref().map(|last| json!({
                "ended_at": iso(last.ended_at),
                "found": counts(&last.counts),
                "started_at": iso(last.started_at),
            })),
            "pass": pass.map(|pass| json!({
                "found": counts(&pass.counts),
                "left": scrub::left(self.site, &pass.looked),
                "looked_at": pass.at.map(iso),
                "objects": pass.objects,
                "started_at": iso(pass.started_at),
            })),
            "trouble": scrub.trouble.as_ref().map(|trouble| json!({
                "class": trouble.class,
                "message": trouble.message,
                "objects": trouble.objects.count(),
                "since": iso(trouble.since),
            })),
            // Nothing was looked at longer ago than this; null before a pass was through.
            "verified_since": self.site.scrub.floor(pass.map_or(0, |pass| {
                scrub::left(self.site, &pass.looked)
            })).map(iso),
        })
    }

    /// What can be restored, and what is not safe yet.
    fn coverage(&self, coverage: &Coverage, gaps: usize) -> Value {
        let windows = coverage.windows.iter().map(|window| {
            json!({
                "backups": window.backups,
                "from_at": iso(window.from_at),
                "from_lsn": window.from_lsn.to_string(),
                "open": window.open,
                "timeline": window.timeline,
                "to_at": iso(window.to_at),
                "to_lsn": window.to_lsn.to_string(),
            })
        });
        let last = coverage.last_backup.as_ref();
        json!({
            // As many as there are holes.
            "gaps": gaps,
            "last_backup": last.map(|(name, at)| json!({ "at": iso(*at), "name": name.0 })),
            "protected_until": coverage.protected_until.map(iso),
            "slot": coverage::slot(self.site).map(slot),
            "unprotected_bytes": coverage.unprotected.bytes,
            "unprotected_since": coverage.unprotected.since.map(iso),
            "windows": windows.collect::<Vec<_>>(),
        })
    }

    /// Ages and room: numbers for graphs, which no two documents share.
    fn moment(&self, coverage: &Coverage) -> Value {
        let age = |at: Millis| self.now.since(at) / 1_000;
        let space = self.live.space.get(self.name);
        let last = coverage.last_backup.as_ref();
        let stored = self.site.tally.uploads.get("xlog");
        let stored = stored.and_then(|count| count.last_success);
        json!({
            "disk_free_bytes": space.map(|space| space.free_bytes),
            "disk_total_bytes": space.map(|space| space.total_bytes),
            "last_backup_age_seconds": last.map(|(_, at)| age(*at)),
            "last_stored_wal_age_seconds": stored.map(age),
            "spool_lasts_seconds": coverage.spool_lasts_ms.map(|ms| ms / 1_000),
            "unprotected_seconds": coverage.unprotected.since.map_or(0, age),
            "wal_bytes_an_hour": coverage.wal_bytes_an_hour,
        })
    }

    fn server(&self, node: u32, server: &Node) -> Value {
        let seen = server.seen.as_ref();
        let role = seen.map(|seen| match seen.in_recovery {
            true => "standby",
            false => "primary",
        });
        json!({
            "lost": server.lost.as_ref().map(|lost| json!({
                "at": iso(lost.at),
                "class": lost.class,
                "message": lost.message,
            })),
            "clock_skew_ms": seen.and_then(|seen| seen.clock_skew_ms),
            "lsn": seen.map(|seen| seen.lsn.to_string()),
            "node": node,
            "role": role,
            "seen_at": server.seen_at.map(iso),
            "slot": seen.and_then(|seen| seen.slot.as_ref()).map(slot),
            "sync_state": seen.and_then(|seen| seen.sync_state.clone()),
            "system_id": seen.map(|seen| seen.system_id.to_string()),
            "timeline": seen.map(|seen| seen.timeline),
            "version": seen.map(|seen| seen.version),
        })
    }

    fn backups(&self) -> Vec<Value> {
        let restorable = self.site.backups.restorable(&self.site.ledger);
        let restorable: BTreeSet<_> = restorable.into_iter().map(|(name, ..)| name).collect();
        let all = self.site.backups.all.iter();
        all.map(|(name, backup)| self.backup(name, backup, restorable.contains(name)))
            .collect()
    }

    fn backup(&self, name: &BackupName, backup: &Backup, restorable: bool) -> Value {
        let content = backup.content.as_ref();
        let phase = match backup.phase {
            Phase::Running => "running",
            Phase::Finished => "waiting_for_wal",
            Phase::Complete => "complete",
            Phase::Dead => "dead",
        };
        let stored = self.site.ledger.mains.contains(name);
        let reason = match backup.reason {
            Why::Schedule => "schedule",
            Why::Operator => "operator",
            Why::Hole => "hole",
        };
        let (done, total) = backup.progress;
        json!({
            "bytes_plain": content.map(|content| content.bytes_in),
            "bytes_stored": content.map(|content| content.bytes_out),
            "complete": backup.phase == Phase::Complete && stored,
            "decided_at": iso(backup.decided_at),
            "end_lsn": content.and_then(|c| c.end_lsn).map(|lsn| lsn.to_string()),
            "end_segment": content.and_then(|c| c.end).map(|segment| self.named(segment)),
            "ended_at": content.and_then(|c| c.ended_at).map(iso),
            "format": content.map(|content| content.format.as_str()),
            "name": name.0,
            "node": backup.node,
            "parts": content.map(|content| content.parts),
            "phase": phase,
            "progress": { "bytes": done, "total": total },
            "reason": reason,
            "restorable": restorable,
            "start_segment": content.map(|content| self.named(content.start)),
            "started_at": content.map(|content| iso(content.started_at)),
        })
    }

    fn attempts(&self) -> Vec<Value> {
        let told = |(task, failed): (&TaskId, &Failed)| {
            json!({
                "class": failed.class,
                "message": failed.message,
                "next": iso(failed.next),
                "since": iso(failed.since),
                "task": self.task(task),
                "times": failed.times,
            })
        };
        self.site.attempts.iter().map(told).collect()
    }

    fn working(&self) -> impl Iterator<Item = String> {
        let ours = self.busy.keys().filter(|id| id.site() == self.name);
        ours.map(|id| self.task(id))
    }

    /// A task within its site: `store xlog/0000...`
    fn task(&self, id: &TaskId) -> String {
        match id {
            TaskId::Fetch(_, means) => format!("fetch from {means}"),
            TaskId::Probe(_, node) => format!("probe node {node}"),
            TaskId::Store(_, file) => format!("store {}", self.key(file)),
            TaskId::Receive(_)
            | TaskId::Take(_)
            | TaskId::Switch(_)
            | TaskId::Delete(_)
            | TaskId::Reconcile(_)
            | TaskId::Marks(_)
            | TaskId::Lease(_)
            | TaskId::Verify(_)
            | TaskId::Export(_) => id.name().to_owned(),
        }
    }

    fn key(&self, file: &File) -> String {
        file.key(self.size())
    }

    fn named(&self, segment: Segment) -> String {
        segment.name(self.size())
    }

    fn size(&self) -> SegmentSize {
        let size = self.site.ledger.segment_size;
        size.unwrap_or(SegmentSize::DEFAULT)
    }
}

fn slot(slot: &Slot) -> Value {
    json!({
        "active": slot.active,
        "held_bytes": slot.held_bytes,
        "limit_bytes": slot.limit_bytes,
        "name": slot.name,
        "restart_lsn": slot.restart_lsn.map(|lsn| lsn.to_string()),
        "safe_bytes": slot.safe_bytes,
        "wal_status": slot.wal_status,
    })
}

/// Nothing happened in 1970.
fn known(at: Millis) -> Option<String> {
    (at.0 > 0).then(|| iso(at))
}

#[cfg(test)]
mod tests {
    use machine::event::Branch;
    use machine::policy::Ack;
    use machine::{Event, Lsn};

    use super::*;
    use crate::publish::testing::{busy, fold, live, policy, seen, site, state, stored};
    use machine::Timeline;

    const NOW: Millis = Millis(1_795_340_000_000);

    #[test]
    fn a_site_tells_everything_that_status_needs() {
        let facts = facts(&state("main"), &policy("main"), &busy("main"), &live(), NOW);
        let site = &facts["sites"]["main"];
        for (pointer, expect) in [
            ("/active", json!(true)),
            ("/system_id", json!("7312345678901234567")),
            ("/segment_size", json!(16 << 20)),
            ("/servers/0/role", json!("primary")),
            ("/servers/0/timeline", json!(1)),
            ("/servers/0/lost", Value::Null),
            ("/servers/1/lost/class", json!("network")),
            ("/stream/next_segment", json!("000000010000000000000008")),
            ("/frontier", json!("000000010000000000000006")),
            ("/flushed_lsn", json!("0/7000000")),
            ("/received_lsn", json!("0/8000100")),
            ("/spool/files", json!(1)),
            ("/backups/0/phase", json!("complete")),
            ("/backups/0/restorable", json!(true)),
            ("/backups/0/complete", json!(true)),
            ("/backups/0/end_segment", json!("000000010000000000000005")),
            ("/busy/1", json!("store xlog/000000010000000000000007")),
            ("/attempts/0/task", json!("probe node 1")),
            ("/holes", json!([])),
            ("/next_backup", json!("2026-11-23T09:28:52Z")),
            ("/next_backup_why", json!("every 24 h")),
            ("/coverage/gaps", json!(0)),
            ("/coverage/last_backup/name", json!("2026-11-22_09-29_0")),
            (
                "/coverage/protected_until",
                json!("2026-11-22T09:28:53.250000Z"),
            ),
            ("/coverage/unprotected_bytes", json!(0x100_0200)),
            (
                "/coverage/unprotected_since",
                json!("2026-11-22T09:28:51.501000Z"),
            ),
            ("/coverage/windows/0/from_lsn", json!("0/5000100")),
            ("/coverage/windows/0/to_lsn", json!("0/7000000")),
            ("/coverage/windows/0/open", json!(true)),
            ("/now/disk_free_bytes", json!(30_u64 << 30)),
            ("/now/last_stored_wal_age_seconds", json!(265)),
            ("/now/unprotected_seconds", json!(268)),
            ("/clock_doubtful", Value::Null),
            ("/lease", Value::Null),
        ] {
            assert_eq!(site.pointer(pointer), Some(&expect), "{pointer}: {site:#}");
        }
        assert_eq!(
            facts["alerts"]["configuration_error"]["acknowledged"],
            false
        );
        assert_eq!(facts["at"], "2026-11-22T09:33:20Z");
        assert_eq!(facts["proved_since_start"], true);
        let mut begun = state("main");
        begun.started_at = NOW;
        assert!(!begun.proved());
        let known = begun.sites.values_mut().next().unwrap();
        known.marks.read_at = Some(NOW.plus(1));
        assert!(begun.proved());
    }

    #[test]
    fn without_a_daemon_the_log_tells_what_it_knows() {
        let (state, none) = (state("main"), Policy::default());
        let facts = facts(&state, &none, &Busy::new(), &Live::default(), NOW);
        let site = &facts["sites"]["main"];
        assert_eq!(site["active"], Value::Null);
        assert_eq!(site["next_backup"], Value::Null);
        assert_eq!(site["flushed_lsn"], "0/7000000");
    }

    fn check(events: &[Event], ack: Ack, received: u64, flushed: &str, held: &str) {
        let state = fold("main", events);
        let mut policy = policy("main").sites[&site("main")].clone();
        policy.ack = ack;
        let live = Live {
            received: [(site("main"), Lsn(received))].into(),
            ..Live::default()
        };
        let name = site("main");
        let found = positions(&name, &state.sites[&name], Some(&policy), &live);
        let text = |lsn: Option<Lsn>| lsn.map_or("-".to_owned(), |lsn| lsn.to_string());
        assert_eq!(text(found.flushed), flushed, "{events:?}");
        assert_eq!(text(found.received), held, "{events:?}");
    }

    #[test]
    fn positions_follow_store_spool_stream_and_timelines() {
        let begun = |timeline, number| Event::StreamStarted {
            node: 0,
            from: Segment::new(Timeline(timeline), number),
            slot: None,
            anchored: false,
        };
        let ended = |lsn| Event::StreamEnded {
            node: 0,
            at: Lsn(lsn),
            class: machine::Class::Network,
            message: String::new(),
        };
        let learned = Event::TimelineLearned {
            timeline: Timeline(2),
            ancestors: vec![Branch {
                timeline: Timeline(1),
                switch: Lsn(0x650_0000),
            }],
        };
        let (one, two) = (seen(0, 1), seen(0, 2));
        let base = [one, begun(1, 5), stored(5)];
        let with = |more: &[Event]| [&base[..], more].concat();
        check(&[seen(0, 1)], Ack::Stored, 9, "-", "-");
        check(&with(&[]), Ack::Stored, 0, "0/6000000", "0/6000000");
        check(
            &with(&[]),
            Ack::Stored,
            0x600_1000,
            "0/6000000",
            "0/6001000",
        );
        check(
            &with(&[]),
            Ack::Spooled,
            0x600_1000,
            "0/6001000",
            "0/6001000",
        );
        let gone = with(&[ended(0x600_2000)]);
        check(&gone, Ack::Stored, 0x600_1000, "0/6000000", "0/6002000");
        // s48: what the dead branch left beyond the switch is not held of the new timeline
        let branched = with(&[ended(0x670_0000), learned, two, begun(2, 6)]);
        check(&branched, Ack::Stored, 0, "0/6000000", "0/6000000");
        let switched = [&branched[..], &[ended(0x600_0000)]].concat();
        check(&switched, Ack::Stored, 0, "0/6000000", "0/6000000");
    }
}
