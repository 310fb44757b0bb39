//! A look at a server: who it is, where it stands, which histories it knows.
//!
//! Reads only. The histories of its timelines are spooled where neither spool nor store has them,
//! at every look (S-24): a missing one silently ends a later recovery on the old timeline.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use machine::event::{Branch, Origin, Server};
use machine::{Event, File, Timeline};

use crate::failure::Outcome;
use crate::pg::connection::{Connection, Mode};
use crate::pg::conninfo::Conninfo;
use crate::pg::fault::Answer;
use crate::pg::files::{Ancestor, History};
use crate::pg::replication;
use crate::spool::{Sealed, Spool};

const DEADLINE: Duration = Duration::from_secs(20);

pub struct Probe<'a> {
    pub node: u32,
    pub info: &'a Conninfo,
    pub spool: &'a Spool,
    /// Histories in spool or store.
    pub held: BTreeSet<Timeline>,
    pub entries: &'a AtomicU64,
}

impl Probe<'_> {
    /// The facts, the last of them `ServerSeen`; or `ServerLost` alone.
    pub fn run(self) -> Vec<Event> {
        let node = self.node;
        smol::block_on(self.look()).unwrap_or_else(|failure| {
            let message = failure.to_string();
            vec![Event::ServerLost {
                node,
                class: failure.class,
                message,
            }]
        })
    }

    async fn look(self) -> Outcome<Vec<Event>> {
        let deadline = Instant::now() + DEADLINE;
        let told = |fault: crate::pg::fault::Fault| fault.failure;
        let mut connection = Connection::connect(self.info, Mode::Physical, deadline)
            .await
            .map_err(told)?;
        let identity = replication::identify(&mut connection, deadline)
            .await
            .map_err(told)?;
        let segment_size = replication::segment_size(&mut connection, deadline)
            .await
            .map_err(told)?;
        let mut events = self
            .histories(&mut connection, identity.timeline, deadline)
            .await?;
        let role = role(self.info, deadline).await.map_err(told)?;
        events.push(Event::ServerSeen(Server {
            node: self.node,
            system_id: identity.system_id,
            version: connection.version(),
            segment_size,
            timeline: identity.timeline,
            lsn: identity.position,
            in_recovery: role.in_recovery,
            sync_state: role.sync_state,
        }));
        // A server spares its log a line about a client that left without a word.
        let _ = connection.close(deadline).await;
        Ok(events)
    }

    async fn histories(
        &self,
        connection: &mut Connection,
        newest: Timeline,
        deadline: Instant,
    ) -> Outcome<Vec<Event>> {
        let mut events = Vec::new();
        if newest == Timeline(1) {
            return Ok(events);
        }
        let file = replication::timeline_history(connection, newest, deadline)
            .await
            .map_err(|fault| fault.failure)?;
        let older = file.history.ancestors.iter().map(|a| a.timeline);
        let older: Vec<Timeline> = older.filter(|t| *t > Timeline(1)).collect();
        events.push(learned(newest, &file.history));
        self.keep(newest, &file.content, &mut events)?;
        for timeline in older.into_iter().filter(|t| !self.held.contains(t)) {
            // An older history the server itself has lost cannot be had from it.
            let Ok(file) = replication::timeline_history(connection, timeline, deadline).await
            else {
                continue;
            };
            events.push(learned(timeline, &file.history));
            self.keep(timeline, &file.content, &mut events)?;
        }
        Ok(events)
    }

    fn keep(&self, timeline: Timeline, content: &[u8], events: &mut Vec<Event>) -> Outcome<()> {
        if self.held.contains(&timeline) {
            return Ok(());
        }
        let file = File::History(timeline);
        match self.spool.place(&timeline.history_name(), content)? {
            // Whoever sealed a duplicate may have failed before it could say so.
            Sealed::New | Sealed::Duplicate => events.push(Event::Spooled {
                file,
                entry: self.entries.fetch_add(1, Ordering::SeqCst),
                bytes: u64::try_from(content.len()).unwrap_or(u64::MAX),
                origin: Origin::Stream,
            }),
            Sealed::Conflict { kept_as } => events.push(Event::Conflicted {
                file,
                ours: format!("kept in the spool as '{kept_as}'"),
                theirs: "sealed in the spool before".into(),
            }),
        }
        Ok(())
    }
}

fn learned(timeline: Timeline, history: &History) -> Event {
    let branch = |ancestor: &Ancestor| Branch {
        timeline: ancestor.timeline,
        switch: ancestor.end,
    };
    let ancestors = history.ancestors.iter().map(branch).collect();
    Event::TimelineLearned {
        timeline,
        ancestors,
    }
}

struct Role {
    in_recovery: bool,
    sync_state: Option<String>,
}

/// Needs plain SQL, which a walsender does not speak.
async fn role(info: &Conninfo, deadline: Instant) -> Answer<Role> {
    let mut plain = super::plain(info, deadline).await?;
    let name = info.application_name.replace('\'', "''");
    let sql = format!(
        "SELECT pg_catalog.pg_is_in_recovery(), (SELECT sync_state \
         FROM pg_catalog.pg_stat_replication WHERE application_name = '{name}' \
         ORDER BY sync_state IN ('sync', 'quorum') DESC LIMIT 1)"
    );
    let rows = plain.simple_query(&sql, deadline).await?;
    let row = rows.first();
    let _ = plain.close(deadline).await;
    Ok(Role {
        in_recovery: row.and_then(|row| row.text(0)) == Some("t"),
        sync_state: row.and_then(|row| row.text(1)).map(str::to_owned),
    })
}
