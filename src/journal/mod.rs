//! The log and the loop: append, fold, decide, do.
//!
//! - [`encoding`]: an envelope as bytes; the only file that knows serde_cbor.
//! - [`upcast`]: old bytes to today's [`Event`](machine::Event).
//! - [`chunk`]: a stretch of the log as one piece for the stores.
//! - [`log`]: the redb table, group commit, the digest chain.
//! - [`run`]: the loop; the `World` it acts through.
//! - [`start`]: what a start does before the first turn: scan the spool, adopt.

pub mod chunk;
pub mod encoding;
pub mod log;
pub mod run;
pub mod start;
pub mod upcast;
