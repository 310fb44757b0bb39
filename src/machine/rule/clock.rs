//! Is our clock to be trusted? While it is not, nothing may expire by age (I15, S-76).

use alloc::format;
use alloc::string::String;

use crate::event::Millis;
use crate::policy::Policy;
use crate::projection::clock::{AGREES_MS, Clock};
use crate::state::SiteState;

/// So far off, age means nothing.
const DOUBT_MS: u64 = 3_600_000;

/// Since when the clock is in doubt, and why.
pub fn doubtful(clock: &Clock, site: &SiteState, policy: &Policy) -> Option<(Millis, String)> {
    let lost = unsynchronised(clock, policy).or_else(|| jumped(clock));
    lost.or_else(|| skewed(clock, site))
}

/// Whether nothing may go by age: the clock is in doubt, or no server of the site was heard since
/// the start. A log that was lost knows nothing of a jump before it, and a site whose servers are
/// silent needs its backups more than ever.
pub fn uncertain(clock: &Clock, site: &SiteState, policy: &Policy, nodes: u32) -> bool {
    let heard = || site.servers.nodes.values().any(|node| node.seen.is_some());
    (nodes > 0 && !heard()) || doubtful(clock, site, policy).is_some()
}

/// Whoever sets the clock says that it is not set, and no person has vouched for it since.
pub fn unsynchronised(clock: &Clock, policy: &Policy) -> Option<(Millis, String)> {
    let (since, why) = policy.unsynchronised.as_ref()?;
    let vouched = clock.vouched_at.is_some_and(|at| at >= *since);
    (!vouched).then(|| (*since, format!("the clock is not synchronised: {why}")))
}

/// The clock moved far, and no server has agreed with it since.
pub fn jumped(clock: &Clock) -> Option<(Millis, String)> {
    let jump = clock.jumped?;
    (jump.total_ms > DOUBT_MS).then(|| {
        let why = format!(
            "this machine's clock was moved by {} and no server has agreed with it since",
            span(jump.total_ms)
        );
        (jump.since, why)
    })
}

/// A server's clock is far from ours, and no other server of the site agrees with ours.
pub fn skewed(clock: &Clock, site: &SiteState) -> Option<(Millis, String)> {
    let nodes = || site.servers.nodes.iter();
    let skew = |node: &crate::projection::servers::Node| node.seen.as_ref()?.clock_skew_ms;
    let agrees = nodes().any(|(_, node)| {
        node.lost.is_none() && skew(node).is_some_and(|ms| ms.unsigned_abs() <= AGREES_MS)
    });
    let far = nodes().find_map(|(number, node)| {
        let ms = skew(node).filter(|ms| ms.unsigned_abs() > DOUBT_MS)?;
        Some((number, ms, node.skewed_since?))
    });
    let (number, ms, since) = far.filter(|_| !agrees)?;
    if clock.vouched_at.is_some_and(|at| at >= since) {
        return None;
    }
    let side = if ms < 0 { "behind" } else { "ahead of" };
    let why = format!(
        "the clock of node {number} is {} {side} this machine's",
        span(ms.unsigned_abs())
    );
    Some((since, why))
}

/// Whole hours and minutes.
fn span(ms: u64) -> String {
    let minutes = ms / 60_000;
    format!("{} h {} min", minutes / 60, minutes % 60)
}

