//! PGHoard, the PostgreSQL backup appliance.

pub mod codec;
pub mod config;
pub mod durable;
pub mod failure;
pub mod pg;
pub mod store;

pub use failure::{Failure, Outcome};
