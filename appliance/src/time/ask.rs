//! One question to every time server at once (SNTP, RFC 4330), and what became of each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use rsntp::{Config, ProtocolError, SntpClient, SntpDuration, SynchronizationError};

use super::settings::Server;

/// A good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub server: Server,
    /// What the clock lacks: positive if it is behind.
    pub offset_us: i64,
    /// There and back: the answer is right to half of it.
    pub delay_us: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub server: Server,
    pub why: String,
    /// The server wants not to be asked (a kiss of death).
    pub rest: bool,
}

/// All of them within a few seconds, however many are silent.
pub fn ask(servers: &[Server]) -> (Vec<Sample>, Vec<Refusal>) {
    let (mut samples, mut refusals) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        let asked: Vec<_> = servers
            .iter()
            .map(|server| (server, scope.spawn(|| one(server))))
            .collect();
        for (server, thread) in asked {
            let refusal = |why: &str| Refusal {
                server: server.clone(),
                why: why.to_owned(),
                rest: false,
            };
            match thread.join() {
                Ok(Ok(sample)) => samples.push(sample),
                Ok(Err(refusal)) => refusals.push(refusal),
                Err(_panic) => refusals.push(refusal("its answer cannot be understood")),
            }
        }
    });
    (samples, refusals)
}

/// The first of a name's addresses that answers: one name, one vote.
fn one(server: &Server) -> Result<Sample, Refusal> {
    let refusal = |why: String| Refusal {
        server: server.clone(),
        why,
        rest: false,
    };
    let addresses = (server.host.as_str(), server.port)
        .to_socket_addrs()
        .map_err(|error| refusal(format!("the name is not found: {error}")))?;
    let mut last = refusal("the name has no address".to_owned());
    for address in addresses.take(ADDRESSES_MAX) {
        match question(server, address) {
            Ok(sample) => return Ok(sample),
            Err(refusal) => last = refusal,
        }
    }
    Err(last)
}

/// The crate checks that the answer is to this very question, of a server (mode 4) that is itself
/// synchronised (stratum 1 to 15, no alarm), and no kiss of death.
fn question(server: &Server, address: SocketAddr) -> Result<Sample, Refusal> {
    let any = match address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let config = Config::default()
        .bind_address((any, 0).into())
        .timeout(ANSWER_MAX);
    let refusal = |why: String| Refusal {
        server: server.clone(),
        why,
        rest: false,
    };
    let answer = SntpClient::with_config(config).synchronize(address);
    let answer = answer.map_err(|error| match error {
        SynchronizationError::IOError(error) => match error.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                refusal("no answer".to_owned())
            }
            _ => refusal(error.to_string()),
        },
        SynchronizationError::ProtocolError(ProtocolError::KissODeath(code)) => Refusal {
            rest: true,
            ..refusal(format!("it does not want to be asked: {code}"))
        },
        SynchronizationError::ProtocolError(error) => refusal(error.to_string()),
    })?;
    let offset_us = micros(answer.clock_offset());
    let sample = Sample {
        server: server.clone(),
        offset_us: offset_us.ok_or_else(|| refusal("its time is out of range".to_owned()))?,
        delay_us: micros(answer.round_trip_delay()).unwrap_or(0).max(0),
    };
    let told = answer.datetime().unix_timestamp().unwrap_or_default();
    match told < EARLIEST {
        true => Err(refusal(
            "its time is before this program was written".to_owned(),
        )),
        false => Ok(sample),
    }
}

fn micros(duration: SntpDuration) -> Option<i64> {
    let whole = duration.abs_as_std_duration().ok()?;
    let micros = i64::try_from(whole.as_micros()).ok()?;
    Some(micros * i64::from(duration.signum()))
}

/// A server that has not answered by then is too far away to be right.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Of one name.
const ADDRESSES_MAX: usize = 4;
/// 2026-01-01 00:00:00 UTC.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);
