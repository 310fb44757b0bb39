//! `backup_sites.SITE`: one cluster, how it is backed up and where.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use machine::Class;
use machine::event::WalIn;
use serde_json::Value;

use super::keys::Level;
use super::read::{Found, Notes, Object, wrong};
use super::storage::{self, Storage};
use crate::codec::keys::Keyring;
use crate::codec::{Encryption, Envelope};
use crate::failure::{Failure, Outcome};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    pub name: String,
    /// First part of every object key; may hold slashes, never at an end.
    pub prefix: String,
    pub active: Activity,
    pub active_backup_mode: ActiveBackupMode,
    pub ack: Ack,
    pub application_name: String,
    pub preferred_node: PreferredNode,
    pub nodes: Vec<Node>,
    pub spool_limit_bytes: Option<u64>,
    pub disk_free: Option<DiskFree>,
    pub reconcile_interval: Duration,
    pub backup_overdue: Option<Duration>,
    pub wal_overdue: Duration,
    pub slot_retention_bytes: u64,
    /// None: never.
    pub verify_interval: Option<Duration>,
    /// None: no limit.
    pub verify_bytes_per_second: Option<u64>,
    pub basebackup_mode: BasebackupMode,
    /// None keeps all.
    pub basebackup_count: Option<u32>,
    pub basebackup_count_min: u32,
    pub basebackup_age_max: Option<Duration>,
    pub recovery_window: Option<Duration>,
    pub retain_weekly: u32,
    pub retain_monthly: u32,
    pub retain_yearly: u32,
    /// None: on request only.
    pub basebackup_interval: Option<Duration>,
    pub basebackup_time: Option<TimeOfDay>,
    pub basebackup_chunk_size_bytes: u64,
    pub basebackup_chunks_in_progress: u32,
    pub basebackup_threads: u32,
    pub basebackup_compression_threads: u32,
    pub delta_retries_max: u32,
    pub delta_min_file_size_bytes: u64,
    pub delta_chunk_size_bytes: u64,
    pub encryption_format: Envelope,
    pub encryption_key_id: Option<String>,
    pub encryption_keys: BTreeMap<String, KeyPair>,
    pub object_storage: Option<Storage>,
    pub pg_data_directory: Option<PathBuf>,
    /// Names of sites of the same configuration.
    pub moved_from: Vec<String>,
}

impl Site {
    /// The storage, which all work on a site needs.
    pub fn storage(&self) -> Outcome<&Storage> {
        self.object_storage.as_ref().ok_or_else(|| {
            let message = format!("Site '{}': object_storage is not set", self.name);
            Failure::new(Class::Config, message)
        })
    }

    /// What to tell a person whose `basebackup_mode` is not what is taken.
    pub fn replaced_mode(&self) -> Option<String> {
        let (wanted, taken) = (self.basebackup_mode, self.basebackup_mode.taken());
        (wanted != taken).then(|| {
            let (site, wanted, taken) = (&self.name, wanted.name(), taken.name());
            format!(
                "site '{site}': basebackup_mode '{wanted}' is taken as '{taken}'; what \
                 '{wanted}' wrote is still read, restored and expired"
            )
        })
    }

    /// Where its objects are.
    pub(super) fn place(&self) -> Option<String> {
        let storage = self.object_storage.as_ref();
        storage.map(|storage| storage.place(&self.prefix))
    }

    /// The site's keys, parsed; either half of a pair may be missing.
    pub fn keyring(&self) -> Outcome<Keyring> {
        let mut keyring = Keyring::default();
        for (id, pair) in &self.encryption_keys {
            let public = pair.public.as_ref().map(Secret::reveal);
            let private = pair.private.as_ref().map(Secret::reveal);
            keyring.insert(id, public, private)?;
        }
        Ok(keyring)
    }

