//! Metrics on their way: a thread for each place they go to.
//!
//! The loop hands over and goes on. A thread that is still busy with the numbers before misses the
//! new ones, which is said once: what is late by one period is worth less than the loop's time.

use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use machine::Class;

use super::exposition::{self, CONTENT_TYPE, Form};
use super::statsd::{self, Sent};
use super::{Facts, Sample, samples};
use crate::config::{Config, Endpoint, Pushgateway, Scheme, Statsd, Tags};
use crate::failure::{Failure, Outcome};
use crate::http::{Login, Patience, Peer};
use crate::tls::{Roots, Trust};

/// Numbers are looked at so often; a scrape sees them no older.
const EVERY: Duration = Duration::from_secs(5);
/// Numbers that may wait for a thread.
const WAITING_MAX: usize = 1;
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(5),
    answer: Duration::from_secs(10),
};
/// What is told of a refusal.
const WHY_CHARS_MAX: usize = 1_000;

/// The text that `GET /metrics` answers, for whom it serves.
pub type Exposition = Arc<Mutex<Arc<str>>>;

/// Everything that metrics are sent to.
#[derive(Debug)]
pub struct Metrics {
    exposition: Exposition,
    prometheus: Option<Tags>,
    couriers: Vec<Courier>,
    looked: Option<Instant>,
}

impl Metrics {
    /// What `facts` say was sent before this start.
    pub fn start(config: &Config, host: &str, facts: &Facts<'_>) -> Outcome<Metrics> {
        let mut couriers = Vec::new();
        if let Some(statsd) = &config.statsd
            && let Some(address) = statsd.address.clone()
        {
            let datagrams = Datagrams {
                address,
                statsd: statsd.clone(),
                sent: Sent::upto(&samples(facts)),
            };
            couriers.push(Courier::start("statsd", datagrams.sender())?);
        }
        if let Some(gateway) = &config.pushgateway
            && let Some(endpoint) = gateway.endpoint.clone()
        {
            let push = Push::new(endpoint, gateway, host);
            let send = move |samples: &[Sample]| push.send(samples);
            couriers.push(Courier::start("pushgateway", send)?);
        }
        Ok(Metrics {
            exposition: Arc::new(Mutex::new(Arc::from(""))),
            prometheus: config.prometheus.clone(),
            couriers,
            looked: None,
        })
    }

    /// Under another configuration: what nobody changed goes on; the threads of what did end when
    /// they have sent what they have.
    pub fn changed(
        &self,
        (old, new): (&Config, &Config),
        host: &str,
        facts: &Facts<'_>,
    ) -> Outcome<Option<Metrics>> {
        let same = old.statsd == new.statsd
            && old.pushgateway == new.pushgateway
            && old.prometheus == new.prometheus;
        if same {
            return Ok(None);
        }
        Ok(Some(Metrics {
            exposition: self.exposition(),
            ..Metrics::start(new, host, facts)?
        }))
    }

    pub fn exposition(&self) -> Exposition {
        Arc::clone(&self.exposition)
    }

    /// Never waits. Looks at nothing where nobody wants to know, or when it looked just now.
    pub fn publish(&mut self, facts: &Facts<'_>) {
        let wanted = self.prometheus.is_some() || !self.couriers.is_empty();
        let rested = self.looked.is_none_or(|at| at.elapsed() >= EVERY);
        if !wanted || !rested {
            return;
        }
        self.looked = Some(Instant::now());
        let samples: Arc<[Sample]> = samples(facts).into();
        if let Some(tags) = &self.prometheus {
            let text = exposition::render(&samples, tags, Form::Scrape);
            let shown = self.exposition.lock();
            *shown.unwrap_or_else(PoisonError::into_inner) = Arc::from(text);
        }
        for courier in &mut self.couriers {
            courier.hand_over(&samples);
        }
    }
}

#[derive(Debug)]
struct Courier {
    name: &'static str,
    samples: SyncSender<Arc<[Sample]>>,
    /// That numbers were missed was said.
    said: bool,
}

impl Courier {
    /// The thread ends with the daemon.
    fn start(
        name: &'static str,
        mut send: impl FnMut(&[Sample]) -> Outcome<()> + Send + 'static,
    ) -> Outcome<Courier> {
        let (samples, waiting) = sync_channel::<Arc<[Sample]>>(WAITING_MAX);
        let run = move || {
            let mut trouble: Option<Failure> = None;
            for samples in waiting {
                let failure = send(&samples).err();
                match &failure {
                    // The same trouble is told once, however long it lasts.
                    Some(new) if failure != trouble => log::warn!("{name}: {new}"),
                    None if trouble.is_some() => log::info!("{name}: metrics are sent again"),
                    Some(_) | None => {}
                }
                trouble = failure;
            }
        };
        let thread = thread::Builder::new().name(name.into()).spawn(run);
        thread.map_err(|e| Failure::io(&e, "no thread for metrics"))?;
        Ok(Courier {
            name,
            samples,
            said: false,
        })
    }

