//! One interface's DHCPv4 client (RFC 2131, section 4.4), without sockets and without a clock.
//!
//! It is told the time, the carrier and what was heard, and answers what to ask. Absent are the
//! probe for an address that somebody else uses (the server's task, mostly done), INFORM, RELEASE
//! (a machine that is off does not mind its address), and a lease that outlives a reboot.

use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::lease::{Answer, Ask, Lease, Question, Times};
use super::settings::Mac;

pub struct Client {
    mac: Mac,
    hostname: String,
    state: State,
    xid: u32,
    /// Questions since the state began.
    tries: u32,
    /// Refusals since the last lease.
    refusals: u32,
    began: Instant,
    /// When the last question went out: a lease counts from there.
    asked: Instant,
    due: Option<Instant>,
    held: Option<Held>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub lease: Lease,
    pub since: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// No carrier. A lease is kept until it ends.
    Off,
    Selecting,
    Requesting(Lease),
    Rebooting,
    Bound,
    Renewing,
    Rebinding,
}

/// What a turn asks, and whom: everybody, or the server that gave the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    pub question: Question<'a>,
    pub to: Ipv4Addr,
}

/// What an answer changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    Nothing,
    /// Another address than before.
    Leased,
    /// The one before, for longer; what comes with it may be new.
    Extended,
    /// The server wants the address back, or does not know it.
    Refused,
}

