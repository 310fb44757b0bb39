//! The configuration: one JSON file of PGHoard's, parsed once into checked types.
//!
//! Unknown keys are warned about with the nearest known name and never fail, because PGHoard
//! ignores them; a value of the wrong kind is one error that names its path. The keys themselves
//! are in [`keys`]. Error texts of the file and of site selection are PGHoard's own.

mod chain;
mod endpoint;
pub mod keys;
mod read;
pub mod reload;
mod site;
mod storage;
mod syslog;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use machine::Class;
use serde_json::Value;

use crate::codec::{Compression, Encoding};
use crate::failure::{Failure, Outcome};
use keys::Level;
use read::{Found, Notes, Object, wrong};

pub use endpoint::{Endpoint, Scheme, decoded};
pub use read::Warning;
pub use site::{
    Ack, ActiveBackupMode, Activity, BasebackupMode, DiskFree, KeyPair, Node, PreferredNode,
    Secret, Site, TimeOfDay,
};
pub use storage::{
    Addressing, AuthVersion, Authority, Azure, AzureLogin, BYTES_PER_SECOND_MIN, Encryption,
    Google, GoogleLogin, Lock, LockMode, Net, Proxy, ProxyKind, S3, S3Login, Sftp, SftpLogin,
    Storage, Swift,
};
pub use syslog::{Syslog, To};

#[derive(Clone, Debug)]
pub struct Config {
    pub backup_location: Option<PathBuf>,
    pub alert_file_dir: PathBuf,
    pub json_state_file_path: PathBuf,
    pub maintenance_mode_file: PathBuf,
    pub http_address: String,
    pub http_port: u16,
    /// Basic authentication, when both halves are set.
    pub webserver: Option<Credentials>,
    pub http_anonymous: Anonymous,
    /// May look, and nothing else.
    pub http_monitor_token: Option<Secret>,
    /// The API speaks TLS and nothing else.
    pub http_tls: Option<Tls>,
    pub log_level: LogLevel,
    pub syslog: Option<Syslog>,
    pub upload_retries_warning_limit: u32,
    pub hash_algorithm: String,
    /// None waits for ever.
    pub graceful_shutdown_compression_timeout: Option<Duration>,
    pub graceful_shutdown_upload_timeout: Option<Duration>,
    pub compression: Compressing,
    pub transfer_threads: u32,
    pub restore_threads: u32,
    /// WAL segments fetched ahead of PostgreSQL; 0 for none.
    pub restore_prefetch: u32,
    /// None never compacts the event log.
    pub event_log_events_max: Option<u64>,
    pub event_log_export: bool,
    pub statsd: Option<Statsd>,
    pub pushgateway: Option<Pushgateway>,
    pub prometheus: Option<Tags>,
    pub sites: BTreeMap<String, Site>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: Secret,
}

/// PEM files of a server's certificate chain and key.
#[derive(Clone, Debug)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Who may use the HTTP API where no name and password are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anonymous {
    /// The daemon does not listen anywhere else.
    Loopback,
    Anyone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Debug,
    Info,
    Warning,
    Error,
    Critical,
}

#[derive(Clone, Copy, Debug)]
pub struct Compressing {
    pub algorithm: Compression,
    /// 0 is the algorithm's own default.
    pub level: i32,
    pub threads: u32,
}

