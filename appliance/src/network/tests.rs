//! The network for real: two network namespaces with a cable between them, and servers at its
//! other end. Each case runs in a process of its own, which has nothing to lose.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{env, fs, thread};

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode};
use dhcproto::{Decodable, Decoder, Encodable};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

use super::{Dhcp, Link, Network, Settings, start};
use crate::testing::skip;
use crate::testing::wait::{PATIENCE, wait_until};

/// Set in the process that has the namespace, to the case it runs.
const INSIDE: &str = "PGHOARD_TEST_NETWORK";

/// The other end of the cable, and who serves there.
const PEER: &str = "peer";

/// Whether this process may go on with the case. If not, another one has been through it.
fn alone(case: &str) -> bool {
    if env::var(INSIDE).is_ok_and(|inside| inside == case) {
        for command in [
            "mount -t tmpfs tmpfs /run",
            "ip netns add peer",
            "ip link add eth0 type veth peer name peer0 netns peer",
            "ip -n peer addr add 10.99.0.1/24 dev peer0",
            "ip -n peer addr add fd99::1/64 dev peer0 nodad",
            "ip -n peer link set peer0 up",
        ] {
            run(command);
        }
        return true;
    }
    let tried = Command::new("unshare")
        .args(["--net", "--mount", "ip", "netns", "list"])
        .output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        skip::skip("network-namespaces", "they want root, unshare and iproute2");
        return false;
    }
    let out = Command::new("unshare")
        .args(["--net", "--mount", "--kill-child", "--fork"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &format!("network::tests::{case}")])
        .env(INSIDE, case)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
    false
}

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let program = words.next().unwrap();
    let out = Command::new(program).args(words).output().unwrap();
    assert!(
        out.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// Nobody listens there, and says so: packets go both ways. A new IPv6 address waits first.
fn reach(ip: &str) {
    let to = SocketAddr::new(ip.parse().unwrap(), 9);
    wait_until(ip, PATIENCE, || {
        let refused = TcpStream::connect_timeout(&to, Duration::from_secs(5));
        refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
}

struct Bench {
    network: Network,
    scratch: tempfile::TempDir,
}

impl Bench {
    fn start(settings: Value) -> Bench {
        let scratch = tempfile::tempdir().unwrap();
        let resolv_conf = scratch.path().join("resolv.conf");
        let network = start(parse(settings), "backup", &resolv_conf).unwrap();
        Bench { network, scratch }
    }

    fn resolv_conf(&self) -> String {
        let path: PathBuf = self.scratch.path().join("resolv.conf");
        fs::read_to_string(path).unwrap_or_default()
    }

    fn link(&self, name: &str) -> Option<Link> {
        let links = self.network.status();
        links.into_iter().find(|link| link.name == name)
    }

    fn dhcp(&self) -> Option<Dhcp> {
        self.link("eth0")?.dhcp
    }

    fn until(&self, what: &str, holds: impl Fn(&Link) -> bool) {
        self.until_of("eth0", what, holds);
    }

    fn until_of(&self, name: &str, what: &str, holds: impl Fn(&Link) -> bool) {
        let look = || self.link(name).is_some_and(|link| holds(&link));
        let met = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(what, PATIENCE, look);
        }));
        assert!(met.is_ok(), "{what}: {:#?}", self.network.status());
    }
}

fn parse(settings: Value) -> Settings {
    Settings::parse(&settings).unwrap()
}

fn eth0(inside: Value) -> Value {
    json!({"interfaces": {"eth0": inside}})
}

fn has(link: &Link, address: &str) -> bool {
    link.addresses.iter().any(|has| has == address)
}

