//! What is told and marked of what was seen.

use std::cell::RefCell;

use machine::{Site, SiteState, State};

use super::*;

use crate::work::testing::Bed;

const SIZE: SegmentSize = SegmentSize::DEFAULT;

fn segment(number: u64) -> File {
    File::Wal(Segment::new(Timeline(1), number))
}

fn range(first: u64, last: u64) -> Range {
    Range {
        timeline: Timeline(1),
        first,
        last,
    }
}

struct World {
    bed: Bed,
    state: State,
    /// What the eyes see.
    bad: RefCell<BTreeMap<File, Verdict>>,
}

impl World {
    fn new(events: Vec<Event>) -> World {
        let mut world = World {
            bed: Bed::make(),
            state: State::default(),
            bad: RefCell::default(),
        };
        events.into_iter().for_each(|event| world.apply(event));
        world
    }

    fn apply(&mut self, event: Event) {
        self.state.apply(&machine::Envelope {
            seq: self.state.seq + 1,
            at: Millis(self.state.seq + 1),
            run: 1,
            site: Some(Site("main".into())),
            event,
        });
    }

    fn site(&self) -> &SiteState {
        &self.state.sites[&Site("main".into())]
    }

    fn sees(&self, file: File, verdict: Verdict) {
        self.bad.borrow_mut().insert(file, verdict);
    }

    /// Runs the task and folds what it tells; answers the kinds of events, and how it ended.
    fn run(&mut self, what: &What) -> (Vec<String>, Outcome<()>) {
        let damaged = self.site().ledger.damaged.clone();
        let check = |item: &Item| {
            let bad = self.bad.borrow();
            bad.get(&item.file)
                .cloned()
                .unwrap_or(Verdict::Good { bytes: 10 })
        };
        let scrub = Scrub {
            place: &self.bed.place,
            eyes: Eyes {
                check: &check,
                backup: &|_, _| panic!("no backup is asked for"),
            },
            size: SIZE,
            damaged: &damaged,
            now: &|| Millis(77),
        };
        let mut events = Vec::new();
        let outcome = scrub.run(what, &mut |event| events.push(event));
        let kind = |event: &Event| {
            let text = format!("{event:?}");
            text.split([' ', '(']).next().unwrap_or_default().to_owned()
        };
        let kinds = events.iter().map(kind).collect();
        events.into_iter().for_each(|event| self.apply(event));
        (kinds, outcome)
    }

    fn marks(&self) -> Vec<String> {
        let mut keys = self.bed.keys();
        keys.retain(|key| key.contains("/mark/"));
        keys
    }
}

fn found() -> Event {
    Event::Found {
        segment_size: SIZE,
        wal: vec![range(1, 9)],
        files: vec![],
    }
}

#[test]
fn s70_a_verdict_is_marked_first_and_taken_back_when_it_is_not_so() {
    let mut world = World::new(vec![found()]);
    world.sees(segment(4), Verdict::Damaged("a bit".into()));
    let all = What::Wal(vec![range(1, 9)]);
    let (kinds, outcome) = world.run(&all);
    outcome.unwrap();
    assert_eq!(kinds, ["Marked", "FoundDamaged", "Verified"]);
    assert_eq!(
        world.marks(),
        ["main/mark/damaged_xlog_000000010000000000000004"]
    );
    assert!(!world.site().ledger.has(Segment::new(Timeline(1), 4)));
    // Seen again: told again, marked once.
    assert_eq!(world.run(&all).0, ["FoundDamaged", "Verified"]);
    world.sees(segment(4), Verdict::Good { bytes: 3 });
    assert_eq!(world.run(&all).0, ["Unmarked", "Verified"]);
    assert!(world.marks().is_empty());
    assert!(world.site().ledger.has(Segment::new(Timeline(1), 4)));
}

#[test]
fn a_mark_goes_with_its_object() {
    for (event, kinds) in [
        (None, &["Missing", "Unmarked"][..]),
        (
            Some(Event::Deleted {
                wal: vec![range(4, 4)],
                files: vec![],
            }),
            &["Unmarked"],
        ),
    ] {
        let mut world = World::new(vec![found()]);
        world.sees(segment(4), Verdict::Damaged("a bit".into()));
        world.run(&What::Wal(vec![range(4, 4)])).1.unwrap();
        event.into_iter().for_each(|event| world.apply(event));
        world.sees(segment(4), Verdict::Gone);
        assert_eq!(world.run(&What::Files(vec![segment(4)])).0, kinds);
        assert!(world.marks().is_empty());
        let ledger = &world.site().ledger;
        assert!(ledger.damaged.is_empty() && !ledger.exists(&segment(4)));
    }
}

#[test]
fn doubt_is_told_and_a_silent_store_ends_the_task() {
    let failure = |class| Verdict::Unreadable(Failure::new(class, "no"));
    for (verdict, kinds, class) in [
        (
            failure(Class::Config),
            &["Unverified", "Verified"][..],
            None,
        ),
        (failure(Class::Denied), &["Unverified", "Verified"], None),
        (Verdict::Gone, &["Unverified", "Verified"], None),
        (failure(Class::Network), &["Verified"], Some(Class::Network)),
        (failure(Class::Interrupted), &["Verified"], None),
    ] {
        let mut world = World::new(vec![found()]);
        world.sees(segment(4), verdict.clone());
        let (told, outcome) = world.run(&What::Wal(vec![range(1, 9)]));
        assert_eq!(told, kinds, "{verdict:?}");
        assert_eq!(outcome.err().map(|f| f.class), class, "{verdict:?}");
        assert!(world.marks().is_empty());
    }
}

/// The mark could not be written: nothing is told of the damage.
#[test]
fn what_cannot_be_marked_is_not_told() {
    let mut world = World::new(vec![found()]);
    world.sees(segment(4), Verdict::Damaged("a bit".into()));
    world
        .bed
        .store
        .fail(0, crate::work::testing::Fault::Before(Class::Quota));
    let (kinds, outcome) = world.run(&What::Wal(vec![range(1, 9)]));
    assert_eq!(kinds, ["Verified"]);
    assert_eq!(outcome.unwrap_err().class, Class::Quota);
}

#[test]
fn good_ones_are_told_in_batches() {
    let mut world = World::new(vec![found()]);
    let (kinds, _) = world.run(&What::Wal(vec![range(1, 3 * BATCH_OBJECTS)]));
    assert_eq!(kinds.len(), 3);
    let looked = world.site().scrub.pass.as_ref().unwrap().looked.count();
    assert_eq!(looked, 3 * BATCH_OBJECTS);
}
