//! Readers by the names they ask for; what is fetched, kept and let go.

use super::*;

const SIZE: SegmentSize = SegmentSize::DEFAULT;

/// `2/1FE`: timeline and number in hexadecimal.
fn name(short: &str) -> String {
    let (timeline, number) = short.split_once('/').unwrap();
    let hex = |text| u64::from_str_radix(text, 16).unwrap();
    let timeline = Timeline(u32::try_from(hex(timeline)).unwrap());
    Segment::new(timeline, hex(number)).name(SIZE)
}

fn history(timeline: u32, ends: &[(u32, u64)]) -> History {
    let lines = ends
        .iter()
        .map(|(of, end)| format!("{of}\t{}\tx\n", Lsn(*end)));
    let text: String = lines.collect();
    History::parse(Timeline(timeline), text.as_bytes()).unwrap()
}

const BYTES: u64 = 16 << 20;

/// A plan and its clock, told as one would tell the story.
struct Story {
    plan: Plan,
    now: Instant,
    let_go: Vec<String>,
}

impl Story {
    fn new(segments_max: u32, readers_max: usize) -> Story {
        Story {
            plan: Plan::new(segments_max, readers_max),
            now: Instant::now(),
            let_go: Vec::new(),
        }
    }

    fn asked(&mut self, short: &str) {
        let let_go = self.plan.asked(&name(short), SIZE, self.now);
        self.let_go.extend(let_go);
    }

    /// A file that is ready is taken.
    fn takes(&mut self, short: &str) {
        assert_eq!(self.plan.find(&name(short)), Some(Stage::Ready), "{short}");
        let let_go = self.plan.take(&name(short), self.now);
        self.let_go.extend(let_go);
    }

    /// Every job there is, without their ends; `?1` looks for timelines after 1.
    fn begins(&mut self, expected: &[&str]) {
        let mut begun = Vec::new();
        while let Some(job) = self.plan.begin() {
            begun.push(match job {
                Job::Segment(name) => name,
                Job::Histories(after) => format!("?{after}"),
            });
        }
        let expected = expected.iter().map(|short| match short.starts_with('?') {
            true => (*short).to_owned(),
            false => name(short),
        });
        assert_eq!(begun, expected.collect::<Vec<_>>());
    }

    fn gets(&mut self, got: Got, shorts: &[&str]) {
        for short in shorts {
            let kept = self.plan.fetched(&name(short), got);
            assert_eq!(kept, got == Got::Whole, "{short}");
        }
    }

    fn let_go(&mut self, expected: &[&str]) {
        let mut found = std::mem::take(&mut self.let_go);
        found.sort();
        let mut expected: Vec<String> = expected.iter().map(|short| name(short)).collect();
        expected.sort();
        assert_eq!(found, expected);
    }
}

#[test]
fn what_is_taken_is_followed_by_the_next_across_the_end_of_4_gib() {
    let mut story = Story::new(3, 1);
    story.asked("1/FD");
    story.begins(&["?1", "1/FE", "1/FF", "1/100"]);
    story.gets(Got::Whole, &["1/FE", "1/FF", "1/100"]);
    assert_eq!(name("1/100"), "000000010000000100000000");
    for (taken, next) in [("1/FE", "1/101"), ("1/FF", "1/102"), ("1/100", "1/103")] {
        story.takes(taken);
        story.begins(&[next]);
        story.gets(Got::Whole, &[next]);
    }
    story.let_go(&[]);
}

/// Any segment size, and never more than is allowed on disk, but one.
#[test]
fn s31_names_and_bounds_follow_the_segment_size() {
    for (mib, from, expected) in [
        (
            1,
            "000000010000000000000FFE",
            vec!["000000010000000000000FFF", "000000010000000100000000"],
        ),
        (
            64,
            "00000001000000000000003F",
            vec!["000000010000000100000000", "000000010000000100000001"],
        ),
        (
            1024,
            "000000010000000000000003",
            vec!["000000010000000100000000"],
        ),
    ] {
        let size = SegmentSize::new(mib << 20).unwrap();
        let mut plan = Plan::new(2, 1);
        plan.asked(from, size, Instant::now());
        assert_eq!(plan.begin(), Some(Job::Histories(Timeline(1))));
        let jobs: Vec<Job> = std::iter::from_fn(|| plan.begin()).collect();
        let expected = expected
            .into_iter()
            .map(|name| Job::Segment(name.to_owned()));
        assert_eq!(jobs, expected.collect::<Vec<_>>());
    }
}

#[test]
fn s31_a_wish_without_measure_is_bounded() {
    let size = SegmentSize::new(1 << 20).unwrap();
    let mut plan = Plan::new(u32::MAX, 1);
    plan.asked("000000010000000000000001", size, Instant::now());
    assert_eq!(std::iter::from_fn(|| plan.begin()).count(), 1 + 1024);
}

/// The segment in which a timeline begins is asked for on that one (S-46).
#[test]
fn s46_the_way_leads_across_timeline_switches() {
    for (end, expected) in [
        (5 * BYTES + 100, ["1/4", "2/5", "3/6", "3/7"]),
        (5 * BYTES, ["1/4", "2/5", "3/6", "3/7"]),
        (6 * BYTES, ["1/4", "1/5", "3/6", "3/7"]),
    ] {
        let mut story = Story::new(4, 1);
        story.asked("1/3");
        assert_eq!(story.plan.begin(), Some(Job::Histories(Timeline(1))));
        let newest = history(3, &[(1, end), (2, 6 * BYTES + 1)]);
        assert!(story.plan.learned(&newest).is_empty());
        story.begins(&expected);
        story.gets(Got::Whole, &expected);
        for short in expected {
            story.takes(short);
        }
        story.let_go(&[]);
    }
}