/// A DHCP server that does as it is told.
#[derive(Clone)]
struct Server {
    mood: Arc<Mutex<Mood>>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Silent,
    Refusing,
    /// The last byte of the address, and renewal, rebinding and end in seconds.
    Giving(u8, [u32; 3]),
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Heard {
    kind: MessageType,
    ours: Ipv4Addr,
}

impl Server {
    fn start(mood: Mood) -> Server {
        let server = Server {
            mood: Arc::new(Mutex::new(mood)),
            heard: Arc::default(),
        };
        let other = server.clone();
        thread::spawn(move || other.serve());
        server
    }

    fn serve(&self) {
        let namespace = fs::File::open(Path::new("/run/netns").join(PEER)).unwrap();
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)).unwrap();
        socket.set_broadcast(true).unwrap();
        setsockopt(&socket, sockopt::BindToDevice, &"peer0".into()).unwrap();
        let mut bytes = [0; 2048];
        loop {
            let (length, _) = socket.recv_from(&mut bytes).unwrap();
            let question = Message::decode(&mut Decoder::new(&bytes[..length])).unwrap();
            let kind = question.opts().msg_type().unwrap();
            let ours = question.ciaddr();
            self.heard.lock().unwrap().push(Heard { kind, ours });
            let Some(answer) = answer(&question, *self.mood.lock().unwrap()) else {
                continue;
            };
            let to = match ours.is_unspecified() {
                true => Ipv4Addr::BROADCAST,
                false => ours,
            };
            // A client that has just left cannot be reached.
            let _lost = socket.send_to(&answer.to_vec().unwrap(), (to, 68));
        }
    }

    fn is(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn extended(&self) -> usize {
        let heard = self.heard.lock().unwrap();
        let extends = |heard: &&Heard| !heard.ours.is_unspecified();
        heard.iter().filter(extends).count()
    }
}

fn answer(question: &Message, mood: Mood) -> Option<Message> {
    let asked = question.opts().msg_type()?;
    let kind = match (mood, asked) {
        (Mood::Silent, _) => return None,
        (Mood::Refusing, MessageType::Request) => MessageType::Nak,
        (Mood::Refusing, _) => return None,
        (Mood::Giving(..), MessageType::Discover) => MessageType::Offer,
        (Mood::Giving(..), _) => MessageType::Ack,
    };
    let server = Ipv4Addr::new(10, 99, 0, 1);
    let mut message = question.clone();
    message.set_opcode(Opcode::BootReply);
    let options = message.opts_mut();
    options.clear();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(server));
    if let Mood::Giving(last, [renew, rebind, end]) = mood {
        options.insert(DhcpOption::SubnetMask([255, 255, 255, 0].into()));
        options.insert(DhcpOption::Router(vec![server]));
        options.insert(DhcpOption::DomainNameServer(vec![server]));
        options.insert(DhcpOption::NtpServers(vec![server]));
        options.insert(DhcpOption::Renewal(renew));
        options.insert(DhcpOption::Rebinding(rebind));
        options.insert(DhcpOption::AddressLeaseTime(end));
        message.set_yiaddr(Ipv4Addr::new(10, 99, 0, last));
    }
    Some(message)
}

#[test]
fn a_lease_is_had_renewed_lost_and_had_again() {
    if !alone("a_lease_is_had_renewed_lost_and_had_again") {
        return;
    }
    let server = Server::start(Mood::Giving(5, [1, 2, 4]));
    let bench = Bench::start(json!(null));
    bench.until("an address", |link| has(link, "10.99.0.5/24"));
    bench.until("a route", |link| link.gateways == ["10.99.0.1"]);
    let here = Ipv4Addr::new(10, 99, 0, 1);
    wait_until("name servers", PATIENCE, || bench.network.dns() == [here]);
    assert_eq!(bench.network.time_servers(), [here]);
    assert_eq!(bench.resolv_conf(), "nameserver 10.99.0.1\n");
    reach("10.99.0.1");

    wait_until("a renewal", PATIENCE, || server.extended() >= 3);
    assert!(has(&bench.link("eth0").unwrap(), "10.99.0.5/24"));

    server.is(Mood::Silent);
    bench.until("the lease to end", |link| link.addresses.is_empty());
    wait_until("no name servers", PATIENCE, || {
        bench.resolv_conf().is_empty()
    });

    server.is(Mood::Giving(6, [1, 2, 4]));
    bench.network.renew();
    bench.until("another address", |link| has(link, "10.99.0.6/24"));

    server.is(Mood::Refusing);
    bench.until("a refusal", |link| link.addresses.is_empty());
    server.is(Mood::Giving(7, [100, 200, 400]));
    bench.until("a third address", |link| link.addresses == ["10.99.0.7/24"]);
    let dhcp = bench.dhcp().unwrap();
    assert_eq!(
        (dhcp.state, dhcp.server.as_deref()),
        ("bound", Some("10.99.0.1"))
    );
    assert!(
        dhcp.ends_in_seconds
            .is_some_and(|left| (300..=400).contains(&left))
    );
}

