//! One server: what it is, what it is set to, and whether it can serve us.
//!
//! Reads only. Two connections under a name of our own, so that no synchronous commit waits for us.
//! Settings that a plain role may not see are asked for only with `pg_read_all_settings`.

use std::time::{Duration, Instant};

use machine::SegmentSize;

use super::door::Tried;
use super::finding::Finding;
use crate::clock;
use crate::config::{Ack, ActiveBackupMode, Site};
use crate::pg::connection::{Connection, Mode, Row};
use crate::pg::conninfo::{Conninfo, Place, SslMode};
use crate::pg::fault::Answer;
use crate::pg::replication::{self, Identity};
use crate::publish::text;
use crate::source;

/// Two connections and four answers.
const WITHIN: Duration = Duration::from_secs(30);

/// The name under which servers see this command.
const NAME: &str = "pghoard check";

/// Newer ones are served, but no test has met one.
const MAJOR_TESTED: u32 = 18;

/// The WAL stream, a basebackup, and a look at the server, at a time.
const SENDERS: i64 = 3;

/// Less is what ordinary machines do; from the second on nothing expires by age any more.
const SKEW_WARN_MS: u64 = 10_000;
const SKEW_FAIL_MS: u64 = 3_600_000;

/// A server that both ways in led to.
pub struct Seen {
    pub number: usize,
    /// As the configuration has it, but under our name.
    pub info: Conninfo,
    pub version: u32,
    pub identity: Identity,
    pub segment_size: SegmentSize,
    pub sql: Sql,
    pub slot: Option<Slot>,
}

/// What plain queries told.
#[derive(Clone, Debug, Default)]
pub struct Sql {
    pub in_recovery: bool,
    wal_level: String,
    senders_max: i64,
    /// Those of others.
    senders_used: i64,
    slots_max: i64,
    slots_used: i64,
    full_page_writes: bool,
    checksums: bool,
    archive_mode: String,
    archive_command: String,
    archive_library: String,
    archive_failed: Option<String>,
    synchronous: String,
    pub may_switch: bool,
    reads_settings: bool,
    /// Where the grants have to be: the one that was asked for may not exist.
    pub database: String,
    tls: Option<String>,
    skew_ms: i64,
}

/// Our slot.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    physical: bool,
    active: bool,
    /// Who uses it, where we may see that.
    by: Option<String>,
    wal_status: String,
}

pub struct Looked {
    /// For the heading.
    pub place: String,
    pub findings: Vec<Finding>,
    pub seen: Option<Seen>,
}

type Point = fn(&Subject<'_>) -> Option<Finding>;

const POINTS: &[Point] = &[
    version,
    tls,
    standing,
    wal_level,
    senders,
    slot,
    archiving,
    synchronous,
    full_page_writes,
    checksums,
    grants,
    skew,
];

/// What the points look at.
struct Subject<'a> {
    site: &'a Site,
    seen: &'a Seen,
    /// Whether a daemon of this configuration runs.
    running: bool,
}

pub fn look(number: usize, mut info: Conninfo, site: &Site, running: bool) -> Looked {
    let place: Vec<String> = info.hosts.iter().map(ToString::to_string).collect();
    let place = place.join(", ");
    info.application_name = NAME.to_owned();
    let began = Instant::now();
    let deadline = began + WITHIN;
    let (physical, plain) = smol::block_on(async {
        let physical = identity(&info, deadline).await;
        let plain = ask(&info, site, deadline).await;
        (physical, plain)
    });
    let tried = Tried {
        info: &info,
        physical: physical.as_ref().err(),
        plain: plain.as_ref().err(),
        millis: began.elapsed().as_millis(),
    };
    let mut findings = tried.findings();
    // Without a walsender the settings that may be the reason can still be told.
    if let (Err(_), Ok((sql, _))) = (&physical, &plain) {
        findings.extend(level(sql).filter(|finding| finding.cure.is_some()));
    }
    let (Ok((version, identity, segment_size)), Ok((sql, slot))) = (physical, plain) else {
        return Looked {
            place,
            findings,
            seen: None,
        };
    };
    let seen = Seen {
        number,
        info,
        version,
        identity,
        segment_size,
        sql,
        slot,
    };
    let subject = Subject {
        site,
        seen: &seen,
        running,
    };
    findings.extend(POINTS.iter().filter_map(|point| point(&subject)));
    Looked {
        place,
        findings,
        seen: Some(seen),
    }
}

async fn identity(info: &Conninfo, deadline: Instant) -> Answer<(u32, Identity, SegmentSize)> {
    let mut connection = Connection::connect(info, Mode::Physical, deadline).await?;
    let identity = replication::identify(&mut connection, deadline).await?;
    let size = replication::segment_size(&mut connection, deadline).await?;
    let version = connection.version();
    // Dropping it is enough; this spares the server a line in its log.
    let _ = connection.close(deadline).await;
    Ok((version, identity, size))
}

