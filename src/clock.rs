//! The only place that asks for the time. Within a process it never runs backwards and never
//! stands still, whatever is done to the wall clock: waiting times must end.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use machine::Millis;

static TIME: Mutex<Time> = Mutex::new(Time(None));

pub fn now() -> Millis {
    not_before(Millis(0))
}

/// The same after a log whose last line is younger than the wall clock says it is now.
pub fn not_before(earliest: Millis) -> Millis {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut time = TIME.lock().unwrap_or_else(PoisonError::into_inner);
    time.tell(millis(wall).max(earliest), Instant::now())
}

/// A moment by a clock nobody can set, and what the time was then.
struct Time(Option<(Instant, Millis)>);

impl Time {
    /// The wall clock may only push the time forward.
    fn tell(&mut self, wall: Millis, here: Instant) -> Millis {
        let passed = self
            .0
            .map(|(then, told)| told.plus(millis(here.duration_since(then)).0));
        if let Some(passed) = passed.filter(|passed| *passed >= wall) {
            return passed;
        }
        self.0 = Some((here, wall));
        wall
    }
}

fn millis(duration: Duration) -> Millis {
    Millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_follows_the_wall_clock_forward_and_passes_without_it() {
        let (mut time, start) = (Time(None), Instant::now());
        for (ms, wall, expect) in [
            (0, 1_000, 1_000),
            (10, 1_012, 1_012),
            (20, 500, 1_022),
            (30, 500, 1_032),
            (40, 9_000, 9_000),
            (50, 9_005, 9_010),
        ] {
            let here = start + Duration::from_millis(ms);
            assert_eq!(time.tell(Millis(wall), here), Millis(expect), "{ms}");
        }
    }
}
