//! The kernel's links, addresses and routes, by rtnetlink(7).
//!
//! A request is answered in full before the next one: one socket for asking, one for hearing of
//! changes. Every dump fits in memory: an appliance has a few links and routes.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use pghoard::{Failure, Outcome};

use super::link::{Address, Change, Facts, Kind, Origin, Reach, Route};
use super::settings::Mac;

pub struct Kernel {
    socket: Socket,
}

impl Kernel {
    pub fn open() -> Outcome<Kernel> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|error: io::Error| Failure::io(&error, "rtnetlink"))?;
        Ok(Kernel { socket })
    }

    /// Every link with what it has, in the order of their indexes.
    pub fn facts(&self) -> Outcome<Vec<Facts>> {
        let read = || {
            let links = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
            let mut found: Vec<Facts> = links.into_iter().filter_map(link).collect();
            found.sort_by_key(|facts| facts.index);
            for message in self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
                if let Some((index, address, origin)) = address(message)
                    && let Some(facts) = found.iter_mut().find(|facts| facts.index == index)
                {
                    facts.addresses.push((address, origin));
                }
            }
            for message in self.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
                if let Some((index, route, origin)) = route(message)
                    && let Some(facts) = found.iter_mut().find(|facts| facts.index == index)
                {
                    facts.routes.push((route, origin));
                }
            }
            Ok(found)
        };
        read().map_err(|error: io::Error| Failure::io(&error, "the kernel's list of links"))
    }

    /// A change that somebody else made first is no failure.
    pub fn make(&self, link: &Facts, change: Change) -> Outcome<()> {
        let index = link.index;
        let made = match change {
            Change::Mtu(mtu) => self.set_link(index, Some(mtu)),
            Change::Up => self.set_link(index, None),
            Change::AddAddress(address) => {
                let message = RouteNetlinkMessage::NewAddress(address_message(index, address));
                self.ask(message, NLM_F_CREATE | NLM_F_EXCL)
            }
            Change::RemoveAddress(address) => self.ask(
                RouteNetlinkMessage::DelAddress(address_message(index, address)),
                0,
            ),
            Change::AddRoute(route, reach) => {
                let message = RouteNetlinkMessage::NewRoute(route_message(index, route, reach));
                self.ask(message, NLM_F_CREATE | NLM_F_REPLACE)
            }
            Change::RemoveRoute(route) => {
                let mut message = route_message(index, route, Reach::Inside);
                message.header.protocol = RouteProtocol::Unspec;
                message.header.scope = RouteScope::NoWhere;
                self.ask(RouteNetlinkMessage::DelRoute(message), 0)
            }
        };
        match (change, made) {
            (_, Ok(())) => Ok(()),
            (Change::AddAddress(_), Err(error)) if error.kind() == io::ErrorKind::AlreadyExists => {
                Ok(())
            }
            (Change::RemoveAddress(_) | Change::RemoveRoute(_), Err(error)) if is_gone(&error) => {
                Ok(())
            }
            (_, Err(error)) => Err(Failure::io(&error, said(link, change))),
        }
    }

    fn set_link(&self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match mtu {
            Some(mtu) => message.attributes.push(LinkAttribute::Mtu(mtu)),
            None => {
                message.header.flags = LinkFlags::Up;
                message.header.change_mask = LinkFlags::Up;
            }
        }
        self.ask(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.answers().map(|_none| ())
    }

    fn dump(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        self.answers()
    }

    fn send(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(|_all| ())
    }

    fn answers(&self) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut found = Vec::new();
        for _ in 0..DATAGRAMS_MAX {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while let Some((head, _)) = rest.split_first_chunk() {
                // Each message begins with its length, at a multiple of four (netlink(7)).
                let length = usize::try_from(u32::from_ne_bytes(*head)).unwrap_or(0);
                let message = rest.get(..length).unwrap_or(rest);
                rest = rest
                    .get(length.next_multiple_of(4).max(4)..)
                    .unwrap_or_default();
                let message = match NetlinkMessage::deserialize(message) {
                    Ok(message) => message,
                    // One link or route with something new to it must not hide the others.
                    Err(error) => {
                        log::debug!("rtnetlink: {error}");
                        continue;
                    }
                };
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(found),
                        Some(_) => return Err(error.to_io()),
                    },
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    _ => {}
                }
            }
        }
        Err(io::Error::other("an answer without an end"))
    }
}

/// A dump of 32 KiB datagrams that is longer than this is none of an appliance.
const DATAGRAMS_MAX: usize = 10_000;

/// Tells when links, addresses or routes changed, not what.
pub struct Changes {
    socket: Socket,
}

impl Changes {
    pub fn open() -> Outcome<Changes> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.set_non_blocking(true)?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            Ok(socket)
        };
        let socket = open().map_err(|error: io::Error| Failure::io(&error, "rtnetlink"))?;
        Ok(Changes { socket })
    }

    /// Forgets what has come. A queue that ran over is only another reason to look.
    pub fn drain(&self) {
        let mut bytes = Vec::with_capacity(DATAGRAM_BYTES);
        for _ in 0..DATAGRAMS_MAX {
            bytes.clear();
            match self.socket.recv(&mut bytes, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {}
            }
        }
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
/// (Linux include/uapi/linux/rtnetlink.h).
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];
const DATAGRAM_BYTES: usize = 8192;