async fn ask(info: &Conninfo, site: &Site, deadline: Instant) -> Answer<(Sql, Option<Slot>)> {
    let mut plain = source::plain(info, deadline).await?;
    let before = clock::now();
    let rows = plain
        .simple_query(&question(&plain, site), deadline)
        .await?;
    let after = clock::now();
    let row = rows.into_iter().next().unwrap_or_default();
    let mut sql = Sql::read(&row);
    // The server looked at its clock somewhere between.
    let ours = before.plus(after.since(before) / 2);
    sql.skew_ms = row
        .parse::<i64>(15)
        .map_or(0, |theirs| theirs.saturating_sub_unsigned(ours.0));
    let slot = match &info.slot {
        Some(name) => our_slot(&mut plain, name, deadline).await?,
        None => None,
    };
    let _ = plain.close(deadline).await;
    Ok((sql, slot))
}

/// One row; the columns are [`Sql::read`]'s.
fn question(plain: &Connection, site: &Site) -> String {
    let ours = site.application_name.replace('\'', "''");
    let library = match plain.version() {
        150_000.. => "pg_catalog.current_setting('archive_library')",
        _ => "''",
    };
    format!(
        "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('wal_level'), \
         pg_catalog.current_setting('max_wal_senders'), \
         (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication \
         WHERE coalesce(application_name, '') NOT IN ('{ours}', '{NAME}')), \
         pg_catalog.current_setting('max_replication_slots'), \
         (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots), \
         pg_catalog.current_setting('full_page_writes'), \
         pg_catalog.current_setting('data_checksums'), \
         pg_catalog.current_setting('archive_mode'), \
         pg_catalog.current_setting('archive_command'), {library}, \
         pg_catalog.current_setting('synchronous_standby_names'), \
         pg_catalog.has_function_privilege('pg_catalog.pg_switch_wal()', 'EXECUTE'), \
         pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE'), \
         (SELECT version FROM pg_catalog.pg_stat_ssl \
         WHERE pid = pg_catalog.pg_backend_pid() AND ssl), \
         (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000)::int8, \
         (SELECT last_failed_wal FROM pg_catalog.pg_stat_archiver \
         WHERE last_failed_time > coalesce(last_archived_time, '-infinity')), \
         pg_catalog.current_database()"
    )
}

impl Sql {
    fn read(row: &Row) -> Sql {
        let text = |column| row.text(column).unwrap_or_default().to_owned();
        let number = |column| row.parse(column).unwrap_or_default();
        let is = |column, value| row.text(column) == Some(value);
        Sql {
            in_recovery: is(0, "t"),
            wal_level: text(1),
            senders_max: number(2),
            senders_used: number(3),
            slots_max: number(4),
            slots_used: number(5),
            full_page_writes: is(6, "on"),
            checksums: is(7, "on"),
            archive_mode: text(8),
            archive_command: text(9),
            archive_library: text(10),
            synchronous: text(11),
            may_switch: is(12, "t"),
            reads_settings: is(13, "t"),
            tls: row.text(14).map(str::to_owned),
            database: text(17),
            archive_failed: row.text(16).map(str::to_owned),
            skew_ms: 0,
        }
    }
}

async fn our_slot(plain: &mut Connection, name: &str, deadline: Instant) -> Answer<Option<Slot>> {
    let status = match plain.version() {
        130_000.. => "slot.wal_status",
        _ => "''",
    };
    let quoted = name.replace('\'', "''");
    let sql = format!(
        "SELECT slot.slot_type, slot.active, {status}, activity.application_name \
         FROM pg_catalog.pg_replication_slots AS slot LEFT JOIN pg_catalog.pg_stat_activity \
         AS activity ON activity.pid = slot.active_pid WHERE slot.slot_name = '{quoted}'"
    );
    let rows = plain.simple_query(&sql, deadline).await?;
    Ok(rows.first().map(|row| Slot {
        physical: row.text(0) == Some("physical"),
        active: row.text(1) == Some("t"),
        wal_status: row.text(2).unwrap_or_default().to_owned(),
        by: row.text(3).map(str::to_owned),
    }))
}

fn version(on: &Subject<'_>) -> Option<Finding> {
    let (major, minor) = (on.seen.version / 10_000, on.seen.version % 10_000);
    let told = format!("PostgreSQL {major}.{minor}");
    Some(match major > MAJOR_TESTED {
        true => {
            let cure = "look for a newer version of this program";
            Finding::warn(
                "version",
                format!("{told} is newer than any that was tested"),
                cure,
            )
        }
        false => Finding::ok("version", told),
    })
}

