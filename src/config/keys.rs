//! The one table of configuration keys: what the parser may ask for and what the reader is told.
//!
//! A key that is not here is unknown and warned about; the parser cannot read one that is not
//! here, and a test refuses one that the parser never reads. Authority for the names and
//! defaults: PGHoard `pghoard/config.py`.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Global,
    Compression,
    Transfer,
    Statsd,
    Pushgateway,
    Prometheus,
    Site,
    Receivexlog,
    KeyPair,
    Local,
    S3,
    Google,
    Azure,
    Swift,
    Sftp,
    Proxy,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::Global => "global",
            Level::Compression => "compression",
            Level::Transfer => "transfer",
            Level::Statsd => "statsd",
            Level::Pushgateway => "pushgateway",
            Level::Prometheus => "prometheus",
            Level::Site => "backup_sites.SITE",
            Level::Receivexlog => "backup_sites.SITE.pg_receivexlog",
            Level::KeyPair => "backup_sites.SITE.encryption_keys.ID",
            Level::Local => "backup_sites.SITE.object_storage (local)",
            Level::S3 => "backup_sites.SITE.object_storage (s3)",
            Level::Google => "backup_sites.SITE.object_storage (google)",
            Level::Azure => "backup_sites.SITE.object_storage (azure)",
            Level::Swift => "backup_sites.SITE.object_storage (swift)",
            Level::Sftp => "backup_sites.SITE.object_storage (sftp)",
            Level::Proxy => "backup_sites.SITE.object_storage.proxy_info",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Read by the parser.
    Read,
    /// Read and checked, but what it is for is not built yet.
    Later,
    /// Accepted because configurations of PGHoard, or of the appliance, have it; nothing here
    /// needs it.
    Accepted,
}

#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub level: Level,
    pub name: &'static str,
    pub default: &'static str,
    pub meaning: &'static str,
    pub used: Use,
}

pub fn all() -> impl Iterator<Item = Key> {
    let levels = KEYS.iter();
    levels.flat_map(|(level, rows)| rows.iter().map(|row| row.key(*level)))
}

pub fn of(level: Level) -> impl Iterator<Item = Key> {
    all().filter(move |key| key.level == level)
}

struct Row {
    name: &'static str,
    default: &'static str,
    meaning: &'static str,
    used: Use,
}

impl Row {
    fn key(&self, level: Level) -> Key {
        Key {
            level,
            name: self.name,
            default: self.default,
            meaning: self.meaning,
            used: self.used,
        }
    }
}

const fn key(name: &'static str, default: &'static str, meaning: &'static str) -> Row {
    Row {
        name,
        default,
        meaning,
        used: Use::Read,
    }
}

const fn later(name: &'static str, default: &'static str, meaning: &'static str) -> Row {
    Row {
        name,
        default,
        meaning,
        used: Use::Later,
    }
}

const fn idle(name: &'static str, meaning: &'static str) -> Row {
    Row {
        name,
        default: "-",
        meaning,
        used: Use::Accepted,
    }
}

const KEYS: &[(Level, &[Row])] = &[
    (Level::Global, GLOBAL),
    (Level::Compression, COMPRESSION),
    (Level::Transfer, TRANSFER),
    (Level::Statsd, STATSD),
    (Level::Pushgateway, PUSHGATEWAY),
    (Level::Prometheus, PROMETHEUS),
    (Level::Site, SITE),
    (Level::Receivexlog, RECEIVEXLOG),
    (Level::KeyPair, KEYPAIR),
    (Level::Local, LOCAL),
    (Level::S3, S3),
    (Level::Google, GOOGLE),
    (Level::Azure, AZURE),
    (Level::Swift, SWIFT),
    (Level::Sftp, SFTP),
    (Level::Proxy, PROXY),
];

