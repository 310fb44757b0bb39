//! One file a command.

pub mod create_keys;
pub mod pghoard;
mod http;
pub mod postgres_command;
pub mod restore;