pub type Tags = BTreeMap<String, String>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatsdFormat {
    Telegraf,
    Datadog,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statsd {
    /// None sends nowhere.
    pub address: Option<(String, u16)>,
    pub format: StatsdFormat,
    pub tags: Tags,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushgateway {
    /// None pushes nowhere.
    pub endpoint: Option<Endpoint>,
    /// None is whom the system trusts.
    pub tls_ca: Option<PathBuf>,
    pub job: String,
    pub instance: String,
    pub tags: Tags,
}

pub fn load(path: &Path) -> Outcome<(Config, Vec<Warning>)> {
    parse(&load_json(path)?)
}

/// The file as it stands, for who edits it.
pub fn load_json(path: &Path) -> Outcome<Value> {
    let refused = |text: String| Failure::new(Class::Config, text);
    let file = path.display();
    let bytes = fs::read(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => refused(format!("Configuration file '{file}' does not exist")),
        _ => refused(format!(
            "Configuration file '{file}' can't be opened: {}",
            python_name(&e)
        )),
    })?;
    serde_json::from_slice(&bytes).map_err(|e| {
        refused(format!(
            "Configuration file '{file}' does not contain valid JSON: {e}"
        ))
    })
}

pub fn parse(value: &Value) -> Outcome<(Config, Vec<Warning>)> {
    let notes = Notes::default();
    let config = global(value, &notes)?;
    Ok((config, notes.warnings.into_inner()))
}

/// Of sites by name, the one named, or the only one.
pub fn choose<'a, T>(
    sites: impl IntoIterator<Item = (&'a String, T)>,
    name: Option<&str>,
) -> Outcome<(&'a str, T)> {
    let mut sites: Vec<(&str, T)> = sites.into_iter().map(|(k, v)| (k.as_str(), v)).collect();
    let names: Vec<String> = sites.iter().map(|(name, _)| format!("'{name}'")).collect();
    let (count, names) = (names.len(), names.join(", "));
    let at = match name {
        None => 0,
        Some(name) => sites
            .iter()
            .position(|(known, _)| *known == name)
            .unwrap_or(count),
    };
    let refused = |text: String| Err(Failure::new(Class::Config, text));
    match (name, count) {
        (_, 0) => refused("No backup sites defined in configuration".to_owned()),
        (None, 2..) => refused(format!(
            "Backup site not set and configuration file defines {count} sites: [{names}]"
        )),
        (Some(name), _) if at == count => refused(format!(
            "Site '{name}' not defined in configuration file.  {count} other site{s} are \
             defined: [{names}]",
            s = if count == 1 { "" } else { "s" },
        )),
        _ => Ok(sites.swap_remove(at)),
    }
}

impl Config {
    /// The site a tool works on: the one named, or the only one.
    pub fn site(&self, name: Option<&str>) -> Outcome<&Site> {
        choose(&self.sites, name).map(|(_, site)| site)
    }

    /// How objects of a site are written, with `threads` workers in one zstd frame.
    pub fn encoding(&self, site: &Site, threads: u32) -> Outcome<Encoding> {
        Ok(Encoding {
            compression: self.compression.algorithm,
            level: self.compression.level,
            threads,
            encryption: site.encryption()?,
        })
    }

    /// Two active sites would write over each other if they had a prefix in common, which names
    /// the spool as well, or a place in the store: the daemon does not begin then. No error of the
    /// file, because restores have to work all the same.
    pub fn apart(&self) -> Outcome<()> {
        let active = || self.sites.values().filter(|s| s.active == Activity::Active);
        for (count, a) in active().enumerate() {
            for b in active().skip(count + 1) {
                let place = a.place().filter(|place| b.place().as_ref() == Some(place));
                let what = match place {
                    _ if a.prefix == b.prefix => format!("the prefix '{}'", a.prefix),
                    Some(place) => format!("the place {place} in the store"),
                    None => continue,
                };
                let message = format!("sites '{}' and '{}' both have {what}", a.name, b.name);
                return Err(Failure::new(Class::Config, message)
                    .hint("give each site a prefix of its own, or set active of one to false"));
            }
        }
        Ok(())
    }
}

fn global(value: &Value, notes: &Notes) -> Outcome<Config> {
    let global = Object::new(Level::Global, "", value, notes)?;
    let backup_location = global.text("backup_location")?.option();
    let backup_location = backup_location.filter(|p| !p.is_empty()).map(PathBuf::from);
    let alert_file_dir = global.text("alert_file_dir")?.option().map(PathBuf::from);
    let transfer_threads = global
        .section("transfer", Level::Transfer, |transfer| {
            transfer.whole("thread_count", COUNT)
        })?
        .and_then(Found::option)
        .filter(|count: &u32| *count > 0)
        .unwrap_or(cpus().saturating_add(3).min(THREADS_MAX));
    let prefetch: i64 = global
        .whole("restore_prefetch", "a whole number")?
        .or(i64::from(transfer_threads));
    let seconds = |name, default| {
        let found = global.number(name)?.or_none(default);
        let duration = found.map(Duration::try_from_secs_f64).transpose();
        duration.map_err(|_| global.wrong(name, "a smaller number"))
    };
    Ok(Config {
        alert_file_dir: alert_file_dir
            .or_else(|| backup_location.clone())
            .unwrap_or(PathBuf::from(".")),
        json_state_file_path: path_or(
            &global,
            "json_state_file_path",
            "/var/lib/pghoard/pghoard_state.json",
        )?,
        maintenance_mode_file: path_or(
            &global,
            "maintenance_mode_file",
            "/var/lib/pghoard/maintenance_mode_file",
        )?,
        http_address: global.text("http_address")?.or("127.0.0.1".to_owned()),
        http_port: global.whole("http_port", "a port number")?.or(16_000),
        webserver: webserver(&global)?,
        http_anonymous: match global.flag("http_allow_unauthenticated")?.or(false) {
            true => Anonymous::Anyone,
            false => Anonymous::Loopback,
        },
        http_monitor_token: monitor_token(&global)?,
        http_tls: http_tls(&global)?,
        log_level: log_level(&global),
        syslog: syslog::parse(&global)?,
        upload_retries_warning_limit: global.whole("upload_retries_warning_limit", COUNT)?.or(3),
        hash_algorithm: global.text("hash_algorithm")?.or("sha1".to_owned()),
        graceful_shutdown_compression_timeout: seconds(
            "graceful_shutdown_compression_timeout",
            180.0,
        )?,
        graceful_shutdown_upload_timeout: seconds("graceful_shutdown_upload_timeout", 300.0)?,
        compression: compression(&global)?,
        transfer_threads,
        restore_threads: threads(
            &global,
            "restore_process_count",
            cpus().saturating_add(1).min(THREADS_MAX),
        )?,
        restore_prefetch: u32::try_from(prefetch.max(0)).unwrap_or(u32::MAX),
        event_log_events_max: events_max(&global)?,
        event_log_export: global.flag("event_log_export")?.or(true),
        statsd: global.section("statsd", Level::Statsd, statsd)?,
        pushgateway: global.section("pushgateway", Level::Pushgateway, pushgateway)?,
        prometheus: global.section("prometheus", Level::Prometheus, tags)?,
        sites: sites(&global, backup_location.as_deref(), notes)?,
        backup_location,
    })
}

/// A level that nobody knows is passed over, as in PGHoard: no reason not to start.
fn log_level(global: &Object<'_>) -> LogLevel {
    match global.one_of("log_level", LOG_LEVELS) {
        Ok(found) => found.or(LogLevel::Info),
        Err(_) => {
            global.warn("log_level", "no such level, ignored: it is INFO");
            LogLevel::Info
        }
    }
}

fn threads(global: &Object<'_>, name: &'static str, default: u32) -> Outcome<u32> {
    let found = global.whole(name, "a whole number of at least 1")?;
    let found: u32 = found.or(default);
    Ok(found.max(1))
}

fn events_max(global: &Object<'_>) -> Outcome<Option<u64>> {
    let max = global.whole("event_log_events_max", COUNT)?;
    Ok(max.or_none(500_000).filter(|max| *max > 0))
}

fn sites(
    global: &Object<'_>,
    spool: Option<&Path>,
    notes: &Notes,
) -> Outcome<BTreeMap<String, Site>> {
    let path_prefix = global.text("path_prefix")?.or(String::new());
    let around = site::Around {
        path_prefix: &path_prefix,
        spool,
        notes,
    };
    let items = global.map("backup_sites")?.into_iter().flatten();
    let sites: BTreeMap<String, Site> = items
        .map(|(name, value)| Ok((name.clone(), site::parse(name, value, &around)?)))
        .collect::<Outcome<_>>()?;
    chain::check(&sites)?;
    Ok(sites)
}

fn webserver(global: &Object<'_>) -> Outcome<Option<Credentials>> {
    let username = global.text("webserver_username")?.option();
    let password = global.text("webserver_password")?.option();
    let both = username.zip(password);
    let both = both.filter(|(username, password)| !username.is_empty() && !password.is_empty());
    Ok(both.map(|(username, password)| Credentials {
        username,
        password: Secret::new(password),
    }))
}

fn monitor_token(global: &Object<'_>) -> Outcome<Option<Secret>> {
    let token = global.text("http_monitor_token")?.option();
    let plain = |token: &String| token.bytes().all(|b| b.is_ascii_graphic());
    match token.filter(|token| !token.is_empty()) {
        Some(token) if token.len() < TOKEN_CHARS_MIN || !plain(&token) => {
            Err(global.wrong("http_monitor_token", "16 or more letters and digits"))
        }
        token => Ok(token.map(Secret::new)),
    }
}

fn http_tls(global: &Object<'_>) -> Outcome<Option<Tls>> {
    let path = |name| -> Outcome<Option<PathBuf>> {
        let text = global.text(name)?.option().filter(|text| !text.is_empty());
        Ok(text.map(PathBuf::from))
    };
    match (path("http_tls_certificate")?, path("http_tls_key")?) {
        (Some(certificate), Some(key)) => Ok(Some(Tls { certificate, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(global.wrong("http_tls_key", "a file, as http_tls_certificate")),
        (None, Some(_)) => Err(global.wrong("http_tls_certificate", "a file, as http_tls_key")),
    }
}

fn compression(global: &Object<'_>) -> Outcome<Compressing> {
    let threads_default = cpus().saturating_add(1);
    let found = global.section("compression", Level::Compression, |section| {
        let threads: u32 = section.whole("thread_count", COUNT)?.or(threads_default);
        Ok(Compressing {
            algorithm: section
                .one_of("algorithm", ALGORITHMS)?
                .or(Compression::Snappy),
            level: section.whole("level", "a whole number")?.or(0),
            threads: threads.max(1),
        })
    })?;
    Ok(found.unwrap_or(Compressing {
        algorithm: Compression::Snappy,
        level: 0,
        threads: threads_default,
    }))
}

fn statsd(section: &Object<'_>) -> Outcome<Statsd> {
    let host = section.text("host")?.or_none("127.0.0.1".to_owned());
    let port = section.whole("port", "a port number")?.or_none(8125);
    Ok(Statsd {
        address: host.zip(port),
        format: section
            .one_of("format", FORMATS)?
            .or(StatsdFormat::Telegraf),
        tags: tags(section)?,
    })
}

fn pushgateway(section: &Object<'_>) -> Outcome<Pushgateway> {
    Ok(Pushgateway {
        endpoint: endpoint(section)?,
        tls_ca: section.text("tls_ca")?.option().map(PathBuf::from),
        job: section.text("job")?.or("pghoard".to_owned()),
        instance: section.text("instance")?.or(String::new()),
        tags: tags(section)?,
    })
}

fn endpoint(section: &Object<'_>) -> Outcome<Option<Endpoint>> {
    let url = section.text("endpoint")?.or(String::new());
    if url.is_empty() {
        return Ok(None);
    }
    let endpoint = Endpoint::parse(&url);
    let expected = "a URL as http://HOST:PORT or https://HOST:PORT";
    endpoint
        .map(Some)
        .ok_or_else(|| section.wrong("endpoint", expected))
}

/// Labels; numbers and flags become text, as in PGHoard.
fn tags(section: &Object<'_>) -> Outcome<Tags> {
    let items = section.map("tags")?.into_iter().flatten();
    items
        .map(|(name, value)| match value {
            Value::String(text) => Ok((name.clone(), text.clone())),
            Value::Number(_) | Value::Bool(_) => Ok((name.clone(), value.to_string())),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                let path = format!("{}.{name}", section.path("tags"));
                Err(wrong(&path, "a text", value))
            }
        })
        .collect()
}

fn path_or(object: &Object<'_>, name: &'static str, default: &str) -> Outcome<PathBuf> {
    let text = object.text(name)?.or(default.to_owned());
    Ok(PathBuf::from(text))
}

fn cpus() -> u32 {
    let count = thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(count).unwrap_or(1)
}

/// The class PGHoard names when a file cannot be read.
fn python_name(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "PermissionError",
        io::ErrorKind::IsADirectory => "IsADirectoryError",
        _ => "OSError",
    }
}

const COUNT: &str = "a whole number of at least 0";

/// Nobody guesses so many.
const TOKEN_CHARS_MIN: usize = 16;

/// PGHoard's own bound on threads by default.
const THREADS_MAX: u32 = 20;

const LOG_LEVELS: &[(&str, LogLevel)] = &[
    ("DEBUG", LogLevel::Debug),
    ("INFO", LogLevel::Info),
    ("WARNING", LogLevel::Warning),
    ("ERROR", LogLevel::Error),
    ("CRITICAL", LogLevel::Critical),
    // Python's other names for them.
    ("WARN", LogLevel::Warning),
    ("FATAL", LogLevel::Critical),
];
const ALGORITHMS: &[(&str, Compression)] = &[
    ("snappy", Compression::Snappy),
    ("zstd", Compression::Zstd),
    ("lzma", Compression::Lzma),
];
const FORMATS: &[(&str, StatsdFormat)] = &[
    ("telegraf", StatsdFormat::Telegraf),
    ("datadog", StatsdFormat::Datadog),
];

#[cfg(test)]
mod tests;
