//! The control socket: what the console and the daemon may ask of PID 1.
//!
//! One line of JSON asks, one answers: `{"ok": ...}` or `{"error": "..."}`. Root, which is the
//! console, may everything; the daemon's user may what its API offers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use machine::Class;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use pghoard::{Failure, Outcome};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::children;
use crate::host::Host;
use crate::power::How;
use crate::settings::Settings;
use crate::settings::store::{DAEMON, Past, give};
use crate::supervise::Order;

pub const SOCKET: &str = "/run/control";
/// A document of settings is the longest.
const LINE_MAX: u64 = 4 << 20;
const AT_ONCE_MAX: usize = 16;
const ASKS_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    Status,
    Apply {
        settings: Value,
        who: String,
    },
    Check {
        settings: Value,
    },
    Settings,
    History,
    RollBack {
        name: String,
        who: String,
    },
    Import,
    Power {
        how: How,
        who: String,
    },
    /// `drive` is the bundle on the configuration drive.
    Update {
        path: PathBuf,
        who: String,
    },
    Slots,
    SlotBack {
        who: String,
    },
    TimeSync,
    NetworkRenew,
    Daemon {
        how: DaemonOrder,
        who: String,
    },
    DiskRepair {
        who: String,
    },
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DaemonOrder {
    Start,
    Stop,
    Restart,
}

impl Request {
    fn is_for_the_daemon(&self) -> bool {
        matches!(self, Request::Power { .. } | Request::Update { .. })
    }
}

pub fn serve(host: &Arc<Host>) -> Outcome<()> {
    let about = |e: io::Error| Failure::io(&e, SOCKET);
    let _from_another_life = std::fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET).map_err(about)?;
    give(Path::new(SOCKET), Some(DAEMON))?;
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(SOCKET, mode).map_err(about)?;
    let host = Arc::clone(host);
    let accept = move || {
        let open = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming().flatten() {
            let place = Place::take(&open);
            if open.load(Ordering::SeqCst) > AT_ONCE_MAX {
                continue;
            }
            let host = Arc::clone(&host);
            let serve = move || {
                let _place = place;
                if let Err(error) = answer(&host, stream) {
                    log::debug!("{SOCKET}: {error}");
                }
            };
            if let Err(failure) = children::thread("control", serve) {
                log::warn!("{SOCKET}: {failure}");
            }
        }
    };
    children::thread("control", accept)
}

/// One of those who ask at once.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(all: &Arc<AtomicUsize>) -> Place {
        all.fetch_add(1, Ordering::SeqCst);
        Place(Arc::clone(all))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn answer(host: &Arc<Host>, mut stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(ASKS_WITHIN))?;
    stream.set_write_timeout(Some(ASKS_WITHIN))?;
    let uid = getsockopt(&stream, PeerCredentials)?.uid();
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_MAX)).read_line(&mut line)?;
    let done = parse(&line, uid).and_then(|request| act(host, request));
    let told = match done {
        Ok(value) => json!({ "ok": value }),
        Err(failure) => json!({ "error": failure.to_string() }),
    };
    writeln!(stream, "{told}")
}

fn parse(line: &str, uid: u32) -> Outcome<Request> {
    let request: Request = serde_json::from_str(line)
        .map_err(|e| Failure::new(Class::Config, format!("no request: {e}")))?;
    match uid == 0 || (uid == DAEMON && request.is_for_the_daemon()) {
        true => Ok(request),
        false => Err(Failure::new(
            Class::Denied,
            "this user may not ask for that",
        )),
    }
}

fn act(host: &Arc<Host>, request: Request) -> Outcome<Value> {
    let applied = |(past, restart): (Past, bool)| {
        let Past { digest, name, .. } = past;
        json!({ "digest": digest, "name": name, "restart": restart })
    };
    match request {
        Request::Status => Ok(host.status()),
        Request::Apply { settings, who } => {
            let settings = Settings::parse(settings)?;
            log::info!("{who} changes the settings");
            host.apply(settings, &who).map(applied)
        }
        Request::Check { settings } => {
            let settings = Settings::parse(settings)?;
            Ok(json!({ "warnings": settings.warnings }))
        }
        Request::Settings => {
            let inforce = host.inforce();
            Ok(json!(inforce.settings.as_ref().map(|s| &s.document)))
        }
        Request::History => Ok(json!(host.history()?)),
        Request::RollBack { name, who } => host.roll_back(&name, &who).map(applied),
        Request::Import => Ok(json!({ "settings": host.import()? })),
        Request::Power { how, who } => {
            let _it_listens = host.power.send((how, who));
            Ok(json!({}))
        }
        Request::Update { path, who } if path == Path::new("drive") => {
            host.trial.install_from_drive(host, &who)
        }
        Request::Update { path, who } => host.trial.install(host, &path, &who),
        Request::Slots => host.trial.slots(),
        Request::SlotBack { who } => host.trial.back(&who),
        Request::TimeSync => {
            host.time.sync_now();
            Ok(json!({}))
        }
        Request::NetworkRenew => {
            host.network.renew();
            Ok(json!({}))
        }
        Request::Daemon { how, who } => {
            log::info!("{who}: {how:?} the daemon");
            host.supervisor.order(match how {
                DaemonOrder::Start => Order::Run,
                DaemonOrder::Stop => Order::Stop,
                DaemonOrder::Restart => Order::Restart,
            });
            Ok(json!({}))
        }
        Request::DiskRepair { who } => {
            log::info!("{who}: repairs the data partition");
            host.repair_disk().map(|()| json!({ "reboot": true }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_ask_for_what() {
        let power = r#"{"do":"power","how":"reboot","who":"x"}"#;
        let update = r#"{"do":"update","path":"/data/updates/x","who":"x"}"#;
        for (line, uid, expect) in [
            (r#"{"do":"status"}"#, 0, true),
            (r#"{"do":"status"}"#, DAEMON, false),
            (power, 0, true),
            (power, DAEMON, true),
            (power, 5, false),
            (update, DAEMON, true),
            (r#"{"do":"apply","settings":{},"who":"x"}"#, DAEMON, false),
            (r#"{"do":"power","how":"explode","who":"x"}"#, 0, false),
            (r#"{"do":"fly"}"#, 0, false),
            ("", 0, false),
        ] {
            assert_eq!(parse(line, uid).is_ok(), expect, "{line} {uid}");
        }
    }
}
