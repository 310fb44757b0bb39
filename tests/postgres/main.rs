//! Real PostgreSQL servers, 13 to 18: what the product does to them and for them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected has failed"
)]

mod ahead;
mod archive;
mod bad_input;
mod check;
mod commands;
mod compat;
mod crash;
mod hold;
mod holes;
mod http;
mod life;
mod load;
mod login;
mod long_log;
mod matrix;
mod metrics;
mod restore;
mod shutdown;
mod sites;
mod standby;
mod stores;
mod support_check;
mod take;
mod trouble;
mod whole;
mod wire;

#[path = "../support/mod.rs"]
mod support;
