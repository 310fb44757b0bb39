//! The pure core: every judgement the product makes, and no effect.
//!
//! No files, sockets, threads, clocks, randomness or configuration: the crate is `no_std` with
//! serde as its only dependency, so the compiler keeps the wall. Time, identifiers and policy come
//! in as arguments; the same events and the same `now` give the same answers.

#![no_std]
#![warn(missing_debug_implementations)]
#![deny(clippy::expect_used, clippy::wildcard_enum_match_arm)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod class;
pub mod wal;

pub use class::Class;
pub use wal::{Lsn, Segment, SegmentSize, Timeline};
