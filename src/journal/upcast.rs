//! Old events to today's: pure, chained, over CBOR values.
//!
//! The version counts changes of meaning over the whole catalogue; a field with a default needs
//! none. An upcast takes an event of version `n` to `n + 1`.

use serde_cbor::Value;

/// The version that this code writes.
pub const VERSION: u32 = 1;

/// The number of the log's format: every kind of event and every version raises it by one. A
/// program with a lower one may meet events that it does not know, so an appliance does not go
/// back to it.
pub const LOG: u32 = 51;

/// How `pghoard log-format` says it, and how the builder of images finds it in a program.
pub const LOG_TOLD: &str = "pghoard writes logs of format 51\n";

/// Today's form of an event of `version`; `None` if only a newer reader knows it.
pub fn upcast(version: u32, event: Value) -> Option<Value> {
    (version <= VERSION && known(&event)).then_some(event)
}

/// Whether today's catalogue has the event's kind.
fn known(event: &Value) -> bool {
    let Value::Map(map) = event else { return false };
    let kind = map.get(&Value::Text("kind".into()));
    matches!(kind, Some(Value::Text(kind)) if KINDS.contains(&kind.as_str()))
}

/// Every kind ever released, as the log spells it.
pub const KINDS: [&str; 50] = [
    "started",
    "stopped",
    "config_loaded",
    "config_refused",
    "server_seen",
    "server_lost",
    "stream_started",
    "stream_ended",
    "timeline_learned",
    "cluster_learned",
    "switched",
    "label_archived",
    "wal_passed",
    "spooled",
    "stored",
    "dropped",
    "conflicted",
    "found",
    "missing",
    "deleted",
    "backup_requested",
    "backup_started",
    "backup_progressed",
    "backup_finished",
    "backup_failed",
    "backup_expired",
    "backup_found",
    "wal_expired",
    "marked",
    "unmarked",
    "marks_read",
    "scrub_started",
    "verified",
    "unverified",
    "found_damaged",
    "hole_opened",
    "hole_closed",
    "hole_sought",
    "task_failed",
    "reconciled",
    "alert_acknowledged",
    "operated",
    "log_rebuilt",
    "clock_jumped",
    "lease_seen",
    "exported",
    "compacted",
    "carried",
    "compaction_refused",
    "deletion_refused",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_kind_or_version_raises_the_number_of_the_format() {
        let kinds = u32::try_from(KINDS.len()).unwrap();
        assert_eq!(LOG, kinds + VERSION, "LOG and LOG_TOLD have to be raised");
        assert_eq!(LOG_TOLD, format!("pghoard writes logs of format {LOG}\n"));
    }
}