    /// How objects are encrypted, if they are.
    pub(super) fn encryption(&self) -> Outcome<Option<Encryption>> {
        let Some(key_id) = self.encryption_key_id.clone() else {
            return Ok(None);
        };
        let key = self.keyring()?.public(&key_id)?.clone();
        let envelope = self.encryption_format;
        Ok(Some(Encryption {
            key_id,
            key,
            envelope,
        }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    Active,
    Inactive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActiveBackupMode {
    PgReceivexlog,
    Walreceiver,
    ArchiveCommand,
    StandaloneHotBackup,
    Basic,
}

impl ActiveBackupMode {
    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        named(ACTIVE_BACKUP_MODES, self)
    }

    /// WAL comes over a replication connection.
    pub fn streams(self) -> bool {
        matches!(
            self,
            ActiveBackupMode::PgReceivexlog | ActiveBackupMode::Walreceiver
        )
    }

    /// Where the WAL of a basebackup is: nobody receives any in the modes of basebackups alone.
    pub fn wal(self) -> WalIn {
        match self {
            ActiveBackupMode::PgReceivexlog
            | ActiveBackupMode::Walreceiver
            | ActiveBackupMode::ArchiveCommand => WalIn::Archive,
            ActiveBackupMode::StandaloneHotBackup | ActiveBackupMode::Basic => WalIn::Backup,
        }
    }
}

const ACTIVE_BACKUP_MODES: &[(&str, ActiveBackupMode)] = &[
    ("pg_receivexlog", ActiveBackupMode::PgReceivexlog),
    ("walreceiver", ActiveBackupMode::Walreceiver),
    ("archive_command", ActiveBackupMode::ArchiveCommand),
    (
        "standalone_hot_backup",
        ActiveBackupMode::StandaloneHotBackup,
    ),
    ("basic", ActiveBackupMode::Basic),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BasebackupMode {
    Stream,
    Basic,
    Pipe,
    LocalTar,
    Delta,
    LocalTarDeltaStats,
}

impl BasebackupMode {
    /// The name in the configuration and in an object's metadata.
    pub fn name(self) -> &'static str {
        named(BASEBACKUP_MODES, self)
    }

    /// What is taken: the modes that read the server's files give way to `stream`.
    pub fn taken(self) -> BasebackupMode {
        match self {
            BasebackupMode::Stream | BasebackupMode::Basic | BasebackupMode::Pipe => self,
            BasebackupMode::LocalTar
            | BasebackupMode::Delta
            | BasebackupMode::LocalTarDeltaStats => BasebackupMode::Stream,
        }
    }
}

const BASEBACKUP_MODES: &[(&str, BasebackupMode)] = &[
    ("stream", BasebackupMode::Stream),
    ("basic", BasebackupMode::Basic),
    ("pipe", BasebackupMode::Pipe),
    ("local-tar", BasebackupMode::LocalTar),
    ("delta", BasebackupMode::Delta),
    ("local-tar-delta-stats", BasebackupMode::LocalTarDeltaStats),
];

/// Bytes that the spool's disk must have free, for reception to go on and to begin again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskFree {
    pub pause_below: u64,
    pub resume_from: u64,
}

/// When PostgreSQL is told that WAL is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    Stored,
    Spooled,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreferredNode {
    Primary,
    Index(usize),
    /// The `host` of one of the nodes.
    Name(String),
}

/// UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeOfDay {
    pub hour: u8,
    pub minute: u8,
}

/// A server as the configuration has it; `pg::conninfo` makes sense of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// `k=v ...` or a URL.
    Text(Secret),
    Connection {
        connection_string: Secret,
        slot: Option<String>,
    },
    /// libpq parameters, and `slot`.
    Parameters(BTreeMap<String, Secret>),
}

/// RSA keys in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPair {
    pub public: Option<Secret>,
    pub private: Option<Secret>,
}

/// A text that may hold a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

/// What a site takes from the global level.
pub(super) struct Around<'a> {
    pub path_prefix: &'a str,
    pub spool: Option<&'a Path>,
    pub notes: &'a Notes,
}

