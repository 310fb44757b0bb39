//! WAL that a server keeps while a backup begins, for a site whose stream has no slot.
//!
//! A backup begins with a switch of the segment and a checkpoint, which removes what is older, also
//! what is on its way to us: on an idle server the zeros at the end of a segment. A temporary slot
//! of a connection of its own keeps it until the stream is beyond, no longer: whoever names no slot
//! does not want the server to wait for us.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use machine::Lsn;

use super::{Request, same_server};
use crate::pg::{Answer, Connection, Conninfo, Mode, replication};

pub(super) struct Held<'a> {
    /// The slot goes with it.
    _connection: Connection,
    reached: &'a AtomicU64,
}

impl<'a> Held<'a> {
    /// Nothing, and a warning, where `server` does not do it: the backup itself needs no older WAL.
    pub(super) async fn hold(
        request: &Request<'_>,
        server: &str,
        reached: &'a AtomicU64,
    ) -> Option<Held<'a>> {
        let info = same_server(request.conninfo, server);
        let deadline = Instant::now() + request.patience.connect;
        match slot(&info, deadline).await {
            Ok(connection) => Some(Held {
                _connection: connection,
                reached,
            }),
            Err(fault) => {
                log::warn!(
                    "the checkpoint of backup {} may remove WAL before it is received, no slot \
                     keeps it: {}",
                    request.backup,
                    fault.failure
                );
                None
            }
        }
    }

    /// The stream has all that the checkpoint of a backup from `start` on has removed.
    pub(super) fn is_past(&self, start: Lsn) -> bool {
        self.reached.load(Ordering::SeqCst) >= start.0
    }
}

async fn slot(info: &Conninfo, deadline: Instant) -> Answer<Connection> {
    let mut connection = Connection::connect(info, Mode::Physical, deadline).await?;
    replication::hold_wal(&mut connection, deadline).await?;
    Ok(connection)
}