fn tls(on: &Subject<'_>) -> Option<Finding> {
    let info = &on.seen.info;
    let near = info.hosts.iter().all(|host| match &host.place {
        Place::Socket(_) => true,
        Place::Network(name) => {
            let address = name.parse::<std::net::IpAddr>();
            name == "localhost" || address.is_ok_and(|address| address.is_loopback())
        }
    });
    let mode = info.sslmode.name();
    let proved = matches!(info.sslmode, SslMode::VerifyCa | SslMode::VerifyFull)
        || info.sslrootcert.is_some();
    Some(match &on.seen.sql.tls {
        Some(version) if proved => Finding::ok("tls", format!("{version}, sslmode={mode}")),
        Some(version) => Finding::ok(
            "tls",
            format!("{version}, sslmode={mode}: the server's certificate is not verified"),
        ),
        None if near => Finding::ok("tls", "not used on this machine"),
        None => Finding::warn(
            "tls",
            format!("not used (sslmode={mode}): WAL crosses the network in the clear"),
            "set ssl = on there and \"sslmode\": \"verify-full\" here",
        ),
    })
}

fn standing(on: &Subject<'_>) -> Option<Finding> {
    let Identity {
        timeline, position, ..
    } = on.seen.identity;
    let role = match on.seen.sql.in_recovery {
        true => "standby",
        false => "primary",
    };
    let told = format!(
        "{role}, timeline {timeline}, at {position}, segments of {}",
        text::size(on.seen.segment_size.bytes())
    );
    Some(Finding::ok("role", told))
}

fn wal_level(on: &Subject<'_>) -> Option<Finding> {
    level(&on.seen.sql)
}

fn level(sql: &Sql) -> Option<Finding> {
    let level = sql.wal_level.as_str();
    Some(match level {
        "replica" | "logical" => Finding::ok("wal_level", level),
        _ => Finding::fail(
            "wal_level",
            format!("it is {level}: such WAL restores nothing"),
            "set wal_level = replica and restart the server",
        ),
    })
}

fn senders(on: &Subject<'_>) -> Option<Finding> {
    let (used, max) = (on.seen.sql.senders_used, on.seen.sql.senders_max);
    let told = format!("{used} of {max} are used by others");
    Some(match max - used < SENDERS {
        true => {
            let cure = format!(
                "set max_wal_senders = {} and restart the server: the stream, a basebackup and a \
                 look take {SENDERS}",
                used + SENDERS
            );
            Finding::fail("max_wal_senders", told, cure)
        }
        false => Finding::ok("max_wal_senders", told),
    })
}

fn slot(on: &Subject<'_>) -> Option<Finding> {
    if !on.site.active_backup_mode.streams() {
        return None;
    }
    let sql = &on.seen.sql;
    let Some(name) = &on.seen.info.slot else {
        let told = "none is configured: the server may recycle WAL before it is safe here";
        return Some(Finding::warn(
            "slot",
            told,
            "add \"slot\": \"pghoard\" to the node",
        ));
    };
    let drop = format!("select pg_drop_replication_slot('{name}')");
    let Some(slot) = &on.seen.slot else {
        return Some(match sql.slots_used < sql.slots_max {
            true => Finding::ok(
                "slot",
                format!("'{name}' is not there yet and will be made"),
            ),
            false => Finding::fail(
                "slot",
                format!(
                    "'{name}' cannot be made: all {} slots are taken",
                    sql.slots_max
                ),
                "drop one that nobody uses, or raise max_replication_slots and restart the server",
            ),
        });
    };
    let ours = slot.by.as_deref() == Some(on.site.application_name.as_str());
    let by = slot.by.as_deref().unwrap_or("another role");
    Some(if !slot.physical {
        let told = format!("'{name}' is a logical one");
        Finding::fail("slot", told, "name another one: \"slot\": ...")
    } else if slot.active && !ours {
        let told = format!("'{name}' is in use by '{by}'");
        Finding::fail(
            "slot",
            told,
            "name a slot of its own for each user of this server",
        )
    } else if slot.active && !on.running {
        let told = format!("'{name}' is in use by '{by}', but no daemon runs here");
        Finding::warn(
            "slot",
            told,
            "is it backed up from another machine? one is enough",
        )
    } else if slot.wal_status == "lost" {
        let told = format!("'{name}' is lost: the server let go of WAL that was not safe here");
        Finding::fail("slot", told, format!("{drop}; the daemon makes a new one"))
    } else if slot.wal_status == "unreserved" {
        let told = format!("'{name}' is about to be lost");
        Finding::fail(
            "slot",
            told,
            "raise max_slot_wal_keep_size there, and see why WAL waits",
        )
    } else {
        let used = if slot.active { "in use by us" } else { "waits" };
        Finding::ok("slot", format!("'{name}' {used}"))
    })
}