#[test]
fn static_addresses_are_set_switched_and_kept_right() {
    if !alone("static_addresses_are_set_switched_and_kept_right") {
        return;
    }
    run("ip link add eth1 type veth peer name peer1 netns peer");
    run("ip addr add 10.7.0.7/24 dev eth1");
    run("ip link set eth1 up");
    let mut settings = eth0(json!({
        "addresses": ["10.99.0.20/24", "10.99.0.21/24", "fd99::20/64"],
        "gateways": ["10.99.0.1", "fd99::1"], "mtu": 1400,
    }));
    settings["dns"] = json!(["10.99.0.3", "fd99::3"]);
    settings["search"] = json!(["example.net"]);
    let bench = Bench::start(settings);
    bench.until("all addresses", |link| {
        link.addresses.len() == 3 && link.gateways.len() == 2
    });
    let link = bench.link("eth0").unwrap();
    assert_eq!((link.mtu, link.dhcp, link.problem), (1400, None, None));
    let expected = "search example.net\nnameserver 10.99.0.3\nnameserver fd99::3\n";
    assert_eq!(bench.resolv_conf(), expected);
    reach("10.99.0.1");
    reach("fd99::1");
    let nobody = "what nobody named to be empty";
    bench.until_of("eth1", nobody, |link| link.addresses.is_empty());

    run("ip addr add 10.8.0.8/24 dev eth0");
    run("ip addr del 10.99.0.20/24 dev eth0");
    run("ip route del default via 10.99.0.1");
    bench.until("what a stranger did to be undone", |link| {
        link.addresses.len() == 3 && has(link, "10.99.0.20/24") && link.gateways.len() == 2
    });

    // The first address of its network goes, the second stays and a third comes.
    let mac = link.mac.unwrap();
    let inside = json!({"addresses": ["10.99.0.21/24", "10.99.0.22/24"]});
    bench
        .network
        .apply(parse(json!({"interfaces": {mac: inside}})), "backup");
    let link = bench.link("eth0").unwrap();
    assert_eq!(link.addresses, ["10.99.0.21/24", "10.99.0.22/24"]);
    assert_eq!((link.mtu, link.gateways.len()), (1500, 0));
    assert_eq!(bench.resolv_conf(), "");
    reach("10.99.0.1");
}

#[test]
fn a_cable_and_a_card_that_come_later_work() {
    if !alone("a_cable_and_a_card_that_come_later_work") {
        return;
    }
    let _server = Server::start(Mood::Giving(5, [100, 200, 400]));
    run("ip -n peer link set peer0 down");
    let bench = Bench::start(json!(null));
    bench.until("the card", |link| !link.carrier);
    assert_eq!(bench.dhcp().unwrap().state, "no carrier");
    run("ip -n peer link set peer0 up");
    bench.until("a lease by the cable", |link| {
        link.carrier && has(link, "10.99.0.5/24")
    });

    run("ip -n peer link set peer0 down");
    bench.until("no cable", |link| !link.carrier);
    assert!(
        has(&bench.link("eth0").unwrap(), "10.99.0.5/24"),
        "kept until it ends"
    );
    run("ip -n peer link set peer0 up");
    bench.until("the same lease", |link| {
        link.dhcp.as_ref().unwrap().state == "bound"
    });

    run("ip link del eth0");
    wait_until("the card to be gone", PATIENCE, || {
        bench.link("eth0").is_none()
    });
    run("ip link add eth0 type veth peer name peer9 netns peer");
    bench.until("the next card", |link| {
        link.dhcp.is_some() && !has(link, "10.99.0.5/24")
    });
}

