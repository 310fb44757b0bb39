//! What an interface has, what it should have, and the changes between the two. No effects.
//!
//! Everything on an interface that is ours is put right, not only what we remember having put
//! there: a PID 1 that begins anew finds its way from any state. Left alone are link-local
//! addresses, the kernel's own routes, and what router advertisements made where they are wanted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::settings::Mac;

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub ip: IpAddr,
    pub prefix: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Those of the link itself first: others lead through them.
    pub gateway: Option<IpAddr>,
    pub to: Address,
    /// The smaller, the sooner taken.
    pub metric: u32,
}

/// Who put an address or a route there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// This process, or a person: it lasts until somebody removes it.
    Ours,
    /// The kernel, out of router advertisements.
    Advertised,
}

/// An interface as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub index: u32,
    pub name: String,
    pub mac: Option<Mac>,
    pub kind: Kind,
    pub up: bool,
    pub carrier: bool,
    pub mtu: u32,
    pub addresses: Vec<(Address, Origin)>,
    pub routes: Vec<(Route, Origin)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Loopback,
    Ethernet,
    Other,
}

/// What an interface should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub mtu: u32,
    pub ra: bool,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Mtu(u32),
    Up,
    RemoveRoute(Route),
    AddAddress(Address),
    RemoveAddress(Address),
    AddRoute(Route, Reach),
}

/// Whether a gateway lies in a network of the interface, or is to be taken for a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Inside,
    OnLink,
}

/// What to do, in this order. An address comes before the one it follows goes: what is open over
/// a third one stays open.
pub fn changes(facts: &Facts, wanted: &Wanted) -> Vec<Change> {
    let mut found = Vec::new();
    if facts.mtu != wanted.mtu {
        found.push(Change::Mtu(wanted.mtu));
    }
    if !facts.up {
        found.push(Change::Up);
    }
    let stays = |origin: Origin| wanted.ra && origin == Origin::Advertised;
    for (route, origin) in &facts.routes {
        if !stays(*origin) && !wanted.routes.contains(route) {
            found.push(Change::RemoveRoute(*route));
        }
    }
    for address in &wanted.addresses {
        if !facts.addresses.iter().any(|(has, _)| has == address) {
            found.push(Change::AddAddress(*address));
        }
    }
    for (address, origin) in &facts.addresses {
        if !stays(*origin) && !wanted.addresses.contains(address) {
            found.push(Change::RemoveAddress(*address));
        }
    }
    let mut routes = wanted.routes.clone();
    routes.sort();
    for route in routes {
        if !facts.routes.iter().any(|(has, _)| *has == route) {
            found.push(Change::AddRoute(route, reach(&route, &wanted.addresses)));
        }
    }
    found
}

fn reach(route: &Route, addresses: &[Address]) -> Reach {
    let Some(gateway) = route.gateway else {
        return Reach::Inside;
    };
    // A router's link-local address is a neighbour by its nature.
    let local = matches!(gateway, IpAddr::V6(ip) if ip.is_unicast_link_local());
    match local || addresses.iter().any(|address| address.holds(gateway)) {
        true => Reach::Inside,
        false => Reach::OnLink,
    }
}

