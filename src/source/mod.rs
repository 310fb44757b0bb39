//! Bytes in: WAL and base backups from PostgreSQL.

pub mod archive;
pub mod chunks;
pub mod fetch;
mod header;
mod main_object;
mod manifest;
mod members;
pub mod probe;
pub mod receive;
mod sorter;
pub mod stream;

use std::time::Instant;

use machine::Lsn;

use crate::pg::connection::{Connection, Mode};
use crate::pg::conninfo::Conninfo;
use crate::pg::fault::{Answer, SqlState};

/// A connection for SQL. A node that names no database is asked for `postgres` where none has the
/// user's name: a replication user seldom owns a database.
pub async fn plain(info: &Conninfo, deadline: Instant) -> Answer<Connection> {
    match Connection::connect(info, Mode::Plain, deadline).await {
        Err(fault) if fault.is(SqlState::NO_SUCH_DATABASE) && info.dbname == info.user => {
            let info = Conninfo {
                dbname: "postgres".into(),
                ..info.clone()
            };
            Connection::connect(&info, Mode::Plain, deadline).await
        }
        other => other,
    }
}

/// Where a recovery would begin now: by its last checkpoint, or as a standby its restart point.
async fn redo(info: &Conninfo, deadline: Instant) -> Answer<Lsn> {
    let mut plain = plain(info, deadline).await?;
    let sql = "SELECT redo_lsn FROM pg_catalog.pg_control_checkpoint()";
    let rows = plain.simple_query(sql, deadline).await?;
    let redo = rows.first().and_then(|row| row.parse(0));
    let redo = redo.ok_or_else(|| plain.violation("the answer to pg_control_checkpoint"))?;
    let _ = plain.close(deadline).await;
    Ok(redo)
}

/// Asks a primary to finish its current WAL segment; answers where it stood.
pub fn switch_wal(info: &Conninfo, deadline: Instant) -> crate::failure::Outcome<machine::Lsn> {
    smol::block_on(async {
        let mut plain = plain(info, deadline).await?;
        let rows = plain
            .simple_query("SELECT pg_catalog.pg_switch_wal()", deadline)
            .await;
        let rows = rows.map_err(|fault| match fault.failure.class {
            machine::Class::Denied => {
                fault.hint("grant execute on function pg_switch_wal to the backup user")
            }
            _ => fault,
        })?;
        let at = rows.first().and_then(|row| row.parse(0));
        at.ok_or_else(|| plain.violation("the answer to pg_switch_wal"))
    })
    .map_err(|fault: crate::pg::fault::Fault| fault.failure)
}
