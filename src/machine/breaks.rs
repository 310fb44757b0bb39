//! Switches that remove one rule each, so that a test can show the simulator notices.
//!
//! A simulator that cannot fail proves nothing. Without the feature `breaks`, which only the tests
//! turn on, every rule holds and the compiler sees a constant.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A task stays busy until its closing event is committed.
    BusyUntilCommitted,
    /// The frontier only moves forward.
    FrontierForward,
    /// At start, a spool entry the log knows outranks "already stored".
    KnownEntryOutranksStored,
    /// A segment is sealed only where its name is free.
    SealExclusive,
    /// A finished backup that lost a part is failed.
    LostPartFails,
    /// The WAL of an expired backup stays while its main object does.
    ExpiredKeepsWal,
    /// Only restorable backups count for retention.
    RestorableCounts,
    /// The main object of a dead backup is never stored.
    DeadIsDropped,
    /// A backup's main object is removed first, though it was never seen stored.
    MainRemovedBlindly,
    /// Reception goes back when a segment above the frontier is nowhere.
    ReceiverGoesBack,
    /// Nothing is destroyed, nor a backup taken, before the first reconciliation.
    ReconcileFirst,
    /// Deleting and reconciling never overlap.
    DeleteApartFromReconcile,
    /// No WAL is stored into a range that is being deleted.
    StoreApartFromDelete,
}

pub const RULES: [Rule; 13] = [
    Rule::BusyUntilCommitted,
    Rule::FrontierForward,
    Rule::KnownEntryOutranksStored,
    Rule::SealExclusive,
    Rule::LostPartFails,
    Rule::ExpiredKeepsWal,
    Rule::RestorableCounts,
    Rule::DeadIsDropped,
    Rule::MainRemovedBlindly,
    Rule::ReceiverGoesBack,
    Rule::ReconcileFirst,
    Rule::DeleteApartFromReconcile,
    Rule::StoreApartFromDelete,
];

#[cfg(not(feature = "breaks"))]
/// Every rule holds, except where the simulator's own test removes one.
pub const fn holds(_: Rule) -> bool {
    true
}

#[cfg(feature = "breaks")]
mod switch {
    use core::sync::atomic::{AtomicU8, Ordering};

    use super::{RULES, Rule};

    static BROKEN: AtomicU8 = AtomicU8::new(0);

    pub fn holds(rule: Rule) -> bool {
        let broken = BROKEN.load(Ordering::SeqCst);
        RULES.get(usize::from(broken).wrapping_sub(1)) != Some(&rule)
    }

    /// Removes one rule for the whole process, or restores all.
    pub fn break_rule(rule: Option<Rule>) {
        let place = rule.and_then(|rule| RULES.iter().position(|r| *r == rule));
        let broken = place.map_or(0, |p| u8::try_from(p).map_or(0, |p| p.wrapping_add(1)));
        BROKEN.store(broken, Ordering::SeqCst);
    }
}

#[cfg(feature = "breaks")]
pub use switch::{break_rule, holds};