impl Route {
    pub fn default_by(gateway: IpAddr, metric: u32) -> Route {
        let ip = match gateway {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Route {
            gateway: Some(gateway),
            to: Address { ip, prefix: 0 },
            metric,
        }
    }
}

impl Address {
    /// Whether `ip` is in the network of this address.
    pub fn holds(self, ip: IpAddr) -> bool {
        let prefix = u32::from(self.prefix);
        match (self.ip, ip) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => {
                let differ = u32::from(ours) ^ u32::from(other);
                differ.checked_shr(32 - prefix.min(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(ours), IpAddr::V6(other)) => {
                let differ = u128::from(ours) ^ u128::from(other);
                differ.checked_shr(128 - prefix.min(128)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Address {
    type Err = ();

    /// Of a host: nothing that stands for no one or for many.
    fn from_str(word: &str) -> Result<Address, ()> {
        let (ip, prefix) = word.split_once('/').ok_or(())?;
        let ip: IpAddr = ip.parse().map_err(|_no_address| ())?;
        let prefix: u8 = prefix.parse().map_err(|_no_number| ())?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        match prefix <= longest && prefix > 0 && is_host(ip) {
            true => Ok(Address { ip, prefix }),
            false => Err(()),
        }
    }
}

pub fn is_host(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback() && !broadcast
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(word: &str) -> Address {
        word.parse().unwrap()
    }

    fn by(gateway: &str) -> Route {
        Route::default_by(gateway.parse().unwrap(), 100)
    }

    fn facts(addresses: &[(&str, Origin)], routes: &[(Route, Origin)]) -> Facts {
        Facts {
            index: 2,
            name: "eth0".into(),
            mac: None,
            kind: Kind::Ethernet,
            up: true,
            carrier: true,
            mtu: 1500,
            addresses: addresses
                .iter()
                .map(|(word, o)| (address(word), *o))
                .collect(),
            routes: routes.to_vec(),
        }
    }

    fn wanted(addresses: &[&str], routes: &[Route]) -> Wanted {
        Wanted {
            mtu: 1500,
            ra: false,
            addresses: addresses.iter().map(|word| address(word)).collect(),
            routes: routes.to_vec(),
        }
    }

    #[test]
    fn an_interface_that_is_right_is_left_alone() {
        let has = facts(
            &[("10.0.0.5/24", Origin::Ours), ("fd00::5/64", Origin::Ours)],
            &[(by("10.0.0.1"), Origin::Ours)],
        );
        let wants = wanted(&["fd00::5/64", "10.0.0.5/24"], &[by("10.0.0.1")]);
        assert_eq!(changes(&has, &wants), []);
    }

    #[test]
    fn what_is_the_same_stays_and_the_rest_is_put_right_in_order() {
        let has = facts(
            &[("10.0.0.5/24", Origin::Ours), ("10.0.1.5/24", Origin::Ours)],
            &[(by("10.0.0.1"), Origin::Ours)],
        );
        let wants = Wanted {
            mtu: 9000,
            ..wanted(&["10.0.1.5/24", "10.0.2.5/24"], &[by("10.0.2.1")])
        };
        let expected = [
            Change::Mtu(9000),
            Change::RemoveRoute(by("10.0.0.1")),
            Change::AddAddress(address("10.0.2.5/24")),
            Change::RemoveAddress(address("10.0.0.5/24")),
            Change::AddRoute(by("10.0.2.1"), Reach::Inside),
        ];
        assert_eq!(changes(&has, &wants), expected);
        let down = Facts { up: false, ..has };
        assert!(changes(&down, &wants).contains(&Change::Up));
    }

    #[test]
    fn what_routers_advertised_stays_only_where_it_is_wanted() {
        let has = facts(
            &[("fd00::1:2/64", Origin::Advertised)],
            &[(by("fe80::1"), Origin::Advertised)],
        );
        let listens = Wanted {
            ra: true,
            ..wanted(&[], &[])
        };
        assert_eq!(changes(&has, &listens), []);
        let expected = [
            Change::RemoveRoute(by("fe80::1")),
            Change::RemoveAddress(address("fd00::1:2/64")),
        ];
        assert_eq!(changes(&has, &wanted(&[], &[])), expected);
    }

    #[test]
    fn routes_of_the_link_come_before_those_through_them() {
        let link = Route {
            gateway: None,
            to: address("10.9.0.1/32"),
            metric: 100,
        };
        let wants = wanted(&["10.0.0.5/32"], &[by("10.9.0.1"), link]);
        let has = facts(&[("10.0.0.5/32", Origin::Ours)], &[]);
        let expected = [
            Change::AddRoute(link, Reach::Inside),
            Change::AddRoute(by("10.9.0.1"), Reach::OnLink),
        ];
        assert_eq!(changes(&has, &wants), expected);
    }

    #[test]
    fn a_network_holds_its_addresses() {
        let rows = [
            ("10.0.0.5/24", "10.0.0.1", true),
            ("10.0.0.5/24", "10.0.1.1", false),
            ("10.0.0.5/32", "10.0.0.5", true),
            ("10.0.0.5/32", "10.0.0.4", false),
            ("10.0.0.5/1", "127.0.0.1", true),
            ("fd00::5/64", "fd00::ffff", true),
            ("fd00::5/64", "fd00:0:0:1::1", false),
            ("fd00::5/128", "fd00::5", true),
            ("fd00::5/64", "10.0.0.5", false),
        ];
        for (network, ip, expected) in rows {
            let holds = address(network).holds(ip.parse().unwrap());
            assert_eq!(holds, expected, "{network} {ip}");
        }
    }
}