#[rustfmt::skip]
const GLOBAL: &[Row] = &[
    key("backup_location", "none", "folder of the spool and the event log"),
    key("backup_sites", "{}", "the sites, by name"),
    key("alert_file_dir", "backup_location", "folder of the alert files"),
    key("json_state_file_path", "/var/lib/pghoard/pghoard_state.json", "the state file"),
    key("maintenance_mode_file", "/var/lib/pghoard/maintenance_mode_file", "stops new basebackups"),
    key("http_address", "127.0.0.1", "address to listen on; empty for all"),
    key("http_port", "16000", "port to listen on"),
    key("webserver_username", "none", "basic authentication, with the password"),
    key("webserver_password", "none", "basic authentication, with the name"),
    key("http_allow_unauthenticated", "false", "true: no authentication beyond loopback either"),
    key("http_monitor_token", "none", "token that may look: /status, /metrics, /files, /log"),
    key("http_tls_certificate", "none", "PEM file of the API's certificate and its chain"),
    key("http_tls_key", "none", "PEM file of the key to it; with both the API speaks only TLS"),
    key("log_level", "INFO", "DEBUG, INFO, WARNING, ERROR or CRITICAL"),
    key("syslog", "false", "true: log to syslog too"),
    key("syslog_address", "/dev/log", "socket of syslog, or HOST:PORT for UDP"),
    key("syslog_facility", "local2", "facility of syslog: daemon, user, local0 to local7 ..."),
    key("path_prefix", "empty", "put before the default prefix of each site"),
    key("upload_retries_warning_limit", "3", "failed uploads in a row before the alert"),
    key("hash_algorithm", "sha1", "digest kept with each WAL segment"),
    key("graceful_shutdown_compression_timeout", "180", "seconds to begin uploads; null: for ever"),
    key("graceful_shutdown_upload_timeout", "300", "then seconds to end them; null: for ever"),
    key("compression", "{}", "how objects are compressed"),
    key("transfer", "{}", "how objects are moved"),
    key("restore_process_count", "CPUs + 1, at most 20", "parallel fetches of a restore"),
    key("restore_prefetch", "transfer.thread_count", "WAL segments fetched ahead; 0 for none"),
    key("event_log_events_max", "500000", "a longer event log is compacted; null or 0: never"),
    key("event_log_export", "true", "the event log goes to the stores, before it is compacted"),
    key("statsd", "none", "metrics as datagrams"),
    key("pushgateway", "none", "metrics to a Prometheus pushgateway"),
    key("prometheus", "none", "metrics at /metrics"),
    idle("tar_executable", "archives are read without a program"),
    idle("pg_basebackup_path", "no PostgreSQL programs are run"),
    idle("pg_receivexlog_path", "no PostgreSQL programs are run"),
    idle("deleter_event_get_timeout", "nothing is polled"),
    idle("appliance", "settings of the appliance; the daemon ignores them"),
];

#[rustfmt::skip]
const COMPRESSION: &[Row] = &[
    key("algorithm", "snappy", "snappy, zstd or lzma"),
    key("level", "0", "0 is the algorithm's own default"),
    key("thread_count", "CPUs + 1", "objects encoded at a time, at most one a CPU"),
];

#[rustfmt::skip]
const TRANSFER: &[Row] = &[
    key("thread_count", "CPUs + 3, at most 20", "objects moved at a time"),
];

#[rustfmt::skip]
const STATSD: &[Row] = &[
    key("host", "127.0.0.1", "where to send; null for nowhere"),
    key("port", "8125", "where to send; null for nowhere"),
    key("format", "telegraf", "telegraf or datadog"),
    key("tags", "{}", "added to every metric"),
];

#[rustfmt::skip]
const PUSHGATEWAY: &[Row] = &[
    key("endpoint", "empty", "http or https URL to push to; empty for nowhere"),
    key("tls_ca", "the system's", "PEM file of who signed the certificate of an https endpoint"),
    key("job", "pghoard", "job label"),
    key("instance", "empty", "instance label"),
    key("tags", "{}", "added to every metric"),
];

#[rustfmt::skip]
const PROMETHEUS: &[Row] = &[
    key("tags", "{}", "added to every metric"),
];

