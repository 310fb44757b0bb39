//! This machine: the file, folders, room, the HTTP port, and whether a daemon runs here.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{AccessFlags, User, access, geteuid};
use serde_json::Value;

use super::finding::Finding;
use crate::config::{Activity, Config, Warning};
use crate::durable;
use crate::http::Peer;
use crate::publish::{stats, text};
use crate::serve;
use crate::tool::config::holds_secrets;

pub struct Host<'a> {
    pub config: &'a Config,
    path: &'a Path,
    warnings: Vec<Warning>,
    secrets: bool,
    http: Http,
}

/// Who answers at our address.
enum Http {
    Ours { version: String },
    Other(String),
    Nobody,
}

type Point = fn(&Host<'_>) -> Option<Finding>;

const POINTS: &[Point] = &[
    settings,
    permissions,
    user,
    apart,
    spool,
    alerts,
    state,
    room,
    http,
    daemon,
    maintenance,
];

impl<'a> Host<'a> {
    pub fn look(
        config: &'a Config,
        path: &'a Path,
        warnings: Vec<Warning>,
        raw: &Value,
    ) -> Host<'a> {
        Host {
            config,
            path,
            warnings,
            secrets: holds_secrets(config, raw),
            http: ask(config),
        }
    }

    pub fn findings(&self) -> Vec<Finding> {
        let warned = self.warnings.iter().map(|warning| {
            Finding::warn(
                "settings",
                warning.to_string(),
                "correct it, or take it out",
            )
        });
        let points = POINTS.iter().filter_map(|point| point(self));
        warned.chain(points).collect()
    }

    pub fn running(&self) -> bool {
        matches!(self.http, Http::Ours { .. })
    }

    /// What root makes, the daemon's user may not be able to use.
    pub fn may_write(&self) -> bool {
        self.stranger().is_none()
    }

    /// Whose the spool is, if we are root and somebody else's daemon uses it.
    fn stranger(&self) -> Option<u32> {
        let spool = self.config.backup_location.as_ref()?;
        let owner = fs::metadata(spool).ok()?.uid();
        (geteuid().is_root() && owner != 0).then_some(owner)
    }
}

fn settings(host: &Host<'_>) -> Option<Finding> {
    let sites = host.config.sites.values();
    let active = sites.filter(|site| site.active == Activity::Active).count();
    let all = host.config.sites.len();
    if active == 0 {
        let cure = "add a site below backup_sites, or set its \"active\" to true";
        return Some(Finding::warn("settings", "no site is active", cure));
    }
    let told = format!("the file can be read; sites: {all}, active: {active}");
    Some(Finding::ok("settings", told))
}

fn permissions(host: &Host<'_>) -> Option<Finding> {
    let found = fs::metadata(host.path).ok()?;
    if host.secrets && found.mode() & 0o004 != 0 {
        let told = "everybody on this machine can read the secrets in the file";
        let cure = format!("chmod o= {}", host.path.display());
        return Some(Finding::warn("permissions", told, cure));
    }
    let told = match host.secrets {
        true => "the secrets in the file are not for everybody",
        false => "the file holds no secrets",
    };
    Some(Finding::ok("permissions", told))
}

fn user(host: &Host<'_>) -> Option<Finding> {
    let name = |uid: u32| {
        let user = User::from_uid(uid.into()).ok().flatten();
        user.map_or_else(|| uid.to_string(), |user| user.name)
    };
    let me = name(geteuid().as_raw());
    Some(match host.stranger() {
        Some(owner) => {
            let owner = name(owner);
            let told = format!("run by {me}, while the spool belongs to '{owner}'");
            let cure = format!("run it as the daemon's user: sudo -u {owner} pghoard check ...");
            Finding::fail("user", told, cure)
        }
        None => Finding::ok(
            "user",
            format!("'{me}', which has to be the daemon's user too"),
        ),
    })
}

fn apart(host: &Host<'_>) -> Option<Finding> {
    let failure = host.config.apart().err()?;
    Some(Finding::failed(
        "sites",
        &failure,
        "give each site a prefix of its own",
    ))
}

fn spool(host: &Host<'_>) -> Option<Finding> {
    Some(match &host.config.backup_location {
        Some(path) => folder("backup_location", path),
        None => {
            let cure = "name a folder for the event log and the WAL on its way";
            Finding::fail("backup_location", "it is not set", cure)
        }
    })
}

fn alerts(host: &Host<'_>) -> Option<Finding> {
    let dir = &host.config.alert_file_dir;
    // Told already.
    let same = host.config.backup_location.as_ref() == Some(dir);
    (!same).then(|| folder("alert_file_dir", dir))
}

fn state(host: &Host<'_>) -> Option<Finding> {
    let path = host.config.json_state_file_path.parent()?;
    let path = match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    };
    Some(folder("state_file", path))
}

fn folder(point: &'static str, path: &Path) -> Finding {
    let shown = path.display();
    let me = geteuid();
    let me = User::from_uid(me)
        .ok()
        .flatten()
        .map_or_else(|| me.to_string(), |user| user.name);
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let cure = format!("make it: install -d -o {me} -m 750 {shown}");
            return Finding::fail(point, format!("{shown} does not exist"), cure);
        }
        Err(e) => {
            let cure = format!("let '{me}' reach it");
            return Finding::fail(point, format!("{shown}: {e}"), cure);
        }
        Ok(found) if !found.is_dir() => {
            let cure = "name a folder";
            return Finding::fail(point, format!("{shown} is no folder"), cure);
        }
        Ok(_) => {}
    }
    match access(
        path,
        AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK,
    ) {
        Ok(()) => Finding::ok(point, format!("{shown} can be written to")),
        Err(errno) => {
            let told = format!("{shown} cannot be written to by '{me}': {}", errno.desc());
            Finding::fail(point, told, format!("chown {me} {shown}"))
        }
    }
}

