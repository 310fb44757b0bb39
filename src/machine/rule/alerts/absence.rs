//! Success that did not come: no good backup, no durable WAL (S-72).

use alloc::format;
use alloc::string::String;

use super::{List, View};
use crate::event::Millis;
use crate::rule::coverage::{last_backup, positions};
use crate::wal::{Lsn, Segment};

impl View<'_> {
    pub(super) fn backup_overdue(&self, list: &mut List) {
        let Some(limit) = self.policy.backup_overdue_ms else {
            return;
        };
        let last = last_backup(self.site, self.now);
        let since = last.as_ref().map(|(_, at)| *at);
        // A site without any is given as long to take its first.
        let Some(since) = since.or(self.site.exposure.begun_at) else {
            return;
        };
        if self.now.since(since) <= limit {
            return;
        }
        let limit = span(limit);
        let what = match last {
            Some((backup, _)) => format!(
                "site '{}': the last basebackup that can be restored, {backup}, is older than \
                 {limit}",
                self.name
            ),
            None => format!(
                "site '{}': for more than {limit} there has been no basebackup that can be \
                 restored",
                self.name
            ),
        };
        let todo = "see why none is taken or none is whole (pghoard status), or ask for one over \
                    HTTP; backup_overdue_hours says how old the last one may be";
        list.add("backup_overdue", since, what, todo);
    }

    pub(super) fn wal_overdue(&self, list: &mut List) {
        if self.policy.standalone {
            return;
        }
        let streams = self.policy.streams;
        let stopped = self.site.exposure.unstreamed_since.filter(|_| streams);
        let stopped = stopped.map(|at| (at, "no WAL is received".into()));
        let late = [stopped, self.unstored(), self.unreceived()];
        let late = late.into_iter().flatten();
        let late = late.filter(|(at, _)| self.now.since(*at) > self.policy.wal_overdue_ms);
        if let Some((since, why)) = late.min_by_key(|(at, _)| *at) {
            let what = format!(
                "site '{}': WAL has not become safe here for more than {}: {why}",
                self.name,
                span(self.policy.wal_overdue_ms)
            );
            let todo = match streams {
                true => {
                    "see which of server, stream and store fails (pghoard status); what the server \
                     writes meanwhile is lost if the server is, and its slot keeps it there: watch \
                     its disk"
                }
                false => {
                    "see what archive_command says in the server's log, whether archive_mode is \
                     on, and whether the store fails (pghoard status); what the server writes \
                     meanwhile is lost if the server is, and it keeps it there: watch its disk"
                }
            };
            list.add("wal_overdue", since, what, todo);
        }
    }

    /// Since when the server has been beyond a whole segment that is not stored, or one waits in
    /// the spool. A segment that is not full is no reason: an idle server never fills it.
    fn unstored(&self) -> Option<(Millis, String)> {
        let stored = self.positions().0;
        let look = self.site.exposure.looks.iter().find(|look| {
            let next = Segment::at(look.timeline, stored, self.size());
            look.lsn >= next.end(self.size())
        });
        let spooled = self.site.ledger.waiting_since();
        let since = look.map(|look| look.at).into_iter().chain(spooled).min()?;
        let why = format!("it is stored up to {stored}, and more than a segment waits since then");
        Some((since, why))
    }

    /// Since when the server has been beyond what a running stream brought: asked only while one
    /// runs, because only that tells how far it is.
    fn unreceived(&self) -> Option<(Millis, String)> {
        self.live.received.get(self.name)?;
        let received = self.positions().1;
        let mut looks = self.site.exposure.looks.iter();
        let look = looks.find(|look| look.lsn > received)?;
        let why = format!(
            "it is received up to {received}, and the server had written {} then",
            look.lsn
        );
        Some((look.at, why))
    }

    /// Stored and received.
    fn positions(&self) -> (Lsn, Lsn) {
        let known = positions(self.name, self.site, Some(self.policy), self.live);
        let known = [known.stored, known.received].map(Option::unwrap_or_default);
        known.into()
    }
}

/// As long as a limit is, in the unit that a person would use.
fn span(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}
