//! What to make of answers: whom to believe, what to do to the clock, when to ask again, and
//! whether the clock may be called synchronised. No effects; the time is an argument.

use std::time::{Duration, Instant};

use super::Status;
use super::ask::{Refusal, Sample};

/// What to do to the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// To be put right at once, by so much.
    Step { by_us: i64, when: When },
    /// To go faster by so many parts in a million, until the next answer.
    Rate { ppm: i32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nothing has relied on the clock yet.
    Boot,
    /// Everything does.
    Running,
}

#[derive(Clone, Debug)]
pub struct Course {
    good: Option<Good>,
    /// Since the last good answer.
    failures: u32,
    why_not: String,
    next: Instant,
}

#[derive(Clone, Debug)]
struct Good {
    at: Instant,
    server: String,
    offset_us: i64,
    /// What is left of it when the clock was put right.
    left_us: i64,
}

impl Course {
    pub fn new(now: Instant) -> Course {
        Course {
            good: None,
            failures: 0,
            why_not: "no time server has answered yet".to_owned(),
            next: now,
        }
    }

    pub fn next(&self) -> Instant {
        self.next
    }

    /// Asks at once: a person wants it, or other servers are known.
    pub fn hurry(&mut self, now: Instant) {
        self.failures = 0;
        self.next = now;
    }

    /// After a round of questions; `jitter` is a number of any size.
    pub fn heard(
        &mut self,
        samples: &[Sample],
        refusals: &[Refusal],
        now: Instant,
        jitter: u32,
    ) -> Act {
        match believe(samples, refusals) {
            Err(why) => {
                self.why_not = why;
                let wait = RETRY_MIN * 2_u32.pow(self.failures.min(RETRY_POWER_MAX));
                self.failures = self.failures.saturating_add(1);
                let longest = match self.status(now).synchronised {
                    true => POLL,
                    false => RETRY_MAX,
                };
                self.next = now + spread(wait.min(longest), jitter);
                // What was to be made up for is made up for by now, or unknown.
                Act::Rate { ppm: 0 }
            }
            Ok(best) => {
                let first = self.good.is_none();
                self.failures = 0;
                let wait = spread(if first { SETTLE } else { POLL }, jitter);
                self.next = now + wait;
                let act = act(best.offset_us, first, wait);
                self.good = Some(Good {
                    at: now,
                    server: best.server.to_string(),
                    offset_us: best.offset_us,
                    left_us: match act {
                        Act::Step { .. } => 0,
                        Act::Rate { .. } => best.offset_us,
                    },
                });
                act
            }
        }
    }

    /// The clock could not be put right.
    pub fn failed(&mut self, why: String) {
        self.why_not = why;
        if let Some(good) = &mut self.good {
            good.left_us = good.offset_us;
        }
    }

    pub fn unknown(&mut self, now: Instant) {
        self.why_not = NOBODY.to_owned();
        self.next = now + POLL;
    }

    pub fn status(&self, now: Instant) -> Status {
        let good = self.good.as_ref();
        let age = good.map(|good| now.saturating_duration_since(good.at));
        let (synchronised, why) = match (good, age) {
            (Some(good), Some(age)) if age < GOOD_MAX && good.left_us.abs() < LEFT_MAX_US => (
                true,
                format!("{} was asked and the clock is right", good.server),
            ),
            (Some(_), Some(age)) if age >= GOOD_MAX => {
                let minutes = age.as_secs() / 60;
                let why = &self.why_not;
                (
                    false,
                    format!("the last good answer is {minutes} minutes old: {why}"),
                )
            }
            _ => (false, self.why_not.clone()),
        };
        Status {
            synchronised,
            server: good.map(|good| good.server.clone()),
            offset_ms: good.map(|good| good.offset_us / 1000),
            checked_seconds_ago: age.map(|age| age.as_secs()),
            why,
        }
    }
}

