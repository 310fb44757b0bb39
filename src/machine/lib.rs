//! The pure core: every judgement the product makes, and no effect.
//!
//! No files, sockets, threads, clocks, randomness or configuration: the crate is `no_std` with
//! serde as its only dependency, so the compiler keeps the wall. Time, identifiers and policy come
//! in as arguments; the same events and the same `now` give the same answers.
//!
//! Read [`event`] for everything that can happen, [`decide`] for everything we ever do.

#![no_std]
#![warn(missing_debug_implementations)]
#![deny(clippy::expect_used)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod breaks;
mod class;
pub mod decide;
pub mod event;
pub mod file;
pub mod policy;
pub mod projection;
pub mod rule;
pub mod runs;
pub mod state;
pub mod task;
#[cfg(test)]
mod testing;
pub mod wal;

pub use class::Class;
pub use event::{Envelope, Event, Millis};
pub use file::{BackupName, File, Site};
pub use state::{SiteState, State};
pub use task::{Command, Task, TaskId};
pub use wal::{Lsn, Segment, SegmentSize, Timeline};