#[rustfmt::skip]
const SITE: &[Row] = &[
    key("active", "true", "false: at rest; only the site it moved to lets its basebackups go"),
    key(
        "active_backup_mode",
        "pg_receivexlog",
        "pg_receivexlog, walreceiver, archive_command or standalone_hot_backup",
    ),
    key("ack", "stored", "what PostgreSQL is told is safe: stored or spooled"),
    key("application_name", "pghoard", "our name as a standby"),
    key("preferred_node", "primary", "or number (from 0) or host of a node"),
    key("spool_limit_bytes", "none", "receiving pauses when the spool holds more"),
    key("reconcile_interval_seconds", "86400", "how often the store is listed and compared"),
    key("backup_overdue_hours", "2 intervals + 1", "alert when the last good basebackup is older"),
    key("wal_overdue_seconds", "3600", "alert when WAL has not become safe for so long"),
    key("slot_retention_bytes", "10737418240", "alert when our slot holds back more on its server"),
    key("verify_interval_days", "30", "each stored object is read once in this time; 0 for never"),
    key("verify_bytes_per_second", "10485760", "how fast, at most; null for no limit"),
    key("basebackup_mode", "stream", "how basebackups are taken: stream, basic or pipe"),
    key("stream_compression", "false", "old name of basebackup_mode pipe"),
    key("basebackup_count", "2", "basebackups to keep; null for all"),
    key("basebackup_count_min", "2", "basebackups kept whatever their age"),
    key("basebackup_age_days_max", "none", "older basebackups expire"),
    key("recovery_window_days", "none", "every moment of so many days stays restorable"),
    key("retain_weekly", "0", "of so many weeks the newest restorable basebackup stays"),
    key("retain_monthly", "0", "of so many months the newest restorable basebackup stays"),
    key("retain_yearly", "0", "of so many years the newest restorable basebackup stays"),
    key("basebackup_interval_hours", "24", "null for basebackups on request only"),
    key("basebackup_hour", "none", "hour of day (UTC) the schedule starts from"),
    key("basebackup_minute", "0", "minute to basebackup_hour"),
    key("basebackup_chunk_size", "2147483648", "plain bytes in a chunk"),
    key("basebackup_chunks_in_progress", "5", "chunks on disk at a time"),
    later("basebackup_threads", "1", "chunks encoded at a time"),
    key(
        "basebackup_compression_threads",
        "0 in basic and pipe, else 2",
        "zstd threads in one chunk",
    ),
    later("basebackup_delta_mode_max_retries", "10", "attempts at a stable snapshot"),
    later("basebackup_delta_mode_min_delta_file_size", "10485760", "smaller files are bundled"),
    later("basebackup_delta_mode_chunk_size", "524288000", "plain bytes in a bundle"),
    key("encryption_format", "aes-gcm", "aes-gcm, or pghoa1 while a PGHoard still reads the store"),
    key("encryption_key_id", "none", "key that encrypts; none writes in the clear"),
    key("encryption_keys", "{}", "RSA keys in PEM, by id"),
    key("object_storage", "none", "where objects are kept"),
    key("nodes", "[]", "servers of the cluster"),
    key("pg_data_directory", "none", "PGDATA, where it is on this machine"),
    key("pg_receivexlog", "{}", "limits on receiving"),
    key("prefix", "path_prefix/SITE", "first part of every object key"),
    key("moved_from", "[]", "sites whose basebackups are the history of this one"),
    idle("pg_bin_directory", "no PostgreSQL programs are run"),
    idle("pg_basebackup_path", "no PostgreSQL programs are run"),
    idle("pg_receivexlog_path", "no PostgreSQL programs are run"),
    idle("pg_basebackup_version", "computed by PGHoard"),
    idle("pg_receivexlog_version", "computed by PGHoard"),
    idle("pg_data_directory_version", "computed by PGHoard"),
];

#[rustfmt::skip]
const RECEIVEXLOG: &[Row] = &[
    key("min_disk_free_bytes", "none", "receiving pauses when the disk has less free"),
    key("resume_multiplier", "1.5", "times min_disk_free_bytes to go on"),
    idle("disk_space_check_interval", "room is looked at every second"),
];

#[rustfmt::skip]
const KEYPAIR: &[Row] = &[
    key("public", "none", "needed to write"),
    key("private", "none", "needed to read"),
];

#[rustfmt::skip]
const LOCAL: &[Row] = &[
    key("storage_type", "required", "local"),
    key("directory", "required", "folder of the objects"),
    key("prefix", "empty", "put before every key"),
    idle("notifier", "no one is notified"),
    idle("statsd_info", "metrics are those of the daemon"),
];

#[rustfmt::skip]
const S3: &[Row] = &[
    key("storage_type", "required", "s3"),
    key("region", "required", "region of the bucket"),
    key("bucket_name", "required", "bucket of the objects"),
    key("prefix", "empty", "put before every key"),
    key("aws_access_key_id", "none", "with the secret; none: environment, identity of the machine"),
    key("aws_secret_access_key", "none", "with the id"),
    key("aws_session_token", "none", "of temporary credentials"),
    key("host", "none", "server that speaks S3, with the port; none is AWS"),
    key("port", "none", "port of host"),
    key("is_secure", "false", "true: host speaks TLS; AWS always does"),
    key("is_verify_tls", "false", "true: the certificate of host is checked; AWS's always is"),
    key("cert_path", "none", "PEM file of who signed it, instead of the system's authorities"),
    key("addressing_style", "path", "path, virtual or auto: where host has the bucket's name"),
    key("use_dualstack_endpoint", "true", "AWS by IPv4 or IPv6"),
    key("segment_size", "none", "bytes of a part, at least; none or 0: 8 MiB"),
    key("min_multipart_chunk_size", "none", "as segment_size; the larger of the two counts"),
    key("encrypted", "false", "true: the server is asked to encrypt, by a key of its own"),
    key("sse_kms_key_id", "none", "the server is asked to encrypt by this key of KMS"),
    key("storage_class", "none", "storage class of every object"),
    key("object_lock_mode", "none", "GOVERNANCE or COMPLIANCE: objects are locked, with the days"),
    key("object_lock_days", "none", "days from its writing in which an object cannot be deleted"),
    key("connect_timeout", "20", "seconds to connect"),
    key("read_timeout", "60", "longest silence of the server, in seconds"),
    key("user_agent_extra", "none", "added to the name we give"),
    key("proxy_info", "none", "the proxy to it"),
    idle("notifier", "no one is notified"),
    idle("statsd_info", "metrics are those of the daemon"),
];

