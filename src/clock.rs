//! The only place that asks for the time. Within a process it never runs backwards and never
//! stands still, whatever is done to the wall clock: waiting times must end.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use machine::Millis;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

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

/// Microseconds of `CLOCK_MONOTONIC`, as systemd wants them of a reload (sd_notify(3)).
pub fn monotonic_us() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| now.num_microseconds())
}

/// How far the wall clock was moved since the last jump, if that is worth a word: forward if
/// positive. Asked at every turn.
pub fn jump() -> Option<i64> {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut known = WALL.lock().unwrap_or_else(PoisonError::into_inner);
    known.moved(millis(wall), Instant::now())
}

/// How far the wall clock is before a moment that has been, if that is worth a word.
pub fn behind(past: Millis) -> Option<i64> {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let by = difference(millis(wall), past);
    (by <= -JUMP_MS).then_some(by)
}

/// Less is what the clocks of ordinary machines do.
const JUMP_MS: i64 = 10_000;

static WALL: Mutex<Wall> = Mutex::new(Wall(None));

/// What both clocks said when they were last taken to agree. Slewing moves both: only steps show,
/// and many small ones add up.
struct Wall(Option<(Instant, Millis)>);

impl Wall {
    fn moved(&mut self, wall: Millis, here: Instant) -> Option<i64> {
        let (then, told) = *self.0.get_or_insert((here, wall));
        let by = difference(wall, told.plus(millis(here.duration_since(then)).0));
        if by.abs() < JUMP_MS {
            return None;
        }
        self.0 = Some((here, wall));
        Some(by)
    }
}

fn difference(a: Millis, b: Millis) -> i64 {
    let signed = |at: Millis| i64::try_from(at.0).unwrap_or(i64::MAX);
    signed(a).saturating_sub(signed(b))
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
    fn s76_steps_of_the_wall_clock_are_noticed_once() {
        let (mut wall, start) = (Wall(None), Instant::now());
        for (seconds, told, expect) in [
            (0, 1_000, None),
            (60, 1_060, None),
            (120, 1_129, None),
            (180, 1_190, Some(10_000)),
            (240, 1_250, None),
            (300, 210, Some(-1_100_000)),
            (360, 270, None),
        ] {
            let here = start + Duration::from_secs(seconds);
            let got = wall.moved(Millis(told * 1_000), here);
            assert_eq!(got, expect, "{seconds}");
        }
        assert_eq!(behind(now()), None);
        assert!(behind(now().plus(60_000)).is_some_and(|by| by < -50_000));
    }

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
