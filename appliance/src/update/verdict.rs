//! When a program that is tried is kept, and when it is given up: a judgement on what was seen.

use std::time::Duration;

/// As the settings have it (`appliance.update`).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The daemon has to be well for so long.
    pub confirm: Duration,
    /// The program is given up after so long without.
    pub give_up: Duration,
}

/// What is known of a program that is not confirmed yet.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Since the machine was started.
    pub up: Duration,
    /// For how long the daemon has been ready and its loop has turned, without a break; `None` if
    /// it is not.
    pub well: Option<Duration>,
    pub work: Work,
    pub back: Back,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// No site is configured: there is nothing to prove.
    Unconfigured,
    /// Nothing was stored or listed since the start.
    Unproved,
    /// Something was.
    Proved,
}

/// Whether another program would start if this one were given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    Open,
    /// Giving up would start the same one again, for ever.
    Shut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Wait,
    Confirm,
    /// Mark it spent and start anew; why, for the log and the console.
    GiveUp(&'static str),
}

pub fn judge(limits: &Limits, seen: &Seen) -> Verdict {
    let long_enough = |well: Duration| well >= limits.confirm;
    let good = match seen.work {
        Work::Unconfigured => long_enough(seen.up),
        Work::Unproved => false,
        Work::Proved => seen.well.is_some_and(long_enough),
    };
    if good {
        return Verdict::Confirm;
    }
    if seen.up < limits.give_up || seen.back == Back::Shut {
        return Verdict::Wait;
    }
    match seen.work {
        Work::Unconfigured => Verdict::Wait,
        Work::Unproved => Verdict::GiveUp("the daemon has stored and listed nothing"),
        Work::Proved => Verdict::GiveUp("the daemon was not well for long enough"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_kept_once_it_has_worked_and_given_up_if_it_has_not_s_75() {
        use Back::{Open, Shut};
        use Verdict::{Confirm, Wait};
        use Work::{Proved, Unconfigured, Unproved};
        let nothing = Verdict::GiveUp("the daemon has stored and listed nothing");
        let unwell = Verdict::GiveUp("the daemon was not well for long enough");
        let limits = Limits {
            confirm: Duration::from_secs(300),
            give_up: Duration::from_secs(1800),
        };
        for (up, well, work, back, verdict) in [
            (10, None, Unproved, Open, Wait),
            (299, Some(290), Proved, Open, Wait),
            (310, Some(300), Proved, Open, Confirm),
            (310, Some(300), Unproved, Open, Wait),
            (310, Some(10), Proved, Open, Wait),
            (310, None, Proved, Open, Wait),
            (1800, None, Unproved, Open, nothing),
            (1800, Some(1790), Unproved, Open, nothing),
            (1800, None, Proved, Open, unwell),
            (1800, Some(299), Proved, Open, unwell),
            (9999, Some(300), Proved, Open, Confirm),
            (9999, None, Unproved, Shut, Wait),
            (9999, Some(10), Proved, Shut, Wait),
            (9999, Some(300), Proved, Shut, Confirm),
            (299, None, Unconfigured, Open, Wait),
            (300, None, Unconfigured, Open, Confirm),
            (9999, None, Unconfigured, Shut, Confirm),
        ] {
            let seen = Seen {
                up: Duration::from_secs(up),
                well: well.map(Duration::from_secs),
                work,
                back,
            };
            assert_eq!(judge(&limits, &seen), verdict, "{seen:?}");
        }
    }
}