/// A route to a host on the link, and the default one through it, as some clouds have them.
#[test]
fn a_gateway_outside_of_every_network_is_reached() {
    if !alone("a_gateway_outside_of_every_network_is_reached") {
        return;
    }
    run("ip -n peer addr add 10.1.0.1/32 dev peer0");
    run("ip -n peer route add 10.2.0.2/32 dev peer0");
    let bench = Bench::start(eth0(json!({
        "addresses": ["10.2.0.2/32"], "gateways": ["10.1.0.1"],
    })));
    bench.until("the route", |link| link.gateways == ["10.1.0.1"]);
    reach("10.1.0.1");
}

#[test]
fn dnsmasq_and_its_router_advertisements_are_understood() {
    if !alone("dnsmasq_and_its_router_advertisements_are_understood") {
        return;
    }
    if Command::new("/usr/sbin/dnsmasq")
        .arg("--version")
        .output()
        .is_err()
    {
        return skip::skip("dnsmasq", "Debian's dnsmasq-base has it");
    }
    let mut dnsmasq = dnsmasq();
    let bench = Bench::start(json!(null));
    bench.until("both kinds of address", |link| {
        let slaac = |a: &String| a.starts_with("fd99::") && a.ends_with("/64");
        has(link, "10.99.0.50/24") && link.addresses.iter().any(slaac)
    });
    bench.until("both routers", |link| link.gateways.len() == 2);
    let link = bench.link("eth0").unwrap();
    assert_eq!(link.mtu, 1450);
    let expected = "search a.example b.example\nnameserver 10.99.0.2\n";
    assert_eq!(bench.resolv_conf(), expected);
    assert_eq!(bench.network.time_servers(), [Ipv4Addr::new(10, 99, 0, 4)]);

    bench
        .network
        .apply(parse(eth0(json!({"addresses": ["dhcp"]}))), "backup");
    bench.until("IPv6 to be gone", |link| {
        link.addresses == ["10.99.0.50/24"]
    });
    let link = bench.link("eth0").unwrap();
    assert_eq!(link.gateways, ["10.99.0.1"]);
    bench.network.apply(parse(json!(null)), "backup");
    bench.until("IPv6 to be back", |link| link.addresses.len() == 2);
    dnsmasq.kill().unwrap();
    dnsmasq.wait().unwrap();
}

fn dnsmasq() -> Child {
    let child = Command::new("ip")
        .args([
            "netns",
            "exec",
            PEER,
            "/usr/sbin/dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
        ])
        .args([
            "--port=0",
            "--user=root",
            "--interface=peer0",
            "--bind-interfaces",
        ])
        .args([
            "--pid-file=",
            "--leasefile-ro",
            "--enable-ra",
            "--no-ping",
            "--log-facility=-",
        ])
        .args(["--dhcp-range=10.99.0.50,10.99.0.50,255.255.255.0,2m"])
        .args(["--dhcp-range=fd99::,ra-only,64", "--dhcp-authoritative"])
        .args([
            "--dhcp-option=option:router,10.99.0.1",
            "--dhcp-option=option:ntp-server,10.99.0.4",
        ])
        .args([
            "--dhcp-option=option:dns-server,10.99.0.2",
            "--dhcp-option=option:mtu,1450",
        ])
        .args(["--dhcp-option=option:domain-search,a.example,b.example"])
        .stdout(Stdio::null())
        .spawn();
    child.unwrap()
}
