//! How fast a background task may read, and when it must stop.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use machine::Class;

use crate::failure::{Failure, Outcome};

/// Shared by all that read for one task.
#[derive(Clone)]
pub struct Pace(Arc<Inner>);

struct Inner {
    bytes_per_second: Option<u64>,
    began: Instant,
    bytes: AtomicU64,
    stop: Box<dyn Fn() -> bool + Send + Sync>,
}

/// A stop is heard at least this often.
const NAP: Duration = Duration::from_millis(100);

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pace({:?})", self.0.bytes_per_second)
    }
}

impl Pace {
    /// Without a rate as fast as it goes.
    pub fn new(
        bytes_per_second: Option<u64>,
        stop: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Pace {
        Pace(Arc::new(Inner {
            bytes_per_second,
            began: Instant::now(),
            bytes: AtomicU64::new(0),
            stop: Box::new(stop),
        }))
    }

    /// Waits until so many bytes more may have been read. An error says to stop.
    pub fn spend(&self, bytes: u64) -> Outcome<()> {
        let spent = self
            .0
            .bytes
            .fetch_add(bytes, Ordering::SeqCst)
            .saturating_add(bytes);
        loop {
            if (self.0.stop)() {
                return Err(Failure::new(Class::Interrupted, "asked to stop"));
            }
            let wait = self.due(spent).saturating_sub(self.0.began.elapsed());
            if wait.is_zero() {
                return Ok(());
            }
            thread::sleep(wait.min(NAP));
        }
    }

    /// How long after the beginning so much may have been read.
    fn due(&self, bytes: u64) -> Duration {
        let rate = self.0.bytes_per_second.map(|rate| rate.max(1));
        let millis = rate.map_or(0, |rate| {
            u64::try_from(u128::from(bytes) * 1000 / u128::from(rate)).unwrap_or(u64::MAX)
        });
        Duration::from_millis(millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_takes_its_time_and_hears_a_stop() {
        for (rate, bytes, millis) in [
            (None, u64::MAX, 0),
            (Some(1 << 20), 10 << 20, 10_000),
            (Some(0), 5, 5_000),
        ] {
            let pace = Pace::new(rate, || false);
            assert_eq!(pace.due(bytes), Duration::from_millis(millis));
        }
        let stopped = Pace::new(Some(1), || true).spend(1 << 40).unwrap_err();
        assert_eq!(stopped.class, Class::Interrupted);
    }
}