pub(super) fn parse(name: &str, value: &Value, around: &Around<'_>) -> Outcome<Site> {
    let path = format!("backup_sites.{name}");
    let site = Object::new(Level::Site, &path, value, around.notes)?;
    let mode = basebackup_mode(&site)?;
    let threads_default = match mode.taken() == BasebackupMode::Stream {
        true => 2,
        false => 0,
    };
    let disk_free = disk_free(&site)?;
    let (encryption_key_id, encryption_keys) = encryption(&site, around.notes)?;
    let (delta_retries_max, delta_min_file_size_bytes, delta_chunk_size_bytes) = delta(&site)?;
    Ok(Site {
        name: name.to_owned(),
        prefix: prefix(&site, name, around.path_prefix)?,
        active: match site.flag("active")?.or(true) {
            true => Activity::Active,
            false => Activity::Inactive,
        },
        active_backup_mode: site
            .one_of("active_backup_mode", ACTIVE_BACKUP_MODES)?
            .or(ActiveBackupMode::PgReceivexlog),
        ack: site.one_of("ack", ACKS)?.or(Ack::Stored),
        application_name: site.text("application_name")?.or("pghoard".to_owned()),
        preferred_node: preferred_node(&site)?,
        nodes: nodes(&site, around.notes)?,
        spool_limit_bytes: site.whole("spool_limit_bytes", SIZE)?.option(),
        disk_free,
        reconcile_interval: seconds(&site, "reconcile_interval_seconds", 86_400)?,
        backup_overdue: span(&site, "backup_overdue_hours", 3600.0)?.option(),
        wal_overdue: seconds(&site, "wal_overdue_seconds", 3_600)?,
        slot_retention_bytes: site.whole("slot_retention_bytes", SIZE)?.or(10 << 30),
        verify_interval: span(&site, "verify_interval_days", 86_400.0)?
            .or_none(Duration::from_secs(30 * 86_400)),
        verify_bytes_per_second: site
            .whole("verify_bytes_per_second", SIZE_OR_NULL)?
            .or_none(10 << 20),
        basebackup_mode: mode,
        basebackup_count: site.whole("basebackup_count", COUNT_OR_NULL)?.or_none(2),
        basebackup_count_min: site.whole("basebackup_count_min", COUNT)?.or(2),
        basebackup_age_max: match site.is_falsy("basebackup_age_days_max") {
            true => None,
            false => span(&site, "basebackup_age_days_max", 86_400.0)?.option(),
        },
        recovery_window: span(&site, "recovery_window_days", 86_400.0)?.option(),
        retain_weekly: site.whole("retain_weekly", COUNT)?.or(0),
        retain_monthly: site.whole("retain_monthly", COUNT)?.or(0),
        retain_yearly: site.whole("retain_yearly", COUNT)?.or(0),
        basebackup_interval: span(&site, "basebackup_interval_hours", 3600.0)?
            .or_none(Duration::from_secs(86_400)),
        basebackup_time: time_of_day(&site)?,
        basebackup_chunk_size_bytes: at_least_1(&site, "basebackup_chunk_size")?.or(1 << 31),
        basebackup_chunks_in_progress: at_least_1(&site, "basebackup_chunks_in_progress")?.or(5),
        basebackup_threads: at_least_1(&site, "basebackup_threads")?.or(1),
        basebackup_compression_threads: site
            .whole("basebackup_compression_threads", COUNT)?
            .or(threads_default),
        delta_retries_max,
        delta_min_file_size_bytes,
        delta_chunk_size_bytes,
        encryption_format: site
            .one_of("encryption_format", ENCRYPTION_FORMATS)?
            .or(Envelope::AesGcm),
        encryption_key_id,
        encryption_keys,
        object_storage: object_storage(&site, name, around)?,
        pg_data_directory: site.text("pg_data_directory")?.option().map(PathBuf::from),
        moved_from: texts(&site, "moved_from")?,
    })
}

const ACKS: &[(&str, Ack)] = &[("stored", Ack::Stored), ("spooled", Ack::Spooled)];
const ENCRYPTION_FORMATS: &[(&str, Envelope)] =
    &[("aes-gcm", Envelope::AesGcm), ("pghoa1", Envelope::Pghoa1)];
const COUNT: &str = "a whole number of at least 0";
const COUNT_OR_NULL: &str = "a whole number of at least 0, or null";
const SIZE_OR_NULL: &str = "a number of bytes, or null";
const SIZE: &str = "a number of bytes";

fn seconds(site: &Object<'_>, key: &'static str, default: u64) -> Outcome<Duration> {
    Ok(Duration::from_secs(site.whole(key, COUNT)?.or(default)))
}

