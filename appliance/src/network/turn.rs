//! The network's one thread: look at what is, at what is wanted, and put right what differs.
//!
//! A turn follows every change the kernel tells of, every datagram, everything that is due, and
//! the clock at the latest. It remembers leases and little else, so a first turn, a new cable and
//! new settings are one and the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pghoard::{Failure, Outcome};

use super::dhcp::{Client, News};
use super::lease::{self, Lease};
use super::link::{Address, Facts, Kind, Route, Wanted, changes};
use super::names::Names;
use super::netlink::{Changes, Kernel, set_switch};
use super::settings::{Interface, Settings};
use super::wire::Wire;
use super::{Seen, Shared};

pub enum Order {
    Apply {
        settings: Settings,
        hostname: String,
        done: Sender<()>,
    },
    Renew,
}

pub struct Turner {
    kernel: Kernel,
    changes: Changes,
    orders: Receiver<Order>,
    wake: UnixStream,
    shared: Arc<Mutex<Shared>>,
    resolv_conf: PathBuf,
    settings: Settings,
    hostname: String,
    /// By index of the link.
    ports: BTreeMap<u32, Port>,
    /// What a link had before anybody set it.
    mtus: BTreeMap<u32, u32>,
    /// Said already, so that it is said once. By name of the link, or of the file.
    problems: BTreeMap<String, String>,
}

/// A DHCP client with its socket.
struct Port {
    link: String,
    client: Client,
    wire: Wire,
}

/// Where one waits for.
pub struct Ends {
    pub orders: Receiver<Order>,
    pub wake: UnixStream,
    pub shared: Arc<Mutex<Shared>>,
    pub resolv_conf: PathBuf,
}

impl Turner {
    pub fn new(settings: Settings, hostname: &str, ends: Ends) -> Outcome<Turner> {
        Ok(Turner {
            kernel: Kernel::open()?,
            changes: Changes::open()?,
            orders: ends.orders,
            wake: ends.wake,
            shared: ends.shared,
            resolv_conf: ends.resolv_conf,
            settings,
            hostname: hostname.to_owned(),
            ports: BTreeMap::new(),
            mtus: BTreeMap::new(),
            problems: BTreeMap::new(),
        })
    }

