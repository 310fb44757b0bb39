//! Where the real world verifies: the background's task, and before an upload replaces what is
//! marked as damaged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use machine::projection::ledger::Presence;
use machine::task::What;
use machine::{Event, File, SegmentSize, SiteState};

use crate::clock;
use crate::daemon::site::SiteContext;
use crate::failure::Outcome;
use crate::source::receive::Marks;
use crate::store::Metadata;
use crate::work::pace::Pace;
use crate::work::scrub::{Eyes, Scrub};
use crate::work::upload::{Standing, Upload};
use crate::work::verify::{Cluster, Item, Verifier};

/// What a scrub is given of the state when it starts.
pub struct Facts {
    size: SegmentSize,
    cluster: Option<Cluster>,
    damaged: BTreeMap<File, Presence>,
}

impl Facts {
    pub fn of(site: &SiteState) -> Facts {
        let restorable = site.backups.restorable(&site.ledger);
        let from = restorable.last().map(|(.., content)| content.start);
        let cluster = site.servers.system_id.zip(from);
        Facts {
            size: site.ledger.segment_size.unwrap_or(SegmentSize::DEFAULT),
            cluster: cluster.map(|(system_id, from)| Cluster { system_id, from }),
            damaged: site.ledger.damaged.clone(),
        }
    }
}

pub fn scrub(
    context: &SiteContext,
    facts: Facts,
    what: &What,
    marks: Arc<Marks>,
    emit: &mut dyn FnMut(Event),
) -> Outcome<()> {
    let size = facts.size;
    let rate = context.config.verify_bytes_per_second;
    let verifier = Verifier {
        place: &context.place,
        size,
        cluster: facts.cluster,
        pace: Pace::new(rate, move || marks.stop.load(Ordering::SeqCst)),
    };
    let scrub = Scrub {
        place: &context.place,
        eyes: Eyes {
            check: &|item| verifier.check(item),
            backup: &|name, object| verifier.backup(name, object),
        },
        size,
        damaged: &facts.damaged,
        now: &clock::now,
    };
    scrub.run(what, emit)
}

pub fn upload(
    context: &SiteContext,
    (file, entry): (&File, u64),
    size: SegmentSize,
    damaged: Option<Presence>,
    metadata: Metadata,
    emit: &mut dyn FnMut(Event),
) -> Outcome<()> {
    let verifier = Verifier {
        place: &context.place,
        size,
        cluster: None,
        pace: Pace::new(None, || false),
    };
    let judge = || verifier.check(&Item::of(file.clone(), size));
    let upload = Upload {
        place: &context.place,
        spool: &context.spool,
        file,
        entry,
        size,
        metadata,
        standing: match damaged {
            Some(_) => Standing::Damaged(&judge),
            None => Standing::Unknown,
        },
    };
    upload.run(emit)
}
