//! A look at a server: who it is, where it stands, which histories it knows.
//!
//! Reads only. The histories of its timelines are spooled where neither spool nor store has them,
//! at every look (S-24): a missing one silently ends a later recovery on the old timeline.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use machine::event::{Branch, Origin, Server, Slot};
use machine::projection::timelines::Timelines;
use machine::{Class, Event, File, Timeline};

use crate::clock;
use crate::failure::{Failure, Outcome};
use crate::pg::connection::{Connection, Mode};
use crate::pg::conninfo::Conninfo;
use crate::pg::fault::Answer;
use crate::pg::files::Ancestor;
use crate::pg::replication::{self, HistoryFile};
use crate::spool::{Sealed, Spool};

const DEADLINE: Duration = Duration::from_secs(20);

pub struct Probe<'a> {
    pub node: u32,
    pub info: &'a Conninfo,
    /// The site's cluster: of another one only what it is is told.
    pub system_id: Option<u64>,
    pub spool: &'a Spool,
    /// Histories in spool or store.
    pub held: BTreeSet<Timeline>,
    pub timelines: Timelines,
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
        let ours = self.system_id.is_none_or(|id| id == identity.system_id);
        let mut events = Vec::new();
        if ours {
            events = self
                .histories(&mut connection, identity.timeline, deadline)
                .await?;
        }
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
            slot: role.slot,
            clock_skew_ms: role.clock_skew_ms,
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
        self.learn(newest, &file, &mut events)?;
        let older = file
            .history
            .ancestors
            .iter()
            .map(|ancestor| ancestor.timeline);
        let wanted = older.filter(|t| *t > Timeline(1) && !self.held.contains(t));
        for timeline in wanted.collect::<Vec<_>>() {
            // An older history the server itself has lost cannot be had from it.
            let asked = replication::timeline_history(connection, timeline, deadline).await;
            if let Ok(file) = asked {
                self.learn(timeline, &file, &mut events)?;
            }
        }
        Ok(events)
    }

    /// Two clusters may have made the same timeline number of one ancestor: their WAL must not
    /// meet under one name (S-11, S-16).
    fn learn(
        &self,
        timeline: Timeline,
        file: &HistoryFile,
        events: &mut Vec<Event>,
    ) -> Outcome<()> {
        let branch = |a: &Ancestor| Branch {
            timeline: a.timeline,
            switch: a.end,
        };
        let ancestors: Vec<Branch> = file.history.ancestors.iter().map(branch).collect();
        match self.timelines.ancestors(timeline) {
            None => events.push(Event::TimelineLearned {
                timeline,
                ancestors,
            }),
            Some(known) if known == ancestors => {}
            Some(_) => {
                let node = self.node;
                let message = format!("timeline {timeline} of node {node} has another history");
                return Err(Failure::new(Class::Conflict, message)
                    .hint("it is another branch of the cluster: give it a site of its own"));
            }
        }
        self.keep(timeline, &file.content, events)
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

struct Role {
    in_recovery: bool,
    sync_state: Option<String>,
    slot: Option<Slot>,
    clock_skew_ms: Option<i64>,
}

/// Needs plain SQL, which a walsender does not speak.
async fn role(info: &Conninfo, deadline: Instant) -> Answer<Role> {
    let mut plain = super::plain(info, deadline).await?;
    let name = info.application_name.replace('\'', "''");
    let sql = format!(
        "SELECT pg_catalog.pg_is_in_recovery(), (SELECT sync_state \
         FROM pg_catalog.pg_stat_replication WHERE application_name = '{name}' \
         ORDER BY sync_state IN ('sync', 'quorum') DESC LIMIT 1), \
         (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000)::int8"
    );
    let before = clock::now();
    let rows = plain.simple_query(&sql, deadline).await?;
    let after = clock::now();
    let row = rows.first();
    // The server looked at its clock somewhere between.
    let ours = before.plus(after.since(before) / 2);
    let theirs = row.and_then(|row| row.parse::<i64>(2));
    let mut role = Role {
        in_recovery: row.and_then(|row| row.text(0)) == Some("t"),
        sync_state: row.and_then(|row| row.text(1)).map(str::to_owned),
        slot: None,
        clock_skew_ms: theirs.map(|theirs| theirs.saturating_sub_unsigned(ours.0)),
    };
    if let Some(name) = &info.slot {
        role.slot = slot(&mut plain, name, deadline).await;
    }
    let _ = plain.close(deadline).await;
    Ok(role)
}

/// Our slot; `None` where it does not exist or may not be seen, which is no failure of the look.
/// Columns: PostgreSQL `src/backend/catalog/system_views.sql` (`pg_replication_slots`).
async fn slot(plain: &mut Connection, name: &str, deadline: Instant) -> Option<Slot> {
    let since_13 = match plain.version() {
        130_000.. => {
            "wal_status, safe_wal_size, pg_catalog.pg_size_bytes(\
             pg_catalog.current_setting('max_slot_wal_keep_size', true))"
        }
        _ => "NULL, NULL, NULL",
    };
    let quoted = name.replace('\'', "''");
    let sql = format!(
        "SELECT active, restart_lsn, pg_catalog.pg_wal_lsn_diff(\
         CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_receive_lsn() \
         ELSE pg_catalog.pg_current_wal_lsn() END, restart_lsn)::int8, {since_13} \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = '{quoted}'"
    );
    let rows = plain.simple_query(&sql, deadline).await.ok()?;
    let row = rows.first()?;
    Some(Slot {
        name: name.to_owned(),
        active: row.text(0) == Some("t"),
        restart_lsn: row.parse(1),
        held_bytes: row.parse(2),
        wal_status: row.text(3).map(str::to_owned),
        safe_bytes: row.parse(4),
        // -1 is no limit, and no number of bytes.
        limit_bytes: row.parse(5),
    })
}
