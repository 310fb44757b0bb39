//! The holes of a site as programs read them: what is missing, since when, what it costs, and what
//! becomes of it.

use machine::SiteState;
use machine::projection::marks::{Hole, Mark};
use machine::rule::holes::{self, Fate, Found};
use machine::task::Means;
use machine::{Segment, SegmentSize};
use serde_json::{Value, json};

use crate::publish::text::iso;

/// One object a hole, by timeline and place.
pub fn list(site: &SiteState) -> Vec<Value> {
    let all = holes::holes(site);
    let fate = |found: &Found| holes::fate(site, &found.hole);
    all.iter().map(|f| one(site, f, fate(f))).collect()
}

/// Of a site at rest, for which nobody is asked.
pub fn at_rest(site: &SiteState) -> Vec<Value> {
    let all = holes::holes(site);
    let fate = |found: &Found| match holes::fate(site, &found.hole) {
        Fate::Healing | Fate::Lost => Fate::Lost,
        Fate::Acknowledged => Fate::Acknowledged,
    };
    all.iter().map(|f| one(site, f, fate(f))).collect()
}

fn one(site: &SiteState, found: &Found, fate: Fate) -> Value {
    let size = site.ledger.segment_size.unwrap_or(SegmentSize::DEFAULT);
    let (hole, gap) = (&found.hole, &found.impossible);
    let (kind, first, last) = match hole {
        Hole::Wal(range) => {
            let at = |number| Segment::new(range.timeline, number).name(size);
            ("wal", Some(at(range.first)), Some(at(range.last)))
        }
        Hole::History(_) => ("history", None, None),
    };
    let noted = holes::acknowledged(site, hole);
    let asking: Vec<String> = match fate {
        Fate::Healing => asking(site, hole),
        Fate::Lost | Fate::Acknowledged => Vec::new(),
    };
    json!({
        "acknowledged": noted.and_then(|mark| match mark {
            Mark::HoleAcknowledged { reason, by, at, .. } => Some(json!({
                "at": iso(*at),
                "by": by,
                "reason": reason,
            })),
            Mark::Hold { .. } | Mark::WalRetired { .. } | Mark::Damaged { .. } => None,
        }),
        "asking": asking,
        "backups": found.cuts.iter().map(|name| name.0.as_str()).collect::<Vec<_>>(),
        "first": first,
        "impossible": {
            "from_lsn": gap.from.to_string(),
            "timeline": gap.timeline,
            "to_lsn": gap.to.map(|lsn| lsn.to_string()),
            "until": gap.until.map(iso),
        },
        "kind": kind,
        "last": last,
        "name": hole.name(size),
        "since": site.holes.since(hole).map(iso),
        "state": match fate {
            Fate::Healing => "healing",
            Fate::Lost => "lost",
            Fate::Acknowledged => "acknowledged",
        },
        "timeline": gap.timeline,
    })
}

/// Servers that answer and have not said that they have none of it.
fn asking(site: &SiteState, hole: &Hole) -> Vec<String> {
    let servers = site.servers.up().map(|server| Means::Server(server.node));
    let open = servers.filter(|means| !site.holes.absent(*means, hole));
    open.map(|means| means.to_string()).collect()
}
