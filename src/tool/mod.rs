//! One file a command.

pub mod create_keys;
pub mod pghoard;
