//! What the log adds up to. Each projection folds its events and answers its questions; `apply`
//! never fails and never panics, whatever the order of events.

pub mod attempts;
pub mod backups;
pub mod clock;
pub mod exposure;
pub mod holes;
pub mod ledger;
pub mod marks;
pub mod scrub;
pub mod servers;
pub mod tally;
pub mod timelines;