/// Sets one of an interface's switches below /proc/sys/net and says whether it was set otherwise.
/// A kernel without it is left as it is.
pub fn set_switch(family: &str, link: &str, name: &str, value: &str) -> Outcome<bool> {
    let path = format!("/proc/sys/net/{family}/conf/{link}/{name}");
    match fs::read_to_string(&path) {
        Ok(has) if has.trim() == value => Ok(false),
        Ok(_) => {
            let written = fs::write(&path, value);
            written
                .map(|()| true)
                .map_err(|error| Failure::io(&error, path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failure::io(&error, path)),
    }
}

fn link(message: RouteNetlinkMessage) -> Option<Facts> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let flags = message.header.flags;
    let kind = match message.header.link_layer_type {
        _ if flags.contains(LinkFlags::Loopback) => Kind::Loopback,
        LinkLayerType::Ether => Kind::Ethernet,
        _ => Kind::Other,
    };
    let mut facts = Facts {
        index: message.header.index,
        name: String::new(),
        mac: None,
        kind,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        mtu: 0,
        addresses: Vec::new(),
        routes: Vec::new(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => facts.name = name,
            LinkAttribute::Mtu(mtu) => facts.mtu = mtu,
            LinkAttribute::Address(bytes) => facts.mac = bytes.try_into().ok().map(Mac),
            // The port of a bridge or bond has no address of its own.
            LinkAttribute::Controller(_) => facts.kind = Kind::Other,
            _ => {}
        }
    }
    Some(facts)
}

/// None of those that are the link's own by nature.
fn address(message: RouteNetlinkMessage) -> Option<(u32, Address, Origin)> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    let mut permanent = message.header.flags.contains(AddressHeaderFlags::Permanent);
    let (mut local, mut other) = (None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => other = Some(ip),
            AddressAttribute::Flags(flags) => permanent = flags.contains(AddressFlags::Permanent),
            _ => {}
        }
    }
    let ip = local.or(other)?;
    let prefix = message.header.prefix_len;
    // An IPv4 address with a lifetime is some other client's: it is not let stand beside ours.
    let origin = match permanent || ip.is_ipv4() {
        true => Origin::Ours,
        false => Origin::Advertised,
    };
    Some((message.header.index, Address { ip, prefix }, origin))
}

fn address_message(index: u32, address: Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.family = family(address.ip);
    message.header.prefix_len = address.prefix;
    message.attributes = vec![
        AddressAttribute::Local(address.ip),
        AddressAttribute::Address(address.ip),
    ];
    message
}

/// None of the kernel's own, nor of other tables.
fn route(message: RouteNetlinkMessage) -> Option<(u32, Route, Origin)> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    let header = &message.header;
    let origin = match header.protocol {
        RouteProtocol::Kernel | RouteProtocol::IcmpRedirect => return None,
        RouteProtocol::Ra => Origin::Advertised,
        _ => Origin::Ours,
    };
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let mut gateway = None;
    let mut index = None;
    let mut metric = 0;
    let mut to = unspecified(header.address_family)?;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = Some(ip(address)?),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let prefix = header.destination_prefix_length;
    let route = Route {
        gateway,
        to: Address { ip: to, prefix },
        metric,
    };
    Some((index?, route, origin))
}

fn route_message(index: u32, route: Route, reach: Reach) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.to.ip);
    header.destination_prefix_length = route.to.prefix;
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::Static;
    header.kind = RouteType::Unicast;
    header.scope = match route.gateway {
        None if route.to.ip.is_ipv4() => RouteScope::Link,
        Some(_) | None => RouteScope::Universe,
    };
    if reach == Reach::OnLink {
        header.flags = RouteFlags::Onlink;
    }
    if route.to.prefix > 0 {
        let to = RouteAttribute::Destination(RouteAddress::from(route.to.ip));
        message.attributes.push(to);
    }
    if let Some(gateway) = route.gateway {
        let gateway = RouteAttribute::Gateway(RouteAddress::from(gateway));
        message.attributes.push(gateway);
    }
    message.attributes.push(RouteAttribute::Oif(index));
    message
        .attributes
        .push(RouteAttribute::Priority(route.metric));
    message
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn unspecified(family: AddressFamily) -> Option<IpAddr> {
    match family {
        AddressFamily::Inet => Some(IpAddr::from([0; 4])),
        AddressFamily::Inet6 => Some(IpAddr::from([0; 16])),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// ESRCH of a route, EADDRNOTAVAIL of an address, ENODEV of the link itself.
fn is_gone(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let gone = [Errno::ESRCH, Errno::EADDRNOTAVAIL, Errno::ENODEV];
    error
        .raw_os_error()
        .is_some_and(|code| gone.contains(&Errno::from_raw(code)))
}

fn said(link: &Facts, change: Change) -> String {
    let name = &link.name;
    match change {
        Change::Mtu(mtu) => format!("{name}: cannot set the MTU to {mtu}"),
        Change::Up => format!("{name}: cannot be brought up"),
        Change::AddAddress(address) => format!("{name}: cannot add {address}"),
        Change::RemoveAddress(address) => format!("{name}: cannot remove {address}"),
        Change::AddRoute(route, _) => format!("{name}: cannot add the route to {}", route.to),
        Change::RemoveRoute(route) => format!("{name}: cannot remove the route to {}", route.to),
    }
}
