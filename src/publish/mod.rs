//! State to what others see: alert files, the state file, metrics.
//!
//! Level-triggered as everything else: each call makes the files equal to the state it is given,
//! whatever they were before, and writes nothing that is already so.
//!
//! - [`alerts`]: the folder of alert files.
//! - [`stats`]: the state file with PGHoard's keys.
//! - [`facts`]: our own part of it, pure.
//! - [`holes`]: what a restore would miss.
//! - [`metrics`]: numbers for those who watch.
//! - [`story`]: each event in a few words.
//! - [`text`]: times and sizes as text.

pub mod alerts;
pub mod facts;
pub mod holes;
pub mod metrics;
pub mod stats;
pub mod story;
#[cfg(test)]
pub(crate) mod testing;
pub mod text;
