//! Pure questions over the projections, without state of their own.

pub mod alerts;
pub mod chain;
pub mod clock;
pub mod coverage;
pub mod doomed;
pub mod holes;
pub mod passed;
pub mod retention;
pub mod schedule;
pub mod scrub;
