//! The kernel's clock, behind what the tests put in its place.

use std::time::Duration;

use clock_steering::unix::UnixClock;
use clock_steering::{Clock as _, LeapIndicator, TimeOffset};
use machine::Class;
use pghoard::{Failure, Outcome};

pub trait Clock: Send {
    /// Moves it, forward if positive.
    fn step(&mut self, by_us: i64) -> Outcome<()>;

    /// Makes it faster by so many parts in a million, until told otherwise.
    fn rate(&mut self, ppm: i32) -> Outcome<()>;

    /// Lets others know that it is right to `error_us`, or that nobody knows.
    fn mark(&mut self, error_us: Option<i64>) -> Outcome<()>;
}

/// A kernel that was told the clock is right also sets the hardware clock from it, every eleven
/// minutes (Linux kernel/time/ntp.c; CONFIG_RTC_SYSTOHC). Leap seconds are not announced to it: the
/// clock is a second off then, until the next answer steps it.
pub struct Kernel;

impl Clock for Kernel {
    fn step(&mut self, by_us: i64) -> Outcome<()> {
        about(UnixClock::CLOCK_REALTIME.step_clock(offset(by_us)))
    }

    fn rate(&mut self, ppm: i32) -> Outcome<()> {
        about(UnixClock::CLOCK_REALTIME.set_frequency(f64::from(ppm)))
    }

    fn mark(&mut self, error_us: Option<i64>) -> Outcome<()> {
        let clock = UnixClock::CLOCK_REALTIME;
        let Some(error_us) = error_us else {
            return about(clock.set_leap_seconds(LeapIndicator::Unknown));
        };
        let error = Duration::from_micros(error_us.unsigned_abs());
        about(clock.set_leap_seconds(LeapIndicator::NoWarning))?;
        about(clock.error_estimate_update(error, error))
    }
}

/// The part below a second is counted upwards, before the epoch too (adjtimex(2)).
fn offset(by_us: i64) -> TimeOffset {
    let micros = u32::try_from(by_us.rem_euclid(MICROS)).unwrap_or(0);
    TimeOffset {
        seconds: by_us.div_euclid(MICROS),
        nanos: micros * 1000,
    }
}

const MICROS: i64 = 1_000_000;

fn about<T>(result: Result<T, clock_steering::unix::Error>) -> Outcome<()> {
    result
        .map(|_now| ())
        .map_err(|error| Failure::new(Class::Denied, format!("the clock cannot be set: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_has_the_form_the_kernel_takes() {
        let rows = [
            (0, 0, 0),
            (1, 0, 1000),
            (-1, -1, 999_999_000),
            (1_500_000, 1, 500_000_000),
            (-1_500_000, -2, 500_000_000),
        ];
        for (us, seconds, nanos) in rows {
            let offset = offset(us);
            assert_eq!((offset.seconds, offset.nanos), (seconds, nanos), "{us}");
        }
    }
}
