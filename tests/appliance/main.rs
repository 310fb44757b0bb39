//! The appliance's image in a virtual machine: what a person at its console and a PostgreSQL beside
//! it live through.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    reason = "a test that meets the unexpected has failed"
)]

mod cuts;
mod drive;
mod hardware;
mod image;
mod life;
mod machine;
mod rebirth;
mod restored;
mod site;
mod start;
mod update;

#[path = "../support/mod.rs"]
mod support;
