//! PGHoard, the PostgreSQL backup appliance.

pub mod clock;
pub mod codec;
pub mod config;
pub mod daemon;
pub mod durable;
pub mod failure;
pub mod journal;
pub mod pg;
pub mod report;
pub mod restore;
pub mod source;
pub mod spool;
pub mod store;
pub mod tool;
pub mod work;

pub use failure::{Failure, Outcome};
