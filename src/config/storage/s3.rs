//! `s3`: AWS and what speaks its protocol. Authority: rohmu `object_storage/config.py`, `s3.py`.

use std::net::IpAddr;
use std::time::Duration;

use super::net::{self, Authority, Net, Server};
use super::{Object, Secret, bytes, prefix, required, secret, text};
use crate::failure::Outcome;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3 {
    pub region: String,
    pub bucket: String,
    /// Put before every key, without slashes at its ends.
    pub prefix: String,
    /// None is AWS.
    pub endpoint: Option<String>,
    pub addressing: Addressing,
    pub dualstack: bool,
    /// None asks the usual chain: environment, web identity, container, instance.
    pub login: Option<S3Login>,
    /// The least a part has; None is our own choice.
    pub part_bytes: Option<u64>,
    pub encryption: Encryption,
    pub storage_class: Option<String>,
    pub lock: Option<Lock>,
    pub net: Net,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Login {
    pub key_id: String,
    pub secret: Secret,
    pub session_token: Option<Secret>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// `HOST/BUCKET/KEY`.
    Path,
    /// `BUCKET.HOST/KEY`.
    Virtual,
}

/// What the server is asked to do with what it stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// What the bucket says.
    Default,
    Aes256,
    /// By the id or ARN of a key.
    Kms(String),
}

/// Every object is written with a date before which nobody may delete it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    pub mode: LockMode,
    pub days: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    Governance,
    Compliance,
}

impl S3 {
    pub(super) fn root(&self) -> String {
        // The names of buckets are AWS's as a whole, not a region's.
        let place = match &self.endpoint {
            None => "aws",
            Some(url) => url.split_once("://").map_or(url.as_str(), |(_, host)| host),
        };
        format!("{place}/{}", self.bucket)
    }
}

pub(super) fn parse(object: &Object<'_>) -> Outcome<S3> {
    let server = net::server(object)?;
    let secure = object.flag("is_secure")?.or(false);
    let style = object.one_of("addressing_style", STYLES)?.or(Style::Path);
    let bucket = required(object, "bucket_name")?;
    let net = net(object, server.as_ref(), secure)?;
    let segment = bytes(object, "segment_size")?;
    let chunk = bytes(object, "min_multipart_chunk_size")?;
    Ok(S3 {
        region: required(object, "region")?,
        prefix: prefix(object)?,
        addressing: addressing(&bucket, server.as_ref(), style),
        bucket,
        endpoint: server.map(|server| net::url(&server, secure)),
        dualstack: object.flag("use_dualstack_endpoint")?.or(true),
        login: login(object)?,
        part_bytes: segment.max(chunk),
        encryption: encryption(object)?,
        storage_class: text(object, "storage_class")?,
        lock: lock(object)?,
        net,
    })
}

/// Where names can have a bucket before them: no address does, no certificate covers two levels.
fn addressing(bucket: &str, server: Option<&Server>, style: Style) -> Addressing {
    let named = server
        .is_none_or(|server| server.host.contains('.') && server.host.parse::<IpAddr>().is_err());
    let fits = named && !bucket.contains('.');
    match (server, style) {
        (Some(_), Style::Virtual) => Addressing::Virtual,
        (None, _) | (Some(_), Style::Auto) if fits => Addressing::Virtual,
        (None, _) | (Some(_), Style::Auto | Style::Path) => Addressing::Path,
    }
}

fn net(object: &Object<'_>, server: Option<&Server>, secure: bool) -> Outcome<Net> {
    // AWS's own certificate is always looked at, whatever the key says.
    let authority = net::authority(object, server.is_none())?;
    let tls = match (server, authority) {
        (None, Authority::Unchecked) => Authority::System,
        (_, authority) => authority,
    };
    if secure && server.is_some() && tls == Authority::Unchecked {
        let message = "the server's certificate is not checked, which is the default: set it";
        object.warn("is_verify_tls", message);
    }
    let seconds = |name, default: Duration| -> Outcome<Duration> {
        let found = object.number(name)?.option().filter(|number| *number > 0.0);
        let found = found.map(Duration::try_from_secs_f64).transpose();
        let found = found.map_err(|_| object.wrong(name, "a smaller number"))?;
        Ok(found.unwrap_or(default))
    };
    Ok(Net {
        tls,
        proxy: net::proxy(object)?,
        connect_timeout: seconds("connect_timeout", net::CONNECT_TIMEOUT)?,
        read_timeout: seconds("read_timeout", net::READ_TIMEOUT)?,
        bytes_per_second_min: net::BYTES_PER_SECOND_MIN,
        user_agent_extra: text(object, "user_agent_extra")?,
    })
}

fn login(object: &Object<'_>) -> Outcome<Option<S3Login>> {
    let key_id = text(object, "aws_access_key_id")?;
    let secret_key = secret(object, "aws_secret_access_key")?;
    let session_token = secret(object, "aws_session_token")?;
    match (key_id, secret_key) {
        (Some(key_id), Some(secret)) => Ok(Some(S3Login {
            key_id,
            secret,
            session_token,
        })),
        (None, None) => Ok(None),
        (Some(_), None) => {
            Err(object.wrong("aws_secret_access_key", "a text, as aws_access_key_id"))
        }
        (None, Some(_)) => {
            Err(object.wrong("aws_access_key_id", "a text, as aws_secret_access_key"))
        }
    }
}

fn encryption(object: &Object<'_>) -> Outcome<Encryption> {
    let encrypted = object.flag("encrypted")?.or(false);
    Ok(match (text(object, "sse_kms_key_id")?, encrypted) {
        (Some(key), _) => Encryption::Kms(key),
        (None, true) => Encryption::Aes256,
        (None, false) => Encryption::Default,
    })
}

fn lock(object: &Object<'_>) -> Outcome<Option<Lock>> {
    let mode = object.one_of("object_lock_mode", LOCK_MODES)?.option();
    let days: Option<u32> = object.whole("object_lock_days", DAYS)?.option();
    match (mode, days.filter(|days| (1..=DAYS_MAX).contains(days))) {
        (Some(mode), Some(days)) => Ok(Some(Lock { mode, days })),
        (None, None) if days.is_none() => Ok(None),
        (None, Some(_)) => Err(object.wrong("object_lock_mode", "GOVERNANCE or COMPLIANCE")),
        (_, None) => Err(object.wrong("object_lock_days", DAYS)),
    }
}

#[derive(Clone, Copy)]
enum Style {
    Auto,
    Path,
    Virtual,
}

const STYLES: &[(&str, Style)] = &[
    ("auto", Style::Auto),
    ("path", Style::Path),
    ("virtual", Style::Virtual),
];
const LOCK_MODES: &[(&str, LockMode)] = &[
    ("GOVERNANCE", LockMode::Governance),
    ("COMPLIANCE", LockMode::Compliance),
];
const DAYS: &str = "a whole number of days from 1 to 36500";
const DAYS_MAX: u32 = 36_500;