/// Retries, the smallest file that is not bundled, plain bytes in a bundle.
fn delta(site: &Object<'_>) -> Outcome<(u32, u64, u64)> {
    let retries_max = site.whole("basebackup_delta_mode_max_retries", COUNT)?;
    let file_bytes_min = site.whole("basebackup_delta_mode_min_delta_file_size", SIZE)?;
    let chunk_bytes = at_least_1(site, "basebackup_delta_mode_chunk_size")?;
    let (retries_max, file_bytes_min) = (retries_max.or(10), file_bytes_min.or(10 << 20));
    Ok((retries_max, file_bytes_min, chunk_bytes.or(500 << 20)))
}

fn basebackup_mode(site: &Object<'_>) -> Outcome<BasebackupMode> {
    let default = match site.flag("stream_compression")?.or(false) {
        true => BasebackupMode::Pipe,
        false => BasebackupMode::Stream,
    };
    Ok(site
        .one_of("basebackup_mode", BASEBACKUP_MODES)?
        .or(default))
}

fn prefix(site: &Object<'_>, name: &str, path_prefix: &str) -> Outcome<String> {
    let default = format!("{path_prefix}/{name}");
    let prefix = site.text("prefix")?.or(default);
    let prefix = prefix.trim_matches('/');
    let hostile = |part: &str| part.is_empty() || part == "." || part == "..";
    if prefix.split('/').any(hostile) {
        return Err(site.wrong("prefix", "folder names between single slashes"));
    }
    Ok(prefix.to_owned())
}

fn disk_free(site: &Object<'_>) -> Outcome<Option<DiskFree>> {
    let limits = site.section("pg_receivexlog", Level::Receivexlog, |limits| {
        let bytes: Option<u64> = match limits.is_falsy("min_disk_free_bytes") {
            true => None,
            false => limits.whole("min_disk_free_bytes", SIZE)?.option(),
        };
        let multiplier = limits.number("resume_multiplier")?.or(1.5);
        // In thousandths, as a length of time would be.
        let thousandths = Duration::try_from_secs_f64(multiplier)
            .map_err(|_| limits.wrong("resume_multiplier", "a smaller number"))?
            .as_millis();
        Ok(bytes.map(|pause_below| {
            let resume = u128::from(pause_below).saturating_mul(thousandths) / 1_000;
            let resume = u64::try_from(resume).unwrap_or(u64::MAX);
            DiskFree {
                pause_below,
                resume_from: resume.max(pause_below),
            }
        }))
    })?;
    Ok(limits.flatten())
}

fn preferred_node(site: &Object<'_>) -> Outcome<PreferredNode> {
    match site.value("preferred_node") {
        Found::Unset | Found::Null => Ok(PreferredNode::Primary),
        Found::Is(Value::String(text)) if text == "primary" => Ok(PreferredNode::Primary),
        Found::Is(Value::String(text)) => Ok(PreferredNode::Name(text.clone())),
        Found::Is(_) => {
            let expected = "primary, the number of a node from 0, or its host";
            let index = site.whole("preferred_node", expected)?;
            Ok(index
                .option()
                .map_or(PreferredNode::Primary, PreferredNode::Index))
        }
    }
}

fn nodes(site: &Object<'_>, notes: &Notes) -> Outcome<Vec<Node>> {
    let items = site.list("nodes")?.iter().enumerate();
    items
        .map(|(index, value)| node(&format!("{}.{index}", site.path("nodes")), value, notes))
        .collect()
}

fn node(path: &str, value: &Value, notes: &Notes) -> Outcome<Node> {
    let expected = "a connection string or an object of connection parameters";
    let map = match value {
        Value::String(text) => return Ok(Node::Text(Secret::new(text))),
        Value::Object(map) => map,
        other => return Err(wrong(path, expected, other)),
    };
    let parameters = map
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| match value {
            Value::String(text) => Ok((name.clone(), Secret::new(text))),
            Value::Number(number) => Ok((name.clone(), Secret::new(number.to_string()))),
            Value::Bool(flag) => Ok((name.clone(), Secret::new(u8::from(*flag).to_string()))),
            other => Err(wrong(
                &format!("{path}.{name}"),
                "a text or a number",
                other,
            )),
        });
    let mut parameters: BTreeMap<String, Secret> = parameters.collect::<Outcome<_>>()?;
    match parameters.remove("connection_string") {
        Some(connection_string) => {
            let slot = parameters.remove("slot").map(|slot| slot.0);
            for name in parameters.keys() {
                let message = "ignored beside connection_string: put it into that";
                notes.warn(format!("{path}.{name}"), message);
            }
            Ok(Node::Connection {
                connection_string,
                slot,
            })
        }
        None => Ok(Node::Parameters(parameters)),
    }
}