/// Whether a server's clock is so far from ours that it counts against ours.
pub fn far(skew_ms: Option<i64>) -> bool {
    skew_ms.is_some_and(|ms| ms.unsigned_abs() > DOUBT_MS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Envelope, Event, Previous};
    use crate::file::Site;
    use crate::state::State;
    use crate::testing::seen;

    const HOUR: i64 = 3_600_000;

    fn jump(hours: i64) -> Event {
        let by_ms = hours * HOUR;
        Event::ClockJumped { by_ms }
    }

    fn skew(node: u32, ms: i64) -> Event {
        let mut server = seen(node);
        server.clock_skew_ms = Some(ms);
        Event::ServerSeen(server)
    }

    fn plain() -> Event {
        Event::ServerSeen(seen(0))
    }

    fn lost(node: u32) -> Event {
        Event::ServerLost {
            node,
            class: crate::class::Class::Network,
            message: String::new(),
        }
    }

    fn vouched(alert: &str) -> Event {
        let alert = alert.into();
        Event::AlertAcknowledged { alert }
    }

    fn started() -> Event {
        Event::Started {
            version: String::new(),
            host: String::new(),
            previous: Previous::Clean,
            config_digest: String::new(),
        }
    }

    /// The events happen at 1, 2, ...; the answer is since when the clock is in doubt.
    fn check(events: &[Event], expect: Option<u64>) {
        check_under(&Policy::default(), events, expect);
    }

    fn check_under(policy: &Policy, events: &[Event], expect: Option<u64>) {
        let (mut state, name) = (State::default(), Site("main".into()));
        for (event, seq) in events.iter().zip(1..) {
            let everywhere = matches!(
                event,
                Event::ClockJumped { .. } | Event::AlertAcknowledged { .. } | Event::Started { .. }
            );
            state.apply(&Envelope {
                seq,
                at: Millis(seq),
                run: 1,
                site: (!everywhere).then(|| name.clone()),
                event: event.clone(),
            });
        }
        let site = state.sites.get(&name).cloned().unwrap_or_default();
        let doubt = doubtful(&state.clock, &site, policy);
        assert_eq!(doubt.map(|(since, _)| since.0), expect, "{events:?}");
    }

    #[test]
    fn s76_a_jump_or_a_servers_other_time_is_a_doubt_until_a_server_or_a_person_agrees() {
        let minute = 60_000;
        for (events, expect) in [
            (&[][..], None),
            (&[jump(1)], None),
            (&[jump(2)], Some(1)),
            (&[jump(-2)], Some(1)),
            (&[jump(1), jump(1)], Some(1)),
            // Our own time does not go back with the wall clock.
            (&[jump(72), jump(-72)], Some(1)),
            // Who agrees must have been asked after the jump.
            (&[skew(0, 0), jump(2)], Some(2)),
            (&[jump(2), skew(0, 4 * minute)], None),
            (&[jump(2), skew(0, -5 * minute)], None),
            (&[jump(2), skew(0, 6 * minute)], Some(1)),
            (&[jump(2), plain()], Some(1)),
            (&[jump(2), skew(0, 0), jump(-3)], Some(3)),
            (&[jump(2), started()], Some(1)),
            (&[jump(2), vouched(crate::projection::clock::ALERT)], None),
            (&[jump(2), vouched("wal_hole")], Some(1)),
            (&[skew(0, HOUR)], None),
            (&[skew(0, HOUR + 1)], Some(1)),
            (&[skew(0, -2 * HOUR), skew(0, -2 * HOUR)], Some(1)),
            (&[skew(0, 2 * HOUR), skew(0, 0)], None),
            (&[skew(0, 2 * HOUR), skew(0, 0), skew(0, 2 * HOUR)], Some(3)),
            // One server's battery is dead, the other agrees with us.
            (&[skew(0, 2 * HOUR), skew(1, 0)], None),
            (&[skew(0, 2 * HOUR), skew(1, 0), lost(1)], Some(1)),
            (
                &[
                    skew(0, 2 * HOUR),
                    vouched(crate::projection::clock::ALERT),
                    skew(0, 2 * HOUR),
                ],
                None,
            ),
        ] {
            check(events, expect);
        }
    }

    /// Since 2; only whoever sets it, or a person, ends that.
    #[test]
    fn s76_a_clock_that_is_not_synchronised_is_a_doubt_whatever_servers_say() {
        let policy = Policy {
            unsynchronised: Some((Millis(2), "no server answers".into())),
            ..Policy::default()
        };
        let person = || vouched(crate::projection::clock::ALERT);
        for (events, expect) in [
            (&[][..], Some(2)),
            (&[skew(0, 0), skew(0, 0), skew(1, 0)], Some(2)),
            (&[person()], Some(2)),
            (&[plain(), person()], None),
            (&[plain(), person(), skew(0, 0)], None),
            (&[plain(), person(), jump(2)], Some(3)),
            (&[plain(), plain(), vouched("wal_hole")], Some(2)),
        ] {
            check_under(&policy, events, expect);
        }
        let site = SiteState::default();
        let (_, why) = doubtful(&Clock::default(), &site, &policy).unwrap();
        assert_eq!(why, "the clock is not synchronised: no server answers");
        assert!(uncertain(&Clock::default(), &site, &policy, 0));
        assert!(!uncertain(&Clock::default(), &site, &Policy::default(), 0));
    }

    #[test]
    fn the_reason_names_the_size() {
        let clock = Clock {
            jumped: Some(crate::projection::clock::Jump {
                since: Millis(5),
                total_ms: 3 * 3_600_000 + 60_000,
            }),
            vouched_at: None,
        };
        let (since, why) = doubtful(&clock, &SiteState::default(), &Policy::default()).unwrap();
        assert_eq!(since, Millis(5));
        assert!(why.contains("moved by 3 h 1 min"), "{why}");
    }
}
