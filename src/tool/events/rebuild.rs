//! For `pghoard events --rebuild`: the same state by every way that leads to it.

use std::io::Write;
use std::path::Path;

use machine::state::summary::{Removed, summary};
use machine::{Class, Envelope, State};

use crate::failure::{Failure, Outcome};
use crate::journal::log;

/// The log is cut at so many places; each cut is a reading of its own, one at a time.
const CUTS: u64 = 4;

pub fn run(path: &Path, out: &mut dyn Write) -> Outcome<()> {
    let mut stored = State::default();
    let extent = log::read(path, &mut |envelope| stored.apply(envelope))?;
    let log::Extent { removed_upto, last } = extent;
    let held = last.saturating_sub(removed_upto);
    let mut say = |line: String| {
        let told = writeln!(out, "{line}");
        told.map_err(|e| Failure::io(&e, "standard output"))
    };
    say(format!("as stored: {held} events, ok"))?;
    let mut differing = Vec::new();
    for part in 1..=CUTS {
        let cut = removed_upto.saturating_add(held.saturating_mul(part) / CUTS);
        let same = through_summary(path, cut, last)? == stored;
        let word = if same { "ok" } else { "DIFFERENT" };
        say(format!("through a summary at event {cut}: {word}"))?;
        if !same {
            differing.push(cut.to_string());
        }
    }
    if differing.is_empty() {
        return Ok(());
    }
    let places = differing.join(", ");
    let message = format!("the state differs when it goes through a summary at event {places}");
    Err(Failure::new(Class::Internal, message).hint("please report it and keep the log"))
}

/// The fold up to the cut, its summary folded from nothing, and the rest of the log on top, with
/// the notes that only say that there was a summary taken out again. A log that a daemon is writing
/// may have grown: what came after `last` does not count.
fn through_summary(path: &Path, cut: u64, last: u64) -> Outcome<State> {
    let mut state = State::default();
    let mut summed = cut == 0;
    log::read(path, &mut |envelope| {
        if envelope.seq > cut && !summed {
            state = resummed(&state);
            summed = true;
        }
        if envelope.seq <= last {
            state.apply(envelope);
        }
    })?;
    Ok(if summed { state } else { resummed(&state) })
}

fn resummed(state: &State) -> State {
    let removed = Removed {
        upto: state.log.removed_upto,
        count: 0,
        digest: String::new(),
    };
    let mut folded = State::default();
    for (site, event) in summary(state, removed) {
        folded.apply(&Envelope {
            seq: state.seq,
            at: state.at,
            run: state.run,
            site,
            event,
        });
    }
    folded.log = state.log.clone();
    folded
}

#[cfg(test)]
mod tests {
    use machine::Millis;

    use super::*;
    use crate::journal::log::Log;
    use crate::publish::testing;

    #[test]
    fn every_way_gives_the_same_also_after_a_compaction() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(log::FILE_NAME);
        let mut state = State::default();
        let mut log = Log::open(&path, &mut |_| ()).unwrap();
        let site = || Some(testing::site("main"));
        for number in 1..40 {
            let events = vec![
                (site(), testing::spooled(number)),
                (site(), testing::stored(number)),
            ];
            for envelope in log.append(Millis(number), 1, events).unwrap() {
                state.apply(&envelope);
            }
        }
        let mut told = Vec::new();
        run(&path, &mut told).unwrap();
        let expect = "as stored: 78 events, ok\n\
                      through a summary at event 19: ok\n\
                      through a summary at event 39: ok\n\
                      through a summary at event 58: ok\n\
                      through a summary at event 78: ok\n";
        assert_eq!(String::from_utf8(told).unwrap(), expect);
        log.compact(70, 1, &mut |removed| Ok(summary(&state, removed)))
            .unwrap();
        let mut told = Vec::new();
        run(&path, &mut told).unwrap();
        let told = String::from_utf8(told).unwrap();
        assert_eq!(told.matches(": ok\n").count(), 4, "{told}");
        assert!(told.starts_with("as stored: 11 events"), "{told}");
    }
}
