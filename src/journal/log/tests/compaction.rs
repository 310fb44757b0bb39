//! A log that begins later: as read, as opened, as appended to, as cut short anywhere.

use machine::State;
use machine::state::summary::summary;

use super::*;

fn fold(found: &[Envelope]) -> State {
    let mut state = State::default();
    found.iter().for_each(|envelope| state.apply(envelope));
    state
}

fn compact(log: &mut Log, state: &State, upto: u64) -> Outcome<Vec<Envelope>> {
    log.compact(upto, state.run, &mut |removed| Ok(summary(state, removed)))
}

#[test]
fn a_compacted_log_begins_later_and_goes_on() {
    let place = Place::with(100);
    let (mut log, found) = place.open().unwrap();
    let before = fold(&found);
    let kept = log.lines(91, 100).unwrap();
    let summed = compact(&mut log, &before, 90).unwrap();
    assert!(log.shrink().unwrap());
    log.append(Millis(200), 1, some(2)).unwrap();
    drop(log);
    let count = u64::try_from(summed.len()).unwrap();
    let (mut log, found) = place.open().unwrap();
    let numbers: Vec<u64> = found.iter().map(|e| e.seq).collect();
    assert_eq!(numbers, (91..=102 + count).collect::<Vec<_>>());
    // What stays is what it was, digest included, and no number is used twice.
    assert_eq!(log.lines(91, 100).unwrap(), kept);
    assert_eq!(summed[0].seq, 101);
    assert_eq!((summed[0].at, summed[0].run), (before.at, before.run));
    let after = fold(&found);
    assert_eq!(
        (after.run, after.started_at),
        (before.run, before.started_at)
    );
    assert_eq!((after.seq, after.log.removed_upto), (102 + count, 90));
    // Again, over the summary itself.
    compact(&mut log, &after, 101 + count).unwrap();
    log.append(Millis(300), 1, some(1)).unwrap();
    drop(log);
    assert_eq!(fold(&place.open().unwrap().1).log.removed_upto, 101 + count);
}

#[test]
fn readers_know_where_a_compacted_log_begins() {
    let place = Place::with(50);
    let (mut log, found) = place.open().unwrap();
    compact(&mut log, &fold(&found), 40).unwrap();
    for (after, first) in [(0, 41), (7, 41), (40, 41), (41, 42), (51, 52)] {
        let mut seen = Vec::new();
        let extent = read_after(&place.path, after, &mut |e| seen.push(e.seq)).unwrap();
        assert_eq!((extent.removed_upto, extent.last), (40, 51));
        assert_eq!(seen, (first..=51).collect::<Vec<_>>(), "after {after}");
    }
    assert_eq!(lines(&place.path, 41, 51).unwrap().len(), 11);
    for (first, last) in [(40, 45), (7, 45), (45, 52), (52, 52)] {
        let failure = lines(&place.path, first, last).unwrap_err();
        assert_eq!(failure.class, Class::Corrupt, "{first} {last}");
    }
    for upto in [12, 51, 52, 60] {
        let failure = compact(&mut log, &State::default(), upto).unwrap_err();
        assert_eq!(failure.class, Class::Corrupt, "{upto}");
    }
    assert_eq!(place.read().unwrap().len(), 11);
}

#[test]
fn a_beginning_cut_off_without_a_summary_is_damage() {
    let place = Place::with(10);
    let database = builder().open(&place.path).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut table = write.open_table(EVENTS).unwrap();
        let digest: Chain = *table
            .get(6)
            .unwrap()
            .unwrap()
            .value()
            .first_chunk()
            .unwrap();
        table.retain_in(..=6, |_, _| false).unwrap();
        table.insert(6, digest.as_slice()).unwrap();
    }
    write.commit().unwrap();
    drop(database);
    let failure = place.read().unwrap_err();
    assert_eq!(failure.class, Class::Corrupt);
    assert_eq!(
        failure.message,
        "event log: events up to 6 are gone without a summary"
    );
    assert_eq!(place.open().map(|_| ()).unwrap_err().class, Class::Corrupt);
}

#[test]
fn a_compaction_happens_whole_or_not_at_all() {
    let disk = Disk::new(u64::MAX);
    let mut state = State::default();
    let mut log = Log::open_on(disk.clone(), &mut |_| ()).unwrap();
    for envelope in log.append(Millis(1), 1, some(60)).unwrap() {
        state.apply(&envelope);
    }
    for writes in 0.. {
        disk.left.store(writes, Ordering::SeqCst);
        let done = compact(&mut log, &state, 50).and_then(|_| log.shrink());
        drop(log);
        disk.left.store(u64::MAX, Ordering::SeqCst);
        let mut found = Vec::new();
        log = Log::open_on(disk.clone(), &mut |e| found.push(e.clone())).unwrap();
        let folded = fold(&found);
        let first = found[0].seq;
        assert!([1, 51].contains(&first), "begins with {first}");
        if first == 51 {
            let mut wanted = state.clone();
            (wanted.seq, wanted.log) = (folded.seq, folded.log.clone());
            assert_eq!((folded.seq, &folded), (61, &wanted));
            return;
        }
        assert!(done.is_err());
        assert_eq!(folded, state);
    }
}

#[test]
fn a_refused_summary_leaves_the_log_as_it_is() {
    let place = Place::with(30);
    let (mut log, _) = place.open().unwrap();
    let no = || Failure::new(Class::Internal, "no");
    let refused = log.compact(20, 1, &mut |removed| {
        assert_eq!((removed.upto, removed.count), (20, 20));
        Err(no())
    });
    assert_eq!(refused.unwrap_err(), no());
    log.append(Millis(90), 1, some(1)).unwrap();
    assert_eq!(place.read().unwrap().len(), 31);
}

/// Three compactions of a log that is always a hundred events long keep the file small.
#[test]
fn the_file_shrinks() {
    let place = Place::new();
    let (mut log, _) = place.open().unwrap();
    let mut state = State::default();
    let mut sizes = Vec::new();
    for _ in 0..3 {
        for _ in 0..40 {
            for envelope in log.append(Millis(1), 1, some(250)).unwrap() {
                state.apply(&envelope);
            }
        }
        let full = fs::metadata(&place.path).unwrap().len();
        for envelope in compact(&mut log, &state, state.seq - 100).unwrap() {
            state.apply(&envelope);
        }
        assert!(log.shrink().unwrap());
        sizes.push((full, fs::metadata(&place.path).unwrap().len()));
    }
    assert!(
        sizes.iter().all(|(full, left)| left * 2 < *full),
        "{sizes:?}"
    );
}
