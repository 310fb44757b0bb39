//! One byte changed in any page of the file, as a bad disk does it: the log says that it is
//! damaged, or goes on as if nothing had happened, also after more was written to it.

use machine::State;
use machine::state::summary::summary;

use super::*;

const PAGE: usize = 4096;
/// redb's header: magic number, layout, flags, two commit slots.
const HEADER: usize = 320;

#[test]
fn a_byte_changed_in_a_log_that_was_closed_never_costs_an_event() {
    let place = used();
    let closed = fs::read(&place.path).unwrap();
    check(&closed, 1);
}

#[test]
fn a_byte_changed_in_a_log_that_was_cut_off_never_costs_an_event() {
    let place = used();
    let log = place.open().unwrap().0;
    let cut_off = fs::read(&place.path).unwrap();
    drop(log);
    check(&cut_off, 2);
}

/// Grown, compacted and grown again: live pages beside free ones, in two regions of use.
fn used() -> Place {
    let place = Place::new();
    let (mut log, _) = place.open().unwrap();
    let mut state = State::default();
    let add = |log: &mut Log, state: &mut State, count| {
        for envelope in log.append(Millis(1), 1, some(count)).unwrap() {
            state.apply(&envelope);
        }
    };
    for _ in 0..12 {
        add(&mut log, &mut state, 100);
    }
    log.compact(700, 1, &mut |removed| Ok(summary(&state, removed)))
        .unwrap();
    drop(log);
    let (mut log, found) = place.open().unwrap();
    let mut state = State::default();
    found.iter().for_each(|envelope| state.apply(envelope));
    for count in [60, 60, 1] {
        add(&mut log, &mut state, count);
    }
    drop(log);
    place
}

fn check(whole: &[u8], seed: u64) {
    let place = Place::new();
    let attempt = |bytes: &[u8]| {
        fs::write(&place.path, bytes).unwrap();
        place.open()
    };
    let (log, expected) = attempt(whole).unwrap();
    drop(log);
    let mut random = fastrand::Rng::with_seed(seed);
    let header = (0..HEADER).step_by(5);
    let pages = (0..whole.len()).step_by(PAGE).flat_map(|page| {
        let end = (page + PAGE).min(whole.len());
        // Where the shape of a page is told, and anywhere in it.
        [random.usize(page..page + 32), random.usize(page..end)]
    });
    let places: Vec<usize> = header.chain(pages).collect();
    let (mut refused, mut harmless) = (0, 0);
    for at in places {
        let mut bytes = whole.to_vec();
        bytes[at] ^= random.u8(1..);
        let (mut log, mut found) = match attempt(&bytes) {
            Ok(opened) => opened,
            Err(failure) => {
                let told = matches!(failure.class, Class::Corrupt | Class::Unsupported);
                assert!(told, "at {at}: {failure:?}");
                refused += 1;
                continue;
            }
        };
        // The header names one of two commits: at worst it is the one before, as after a crash.
        let kept = found.iter().eq(expected.iter().take(found.len()));
        assert!(
            kept && found.len() + 1 >= expected.len(),
            "at {at}: {}",
            found.len()
        );
        found.extend(log.append(Millis(2), 1, some(400)).unwrap());
        found.extend(log.append(Millis(3), 1, some(1)).unwrap());
        drop(log);
        let again = place.open().map(|(_, found)| found);
        assert!(
            again.is_ok_and(|again| again == found),
            "at {at}: lost later"
        );
        harmless += 1;
    }
    assert!(refused > 20 && harmless > 20, "{refused} {harmless}");
}