#[rustfmt::skip]
const GOOGLE: &[Row] = &[
    key("storage_type", "required", "google"),
    key("project_id", "none", "project to make the bucket in, where it is not there"),
    key("bucket_name", "required", "bucket of the objects"),
    key("prefix", "empty", "put before every key"),
    key("credential_file", "none", "JSON file of the credentials; none: those of the machine"),
    key("credentials", "none", "the credentials themselves, as in such a file"),
    key("host", "none", "server that speaks Google's JSON API, with the port; none is Google"),
    key("port", "none", "port of host"),
    key("is_secure", "true", "host speaks TLS"),
    key("is_verify_tls", "true", "false: no certificate is checked"),
    key("cert_path", "none", "PEM file of who signed it, instead of the system's authorities"),
    key("proxy_info", "none", "the proxy to it"),
    idle("notifier", "no one is notified"),
    idle("statsd_info", "metrics are those of the daemon"),
];

#[rustfmt::skip]
const AZURE: &[Row] = &[
    key("storage_type", "required", "azure"),
    key("account_name", "required", "storage account"),
    key("account_key", "none", "its key"),
    key("sas_token", "none", "shared access signature; neither: the identity of the machine"),
    key("bucket_name", "required", "container of the objects"),
    key("prefix", "empty", "put before every key"),
    key("azure_cloud", "public", "public, germany or china"),
    key("host", "none", "server that speaks Azure's API, with the port; none is the cloud"),
    key("port", "none", "port of host"),
    key("is_secure", "true", "it speaks TLS"),
    key("is_verify_tls", "true", "false: no certificate is checked"),
    key("cert_path", "none", "PEM file of who signed it, instead of the system's authorities"),
    key("proxy_info", "none", "the proxy to it"),
    idle("notifier", "no one is notified"),
    idle("statsd_info", "metrics are those of the daemon"),
];

#[rustfmt::skip]
const SWIFT: &[Row] = &[
    key("storage_type", "required", "swift"),
    key("auth_url", "required", "where we log in"),
    key("auth_version", "2.0", "1.0, 2.0 or 3.0"),
    key("user", "required", "who we are"),
    key("key", "required", "password of the user"),
    key("container_name", "required", "container of the objects"),
    key("prefix", "empty", "put before every key"),
    key("segment_size", "3221225472", "most bytes of a segment, which has 8 MiB as a rule"),
    key("tenant_name", "none", "tenant, or project, of the user"),
    key("tenant_id", "none", "the same by its id"),
    key("region_name", "none", "region to use, where there are several"),
    key("user_id", "none", "user by id"),
    key("user_domain_id", "none", "domain of the user by id"),
    key("user_domain_name", "none", "domain of the user"),
    key("project_id", "none", "project by id"),
    key("project_name", "none", "project"),
    key("project_domain_id", "none", "domain of the project by id"),
    key("project_domain_name", "none", "domain of the project"),
    key("service_type", "none", "type in the catalog; none: object-store"),
    key("endpoint_type", "none", "interface in the catalog; none: publicURL"),
    key("is_verify_tls", "true", "false: no certificate is checked"),
    key("cert_path", "none", "PEM file of who signed it, instead of the system's authorities"),
    key("proxy_info", "none", "the proxy to it"),
    idle("notifier", "no one is notified"),
    idle("statsd_info", "metrics are those of the daemon"),
];

#[rustfmt::skip]
const SFTP: &[Row] = &[
    key("storage_type", "required", "sftp"),
    key("server", "required", "host of the SSH server"),
    key("port", "22", "its port"),
    key("username", "required", "who we are there"),
    key("password", "none", "password; this or a private_key"),
    key("private_key", "none", "file of a private key"),
    key("private_key_passphrase", "none", "what opens that file"),
    key("known_hosts", "none", "file of the server's key; none: ~/.ssh/known_hosts"),
    key("is_verify_host_key", "true", "false: any server is believed, as in PGHoard"),
    key("prefix", "empty", "put before every key"),
    idle("notifier", "no one is notified"),
    idle("statsd_info", "metrics are those of the daemon"),
];

#[rustfmt::skip]
const PROXY: &[Row] = &[
    key("type", "required", "http or socks5"),
    key("host", "required", "host of the proxy"),
    key("port", "required", "port of the proxy"),
    key("user", "none", "who we are there"),
    key("pass", "none", "password there"),
];
