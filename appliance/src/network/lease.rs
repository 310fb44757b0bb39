//! DHCPv4 messages (RFC 2131, options of RFC 2132): what is asked, and what an answer means.
//!
//! Whatever comes from the network is a stranger's: a message that does not add up is not there.

use std::net::{IpAddr, Ipv4Addr};
use std::panic;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use machine::Class;
use pghoard::{Failure, Outcome};

use super::link::{Address, is_host};
use super::names::is_domain;
use super::settings::Mac;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub ip: Ipv4Addr,
    pub prefix: u8,
    pub server: Ipv4Addr,
    /// Destination and gateway; without one it is on the link.
    pub routes: Vec<(Ipv4Addr, u8, Option<Ipv4Addr>)>,
    pub dns: Vec<IpAddr>,
    pub search: Vec<String>,
    pub time_servers: Vec<IpAddr>,
    pub mtu: Option<u32>,
    pub times: Times,
}

/// From the moment the lease was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    Forever,
    Until {
        renew: Duration,
        rebind: Duration,
        end: Duration,
    },
}

impl Lease {
    pub fn address(&self) -> Address {
        Address {
            ip: IpAddr::V4(self.ip),
            prefix: self.prefix,
        }
    }
}

/// RFC 2131 table 5: what each kind of question says of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Discover,
    /// The address that `server` offered.
    Take {
        ip: Ipv4Addr,
        server: Ipv4Addr,
    },
    /// The one had before the cable was pulled.
    Again {
        ip: Ipv4Addr,
    },
    /// The one that is in use; from whom does not matter.
    Extend {
        ip: Ipv4Addr,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    pub ask: Ask,
    pub xid: u32,
    pub mac: Mac,
    pub hostname: &'a str,
    /// Since the first question of this exchange.
    pub seconds: u16,
}

impl Question<'_> {
    pub fn bytes(&self) -> Outcome<Vec<u8>> {
        let none = Ipv4Addr::UNSPECIFIED;
        let (kind, ours, wish, server) = match self.ask {
            Ask::Discover => (MessageType::Discover, none, None, None),
            Ask::Take { ip, server } => (MessageType::Request, none, Some(ip), Some(server)),
            Ask::Again { ip } => (MessageType::Request, none, Some(ip), None),
            Ask::Extend { ip } => (MessageType::Request, ip, None, None),
        };
        let mut message = blank()?;
        message.set_xid(self.xid);
        message.set_chaddr(&self.mac.0);
        message.set_ciaddr(ours);
        message.set_secs(self.seconds);
        if ours.is_unspecified() {
            // Without an address nothing else would reach this socket.
            message.set_flags(Flags::default().set_broadcast());
        }
        let mut identifier = vec![ETHERNET];
        identifier.extend(self.mac.0);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ClientIdentifier(identifier));
        options.insert(DhcpOption::ParameterRequestList(ASKED_FOR.to_vec()));
        options.insert(DhcpOption::MaxMessageSize(MESSAGE_BYTES));
        if !self.hostname.is_empty() {
            options.insert(DhcpOption::Hostname(self.hostname.to_owned()));
        }
        if let Some(ip) = wish {
            options.insert(DhcpOption::RequestedIpAddress(ip));
        }
        if let Some(server) = server {
            options.insert(DhcpOption::ServerIdentifier(server));
        }
        let mut bytes = Vec::new();
        message
            .encode(&mut Encoder::new(&mut bytes))
            .map_err(|error| Failure::new(Class::Internal, format!("a DHCP question: {error}")))?;
        // Some servers and relays drop what is shorter than BOOTP's message (RFC 1542, 2.1).
        if bytes.len() < BOOTP_BYTES {
            bytes.resize(BOOTP_BYTES, 0);
        }
        Ok(bytes)
    }
}

/// `Message::new` would wait for the kernel's random numbers, which early at boot may not be there.
fn blank() -> Outcome<Message> {
    let mut bytes = [0; 240];
    let head = bytes.iter_mut().zip([BOOT_REQUEST, ETHERNET]);
    head.for_each(|(byte, value)| *byte = value);
    let magic = bytes.iter_mut().skip(236).zip(MAGIC);
    magic.for_each(|(byte, value)| *byte = value);
    Message::decode(&mut Decoder::new(&bytes)).map_err(|error| {
        let message = format!("a DHCP question: {error}");
        Failure::new(Class::Internal, message)
    })
}

