//! Why a backup that was taken can never become complete. One that waits for ever would keep
//! every later one from being taken.

use crate::class::Class;
use crate::event::{Server, WalIn};
use crate::file::{BackupName, File};
use crate::projection::backups::{Backup, Content};
use crate::state::SiteState;
use crate::wal::Segment;

/// `source` is the server that WAL is received from.
pub fn doomed(
    site: &SiteState,
    name: &BackupName,
    backup: &Backup,
    source: Option<&Server>,
) -> Option<(Class, &'static str)> {
    let ledger = &site.ledger;
    let main = File::Main(name.clone());
    let content = backup.content.as_ref()?;
    let end = content.end.unwrap_or(content.start);
    let archived = content.wal == WalIn::Archive;
    let why = if !content.whole(name, ledger) {
        (
            Class::NotFound,
            "the store lost a part of it before it was complete",
        )
    } else if archived && hopeless(site, content, end) {
        (
            Class::NotFound,
            "the WAL it needs to become consistent is lost",
        )
    } else if ledger.conflicts.contains_key(&main) {
        (
            Class::Conflict,
            "the store holds another backup of its name",
        )
    } else if archived && overtaken(site, end, source) {
        (
            Class::Interrupted,
            "a promotion ended the timeline it waited on",
        )
    } else if !backup.one_object()
        && !ledger.mains.contains(name)
        && !ledger.spool.contains_key(&main)
    {
        (Class::NotFound, "its main object vanished from the spool")
    } else {
        return None;
    };
    Some(why)
}

/// WAL that the backup needs lies below the frontier or in a known gap, and nobody holds it.
fn hopeless(site: &SiteState, content: &Content, end: Segment) -> bool {
    let ledger = &site.ledger;
    let start = content.start;
    let passed = |segment: Segment| ledger.frontier.is_some_and(|frontier| segment <= frontier);
    let lost = |segment: Segment| ledger.lost.iter().any(|lost| lost.range.holds(segment));
    let gaps = ledger.lacking(start.timeline, start.number, end.number);
    let mut gaps = gaps
        .into_iter()
        .map(|gap| Segment::new(gap.timeline, gap.first));
    gaps.any(|segment| passed(segment) || lost(segment))
}

/// The timeline of its last segment was left before that segment's end (S-38).
fn overtaken(site: &SiteState, end: Segment, source: Option<&Server>) -> bool {
    let server = source.zip(site.ledger.segment_size);
    server.is_some_and(|(server, size)| {
        let switch = site.timelines.left_at(end.timeline, server.timeline);
        let left = switch.map(|switch| Segment::at(end.timeline, switch, size));
        left.is_some_and(|left| left <= end) && !site.ledger.has(end)
    })
}