    fn hand_over(&mut self, samples: &Arc<[Sample]>) {
        let missed = match self.samples.try_send(Arc::clone(samples)) {
            Ok(()) => None,
            Err(TrySendError::Full(_)) => Some("it does not keep up"),
            Err(TrySendError::Disconnected(_)) => Some("its thread has ended; please report it"),
        };
        if let Some(why) = missed
            && !self.said
        {
            log::warn!("{}: metrics are lost: {why}", self.name);
        }
        self.said = missed.is_some();
    }
}

struct Datagrams {
    address: (String, u16),
    statsd: Statsd,
    sent: Sent,
}

impl Datagrams {
    fn sender(mut self) -> impl FnMut(&[Sample]) -> Outcome<()> {
        move |samples| {
            let (tags, format) = (&self.statsd.tags, self.statsd.format);
            let datagrams = statsd::render(samples, &mut self.sent, tags, format);
            let (host, port) = (self.address.0.as_str(), self.address.1);
            let told = |e| Failure::io(&e, format!("cannot send to {host}:{port}"));
            let to = resolve(host, port)?;
            let to = to.first().copied().ok_or_else(|| nowhere(host))?;
            let any = match to {
                SocketAddr::V4(_) => "0.0.0.0:0",
                SocketAddr::V6(_) => "[::]:0",
            };
            let socket = UdpSocket::bind(any).map_err(told)?;
            for datagram in datagrams {
                socket.send_to(datagram.as_bytes(), to).map_err(told)?;
            }
            Ok(())
        }
    }
}

struct Push {
    peer: Peer,
    path: String,
    tags: Tags,
}

impl Push {
    /// PGHoard's grouping key: the instance as configured, else the tag `site`, else the host.
    fn new(endpoint: Endpoint, gateway: &Pushgateway, host: &str) -> Push {
        let site = gateway.tags.get("site").map(String::as_str);
        let instance = [gateway.instance.as_str(), site.unwrap_or(host)];
        let instance = instance.into_iter().find(|name| !name.is_empty());
        let path = format!(
            "{}/metrics{}{}",
            endpoint.path.trim_end_matches('/'),
            group("job", &gateway.job),
            group("instance", instance.unwrap_or("localhost")),
        );
        let roots = gateway.tls_ca.clone().map_or(Roots::System, Roots::File);
        Push {
            peer: Peer {
                host: endpoint.host,
                port: endpoint.port,
                login: endpoint.login.map(Login),
                tls: (endpoint.scheme == Scheme::Https).then_some(Trust::Roots(roots)),
                patience: PATIENCE,
            },
            path,
            tags: gateway.tags.clone(),
        }
    }

    /// PUT, so that a number that is not told any more does not stay for ever.
    fn send(&self, samples: &[Sample]) -> Outcome<()> {
        let body = exposition::render(samples, &self.tags, Form::Push);
        let headers = [("Content-Type", CONTENT_TYPE)];
        let reply = self
            .peer
            .send("PUT", &self.path, &headers, body.as_bytes())?;
        if (200..300).contains(&reply.status) {
            return Ok(());
        }
        let (host, port, status) = (&self.peer.host, self.peer.port, reply.status);
        let why: String = String::from_utf8_lossy(&reply.body)
            .chars()
            .take(WHY_CHARS_MAX)
            .collect();
        let message =
            format!("cannot push to {host}:{port}: expected a status of 200, found {status} {why}");
        Err(Failure::new(Class::Unsupported, message.trim_end())
            .hint("pushgateway.endpoint is the URL of a Prometheus pushgateway"))
    }
}

/// One part of a grouping key; a value with a slash has a form of its own.
fn group(name: &str, value: &str) -> String {
    if value.contains('/') {
        return format!("/{name}@base64/{}", URL_SAFE_NO_PAD.encode(value));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    let encoded = value.bytes().map(|b| match plain(b) {
        true => char::from(b).to_string(),
        false => format!("%{b:02X}"),
    });
    format!("/{name}/{}", encoded.collect::<String>())
}

fn resolve(host: &str, port: u16) -> Outcome<Vec<SocketAddr>> {
    let found = (host, port).to_socket_addrs();
    let found = found.map_err(|e| Failure::io(&e, format!("cannot look up '{host}'")))?;
    Ok(found.collect())
}

fn nowhere(host: &str) -> Failure {
    Failure::new(Class::Network, format!("'{host}' has no address"))
}

#[cfg(test)]
mod tests;