impl Client {
    pub fn new(mac: Mac, hostname: &str, now: Instant) -> Client {
        Client {
            mac,
            hostname: hostname.to_owned(),
            state: State::Off,
            xid: random(),
            tries: 0,
            refusals: 0,
            began: now,
            asked: now,
            due: None,
            held: None,
        }
    }

    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// The moment after which [`Client::turn`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    pub fn xid(&self) -> u32 {
        self.xid
    }

    pub fn mac(&self) -> Mac {
        self.mac
    }

    pub fn state(&self) -> &'static str {
        match self.state {
            State::Off => "no carrier",
            State::Selecting => "looking for a server",
            State::Requesting(_) => "taking an offer",
            State::Rebooting => "asking for the same address",
            State::Bound => "bound",
            State::Renewing => "renewing",
            State::Rebinding => "looking for another server",
        }
    }

    pub fn carrier(&mut self, present: bool, now: Instant) {
        match (present, &self.state, &self.held) {
            (true, State::Off, Some(_)) => self.enter(State::Rebooting, now),
            (true, State::Off, None) => self.enter(State::Selecting, now),
            (true, _, _) | (false, State::Off, _) => {}
            (false, _, held) => {
                self.due = held.as_ref().and_then(Held::end);
                self.state = State::Off;
            }
        }
    }

    /// The name to be known by from the next question on.
    pub fn rename(&mut self, hostname: &str) {
        hostname.clone_into(&mut self.hostname);
    }

    /// Asks now, whatever was to be waited for.
    pub fn renew(&mut self, now: Instant) {
        match self.state {
            State::Off => {}
            State::Bound | State::Renewing | State::Rebinding => self.enter(State::Renewing, now),
            State::Selecting | State::Requesting(_) | State::Rebooting => {
                self.enter(State::Selecting, now);
            }
        }
    }

    /// What is due at `now`: a lease that ended is gone after it, and at most one question leaves.
    pub fn turn(&mut self, now: Instant) -> Option<Call<'_>> {
        if self.due.is_none_or(|due| due > now) {
            return None;
        }
        let end = self.held.as_ref().and_then(Held::end);
        if end.is_some_and(|end| end <= now) {
            self.held = None;
            if self.state == State::Off {
                self.due = None;
                return None;
            }
            if !matches!(self.state, State::Selecting | State::Requesting(_)) {
                self.enter(State::Selecting, now);
            }
        }
        self.advance(now);
        let (ask, to) = self.question()?;
        self.tries += 1;
        self.asked = now;
        let wait = self.wait(now);
        let end = self.held.as_ref().and_then(Held::end);
        self.due = Some(end.map_or(now + wait, |end| end.min(now + wait)));
        let waited = now.saturating_duration_since(self.began).as_secs();
        let question = Question {
            ask,
            xid: self.xid,
            mac: self.mac,
            hostname: &self.hostname,
            seconds: u16::try_from(waited).unwrap_or(u16::MAX),
        };
        Some(Call { question, to })
    }

    /// States that time alone ends.
    fn advance(&mut self, now: Instant) {
        let rebinds = self.held.as_ref().and_then(Held::rebind);
        match self.state {
            State::Requesting(_) if self.tries >= REQUESTS_MAX => {
                self.enter(State::Selecting, now);
            }
            State::Rebooting if self.tries >= REBOOTS_MAX => self.enter(State::Selecting, now),
            State::Bound => self.enter(State::Renewing, now),
            State::Renewing if self.tries > 0 && rebinds.is_some_and(|at| at <= now) => {
                self.enter(State::Rebinding, now);
            }
            State::Off
            | State::Selecting
            | State::Requesting(_)
            | State::Rebooting
            | State::Renewing
            | State::Rebinding => {}
        }
    }

    fn question(&self) -> Option<(Ask, Ipv4Addr)> {
        let held = self.held.as_ref().map(|held| &held.lease);
        let all = Ipv4Addr::BROADCAST;
        match (&self.state, held) {
            (State::Selecting, _) => Some((Ask::Discover, all)),
            (State::Requesting(offer), _) => {
                let (ip, server) = (offer.ip, offer.server);
                Some((Ask::Take { ip, server }, all))
            }
            (State::Rebooting, Some(lease)) => Some((Ask::Again { ip: lease.ip }, all)),
            (State::Renewing, Some(lease)) => Some((Ask::Extend { ip: lease.ip }, lease.server)),
            (State::Rebinding, Some(lease)) => Some((Ask::Extend { ip: lease.ip }, all)),
            (State::Rebooting | State::Renewing | State::Rebinding, None) => {
                Some((Ask::Discover, all))
            }
            (State::Off | State::Bound, _) => None,
        }
    }

    fn wait(&self, now: Instant) -> Duration {
        let held = self.held.as_ref();
        let half = |until: Option<Instant>| {
            let left = until.map_or(EXTEND_MIN, |at| at.saturating_duration_since(now));
            // RFC 2131 section 4.4.5.
            (left / 2).max(EXTEND_MIN).min(left.max(SECOND))
        };
        match self.state {
            State::Renewing => half(held.and_then(Held::rebind)),
            State::Rebinding => half(held.and_then(Held::end)),
            State::Off
            | State::Selecting
            | State::Requesting(_)
            | State::Rebooting
            | State::Bound => backoff(self.tries),
        }
    }

    pub fn heard(&mut self, answer: Answer, now: Instant) -> News {
        match (answer, &self.state) {
            (Answer::Offer(lease), State::Selecting) => {
                self.state = State::Requesting(lease);
                self.tries = 0;
                self.due = Some(now);
                News::Nothing
            }
            (
                Answer::Ack(lease),
                State::Requesting(_) | State::Rebooting | State::Renewing | State::Rebinding,
            ) => self.bind(lease),
            (Answer::Nak { server }, State::Requesting(offer)) => {
                // Another server's word on another server's offer.
                match server.is_none_or(|server| server == offer.server) {
                    true => self.refuse(now),
                    false => News::Nothing,
                }
            }
            (Answer::Nak { .. }, State::Rebooting | State::Renewing | State::Rebinding) => {
                self.refuse(now)
            }
            (Answer::Offer(_) | Answer::Ack(_) | Answer::Nak { .. }, _) => News::Nothing,
        }
    }

    fn bind(&mut self, lease: Lease) -> News {
        let held = Held {
            lease,
            since: self.asked,
        };
        let address = |held: &Held| held.lease.address();
        let same = self.held.as_ref().map(address) == Some(address(&held));
        self.due = held.renew();
        self.held = Some(held);
        self.state = State::Bound;
        self.tries = 0;
        self.refusals = 0;
        if same { News::Extended } else { News::Leased }
    }

    fn refuse(&mut self, now: Instant) -> News {
        self.held = None;
        self.enter(State::Selecting, now);
        self.refusals += 1;
        self.due = Some(now + backoff(self.refusals));
        News::Refused
    }

    fn enter(&mut self, state: State, now: Instant) {
        self.state = state;
        self.xid = random();
        self.tries = 0;
        self.began = now;
        self.due = Some(now);
    }
}

impl Held {
    pub fn renew(&self) -> Option<Instant> {
        self.at(|renew, _, _| renew)
    }

    pub fn rebind(&self) -> Option<Instant> {
        self.at(|_, rebind, _| rebind)
    }

    pub fn end(&self) -> Option<Instant> {
        self.at(|_, _, end| end)
    }

    fn at(&self, pick: fn(Duration, Duration, Duration) -> Duration) -> Option<Instant> {
        match self.lease.times {
            Times::Forever => None,
            Times::Until { renew, rebind, end } => Some(self.since + pick(renew, rebind, end)),
        }
    }
}