/// Segments that should fit beside everything else.
const SEGMENTS: u64 = 16;
/// The default, until a server says otherwise.
const SEGMENT_BYTES: u64 = 16 << 20;

fn room(host: &Host<'_>) -> Option<Finding> {
    let path = host.config.backup_location.as_ref()?;
    let free = durable::free_bytes(path).ok()?;
    let sites = host.config.sites.values();
    let chunk = sites.map(|site| site.basebackup_chunk_size_bytes).max();
    let segments = SEGMENTS * SEGMENT_BYTES;
    let wanted = chunk.unwrap_or_default().saturating_add(segments);
    let told = format!("{} are free below backup_location", text::size(free));
    Some(if free < segments {
        let cure = format!(
            "make room: {SEGMENTS} segments take {}",
            text::size(segments)
        );
        Finding::fail("room", told, cure)
    } else if free < wanted {
        let cure = format!(
            "make room for a chunk of a large basebackup and {SEGMENTS} segments ({}), or set a \
             smaller basebackup_chunk_size",
            text::size(wanted)
        );
        Finding::warn("room", told, cure)
    } else {
        Finding::ok("room", told)
    })
}

fn http(host: &Host<'_>) -> Option<Finding> {
    let failure = serve::addresses(host.config).err()?;
    Some(Finding::failed(
        "http_address",
        &failure,
        "name an address of this machine",
    ))
}

fn daemon(host: &Host<'_>) -> Option<Finding> {
    let Peer {
        host: name, port, ..
    } = Peer::of(host.config);
    Some(match &host.http {
        Http::Ours { version } => Finding::ok(
            "daemon",
            format!("runs, version {version}, at {name}:{port}"),
        ),
        Http::Other(what) => {
            let told = format!("{name}:{port} answers, but not as our daemon: {what}");
            let cure = "free the port or set another http_port; with a password, the daemon has \
                        to be started again after a change";
            Finding::fail("daemon", told, cure)
        }
        Http::Nobody => Finding::ok("daemon", format!("does not run ({name}:{port} is free)")),
    })
}

fn maintenance(host: &Host<'_>) -> Option<Finding> {
    let file = &host.config.maintenance_mode_file;
    file.exists().then(|| {
        let told = format!("{} exists: no basebackup is begun", file.display());
        Finding::warn(
            "maintenance",
            told,
            "remove it when the maintenance is over",
        )
    })
}

fn ask(config: &Config) -> Http {
    let reply = match Peer::of(config).ask("GET", "/status", &[]) {
        Ok(reply) => reply,
        Err(failure) if failure.message.contains("refused") => return Http::Nobody,
        Err(failure) => return Http::Other(failure.message),
    };
    if reply.status != 200 {
        return Http::Other(format!("HTTP status {}", reply.status));
    }
    let document: Option<Value> = serde_json::from_slice(&reply.body).ok();
    let own = document
        .as_ref()
        .and_then(|document| document.get(stats::OWN));
    match own
        .and_then(|own| own.get("version"))
        .and_then(Value::as_str)
    {
        Some(version) => Http::Ours {
            version: version.to_owned(),
        },
        // Between its start and its first turn a daemon has nothing to tell yet.
        None if reply.body == b"{}" => Http::Ours {
            version: "not told yet".to_owned(),
        },
        None => Http::Other("no state of this version's daemon".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::super::finding::Verdict;
    use super::*;
    use crate::config::parse;

    fn port() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    }

    fn failing(host: &Host<'_>) -> Vec<(&'static str, Verdict)> {
        let findings = host.findings();
        let bad = findings
            .iter()
            .filter(|finding| finding.verdict != Verdict::Ok);
        bad.map(|finding| (finding.point, finding.verdict))
            .collect()
    }

    #[test]
    fn folders_rights_and_warnings_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.json");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let mut raw = json!({
            "backup_location": folder.path(), "http_port": port(),
            "json_state_file_path": folder.path().join("state.json"),
            "maintenance_mode_file": folder.path().join("maintenance"),
            "backup_sites": { "a": { "basebackup_chunk_size": 1 } },
        });
        let look = |raw: &Value| {
            let (config, warnings) = parse(raw).unwrap();
            failing(&Host::look(&config, &path, warnings, raw))
        };
        assert_eq!(look(&raw), []);
        raw["webserver_username"] = json!("u");
        raw["webserver_password"] = json!("p");
        raw["backup_sites"]["b"] = json!({ "prefix": "a", "ackk": 1 });
        raw["alert_file_dir"] = json!(folder.path().join("none"));
        raw["json_state_file_path"] = json!(path.join("x"));
        fs::write(folder.path().join("maintenance"), "").unwrap();
        assert_eq!(
            look(&raw),
            [
                ("settings", Verdict::Warn),
                ("permissions", Verdict::Warn),
                ("sites", Verdict::Fail),
                ("alert_file_dir", Verdict::Fail),
                ("state_file", Verdict::Fail),
                ("maintenance", Verdict::Warn),
            ]
        );
        raw["http_address"] = json!("0.0.0.0");
        raw["webserver_password"] = Value::Null;
        assert!(look(&raw).contains(&("http_address", Verdict::Fail)));
    }

    #[test]
    fn a_port_that_another_program_has_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"SSH-2.0-x\r\n").unwrap();
        });
        let (config, _) = parse(&json!({ "http_port": port })).unwrap();
        assert!(matches!(ask(&config), Http::Other(_)));
        answering.join().unwrap();
        assert!(matches!(ask(&config), Http::Nobody));
    }
}