/// The median of those that agree, if they are more than half of those that answered (RFC 5905
/// section 11.2.1: intervals that share a point).
fn believe<'a>(samples: &'a [Sample], refusals: &[Refusal]) -> Result<&'a Sample, String> {
    if samples.is_empty() {
        let all: Vec<String> = refusals
            .iter()
            .map(|r| format!("{}: {}", r.server, r.why))
            .collect();
        return Err(format!(
            "no time server gives a good answer ({})",
            all.join("; ")
        ));
    }
    let span = |sample: &Sample| {
        let half = sample.delay_us / 2 + MARGIN_US;
        let low = sample.offset_us.saturating_sub(half);
        low..=sample.offset_us.saturating_add(half)
    };
    let together = |point: i64| {
        samples
            .iter()
            .filter(move |other| span(other).contains(&point))
    };
    let most = samples
        .iter()
        .map(|sample| *span(sample).start())
        .max_by_key(|point| together(*point).count());
    let mut agree: Vec<&Sample> = most
        .map(|point| together(point).collect())
        .unwrap_or_default();
    if agree.len() * 2 <= samples.len() {
        let said = |sample: &Sample| {
            let seconds = sample.offset_us / 1_000_000;
            format!("{} says the clock is off by {seconds} s", sample.server)
        };
        let all: Vec<String> = samples.iter().map(said).collect();
        return Err(format!("the time servers disagree ({})", all.join("; ")));
    }
    agree.sort_by_key(|sample| sample.offset_us);
    let median = agree.get(agree.len() / 2).copied();
    median.ok_or_else(|| "no time server gives a good answer".to_owned())
}

fn act(offset_us: i64, first: bool, wait: Duration) -> Act {
    let size = offset_us.abs();
    if size < LEAVE_US {
        return Act::Rate { ppm: 0 };
    }
    if first || size >= SLEW_MAX_US {
        let when = if first { When::Boot } else { When::Running };
        return Act::Step {
            by_us: offset_us,
            when,
        };
    }
    // Microseconds in a second are parts in a million.
    let seconds = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX).max(1);
    let ppm = i32::try_from(offset_us / seconds).unwrap_or(0);
    Act::Rate {
        ppm: ppm.clamp(-PPM_MAX, PPM_MAX),
    }
}

/// Up to an eighth more or less, or all machines that began at once ask at once.
fn spread(wait: Duration, jitter: u32) -> Duration {
    wait * (1792 + jitter % 513) / 2048
}

pub const NOBODY: &str = "no time server is known; name one under appliance.time.servers";

