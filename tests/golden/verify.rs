//! What PGHoard wrote is good, object by object, and with one bit less it is not.

use std::fs;
use std::sync::Arc;

use machine::{BackupName, File, Segment, SegmentSize, Timeline};
use pghoard::store::Store;
use pghoard::store::local::Local;
use pghoard::work::Place;
use pghoard::work::pace::Pace;
use pghoard::work::verify::{Item, Verdict, Verifier};

use super::{keyring, path};

const SIZE: SegmentSize = SegmentSize::DEFAULT;

fn names(place: &Place, folder: &str) -> Vec<String> {
    let mut names = Vec::new();
    let visit = &mut |entry: pghoard::store::Entry| {
        names.push(entry.key.rsplit('/').next().unwrap().to_owned());
        Ok(())
    };
    place.store.list(&place.key(folder), visit).unwrap();
    names
}

#[test]
fn s53_s74_everything_that_pghoard_wrote_is_good() {
    let (mut runs, mut judged) = (0, 0);
    for run in fs::read_dir(path("storage")).unwrap() {
        let store: Arc<dyn Store> = Arc::new(Local::open(&run.unwrap().path()).unwrap());
        let place = Place::to_read("golden", "golden", store, keyring());
        let verifier = Verifier {
            place: &place,
            size: SIZE,
            cluster: None,
            pace: Pace::new(None, || false),
        };
        let mut items = Vec::new();
        for object in names(&place, "basebackup") {
            let name = object.strip_suffix(".00000000.pghoard").unwrap_or(&object);
            let plan = verifier.backup(&BackupName(name.into()), Some(&object));
            let plan = plan.unwrap();
            assert!(
                matches!(plan.main, Verdict::Good { .. }),
                "{object}: {:?}",
                plan.main
            );
            items.extend(plan.items);
            judged += 1;
        }
        for name in names(&place, "xlog") {
            let segment = Segment::from_name(&name, SIZE).unwrap();
            items.push(Item::of(File::Wal(segment), SIZE));
        }
        for name in names(&place, "timeline") {
            let timeline = Timeline::from_history_name(&name).unwrap();
            items.push(Item::of(File::History(timeline), SIZE));
        }
        for item in &items {
            let verdict = verifier.check(item);
            assert!(
                matches!(verdict, Verdict::Good { .. }),
                "{item:?}: {verdict:?}"
            );
        }
        judged += items.len();
        runs += 1;
    }
    assert!(runs == 6 && judged > 40, "{runs} runs, {judged} objects");
}