/// RFC 2131 section 4.1, beginning sooner: a machine that starts has people waiting.
fn backoff(tries: u32) -> Duration {
    let whole = SECOND * 2_u32.pow(tries.saturating_sub(1).min(BACKOFF_POWER_MAX));
    whole + SECOND * (random() % 1000) / 2000
}

/// Good enough for numbers and moments that should differ from a neighbour's, and it never waits:
/// early at boot the kernel's own random numbers may not have begun, for minutes.
pub fn random() -> u32 {
    let number = RandomState::new().hash_one(0);
    u32::try_from(number >> 32).unwrap_or(0)
}

const SECOND: Duration = Duration::from_secs(1);
/// 64 s and a bit between two questions at most.
const BACKOFF_POWER_MAX: u32 = 6;
/// A server that offers and then says no more is left after this many (7 s).
const REQUESTS_MAX: u32 = 3;
/// The old network may be another one now (3 s).
const REBOOTS_MAX: u32 = 2;
const EXTEND_MIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn lease(last: u8, times: (u64, u64, u64)) -> Lease {
        let seconds = Duration::from_secs;
        Lease {
            ip: Ipv4Addr::new(10, 0, 0, last),
            prefix: 24,
            server: Ipv4Addr::new(10, 0, 0, 1),
            routes: Vec::new(),
            dns: Vec::new(),
            search: Vec::new(),
            time_servers: Vec::new(),
            mtu: None,
            times: Times::Until {
                renew: seconds(times.0),
                rebind: seconds(times.1),
                end: seconds(times.2),
            },
        }
    }

    /// A client with its time, which only it makes pass.
    struct Bench {
        client: Client,
        start: Instant,
        now: Instant,
    }

    impl Bench {
        fn new() -> Bench {
            let now = Instant::now();
            let mut client = Client::new(MAC, "backup", now);
            client.carrier(true, now);
            let start = now;
            Bench { client, start, now }
        }

        /// Goes to when the client wants something, and says when that was and what it asked.
        fn next(&mut self) -> (u64, Option<(Ask, bool)>) {
            self.now = self.now.max(self.client.due().unwrap());
            let call = self.client.turn(self.now);
            let asked = call.map(|call| (call.question.ask, call.to.is_broadcast()));
            ((self.now - self.start).as_secs(), asked)
        }

        fn hears(&mut self, answer: Answer) -> News {
            self.client.heard(answer, self.now)
        }

        fn bound(times: (u64, u64, u64)) -> Bench {
            let mut bench = Bench::new();
            bench.next();
            bench.hears(Answer::Offer(lease(5, times)));
            bench.next();
            assert_eq!(bench.hears(Answer::Ack(lease(5, times))), News::Leased);
            bench
        }

        fn asks(&mut self) -> Ask {
            self.next().1.unwrap().0
        }
    }

    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const NAK: Answer = Answer::Nak { server: None };

    #[test]
    fn without_carrier_nothing_is_asked() {
        let now = Instant::now();
        let mut client = Client::new(MAC, "", now);
        assert_eq!(client.turn(now), None);
        client.renew(now);
        assert_eq!(client.turn(now), None);
        assert_eq!(client.due(), None);
    }

    #[test]
    fn the_first_offer_is_taken() {
        let mut bench = Bench::new();
        assert_eq!(bench.next(), (0, Some((Ask::Discover, true))));
        assert_eq!(bench.hears(Answer::Ack(lease(9, (1, 2, 3)))), News::Nothing);
        bench.hears(Answer::Offer(lease(5, (100, 200, 300))));
        bench.hears(Answer::Offer(lease(6, (100, 200, 300))));
        let take = Ask::Take {
            ip: IP,
            server: SERVER,
        };
        assert_eq!(bench.next(), (0, Some((take, true))));
        assert_eq!(
            bench.hears(Answer::Ack(lease(5, (100, 200, 300)))),
            News::Leased
        );
        assert_eq!(bench.client.held().unwrap().lease.ip, IP);
    }

    #[test]
    fn silence_is_asked_less_and_less_often() {
        let mut bench = Bench::new();
        let whole: Vec<u64> = (0..9).map(|_| bench.next().0).collect();
        let least = [0, 1, 3, 7, 15, 31, 63, 127, 191];
        for (at, least) in whole.iter().zip(least) {
            assert!((least..=least + 5).contains(at), "{whole:?}");
        }
    }

    #[test]
    fn an_offer_that_leads_nowhere_is_left() {
        let mut bench = Bench::new();
        bench.next();
        bench.hears(Answer::Offer(lease(5, (1, 2, 3))));
        let asked: Vec<bool> = (0..4).map(|_| bench.asks() == Ask::Discover).collect();
        assert_eq!(asked, [false, false, false, true]);
    }

    #[test]
    fn a_lease_is_renewed_then_rebound_then_gone() {
        let mut bench = Bench::bound((100, 400, 600));
        let extend = Ask::Extend { ip: IP };
        assert_eq!(bench.next(), (100, Some((extend, false))));
        assert_eq!(
            bench.hears(Answer::Ack(lease(5, (100, 400, 600)))),
            News::Extended
        );
        assert_eq!(bench.next(), (200, Some((extend, false))));
        assert_eq!(bench.next(), (350, Some((extend, false))));
        assert_eq!(bench.next(), (425, Some((extend, false))));
        assert_eq!(bench.next(), (485, Some((extend, false))));
        assert_eq!(bench.next(), (500, Some((extend, true))));
        assert_eq!(bench.next(), (600, Some((extend, true))));
        assert_eq!(bench.next(), (660, Some((extend, true))));
        assert!(bench.client.held().is_some());
        assert_eq!(bench.next(), (700, Some((Ask::Discover, true))));
        assert!(bench.client.held().is_none());
    }

    #[test]
    fn a_lease_that_changes_is_news() {
        let mut bench = Bench::bound((100, 400, 600));
        bench.next();
        assert_eq!(
            bench.hears(Answer::Ack(lease(6, (100, 400, 600)))),
            News::Leased
        );
    }

    #[test]
    fn a_refusal_ends_the_lease_and_is_not_asked_for_at_once() {
        let mut bench = Bench::bound((100, 400, 600));
        bench.next();
        assert_eq!(bench.hears(NAK), News::Refused);
        assert!(bench.client.held().is_none());
        let mut before = 100;
        for wait in [1, 2, 4] {
            let (at, asked) = bench.next();
            assert_eq!(asked, Some((Ask::Discover, true)));
            assert!(at >= before + wait, "{at} {before} {wait}");
            bench.hears(Answer::Offer(lease(5, (100, 400, 600))));
            before = bench.next().0;
            let stranger = Some(Ipv4Addr::new(10, 0, 0, 66));
            assert_eq!(bench.hears(Answer::Nak { server: stranger }), News::Nothing);
            assert_eq!(bench.hears(NAK), News::Refused);
        }
    }

    #[test]
    fn a_cable_that_comes_back_asks_for_the_same_address() {
        let mut bench = Bench::bound((100, 400, 600));
        bench.client.carrier(false, bench.now);
        assert!(bench.client.held().is_some());
        bench.client.carrier(true, bench.now);
        let again = Ask::Again { ip: IP };
        assert_eq!(bench.asks(), again);
        assert_eq!(
            bench.hears(Answer::Ack(lease(5, (100, 400, 600)))),
            News::Extended
        );
        bench.client.carrier(false, bench.now);
        bench.client.carrier(true, bench.now);
        let asked: Vec<Ask> = (0..3).map(|_| bench.asks()).collect();
        assert_eq!(asked, [again, again, Ask::Discover]);
        assert!(
            bench.client.held().is_some(),
            "until it ends or another comes"
        );
    }

    #[test]
    fn a_lease_ends_without_a_cable_too() {
        let mut bench = Bench::bound((100, 400, 600));
        bench.client.carrier(false, bench.now);
        assert_eq!(bench.next(), (600, None));
        assert!(bench.client.held().is_none());
        assert_eq!(bench.client.due(), None);
    }

    #[test]
    fn an_address_whose_time_is_over_is_not_asked_for_again() {
        let mut bench = Bench::bound((100, 400, 600));
        bench.client.carrier(false, bench.now);
        bench.now += Duration::from_secs(700);
        bench.client.carrier(true, bench.now);
        assert_eq!(bench.asks(), Ask::Discover);
        assert!(bench.client.held().is_none());
        bench.hears(Answer::Offer(lease(6, (100, 400, 600))));
        assert!(matches!(bench.asks(), Ask::Take { .. }));
    }

    #[test]
    fn a_person_renews_at_once() {
        let mut bench = Bench::bound((100, 400, 600));
        bench.client.renew(bench.now);
        assert_eq!(bench.next(), (0, Some((Ask::Extend { ip: IP }, false))));
    }

    #[test]
    fn a_lease_for_ever_is_asked_for_no_more() {
        let mut bench = Bench::new();
        bench.next();
        let mut forever = lease(5, (1, 2, 3));
        forever.times = Times::Forever;
        bench.hears(Answer::Offer(forever.clone()));
        bench.next();
        bench.hears(Answer::Ack(forever));
        assert_eq!(bench.client.due(), None);
    }
}
