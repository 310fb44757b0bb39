//! One file a command.

pub mod create_keys;
mod http;
pub mod pghoard;
pub mod postgres_command;
pub mod restore;