    /// Until whoever gives the orders is gone.
    pub fn run(mut self) {
        let mut waiting = Vec::new();
        loop {
            self.turn(Instant::now());
            for done in waiting.drain(..) {
                // Who no longer waits needs no answer.
                let _gone = Sender::send(&done, ());
            }
            self.wait();
            loop {
                match self.orders.try_recv() {
                    Ok(Order::Renew) => {
                        let now = Instant::now();
                        self.ports
                            .values_mut()
                            .for_each(|port| port.client.renew(now));
                    }
                    Ok(Order::Apply {
                        settings,
                        hostname,
                        done,
                    }) => {
                        self.rename(hostname);
                        self.settings = settings;
                        waiting.push(done);
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
        }
    }

    /// Servers that keep a list of names hear of another one at once.
    fn rename(&mut self, hostname: String) {
        if self.hostname != hostname {
            let now = Instant::now();
            for port in self.ports.values_mut() {
                port.client.rename(&hostname);
                port.client.renew(now);
            }
            self.hostname = hostname;
        }
    }

    fn wait(&mut self) {
        let now = Instant::now();
        let due = self
            .ports
            .values()
            .filter_map(|port| port.client.due())
            .min();
        let wait = due.map_or(WAIT_MAX, |due| {
            due.saturating_duration_since(now).min(WAIT_MAX)
        });
        // One more, or it would be too early by what was cut off.
        let millis = u16::try_from(wait.as_millis() + 1).unwrap_or(u16::MAX);
        let mut fds = vec![
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.changes.as_fd(), PollFlags::POLLIN),
        ];
        let wires = self.ports.values().map(|port| port.wire.as_fd());
        fds.extend(wires.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // A failure, which is a signal at most, only brings the next turn forward.
        let _early = poll(&mut fds, PollTimeout::from(millis));
        self.changes.drain();
        let mut bytes = [0; 64];
        while matches!(self.wake.read(&mut bytes), Ok(1..)) {}
    }

    fn turn(&mut self, now: Instant) {
        let mut seen = Vec::new();
        let mut steady = false;
        // What a change takes along (an address its routes) is put back in the next round.
        for _ in 0..ROUNDS_MAX {
            let facts = match self.kernel.facts() {
                Ok(facts) => facts,
                Err(failure) => return self.say("the kernel", Some(&failure)),
            };
            let indexes: BTreeSet<u32> = facts.iter().map(|link| link.index).collect();
            self.ports.retain(|index, _| indexes.contains(index));
            self.mtus.retain(|index, _| indexes.contains(index));
            seen.clear();
            steady = true;
            for link in facts {
                let (link, moved) = self.settle(link, now);
                steady &= !moved;
                seen.extend(link);
            }
            if steady {
                break;
            }
        }
        self.publish(seen);
        if !steady {
            // Somebody else puts it otherwise as fast as we do: let nobody burn the processor.
            thread::sleep(PAUSE);
        }
    }

    /// One link, put right; and whether anything was done to it.
    fn settle(&mut self, link: Facts, now: Instant) -> (Option<Seen>, bool) {
        if link.kind == Kind::Loopback {
            let wanted = Wanted {
                mtu: link.mtu,
                addresses: link.addresses.iter().map(|(address, _)| *address).collect(),
                routes: link.routes.iter().map(|(route, _)| *route).collect(),
                ..Wanted::default()
            };
            let (moved, failure) = self.change(&link, &wanted);
            self.say(&link.name, failure.as_ref());
            return (None, moved);
        }
        let named = self.settings.interfaces.is_some();
        let interface = match link.kind == Kind::Ethernet || named {
            true => self.settings.of(&link.name, link.mac),
            false => None,
        };
        let own_mtu = *self.mtus.entry(link.index).or_insert(link.mtu);
        let Some(interface) = interface else {
            self.ports.remove(&link.index);
            if link.kind != Kind::Ethernet {
                return (None, false);
            }
            let wanted = Wanted {
                mtu: own_mtu,
                ..Wanted::default()
            };
            // One that nobody named is not brought up, and what it has is taken away.
            let (moved, failure) = match link.up {
                true => self.put_right(&link, &wanted),
                false => (false, None),
            };
            self.say(&link.name, failure.as_ref());
            return (Some(Seen::new(link, None, failure)), moved);
        };
        let asked = self.lease(&link, &interface, now);
        let client = self.ports.get(&link.index).map(|port| &port.client);
        let lease = client.and_then(Client::held).map(|held| &held.lease);
        let wanted = wanted(&interface, lease, own_mtu, link.index);
        let (moved, failure) = self.put_right(&link, &wanted);
        let failure = failure.or(asked.err());
        self.say(&link.name, failure.as_ref());
        let client = self.ports.get(&link.index).map(|port| &port.client);
        (Some(Seen::new(link, client, failure)), moved)
    }

    /// The DHCP client of a link, if it is to have one, asked what it has to say.
    fn lease(&mut self, link: &Facts, interface: &Interface, now: Instant) -> Outcome<()> {
        let Some(mac) = link.mac.filter(|_| interface.dhcp) else {
            self.ports.remove(&link.index);
            return Ok(());
        };
        let fits = |port: &Port| port.link == link.name && port.client.mac() == mac;
        let port = match self.ports.remove(&link.index).filter(fits) {
            Some(port) => port,
            None => Port {
                link: link.name.clone(),
                client: Client::new(mac, &self.hostname, now),
                wire: Wire::open(&link.name)?,
            },
        };
        let port = self.ports.entry(link.index).or_insert(port);
        port.client.carrier(link.carrier, now);
        port.talk(now)
    }

    /// Its switches, then everything else.
    fn put_right(&self, link: &Facts, wanted: &Wanted) -> (bool, Option<Failure>) {
        let switched = switch(link, wanted);
        let (moved, failure) = self.change(link, wanted);
        (moved, failure.or(switched.err()))
    }

    fn change(&self, link: &Facts, wanted: &Wanted) -> (bool, Option<Failure>) {
        let (mut moved, mut failure) = (false, None);
        for change in changes(link, wanted) {
            match self.kernel.make(link, change) {
                Ok(()) => {
                    moved = true;
                    log::debug!("{}: {change:?}", link.name);
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        (moved, failure)
    }

    fn publish(&mut self, seen: Vec<Seen>) {
        let leases = || seen.iter().filter_map(Seen::lease);
        let named = (
            self.settings.dns.as_slice(),
            self.settings.search.as_slice(),
        );
        let leased = leases().map(|lease| (lease.dns.as_slice(), lease.search.as_slice()));
        let names = Names::new(named, leased);
        let written = names.write(&self.resolv_conf);
        let mut time_servers = Vec::new();
        for server in leases().flat_map(|lease| &lease.time_servers) {
            if !time_servers.contains(server) {
                time_servers.push(*server);
            }
        }
        let path = self.resolv_conf.display().to_string();
        self.say(&path, written.err().as_ref());
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        *shared = Shared {
            seen,
            dns: names.servers,
            time_servers,
        };
    }

    /// Once, until it is another or none.
    fn say(&mut self, of: &str, failure: Option<&Failure>) {
        match failure {
            Some(failure) => {
                let text = failure.to_string();
                if self.problems.get(of) != Some(&text) {
                    log::error!("{text}");
                    self.problems.insert(of.to_owned(), text);
                }
            }
            None => {
                if self.problems.remove(of).is_some() {
                    log::info!("{of}: in order again");
                }
            }
        }
    }
}

impl Port {
    /// Everything that was heard, then everything that is due.
    fn talk(&mut self, now: Instant) -> Outcome<()> {
        let link = &self.link;
        let ip = |client: &Client| client.held().map(|held| held.lease.ip);
        for _ in 0..MESSAGES_MAX {
            let Some(bytes) = self.wire.next() else {
                break;
            };
            let before = ip(&self.client);
            let Some(answer) = lease::read(&bytes, self.client.xid(), self.client.mac()) else {
                continue;
            };
            match self.client.heard(answer, now) {
                News::Nothing => {}
                News::Extended => log::debug!("{link}: the lease was extended"),
                News::Leased => {
                    if let Some(held) = self.client.held() {
                        let (address, server) = (held.lease.address(), held.lease.server);
                        log::info!("{link}: {address} by DHCP from {server}");
                    }
                }
                News::Refused => {
                    let before = before.map_or("an address".to_owned(), |ip| ip.to_string());
                    log::warn!("{link}: the DHCP server refuses {before}; asking anew");
                }
            }
        }
        let before = ip(&self.client);
        let mut sent = Ok(());
        for _ in 0..MESSAGES_MAX {
            let Some(call) = self.client.turn(now) else {
                break;
            };
            let bytes = call.question.bytes()?;
            sent = sent.and(self.wire.send(&bytes, call.to));
        }
        if let (Some(before), None) = (before, ip(&self.client)) {
            log::error!("{link}: the lease of {before} ended and no DHCP server extended it");
        }
        sent
    }
}

/// Static addresses first; what a lease says comes beside them and is taken second.
fn wanted(interface: &Interface, lease: Option<&Lease>, own_mtu: u32, index: u32) -> Wanted {
    let mut addresses = interface.addresses.clone();
    let by = |gateway: &IpAddr| Route::default_by(*gateway, METRIC_NAMED + index);
    let mut routes: Vec<Route> = interface.gateways.iter().map(by).collect();
    if let Some(lease) = lease {
        if !addresses.contains(&lease.address()) {
            addresses.push(lease.address());
        }
        for (ip, prefix, gateway) in &lease.routes {
            let (ip, prefix) = (IpAddr::V4(*ip), *prefix);
            let to = Address { ip, prefix };
            let metric = METRIC_LEASED + index;
            let gateway = gateway.map(IpAddr::V4);
            // The kernel has one of each: the second would only replace the first.
            if !routes
                .iter()
                .any(|route| (route.to, route.metric) == (to, metric))
            {
                routes.push(Route {
                    gateway,
                    to,
                    metric,
                });
            }
        }
    }
    let leased = lease.and_then(|lease| lease.mtu);
    Wanted {
        mtu: interface.mtu.or(leased).unwrap_or(own_mtu),
        ra: interface.ra,
        addresses,
        routes,
    }
}

fn switch(link: &Facts, wanted: &Wanted) -> Outcome<()> {
    let name = &link.name;
    // Else a network's second address goes with its first.
    set_switch("ipv4", name, "promote_secondaries", "1")?;
    let value = if wanted.ra { "1" } else { "0" };
    set_switch("ipv6", name, "autoconf", value)?;
    let switched = set_switch("ipv6", name, "accept_ra", value)?;
    if switched && wanted.ra && link.up {
        // The kernel asks routers when IPv6 begins on a link, and at no other time.
        set_switch("ipv6", name, "disable_ipv6", "1")?;
        set_switch("ipv6", name, "disable_ipv6", "0")?;
    }
    Ok(())
}

/// The kernel's own for what routers advertise is 1024 (Linux include/uapi/linux/ipv6_route.h).
const METRIC_NAMED: u32 = 100;
const METRIC_LEASED: u32 = 1000;

/// A change that nobody told of is found after this at the latest.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Removing an address, its routes, and adding them again takes two.
const ROUNDS_MAX: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// Of one interface in one turn; the rest waits for the next.
const MESSAGES_MAX: usize = 16;
