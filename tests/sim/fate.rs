//! One seed: the dice, the mix of faults it drew, and the fuse that kills the process in the
//! middle of whatever it does.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// Everything that can go wrong, with its rate in a thousand where it is rare and where it is the
/// seed's own subject. Per turn or per operation, as the name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    TurnCrash,
    /// The process dies after a few more operations on disk, log or store.
    TurnFuse,
    /// A crash that takes the power with it.
    CrashCutsPower,
    RestartLosesLog,
    LogOperation,
    DiskOperation,
    StoreBefore,
    StoreAfter,
    TurnLosesObject,
    TurnClockJump,
    TurnServerDown,
    TurnPromotion,
    TurnRecycle,
    TurnRollback,
    TakeStep,
    TaskStart,
    TurnCorruptsObject,
}

const FAULTS: [(Fault, u64, u64); 17] = [
    (Fault::TurnCrash, 8, 120),
    (Fault::TurnFuse, 8, 150),
    (Fault::CrashCutsPower, 300, 1000),
    (Fault::RestartLosesLog, 60, 500),
    (Fault::LogOperation, 1, 12),
    (Fault::DiskOperation, 4, 60),
    (Fault::StoreBefore, 15, 250),
    (Fault::StoreAfter, 15, 250),
    (Fault::TurnLosesObject, 2, 40),
    (Fault::TurnClockJump, 2, 30),
    (Fault::TurnServerDown, 4, 50),
    (Fault::TurnPromotion, 3, 25),
    (Fault::TurnRecycle, 10, 250),
    (Fault::TurnRollback, 0, 8),
    (Fault::TakeStep, 10, 150),
    (Fault::TaskStart, 1, 30),
    (Fault::TurnCorruptsObject, 2, 40),
];

/// Small and ours, so that a seed means the same for ever.
struct Dice(u64);

impl Dice {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

struct Inner {
    dice: Dice,
    rates: Vec<(Fault, u64)>,
    calm: bool,
    fuse: Option<u64>,
    dead: bool,
    violation: Option<String>,
    trace: bool,
    digest: u64,
}

/// Shared by everything in one simulated world.
#[derive(Clone)]
pub struct Fate(Arc<Mutex<Inner>>);

impl fmt::Debug for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fate")
    }
}

impl Fate {
    pub fn new(seed: u64, trace: bool) -> Fate {
        let mut dice = Dice(seed.wrapping_mul(0x2545_F491_4F6C_DD1D));
        let rates = mix(&mut dice);
        Fate(Arc::new(Mutex::new(Inner {
            dice,
            rates,
            calm: false,
            fuse: None,
            dead: false,
            violation: None,
            trace,
            digest: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub fn below(&self, n: u64) -> u64 {
        self.lock().dice.below(n)
    }

    pub fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub fn chance(&self, in_thousand: u64) -> bool {
        self.below(1000) < in_thousand
    }

    pub fn strikes(&self, fault: Fault) -> bool {
        let mut inner = self.lock();
        let rate = inner.rates.iter().find(|(f, _)| *f == fault);
        let rate = rate.map_or(0, |(_, rate)| *rate);
        rate > 0 && !inner.calm && inner.dice.below(1000) < rate
    }

    /// Whether this seed ever does that.
    pub fn may(&self, fault: Fault) -> bool {
        self.lock().rates.iter().any(|(f, r)| *f == fault && *r > 0)
    }

    /// No faults from here on.
    pub fn calm(&self) {
        let mut inner = self.lock();
        (inner.calm, inner.fuse) = (true, None);
    }

    pub fn is_calm(&self) -> bool {
        self.lock().calm
    }

    pub fn light_fuse(&self, operations: u64) {
        self.lock().fuse = Some(operations);
    }

    /// Called before and after every effect: the process may have died right here.
    pub fn burn(&self) -> io::Result<()> {
        let mut inner = self.lock();
        if let Some(left) = inner.fuse {
            (inner.dead, inner.fuse) = match left {
                0 => (true, None),
                left => (inner.dead, Some(left - 1)),
            };
        }
        if inner.dead {
            return Err(io::Error::other("the process is dead"));
        }
        Ok(())
    }

    pub fn dead(&self) -> bool {
        self.lock().dead
    }

    pub fn revive(&self) {
        let mut inner = self.lock();
        (inner.dead, inner.fuse) = (false, None);
    }

    /// An invariant does not hold. The first one counts.
    pub fn violated(&self, what: impl Into<String>) {
        let what = what.into();
        self.say(|| format!("VIOLATED {what}"));
        self.lock().violation.get_or_insert(what);
    }

    pub fn violation(&self) -> Option<String> {
        self.lock().violation.clone()
    }

    /// One line of the trace; the digest over all of them shows whether a seed repeats itself.
    pub fn say(&self, line: impl FnOnce() -> String) {
        if !self.lock().trace {
            return;
        }
        let line = line();
        let mut inner = self.lock();
        for byte in line.bytes() {
            inner.digest = (inner.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
        eprintln!("{line}");
    }

    pub fn mix(&self) -> String {
        let inner = self.lock();
        let names = inner.rates.iter().filter(|(_, rate)| *rate > 0);
        let names: Vec<_> = names.map(|(f, rate)| format!("{f:?}={rate}")).collect();
        names.join(" ")
    }
}

/// Many seeds with one to three faults at a high rate, some with all of them, some with none: so
/// rare conjunctions are common somewhere.
fn mix(dice: &mut Dice) -> Vec<(Fault, u64)> {
    let kind = dice.below(16);
    let all = |high: bool| {
        FAULTS
            .map(|(f, l, h)| (f, if high { h / 2 } else { l }))
            .to_vec()
    };
    match kind {
        0 => Vec::new(),
        1..=3 => all(false),
        4 => all(true),
        _ => {
            let mut rates = if kind < 8 { all(false) } else { Vec::new() };
            for _ in 0..=dice.below(4) {
                let place = usize::try_from(dice.below(17)).unwrap();
                let (fault, _, high) = FAULTS[place];
                rates.retain(|(f, _)| *f != fault);
                rates.push((fault, high));
            }
            // What only shapes a crash needs crashes.
            let shapes = [Fault::CrashCutsPower, Fault::RestartLosesLog];
            if rates.iter().any(|(f, _)| shapes.contains(f)) {
                rates.retain(|(f, _)| *f != Fault::TurnFuse);
                rates.push((
                    Fault::TurnFuse,
                    [12, 60][usize::try_from(dice.below(2)).unwrap()],
                ));
            }
            rates
        }
    }
}
