//! Where the real world verifies: the background's task, and before an upload replaces what is
//! marked as damaged.

use std::sync::Arc;
use std::sync::atomic::Ordering;

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

pub fn scrub(
    context: &SiteContext,
    site: &SiteState,
    what: &What,
    marks: Arc<Marks>,
    emit: &mut dyn FnMut(Event),
) -> Outcome<()> {
    let size = site.ledger.segment_size.unwrap_or(SegmentSize::DEFAULT);
    let restorable = site.backups.restorable(&site.ledger);
    let from = restorable.last().map(|(.., content)| content.start);
    let cluster = site.servers.system_id.zip(from);
    let rate = context.config.verify_bytes_per_second;
    let verifier = Verifier {
        place: &context.place,
        size,
        cluster: cluster.map(|(system_id, from)| Cluster { system_id, from }),
        pace: Pace::new(rate, move || marks.stop.load(Ordering::SeqCst)),
    };
    let scrub = Scrub {
        place: &context.place,
        eyes: Eyes {
            check: &|item| verifier.check(item),
            backup: &|name, object| verifier.backup(name, object),
        },
        size,
        damaged: &site.ledger.damaged,
        now: &clock::now,
    };
    scrub.run(what, emit)
}

pub fn upload(
    context: &SiteContext,
    site: &SiteState,
    (file, entry): (&File, u64),
    metadata: Metadata,
    emit: &mut dyn FnMut(Event),
) -> Outcome<()> {
    let size = site.ledger.segment_size.unwrap_or(SegmentSize::DEFAULT);
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
        standing: match site.ledger.damaged.contains_key(file) {
            true => Standing::Damaged(&judge),
            false => Standing::Unknown,
        },
    };
    upload.run(emit)
}