const BOOT_REQUEST: u8 = 1;
const ETHERNET: u8 = 1;
/// RFC 2131 section 3.
const MAGIC: [u8; 4] = [99, 130, 83, 99];
const BOOTP_BYTES: usize = 300;
const MESSAGE_BYTES: u16 = 1472;
/// RFC 3442: routes before routers, and both in one list.
const ASKED_FOR: [OptionCode; 9] = [
    OptionCode::SubnetMask,
    OptionCode::ClasslessStaticRoute,
    OptionCode::Router,
    OptionCode::DomainNameServer,
    OptionCode::DomainName,
    OptionCode::DomainSearch,
    OptionCode::InterfaceMtu,
    OptionCode::NtpServers,
    OptionCode::AddressLeaseTime,
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Offer(Lease),
    Ack(Lease),
    Nak { server: Option<Ipv4Addr> },
}

/// The answer to the question `xid` of `mac`, if it is one that makes sense.
pub fn read(bytes: &[u8], xid: u32, mac: Mac) -> Option<Answer> {
    // A hardware address as long as ours, or the decoder's own would be out of bounds.
    if bytes.get(236..240) != Some(&MAGIC) || bytes.get(2) != Some(&6) {
        return None;
    }
    // The decoder asserts on what it takes for granted of some options.
    let decode = || Message::decode(&mut Decoder::new(bytes)).ok();
    let message = panic::catch_unwind(decode).ok().flatten()?;
    let ours = message.opcode() == Opcode::BootReply
        && message.xid() == xid
        && message.chaddr() == mac.0.as_slice();
    if !ours {
        return None;
    }
    match message.opts().msg_type()? {
        MessageType::Offer => lease(&message).map(Answer::Offer),
        MessageType::Ack => lease(&message).map(Answer::Ack),
        MessageType::Nak => {
            let server = server(&message);
            Some(Answer::Nak { server })
        }
        _ => None,
    }
}

fn lease(message: &Message) -> Option<Lease> {
    let ip = message.yiaddr();
    if !is_host(IpAddr::V4(ip)) {
        return None;
    }
    let mut lease = Lease {
        ip,
        prefix: prefix_by_class(ip),
        server: server(message)?,
        routes: Vec::new(),
        dns: Vec::new(),
        search: Vec::new(),
        time_servers: Vec::new(),
        mtu: None,
        times: times(message)?,
    };
    let mut routers = Vec::new();
    let mut domain = Vec::new();
    for (_, option) in message.opts().iter() {
        match option {
            DhcpOption::SubnetMask(mask) => lease.prefix = prefix(*mask)?,
            DhcpOption::Router(ips) => routers.clone_from(ips),
            DhcpOption::ClasslessStaticRoute(routes) => {
                let routes = routes.iter().take(ROUTES_MAX).map(|(net, gateway)| {
                    let gateway = (!gateway.is_unspecified()).then_some(*gateway);
                    (net.network(), net.prefix_len(), gateway)
                });
                lease.routes = routes.collect();
            }
            DhcpOption::DomainNameServer(ips) => lease.dns = hosts(ips),
            DhcpOption::NtpServers(ips) => lease.time_servers = hosts(ips),
            DhcpOption::DomainName(names) => {
                domain = names
                    .trim_end_matches('\0')
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect();
            }
            DhcpOption::DomainSearch(names) => {
                let name = |name: &dhcproto::Name| name.to_string();
                lease.search = names.iter().map(name).collect();
            }
            DhcpOption::InterfaceMtu(mtu) if *mtu >= MTU_MIN => lease.mtu = Some(u32::from(*mtu)),
            _ => {}
        }
    }
    if lease.search.is_empty() {
        lease.search = domain;
    }
    for name in &mut lease.search {
        name.truncate(name.trim_end_matches('.').len());
    }
    lease.search.retain(|name| is_domain(name));
    // With routes routers are to be ignored (RFC 3442).
    if lease.routes.is_empty()
        && let Some(router) = hosts(&routers).first()
        && let IpAddr::V4(router) = router
    {
        lease.routes = vec![(Ipv4Addr::UNSPECIFIED, 0, Some(*router))];
    }
    Some(lease)
}

fn server(message: &Message) -> Option<Ipv4Addr> {
    match message.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(ip)) => Some(*ip),
        _ => None,
    }
}

/// RFC 2131 section 4.4.5 for those not given, or given out of order.
fn times(message: &Message) -> Option<Times> {
    let options = message.opts();
    let Some(DhcpOption::AddressLeaseTime(end)) = options.get(OptionCode::AddressLeaseTime) else {
        return None;
    };
    if *end == u32::MAX {
        return Some(Times::Forever);
    }
    let end = (*end).max(LEASE_SECONDS_MIN);
    let rebind = match options.get(OptionCode::Rebinding) {
        Some(DhcpOption::Rebinding(seconds)) if (2..end).contains(seconds) => *seconds,
        _ => end - end / 8,
    };
    let renew = match options.get(OptionCode::Renewal) {
        Some(DhcpOption::Renewal(seconds)) if (1..rebind).contains(seconds) => *seconds,
        _ => rebind.min(end / 2),
    };
    let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
    Some(Times::Until {
        renew: seconds(renew),
        rebind: seconds(rebind),
        end: seconds(end),
    })
}