/// A length of time given in `unit_seconds`; 0 is as good as nothing, as in PGHoard.
fn span(site: &Object<'_>, name: &'static str, unit_seconds: f64) -> Outcome<Found<Duration>> {
    Ok(match site.number(name)? {
        Found::Is(0.0) | Found::Null => Found::Null,
        Found::Unset => Found::Unset,
        Found::Is(number) => Found::Is(
            Duration::try_from_secs_f64(number * unit_seconds)
                .map_err(|_| site.wrong(name, "a smaller number"))?,
        ),
    })
}

fn time_of_day(site: &Object<'_>) -> Outcome<Option<TimeOfDay>> {
    let hour: Option<u8> = site
        .whole("basebackup_hour", "an hour from 0 to 23")?
        .option();
    let minute: Option<u8> = site
        .whole("basebackup_minute", "a minute from 0 to 59")?
        .option();
    match (hour, minute) {
        (None, None) => Ok(None),
        (None, Some(_)) => {
            site.warn("basebackup_minute", "no effect without basebackup_hour");
            Ok(None)
        }
        (Some(24..), _) => Err(site.wrong("basebackup_hour", "an hour number from 0 to 23")),
        (_, Some(60..)) => Err(site.wrong("basebackup_minute", "a minute number from 0 to 59")),
        (Some(hour), minute) => Ok(Some(TimeOfDay {
            hour,
            minute: minute.unwrap_or(0),
        })),
    }
}

type Keys = (Option<String>, BTreeMap<String, KeyPair>);

fn encryption(site: &Object<'_>, notes: &Notes) -> Outcome<Keys> {
    let mut keys = BTreeMap::new();
    for (id, value) in site.map("encryption_keys")?.into_iter().flatten() {
        let path = format!("{}.{id}", site.path("encryption_keys"));
        let pair = Object::new(Level::KeyPair, &path, value, notes)?;
        let public = pair.text("public")?.option().map(Secret);
        let private = pair.text("private")?.option().map(Secret);
        keys.insert(id.clone(), KeyPair { public, private });
    }
    let id = site.text("encryption_key_id")?.option();
    if id.as_ref().is_some_and(|id| !keys.contains_key(id)) {
        return Err(site.wrong("encryption_key_id", "one of the ids in encryption_keys"));
    }
    Ok((id, keys))
}

fn object_storage(site: &Object<'_>, name: &str, around: &Around<'_>) -> Outcome<Option<Storage>> {
    let Some(value) = site.value("object_storage").option() else {
        return Ok(None);
    };
    let path = site.path("object_storage");
    storage::parse(name, &path, value, around.spool, around.notes)
}

fn texts(site: &Object<'_>, name: &'static str) -> Outcome<Vec<String>> {
    let items = site.list(name)?.iter();
    items
        .map(|item| item.as_str().map(str::to_owned))
        .collect::<Option<_>>()
        .ok_or_else(|| site.wrong(name, "a list of texts"))
}

fn at_least_1<T>(site: &Object<'_>, name: &'static str) -> Outcome<Found<T>>
where
    T: TryFrom<i64> + Default + PartialEq,
{
    let expected = "a whole number of at least 1";
    match site.whole(name, expected)? {
        Found::Is(zero) if zero == T::default() => Err(site.wrong(name, expected)),
        found => Ok(found),
    }
}

fn named<T: PartialEq>(table: &[(&'static str, T)], value: T) -> &'static str {
    let found = table.iter().find(|(_, known)| *known == value);
    found.map_or("", |(name, _)| name)
}