/// 17 minutes, as often as a public server likes to be asked (RFC 4330 section 10).
const POLL: Duration = Duration::from_secs(1024);
/// After the first answer: it was the boot's, with everything else going on.
const SETTLE: Duration = Duration::from_secs(64);
const RETRY_MIN: Duration = Duration::from_secs(1);
/// While nobody knows the time: the cable may come back any moment.
const RETRY_MAX: Duration = Duration::from_secs(64);
const RETRY_POWER_MAX: u32 = 10;
/// After that a crystal of 100 parts in a million is off by most of a second.
const GOOD_MAX: Duration = Duration::from_secs(2 * 3600);
const LEFT_MAX_US: i64 = 1_000_000;
/// What servers that are right differ by, beyond their distance.
const MARGIN_US: i64 = 50_000;
/// Less is the network's doing.
const LEAVE_US: i64 = 1_000;
/// More would take longer to make up for than to the next answer.
const SLEW_MAX_US: i64 = 500_000;
/// The kernel takes 500 (adjtimex(2)).
const PPM_MAX: i32 = 490;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str, offset_ms: i64) -> Sample {
        Sample {
            server: name.parse().unwrap(),
            offset_us: offset_ms * 1000,
            delay_us: 2000,
        }
    }

    fn silent(name: &str) -> Refusal {
        Refusal {
            server: name.parse().unwrap(),
            why: "no answer".into(),
            rest: false,
        }
    }

    /// The middle of the jitter's range.
    const STILL: u32 = 256;

    #[test]
    fn the_many_that_agree_are_believed() {
        let rows: &[(&[i64], Result<i64, &str>)] = &[
            (&[7], Ok(7)),
            (&[5, 9], Ok(9)),
            (
                &[0, 5000],
                Err("the time servers disagree (s0 says the clock is off by 0 s; s1"),
            ),
            (&[1, 2, 90_000], Ok(2)),
            (&[1, 90_000, 2, 90_001, 3], Ok(2)),
            (&[-90_000, 1, 90_000], Err("disagree")),
            (
                &[],
                Err("no time server gives a good answer (x: no answer)"),
            ),
        ];
        for (offsets, expected) in rows {
            let name = |(number, offset): (usize, &i64)| sample(&format!("s{number}"), *offset);
            let samples: Vec<Sample> = offsets.iter().enumerate().map(name).collect();
            let refusals = [silent("x")];
            match (believe(&samples, &refusals), expected) {
                (Ok(best), Ok(offset_ms)) => assert_eq!(best.offset_us, offset_ms * 1000),
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
                (found, _) => panic!("{offsets:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_clock_is_stepped_at_boot_slewed_later_and_stepped_when_far_off() {
        let now = Instant::now();
        let step = |ms: i64, when| Act::Step {
            by_us: ms * 1000,
            when,
        };
        let rows: &[(&[i64], Act)] = &[
            (&[40], step(40, When::Boot)),
            (&[-86_400_000], step(-86_400_000, When::Boot)),
            (&[0], Act::Rate { ppm: 0 }),
            (&[0, 102], Act::Rate { ppm: 99 }),
            (&[0, -102], Act::Rate { ppm: -99 }),
            (&[0, 499], Act::Rate { ppm: 487 }),
            (&[0, 500], step(500, When::Running)),
            (&[0, -3_600_000], step(-3_600_000, When::Running)),
        ];
        for (offsets, expected) in rows {
            let mut course = Course::new(now);
            let hear = |offset: &i64| course.heard(&[sample("a", *offset)], &[], now, STILL);
            let acts: Vec<Act> = offsets.iter().map(hear).collect();
            assert_eq!(acts.last(), Some(expected), "{offsets:?}");
            assert!(course.status(now).synchronised);
        }
    }

    #[test]
    fn silence_is_asked_less_often_and_ends_the_slew() {
        let now = Instant::now();
        let mut course = Course::new(now);
        let silence = |course: &mut Course| -> Vec<u64> {
            let mut wait = || {
                let act = course.heard(&[], &[silent("a")], now, STILL);
                assert_eq!(act, Act::Rate { ppm: 0 });
                (course.next() - now).as_secs()
            };
            (0..12).map(|_| wait()).collect()
        };
        let waits = [1, 2, 4, 8, 16, 32, 64, 64, 64, 64, 64, 64];
        assert_eq!(silence(&mut course), waits);
        course.heard(&[sample("a", 0)], &[], now, STILL);
        assert_eq!((course.next() - now).as_secs(), 64);
        course.heard(&[sample("a", 0)], &[], now, STILL);
        assert_eq!((course.next() - now).as_secs(), 1024);
        let waits = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024];
        assert_eq!(silence(&mut course), waits);
        for jitter in [0, 1, 512, 513, u32::MAX] {
            let wait = spread(POLL, jitter).as_secs();
            assert!((896..=1152).contains(&wait), "{jitter} {wait}");
        }
        course.hurry(now);
        assert_eq!(course.next(), now);
    }

    #[test]
    fn synchronised_is_said_while_it_is_true() {
        let start = Instant::now();
        let mut course = Course::new(start);
        let status = course.status(start);
        assert_eq!((status.synchronised, status.server), (false, None));
        assert_eq!(status.why, "no time server has answered yet");

        course.heard(&[sample("a", 40)], &[], start, STILL);
        course.heard(&[], &[silent("a")], start, STILL);
        let status = course.status(start + Duration::from_secs(7199));
        let expected = Status {
            synchronised: true,
            server: Some("a".into()),
            offset_ms: Some(40),
            checked_seconds_ago: Some(7199),
            why: "a was asked and the clock is right".into(),
        };
        assert_eq!(status, expected);
        let status = course.status(start + Duration::from_secs(7200));
        assert!(!status.synchronised);
        let expected = "the last good answer is 120 minutes old: no time server gives a good \
                        answer (a: no answer)";
        assert_eq!(status.why, expected);

        course.heard(&[sample("a", 5000)], &[], start, STILL);
        course.failed("the clock cannot be set".into());
        let status = course.status(start);
        assert_eq!(
            (status.synchronised, status.why.as_str()),
            (false, "the clock cannot be set")
        );
    }
}
