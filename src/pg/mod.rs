//! Speaking PostgreSQL: connection strings, authentication, TLS, the replication protocol.
//!
//! Reading order: `conninfo` (what to connect to; `conntext` and `passfile` feed it), `connection`
//! (start-up, queries; with `input`, `auth`, `tls` and `fault`), then the two uses of a
//! connection: `replication` (the WAL stream) and `basebackup`. `files` reads what PostgreSQL
//! writes: WAL page headers, backup_label, timeline history.
//!
//! Everything here is async over smol's reactor, takes its deadlines as arguments, and hands data
//! on as slices of the connection's buffer: no copy and no allocation per message.

mod auth;
pub mod basebackup;
pub mod connection;
pub mod conninfo;
mod conntext;
pub mod fault;
pub mod files;
mod input;
pub mod passfile;
pub mod replication;
mod tls;

pub use connection::{Connection, Mode};
pub use conninfo::Conninfo;
pub use fault::{Answer, Fault};
