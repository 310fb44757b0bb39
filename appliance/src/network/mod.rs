//! Links, addresses, routes and name servers, by rtnetlink and DHCP: one thread of PID 1.
//!
//! - [`settings`]: what is wanted, out of JSON. [`link`]: what is, and what to change.
//! - [`dhcp`]: a client's judgement, [`lease`]: its messages, [`wire`]: its socket.
//! - [`netlink`]: the kernel. [`names`]: resolv.conf. [`turn`]: the thread.
//!
//! IPv6 out of router advertisements is the kernel's work; name servers in them are not heeded.

mod dhcp;
mod lease;
mod link;
mod names;
mod netlink;
mod settings;
mod turn;
mod wire;

#[cfg(test)]
mod tests;

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pghoard::{Failure, Outcome};
use serde::Serialize;

use dhcp::{Client, Held};
use lease::Lease;
use link::Facts;
use turn::{Ends, Order, Turner};

pub use dhcp::random;
pub use settings::Settings;

use crate::children;

/// The running network. Its thread ends when this is dropped; addresses stay.
pub struct Network {
    orders: Sender<Order>,
    wake: UnixStream,
    shared: Arc<Mutex<Shared>>,
}

/// Begins; name servers are written to `resolv_conf` from then on.
pub fn start(settings: Settings, hostname: &str, resolv_conf: &Path) -> Outcome<Network> {
    let (orders, receiver) = channel();
    let pair = || {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        Ok((wake, woken))
    };
    let (wake, woken) = pair().map_err(|e: std::io::Error| Failure::io(&e, "the network"))?;
    let shared = Arc::default();
    let ends = Ends {
        orders: receiver,
        wake: woken,
        shared: Arc::clone(&shared),
        resolv_conf: resolv_conf.to_owned(),
    };
    let turner = Turner::new(settings, hostname, ends)?;
    children::thread("network", || turner.run())?;
    Ok(Network {
        orders,
        wake,
        shared,
    })
}

impl Network {
    /// Switches over: what is the same stays, what is no longer wanted goes. Returns when the
    /// addresses that need no server are there.
    pub fn apply(&self, settings: Settings, hostname: &str) {
        let (done, applied) = channel();
        let hostname = hostname.to_owned();
        self.order(Order::Apply {
            settings,
            hostname,
            done,
        });
        // A kernel that takes longer has a problem of its own, which the status shows.
        let _late = applied.recv_timeout(APPLY_MAX);
    }

    /// Every DHCP client asks at once.
    pub fn renew(&self) {
        self.order(Order::Renew);
    }

    pub fn status(&self) -> Vec<Link> {
        let now = Instant::now();
        let shared = self.shared();
        shared.seen.iter().map(|seen| seen.link(now)).collect()
    }

    /// The name servers in force.
    pub fn dns(&self) -> Vec<IpAddr> {
        self.shared().dns.clone()
    }

    /// Those that DHCP named.
    pub fn time_servers(&self) -> Vec<IpAddr> {
        self.shared().time_servers.clone()
    }

    fn order(&self, order: Order) {
        // The thread ends only after its last order.
        let _sent = self.orders.send(order);
        // A full pipe has woken it already.
        let _woken = (&self.wake).write(&[1]);
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const APPLY_MAX: Duration = Duration::from_secs(10);

/// An interface as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    pub name: String,
    pub mac: Option<String>,
    pub carrier: bool,
    pub mtu: u32,
    pub addresses: Vec<String>,
    pub gateways: Vec<String>,
    pub dhcp: Option<Dhcp>,
    /// What could not be done to it.
    pub problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dhcp {
    /// In words for a person.
    pub state: &'static str,
    pub address: Option<String>,
    pub server: Option<String>,
    /// Absent of a lease for ever.
    pub renews_in_seconds: Option<u64>,
    pub ends_in_seconds: Option<u64>,
}

/// What the thread shows to others.
#[derive(Default)]
struct Shared {
    seen: Vec<Seen>,
    dns: Vec<IpAddr>,
    time_servers: Vec<IpAddr>,
}

struct Seen {
    facts: Facts,
    dhcp: Option<(&'static str, Option<Held>)>,
    problem: Option<String>,
}

impl Seen {
    fn new(facts: Facts, client: Option<&Client>, failure: Option<Failure>) -> Seen {
        let dhcp = client.map(|client| (client.state(), client.held().cloned()));
        let problem = failure.map(|failure| failure.to_string());
        Seen {
            facts,
            dhcp,
            problem,
        }
    }

    fn lease(&self) -> Option<&Lease> {
        let (_, held) = self.dhcp.as_ref()?;
        held.as_ref().map(|held| &held.lease)
    }

    fn link(&self, now: Instant) -> Link {
        let facts = &self.facts;
        let is_default = |route: &&link::Route| route.to.prefix == 0;
        let routes = facts.routes.iter().map(|(route, _)| route);
        let gateways = routes.filter(is_default).filter_map(|route| route.gateway);
        let left = |at: Option<Instant>| Some(at?.saturating_duration_since(now).as_secs());
        let dhcp = self.dhcp.as_ref().map(|(state, held)| {
            let held = held.as_ref();
            Dhcp {
                state,
                address: held.map(|held| held.lease.address().to_string()),
                server: held.map(|held| held.lease.server.to_string()),
                renews_in_seconds: left(held.and_then(Held::renew)),
                ends_in_seconds: left(held.and_then(Held::end)),
            }
        });
        Link {
            name: facts.name.clone(),
            mac: facts.mac.map(|mac| mac.to_string()),
            carrier: facts.carrier,
            mtu: facts.mtu,
            addresses: facts.addresses.iter().map(|(a, _)| a.to_string()).collect(),
            gateways: gateways.map(|gateway| gateway.to_string()).collect(),
            dhcp,
            problem: self.problem.clone(),
        }
    }
}