fn archiving(on: &Subject<'_>) -> Option<Finding> {
    let sql = &on.seen.sql;
    if on.site.active_backup_mode != ActiveBackupMode::ArchiveCommand || sql.in_recovery {
        return None;
    }
    let name = on.site.name.as_str();
    let wanted = format!(
        "archive_command = 'pghoard_postgres_command --mode archive --site {name} --xlog %f'"
    );
    let command = sql.archive_command.as_str();
    let site = |form: &str| command.contains(&format!("--site{form}{name}"));
    Some(if sql.archive_mode == "off" {
        let cure = format!("set archive_mode = on and {wanted}, and restart the server");
        Finding::fail("archiving", "archive_mode is off", cure)
    } else if !sql.archive_library.is_empty() {
        let told = format!("archive_library ('{}') is in command", sql.archive_library);
        Finding::fail(
            "archiving",
            told,
            format!("set archive_library = '' and {wanted}"),
        )
    } else if command.is_empty() || command == "(disabled)" {
        Finding::fail(
            "archiving",
            "archive_command is empty",
            format!("set {wanted}"),
        )
    } else if !site(" ") && !site("=") {
        let told = format!("archive_command does not name site '{name}': {command}");
        Finding::warn("archiving", told, format!("set {wanted}"))
    } else if let Some(wal) = &sql.archive_failed {
        let told = format!("archiving of {wal} failed when it was last tried");
        Finding::warn(
            "archiving",
            told,
            "see the server's log, and whether the daemon runs",
        )
    } else {
        Finding::ok(
            "archiving",
            "archive_mode is on, archive_command names this site",
        )
    })
}

/// A synchronous standby that acknowledges stored segments makes every commit wait for one.
fn synchronous(on: &Subject<'_>) -> Option<Finding> {
    if on.site.ack != Ack::Stored || !on.site.active_backup_mode.streams() {
        return None;
    }
    let apart = |c: char| !c.is_alphanumeric() && !matches!(c, '_' | '-' | '.' | '*');
    let mut names = on.seen.sql.synchronous.split(apart);
    let ours = on.site.application_name.as_str();
    names.any(|name| name == ours || name == "*").then(|| {
        let told = format!("synchronous_standby_names has '{ours}', and \"ack\" is \"stored\"");
        let cure = "set \"ack\": \"spooled\" here, or take the name out there";
        Finding::fail("synchronous", told, cure)
    })
}

fn full_page_writes(on: &Subject<'_>) -> Option<Finding> {
    Some(match on.seen.sql.full_page_writes {
        true => Finding::ok("full_page_writes", "on"),
        false => Finding::warn(
            "full_page_writes",
            "off: a crash of the server can tear pages, and a standby gives no basebackups",
            "set full_page_writes = on there",
        ),
    })
}

fn checksums(on: &Subject<'_>) -> Option<Finding> {
    let told = match on.seen.sql.checksums {
        true => "on",
        false => "off: the server does not notice pages that its disk damages",
    };
    Some(Finding::ok("data_checksums", told))
}

fn grants(on: &Subject<'_>) -> Option<Finding> {
    let (sql, user) = (&on.seen.sql, &on.seen.info.user);
    let mut missing = Vec::new();
    let mut grants = Vec::new();
    if !sql.reads_settings {
        missing.push("a backup does not see the names of tablespaces");
        grants.push(format!("grant pg_read_all_settings to {user}"));
    }
    if !sql.may_switch {
        missing.push("a backup of an idle server waits for its last segment");
        grants.push(format!(
            "grant execute on function pg_switch_wal() to {user}"
        ));
    }
    Some(match missing.is_empty() {
        true => Finding::ok("grants", "pg_read_all_settings, pg_switch_wal"),
        false => Finding::warn(
            "grants",
            missing.join("; "),
            format!("in the database {}: {}", sql.database, grants.join("; ")),
        ),
    })
}

fn skew(on: &Subject<'_>) -> Option<Finding> {
    let skew = on.seen.sql.skew_ms;
    let side = if skew < 0 { "behind" } else { "ahead of" };
    let told = format!("{} {side} ours", text::span(skew.unsigned_abs()));
    let cure = "have both machines follow a time server (chrony, systemd-timesyncd)";
    Some(match skew.unsigned_abs() {
        SKEW_FAIL_MS.. => Finding::fail("clock", told, cure),
        SKEW_WARN_MS.. => Finding::warn("clock", told, cure),
        _ => Finding::ok("clock", "agrees with ours"),
    })
}