/// Shorter ones would be asked for all the time.
const LEASE_SECONDS_MIN: u32 = 4;
/// RFC 791: what every host takes. Less breaks more than it mends.
const MTU_MIN: u16 = 576;
/// Of one lease; more is nobody's network.
const ROUTES_MAX: usize = 64;

fn hosts(ips: &[Ipv4Addr]) -> Vec<IpAddr> {
    let ips = ips.iter().map(|ip| IpAddr::V4(*ip));
    ips.filter(|ip| is_host(*ip)).collect()
}

/// Of a mask that is one: ones, then zeros.
fn prefix(mask: Ipv4Addr) -> Option<u8> {
    let bits = u32::from(mask);
    let ones = bits.leading_ones();
    match ones > 0 && bits.count_ones() == ones {
        true => u8::try_from(ones).ok(),
        false => None,
    }
}

/// RFC 2131 section 4.4.1 leaves the mask out; RFC 791 has the classes.
fn prefix_by_class(ip: Ipv4Addr) -> u8 {
    match ip.octets() {
        [0..128, ..] => 8,
        [128..192, ..] => 16,
        [192..=255, ..] => 24,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);

    fn answer(kind: MessageType, options: &[DhcpOption]) -> Vec<u8> {
        let none = Ipv4Addr::UNSPECIFIED;
        let ip = Ipv4Addr::new(10, 0, 0, 5);
        let mut message = Message::new_with_id(7, none, ip, none, none, &MAC.0);
        message.set_opcode(Opcode::BootReply);
        let server = DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 0, 1));
        for option in [DhcpOption::MessageType(kind), server]
            .iter()
            .chain(options)
        {
            message.opts_mut().insert(option.clone());
        }
        message.to_vec().unwrap()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_offer_is_read_with_everything_in_it() {
        let ip = |last| Ipv4Addr::new(10, 0, 0, last);
        let bytes = answer(
            MessageType::Offer,
            &[
                DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 254, 0)),
                DhcpOption::Router(vec![ip(1), ip(2)]),
                DhcpOption::DomainNameServer(vec![ip(3), Ipv4Addr::UNSPECIFIED]),
                DhcpOption::NtpServers(vec![ip(4)]),
                DhcpOption::DomainName("example.net".into()),
                DhcpOption::InterfaceMtu(1400),
                DhcpOption::AddressLeaseTime(3600),
            ],
        );
        let expected = Lease {
            ip: ip(5),
            prefix: 23,
            server: ip(1),
            routes: vec![(Ipv4Addr::UNSPECIFIED, 0, Some(ip(1)))],
            dns: vec![IpAddr::V4(ip(3))],
            search: vec!["example.net".into()],
            time_servers: vec![IpAddr::V4(ip(4))],
            mtu: Some(1400),
            times: Times::Until {
                renew: seconds(1800),
                rebind: seconds(3150),
                end: seconds(3600),
            },
        };
        assert_eq!(read(&bytes, 7, MAC), Some(Answer::Offer(expected)));
        assert_eq!(read(&bytes, 8, MAC), None, "another question's");
        assert_eq!(read(&bytes, 7, Mac([9; 6])), None, "another machine's");
    }

    #[test]
    fn routes_take_the_place_of_routers() {
        let gateway = Ipv4Addr::new(10, 9, 0, 1);
        let bytes = answer(
            MessageType::Ack,
            &[
                DhcpOption::AddressLeaseTime(u32::MAX),
                DhcpOption::Router(vec![Ipv4Addr::new(10, 0, 0, 1)]),
                DhcpOption::ClasslessStaticRoute(vec![
                    ("10.9.0.1/32".parse().unwrap(), Ipv4Addr::UNSPECIFIED),
                    ("0.0.0.0/0".parse().unwrap(), gateway),
                ]),
            ],
        );
        let Some(Answer::Ack(lease)) = read(&bytes, 7, MAC) else {
            panic!("an acknowledgement");
        };
        let expected = [
            (gateway, 32, None),
            (Ipv4Addr::UNSPECIFIED, 0, Some(gateway)),
        ];
        assert_eq!(lease.routes, expected);
        assert_eq!((lease.times, lease.prefix), (Times::Forever, 8));
    }

    #[test]
    fn times_out_of_order_are_replaced() {
        let rows = [
            (None, None, 3600, (1800, 3150, 3600)),
            (Some(10), Some(20), 30, (10, 20, 30)),
            (Some(20), Some(10), 30, (10, 10, 30)),
            (Some(40), Some(50), 30, (15, 27, 30)),
            (Some(0), Some(0), 0, (2, 4, 4)),
        ];
        for (renewal, rebinding, end, expected) in rows {
            let mut options = vec![DhcpOption::AddressLeaseTime(end)];
            options.extend(renewal.map(DhcpOption::Renewal));
            options.extend(rebinding.map(DhcpOption::Rebinding));
            let bytes = answer(MessageType::Ack, &options);
            let Some(Answer::Ack(lease)) = read(&bytes, 7, MAC) else {
                panic!("an acknowledgement");
            };
            let (renew, rebind, end) = expected;
            let expected = Times::Until {
                renew: seconds(renew),
                rebind: seconds(rebind),
                end: seconds(end),
            };
            assert_eq!(lease.times, expected);
        }
    }

    #[test]
    fn nonsense_is_not_there() {
        let lease = DhcpOption::AddressLeaseTime(60);
        let mask = |mask: [u8; 4]| DhcpOption::SubnetMask(mask.into());
        let good = answer(MessageType::Offer, std::slice::from_ref(&lease));
        assert!(read(&good, 7, MAC).is_some());
        let cut = |at: usize| good[..at].to_vec();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let rows = [
            ("empty", Vec::new()),
            ("cut in its head", cut(100)),
            ("without options", cut(240)),
            ("a question", with(0, 1)),
            ("a long hardware address", with(2, 200)),
            ("no magic", with(236, 0)),
            ("a multicast address", with(16, 224)),
            ("no time", answer(MessageType::Offer, &[])),
            (
                "holes in the mask",
                answer(MessageType::Offer, &[lease.clone(), mask([255, 0, 255, 0])]),
            ),
            (
                "no mask at all",
                answer(MessageType::Offer, &[lease, mask([0, 0, 0, 0])]),
            ),
            ("a question's kind", answer(MessageType::Request, &[])),
        ];
        for (name, bytes) in rows {
            assert_eq!(read(&bytes, 7, MAC), None, "{name}");
        }
        // An option whose decoder asserts.
        let mut bytes = cut(240);
        bytes.extend([81, 1, 0, 255]);
        assert_eq!(read(&bytes, 7, MAC), None);
    }

    #[test]
    fn a_name_that_would_write_lines_of_its_own_is_dropped() {
        let bytes = answer(
            MessageType::Offer,
            &[
                DhcpOption::AddressLeaseTime(60),
                DhcpOption::DomainName("good.example\nnameserver 6.6.6.6".into()),
            ],
        );
        let Some(Answer::Offer(lease)) = read(&bytes, 7, MAC) else {
            panic!("an offer");
        };
        assert_eq!(lease.search, ["good.example", "nameserver", "6.6.6.6"]);
    }

    #[test]
    fn a_question_says_of_the_address_what_its_kind_must() {
        let ip = Ipv4Addr::new(10, 0, 0, 5);
        let server = Ipv4Addr::new(10, 0, 0, 1);
        let none = Ipv4Addr::UNSPECIFIED;
        let rows = [
            (Ask::Discover, MessageType::Discover, none, None, None),
            (
                Ask::Take { ip, server },
                MessageType::Request,
                none,
                Some(ip),
                Some(server),
            ),
            (
                Ask::Again { ip },
                MessageType::Request,
                none,
                Some(ip),
                None,
            ),
            (Ask::Extend { ip }, MessageType::Request, ip, None, None),
        ];
        for (ask, kind, ours, wish, server) in rows {
            let question = Question {
                ask,
                xid: 9,
                mac: MAC,
                hostname: "backup",
                seconds: 3,
            };
            let bytes = question.bytes().unwrap();
            assert!(bytes.len() >= BOOTP_BYTES);
            let message = Message::decode(&mut Decoder::new(&bytes)).unwrap();
            let options = message.opts();
            assert_eq!(options.msg_type(), Some(kind));
            assert_eq!(
                (message.ciaddr(), message.xid(), message.secs()),
                (ours, 9, 3)
            );
            assert_eq!(message.flags().broadcast(), ours == none);
            let wish = wish.map(DhcpOption::RequestedIpAddress);
            assert_eq!(options.get(OptionCode::RequestedIpAddress), wish.as_ref());
            let server = server.map(DhcpOption::ServerIdentifier);
            assert_eq!(options.get(OptionCode::ServerIdentifier), server.as_ref());
            let name = DhcpOption::Hostname("backup".into());
            assert_eq!(options.get(OptionCode::Hostname), Some(&name));
        }
    }
}
