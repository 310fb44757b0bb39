//! Whether a server lets us in, for replication and for plain queries, and which step failed.

use super::finding::Finding;
use crate::pg::connection::Mode;
use crate::pg::conninfo::Conninfo;
use crate::pg::fault::{Fault, SqlState};
use machine::Class;

/// The steps on the way in, as points.
const REACHABLE: &str = "reachable";
const TLS: &str = "tls";
const VERSION: &str = "version";
const LOGIN: &str = "login";
const REPLICATION: &str = "replication";
const QUERIES: &str = "queries";

/// How the two ways in ended.
pub struct Tried<'a> {
    pub info: &'a Conninfo,
    pub physical: Option<&'a Fault>,
    pub plain: Option<&'a Fault>,
    pub millis: u128,
}

impl Tried<'_> {
    /// A failed step is told once, and what both ways came to.
    pub fn findings(&self) -> Vec<Finding> {
        let mut failed: Vec<Finding> = Vec::new();
        for (fault, mode) in [(self.physical, Mode::Physical), (self.plain, Mode::Plain)] {
            let finding = fault.map(|fault| trouble(self.info, fault, mode));
            let known = |new: &Finding| failed.iter().any(|old| old.point == new.point);
            failed.extend(finding.filter(|new| !known(new)));
        }
        let inside = self.physical.is_none() || self.plain.is_none();
        let reached = inside || failed.iter().any(|finding| finding.point != REACHABLE);
        let passed = [
            (
                reached,
                REACHABLE,
                format!("answered in {} ms", self.millis),
            ),
            (inside, LOGIN, format!("as '{}'", self.info.user)),
            (self.physical.is_none(), REPLICATION, "let in".to_owned()),
            (self.plain.is_none(), QUERIES, "let in".to_owned()),
        ];
        let mut findings: Vec<Finding> = passed
            .into_iter()
            .filter(|(passed, point, _)| {
                *passed && failed.iter().all(|finding| finding.point != *point)
            })
            .map(|(_, point, text)| Finding::ok(point, text))
            .collect();
        findings.extend(failed);
        findings
    }
}

fn trouble(info: &Conninfo, fault: &Fault, mode: Mode) -> Finding {
    let message = fault.failure.message.as_str();
    let user = &info.user;
    let failed = |point, cure: &str| Finding::failed(point, &fault.failure, cure);
    // The server's own hint is for people on its side: ours goes first.
    let told = |point, cure: String| Finding::fail(point, message, cure);
    let (what, database) = match mode {
        Mode::Physical => (REPLICATION, "replication"),
        Mode::Plain => (QUERIES, info.dbname.as_str()),
    };
    let class = fault.failure.class;
    match fault.sqlstate.as_ref().map(SqlState::as_str) {
        Some("28P01") => told(
            LOGIN,
            format!("correct the password of '{user}' here (or in ~/.pgpass), or set it there"),
        ),
        Some("28000") if message.contains("pg_hba.conf") => told(
            what,
            format!(
                "add to its pg_hba.conf, and reload it: hostssl {database} {user} ADDRESS/32 \
                 scram-sha-256"
            ),
        ),
        Some("28000") => told(
            LOGIN,
            format!("on the server: create role {user} login replication password '...'"),
        ),
        Some("42501") if mode == Mode::Physical => told(
            what,
            format!("on the server: alter role {user} replication"),
        ),
        Some("53300") if message.contains("max_wal_senders") => told(
            "max_wal_senders",
            "raise max_wal_senders on the server and restart it".to_owned(),
        ),
        Some("53300") => failed(REACHABLE, "raise max_connections on the server"),
        Some("3D000") => failed(
            what,
            "name a database that exists: \"dbname\": \"postgres\"",
        ),
        Some(_) => failed(what, "see what the server's log says"),
        None if message.contains("server version") => failed(
            VERSION,
            "upgrade it: PostgreSQL 12 is the oldest that is served",
        ),
        None if ["TLS", "certificate", "ssl"]
            .iter()
            .any(|word| message.contains(word)) =>
        {
            failed(TLS, "check sslmode and sslrootcert here, ssl there")
        }
        None if class == Class::Auth => {
            let cure = format!("give the password of '{user}' here or in ~/.pgpass");
            failed(LOGIN, &cure)
        }
        None => failed(REACHABLE, "start the server; check host, port and firewall"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::conninfo::Defaults;

    fn info() -> Conninfo {
        Conninfo::from_text("host=h user=u dbname=d", &Defaults::default()).unwrap()
    }

    fn fault(state: Option<SqlState>, class: Class, message: &str) -> Fault {
        Fault {
            sqlstate: state,
            ..Fault::new(class, message)
        }
    }

    fn told(physical: Option<&Fault>, plain: Option<&Fault>) -> String {
        let info = info();
        let tried = Tried {
            info: &info,
            physical,
            plain,
            millis: 3,
        };
        let findings = tried.findings();
        let shown = findings.iter().map(|finding| match &finding.cure {
            None => finding.point.to_owned(),
            Some(_) => format!("!{}", finding.point),
        });
        shown.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_step_that_failed_is_told_once() {
        let password = fault(
            Some(SqlState::WRONG_PASSWORD),
            Class::Auth,
            "wrong password",
        );
        let door = "no pg_hba.conf entry for replication";
        let door = fault(Some(SqlState::DENIED_AT_THE_DOOR), Class::Denied, door);
        let role = "role \"u\" does not exist";
        let role = fault(Some(SqlState::DENIED_AT_THE_DOOR), Class::Denied, role);
        let away = fault(None, Class::Network, "connection refused");
        let tls = fault(None, Class::Unsupported, "the server does not offer TLS");
        let database = fault(
            Some(SqlState::NO_SUCH_DATABASE),
            Class::Config,
            "no database",
        );
        let all = "reachable login replication queries";
        for (physical, plain, expect) in [
            (None, None, all),
            (Some(&away), Some(&away), "!reachable"),
            (Some(&password), Some(&password), "reachable !login"),
            (Some(&role), Some(&role), "reachable !login"),
            (Some(&tls), Some(&tls), "reachable !tls"),
            (Some(&door), None, "reachable login queries !replication"),
            (Some(&door), Some(&door), "reachable !replication !queries"),
            (
                None,
                Some(&database),
                "reachable login replication !queries",
            ),
        ] {
            assert_eq!(told(physical, plain), expect);
        }
    }
}