/// A promotion while its standby reads on: the parent ends, and the child is looked for then.
#[test]
fn s46_an_end_is_looked_behind_once() {
    let mut story = Story::new(2, 1);
    story.asked("1/3");
    story.begins(&["?1", "1/4", "1/5"]);
    story.gets(Got::Whole, &["1/4"]);
    story.gets(Got::Absent, &["1/5"]);
    story.begins(&["?1"]);
    story.begins(&[]);
    story.takes("1/4");
    story.begins(&["1/5", "1/6"]);
    story.gets(Got::Absent, &["1/5", "1/6"]);
    story.begins(&["?1"]);
    story.plan.learned(&history(2, &[(1, 5 * BYTES + 9)]));
    story.begins(&["2/5", "2/6"]);
    story.gets(Got::Whole, &["2/5", "2/6"]);
    story.takes("2/5");
    // From here on only what is newer than 2 is looked for.
    story.begins(&["2/7"]);
    story.gets(Got::Absent, &["2/7"]);
    story.begins(&["?2"]);
}

/// A recovery to a moment on timeline 1 goes past where 2 begins.
#[test]
fn a_reader_that_stays_on_its_timeline_is_followed() {
    let mut story = Story::new(2, 1);
    story.asked("1/3");
    assert_eq!(story.plan.begin(), Some(Job::Histories(Timeline(1))));
    let newest = history(2, &[(1, 4 * BYTES + 9)]);
    story.plan.learned(&newest);
    story.begins(&["2/4", "2/5"]);
    story.gets(Got::Whole, &["2/4", "2/5"]);
    story.asked("1/4");
    story.let_go(&["2/4", "2/5"]);
    assert_eq!(story.plan.begin(), Some(Job::Histories(Timeline(1))));
    story.plan.learned(&newest);
    story.begins(&["1/5", "1/6"]);
}

/// What was seen to be absent is no answer: it is looked for again as soon as somebody asks.
#[test]
fn s40_an_absence_or_a_failure_is_forgotten_at_the_next_request() {
    for got in [Got::Absent, Got::Failed] {
        let mut story = Story::new(2, 1);
        story.asked("1/3");
        story.begins(&["?1", "1/4", "1/5"]);
        story.gets(got, &["1/4"]);
        story.gets(Got::Whole, &["1/5"]);
        assert_eq!(story.plan.find(&name("1/4")), None);
        assert_eq!(story.plan.begin().is_some(), got == Got::Absent);
        story.begins(&[]);
        // It came from the store itself meanwhile; what lies behind was kept.
        story.asked("1/4");
        story.takes("1/5");
        story.let_go(&[]);
    }
}

#[test]
fn s44_who_jumps_or_falls_silent_leaves_nothing_behind() {
    let mut story = Story::new(2, 1);
    story.asked("1/3");
    story.begins(&["?1", "1/4", "1/5"]);
    story.gets(Got::Whole, &["1/4"]);
    // As a server does that begins its recovery: the checkpoint first, then its redo point.
    story.asked("1/1");
    story.let_go(&["1/4"]);
    // It was under way and nobody wants it any more.
    assert!(!story.plan.fetched(&name("1/5"), Got::Whole));
    story.begins(&["?1", "1/2", "1/3"]);
    story.gets(Got::Whole, &["1/2", "1/3"]);
    story.now += SILENCE / 2;
    assert!(story.plan.expire(story.now).is_empty());
    story.now += SILENCE / 2;
    let gone = story.plan.expire(story.now);
    assert_eq!(gone, [name("1/2"), name("1/3")]);
    assert!(story.plan.is_idle());
    story.begins(&[]);
}

/// Two of them would write one file.
#[test]
fn s45_a_segment_under_way_is_not_begun_again() {
    let mut story = Story::new(2, 2);
    story.asked("1/3");
    story.begins(&["?1", "1/4", "1/5"]);
    assert_eq!(story.plan.find(&name("1/4")), Some(Stage::Underway));
    story.asked("1/A");
    story.asked("1/3");
    story.begins(&["?1", "1/B", "1/C"]);
    // Unwanted and wanted again before its fetch has ended.
    let mut story = Story::new(1, 1);
    story.asked("1/3");
    story.begins(&["?1", "1/4"]);
    story.asked("1/A");
    story.asked("1/3");
    story.begins(&["?1"]);
    story.gets(Got::Whole, &["1/4"]);
    story.takes("1/4");
}

#[test]
fn two_standbys_are_read_ahead_for_and_a_third_takes_the_place_of_the_silent_one() {
    let mut story = Story::new(2, 2);
    story.asked("1/3");
    story.asked("1/20");
    story.begins(&["?1", "?1", "1/21", "1/4", "1/22", "1/5"]);
    story.gets(Got::Whole, &["1/4", "1/5", "1/21", "1/22"]);
    story.takes("1/4");
    story.takes("1/21");
    story.takes("1/5");
    story.begins(&["1/6", "1/7", "1/23"]);
    story.gets(Got::Whole, &["1/6", "1/7", "1/23"]);
    story.let_go(&[]);
    story.asked("1/40");
    story.let_go(&["1/22", "1/23"]);
    story.takes("1/6");
}
